"""What a supervisor hands over, and what one hands over that has been taken over."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nanoagent.model.errors import ProtocolError
from nanoagent.network.doors import MAX_DOORS, Door, DoorKind, Doors

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.services.own_network import Channel, OwnNetwork

GATEWAY = Door(DoorKind.TCP, "127.0.0.1", 11434)
NAMES = Door(DoorKind.UDP, "127.0.0.1", 53)
WEB = Door(DoorKind.TCP, "0.0.0.0", 443)
WANTED = (GATEWAY, NAMES, WEB)
GET_NETNS_COOKIE = 71  # SO_NETNS_COOKIE


@pytest.fixture
async def doors(channel: Channel) -> Doors:
    return Doors(channel.agents, WANTED, kept=False)


def opened(network: OwnNetwork, *which: Door) -> dict[Door, socket.socket]:
    return {door: network.door(door) for door in which}


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


async def all_closed(before: set[Path]) -> None:
    """Return when no descriptor is open that was not; threads close them."""
    async with asyncio.timeout(60):
        while len(descriptors()) > len(before):  # noqa: ASYNC110 - threads close them
            await asyncio.sleep(0.01)


async def test_doors_that_are_handed_over_are_those_that_were_asked_for(network, channel, doors):
    channel.hand_over_doors(WANTED, opened(network, *WANTED))
    assert [(door, at.getsockname()) for door, at in doors.take().items()] == [
        (door, (door.host, door.port)) for door in WANTED
    ]
    doors.close()


async def test_a_door_that_could_not_be_made_is_missing(network, channel, doors):
    channel.hand_over_doors(WANTED, opened(network, NAMES))
    assert list(doors.take()) == [NAMES]
    doors.close()


async def test_where_none_have_come_there_are_none(channel, doors):
    assert doors.take() == {}
    channel.hand_over(b"\xff", [])
    assert doors.take() == {}
    channel.supervisors.close()
    assert doors.take() == {}


async def test_the_last_set_counts_and_those_before_are_closed(network, channel, doors):
    before = descriptors()
    channel.hand_over_doors(WANTED, opened(network, GATEWAY, WEB))
    first = list(doors.take().values())
    channel.hand_over_doors(WANTED, opened(network, GATEWAY, WEB))
    channel.hand_over_doors(WANTED, opened(network, NAMES))
    assert list(doors.take()) == [NAMES]
    assert [door.fileno() for door in first] == [-1, -1]
    doors.release()
    await all_closed(before)


async def test_a_sandboxs_doors_are_for_one_run_and_a_containers_for_all(network, channel):
    for kept in (False, True):
        doors = Doors(channel.agents, WANTED, kept=kept)
        channel.hand_over_doors(WANTED, opened(network, GATEWAY))
        assert list(doors.take()) == [GATEWAY]
        doors.release()
        assert list(doors.take()) == ([GATEWAY] if kept else [])
        doors.release(all_of_them=True)


async def test_what_a_connection_has_the_kernel_hold_is_bounded(network, channel, doors):
    channel.hand_over_doors(WANTED, opened(network, GATEWAY))
    (door,) = doors.take().values()
    for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        assert door.getsockopt(socket.SOL_SOCKET, name) <= 2 * 64 * 1024
    doors.close()


# --- a supervisor that has been taken over


def _listens(network: OwnNetwork) -> list[socket.socket]:
    door = network.door(GATEWAY)
    door.listen()
    return [door]


def _is_connected(network: OwnNetwork) -> list[socket.socket]:
    """A connection whose other end is its own: from 127.0.0.1:11434 to a listener beside it."""
    door, listener = network.door(GATEWAY), network.bare()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    door.connect(listener.getsockname())
    return [door, listener]


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
async def test_a_socket_that_is_no_door_is_refused_and_closed(network, channel, doors, alien):
    before = descriptors()
    made = ALIENS[alien](network)
    channel.hand_over(b"\xff\x00", [made[0].fileno()])
    with pytest.raises(ProtocolError, match="handed over what is no door"):
        doors.take()
    for own in made:
        own.close()
    await all_closed(before)


async def test_a_socket_of_tcp_is_no_door_of_udp(network, channel, doors):
    (made,) = _bound(network, socket.SOCK_STREAM, NAMES.host, NAMES.port)
    channel.hand_over(b"\xff\x01", [made.fileno()])
    made.close()
    with pytest.raises(ProtocolError, match="a socket of another kind than UDP"):
        doors.take()


async def test_one_descriptor_more_than_there_can_be_doors_spoils_even_a_whole_set(network, channel):
    wanted = [Door(DoorKind.TCP, "127.0.0.1", 2000 + number) for number in range(MAX_DOORS)]
    doors = Doors(channel.agents, wanted, kept=False)
    made = [network.door(door) for door in wanted]
    said = b"\xff" + bytes(range(MAX_DOORS))
    channel.hand_over(said, [door.fileno() for door in made])
    assert list(doors.take()) == wanted
    channel.hand_over(said, [*(door.fileno() for door in made), made[0].fileno()])
    with pytest.raises(ProtocolError):
        doors.take()
    for door in made:
        door.close()
    doors.close()


async def test_a_socket_of_the_hosts_own_network_is_refused(channel):
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        doors = Doors(channel.agents, [Door(DoorKind.TCP, *own.getsockname())], kept=False)
        try:
            own.getsockopt(socket.SOL_SOCKET, GET_NETNS_COOKIE, 8)
        except OSError:
            pytest.skip("this kernel (before 5.14) does not tell networks apart")
        channel.hand_over(b"\xff\x00", [own.fileno()])
        with pytest.raises(ProtocolError, match="a socket of the host's network"):
            doors.take()


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/stat", "/tmp"])
async def test_a_file_is_no_door(channel, doors, path):
    before = descriptors()
    file = os.open(path, os.O_RDONLY)
    channel.hand_over(b"\xff\x00", [file])
    os.close(file)
    with pytest.raises(ProtocolError, match="handed over what is no door"):
        doors.take()
    await all_closed(before)


async def test_one_wrong_descriptor_spoils_the_set(network, channel, doors):
    before = descriptors()
    right = network.door(GATEWAY)
    file = os.open("/dev/null", os.O_RDONLY)
    channel.hand_over(b"\xff\x00\x01", [right.fileno(), file])
    right.close()
    os.close(file)
    with pytest.raises(ProtocolError, match="handed over what is no door"):
        doors.take()
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
        (b"\xff" + bytes(MAX_DOORS), MAX_DOORS),
        (b"\xff\x00", MAX_DOORS + 1),
        (b"\xff\x00", 253),  # as many as the kernel lets in one message: SCM_MAX_FD
    ],
)
async def test_a_message_that_does_not_say_what_it_brings_is_refused_and_all_of_it_closed(
    network, channel, doors, said, count
):
    before = descriptors()
    right = network.door(GATEWAY)
    channel.hand_over(said, [right.fileno()] * count)
    right.close()
    with pytest.raises(ProtocolError):
        doors.take()
    await all_closed(before)


async def test_there_is_an_end_of_sets(network, channel, doors):
    for _ in range(17):
        channel.hand_over_doors(WANTED, opened(network, GATEWAY))
    with pytest.raises(ProtocolError, match="more than 16 sets"):
        doors.take()
    doors.close()
