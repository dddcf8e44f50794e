"""Translates an answer of OpenAI's API to Ollama's API."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nanoagent.ai.translation import errors
from nanoagent.ai.translation.tool_calls import ToolCallCollector, ToolCallDelta
from nanoagent.ai.untrusted_json import UNREADABLE
from nanoagent.ai.upstreams import UpstreamFailed
from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from nanoagent.ai.calls import Call
    from nanoagent.ai.metering import Tally

_MAX_LINE: Final = 4 * MIB  # of a stream
_MAX_TEXT: Final = 8 * MIB  # of a document: about two million tokens
_MAX_VECTORS: Final = 64 * MIB  # OpenAI's maximum of 2,048 texts with 1,536 numbers each takes about 45 MB
_MAX_PARTS_BYTES: Final = MIB  # of a text that comes in parts
_MOST_OBJECTS: Final = 200_000  # of a document; in memory each takes many times its bytes
_MOST_OBJECTS_IN_LINE: Final = 4096  # of a stream: about 20 ms; servers send one token in a line


class _Part(msgspec.Struct):
    type: str | None = None
    text: str | None = None


class _Message(msgspec.Struct):
    """A message of an answer, or the addition to it in one chunk of a stream."""

    content: msgspec.Raw = msgspec.Raw(b"null")
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None

    @property
    def text(self) -> str:
        """The text of the message. Some servers (Mistral) send it in parts."""
        raw = bytes(self.content)
        with suppress(*UNREADABLE):
            if raw.startswith(b'"'):
                return msgspec.json.decode(raw, type=str)
            if raw.startswith(b"[") and len(raw) <= _MAX_PARTS_BYTES:
                parts = msgspec.json.decode(raw, type=list[_Part])
                return "".join(part.text or "" for part in parts if part.type == "text")
        return ""

    @property
    def thinking(self) -> str:
        return self.reasoning_content or self.reasoning or ""


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []
    error: msgspec.Raw = msgspec.Raw(b"")


class _Vector(msgspec.Struct):
    embedding: msgspec.Raw
    index: int = 0


class _Vectors(msgspec.Struct):
    data: list[_Vector]


_completion: Final = msgspec.json.Decoder(_Completion)
_vectors: Final = msgspec.json.Decoder(_Vectors)


@dataclass(slots=True)
class OllamaAnswer:
    """Builds the answer to one call in Ollama's format.

    Attributes:
        call: The call of Ollama's API.
        tally: The tokens of the answer; None if no model server was asked.
        begun_at: The start of the call, by `time.perf_counter`, in seconds.
    """

    call: Call
    tally: Tally | None
    begun_at: float

    def piece(
        self,
        text: str,
        thinking: str = "",
        tool_calls: list[dict[str, Any]] | None = None,
        done_reason: str | None = None,
    ) -> bytes:
        """Return a piece of the answer. Only the last piece, or a whole answer, has a `done_reason`."""
        content: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if self.call.route.path == "/api/chat":
            message = {"role": "assistant", "content": text} | content
            content = {"message": message | ({"tool_calls": tool_calls} if tool_calls else {})}
        else:
            content = {"response": text} | content
        head = {"model": self.call.model, "created_at": datetime.now(UTC).isoformat()}
        end = {"done": False} if done_reason is None else self._end(done_reason)
        return msgspec.json.encode(head | content | end)

    def _end(self, done_reason: str) -> dict[str, Any]:
        return {"done": True, "done_reason": done_reason} | self._durations() | self._counts()

    def _durations(self) -> dict[str, int]:
        """Return durations in nanoseconds. The model server does not report the time of each step."""
        total = round((time.perf_counter() - self.begun_at) * 1e9)
        return {"total_duration": total, "load_duration": 0}

    def _counts(self) -> dict[str, int]:
        if self.tally is None:
            return {}
        counts = {"prompt_eval_count": self.tally.prompt, "eval_count": self.tally.completion}
        return {name: count for name, count in counts.items() if count is not None}

    def vectors(self, vectors: list[msgspec.Raw]) -> bytes:
        """Return the answer to a call for embeddings."""
        if self.call.route.path == "/api/embeddings":
            return msgspec.json.encode({"embedding": vectors[0]})
        counted = {"prompt_eval_count": self._counts().get("prompt_eval_count", 0)}
        return msgspec.json.encode(
            {"model": self.call.model, "embeddings": vectors} | self._durations() | counted
        )


def model_loaded_answer(call: Call) -> bytes:
    """Return the answer to a call that only loads the model (`requests.only_loads_model`)."""
    line = OllamaAnswer(call, None, time.perf_counter()).piece("", done_reason="load")
    return line + b"\n" if call.stream else line


class StreamTranslator:
    """Translates server-sent events to lines of JSON.

    Args:
        answer: Builds the lines.
    """

    content_type = "application/x-ndjson"
    holds_whole_answer = False

    def __init__(self, answer: OllamaAnswer) -> None:
        self._answer = answer
        self._line = bytearray()
        self._tool_calls = ToolCallCollector()
        self._finish_reason: str | None = None
        self._is_over = False

    @property
    def held_bytes(self) -> int:
        """The bytes of the answer that are held in memory."""
        return len(self._line) + self._tool_calls.size

    def feed(self, data: bytes) -> bytes:
        """Translate more bytes of the answer. Return the bytes for the job.

        Raises:
            UpstreamFailed: A line is too long or has too many parts, or the answer has too many tool calls.
        """
        if len(self._line) + len(data) > _MAX_LINE:
            raise UpstreamFailed("a line of its answer is too long")
        if b"\n" not in data:
            self._line += data
            return b""
        first, *more = data.split(b"\n")
        *lines, rest = [bytes(self._line) + first, *more]
        self._line = bytearray(rest)
        return b"".join(map(self._translated, lines))

    def finish(self) -> bytes:
        """Return the last bytes for the job, at the end of the answer.

        An answer without a finish reason broke off. Then no line tells the job that the answer is done.

        Raises:
            UpstreamFailed: See `feed`.
        """
        rest = self._translated(bytes(self._line))
        return rest + (self._last() if self._finish_reason is not None else b"")

    def _translated(self, line: bytes) -> bytes:
        text = line.strip()
        if self._is_over or not text.startswith(b"data:"):
            return b""
        text = text[len(b"data:") :].strip()
        if text == b"[DONE]":
            return self._last()
        if text.count(b"{") > _MOST_OBJECTS_IN_LINE:
            raise UpstreamFailed("a line of its answer has too many parts")
        try:
            chunk = _completion.decode(text)
        except UNREADABLE:
            return b""
        if bytes(chunk.error) not in {b"", b"null"}:
            self._is_over = True
            return errors.to_ollama(bytes(text)) + b"\n"
        return b"".join(self._piece(choice) for choice in chunk.choices if choice.index == 0)

    def _piece(self, choice: _Choice) -> bytes:
        message = choice.delta or _as_message(choice.text)
        self._tool_calls.add(message.tool_calls or [])
        self._finish_reason = choice.finish_reason or self._finish_reason
        if not message.text and not message.thinking:
            return b""
        return self._answer.piece(message.text, message.thinking) + b"\n"

    def _last(self) -> bytes:
        if self._is_over:
            return b""
        self._is_over = True
        calls = self._tool_calls.take()
        before = self._answer.piece("", tool_calls=calls) + b"\n" if calls else b""
        return before + self._answer.piece("", done_reason=_done_reason(self._finish_reason)) + b"\n"


class DocumentTranslator:
    """Translates an answer that is one JSON document.

    Args:
        answer: Builds the document.
    """

    holds_whole_answer = True

    def __init__(self, answer: OllamaAnswer) -> None:
        self._answer = answer
        self._held = bytearray()
        self._is_vectors = answer.call.route.answers_with == "vectors"
        self._is_line = answer.call.stream and not self._is_vectors
        self.content_type = "application/x-ndjson" if self._is_line else "application/json"

    @property
    def held_bytes(self) -> int:
        """The bytes of the answer that are held in memory."""
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        """Hold more bytes of the answer. Nothing passes to the job before the answer is whole.

        Raises:
            UpstreamFailed: The answer is too large.
        """
        self._held += data
        if len(self._held) > (_MAX_VECTORS if self._is_vectors else _MAX_TEXT):
            raise UpstreamFailed("its answer is too large")
        return b""

    def finish(self) -> bytes:
        """Return the whole answer in Ollama's format.

        Raises:
            UpstreamFailed: The answer has another format, or too many parts or tool calls.
        """
        held = bytes(self._held)
        self._held.clear()
        if held.count(b"{") > _MOST_OBJECTS:
            raise UpstreamFailed("its answer has too many parts")
        try:
            answer = self._vectors(held) if self._is_vectors else self._text(held)
        except UNREADABLE as exc:
            raise UpstreamFailed("its answer does not have the format of OpenAI's API") from exc
        return answer + b"\n" if self._is_line else answer

    def _vectors(self, held: bytes) -> bytes:
        data = sorted(_vectors.decode(held).data, key=lambda vector: vector.index)
        if not data:
            raise UpstreamFailed("its answer has no vectors")
        return self._answer.vectors([vector.embedding for vector in data])

    def _text(self, held: bytes) -> bytes:
        choices = _completion.decode(held).choices
        if not choices:
            raise UpstreamFailed("its answer has no choices")
        choice = choices[0]
        message = choice.message or _as_message(choice.text)
        calls = ToolCallCollector()
        calls.add(msgspec.structs.replace(call, index=at) for at, call in enumerate(message.tool_calls or []))
        done_reason = _done_reason(choice.finish_reason)
        return self._answer.piece(message.text, message.thinking, calls.take(), done_reason)


def _as_message(text: str | None) -> _Message:
    """Return the text of a completion as a message of a chat."""
    return _Message(content=msgspec.Raw(msgspec.json.encode(text)))


def _done_reason(finish_reason: str | None) -> str:
    return "length" if finish_reason == "length" else "stop"
