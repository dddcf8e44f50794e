"""Reads a supervisor's frames as they arrive, and sends frames to it.

Received bytes are kept until a caller takes the frame. No task waits while a container is idle, and a closed
connection is noticed at once. The streams of asyncio need a waiting task, and wake it twice for each frame.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from nanoagent.model.errors import ContainerError
from nanoagent.supervisor import wire

if TYPE_CHECKING:
    from nanoagent.supervisor.wire import Frame

# More than the largest frame, so that an awaited frame can always become complete. When so many bytes are
# kept, reading is paused, and further bytes remain in the socket.
_MAX_KEPT_BYTES: Final = 2 * wire.MAX_FRAME_BYTES


class Disconnected(ContainerError):  # noqa: N818 - a state of the run; `container.judgment` decides its meaning
    """The supervisor closed the connection: the container has died."""


class FrameStream(asyncio.Protocol):
    """The worker's side of the connection.

    At most one caller at a time may wait in `receive`, and one in `sent`.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._frames = wire.Frames()
        self._arrival: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._sendable = asyncio.Event()
        self._sendable.set()
        self._ended = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether the connection is open. Frames that arrived before its end can still be taken."""
        return not self._ended.is_set()

    # --- receiving

    def peek(self) -> Frame | None:
        """Return the next frame, and keep it; None if it has not arrived completely.

        Raises:
            ProtocolError: Its length is over the limit.
        """
        return self._frames.peek()

    def take(self) -> Frame | None:
        """Return the next frame, and remove it; None if it has not arrived completely.

        Raises:
            ProtocolError: Its length is over the limit.
        """
        frame = self._frames.take()
        if self._reading_paused and self._frames.held_bytes < _MAX_KEPT_BYTES and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()
        return frame

    async def receive(self, timeout_s: float) -> Frame:
        """Wait for the next frame, and remove it.

        Raises:
            ProtocolError: Its length is over the limit.
            Disconnected: The supervisor closed the connection before the frame was complete.
            TimeoutError: The frame was not complete in time.
        """
        if (frame := self.take()) is not None:
            return frame
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        timer = loop.call_at(deadline, self._wake)
        try:
            while (frame := self.take()) is None:
                if not self.is_open:
                    raise Disconnected("the container's supervisor has closed the connection")
                if loop.time() >= deadline:
                    raise TimeoutError
                self._arrival = loop.create_future()
                await self._arrival
            return frame
        finally:
            timer.cancel()
            self._arrival = None

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    # --- sending

    def send(self, data: bytes) -> None:
        """Send data, or keep it until the supervisor can receive it."""
        if self._transport is not None:
            self._transport.write(data)

    async def sent(self, timeout_s: float) -> None:
        """Wait until the send buffer has room, or the connection has ended; `receive` reports the end.

        Raises:
            TimeoutError: The supervisor did not receive enough in time.
        """
        if not self._sendable.is_set():
            async with asyncio.timeout(timeout_s):
                await self._sendable.wait()

    # --- the end

    async def close(self) -> None:
        """Close the connection, discard unsent data, and wait until it is closed. Idempotent."""
        if self._transport is not None:
            self._transport.abort()
            await self._ended.wait()

    async def wait_end(self) -> None:
        """Wait until either side has closed the connection."""
        await self._ended.wait()

    # --- callbacks of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102 - see asyncio.Protocol
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:  # noqa: D102 - see asyncio.Protocol
        self._frames.feed(data)
        if self._frames.held_bytes >= _MAX_KEPT_BYTES and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002, D102 - the reason does not matter
        self._ended.set()
        self._sendable.set()
        self._wake()

    def pause_writing(self) -> None:  # noqa: D102 - see asyncio.Protocol
        self._sendable.clear()

    def resume_writing(self) -> None:  # noqa: D102 - see asyncio.Protocol
        self._sendable.set()
