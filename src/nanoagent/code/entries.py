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
    from collections.abc import Iterator, Sequence
    from zipfile import ZipInfo

MAX_NAME_BYTES: Final = 1024
MAX_DEPTH: Final = 64  # removal of a tree keeps one descriptor and one stack frame open per level
_COMPONENT_BYTES: Final = 255  # NAME_MAX, limits.h
UTF8_NAME: Final = 0x0800  # general purpose bit, APPNOTE 4.4.4

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
    """Where an entry belongs in the tree; the folder's parts are shared by its entries."""

    folder: tuple[str, ...]
    name: str


@dataclass(slots=True)
class Entry:
    """An entry as the directory has it.

    Attributes:
        name: Its name, as an author knows it.
        raw: The name's bytes, as the header has them.
        place: Where it belongs; None is the tree itself.
        kind: Its kind.
        header_at: Where its local header begins.
        method: How its data is compressed.
        packed_bytes: Size of the data.
        bytes: Size of what that unpacks to.
        crc: Its CRC-32.
        is_executable: Whether any executable bit is set.
        modified_ns: When it was last modified, Unix epoch nanoseconds.
        data_at: Where its data begins, once its local header has been read.
        target: The target of a link, once its data has been read.
        is_replaced: An equal entry for the same place comes later.
    """

    name: str
    raw: bytes
    place: Place | None
    kind: Kind
    header_at: int
    method: int
    packed_bytes: int
    bytes: int
    crc: int
    is_executable: bool
    modified_ns: int
    data_at: int = 0
    target: str = ""
    is_replaced: bool = False


def entries_of(infos: Sequence[ZipInfo]) -> Iterator[Entry]:
    """The entries, in the archive's order.

    Raises:
        Rejected: One has a name that is not a path inside the tree, or is neither file nor folder nor link.
    """
    folders: dict[str, tuple[str, ...]] = {"": ()}
    for info, (raw, name) in zip(infos, _names_of(infos), strict=True):
        place, is_folder = _place_of(name, folders)
        yield Entry(
            name=name,
            raw=raw,
            place=place,
            kind=_kind_of(info, name, is_folder=is_folder),
            header_at=info.header_offset,
            method=info.compress_type,
            packed_bytes=info.compress_size,
            bytes=info.file_size,
            crc=info.CRC,
            is_executable=bool(info.external_attr >> 16 & 0o111),
            modified_ns=_modified_ns(info),
        )


def _names_of(infos: Sequence[ZipInfo]) -> Iterator[tuple[bytes, str]]:
    """The names' bytes, and the names."""
    raw = [_raw_name(info) for info in infos]
    known = [
        _unicode_path(info, name) or (name.decode() if info.flag_bits & UTF8_NAME else None)
        for info, name in zip(infos, raw, strict=True)
    ]
    encoding = _encoding_of(b"\0".join(name for name, text in zip(raw, known, strict=True) if text is None))
    names = [name.decode(encoding) if text is None else text for name, text in zip(raw, known, strict=True)]
    if not any("/" in name for name in names):
        names = [name.replace("\\", "/") for name in names]
    return zip(raw, names, strict=True)


def _raw_name(info: ZipInfo) -> bytes:
    """The name's bytes. cp437, which zipfile decodes with, maps all 256 of them, so nothing is lost."""
    # Not info.filename: zipfile has cut that at the first NUL.
    return info.orig_filename.encode("utf-8" if info.flag_bits & UTF8_NAME else "cp437")


def _encoding_of(legacy: bytes) -> str:
    """The encoding of the names that do not state one."""
    for encoding in ("utf-8", "cp949"):
        try:
            legacy.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return "cp437"


def _unicode_path(info: ZipInfo, raw: bytes) -> str | None:
    field = _extra_fields(info.extra).get(_UNICODE_PATH, b"") if info.extra else b""
    if len(field) <= 5 or field[0] != 1 or int.from_bytes(field[1:5], "little") != zlib.crc32(raw):
        return None
    try:
        return field[5:].decode()
    except UnicodeDecodeError as exc:
        raise refused(refusals.UNICODE_NAME, name=info.orig_filename) from exc


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


def _place_of(name: str, folders: dict[str, tuple[str, ...]]) -> tuple[Place | None, bool]:
    """The place that a name means, None being the tree itself; and whether the name is a folder's.

    Args:
        name: The name.
        folders: Folders that were split before: each is checked and kept once.
    """
    if not name:
        raise refused(refusals.EMPTY_NAME, name=name)
    _check_characters(name)
    head, _, last = name.rpartition("/")
    is_folder = last in {"", "."}
    parts = folders.get(head)
    if parts is None:
        parts = folders[head] = tuple(part for part in head.split("/") if part not in {"", "."})
        for part in parts:
            _check_part(part, name)
    if len(parts) + (not is_folder) > MAX_DEPTH:
        raise refused(refusals.TOO_DEEP, name=name, limit=MAX_DEPTH)
    if is_folder:
        return (Place(parts[:-1], parts[-1]) if parts else None), True
    _check_part(last, name)
    return Place(parts, last), False


def _check_characters(name: str) -> None:
    if _CONTROL.search(name):
        raise refused(refusals.CONTROL_CHARACTER, name=name)
    if name.startswith("/") or _DRIVE.match(name):
        raise refused(refusals.ABSOLUTE, name=name)
    if "\\" in name:
        raise refused(refusals.BACKSLASH, name=name)
    if len(name.encode()) > MAX_NAME_BYTES:
        raise refused(refusals.NAME_TOO_LONG, name=name, limit=MAX_NAME_BYTES)


def _check_part(part: str, name: str) -> None:
    if part == "..":
        raise refused(refusals.PARENT, name=name)
    if len(part.encode()) > _COMPONENT_BYTES:
        raise refused(refusals.PART_TOO_LONG, name=name, limit=_COMPONENT_BYTES)


def _kind_of(info: ZipInfo, name: str, *, is_folder: bool) -> Kind:
    """The entry's kind, by its Unix mode, even if the archive says that it is from another system."""
    mode = stat.S_IFMT(info.external_attr >> 16)
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
