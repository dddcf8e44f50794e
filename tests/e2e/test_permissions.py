"""What the worker keeps on disk is its user's alone, whatever the umask; but not what containers get."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nanoagent.model.errors import PlatformError
from nanoagent.model.job import Runtime
from support.agents.ordinary_user import UID, OrdinaryWorker, place_of_its_own
from support.agents.worker import PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.dev.local_services import EmbeddedStack

# Beside the worker's private folder, what its containers' users have to get into, by its place below a slot.
FOR_CONTAINERS = 0o755


@pytest.fixture
def place() -> Iterator[Path]:
    with place_of_its_own() as place:
        yield place


def make_folder(path: Path, *, owner: int, mode: int) -> None:
    path.mkdir()
    path.chmod(mode)
    os.chown(path, owner, owner)


def folders_below(root: Path, *, but_not_in: str) -> dict[str, int]:
    """Every folder's mode; those called `but_not_in` and what is in them are left out.

    The worker is at work meanwhile: a slot whose container goes is gone between its name and its mode.
    """
    modes = {}
    for folder, names, _ in os.walk(root):
        names[:] = [name for name in names if name != but_not_in]
        with contextlib.suppress(FileNotFoundError):
            modes[str(Path(folder).relative_to(root))] = stat.S_IMODE(os.lstat(folder).st_mode)
    return modes


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=oct)
async def test_folders_are_private_and_jobs_run_whatever_the_umask(
    stack: EmbeddedStack, place: Path, umask: int
):
    worker = OrdinaryWorker(stack, place, umask=umask)
    # An earlier version's, or made by hand.
    for folder in (worker.tasks / worker.worker_id, place / "cache/code", place / "cache/code/packs"):
        make_folder(folder, owner=UID, mode=0o777)
    async with worker:
        keys = {runtime: await worker.upload(PROGRAMS / runtime) for runtime in Runtime}
        results = await worker.run_all(
            [
                worker.message(
                    runtime=runtime, functionId=f"umask-{runtime}", s3Key=key, input={"case": "files"}
                )
                for runtime, key in keys.items()
            ]
        )
        assert [(result["status"], result["attempt"]) for result in results] == [("SUCCESS", 1)] * len(keys)
        home = folders_below(worker.tasks, but_not_in="code")
        slots = {path: mode for path, mode in home.items() if Path(path).parent.name == "slots"}
        assert len(slots) >= len(Runtime)
        assert set(slots.values()) == {FOR_CONTAINERS}
        assert {mode for path, mode in home.items() if path not in slots} == {0o700}
        cache = folders_below(place / "cache", but_not_in="content")
        assert {"code/packs", "code/index", "code/workspaces", "programs/entries"} < set(cache)
        assert set(cache.values()) == {0o700}


@pytest.mark.parametrize(
    ("variable", "below"), [("DOCKER_WORK_DIR_ROOT", "tasks/{worker}"), ("CODE_CACHE_DIR", "cache/code")]
)
async def test_a_folder_of_another_user_is_refused_by_its_variables_name(
    stack: EmbeddedStack, place: Path, variable: str, below: str
):
    worker = OrdinaryWorker(stack, place)
    folder = place / below.format(worker=worker.worker_id)
    make_folder(folder, owner=0, mode=0o777)
    with pytest.raises(PlatformError, match=rf"{variable}: {folder} belongs to another user"):
        async with worker:
            pytest.fail("it started")
    assert list(folder.iterdir()) == []
