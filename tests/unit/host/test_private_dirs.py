"""A private folder is private whatever the umask, and whatever was there before."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nanoagent.code.disk_cache import DiskCache
from nanoagent.container.worker_home import WorkerHome
from nanoagent.host.private_dirs import make_private, unusable
from nanoagent.model.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

STRANGER = 54_321
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_folder_and_those_above_it_are_made_for_this_user_only(tmp_path, umask):
    make_private(tmp_path / "a/b/c", "FOLDER")
    assert [mode(tmp_path / path) for path in ("a", "a/b", "a/b/c")] == [0o700] * 3


@pytest.mark.parametrize("before", [0o777, 0o755, 0o500, 0o2770], ids=oct)
def test_one_of_ours_that_is_there_is_made_private(tmp_path, before):
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(before)
    (folder / "file").write_text("kept")
    make_private(folder, "FOLDER")
    assert mode(folder) == 0o700
    assert (folder / "file").read_text() == "kept"


def test_what_lies_above_and_was_there_is_left_as_it_is(tmp_path):
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(0o755)
    make_private(above / "folder", "FOLDER")
    assert mode(above) == 0o755


@only_root
def test_one_of_another_user_is_refused_and_not_touched(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o755)
    os.chown(folder, STRANGER, STRANGER)
    with pytest.raises(ConfigError, match=r"^FOLDER: .*/folder belongs to another user; choose another"):
        make_private(folder, "FOLDER")
    assert mode(folder) == 0o755


@only_root
def test_a_link_that_another_user_laid_to_one_of_ours_is_refused(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours").chmod(0o750)
    link = tmp_path / "shared/folder"
    link.symlink_to(tmp_path / "ours")
    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(ConfigError, match="belongs to another user"):
        make_private(link, "FOLDER")
    assert mode(tmp_path / "ours") == 0o750


def test_a_link_of_our_own_is_followed(tmp_path):
    (tmp_path / "real").mkdir(0o755)
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    make_private(tmp_path / "folder", "FOLDER")
    assert mode(tmp_path / "real") == 0o700


def test_a_folder_that_others_could_swap_is_refused(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match=r"FOLDER: .*/open belongs to another user, or others may write"):
        make_private(tmp_path / "open/folder", "FOLDER")


def test_a_parent_folder_that_others_could_replace_is_refused(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open/ours").mkdir(0o700)
    with pytest.raises(ConfigError, match=r"FOLDER: .*/open, above .*/open/ours, .* is open to everybody"):
        make_private(tmp_path / "open/ours/folder", "FOLDER")


def test_the_parents_of_a_links_target_are_checked_too(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open/ours").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "open/ours")
    with pytest.raises(ConfigError, match=r"FOLDER: .*/open, above .*/link, .* is open to everybody"):
        make_private(tmp_path / "link/folder", "FOLDER")


@only_root
def test_a_parent_folder_of_another_user_is_refused_except_to_root(tmp_path):
    """In its owner's folder root has chosen to work."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/ours").mkdir(0o700)
    os.chown(tmp_path / "theirs", STRANGER, STRANGER)
    make_private(tmp_path / "theirs/ours/of-root", "FOLDER")

    (tmp_path / "theirs/ours").chmod(0o711)
    (tmp_path / "theirs/ours/of-a-user").mkdir()
    os.chown(tmp_path / "theirs/ours/of-a-user", STRANGER + 1, STRANGER + 1)
    for above in tmp_path.parents:  # pytest's own, which are root's alone
        if mode(above) == 0o700:
            above.chmod(0o711)
    tmp_path.chmod(0o711)
    os.seteuid(STRANGER + 1)
    try:
        with pytest.raises(ConfigError, match=r"FOLDER: .*/theirs, above .*, belongs to another user"):
            make_private(tmp_path / "theirs/ours/of-a-user/folder", "FOLDER")
    finally:
        os.seteuid(0)


def test_a_file_in_its_place_is_an_error_of_the_disk(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        make_private(tmp_path / "file", "FOLDER")


def test_all_folders_of_a_workers_home_are_its_own_and_those_for_containers_can_be_read(tmp_path, umask):
    home = WorkerHome(tmp_path / "tasks", "w")
    (tmp_path / "tasks/w").mkdir(0o755, parents=True)
    (tmp_path / "tasks").chmod(0o755)
    (tmp_path / "tasks/w").chmod(0o777)
    home.claim()
    directory = tmp_path / "tasks/w/slots/one"

    async def make() -> None:  # a directory awaits its connection
        home.new_work_directory("one")

    asyncio.run(make())
    assert [mode(path) for path in (home.path, home.staging, directory.parent, directory)] == [0o700] * 3 + [
        0o755
    ]
    home.release()


async def test_all_folders_of_a_cache_are_its_users_alone(tmp_path, umask):
    cache = DiskCache(tmp_path / "caches/code", 1 << 20)
    await cache.start()
    async with cache.scratch() as scratch:
        made = [tmp_path / "caches", *(tmp_path / "caches").rglob("*")]
        assert {mode(path) for path in made if path.is_dir()} == {0o700}
        assert scratch in made
        (scratch / "tree").mkdir()
        (await cache.publish("0" * 64, scratch / "tree")).release()
    assert mode(tmp_path / "caches/code/entries" / ("0" * 64)) == 0o700
    await cache.close()


# --- looked at without a change


@pytest.mark.parametrize("missing", ["", "a/b/c"])
def test_a_folder_that_can_be_used_is_left_as_it_was(tmp_path, missing):
    assert unusable(tmp_path / missing, "FOLDER") is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_with_its_setting_and_a_remedy(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in ("/proc/a/b", str(tmp_path / "file/a"), str(tmp_path / "file")):
        problem = str(unusable(Path(folder), "FOLDER"))
        assert problem.startswith(f"FOLDER: {folder} cannot be made or written")
        assert f"install -d -m 700 -o USER {folder}" in problem
    assert "file is not a folder" in problem


def test_a_missing_folder_below_one_that_all_may_change_is_refused(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    problem = unusable(tmp_path / "open/a", "FOLDER")
    assert problem is not None
    assert problem.startswith(f"FOLDER: {tmp_path}/open, above")
