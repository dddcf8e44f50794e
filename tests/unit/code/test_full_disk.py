"""The caches on a disk that is too small for all that they would keep."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.code_cache import CodeCache
from nanoagent.code.program_cache import ProgramCache
from nanoagent.common.units import MIB
from nanoagent.host.disk import DiskRoom
from nanoagent.model.errors import PlatformError, StorageError
from nanoagent.storage.folder import FolderStore
from support.checks.packs import files
from support.checks.zips import make_zip

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

KIB = 1024
LIMITS = ArchiveLimits(zip_bytes=4 * MIB, unpacked_bytes=4 * MIB, file_bytes=4 * MIB, entries=9)
SIZE = 900 * KIB  # a zip and its tree fit, beside another tree they do not
INODES = 400
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="to mount a small file system takes root")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size=2400k,nr_inodes={INODES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@asynccontextmanager
async def code_on(disk: Path, shelf: Path, fresh_s: float = 0) -> AsyncIterator[CodeCache]:
    for key in "ab":
        path = shelf / "code" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_zip({"main.py": os.urandom(SIZE)}))
    cache = CodeCache(disk / "code", FolderStore(shelf), LIMITS, 64 * MIB, fresh_s=fresh_s)
    await cache.start()
    try:
        yield cache
    finally:
        await cache.close()


@pytest.mark.parametrize("fresh_s", [0, 3600])
async def test_code_that_nobody_uses_makes_room_for_what_is_wanted(
    disk: Path, tmp_path: Path, fresh_s: float
):
    async with code_on(disk, tmp_path / "shelf", fresh_s) as cache:
        for key in "abab":
            async with cache.fetch("code", key) as tree:
                assert len(files(tree.path)["main.py"]) == SIZE


async def test_code_that_is_in_use_stays_and_what_finds_no_room_is_the_platforms_failure(
    disk: Path, tmp_path: Path
):
    async with code_on(disk, tmp_path / "shelf") as cache, cache.fetch("code", "a") as tree:
        with pytest.raises(StorageError, match="No space left"):
            async with cache.fetch("code", "b"):
                raise AssertionError("there was room")
        assert len(files(tree.path)["main.py"]) == SIZE


async def test_as_many_entries_are_evicted_as_inodes_are_short(disk: Path, tmp_path: Path):
    shelf = tmp_path / "shelf"
    (shelf / "code").mkdir(parents=True)
    cache = CodeCache(disk / "code", FolderStore(shelf), LIMITS, 64 * MIB)
    await cache.start()
    for number in range(80):
        (shelf / "code" / str(number)).write_bytes(make_zip({"main.py": str(number).encode()}))
        async with cache.fetch("code", str(number)):
            pass
    assert len(cache.disk.digests()) == 80
    room = DiskRoom({"CODE_CACHE_DIR": disk}, 1, cache.make_room, min_free_files=INODES // 10)
    for number in range(os.statvfs(disk).f_favail - 10):
        (disk / str(number)).touch()
    assert await room.not_ready_reason() is None
    assert os.statvfs(disk).f_favail == INODES // 10
    assert len(cache.disk.digests()) == 70  # each has a folder and two files
    await cache.close()


async def test_programs_that_nobody_uses_make_room_and_the_build_is_made_again(disk: Path):
    builds = []
    programs = ProgramCache(disk / "programs", 64 * MIB)
    await programs.start()

    async def build(into: Path) -> None:
        builds.append(into)
        try:
            into.write_bytes(os.urandom(1400 * KIB))
        except OSError as exc:
            raise PlatformError(f"output files could not be kept: {exc}") from exc

    for key in ("a" * 64, "b" * 64):
        async with programs.get_or_build(key, build) as program:
            assert program.stat().st_size == 1400 * KIB
    await programs.close()
    assert len(builds) == 3


async def test_any_other_failure_of_a_build_is_not_tried_again(disk: Path):
    builds = []
    programs = ProgramCache(disk / "programs", 64 * MIB)
    await programs.start()

    async def build(into: Path) -> None:
        builds.append(into)
        raise PlatformError("the container died") from OSError(errno.EIO, "Input/output error")

    with pytest.raises(PlatformError, match="died"):
        async with programs.get_or_build("a" * 64, build):
            raise AssertionError("it was built")
    await programs.close()
    assert len(builds) == 1
