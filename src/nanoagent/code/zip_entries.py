"""One entry of a zip: its place in the tree, its kind, its time.

Names follow APPNOTE.TXT (PKWARE, .ZIP File Format Specification, 4.4.17) and what common tools make of it:

* The Info-ZIP Unicode path (APPNOTE 4.6.9) replaces a name whose CRC-32 it carries.
* Other names without the UTF-8 flag are UTF-8 if all of them decode, else cp949 (Korean Windows), else
  cp437.
* Where no name has a slash, a backslash separates folders (.NET before 4.6.1, PowerShell 5), as in 7-Zip.
* `./a` and `a//b` are `a` and `a/b`. `..`, absolute names and drives are refused.

A time is UTC where an extra field has one (extended timestamp, NTFS, Info-ZIP's first Unix field). The DOS
time has no time zone. It is read as UTC, as `unzip` does in a container: the same zip gives the same times
everywhere.
"""

from __future__ import annotations

import calendar
import re
import stat
import struct
import zlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from nanoagent.code import refusals
from nanoagent.code.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from zipfile import ZipInfo

MAX_NAME_BYTES: Final = 1024
MAX_DEPTH: Final = 64  # removal of a tree keeps one descriptor and one stack frame open per level
_COMPONENT_BYTES: Final = 255  # NAME_MAX, limits.h
UTF8_NAME: Final = 0x0800  # general purpose bit, APPNOTE 4.4.4

_MOST_FOLDERS_KEPT: Final = 64  # 5 KiB each with the longest names

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_FIELD: Final = struct.Struct("<HH")
_UNICODE_PATH: Final = 0x7075
_EXTENDED_TIMESTAMP: Final = 0x5455
_NTFS: Final = 0x000A
_UNIX: Final = 0x5855

_S: Final = 1_000_000_000  # in nanoseconds
_NTFS_EPOCH_S: Final = 11_644_473_600  # 1601 to 1970
_LEAST_S, _MOST_S = -(1 << 31), 1 << 32  # what fits into 32 bits, with a sign or without one: 1901 to 2106
_DOS_EPOCH_S: Final = 315_532_800  # 1980-01-01, for times that no calendar has


class Kind(Enum):
    """The kind of an entry."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"


class Place(NamedTuple):
    """A path inside the tree, in UTF-8: as text, one wide character would make a name four times as large."""

    folder: tuple[bytes, ...]
    name: bytes


class Naming:
    """What all names of an archive decide together: the encoding of some, and what separates folders."""

    def __init__(self) -> None:
        self._encodings = ["utf-8", "cp949", "cp437"]
        self.has_slash = False

    @property
    def encoding(self) -> str:
        """The encoding of the names that do not state one; final once all have been seen."""
        return self._encodings[0]

    def see(self, name: bytes, *, is_utf8: bool) -> None:
        """Take one more name into account."""
        self.has_slash = self.has_slash or b"/" in name  # no encoding here has it as a part of a character
        while not is_utf8 and not _can_decode(name, self._encodings[0]):
            del self._encodings[0]


@dataclass(slots=True, eq=False)
class Entry:
    """One file, folder or link of an archive. A hundred thousand are held at once.

    Attributes:
        raw: The name's bytes in the directory, which its local header has to repeat.
        written: The bytes that the name is decoded from: those, or the Unicode path.
        is_utf8: Whether these are known to be UTF-8.
        naming: How else they are read.
        flags: General purpose bits.
        mode: The Unix mode, 0 where there is none.
        header_at: Where its local header is in the file.
        method: Compression method.
        packed_bytes: Size of its data in the archive.
        bytes: Size of its data once unpacked, as the directory says.
        crc: CRC-32 of that data, likewise.
        modified_ns: When it was last modified, Unix epoch nanoseconds.
        kind: Its kind, once its place is known.
        data_at: Where its data begins, once its local header has been read.
    """

    raw: bytes
    written: bytes
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
        """The name as the archive has it, for messages too; decoded each time, because it can be large."""
        name = self.written.decode("utf-8" if self.is_utf8 else self.naming.encoding)
        return name if self.naming.has_slash else name.replace("\\", "/")

    @property
    def is_executable(self) -> bool:
        """Whether anybody may execute it."""
        return bool(self.mode & 0o111)


def entry_of(info: ZipInfo, naming: Naming) -> Entry:
    """An entry without its place, which depends on the names of all others.

    Raises:
        Rejected: Its Unicode path is not UTF-8.
    """
    raw = _raw_name(info)
    unicode_path = _unicode_path(info, raw)
    is_utf8 = unicode_path is not None or bool(info.flag_bits & UTF8_NAME)
    written = raw if unicode_path is None else unicode_path
    naming.see(written, is_utf8=is_utf8)
    return Entry(
        raw=raw,
        written=written,
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


class Places:
    """Finds the places of entries, once all names have been seen."""

    def __init__(self) -> None:
        self._folders: dict[str, tuple[bytes, ...]] = {}

    def find(self, entry: Entry) -> Place | None:
        """The place that the name means, None being the tree itself; the entry's kind is set as well.

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
            return Place(parts[:-1], parts[-1]) if parts else None
        return Place(parts, _part(last, name))

    def _parts_of(self, head: str, name: str) -> tuple[bytes, ...]:
        """The folders in a path. Those of late names are kept: each is split and checked once."""
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
    """The name's bytes. cp437, which zipfile decodes with, maps all 256 of them, so nothing is lost."""
    # Not info.filename: zipfile has cut that at the first NUL.
    return info.orig_filename.encode("utf-8" if info.flag_bits & UTF8_NAME else "cp437")


