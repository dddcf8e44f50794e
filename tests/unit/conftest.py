from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import structlog

from support.services.own_network import Channel, OwnNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator


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
