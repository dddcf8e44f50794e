"""Writes the files of an archive, after `archive` has checked its entries.

Folders and files are written first, in the order of their data in the zip. Links are written last. So no file
is written through a link, even if a check has missed that link. In this module, "the directory" is the zip's
central directory.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import TYPE_CHECKING, BinaryIO, Final

from nanoagent.code import refusals
from nanoagent.code.refusals import refused
from nanoagent.code.zip_entries import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from nanoagent.code.zip_entries import Entry
    from nanoagent.code.zip_tree import Node

_CHUNK_BYTES: Final = 64 * 1024
_FOLDER_MODE: Final = 0o755


def write(nodes: Iterable[Node], file: BinaryIO, into: Path) -> tuple[int, int]:
    """Write files, folders and links below a folder.

    Args:
        nodes: All nodes of a checked tree.
        file: The archive.
        into: The folder. It is made if it does not exist.

    Returns:
        The number of files, and the size of all files together in bytes.

    Raises:
        Rejected: The data of an entry differs from the directory.
        OSError: The disk failed.
    """
    into.mkdir(exist_ok=True)  # only this folder may exist already
    into.chmod(_FOLDER_MODE)
    folders = _Folders(into)
    files = total = 0
    wanted = [(node.entry, node) for node in nodes if node.entry is not None]
    wanted.sort(key=lambda pair: pair[0].data_at)
    for entry, node in wanted:
        if node.kind is Kind.FOLDER:
            folders.make(node)
        elif node.kind is Kind.FILE:
            _write_file(entry, file, folders.path_in(node))
            files, total = files + 1, total + entry.bytes
    for entry, node in wanted:
        if node.kind is Kind.LINK:
            _write_link(entry, file, folders.path_in(node))
    return files, total


def link_target(link: Entry, file: BinaryIO) -> str:
    """Return the target of a link.

    Raises:
        Rejected: The data differs from the directory, or is not UTF-8.
    """
    try:
        return b"".join(data_of(link, file)).decode()
    except UnicodeDecodeError as exc:
        raise refused(refusals.LINK_TEXT, name=link.name) from exc


def data_of(entry: Entry, file: BinaryIO) -> Iterator[bytes]:
    """Yield the unpacked data of an entry in pieces, and no more bytes than the directory states.

    Raises:
        Rejected: The data is damaged, or differs from the directory.
    """
    pieces = _packed(entry, file)
    size = crc = 0
    try:
        for piece in _inflated(pieces) if entry.method == zipfile.ZIP_DEFLATED else pieces:
            size += len(piece)
            if size > entry.bytes:
                break
            crc = zlib.crc32(piece, crc)
            yield piece
    except zlib.error as exc:
        raise refused(refusals.DAMAGED_DATA, name=entry.name, detail=exc) from exc
    if size != entry.bytes:
        raise refused(refusals.WRONG_SIZE, name=entry.name)
    if crc != entry.crc:
        raise refused(refusals.WRONG_CHECKSUM, name=entry.name)


def _packed(entry: Entry, file: BinaryIO) -> Iterator[bytes]:
    file.seek(entry.data_at)
    left = entry.packed_bytes
    while left > 0 and (piece := file.read(min(left, _CHUNK_BYTES))):
        left -= len(piece)
        yield piece


def _inflated(packed: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack a raw deflate stream. Data after its end mark is ignored. The end mark may be missing."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    for piece in packed:
        while piece and not stream.eof:
            yield stream.decompress(piece, _CHUNK_BYTES)
            piece = stream.unconsumed_tail  # noqa: PLW2901 - the rest of the piece
    yield stream.flush()


class _Folders:
    """Makes folders when they are needed.

    Args:
        into: The folder of the tree.
    """

    def __init__(self, into: Path) -> None:
        self._into = os.fsencode(into)
        self._last: Node | None = None
        self._path = b""

    def make(self, folder: Node | None) -> bytes:
        """Make a folder and the folders above it, unless they exist; return its path."""
        # Remember the last folder, so that thousands of files in a deep folder do not check every level.
        if folder is not None and folder is self._last:
            return self._path
        ancestry = []
        at = folder
        while at is not None and at.parent is not None:
            ancestry.append(at)
            at = at.parent
        path = self._into
        for node in reversed(ancestry):
            path = b"%b/%b" % (path, node.name)
            if not node.is_made:
                os.mkdir(path)  # noqa: PTH102 - Path objects cost too much
                os.chmod(path, _FOLDER_MODE)  # noqa: PTH101 - the umask may lock out the runs' user
                node.is_made = True
        self._last, self._path = folder, path
        return path

    def path_in(self, node: Node) -> bytes:
        """Make the folder of a file or link; return the path of the file or link."""
        return b"%b/%b" % (self.make(node.parent), node.name)


def _write_file(entry: Entry, file: BinaryIO, path: bytes) -> None:
    # Until the file is complete, its mode is 0600. So runs cannot read a file whose data is refused.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        for piece in data_of(entry, file):
            _write_all(handle, piece)
        os.fchmod(handle, 0o555 if entry.is_executable else 0o444)
        os.utime(handle, ns=(entry.modified_ns, entry.modified_ns))
    finally:
        os.close(handle)


def _write_all(handle: int, data: bytes) -> None:
    written = os.write(handle, data)
    while written < len(data):  # writes are short when the disk is almost full
        written += os.write(handle, data[written:])


def _write_link(entry: Entry, file: BinaryIO, path: bytes) -> None:
    os.symlink(link_target(entry, file).encode(), path)  # noqa: PTH211 - Path objects cost too much
    os.utime(path, ns=(entry.modified_ns, entry.modified_ns), follow_symlinks=False)
