"""A run's network without a container: when it listens, and what becomes of connections, also at the end."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from nanoagent.common.token_bucket import TokenBucket
from nanoagent.model.errors import ProtocolError
from nanoagent.model.job import NetworkPolicy, Runtime
from nanoagent.network import acceptor, name_server
from nanoagent.network.base import NetworkRun
from nanoagent.network.egress import Egress
from nanoagent.network.listeners import GATEWAY, NAME_SERVER, Network
from nanoagent.network.listening_sockets import ListeningAddress, ListeningSockets, SocketKind
from nanoagent.network.policy import AllowedHosts
from support.services.own_network import Channel, OwnNetwork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

WAIT_S = 60.0
WEB = ListeningAddress(SocketKind.TCP, "0.0.0.0", 443)


@pytest.fixture(scope="module")
def container() -> Iterator[OwnNetwork]:
    made = OwnNetwork()
    yield made
    made.close()


class Recorder:
    """A gateway that answers each line with the run's name, and knows what became of its connections."""

    def __init__(self) -> None:
        self.serving = 0
        self.most_serving = 0
        self.served: list[str] = []
        self.cancelled = 0
        self.changed = asyncio.Event()
        self.fails = False

    async def serve(self, connection: socket.socket, run: NetworkRun) -> None:
        loop = asyncio.get_running_loop()
        self.serving += 1
        self.most_serving = max(self.most_serving, self.serving)
        self.served.append(run.request_id)
        self.changed.set()
        try:
            if self.fails:
                raise RuntimeError("a bug")
            while await loop.sock_recv(connection, 100):
                run.usage.prompt_tokens += 1
                await loop.sock_sendall(connection, run.request_id.encode())
        except asyncio.CancelledError:
            self.cancelled += 1
            run.usage.completion_tokens += 10
            raise
        finally:
            self.serving -= 1
            self.changed.set()

    async def until_serving(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while self.serving != count:
                self.changed.clear()
                await self.changed.wait()


class Place:
    """A container's network, its listening sockets, and a worker's network with a gateway."""

    def __init__(self, container: OwnNetwork, policy: NetworkPolicy, *, connections: int = 64) -> None:
        self.container = container
        self.gateway = Recorder()
        self.channel = Channel()
        self.egress = Egress(AllowedHosts(["*"]), (), 1000)
        self.network = Network(policy, self.gateway, self.egress, (443,), connections)
        self.sockets = ListeningSockets(self.channel.agents, self.network.listening_addresses, kept=False)

    def hand_over(self) -> None:
        opened = {address: self.container.bind(address) for address in self.network.listening_addresses}
        self.channel.hand_over_sockets(self.network.listening_addresses, opened)

    @asynccontextmanager
    async def run(
        self, policy: NetworkPolicy, name: str = "run", *, hand_over: bool = True
    ) -> AsyncIterator[NetworkRun]:
        run = NetworkRun(
            request_id=name, function_id="f", runtime=Runtime.PYTHON, model="m", policy=policy, deadline=0.0
        )
        if hand_over:
            self.hand_over()
        async with self.network.opened(self.sockets, run):
            yield run

    async def connect(self, port: int = GATEWAY.port, host: str = "127.0.0.1") -> socket.socket:
        """A connection of the run's."""
        made = self.container.bare()
        made.setblocking(False)
        async with asyncio.timeout(WAIT_S):
            await asyncio.get_running_loop().sock_connect(made, (host, port))
        return made

    async def refuses(self, port: int) -> bool:
        try:
            (await self.connect(port)).close()
        except ConnectionRefusedError:
            return True
        return False

    def close(self) -> None:
        self.network.close()
        self.egress.close()
        self.sockets.close()
        self.channel.close()


@pytest.fixture
async def place(container: OwnNetwork) -> AsyncIterator[Place]:
    made = Place(container, NetworkPolicy.EGRESS)
    yield made
    made.close()


async def ask(connection: socket.socket, said: bytes = b"x") -> bytes:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(WAIT_S):
        await loop.sock_sendall(connection, said)
        return await loop.sock_recv(connection, 1000)


# --- who listens


@pytest.mark.parametrize(
    ("worker", "addresses"),
    [
        (NetworkPolicy.NONE, ()),
        (NetworkPolicy.AI, (GATEWAY,)),
        (NetworkPolicy.EGRESS, (GATEWAY, NAME_SERVER, WEB)),
    ],
)
async def test_a_worker_wants_no_more_listening_sockets_than_its_policy_needs(container, worker, addresses):
    place = Place(container, worker)
    assert place.network.listening_addresses == addresses
    place.close()


@pytest.mark.parametrize(
    ("policy", "open_ports"),
    [(NetworkPolicy.NONE, set()), (NetworkPolicy.AI, {11434}), (NetworkPolicy.EGRESS, {11434, 443})],
)
async def test_nobody_listens_but_where_the_runs_policy_allows(place, policy, open_ports):
    async with place.run(policy):
        assert {port for port in (11434, 443, 53, 80) if not await place.refuses(port)} == open_ports
    assert await place.refuses(11434)


async def test_a_container_without_listening_sockets_runs_without_network(place):
    run = NetworkRun(
        request_id="r",
        function_id="f",
        runtime=Runtime.GO,
        model="m",
        policy=NetworkPolicy.EGRESS,
        deadline=0.0,
    )
    with capture_logs() as logs:
        for sockets in (None, place.sockets, None):
            async with place.network.opened(sockets, run):
                assert await place.refuses(11434)
    assert [line["event"].partition(":")[0] for line in logs] == ["runs have no network"]


async def test_sockets_of_a_container_are_listened_on_again_and_again(container):
    place = Place(container, NetworkPolicy.AI)
    place.sockets = ListeningSockets(place.channel.agents, place.network.listening_addresses, kept=True)
    place.hand_over()
    for name in ("first", "second", "third"):
        run = NetworkRun(
            request_id=name,
            function_id="f",
            runtime=Runtime.GO,
            model="m",
            policy=NetworkPolicy.AI,
            deadline=0.0,
        )
        async with place.network.opened(place.sockets, run):
            connection = await place.connect()
            assert await ask(connection) == name.encode()
            connection.close()  # on our side first: the other end keeps the port for a while
            await place.gateway.until_serving(0)
        assert await place.refuses(11434)
    place.close()


async def test_sockets_of_runs_without_network_do_not_pile_up(container):
    place = Place(container, NetworkPolicy.AI)
    for _ in range(40):
        async with place.run(NetworkPolicy.NONE):
            pass
    with pytest.raises(BlockingIOError):
        place.channel.agents.recv(1, socket.MSG_DONTWAIT)
    async with place.run(NetworkPolicy.AI):
        assert await ask(await place.connect()) == b"run"
    place.close()


# --- a run's end


async def test_the_end_cuts_every_connection_and_waits_for_whoever_served_one(place):
    async with place.run(NetworkPolicy.AI) as run:
        connections = [await place.connect() for _ in range(3)]
        assert [await ask(connection) for connection in connections] == [b"run"] * 3
    assert (place.gateway.serving, place.gateway.cancelled) == (0, 3)
    assert run.usage.tokens == 3 + 30
    for connection in connections:
        with pytest.raises(ConnectionResetError):
            await ask(connection)


async def test_what_nobody_has_accepted_yet_is_reset_and_no_others_business(container):
    place = Place(container, NetworkPolicy.AI, connections=1)
    async with place.run(NetworkPolicy.AI, "first"):
        served = await place.connect()
        await ask(served)
        waiting = await place.connect()
    async with place.run(NetworkPolicy.AI, "second"):
        with pytest.raises(ConnectionResetError):
            await ask(waiting)
        with pytest.raises(ConnectionResetError):
            await ask(served)
        assert place.gateway.served == ["first"]
    place.close()


async def test_a_run_that_is_called_off_while_its_network_closes_leaves_nothing_open(place):
    held = asyncio.Event()
    serve = place.gateway.serve

    async def slow_to_end(connection: socket.socket, run: NetworkRun) -> None:
        try:
            await serve(connection, run)
        except asyncio.CancelledError:
            held.set()
            await asyncio.sleep(0.05)
            raise

    place.gateway.serve = slow_to_end

    async def go() -> None:
        async with place.run(NetworkPolicy.AI):
            await ask(await place.connect())

    running = asyncio.create_task(go())
    await held.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert place.gateway.serving == 0
    assert await place.refuses(11434)


async def test_a_bug_of_ours_costs_its_connection_and_not_the_run(place):
    place.gateway.fails = True
    async with place.run(NetworkPolicy.AI):
        with pytest.raises(ConnectionResetError):
            await ask(await place.connect())
        place.gateway.fails = False
        assert await ask(await place.connect()) == b"run"


# --- bounds


async def test_more_connections_than_a_run_may_have_wait_for_one_to_end(container):
    place = Place(container, NetworkPolicy.AI, connections=3)
    async with place.run(NetworkPolicy.AI):
        connections = [await place.connect() for _ in range(8)]
        await place.gateway.until_serving(3)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):  # it would be served at once
                await ask(connections[3])
        answers = []
        for connection in connections:
            answers.append(await ask(connection))
            connection.close()
    assert [answer[:3] for answer in answers] == [b"run"] * 8
    assert place.gateway.most_serving == 3
    place.close()


