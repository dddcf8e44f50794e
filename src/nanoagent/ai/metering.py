"""Counts the tokens of an answer while it passes, from the usage that the model server reports.

Ollama reports `prompt_eval_count` and `eval_count` in the last object. OpenAI reports `usage`: at the end of
a document, in the last chunk of a stream before `[DONE]` (`stream_options.include_usage`), or in
`response.completed` of the responses API. Cached tokens are a part of the prompt, and reasoning tokens are
a part of the completion. The meter also reports these parts separately.

If a stream ends early, each piece is counted as one token: Ollama sends one piece for each token, and other
servers send about as many pieces as tokens. The count is never below the number that the server has
reported. If a server reports no tokens, they are estimated.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nanoagent.ai.refusals import Api
from nanoagent.ai.untrusted_json import UNREADABLE
from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from nanoagent.ai.calls import Call

_MAX_LINE: Final = 4 * MIB  # Ollama's last line contains the whole context: about 7 bytes for each token
_MAX_DOCUMENT: Final = 4 * MIB  # only vectors are larger; their usage is at the end
# The largest choices of one chunk that are read, which takes up to 5 ms. Larger choices count as one token.
_MAX_CHOICES_BYTES: Final = 64 * 1024
_TAIL: Final = 4096
_MOST_TOKENS: Final = 10**9  # of one answer; a larger reported number is ignored
_BYTES_PER_TOKEN: Final = 4
_TAIL_COUNT: Final = re.compile(rb'"(?:prompt_eval_count|prompt_tokens)"\s*:\s*(\d{1,10})\b')


class _Usage(msgspec.Struct):
    """OpenAI's usage.

    The responses API has other names for the fields, and DeepSeek has another name for cached tokens.
    """

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


@dataclass(slots=True)
class Tally:
    """The tokens of an answer so far.

    Attributes:
        prompt: Tokens of the prompt as reported; None until the server reports them.
        completion: Tokens of the completion as reported; None until the server reports them.
        cached: Tokens of the prompt that the server took from its cache.
        reasoning: Reasoning tokens of the completion.
        pieces: The number of pieces of the answer.
        size: The bytes of the answer.
    """

    prompt: int | None = None
    completion: int | None = None
    cached: int = 0
    reasoning: int = 0
    pieces: int = 0
    size: int = 0

    def report(self, prompt: int | None, completion: int | None) -> None:
        """Set the reported tokens. The last report counts, because some servers report in each piece."""
        if prompt is not None and 0 <= prompt <= _MOST_TOKENS:
            self.prompt = prompt
        if completion is not None and 0 <= completion <= _MOST_TOKENS:
            self.completion = completion

    def report_parts(self, cached: int | None, reasoning: int | None) -> None:
        """Set the cached and the reasoning tokens. More cached tokens than prompt tokens are ignored.

        More reasoning tokens than completion tokens are ignored, too.
        """
        if cached is not None and 0 <= cached <= (self.prompt or 0):
            self.cached = cached
        if reasoning is not None and 0 <= reasoning <= (self.completion or 0):
            self.reasoning = reasoning

    def total(self, prompt_estimate: int, *, complete: bool, vectors: bool = False) -> tuple[int, int]:
        """Return the tokens of the prompt and of the completion.

        Args:
            prompt_estimate: The tokens of the prompt. Used if the server has reported none.
            complete: Whether the whole answer has come. If not, the reported completion may be too low.
            vectors: Whether the answer consists of vectors, which have no tokens.
        """
        prompt = prompt_estimate if self.prompt is None else self.prompt
        if vectors:
            return prompt, 0
        if self.completion is None:
            estimate = self.pieces
            if not estimate and complete:
                estimate = -(-self.size // _BYTES_PER_TOKEN)
            return prompt, estimate
        return prompt, self.completion if complete else max(self.completion, self.pieces)


class DocumentMeter:
    """Counts an answer that is one JSON document.

    Args:
        call: The call that is answered.
    """

    def __init__(self, call: Call) -> None:
        self.tally = Tally()
        self._api = call.route.api
        self._held = bytearray()
        self._whole = True

    @property
    def held_bytes(self) -> int:
        """The bytes of the answer that are held in memory."""
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        """Count more bytes of the answer. Return the bytes for the job."""
        self.tally.size += len(data)
        self._held += data
        if len(self._held) > (_MAX_DOCUMENT if self._whole else _TAIL):
            self._whole = False
            del self._held[:-_TAIL]
        return data

    def finish(self) -> bytes:
        """Finish the count at the end of the answer. Return the last bytes for the job."""
        if self._whole:
            _count(self._api, bytes(self._held), self.tally)
            self.tally.pieces = 0  # only a stream has pieces; without a usage, the size gives an estimate
        elif found := _TAIL_COUNT.findall(self._held):
            self.tally.report(int(found[-1]), 0)
        self._held.clear()
        return b""


class StreamMeter:
    """Counts an answer of lines: JSON objects (Ollama) or server-sent events (OpenAI).

    The data passes unchanged, unless the usage must be removed. In this case the meter holds each line until
    the line is complete.

    Args:
        call: The call that is answered.
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
        """The bytes of the answer that are held in memory."""
        return len(self._line)

    def feed(self, data: bytes) -> bytes:
        """Count more bytes of the answer. Return the bytes for the job."""
        self.tally.size += len(data)
        kept = [self._whole_line(data, start, end) for start, end in _lines(data)]
        rest = data[data.rfind(b"\n") + 1 :]
        kept.append(self._hold(rest))
        return b"".join(kept) if self._strips else data

    def _whole_line(self, data: bytes, start: int, end: int) -> bytes:
        """Count the line that ends at `end`. Return its bytes for the job."""
        if self._overlong:
            self._overlong = False
            return data[start:end]
        line = bytes(self._line) + data[start:end] if self._line else data[start:end]
        self._line.clear()
        return line if self._count_line(line) else b""

    def _hold(self, rest: bytes) -> bytes:
        """Hold the beginning of a line. If the line is too long to be held, return its bytes for the job."""
        if self._overlong:
            return rest
        self._line += rest
        if len(self._line) <= _MAX_LINE:
            return b""
        held = bytes(self._line)
        self._line.clear()
        self._overlong = True
        return held

    def _count_line(self, line: bytes) -> bool:
        """Count a line. Return whether it passes to the job."""
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
        """Finish the count at the end of the answer. Return the last bytes for the job."""
        line = bytes(self._line)
        self._line.clear()
        keep = self._count_line(line) if line else True
        return line if keep and self._strips else b""


