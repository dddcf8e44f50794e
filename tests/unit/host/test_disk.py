"""Room on the disks that jobs fill."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from nanoagent.common.units import MIB
from nanoagent.host.disk import DiskRoom

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="to mount a small file system takes root")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=4096", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


class Cache:
    """What lies below the folder and may be removed."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "cached"
        self.files = [self.file]
        self.asked: list[tuple[int, int]] = []

    async def make_room(self, size_bytes: int, files: int) -> None:
        self.asked.append((size_bytes, files))
        for file in self.files:
            file.unlink(missing_ok=True)


def room(folder: Path, cache: Cache, min_free_mb: int = 4, **folders: Path) -> DiskRoom:
    now = iter(range(0, 1000, 2))
    return DiskRoom(
        {"CODE_CACHE_DIR": folder, **folders}, min_free_mb, cache.make_room, clock=lambda: float(next(now))
    )


async def test_a_disk_with_room_is_well(small: Path):
    cache = Cache(small)
    assert await room(small, cache).not_ready_reason() is None
    assert cache.asked == []


async def test_a_disk_that_others_have_filled_is_named_with_what_is_missing(small: Path, tmp_path: Path):
    (small / "theirs").write_bytes(bytes(6 * MIB))
    cache = Cache(small)
    disk = room(small, cache)
    assert await disk.not_ready_reason() == (
        f"CODE_CACHE_DIR: 2 MiB are free on the disk of {small}, fewer than MIN_FREE_DISK_MB=4; "
        "free some space, or choose another folder"
    )
    assert cache.asked == [(2 * MIB, 0)]
    (small / "theirs").unlink()
    assert await disk.not_ready_reason() is None


async def test_what_nobody_uses_makes_room_before_jobs_are_refused(small: Path):
    cache = Cache(small)
    cache.file.write_bytes(bytes(6 * MIB))
    assert await room(small, cache).not_ready_reason() is None
    assert cache.asked == [(2 * MIB, 0)]


async def test_another_folders_disk_is_looked_at_too_and_the_cache_left_alone(small: Path, tmp_path: Path):
    (small / "theirs").write_bytes(bytes(6 * MIB))
    cache = Cache(tmp_path)
    reason = await room(tmp_path, cache, DOCKER_WORK_DIR_ROOT=small).not_ready_reason()
    assert (reason or "").startswith("DOCKER_WORK_DIR_ROOT: 2 MiB")
    assert cache.asked == []


async def test_a_disk_without_inodes_is_named_after_the_cache_has_made_room(small: Path):
    for number in range(3800):
        (small / str(number)).touch()
    cache = Cache(small)
    reason = await room(small, cache).not_ready_reason()
    free = os.statvfs(small).f_favail
    assert reason == (
        f"CODE_CACHE_DIR: {free} inodes are free on the disk of {small}, fewer than the 409 that jobs need; "
        "remove some files (df -i counts inodes), or choose a folder on a disk with more inodes"
    )
    assert cache.asked == [(0, 409 - free)]


async def test_inodes_that_the_cache_holds_are_made_free_before_jobs_are_refused(small: Path):
    for number in range(3300):
        (small / str(number)).touch()
    cache = Cache(small)
    cache.files = [small / f"cached{number}" for number in range(500)]
    for file in cache.files:
        file.touch()
    free = os.statvfs(small).f_favail
    assert await room(small, cache).not_ready_reason() is None
    assert cache.asked == [(0, 409 - free)]


async def test_space_and_inodes_that_are_both_short_are_asked_for_together(small: Path):
    (small / "theirs").write_bytes(bytes(6 * MIB))
    for number in range(3800):
        (small / str(number)).touch()
    cache = Cache(small)
    free = os.statvfs(small).f_favail
    assert await room(small, cache).not_ready_reason() is not None
    assert cache.asked == [(2 * MIB, 409 - free)]


async def test_a_small_file_system_is_not_asked_for_more_inodes_than_it_has(small: Path):
    disk = DiskRoom({"CODE_CACHE_DIR": small}, 4, Cache(small).make_room, min_free_files=100_000)
    assert await disk.not_ready_reason() is None


async def test_a_folder_that_is_gone_is_named(tmp_path: Path):
    reason = await room(tmp_path / "gone", Cache(tmp_path)).not_ready_reason()
    assert reason == f"CODE_CACHE_DIR: {tmp_path / 'gone'} cannot be examined: No such file or directory"


async def test_nothing_is_looked_at_where_that_is_switched_off(tmp_path: Path):
    assert await room(tmp_path / "gone", Cache(tmp_path), min_free_mb=0).not_ready_reason() is None


async def test_a_disk_is_looked_at_once_a_second_at_most(small: Path):
    now = 0.0
    cache = Cache(small)
    disk = DiskRoom({"CODE_CACHE_DIR": small}, 4, cache.make_room, clock=lambda: now)
    assert await disk.not_ready_reason() is None
    (small / "theirs").write_bytes(bytes(6 * MIB))
    assert await disk.not_ready_reason() is None
    now = 1.0
    assert await disk.not_ready_reason() is not None
