"""What the result store makes of a Redis that is there and does not serve; on real servers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.model.errors import ResultStoreError
from nanoagent.results.base import Claim
from nanoagent.results.redis import RedisResultStore
from nanoagent.results.server import RedisServer, Tls
from support.services import own_redis as redis_servers
from support.services.certificates import Authority
from support.services.own_redis import HOST, own_redis, sentinel_of
from support.services.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.services.own_redis import OwnRedis

DOCUMENT = b'{"requestId": "r"}'
DEADLINE_S = 60


@asynccontextmanager
async def store_at(port: int, **settings: Any) -> AsyncIterator[RedisResultStore]:
    names = {field.name for field in fields(RedisServer)}
    at = {name: value for name, value in settings.items() if name in names}
    rest: dict[str, Any] = {"owner": "me", "op_timeout_s": 20}
    rest |= {name: value for name, value in settings.items() if name not in names}
    result_store = RedisResultStore(RedisServer(HOST, port, **at), **rest)
    try:
        yield result_store
    finally:
        await result_store.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[OwnRedis]:
    async with own_redis(tmp_path) as server:
        yield server


async def failure_of(result_store: RedisResultStore) -> str:
    with pytest.raises(ResultStoreError) as failure:
        await result_store.ping()
    return str(failure.value)


async def test_a_healthy_server_shows_who_works_with_it(server: OwnRedis):
    async with store_at(server.port) as result_store:
        await result_store.ping()
        assert 0 < await server.client.ttl("nanoagent:worker:me") <= 60


async def test_a_read_only_replica_is_told_apart_and_is_well_again_as_a_primary(server: OwnRedis):
    async with store_at(server.port) as result_store:
        await result_store.ping()
        await server.client.replicaof(HOST, "1")
        with pytest.raises(ResultStoreError, match="read-only replica"):
            await result_store.claim("r")
        assert "set REDIS_HOST to a name that follows a failover" in await failure_of(result_store)
        await server.client.replicaof("NO", "ONE")
        await result_store.ping()


async def test_a_failover_is_followed_by_the_next_call_since_connections_are_made_anew(tmp_path: Path):
    async with (
        own_redis(tmp_path) as old,
        own_redis(tmp_path) as new,
        Proxy(HOST, old.port) as name,
        store_at(name.port) as result_store,
    ):
        await asyncio.gather(*(result_store.claim(f"r{number}") for number in range(5)))
        assert name.accepted == 5
        await old.client.replicaof(HOST, str(new.port))
        await name.lead_to(HOST, new.port)
        # The connections that are there still lead to the old one.
        claim = await result_store.claim("r")
        assert isinstance(claim, Claim)
        assert await result_store.publish(claim, DOCUMENT)
        assert await new.client.get("job:r") == DOCUMENT
        assert name.accepted == 6


async def test_a_full_server_is_told_apart_and_is_well_again_when_it_has_room(server: OwnRedis):
    async with store_at(server.port) as result_store:
        claim = await result_store.claim("r")
        assert isinstance(claim, Claim)
        await server.set(maxmemory_policy="noeviction", maxmemory=1)
        with pytest.raises(ResultStoreError, match="its memory is used up: raise its maxmemory"):
            await result_store.publish(claim, DOCUMENT)
        assert "its memory is used up" in await failure_of(result_store)
        await server.set(maxmemory=0)
        await result_store.ping()
        assert await result_store.publish(claim, DOCUMENT)


async def test_a_server_that_cannot_save_is_told_apart(server: OwnRedis, tmp_path: Path):
    async with store_at(server.port) as result_store:
        (tmp_path / "dump.rdb").mkdir()  # cannot be replaced by a file
        await server.client.set("x", "y")
        await server.set(save="1 1", stop_writes_on_bgsave_error="yes")
        async with asyncio.timeout(DEADLINE_S):
            while (await server.client.info("persistence"))["rdb_last_bgsave_status"] == "ok":  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.05)
        assert "cannot save to its disk" in await failure_of(result_store)


async def test_another_password_is_told_apart_and_is_tried_anew(server: OwnRedis):
    await server.set(requirepass="right")
    async with store_at(server.port) as result_store, store_at(server.port, password="wrong") as other:
        assert "it refuses the user or the password: set REDIS_USERNAME" in await failure_of(result_store)
        said = await failure_of(other)
        assert "it refuses the user or the password" in said
        assert "wrong" not in said.replace("wrong number", "")
        await server.set(requirepass="")
        await result_store.ping()


@pytest.mark.parametrize(
    "rights",
    [
        ("~*", "&*", "+ping"),
        ("~*", "&*", "+@all", "-@scripting"),
        ("~*", "&*", "+@all", "-publish"),
        ("~*", "&*", "+@all", "-hincrby"),
        ("~*", "&*", "+@all", "-subscribe"),
        ("~nanoagent:*", "&*", "+@all"),
        ("~*", "&result:*", "+@all"),
    ],
    ids=" ".join,
)
async def test_rights_that_are_missing_are_told_apart(server: OwnRedis, rights: tuple[str, ...]):
    await server.client.execute_command("ACL", "SETUSER", "poor", "on", ">x", *rights)
    async with store_at(server.port, username="poor", password="x") as result_store:
        assert "this user lacks a permission: use the ACL rule in docs/operations.md" in await failure_of(
            result_store
        )
        # The key of what was tried before it was refused goes by itself.
        assert {await server.client.ttl(key) for key in await server.client.keys("*")} <= {0, 1, -2}


async def test_a_look_at_all_that_a_worker_does_leaves_nothing(server: OwnRedis):
    async with store_at(server.port) as result_store:
        await result_store.verify()
        assert await server.client.keys("*") == []
        assert await server.client.pubsub_channels() == []


async def test_what_was_well_and_is_not_any_more_is_tried_whole_again(server: OwnRedis):
    await server.client.execute_command("ACL", "SETUSER", "me", "on", ">x", "~*", "&*", "+@all")
    async with store_at(server.port, username="me", password="x") as result_store:
        await result_store.ping()
        await server.client.execute_command("ACL", "SETUSER", "me", "-subscribe", "-evalsha")
        with pytest.raises(ResultStoreError):
            await result_store.claim("r")
        assert "this user lacks a permission" in await failure_of(result_store)
        await server.client.execute_command("ACL", "SETUSER", "me", "+evalsha")
        assert "this user lacks a permission" in await failure_of(result_store)
        await server.client.execute_command("ACL", "SETUSER", "me", "+subscribe")
        await result_store.ping()


# --- what no retry mends


@pytest.mark.parametrize("db", [0, 1])
async def test_a_cluster_is_refused_by_name_whatever_the_workers_name(tmp_path: Path, db: int):
    # Its own bus port would be beyond the last port, for most free ports.
    cluster = ("--cluster-enabled", "yes", "--cluster-port", str(redis_servers.free_port()))
    async with own_redis(tmp_path, *cluster) as server:
        for prepare in ((), ("CLUSTER", "ADDSLOTSRANGE", 0, 16383)):
            if prepare:
                await server.client.execute_command(*prepare)
            for owner in ("a", "b"):
                async with store_at(server.port, db=db, owner=owner) as result_store:
                    assert "it is a Redis Cluster, which is not supported" in await failure_of(result_store)


async def test_another_server_of_the_same_name_is_found_by_the_next_call(server: OwnRedis, tmp_path: Path):
    cluster = ("--cluster-enabled", "yes", "--cluster-port", str(redis_servers.free_port()))
    async with (
        own_redis(tmp_path, *cluster) as wrong,
        Proxy(HOST, wrong.port) as name,
        store_at(name.port) as result_store,
    ):
        assert "it is a Redis Cluster" in await failure_of(result_store)
        await name.lead_to(HOST, server.port)
        await result_store.ping()


@pytest.mark.parametrize("settings", [{}, {"password": "of the primary"}, {"db": 1}], ids=str)
async def test_a_sentinels_port_is_told_apart(server: OwnRedis, tmp_path: Path, settings: dict[str, Any]):
    async with sentinel_of(tmp_path, server) as sentinel, store_at(sentinel.port, **settings) as result_store:
        assert "it is a Redis Sentinel, which stores nothing" in await failure_of(result_store)


async def test_a_server_that_runs_no_scripts_is_told_apart(tmp_path: Path):
    disabled = [word for name in ("EVAL", "EVALSHA") for word in ("--rename-command", name, "")]
    async with own_redis(tmp_path, *disabled) as server, store_at(server.port) as result_store:
        assert "it does not run scripts (EVAL, EVALSHA)" in await failure_of(result_store)


async def test_a_server_that_lacks_a_command_is_told_apart(tmp_path: Path):
    async with (
        own_redis(tmp_path, "--rename-command", "SUBSCRIBE", "") as server,
        store_at(server.port) as result_store,
    ):
        assert "it does not know a command that the worker needs" in await failure_of(result_store)


async def test_a_database_that_is_not_there_is_told_apart(server: OwnRedis):
    async with store_at(server.port, db=99) as result_store:
        assert "it has no database of this number: set REDIS_DB" in await failure_of(result_store)


async def test_a_password_that_nobody_asked_for_is_told_apart(server: OwnRedis):
    async with store_at(server.port, password="unasked") as result_store:
        assert "it has no password for this user, but REDIS_PASSWORD is set" in await failure_of(result_store)


# --- TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def tls_of(authority: Authority, *hosts: str, asks: bool = False, **issued: Any) -> redis_servers.Tls:
    shown = authority.issue("server", *(hosts or (HOST,)), **issued)
    return redis_servers.Tls(shown, authority.certificate, authority.issue("operator"), asks)


async def test_a_server_with_a_certificate_of_ones_own_authority_is_used(
    authority: Authority, tmp_path: Path
):
    async with (
        own_redis(tmp_path, tls=tls_of(authority)) as server,
        store_at(server.port, tls=Tls(authority.certificate)) as result_store,
    ):
        await result_store.ping()
        claim = await result_store.claim("r")
        assert isinstance(claim, Claim)
        assert await result_store.publish(claim, DOCUMENT)
        assert await server.client.get("job:r") == DOCUMENT
    async with (
        own_redis(tmp_path, tls=tls_of(authority)) as server,
        store_at(server.port, tls=Tls()) as result_store,
    ):
        said = await failure_of(result_store)
        assert "does not trust: set REDIS_TLS_CA_FILE" in said
        assert "no Redis" not in said


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_a_client_certificate_is_shown_to_a_server_that_wants_one(
    authority: Authority, tmp_path: Path, version: str
):
    trusted, ours = authority.certificate, authority.issue("worker")
    (tmp_path / "foreign").mkdir()
    theirs = Authority(tmp_path / "foreign", "foreign").issue("intruder")
    async with own_redis(tmp_path, "--tls-protocols", version, tls=tls_of(authority, asks=True)) as server:
        async with store_at(server.port, tls=Tls(trusted, ours.certificate, ours.key)) as result_store:
            await result_store.ping()
        async with store_at(server.port, tls=Tls(trusted)) as result_store:
            assert "requires a client certificate: set REDIS_TLS_CERT_FILE and" in await failure_of(
                result_store
            )
        async with store_at(server.port, tls=Tls(trusted, theirs.certificate, theirs.key)) as result_store:
            assert "it refuses the client certificate: see REDIS_TLS_CERT_FILE" in await failure_of(
                result_store
            )


@pytest.mark.parametrize(
    ("hosts", "issued", "says"),
    [
        (("redis.example",), {}, "it is for another name: set REDIS_HOST"),
        (("192.0.2.1",), {}, "it is for another name: set REDIS_HOST"),
        ((HOST,), {"days": (-3, -1)}, "is not valid today: renew it"),
        ((HOST,), {"days": (1, 3)}, "is not valid today: renew it"),
    ],
    ids=str,
)
async def test_a_certificate_that_does_not_hold_is_told_by_its_fault(
    authority: Authority, tmp_path: Path, hosts: tuple[str, ...], issued: dict[str, Any], says: str
):
    async with (
        own_redis(tmp_path, tls=tls_of(authority, *hosts, **issued)) as server,
        store_at(server.port, tls=Tls(authority.certificate)) as result_store,
    ):
        assert says.replace("it is for", "certificate is for") in await failure_of(result_store)


@pytest.mark.parametrize("password", [None, "x"])
async def test_plain_text_to_a_tls_port_and_the_reverse_are_told_apart(
    authority: Authority, tmp_path: Path, server: OwnRedis, password: str | None
):
    settings = {"password": password, "op_timeout_s": 3}
    if password is not None:
        await server.set(requirepass=password)
    async with own_redis(tmp_path, tls=tls_of(authority, asks=True)) as encrypted:
        async with store_at(encrypted.port, **settings) as result_store:
            assert (
                "it expects TLS on this port, but REDIS_TLS is false: set REDIS_TLS=true"
                in await failure_of(result_store)
            )
        async with store_at(server.port, tls=Tls(authority.certificate), **settings) as result_store:
            assert "it does not use TLS on this port, but REDIS_TLS is true" in await failure_of(result_store)


async def test_what_speaks_neither_is_not_taken_for_redis(unused_tcp_port: int):
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(talk, HOST, unused_tcp_port):
        for tls in (None, Tls()):
            async with store_at(unused_tcp_port, tls=tls, op_timeout_s=3) as result_store:
                said = await failure_of(result_store)
                assert "REDIS_TLS=true" not in said
                assert tls is not None or "the server that answers is not Redis" in said


async def test_a_server_that_has_enough_clients_is_told_apart(server: OwnRedis):
    await server.set(maxclients=1)
    async with store_at(server.port) as result_store, asyncio.timeout(DEADLINE_S):
        # The server says so and hangs up; who is still writing may learn of the latter alone.
        while "raise its maxclients" not in (said := await failure_of(result_store)):
            assert "Connection lost" in said or "closed" in said or "reset" in said.lower(), said


async def test_a_server_that_is_gone_is_told_apart(server: OwnRedis):
    async with store_at(server.port) as result_store:
        await result_store.ping()
        server.process.kill()
        await server.process.wait()
        with pytest.raises(ResultStoreError, match="it refuses connections: start it, or set REDIS_HOST"):
            await result_store.claim("r")


async def test_a_name_that_leads_nowhere_is_told_apart():
    result_store = RedisResultStore(RedisServer("redis.invalid", 6379))
    assert "its name cannot be resolved: set REDIS_HOST" in await failure_of(result_store)
    await result_store.close()


async def test_a_server_that_hangs_is_told_apart_and_waited_for_no_longer_than_a_call_may_take(
    server: OwnRedis,
):
    async with Proxy(HOST, server.port) as proxy:
        result_store = RedisResultStore(RedisServer(HOST, proxy.port), op_timeout_s=0.2)
        await result_store.ask("PING")
        proxy.hang()
        async with asyncio.timeout(DEADLINE_S):
            assert "it did not answer in time" in await failure_of(result_store)
        await proxy.restore()
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    await result_store.ping()
                except ResultStoreError:  # a loaded machine takes longer than this result_store's patience
                    continue
                break
        await result_store.close()


async def test_nonsense_is_told_apart_and_no_answer_of_another_call_comes_of_it(server: OwnRedis):
    async with Proxy(HOST, server.port) as proxy, store_at(proxy.port) as result_store:
        await result_store.ask("PING")
        proxy.garble()
        assert "the server that answers is not Redis, or its reply is garbled" in await failure_of(
            result_store
        )
        await proxy.restore()
        assert [await result_store.ask("ECHO", word) for word in ("a", "b", "c")] == [b"a", b"b", b"c"]
        await result_store.ping()
