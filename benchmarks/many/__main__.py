"""Measures a worker with many functions: `make bench-many`.

    python -m benchmarks.many                                          all languages, about 25 minutes
    python -m benchmarks.many --runtimes python --functions 150 400    two numbers of functions

Each function prints a word. At most four jobs are unsettled, in turn over all functions. The first pass
creates the containers. The figures are those of the passes after it. The other measurements: how many
functions stay hot in a budget of 2 GiB, and a mixed load with popular functions and bursts.

The last line of standard output is a JSON object. The exit code is 1 if a measurement failed, 130 after an
interruption, else 0. Missed goals do not change it.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import command, figures
from benchmarks.bench import describe_machine
from benchmarks.command import positive_seconds, remarks_on_load
from benchmarks.lab import Lab
from benchmarks.many import measure
from benchmarks.many import summary as summaries
from benchmarks.many.arrivals import Mix
from benchmarks.many.summary import HEADINGS, Findings, Load
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

_COUNTS: Final = (1, 50, 150, 400, 1000)
_JOBS: Final = 600
_PARTS: Final = ("passes", "budget", "mix")
_DESCRIPTORS: Final = 65_536  # for 2,000 containers
_MOST_IN_BUDGET: Final = 120


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.many",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--runtimes", nargs="+", type=Runtime, choices=list(Runtime), default=list(Runtime), metavar="RUNTIME"
    )
    parser.add_argument(
        "--functions", nargs="+", type=int, default=list(_COUNTS), metavar="N", help="numbers of functions"
    )
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=list(_PARTS), help="measure these parts")
    parser.add_argument("--jobs", type=int, default=_JOBS, help="the least number of jobs in the warm passes")
    parser.add_argument(
        "--seconds", type=positive_seconds, default=Mix().seconds, help="the length of the mixed load"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write many.json and many.md to this folder"
    )
    return parser.parse_args(given)


def allow_descriptors() -> None:
    """Raise the limit on file descriptors, which the agent in this process divides among its containers."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))
        except (OSError, ValueError):
            print(f"the limit of {hard} file descriptors limits the number of containers", file=sys.stderr)


def report(name: str, load: Load) -> None:
    """Print the progress."""
    cells = zip(HEADINGS[1:], summaries.row(name, load)[1:], strict=True)
    print(
        f"  {name}: {', '.join(f'{cell} {head}' for head, cell in cells if cell)}",
        file=sys.stderr,
        flush=True,
    )


async def measure_all(
    options: argparse.Namespace,
) -> tuple[dict[Runtime, Findings], dict[str, Any], list[str]]:
    """Measure all that was asked for. A failure of one runtime does not end the others.

    Returns:
        The findings of each runtime, the machine, and the failures.
    """
    found: dict[Runtime, Findings] = {}
    failures: list[str] = []
    load = os.getloadavg()[0]
    async with Lab() as lab:
        for runtime in options.runtimes:
            found[runtime] = Findings()
            try:
                await _measure_one(lab, runtime, options, found[runtime])
            except Exception as failure:  # noqa: BLE001 - every failure is reported, and sets the exit code to 1
                failures.append(f"{runtime}: {type(failure).__name__}: {failure}".strip(": "))
                print(f"{failures[-1]}\n{lab.last_log_lines()}", file=sys.stderr)
        machine = await describe_machine(lab) | {"load_before": round(load, 2)}
    return found, machine, failures


async def _measure_one(lab: Lab, runtime: Runtime, options: argparse.Namespace, found: Findings) -> None:
    if "passes" in options.only:
        counts = sorted(options.functions)
        found.passes, found.idle_mb = await measure.many_functions(lab, runtime, counts, options.jobs, report)
    if "budget" in options.only:
        found.budget = await measure.hot_in_small_budget(lab, runtime, _MOST_IN_BUDGET, report)
    if "mix" in options.only:
        found.mix = await measure.mixed(lab, runtime, Mix(seconds=options.seconds), report)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print and write the results; return the exit code."""
    options = arguments(given)
    allow_descriptors()
    found, machine, failures = command.run(measure_all(options))
    document = summaries.as_document(found, machine) | {"failed": failures}
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(title="many functions", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "load" else "right")
    for cells in summaries.rows(found):
        table.add_row(*map(escape, cells))
    console.print(table)
    for line in (*summaries.goal_lines(document), *remarks_on_load(machine["load_before"])):
        console.print(escape(line))
    if options.report is not None:
        options.report.mkdir(parents=True, exist_ok=True)
        (options.report / "many.json").write_text(figures.encode(document, indent=2) + "\n")
        (options.report / "many.md").write_text(summaries.as_markdown(found, document, machine))
    print(figures.encode(document))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
