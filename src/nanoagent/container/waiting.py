"""The jobs that wait for a container to be created."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.container.policy import PooledContainer


class WaitingJobs:
    """One queue per runtime of jobs that wait for a container. The first job gets the next container."""

    def __init__(self) -> None:
        self._waiters: dict[Runtime, deque[asyncio.Future[PooledContainer]]] = {
            runtime: deque() for runtime in Runtime
        }

    def count(self, runtime: Runtime) -> int:
        """Return the number of jobs that wait for a container of a runtime."""
        return len(self._waiters[runtime])

    def add(self, runtime: Runtime) -> asyncio.Future[PooledContainer]:
        """Add a job to the queue.

        Returns:
            A future whose result is the container.
        """
        waiter: asyncio.Future[PooledContainer] = asyncio.get_running_loop().create_future()
        self._waiters[runtime].append(waiter)
        return waiter

    def discard(self, runtime: Runtime, waiter: asyncio.Future[PooledContainer]) -> None:
        """Remove a job from the queue, if it still waits."""
        if waiter in self._waiters[runtime]:
            self._waiters[runtime].remove(waiter)

    def take_first(self, runtime: Runtime) -> asyncio.Future[PooledContainer] | None:
        """Remove the job that has waited longest; return None if no job waits."""
        waiting = (waiter for waiter in self._waiters[runtime] if not waiter.done())
        if (first := next(waiting, None)) is not None:
            self._waiters[runtime].remove(first)
        return first

    def fail_first(self, runtime: Runtime, error: Exception) -> None:
        """Make the job that has waited longest fail."""
        if (first := self.take_first(runtime)) is not None:
            first.set_exception(error)

    def fail_all(self, error: Callable[[], Exception]) -> None:
        """Make all jobs fail.

        Args:
            error: Makes the exception, once for each job.
        """
        for waiters in self._waiters.values():
            while waiters:
                _fail(waiters.popleft(), error())


def _fail(waiter: asyncio.Future[PooledContainer], error: Exception) -> None:
    if not waiter.done():  # a cancelled job stays in the queue until its task resumes
        waiter.set_exception(error)
