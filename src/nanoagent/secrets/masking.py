"""Hides the values of secrets in the output of a program.

This protects from accidents, such as a program that prints its environment. It does not protect from a
program that wants to pass a secret on: there are endless ways to write a value.

Hidden are the value, the value in JSON and Python literals, in URLs and in Base64, also after other text
(`user:password`); each line of a value with several lines, and each text in a value that is a JSON object.
Texts of less than `MIN_CHARACTERS` are not hidden, because they are parts of ordinary output.
"""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

HIDDEN: Final = "***"
MIN_CHARACTERS: Final = 4
_HIDDEN_BYTES: Final = HIDDEN.encode()
_MIN_BASE64: Final = 6  # shorter parts of a Base64 text are parts of ordinary words
_MAX_PATTERN: Final = 256
_MANY_PERIODS: Final = 256  # large steps first
_NOT_ESCAPED_IN_JAVASCRIPT: Final = "!'()*"  # by encodeURIComponent

Span = tuple[int, int]


class Mask:
    """Replaces the values of secrets by `***`.

    Args:
        values: The values.
    """

    def __init__(self, values: Iterable[str]) -> None:
        texts = {text for value in values for text in _parts(value) if len(text) >= MIN_CHARACTERS}
        found = {block for text in texts for written in _written(text) for block in _blocks(written)}
        self._patterns = sorted(found, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """Return a whole text without the values."""
        return self._hide(text)[0]

    def hide_parts(self, head: str, tail: str) -> tuple[str, str]:
        """Return the beginning and the end of a text whose middle is missing, without the values.

        A value may begin at the end of `head` or end at the beginning of `tail`. These parts are hidden, too.
        """
        head, data = self._hide(head)
        begun = _longest_begun(data, self._patterns)
        if begun:
            head = self._replaced(data, [*self._spans(data), (len(data) - begun, len(data))])
        tail, data = self._hide(tail)
        ended = _longest_begun(data[::-1], [pattern[::-1] for pattern in self._patterns])
        if ended:
            tail = self._replaced(data, [*self._spans(data), (0, ended)])
        return head, tail

    def live(self, forward: Callable[[bytes, bytes], None]) -> LiveMask:
        """Return a receiver of output in pieces, which passes it on without the values."""
        return LiveMask(self._patterns, forward)

    def positioned(self, forward: Callable[[bytes, int, bytes, int], None]) -> PositionedMask:
        """Return a receiver of output in pieces with positions, which passes it on without the values."""
        return PositionedMask(self._patterns, forward)

    def _hide(self, text: str) -> tuple[str, bytes]:
        data = text.encode(errors="surrogateescape")
        spans = self._spans(data)
        return (self._replaced(data, spans) if spans else text), data

    def _spans(self, data: bytes) -> list[Span]:
        return list(_occurrences(data, self._patterns))

    @staticmethod
    def _replaced(data: bytes, spans: list[Span]) -> str:
        kept, at = bytearray(), 0
        for start, end in _merged(spans):
            kept += data[at:start] + _HIDDEN_BYTES
            at = end
        return (kept + data[at:]).decode(errors="surrogateescape")


class LiveMask:
    """Hides values in output that arrives in pieces. A value may be split over pieces.

    The end of the output is held back while it may be the beginning of a value; at most the length of the
    longest value.

    Args:
        patterns: The bytes to hide.
        forward: Called with the name of the stream and each piece.
    """

    def __init__(self, patterns: list[bytes], forward: Callable[[bytes, bytes], None]) -> None:
        self._patterns = patterns
        self._forward = forward
        self._held: dict[bytes, _Held] = {}

    def __call__(self, stream: bytes, piece: bytes) -> None:
        """Take a piece of the output of a stream."""
        self._take(stream, piece, is_last=False)

    def flush(self) -> None:
        """Pass on the output that was held back, because no more will come."""
        for stream in list(self._held):
            self._take(stream, b"", is_last=True)

    def flush_stream(self, stream: bytes) -> None:
        """Pass on the output of a stream that was held back."""
        self._take(stream, b"", is_last=True)

    def held_bytes(self, stream: bytes) -> int:
        """Return the number of bytes of a stream that are held back."""
        return len(self._held[stream].data) if stream in self._held else 0

    def forget(self, stream: bytes) -> int:
        """Drop the bytes of a stream that are held back; return their number."""
        return len(self._held.pop(stream, _NOTHING).data)

    def _take(self, stream: bytes, piece: bytes, *, is_last: bool) -> None:
        held = self._held.pop(stream, _NOTHING)
        data = held.data + piece
        spans = _occurrences(data, self._patterns)
        begun = 0 if is_last else _longest_begun(data, self._patterns)
        passed, at, until = bytearray(), 0, len(data) - begun
        hidden_until = 0  # up to here, the output is hidden, and `***` was passed on
        for start, end in _merged([*spans, *([(0, held.hidden)] if held.hidden else [])]):
            continues = start == 0 and held.hidden > 0
            if start >= until and not continues:
                break
            if not continues:
                passed += data[at:start] + _HIDDEN_BYTES
            at = hidden_until = end
        passed += data[at:until]
        if begun:
            self._held[stream] = _Held(data[until:], max(0, hidden_until - until))
        if passed:
            self._forward(stream, bytes(passed))


class PositionedMask:
    """Hides values in pieces that have positions, and between which output may be missing.

    A value may be cut off where output is missing. Bytes there that may be its beginning or its end are
    hidden, too. Therefore the output after a gap is held back until it is as long as the longest value.

    Args:
        patterns: The bytes to hide.
        forward: Called with the name of the stream, the number of its bytes before the piece, the piece, and
            the number of bytes of the stream that the piece stands for.
    """

    def __init__(self, patterns: list[bytes], forward: Callable[[bytes, int, bytes, int], None]) -> None:
        self._reversed = [pattern[::-1] for pattern in patterns]
        self._longest = max(map(len, patterns), default=0)
        self._forward = forward
        self._mask = LiveMask(patterns, self._note)
        self._masked = b""
        self._passed: dict[bytes, int] = {}  # the number of bytes of each stream that were passed on
        self._ends: dict[bytes, int] = {}  # and that have arrived
        self._after_gap: dict[bytes, bytearray] = {}

    def __call__(self, stream: bytes, position: int, piece: bytes) -> None:
        """Take a piece of the output of a stream."""
        if position != self._ends.get(stream, 0):
            self._skip(stream, position)
        self._ends[stream] = position + len(piece)
        waiting = self._after_gap.get(stream)
        if waiting is None:
            self._take(stream, piece)
            return
        waiting += piece
        if len(waiting) >= self._longest:
            self._end_gap(stream)

    def flush(self) -> None:
        """Pass on the output that was held back, because no more will come."""
        for stream in list(self._after_gap):
            self._end_gap(stream)
        for stream in list(self._ends):
            self._mask.flush_stream(stream)
            self._pass_on(stream)

    def _skip(self, stream: bytes, position: int) -> None:
        """Begin a gap: output up to the position is missing."""
        if stream in self._after_gap:
            self._end_gap(stream)
        if held_bytes := self._mask.forget(stream):
            self._forward(stream, self._passed.get(stream, 0), _HIDDEN_BYTES, held_bytes)
        self._passed[stream] = position
        self._after_gap[stream] = bytearray()

    def _end_gap(self, stream: bytes) -> None:
        data = bytes(self._after_gap.pop(stream))
        ended = _longest_begun(data[::-1], self._reversed)
        if ended:
            self._forward(stream, self._passed[stream], _HIDDEN_BYTES, ended)
            self._passed[stream] += ended
        self._take(stream, data[ended:])

    def _take(self, stream: bytes, piece: bytes) -> None:
        self._mask(stream, piece)
        self._pass_on(stream)

    def _note(self, _: bytes, masked: bytes) -> None:
        self._masked = masked

    def _pass_on(self, stream: bytes) -> None:
        """Pass on what the mask has let through, with the number of bytes that it stands for."""
        passed = self._passed.get(stream, 0)
        printed = self._ends[stream] - self._mask.held_bytes(stream) - passed
        masked, self._masked = self._masked, b""
        if printed > 0 and masked:
            self._passed[stream] = passed + printed
            self._forward(stream, passed, masked, printed)


class _Held:
    """The end of a stream that was not passed on.

    Attributes:
        data: The bytes.
        hidden: How many of them belong to a value for which `***` was passed on.
    """

    __slots__ = ("data", "hidden")

    def __init__(self, data: bytes, hidden: int) -> None:
        self.data = data
        self.hidden = hidden


_NOTHING: Final = _Held(b"", 0)


# --- the texts to hide


def _parts(value: str) -> Iterator[str]:
    """Yield a value, its lines, and the texts in it if it is a JSON document."""
    yield value
    yield value.strip()
    if "\n" in value:
        yield from (line.strip() for line in value.splitlines())
    if value.lstrip()[:1] in {"{", "["}:
        with suppress(ValueError, RecursionError):
            yield from _texts_in(json.loads(value))


def _texts_in(document: object) -> Iterator[str]:
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        for member in document.values():
            yield from _texts_in(member)
    elif isinstance(document, list):
        for member in document:
            yield from _texts_in(member)


def _written(text: str) -> Iterator[bytes]:
    """Yield the ways to write a text."""
    data = text.encode(errors="surrogateescape")
    yield data
    for escaped in (json.dumps(text), json.dumps(text, ensure_ascii=False), repr(text)):
        yield escaped[1:-1].encode(errors="surrogateescape")
    # Go escapes these three characters in JSON, too.
    in_go = json.dumps(text, ensure_ascii=False)[1:-1]
    for character in "<>&":
        in_go = in_go.replace(character, f"\\u{ord(character):04x}")
    yield in_go.encode(errors="surrogateescape")
    quoted = {quote(data, safe=safe) for safe in ("", "/", _NOT_ESCAPED_IN_JAVASCRIPT)} | {quote_plus(data)}
    yield from (way.encode() for way in quoted)
    yield from _in_base64(data)


def _in_base64(data: bytes) -> Iterator[bytes]:
    """Yield the parts of Base64 texts that depend only on the data, for each place in a group of three."""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data)
        first = (before * 8 + 5) // 6  # the characters before it depend on the bytes before the data
        last = (before + len(data)) * 8 // 6  # the characters from here on depend on the bytes behind it
        part = encoded[first:last]
        if len(part) >= _MIN_BASE64:
            yield part
            yield part.translate(_URL_SAFE)


