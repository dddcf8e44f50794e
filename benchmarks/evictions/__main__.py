"""Simulates the eviction of idle containers under several policies, in less than a minute.

    python -m benchmarks.evictions                            prints the cold costs and the goals
    python -m benchmarks.evictions --json                     the last line is also a JSON object
    python -m benchmarks.evictions --report docs/benchmarks   writes evictions.md and evictions.svg

The exit code is 1 if a goal was missed, else 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.evictions import public
from benchmarks.evictions.findings import as_document, examine, goals
from benchmarks.evictions.report import NAMES, as_markdown, cost_rows, draw
from benchmarks.evictions.traces import GENERATORS, generate
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.evictions.findings import Findings
    from benchmarks.evictions.workload import Trace


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evictions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        nargs="*",
        metavar="NAME",
        default=[*GENERATORS],
        help="of the generated traces, simulate only these",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="other random numbers for the generated traces (default 0)"
    )
    parser.add_argument("--azure", type=Path, metavar="FOLDER", help="add a sample of the Azure trace 2019")
    parser.add_argument("--workflows", type=Path, metavar="FOLDER", help="add traces of Nextflow workflows")
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write evictions.md and evictions.svg to this folder"
    )
    return parser.parse_args(given)


def chosen_traces(options: argparse.Namespace) -> list[Trace]:
    """Return the traces of the options.

    Raises:
        SystemExit: No trace has one of the names, or a file cannot be read.
    """
    unknown = sorted(set(options.only) - set(GENERATORS))
    if unknown:
        sys.exit(f"unknown traces {unknown}; the traces are {[*GENERATORS]}")
    found = [generate(name, options.seed) for name in GENERATORS if name in options.only]
    try:
        if options.azure is not None:
            found.append(public.azure(options.azure))
        if options.workflows is not None:
            found += [public.workflow(path) for path in sorted(options.workflows.glob("*.csv"))]
    except (OSError, KeyError, ValueError) as failure:
        sys.exit(f"trace not read: {type(failure).__name__}: {failure}")
    return found


def show(found: Findings, console: Console) -> None:
    """Print the cold costs and the goals."""
    table = Table(title="cold cost, ms per job", title_justify="left")
    table.add_column("trace")
    for name in (*NAMES, "bound"):
        table.add_column(name, justify="right")
    for cells in cost_rows(found):
        table.add_row(*map(escape, cells))
    console.print(table)
    for goal, reached in goals(found).items():
        console.print(f"{'reached' if reached else '[red]missed[/]'}  {escape(goal)}", soft_wrap=True)


def main(given: Sequence[str] | None = None) -> int:
    """Simulate, print and write the results; return the exit code."""
    options = arguments(given)
    begun = time.monotonic()

    def report(part: str) -> None:
        print(f"  {time.monotonic() - begun:5.1f} s  {part}", file=sys.stderr, flush=True)

    found = examine(chosen_traces(options), report)
    show(found, Console(width=None if sys.stdout.isatty() else 120))
    if options.report is not None:
        options.report.mkdir(parents=True, exist_ok=True)
        (options.report / "evictions.md").write_text(as_markdown(found))
        (options.report / "evictions.svg").write_text(draw(found))
    if options.json:
        print(json.dumps(as_document(found)))
    return 0 if all(goals(found).values()) else 1


if __name__ == "__main__":
    sys.exit(main())
