"""Writes the files of an archive into a pack, after `archive` has checked its entries.

In this module, "the directory" is the zip's central directory.

The place of each file in the pack is known before its data is read, because the directory has its size. So
several threads can write large files, each a piece of consecutive entries at a time: zlib and the kernel work
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

from nanoagent.code import pack, refusals
from nanoagent.code.refusals import refused
from nanoagent.code.zip_entries import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nanoagent.code.zip_entries import Entry
    from nanoagent.code.zip_tree import Node, Tree

    Piece = list[tuple[Entry, Node]]
    ReadAt = Callable[[int, int], bytes]  # size and offset, both in bytes; fewer bytes at the end

_CHUNK_BYTES: Final = 64 * 1024
# Small files that follow each other are read and written in steps of this size.
_WINDOW_BYTES: Final = 128 * 1024
# A piece has so many files, or fewer with so many bytes of packed data.
_PIECE_FILES: Final = 64
_PIECE_BYTES: Final = 1024 * 1024
# With small files, two threads take longer than one: most of the time is spent in the interpreter, and its
# lock changes hands at each system call. With large files, two threads take half the time of one.
_MOST_THREADS: Final = 4
_LARGE_BYTES: Final = 16 * 1024  # the mean size of packed files


def write(tree: Tree, file: BinaryIO, into: Path, threads: int | None = None) -> pack.Summary:
    """Write the files, folders and links of an archive into a new pack.

    Args:
        tree: The checked tree.
        file: The archive, a file on disk.
        into: The pack, which does not exist.
        threads: The number of threads that write files. None: for large files the number of CPUs, at most 4;
            for small files one.

    Returns:
        The size of the tree.

    Raises:
        Rejected: The data of an entry differs from the directory.
        OSError: The disk failed.
    """
    files = [(node.entry, node) for node in tree.nodes if node.kind is Kind.FILE and node.entry is not None]
    files.sort(key=lambda pair: pair[0].data_at)
    end = 0
    for entry, node in files:
        node.packed_at = end
        end += entry.bytes
    threads = threads or _threads_for(files)
    # Until the pack is complete, its mode is 0600. So runs cannot read data that is refused.
    handle = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        read = partial(os.pread, file.fileno())
        _for_each(partial(_write_piece, read, handle), list(_pieces(files)), threads)
        end = _write_links(tree, file, handle, end)
        index = _index_of(tree)
        for part in index.parts():
            _write_at(handle, part, end)
            end += len(part)
        os.fchmod(handle, pack.MODE)
    finally:
        os.close(handle)
    return index.summary()


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


def _write_piece(read: ReadAt, handle: int, piece: Piece) -> None:
    """Write the files of one piece. Their places in the pack follow each other."""
    window = _Window(read)
    output = _Output(handle, piece[0][1].packed_at if piece else 0)
    for entry, _ in piece:
        if max(entry.packed_bytes, entry.bytes) <= _CHUNK_BYTES:
            output.add(_small_data(entry, window.read))
        else:
            for chunk in _data_of(entry, read):
                output.add(chunk)
    output.flush()


class _Window:
    """Reads a file in large steps, for small pieces of data in ascending order.

    Args:
        read: Reads the file.
    """

    def __init__(self, read: ReadAt) -> None:
        self._read = read
        self._data = memoryview(b"")
        self._at = 0

    def read(self, size: int, at: int) -> memoryview:
        """Return the data at an offset; less at the end of the file."""
        start = at - self._at
        if start < 0 or start + size > len(self._data):
            self._data, self._at, start = memoryview(self._read(max(size, _WINDOW_BYTES), at)), at, 0
        return self._data[start : start + size]


class _Output:
    """Writes data that follows each other, in large steps.

    Args:
        handle: The file.
        at: The offset of the first data.
    """

    def __init__(self, handle: int, at: int) -> None:
        self._handle = handle
        self._at = at
        self._pending: list[bytes | memoryview] = []
        self._size = 0

    def add(self, data: bytes | memoryview) -> None:
        """Write data now or later."""
        self._pending.append(data)
        self._size += len(data)
        if self._size >= _WINDOW_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write all data that has been added."""
        _write_at(self._handle, b"".join(self._pending), self._at)
        self._at += self._size
        self._pending, self._size = [], 0


def _write_at(handle: int, data: bytes | bytearray, at: int) -> None:
    written = os.pwrite(handle, data, at)
    while written < len(data):  # writes are short when the disk is almost full
        written += os.pwrite(handle, data[written:], at + written)


def _write_links(tree: Tree, file: BinaryIO, handle: int, at: int) -> int:
    """Write the targets of all links, and return the offset of their end."""
    output = _Output(handle, at)
    for node in tree.links:
        if node.entry is not None:
            node.packed_at = at
            output.add(link_target(node.entry, file).encode())
            at += node.entry.bytes
    output.flush()
    return at


def _index_of(tree: Tree) -> pack.Index:
    """Return the index of a tree. The places of all data are known."""
    index = pack.Index()
    for node, depth in tree.walk():
        entry = node.entry
        if entry is None or node.kind is Kind.FOLDER:
            node.number = index.add(node.name, depth, pack.FOLDER)
            continue
        kind = pack.FILE if node.kind is Kind.FILE else pack.LINK
        place = node.packed_at, entry.bytes, entry.modified_ns
        node.number = index.add(node.name, depth, kind, *place, is_executable=entry.is_executable)
    for link in tree.links:
        if link.leads_to is not None:  # `archive` has followed all links
            index.set_target(link.number, link.leads_to.number)
    index.set_base(tree.base.number)
    return index


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
        return str(_small_data(link, read), "utf-8")  # `archive` has checked the size
    except UnicodeDecodeError as exc:
        raise refused(refusals.LINK_TEXT, name=link.name) from exc


def _small_data(entry: Entry, read: Callable[[int, int], bytes | memoryview]) -> bytes | memoryview:
    """Return the unpacked data of an entry with little data.

    Raises:
        Rejected: The data is damaged, or differs from the directory.
    """
    data: bytes | memoryview = read(entry.packed_bytes, entry.data_at)
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
