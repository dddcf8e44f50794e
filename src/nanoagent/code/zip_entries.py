"""Reads the entries of a zip: the path, kind and time of each.

Names follow the specification (PKWARE, .ZIP File Format Specification, APPNOTE.TXT, 4.4.17) and the practice
of common tools:

* An Info-ZIP Unicode path (APPNOTE 4.6.9) replaces the name if it contains the CRC-32 of the name.
* The encoding of names without the UTF-8 flag is the first of UTF-8, cp949 (Korean Windows) and cp437 that
  can decode all of them.
* If no name has a slash, backslashes separate folders, as in 7-Zip. Such zips come from .NET before 4.6.1 and
  from PowerShell 5.
* `./a` means `a`, and `a//b` means `a/b`. `..`, absolute names and drives are refused.

The time comes from an extra field, in UTC: extended timestamp, NTFS, or Info-ZIP's first Unix field. An entry
without such a field has only a DOS time, which has no time zone. The DOS time is read as UTC, so that a zip
gives the same times on all machines; `unzip` in a container does the same.
"""

from __future__ import annotations

import calendar
import re
import stat
import struct
import zlib
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from nanoagent.code import refusals
from nanoagent.code.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from zipfile import ZipInfo

MAX_NAME_BYTES: Final = 1024
MAX_DEPTH: Final = 64  # the removal of a tree takes one descriptor and one stack frame per level
_COMPONENT_BYTES: Final = 255  # NAME_MAX, limits.h
UTF8_NAME: Final = 0x0800  # general purpose bit, APPNOTE 4.4.4

_MOST_FOLDERS_KEPT: Final = 64  # in the cache of `PathParser`; at most 5 KiB each

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_FIELD: Final = struct.Struct("<HH")
_UNICODE_PATH: Final = 0x7075
_EXTENDED_TIMESTAMP: Final = 0x5455
_NTFS: Final = 0x000A
_UNIX: Final = 0x5855

_S: Final = 1_000_000_000  # in nanoseconds
_NTFS_EPOCH_S: Final = 11_644_473_600  # 1601 to 1970
_LEAST_S, _MOST_S = -(1 << 31), 1 << 32  # 32 bits, signed or unsigned: 1901 to 2106
_DOS_EPOCH_S: Final = 315_532_800  # 1980-01-01, for invalid times


