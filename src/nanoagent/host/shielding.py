"""Runs work that continues when its caller is cancelled.

* `until_done` waits until tasks have ended, and raises the cancellation afterwards.
* `uninterrupted` runs work to its end, and returns its result.
* `unless_cancelled` waits for a request that continues without its caller. If the caller is cancelled,
  `unless_cancelled` raises the cancellation at once. A callback must handle the result of the request.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_T = TypeVar("_T")


async def until_done(*futures: asyncio.Future[Any]) -> None:
    """Wait until all futures are done. If the caller is cancelled, raise the cancellation after that.

    The exceptions of the futures are not raised.

    Raises:
        asyncio.CancelledError: The caller was cancelled meanwhile.
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
    """Run the work to its end, even if the caller is cancelled. The cancellation is raised afterwards.

    Raises:
        asyncio.CancelledError: The caller was cancelled meanwhile, and the work succeeded.
        Exception: Any exception of the work, whether or not the caller was cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        await until_done(task)
    except asyncio.CancelledError:
        task.result()  # raises the exception of the work, if any, in place of the cancellation
        raise
    return task.result()


async def unless_cancelled(request: asyncio.Future[_T], abandoned: Callable[[], object]) -> _T:
    """Return the result of a request that continues when the caller is cancelled.

    Args:
        request: The request. It cannot be withdrawn: the other side answers it in any case.
        abandoned: Called if the caller is cancelled. It must start a task that handles the result.

    Raises:
        asyncio.CancelledError: The caller was cancelled. Raised before the request has ended.
        Exception: Any exception of the request.
    """
    try:
        return await asyncio.shield(request)
    except asyncio.CancelledError:
        abandoned()
        raise
