"""Checks and unpacks untrusted code zips.

All entries are checked before the first byte is written. The unpacked bytes are counted while they are
written, because a header may state a wrong size. An archive is unpacked whole or refused whole, and the
refusal names the rule. If an entry were silently skipped or renamed, the function would fail with an error
that its author cannot explain.

The zip's central directory decides what the archive contains (PKWARE, .ZIP File Format Specification,
APPNOTE.TXT, 4.3.12). The local header of each entry must have the same name and compression method. In the
modules for zips, "the directory" always means this central directory.

`zipfile` reads the directory, within limits that are set here. `unpacking` reads the data, because `zipfile`
takes several times as long for many small files, and expands bzip2 and LZMA data without a limit on memory.
Only stored and deflated entries are supported.

The limit on the size of the directory also limits the memory: names are kept once, as bytes. Paths and link
targets are computed when they are needed.

Read in this order: `extract`, `zip_entries` (names, kinds, times), `zip_tree` (paths and links), `unpacking`
(files).
"""

from __future__ import annotations

import os
import struct
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from nanoagent.code import refusals, unpacking, zip_tree
from nanoagent.code.refusals import refused
from nanoagent.code.zip_entries import MAX_NAME_BYTES, Kind, Naming, PathParser, entry_of
from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from pathlib import Path
    from zipfile import ZipInfo

    from nanoagent.code.zip_entries import Entry

# The limit of the extra fields of one entry. The time of zipfile grows with the square of their size: 13 s
# for an archive of 46 MB. All known fields together take less than 2 KiB, even with the longest Unicode path.
_EXTRA_BYTES: Final = 4096
# zipfile reads the whole directory at once. A common entry takes 100 to 250 bytes of it.
_DIRECTORY_BYTES: Final = 16 * MIB
_DIRECTORY_ENTRY_BYTES: Final = 512

# General purpose bits, APPNOTE 4.4.4.
_ENCRYPTED: Final = 0x0001 | 0x0040 | 0x2000
_PATCH: Final = 0x0020

_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")  # APPNOTE 4.3.7
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# The exceptions of `zipfile` for a file that is not an archive. RuntimeError includes NotImplementedError.
_DAMAGE: Final = (zipfile.BadZipFile, struct.error, EOFError, ValueError, RuntimeError)


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """The limits of an archive.

    Attributes:
        zip_bytes: Size of the archive.
        unpacked_bytes: Size of all its files together, unpacked.
        file_bytes: Size of one file, unpacked.
        entries: Number of files, links and folders. A folder also counts if it has no entry, and only occurs
            in the path of another entry.
    """

    zip_bytes: int
    unpacked_bytes: int
    file_bytes: int
    entries: int


@dataclass(frozen=True, slots=True)
class TreeInfo:
    """The size of an unpacked tree.

    Attributes:
        files: The number of files, without links.
        bytes: The size of all files together.
    """

    files: int
    bytes: int


def extract(zip_path: Path, into: Path, limits: ArchiveLimits, *, threads: int | None = None) -> TreeInfo:
    """Unpack an archive into a pack, or refuse it.

    Files and links keep their time of modification, and files keep whether they are executable. Other bits of
    their modes, and owners, are not kept. Blocking.

    Args:
        zip_path: The archive.
        into: The pack, which does not exist. After an error it may be incomplete; the caller removes it.
        limits: The limits of the archive.
        threads: The number of threads that write files; None for the fastest number. It does not change the
            result.

    Returns:
        The number of files and their real size.

    Raises:
        Rejected: INVALID_CODE; the message names the rule, and perhaps the entry.
        OSError: The disk failed.
    """
    with zip_path.open("rb") as file:
        made = unpacking.write(_checked_tree(file, limits), file, into, threads)
        return TreeInfo(files=made.files, bytes=made.bytes)


