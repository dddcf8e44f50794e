from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

import pytest
import structlog

from support.doubles.fakes import DEADLINE_S
from support.services.own_network import Channel, OwnNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Commands set up logging for their process, which here is that of all the other tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module")
def network() -> Iterator[OwnNetwork]:
    """A network namespace that sockets can be made in."""
    made = OwnNetwork()
    yield made
    made.close()


@pytest.fixture
def channel() -> Iterator[Channel]:
    """A supervisor's connection for listening sockets, both ends."""
    made = Channel()
    yield made
    made.close()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of the service manager, which receives the notifications of the process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(DEADLINE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield channel
