"""Work that several callers want at the same time and that is done once.

The callers' cancellations and the work's are kept apart: a caller that is cancelled leaves, and only when
the last one leaves is the work cancelled, and waited for, so that nothing of it goes on unseen.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from nanoagent.host.shielding import until_done
from nanoagent.model.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable
    from typing import Any


class Shared(Protocol):
    """A resource that can be held several times over."""

    def share(self) -> Self:
        """The same resource once more, to be released by itself."""
        ...

    def release(self) -> None:
        """Let go. Idempotent."""
        ...


ResourceT = TypeVar("ResourceT", bound=Shared)


@dataclass(eq=False, slots=True)
class _Flight(Generic[ResourceT]):
    task: asyncio.Task[ResourceT]
    waiters: int = 0


class SingleFlight(Generic[ResourceT]):
    """Single-flight by key."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[ResourceT]] = {}

    def __contains__(self, key: Hashable) -> bool:
        """Whether the work for `key` is under way, so that `join` would share it."""
        return key in self._flights

    async def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, ResourceT]]) -> ResourceT:
        """What `work` returns, or what the work already under way for `key` will.

        Returns:
            A share of its own for each caller; the caller releases it.

        Raises:
            StorageError: `close` was called.
            Exception: Whatever `work` raises, to each caller.
        """
        flight = self._flights.get(key) or self._start(key, work)
        flight.waiters += 1
        try:
            await asyncio.wait({flight.task})
            if flight.task.cancelled():
                raise StorageError("the cache was closed while it was in use")
            return flight.task.result().share()
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                self._forget(key, flight)
                await _land(flight.task)

    async def close(self) -> None:
        """Cancel all work and wait for its end."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _start(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, ResourceT]]) -> _Flight[ResourceT]:
        flight = _Flight(asyncio.create_task(work()))
        self._flights[key] = flight
        # From here on a new caller starts anew, though the old ones have not been resumed yet.
        flight.task.add_done_callback(lambda _: self._forget(key, flight))
        return flight

    def _forget(self, key: Hashable, flight: _Flight[ResourceT]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


async def _land(task: asyncio.Task[ResourceT]) -> None:
    """End the work that nobody waits for any more and release what it got."""
    task.cancel()
    try:
        await until_done(task)
    finally:
        if not task.cancelled() and task.exception() is None:
            task.result().release()
