"""Translates errors of OpenAI's API, and of servers with other formats, to Ollama's API."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from nanoagent.ai.untrusted_json import UNREADABLE


class _Error(msgspec.Struct):
    error: msgspec.Raw = msgspec.Raw(b"")
    message: msgspec.Raw = msgspec.Raw(b"")
    detail: msgspec.Raw = msgspec.Raw(b"")


def to_ollama(body: bytes) -> bytes:
    """Return the body of an error in Ollama's format."""
    return msgspec.json.encode({"error": message_of(body)})


def message_of(body: bytes) -> str:
    """Return the message of an error: its `error.message`, `error`, `message` or `detail`."""
    found = body.strip()
    with suppress(*UNREADABLE):  # raised when `found` is not an object, so nothing is nested in it
        for name in _Error.__struct_fields__:
            inner: msgspec.Raw = getattr(msgspec.json.decode(found, type=_Error), name)
            found = bytes(inner) or found
    with suppress(*UNREADABLE):
        if found.startswith(b'"'):
            return msgspec.json.decode(found, type=str)
        return msgspec.json.format(found, indent=-1).decode()
    return "null"
