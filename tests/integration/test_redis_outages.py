"""What the sink makes of a Redis that is there and does not serve; on real servers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from nanoagent.errors import SinkError
from nanoagent.sink.base import Claim
from nanoagent.sink.redis import RedisSink
from support.own_redis import HOST, own_redis
from support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.own_redis import OwnRedis

DOCUMENT = b'{"requestId": "r"}'
DEADLINE_S = 60


@asynccontextmanager
async def sink_at(port: int, **settings: str) -> AsyncIterator[RedisSink]:
    sink = RedisSink(HOST, port, owner="me", op_timeout_s=20, **settings)  # type: ignore[arg-type]
    try:
        yield sink
    finally:
        await sink.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[OwnRedis]:
    async with own_redis(tmp_path) as server:
        yield server


async def trouble_of(sink: RedisSink) -> str:
    with pytest.raises(SinkError) as failure:
        await sink.ping()
    return str(failure.value)


async def test_a_healthy_server_shows_who_works_with_it(server: OwnRedis):
    async with sink_at(server.port) as sink:
        await sink.ping()
        assert 0 < await server.client.ttl("nanoagent:worker:me") <= 60


async def test_a_read_only_replica_is_told_apart_and_is_well_again_as_a_primary(server: OwnRedis):
    async with sink_at(server.port) as sink:
        await sink.ping()
        await server.client.replicaof(HOST, "1")
        with pytest.raises(SinkError, match="read-only replica"):
            await sink.claim("r")
        assert "REDIS_HOST should lead to the primary" in await trouble_of(sink)
        await server.client.replicaof("NO", "ONE")
        await sink.ping()


async def test_a_failover_is_followed_by_the_next_call_since_connections_are_made_anew(tmp_path: Path):
    async with (
        own_redis(tmp_path) as old,
        own_redis(tmp_path) as new,
        Proxy(HOST, old.port) as name,
        sink_at(name.port) as sink,
    ):
        await asyncio.gather(*(sink.claim(f"r{number}") for number in range(5)))
        assert name.accepted == 5
        await old.client.replicaof(HOST, str(new.port))
        await name.lead_to(HOST, new.port)
        # The connections that are there still lead to the old one.
        claim = await sink.claim("r")
        assert isinstance(claim, Claim)
        assert await sink.publish(claim, DOCUMENT)
        assert await new.client.get("job:r") == DOCUMENT
        assert name.accepted == 6


async def test_a_full_server_is_told_apart_and_is_well_again_when_it_has_room(server: OwnRedis):
    async with sink_at(server.port) as sink:
        claim = await sink.claim("r")
        assert isinstance(claim, Claim)
        await server.set(maxmemory_policy="noeviction", maxmemory=1)
        with pytest.raises(SinkError, match="its memory is used up: raise its maxmemory"):
            await sink.publish(claim, DOCUMENT)
        assert "its memory is used up" in await trouble_of(sink)
        await server.set(maxmemory=0)
        await sink.ping()
        assert await sink.publish(claim, DOCUMENT)


async def test_a_server_that_cannot_save_is_told_apart(server: OwnRedis, tmp_path: Path):
    async with sink_at(server.port) as sink:
        (tmp_path / "dump.rdb").mkdir()  # cannot be replaced by a file
        await server.client.set("x", "y")
        await server.set(save="1 1", stop_writes_on_bgsave_error="yes")
        async with asyncio.timeout(DEADLINE_S):
            while (await server.client.info("persistence"))["rdb_last_bgsave_status"] == "ok":  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.05)
        assert "cannot save to its disk" in await trouble_of(sink)


async def test_another_password_is_told_apart_and_is_tried_anew(server: OwnRedis):
    await server.set(requirepass="right")
    async with sink_at(server.port) as sink, sink_at(server.port, password="wrong") as other:
        assert "it refuses the user or the password: set REDIS_USERNAME" in await trouble_of(sink)
        said = await trouble_of(other)
        assert "it refuses the user or the password" in said
        assert "wrong" not in said.replace("wrong number", "")
        await server.set(requirepass="")
        await sink.ping()


async def test_rights_that_are_missing_are_told_apart(server: OwnRedis):
    await server.client.execute_command("ACL", "SETUSER", "poor", "on", ">x", "~*", "+ping")
    async with sink_at(server.port, username="poor", password="x") as sink:
        assert "it does not allow that to this user: docs/operations.md" in await trouble_of(sink)


async def test_a_server_that_has_enough_clients_is_told_apart(server: OwnRedis):
    await server.set(maxclients=1)
    async with sink_at(server.port) as sink, asyncio.timeout(DEADLINE_S):
        # The server says so and hangs up; who is still writing may learn of the latter alone.
        while "raise its maxclients" not in (said := await trouble_of(sink)):
            assert "Connection lost" in said or "closed" in said or "reset" in said.lower(), said


async def test_a_server_that_is_gone_is_told_apart(server: OwnRedis):
    async with sink_at(server.port) as sink:
        await sink.ping()
        server.process.kill()
        await server.process.wait()
        with pytest.raises(SinkError, match="it refuses connections: start it, or set REDIS_HOST"):
            await sink.claim("r")


async def test_a_name_that_leads_nowhere_is_told_apart():
    sink = RedisSink("redis.invalid", 6379)
    assert "its name leads nowhere: set REDIS_HOST" in await trouble_of(sink)
    await sink.close()


async def test_a_server_that_hangs_is_told_apart_and_waited_for_no_longer_than_a_call_may_take(
    server: OwnRedis,
):
    async with Proxy(HOST, server.port) as proxy:
        sink = RedisSink(HOST, proxy.port, op_timeout_s=0.2)
        await sink.ask("PING")
        proxy.hang()
        async with asyncio.timeout(DEADLINE_S):
            assert "it did not answer in time" in await trouble_of(sink)
        await proxy.restore()
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    await sink.ping()
                except SinkError:  # a loaded machine takes longer than this sink's patience
                    continue
                break
        await sink.close()


async def test_nonsense_is_told_apart_and_no_answer_of_another_call_comes_of_it(server: OwnRedis):
    async with Proxy(HOST, server.port) as proxy, sink_at(proxy.port) as sink:
        await sink.ask("PING")
        proxy.garble()
        assert "what answers is no Redis, or garbled" in await trouble_of(sink)
        await proxy.restore()
        assert [await sink.ask("ECHO", word) for word in ("a", "b", "c")] == [b"a", b"b", b"c"]
        await sink.ping()
