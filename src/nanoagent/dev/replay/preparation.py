"""The settings and the message of a local run that repeats the job of a capsule."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from nanoagent.config import LocalSettings
from nanoagent.jobs.capsule_document import RUN_SETTINGS
from nanoagent.model.capsule import InvalidCapsule
from nanoagent.model.errors import InvalidCall, one_line
from nanoagent.model.job import NetworkPolicy
from nanoagent.model.message import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nanoagent.model.capsule import Capsule

# A capsule may come from anyone. Limits far above the defaults could exhaust this machine.
_MOST_TIMES_DEFAULT: Final = 100
_MAX_SHOWN: Final = 80


def settings_for(local: LocalSettings, capsule: Capsule, network: str, recordings: Path) -> LocalSettings:
    """Return the settings of this machine with the capsule's values of all settings that matter for a run.

    Args:
        local: The settings of this machine.
        capsule: The capsule.
        network: The widest network; empty for that of the worker.
        recordings: The folder with the recorded model calls. Other calls get an error.

    Raises:
        InvalidCapsule: A value of the capsule is invalid, or would let a run use too much of this machine.
        InvalidCall: The job needs more memory than this machine allows, or `network` is wider.
    """
    values = _values(capsule)
    try:
        # The settings that are not named here come from the environment, and are not used.
        checked = LocalSettings(_env_file=None, **values)  # type: ignore[call-arg]
    except ValidationError as exc:
        error = exc.errors()[0]
        name = str(error["loc"][0]).upper() if error["loc"] else "a setting"
        raise InvalidCapsule(f"the capsule has an invalid value of {name}: {one_line(error['msg'])}") from exc
    changes = {name: getattr(checked, name) for name in values}
    if network:
        changes["network"] = _narrower(network, changes.get("network", local.network))
    if capsule.job is not None and capsule.job.memory_mb > local.largest_job_mb:
        needed, allowed = capsule.job.memory_mb, local.largest_job_mb
        raise InvalidCall([f"the job has memoryMb {needed}; this machine allows {allowed} (MAX_MEMORY_MB)"])
    return local.model_copy(update=changes | {"ai_replay": recordings, "ai_record": "off"})


def _values(capsule: Capsule) -> dict[str, Any]:
    values = {}
    for name in RUN_SETTINGS:
        if (value := capsule.settings.get(name.upper())) is None:
            continue
        default = LocalSettings.model_fields[name].default
        if not isinstance(value, int | float | str):
            raise InvalidCapsule(f"the capsule has an invalid value of {name.upper()}")
        is_number = isinstance(value, int | float) and isinstance(default, int | float)
        if is_number and default and value > default * _MOST_TIMES_DEFAULT:
            most = default * _MOST_TIMES_DEFAULT
            raise InvalidCapsule(f"the capsule has {name.upper()}={value}; a replay allows {most} at most")
        values[name] = value
    return values


def _narrower(network: str, recorded: NetworkPolicy) -> NetworkPolicy:
    if network not in set(NetworkPolicy):
        raise InvalidCall([f"--network {network}: is not one of {', '.join(NetworkPolicy)}"])
    if not recorded.allows(NetworkPolicy(network)):
        raise InvalidCall([f"--network {network}: the worker allowed {recorded} at most"])
    return NetworkPolicy(network)


def body(capsule: Capsule, s3_key: str | None, env: Mapping[str, str], network: str) -> str:
    """Return the message of the run. It has the request ID of the job, which programs can see.

    Args:
        capsule: The capsule.
        s3_key: The key of the code in the local store; None to keep the recorded bucket and key.
        env: The environment variables.
        network: The network of the run; empty for that of the job.

    Raises:
        InvalidCall: The capsule has no input, or the message is too large.
    """
    if "input" in capsule.omitted:
        size = capsule.omitted["input"]
        raise InvalidCall([f"the capsule has no input, because it was too large ({size:,} bytes)"])
    fields = {name: value for name, value in capsule.message.items() if name != "env"}
    fields["requestId"] = capsule.request_id
    if s3_key is not None:
        fields["s3Key"] = s3_key
        fields.pop("s3Bucket", None)
    if capsule.job is not None:
        fields |= {"memoryMb": capsule.job.memory_mb, "timeoutMs": capsule.job.timeout_ms}
    if network:
        fields["network"] = network
    return joined(fields | ({"env": dict(env)} if env else {}), capsule.input)


def joined(fields: Mapping[str, Any], text_of_input: str | None) -> str:
    """Return a message with these fields and the text of the input.

    Raises:
        InvalidCall: The message is larger than a message of SQS may be.
    """
    text = json.dumps(fields, ensure_ascii=True)
    if text_of_input is not None:
        text = f'{text[:-1]}, "input": {text_of_input}}}'
    if (size := len(text.encode(errors="replace"))) > MAX_MESSAGE_BYTES:
        raise InvalidCall([f"the message has {size:,} bytes; {MAX_MESSAGE_BYTES:,} are allowed"])
    return text


def environment(capsule: Capsule, given: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the environment variables of the run, and the names of the job's variables without a value.

    A reference to a secret is not resolved here, because that needs the permissions of the worker.
    """
    missing = sorted(name for name in capsule.env if name not in given)
    return dict(given), missing