def test_a_token_bucket_that_is_empty_makes_its_user_wait():
    bucket = TokenBucket.full(10.0, 3, now=0.0)
    assert [bucket.delay_s(0.0) for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    assert bucket.delay_s(0.2) == pytest.approx(0.1)
    assert [bucket.delay_s(100.0) for _ in range(4)] == pytest.approx([0, 0, 0, 0.1])


async def test_a_flood_of_connections_is_accepted_at_a_limited_rate(place, monkeypatch):
    monkeypatch.setattr(acceptor, "_CONNECTIONS_BURST", 5)
    monkeypatch.setattr(acceptor, "_CONNECTIONS_PER_S", 0.001)
    async with place.run(NetworkPolicy.AI):
        connections = [await place.connect() for _ in range(10)]
        await place.gateway.until_serving(5)
        assert await ask(connections[0]) == b"run"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):  # it would be let in at once
                await asyncio.get_running_loop().sock_recv(connections[-1], 1)
        assert len(place.gateway.served) == 5


def query(number: int) -> bytes:
    name = b"\x01a\x07example\x03com\0"
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + name + struct.pack(">HH", 1, 1)


async def asked(place: Place, count: int) -> socket.socket:
    """A socket that has asked for a name so many times."""
    asker = place.container.bare(socket.SOCK_DGRAM)
    asker.setblocking(False)
    for number in range(count):
        asker.sendto(query(number), ("127.0.0.1", 53))
    return asker


