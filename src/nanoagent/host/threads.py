"""Blocking work in a thread, beside the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from nanoagent.host.shielding import until_done

if TYPE_CHECKING:
    from collections.abc import Callable

ResultT = TypeVar("ResultT")


async def in_thread(work: Callable[[], ResultT], *, undo: Callable[[ResultT], None] | None = None) -> ResultT:
    """Run blocking work in a thread, and wait for its end even if the caller is cancelled.

    `asyncio.to_thread` does not wait if the caller is cancelled. Its thread would then continue to write to
    files that the caller removes.

    Args:
        work: The blocking function.
        undo: Called with the result of `work` if the caller was cancelled and cannot receive the result.

    Raises:
        asyncio.CancelledError: The caller was cancelled. Raised after the work has ended.
        Exception: Any exception of `work`.
    """
    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        await until_done(task)
    except asyncio.CancelledError:
        if task.exception() is None and undo is not None:
            undo(task.result())
        raise
    return task.result()
