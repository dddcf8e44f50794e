"""What every `ResultStore` promises, on Redis itself and in memory."""

from __future__ import annotations

import asyncio
import math
import secrets
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from nanoagent.model.errors import ResultStoreError
from nanoagent.results import redis as redis_module
from nanoagent.results import scripts
from nanoagent.results.base import Answered, Claim, Taken
from nanoagent.results.live_log import Kind, Record
from nanoagent.results.memory import MemoryResultStore
from nanoagent.results.redis import RedisResultStore
from nanoagent.results.server import RedisServer as At
from support.services.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from nanoagent.dev.local_services import EmbeddedStack
    from nanoagent.results.base import Cancellations, ResultStore
    from nanoagent.results.cancellations import RedisCancellations

TTL_S = 77
CLAIM_S = 1.5  # renewed every half second
DEADLINE_S = 60
# What the claim's script says of a request that has a result.
ANSWERED = b"$11\r\nanswered {}\r\n"
GRANTED = b"$15\r\nclaimed 7 0 0 0\r\n"
PUBLISHED = b":1\r\n"
DATABASE = 5  # emptied before each test, so not the one that agents under test use
DOCUMENT = '{"requestId":"r","stdout":"안녕"}'.encode()
ABOUT = b'["f",128]'


class Server(Protocol):
    """A result store, seen from the side of who reads the results."""

    @property
    def result_store(self) -> ResultStore: ...
    def another(self) -> ResultStore:
        """Of another worker."""
        ...

    async def read(self, request_id: str) -> bytes | None: ...
    async def announced(self, request_id: str, act: Awaitable[object]) -> list[bytes]:
        """What a subscriber hears while something is done."""
        ...

    async def forget(self) -> None: ...
    async def lapse(self, request_id: str) -> None:
        """Let a claim run out."""
        ...

    async def cancel_ahead(self, request_id: str) -> None:
        """As a sender who cannot know whether anyone has the request."""
        ...

    async def cancel(self, request_id: str) -> int:
        """As a sender who asks how many have heard."""
        ...

    def cancellations(self) -> Cancellations: ...
    async def entries(self) -> list[bytes]:
        """The index of jobs, the oldest entry first."""
        ...

    async def running(self) -> dict[str, bytes]:
        """The claimed requests in the index, and what their claims say."""
        ...


