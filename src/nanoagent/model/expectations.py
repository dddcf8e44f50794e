"""The valid values of a setting as a text, from the JSON schema of the settings. Pure functions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_SHOWN: Final = 100
_KEY: Final = re.compile(r"(?=[A-Za-z+=]{0,99}[0-9])(?=[0-9+=]{0,99}[A-Za-z])[A-Za-z0-9+=]{12}")
_USER_AND_PASSWORD: Final = re.compile(r"[^:/]{1,100}:(?!//|[0-9]{1,5}(?:/|$))")
PATTERNS: Final[dict[str, str]] = {
    "worker_id": "1 to 40 letters, digits and hyphens (-)",
    "container_apparmor_profile": "the name of an AppArmor profile: 1 to 100 letters, digits, _ . -",
    "docker_runtime": "the name of a runtime, not its path: 1 to 100 letters, digits, _ . -, the first one a "
    "letter or a digit",
    "python_preload": "auto, none, or names of Python modules separated by commas, without spaces "
    "(numpy,pandas)",
}
"""Setting → the text for its regular expression."""


def may_be_secret(name: str, value: str) -> bool:
    """Whether a wrong value may be a secret, or contain one.

    The operator may have given a key or a password to the wrong setting. Keys are long words of letters and
    digits. A URL may contain a password, or a key in its query. If the URL is invalid, the password cannot be
    found and removed.

    Args:
        name: The environment variable.
        value: Its value.
    """
    if "@" in value or _KEY.search(value):
        return True
    return name.endswith(("_URL", "_ENDPOINT")) and ("?" in value or bool(_USER_AND_PASSWORD.match(value)))


def problem(name: str, value: object, expected: str, *, is_secret: bool = False) -> str:
    """Return the sentence about a wrong setting.

    Args:
        name: The environment variable.
        value: Its value; None if it is not set.
        expected: The valid values, as a text.
        is_secret: Whether the value must not be shown.
    """
    if value is None:
        return f"{name} is not set; expected {expected}"
    if is_secret:
        return f"{name} has a value that is not shown, because it may hold a secret; expected {expected}"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    shown = repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")
    return f"{name} is {shown}; expected {expected}"


def allowed_values(name: str, schema: Mapping[str, Any]) -> str:
    """Return a text that describes the values which the schema allows for a setting.

    Args:
        name: The setting, in lower case.
        schema: The JSON schema of all settings.
    """
    allowed = schema["properties"][name]
    allowed = next(iter(allowed.get("anyOf", [allowed])))
    if "$ref" in allowed:
        allowed = schema["$defs"][allowed["$ref"].rpartition("/")[2]]
    if "enum" in allowed:
        return _one_of(allowed["enum"])
    if "pattern" in allowed:
        return PATTERNS[name]
    if allowed["type"] == "boolean":
        return _one_of(["true", "false", "yes", "no", "on", "off", "1", "0"])
    if "maxLength" in allowed:
        return f"{allowed['minLength']} to {allowed['maxLength']} characters"
    return _number(allowed)


def _number(allowed: Mapping[str, Any]) -> str:
    above, most = allowed.get("exclusiveMinimum"), allowed.get("maximum")
    least = allowed["minimum"] if above is None else above + 1
    if allowed["type"] == "integer":
        return f"an integer {_range(least, most)}"
    if above is not None:
        return f"a number above {above:g}" + (f" and at most {most:g}" if most is not None else "")
    return f"a number {_range(least, most)}"


def _range(least: float, most: float | None) -> str:
    return f"of {least:.12g} or more" if most is None else f"from {least:.12g} to {most:.12g}"


def _one_of(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
