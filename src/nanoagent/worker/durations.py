"""How long jobs take: what a drain goes by when it decides which of those that run to wait for.

A job's time counts from its slot to its result: container, start, run and upload, since all of it has to be
over before the worker may end. It is kept for each function, in memory only: a worker that has
just begun knows nothing, and waits.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from nanoagent.common.bounded_map import BoundedMap

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

    from nanoagent.model.job import Job

FUNCTIONS: Final = 1024
"""How many functions are remembered: with `SAMPLES` floats each, below 1 MiB."""

SAMPLES: Final = 20
"""The last so many jobs of a function, of which one in ten is still a number."""

_LEAST_SAMPLES: Final = 3  # fewer show no pattern


class Durations:
    """The last durations of each function that has run here lately."""

    def __init__(self, functions: int = FUNCTIONS, samples: int = SAMPLES) -> None:
        self._samples = samples
        self._durations: BoundedMap[Hashable, deque[float]] = BoundedMap(functions)

    def add(self, job: Job, seconds: float) -> None:
        """A job has come to its result, so long after it got its slot."""
        function = _function(job)
        durations = self._durations.get(function)
        if durations is None:
            durations = deque(maxlen=self._samples)
        durations.append(seconds)
        self._durations[function] = durations

    def of(self, job: Job) -> tuple[float, ...]:
        """How long the last jobs of the same function took, seconds; none of one that is not known."""
        return tuple(self._durations.get(_function(job), ()))


def _function(job: Job) -> Hashable:
    """The key of jobs that take about as long: the same code with the same memory, and with it CPU.

    The code's key is part of it because jobs that name no function share one name. It is not the
    `FunctionVersion`, which has the digest: a redeploy seldom changes by a magnitude how long jobs take, and
    what it does change is learnt within a few.
    """
    return job.function_id, job.runtime, job.s3_bucket, job.s3_key, job.memory_mb


def will_finish(
    elapsed_s: float, grace_s: float, history: Collection[float], timeout_s: float
) -> bool | None:
    """Whether a job that runs will come to a result in time, by how long earlier ones took.

    Only those count that took longer than this one has run already: of ten jobs that end within a second and
    two that take an hour, one that has run for a minute is most likely of the second kind. A job whose own
    time is over before has a result then as well, TIMEOUT.

    Args:
        elapsed_s: How long ago it got its slot, seconds.
        grace_s: How much longer it may take, seconds.
        history: How long earlier ones took, seconds.
        timeout_s: The job's own limit for its program, seconds.

    Returns:
        True when nine in ten would, False when nine in ten would not, None when that cannot be told.
    """
    longer = [duration for duration in history if duration > elapsed_s]
    if len(longer) < _LEAST_SAMPLES:
        return None
    in_time = sum(min(duration, timeout_s) <= elapsed_s + grace_s for duration in longer)
    if _are_most(in_time, longer):
        return True
    return False if _are_most(len(longer) - in_time, longer) else None


def _are_most(number: int, of: Collection[float]) -> bool:
    return number * 10 >= len(of) * 9
