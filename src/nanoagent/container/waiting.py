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
    """The queue of jobs, one per runtime, that wait for a container; the first gets the next container."""

    def __init__(self) -> None:
        self._waiters: dict[Runtime, deque[asyncio.Future[PooledContainer]]] = {
            runtime: deque() for runtime in Runtime
        }

    def count(self, runtime: Runtime) -> int:
        """How many jobs wait for a container of a runtime."""
        return len(self._waiters[runtime])

    def add(self, runtime: Runtime) -> asyncio.Future[PooledContainer]:
        """Let a job wait; its container is the result."""
        waiter: asyncio.Future[PooledContainer] = asyncio.get_running_loop().create_future()
        self._waiters[runtime].append(waiter)
        return waiter

    def discard(self, runtime: Runtime, waiter: asyncio.Future[PooledContainer]) -> None:
        """Let a job not wait any longer; harmless if it does not wait."""
        if waiter in self._waiters[runtime]:
            self._waiters[runtime].remove(waiter)

    def take_first(self, runtime: Runtime) -> asyncio.Future[PooledContainer] | None:
        """Remove the job that has waited for longest from the queue; None if none waits."""
        waiting = (waiter for waiter in self._waiters[runtime] if not waiter.done())
        if (first := next(waiting, None)) is not None:
            self._waiters[runtime].remove(first)
        return first

    def fail_first(self, runtime: Runtime, error: Exception) -> None:
        """Tell the job at the head of the queue that its container was not created."""
        if self._waiters[runtime]:
            _fail(self._waiters[runtime].popleft(), error)

    def fail_all(self, error: Callable[[], Exception]) -> None:
        """Tell all jobs that no container will be created for them.

        Args:
            error: Makes the exception, once for each job.
        """
        for waiters in self._waiters.values():
            while waiters:
                _fail(waiters.popleft(), error())


def _fail(waiter: asyncio.Future[PooledContainer], error: Exception) -> None:
    if not waiter.done():  # a job that was cancelled stays in the queue until its task goes on
        waiter.set_exception(error)