def _unicode_path(info: ZipInfo, raw: bytes) -> bytes | None:
    field = _extra_fields(info.extra).get(_UNICODE_PATH, b"") if info.extra else b""
    if len(field) <= 5 or field[0] != 1 or int.from_bytes(field[1:5], "little") != zlib.crc32(raw):
        return None
    if not _can_decode(field[5:], "utf-8"):
        raise refused(refusals.UNICODE_NAME, name=info.orig_filename)
    return field[5:]


def _extra_fields(extra: bytes) -> dict[int, bytes]:
    """The first field of each kind (APPNOTE 4.5.1)."""
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
    """One part of a path, checked."""
    if part == "..":
        raise refused(refusals.PARENT, name=name)
    encoded = part.encode()
    if len(encoded) > _COMPONENT_BYTES:
        raise refused(refusals.PART_TOO_LONG, name=name, limit=_COMPONENT_BYTES)
    return encoded


def _kind_of(mode: int, name: str, *, is_folder: bool) -> Kind:
    """The entry's kind, by its Unix mode, even if the archive says that it is from another system."""
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
    """When the entry was last modified, Unix epoch nanoseconds; a time that cannot be is 1980-01-01."""
    if info.extra:
        for ns in _times(_extra_fields(info.extra)):
            if _LEAST_S * _S <= ns < _MOST_S * _S:
                return ns
    try:
        return calendar.timegm(info.date_time) * _S
    except ValueError:
        return _DOS_EPOCH_S * _S


def _times(fields: dict[int, bytes]) -> Iterator[int]:
    extended = fields.get(_EXTENDED_TIMESTAMP, b"")
    if len(extended) >= 5 and extended[0] & 1:
        yield int.from_bytes(extended[1:5], "little", signed=True) * _S
    ntfs = fields.get(_NTFS, b"")
    if len(ntfs) >= 16 and ntfs[4:8] == b"\x01\0\x18\0":
        ticks = int.from_bytes(ntfs[8:16], "little")  # of 100 ns
        yield ticks * 100 - _NTFS_EPOCH_S * _S
    unix = fields.get(_UNIX, b"")
    if len(unix) >= 8:
        yield int.from_bytes(unix[4:8], "little", signed=True) * _S
