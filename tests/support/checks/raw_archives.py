"""Makes archives from any bytes: each byte decides one property of the archive.

Property tests and the fuzzer use it, because they vary bytes better than headers.
"""

from __future__ import annotations

import stat
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from support.checks.zips import (
    ENCRYPTED,
    UTF8_NAME,
    End,
    RawEntry,
    deflated,
    extra_field,
    parts,
    raw_zip,
    zip64_end,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_T = TypeVar("_T")
_MOST_ENTRIES: Final = 8
_HONEST_FROM: Final = 64  # of 256: how often a choice is false
_LIKELY: Final = 32  # of 256: how often an entry is unusual

_NAMES: Final = (
    b"main.py",
    b"Main.py",
    b"lib/a.py",
    b"lib/",
    b"lib",
    b"../x",
    b"tree-of-another/x",
    b"../tree-of-another/x",
    b"/x",
    b"a\\b",
    b"./main.py",
    b"lib//a.py",
    b"lib/./",
    b"lib/link",
    b"._main.py",
    b"__MACOSX/x",
    b"a\nb",
    b"a\0b",
    b"",
    b"d/e/f/g",
    b"n" * 256,
    "é".encode(),
    "e\u0301".encode(),
    b"\xff\xfe",
)
_CONTENTS: Final = (
    b"",
    b"x",
    b"a.py",
    b"../main.py",
    b"lib/link",
    b"..",
    b"./lib/",
    b"/x",
    b"print(1)\n",
    b"PK\x03\x04" * 9,
    bytes(3000),
    bytes(range(256)) * 20,
)
_NUMBERS: Final = (0, 1, 9, 255, 65_535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_BIG_NUMBERS: Final = (*_NUMBERS, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_KINDS: Final = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, 0)
_FLAGS: Final = (UTF8_NAME, ENCRYPTED, 8, 0x20, 0x40, 0x2000, 0xFFFF, UTF8_NAME | 8)
_METHODS: Final = (8, 0, 9, 12, 14, 93, 0xFFFF)


@dataclass
class Choices:
    """Decisions from bytes; after the last byte all decisions are honest."""

    data: bytes
    _at: int = field(default=0)

    def byte(self) -> int:
        """Return the next byte, or 255 at the end."""
        self._at += 1
        return self.data[self._at - 1] if self._at <= len(self.data) else 255

    def of(self, options: Sequence[_T]) -> _T:
        """Return one of the options."""
        return options[self.byte() % len(options)]

    def lie(self, options: Sequence[_T]) -> _T | None:
        """Return one of the options sometimes, and None otherwise."""
        return None if self.byte() >= _HONEST_FROM else self.of(options)

    def text(self, longest: int) -> bytes:
        """Return the next few bytes."""
        length = self.byte() % (longest + 1)
        taken = self.data[self._at : self._at + length]
        self._at += length
        return taken


def archive_of(data: bytes) -> bytes:
    """Return the archive for these bytes: its entries, their headers, and bytes that are overwritten."""
    choices = Choices(data)
    entries = [_entry(choices) for _ in range(1 + choices.byte() % _MOST_ENTRIES)]
    content = bytearray(_prefix(choices) + raw_zip(*entries, end=_end(choices, entries)))
    while (place := choices.lie(range(256))) is not None:
        content[(place << 8 | choices.byte()) % len(content)] = choices.byte()
    content += choices.lie((b"\0", b"PK\x05\x06", bytes(22), bytes(70_000))) or b""
    cut = choices.lie(range(256))
    return bytes(content if cut is None else content[: len(content) * cut // 256])


def _prefix(choices: Choices) -> bytes:
    return choices.lie((b"#!/bin/sh\n", b"PK\x03\x04", bytes(100))) or b""


def _entry(choices: Choices) -> RawEntry:
    own = choices.lie((True,))
    name = choices.text(40) if own else choices.of(_NAMES)
    content = choices.text(40) if choices.lie((True,)) else choices.of(_CONTENTS)
    method = choices.of(_METHODS[:2]) if choices.byte() >= 16 else choices.of(_METHODS)
    if name.endswith(b"/"):
        content = b""
    entry = RawEntry(name, content, method=method, flags=choices.lie(_FLAGS) or 0)
    if choices.byte() < _LIKELY:
        entry.extra = _unicode_path(name, choices.of(_NAMES))
    entry.mode = choices.of(_KINDS) | choices.byte() << 4 if choices.byte() < 2 * _LIKELY else 0
    if choices.byte() < 96:
        _falsify(entry, choices)
    return entry


def _falsify(entry: RawEntry, choices: Choices) -> None:
    entry.data = choices.lie((b"", b"\x03\x00", b"\x07", deflated(entry.content) + b"more", bytes(9)))
    for name in ("file_size", "packed_size", "crc", "offset"):
        setattr(entry, name, choices.lie(_NUMBERS))
    for name in ("local_file_size", "local_packed_size", "local_crc"):
        setattr(entry, name, choices.lie(_NUMBERS))
    entry.local_name = choices.lie(_NAMES)
    entry.local_flags = choices.lie(_FLAGS)
    entry.is_hidden = choices.byte() < 16
    entry.system = choices.byte()
    entry.needs = choices.lie((0, 45, 63, 255)) or 20
    entry.dos_time = choices.lie((0, 0xFFFF_FFFF)) or entry.dos_time
    entry.extra, entry.local_extra = _extra(choices), _extra(choices)
    entry.comment = choices.text(20)
    entry.trailer = choices.text(20)


def _unicode_path(name: bytes, believed: bytes) -> bytes:
    """Return Info-ZIP's extra field for a name in UTF-8 (APPNOTE 4.6.9)."""
    return extra_field(0x7075, b"\x01" + struct.pack("<I", zlib.crc32(name)) + believed)


def _extra(choices: Choices) -> bytes:
    fields = choices.lie(
        (
            extra_field(1, b"".join(struct.pack("<Q", choices.of(_BIG_NUMBERS)) for _ in range(3))),
            extra_field(1, b"1234"),
            extra_field(0x5455, b"\x07" + b"\xff" * 12),
            extra_field(0x7075, b"\x01\0\0\0\0../x"),
            extra_field(0x7777, b"", claimed=9),
            extra_field(0x7777, b"") * 1100,
        )
    )
    return fields or b""


def _end(choices: Choices, entries: list[RawEntry]) -> End:
    end = End(comment=choices.lie((b"hello", b"PK\x05\x06", b"PK\x05\x06" + bytes(18))) or b"")
    if choices.byte() < 32:
        end.entries = choices.lie(_NUMBERS[:5])
        end.size, end.offset = choices.lie(_NUMBERS), choices.lie(_NUMBERS)
        end.disk = choices.lie(_NUMBERS[:5]) or 0
    if choices.byte() < 32:
        end.zip64 = _zip64_end(choices, entries)
    return end


def _zip64_end(choices: Choices, entries: list[RawEntry]) -> bytes:
    body, directory = parts(*entries)
    size, offset = choices.lie(_BIG_NUMBERS), choices.lie(_BIG_NUMBERS)
    return zip64_end(
        choices.lie(_BIG_NUMBERS) or len(entries),
        len(directory) if size is None else size,
        len(body) if offset is None else offset,
        position=choices.lie(_BIG_NUMBERS) or len(body) + len(directory),
        disks=choices.lie((0, 2)) or 1,
    )