async def test_names_are_answered_and_a_flood_of_questions_at_its_pace(place, monkeypatch):
    monkeypatch.setattr(name_server, "_QUERIES_BURST", 8)
    monkeypatch.setattr(name_server, "_QUERIES_PER_S", 0.001)
    loop = asyncio.get_running_loop()
    resolved = []

    async def resolve(name: str) -> list[str]:
        resolved.append(name)
        return ["93.184.215.14"]

    place.egress.resolve = resolve
    async with place.run(NetworkPolicy.EGRESS):
        asker = await asked(place, 40)
        async with asyncio.timeout(WAIT_S):
            replies = [await loop.sock_recv(asker, 1000) for _ in range(8)]
        assert {reply[-4:] for reply in replies} == {bytes([127, 64, 0, 1])}
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):  # they would be answered at once
                while True:
                    replies.append(await loop.sock_recv(asker, 1000))
        # One turn more may have been taken before the delay was known.
        assert len(replies) <= 16
    assert resolved


async def test_a_run_without_egress_is_told_at_once_that_there_is_no_name(place):
    for policy in (NetworkPolicy.NONE, NetworkPolicy.AI):
        async with place.run(policy), asyncio.timeout(WAIT_S):
            reply = await asyncio.get_running_loop().sock_recv(await asked(place, 1), 1000)
            assert reply[3] & 15 == 3


# --- a supervisor that has been taken over still holds the sockets