def check(file: BinaryIO, limits: ArchiveLimits) -> tuple[TreeInfo, zip_tree.Tree]:
    """Make the checks that `extract` makes before it writes files. The data of files is not read.

    Args:
        file: The archive, open for reading.
        limits: The limits of the archive.

    Returns:
        The size according to the directory, and the tree.

    Raises:
        Rejected: As `extract`.
        OSError: The disk failed.
    """
    tree = _checked_tree(file, limits)
    sizes = [node.entry.bytes for node in tree.nodes if node.kind is Kind.FILE and node.entry is not None]
    return TreeInfo(files=len(sizes), bytes=sum(sizes)), tree


def _checked_tree(file: BinaryIO, limits: ArchiveLimits) -> zip_tree.Tree:
    """Check all entries, and return the tree to write."""
    size = file.seek(0, os.SEEK_END)
    if size > limits.zip_bytes:
        raise refused(refusals.ZIP_TOO_LARGE, limit_mb=limits.zip_bytes / MIB)
    entries, directory_at = _directory(file, limits)
    tree = _tree_of(entries, limits)
    _check_layout(entries, file, size, directory_at)
    links = zip_tree.Links(tree.base, lambda link: unpacking.link_target(link, file))
    for node in tree.links:
        links.check(node)
    return tree


