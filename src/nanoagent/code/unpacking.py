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
from nanoagent.code.entries import Kind
from nanoagent.code.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from nanoagent.code.entries import Entry

_CHUNK_BYTES: Final = 64 * 1024
_FOLDER_MODE: Final = 0o755


def write(entries: Sequence[Entry], file: BinaryIO, into: Path) -> tuple[int, int]:
    """Write all entries below a folder; returns the number of files and their size in bytes.

    Args:
        entries: At most one for each place.
        file: The archive.
        into: The folder; made if it is not there.

    Raises:
        Rejected: The data of an entry is not what the directory says.
        OSError: The disk failed.
    """
    into.mkdir(exist_ok=True)  # the tree's own folder alone may be there already
    into.chmod(_FOLDER_MODE)
    folders: dict[tuple[str, ...], str] = {(): str(into)}
    files = total = 0
    for entry in sorted(entries, key=lambda entry: entry.data_at):
        if entry.place is None:
            continue
        if entry.kind is Kind.FOLDER:
            _make_folder((*entry.place.folder, entry.place.name), folders)
        elif entry.kind is Kind.FILE:
            _write_file(entry, file, f"{_make_folder(entry.place.folder, folders)}/{entry.place.name}")
            files, total = files + 1, total + entry.bytes
    for entry in entries:
        if entry.kind is Kind.LINK and entry.place is not None:
            _write_link(entry, f"{_make_folder(entry.place.folder, folders)}/{entry.place.name}")
    return files, total


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


def _make_folder(parts: tuple[str, ...], made: dict[tuple[str, ...], str]) -> str:
    """The folder of that path, which is made with those above it if it is not among `made`."""
    path = made.get(parts)
    if path is None:
        # From the deepest that is made: thousands of files sixty levels deep do not ask for all again.
        depth = next(depth for depth in range(len(parts) - 1, -1, -1) if parts[:depth] in made)
        path = made[parts[:depth]]
        for end in range(depth + 1, len(parts) + 1):
            path = made[parts[:end]] = f"{path}/{parts[end - 1]}"
            os.mkdir(path)  # noqa: PTH102 - a string: thousands of them
            os.chmod(path, _FOLDER_MODE)  # noqa: PTH101 - not left to the umask: the code's user is another one
    return path


def _write_file(entry: Entry, file: BinaryIO, path: str) -> None:
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


def _write_link(entry: Entry, path: str) -> None:
    os.symlink(entry.target, path)  # noqa: PTH211 - a string: thousands of them
    os.utime(path, ns=(entry.modified_ns, entry.modified_ns), follow_symlinks=False)
