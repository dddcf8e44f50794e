"""Answers calls from recordings (`recording`) instead of a model server: AI_REPLAY."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from nanoagent.ai.upstreams import Answer, UpstreamFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.ai.refusals import Api

_PIECE: Final = 16 * 1024
# The gateway adds and removes these fields itself.
_NOT_COMPARED: Final = frozenset({"stream_options", "keep_alive"})


class Replay:
    """Answers from recordings. Implements `Upstream`, so that counting and limits work as usual.

    If a request was recorded several times, its answers come in the recorded order. After that the last
    answer is repeated.

    Args:
        files: The recordings.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is not a recording.
    """

    name = "replay"
    uses_max_completion_tokens = False
    # If this run has another budget than the recorded run, a lower token limit would change the request. Then
    # no recorded request would match.
    takes_bounds = False
    secrets: tuple[str, ...] = ()

    def __init__(self, files: list[Path]) -> None:
        self._answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._models: dict[str, None] = {}
        for file in files:
            with file.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    self._add(line, f"{file}, line {number}")

    def _add(self, line: str, place: str) -> None:
        try:
            document = json.loads(line)
            key = key_of(document["path"], document["request"])
            if "status" in document:
                self._answers[key].append(document)
            self._models[str(document["model"])] = None
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ValueError(f"{place} is not a recorded model call: {exc}") from exc

    def serves(self, _model: str) -> bool:
        """See `Upstream`."""
        return True

    def speaks(self, _api: Api) -> bool:
        """See `Upstream`."""
        return True

    async def must_translate(self) -> bool:
        """See `Upstream`. Recorded answers have the API that the run used."""
        return False

    @asynccontextmanager
    async def ask(self, method: str, path: str, body: bytes | None) -> AsyncIterator[Answer]:
        """See `Upstream`."""
        status, content_type = 200, "application/json"
        found = None if method == "GET" else self._next_answer(path, body or b"")
        if method == "GET":
            text = self._list(path)
        elif found is None:
            status, text = 404, _not_recorded(path)
        else:
            status, content_type = int(found["status"]), str(found["contentType"])
            encoded = found.get("answerBase64")
            text = found["answer"].encode() if encoded is None else base64.b64decode(encoded)
        complete = found is None or bool(found["complete"])
        yield Answer(
            status, content_type, None, len(text) if complete else None, _pieces(text, complete=complete)
        )

    def _next_answer(self, path: str, body: bytes) -> dict[str, Any] | None:
        answers = self._answers.get(key_of(path, _parsed(body)))
        if not answers:
            return None
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def _list(self, path: str) -> bytes:
        """Return the list of recorded models, in the API of the path."""
        if path == "/v1/models":
            data = [{"id": name, "object": "model", "owned_by": "replay"} for name in self._models]
            return json.dumps({"object": "list", "data": data}).encode()
        if path == "/api/version":
            return b'{"version":"0.0.0"}'
        return json.dumps({"models": [{"name": name, "model": name} for name in self._models]}).encode()


def key_of(path: str, request: Any) -> str:
    """Return a key for a request. Equal JSON gives equal keys, whatever its order and white space."""
    compared = request
    if isinstance(request, dict):
        compared = {name: value for name, value in request.items() if name not in _NOT_COMPARED}
    text = json.dumps([path, compared], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _not_recorded(path: str) -> bytes:
    message = (
        f"AI_REPLAY has no answer to this request to {path}: the request was not recorded, or differs from "
        "the recorded one"
    )
    if path.startswith("/v1"):
        error = {"message": message, "type": "not_found_error", "param": None, "code": "not_recorded"}
        return json.dumps({"error": error}).encode()
    return json.dumps({"error": message}).encode()


async def _pieces(text: bytes, *, complete: bool) -> AsyncIterator[bytes]:
    """Yield an answer in pieces. An incompletely recorded answer ends with an error."""
    for at in range(0, len(text), _PIECE):
        yield text[at : at + _PIECE]
    if not complete:
        raise UpstreamFailed("the recorded answer ends here")


def _parsed(body: bytes) -> Any:
    """Return a request's JSON, or its text if the JSON is invalid or too deeply nested."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace")
