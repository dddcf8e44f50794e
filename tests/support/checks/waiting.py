"""Waits for other processes: for published results, and for states without a signal."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from redis.asyncio import Redis

EVENTUALLY_S = 120  # only a hang takes this long


async def eventually(condition: Callable[[], Awaitable[object]]) -> None:
    """Poll until a condition is true."""
    async with asyncio.timeout(EVENTUALLY_S):
        while not await condition():  # noqa: ASYNC110 - another process's state has no event
            await asyncio.sleep(0.05)


@asynccontextmanager
async def announced(redis: Redis, *request_ids: str) -> AsyncIterator[asyncio.Queue[bytes]]:
    """Collect all results that are published for the requests during the block, in order."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen() -> None:
        async for event in listener.listen():
            if event["type"] == "message":
                heard.put_nowait(event["data"])

    async with redis.pubsub() as listener:
        await listener.subscribe(*(f"result:{request_id}" for request_id in request_ids))
        for _ in request_ids:
            await listener.get_message(timeout=10)
        task = asyncio.create_task(listen())
        try:
            yield heard
        finally:
            task.cancel()