class _Directory(list[zipfile.ZipInfo]):
    """Replaces the entry list of `zipfile`: keeps an `Entry` for each `ZipInfo`. The list itself stays empty.

    A `ZipInfo` takes several times as much memory: it holds the name as text, and the extra fields. At the
    first entry that exceeds a limit, the archive is refused and the rest is not read.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._naming = Naming()
        self.entries: list[Entry] = []

    def append(self, info: ZipInfo) -> None:
        name = info.orig_filename
        if len(self.entries) >= self._limit:
            raise refused(refusals.TOO_MANY_ENTRIES, limit=self._limit)
        if len(info.extra) > _EXTRA_BYTES:
            raise refused(refusals.EXTRA_TOO_LONG, name=name, limit=_EXTRA_BYTES)
        # A name can have 64 KiB. This check refuses long names before they are kept. It counts characters; a
        # name has at least as many bytes. `PathParser` counts the bytes.
        if len(name) > MAX_NAME_BYTES:
            raise refused(refusals.NAME_TOO_LONG, name=name, limit=MAX_NAME_BYTES)
        self.entries.append(entry_of(info, self._naming))


class _EmptyIndex(dict[str, zipfile.ZipInfo]):
    """Replaces the name index of `zipfile`, and stays empty."""

    def __setitem__(self, _name: str, _info: ZipInfo) -> None: ...


class _BoundedFile:
    """A file with a limit on the size of one read, because `zipfile` reads the directory in one read.

    Args:
        file: The file.
        max_read_bytes: The limit.
    """

    def __init__(self, file: BinaryIO, max_read_bytes: int) -> None:
        self._file = file
        self._max_read_bytes = max_read_bytes

    def read(self, size: int = -1) -> bytes:
        """Read, unless `size` is over the limit. `zipfile` omits `size` only to read the end of the file."""
        if size > self._max_read_bytes:
            raise refused(refusals.DIRECTORY_TOO_LARGE, limit=self._max_read_bytes)
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _BoundedZip(zipfile.ZipFile):
    """A `ZipFile` that stops at the first entry over the limit, and keeps no `ZipInfo`.

    A zip of 50 MB can hold a million entries. As `ZipInfo` objects they would take half a gigabyte before the
    worker could count them.
    """

    def __init__(self, file: Any, limit: int) -> None:
        self.directory = _Directory(limit)
        super().__init__(file)

    # `zipfile` sets both attributes before it reads the directory, and then adds to them.

    @property
    def filelist(self) -> list[ZipInfo]:
        return self.directory

    @filelist.setter
    def filelist(self, _: list[ZipInfo]) -> None: ...

    @property
    def NameToInfo(self) -> dict[str, ZipInfo]:  # noqa: N802 - zipfile's name
        return _EmptyIndex()

    @NameToInfo.setter
    def NameToInfo(self, _: dict[str, ZipInfo]) -> None: ...  # noqa: N802 - zipfile's name


def _directory(file: BinaryIO, limits: ArchiveLimits) -> tuple[list[Entry], int]:
    """Return the entries, and the offset of the directory in the file."""
    max_bytes = _DIRECTORY_BYTES + limits.entries * _DIRECTORY_ENTRY_BYTES
    try:
        with _BoundedZip(_BoundedFile(file, max_bytes), limits.entries) as archive:
            entries, directory_at = archive.directory.entries, archive.start_dir
    except _DAMAGE as exc:
        raise refused(refusals.NOT_A_ZIP, detail=exc) from exc
    if not entries:
        raise refused(refusals.EMPTY)
    return entries, directory_at


def _tree_of(entries: list[Entry], limits: ArchiveLimits) -> zip_tree.Tree:
    """Check each entry by itself, and return the tree of all entries."""
    paths, tree = PathParser(), zip_tree.Tree(limits.entries)
    total = 0
    for entry in entries:
        path = paths.parse(entry)
        _check_method(entry)
        _check_size(entry, limits)
        total += entry.bytes
        if path is not None:
            tree.add(entry, path)
    if total > limits.unpacked_bytes:
        raise refused(refusals.UNPACKED_TOO_LARGE, limit_mb=limits.unpacked_bytes / MIB)
    return tree


def _check_method(entry: Entry) -> None:
    if entry.flags & _ENCRYPTED:
        raise refused(refusals.ENCRYPTED, name=entry.name)
    if entry.method not in _METHODS or entry.flags & _PATCH:
        raise refused(refusals.METHOD, name=entry.name, method=entry.method)


def _check_size(entry: Entry, limits: ArchiveLimits) -> None:
    if entry.kind is Kind.FOLDER and entry.bytes:
        raise refused(refusals.FOLDER_CONTENT, name=entry.name)
    if entry.kind is Kind.LINK and not 0 < entry.bytes <= MAX_NAME_BYTES:
        raise refused(refusals.LINK_TEXT, name=entry.name)
    if entry.bytes > limits.file_bytes:
        limit_mb = limits.file_bytes / MIB
        raise refused(refusals.FILE_TOO_LARGE, name=entry.name, size=entry.bytes, limit_mb=limit_mb)
    if entry.method == zipfile.ZIP_STORED and entry.packed_bytes != entry.bytes:
        raise refused(refusals.SIZES_DIFFER, name=entry.name)


def _check_layout(entries: list[Entry], file: BinaryIO, size: int, directory_at: int) -> None:
    """Check that entries do not overlap, and set `data_at` of each entry.

    With overlaps, a tiny archive could unpack to as much as the limits allow.
    """
    end = 0
    before: Entry | None = None
    for entry in sorted(entries, key=lambda entry: entry.header_at):
        if entry.header_at < end:
            rule = refusals.OVERLAPS if before else refusals.BEFORE_FILE
            raise refused(rule, name=entry.name, other=before.name if before else "")
        entry.data_at = _data_at(entry, file, size)
        end, before = entry.data_at + entry.packed_bytes, entry
        if end > directory_at:
            raise refused(refusals.INTO_DIRECTORY, name=entry.name)


def _data_at(entry: Entry, file: BinaryIO, size: int) -> int:
    """Check that the local header of an entry repeats the directory; return the offset of its data."""
    file.seek(min(entry.header_at, size))
    header = file.read(_LOCAL_HEADER.size + len(entry.raw_name))
    if len(header) < _LOCAL_HEADER.size or not header.startswith(_LOCAL_SIGNATURE):
        raise refused(refusals.NO_HEADER, name=entry.name)
    fields: tuple[int, ...] = _LOCAL_HEADER.unpack_from(header)[1:]
    _, flags, method, _, _, _, _, _, name_length, extra_length = fields
    is_alike = method == entry.method and not flags & _ENCRYPTED and name_length == len(entry.raw_name)
    if not is_alike or header[_LOCAL_HEADER.size :] != entry.raw_name:
        raise refused(refusals.HEADER_DIFFERS, name=entry.name)
    return entry.header_at + _LOCAL_HEADER.size + name_length + extra_length
