"""Checks free space and inodes on the disks that jobs need. If they are short, evicts unused cached code."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.common.units import MIB
from nanoagent.host.cached_check import CachedCheck

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

# A small file system has few inodes. At most this share of all its inodes must be free.
_MAX_REQUIRED_INODES_SHARE: Final = 0.1
_CHECK_INTERVAL_S: Final = 1.0

log = structlog.get_logger(__name__)


class DiskRoom(CachedCheck):
    """A readiness check: the folders that jobs fill have enough free space and inodes.

    Args:
        folders: Setting → the folder that it names.
        min_free_mb: The free space that each folder's disk must have, MiB. 0 disables the check.
        make_room: Evicts files in the folder of the setting `cache`. Its arguments are the numbers of bytes
            and inodes to free; it may free less.
        min_free_files: The free inodes that each folder's disk must have.
        cache: The setting of the folder where `make_room` frees space.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        min_free_mb: int,
        make_room: Callable[[int, int], Awaitable[None]],
        *,
        min_free_files: int = 1000,
        cache: str = "CODE_CACHE_DIR",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(_CHECK_INTERVAL_S, clock)
        self._folders = dict(folders)
        self._min_free_bytes = min_free_mb * MIB
        self._min_free_files = min_free_files
        self._make_room = make_room
        self._cache = cache

    async def _check(self) -> str | None:
        if not self._min_free_bytes:
            return None
        missing_bytes, missing_files = await asyncio.to_thread(self._missing, self._folders[self._cache])
        if missing_bytes or missing_files:
            log.warning(
                "disk space low",
                bytes=missing_bytes,
                inodes=missing_files,
                action="evict unused cached code",
            )
            await self._make_room(missing_bytes, missing_files)
        reasons = [
            await asyncio.to_thread(_shortage, setting, folder, self._min_free_bytes, self._min_free_files)
            for setting, folder in self._folders.items()
        ]
        return "; ".join(filter(None, reasons)) or None

    def _missing(self, folder: Path) -> tuple[int, int]:
        """Return the number of bytes and of inodes to free."""
        try:
            status = os.statvfs(folder)
        except OSError:
            return self._min_free_bytes, 0
        free_bytes = status.f_bavail * status.f_frsize  # f_bavail: blocks for ordinary users
        free_files, least_files = status.f_favail, _required_inodes(status, self._min_free_files)
        return max(0, self._min_free_bytes - free_bytes), max(0, least_files - free_files)


def _required_inodes(status: os.statvfs_result, least: int) -> int:
    # File systems without a fixed number of inodes (btrfs) report 0 of 0.
    return min(least, int(status.f_files * _MAX_REQUIRED_INODES_SHARE))


def _shortage(setting: str, folder: Path, min_free_bytes: int, min_free_files: int) -> str | None:
    """Return the shortage and its remedy as a sentence; None if the folder's disk has enough."""
    try:
        status = os.statvfs(folder)
    except OSError as exc:
        return f"{setting}: {folder} cannot be examined: {exc.strerror}"
    free = status.f_bavail * status.f_frsize
    if free < min_free_bytes:
        return (
            f"{setting}: {free // MIB} MiB are free on the disk of {folder}, fewer than "
            f"MIN_FREE_DISK_MB={min_free_bytes // MIB}; free some space, or choose another folder"
        )
    required = _required_inodes(status, min_free_files)
    if status.f_favail < required:
        return (
            f"{setting}: {status.f_favail} inodes are free on the disk of {folder}, fewer than the "
            f"{required} that jobs need; remove some files (df -i counts inodes), or choose a folder on a "
            "disk with more inodes"
        )
    return None
