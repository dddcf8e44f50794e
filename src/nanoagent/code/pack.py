"""A pack: one file that has all files, folders and links of a code tree.

A tree of thousands of small files costs more on a disk than its bytes: each file must be made, linked and
removed. So the code cache keeps a tree as a pack. The supervisor makes the files in a container's /work from
it (src/nanosupervisor/unpack.c, which has the same layout).

::

    data      the contents of files, and the targets of links, one after another
    records   one for each folder, file and link: 32 bytes, `RECORD`
    names     their names in the same order: UTF-8, each with a NUL
    footer    `FOOTER`

Integers are little-endian. Record 0 is the root. A folder comes before its entries, and its entries follow it
directly, so the depth of each record gives the tree. The **base** is the folder that runs see: the root, or
its single top folder (`zip_tree`).

The checksum covers records, names and footer, not the data. A pack that was cut off has no footer at its end.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from nanoagent.model.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAGIC: Final = b"NANOPACK"
VERSION: Final = 1
RECORD: Final = struct.Struct("<QQqIHBB")
"""Offset of the data, its size, time of modification (Unix epoch ns), `leads_to`, depth, kind, executable."""

FOOTER: Final = struct.Struct("<8sIIIIIIQQ")
"""Magic, version, checksum, number of records, size of all names, base, then the fields of `Summary`."""

CHECKED_AT: Final = 16
"""The offset in the footer from which the checksum covers it."""

NOWHERE: Final = 0xFFFF_FFFF
"""`leads_to` of a record that is not a link."""

FILE, FOLDER, LINK = 1, 2, 3

Record: TypeAlias = tuple[int, int, int, int, int, int, int]
"""The fields of `RECORD`."""

_LEADS_TO: Final = struct.Struct("<I")
_LEADS_TO_AT: Final = 24  # in a record

MODE: Final = 0o444
"""The permissions of a complete pack: the user of a container must read it."""

BLOCK_BYTES: Final = 4096
"""A file in memory takes whole pages, and at least one block on a disk."""


class DamagedPack(StorageError):  # noqa: N818 - a state of the file
    """A file is not a complete pack of this version."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The size of a tree.

    Attributes:
        files: The number of its files, without links.
        bytes: The size of all files together.
        memory_bytes: The memory that a copy takes at most: whole pages for each file, folder and link.
    """

    files: int
    bytes: int
    memory_bytes: int


class Index:
    """The index of a new pack: its records and names, after the data. It starts with the root.

    Memory holds an index of up to 100,000 entries, so they are kept as bytes.
    """

    def __init__(self) -> None:
        self._records = bytearray()
        self._names = bytearray()
        self._base = 0
        self._files = self._bytes = self._blocks = 0
        self.add(b"", 0, FOLDER)

    def add(  # noqa: PLR0913 - the fields of a record
        self,
        name: bytes,
        depth: int,
        kind: int,
        at: int = 0,
        size: int = 0,
        modified_ns: int = 0,
        *,
        is_executable: bool = False,
    ) -> int:
        """Add a folder, file or link.

        Args:
            name: Its name.
            depth: Its depth; the entries of the root have 1.
            kind: FILE, FOLDER or LINK.
            at: The offset of its data.
            size: The size of its data.
            modified_ns: Its time of modification, Unix epoch nanoseconds.
            is_executable: Whether users may execute the file.

        Returns:
            The number of the record.
        """
        number = len(self._records) // RECORD.size
        self._records += RECORD.pack(at, size, modified_ns, NOWHERE, depth, kind, is_executable)
        self._names += name
        self._names.append(0)
        self._blocks += 1
        if kind == FILE:
            self._files += 1
            self._bytes += size
            self._blocks += size // BLOCK_BYTES
        return number

    def set_target(self, link: int, leads_to: int) -> None:
        """Note to which record a link leads."""
        _LEADS_TO.pack_into(self._records, link * RECORD.size + _LEADS_TO_AT, leads_to)

    def set_base(self, number: int) -> None:
        """Make a folder the base."""
        self._base = number

    def summary(self) -> Summary:
        """Return the size of the tree."""
        return Summary(self._files, self._bytes, self._blocks * BLOCK_BYTES)

    def parts(self) -> tuple[bytes | bytearray, ...]:
        """Return the parts of a pack that follow its data: records, names and footer."""
        footer = FOOTER.pack(
            MAGIC,
            VERSION,
            0,
            len(self._records) // RECORD.size,
            len(self._names),
            self._base,
            self._files,
            self._bytes,
            self._blocks * BLOCK_BYTES,
        )
        checksum = zlib.crc32(footer[CHECKED_AT:], zlib.crc32(self._names, zlib.crc32(self._records)))
        head = footer[: CHECKED_AT - 4] + checksum.to_bytes(4, "little")
        return self._records, self._names, head + footer[CHECKED_AT:]


class Pack:
    """A pack, of which the index has been read. Blocking.

    Args:
        path: The file.

    Attributes:
        path: The file.
        records: The records of the tree.
        names: The names of the records.
        base: The number of the record that is the base.
        summary: The size of the tree.

    Raises:
        DamagedPack: The file is not a complete pack of this version.
        StorageError: The file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            footer, raw = _read(path)
        except OSError as exc:
            raise StorageError(f"{path}: the pack cannot be read: {exc}") from exc
        at = footer.count * RECORD.size
        self.records: list[Record] = list(RECORD.iter_unpack(memoryview(raw)[:at]))
        self.names = raw[at:].split(b"\0")[:-1]
        self.base = footer.base
        self.summary = footer.summary
        if len(self.names) != footer.count:
            raise DamagedPack(f"{path}: damaged pack")

    @property
    def base_name(self) -> str:
        """The name of the single top folder; empty if the base is the root."""
        return self.names[self.base].decode()

    def below_base(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield number, depth below the base (from 1), kind and name of each record below the base."""
        above = self.records[self.base][4]
        for number in range(self.base + 1, len(self.records)):
            record = self.records[number]
            if record[4] <= above:
                return
            yield number, record[4] - above, record[5], self.names[number]

    def children(self, folder: int) -> Iterator[int]:
        """Yield the numbers of the entries of a folder."""
        depth = self.records[folder][4] + 1
        for number in range(folder + 1, len(self.records)):
            if self.records[number][4] < depth:
                return
            if self.records[number][4] == depth:
                yield number

    def file_in(self, folder: int, name: str) -> int | None:
        """Return the number of a file in a folder. Links to folders and files are followed."""
        folder, encoded = self.target(folder), name.encode()
        for number in self.children(folder) if self.kind(folder) == FOLDER else ():
            if self.names[number] == encoded and self.kind(self.target(number)) == FILE:
                return self.target(number)
        return None

    def kind(self, number: int) -> int:
        """Return the kind of a record."""
        return self.records[number][5]

    def read(self, files: list[int], most_bytes: int) -> Iterator[bytes]:
        """Yield the contents of files, at most so many bytes in total.

        Raises:
            OSError: The disk failed.
        """
        with self.path.open("rb", buffering=0) as pack:
            for number in files:
                if most_bytes <= 0:
                    return
                data = os.pread(
                    pack.fileno(), min(self.records[number][1], most_bytes), self.records[number][0]
                )
                most_bytes -= len(data)
                yield data

    def target(self, number: int) -> int:
        """Return the file or folder to which a link leads; the number itself if it is not a link."""
        return self.records[number][3] if self.kind(number) == LINK else number


def write_file(path: Path, name: str, data: bytes) -> Summary:
    """Write the pack of a tree with one file. Blocking.

    Args:
        path: The pack.
        name: The name of the file.
        data: Its content.

    Raises:
        OSError: The disk failed.
    """
    index = Index()
    index.add(name.encode(), 1, FILE, 0, len(data))
    path.write_bytes(b"".join([data, *index.parts()]))
    path.chmod(MODE)
    return index.summary()


def replace_index(path: Path, index: Index) -> None:
    """Write the index of a pack again. The number of records and the size of names must not change. Blocking.

    Raises:
        OSError: The disk failed.
    """
    parts = index.parts()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(-sum(map(len, parts)), os.SEEK_END)
        file.writelines(parts)
    path.chmod(MODE)


def summary_of(path: Path) -> Summary:
    """Check a pack, except for the data of its files, and return the size of its tree. Blocking.

    Raises:
        DamagedPack: The file is not a complete pack of this version.
        OSError: The file cannot be read.
    """
    return _read(path)[0].summary


@dataclass(frozen=True, slots=True)
class _Footer:
    """The footer of a pack.

    Attributes:
        index_at: The offset of the records.
        checksum: The checksum.
        checked: The bytes of the footer that the checksum covers.
        count: The number of records.
        names_bytes: The size of all names.
        base: The number of the base.
        summary: The size of the tree.
    """

    index_at: int
    checksum: int
    checked: bytes
    count: int
    names_bytes: int
    base: int
    summary: Summary


def _read(path: Path) -> tuple[_Footer, bytes]:
    """Return the footer of a pack and its index, after all checks."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        footer = _footer_of(os.pread(file.fileno(), FOOTER.size, max(0, size - FOOTER.size)), size)
        if footer is not None:
            index = os.pread(file.fileno(), footer.count * RECORD.size + footer.names_bytes, footer.index_at)
            if zlib.crc32(footer.checked, zlib.crc32(index)) == footer.checksum:
                return footer, index
    raise DamagedPack(f"{path}: damaged pack")


def _footer_of(raw: bytes, size: int) -> _Footer | None:
    """Decode the footer of a pack of this size; None if it is none."""
    if len(raw) < FOOTER.size:
        return None
    magic, version, checksum, count, names_bytes, base, *sizes = FOOTER.unpack(raw)
    index_at = size - FOOTER.size - names_bytes - count * RECORD.size
    if (magic, version) != (MAGIC, VERSION) or index_at < 0 or base >= count:
        return None
    return _Footer(index_at, checksum, raw[CHECKED_AT:], count, names_bytes, base, Summary(*sizes))
