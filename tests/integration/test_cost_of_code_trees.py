"""A hot run makes as many system calls with thousands of files of code as with few, in every language."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import aiodocker
import pytest
from benchmarks import container_counts, tracing

from nanoagent.common.units import MIB
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation
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
