"""The filter on the way to the internet, without a container: names, addresses, bounds."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
from contextlib import suppress

import pytest

from nanoagent.network import egress as egress_module
from nanoagent.network.egress import Egress, RunEgress, _is_of_this_host, connect
from nanoagent.network.policy import AllowedHosts
from support.services.own_network import OwnNetwork

SET_ADDRESS = 0x8916  # SIOCSIFADDR, netdevice(7)


def query(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


class Names:
    """A resolver that knows some names, and waits where it is told to."""

    def __init__(self, **names: list[str]) -> None:
        self.names = {name.replace("_", "."): addresses for name, addresses in names.items()}
        self.asked: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, name: str) -> list[str]:
        self.asked.append(name)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.may_answer.wait()
        self.at_once -= 1
        return self.names.get(name, ["93.184.215.14"])


def run_egress_of(names: Names, *, allow: tuple[str, ...] = ("*",)) -> RunEgress:
    made = Egress(AllowedHosts(allow), (), 1000)
    made.resolve = names
    return made.for_run()


async def address_of(run_egress: RunEgress, name: str) -> tuple[int, str | None]:
    """The code and the address of the answer."""
    reply = await run_egress.answer(query(name))
    assert reply is not None
    return reply[3] & 15, socket.inet_ntoa(reply[-4:]) if reply[7] else None


async def test_each_name_has_an_address_that_stays():
    run_egress = run_egress_of(Names())
    assert [await address_of(run_egress, name) for name in ("a.org", "b.org", "A.ORG")] == [
        (0, "127.64.0.1"),
        (0, "127.64.0.2"),
        (0, "127.64.0.1"),
    ]


async def test_a_name_that_is_not_allowed_is_not_asked_for():
    names = Names()
    run_egress = run_egress_of(names, allow=("*.a.org",))
    assert [await address_of(run_egress, name) for name in ("a.org", "b.org", "b.a.org")] == [
        (3, None),
        (3, None),
        (0, "127.64.0.1"),
    ]
    assert names.asked == ["b.a.org"]


async def test_runs_share_no_names():
    names = Names()
    assert await address_of(run_egress_of(names), "a.org") == await address_of(run_egress_of(names), "b.org")


async def test_a_name_is_asked_for_once_while_it_is_fresh(monkeypatch):
    names = Names()
    run_egress = run_egress_of(names)
    await asyncio.gather(*(address_of(run_egress, "a.org") for _ in range(2)))
    asked = len(names.asked)
    await address_of(run_egress, "a.org")
    assert len(names.asked) == asked
    monkeypatch.setattr(egress_module, "_FRESH_S", -1.0)
    await address_of(run_egress, "a.org")
    assert len(names.asked) == asked + 1


async def test_a_name_that_has_lost_its_public_address_is_none_any_more(monkeypatch):
    names = Names()
    run_egress = run_egress_of(names)
    assert await address_of(run_egress, "a.org") == (0, "127.64.0.1")
    monkeypatch.setattr(egress_module, "_FRESH_S", -1.0)
    names.names["a.org"] = ["192.168.1.1"]
    assert await address_of(run_egress, "a.org") == (3, None)


async def test_there_is_an_end_of_names(monkeypatch):
    monkeypatch.setattr(egress_module, "_MAX_NAMES", 3)
    run_egress = run_egress_of(Names())
    assert [(await address_of(run_egress, f"{n}.a.org"))[0] for n in range(5)] == [0, 0, 0, 2, 2]
    assert (await address_of(run_egress, "0.a.org"))[0] == 0


async def test_one_function_looks_up_few_names_at_a_time_including_those_of_ended_runs():
    names = Names()
    names.may_answer.clear()
    egress = Egress(AllowedHosts(["*"]), (), 1000)
    egress.resolve = names
    for run in range(3):
        run_egress = egress.for_run("slow")
        asking = [asyncio.create_task(address_of(run_egress, f"{n}.{run}.org")) for n in range(20)]
        while names.at_once < 4:  # noqa: ASYNC110 - they are on the loop, and need a turn each
            await asyncio.sleep(0)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        del run_egress, asking, task
    last = asyncio.create_task(address_of(egress.for_run("slow"), "last.org"))
    other = asyncio.create_task(address_of(egress.for_run("other"), "other.org"))
    while "other.org" not in names.asked:  # noqa: ASYNC110 - likewise
        await asyncio.sleep(0)
    assert "last.org" not in names.asked
    assert names.most_at_once == 5
    names.may_answer.set()
    assert [code for code, _ in await asyncio.gather(last, other)] == [0, 0]


async def test_a_lookup_that_waits_for_others_of_its_function_fails_after_the_same_time(monkeypatch):
    names = Names()
    names.may_answer.clear()
    run_egress = run_egress_of(names)
    asking = [asyncio.create_task(address_of(run_egress, f"{n}.org")) for n in range(4)]
    while names.at_once < 4:  # noqa: ASYNC110 - they are on the loop, and need a turn each
        await asyncio.sleep(0)
    with monkeypatch.context() as patch:
        patch.setattr(egress_module, "_RESOLVE_S", 0.001)
        async with asyncio.timeout(60):
            assert await address_of(run_egress, "waits.org") == (2, None)
    assert "waits.org" not in names.asked
    names.may_answer.set()
    assert [code for code, _ in await asyncio.gather(*asking)] == [0] * 4
    assert (await address_of(run_egress, "later.org"))[0] == 0  # the one that failed takes no room


async def test_localhost_is_no_question_of_the_internets():
    names = Names()
    assert await address_of(run_egress_of(names), "localhost") == (0, "127.0.0.1")
    assert names.asked == []


async def test_the_hosts_resolver_is_asked_for_absolute_names_and_knows_no_inside_ones():
    """`*.invalid` is never a name, RFC 6761; a machine without a name server cannot be asked at all."""
    made = Egress(AllowedHosts(["*"]), (), 1000)
    try:
        found = await made.resolve("nothing.invalid")
    except OSError:
        found = []
    assert found == []
    made.close()
    made.close()


async def test_data_sent_byte_by_byte_is_forwarded_at_a_limited_rate(monkeypatch):
    monkeypatch.setattr(egress_module, "_CHUNKS_BURST", 10)
    monkeypatch.setattr(egress_module, "_CHUNKS_PER_S", 0.001)
    loop = asyncio.get_running_loop()
    near, theirs = socket.socketpair()
    far, server = socket.socketpair()
    with near, theirs, far, server:
        for end in (near, theirs, far, server):
            end.setblocking(False)
        relay = asyncio.create_task(run_egress_of(Names())._relay(near, far))
        passed = 0
        with suppress(TimeoutError):
            for _ in range(100):
                await loop.sock_sendall(theirs, b"x")
                async with asyncio.timeout(60 if passed < 10 else 0.2):  # it would go on at once
                    passed += len(await loop.sock_recv(server, 1))
        assert 10 <= passed <= 11  # what is waited for is waited for afterwards
        relay.cancel()
        await asyncio.wait({relay})


# --- the address itself


def _addresses_of_the_host() -> list[str]:
    found = ["127.0.0.1"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            found.append(probe.getsockname()[0])
        except OSError:
            pass  # a host without a network
    return found


@pytest.mark.parametrize("address", _addresses_of_the_host())
async def test_the_hosts_own_addresses_are_not_connected_to_whatever_they_are(address):
    with socket.create_server((address, 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        with pytest.raises(OSError, match="an address of this host"):
            await connect(address, port)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_every_address_of_the_host_is_refused():
    """The kernel gives the first as the source of what is sent to the second."""
    host = OwnNetwork()

    def tried() -> list[str]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inet:
            for name, address in ((b"lo:1", "44.0.0.1"), (b"lo:2", "44.0.0.2")):
                wanted = struct.pack("16sHH4s8x", name, socket.AF_INET, 0, socket.inet_aton(address))
                fcntl.ioctl(inet, SET_ADDRESS, wanted)
        told = []
        for address in ("44.0.0.1", "44.0.0.2"):
            with pytest.raises(OSError) as refused:
                asyncio.run(connect(address, 9))
            told.append(str(refused.value))
        return told

    try:
        assert host.do(tried) == ["an address of this host"] * 2
    finally:
        host.close()


def test_an_address_that_nobody_here_could_listen_at_is_not_the_hosts():
    assert not _is_of_this_host("192.0.2.1", "192.0.2.2")
