"""Blocking work beside the event loop, which nobody leaves behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

ResultT = TypeVar("ResultT")


async def in_thread(work: Callable[[], ResultT], *, undo: Callable[[ResultT], None] | None = None) -> ResultT:
    """Run blocking work in a thread and be there when it ends, also when cancelled.

    `asyncio.to_thread` leaves the thread behind when it is cancelled: what the caller then cleans up, the
    thread would go on writing to.

    Args:
        work: The blocking function.
        undo: What to do with its result when that can no longer be returned.

    Raises:
        asyncio.CancelledError: After the work has ended.
        Exception: Whatever `work` raises.
    """
    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        await until_done(task)
    except asyncio.CancelledError:
        if task.exception() is None and undo is not None:
            undo(task.result())
        raise
    return task.result()


async def until_done(task: asyncio.Task[ResultT]) -> None:
    """Wait for the task's end; a cancellation in between is raised only then."""
    interruption: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as exc:
            interruption = exc
    if interruption is not None:
        raise interruption
