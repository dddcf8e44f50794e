"""The figures of the simulations, and the goals."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from benchmarks.evictions.optimum import FurthestUse, least_cold_ms
from benchmarks.evictions.policies import ONLINE, Forecast, GreedyDual, Lru
from benchmarks.evictions.simulation import Generics, Refill, Simulation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.evictions.simulation import Result
    from benchmarks.evictions.workload import Trace

POLICIES: Final = (*ONLINE, FurthestUse)
_WINDOW_S: Final = 60.0
_GENERIC_TRACES: Final = ("zipf 1.1", "bursts")
_GENERIC_NUMBERS: Final = (1, 4, 8)
_MOST_OF_BEST: Final = 1.1  # of the better one of LRU and GDSF
_MOST_OVER_OFFLINE: Final = 0.02  # of the cold share
_MOST_RECOVERY_MIN: Final = 3


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one policy.

    Attributes:
        cold_share: The share of cold starts.
        cold_ms: The cold cost: the mean duration of a start, ms.
        hit_share: The hot starts, as a share of those of the offline policy.
        wasted_gib_s: The memory times idle time of containers evicted before their next use, GiB s.
        recovery_min: The number of minutes from a change of the popular functions until the cold cost is at
            most 1.25 times that of the last five minutes before the next change; None without changes.
    """

    cold_share: float
    cold_ms: float
    hit_share: float
    wasted_gib_s: float
    recovery_min: int | None


@dataclass(frozen=True, slots=True)
class TraceFindings:
    """The figures of one trace.

    Attributes:
        about: The description of the trace.
        jobs: The number of its jobs.
        policies: Policy → its figures.
        bound_ms: The lower bound of the cold cost, ms per job. None if more than 1 % of the jobs waited for
            memory: they start at other times than the bound assumes.
    """

    about: str
    jobs: int
    policies: dict[str, Figures]
    bound_ms: float | None


@dataclass(frozen=True, slots=True)
class GenericFindings:
    """The figures of one trace with generic containers.

    Attributes:
        trace: The trace.
        number: The number of generic containers for each runtime.
        refill: How they are refilled and evicted; empty without generic containers.
        cold_share: The share of cold starts.
        warm_share: The share of warm starts.
        start_ms: The mean duration of a start, ms.
        evictions: The number of evictions.
    """

    trace: str
    number: int
    refill: str
    cold_share: float
    warm_share: float
    start_ms: float
    evictions: int


@dataclass(slots=True)
class Findings:
    """The figures of all traces."""

    traces: dict[str, TraceFindings] = field(default_factory=dict)
    generic: list[GenericFindings] = field(default_factory=list)


def examine(given: Sequence[Trace], report: Callable[[str], None]) -> Findings:
    """Simulate all traces.

    Args:
        given: The traces.
        report: Called with the name of each part that is done.
    """
    found = Findings()
    for trace in given:
        found.traces[trace.name] = examine_trace(trace)
        report(trace.name)
    for trace in given:
        if trace.name in _GENERIC_TRACES:
            found.generic += examine_generic(trace)
            report(f"generic containers, {trace.name}")
    return found


def examine_trace(trace: Trace) -> TraceFindings:
    """Simulate a trace under each policy."""
    results = {policy.name: Simulation(trace, policy(trace)).run() for policy in POLICIES}
    offline = results[FurthestUse.name]
    figures = {
        name: Figures(
            cold_share=result.cold_share,
            cold_ms=result.ms_per_job,
            hit_share=(result.jobs - result.cold) / max(offline.jobs - offline.cold, 1),
            wasted_gib_s=result.wasted_mib_s / 1024,
            recovery_min=recovery_minutes(result, trace.shifts, trace.jobs[-1].at_s),
        )
        for name, result in results.items()
    }
    waits_seldom = offline.waited <= 0.01 * len(trace.jobs)
    bound_ms = least_cold_ms(trace) / max(offline.jobs, 1) if waits_seldom else None
    return TraceFindings(trace.about, len(trace.jobs), figures, bound_ms)


def examine_generic(trace: Trace) -> list[GenericFindings]:
    """Simulate a trace under the forecast, with different numbers of generic containers."""
    settings = [Generics()] + [Generics(number, refill) for number in _GENERIC_NUMBERS for refill in Refill]
    found = []
    for generics in settings:
        result = Simulation(trace, Forecast(trace), generics).run()
        found.append(
            GenericFindings(
                trace.name,
                generics.number,
                generics.refill.value if generics.number else "",
                result.cold_share,
                result.warm / max(result.jobs, 1),
                result.ms_per_job,
                result.evictions,
            )
        )
    return found


def recovery_minutes(result: Result, shifts: Sequence[float], end_s: float) -> int | None:
    """Return the longest recovery of all changes of the popular functions, minutes; None without changes."""
    longest = None
    for shift_s, next_s in pairwise((*shifts, end_s)):
        steady_ms = _mean_ms(result, next_s - 5 * _WINDOW_S, next_s)
        minute = 0
        while shift_s + minute * _WINDOW_S < next_s:
            start_s = shift_s + minute * _WINDOW_S
            if _mean_ms(result, start_s, start_s + _WINDOW_S) <= 1.25 * steady_ms:
                break
            minute += 1
        longest = max(longest or 0, minute)
    return longest


def _mean_ms(result: Result, start_s: float, end_s: float) -> float:
    costs = [start_ms for at_s, start_ms in result.starts if start_s <= at_s < end_s]
    return sum(costs) / max(len(costs), 1)


def goals(found: Findings) -> dict[str, bool]:
    """Return each goal as a sentence with its figures, and whether it is reached."""
    reached: dict[str, bool] = {}
    for name, trace in found.traces.items():
        figures = trace.policies
        ours = figures[Forecast.name]
        best = min(figures[Lru.name].cold_ms, figures[GreedyDual.name].cold_ms)
        text = f"{name}: cold cost {ours.cold_ms:.1f} ms, at most {_MOST_OF_BEST} times the best of"
        reached[f"{text} LRU and GDSF ({best:.1f} ms)"] = ours.cold_ms <= _MOST_OF_BEST * best
        if name == "scan 1.1":
            offline = figures[FurthestUse.name].cold_share
            text = f"{name}: cold share {ours.cold_share:.1%}, near the offline policy's ({offline:.1%})"
            reached[text] = ours.cold_share <= offline + _MOST_OVER_OFFLINE
        if ours.recovery_min is not None:
            text = f"{name}: recovers in {ours.recovery_min} min, at most {_MOST_RECOVERY_MIN} min"
            reached[text] = ours.recovery_min <= _MOST_RECOVERY_MIN
    return reached


def mean_of_ratios(found: Findings, policy: str) -> float:
    """Return the geometric mean of a policy's cold costs, each divided by that of the offline policy."""
    logs = [
        math.log(trace.policies[policy].cold_ms / trace.policies[FurthestUse.name].cold_ms)
        for trace in found.traces.values()
        if trace.policies[FurthestUse.name].cold_ms > 0
    ]
    return math.exp(sum(logs) / max(len(logs), 1))


def as_document(found: Findings) -> dict[str, Any]:
    """Return the findings as an object for JSON."""
    return {
        "traces": {name: asdict(trace) for name, trace in found.traces.items()},
        "generic": [asdict(row) for row in found.generic],
        "mean_of_ratios": {policy.name: mean_of_ratios(found, policy.name) for policy in POLICIES},
        "goals": goals(found),
    }