@dataclass
class RedisServer:
    result_store: ResultStore
    redis: Redis
    others: list[RedisResultStore] = field(default_factory=list)
    listeners: list[RedisCancellations] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        settings = self.redis.connection_pool.connection_kwargs
        return settings["host"], settings["port"]

    def another(self) -> ResultStore:
        server = At(*self.address, db=DATABASE)
        result_store = RedisResultStore(server, ttl_s=TTL_S, claim_s=CLAIM_S, index_ttl_s=TTL_S)
        self.others.append(result_store)
        return result_store

    async def read(self, request_id: str) -> bytes | None:
        document = await self.redis.get(f"job:{request_id}")
        assert document is None or isinstance(document, bytes)
        return document

    async def announced(self, request_id: str, act: Awaitable[object]) -> list[bytes]:
        heard: list[bytes] = []
        async with self.redis.pubsub() as subscriber:
            await subscriber.subscribe(f"result:{request_id}")
            await subscriber.get_message(timeout=10)  # the confirmation: from here nothing is missed
            await act
            await self.redis.publish(f"result:{request_id}", b"end")  # Redis delivers in order
            while True:
                message = await subscriber.get_message(ignore_subscribe_messages=True, timeout=10)
                assert message is not None
                if message["data"] == b"end":
                    return heard
                heard.append(bytes(message["data"]))

    async def entries(self) -> list[bytes]:
        answer: Any = await self.redis.xrange("nanoagent:jobs")
        return [fields[b"job"] for _, fields in answer]

    async def running(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        members: Any = await self.redis.zrange("nanoagent:running", 0, -1)
        for request in [member.decode() for member in members]:
            about: Any = await self.redis.hget(f"nanoagent:claim:{request}", "about")
            found[request] = about or b""
        return found

    async def forget(self) -> None:
        """Let every TTL run out."""
        for key in await self.redis.keys("job:*"):
            assert 0 < await self.redis.ttl(key) <= TTL_S
            await self.redis.expire(key, 0)

    async def lapse(self, request_id: str) -> None:
        key = f"nanoagent:claim:{request_id}"
        assert 0 < await self.redis.ttl(key) <= scripts.CLAIM_TTL_S
        await self.redis.hset(key, "until", 1)  # 0 would say that it was let go

    async def cancel_ahead(self, request_id: str) -> None:
        await self.redis.set(f"cancel:{request_id}", "", ex=60)

    async def cancel(self, request_id: str) -> int:
        return int(await self.redis.publish(f"cancel:{request_id}", ""))

    def cancellations(self, **options: Any) -> RedisCancellations:
        assert isinstance(self.result_store, RedisResultStore)
        heard = self.result_store.cancellations(**options)
        self.listeners.append(heard)
        return heard


@dataclass
class MemoryServer:
    result_store: MemoryResultStore
    now: list[float]

    def another(self) -> ResultStore:
        return self.result_store.beside()

    async def read(self, request_id: str) -> bytes | None:
        return await self.result_store.stored(request_id)

    async def announced(self, request_id: str, act: Awaitable[object]) -> list[bytes]:
        before = len(self.result_store.published)
        await act
        return [
            document for request, document in self.result_store.published[before:] if request == request_id
        ]

    async def forget(self) -> None:
        self.now[0] += TTL_S

    async def lapse(self, request_id: str) -> None:
        self.result_store.lapse(request_id)

    async def cancel_ahead(self, request_id: str) -> None:
        self.result_store.cancel_ahead(request_id)

    async def cancel(self, request_id: str) -> int:
        return self.result_store.cancel(request_id)

    def cancellations(self) -> Cancellations:
        return self.result_store

    async def entries(self) -> list[bytes]:
        return self.result_store.entries

    async def running(self) -> dict[str, bytes]:
        return self.result_store.running


@asynccontextmanager
async def opened_redis(stack: EmbeddedStack) -> AsyncIterator[RedisServer]:
    result_store = RedisResultStore(
        At(stack.redis_host, stack.redis_port, db=DATABASE),
        ttl_s=TTL_S,
        claim_s=CLAIM_S,
        index_ttl_s=TTL_S,
    )
    async with Redis(host=stack.redis_host, port=stack.redis_port, db=DATABASE, protocol=2) as redis:
        await redis.flushdb()
        server = RedisServer(result_store, redis)
        yield server
        for listener in server.listeners:
            await listener.close()
        for other in (result_store, *server.others):
            await other.close()


@pytest.fixture(params=["redis", "memory"])
async def server(request: pytest.FixtureRequest, stack: EmbeddedStack) -> AsyncIterator[Server]:
    if request.param == "memory":
        now = [0.0]
        yield MemoryServer(MemoryResultStore(ttl_s=TTL_S, clock=lambda: now[0], claim_s=CLAIM_S), now)
        return
    async with opened_redis(stack) as server:
        yield server


async def claimed(result_store: ResultStore, request_id: str = "r", about: bytes = b"") -> Claim:
    claim = await result_store.claim(request_id, about)
    assert isinstance(claim, Claim)
    return claim


async def answered(result_store: ResultStore, document: bytes, request_id: str = "r") -> None:
    assert await result_store.publish(await claimed(result_store, request_id), document)


async def test_a_published_document_is_stored_as_it_was(server: Server):
    await answered(server.result_store, DOCUMENT)

    assert await server.read("r") == DOCUMENT


async def test_a_subscriber_hears_the_document(server: Server):
    assert await server.announced("r", answered(server.result_store, DOCUMENT)) == [DOCUMENT]


async def test_a_document_is_forgotten_after_its_time(server: Server):
    await answered(server.result_store, DOCUMENT)

    await server.forget()

    assert await server.read("r") is None


# --- the index of jobs


async def test_a_job_is_running_from_its_claim_to_its_result_and_has_one_entry_then(server: Server):
    claim = await claimed(server.result_store, about=ABOUT)
    assert (await server.running(), await server.entries()) == ({"r": ABOUT}, [])

    for _ in range(2):  # the answer to the first was lost, say
        assert await server.result_store.publish(claim, DOCUMENT, b"entry")

    assert (await server.running(), await server.entries()) == ({}, [b"entry"])


async def test_a_result_that_is_refused_has_no_entry_and_its_job_still_runs(server: Server):
    late = await claimed(server.result_store, about=ABOUT)
    await server.lapse("r")
    await claimed(server.another(), about=b"other")

    assert await server.result_store.publish(late, DOCUMENT, b"late") is False

    assert (await server.running(), await server.entries()) == ({"r": b"other"}, [])


async def test_a_job_whose_attempt_failed_does_not_run_and_has_an_entry(server: Server):
    claim = await claimed(server.result_store, about=ABOUT)

    await server.result_store.release(claim, failed=True, entry=b"waits")

    assert (await server.running(), await server.entries()) == ({}, [b"waits"])


async def test_a_job_that_is_returned_does_not_run_and_has_no_entry(server: Server):
    await server.result_store.release(await claimed(server.result_store, about=ABOUT))

    assert (await server.running(), await server.entries()) == ({}, [])


async def test_a_worker_that_was_superseded_changes_nothing_in_the_index(server: Server):
    late = await claimed(server.result_store, about=ABOUT)
    await server.lapse("r")
    await claimed(server.another(), about=b"other")

    await server.result_store.release(late, failed=True, entry=b"late")

    assert (await server.running(), await server.entries()) == ({"r": b"other"}, [])


async def test_entries_are_in_the_order_of_the_results(server: Server):
    for request in "abc":
        claim = await claimed(server.result_store, request, ABOUT)
        assert await server.result_store.publish(claim, DOCUMENT, request.encode())

    assert await server.entries() == [b"a", b"b", b"c"]


# --- claims


async def test_a_request_that_is_answered_is_announced_again_instead_of_claimed(server: Server):
    await answered(server.result_store, DOCUMENT)

    async def claim() -> None:
        assert await server.another().claim("r") == Answered(DOCUMENT)

    assert await server.announced("r", claim()) == [DOCUMENT]
    assert await server.read("r") == DOCUMENT


async def test_a_request_that_another_worker_has_cannot_be_claimed(server: Server):
    await claimed(server.result_store)

    taken = await server.another().claim("r")

    assert isinstance(taken, Taken)
    assert 0 < taken.left_s <= CLAIM_S


async def test_how_often_a_claim_was_in_the_way_is_counted_anew_with_each_claim(server: Server):
    other = server.another()
    refusals = []
    await claimed(server.result_store)
    for _ in range(3):
        taken = await other.claim("r")
        assert isinstance(taken, Taken)
        refusals.append(taken.refusals)
    await claimed(server.result_store)  # once more, as by a repeated command: another claim
    taken = await other.claim("r")
    assert isinstance(taken, Taken)
    assert (refusals, taken.refusals) == ([1, 2, 3], 1)


async def test_other_requests_can_be_claimed_meanwhile(server: Server):
    await claimed(server.result_store, "a")
    await claimed(server.another(), "b")


async def test_of_many_workers_that_want_a_request_one_gets_it(server: Server):
    stores = [server.another() for _ in range(10)]

    answers = await asyncio.gather(*(result_store.claim("r") for result_store in stores))

    assert sorted(type(answer).__name__ for answer in answers) == ["Claim"] + ["Taken"] * 9


async def test_a_claim_that_is_released_can_be_had_at_once(server: Server):
    await server.result_store.release(await claimed(server.result_store))

    await claimed(server.another())


async def test_each_claim_of_a_request_has_a_larger_token(server: Server):
    tokens = []
    for result_store in (server.result_store, server.another(), server.another()):
        tokens.append((await claimed(result_store)).token)
        await server.lapse("r")

    assert 0 < tokens[0] < tokens[1] < tokens[2]


async def test_a_superseded_worker_publishes_nothing(server: Server):
    late = await claimed(server.result_store)
    await server.lapse("r")
    await claimed(server.another())

    async def publish() -> None:
        assert await server.result_store.publish(late, b"late") is False

    assert await server.announced("r", publish()) == []
    assert await server.read("r") is None


async def test_whoever_has_been_superseded_and_outpaced_changes_nothing(server: Server):
    late = await claimed(server.result_store)
    await server.lapse("r")
    await answered(server.another(), DOCUMENT)

    assert await server.result_store.publish(late, b"late") is False
    assert await server.read("r") == DOCUMENT


async def test_a_superseded_worker_is_refused_even_after_the_result_has_expired(server: Server):
    if isinstance(server, MemoryServer):
        pytest.skip("in memory nothing outlives its document: there is no other process to be late")
    late = await claimed(server.result_store)
    await server.lapse("r")
    await answered(server.another(), DOCUMENT)
    await server.forget()

    assert await server.result_store.publish(late, b"late") is False
    assert await server.read("r") is None


async def test_a_superseded_worker_takes_no_claim_away_by_releasing(server: Server):
    late = await claimed(server.result_store)
    await server.lapse("r")
    await claimed(server.another())

    await server.result_store.release(late)

    assert isinstance(await server.another().claim("r"), Taken)


async def test_a_claim_that_ran_out_is_good_while_nobody_has_taken_it(server: Server):
    claim = await claimed(server.result_store)
    await server.lapse("r")

    assert await server.result_store.publish(claim, DOCUMENT)


async def test_a_claim_that_was_released_is_good_for_publishing_while_nobody_has_taken_it(server: Server):
    claim = await claimed(server.result_store)
    await server.result_store.release(claim)

    assert await server.result_store.publish(claim, DOCUMENT)


async def test_publishing_the_same_document_again_succeeds(server: Server):
    claim = await claimed(server.result_store)
    await server.result_store.publish(claim, DOCUMENT)

    assert await server.result_store.publish(claim, DOCUMENT)  # the answer to the first was lost, say


async def test_the_first_answer_stays(server: Server):
    claim = await claimed(server.result_store)
    await server.result_store.publish(claim, DOCUMENT)

    assert await server.result_store.publish(claim, b"another") is False
    assert await server.read("r") == DOCUMENT


async def test_a_claim_says_whether_the_request_was_called_off(server: Server):
    await server.cancel_ahead("a")

    assert (await claimed(server.result_store, "a")).cancelled
    assert not (await claimed(server.result_store, "b")).cancelled


async def test_a_claim_that_was_taken_over_is_lost_and_no_other(server: Server):
    late, good = await claimed(server.result_store), await claimed(server.result_store, "good")
    await server.lapse("r")
    await claimed(server.another())

    async with asyncio.timeout(DEADLINE_S):
        assert await late.lost
    assert not good.lost.done()


# --- cancellations


async def until_heard(server: Server, request_id: str) -> None:
    """Call off until somebody has heard it, as a sender does."""
    async with asyncio.timeout(DEADLINE_S):
        while not await server.cancel(request_id):  # noqa: ASYNC110 - nobody tells who listens
            await asyncio.sleep(0.01)


async def test_a_watched_request_that_is_called_off_is_heard_of_once_and_no_other(server: Server):
    cancellations = server.cancellations()
    heard: asyncio.Queue[str] = asyncio.Queue()
    ends = [
        cancellations.watch(request, lambda request=request: heard.put_nowait(request))  # type: ignore[misc]
        for request in ("a", "b")
    ]

    await until_heard(server, "a")
    await server.cancel("a")
    await until_heard(server, "b")

    async with asyncio.timeout(DEADLINE_S):
        assert [await heard.get(), await heard.get()] == ["a", "b"]
    assert heard.empty()
    for end in ends:
        end()
    async with asyncio.timeout(DEADLINE_S):
        while await server.cancel("a") or await server.cancel("b"):  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)


