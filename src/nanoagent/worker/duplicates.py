"""Duplicates: deliveries of one request in this worker. The worker works on them one after the other."""

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
    """A request that a delivery is working on.

    Attributes:
        done: Set when that work has ended.
        waiting: How many other deliveries of the request wait for the end of that work.
    """

    done: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0


class Duplicates:
    """The requests that this worker is working on."""

    def __init__(self) -> None:
        self._requests: dict[str, _Request] = {}

    def has(self, request_id: str) -> bool:
        """Whether the worker is working on a delivery of the request."""
        return request_id in self._requests

    @asynccontextmanager
    async def alone(self, request_id: str) -> AsyncIterator[None]:
        """Wait until the worker works on no other delivery of the request. During the block, others wait.

        Raises:
            ReturnToQueue: Too many deliveries of the request are waiting already.
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
