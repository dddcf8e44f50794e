"""Finds variables that were probably meant as settings: a misspelt setting has no effect.

Every name in a file of settings is checked. The environment belongs to many programs: there a name is checked
if it begins with the prefix of a service, or is nearly the name of a setting.
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
"""The file that is read unless another is named; it need not exist."""

_NEARLY: Final = 0.87  # MAX_PROCESS is 0.92 of MAX_PROCESSES, OPENAI_API_KEY 0.83 of AI_API_KEY
_SIMILAR: Final = 0.6
_OURS: Final = re.compile(r"REDIS_|SQS_|S3_|WARM_POOL_|EGRESS_")
# Of SDKs and systems, as far as they may stand in a file of settings; and the links of Docker and Kubernetes
# to a service called redis.
_OTHERS: Final = re.compile(
    r"AWS_|DOCKER_(?!WORK_DIR|PYTHON|NODEJS|CPP|GO|RUNTIME)|COMPOSE_|BOTO|PYTHON|SSL_|REQUESTS_CA_|CURL_CA_"
    r"|(NO|ALL|HTTPS?)_PROXY$|LANG|LC_|TZ$|PATH$|HOME$|USER$|TERM$|COLUMNS$|NOTIFY_SOCKET$|WATCHDOG_"
    r"|REDIS_(SERVICE_|NAME$|ENV_|PORT_\d+_)"
)
_REDIS: Final = "REDIS_HOST, REDIS_PORT, REDIS_DB, REDIS_USERNAME, REDIS_PASSWORD and REDIS_TLS"


def unknown(environment: Mapping[str, str], in_file: Iterable[str] = (), used: str = "") -> list[str]:
    """A sentence for each variable that was probably meant as a setting.

    Args:
        environment: All variables, those of the file included.
        in_file: The names in the file of settings.
        used: Text of settings that may name further variables, as `key_env` of AI_UPSTREAMS does.
    """
    known = [name.upper() for name in Settings.model_fields]
    named = {name.upper() for name in in_file}
    found = []
    for name in sorted({*named, *(name.upper() for name in environment)}):
        if name in known or _OTHERS.match(name) or name in used:
            continue
        is_ours = name in named or _OURS.match(name) is not None
        near = _nearest(name, _SIMILAR if is_ours else _NEARLY)
        if is_ours or near is not None:
            found.append(_sentence(name, near))
    return found


def _nearest(name: str, cutoff: float) -> str | None:
    """The setting that was probably meant: one with the same words and more, else a similar one."""
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
    """A sentence for a file of settings that was named and does not exist."""
    if file == DEFAULT_FILE or file.exists():
        return None
    return f"--env-file: there is no file {file.absolute()}; the settings come from the environment alone"


def warnings(file: Path, environment: Mapping[str, str], used: str = "") -> list[str]:
    """Everything to warn of before the settings are used."""
    try:
        in_file = list(dotenv_values(file)) if file.exists() else []
    except (OSError, UnicodeDecodeError):  # reported by `config.load`
        in_file = []
    missing = missing_file(file)
    return [*([] if missing is None else [missing]), *unknown(environment, in_file, used)]
