"""Limits on the time that closing the worker takes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from structlog.testing import capture_logs

from nanoagent.wiring import closing
from support.doubles.fakes import DEADLINE_S


async def test_a_part_that_does_not_close_keeps_the_others_from_nothing():
    closed: list[str] = []

    async def hang() -> None:
        await asyncio.Event().wait()

    async def close() -> None:
        closed.append("last")

    with capture_logs() as logs:
        async with asyncio.timeout(DEADLINE_S):
            async with AsyncExitStack() as opened:
                closing.close_within(opened, "last", close, 3600)
                closing.close_within(opened, "hanging", hang, 0.01)
    assert closed == ["last"]
    assert [(entry["event"], entry["part"]) for entry in logs] == [("not closed in time", "hanging")]
