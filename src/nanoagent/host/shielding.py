"""Work that a cancellation does not interrupt.

* `until_done` waits for tasks to the end, and raises the cancellation afterwards.
* `uninterrupted` does work to the end, and returns its result.
* `unless_cancelled` waits for a request that goes on without its caller. A cancelled caller leaves at once,
  and says who takes the result.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_T = TypeVar("_T")


async def until_done(*futures: asyncio.Future[Any]) -> None:
    """Wait until all of them are done; a cancellation in between is raised only then.

    Raises:
        asyncio.CancelledError: The caller was cancelled meanwhile. Their own exceptions are not raised.
    """
    interruption: asyncio.CancelledError | None = None
    while pending := [future for future in futures if not future.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as exc:
            interruption = exc
    if interruption is not None:
        raise interruption


async def uninterrupted(work: Awaitable[_T]) -> _T:
    """Do the work to its end even if the caller is cancelled meanwhile; the cancellation comes after it.

    Raises:
        asyncio.CancelledError: The caller was cancelled meanwhile, and the work succeeded.
        Exception: Whatever the work raises.
    """
    task = asyncio.ensure_future(work)
    try:
        await until_done(task)
    except asyncio.CancelledError:
        task.result()  # its failure comes first
        raise
    return task.result()


async def unless_cancelled(request: asyncio.Future[_T], abandoned: Callable[[], object]) -> _T:
    """The result of a request that goes on when the caller is cancelled.

    Args:
        request: The request, which the other side answers in any case.
        abandoned: Called when the caller is cancelled. It starts the work that takes the result.

    Raises:
        asyncio.CancelledError: At once when the caller is cancelled.
        Exception: Whatever the request raises.
    """
    try:
        return await asyncio.shield(request)
    except asyncio.CancelledError:
        abandoned()
        raise
