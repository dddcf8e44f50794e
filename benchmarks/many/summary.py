"""The figures of a benchmark with many functions, its goals, and the texts of its report. Pure functions."""

from __future__ import annotations

import statistics
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from benchmarks.figures import Goal
from benchmarks.stats import percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoagent.model.job import Runtime

HEADINGS: Final = (
    "load",
    "jobs/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "agent CPU ms",
    "cold",
    "warm",
    "first pass, jobs/s",
)
_COLUMNS: Final = 100  # of text in documents
# Key of the figure → goal. The goals are for two cores.
GOALS: Final = {
    "functions.150.jobs_per_s": Goal(170, most=False),
    "functions.400.jobs_per_s": Goal(150, most=False),
    "functions.1000.jobs_per_s": Goal(100, most=False),
    "functions.150.cold_share": Goal(0.02),
    "functions.400.cold_share": Goal(0.02),
    "functions.1000.cold_share": Goal(0.02),
    "budget_2gib_hot_functions": Goal(80, most=False),
    "mix.p95_ms": Goal(60),
    "mix.p99_ms": Goal(250),
    "mix.cold_share": Goal(0.02),
}


@dataclass(frozen=True, slots=True)
class Load:
    """The jobs of one load.

    Attributes:
        times_ms: The time of each job, ms.
        starts: The kind of start of each job: `hot`, `warm` or `cold`.
        elapsed_s: The time from the first job to the end of the last one, seconds.
        agent_cpu_s: The CPU time of the agent's process, seconds. It includes the code that sends the jobs.
    """

    times_ms: Sequence[float]
    starts: Sequence[str]
    elapsed_s: float
    agent_cpu_s: float = 0.0

    @property
    def jobs_per_s(self) -> float:
        """The number of jobs per second."""
        return len(self.times_ms) / self.elapsed_s

    def share(self, start: str) -> float:
        """Return the share of the jobs with a kind of start."""
        return sum(each == start for each in self.starts) / len(self.starts)

    @property
    def cold_share(self) -> float:
        """The share of cold starts."""
        return self.share("cold")

    def figures(self) -> dict[str, float]:
        """Return the figures of the JSON document."""
        return {
            "jobs_per_s": self.jobs_per_s,
            "p50_ms": statistics.median(self.times_ms),
            "p95_ms": percentile(self.times_ms, 95),
            "p99_ms": percentile(self.times_ms, 99),
            "agent_cpu_ms": self.agent_cpu_s * 1000 / len(self.times_ms),
            "cold_share": self.cold_share,
            "warm_share": self.share("warm"),
        }


@dataclass(slots=True)
class Findings:
    """The results of one runtime. An attribute is empty or None if it was not measured.

    Attributes:
        passes: The number of functions → the first pass, and the warm passes.
        budget: The largest number of functions that stay hot in 2 GiB.
        mix: The mixed load after its first minute.
        idle_mb: The memory of each container with a hot function, MiB.
    """

    passes: dict[int, tuple[Load, Load]] = field(default_factory=dict)
    budget: int | None = None
    mix: Load | None = None
    idle_mb: list[float] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the results as a JSON document."""
        found: dict[str, Any] = {
            "functions": {
                str(count): {**warm.figures(), "first_pass_jobs_per_s": first.jobs_per_s}
                for count, (first, warm) in self.passes.items()
            }
        }
        if self.budget is not None:
            found["budget_2gib_hot_functions"] = self.budget
        if self.mix is not None:
            found["mix"] = self.mix.figures()
        return found


def as_document(found: dict[Runtime, Findings], machine: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON document: the figures of the first runtime on the top level, others in `runtimes`."""
    first, *others = found
    document = found[first].document()
    document["idle_mb"] = {
        str(runtime): statistics.median(findings.idle_mb)
        for runtime, findings in found.items()
        if findings.idle_mb
    }
    document["runtimes"] = {str(runtime): found[runtime].document() for runtime in others}
    document["missed"] = missed(document)
    return document | {"machine": machine}


def figure(document: dict[str, Any], key: str) -> float | None:
    """Return the value at a key with dots; None if it was not measured."""
    value: Any = document
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return float(value)


def missed(document: dict[str, Any]) -> list[str]:
    """Return the keys of the goals that are not reached. Goals without a figure are not among them."""
    values = {key: figure(document, key) for key in GOALS}
    return [key for key, value in values.items() if value is not None and not GOALS[key].met(value)]


def row(name: str, load: Load, first: Load | None = None) -> list[str]:
    """Return the cells of one row of the table."""
    figures = load.figures()
    times = [f"{figures[key]:.1f}" for key in ("jobs_per_s", "p50_ms", "p95_ms", "p99_ms", "agent_cpu_ms")]
    shares = [f"{figures[key]:.1%}" for key in ("cold_share", "warm_share")]
    return [name, *times, *shares, "" if first is None else f"{first.jobs_per_s:.1f}"]


def rows(found: dict[Runtime, Findings]) -> list[list[str]]:
    """Return the rows of the table."""
    lines = []
    for runtime, findings in found.items():
        for count, (first, warm) in findings.passes.items():
            lines.append(row(f"{runtime}, {count} functions", warm, first))
        if findings.mix is not None:
            lines.append(row(f"{runtime}, mixed load", findings.mix))
    return lines


def goal_lines(document: dict[str, Any]) -> list[str]:
    """Return a line for each goal that has a figure."""
    lines = []
    for key, goal in GOALS.items():
        if (value := figure(document, key)) is not None:
            verdict = "met" if goal.met(value) else "missed"
            lines.append(f"{key}: {value:.4g}, goal {goal}: {verdict}")
    return lines


def as_markdown(found: dict[Runtime, Findings], document: dict[str, Any], machine: dict[str, Any]) -> str:
    """Return the page with the results."""
    described = ", ".join(f"{name} {value}" for name, value in machine.items())
    table = [HEADINGS, ["---", *["---:"] * (len(HEADINGS) - 1)], *rows(found)]
    lines = [
        "# Many functions on one worker",
        "",
        "Written by `make bench-many`.",
        "",
        *textwrap.wrap(f"Machine: {described}.", _COLUMNS, break_on_hyphens=False),
        "",
    ]
    lines += [f"| {' | '.join(cells)} |" for cells in table]
    lines += ["", *(f"* {line}" for line in goal_lines(document))]
    return "\n".join(lines) + "\n"
