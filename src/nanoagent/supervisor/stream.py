"""A supervisor's frames as they arrive.

Nobody waits here for each piece of a frame, nor at all while a container is idle: what comes is held until it
is asked for, and a hang-up is known at once. asyncio's own streams would want a task that waits, and two
wake-ups for every frame.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from nanoagent.model.errors import ContainerError
from nanoagent.supervisor import wire

if TYPE_CHECKING:
    from nanoagent.supervisor.wire import Frame

# Enough for a whole frame, so that one that is waited for always comes; what is beyond stays in the socket.
_MOST_HELD_BYTES: Final = 2 * wire.MAX_FRAME_BYTES


class Gone(ContainerError):  # noqa: N818 - a state of the run; the executor decides what it means
    """The supervisor closed the connection: the container has died."""


class FrameStream(asyncio.Protocol):
    """The host's end of the stream. One caller at a time waits in `receive`, and one in `sent`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._frames = wire.Frames()
        self._arrival: asyncio.Future[None] | None = None
        self._holds_back = False
        self._sendable = asyncio.Event()
        self._sendable.set()
        self._ended = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether the other end has not hung up. What it said before can be taken all the same."""
        return not self._ended.is_set()

    def take(self) -> Frame | None:
        """The next frame, if all of it has arrived.

        Raises:
            ProtocolError: It claims to be longer than any honest frame.
        """
        frame = self._frames.take()
        if self._holds_back and self._frames.held_bytes < _MOST_HELD_BYTES and self._transport is not None:
            self._holds_back = False
            self._transport.resume_reading()
        return frame

    async def receive(self, timeout_s: float) -> Frame:
        """The next frame.

        Raises:
            ProtocolError: As `take`.
            Gone: The other end hung up before it was complete.
            TimeoutError: It was not complete in time.
        """
        if (frame := self.take()) is not None:
            return frame
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        timer = loop.call_at(deadline, self._wake)
        try:
            while (frame := self.take()) is None:
                if not self.is_open:
                    raise Gone("the container's supervisor is gone")
                if loop.time() >= deadline:
                    raise TimeoutError
                self._arrival = loop.create_future()
                await self._arrival
            return frame
        finally:
            timer.cancel()
            self._arrival = None

    def send(self, data: bytes) -> None:
        """Send it, as soon as the other end takes it."""
        if self._transport is not None:
            self._transport.write(data)

    async def sent(self, timeout_s: float) -> None:
        """Wait until the other end has taken so much that little is left; a hang-up is shown by `receive`.

        Raises:
            TimeoutError: It has not in time.
        """
        if not self._sendable.is_set():
            async with asyncio.timeout(timeout_s):
                await self._sendable.wait()

    async def close(self) -> None:
        """Hang up, what is not sent yet is for nobody; returns when both ends know. Idempotent."""
        if self._transport is not None:
            self._transport.abort()
            await self._ended.wait()

    async def wait_end(self) -> None:
        """Wait until either end has hung up."""
        await self._ended.wait()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    # --- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102 - see asyncio.Protocol
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._frames.feed(data)
        if self._frames.held_bytes >= _MOST_HELD_BYTES and self._transport is not None:
            self._holds_back = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002, D102 - however it ended, it has
        self._ended.set()
        self._sendable.set()
        self._wake()

    def pause_writing(self) -> None:  # noqa: D102
        self._sendable.clear()

    def resume_writing(self) -> None:  # noqa: D102
        self._sendable.set()
