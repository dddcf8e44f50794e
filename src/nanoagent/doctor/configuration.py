"""Judges the settings, and replaces invalid ones, so that the doctor can examine the rest of the system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from nanoagent import config
from nanoagent.config import Settings
from nanoagent.doctor import variables
from nanoagent.doctor.finding import Area, Finding, problem, warning
from nanoagent.model.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_REQUIRED: Final = {
    "sqs_queue_url": "http://unset.invalid",
    "s3_code_bucket": "unset",
    "s3_user_data_bucket": "unset",
}
"""Values in place of required settings that are missing or invalid."""

# Values in place of memory sizes, CPUs and delays that contradict each other. The defaults cannot be used: on
# a small machine they may contradict each other, too.
_CONSISTENT_VALUES: Final[dict[str, Any]] = {
    "worker_memory_mb": 1024,
    "max_memory_mb": None,
    "build_memory_mb": 256,
    "worker_cpus": 1.0,
    "cpu_min": 0.5,
    "cpu_max": None,
    "retry_base_seconds": 2,
    "retry_max_seconds": 300,
}
_MAX_TRIES: Final = 4  # for an unreadable file, invalid fields, contradicting settings, and the valid result


def judge(
    problems: Sequence[str], env_file: Path | None, environment: Mapping[str, str], settings: Settings
) -> Iterator[Finding]:
    """Return all findings about the settings.

    Args:
        problems: Why the worker would refuse the settings.
        env_file: The settings file; None for the default.
        environment: All variables.
        settings: The settings from `usable`.
    """
    yield from map(_finding, problems)
    if not problems:
        yield Finding(Area.SETTINGS, "all settings are valid (nanoagent check shows them)")
    file = env_file or variables.DEFAULT_FILE
    for text in variables.warnings(file, environment, used=settings.ai_upstreams or ""):
        yield warning(Area.SETTINGS, text, "correct the name or the path, or remove it")


def problems(env_file: Path | None) -> Sequence[str]:
    """Return why the worker would refuse the settings; empty if it would accept them."""
    try:
        config.load(env_file)
    except ConfigError as exc:
        return exc.problems
    return ()


def usable(env_file: Path | None) -> tuple[Settings, frozenset[str]]:
    """Return valid settings, and the names of the settings that had to be replaced.

    The doctor examines the host with these settings. It does not ask a service whose settings were replaced.

    Raises:
        ConfigError: The settings remain invalid.
    """
    file = env_file
    replaced: dict[str, Any] = {}
    for _ in range(_MAX_TRIES):
        try:
            settings = Settings(_env_file=file, **replaced)  # type: ignore[call-arg]
            return settings, frozenset(name.upper() for name in replaced)
        except ValidationError as exc:
            replaced |= _replacements(exc)
        except (OSError, UnicodeDecodeError):
            file = None
    raise ConfigError(problems(env_file))


def _replacements(exc: ValidationError) -> dict[str, Any]:
    replaced: dict[str, Any] = {}
    for error in exc.errors():
        if not error["loc"]:  # a contradiction between settings
            replaced |= _CONSISTENT_VALUES
            continue
        name = str(error["loc"][0])
        field = Settings.model_fields[name]
        is_required = field.is_required()
        replaced[name] = _REQUIRED[name] if is_required else field.get_default(call_default_factory=True)
    return replaced


def _finding(text: str) -> Finding:
    name = text.partition(" ")[0].rstrip(":")
    if name.lower() in Settings.model_fields:
        return problem(Area.SETTINGS, text, f"set {name}; docs/configuration.md lists all settings")
    return problem(Area.SETTINGS, text, "use a file of UTF-8 text that this user may read; see .env.example")
