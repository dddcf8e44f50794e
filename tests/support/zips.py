"""Zips for tests: honest ones, and ones put together header by header so that each of them can lie."""

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
    """An honest zip. A name that ends with / is a folder. Equal arguments give equal bytes."""
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
    """One entry; what is None is filled in truthfully.

    Attributes:
        name: The name's bytes, as the directory has them.
        content: What the data unpacks to.
        mode: The Unix mode, type bits included.
        flags: General purpose bits.
        method: Compression method: 0 stored, 8 deflated, or a lie.
        data: The packed data.
        file_size: What the directory claims as unpacked size.
        packed_size: What it claims as packed size.
        crc: What it claims as CRC-32.
        offset: Where it claims that the local header is.
        local_name: The name's bytes, as the local header has them.
        dos_time: MS-DOS date and time, 0 being no date at all.
        is_hidden: Leave the local header and data out.
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


def raw_zip(*entries: RawEntry) -> bytes:
    """A zip of just these headers (APPNOTE.TXT 4.3)."""
    locals_, centrals, position = [], [], 0
    for entry in entries:
        local, central = _headers(entry, position)
        locals_.append(local)
        centrals.append(central)
        position += len(local)
    body, directory = b"".join(locals_), b"".join(centrals)
    end = struct.pack(
        "<4s4H2IH", b"PK\x05\x06", 0, 0, len(entries), len(entries), len(directory), len(body), 0
    )
    return body + directory + end


def symlink(name: bytes, target: bytes) -> RawEntry:
    return RawEntry(name, target, mode=stat.S_IFLNK | 0o777)


def overlapping_bomb(copies: int, content: bytes) -> bytes:
    """Many entries that share one piece of data (D. Fifield, A better zip bomb, 2019)."""
    first = RawEntry(b"f", content, method=8)
    first.data, first.crc = _packed(first), zlib.crc32(content)  # once for all
    return raw_zip(first, *[replace(first, offset=0, is_hidden=True)] * (copies - 1))


def _headers(entry: RawEntry, position: int) -> tuple[bytes, bytes]:
    data = entry.data if entry.data is not None else _packed(entry)
    crc = zlib.crc32(entry.content) if entry.crc is None else entry.crc
    size = len(entry.content) if entry.file_size is None else entry.file_size
    packed_size = len(data) if entry.packed_size is None else entry.packed_size
    offset = position if entry.offset is None else entry.offset
    local_name = entry.name if entry.local_name is None else entry.local_name
    common = struct.pack("<HHI3I", entry.flags, entry.method, entry.dos_time, crc, packed_size, size)
    local = struct.pack("<4sH", b"PK\x03\x04", 20) + common + struct.pack("<HH", len(local_name), 0)
    central = struct.pack("<4sHH", b"PK\x01\x02", 3 << 8 | 20, 20) + common
    central += struct.pack("<5HII", len(entry.name), 0, 0, 0, 0, entry.mode << 16, offset) + entry.name
    return b"" if entry.is_hidden else local + local_name + data, central


def _packed(entry: RawEntry) -> bytes:
    if entry.method != zipfile.ZIP_DEFLATED:
        return entry.content
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(entry.content) + packer.flush()
