"""Writes the files of an archive, after `archive` has checked its entries.

Links are written after all folders and files. So no file is written through a link, even if a check has
missed that link. In this module, "the directory" is the zip's central directory.

Several threads write large files, each a piece of consecutive entries at a time: zlib and the kernel work
without the interpreter's lock. The result does not depend on the number of threads, and neither does the
refusal: it is that of the first damaged entry, in the order of the data in the zip.
"""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final

from nanoagent.code import refusals
from nanoagent.code.refusals import refused
from nanoagent.code.zip_entries import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from nanoagent.code.zip_entries import Entry
    from nanoagent.code.zip_tree import Node

    Piece = list[tuple[Entry, Node]]
    ReadAt = Callable[[int, int], bytes]  # size and offset, both in bytes; fewer bytes at the end

_CHUNK_BYTES: Final = 64 * 1024
_FOLDER_MODE: Final = 0o755
# A piece has so many files, or fewer with so many bytes of packed data.
_PIECE_FILES: Final = 64
_PIECE_BYTES: Final = 1024 * 1024
# With small files, two threads take longer than one (8,000 files of 3 KB on two CPUs: 1.02 s against 0.77 s):
# most of the time is spent in the interpreter, and its lock changes hands at each system call. With large
# files, two threads take half the time of one (50 MB: 0.16 s against 0.30 s).
_MOST_THREADS: Final = 4
_LARGE_BYTES: Final = 16 * 1024  # the mean size of packed files


def write(nodes: Iterable[Node], file: BinaryIO, into: Path, threads: int | None = None) -> tuple[int, int]:
    """Write files, folders and links below a folder.

    Args:
        nodes: All nodes of a checked tree.
        file: The archive, a file on disk.
        into: The folder. It is made if it does not exist.
        threads: The number of threads that write files. None: for large files the number of CPUs, at most 4;
            for small files one.

    Returns:
        The number of files, and the size of all files together in bytes.

    Raises:
        Rejected: The data of an entry differs from the directory.
        OSError: The disk failed.
    """
    into.mkdir(exist_ok=True)  # only this folder may exist already
    into.chmod(_FOLDER_MODE)
    wanted = [(node.entry, node) for node in nodes if node.entry is not None]
    wanted.sort(key=lambda pair: pair[0].data_at)
    files = [(entry, node) for entry, node in wanted if node.kind is Kind.FILE]
    threads = threads or _threads_for(files)
    folders = _Folders(into)
    if threads > 1:  # one thread makes a folder just before its first file
        for _, node in files:
            folders.make(node.parent)
    write_piece = partial(_write_piece, partial(os.pread, file.fileno()), into)
    _for_each(write_piece, list(_pieces(files)) if threads > 1 else [files], threads)
    for _, node in wanted:
        if node.kind is Kind.FOLDER:
            folders.make(node)
    links = [(entry, node) for entry, node in wanted if node.kind is Kind.LINK]
    for entry, node in links:
        _write_link(entry, file, folders.path_in(node))
    return len(files), sum(entry.bytes for entry, _ in files)


def _threads_for(files: Piece) -> int:
    """Return the number of threads that write these files in the shortest time."""
    if sum(entry.packed_bytes for entry, _ in files) < len(files) * _LARGE_BYTES:
        return 1
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)))


def _pieces(files: Piece) -> Iterator[Piece]:
    """Divide files into pieces, in order."""
    piece: Piece = []
    packed_bytes = 0
    for entry, node in files:
        piece.append((entry, node))
        packed_bytes += entry.packed_bytes
        if len(piece) >= _PIECE_FILES or packed_bytes >= _PIECE_BYTES:
            yield piece
            piece, packed_bytes = [], 0
    if piece:
        yield piece


