"""Public traces from files. The project has no copy of them.

* `azure`: a sample of the Azure Functions trace 2019 (Shahrad et al., ATC 2020; CC-BY) in the format of the
  repository vhive-serverless/invitro, folder data/traces/500 of its history: `invocations.csv` and
  `durations.csv`.
* `workflow`: the records of a Nextflow workflow of the repository dos-group/sizey, a CSV file.

The files have no sizes of containers, so functions of all kinds are drawn.
"""

from __future__ import annotations

import csv
import random
from typing import TYPE_CHECKING, Final

from benchmarks.evictions.workload import BUDGET_BYTES, Job, Trace, mixed

from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from pathlib import Path

_MINUTES: Final = 240
_MOST_PER_MINUTE: Final = 2  # of one function; a few functions have most of the calls, and are always hot
_WORKFLOW_BUDGET_BYTES: Final = 896 * MIB  # below 1 GiB, workflows with 10 to 50 functions evict containers


def azure(folder: Path) -> Trace:
    """Read the first four hours of a sample of the Azure Functions trace 2019.

    Raises:
        OSError: A file cannot be read.
        KeyError, ValueError: A file has another format.
    """
    rng = random.Random(0)  # noqa: S311 - a simulation
    with (folder / "durations.csv").open(newline="") as file:
        durations_s = {
            row["HashFunction"]: float(row["percentile_Average_50"]) / 1000 for row in csv.DictReader(file)
        }
    with (folder / "invocations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    jobs: list[Job] = []
    for function, row in enumerate(rows):
        duration_s = min(max(durations_s.get(row["HashFunction"], 0.1), 0.005), 30.0)
        counts = [value for name, value in row.items() if name.isdigit()][:_MINUTES]
        for minute, calls in enumerate(counts):
            number = min(int(float(calls)), _MOST_PER_MINUTE)
            jobs += [Job(60 * (minute + rng.random()), function, duration_s) for _ in range(number)]
    about = f"{len(rows)} functions of the Azure Functions trace 2019, 4 hours, at most 2 jobs a minute each"
    return Trace("azure", about, mixed(rng, len(rows)), tuple(sorted(jobs)), BUDGET_BYTES)


def workflow(path: Path) -> Trace:
    """Read the arrivals of a workflow's tasks. A run takes at most 5 s.

    Raises:
        OSError: The file cannot be read.
        KeyError, ValueError: The file has another format.
    """
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "COMPLETED"]
    names = sorted({row["process"] for row in rows})
    start_ms = min(int(row["submit"]) for row in rows)
    jobs = sorted(
        Job(
            (int(row["submit"]) - start_ms) / 1000,
            names.index(row["process"]),
            min(int(row["realtime"]) / 1000, 5.0),
        )
        for row in rows
    )
    functions = mixed(random.Random(0), len(names))  # noqa: S311 - a simulation
    about = f"{len(names)} kinds of tasks of a workflow, {len(jobs)} tasks"
    return Trace(path.stem.removeprefix("trace_"), about, functions, tuple(jobs), _WORKFLOW_BUDGET_BYTES)
