"""Limits the memory for the bodies of requests and answers, and reads the bodies of requests."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError

from nanoagent.ai.refusals import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nanoagent.ai.run_state import RunState

_READ_TIMEOUT_S: Final = 60.0  # for a whole body


class BodyMemory:
    """The memory for the bodies of all runs together.

    Args:
        size_bytes: The size of the memory.

    Attributes:
        free_bytes: The bytes that are free.
    """

    def __init__(self, size_bytes: int) -> None:
        self.free_bytes = size_bytes

    def take(self, size: int, held: int) -> None:
        """Take memory for a part of a body.

        A run may hold at most as many bytes as stay free for all other runs. So a few runs with large bodies
        leave memory for the small requests of others.

        Args:
            size: The bytes to take.
            held: The bytes that the run holds already.

        Raises:
            Refused: Not enough memory is free.
        """
        if held + size > self.free_bytes - size:
            raise Refused(
                503, "the worker's gateway has many large requests at the moment", "busy", retry_after_s=1
            )
        self.free_bytes -= size


class RunMemory:
    """The memory that the bodies of one run take.

    Args:
        memory: The memory for all runs.

    Attributes:
        held_bytes: The bytes that the run holds.
    """

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self.held_bytes = 0

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Count the memory of one body as taken until the end of the block.

        Yields:
            A function that sets the size of the body in bytes. It raises `Refused` if not enough memory is
            free.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            more = size - held
            if more > 0:
                self._memory.take(more, self.held_bytes)
            else:
                self._memory.free_bytes -= more
            self.held_bytes += more
            held = size

        try:
            yield hold
        finally:
            hold(0)


async def read_body(
    request: web.BaseRequest, state: RunState, limit_bytes: int, hold: Callable[[int], None]
) -> bytes:
    """Read the body of a request.

    Args:
        request: The request.
        state: The state of its run.
        limit_bytes: The largest allowed size of the body.
        hold: Sets the size of the body; see `RunMemory.holding`.

    Raises:
        Refused: The body is too large, too slow or invalid.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refused(415, "the request's body must not be compressed", "unsupported_encoding")
    if (request.content_length or 0) > limit_bytes:
        raise _too_large(limit_bytes)
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version == HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # otherwise aiohttp would think that the answer has begun
    body = bytearray()
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            while data := await request.content.readany():
                await state.cpu_time.wait()
                if len(body) + len(data) > limit_bytes:
                    raise _too_large(limit_bytes)
                state.budget.spend_bytes(len(data))
                hold(len(body) + len(data))
                body += data
    except TimeoutError as exc:
        raise Refused(
            408, f"the request's body did not come within {_READ_TIMEOUT_S:g} s", "body_timeout"
        ) from exc
    except (web.RequestPayloadError, HttpProcessingError) as exc:
        raise Refused(400, "the request's body does not match its headers", "invalid_body") from exc
    return bytes(body)


def _too_large(limit_bytes: int) -> Refused:
    return Refused(
        413,
        f"the request is larger than {limit_bytes} bytes (AI_MAX_REQUEST_BYTES={limit_bytes}); send less, or "
        "have AI_MAX_REQUEST_BYTES raised",
        "request_too_large",
    )
