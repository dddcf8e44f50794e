"""Single flight: if several callers want the same operation at the same time, it runs once for all of them.

If a caller is cancelled, the operation continues for the others. When the last caller is cancelled, the
operation is cancelled and its end awaited, so that no part of it continues in the background.
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


class Shareable(Protocol):
    """A resource that several holders can share."""

    def share(self) -> Self:
        """Return the same resource for another holder, who releases it separately."""
        ...

    def release(self) -> None:
        """Release this holder's share. Idempotent."""
        ...


ResourceT = TypeVar("ResourceT", bound=Shareable)


@dataclass(eq=False, slots=True)
class _Operation(Generic[ResourceT]):
    """A running operation.

    Attributes:
        task: The task of the operation.
        waiters: The number of callers that wait for the operation.
    """

    task: asyncio.Task[ResourceT]
    waiters: int = 0


class SingleFlight(Generic[ResourceT]):
    """Runs operations, at most one per key at the same time."""

    def __init__(self) -> None:
        self._operations: dict[Hashable, _Operation[ResourceT]] = {}

    def __contains__(self, key: Hashable) -> bool:
        """Whether an operation runs for the key; `join` would share it."""
        return key in self._operations

    async def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, ResourceT]]) -> ResourceT:
        """Wait for the operation that runs for a key. If there is none, start one.

        Args:
            key: The key.
            work: Returns the coroutine of a new operation.

        Returns:
            This caller's share of the resource, which the caller releases.

        Raises:
            StorageError: `close` was called.
            Exception: The error of the operation; each caller gets it.
        """
        operation = self._operations.get(key) or self._start(key, work)
        operation.waiters += 1
        try:
            await asyncio.wait({operation.task})
            if operation.task.cancelled():
                raise StorageError("the cache was closed while it was in use")
            return operation.task.result().share()
        finally:
            operation.waiters -= 1
            if not operation.waiters:
                self._forget(key, operation)
                await _discard(operation.task)

    async def close(self) -> None:
        """Cancel all operations and wait for their ends."""
        tasks = [operation.task for operation in self._operations.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _start(
        self, key: Hashable, work: Callable[[], Coroutine[Any, Any, ResourceT]]
    ) -> _Operation[ResourceT]:
        operation = _Operation(asyncio.create_task(work()))
        self._operations[key] = operation
        # A caller that comes after the end starts a new operation, even if the waiters have not resumed yet.
        operation.task.add_done_callback(lambda _: self._forget(key, operation))
        return operation

    def _forget(self, key: Hashable, operation: _Operation[ResourceT]) -> None:
        if self._operations.get(key) is operation:
            del self._operations[key]


async def _discard(task: asyncio.Task[ResourceT]) -> None:
    """Cancel an operation that no caller waits for any more. If it has succeeded, release its resource."""
    task.cancel()
    try:
        await until_done(task)
    finally:
        if not task.cancelled() and task.exception() is None:
            task.result().release()
