"""The line that replaces the missing bytes in the middle of a captured stream."""

from __future__ import annotations

import codecs
import re
from typing import Final

from nanoagent.model.text import Text

GAP: Final = Text("… {missing} bytes cut …", "… {missing}바이트 생략 …")
_IS_GAP: Final = re.compile(r"… \d{1,20}(?: bytes cut|바이트 생략) …")
_GAP_LINE: Final = re.compile(rf"\n{_IS_GAP.pattern}\n")
_MAX_CONTINUATION_BYTES: Final = 3  # of one character in UTF-8


def joined(head: str, missing: int, tail: str) -> Text:
    """Join the head and the tail of a text by the line about the missing bytes."""
    line = GAP.format(missing=missing)
    return Text(f"{head}\n{line.en}\n{tail}", f"{head}\n{line.ko}\n{tail}")


def is_gap(line: str) -> bool:
    """Whether the line is a line about missing bytes."""
    return line.startswith("… ") and _IS_GAP.fullmatch(line) is not None


def split(text: str) -> tuple[str, str] | None:
    """Split a text at the line about missing bytes into head and tail; None without such a line.

    The program may have printed such lines, too. So the last one is used: all text after it is from after the
    gap.
    """
    found = None
    for found in _GAP_LINE.finditer(text):  # noqa: B007 - finds the last one
        pass
    return (text[: found.start()], text[found.end() :]) if found else None


def tail_and_whole(text: str) -> tuple[str, ...]:
    """Return the part after the gap, if the text has a gap, and then the whole text."""
    parts = split(text)
    return (text,) if parts is None else (parts[1], text)


def decode_head(data: bytes) -> tuple[str, int]:
    """Decode the head of a stream.

    Returns:
        The text, and the number of bytes at the end that begin a character which the gap has split.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return text, len(decoder.getstate()[0])


def decode_tail(data: bytes) -> tuple[str, int]:
    """Decode the tail of a stream.

    Returns:
        The text, and the number of bytes at the beginning that end a character which the gap has split.
    """
    split_bytes = 0
    while split_bytes < min(len(data), _MAX_CONTINUATION_BYTES + 1) and data[split_bytes] & 0xC0 == 0x80:
        split_bytes += 1
    if split_bytes > _MAX_CONTINUATION_BYTES:  # not UTF-8
        split_bytes = 0
    return data[split_bytes:].decode(errors="replace"), split_bytes
