"""Finds misspelt settings: variables that were probably meant as settings and have no effect.

Every name in the settings file is checked, except names that match `_OTHER_PROGRAMS`. The environment also
has variables of other programs. So a name in the environment is checked only if it has the prefix of a
setting, or is very similar to a setting's name.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dotenv import dotenv_values

from nanoagent.config import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULT_FILE: Final = Path(".env")
"""The settings file that is read by default. It need not exist."""

# Ratios of difflib: 0.92 for MAX_PROCESS and MAX_PROCESSES, 0.83 for OPENAI_API_KEY and AI_API_KEY.
_VERY_SIMILAR: Final = 0.87
_SIMILAR: Final = 0.6
_PREFIXES: Final = re.compile(r"REDIS_|SQS_|S3_|WARM_POOL_|EGRESS_")
# Variables of SDKs and of the system, which a settings file may contain, and the variables that Docker and
# Kubernetes set for a service named redis.
_OTHER_PROGRAMS: Final = re.compile(
    r"AWS_|DOCKER_(?!WORK_DIR|PYTHON|NODEJS|CPP|GO|RUNTIME)|COMPOSE_|BOTO|PYTHON|SSL_|REQUESTS_CA_|CURL_CA_"
    r"|(NO|ALL|HTTPS?)_PROXY$|LANG|LC_|TZ$|PATH$|HOME$|USER$|TERM$|COLUMNS$|NOTIFY_SOCKET$|WATCHDOG_"
    r"|REDIS_(SERVICE_|NAME$|ENV_|PORT_\d+_)"
)
_REDIS: Final = "REDIS_HOST, REDIS_PORT, REDIS_DB, REDIS_USERNAME, REDIS_PASSWORD and REDIS_TLS"


def unknown(environment: Mapping[str, str], in_file: Iterable[str] = (), used: str = "") -> list[str]:
    """Return a sentence for each variable that was probably meant as a setting.

    Args:
        environment: All variables, including those of the settings file.
        in_file: The names in the settings file.
        used: The text of settings that name further variables, such as `key_env` in AI_UPSTREAMS.
    """
    known = [name.upper() for name in Settings.model_fields]
    named = {name.upper() for name in in_file}
    found = []
    for name in sorted({*named, *(name.upper() for name in environment)}):
        if name in known or _OTHER_PROGRAMS.match(name) or name in used:
            continue
        is_for_us = name in named or _PREFIXES.match(name) is not None
        near = _nearest(name, _SIMILAR if is_for_us else _VERY_SIMILAR)
        if is_for_us or near is not None:
            found.append(_sentence(name, near))
    return found


def _nearest(name: str, cutoff: float) -> str | None:
    """Return the setting that was probably meant: one with all words of the name, or a similar one."""
    words = set(name.split("_"))
    longer = [
        (not field.is_required(), setting.upper())
        for setting, field in Settings.model_fields.items()
        if len(words) > 1 and words < set(setting.upper().split("_"))
    ]
    if longer and cutoff == _SIMILAR:
        return min(longer)[1]
    near = difflib.get_close_matches(name, [setting.upper() for setting in Settings.model_fields], 1, cutoff)
    return near[0] if near else None


def _sentence(name: str, near: str | None) -> str:
    if name == "REDIS_URL":
        return f"{name} is not a setting and has no effect: set {_REDIS}"
    if near is not None:
        return f"{name} is not a setting and has no effect: did you mean {near}?"
    return f"{name} is not a setting and has no effect: docs/configuration.md lists all settings"


def missing_file(file: Path) -> str | None:
    """Return a sentence if the file was named with --env-file and does not exist; else None."""
    if file == DEFAULT_FILE or file.exists():
        return None
    return (
        f"--env-file: the file {file.absolute()} does not exist; the settings come from the environment alone"
    )


def warnings(file: Path, environment: Mapping[str, str], used: str = "") -> list[str]:
    """Return the warnings about a settings file and the environment.

    Args:
        file: The settings file.
        environment: All variables.
        used: As in `unknown`.
    """
    try:
        in_file = list(dotenv_values(file)) if file.exists() else []
    except (OSError, UnicodeDecodeError):  # reported by `config.load`
        in_file = []
    missing = missing_file(file)
    return [*([] if missing is None else [missing]), *unknown(environment, in_file, used)]
