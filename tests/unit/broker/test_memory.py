"""The queue in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nanoagent.broker.memory import MemoryBroker

if TYPE_CHECKING:
    import pytest

DEADLINE_S = 60.0


async def test_a_poll_sleeps_while_a_message_waits_behind_its_group(monkeypatch: pytest.MonkeyPatch):
    broker = MemoryBroker(wait_s=DEADLINE_S, fifo=True)
    waits: list[float] = []
    wait_for_change = broker._queue.wait_for_change

    async def noted(timeout_s: float) -> None:
        waits.append(timeout_s)
        await wait_for_change(timeout_s)

    monkeypatch.setattr(broker._queue, "wait_for_change", noted)
    await broker.send("first", group_id="a")
    await broker.send("behind", group_id="a")
    (first,) = await broker.receive(1)
    poll = asyncio.create_task(broker.receive(1))
    while not waits:  # noqa: ASYNC110 - the poll is on the loop, and needs a turn
        await asyncio.sleep(0)
    assert min(waits) > 0
    await broker.ack(first)
    async with asyncio.timeout(DEADLINE_S):
        (behind,) = await poll
    assert behind.body == "behind"
    assert len(waits) == 1
