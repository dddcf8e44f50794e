"""Keeps programs that were built from code. Their names are digests of all that they depend on."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from nanoagent.code.disk_cache import DiskCache, retry_when_full
from nanoagent.code.disk_errors import disk_errors
from nanoagent.code.single_flight import SingleFlight
from nanoagent.model.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from nanoagent.code.pin import Pin

_DIGEST: Final = re.compile(r"[0-9a-f]{16,128}")


class ProgramCache:
    """Built programs: one file each, built once per key.

    Call `start` before use and `close` afterwards. Workers of the same user may share `root`.

    Args:
        root: The folder; not that of another cache.
        max_bytes: The limit of the disk space of all programs. Programs in use may exceed it.

    Attributes:
        disk: The disk cache of the programs, which `ObjectCache` shares.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.disk = self._disk = DiskCache(root, max_bytes)
        self._root = root
        self._builds: SingleFlight[Pin] = SingleFlight()

    async def start(self) -> None:
        """Make the folders, and remove the leftovers of workers that crashed.

        Raises:
            ConfigError: A folder belongs to another user.
            StorageError: The disk failed.
        """
        await self._disk.start()

    async def close(self) -> None:
        """Cancel all builds. The programs remain on disk. Idempotent."""
        await self._builds.close()
        await self._disk.close()

    @asynccontextmanager
    async def get_or_build(self, key: str, build: Callable[[Path], Awaitable[None]]) -> AsyncIterator[Path]:
        """Yield a program, and keep it on disk until the block ends. Build it if the cache does not have it.

        When the last caller that waits for a build is cancelled, the build is also cancelled, and its end
        awaited.

        Args:
            key: Hex digest of all that the program depends on.
            build: Writes one file to the path that it gets. Callers that want the same program at the same
                time share one build. If the build fails, all of them get the error, and nothing is kept.

        Yields:
            The file, mode 0555.

        Raises:
            ValueError: The key is not a hex digest.
            StorageError: The disk failed, or the build wrote no file.
            Exception: An error of the build.
        """
        if not _DIGEST.fullmatch(key):
            raise ValueError(f"{key!r} is not a hex digest")
        pin = None if key in self._builds else await self._disk.pin(key)
        if pin is None:
            pin = await self._builds.join(key, partial(self._pin_or_build, key, build))
        try:
            yield pin.content
        finally:
            await self._disk.release(pin)

    def has(self, key: str) -> bool:
        """Whether a program exists or is being built.

        Raises:
            StorageError: The disk failed.
        """
        return key in self._builds or self._disk.has(key)

    async def make_room(self, size_bytes: float, files: int = 0) -> None:
        """Evict the least recently used programs that are not in use.

        Args:
            size_bytes: The disk space to free. Programs in use stay, so less may be freed.
            files: The number of inodes to free.

        Raises:
            StorageError: The disk failed.
        """
        await self._disk.evict(missing_bytes=size_bytes, missing_files=files)

    async def _pin_or_build(self, key: str, build: Callable[[Path], Awaitable[None]]) -> Pin:
        return await retry_when_full(partial(self._try_to_build, key, build), self.make_room)

    async def _try_to_build(self, key: str, build: Callable[[Path], Awaitable[None]]) -> Pin:
        if pin := await self._disk.pin(key):
            return pin
        async with self._disk.scratch() as scratch:
            program = scratch / "program"
            await build(program)
            with disk_errors(self._root):
                _seal(program)
            pin = await self._disk.publish(key, program)
        try:
            await self._disk.evict()
            return pin.share()
        finally:
            pin.release()


def _seal(program: Path) -> None:
    if program.is_symlink() or not program.is_file():
        raise StorageError("the build wrote no file")
    program.chmod(0o555)
