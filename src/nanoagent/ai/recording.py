"""Records the calls of a run to models, for `replay`.

Each call is one line of JSON: `method`, `path`, `model`, `request` (the JSON that the program sent, with the
changes of the gateway, such as the model filled in), `status`, `contentType`, `answer` or `answerBase64`,
`complete`, `promptTokens`, `completionTokens`, `cachedTokens` (a part of the prompt tokens),
`reasoningTokens` (a part of the completion tokens), `ms`.

The answer is the text for the program. It includes the usage, even if only the gateway has asked for it. An
error is recorded as the program saw it, so that `replay` can return it unchanged. The error of the model
server is not recorded, because it may contain the key of the worker. Headers are not recorded.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from nanoagent.ai.untrusted_json import UNREADABLE
from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.ai.calls import Call

log = structlog.get_logger(__name__)

_MAX_CALL: Final = 4 * MIB
_MAX_FILE: Final = 32 * MIB


class Recording:
    """The recorded calls of one run. The first call creates the file.

    Args:
        path: The path of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = 0

    def start(self, call: Call) -> RecordedCall:
        """Start to record a call."""
        return RecordedCall(self, call)

    def write(self, document: dict[str, Any]) -> None:
        """Add a line. If the file is too large or the disk is full, the line is lost; the run continues."""
        line = msgspec.json.encode(document) + b"\n"
        self._written += len(line)
        if self._written > _MAX_FILE:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(line)
        except OSError as exc:
            log.warning("model call not recorded", error=str(exc))


class RecordedCall:
    """One call, which is written when it has ended.

    Args:
        recording: The recording of the run.
        call: The call of the job.
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
        self._is_error = False

    def set_head(self, status: int, content_type: str) -> None:
        """Record the status and the content type of the answer."""
        self._document |= {"status": status, "contentType": content_type}

    def set_error(self, status: int, body: bytes) -> None:
        """Record the error that the program gets instead of an answer: its status and its JSON."""
        self._is_error = True
        self.set_head(status, "application/json")
        self.add(body)

    def add(self, data: bytes) -> None:
        """Record more bytes of the answer."""
        room = _MAX_CALL - len(self._answer)
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
        """Write the call after its end.

        Args:
            tokens: The tokens of the prompt and of the completion.
            seconds: The duration of the call.
            complete: Whether the whole answer has come. An error is always complete.
            cached: The cached tokens of the prompt.
            reasoning: The reasoning tokens of the completion.
        """
        try:
            answer = {"answer": self._answer.decode()}
        except UnicodeDecodeError:
            answer = {"answerBase64": base64.b64encode(self._answer).decode()}
        self._recording.write(
            self._document
            | answer
            | {
                "complete": (complete or self._is_error) and self._is_whole,
                "promptTokens": tokens[0],
                "completionTokens": tokens[1],
                "cachedTokens": cached,
                "reasoningTokens": reasoning,
                "ms": round(seconds * 1000, 3),
            }
        )


def _in_one_line(body: bytes) -> msgspec.Raw:
    """Return a request's JSON in one line.

    The JSON is not parsed into objects, because they would take many times its size.
    """
    try:
        body.decode()
        return msgspec.Raw(msgspec.json.format(body, indent=-1))
    except UNREADABLE:
        return msgspec.Raw(msgspec.json.encode(body.decode(errors="replace")))
