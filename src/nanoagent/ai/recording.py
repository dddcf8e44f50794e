"""What passed between a run and its models, written down and answered from again.

One JSON object a line: `method`, `path`, `model`, `request` (the JSON that the job sent, with the model that
was filled in), `status`, `contentType`, `answer` (the text that the job was sent) or `answerBase64`,
`complete`, `promptTokens`, `completionTokens`, `cachedTokens` and `reasoningTokens` (parts of these), `ms`.
Headers, and so keys, are not recorded.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from nanoagent.ai.upstreams import Answer, UpstreamFailed
from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.ai.calls import Call
    from nanoagent.ai.refusals import Api

log = structlog.get_logger(__name__)

_MAX_EXCHANGE: Final = 4 * MIB
_MAX_FILE: Final = 32 * MIB
_PIECE: Final = 16 * 1024
# The gateway adds and takes these itself.
_NOT_COMPARED: Final = frozenset({"stream_options", "keep_alive"})


class Recording:
    """The exchanges of one run, in a file that is made for the first.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = 0

    def exchange(self, call: Call) -> Exchange:
        """One call that is about to be forwarded."""
        return Exchange(self, call)

    def write(self, document: dict[str, Any]) -> None:
        """Add a line. A disk that is full costs the record, never the run."""
        line = msgspec.json.encode(document) + b"\n"
        self._written += len(line)
        if self._written > _MAX_FILE:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(line)
        except OSError as exc:
            log.warning("an exchange with a model could not be written down", error=str(exc))


class Exchange:
    """One call, written when it has ended.

    Args:
        recording: Where it goes.
        call: What was asked.
    """

    def __init__(self, recording: Recording, call: Call) -> None:
        self._recording = recording
        self._document: dict[str, Any] = {
            "method": "POST",
            "path": call.route.path,
            "model": call.model,
            "request": _in_one_line(call.body(None)),
        }
        self._answer = bytearray()
        self._is_whole = True

    def answered(self, status: int, content_type: str) -> None:
        """The answer's head has come."""
        self._document |= {"status": status, "contentType": content_type}

    def add(self, data: bytes) -> None:
        """Some of the answer has come."""
        room = _MAX_EXCHANGE - len(self._answer)
        self._answer += data[:room]
        if len(data) > room:
            self._is_whole = False

    def close(
        self,
        tokens: tuple[int, int],
        seconds: float,
        *,
        complete: bool,
        cached: int = 0,
        reasoning: int = 0,
    ) -> None:
        """It is over.

        Args:
            tokens: Of prompt and completion.
            seconds: How long it took.
            complete: Whether the answer has come to its end.
            cached: Tokens of the prompt that were cached.
            reasoning: Tokens of the completion that are reasoning.
        """
        try:
            told = {"answer": self._answer.decode()}
        except UnicodeDecodeError:
            told = {"answerBase64": base64.b64encode(self._answer).decode()}
        self._recording.write(
            self._document
            | told
            | {
                "complete": complete and self._is_whole,
                "promptTokens": tokens[0],
                "completionTokens": tokens[1],
                "cachedTokens": cached,
                "reasoningTokens": reasoning,
                "ms": round(seconds * 1000, 3),
            }
        )


class Replay:
    """Answers from recordings; an upstream as any, so that counting and limits are the same.

    The same question may stand there several times: its answers come in their order, the last one for ever.

    Args:
        files: Recordings.

    Raises:
        OSError: One cannot be read.
        ValueError: One is no recording.
    """

    name = "replay"
    newer = False
    takes_bounds = False  # a budget that is another than at the time of recording makes no other call
    secrets: tuple[str, ...] = ()

    def __init__(self, files: list[Path]) -> None:
        self._answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._models: dict[str, None] = {}
        for file in files:
            with file.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    self._learn(line, f"{file}, line {number}")

    def _learn(self, line: str, where: str) -> None:
        try:
            document = json.loads(line)
            key = key_of(document["path"], document["request"])
            if "status" in document:
                self._answers[key].append(document)
            self._models[str(document["model"])] = None
        except (ValueError, KeyError, TypeError) as exc:
            raise ValueError(f"{where} is no exchange with a model: {exc}") from exc

    def serves(self, _model: str) -> bool:
        """See `Upstream`."""
        return True

    def speaks(self, _api: Api) -> bool:
        """See `Upstream`."""
        return True

    async def lacks_ollama(self) -> bool:
        """See `Upstream`. A recording has each answer in the API that the run used."""
        return False

    @asynccontextmanager
    async def ask(self, method: str, path: str, body: bytes | None) -> AsyncIterator[Answer]:
        """See `Upstream`."""
        status, content_type = 200, "application/json"
        found = None if method == "GET" else self._found(path, body or b"")
        if method == "GET":
            told = self._listed(path)
        elif found is None:
            status, told = 404, _missing(path)
        else:
            status, content_type = int(found["status"]), str(found["contentType"])
            encoded = found.get("answerBase64")
            told = found["answer"].encode() if encoded is None else base64.b64decode(encoded)
        complete = found is None or bool(found["complete"])
        yield Answer(
            status, content_type, None, len(told) if complete else None, _in_pieces(told, complete=complete)
        )

    def _found(self, path: str, body: bytes) -> dict[str, Any] | None:
        answers = self._answers.get(key_of(path, _parsed(body)))
        if not answers:
            return None
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def _listed(self, path: str) -> bytes:
        if path == "/v1/models":
            data = [{"id": name, "object": "model", "owned_by": "replay"} for name in self._models]
            return json.dumps({"object": "list", "data": data}).encode()
        if path == "/api/version":
            return b'{"version":"0.0.0"}'
        return json.dumps({"models": [{"name": name, "model": name} for name in self._models]}).encode()


def key_of(path: str, request: Any) -> str:
    """What two calls that are the same have in common: the path and the JSON, whatever its spelling."""
    compared = request
    if isinstance(request, dict):
        compared = {name: value for name, value in request.items() if name not in _NOT_COMPARED}
    text = json.dumps([path, compared], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _missing(path: str) -> bytes:
    message = (
        f"AI_REPLAY has no answer to this request to {path}: it was not recorded, or differs from what was"
    )
    if path.startswith("/v1"):
        error = {"message": message, "type": "not_found_error", "param": None, "code": "not_recorded"}
        return json.dumps({"error": error}).encode()
    return json.dumps({"error": message}).encode()


async def _in_pieces(told: bytes, *, complete: bool) -> AsyncIterator[bytes]:
    """The answer as it was, with the end that it had."""
    for at in range(0, len(told), _PIECE):
        yield told[at : at + _PIECE]
    if not complete:
        raise UpstreamFailed("the answer that was recorded ends here")


def _in_one_line(body: bytes) -> msgspec.Raw:
    """A request's JSON as it is, and not as objects: they would take many times its bytes meanwhile."""
    try:
        body.decode()
        return msgspec.Raw(msgspec.json.format(body, indent=-1))
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        return msgspec.Raw(msgspec.json.encode(body.decode(errors="replace")))


def _parsed(body: bytes) -> Any:
    """A request for reading; one that is nested too deeply for that as its text."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace")
