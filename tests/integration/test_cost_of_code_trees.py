"""Costs of a run that do not grow with the number of files of its code.

A hot run makes as many system calls with thousands of files as with few, in every language. For a first run,
the worker makes and opens as many files.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import aiodocker
import pytest
from benchmarks import container_counts, tracing

from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.code_cache import CodeCache
from nanoagent.code.imports import imported
from nanoagent.common.units import MIB
from nanoagent.container.work_directory import WorkDirectory
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation
from nanoagent.storage.folder import FolderStore
from support.checks.zips import make_zip
from support.sandboxes.adversarial import Function, yard
from support.sandboxes.containers import LIMITS

if TYPE_CHECKING:
    from pathlib import Path

    from support.sandboxes.adversarial import Yard

# With fewer files, the code is small, and each sandbox gets a copy of it (sandbox_mounts.c).
FEW: Final = 40
MANY: Final = 4000
RUNS: Final = 5
# Of all calls together: the number of polls depends on the scheduler, and Node.js has threads.
SLACK: Final = 1.1
HELLO: Final = {
    Runtime.PYTHON: "import json\nprint('hello')\n",
    Runtime.NODEJS: "console.log('hello')\n",
    Runtime.CPP: "",
    Runtime.GO: "",
}
LISTINGS: Final = ("getdents64", "getdents")


def tree_of(folder: Path, files: int) -> Path:
    """Make a tree with the entry files of all languages, and as many files in its top folder as below.

    Empty files, because they are removed faster.
    """
    (folder / "library").mkdir(parents=True)
    for runtime, text in HELLO.items():
        (folder / RECIPES[runtime].entry).write_text(text)
    for number in range(files // 2):
        (folder / f"module_{number}.py").touch()
        (folder / "library" / f"module_{number}.py").touch()
    return folder


async def calls_of_a_hot_run(runs: Yard, function: Function) -> Counter[str]:
    """Return the numbers of system calls of all processes of the container, of all runs together."""
    async with runs.acquire(function) as acquired, aiodocker.Docker() as docker:
        container = await docker.containers.get(acquired.container.id)
        supervisor = int((await container.show())["State"]["Pid"])
        for _ in range(2):  # the second run has a sandbox that was made after a run
            assert (await runs.run_in(acquired, function, "")).stdout == "hello\n"
        await container_counts.settled(supervisor)
        async with tracing.traced(container_counts.family(supervisor), follow=True) as calls:
            for _ in range(RUNS):
                assert (await runs.run_in(acquired, function, "")).stdout == "hello\n"
                await container_counts.settled(supervisor)
    return Counter(call.name for call in calls)


@pytest.mark.parametrize("runtime", Runtime)
async def test_a_hot_run_makes_no_calls_for_files_that_it_does_not_use(
    runtime: Runtime, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    limits = replace(LIMITS, code_bytes=32 * MIB, code_files=2 * MANY)
    counts = []
    async with yard(Isolation.SANDBOX, (runtime,), limits=limits) as runs:
        for files in (FEW, MANY):
            tree = tree_of(tmp_path / str(files), files)
            built = program if RECIPES[runtime].build else None
            function = replace(runs.function(runtime, {}), tree=tree, program=built)
            try:
                counts.append(await calls_of_a_hot_run(runs, function))
            except tracing.CannotCount as lack:
                pytest.skip(str(lack))
    few, many = counts
    assert [many[name] for name in LISTINGS] == [few[name] for name in LISTINGS], (few, many)
    assert many.total() <= SLACK * few.total(), many - few


# --- the first run

WRITES: Final = os.O_WRONLY | os.O_RDWR
MAKES: Final = {"os.mkdir", "os.link", "os.symlink", "os.rename", "os.utime", "os.chmod"}
events: Counter[str] | None = None


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """Count the calls of this process that make or open files. An audit hook cannot be removed."""
    if events is None:
        return
    if event == "open" and not str(arguments[0]).startswith(("/proc/", "/sys/")):  # pools of other tests
        events["write" if arguments[2] & WRITES else "read"] += 1
    elif event in MAKES:
        events[event] += 1


@pytest.fixture(scope="module")
def audited() -> None:
    sys.addaudithook(note)


@pytest.mark.usefixtures("audited")
async def test_for_a_first_run_the_worker_makes_as_many_files_with_much_code_as_with_little(
    tmp_path: Path,
) -> None:
    """From the zip in the object store to the work directory of a container.

    Each fetch has an empty cache, because a cache reads what it holds already. The first is not compared:
    Python opens the files of modules that it imports then.
    """
    global events  # noqa: PLW0603 - the hook must find it
    counts = []
    limits = ArchiveLimits(MIB, MIB, MIB, 2 * MANY)
    for number, files in enumerate((FEW, FEW, MANY)):
        folder, key = tmp_path / str(number), f"{files}.zip"
        zipped = folder / "store/code" / key
        zipped.parent.mkdir(parents=True)
        zipped.write_bytes(
            make_zip({f"f/{n % 40}/{n}.py": "pass" for n in range(files)} | {"main.py": "pass"})
        )
        cache = CodeCache(folder / "cache", FolderStore(folder / "store"), limits, 64 * MIB)
        await cache.start()
        directory = WorkDirectory.make(folder / "work")
        events = Counter()
        try:
            async with cache.fetch("code", key) as tree:
                await directory.put_code(tree.path)
                assert imported(tree.path) == ()
        finally:
            counts.append(events)
            events = None
        await directory.remove()
        await cache.close()
    _, few, many = counts
    assert few == many
    assert many["write"] <= 8
    assert many["os.link"] == 1
