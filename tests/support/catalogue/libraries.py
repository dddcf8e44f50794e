"""Shared libraries for other platforms: the smallest files that look like them."""

from __future__ import annotations

import struct
from typing import Final

X86_64: Final = 62
ARM64: Final = 183
MACH_O: Final = bytes.fromhex("cffaedfe0c000001000000000600000000000000") + bytes(64)
"""The header of a library of macOS."""

PE: Final = b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0" + bytes(64)
"""The header of a library of Windows."""

GNU_STACK: Final = 0x6474E551
_BASE: Final = 0x1000
_DYNAMIC: Final = struct.Struct("<qQ")
NEEDED, HASH, STRTAB, SYMTAB, STRSZ, SYMENT, VERNEED, VERNEEDNUM, VERSYM = (
    *(1, 4, 5, 6, 10, 11),
    *(0x6FFFFFFE, 0x6FFFFFFF, 0x6FFFFFF0),
)


def elf(machine: int = X86_64, needed: str = "", version: str = "") -> bytes:
    """Return a shared library of Linux.

    Args:
        machine: The architecture, `e_machine` of elf(5).
        needed: A library that it needs.
        version: A version of that library that it needs, such as `GLIBC_2.99`.
    """
    names = b"\0" + needed.encode() + b"\0" + version.encode() + b"\0"
    names += bytes(-len(names) % 8)
    at_names = 64 + 3 * 56
    at_symbols = at_names + len(names)
    at_hash = at_symbols + 24
    at_versions = at_hash + 24
    at_needed = at_versions + 8
    at_dynamic = at_needed + 32
    entries = [(HASH, _BASE + at_hash), (STRTAB, _BASE + at_names), (SYMTAB, _BASE + at_symbols)]
    entries += [(STRSZ, len(names)), (SYMENT, 24)]
    if needed:
        entries.append((NEEDED, 1))
    if version:
        entries += [(VERNEED, _BASE + at_needed), (VERNEEDNUM, 1), (VERSYM, _BASE + at_versions)]
    dynamic = b"".join(_DYNAMIC.pack(*entry) for entry in [*entries, (0, 0)])
    end = at_dynamic + len(dynamic)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 3, machine, 1, 0, 64, 0, 0, 64, 56, 3, 64, 0, 0),
    )
    segments = struct.pack("<IIQQQQQQ", 1, 7, 0, _BASE, _BASE, end, end, 0x1000)
    segments += struct.pack(
        "<IIQQQQQQ", 2, 6, at_dynamic, _BASE + at_dynamic, _BASE + at_dynamic, len(dynamic), len(dynamic), 8
    )
    segments += struct.pack(
        "<IIQQQQQQ", GNU_STACK, 6, *[0] * 5, 16
    )  # without it the stack must be executable
    versions = struct.pack("<HHIII", 1, 1, 1, 16, 0)
    versions += struct.pack("<IHHII", _elf_hash(version), 0, 2, 2 + len(needed), 0)
    tables = names + bytes(24) + struct.pack("<IIIIII", 1, 1, 0, 0, 0, 0) + bytes(8) + versions
    return header + segments + tables + dynamic


def _elf_hash(name: str) -> int:
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        high = value & 0xF000_0000
        value = (value ^ (high >> 24)) & ~high & 0xFFFF_FFFF
    return value
