"""Translates lists of models of OpenAI's API to Ollama's API."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

_NO_DETAILS: Final = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": None,
    "parameter_size": "",
    "quantization_level": "",
}


class _Model(msgspec.Struct):
    id: str
    created: float | None = None


def tags_entry(entry: msgspec.Raw) -> msgspec.Raw:
    """Return an entry of OpenAI's list of models as an entry of Ollama's `/api/tags`.

    Raises:
        msgspec.MsgspecError: The entry has another format.
    """
    model = msgspec.json.decode(entry, type=_Model)
    created = datetime.fromtimestamp(0, UTC)
    with suppress(ValueError, OverflowError, OSError):
        created = datetime.fromtimestamp(model.created or 0, UTC)
    return msgspec.Raw(
        msgspec.json.encode(
            {
                "name": model.id,
                "model": model.id,
                "modified_at": created.isoformat(),
                "size": 0,
                "digest": "",
                "details": _NO_DETAILS,
            }
        )
    )


def show_answer() -> dict[str, Any]:
    """Return the answer to `/api/show` for a model of which only the name is known."""
    nothing = {"modelfile": "", "parameters": "", "template": "", "license": ""}
    return nothing | {"details": _NO_DETAILS, "model_info": {}, "capabilities": ["completion"]}
