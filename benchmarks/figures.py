"""The figures, their goals, and the texts of a report. This module uses no clock and no containers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.stats import Ratio, Summary


@dataclass(frozen=True, slots=True)
class Goal:
    """The goal of a figure.

    Attributes:
        bound: The largest, or the smallest, value that is good enough.
        most: Whether the bound is the largest value.
    """

    bound: float
    most: bool = True

    def met(self, value: float) -> bool:
        """Return whether the value is good enough."""
        return value <= self.bound if self.most else value >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.most else '≥'} {self.bound:g}"


# Key → its parts, in the order of the JSON document. A key without parts is a number.
_PLAIN: Final = ("vs_bare", "vs_exec", "vs_run", "p99_vs_bare_p50")
_BUILT: Final = (*_PLAIN, "vs_build_and_run")
KEYS: Final[dict[str, tuple[str, ...]]] = {
    "python_hello": _PLAIN,
    "python_hello_b2b": _PLAIN,
    "python_pandas": _PLAIN,
    "node_hello": _PLAIN,
    "node_hello_b2b": _PLAIN,
    "cpp_hello": _BUILT,
    "go_hello": _BUILT,
    "sandbox_vs_shared": (),
    "cpp_miss_vs_stock": (),
    "go_miss_vs_cold": (),
    "throughput_vs_bare": (),
    "throughput_vs_exec": (),
    "throughput_vs_run": (),
    "first_run_vs_hot": (),
    "agent_cpu_vs_bare_cpu": (),
    "idle_container_mb": ("python", "nodejs", "cpp", "go", "python_with_pandas"),
}

# For medians on two cores. docs/benchmarks has the sources.
GOALS: Final[dict[str, Goal]] = {
    "python_hello.vs_bare": Goal(0.30),
    "python_hello.vs_exec": Goal(0.06),
    "python_hello.vs_run": Goal(0.016),
    "python_hello.p99_vs_bare_p50": Goal(1.0),
    "python_hello_b2b.vs_bare": Goal(0.45),
    "python_pandas.vs_bare": Goal(0.04),
    "node_hello.vs_bare": Goal(0.11),
    "node_hello_b2b.vs_bare": Goal(0.45),
    "cpp_hello.vs_bare": Goal(2.0),
    "cpp_hello.vs_build_and_run": Goal(0.02),
    "go_hello.vs_bare": Goal(2.0),
    "go_hello.vs_build_and_run": Goal(0.05),
    "sandbox_vs_shared": Goal(1.25),
    "cpp_miss_vs_stock": Goal(0.45),
    "go_miss_vs_cold": Goal(0.06),
    "throughput_vs_bare": Goal(2.0, most=False),
    "throughput_vs_exec": Goal(9, most=False),
    "throughput_vs_run": Goal(45, most=False),
    "first_run_vs_hot": Goal(2.0),
    "agent_cpu_vs_bare_cpu": Goal(0.09),
}

Verdict = Literal["met", "missed", "no goal", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class Arm:
    """The samples of one arm, for information.

    Attributes:
        key: The key that it was measured for.
        name: The name of the arm.
        unit: The unit of the samples.
        summary: A summary of the samples.
    """

    key: str
    name: str
    unit: str
    summary: Summary


@dataclass(slots=True)
class Findings:
    """The results of a benchmark.

    Attributes:
        values: Figure (`key` or `key.part`) → value.
        intervals: Figure → its 95 % interval, if it has one.
        arms: The samples behind the ratios.
        skipped: Key or figure → why it could not be measured here.
        failed: Key → the error.
        notes: Further sentences for readers.
    """

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    arms: list[Arm] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, figure: str, ratio: Ratio) -> None:
        """Add a ratio with its interval."""
        self.values[figure] = ratio.value
        self.intervals[figure] = (ratio.low, ratio.high)

    def reason(self, figure: str) -> str:
        """Return why a figure is missing."""
        key = figure.partition(".")[0]
        for reasons, word in ((self.failed, "failed"), (self.skipped, "skipped")):
            for name in (figure, key):
                if name in reasons:
                    return f"{word}: {reasons[name]}"
        return "skipped: not measured"

    def verdict(self, figure: str) -> Verdict:
        """Return whether the goal of a figure is met, or why it has no verdict."""
        if figure not in self.values:
            return "failed" if self.reason(figure).startswith("failed") else "skipped"
        goal = GOALS.get(figure)
        if goal is None:
            return "no goal"
        return "met" if goal.met(self.values[figure]) else "missed"


def figures_of(key: str) -> list[str]:
    """Return the figures of a key: the key, or its parts."""
    return [f"{key}.{part}" for part in KEYS[key]] or [key]


def as_document(findings: Findings, keys: Sequence[str], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON document: every requested key, with null for keys without a value.

    It also has `spread` (figure → interval), `skipped`, `failed`, `missed` (the figures that miss their
    goals) and `machine`.
    """
    document: dict[str, Any] = {key: _value(findings, key) for key in keys}
    figures = [figure for key in keys for figure in figures_of(key)]
    document["spread"] = {
        figure: [_rounded(end) for end in findings.intervals[figure]]
        for figure in figures
        if figure in findings.intervals
    }
    document["missed"] = [figure for figure in figures if findings.verdict(figure) == "missed"]
    document["skipped"] = findings.skipped
    document["failed"] = findings.failed
    document["machine"] = dict(machine)
    return document


