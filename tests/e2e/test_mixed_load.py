"""One worker runs many jobs at once, and two of five are hostile: 70 in `make test`, 500 in `make test-all`.

Nothing is timed here. `make bench-hostile` runs this file alone, with 500 jobs. It prints the ratio of the
durations of honest jobs beside hostile ones to those in a quiet run.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.model.job import Runtime
from support.agents.worker import WorkerUnderTest
from support.checks.matrix import EXHAUSTIVE
from support.checks.zips import make_zip

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.dev.local_services import EmbeddedStack

ADVERSARIES = Path(__file__).parents[1] / "adversarial/programs"
SEED = 20261124
DEADLINE_S = 400  # a hang is a failure; nothing is measured by it

# Each squares the number on its standard input, on its standard output and in a file.
HONEST = {
    Runtime.PYTHON: {
        "main.py": "n = int(input())\nprint(n * n)\nopen('/output/square.txt', 'w').write(str(n * n))\n"
    },
    Runtime.NODEJS: {
        "index.js": "const fs = require('fs');\nconst n = Number(fs.readFileSync(0));\nconsole.log(n * n);\n"
        "fs.writeFileSync('/output/square.txt', String(n * n));\n"
    },
    Runtime.CPP: {
        "main.cpp": "#include <fstream>\n#include <iostream>\nint main() {\n  long n;\n  std::cin >> n;\n"
        '  std::cout << n * n << std::endl;\n  std::ofstream("/output/square.txt") << n * n;\n}\n'
    },
    Runtime.GO: {
        "main.go": 'package main\n\nimport (\n\t"fmt"\n\t"os"\n)\n\nfunc main() {\n\tvar n int\n'
        "\tfmt.Scan(&n)\n"
        '\tfmt.Println(n * n)\n\tos.WriteFile("/output/square.txt", []byte(fmt.Sprint(n*n)), 0o644)\n}\n'
    },
}
# What a program is told to do, how long it may, and how that may end.
ATTACKS: list[tuple[dict[str, list[str]], int, set[str | None]]] = [
    ({"do": ["kill everyone"]}, 30_000, {None}),
    ({"do": ["daemon"]}, 30_000, {None}),
    ({"do": ["fork bomb"]}, 30_000, {"PROCESS_LIMIT", "OUT_OF_MEMORY"}),
    ({"do": ["thread bomb"]}, 30_000, {"PROCESS_LIMIT", "OUT_OF_MEMORY"}),
    ({"do": ["memory bomb in a child"]}, 30_000, {"OUT_OF_MEMORY"}),
    ({"do": ["close streams"]}, 30_000, {None}),
    ({"do": ["fill the disk"]}, 30_000, {"DISK_LIMIT", "OUT_OF_MEMORY"}),
    ({"do": ["stop everyone"]}, 400, {"TIMEOUT"}),
    ({"do": ["write for ever"]}, 30_000, {None}),
    ({"do": ["ignore SIGTERM"]}, 400, {"TIMEOUT"}),
    ({"leave": ["files", "code", "listener", "abstract socket", "deleted file", "daemon"]}, 30_000, {None}),
]
BAD_ARCHIVES = 2  # of every kind in each round


@dataclass(frozen=True, slots=True)
class Load:
    """The numbers of jobs.

    Attributes:
        warm: The jobs in each language that are done first.
        quiet: The jobs without hostile ones.
        honest: The jobs beside hostile ones.
        rounds: How often each attack is made.
        every_language: Whether all languages make each attack, or an interpreted and a compiled one.
    """

    warm: int
    quiet: int
    honest: int
    rounds: int
    every_language: bool

    @property
    def mixed(self) -> int:
        """The number of honest and hostile jobs together."""
        languages = len(Runtime) if self.every_language else 2
        return self.honest + self.rounds * (len(ATTACKS) * languages + len(BAD_ZIPS) * BAD_ARCHIVES)


BAD_ZIPS = (make_zip({"../main.py": ""}), b"PK\3\4 no zip", make_zip({"main.py": bytes(300 << 20)}))
SMALL = Load(warm=2, quiet=12, honest=42, rounds=1, every_language=False)
LARGE = Load(warm=8, quiet=100, honest=300, rounds=4, every_language=True)


@dataclass(frozen=True, slots=True)
class Expected:
    """A job's message and what is right of its result."""

    message: dict[str, Any]
    is_right: Callable[[dict[str, Any]], bool]
    honest: bool = False


