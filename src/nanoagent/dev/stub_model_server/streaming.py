"""Sends responses that are streams of pieces."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def streamed(request: web.Request, content_type: str) -> AsyncIterator[web.StreamResponse]:
    """Send the head of a response. Send its end after the body of the `async with`, except after an error."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    response.enable_chunked_encoding()
    await response.prepare(request)
    yield response
    await response.write_eof()
