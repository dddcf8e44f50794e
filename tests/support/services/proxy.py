"""A way to a service on which things go wrong: cut, hanging, slow, narrow, garbled.

async with Proxy(host, port) as proxy:
    await proxy.cut()         # connections break, new ones are refused: a service that has died
    await proxy.restore()     # everything is as it should be again, at the same port
    proxy.hang()              # connections are accepted, and nothing passes: one that is stopped
    proxy.delay(0.5)          # every piece of data takes so many seconds
    proxy.throttle(10_000)    # no more than so many bytes a second, each way
    proxy.garble()            # answers come, and are nonsense
    await proxy.lead_to(host, other_port)  # a name that leads elsewhere now, as after a failover
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_CHUNK_BYTES = 65536
# What an answer starts with in no protocol of ours; lines stay lines, or whoever reads would only wait.
_NONSENSE: Final = bytes(code if code in b"\r\n" else 0x80 | (code * 7 & 0x7F) for code in range(256))


class Proxy:
    """Forwards connections to a service on this machine, until it is told otherwise.

    Args:
        host: The service's address.
        port: Its port.

    Attributes:
        port: Where the proxy listens.
        accepted: How many connections it has been asked for.
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
        self._passing.set()  # whoever waits finds his connection broken

    @property
    def host(self) -> str:
        """The address it listens on."""
        return "127.0.0.1"

    async def cut(self) -> None:
        """Break every connection and refuse new ones, as a service that has died does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._break_all()

    async def restore(self) -> None:
        """Let connections through again, at the same port, with nothing done to what passes."""
        self._delay_s = self._bytes_per_s = 0.0
        self._garbles = False
        self._passing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, self.host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def hang(self) -> None:
        """Accept connections, keep those that are there, and let nothing pass until it is restored."""
        self._passing.clear()

    def delay(self, seconds: float) -> None:
        """Let every piece of data wait for so long, each way."""
        self._delay_s = seconds

    def throttle(self, bytes_per_s: float) -> None:
        """Let no more than that pass, each way on each connection."""
        self._bytes_per_s = bytes_per_s

    def garble(self) -> None:
        """Make nonsense of the same length of every answer; what is asked for arrives, and is done."""
        self._garbles = True

    async def lead_to(self, host: str, port: int) -> None:
        """Lead new connections to another service; those that are there stay, as after a change of DNS."""
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
