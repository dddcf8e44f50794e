"""The model servers in `AI_UPSTREAMS`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator

from nanoagent.config import types

_FIELDS = frozenset({"url", "models", "api", "key", "key_env"})


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSetting:
    """One model server.

    Attributes:
        url: Its base URL.
        models: Patterns of the models that it serves.
        api: The API that it has; with `auto`, the worker asks the server.
        key: Its key; None if it requires no key.
    """

    url: str
    models: tuple[str, ...] = ("*",)
    api: Literal["openai", "ollama", "auto"] = "auto"
    key: str | None = field(default=None, repr=False)


def parse_upstreams(text: str) -> tuple[UpstreamSetting, ...]:
    """Parse AI_UPSTREAMS.

    Raises:
        ValueError: The text is wrong. The message does not repeat the text, which may contain a key.
    """
    try:
        entries = json.loads(text)
    except ValueError as exc:
        position = getattr(exc, "pos", 0)
        raise ValueError(
            f"a JSON array of model servers, but it is not JSON at character {position}"
        ) from None
    if not isinstance(entries, list):
        raise ValueError("a JSON array of model servers")  # noqa: TRY004 - pydantic expects a ValueError
    try:
        return tuple(_parse_entry(entry, f"entry {number}") for number, entry in enumerate(entries, 1))
    except ValueError as exc:
        raise ValueError(f"a JSON array of model servers, but {exc}") from None


def _parse_entry(entry: object, which: str) -> UpstreamSetting:
    """Parse one entry of AI_UPSTREAMS."""
    if not isinstance(entry, dict) or not entry.keys() <= _FIELDS:
        raise ValueError(
            f"{which} should be an object with the field url, and optionally models, api, and key or "
            "key_env; no other fields are allowed"
        )
    url, models, api = entry.get("url"), entry.get("models", ["*"]), entry.get("api", "auto")
    if not isinstance(url, str):
        raise ValueError(f"{which}: url should be text")  # noqa: TRY004 - pydantic expects a ValueError
    if (expected := types.expected_base_url(url)) is not None:
        raise ValueError(f"{which}: url should be {expected}")
    if not isinstance(models, list) or not all(isinstance(name, str) and name for name in models):
        raise ValueError(f"{which}: models should be an array of names, in which * matches any text")
    if api not in {"openai", "ollama", "auto"}:
        raise ValueError(f"{which}: api should be openai, ollama or auto")
    key = _parse_key(entry, which)
    if key is not None and "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError(f"{which} should not have a key if its url has a user and a password")
    return UpstreamSetting(url=url, models=tuple(models), api=api, key=key)


def _parse_key(entry: dict[str, object], which: str) -> str | None:
    """Return the key of an entry, or the value of the environment variable that the entry names."""
    if "key" in entry and "key_env" in entry:
        raise ValueError(f"{which} should have key or key_env, not both")
    key = entry.get("key")
    if "key_env" in entry:
        key = os.environ.get(str(entry["key_env"]))
        if not key:
            raise ValueError(f"{which}: key_env names a variable that is not set in the environment")
    if key is None:
        return None
    if not isinstance(key, str) or not types.KEY.fullmatch(key):
        raise ValueError(
            f"{which}: its key should be 1 to 4096 characters of printable ASCII, without spaces, "
            "double quotes and backslashes"
        )
    return key


def _check_upstreams(value: str) -> str:
    parse_upstreams(value)
    return value


Upstreams = Annotated[str, AfterValidator(_check_upstreams)]
"""The type of AI_UPSTREAMS."""
