"""The port to where results go."""

from __future__ import annotations

from typing import Protocol


class ResultSink(Protocol):
    """Stores and announces results. Every method raises `SinkError` when the store fails."""

    async def publish(self, request_id: str, document: bytes) -> None:
        """Store the document under the request and announce it, both or neither."""
        ...

    async def stored(self, request_id: str) -> bytes | None:
        """The document stored for the request, if any."""
        ...

    async def count_failure(self, request_id: str) -> int:
        """Note that an attempt at the request failed by our fault; returns how many have."""
        ...

    async def ping(self) -> None:
        """Succeed when the store answers."""
        ...

    async def close(self) -> None:
        """Close connections. Idempotent."""
        ...
