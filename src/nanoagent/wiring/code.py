"""Builds the caches of code and programs, and checks the folders that the worker writes to."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.byte_code_cache import ByteCodeCache
from nanoagent.code.code_cache import MOST_FRESH, CodeCache
from nanoagent.code.object_cache import ObjectCache
from nanoagent.code.program_cache import ProgramCache
from nanoagent.common.units import MIB
from nanoagent.host import private_dirs, resources
from nanoagent.host.disk import DiskRoom
from nanoagent.model.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.config import Settings
    from nanoagent.storage.base import ObjectStore
    from nanoagent.telemetry.metrics import Metrics

# For work directories (10 inodes for a container), entries of the caches (3), and results that wait.
_RESERVED_INODES: Final = 1000
_RUNS_WITH_FILES: Final = 10  # at the same time, with the largest number of output files each


def _folders_of(settings: Settings) -> dict[str, Path]:
    """Return the folders that the worker writes to, by the names of their settings."""
    return {
        "CODE_CACHE_DIR": settings.code_cache_dir,
        "DOCKER_WORK_DIR_ROOT": settings.docker_work_dir_root,
    }


async def unusable_folders(settings: Settings) -> list[str]:
    """Return one sentence for each folder that the worker cannot create or use."""
    folders = _folders_of(settings).items()
    found = [await asyncio.to_thread(private_dirs.unusable, folder, name) for name, folder in folders]
    return [problem for problem in found if problem is not None]


async def refuse_unusable_folders(settings: Settings) -> None:
    """Check the folders that the worker writes to.

    Raises:
        ConfigError: The worker cannot create or use a folder.
    """
    problems = await unusable_folders(settings)
    if problems:
        raise ConfigError(problems)


@asynccontextmanager
async def code_cache(
    settings: Settings, store: ObjectStore, metrics: Metrics, descriptors: int
) -> AsyncIterator[CodeCache]:
    """Open the cache of code.

    Args:
        settings: The settings.
        store: The store that code is fetched from.
        metrics: Counts lookups.
        descriptors: The limit on file descriptors.
    """
    cache = CodeCache(
        _code_folder(settings),
        store,
        _limits(settings),
        settings.code_cache_mb * MIB,
        lambda outcome: metrics.worker.cache_request("code", outcome),
        fresh_s=settings.code_fresh_seconds,
        most_fresh=min(MOST_FRESH, resources.descriptor_plan(descriptors, 0).fresh_trees),
    )
    await cache.start()
    try:
        yield cache
    finally:
        await cache.close()


def byte_code_cache(settings: Settings, code: CodeCache, image_id: str) -> ByteCodeCache:
    """Make the cache of byte code, which shares the disk cache of code.

    Args:
        settings: The settings.
        code: The cache of code.
        image_id: The ID of the Python image.
    """
    return ByteCodeCache(code.disk, _code_folder(settings), image_id, _limits(settings))


def _code_folder(settings: Settings) -> Path:
    return settings.code_cache_dir / "code"


def _limits(settings: Settings) -> ArchiveLimits:
    return ArchiveLimits(
        zip_bytes=settings.code_max_zip_mb * MIB,
        unpacked_bytes=settings.code_max_unpacked_mb * MIB,
        file_bytes=settings.code_max_file_mb * MIB,
        entries=settings.code_max_entries,
    )


@asynccontextmanager
async def program_cache(settings: Settings) -> AsyncIterator[ProgramCache]:
    """Open the cache of built programs."""
    cache = ProgramCache(_program_folder(settings), settings.code_cache_mb * MIB)
    await cache.start()
    try:
        yield cache
    finally:
        await cache.close()


def object_cache(settings: Settings, programs: ProgramCache) -> ObjectCache | None:
    """Make the cache of objects, which shares the disk cache of programs; None with BUILD_CACHE=never.

    Args:
        settings: The settings.
        programs: The cache of programs.
    """
    if settings.build_cache == "never":
        return None
    return ObjectCache(programs.disk, _program_folder(settings))


def _program_folder(settings: Settings) -> Path:
    return settings.code_cache_dir / "programs"


def disk_room(settings: Settings, code: CodeCache, programs: ProgramCache) -> DiskRoom:
    """Make the check of free disk space. If space is short, it shrinks the caches."""

    async def make_room(size_bytes: int, files: int) -> None:
        await code.make_room(size_bytes, files)
        await programs.make_room(size_bytes, files)

    least = _RESERVED_INODES + _RUNS_WITH_FILES * settings.output_max_files
    folders = _folders_of(settings)
    return DiskRoom(folders, settings.min_free_disk_mb, make_room, min_free_files=least)
