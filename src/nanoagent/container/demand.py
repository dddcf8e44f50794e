"""Decides how many generic containers the pool keeps ready: at least WARM_POOL_*_SIZE, and more on demand.

The demand is the number of generic containers that jobs take within a short time: for functions that run for
the first time, and for those whose containers were evicted.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

REFILL_S: Final = 1.0
"""The time in which taken containers are not replaced yet, seconds.

Two cores create 7 containers per second while jobs run, so a group of several takes about as long.
"""

MEMORY_S: Final = 60.0
"""The time for which a peak of the demand counts, seconds. A minute covers tasks that start every minute."""

MOST: Final = 16
"""The largest number of generic containers that the demand asks for.

More would take more than two seconds to create, in which jobs share the CPUs with creations.
"""


class Demand:
    """Counts the generic containers that jobs take, and those that jobs have to wait for.

    Times are in the pool's clock, seconds. They must not decrease.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=MOST)
        self._peaks: deque[tuple[float, int]] = deque()

    def record(self, now: float) -> None:
        """Note that a job has taken a generic container, or has found none."""
        self._recent.append(now)
        peak = sum(now - at <= REFILL_S for at in self._recent)
        # A peak counts no longer than a later one that is as high, so heights fall from left to right.
        while self._peaks and self._peaks[-1][1] <= peak:
            self._peaks.pop()
        self._peaks.append((now, peak))

    def wanted(self, now: float) -> int:
        """Return the largest number of containers taken within `REFILL_S`, in the last `MEMORY_S`."""
        while self._peaks and now - self._peaks[0][0] > MEMORY_S:
            self._peaks.popleft()
        return self._peaks[0][1] if self._peaks else 0


class WantedGeneric:
    """The number of generic containers to keep ready, for each runtime.

    A runtime whose WARM_POOL_*_SIZE is 0 has none.

    Args:
        sizes: Runtime → WARM_POOL_*_SIZE.
        clock: Returns monotonic seconds.
    """

    def __init__(self, sizes: Mapping[Runtime, int], clock: Callable[[], float]) -> None:
        self._sizes = sizes
        self._clock = clock
        self._demands = {runtime: Demand() for runtime in Runtime}

    def record_taken(self, runtime: Runtime) -> None:
        """Note that a job has taken a generic container, or has found none."""
        self._demands[runtime].record(self._clock())

    def number(self, runtime: Runtime) -> int:
        """Return the number of generic containers of a runtime to keep ready."""
        size = self._sizes[runtime]
        return max(size, self._demands[runtime].wanted(self._clock())) if size else 0

    def lately_taken(self, runtime: Runtime) -> int:
        """Return the number of generic containers to keep ready at the cost of bound ones.

        At most WARM_POOL_*_SIZE, and none if no job has needed one lately.
        """
        return min(self._sizes[runtime], self._demands[runtime].wanted(self._clock()))
