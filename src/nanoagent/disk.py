"""Whether there is room on the disks that jobs need, and room made where what takes it up is ours."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

_MIB: Final = 1024 * 1024
_LEAST_FILES: Final = 1000  # a tree of code may have ten times as many; fewer are of no use to anyone
_HOLDS_S: Final = 1.0

log = structlog.get_logger(__name__)


class DiskRoom:
    """Looks at the folders that jobs fill.

    Args:
        folders: By the setting that names each.
        least_mb: How much has to be free below each, MiB; 0: nothing is looked at.
        make_room: Frees so many bytes below `cache`, as far as that can be done.
        cache: The setting of the folder that it frees them below.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        least_mb: int,
        make_room: Callable[[int], Awaitable[None]],
        *,
        cache: str = "CODE_CACHE_DIR",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folders = dict(folders)
        self._least_bytes = least_mb * _MIB
        self._make_room = make_room
        self._cache = cache
        self._clock = clock
        self._looked_at = -_HOLDS_S
        self._reason: str | None = None

    async def trouble(self) -> str | None:
        """Why jobs would find too little room, or None; looks once a second at most."""
        if self._least_bytes and self._clock() - self._looked_at >= _HOLDS_S:
            self._reason = await self._look()
            self._looked_at = self._clock()
        return self._reason

    async def _look(self) -> str | None:
        missing = self._least_bytes - await asyncio.to_thread(_free_bytes, self._folders[self._cache])
        if missing > 0:
            log.warning("little room on the disk: what nobody uses is evicted", mib=missing // _MIB)
            await self._make_room(missing)
        reasons = [
            await asyncio.to_thread(_shortage, variable, folder, self._least_bytes)
            for variable, folder in self._folders.items()
        ]
        return "; ".join(filter(None, reasons)) or None


def _free_bytes(folder: Path) -> int:
    """What a user who is not root may still take; nothing where that cannot be seen."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def _shortage(variable: str, folder: Path, least_bytes: int) -> str | None:
    """What there is too little of, as a sentence that says what to do; None when there is enough."""
    try:
        status = os.statvfs(folder)
    except OSError as exc:
        return f"{variable}: {folder} cannot be looked at: {exc.strerror}"
    free = status.f_bavail * status.f_frsize
    if free < least_bytes:
        return (
            f"{variable}: {free // _MIB} MiB are free on the disk of {folder}, fewer than "
            f"MIN_FREE_DISK_MB={least_bytes // _MIB}; free some, or choose another folder"
        )
    # A file system that has no fixed number of files (btrfs) says 0 of 0.
    if status.f_files and status.f_favail < _LEAST_FILES:
        return f"{variable}: the disk of {folder} has room for {status.f_favail} more files only; remove some"
    return None