async def test_an_accept_that_blocks_stops_no_loop(place, monkeypatch):
    monkeypatch.setattr(acceptor, "_ACCEPT_S", 0.2)
    began, ended = threading.Event(), asyncio.Event()
    threads = []
    loop = asyncio.get_running_loop()
    accept = acceptor._accept

    def block(listener: socket.socket) -> socket.socket | None:
        threads.append(threading.current_thread())
        if threads[0] is threading.main_thread():  # or this test would hang
            began.set()
            ended.set()
            return None
        # What the supervisor can do meanwhile: take the connection away, and have the next accept wait.
        socket.socket.accept(listener)[0].close()
        with socket.fromfd(listener.fileno(), socket.AF_INET, socket.SOCK_STREAM) as hostile:
            hostile.setblocking(True)
        listener.settimeout(None)
        began.set()
        try:
            return accept(listener)
        finally:
            loop.call_soon_threadsafe(ended.set)

    monkeypatch.setattr(acceptor, "_accept", block)
    async with place.run(NetworkPolicy.AI):
        await place.connect()
        assert await asyncio.to_thread(began.wait, WAIT_S)
        async with asyncio.timeout(WAIT_S):
            await ended.wait()  # the loop has gone on, and woken it
    assert threading.main_thread() not in threads
    assert await place.refuses(11434)


async def test_sockets_that_the_supervisor_shuts_down_do_not_keep_the_loop_busy(place, monkeypatch):
    monkeypatch.setattr(acceptor, "_CONNECTIONS_BURST", 8)
    monkeypatch.setattr(acceptor, "_CONNECTIONS_PER_S", 0.001)
    monkeypatch.setattr(name_server, "_QUERIES_BURST", 8)
    monkeypatch.setattr(name_server, "_QUERIES_PER_S", 0.001)
    woken: dict[str, int] = defaultdict(int)

    def count(of: type, name: str) -> None:
        work = getattr(of, name)

        def counted(*given: object) -> None:
            woken[name] += 1
            work(*given)

        monkeypatch.setattr(of, name, counted)

    count(name_server.NameServer, "_receive")
    count(acceptor.Acceptor, "_connection_waits")
    opened = {address: place.container.bind(address) for address in place.network.listening_addresses}
    copies = {address: made.dup() for address, made in opened.items()}
    place.channel.hand_over_sockets(place.network.listening_addresses, opened)
    loop = asyncio.get_running_loop()
    async with place.run(NetworkPolicy.EGRESS, hand_over=False):
        for copy in copies.values():
            with suppress(OSError):
                copy.shutdown(socket.SHUT_RDWR)
        for _ in range(200):  # turns of the loop, in each of which whoever accepts may have ended
            await loop.run_in_executor(place.network._threads, int)
    assert 1 <= woken["_receive"] <= 9
    assert woken["_connection_waits"] == len(copies) - 1  # once at each
    for copy in copies.values():
        copy.close()


async def test_a_socket_on_which_another_process_listens_breaks_the_protocol(place):
    other = place.container.bind(GATEWAY)
    copy = other.dup()
    place.channel.hand_over_sockets(place.network.listening_addresses, {GATEWAY: other})
    run = NetworkRun(
        request_id="r", function_id="f", runtime=Runtime.GO, model="m", policy=NetworkPolicy.AI, deadline=0.0
    )
    place.sockets.take()
    copy.listen()
    competitor = place.container.bare()
    copy.shutdown(socket.SHUT_RDWR)
    competitor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    competitor.bind(("127.0.0.1", GATEWAY.port))
    competitor.listen()
    with pytest.raises(ProtocolError, match="cannot listen"):
        async with place.network.opened(place.sockets, run):
            raise AssertionError("must not be entered")
    competitor.close()
    copy.close()


async def test_a_socket_that_would_linger_is_closed_at_once(place):
    """Closing would wait for data that nobody takes, in the loop: SO_LINGER, socket(7)."""
    linger = struct.pack("ii", 1, 60)

    async def fill(connection: socket.socket, _run: NetworkRun) -> None:
        with suppress(BlockingIOError):
            while True:
                connection.send(b"x" * 100_000)

    place.gateway.serve = fill
    opened = {address: place.container.bind(address) for address in place.network.listening_addresses}
    copy = opened[GATEWAY].dup()
    place.channel.hand_over_sockets(place.network.listening_addresses, opened)
    place.sockets.take()
    copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    run = NetworkRun(
        request_id="r", function_id="f", runtime=Runtime.GO, model="m", policy=NetworkPolicy.AI, deadline=0.0
    )
    async with asyncio.timeout(30), place.network.opened(place.sockets, run):
        connection = await place.connect()
        assert await asyncio.get_running_loop().sock_recv(connection, 10) == b"x" * 10
    copy.close()
