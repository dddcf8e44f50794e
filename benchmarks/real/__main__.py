"""Measures real functions hot, against the bare program and `docker run`: `make bench-real`.

    python -m benchmarks.real                      all functions, about six minutes
    python -m benchmarks.real --only go-json       one function

The first run fetches packages with pip and npm. The last line of standard output is a JSON object. The exit
code is 1 if a function failed or printed another text than expected, 130 after an interruption, else 0.
Missed goals do not change it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import command, figures
from benchmarks.bench import describe_machine
from benchmarks.command import positive_seconds, remarks_on_load
from benchmarks.lab import Lab
from benchmarks.real import summary as summaries
from benchmarks.real.catalogue import functions
from benchmarks.real.measure import measure
from benchmarks.real.summary import HEADINGS, Summary
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.real.catalogue import RealFunction

_SECONDS: Final = 200.0


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [function.name for function in functions()]
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=names, help="measure only these functions"
    )
    parser.add_argument(
        "--seconds",
        type=positive_seconds,
        help=f"the time for the samples of all functions (default {_SECONDS:.0f})",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write real.json and real.md to this folder"
    )
    return parser.parse_args(given)


async def measure_all(chosen: Sequence[RealFunction], seconds: float) -> tuple[Summary, dict[str, Any]]:
    """Measure the functions in turn. A failure of one does not end the others."""
    found, load = Summary(), os.getloadavg()[0]
    async with Lab(has_model_server=True) as lab:
        for number, function in enumerate(chosen, 1):
            begun = time.monotonic()
            try:
                found.rows[function.name] = await measure(lab, function, seconds / len(chosen))
            except Exception as failure:  # noqa: BLE001 - every failure is reported, and sets the exit code to 1
                found.failed[function.name] = f"{type(failure).__name__}: {failure}".strip(": ")
                print(f"{found.failed[function.name]}\n{lab.last_log_lines()}", file=sys.stderr)
            took_s = time.monotonic() - begun
            print(f"  {number}/{len(chosen)} {function.name}: {took_s:.1f} s", file=sys.stderr, flush=True)
        machine = await describe_machine(lab) | {"load_before": round(load, 2)}
    found.notes += remarks_on_load(load)
    return found, machine


def show(found: Summary, machine: dict[str, Any], console: Console) -> None:
    """Print the table and the goals."""
    console.print(escape(" · ".join(f"{name} {value}" for name, value in machine.items())), soft_wrap=True)
    table = Table(title="real functions (ratios of medians)", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in {"function", "verdict"} else "right")
    for *cells, verdict in summaries.function_rows(found):
        table.add_row(*map(escape, cells), f"[red]{escape(verdict)}[/]" if verdict else "")
    console.print(table)
    for line in (*summaries.goal_lines(found), *found.remarks()):
        console.print(escape(line))


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print and write the results; return the exit code."""
    options = arguments(given)
    chosen = [function for function in functions() if options.only is None or function.name in options.only]
    found, machine = command.run(measure_all(chosen, options.seconds or _SECONDS))
    show(found, machine, Console(width=None if sys.stdout.isatty() else 140))
    document = summaries.as_document(found, machine)
    if options.report is not None:
        options.report.mkdir(parents=True, exist_ok=True)
        about = {function.name: function.about for function in chosen}
        (options.report / "real.json").write_text(figures.encode(document, indent=2) + "\n")
        (options.report / "real.md").write_text(summaries.as_markdown(found, about, machine))
    print(figures.encode(document))
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
