"""The settings that a command line names, and the differences between the settings of two versions."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from nanoagent.dev.sender import variables
from nanoagent.model.errors import InvalidCall
from nanoagent.model.function_record import FunctionSettings
from nanoagent.model.job import JobDefaults, NetworkPolicy, Reuse, Runtime
from nanoagent.model.message import InvalidJob, parse_job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from enum import StrEnum

_SECRET_SERVICES: Final = ("ssm", "secretsManager")
_Kind = TypeVar("_Kind", bound="StrEnum")
# The limits of the widest possible worker. The worker that gets the job checks the job with its own limits.
_WIDEST: Final = JobDefaults(
    s3_bucket="code", model_id="model", max_memory_mb=1 << 20, network=NetworkPolicy.EGRESS, locale="en"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The settings that a call of `nanoagent deploy` names. The others keep their values.

    Attributes:
        runtime: The language; empty if it is not named.
        memory_mb: The memory limit, MiB.
        timeout_s: The time limit, seconds.
        network: The network; empty for that of the worker.
        model: The model; empty for that of the worker.
        reuse: What the runs of a container reuse.
        env: Variables, each as `NAME=VALUE`.
        secrets: Variables whose values are secrets, each as `NAME=SERVICE:ID`.
        unset_env: The names of variables to remove.
    """

    runtime: str = ""
    memory_mb: int | None = None
    timeout_s: float | None = None
    network: str | None = None
    model: str | None = None
    reuse: str | None = None
    env: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    unset_env: tuple[str, ...] = ()

    def parsed(self) -> Changes:
        """Return the changes that the options ask for.

        Raises:
            InvalidCall: An option has a value that no setting may have.
        """
        problems: list[str] = []
        replaced: dict[str, Any] = {}
        if self.memory_mb is not None:
            replaced["memory_mb"] = self.memory_mb
        if self.timeout_s is not None:
            if not math.isfinite(self.timeout_s):
                raise InvalidCall([f"--timeout {self.timeout_s:g}: is not a number of seconds"])
            replaced["timeout_ms"] = round(self.timeout_s * 1000)
        if self.network is not None:
            replaced["network"] = _one_of("--network", self.network, NetworkPolicy, problems)
        if self.model is not None:
            replaced["model_id"] = self.model or None
        if self.reuse is not None:
            replaced["reuse"] = _one_of("--reuse", self.reuse, Reuse, problems) or Reuse.NONE
        runtime = _one_of("--runtime", self.runtime, Runtime, problems)
        if problems:
            raise InvalidCall(problems)
        env = variables.parsed(self.env) | _secrets(self.secrets)
        if twice := sorted(env.keys() & set(self.unset_env)):
            raise InvalidCall([f"--unset-env {', '.join(twice)}: is also set"])
        return Changes(runtime, replaced, env, frozenset(self.unset_env))


class Changes(NamedTuple):
    """The changes of settings that a call asks for.

    Attributes:
        runtime: The language; None if it is not named.
        replaced: The new values of other settings.
        env: The variables that are set.
        unset_env: The names of the variables that are removed.
    """

    runtime: Runtime | None
    replaced: dict[str, Any]
    env: dict[str, Any]
    unset_env: frozenset[str]

    def applied(self, runtime: Runtime, before: FunctionSettings | None) -> FunctionSettings:
        """Return the settings of the new version.

        Args:
            runtime: The language of the code.
            before: The settings of the current version; None for a new function.
        """
        base = before or FunctionSettings(runtime=runtime)
        kept = {name: value for name, value in base.env.items() if name not in self.unset_env}
        return msgspec.structs.replace(base, **self.replaced, runtime=runtime, env=kept | self.env)


def _one_of(option: str, value: str, kind: type[_Kind], problems: list[str]) -> _Kind | None:
    """Return the member of an enumeration; None for an empty text."""
    if not value:
        return None
    if value not in set(kind):
        problems.append(f"{option} {value}: is not one of {', '.join(kind)}")
        return None
    return kind(value)


def _secrets(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse the values of `--secret`: `NAME=ssm:/path`, `NAME=secretsManager:ID` or `…#KEY`.

    Raises:
        InvalidCall: A value has another form.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, _, reference = pair.partition("=")
        service, _, secret = reference.partition(":")
        identity, mark, key = secret.partition("#")
        if service not in _SECRET_SERVICES or not identity or bool(mark) != bool(key):
            expected = " or ".join(f"NAME={service}:ID" for service in _SECRET_SERVICES)
            raise InvalidCall([f"--secret {pair}: write {expected}, with #KEY for a member of a JSON object"])
        found[name] = {service: identity, **({"key": key} if key else {})}
    return found


def check(function_id: str, settings: FunctionSettings) -> None:
    """Refuse settings that no worker would accept.

    Raises:
        InvalidCall: The settings are invalid. The error has every problem, with the field of the job.
    """
    fields = {"requestId": "deploy", "functionId": function_id, "s3Key": "code", **settings.job_fields()}
    try:
        parse_job(json.dumps(fields), _WIDEST)
    except InvalidJob as invalid:
        raise InvalidCall([str(invalid.rejection.message)]) from invalid


# --- differences


class Difference(NamedTuple):
    """A setting that differs between two versions.

    Attributes:
        setting: The name of the setting; for a variable, `env NAME`.
        before: The value before, as a text; None if it was not set. For a variable that has another value,
            both texts are `set`.
        after: The value afterwards; None if it is not set.
    """

    setting: str
    before: str | None
    after: str | None


def differences(before: FunctionSettings | None, after: FunctionSettings) -> list[Difference]:
    """Return the differences between the settings of two versions. The values of variables are not shown."""
    old, new = ({} if before is None else shown(before)), shown(after)
    found = [Difference(name, old.get(name), new[name]) for name in new if old.get(name) != new[name]]
    return found + list(_env_differences({} if before is None else before.env, after.env))


def _env_differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Difference]:
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            old = value_shown(before[name]) if name in before else None
            new = value_shown(after[name]) if name in after else None
            yield Difference(f"env {name}", old, new)


def shown(settings: FunctionSettings) -> dict[str, str]:
    """Return the settings as texts, except the variables."""
    return {
        "runtime": str(settings.runtime),
        "memory": f"{settings.memory_mb} MiB",
        "timeout": f"{settings.timeout_ms / 1000:g} s",
        "network": str(settings.network or "that of the worker"),
        "model": settings.model_id or "that of the worker",
        "reuse": str(settings.reuse),
    }


def value_shown(value: str | dict[str, Any]) -> str:
    """Return a text for the value of a variable that shows no secret: `set`, or a reference."""
    if isinstance(value, str):
        return "set"
    return "secret " + ", ".join(f"{name} {text}" for name, text in value.items())
