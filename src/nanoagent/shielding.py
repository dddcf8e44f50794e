"""Work that a cancellation does not interrupt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable

_T = TypeVar("_T")


async def uninterrupted(work: Awaitable[_T]) -> _T:
    """Do the work to its end even if the caller is cancelled meanwhile; the cancellation comes after it."""
    task = asyncio.ensure_future(work)
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                break
            is_cancelled = True
        except Exception:  # noqa: BLE001 - task.result() below raises it
            break
    result = task.result()
    if is_cancelled:
        raise asyncio.CancelledError
    return result
