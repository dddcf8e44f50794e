"""The worker's side of the connection with a launcher."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from nanoagent.model.errors import ContainerError, ProtocolError
from nanoagent.supervisor.launcher import Launcher, ResidueFound

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ends() -> Iterator[tuple[Launcher, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    launcher = Launcher(ours, is_process_1=True)
    yield launcher, theirs
    launcher.close()
    theirs.close()


async def test_a_clean_container_is_clean_and_gets_a_supervisor(ends):
    launcher, theirs = ends
    theirs.send(b"c")
    await launcher.begin_cleaning()
    await launcher.finish_cleaning()
    await launcher.start_supervisor()
    assert [theirs.recv(16), theirs.recv(16)] == [b"C", b"S"]


async def test_residue_is_named(ends):
    launcher, theirs = ends
    theirs.send(b"rprocess 17\xff")
    with pytest.raises(ResidueFound, match="process 17"):
        await launcher.finish_cleaning()


@pytest.mark.parametrize("answer", [b"x", b"cc", b"c" * 300])
async def test_another_answer_is_an_error(ends, answer):
    launcher, theirs = ends
    theirs.send(answer)
    with pytest.raises(ProtocolError):
        await launcher.finish_cleaning()


async def test_a_launcher_that_has_ended_is_an_error(ends):
    launcher, theirs = ends
    theirs.close()
    with pytest.raises(ContainerError):
        await launcher.finish_cleaning()
    with pytest.raises(ContainerError):
        await launcher.start_supervisor()
