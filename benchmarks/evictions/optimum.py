"""A policy that knows all arrivals of a trace, and a lower bound."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.evictions.policies import Policy

if TYPE_CHECKING:
    from benchmarks.evictions.simulation import Container
    from benchmarks.evictions.workload import Trace


class _Run(NamedTuple):
    """A run that starts hot, at the arrival of its job."""

    start_s: float
    end_s: float


def _runs_by_rank(trace: Trace) -> dict[tuple[int, int], list[_Run]]:
    """Return the runs of each function and rank.

    The rank of a run is the number of other runs of its function at its start. All starts are taken to be
    hot: the waiting and starting times of a simulation are not known in advance.
    """
    runs: dict[tuple[int, int], list[_Run]] = defaultdict(list)
    ends: dict[int, list[float]] = defaultdict(list)
    for at_s, function, duration_s in trace.jobs:
        running = ends[function]
        while running and running[0] <= at_s:
            heapq.heappop(running)
        runs[function, len(running)].append(_Run(at_s, at_s + duration_s))
        heapq.heappush(running, at_s + duration_s)
    return runs


class FurthestUse(Policy):
    """Evicts the container with the largest size times time until its next use, divided by its cold cost.

    For equal sizes and costs this is Belady's rule. The rule is optimal if a run needs no more memory than
    its idle container. Here a run needs more for a moment, and sizes and costs differ. So it is a heuristic,
    and its results are not a bound: to find the optimum is NP-hard.
    """

    name = "offline"

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self._starts = {key: [run.start_s for run in runs] for key, runs in _runs_by_rank(trace).items()}

    def value(self, container: Container, rank: int, now: float) -> float:
        """Return cold cost ÷ (size times time until the next use)."""
        starts = self._starts.get((container.function, rank), [])
        following = bisect_right(starts, now)
        if following == len(starts):
            return 0.0
        return self._cost_per_byte(container) / max(starts[following] - now, 1e-3)


def least_cold_ms(trace: Trace) -> float:
    """Return a lower bound of the cold cost of all jobs but the first of each function, ms.

    This is PFOO-L (Berger, Beckmann and Harchol-Balter, "Practical Bounds on Optimal Caching with Variable
    Object Sizes", 2018). A hot start takes its container's memory at each arrival since the end of the last
    run. All of them together have no more than the budget without the busy containers. The bound saves the
    most costs with this sum, as if memory could be moved from one time to another. No policy reaches it. It
    is not exact in one respect: cold starts make runs longer, so that jobs of a simulation may overlap more
    or less often.
    """
    arrivals = [job.at_s for job in trace.jobs]
    left = float(trace.budget_bytes) * len(arrivals)
    left -= sum(
        trace.functions[function].limit_bytes
        * (bisect_left(arrivals, at_s + duration_s) - bisect_left(arrivals, at_s))
        for at_s, function, duration_s in trace.jobs
    )
    cost_ms = 0.0
    savings: list[tuple[float, float, float]] = []  # memory ÷ ms, memory, ms
    for (number, rank), runs in _runs_by_rank(trace).items():
        function = trace.functions[number]
        cost_ms += function.cold_ms * (len(runs) - (rank == 0))
        for before, after in pairwise(runs):
            arrivals_between = bisect_left(arrivals, after.start_s) - bisect_left(arrivals, before.end_s)
            memory = float(function.held_bytes * arrivals_between)
            savings.append((memory / function.cold_ms, memory, function.cold_ms))
    for _, memory, saved_ms in sorted(savings):
        share = 1.0 if memory <= left else max(left, 0.0) / memory
        left -= share * memory
        cost_ms -= share * saved_ms
        if share < 1:
            break
    return cost_ms
