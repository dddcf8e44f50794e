"""Results kept in this process: for tests of the worker, and for trying it without Redis."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from nanoagent.errors import SinkError

if TYPE_CHECKING:
    from collections.abc import Callable


class MemorySink:
    """A `ResultSink` that is a dictionary.

    Args:
        ttl_s: How long a document is kept, seconds.
        clock: Monotonic seconds.

    Attributes:
        published: Every announcement, in order: the request and its document.
        failures: How many attempts at a request failed by our fault.
        down: While True, every method raises `SinkError`, as with a server that does not answer.
    """

    def __init__(self, *, ttl_s: int = 3600, clock: Callable[[], float] = time.monotonic) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.failures: Counter[str] = Counter()
        self.down = False
        self._ttl_s = ttl_s
        self._clock = clock
        self._documents: dict[str, tuple[bytes, float]] = {}

    async def publish(self, request_id: str, document: bytes) -> None:
        """Store and announce the document; see `ResultSink.publish`."""
        self._check()
        self._documents[request_id] = document, self._clock() + self._ttl_s
        self.published.append((request_id, document))

    async def stored(self, request_id: str) -> bytes | None:
        """The document stored for the request, if it is still kept."""
        self._check()
        document, expires_at = self._documents.get(request_id, (None, 0.0))
        return document if self._clock() < expires_at else None

    async def count_failure(self, request_id: str) -> int:
        """Note a failed attempt; returns how many there have been."""
        self._check()
        self.failures[request_id] += 1
        return self.failures[request_id]

    async def ping(self) -> None:
        """Succeed unless `down`."""
        self._check()

    async def close(self) -> None:
        """There is nothing to close."""

    def _check(self) -> None:
        if self.down:
            raise SinkError("results in memory: marked as down")
