"""What every live log promises, on Redis itself and in memory."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from redis.asyncio import Redis

from nanoagent.common.units import MIB
from nanoagent.model.errors import ResultStoreError
from nanoagent.results.base import Claim
from nanoagent.results.connections import RedisConnections
from nanoagent.results.live_log import BEGINNING, FOLLOWER_LEASE_S, Appended, Kind, Record
from nanoagent.results.memory import MemoryResultStore
from nanoagent.results.redis import RedisResultStore
from nanoagent.results.redis_live_log import RedisLiveLogReader
from nanoagent.results.server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.dev.local_services import EmbeddedStack
    from nanoagent.results.base import Cancellations, ResultStore
    from nanoagent.results.live_log import LiveLog, LiveLogReader

DATABASE = 6  # emptied before each test
DEADLINE_S = 20
TTL_S = 55
MAX_BYTES = 10_000


class Logs(Protocol):
    """A store with live logs: the sides of a worker, of another worker, and of a follower."""

    @property
    def store(self) -> ResultStore: ...
    @property
    def log(self) -> LiveLog: ...
    @property
    def reader(self) -> LiveLogReader: ...
    @property
    def cancellations(self) -> Cancellations: ...

    def another(self) -> ResultStore: ...
    async def let_leases_end(self) -> None: ...
    async def let_claim_end(self, request_id: str) -> None: ...


@dataclass
class MemoryLogs:
    store: MemoryResultStore
    now: list[float]

    def __post_init__(self) -> None:
        self.log = self.reader = self.store.live_log(max_bytes=MAX_BYTES)
        self.cancellations = self.store

    def another(self) -> ResultStore:
        return self.store.beside()

    async def let_leases_end(self) -> None:
        self.now[0] += FOLLOWER_LEASE_S + 1

    async def let_claim_end(self, request_id: str) -> None:
        self.store.lapse(request_id)


class RedisLogs:
    def __init__(self, server: RedisServer, client: Redis) -> None:
        self._server = server
        self.client = client
        self.store = RedisResultStore(server, owner="worker-1")
        self.log = self.store.live_log(ttl_s=TTL_S, max_bytes=MAX_BYTES)
        self.reader = RedisLiveLogReader(RedisConnections(server, 5))
        self.cancellations = self.store.cancellations()
        self.others: list[RedisResultStore] = []

    def another(self) -> ResultStore:
        self.others.append(RedisResultStore(self._server))
        return self.others[-1]

    async def let_leases_end(self) -> None:
        for key in await self.client.keys("nanoagent:followed:*"):
            assert 0 < await self.client.ttl(key) <= FOLLOWER_LEASE_S
            await self.client.delete(key)

    async def let_claim_end(self, request_id: str) -> None:
        await self.client.hset(f"nanoagent:claim:{request_id}", "until", 1)

    async def close(self) -> None:
        await self.cancellations.close()
        await self.reader.close()
        for store in (self.store, *self.others):
            await store.close()


@asynccontextmanager
async def opened(stack: EmbeddedStack) -> AsyncIterator[RedisLogs]:
    server = RedisServer(stack.redis_host, stack.redis_port, db=DATABASE)
    async with Redis(host=server.host, port=server.port, db=DATABASE, protocol=2) as client:
        await client.flushdb()
        logs = RedisLogs(server, client)
        yield logs
        await logs.close()


@pytest.fixture
async def redis_logs(stack: EmbeddedStack) -> AsyncIterator[RedisLogs]:
    async with opened(stack) as logs:
        yield logs


@pytest.fixture(params=["redis", "memory"])
async def logs(request: pytest.FixtureRequest, stack: EmbeddedStack) -> AsyncIterator[Logs]:
    if request.param == "memory":
        now = [0.0]
        yield MemoryLogs(MemoryResultStore(clock=lambda: now[0]), now)
        return
    async with opened(stack) as logs:
        yield logs


async def claimed(store: ResultStore, request_id: str = "r") -> Claim:
    claim = await store.claim(request_id)
    assert isinstance(claim, Claim)
    return claim


RECORDS = [
    Record(Kind.STARTED, 1, data=b"worker-1"),
    Record(Kind.STDOUT, 1, 0, b"\x00\xff any bytes \r\n"),
    Record(Kind.STDERR, 1, 1 << 50, "안녕".encode()),
    Record(Kind.STDOUT, 1, 17),
    Record(Kind.STDOUT, 1, 17, b"***", printed=20),
    Record(Kind.ENDED, 1, data=b"SUCCESS"),
]


async def test_records_are_read_as_they_were_appended(logs: Logs):
    claim = await claimed(logs.store)
    await logs.log.append(claim, RECORDS[:2])
    await logs.log.append(claim, RECORDS[2:])

    found = await logs.reader.read("r", BEGINNING, 0)

    assert [record for _, record in found] == RECORDS


async def test_a_follower_continues_after_each_record(logs: Logs):
    await logs.log.append(await claimed(logs.store), RECORDS)
    found = await logs.reader.read("r", BEGINNING, 0)

    for number, (position, _) in enumerate(found, 1):
        assert [record for _, record in await logs.reader.read("r", position, 0)] == RECORDS[number:]


async def test_a_follower_waits_for_the_next_record(logs: Logs):
    claim = await claimed(logs.store)
    began_at = time.monotonic()
    assert await logs.reader.read("r", BEGINNING, 0.2) == []
    assert time.monotonic() - began_at >= 0.19
    waiting = asyncio.create_task(logs.reader.read("r", BEGINNING, 4))
    await asyncio.sleep(0.1)
    await logs.log.append(claim, RECORDS[:1])
    assert [record for _, record in await waiting] == RECORDS[:1]


async def test_live_logs_of_other_requests_are_separate(logs: Logs):
    await logs.log.append(await claimed(logs.store, "a"), RECORDS)
    assert await logs.reader.read("b", BEGINNING, 0) == []


async def test_the_worker_learns_with_each_batch_whether_somebody_follows(logs: Logs):
    claim = await claimed(logs.store)
    answers = [await logs.log.append(claim, RECORDS[:1])]
    await logs.reader.follow("r")
    answers.append(await logs.log.append(claim, RECORDS[:1]))
    await logs.let_leases_end()
    answers.append(await logs.log.append(claim, RECORDS[:1]))

    assert answers == [Appended.UNFOLLOWED, Appended.FOLLOWED, Appended.UNFOLLOWED]
    assert len(await logs.reader.read("r", BEGINNING, 0)) == 3


async def test_a_claim_says_whether_somebody_follows(logs: Logs):
    assert await logs.reader.follow("a") is None
    assert (await claimed(logs.store, "a")).followed
    assert not (await claimed(logs.store, "b")).followed
    await logs.let_leases_end()
    await logs.let_claim_end("a")
    assert not (await claimed(logs.another(), "a")).followed


async def test_a_worker_that_has_the_request_is_told_each_time(logs: Logs):
    told: asyncio.Queue[str] = asyncio.Queue()
    await claimed(logs.store)
    end = logs.cancellations.watch("r", lambda: None, lambda: told.put_nowait("r"))
    async with asyncio.timeout(DEADLINE_S):
        while not (holder := await logs.reader.follow("r")) or not holder.told:  # noqa: ASYNC110 - not connected yet
            await asyncio.sleep(0.05)
        await told.get()
        await logs.reader.follow("r")
        await told.get()
    end()
    await logs.reader.follow("r")
    assert told.empty()


async def test_no_worker_is_told_of_a_request_that_is_not_claimed_any_more(logs: Logs):
    claim = await claimed(logs.store)
    await logs.let_claim_end("r")
    assert await logs.reader.follow("r") is None
    await logs.store.release(claim)
    assert await logs.reader.follow("r") is None


async def test_a_superseded_worker_appends_nothing(logs: Logs):
    late = await claimed(logs.store)
    await logs.let_claim_end("r")
    claim = await claimed(logs.another())

    assert await logs.log.append(late, RECORDS) is Appended.SUPERSEDED
    await logs.log.append(claim, RECORDS[:1])

    assert [record for _, record in await logs.reader.read("r", BEGINNING, 0)] == RECORDS[:1]


async def test_after_the_result_the_rest_of_the_output_can_be_appended(logs: Logs):
    claim = await claimed(logs.store)
    assert await logs.store.publish(claim, b"{}")
    await logs.log.append(claim, RECORDS[:1])
    assert len(await logs.reader.read("r", BEGINNING, 0)) == 1
    assert await logs.reader.result("r") == b"{}"
    assert await logs.reader.result("other") is None


async def test_of_too_many_bytes_the_newest_are_kept(logs: Logs):
    claim = await claimed(logs.store)
    for number in range(50):
        await logs.log.append(claim, [Record(Kind.STDOUT, 1, number * 1000, b"x" * 1000)])
    kept = [record.position for _, record in await logs.reader.read("r", BEGINNING, 0)]
    assert kept == [number * 1000 for number in range(41, 50)]  # nine records of 1064 bytes

    await logs.log.append(claim, [Record(Kind.STDOUT, 1, 50_000, b"x" * 2 * MAX_BYTES)])
    assert [record.position for _, record in await logs.reader.read("r", BEGINNING, 0)] == [50_000]


# --- on Redis


async def test_a_live_log_expires(redis_logs: RedisLogs):
    await redis_logs.log.append(await claimed(redis_logs.store), RECORDS)
    assert 0 < await redis_logs.client.ttl("nanoagent:logs:r") <= TTL_S


async def test_the_worker_is_named_by_its_claim(redis_logs: RedisLogs):
    await claimed(redis_logs.store)
    holder = await redis_logs.reader.follow("r")
    assert holder is not None
    assert holder.worker == "worker-1"


async def test_a_job_without_followers_costs_no_command_but_one_exists(redis_logs: RedisLogs):
    async def commands() -> dict[str, int]:
        stats = await redis_logs.client.info("commandstats")
        return {name.removeprefix("cmdstat_"): value["calls"] for name, value in stats.items()}

    before = await commands()
    claim = await claimed(redis_logs.store)
    await redis_logs.store.publish(claim, b"{}")
    after = await commands()
    assert after["exists"] - before.get("exists", 0) == 2  # of the cancellation and of the followers' lease
    assert not {name for name in after if name.startswith("x")} - set(before)


async def test_a_dead_server_is_an_error_within_the_time_limit(unused_tcp_port: int):
    server = RedisServer("127.0.0.1", unused_tcp_port)
    store = RedisResultStore(server)
    claim = Claim("r", 1)
    with pytest.raises(ResultStoreError):
        await store.live_log(ttl_s=1, max_bytes=MIB).append(claim, RECORDS)
    await store.close()


def documented_permissions() -> list[str]:
    text = (Path(__file__).parents[2] / "docs/logs.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("ACL SETUSER follower")]
    return line.split()[5:]


async def test_the_documented_permissions_of_a_follower_are_sufficient_and_necessary(redis_logs: RedisLogs):
    permissions = documented_permissions()
    password = secrets.token_hex(8)
    claim = await claimed(redis_logs.store)

    async def works(allowed: list[str]) -> bool:
        await redis_logs.client.execute_command(
            "ACL", "SETUSER", "limited", "reset", "on", f">{password}", *allowed
        )
        server = RedisServer(
            *(redis_logs._server.host, redis_logs._server.port, DATABASE),
            username="limited",
            password=password,
        )
        reader = RedisLiveLogReader(RedisConnections(server, 5))
        try:
            await reader.follow("r")
            await reader.result("r")
            return len(await reader.read("r", BEGINNING, 0)) == len(RECORDS)
        except ResultStoreError:
            return False
        finally:
            await reader.close()

    await redis_logs.log.append(claim, RECORDS)
    assert await works(permissions)
    for each in permissions:
        assert not await works([other for other in permissions if other != each]), f"{each} is not needed"
    await redis_logs.client.execute_command("ACL", "DELUSER", "limited")
