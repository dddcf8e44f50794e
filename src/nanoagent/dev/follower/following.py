"""Follows one job: reads its live log, renews the follower's lease, and ends with the result."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from nanoagent.dev.follower.events import Disconnected, Event, Position, Taken, Tracker, Waiting
from nanoagent.model.errors import ResultStoreError
from nanoagent.results.connections import RedisConnections
from nanoagent.results.failures import RedisCallError
from nanoagent.results.redis_live_log import RedisLiveLogReader
from nanoagent.wiring.redis_address import redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from nanoagent.config import Settings
    from nanoagent.results.live_log import Holder, LiveLogReader, Record

_TIMEOUT_S: Final = 5.0
_READ_S: Final = 0.5  # the longest wait for output before the result is looked for
_READ_AT_END_S: Final = 0.05
_RENEW_S: Final = 3.0  # a third of FOLLOWER_LEASE_S
_RENEW_SOON_S: Final = 0.3  # until the worker was told
_MAX_SOON: Final = 10
_LAST_OUTPUT_S: Final = 1.0  # how long the end of the live log may be later than the result
_RECONNECT_S: Final = 1.0
_GIVE_UP_S: Final = 60.0
_SNAPSHOT_S: Final = 1.5  # how long output of a running job is awaited without --follow
_SNAPSHOT_IDLE_S: Final = 0.3


@asynccontextmanager
async def reader(settings: Settings) -> AsyncIterator[RedisLiveLogReader]:
    """Return the reader of live logs on the Redis server of the settings."""
    found = RedisLiveLogReader(RedisConnections(redis_server(settings), _TIMEOUT_S))
    try:
        yield found
    finally:
        await found.close()


class Following:
    """Follows one job.

    Args:
        logs: The live logs.
        request_id: The request ID of the job.
        since: The position after which events are wanted.

    Attributes:
        result: The result document; None until the job has ended.
        is_known: Whether a worker has the job, or it has a live log or a result.
    """

    def __init__(self, logs: LiveLogReader, request_id: str, since: Position | None = None) -> None:
        self.result: dict[str, Any] | None = None
        self.is_known = False
        self._logs = logs
        self._request_id = request_id
        self._tracker = Tracker(since)
        self._holder: Holder | Waiting | None = None  # None until it was asked
        self._renew_at = 0.0
        self._soon = 0

    @property
    def position(self) -> Position:
        """The position after the last event."""
        return self._tracker.position

    async def announce(self) -> None:
        """Begin the lease of this follower. The job need not have been sent yet.

        Raises:
            ResultStoreError: Redis failed.
        """
        await self._logs.follow(self._request_id)

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events of the job until it has ended. If the connection breaks, connect again.

        Raises:
            ResultStoreError: Redis fails at the beginning, or for a minute, or this user lacks a permission.
        """
        loop = asyncio.get_running_loop()
        works_since: float | None = None
        while self.result is None:
            try:
                async for event in self._next_events():
                    works_since = loop.time()
                    yield event
                works_since = loop.time()
            except ResultStoreError as exc:
                is_denied = isinstance(exc, RedisCallError) and exc.is_denied
                if is_denied or works_since is None or loop.time() - works_since > _GIVE_UP_S:
                    raise
                if self._renew_at:
                    yield Disconnected(str(exc))
                self._renew_at = 0.0
                await asyncio.sleep(_RECONNECT_S)

    async def _next_events(self) -> AsyncIterator[Event]:
        """Wait for the next records or the result, for a short time, and yield their events."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._renew_at:
            async for event in self._renew():
                yield event
        wait_s = _READ_AT_END_S if self._tracker.has_ended else _READ_S
        records = await self._read(min(wait_s, max(0.01, self._renew_at - loop.time())))
        for event in self._events_of(records):
            yield event
        if not records and (document := await self._logs.result(self._request_id)) is not None:
            async for event in self._finish(document):
                yield event

    async def _renew(self) -> AsyncIterator[Event]:
        """Renew the lease, and yield an event if the worker has changed."""
        holder = await self._logs.follow(self._request_id)
        is_told = holder is None or holder.told > 0 or self._soon >= _MAX_SOON
        self._soon = 0 if is_told else self._soon + 1
        self._renew_at = asyncio.get_running_loop().time() + (_RENEW_S if is_told else _RENEW_SOON_S)
        before = self._holder
        self._holder = holder or Waiting()
        if holder is None:
            if before is None and await self._logs.result(self._request_id) is None:
                yield Waiting()
            return
        self.is_known = True
        if not isinstance(before, type(holder)) or before.worker != holder.worker:
            yield Taken(holder.worker)

    async def _read(self, wait_s: float) -> list[tuple[str, Record]]:
        records = await self._logs.read(self._request_id, self._tracker.position.record, wait_s)
        self.is_known |= bool(records)
        return records

    def _events_of(self, records: list[tuple[str, Record]]) -> Iterator[Event]:
        """Yield the events of records. Between them, `position` is that of the last one."""
        for position, record in records:
            yield from self._tracker.take(position, record)

    async def _finish(self, document: bytes) -> AsyncIterator[Event]:
        """Yield the last records, the output that only the result has, and the end."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (_LAST_OUTPUT_S if self._tracker.has_started else 0)
        while True:
            records = await self._read(0 if self._tracker.has_ended else _READ_AT_END_S)
            for event in self._events_of(records):
                yield event
            if not records and (self._tracker.has_ended or loop.time() >= deadline):
                break
        for event in self.finish(_parsed(document)):
            yield event

    def finish(self, document: dict[str, Any]) -> Iterator[Event]:
        """Take a result that was read elsewhere. Yield its output that was not shown yet, and the end."""
        self.is_known = True
        self.result = document
        yield from self._tracker.finish(document)

    async def snapshot(self) -> AsyncIterator[Event]:
        """Yield what is known of the job now.

        If the job runs without live output, its worker is asked for the output so far.

        Raises:
            ResultStoreError: Redis failed.
        """
        loop = asyncio.get_running_loop()
        while records := await self._read(0):
            for event in self._events_of(records):
                yield event
        if (document := await self._logs.result(self._request_id)) is not None:
            async for event in self._finish(document):
                yield event
            return
        async for event in self._renew():
            yield event
        deadline = loop.time() + (0 if isinstance(self._holder, Waiting) else _SNAPSHOT_S)
        last_at = loop.time() + _SNAPSHOT_S - _SNAPSHOT_IDLE_S  # the first output may take longer
        while loop.time() < min(deadline, last_at + _SNAPSHOT_IDLE_S):
            if records := await self._read(_READ_AT_END_S):
                last_at = loop.time()
            for event in self._events_of(records):
                yield event


def _parsed(document: bytes) -> dict[str, Any]:
    try:
        found = json.loads(document)
    except ValueError as exc:
        raise ResultStoreError(f"the stored result is not JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise ResultStoreError("the stored result is not a JSON object")
    return found