async def test_nobody_hears_of_a_request_that_is_not_watched_any_more(server: Server):
    cancellations = server.cancellations()
    heard: list[str] = []
    end = cancellations.watch("a", lambda: heard.append("a"))
    end()
    other = asyncio.Event()
    cancellations.watch("b", other.set)

    assert await server.cancel("a") == 0
    await until_heard(server, "b")
    async with asyncio.timeout(DEADLINE_S):
        await other.wait()
    assert heard == []


# --- failures


async def failed(result_store: ResultStore, request_id: str = "r") -> int:
    return await result_store.release(await claimed(result_store, request_id), failed=True)


async def test_failures_are_counted_for_each_request(server: Server):
    counts = [await failed(server.result_store, request) for request in ("a", "a", "b", "a")]

    assert counts == [1, 2, 1, 3]
    assert (await claimed(server.another(), "a")).failures == 3
    assert (await claimed(server.another(), "c")).failures == 0


async def test_a_failure_that_is_told_again_counts_once(server: Server):
    claim = await claimed(server.result_store)

    assert [await server.result_store.release(claim, failed=True) for _ in range(3)] == [1, 1, 1]


async def test_a_claim_that_is_let_go_otherwise_is_no_failure(server: Server):
    assert await server.result_store.release(await claimed(server.result_store)) == 0
    assert await failed(server.another()) == 1
    assert await server.result_store.release(await claimed(server.result_store)) == 1


