"""Deliveries of one request in this worker: they are worked on one after the other."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nanoagent.model.errors import ReturnToQueue
from nanoagent.model.returns import ReturnReason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_MAX_DUPLICATES: Final = 4  # deliveries of one request that wait for the first; SQS rarely has more than two


@dataclass(slots=True, eq=False)
class _Request:
    """A request that is being worked on.

    Attributes:
        done: Set when it no longer is.
        waiting: How many other deliveries of it wait for that.
    """

    done: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0


class Duplicates:
    """The requests that are being worked on in this worker."""

    def __init__(self) -> None:
        self._requests: dict[str, _Request] = {}

    def has(self, request_id: str) -> bool:
        """Whether a delivery of the request is being worked on."""
        return request_id in self._requests

    @asynccontextmanager
    async def alone(self, request_id: str) -> AsyncIterator[None]:
        """Enter when no other delivery of the request is being worked on.

        Raises:
            ReturnToQueue: Too many deliveries of the request wait for that already.
        """
        while (current := self._requests.get(request_id)) is not None:
            if current.waiting >= _MAX_DUPLICATES:
                raise ReturnToQueue("the same request is being worked on", reason=ReturnReason.DUPLICATE)
            current.waiting += 1
            try:
                await current.done.wait()
            finally:
                current.waiting -= 1
        own = self._requests[request_id] = _Request()
        try:
            yield
        finally:
            del self._requests[request_id]
            own.done.set()
