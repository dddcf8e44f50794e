"""The figures of a benchmark of real functions, its goals, and the texts of its report. Pure functions."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from benchmarks.figures import Goal, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.stats import Ratio

GOALS: Final = {"median_vs_bare": Goal(0.6), "max_vs_bare": Goal(1.1)}
_LARGEST: Final = GOALS["max_vs_bare"].bound
HEADINGS: Final = (
    "function",
    "hot ms",
    "bare ms",
    "vs bare",
    "95 % interval",
    "vs compiled",
    "vs run",
    "reuse ms",
    "reuse vs bare",
    "verdict",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The figures of one function.

    Attributes:
        hot_ms: The median time of a hot run through the agent, ms.
        bare_ms: The median time of the bare program, ms.
        vs_bare: The ratio of both.
        vs_compiled: The same if the modules of the bare program are compiled; None for other languages.
        vs_run: The ratio to `docker run`; None without the command docker.
        is_compiled: Whether the worker had compiled the function's code, if it is in Python.
        reusing_ms: The median time of a hot run with `reuse: "imports"`, ms; None without packages, and
            if their imports cannot be reused.
        reusing_vs_bare: The ratio of this time to that of the bare program.
    """

    hot_ms: float
    bare_ms: float
    vs_bare: Ratio
    vs_compiled: Ratio | None
    vs_run: Ratio | None
    is_compiled: bool = True
    reusing_ms: float | None = None
    reusing_vs_bare: Ratio | None = None

    @property
    def verdict(self) -> str:
        """`above 1.1` if the function misses the goal for each function; else empty."""
        return "" if self.vs_bare.value <= _LARGEST else f"above {_LARGEST:g}"


@dataclass(slots=True)
class Summary:
    """The results of all functions.

    Attributes:
        rows: Function → its figures.
        failed: Function → why it has none.
        notes: Further sentences for readers.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, float | None]:
        """The figures that have goals; None if no function was measured."""
        ratios = [row.vs_bare.value for row in self.rows.values()]
        return {
            "median_vs_bare": statistics.median(ratios) if ratios else None,
            "max_vs_bare": max(ratios, default=None),
        }

    def remarks(self) -> list[str]:
        """Return the notes, and which functions have not reached their steady state."""
        names = ", ".join(sorted(name for name, row in self.rows.items() if not row.is_compiled))
        return (
            [*self.notes, f"not compiled, so their hot runs are too slow: {names}"] if names else self.notes
        )

    @property
    def above(self) -> list[str]:
        """The functions above the goal for each function, the slowest first."""
        slow = [name for name, row in self.rows.items() if row.verdict]
        return sorted(slow, key=lambda name: -self.rows[name].vs_bare.value)


def as_document(summary: Summary, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "functions": {name: _fields(row) for name, row in sorted(summary.rows.items())},
        **{name: _rounded(value) for name, value in summary.figures.items()},
        "above_1_1": summary.above,
        "failed": summary.failed,
        "machine": dict(machine),
    }


def _fields(row: Row) -> dict[str, float | None]:
    ratios = {
        "vs_bare": row.vs_bare,
        "vs_compiled": row.vs_compiled,
        "vs_run": row.vs_run,
        "reuse_vs_bare": row.reusing_vs_bare,
    }
    return {
        **{name: _rounded(ratio.value if ratio else None) for name, ratio in ratios.items()},
        "hot_ms": _rounded(row.hot_ms),
        "bare_ms": _rounded(row.bare_ms),
        "reuse_ms": _rounded(row.reusing_ms),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def function_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Return the table of functions; its columns are `HEADINGS`."""
    rows = [
        (
            name,
            shown(row.hot_ms),
            shown(row.bare_ms),
            shown(row.vs_bare.value),
            f"{shown(row.vs_bare.low)} … {shown(row.vs_bare.high)}",
            shown(row.vs_compiled.value) if row.vs_compiled else "",
            shown(row.vs_run.value) if row.vs_run else "",
            "" if row.reusing_ms is None else shown(row.reusing_ms),
            shown(row.reusing_vs_bare.value) if row.reusing_vs_bare else "",
            row.verdict,
        )
        for name, row in sorted(summary.rows.items())
    ]
    blanks = ("",) * (len(HEADINGS) - 2)
    return rows + [(name, *blanks, f"failed: {reason}") for name, reason in sorted(summary.failed.items())]


def goal_lines(summary: Summary) -> list[str]:
    """Return one sentence for each goal: the figure, the goal, and whether it is met."""
    lines = []
    for name, value in summary.figures.items():
        goal = GOALS[name]
        verdict = "not measured" if value is None else "met" if goal.met(value) else "missed"
        lines.append(f"{name}: {'' if value is None else shown(value)} (goal {goal}): {verdict}")
    return lines


_HOW: Final = """\
`make bench-real` wrote this page, for the commit below. The samples of all variants were taken in turns, in
random order, in one run, and each output was checked. Absolute times are valid only for this machine.

* hot: the whole worker, from the receipt of the message until the result is stored in Redis; the function
  has run before, and its byte code is compiled.
* bare: a small static helper starts and times the program in a container with the same image, limits, input
  and code. Its code is read-only, as in the worker, so Python compiles the modules in each run.
* compiled: the same for Python, but the modules of the program are compiled already.
* reuse: hot, with the job field `reuse: "imports"`; only Python functions with packages in the zip.
* run: `docker run --rm --network none`, without limits.

A function that calls a model does so through the gateway if hot, and else directly, in the network of the
host.""".splitlines()


def as_markdown(summary: Summary, about: Mapping[str, str], machine: Mapping[str, Any]) -> str:
    """Return the page of a result, for docs/benchmarks.

    Args:
        summary: The results.
        about: Function → a sentence about it.
        machine: The machine and the versions.
    """

    def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        cells = [headings, ["---"] * len(headings), *rows]
        return [
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
            for row in cells
        ]

    names = sorted(summary.rows | summary.failed)
    lines = ["# Real functions", "", *_HOW, ""]
    lines += [f"* {name}: {value}" for name, value in machine.items()]
    lines += ["", "## Goals", "", *(f"* {line}" for line in goal_lines(summary))]
    lines += ["", "## Figures", "", *table(HEADINGS, function_rows(summary))]
    lines += ["", "## Functions", "", *table(("function", "what it does"), [(n, about[n]) for n in names])]
    if summary.remarks():
        lines += ["", "## Notes", "", *(f"* {note}" for note in summary.remarks())]
    return "\n".join(lines) + "\n"