async def test_a_claim_that_ran_out_counts_once_another_worker_takes_it(server: Server):
    late = await claimed(server.result_store)
    await server.lapse("r")

    assert (await claimed(server.another())).failures == 1
    assert await server.result_store.release(late, failed=True) == 1  # it has hung, and failed: one attempt


async def test_a_claim_that_was_taken_over_and_then_let_go_counts_no_more(server: Server):
    await claimed(server.result_store)
    await server.lapse("r")
    other = server.another()
    await other.release(await claimed(other))  # the claim is remembered, but nobody has it

    assert (await claimed(server.another())).failures == 1


async def test_a_claim_that_its_own_worker_takes_again_is_no_failure(server: Server):
    await claimed(server.result_store)  # nobody was told of it, say: the connection broke before the answer

    assert (await claimed(server.result_store)).failures == 0


async def test_an_answer_ends_the_count_and_nothing_counts_after_it(server: Server):
    late = await claimed(server.result_store)
    await server.lapse("r")
    await answered(server.another(), DOCUMENT)

    assert await server.result_store.release(late, failed=True) == 0
    await server.forget()
    assert (await claimed(server.another())).failures == 0


async def test_a_server_that_is_up_answers_a_ping(server: Server):
    await server.result_store.ping()


async def test_closing_twice_is_harmless(server: Server):
    await server.result_store.close()
    await server.result_store.close()


def every_call(result_store: ResultStore):
    return {
        "claim": result_store.claim("r"),
        "publish": result_store.publish(Claim("r", 1), DOCUMENT),
        "release": result_store.release(Claim("r", 1)),
        "fail": result_store.release(Claim("r", 1), failed=True),
        "ping": result_store.ping(),
    }


async def failures_of(result_store: ResultStore) -> dict[str, BaseException | None]:
    calls = every_call(result_store)
    answers = await asyncio.gather(*calls.values(), return_exceptions=True)
    return dict(zip(calls, answers, strict=True))


async def test_every_call_to_a_redis_that_is_not_there_is_a_sink_error(unused_tcp_port: int):
    result_store = RedisResultStore(At("127.0.0.1", unused_tcp_port, password="secret"))

    failures = await failures_of(result_store)

    assert all(isinstance(failure, ResultStoreError) for failure in failures.values())
    assert all(f"127.0.0.1:{unused_tcp_port}" in str(failure) for failure in failures.values())
    assert not any("secret" in str(failure) for failure in failures.values())


async def test_every_call_to_a_redis_that_is_silent_ends_at_its_deadline():
    connected = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read(-1)
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        result_store = RedisResultStore(At(*server.sockets[0].getsockname()), op_timeout_s=0.2)
        async with asyncio.timeout(60):  # without a deadline of its own, a call would wait for ever
            failures = await failures_of(result_store)
        await result_store.close()

    assert connected.is_set()
    assert all(isinstance(failure, ResultStoreError) for failure in failures.values())


@asynccontextmanager
async def redis_that_says(*answers: bytes) -> AsyncIterator[tuple[RedisResultStore, list[bytes]]]:
    """A result store whose server gives these answers, one for each packet, and hangs up at an empty one."""
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
        result_store = RedisResultStore(At(*server.sockets[0].getsockname()), op_timeout_s=5)
        yield result_store, heard
        await result_store.close()


# To the first ping: what a worker does is tried, it may subscribe, and its key is written.
WELL = (
    b":1\r\n",
    b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n",
    b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n",
    b"+OK\r\n",
)


async def first_ping(result_store: RedisResultStore) -> None:
    """A ping after which nothing is known of the server for being fresh."""
    await result_store.ping()
    result_store._written_at = -math.inf


