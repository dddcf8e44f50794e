"""The log of the requests that the stub model server received."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(slots=True)
class RecordedRequest:
    """One request, as it was received, and the progress of its answer.

    Attributes:
        method: The HTTP method.
        path: The path with the query, not decoded.
        headers: The headers.
        body: The JSON document of the body; None if the body is not JSON.
        raw: The bytes of the body.
        state: `open`, then `finished`, or `cut` if the connection was closed before the end.
        pieces: The number of pieces of the answer that were sent.
        prompt_tokens: The number of tokens of the prompt.
        completion_tokens: The number of tokens of the answer that were sent.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    raw: bytes
    state: str = "open"
    pieces: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


RECORD: Final = web.RequestKey("record", RecordedRequest)
"""The key under which aiohttp's request holds its entry in the log."""


class RequestLog:
    """The requests, oldest first, and a way to wait for changes.

    Attributes:
        entries: The requests.
    """

    def __init__(self) -> None:
        self.entries: list[RecordedRequest] = []
        self._changed = asyncio.Condition()

    async def notify(self) -> None:
        """Wake all callers of `until` after a change."""
        async with self._changed:
            self._changed.notify_all()

    async def until(self, is_true: Callable[[list[RecordedRequest]], bool]) -> None:
        """Wait until a condition on the entries is true."""
        async with self._changed:
            await self._changed.wait_for(lambda: is_true(self.entries))
