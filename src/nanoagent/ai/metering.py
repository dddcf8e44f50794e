"""Reads the tokens out of an answer as it passes, by the upstream's own usage fields.

Ollama: `prompt_eval_count` and `eval_count` of the last object. OpenAI: `usage`, at the end of
a document, in the last chunk but one of a stream (`stream_options.include_usage`), in `response.completed`
of the responses API.

Cached and reasoning tokens are parts of the prompt and of the completion, and are counted as well.

Of a stream that ends early, what has come is counted by its pieces: Ollama sends one for each token, others
nearly so. Never less than what the upstream has said itself. What no upstream has told is estimated.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nanoagent.ai.refusals import Api
from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from nanoagent.ai.calls import Call

_MAX_LINE: Final = 4 * MIB  # Ollama's last line has the whole context, 7 bytes a token
_MAX_DOCUMENT: Final = 4 * MIB  # larger are vectors only, which have their usage at the end
_MAX_CHOICES: Final = 64 * 1024  # of a chunk: 5 ms to read; larger are one token with many alternatives
_TAIL: Final = 4096
_MOST_TOKENS: Final = 10**9  # of one answer; beyond that it is no count
_BYTES_PER_TOKEN: Final = 4
_TAIL_COUNT: Final = re.compile(rb'"(?:prompt_eval_count|prompt_tokens)"\s*:\s*(\d{1,10})\b')


class _Usage(msgspec.Struct):
    """OpenAI's; the responses API has other names for the same. DeepSeek has its own for cached tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: msgspec.Raw = msgspec.Raw(b"")
    completion_tokens_details: msgspec.Raw = msgspec.Raw(b"")
    input_tokens_details: msgspec.Raw = msgspec.Raw(b"")
    output_tokens_details: msgspec.Raw = msgspec.Raw(b"")
    prompt_cache_hit_tokens: msgspec.Raw = msgspec.Raw(b"")


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _OllamaMessage(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw(b"")


class _OllamaPiece(msgspec.Struct):
    done: bool = False
    done_reason: str | None = None
    response: str | None = None
    thinking: str | None = None
    message: _OllamaMessage | None = None
    embedding: msgspec.Raw = msgspec.Raw(b"")
    prompt_eval_count: int | None = None
    eval_count: int | None = None


class _Response(msgspec.Struct):
    usage: _Usage | None = None


class _OpenAiPiece(msgspec.Struct):
    type: str | None = None
    choices: msgspec.Raw = msgspec.Raw(b"")
    usage: _Usage | None = None
    response: _Response | None = None


class _Delta(msgspec.Struct):
    delta: dict[str, msgspec.Raw] | None = None
    text: str | None = None


_ollama: Final = msgspec.json.Decoder(_OllamaPiece)
_openai: Final = msgspec.json.Decoder(_OpenAiPiece)
_choices: Final = msgspec.json.Decoder(list[msgspec.Raw] | None)
_delta: Final = msgspec.json.Decoder(_Delta)
_EMPTY: Final = frozenset({b'""', b"null", b"[]", b"{}"})
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(slots=True)
class Tally:
    """What an answer has cost so far.

    Attributes:
        prompt: Tokens, as the upstream says; None: not yet.
        completion: Likewise.
        cached: Tokens of the prompt that the upstream took from its cache.
        reasoning: Reasoning tokens of the completion.
        pieces: Pieces of the answer that have come.
        size: Bytes of it that have come.
    """

    prompt: int | None = None
    completion: int | None = None
    cached: int = 0
    reasoning: int = 0
    pieces: int = 0
    size: int = 0

    def told(self, prompt: int | None, completion: int | None) -> None:
        """The upstream says how many; the last word counts, as some count on from piece to piece."""
        if prompt is not None and 0 <= prompt <= _MOST_TOKENS:
            self.prompt = prompt
        if completion is not None and 0 <= completion <= _MOST_TOKENS:
            self.completion = completion

    def told_details(self, cached: int | None, reasoning: int | None) -> None:
        """Parts of the prompt and of the completion; a part that exceeds the whole is ignored."""
        if cached is not None and 0 <= cached <= (self.prompt or 0):
            self.cached = cached
        if reasoning is not None and 0 <= reasoning <= (self.completion or 0):
            self.reasoning = reasoning

    def total(self, prompt_estimate: int, *, complete: bool, vectors: bool = False) -> tuple[int, int]:
        """Prompt and completion tokens.

        Args:
            prompt_estimate: What the prompt is taken for where the upstream has not said.
            complete: Whether the answer has come to its end: then its own count is right.
            vectors: Whether the answer is no text: it has no tokens then.
        """
        prompt = prompt_estimate if self.prompt is None else self.prompt
        if vectors:
            return prompt, 0
        if self.completion is None:
            seen = self.pieces
            if not seen and complete:
                seen = -(-self.size // _BYTES_PER_TOKEN)
            return prompt, seen
        return prompt, self.completion if complete else max(self.completion, self.pieces)


class Document:
    """An answer in one piece.

    Args:
        call: What was asked.
    """

    def __init__(self, call: Call) -> None:
        self.tally = Tally()
        self._api = call.route.api
        self._held = bytearray()
        self._whole = True

    @property
    def held_bytes(self) -> int:
        """How much of the answer it holds."""
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        """Some of the answer has come; returns what of it goes on to the job."""
        self.tally.size += len(data)
        self._held += data
        if len(self._held) > (_MAX_DOCUMENT if self._whole else _TAIL):
            self._whole = False
            del self._held[:-_TAIL]
        return data

    def finish(self) -> bytes:
        """The answer has ended; returns what was held back of it."""
        if self._whole:
            _count(self._api, bytes(self._held), self.tally)
            self.tally.pieces = 0  # it came as one; without a usage its size is counted
        elif found := _TAIL_COUNT.findall(self._held):
            self.tally.told(int(found[-1]), 0)
        self._held.clear()
        return b""


class Stream:
    """An answer in lines: JSON objects (Ollama), or server-sent events (OpenAI).

    Each goes on as it comes. Only where the usage has to be taken out again is a line held until it is whole.

    Args:
        call: What was asked.
    """

    def __init__(self, call: Call) -> None:
        self.tally = Tally()
        self._api = call.route.api
        self._strips = call.strips_usage
        self._line = bytearray()
        self._overlong = False
        self._drops_blank = False

    @property
    def held_bytes(self) -> int:
        """How much of the answer it holds."""
        return len(self._line)

    def feed(self, data: bytes) -> bytes:
        """Some of the answer has come; returns what of it goes on to the job."""
        self.tally.size += len(data)
        kept = [self._whole_line(data, start, end) for start, end in _lines(data)]
        rest = data[data.rfind(b"\n") + 1 :]
        kept.append(self._hold(rest))
        return b"".join(kept) if self._strips else data

    def _whole_line(self, data: bytes, start: int, end: int) -> bytes:
        """The line that ends there; returns what of it goes on."""
        if self._overlong:
            self._overlong = False
            return data[start:end]
        line = bytes(self._line) + data[start:end] if self._line else data[start:end]
        self._line.clear()
        return line if self._take(line) else b""

    def _hold(self, rest: bytes) -> bytes:
        """The beginning of a line; returns what of it goes on now: all of one that is too long to be held."""
        if self._overlong:
            return rest
        self._line += rest
        if len(self._line) <= _MAX_LINE:
            return b""
        held = bytes(self._line)
        self._line.clear()
        self._overlong = True
        return held

    def _take(self, line: bytes) -> bool:
        """Count a line; returns whether it goes on to the job."""
        text = line.strip()
        if not text:
            dropped, self._drops_blank = self._drops_blank, False
            return not dropped
        self._drops_blank = False
        if self._api is Api.OPENAI:
            if not text.startswith(b"data:"):
                return True
            text = text[5:].lstrip()
        extra = _count(self._api, text, self.tally)
        if extra and self._strips:
            self._drops_blank = True
            return False
        return True

    def finish(self) -> bytes:
        """The answer has ended; returns what was held back of it."""
        line = bytes(self._line)
        self._line.clear()
        keep = self._take(line) if line else True
        return line if keep and self._strips else b""


def _lines(data: bytes) -> list[tuple[int, int]]:
    """Where the lines that end in `data` begin and end."""
    found = []
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        found.append((start, end + 1))
        start = end + 1
    return found


def meter_for(call: Call, content_type: str) -> Document | Stream:
    """What reads the answer to a call."""
    lines = call.route.api is Api.OLLAMA or "event-stream" in content_type
    return Stream(call) if call.stream and lines else Document(call)


def _count(api: Api, text: bytes, tally: Tally) -> bool:
    """Count one object; returns whether it is the chunk that has nothing but the usage."""
    try:
        if api is Api.OLLAMA:
            _count_ollama(_ollama.decode(text), tally)
            return False
        return _count_openai(_openai.decode(text), tally)
    except _UNREADABLE:  # `[DONE]`, or garbage, which is the job's to make sense of
        return False


def _count_ollama(piece: _OllamaPiece, tally: Tally) -> None:
    if piece.done_reason in {"load", "unload"}:  # nothing was asked
        tally.told(0, 0)
    elif piece.prompt_eval_count is not None or piece.eval_count is not None:
        # Of those that are zero, as for a prompt that was cached, Ollama says nothing.
        tally.told(piece.prompt_eval_count or 0, piece.eval_count or 0)
    said: list[Any] = [piece.response, piece.thinking]
    if piece.message is not None:
        said += [piece.message.content, piece.message.thinking, bytes(piece.message.tool_calls)]
    if not piece.done and any(said):
        tally.pieces += 1


def _count_openai(piece: _OpenAiPiece, tally: Tally) -> bool:
    usage = piece.usage or (piece.response.usage if piece.response is not None else None)
    if usage is not None:
        _count_usage(usage, tally)
    has_choices = _count_choices(bytes(piece.choices), tally)
    if piece.type is not None and piece.type.endswith(".delta"):
        tally.pieces += 1
    return piece.usage is not None and not has_choices


def _count_choices(choices: bytes, tally: Tally) -> bool:
    """Count the choices of a chunk that say something; returns whether there are any."""
    if len(choices) > _MAX_CHOICES:
        tally.pieces += 1
        return True
    listed = _choices.decode(choices) if choices else None
    tally.pieces += sum(map(_says_something, listed or ()))
    return bool(listed)


def _count_usage(usage: _Usage, tally: Tally) -> None:
    """Tokens, by whichever names the upstream has for them.

    Some (Gemini, xAI) count reasoning tokens only in the total, not in the completion.
    """
    prompt = usage.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens
    completion = usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
    beside = 0
    if usage.total_tokens is not None and prompt is not None:
        beside = max(0, usage.total_tokens - prompt - (completion or 0))
    tally.told(prompt, completion if not beside else (completion or 0) + beside)
    cached = _details(usage.prompt_tokens_details, usage.input_tokens_details).cached_tokens
    if cached is None:
        cached = _number(usage.prompt_cache_hit_tokens)
    reasoning = _details(usage.completion_tokens_details, usage.output_tokens_details).reasoning_tokens
    tally.told_details(cached, beside or None if reasoning is None else reasoning)


def _details(*given: msgspec.Raw) -> _Details:
    """The first details that can be read; unreadable ones do not affect the other counts."""
    for raw in given:
        with suppress(*_UNREADABLE):
            return msgspec.json.decode(raw, type=_Details)
    return _Details()


def _number(raw: msgspec.Raw) -> int | None:
    with suppress(*_UNREADABLE):
        return msgspec.json.decode(raw, type=int)
    return None


def _says_something(choice: msgspec.Raw) -> bool:
    """Whether a choice's chunk has a part of the answer: text, thoughts, a tool's arguments."""
    chunk = _delta.decode(choice)
    if chunk.text:
        return True
    return any(name != "role" and bytes(value) not in _EMPTY for name, value in (chunk.delta or {}).items())
