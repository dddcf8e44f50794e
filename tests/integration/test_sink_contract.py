"""What every `ResultSink` promises, on Redis itself and in memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pytest
from redis.asyncio import Redis

from nanoagent.errors import SinkError
from nanoagent.sink import redis as redis_module
from nanoagent.sink.memory import MemorySink
from nanoagent.sink.redis import RedisSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.local import EmbeddedStack
    from nanoagent.sink.base import ResultSink

TTL_S = 77
DATABASE = 5  # emptied before each test, so not the one that agents under test use
DOCUMENT = '{"requestId":"r","stdout":"안녕"}'.encode()


class Server(Protocol):
    """A sink, seen from the side of who reads the results."""

    @property
    def sink(self) -> ResultSink: ...
    async def announced(self, request_id: str) -> bytes: ...
    async def forget(self) -> None: ...


@dataclass
class RedisServer:
    sink: ResultSink
    redis: Redis

    async def announced(self, request_id: str) -> bytes:
        """Subscribe, publish, and wait for what arrives."""
        async with self.redis.pubsub() as subscriber:
            await subscriber.subscribe(f"result:{request_id}")
            await subscriber.get_message(timeout=10)  # the confirmation: from here nothing is missed
            await self.sink.publish(request_id, DOCUMENT)
            message = await subscriber.get_message(ignore_subscribe_messages=True, timeout=10)
        assert message is not None
        return bytes(message["data"])

    async def forget(self) -> None:
        """Let every TTL run out."""
        for key in await self.redis.keys("job:*"):
            assert 0 < await self.redis.ttl(key) <= TTL_S
            await self.redis.expire(key, 0)


@dataclass
class MemoryServer:
    sink: MemorySink
    now: list[float]

    async def announced(self, request_id: str) -> bytes:
        await self.sink.publish(request_id, DOCUMENT)
        (announced,) = [document for request, document in self.sink.published if request == request_id]
        return announced

    async def forget(self) -> None:
        self.now[0] += TTL_S


@pytest.fixture(params=["redis", "memory"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    if request.param == "memory":
        now = [0.0]
        yield MemoryServer(MemorySink(ttl_s=TTL_S, clock=lambda: now[0]), now)
        return
    stack: EmbeddedStack = request.getfixturevalue("stack")
    sink = RedisSink(stack.redis_host, stack.redis_port, db=DATABASE, ttl_s=TTL_S)
    async with Redis(host=stack.redis_host, port=stack.redis_port, db=DATABASE, protocol=2) as redis:
        await redis.flushdb()
        yield RedisServer(sink, redis)
    await sink.close()


async def test_a_published_document_is_stored_as_it_was(server: Server):
    await server.sink.publish("r", DOCUMENT)

    assert await server.sink.stored("r") == DOCUMENT


async def test_a_document_that_was_never_published_is_not_stored(server: Server):
    assert await server.sink.stored("never") is None


async def test_a_subscriber_hears_the_document(server: Server):
    assert await server.announced("r") == DOCUMENT


async def test_publishing_again_replaces_the_document(server: Server):
    await server.sink.publish("r", b"first")
    await server.sink.publish("r", b"second")

    assert await server.sink.stored("r") == b"second"


async def test_a_document_is_forgotten_after_its_time(server: Server):
    await server.sink.publish("r", DOCUMENT)

    await server.forget()

    assert await server.sink.stored("r") is None


async def test_failures_are_counted_for_each_request(server: Server):
    counts = [await server.sink.count_failure(request) for request in ("a", "a", "b", "a")]

    assert counts == [1, 2, 1, 3]


async def test_concurrent_failures_are_all_counted(server: Server):
    counts = await asyncio.gather(*(server.sink.count_failure("r") for _ in range(100)))

    assert sorted(counts) == list(range(1, 101))


async def test_a_server_that_is_up_answers_a_ping(server: Server):
    await server.sink.ping()


async def test_closing_twice_is_harmless(server: Server):
    await server.sink.close()
    await server.sink.close()


def every_call(sink: ResultSink):
    return {
        "publish": sink.publish("r", DOCUMENT),
        "stored": sink.stored("r"),
        "count_failure": sink.count_failure("r"),
        "ping": sink.ping(),
    }


async def failures_of(sink: ResultSink) -> dict[str, BaseException | None]:
    calls = every_call(sink)
    answers = await asyncio.gather(*calls.values(), return_exceptions=True)
    return dict(zip(calls, answers, strict=True))


async def test_every_call_to_a_redis_that_is_not_there_is_a_sink_error(unused_tcp_port: int):
    sink = RedisSink("127.0.0.1", unused_tcp_port, password="secret")

    failures = await failures_of(sink)

    assert {type(failure) for failure in failures.values()} == {SinkError}
    assert all(f"127.0.0.1:{unused_tcp_port}" in str(failure) for failure in failures.values())
    assert not any("secret" in str(failure) for failure in failures.values())


async def test_every_call_to_a_redis_that_is_silent_ends_at_its_deadline():
    connected = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read(-1)
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        sink = RedisSink(*server.sockets[0].getsockname(), op_timeout_s=0.2)
        async with asyncio.timeout(60):  # without a deadline of its own, a call would wait for ever
            failures = await failures_of(sink)
        await sink.close()

    assert connected.is_set()
    assert {type(failure) for failure in failures.values()} == {SinkError}


@asynccontextmanager
async def redis_that_says(*answers: bytes) -> AsyncIterator[tuple[RedisSink, list[bytes]]]:
    """A sink whose server gives these answers, one for each packet, and hangs up at an empty one."""
    heard: list[bytes] = []
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while left and (packet := await reader.read(65536)):
            if b"CLIENT" in packet:  # the client introduces itself
                writer.write(b"+OK\r\n" * packet.count(b"CLIENT"))
                continue
            heard.append(packet)
            if not (answer := left.pop(0)):
                break
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        sink = RedisSink(*server.sockets[0].getsockname(), op_timeout_s=5)
        yield sink, heard
        await sink.close()


async def test_a_server_that_has_just_answered_is_not_pinged():
    async with redis_that_says(b"$-1\r\n") as (sink, heard):
        await sink.stored("r")
        await sink.ping()

    assert len(heard) == 1


async def test_a_server_that_has_failed_since_is_pinged():
    async with redis_that_says(b"$-1\r\n", b"-ERR no\r\n", b"-ERR no\r\n") as (sink, heard):
        await sink.stored("r")
        for call in (sink.stored("r"), sink.ping()):
            with pytest.raises(SinkError, match="no"):
                await call

    assert len(heard) == 3


async def test_a_server_that_has_not_answered_for_a_while_is_pinged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(redis_module, "_ANSWER_HOLDS_S", -1)
    async with redis_that_says(b"$-1\r\n", b"+PONG\r\n") as (sink, heard):
        await sink.stored("r")
        await sink.ping()

    assert len(heard) == 2


async def test_a_connection_that_was_closed_while_it_was_idle_costs_no_failure():
    async with redis_that_says(b"$-1\r\n", b"", b"$1\r\nx\r\n") as (sink, heard):
        await sink.stored("r")
        assert await sink.stored("r") == b"x"

    assert len(heard) == 3


@pytest.mark.parametrize(
    "said",
    [
        b"+OK\r\n-OOM no room\r\n+QUEUED\r\n-EXECABORT discarded\r\n",
        b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n-OOM no room\r\n:0\r\n",
    ],
    ids=["before it began", "within it"],
)
async def test_a_transaction_that_the_server_refuses_is_a_sink_error_and_the_next_call_succeeds(said):
    async with redis_that_says(said, b"$1\r\nx\r\n") as (sink, _):
        with pytest.raises(SinkError, match="no room"):
            await sink.publish("r", DOCUMENT)
        assert await sink.stored("r") == b"x"


async def test_a_call_that_is_cancelled_leaves_its_answer_to_nobody(stack: EmbeddedStack):
    sink = RedisSink(stack.redis_host, stack.redis_port, db=DATABASE)
    await sink.publish("r", DOCUMENT)
    for turns in range(6):
        call = asyncio.create_task(sink.stored("r"))
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert await sink.stored("never") is None
    await sink.close()


async def test_a_sink_recovers_when_its_connections_were_cut(stack: EmbeddedStack):
    sink = RedisSink(stack.redis_host, stack.redis_port)
    await sink.publish("r", b"before")
    async with Redis(host=stack.redis_host, port=stack.redis_port, protocol=2) as redis:
        await redis.client_kill_filter(_type="normal", skipme=True)

    await sink.publish("r", b"after")

    assert await sink.stored("r") == b"after"
    await sink.close()


async def test_failure_counts_do_not_stay_on_redis_for_ever(stack: EmbeddedStack):
    sink = RedisSink(stack.redis_host, stack.redis_port)
    await sink.count_failure("mortal")
    async with Redis(host=stack.redis_host, port=stack.redis_port, protocol=2) as redis:
        assert 0 < await redis.ttl("nanoagent:failures:mortal") <= 86_400
    await sink.close()


async def test_a_memory_sink_marked_as_down_fails_every_call():
    sink = MemorySink()
    sink.down = True

    failures = await failures_of(sink)

    assert {type(failure) for failure in failures.values()} == {SinkError}