def _lines(data: bytes) -> list[tuple[int, int]]:
    """Return the start and the end of each line that ends in `data`."""
    found = []
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        found.append((start, end + 1))
        start = end + 1
    return found


def meter_for(call: Call, content_type: str) -> DocumentMeter | StreamMeter:
    """Return the meter for the answer to a call."""
    lines = call.route.api is Api.OLLAMA or "event-stream" in content_type
    return StreamMeter(call) if call.stream and lines else DocumentMeter(call)


def _count(api: Api, text: bytes, tally: Tally) -> bool:
    """Count one object. Return whether it is a chunk that contains only the usage."""
    try:
        if api is Api.OLLAMA:
            _count_ollama(_ollama.decode(text), tally)
            return False
        return _count_openai(_openai.decode(text), tally)
    except UNREADABLE:  # `[DONE]`, or invalid data, which also passes to the job
        return False


def _count_ollama(piece: _OllamaPiece, tally: Tally) -> None:
    if piece.done_reason in {"load", "unload"}:  # the call had no prompt
        tally.report(0, 0)
    elif piece.prompt_eval_count is not None or piece.eval_count is not None:
        # Ollama omits a count of zero, for example that of a cached prompt.
        tally.report(piece.prompt_eval_count or 0, piece.eval_count or 0)
    contents: list[Any] = [piece.response, piece.thinking]
    if piece.message is not None:
        contents += [piece.message.content, piece.message.thinking, bytes(piece.message.tool_calls)]
    if not piece.done and any(contents):
        tally.pieces += 1


def _count_openai(piece: _OpenAiPiece, tally: Tally) -> bool:
    """Count one object. Return whether it is a chunk that contains only the usage."""
    usage = piece.usage or (piece.response.usage if piece.response is not None else None)
    if usage is not None:
        _count_usage(usage, tally)
    has_choices = _count_choices(bytes(piece.choices), tally)
    if piece.type is not None and piece.type.endswith(".delta"):
        tally.pieces += 1
    return piece.usage is not None and not has_choices


def _count_choices(choices: bytes, tally: Tally) -> bool:
    """Count the choices of a chunk that have content. Return whether the chunk has choices."""
    if len(choices) > _MAX_CHOICES_BYTES:
        tally.pieces += 1
        return True
    listed = _choices.decode(choices) if choices else None
    tally.pieces += sum(map(_has_content, listed or ()))
    return bool(listed)


def _count_usage(usage: _Usage, tally: Tally) -> None:
    """Count the tokens of a usage, under any of the names that servers use.

    Some servers (Gemini, xAI) include reasoning tokens only in `total_tokens`, not in the completion.
    """
    prompt = usage.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens
    completion = usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
    unlisted = 0
    if usage.total_tokens is not None and prompt is not None:
        unlisted = max(0, usage.total_tokens - prompt - (completion or 0))
    tally.report(prompt, completion if not unlisted else (completion or 0) + unlisted)
    cached = _details(usage.prompt_tokens_details, usage.input_tokens_details).cached_tokens
    if cached is None:
        cached = _number(usage.prompt_cache_hit_tokens)
    reasoning = _details(usage.completion_tokens_details, usage.output_tokens_details).reasoning_tokens
    tally.report_parts(cached, unlisted or None if reasoning is None else reasoning)


def _details(*given: msgspec.Raw) -> _Details:
    """Return the first readable details. Unreadable details do not affect the other counts."""
    for raw in given:
        with suppress(*UNREADABLE):
            return msgspec.json.decode(raw, type=_Details)
    return _Details()


def _number(raw: msgspec.Raw) -> int | None:
    with suppress(*UNREADABLE):
        return msgspec.json.decode(raw, type=int)
    return None


def _has_content(choice: msgspec.Raw) -> bool:
    """Whether a choice has a part of the answer: text, thinking, or a tool's arguments."""
    chunk = _delta.decode(choice)
    if chunk.text:
        return True
    return any(name != "role" and bytes(value) not in _EMPTY for name, value in (chunk.delta or {}).items())
