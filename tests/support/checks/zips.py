"""Zips for tests: honest ones, and ones whose headers can be false."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

UTF8_NAME = 0x0800
ENCRYPTED = 0x0001


def make_zip(files: Mapping[str, str | bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return an honest zip. A name that ends with / is a folder. Equal arguments give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.external_attr = (0o040755 << 16 | 0x10) if name.endswith("/") else 0o100644 << 16
            archive.writestr(info, content)
    return buffer.getvalue()


@dataclass
class RawEntry:
    """One entry. A field that is None gets its true value.

    Attributes:
        name: The name's bytes, as the directory has them.
        content: The unpacked data.
        mode: The Unix mode, type bits included.
        flags: General purpose bits.
        method: The compression method: 0 stored, 8 deflated, or a false one.
        data: The packed data.
        file_size: The unpacked size in the directory.
        packed_size: The packed size in the directory.
        crc: The CRC-32 in the directory.
        offset: The offset of the local header in the directory.
        local_name: The name's bytes, as the local header has them.
        dos_time: MS-DOS date and time; 0 is no valid date.
        is_hidden: Whether the local header and the data are left out.
        system: The system that made it (APPNOTE 4.4.2): 3 is Unix, 0 is MS-DOS.
        needs: The version needed to extract it, times ten.
        disk: The disk number in the directory.
        dos_attributes: The lower half of the external attributes.
        extra: Extra fields, as the directory has them.
        comment: Its comment.
        local_extra: Extra fields, as the local header has them.
        local_flags: The flags, as the local header has them.
        local_crc: The CRC-32, as the local header has it. The two sizes follow the same rule.
        trailer: Bytes after the data, such as a data descriptor.
    """

    name: bytes
    content: bytes = b"x"
    mode: int = stat.S_IFREG | 0o644
    flags: int = 0
    method: int = 0
    data: bytes | None = None
    file_size: int | None = None
    packed_size: int | None = None
    crc: int | None = None
    offset: int | None = None
    local_name: bytes | None = None
    dos_time: int = 0x5A21_0000
    is_hidden: bool = False
    system: int = 3
    needs: int = 20
    disk: int = 0
    dos_attributes: int = 0
    extra: bytes = b""
    comment: bytes = b""
    local_extra: bytes = b""
    local_flags: int | None = None
    local_crc: int | None = None
    local_file_size: int | None = None
    local_packed_size: int | None = None
    trailer: bytes = b""


@dataclass
class End:
    """The end record (APPNOTE 4.3.16). A field that is None gets its true value."""

    entries: int | None = None
    size: int | None = None
    offset: int | None = None
    disk: int = 0
    comment: bytes = b""
    zip64: bytes = b""


def extra_field(kind: int, data: bytes, *, claimed: int | None = None) -> bytes:
    """Return one extra field (APPNOTE 4.5.1). `claimed` is its length field, true by default."""
    return struct.pack("<HH", kind, len(data) if claimed is None else claimed) + data


def zip64_end(entries: int, size: int, offset: int, *, position: int, disks: int = 1) -> bytes:
    """Return the zip64 record and its locator (APPNOTE 4.3.14, 4.3.15), for an offset in the file."""
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, size, offset)
    return record + struct.pack("<4sIQI", b"PK\x06\x07", 0, position, disks)


def descriptor(content: bytes, packed_size: int) -> bytes:
    """Return a data descriptor, which follows data of unknown size (APPNOTE 4.3.9)."""
    return struct.pack("<4s3I", b"PK\x07\x08", zlib.crc32(content), packed_size, len(content))


def deflated(content: bytes) -> bytes:
    """Return a raw deflate stream."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def raw_zip(*entries: RawEntry, end: End | None = None) -> bytes:
    """Return a zip with exactly these headers (APPNOTE.TXT 4.3)."""
    end = end or End()
    body, directory = parts(*entries)
    count = _or(end.entries, min(len(entries), 0xFFFF))
    size, offset = _or(end.size, len(directory)), _or(end.offset, len(body))
    record = struct.pack(
        "<4s4H2IH", b"PK\x05\x06", end.disk, end.disk, count, count, size, offset, len(end.comment)
    )
    return body + directory + end.zip64 + record + end.comment


