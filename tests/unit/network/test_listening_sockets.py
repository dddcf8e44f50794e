"""What a supervisor hands over, and what one hands over that has been taken over."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nanoagent.model.errors import ProtocolError
from nanoagent.network.listening_sockets import (
    MAX_LISTENING_SOCKETS,
    ListeningAddress,
    ListeningSockets,
    SocketKind,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.services.own_network import Channel, OwnNetwork

GATEWAY = ListeningAddress(SocketKind.TCP, "127.0.0.1", 11434)
NAMES = ListeningAddress(SocketKind.UDP, "127.0.0.1", 53)
WEB = ListeningAddress(SocketKind.TCP, "0.0.0.0", 443)
WANTED = (GATEWAY, NAMES, WEB)
GET_NETNS_COOKIE = 71  # SO_NETNS_COOKIE


@pytest.fixture
async def sockets(channel: Channel) -> ListeningSockets:
    return ListeningSockets(channel.agents, WANTED, kept=False)


def opened(network: OwnNetwork, *which: ListeningAddress) -> dict[ListeningAddress, socket.socket]:
    return {address: network.bind(address) for address in which}


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


async def all_closed(before: set[Path]) -> None:
    """Return when no descriptor is open that was not; threads close them."""
    async with asyncio.timeout(60):
        while len(descriptors()) > len(before):  # noqa: ASYNC110 - threads close them
            await asyncio.sleep(0.01)


async def test_sockets_that_are_handed_over_are_those_that_were_asked_for(network, channel, sockets):
    channel.hand_over_sockets(WANTED, opened(network, *WANTED))
    assert [(address, at.getsockname()) for address, at in sockets.take().items()] == [
        (address, (address.host, address.port)) for address in WANTED
    ]
    sockets.close()


async def test_a_socket_that_could_not_be_made_is_missing(network, channel, sockets):
    channel.hand_over_sockets(WANTED, opened(network, NAMES))
    assert list(sockets.take()) == [NAMES]
    sockets.close()


async def test_where_none_have_come_there_are_none(channel, sockets):
    assert sockets.take() == {}
    channel.hand_over(b"\xff", [])
    assert sockets.take() == {}
    channel.supervisors.close()
    assert sockets.take() == {}


async def test_the_last_set_counts_and_those_before_are_closed(network, channel, sockets):
    before = descriptors()
    channel.hand_over_sockets(WANTED, opened(network, GATEWAY, WEB))
    first = list(sockets.take().values())
    channel.hand_over_sockets(WANTED, opened(network, GATEWAY, WEB))
    channel.hand_over_sockets(WANTED, opened(network, NAMES))
    assert list(sockets.take()) == [NAMES]
    assert [one.fileno() for one in first] == [-1, -1]
    sockets.release()
    await all_closed(before)


async def test_a_sandboxs_sockets_are_for_one_run_and_a_containers_for_all(network, channel):
    for kept in (False, True):
        sockets = ListeningSockets(channel.agents, WANTED, kept=kept)
        channel.hand_over_sockets(WANTED, opened(network, GATEWAY))
        assert list(sockets.take()) == [GATEWAY]
        sockets.release()
        assert list(sockets.take()) == ([GATEWAY] if kept else [])
        sockets.release(all_of_them=True)


async def test_what_a_connection_has_the_kernel_hold_is_bounded(network, channel, sockets):
    channel.hand_over_sockets(WANTED, opened(network, GATEWAY))
    (bound,) = sockets.take().values()
    for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        assert bound.getsockopt(socket.SOL_SOCKET, name) <= 2 * 64 * 1024
    sockets.close()


# --- a supervisor that has been taken over


def _listens(network: OwnNetwork) -> list[socket.socket]:
    bound = network.bind(GATEWAY)
    bound.listen()
    return [bound]


def _is_connected(network: OwnNetwork) -> list[socket.socket]:
    """A connection whose other end is its own: from 127.0.0.1:11434 to a listener beside it."""
    bound, listener = network.bind(GATEWAY), network.bare()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    bound.connect(listener.getsockname())
    return [bound, listener]


def _bound(network: OwnNetwork, kind: int, host: str, port: int) -> list[socket.socket]:
    made = network.bare(kind)
    made.bind((host, port))
    return [made]


def _mptcp(network: OwnNetwork) -> list[socket.socket]:
    try:
        made = network.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
    except OSError:
        pytest.skip("this kernel has no MPTCP")
    made.bind((GATEWAY.host, GATEWAY.port))
    return [made]


ALIENS: dict[str, Callable[[OwnNetwork], list[socket.socket]]] = {
    "a socket that listens": _listens,
    "a socket that is connected": _is_connected,
    "another port": lambda network: _bound(network, socket.SOCK_STREAM, "127.0.0.1", 11435),
    "another address": lambda network: _bound(network, socket.SOCK_STREAM, "127.0.0.2", 11434),
    "all addresses": lambda network: _bound(network, socket.SOCK_STREAM, "0.0.0.0", 11434),
    "a port of UDP": lambda network: _bound(network, socket.SOCK_DGRAM, "127.0.0.1", 11434),
    "not bound": lambda network: [network.bare()],
    "IPv6": lambda network: [network.bare(family=socket.AF_INET6)],
    "MPTCP": _mptcp,
    "a raw socket": lambda network: [network.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))],
    "a Unix socket": lambda _: list(socket.socketpair()),
    "netlink": lambda network: [network.do(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))],
}


@pytest.mark.parametrize("alien", ALIENS)
async def test_a_socket_of_another_kind_is_refused_and_closed(network, channel, sockets, alien):
    before = descriptors()
    made = ALIENS[alien](network)
    channel.hand_over(b"\xff\x00", [made[0].fileno()])
    with pytest.raises(ProtocolError, match="unexpected descriptor"):
        sockets.take()
    for own in made:
        own.close()
    await all_closed(before)


async def test_a_tcp_socket_is_refused_where_udp_was_asked_for(network, channel, sockets):
    (made,) = _bound(network, socket.SOCK_STREAM, NAMES.host, NAMES.port)
    channel.hand_over(b"\xff\x01", [made.fileno()])
    made.close()
    with pytest.raises(ProtocolError, match="a socket of another kind than UDP"):
        sockets.take()


async def test_one_descriptor_more_than_the_limit_spoils_even_a_whole_set(network, channel):
    wanted = [
        ListeningAddress(SocketKind.TCP, "127.0.0.1", 2000 + number)
        for number in range(MAX_LISTENING_SOCKETS)
    ]
    sockets = ListeningSockets(channel.agents, wanted, kept=False)
    made = [network.bind(address) for address in wanted]
    said = b"\xff" + bytes(range(MAX_LISTENING_SOCKETS))
    channel.hand_over(said, [one.fileno() for one in made])
    assert list(sockets.take()) == wanted
    channel.hand_over(said, [*(one.fileno() for one in made), made[0].fileno()])
    with pytest.raises(ProtocolError):
        sockets.take()
    for one in made:
        one.close()
    sockets.close()


async def test_a_socket_of_the_hosts_own_network_is_refused(channel):
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        sockets = ListeningSockets(
            channel.agents, [ListeningAddress(SocketKind.TCP, *own.getsockname())], kept=False
        )
        try:
            own.getsockopt(socket.SOL_SOCKET, GET_NETNS_COOKIE, 8)
        except OSError:
            pytest.skip("this kernel (before 5.14) does not tell networks apart")
        channel.hand_over(b"\xff\x00", [own.fileno()])
        with pytest.raises(ProtocolError, match="a socket of the host's network"):
            sockets.take()


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/stat", "/tmp"])
async def test_a_file_is_refused(channel, sockets, path):
    before = descriptors()
    file = os.open(path, os.O_RDONLY)
    channel.hand_over(b"\xff\x00", [file])
    os.close(file)
    with pytest.raises(ProtocolError, match="unexpected descriptor"):
        sockets.take()
    await all_closed(before)


async def test_one_wrong_descriptor_spoils_the_set(network, channel, sockets):
    before = descriptors()
    right = network.bind(GATEWAY)
    file = os.open("/dev/null", os.O_RDONLY)
    channel.hand_over(b"\xff\x00\x01", [right.fileno(), file])
    right.close()
    os.close(file)
    with pytest.raises(ProtocolError, match="unexpected descriptor"):
        sockets.take()
    await all_closed(before)


@pytest.mark.parametrize(
    ("said", "count"),
    [
        (b"", 1),  # a message that says nothing, and has descriptors all the same
        (b"\x00", 1),
        (b"\xff", 1),
        (b"\xff\x00", 0),
        (b"\xff\x00\x01", 1),
        (b"\xff\x00\x00", 2),
        (b"\xff\x03", 1),
        (b"\xff\xff", 1),
        (b"\xff" + bytes(range(3)) * 20, 3),
        (b"\xff" + bytes(MAX_LISTENING_SOCKETS), MAX_LISTENING_SOCKETS),
        (b"\xff\x00", MAX_LISTENING_SOCKETS + 1),
        (b"\xff\x00", 253),  # as many as the kernel lets in one message: SCM_MAX_FD
    ],
)
async def test_a_message_that_does_not_say_what_it_brings_is_refused_and_all_of_it_closed(
    network, channel, sockets, said, count
):
    before = descriptors()
    right = network.bind(GATEWAY)
    channel.hand_over(said, [right.fileno()] * count)
    right.close()
    with pytest.raises(ProtocolError):
        sockets.take()
    await all_closed(before)


async def test_there_is_an_end_of_sets(network, channel, sockets):
    for _ in range(17):
        channel.hand_over_sockets(WANTED, opened(network, GATEWAY))
    with pytest.raises(ProtocolError, match="more than 16 sets"):
        sockets.take()
    sockets.close()
