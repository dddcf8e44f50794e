"""Reads the headers of libraries and programs: for which platform were they built?

The files are hostile input. Every offset is checked, and little is read: the header, the program headers, the
dynamic section and its strings. Sources: elf(5), `<mach-o/loader.h>`, and Microsoft's description of PE.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

from nanoagent.languages.explain.facts import NativeFile, Platform

if TYPE_CHECKING:
    from collections.abc import Callable

    ReadAt = Callable[[int, int], bytes]  # size and offset in the file; fewer bytes at its end

HEADER_BYTES: Final = 64
_MACHINES: Final = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_MACH_O: Final = frozenset(
    bytes.fromhex(magic) for magic in ("cffaedfe", "cefaedfe", "feedfacf", "feedface", "cafebabe")
)
_ELF64: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_DYNAMIC: Final = struct.Struct("<qQ")
_LOAD, _DYNAMIC_SEGMENT = 1, 2
_STRING_TABLE, _STRING_BYTES = 5, 10
_CLASS_64, _LITTLE_ENDIAN = 2, 1
_MOST_SEGMENTS: Final = 64
_MOST_DYNAMIC: Final = 512
_MOST_STRING_BYTES: Final = 1 << 20
_GLIBC: Final = re.compile(rb"\0GLIBC_(\d{1,3})\.(\d{1,3})(?:\.\d{1,3})?(?=\0)")


def native_file(read: ReadAt) -> NativeFile | None:
    """Return the platform of a file with machine code; None for another file.

    Args:
        read: Reads the file.
    """
    head = read(HEADER_BYTES, 0)
    if head[:4] in _MACH_O:
        return NativeFile(Platform.MACOS)
    if head[:2] == b"MZ":
        return _windows_file(head, read)
    if head[:4] != b"\x7fELF" or len(head) < HEADER_BYTES:
        return None
    machine = _MACHINES.get(int.from_bytes(head[18:20], "little"), "")
    if head[4] != _CLASS_64 or head[5] != _LITTLE_ENDIAN:
        return NativeFile(Platform.LINUX, machine)
    names = _names(head, read)
    versions = [(int(major), int(minor)) for major, minor in _GLIBC.findall(names)]
    return NativeFile(Platform.LINUX, machine, max(versions, default=None), b"\0libc.musl-" in names)


def _windows_file(head: bytes, read: ReadAt) -> NativeFile | None:
    """Return the file if the old header of DOS points to a header of Windows."""
    at = int.from_bytes(head[60:64], "little")
    return NativeFile(Platform.WINDOWS) if read(4, at) == b"PE\0\0" else None


def _names(head: bytes, read: ReadAt) -> bytes:
    """Return the strings of the dynamic section: names of libraries, symbols and versions."""
    *_, at, _, _, _, size, count, _, _, _ = _ELF64.unpack(head)
    if size != _SEGMENT.size or count > _MOST_SEGMENTS:
        return b""
    table = read(size * count, at)
    segments = list(_SEGMENT.iter_unpack(table[: len(table) // size * size]))
    dynamic = next((segment for segment in segments if segment[0] == _DYNAMIC_SEGMENT), None)
    if dynamic is None:
        return b""
    entries = read(min(dynamic[5], _MOST_DYNAMIC * _DYNAMIC.size), dynamic[2])
    values = dict(_DYNAMIC.iter_unpack(entries[: len(entries) // _DYNAMIC.size * _DYNAMIC.size]))
    address, length = values.get(_STRING_TABLE), values.get(_STRING_BYTES, 0)
    for kind, _, offset, virtual, _, in_file, *_ in segments:
        if kind == _LOAD and address is not None and virtual <= address < virtual + in_file:
            return read(min(length, _MOST_STRING_BYTES), offset + address - virtual)
    return b""