def parts(*entries: RawEntry) -> tuple[bytes, bytes]:
    """Return the entries' headers and data, and their directory."""
    locals_, centrals, position = [], [], 0
    for entry in entries:
        local, central = _headers(entry, position)
        locals_.append(local)
        centrals.append(central)
        position += len(local)
    return b"".join(locals_), b"".join(centrals)


def symlink(name: bytes, target: bytes) -> RawEntry:
    return RawEntry(name, target, mode=stat.S_IFLNK | 0o777)


def overlapping_bomb(copies: int, content: bytes) -> bytes:
    """Return a zip bomb: many entries share one piece of data (D. Fifield, A better zip bomb, 2019)."""
    first = RawEntry(b"f", content, method=8)
    first.data, first.crc = _packed(first), zlib.crc32(content)  # once for all
    return raw_zip(first, *[replace(first, offset=0, is_hidden=True)] * (copies - 1))


def quoted_bomb(files: int, content: bytes) -> bytes:
    """Return a zip bomb in which each entry quotes the header of the next one, in a stored block of deflate.

    So the data overlaps, although each entry has its own header (D. Fifield, A better zip bomb, 2019).
    """
    unpacked, packed = content, deflated(content)
    made: list[tuple[RawEntry, int]] = []
    chain = b""  # all bytes from an entry's header to the end of the data
    for number in reversed(range(files)):
        entry = RawEntry(b"%05d" % number, unpacked, method=zipfile.ZIP_DEFLATED, data=packed)
        chain = _headers(entry, 0)[0]
        made.append((entry, len(chain)))
        header = chain[: -len(packed)]
        packed = struct.pack("<BHH", 0, len(header), len(header) ^ 0xFFFF) + chain
        unpacked = header + unpacked
    entries = [replace(entry, offset=len(chain) - length, is_hidden=True) for entry, length in made]
    directory = raw_zip(*reversed(entries), end=End(offset=len(chain)))
    return chain + directory


def _headers(entry: RawEntry, position: int) -> tuple[bytes, bytes]:
    data = entry.data if entry.data is not None else _packed(entry)
    crc = _or(entry.crc, zlib.crc32(entry.content))
    size = _or(entry.file_size, len(entry.content))
    packed_size = _or(entry.packed_size, len(data))
    local_name = entry.name if entry.local_name is None else entry.local_name
    local = struct.pack(
        "<4s3H4I2H",
        b"PK\x03\x04",
        entry.needs,
        _or(entry.local_flags, entry.flags),
        entry.method,
        entry.dos_time,
        _or(entry.local_crc, crc),
        _or(entry.local_packed_size, packed_size),
        _or(entry.local_file_size, size),
        len(local_name),
        len(entry.local_extra),
    )
    central = struct.pack(
        "<4s4H4I5H2I",
        b"PK\x01\x02",
        entry.system << 8 | 20,
        entry.needs,
        entry.flags,
        entry.method,
        entry.dos_time,
        crc,
        packed_size,
        size,
        len(entry.name),
        len(entry.extra),
        len(entry.comment),
        entry.disk,
        0,
        entry.mode << 16 | entry.dos_attributes,
        _or(entry.offset, position),
    )
    local += local_name + entry.local_extra + data + entry.trailer
    return b"" if entry.is_hidden else local, central + entry.name + entry.extra + entry.comment


def _or(claimed: int | None, true: int) -> int:
    return true if claimed is None else claimed


def _packed(entry: RawEntry) -> bytes:
    return deflated(entry.content) if entry.method == zipfile.ZIP_DEFLATED else entry.content