class Kind(Enum):
    """The kind of an entry."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"


class TreePath(NamedTuple):
    """A path inside the tree.

    The names are UTF-8 bytes. In a `str`, one character above U+FFFF makes every character take four bytes.

    Attributes:
        folder: The names of the folders, from the top.
        name: The last name.
    """

    folder: tuple[bytes, ...]
    name: bytes


class Naming:
    """The encoding and the separator that the names of one archive share.

    Attributes:
        has_slash: Whether a name has a slash. Otherwise backslashes separate folders.
    """

    def __init__(self) -> None:
        self._encodings = ["utf-8", "cp949", "cp437"]
        self.has_slash = False

    @property
    def encoding(self) -> str:
        """The encoding of names without the UTF-8 flag. It no longer changes after the last `add`."""
        return self._encodings[0]

    def add(self, name: bytes, *, is_utf8: bool) -> None:
        """Take one more name into account."""
        # In these encodings the byte of a slash is never a part of another character.
        self.has_slash = self.has_slash or b"/" in name
        while not is_utf8 and not _can_decode(name, self._encodings[0]):
            del self._encodings[0]


@dataclass(slots=True, eq=False)
class Entry:
    """One file, folder or link of an archive. Memory holds up to 100,000 of them.

    Attributes:
        raw_name: The bytes of the name in the directory. The local header must repeat them.
        encoded_name: The bytes from which the name is decoded: the raw name, or the Unicode path.
        is_utf8: Whether the encoded name is UTF-8. Otherwise `naming` has the encoding.
        naming: The encoding and the separator of the archive.
        flags: The general purpose bits.
        mode: The Unix mode; 0 if the archive has none.
        header_at: The offset of the local header in the file.
        method: The compression method.
        packed_bytes: The size of the data in the archive.
        bytes: The size of the unpacked data, according to the directory.
        crc: The CRC-32 of the unpacked data, according to the directory.
        modified_ns: The time of modification, Unix epoch nanoseconds.
        kind: The kind. `PathParser` sets it.
        data_at: The offset of the data in the file. It is set after the local header was read.
    """

    raw_name: bytes
    encoded_name: bytes
    is_utf8: bool
    naming: Naming
    flags: int
    mode: int
    header_at: int
    method: int
    packed_bytes: int
    bytes: int
    crc: int
    modified_ns: int
    kind: Kind = Kind.FILE
    data_at: int = 0

    @property
    def name(self) -> str:
        """The name, with slashes between folders. It is decoded at each use, because a `str` takes memory."""
        name = self.encoded_name.decode("utf-8" if self.is_utf8 else self.naming.encoding)
        return name if self.naming.has_slash else name.replace("\\", "/")

    @property
    def is_executable(self) -> bool:
        """Whether the archive marks the entry as executable, for any user."""
        return bool(self.mode & 0o111)


def entry_of(info: ZipInfo, naming: Naming) -> Entry:
    """Return an entry. `PathParser` sets its kind later, because that depends on the names of all entries.

    Raises:
        Rejected: The Unicode path of the entry is not UTF-8.
    """
    raw = _raw_name(info)
    unicode_path = _unicode_path(info, raw)
    is_utf8 = unicode_path is not None or bool(info.flag_bits & UTF8_NAME)
    encoded = raw if unicode_path is None else unicode_path
    naming.add(encoded, is_utf8=is_utf8)
    return Entry(
        raw_name=raw,
        encoded_name=encoded,
        is_utf8=is_utf8,
        naming=naming,
        flags=info.flag_bits,
        mode=info.external_attr >> 16,
        header_at=info.header_offset,
        method=info.compress_type,
        packed_bytes=info.compress_size,
        bytes=info.file_size,
        crc=info.CRC,
        modified_ns=_modified_ns(info),
    )


class PathParser:
    """Parses the names of entries, after `Naming` has all names of the archive."""

    def __init__(self) -> None:
        self._folders: dict[str, tuple[bytes, ...]] = {}

    def parse(self, entry: Entry) -> TreePath | None:
        """Return the path of an entry, and set the kind of the entry. The path of the root is None.

        Raises:
            Rejected: The name is not a path inside the tree, or the kind is not a file, folder or link.
        """
        name = entry.name
        _check_characters(name)
        head, _, last = name.rpartition("/")
        is_folder = last in {"", "."}
        parts = self._parts_of(head, name)
        if len(parts) + (not is_folder) > MAX_DEPTH:
            raise refused(refusals.TOO_DEEP, name=name, limit=MAX_DEPTH)
        entry.kind = _kind_of(entry.mode, name, is_folder=is_folder)
        if is_folder:
            return TreePath(parts[:-1], parts[-1]) if parts else None
        return TreePath(parts, _part(last, name))

    def _parts_of(self, head: str, name: str) -> tuple[bytes, ...]:
        """Return the folders of a path. The latest results are cached, so that few are computed twice."""
        parts = self._folders.get(head)
        if parts is None:
            if len(self._folders) >= _MOST_FOLDERS_KEPT:
                self._folders.clear()
            parts = tuple(_part(part, name) for part in head.split("/") if part not in {"", "."})
            self._folders[head] = parts
        return parts


def _can_decode(name: bytes, encoding: str) -> bool:
    try:
        name.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _raw_name(info: ZipInfo) -> bytes:
    """Return the bytes of the name. Without the flag, zipfile has decoded them with cp437, without loss."""
    # Not info.filename: zipfile cuts it at the first NUL.
    name = info.orig_filename
    if name.isascii():  # faster than cp437, which has the same bytes for these characters
        return name.encode()
    return name.encode("utf-8" if info.flag_bits & UTF8_NAME else "cp437")


def _unicode_path(info: ZipInfo, raw: bytes) -> bytes | None:
    """Return the Unicode path of an entry; None if it has none, or has the Unicode path of another name."""
    field = _extra_fields(info.extra).get(_UNICODE_PATH, b"") if info.extra else b""
    if len(field) <= 5 or field[0] != 1 or int.from_bytes(field[1:5], "little") != zlib.crc32(raw):
        return None
    if not _can_decode(field[5:], "utf-8"):
        raise refused(refusals.UNICODE_NAME, name=info.orig_filename)
    return field[5:]


def _extra_fields(extra: bytes) -> dict[int, bytes]:
    """Return the first extra field of each kind (APPNOTE 4.5.1)."""
    fields: dict[int, bytes] = {}
    at = 0
    while at + _FIELD.size <= len(extra):
        kind, length = _FIELD.unpack_from(extra, at)
        at += _FIELD.size
        fields.setdefault(kind, extra[at : at + length])
        at += length
    return fields


def _check_characters(name: str) -> None:
    if not name:
        raise refused(refusals.EMPTY_NAME, name=name)
    if _CONTROL.search(name):
        raise refused(refusals.CONTROL_CHARACTER, name=name)
    if name.startswith("/") or _DRIVE.match(name):
        raise refused(refusals.ABSOLUTE, name=name)
    if "\\" in name:
        raise refused(refusals.BACKSLASH, name=name)
    if len(name.encode()) > MAX_NAME_BYTES:
        raise refused(refusals.NAME_TOO_LONG, name=name, limit=MAX_NAME_BYTES)


def _part(part: str, name: str) -> bytes:
    """Check and encode one part of a path."""
    if part == "..":
        raise refused(refusals.PARENT, name=name)
    encoded = part.encode()
    if len(encoded) > _COMPONENT_BYTES:
        raise refused(refusals.PART_TOO_LONG, name=name, limit=_COMPONENT_BYTES)
    return encoded


def _kind_of(mode: int, name: str, *, is_folder: bool) -> Kind:
    """Return the kind according to the Unix mode, even if the archive says that another system made it."""
    mode = stat.S_IFMT(mode)
    if mode == stat.S_IFLNK:
        if is_folder:
            raise refused(refusals.LINK_TEXT, name=name)
        return Kind.LINK
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise refused(refusals.SPECIAL, name=name)
    if mode == stat.S_IFDIR and not is_folder:
        raise refused(refusals.FOLDER_NAME, name=name)
    return Kind.FOLDER if is_folder else Kind.FILE


def _modified_ns(info: ZipInfo) -> int:
    """Return the time of modification, Unix epoch nanoseconds; 1980-01-01 if it is invalid."""
    if info.extra:
        for ns in _times(_extra_fields(info.extra)):
            if _LEAST_S * _S <= ns < _MOST_S * _S:
                return ns
    return _dos_time_ns(info.date_time)


@lru_cache(maxsize=64)  # most entries of a zip have one of few times
def _dos_time_ns(date_time: tuple[int, int, int, int, int, int]) -> int:
    try:
        return calendar.timegm(date_time) * _S
    except ValueError:
        return _DOS_EPOCH_S * _S


def _times(fields: dict[int, bytes]) -> Iterator[int]:
    """Return the times of the extra fields, Unix epoch nanoseconds, the preferred one first."""
    extended = fields.get(_EXTENDED_TIMESTAMP, b"")
    if len(extended) >= 5 and extended[0] & 1:
        yield int.from_bytes(extended[1:5], "little", signed=True) * _S
    ntfs = fields.get(_NTFS, b"")
    if len(ntfs) >= 16 and ntfs[4:8] == b"\x01\0\x18\0":
        ticks = int.from_bytes(ntfs[8:16], "little")  # 100 ns each
        yield ticks * 100 - _NTFS_EPOCH_S * _S
    unix = fields.get(_UNIX, b"")
    if len(unix) >= 8:
        yield int.from_bytes(unix[4:8], "little", signed=True) * _S
