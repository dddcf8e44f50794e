"""Whether the disks that jobs need have room, in bytes and in files, and room made in the worker's caches."""

from __future__ import annotations

import asyncio
import math
import os
import time
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

_MOST_OF_ALL_FILES: Final = 0.1  # of a small file system, at most this part of all inodes has to be free
_HOLDS_S: Final = 1.0

log = structlog.get_logger(__name__)


class DiskRoom:
    """Looks at the folders that jobs fill.

    Args:
        folders: By the setting that names each.
        least_mb: How much has to be free below each, MiB; 0: nothing is looked at.
        make_room: Frees so many bytes below `cache`, as far as that can be done.
        least_files: How many inodes have to be free: enough for the largest tree of code.
        cache: The setting of the folder that it frees them below.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        least_mb: int,
        make_room: Callable[[float], Awaitable[None]],
        *,
        least_files: int = 1000,
        cache: str = "CODE_CACHE_DIR",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folders = dict(folders)
        self._least_bytes = least_mb * MIB
        self._least_files = least_files
        self._make_room = make_room
        self._cache = cache
        self._clock = clock
        self._looked_at = -_HOLDS_S
        self._reason: str | None = None

    async def not_ready_reason(self) -> str | None:
        """Why jobs would find too little room, or None; looks once a second at most."""
        if self._least_bytes and self._clock() - self._looked_at >= _HOLDS_S:
            self._reason = await self._look()
            self._looked_at = self._clock()
        return self._reason

    async def _look(self) -> str | None:
        missing = await asyncio.to_thread(self._missing, self._folders[self._cache])
        if missing > 0:
            log.warning("little room on the disk: cached code that is not in use is evicted", bytes=missing)
            await self._make_room(missing)
        reasons = [
            await asyncio.to_thread(_shortage, variable, folder, self._least_bytes, self._least_files)
            for variable, folder in self._folders.items()
        ]
        return "; ".join(filter(None, reasons)) or None

    def _missing(self, folder: Path) -> float:
        """How many bytes to free; infinity if inodes are short, because the sizes of files are not known."""
        try:
            status = os.statvfs(folder)
        except OSError:
            return self._least_bytes
        if _few_files(status, self._least_files):
            return math.inf
        # What a user who is not root may still take.
        return self._least_bytes - status.f_bavail * status.f_frsize


def _few_files(status: os.statvfs_result, least: int) -> bool:
    """Whether a file system has room for too few more files (inodes)."""
    # One that has no fixed number of files (btrfs) says 0 of 0.
    return bool(status.f_files) and status.f_favail < min(least, status.f_files * _MOST_OF_ALL_FILES)


def _shortage(variable: str, folder: Path, least_bytes: int, least_files: int) -> str | None:
    """What there is too little of, as a sentence that says what to do; None when there is enough."""
    try:
        status = os.statvfs(folder)
    except OSError as exc:
        return f"{variable}: {folder} cannot be looked at: {exc.strerror}"
    free = status.f_bavail * status.f_frsize
    if free < least_bytes:
        return (
            f"{variable}: {free // MIB} MiB are free on the disk of {folder}, fewer than "
            f"MIN_FREE_DISK_MB={least_bytes // MIB}; free some, or choose another folder"
        )
    if _few_files(status, least_files):
        return (
            f"{variable}: the disk of {folder} has inodes for {status.f_favail} more files, and code may "
            f"have CODE_MAX_ENTRIES={least_files}; remove some, or choose another folder"
        )
    return None