def _blocks(pattern: bytes) -> Iterator[bytes]:
    """Yield a pattern in blocks of limited length. They overlap, so that the whole is hidden as one.

    The time to find the beginning of a pattern at the end of a text grows with the square of its length.
    """
    yield pattern[-_MAX_PATTERN:]
    for start in range(0, len(pattern) - _MAX_PATTERN, _MAX_PATTERN - 1):
        yield pattern[start : start + _MAX_PATTERN]


_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


# --- finding them


def _occurrences(data: bytes, patterns: list[bytes]) -> Iterator[Span]:
    """Yield which parts of the data consist of patterns, also where these overlap.

    An occurrence overlaps the next one by a border of the pattern. So the next one begins a whole number of
    periods later, or near the end of this one. To try each place would take minutes for `aaaa` in `aaaa…`.
    """
    for pattern in patterns:
        at = data.find(pattern)
        if at < 0:
            continue
        length, period = len(pattern), _period(pattern)
        steps = [pattern[-period:] * times for times in (_MANY_PERIODS, 1)]
        while at >= 0:
            end = at + length
            for step in steps:
                while data.startswith(step, end):
                    end += len(step)
            yield at, end
            at = data.find(pattern, end - length + max(period, length - period + 1))


def _period(pattern: bytes) -> int:
    """Return the smallest distance at which a pattern can overlap itself; its length if it cannot."""
    borders = [0] * len(pattern)  # the longest border of each beginning (Knuth, Morris, Pratt)
    for end in range(1, len(pattern)):
        border = borders[end - 1]
        while border and pattern[border] != pattern[end]:
            border = borders[border - 1]
        borders[end] = border + (pattern[border] == pattern[end])
    return len(pattern) - borders[-1]


def _merged(spans: list[Span]) -> Iterator[Span]:
    """Yield the spans in order; spans that overlap are one span."""
    current: Span | None = None
    for start, end in sorted(spans):
        if current is None:
            current = start, end
        elif start < current[1]:
            current = current[0], max(current[1], end)
        else:
            yield current
            current = start, end
    if current is not None:
        yield current


def _longest_begun(data: bytes, patterns: list[bytes]) -> int:
    """Return the length of the longest end of the data that is a beginning, not the whole, of a pattern."""
    longest = 0
    for pattern in patterns:
        if len(pattern) - 1 <= longest:
            continue
        end = data[-(len(pattern) - 1) :]
        at = end.find(pattern[:1])
        while 0 <= at < len(end) - longest:
            if pattern.startswith(end[at:]):
                longest = len(end) - at
                break
            at = end.find(pattern[:1], at + 1)
    return longest