def _for_each(work: Callable[[Piece], None], pieces: list[Piece], threads: int) -> None:
    """Call `work` for each piece, in several threads.

    After an error no piece is taken. Pieces are taken in order, and a thread works on each piece that it has
    taken. So all pieces before a failed one are complete or have failed, too. The first error is raised.
    """
    errors: dict[int, Exception] = {}
    numbers = iter(range(len(pieces)))  # next() is atomic

    def work_on_pieces() -> None:
        # Look for errors before a piece is taken, not afterwards: the piece may have the first error.
        while not errors and (number := next(numbers, None)) is not None:
            try:
                work(pieces[number])
            except Exception as exc:  # noqa: BLE001 - raised below
                errors[number] = exc

    others = [threading.Thread(target=work_on_pieces) for _ in range(min(threads, len(pieces)) - 1)]
    for thread in others:
        thread.start()
    work_on_pieces()
    for thread in others:
        thread.join()
    if errors:
        raise errors[min(errors)]


def _write_piece(read: ReadAt, into: Path, piece: Piece) -> None:
    """Write the files of one piece, and make their folders unless they exist."""
    folders = _Folders(into)
    for entry, node in piece:
        _write_file(entry, read, folders.path_in(node))


def link_target(link: Entry, file: BinaryIO) -> str:
    """Return the target of a link.

    Args:
        link: The entry.
        file: The archive. It need not be on disk.

    Raises:
        Rejected: The data differs from the directory, or is not UTF-8.
    """

    def read(size: int, at: int) -> bytes:
        file.seek(at)
        return file.read(size)

    try:
        return _small_data(link, read).decode()  # `archive` has checked the size
    except UnicodeDecodeError as exc:
        raise refused(refusals.LINK_TEXT, name=link.name) from exc


def _small_data(entry: Entry, read: ReadAt) -> bytes:
    """Return the unpacked data of an entry with little data.

    Raises:
        Rejected: The data is damaged, or differs from the directory.
    """
    data = read(entry.packed_bytes, entry.data_at)
    if entry.method == zipfile.ZIP_DEFLATED:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = stream.decompress(data, entry.bytes + 1)
            # The end mark may be missing. If the data is too long, the rest is not unpacked.
            if len(data) <= entry.bytes and not stream.eof:
                data += stream.flush()
        except zlib.error as exc:
            raise refused(refusals.DAMAGED_DATA, name=entry.name, detail=exc) from exc
    _check_data(entry, len(data), zlib.crc32(data))
    return data


def _data_of(entry: Entry, read: ReadAt) -> Iterator[bytes]:
    """Yield the unpacked data of an entry in chunks, and no more bytes than the directory states.

    Raises:
        Rejected: The data is damaged, or differs from the directory.
    """
    chunks = _packed(entry, read)
    size = crc = 0
    try:
        for chunk in _inflated(chunks) if entry.method == zipfile.ZIP_DEFLATED else chunks:
            size += len(chunk)
            if size > entry.bytes:
                break
            crc = zlib.crc32(chunk, crc)
            yield chunk
    except zlib.error as exc:
        raise refused(refusals.DAMAGED_DATA, name=entry.name, detail=exc) from exc
    _check_data(entry, size, crc)


def _check_data(entry: Entry, size: int, crc: int) -> None:
    """Check the size and the CRC-32 of an entry's unpacked data."""
    if size != entry.bytes:
        raise refused(refusals.WRONG_SIZE, name=entry.name)
    if crc != entry.crc:
        raise refused(refusals.WRONG_CHECKSUM, name=entry.name)


def _packed(entry: Entry, read: ReadAt) -> Iterator[bytes]:
    at, end = entry.data_at, entry.data_at + entry.packed_bytes
    while at < end and (chunk := read(min(end - at, _CHUNK_BYTES), at)):
        at += len(chunk)
        yield chunk


def _inflated(packed: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack a raw deflate stream. Data after its end mark is ignored. The end mark may be missing."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    for chunk in packed:
        while chunk and not stream.eof:
            yield stream.decompress(chunk, _CHUNK_BYTES)
            chunk = stream.unconsumed_tail  # noqa: PLW2901 - the rest of the chunk
    if rest := stream.flush():
        yield rest


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


def _write_file(entry: Entry, read: ReadAt, path: bytes) -> None:
    # Until the file is complete, its mode is 0600. So runs cannot read a file whose data is refused.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if max(entry.packed_bytes, entry.bytes) <= _CHUNK_BYTES:
            _write_all(handle, _small_data(entry, read))
        else:
            for chunk in _data_of(entry, read):
                _write_all(handle, chunk)
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
