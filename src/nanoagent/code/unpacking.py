"""Writing the files of an archive whose entries have been checked (`archive`).

Folders and files first, in the order of their data; links last. So no file is written by way of a link,
even if a check failed to refuse it.
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
    """Write files, folders and links below a folder; returns the number of files and their size in bytes.

    Args:
        nodes: All of a tree that has been checked.
        file: The archive.
        into: The folder; made if it is not there.

    Raises:
        Rejected: The data of an entry is not what the directory says.
        OSError: The disk failed.
    """
    into.mkdir(exist_ok=True)  # the tree's own folder alone may be there already
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


def target_of(link: Entry, file: BinaryIO) -> str:
    """The target of a link.

    Raises:
        Rejected: Its data is not what the directory says, or not UTF-8.
    """
    try:
        return b"".join(content(link, file)).decode()
    except UnicodeDecodeError as exc:
        raise refused(refusals.LINK_TEXT, name=link.name) from exc


def content(entry: Entry, file: BinaryIO) -> Iterator[bytes]:
    """The entry's data, unpacked, in pieces; never more than the directory says.

    Raises:
        Rejected: It is not what the directory says.
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
    """The contents of a raw deflate stream; data behind its end is ignored, and a missing end accepted."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    for piece in packed:
        while piece and not stream.eof:
            yield stream.decompress(piece, _CHUNK_BYTES)
            piece = stream.unconsumed_tail  # noqa: PLW2901 - what is left of it
    yield stream.flush()


class _Folders:
    """Makes folders when they are needed.

    Args:
        into: The tree's own folder.
    """

    def __init__(self, into: Path) -> None:
        self._into = os.fsencode(into)
        self._last: Node | None = None
        self._path = b""

    def make(self, folder: Node | None) -> bytes:
        """The path of a folder, which is made with those above it unless it is there already."""
        # The last one is kept: thousands of files sixty levels deep do not ask for all folders again.
        if folder is not None and folder is self._last:
            return self._path
        line = []
        at = folder
        while at is not None and at.parent is not None:
            line.append(at)
            at = at.parent
        path = self._into
        for one in reversed(line):
            path = b"%b/%b" % (path, one.name)
            if not one.is_made:
                os.mkdir(path)  # noqa: PTH102 - not a Path: thousands of them
                os.chmod(path, _FOLDER_MODE)  # noqa: PTH101 - not left to the umask: the code's user is another
                one.is_made = True
        self._last, self._path = folder, path
        return path

    def path_in(self, node: Node) -> bytes:
        """The path of a file or link, whose folder is made."""
        return b"%b/%b" % (self.make(node.parent), node.name)


def _write_file(entry: Entry, file: BinaryIO, path: bytes) -> None:
    # 0600 until the file is known to be complete: only the agent may read a refused one.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        for piece in content(entry, file):
            _write_all(handle, piece)
        os.fchmod(handle, 0o555 if entry.is_executable else 0o444)
        os.utime(handle, ns=(entry.modified_ns, entry.modified_ns))
    finally:
        os.close(handle)


def _write_all(handle: int, data: bytes) -> None:
    written = os.write(handle, data)
    while written < len(data):  # a disk that is about to be full
        written += os.write(handle, data[written:])


def _write_link(entry: Entry, file: BinaryIO, path: bytes) -> None:
    os.symlink(target_of(entry, file).encode(), path)  # noqa: PTH211 - not a Path: thousands of them
    os.utime(path, ns=(entry.modified_ns, entry.modified_ns), follow_symlinks=False)