def _value(findings: Findings, key: str) -> float | dict[str, float | None] | None:
    if not KEYS[key]:
        return _rounded(findings.values[key]) if key in findings.values else None
    parts = {part: findings.values.get(f"{key}.{part}") for part in KEYS[key]}
    if all(value is None for value in parts.values()):
        return None
    return {part: None if value is None else _rounded(value) for part, value in parts.items()}


def _rounded(value: float) -> float:
    """Round to four significant digits; more would not be accurate."""
    return float(f"{value:.4g}")


def shown(value: float) -> str:
    """Format a value with three significant digits."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def figure_rows(findings: Findings, keys: Sequence[str]) -> list[tuple[str, str, str, str, str]]:
    """Return the table of figures: name, value, 95 % interval, goal, and verdict or reason."""
    return [
        (
            figure,
            shown(findings.values[figure]) if figure in findings.values else "",
            _interval(findings, figure),
            str(GOALS[figure]) if figure in GOALS else "",
            _remark(findings, figure),
        )
        for key in keys
        for figure in figures_of(key)
    ]


def _interval(findings: Findings, figure: str) -> str:
    ends = findings.intervals.get(figure)
    return f"{shown(ends[0])} … {shown(ends[1])}" if ends else ""


def _remark(findings: Findings, figure: str) -> str:
    """Return the verdict, or why the value is missing. A reason is given once for all figures of a key."""
    verdict = findings.verdict(figure)
    if verdict not in {"skipped", "failed"}:
        return "" if verdict == "no goal" else verdict
    first, *_ = figures_of(figure.partition(".")[0])
    is_repeated = figure != first and first not in findings.values
    return (
        verdict
        if is_repeated and findings.reason(figure) == findings.reason(first)
        else findings.reason(figure)
    )


def arm_rows(findings: Findings) -> list[tuple[str, str, str, str, str, str]]:
    """Return the table of arms: key, arm, samples, median with unit, quartiles, 99th percentile."""
    return [
        (
            arm.key,
            arm.name,
            str(arm.summary.count),
            f"{shown(arm.summary.median)} {arm.unit}",
            f"{shown(arm.summary.low)} … {shown(arm.summary.high)}",
            shown(arm.summary.p99),
        )
        for arm in findings.arms
    ]


FIGURE_HEADINGS: Final = ("figure", "value", "95 % interval", "goal", "verdict")
ARM_HEADINGS: Final = ("measured for", "arm", "samples", "median", "quartiles", "p99")


_HOW: Final = """\
`make bench` writes this folder, for the commit below. The figures are ratios of medians. The samples of all
arms were taken in turns, in random order, in one run.
Absolute times are for information only.""".splitlines()
_WHAT: Final = """\
bare: a small static helper starts and times the program inside a container of the same image, with the same
limits, input and environment; exec: `docker exec` through the API; run: `docker run --rm --network none`;
ours: from the receipt of the message until the result is stored in Redis.""".splitlines()


def as_markdown(findings: Findings, keys: Sequence[str], machine: Mapping[str, Any]) -> str:
    """Return the page of a result, for docs/benchmarks."""
    facts = [f"* {name}: {value}" for name, value in machine.items()]
    notes = [f"* {note}" for note in findings.notes]
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "![Each figure against its goal](results.svg)",
            "",
            *_HOW,
            "",
            *facts,
            "",
            "## Figures",
            "",
            *_table(FIGURE_HEADINGS, figure_rows(findings, keys)),
            "",
            "## Arms",
            "",
            *_table(ARM_HEADINGS, arm_rows(findings)),
            "",
            *_WHAT,
            *(["", "## Notes", "", *notes] if notes else []),
            "",
        ]
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(headings), line(["---"] * len(headings)), *(line(row) for row in rows)]


def encode(document: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Return the text of a document; one line unless `indent` is set."""
    return json.dumps(document, ensure_ascii=False, indent=indent, allow_nan=False)
