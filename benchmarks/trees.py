"""Compares the cost of a run between small and large code trees.

    python -m benchmarks.trees [--rounds N] [--trees NAMES]

Each tree has the same program, which prints a word and reads no other file of its tree. So a difference
between two trees is the cost of the files alone. The trees are measured in turn, in several rounds. Per round
and tree, the first run has a zip that the worker has never seen, and a container that is ready but has not
run the function. The hot runs follow, with a pause before each. The last line is a JSON object: medians in
ms, and their ratios to the tree of one file.

The phases of a first run: `request` (the zip is fetched from the stub of S3 and hashed), `unpack`, `publish`
(into the cache), `link` (into the work directory of the container), `modules` (the search for imports in the
code), `prepare` (the supervisor makes the code's files, and the zygote imports modules), `start`, `run`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import statistics
import time
import zipfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from benchmarks import command
from benchmarks.lab import MEMORY_MB, Lab
from benchmarks.ours import Call
from benchmarks.timed_broker import JobFailed

from nanoagent.code import archive, code_cache, disk_entries, imports
from nanoagent.container.work_directory import WorkDirectory
from nanoagent.model.job import Runtime
from nanoagent.supervisor.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.ours import AgentUnderTest

_PAUSE_S: Final = 0.05
_SETTLE_S: Final = 1.0  # after a tree, the worker refills its pool
_HOT_RUNS: Final = 15  # per round
_SEED: Final = 14
_MODULE_BYTES: Final = 3000  # the median size of a module in common libraries
_DATA_BYTES: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Shape:
    """A code tree.

    Attributes:
        files: The number of files beside the program.
        file_bytes: The size of each.
        is_flat: Whether all files are in the top folder. Otherwise they are nested, as in site-packages.
    """

    files: int
    file_bytes: int = _MODULE_BYTES
    is_flat: bool = False

    def names(self) -> Iterator[str]:
        """Yield the names of the files."""
        for number in range(self.files):
            if self.is_flat:
                yield f"module_{number}.py"
            else:
                yield f"library_{number // 400}/part_{number // 20 % 20}/module_{number % 20}.py"


SHAPES: Final = {
    "one": Shape(0),
    "1000": Shape(1000),
    "8000": Shape(8000),
    "8000-flat": Shape(8000, is_flat=True),
    "50mb": Shape(25, file_bytes=_DATA_BYTES),
}


def zip_of(shape: Shape, mark: str) -> bytes:
    """Return a zip of the tree. Its content is like source code: deflate makes it a third of its size."""
    words = random.Random(_SEED)  # noqa: S311 - not a secret
    vocabulary = ["".join(words.choices("abcdefghijklmnopqrstuvwxyz_", k=9)) for _ in range(3000)]
    text = " ".join(words.choices(vocabulary, k=shape.file_bytes // 5)).encode()
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("main.py", f'print("hello")  # {mark}\n')
        for number, name in enumerate(shape.names()):
            start = number % (shape.file_bytes // 5)
            file.writestr(name, text[start : start + shape.file_bytes])
    return target.getvalue()


class Phases:
    """The time of the phases of first runs, measured by replacing the functions of the worker."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = defaultdict(float)

    def install(self, patched: ExitStack) -> None:
        """Measure until `patched` is closed."""
        functions: list[tuple[str, Any, str]] = [
            ("unpack", archive, "extract"),
            ("publish", disk_entries.DiskEntries, "publish"),
            ("modules", imports, "imported"),
        ]
        for phase, owner, name in functions:
            patched.enter_context(mock.patch.object(owner, name, self._timed(phase, getattr(owner, name))))
        methods: list[tuple[str, Any, str]] = [
            ("request", code_cache.CodeCache, "_request"),
            ("link", WorkDirectory, "put_code"),
            ("prepare", Session, "prepare"),
        ]
        for phase, owner, name in methods:
            patched.enter_context(mock.patch.object(owner, name, self._awaited(phase, getattr(owner, name))))

    def _timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.ms[phase] += (time.perf_counter() - begun) * 1000

        return timed

    def _awaited(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        async def awaited(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return await function(*arguments, **named)
            finally:
                self.ms[phase] += (time.perf_counter() - begun) * 1000

        return awaited


class Trees:
    """The measurement.

    Args:
        lab: The resources.
        agent: The agent.
        phases: The phases of its first runs.
    """

    def __init__(self, lab: Lab, agent: AgentUnderTest, phases: Phases) -> None:
        self._lab = lab
        self._agent = agent
        self._phases = phases
        self.samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    async def measure(self, name: str, number: int) -> None:
        """Measure one round of a tree."""
        mark = f"tree-{name}-{number}"
        self._lab.put_object(f"{mark}.zip", zip_of(SHAPES[name], mark))
        call = Call(
            {
                "functionId": mark,
                "runtime": Runtime.PYTHON,
                "s3Key": f"{mark}.zip",
                "memoryMb": MEMORY_MB,
                "timeoutMs": 60_000,
                "input": {},
            },
            "hello\n",
        )
        samples = self.samples[name]
        await asyncio.sleep(_SETTLE_S)
        self._phases.ms.clear()
        samples["first"].append(await self._agent.run(call))
        (result,) = await self._agent.results()
        for phase, ms in (self._phases.ms | result["timings"]).items():
            if phase not in {"total", "queue", "build", "upload"}:
                samples[f"first_{phase}"].append(ms)
        for _ in range(_HOT_RUNS):
            await asyncio.sleep(_PAUSE_S)
            samples["hot"].append(await self._agent.run(call))
        for result in await self._agent.results():
            assert result["start"] == "hot", result
            for phase in ("start", "run"):
                samples[f"hot_{phase}"].append(result["timings"][phase])


async def measure(trees: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Return tree → figure → median, ms."""
    phases = Phases()
    with ExitStack() as patched:
        phases.install(patched)
        async with Lab() as lab:
            run = Trees(lab, await lab.agent(), phases)
            try:
                await run.measure("one", -1)  # the worker's own first steps
                run.samples.clear()
                for number in range(rounds):
                    for name in trees:
                        await run.measure(name, number)
            except JobFailed as exc:
                raise JobFailed(f"{exc}\n{lab.last_log_lines()}") from exc
    return {
        tree: {figure: round(statistics.median(samples), 2) for figure, samples in figures.items()}
        for tree, figures in run.samples.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--trees", default=",".join(SHAPES), help=f"default {','.join(SHAPES)}")
    options = parser.parse_args(arguments)
    trees = options.trees.split(",")
    medians = command.run(measure(trees, options.rounds))
    for tree, figures in medians.items():
        print(f"{tree:10}", "  ".join(f"{figure} {ms:g}" for figure, ms in figures.items()))
    ratios = {
        f"{tree}_{figure}_vs_one": round(medians[tree][figure] / medians["one"][figure], 3)
        for tree in trees
        for figure in ("first", "hot")
        if "one" in medians and tree != "one"
    }
    print(json.dumps({"ms": medians, **ratios}))


if __name__ == "__main__":
    main()
