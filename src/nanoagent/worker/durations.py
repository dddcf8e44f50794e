"""Run-duration estimates: how long jobs of each function have taken lately.

A drain uses them to decide which running jobs to wait for. The duration of a job lasts from its admission to
its result. It includes container, start, run and upload, because the worker may end only after all of these.
The durations are kept in memory only. A worker that has just started has none, and waits for every job.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from nanoagent.common.bounded_map import BoundedMap

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

    from nanoagent.model.job import Job

FUNCTIONS: Final = 1024
"""The number of functions whose durations are kept. With `SAMPLES` floats each, they need less than 1 MiB."""

SAMPLES: Final = 20
"""The number of durations that are kept for each function. Two exceptions among 20 change no decision."""

_MIN_SAMPLES: Final = 3  # fewer show no pattern


class Durations:
    """The latest durations of each function that has run here lately.

    Args:
        functions: How many functions are kept.
        samples: How many durations of each function are kept.
    """

    def __init__(self, functions: int = FUNCTIONS, samples: int = SAMPLES) -> None:
        self._samples = samples
        self._durations: BoundedMap[Hashable, deque[float]] = BoundedMap(functions)

    def add(self, job: Job, seconds: float) -> None:
        """Add the duration of a job that has a result.

        Args:
            job: The job.
            seconds: The time from its admission to its result.
        """
        function = _function(job)
        durations = self._durations.get(function)
        if durations is None:
            durations = deque(maxlen=self._samples)
        durations.append(seconds)
        self._durations[function] = durations

    def of(self, job: Job) -> tuple[float, ...]:
        """Return the durations of the latest jobs of the same function, in seconds; empty when unknown."""
        return tuple(self._durations.get(_function(job), ()))


def _function(job: Job) -> Hashable:
    """Return the key of a function, with its memory size, which also determines its CPU share.

    The key includes the S3 object of the code, because all jobs without a functionId have the same function
    ID. It does not include the digest of the code: a new upload seldom changes durations much, and after a
    few jobs the new durations are known.
    """
    return job.function_id, job.runtime, job.s3_bucket, job.s3_key, job.memory_mb


def will_finish(
    elapsed_s: float, grace_s: float, durations: Collection[float], timeout_s: float
) -> bool | None:
    """Whether a running job will have a result in time, estimated from the durations of earlier jobs.

    The estimate uses only earlier jobs that took longer than this job has already been running. Example: ten
    jobs ended within a second, and three took an hour. A job that has run for a minute will most likely take
    an hour, too. If a job reaches its own timeout in time, it has a result in time: TIMEOUT.

    Args:
        elapsed_s: The time since the job was admitted, seconds.
        grace_s: The time that it may still take, seconds.
        durations: The durations of earlier jobs, seconds.
        timeout_s: The job's own limit for its program, seconds.

    Returns:
        True if at least nine in ten of these earlier jobs would have a result in time. False if at least nine
        in ten would not. None in all other cases, and if there are fewer than three such jobs.
    """
    longer = [duration for duration in durations if duration > elapsed_s]
    if len(longer) < _MIN_SAMPLES:
        return None
    in_time = sum(min(duration, timeout_s) <= elapsed_s + grace_s for duration in longer)
    if _are_most(in_time, longer):
        return True
    return False if _are_most(len(longer) - in_time, longer) else None


def _are_most(number: int, of: Collection[float]) -> bool:
    return number * 10 >= len(of) * 9
