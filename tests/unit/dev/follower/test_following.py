"""A follower and a worker on one store in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from nanoagent.common.units import MIB
from nanoagent.dev.follower import following
from nanoagent.dev.follower.events import AttemptEnded, Disconnected, Ended, Output, Started, Taken, Waiting
from nanoagent.dev.follower.following import Following
from nanoagent.model.errors import ResultStoreError
from nanoagent.results.base import Claim
from nanoagent.results.live_log import Kind, Record
from nanoagent.results.memory import MemoryResultStore
from support.doubles.fakes import DEADLINE_S

if TYPE_CHECKING:
    from nanoagent.dev.follower.events import Event

RESULT = b'{"status": "SUCCESS", "attempt": 1, "stdout": "out", "exitCode": 0}'


class Watched:
    """A follower whose events are collected."""

    def __init__(self, of_job: Following) -> None:
        self.of_job = of_job
        self.events: list[Event] = []
        self._task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async for event in self.of_job.events():
            self.events.append(event)

    async def until(self, *events: Event) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while self.events != list(events):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self._task


async def claimed(store: MemoryResultStore) -> Claim:
    claim = await store.claim("r")
    assert isinstance(claim, Claim)
    return claim


async def test_a_job_is_followed_from_the_queue_to_its_result():
    store = MemoryResultStore()
    log = store.live_log(max_bytes=MIB)
    watched = Watched(Following(log, "r"))
    await watched.until(Waiting())
    claim = await claimed(store)
    assert claim.followed
    await log.append(claim, [Record(Kind.STARTED, 1, claim.token, b"w"), Record(Kind.STDOUT, 1, 0, b"ou")])
    await watched.until(Waiting(), Started("w", 1, is_again=False), Output("stdout", 1, 0, b"ou"))
    await store.publish(claim, RESULT)
    await log.append(claim, [Record(Kind.STDOUT, 1, 2, b"t"), Record(Kind.ENDED, 1, data=b"SUCCESS")])
    await watched.end()
    assert watched.events[3] == Output("stdout", 1, 2, b"t")
    assert isinstance(watched.events[-1], Ended)
    assert watched.of_job.is_known


async def test_a_job_without_live_output_ends_with_the_output_of_its_result():
    store = MemoryResultStore()
    claim = await claimed(store)
    watched = Watched(Following(store.live_log(max_bytes=MIB), "r"))
    await watched.until(Taken("memory"))
    await store.publish(claim, RESULT)
    await watched.end()
    assert watched.events[1] == Output("stdout", 1, 0, b"out")


async def test_a_worker_that_died_before_the_end_of_its_log_does_not_hold_the_follower_up():
    store = MemoryResultStore()
    log = store.live_log(max_bytes=MIB)
    claim = await claimed(store)
    await log.append(claim, [Record(Kind.STARTED, 1, claim.token, b"w"), Record(Kind.ENDED, 1)])
    await log.append(claim, [Record(Kind.STARTED, 1, claim.token + 1, b"v"), Record(Kind.STDOUT, 1, 0, b"o")])
    await store.publish(claim, RESULT)
    watched = Watched(Following(log, "r"))
    await watched.end()
    assert [event for event in watched.events if not isinstance(event, Taken | Ended)] == [
        Started("w", 1, is_again=False),
        AttemptEnded(1),
        Started("v", 1, is_again=True),
        Output("stdout", 1, 0, b"o"),
        Output("stdout", 1, 1, b"ut"),
    ]


async def test_a_follower_connects_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "_RECONNECT_S", 0.05)
    store = MemoryResultStore()
    claim = await claimed(store)
    watched = Watched(Following(store.live_log(max_bytes=MIB), "r"))
    await watched.until(Taken("memory"))
    store.down = True
    async with asyncio.timeout(DEADLINE_S):
        while len(watched.events) < 2:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    store.down = False
    await store.publish(claim, RESULT)
    await watched.end()
    assert [type(event) for event in watched.events] == [Taken, Disconnected, Output, Ended]


async def test_a_server_that_never_answers_is_an_error():
    store = MemoryResultStore()
    store.down = True
    with pytest.raises(ResultStoreError):
        await Watched(Following(store.live_log(max_bytes=MIB), "r")).end()


async def test_a_snapshot_of_an_unknown_job_is_empty():
    of_job = Following(MemoryResultStore().live_log(max_bytes=MIB), "r")
    assert [event async for event in of_job.snapshot()] == [Waiting()]
    assert not of_job.is_known


async def test_a_snapshot_asks_the_worker_for_the_output_until_now():
    store = MemoryResultStore()
    log = store.live_log(max_bytes=MIB)
    claim = await claimed(store)
    records = [Record(Kind.STARTED, 1, claim.token, b"w"), Record(Kind.STDOUT, 1, 0, b"out")]
    tasks: set[asyncio.Task[object]] = set()
    store.watch("r", lambda: None, lambda: tasks.add(asyncio.create_task(log.append(claim, records))))
    of_job = Following(log, "r")
    events = [event async for event in of_job.snapshot()]
    assert events == [Taken("memory"), Started("w", 1, is_again=False), Output("stdout", 1, 0, b"out")]
    assert of_job.is_known
    assert of_job.result is None
