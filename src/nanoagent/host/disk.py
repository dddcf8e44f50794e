"""Checks free space and inodes on the disks that jobs need. If they are short, evicts unused cached code."""

from __future__ import annotations

import asyncio
import math
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
        make_room: Frees space in the folder of the setting `cache`. Its argument is the number of bytes; it
            may free less.
        min_free_files: The free inodes that each folder's disk must have: enough for the largest code tree.
        cache: The setting of the folder where `make_room` frees space.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        min_free_mb: int,
        make_room: Callable[[float], Awaitable[None]],
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
        missing = await asyncio.to_thread(self._missing_bytes, self._folders[self._cache])
        if missing > 0:
            log.warning("disk space low", bytes=missing, action="evict unused cached code")
            await self._make_room(missing)
        reasons = [
            await asyncio.to_thread(_shortage, setting, folder, self._min_free_bytes, self._min_free_files)
            for setting, folder in self._folders.items()
        ]
        return "; ".join(filter(None, reasons)) or None

    def _missing_bytes(self, folder: Path) -> float:
        """Return how many bytes to free; infinity if inodes are short, because file sizes are unknown."""
        try:
            status = os.statvfs(folder)
        except OSError:
            return self._min_free_bytes
        if _has_few_inodes(status, self._min_free_files):
            return math.inf
        return self._min_free_bytes - status.f_bavail * status.f_frsize  # f_bavail: blocks for ordinary users


def _has_few_inodes(status: os.statvfs_result, least: int) -> bool:
    # File systems without a fixed number of inodes (btrfs) report 0 of 0.
    return bool(status.f_files) and status.f_favail < min(least, status.f_files * _MAX_REQUIRED_INODES_SHARE)


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
    if _has_few_inodes(status, min_free_files):
        return (
            f"{setting}: the disk of {folder} has inodes for {status.f_favail} more files, and code may "
            f"have CODE_MAX_ENTRIES={min_free_files}; remove some files, or choose another folder"
        )
    return None