async def honest_jobs(worker: WorkerUnderTest, count: int) -> list[Expected]:
    keys = {runtime: await worker.upload(files) for runtime, files in HONEST.items()}

    def job(number: int) -> Expected:
        runtime = list(Runtime)[number % len(Runtime)]
        message = worker.message(
            functionId=f"honest-{runtime}", runtime=runtime, s3Key=keys[runtime], input=number
        )

        def is_right(result: dict[str, Any]) -> bool:
            (link,) = result["outputFiles"] or [""]
            told = (result["status"], result["stdout"]) == ("SUCCESS", f"{number * number}\n")
            return told and result["requestId"] in link and link.endswith("/square.txt")

        return Expected(message, is_right, honest=True)

    return [job(number) for number in range(count)]


async def hostile_jobs(worker: WorkerUnderTest, load: Load) -> list[Expected]:
    """Every attack, and every bad archive, in each round."""
    jobs = []
    for number, runtime in enumerate(Runtime):
        key = await worker.upload(ADVERSARIES / runtime)
        attacks = ATTACKS if load.every_language else ATTACKS[number % 2 :: 2]
        for said, timeout_ms, endings in attacks * load.rounds:
            message = worker.message(
                functionId=f"hostile-{runtime}", runtime=runtime, s3Key=key, input=said, timeoutMs=timeout_ms
            )
            jobs.append(
                Expected(message, lambda result, endings=endings: result["errorType"] in endings)  # type: ignore[misc]
            )
    keys = [await worker.upload(content) for content in BAD_ZIPS]
    for key in keys * BAD_ARCHIVES * load.rounds:
        message = worker.message(functionId="bad-archive", s3Key=key)
        jobs.append(Expected(message, lambda result: result["errorType"] == "INVALID_CODE"))
    return jobs


@pytest.mark.timeout(2 * DEADLINE_S)
@pytest.mark.parametrize("load", [SMALL, pytest.param(LARGE, marks=EXHAUSTIVE)], ids=["70", "500"])
async def test_no_honest_job_is_lost_or_changed_among_hostile_ones(
    stack: EmbeddedStack, tmp_path: Path, record_property: Callable[[str, object], None], load: Load
) -> None:
    async with WorkerUnderTest(stack, tmp_path) as worker:
        # Everything is built and warm before anything is compared.
        warm = await honest_jobs(worker, load.warm * len(Runtime))
        await outcome(worker, warm)
        quiet = await outcome(worker, await honest_jobs(worker, load.quiet))
        jobs = await honest_jobs(worker, load.honest) + await hostile_jobs(worker, load)
        assert len(jobs) == load.mixed
        random.Random(SEED).shuffle(jobs)  # noqa: S311 - the same order each time
        results = await outcome(worker, jobs)
        wrong = [
            {name: result[name] for name in ("functionId", "status", "errorType", "errorMessage", "stderr")}
            for job, result in zip(jobs, results, strict=True)
            if not job.is_right(result)
        ]
        assert not wrong
        assert (await worker.get("/healthz"))[0] == 200
        assert '"level": "error"' not in worker.log.read_text()
    record_property("tried", ["attacks", sum(not job.honest for job in jobs)])
    mixed = [result for job, result in zip(jobs, results, strict=True) if job.honest]
    for phase in ("total", "run"):
        ratio = median(mixed, phase) / median(quiet, phase)
        record_property("ratio", [f"honest jobs beside hostile ones, median of {phase} against quiet", ratio])


async def outcome(worker: WorkerUnderTest, jobs: list[Expected]) -> list[dict[str, Any]]:
    """All results, in the order of the jobs."""
    return await worker.run_all([job.message for job in jobs], deadline_s=DEADLINE_S, at_once=True)


def median(results: list[dict[str, Any]], phase: str) -> float:
    return float(statistics.median(result["timings"][phase] for result in results))
