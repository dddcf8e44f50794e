"""Shows the progress of an upload on a terminal."""

from __future__ import annotations

import io
import os
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def shown(file: IO[bytes], size: int, console: Console | None = None) -> Iterator[IO[bytes]]:
    """Yield the file from its start, for one upload. While it is read, a terminal shows how far.

    Args:
        file: The file.
        size: Its size, bytes.
        console: The console; default: standard error. Without a terminal, nothing is shown.
    """
    file.seek(0)
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield file
        return
    columns = (TextColumn("Uploading"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=size)
        # The SDK may read the file twice: first for the signature, then for the upload. So the position
        # counts, not the number of bytes that were read.
        yield _Watched(file, lambda position: progress.update(task, completed=position))  # type: ignore[misc]


class _Watched(io.RawIOBase):
    """A file that reports its position after each read. Closing it does not close the file."""

    def __init__(self, file: IO[bytes], on_read: Callable[[int], None]) -> None:
        self._file = file
        self._on_read = on_read

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._on_read(self._file.tell())
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
