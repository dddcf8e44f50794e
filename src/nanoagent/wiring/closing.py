"""Limits on the time that closing the worker takes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.worker.drain import DRAIN_TAIL_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AsyncExitStack

log = structlog.get_logger(__name__)

CLOSE_MAX_S: Final = 20.0
"""The longest time for closing a part that needs answers from a service, seconds.

The queue gets more: the duration of a long poll is added.
"""

STOP_TAIL_S: Final = DRAIN_TAIL_S + 3 * CLOSE_MAX_S
"""The longest time from the end of DRAIN_SECONDS to the end of the process, seconds.

It takes that long only if no service answers. The usual time is a second or two.
"""


def close_within(
    opened: AsyncExitStack, part: str, close: Callable[[], Awaitable[None]], timeout_s: float
) -> None:
    """Register how to close a part, with a timeout. A part that hangs must not keep the process alive.

    Args:
        opened: The exit stack that closes the part.
        part: The name of the part, for the log.
        close: Closes the part.
        timeout_s: The longest time, seconds.
    """

    async def close_part() -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await close()
        except TimeoutError:
            log.warning("not closed in time", part=part, seconds=timeout_s)

    opened.push_async_callback(close_part)
