"""Blocking work beside the event loop, which nobody leaves behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from nanoagent.host.shielding import until_done

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
