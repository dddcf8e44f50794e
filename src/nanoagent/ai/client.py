"""The program at the other end of a connection: whether it has hung up."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Client:
    """The program at the other end of a connection.

    Args:
        drain_s: After a hang-up, the gateway continues to read answers for this time, in seconds
            (AI_DRAIN_SECONDS).

    Attributes:
        has_hung_up: Whether the connection is lost.
    """

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._timeouts: set[asyncio.Timeout] = set()
        self.has_hung_up = False

    def hang_up(self) -> None:
        """Record that the connection is lost, and shorten the timeouts of the calls in flight."""
        self.has_hung_up = True
        until = asyncio.get_running_loop().time() + self._drain_s
        for timeout in self._timeouts:
            when = timeout.when()
            if not timeout.expired() and (when is None or until < when):
                timeout.reschedule(until)

    @contextmanager
    def shortened_by_hang_up(self, timeout: asyncio.Timeout) -> Iterator[None]:
        """During the block, a hang-up of the program shortens the timeout."""
        self._timeouts.add(timeout)
        try:
            yield
        finally:
            self._timeouts.discard(timeout)
