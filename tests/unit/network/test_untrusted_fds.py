"""Descriptors of a supervisor that has been taken over, whose closing waits for as long as it likes.

Each test here hangs for an hour where they are closed in the loop.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from nanoagent.model.errors import ProtocolError
from nanoagent.network.listening_sockets import (
    MAX_LISTENING_SOCKETS,
    ListeningAddress,
    ListeningSockets,
    SocketKind,
)
from support.doubles.fake_supervisor import hello
from support.sandboxes.containers import worker_home
from support.services.own_network import Channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GATEWAY = ListeningAddress(SocketKind.TCP, "127.0.0.1", 11434)


@asynccontextmanager
async def all_let_go() -> AsyncIterator[None]:
    """After the block, wait until no descriptor is open that was not before."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no objects that have to be told apart
    yield
    async with asyncio.timeout(60):
        while len(os.listdir("/proc/self/fd")) > before:  # noqa: ASYNC110, PTH208 - threads close them
            await asyncio.sleep(0.01)


def sent(over: socket.socket, said: bytes, *descriptors: int) -> None:
    over.sendmsg([said], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])


def close_all(kept: list[socket.socket]) -> None:
    for held in kept:
        held.close()


async def test_descriptors_beside_the_sockets_are_closed_where_nobody_waits(network, channel):
    sockets = ListeningSockets(channel.agents, [GATEWAY], kept=False)
    async with all_let_go():
        untrusted, kept = network.reluctant()
        many = [*([kept[0].fileno()] * (MAX_LISTENING_SOCKETS + 1)), untrusted.fileno()]
        channel.hand_over(b"\xff\0", many)
        untrusted.close()
        with pytest.raises(ProtocolError):
            sockets.take()
        close_all(kept)


async def test_what_nobody_has_taken_is_closed_where_nobody_waits(network):
    channel = Channel()
    sockets = ListeningSockets(channel.agents, [GATEWAY], kept=False)
    untrusted, kept = network.reluctant()
    channel.hand_over(b"\xff\0", [untrusted.fileno()])
    untrusted.close()
    sockets.close()
    channel.supervisors.settimeout(60)
    assert channel.supervisors.recv(1) == b""
    close_all([*kept, channel.supervisors])


async def test_a_listening_socket_that_becomes_a_connection_is_closed_where_nobody_waits(network, channel):
    sockets = ListeningSockets(channel.agents, [GATEWAY], kept=False)
    async with all_let_go():
        bound = network.bind(GATEWAY)
        copy = bound.dup()
        channel.hand_over_sockets([GATEWAY], {GATEWAY: bound})
        assert list(sockets.take()) == [GATEWAY]
        copy, kept = network.reluctant(copy)
        copy.close()
        sockets.release()
        close_all(kept)


async def test_what_comes_with_a_frame_is_closed_where_nobody_waits(network):
    with worker_home() as home:
        directory = home.new_work_directory("one")
        await directory.socket.listen(os.getuid())
        theirs = socket.socket(socket.AF_UNIX)
        theirs.settimeout(60)
        theirs.connect(str(directory.path / "agent.sock"))
        first, kept = network.reluctant()
        greeting = hello()
        sent(theirs, greeting[:3], first.fileno())
        first.close()
        theirs.send(greeting[3:])
        session = await directory.socket.session(60)
        await session.greet()
        second, more = network.reluctant()
        sent(theirs, b"x", second.fileno())  # nobody takes it before the session ends
        second.close()
        await session.close()
        assert await asyncio.get_running_loop().run_in_executor(None, theirs.recv, 1) == b""
        await directory.remove()
    close_all([*kept, *more, theirs])


async def test_threads_that_others_need_close_nothing(network, channel):
    loop = asyncio.get_running_loop()
    sockets = ListeningSockets(channel.agents, [GATEWAY], kept=False)
    all_kept: list[socket.socket] = []
    for _ in range(2 * (min(32, (os.cpu_count() or 1) + 4))):  # more than the loop's own executor has
        untrusted, kept = network.reluctant()
        all_kept += kept
        channel.hand_over(b"\xff\0", [untrusted.fileno()])
        untrusted.close()
        with suppress(ProtocolError):
            sockets.take()
    async with asyncio.timeout(60):
        assert await loop.run_in_executor(None, os.getpid) == os.getpid()
    close_all(all_kept)