async def test_a_server_that_has_just_taken_a_write_is_not_asked_to_take_another():
    async with redis_that_says(*WELL, GRANTED, PUBLISHED) as (result_store, heard):
        await first_ping(result_store)
        claim = await claimed(result_store)
        await result_store.ping()
        await result_store.publish(claim, DOCUMENT)
        await result_store.ping()

    assert len(heard) == len(WELL) + 2


async def test_a_server_that_has_only_been_read_from_is_asked_to_take_a_write():
    async with redis_that_says(*WELL, ANSWERED, b"+OK\r\n") as (result_store, heard):
        await first_ping(result_store)
        await result_store.claim("r")
        await result_store.ping()

    assert b"SETEX" in heard[-1]
    assert b"nanoagent:worker:worker" in heard[-1]
    assert len(heard) == len(WELL) + 2


async def test_a_server_that_has_failed_since_is_asked_for_all_that_a_worker_does():
    async with redis_that_says(GRANTED, b"-ERR no\r\n", b"-ERR no\r\n") as (result_store, heard):
        await result_store.claim("r")
        for call in (result_store.claim("r"), result_store.ping()):
            with pytest.raises(ResultStoreError, match="no"):
                await call

    assert len(heard) == 3


async def test_a_server_that_has_not_taken_a_write_for_a_while_is_asked_to(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(redis_module, "_WRITE_VALID_S", -1)
    async with redis_that_says(*WELL, GRANTED, b"+OK\r\n") as (result_store, heard):
        await first_ping(result_store)
        await result_store.claim("r")
        await result_store.ping()

    assert len(heard) == len(WELL) + 2


async def test_a_connection_that_was_closed_while_it_was_idle_costs_no_failure():
    async with redis_that_says(ANSWERED, b"", ANSWERED) as (result_store, heard):
        await result_store.claim("r")
        assert await result_store.claim("r") == Answered(b"{}")

    assert len(heard) == 3


async def test_a_script_that_the_server_refuses_is_a_sink_error_and_the_next_call_succeeds():
    async with redis_that_says(b"-OOM no room\r\n", ANSWERED) as (result_store, _):
        with pytest.raises(ResultStoreError, match="no room"):
            await result_store.release(Claim("r", 1), failed=True)
        assert await result_store.claim("r") == Answered(b"{}")


async def test_a_call_that_is_cancelled_leaves_its_answer_and_its_claim_to_nobody(stack: EmbeddedStack):
    result_store, another = (
        RedisResultStore(At(stack.redis_host, stack.redis_port, db=DATABASE)) for _ in range(2)
    )
    await answered(result_store, DOCUMENT, "cancel-answered")
    for turns in range(6):
        call = asyncio.create_task(result_store.claim(f"cancel-{turns}"))
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        (outcome,) = await asyncio.gather(call, return_exceptions=True)
        if isinstance(outcome, Claim):  # it was too late to cancel anything
            await result_store.release(outcome)
        assert await result_store.claim("cancel-answered") == Answered(DOCUMENT)
    await result_store.close()
    for turns in range(6):
        await another.release(await claimed(another, f"cancel-{turns}"))
    await another.close()


async def test_a_result_store_recovers_when_its_connections_were_cut(stack: EmbeddedStack):
    result_store = RedisResultStore(At(stack.redis_host, stack.redis_port, db=DATABASE))
    claim = await claimed(result_store, "cut")
    async with Redis(host=stack.redis_host, port=stack.redis_port, protocol=2) as redis:
        await redis.client_kill_filter(_type="normal", skipme=True)

    assert await result_store.publish(claim, DOCUMENT)

    assert await result_store.claim("cut") == Answered(DOCUMENT)
    await result_store.close()


@pytest.fixture
async def redis_server(stack: EmbeddedStack) -> AsyncIterator[RedisServer]:
    async with opened_redis(stack) as server:
        yield server


async def test_a_claim_is_renewed_for_as_long_as_it_is_held(redis_server: RedisServer):
    await claimed(redis_server.result_store)
    before = await redis_server.redis.hget("nanoagent:claim:r", "until")

    async with asyncio.timeout(DEADLINE_S):
        while await redis_server.redis.hget("nanoagent:claim:r", "until") == before:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        seconds, microseconds = await redis_server.redis.time()
        while seconds * 1_000_000 + microseconds <= int(before or 0):  # it would have run out by now
            assert isinstance(await redis_server.another().claim("r"), Taken)
            seconds, microseconds = await redis_server.redis.time()


async def test_all_claims_are_renewed_in_one_packet(monkeypatch: pytest.MonkeyPatch):
    claimed_answer = b"$15\r\nclaimed %d 0 0 0\r\n"
    answers = [claimed_answer % number for number in range(1, 4)]
    async with redis_that_says(*answers, b":1\r\n:0\r\n:1\r\n") as (result_store, heard):
        claims = {await claimed(result_store, request) for request in "abc"}
        await result_store._renew_all()
        lost = [claim for claim in claims if claim.lost.done()]

    assert len(heard) == 4
    assert heard[-1].count(b"EVALSHA") == 3
    assert len(lost) == 1


async def test_a_claim_that_the_server_has_forgotten_is_made_again(redis_server: RedisServer):
    claim = await claimed(redis_server.result_store)
    await redis_server.redis.flushdb()

    async with asyncio.timeout(DEADLINE_S):
        while not await redis_server.redis.exists("nanoagent:claim:r"):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    assert isinstance(await redis_server.another().claim("r"), Taken)
    assert await redis_server.result_store.publish(claim, DOCUMENT)


async def test_a_server_that_has_forgotten_the_scripts_is_told_them_again(redis_server: RedisServer):
    await answered(redis_server.result_store, DOCUMENT, "before")
    await redis_server.redis.script_flush()

    await answered(redis_server.result_store, DOCUMENT, "after")

    assert await redis_server.read("after") == DOCUMENT


async def test_nothing_but_the_result_is_left_of_an_undisturbed_request(redis_server: RedisServer):
    await answered(redis_server.result_store, DOCUMENT)

    assert await redis_server.redis.keys("*") == [b"job:r"]


async def test_nothing_at_all_is_left_of_a_claim_that_was_released(redis_server: RedisServer):
    await redis_server.result_store.release(await claimed(redis_server.result_store))

    assert await redis_server.redis.keys("*") == []


async def test_a_claim_that_was_released_is_not_brought_back_by_a_renewal_under_way(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    result_store = redis_server.result_store
    assert isinstance(result_store, RedisResultStore)
    under_way, arrive = asyncio.Event(), asyncio.Event()
    ask = result_store._connections.ask

    async def delay_renewals(doing: str, *commands: Any) -> list[Any]:
        if doing == "renew claims":
            under_way.set()
            await arrive.wait()
        return await ask(doing, *commands)

    monkeypatch.setattr(result_store._connections, "ask", delay_renewals)
    claim = await claimed(result_store)
    renewal = asyncio.create_task(result_store._renew_all())
    await under_way.wait()
    release = asyncio.create_task(result_store.release(claim))
    await redis_server.redis.ping()  # time enough for a release that does not wait
    arrive.set()
    await asyncio.gather(renewal, release)

    assert await redis_server.redis.keys("*") == []


async def test_a_server_whose_clock_has_gone_back_still_gives_larger_tokens(redis_server: RedisServer):
    await redis_server.redis.hset(
        "nanoagent:claim:r", mapping={"token": 9_007_199_254_740_000, "owner": "x", "until": 0, "others": 0}
    )

    assert (await claimed(redis_server.result_store)).token == 9_007_199_254_740_001


# --- the index of jobs on Redis


async def test_the_index_is_bounded_and_expires(redis_server: RedisServer):
    server = At(*redis_server.address, db=DATABASE)
    result_store = RedisResultStore(server, indexed_jobs=200, index_ttl_s=TTL_S)
    redis_server.others.append(result_store)
    for number in range(1000):
        claim = await claimed(result_store, f"r{number}", ABOUT)
        assert await result_store.publish(claim, DOCUMENT, b"%d" % number)

    entries = await redis_server.entries()
    assert entries == [b"%d" % number for number in range(1000 - len(entries), 1000)]
    assert 200 <= len(entries) < 300  # Redis removes whole nodes of a hundred entries
    assert 0 < await redis_server.redis.ttl("nanoagent:jobs") <= TTL_S
    assert await redis_server.running() == {}


async def test_a_result_store_without_an_index_writes_none(redis_server: RedisServer):
    result_store = RedisResultStore(At(*redis_server.address, db=DATABASE), indexed_jobs=0)
    redis_server.others.append(result_store)
    claim = await claimed(result_store, about=ABOUT)
    await result_store._renew_all()
    assert await result_store.publish(claim, DOCUMENT, b"entry")
    await result_store.release(await claimed(result_store, "s", ABOUT), failed=True, entry=b"entry")

    assert not await redis_server.redis.exists("nanoagent:jobs", "nanoagent:running")


async def test_old_entries_and_requests_of_dead_workers_are_removed(redis_server: RedisServer):
    result_store = redis_server.result_store
    assert isinstance(result_store, RedisResultStore)
    seconds, _ = await redis_server.redis.time()
    for age_s in (TTL_S + 10, TTL_S - 10):
        await redis_server.redis.xadd(
            "nanoagent:jobs", {"job": f"{age_s}"}, id=f"{(seconds - age_s) * 1000}-1"
        )
    for request, age_s in (("old", scripts.LOST_TTL_S + 10), ("recent", scripts.LOST_TTL_S - 10)):
        await redis_server.redis.zadd("nanoagent:running", {request: (seconds - age_s) * 1_000_000})

    await result_store._tend_index()

    assert await redis_server.entries() == [f"{TTL_S - 10}".encode()]
    assert set(await redis_server.running()) == {"recent"}
    assert 0 < await redis_server.redis.ttl("nanoagent:running") <= scripts.CLAIM_TTL_S


async def test_the_index_is_tended_while_a_worker_runs(redis_server: RedisServer):
    await redis_server.redis.zadd("nanoagent:running", {"dead": 1})
    await claimed(redis_server.result_store, about=ABOUT)

    async with asyncio.timeout(DEADLINE_S):
        while "dead" in await redis_server.running():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    assert "r" in await redis_server.running()


async def test_a_renewal_moves_the_end_of_a_running_job(redis_server: RedisServer):
    result_store = redis_server.result_store
    assert isinstance(result_store, RedisResultStore)
    await claimed(result_store, about=ABOUT)
    before = await redis_server.redis.zscore("nanoagent:running", "r")

    await result_store._renew_all()

    until = await redis_server.redis.hget("nanoagent:claim:r", "until")
    assert await redis_server.redis.zscore("nanoagent:running", "r") == int(until or 0) > (before or 0)


async def test_a_user_who_may_not_write_the_index_can_work_without_it_and_is_told(redis_server: RedisServer):
    without = [right for right in documented_rights() if right not in {"+xadd", "+zadd", "+zrem"}]
    password = secrets.token_hex(8)
    await redis_server.redis.execute_command("ACL", "SETUSER", "old", "reset", "on", f">{password}", *without)
    result_store = RedisResultStore(At(*redis_server.address, DATABASE, username="old", password=password))
    redis_server.others.append(result_store)

    with capture_logs() as logs:
        await result_store.ping()
    claim = await claimed(result_store, about=ABOUT)
    await result_store._renew_all()
    assert await result_store.publish(claim, DOCUMENT, b"entry")

    assert await redis_server.read("r") == DOCUMENT
    assert [log["event"] for log in logs] == ["jobs not listed"]
    assert "docs/operations.md" in logs[0]["remedy"]
    await redis_server.redis.execute_command("ACL", "DELUSER", "old")


def documented_rights() -> list[str]:
    """What docs/operations.md says that a Redis user of the worker's own has to be allowed."""
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("ACL SETUSER nanoagent")]
    return line.split()[5:]


async def test_the_documented_permissions_are_sufficient_and_necessary(redis_server: RedisServer):
    rights = documented_rights()
    password = secrets.token_hex(8)

    async def works(allowed: list[str]) -> bool:
        await redis_server.redis.flushdb()
        await redis_server.redis.execute_command(
            "ACL", "SETUSER", "limited", "reset", "on", f">{password}", *allowed
        )
        await redis_server.redis.script_flush()
        result_store = RedisResultStore(
            At(*redis_server.address, db=DATABASE, username="limited", password=password),
            claim_s=CLAIM_S,
        )
        try:
            await result_store.ping()
            if result_store.index_refusal is not None or result_store.follow_refusal is not None:
                return False
            await result_store.ask("PING")
            await answered(result_store, DOCUMENT, "a")
            assert await result_store.claim("a") == Answered(DOCUMENT)
            await claimed(result_store, "b")
            await result_store._renew_all()
            await result_store.release(await claimed(result_store, "c"))
            await failed(result_store, "f")
            await redis_server.redis.delete("nanoagent:claim:b")
            await result_store._renew_all()
            late = await claimed(result_store, "d")
            live_log = result_store.live_log(ttl_s=1, max_bytes=1)
            for _ in range(2):  # the first record is deleted
                await live_log.append(late, [Record(Kind.STDOUT, 1)])
            await redis_server.lapse("d")
            return await result_store.publish(late, DOCUMENT) and await cancellations_work(result_store)
        except ResultStoreError:
            return False
        finally:
            await result_store.close()

    async def cancellations_work(result_store: RedisResultStore) -> bool:
        cancellations = result_store.cancellations()
        heard = asyncio.Event()
        end = cancellations.watch("e", heard.set)
        with capture_logs() as logs:
            try:
                async with asyncio.timeout(1):  # without a right it would be tried for ever
                    while not await redis_server.cancel("e"):  # noqa: ASYNC110 - nobody tells who listens
                        await asyncio.sleep(0.01)
                    await heard.wait()
                    end()
                    while await redis_server.cancel("e"):  # noqa: ASYNC110 - likewise
                        await asyncio.sleep(0.01)
            except TimeoutError:
                return False
            finally:
                await cancellations.close()
        return logs == []

    assert await works(rights)
    too_many = [right for right in rights if await works([other for other in rights if other != right])]
    assert too_many == []
    await redis_server.redis.execute_command("ACL", "DELUSER", "limited")


async def test_failure_counts_do_not_stay_on_redis_for_ever(stack: EmbeddedStack):
    result_store = RedisResultStore(At(stack.redis_host, stack.redis_port))
    await failed(result_store, "mortal")
    async with Redis(host=stack.redis_host, port=stack.redis_port, protocol=2) as redis:
        assert 0 < await redis.ttl("nanoagent:failed:mortal") <= 86_400
    await result_store.close()


async def test_what_a_worker_of_an_earlier_version_has_counted_is_in_nobodys_way(redis_server: RedisServer):
    await redis_server.redis.incr("nanoagent:failures:r")

    claim = await claimed(redis_server.result_store)

    assert (claim.failures, await redis_server.result_store.release(claim, failed=True)) == (0, 1)


async def test_what_is_said_again_because_the_connection_broke_counts_once(redis_server: RedisServer):
    """The proxy forwards what it is sent, and cuts before the answer comes back."""
    swallow = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection(*redis_server.address)
        with suppress(ConnectionError):
            while packet := await reader.read(65536):
                here.write(packet)
                answer = await there.read(65536)
                if swallow.is_set() and b"CLIENT" not in packet:
                    swallow.clear()
                    swallowed.append(answer)
                    break
                writer.write(answer)
        here.close()
        writer.close()

    swallowed: list[bytes] = []
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        result_store = host, port = server.sockets[0].getsockname()
        result_store = RedisResultStore(At(host, port, db=DATABASE))
        counts = []
        for _ in range(3):
            swallow.set()
            claim = await claimed(result_store)
            swallow.set()
            counts.append(await result_store.release(claim, failed=True))
        await result_store.close()

    assert len(swallowed) == 6
    assert counts == [1, 2, 3]
    assert await redis_server.redis.scard("nanoagent:failed:r") == 3


async def test_a_cancellation_that_came_before_anyone_listened_is_found_by_its_key(redis_server: RedisServer):
    await redis_server.cancel_ahead("r")
    heard = asyncio.Event()

    redis_server.cancellations().watch("r", heard.set)

    async with asyncio.timeout(DEADLINE_S):
        await heard.wait()


async def test_cancellations_are_heard_again_after_the_connection_was_cut(redis_server: RedisServer):
    cancellations = redis_server.cancellations()
    events = {request: asyncio.Event() for request in ("before", "across")}
    for request, event in events.items():
        cancellations.watch(request, event.set)
    await until_heard(redis_server, "before")

    await redis_server.redis.client_kill_filter(_type="pubsub")

    await until_heard(redis_server, "across")
    async with asyncio.timeout(DEADLINE_S):
        for event in events.values():
            await event.wait()


async def test_a_cancellation_during_a_gap_is_found_by_its_key(redis_server: RedisServer):
    async with Proxy(*redis_server.address) as proxy:
        result_store = RedisResultStore(At("127.0.0.1", proxy.port, db=DATABASE))
        cancellations = result_store.cancellations()
        across, first = asyncio.Event(), asyncio.Event()
        cancellations.watch("first", first.set)
        cancellations.watch("across", across.set)
        await until_heard(redis_server, "first")
        await proxy.cut()
        await redis_server.cancel_ahead("across")
        assert not across.is_set()

        await proxy.restore()

        async with asyncio.timeout(DEADLINE_S):
            await across.wait()
        await cancellations.close()
        await result_store.close()


async def test_a_job_that_is_over_within_a_moment_takes_no_subscription(redis_server: RedisServer):
    cancellations = redis_server.cancellations()
    for number in range(100):
        cancellations.watch(f"{number}", lambda: None)()
    assert cancellations._listener is None


async def test_a_connection_for_cancellations_that_says_nothing_is_made_anew():
    connections: asyncio.Queue[None] = asyncio.Queue()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.put_nowait(None)
        while packet := await reader.read(65536):
            if b"CLIENT" in packet:
                writer.write(b"+OK\r\n" * packet.count(b"CLIENT"))
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        result_store = RedisResultStore(At(*server.sockets[0].getsockname()), op_timeout_s=5)
        cancellations = result_store.cancellations(ping_s=0.05)
        cancellations.watch("r", lambda: None)
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(2):
                await connections.get()
        await cancellations.close()
        await result_store.close()


async def test_a_quiet_connection_for_cancellations_is_pinged_and_kept(redis_server: RedisServer):
    cancellations = redis_server.cancellations(ping_s=0.05)
    first, second = asyncio.Event(), asyncio.Event()
    cancellations.watch("first", first.set)
    await until_heard(redis_server, "first")

    async def listeners() -> list[tuple[str, str]]:
        clients = await redis_server.redis.client_list(_type="pubsub")
        return [(client["id"], client["cmd"]) for client in clients if client["db"] == str(DATABASE)]

    async with asyncio.timeout(DEADLINE_S):
        while (before := await listeners())[0][1] != "ping":  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)
        cancellations.watch("second", second.set)
        await until_heard(redis_server, "second")
        await second.wait()
    assert [name for name, _ in await listeners()] == [name for name, _ in before]


