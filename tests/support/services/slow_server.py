"""An HTTP server that never completes an answer, in several ways."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Slowness = Literal["body not taken", "answer's head without end", "answer's body without end"]
_DRIP_S = 0.05
_HEAD = b"HTTP/1.1 200 OK\r\n"


@asynccontextmanager
async def slow_server(slowness: Slowness) -> AsyncIterator[str]:
    """Start the server and return its URL."""
    visitors: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if slowness == "body not taken":
            if b"Expect: 100-continue" in head:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await asyncio.Event().wait()
        elif slowness == "answer's head without end":
            writer.write(_HEAD + b"X-Padding: ")
        else:
            writer.write(_HEAD + b'Content-Length: 1000000\r\nETag: "1"\r\n\r\n')
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(_DRIP_S)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def visit() -> None:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await answer(reader, writer)

        visitors.add(asyncio.create_task(visit()))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for visitor in visitors:
            visitor.cancel()
        await asyncio.gather(*visitors, return_exceptions=True)
