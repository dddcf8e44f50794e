"""A proxy that disturbs the connections to a service.

async with Proxy(host, port) as proxy:
    await proxy.cut()         # connections break and new ones are refused, as if the service had died
    await proxy.restore()     # connections work again, at the same port
    proxy.hang()              # connections are accepted, but no data passes, as if the service were stopped
    proxy.delay(0.5)          # every piece of data is delayed by so many seconds
    proxy.throttle(10_000)    # at most so many bytes a second in each direction
    proxy.garble()            # answers contain random data
    await proxy.lead_to(host, other_port)  # new connections go to another server, as after a failover
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_CHUNK_BYTES = 65536
# No protocol of ours starts an answer like this. Line ends are kept, or the reader would wait for them.
_NONSENSE: Final = bytes(code if code in b"\r\n" else 0x80 | (code * 7 & 0x7F) for code in range(256))


class Proxy:
    """Forwards connections to a service on this machine, with or without disturbances.

    Args:
        host: The service's address.
        port: Its port.

    Attributes:
        port: The proxy's port.
        accepted: The number of connections so far.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.accepted = 0
        self._target = host, port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self._delay_s = 0.0
        self._bytes_per_s = 0.0
        self._garbles = False

    async def __aenter__(self) -> Self:
        await self.restore()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut()
        self._passing.set()  # waiting tasks see a broken connection

    @property
    def host(self) -> str:
        """The address of the proxy."""
        return "127.0.0.1"

    async def cut(self) -> None:
        """Break every connection and refuse new ones, as if the service had died."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._break_all()

    async def restore(self) -> None:
        """Forward connections again without disturbances, at the same port."""
        self._delay_s = self._bytes_per_s = 0.0
        self._garbles = False
        self._passing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, self.host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def hang(self) -> None:
        """Accept and keep connections, but pass no data until `restore`."""
        self._passing.clear()

    def delay(self, seconds: float) -> None:
        """Delay every piece of data in both directions, by seconds."""
        self._delay_s = seconds

    def throttle(self, bytes_per_s: float) -> None:
        """Limit the bytes per second, for each direction of each connection."""
        self._bytes_per_s = bytes_per_s

    def garble(self) -> None:
        """Replace every answer by random data of the same length. Requests still reach the service."""
        self._garbles = True

    async def lead_to(self, host: str, port: int) -> None:
        """Forward new connections to another service. Existing ones stay, as after a change of DNS."""
        self._target = host, port

    def _break_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        try:
            await self._passing.wait()
            there_reader, there_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        await asyncio.gather(
            self._copy(reader, there_writer, is_answer=False),
            self._copy(there_reader, writer, is_answer=True),
        )

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        self._writers.add(writer)
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK_BYTES):
                await asyncio.sleep(self._delay_s + self._seconds_for(len(data)))
                await self._passing.wait()
                writer.write(data.translate(_NONSENSE) if is_answer and self._garbles else data)
                await writer.drain()
        self._writers.discard(writer)
        writer.close()

    def _seconds_for(self, size: int) -> float:
        return size / self._bytes_per_s if self._bytes_per_s else 0.0