async def test_cancellations_are_received_after_a_connection_was_idle_without_a_subscription(
    redis_server: RedisServer,
):
    cancellations = redis_server.cancellations(ping_s=0.02)
    sent: list[tuple[str, ...]] = []
    pack = cancellations._pack

    def noted(words: tuple[str, ...]) -> bytes:
        sent.append(words)
        return pack(words)

    cancellations._pack = noted

    for request in ("first", "second"):  # subscribed, then not, then subscribed again, and once more
        heard = asyncio.Event()
        end = cancellations.watch(request, heard.set)
        async with asyncio.timeout(DEADLINE_S):
            while not await redis_server.cancel(request):  # noqa: ASYNC110 - nobody tells who listens
                await asyncio.sleep(0.01)
            await heard.wait()
            end()
            # Each PING but the last has been answered: a silent connection would be made anew.
            while sent[-5:] != [("PING",)] * 5:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.01)

    commands = [words for words in sent if words != ("PING",)]
    assert commands.pop(0)[1].startswith("nanoagent:follow:")
    assert commands == [
        (verb, f"cancel:{request}")
        for request in ("first", "second")
        for verb in ("SUBSCRIBE", "UNSUBSCRIBE")
    ]  # on one connection: a new one would have subscribed again


async def test_a_memory_result_store_marked_as_down_fails_every_call():
    result_store = MemoryResultStore()
    result_store.down = True

    failures = await failures_of(result_store)

    assert all(isinstance(failure, ResultStoreError) for failure in failures.values())
