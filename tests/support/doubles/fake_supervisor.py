"""The other end of a session, without a container: it sends the frames of a script."""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from nanoagent.supervisor import wire
from nanoagent.supervisor.session import Session

if TYPE_CHECKING:
    from pathlib import Path

_READY = struct.Struct("<IIQB")
_EXIT = struct.Struct("<IIQQQQQIIII")
_RUN_FIXED_BYTES = (
    62  # struct run_request of wire.h; its last bytes are prepare_next, live and live_bytes_per_s
)


def hello(version: int = wire.PROTOCOL_VERSION) -> bytes:
    return wire.frame(wire.HELLO, struct.pack("<I", version))


def ready(error: int = 0, files: int = 1, size: int = 10, imports: int = 0) -> bytes:
    return wire.frame(wire.READY, _READY.pack(error, files, size, imports))


def level(number: int, why_not_higher: str = "") -> bytes:
    return wire.frame(wire.LEVEL, bytes([number]) + why_not_higher.encode())


def exited(
    wait_status: int = 0,
    flags: wire.ExitFlag = wire.ExitFlag(0),  # noqa: B008 - an immutable value
    *,
    wall_us: int = 1000,
    stdout_total: int = 0,
    stderr_total: int = 0,
    exec_error: int = 0,
) -> bytes:
    """Return an EXIT frame. Times are in microseconds, totals in bytes."""
    return wire.frame(
        wire.EXIT,
        _EXIT.pack(
            wait_status,
            flags,
            wall_us,
            *(0, 0),
            stdout_total,
            stderr_total,
            stdout_total,
            stderr_total,
            *(0, exec_error),
        ),
    )


def file(path: bytes, content: bytes, *, announced: int | None = None) -> bytes:
    """Return a FILE and one DATA frame. `announced` is the size in FILE, true by default."""
    size = len(content) if announced is None else announced
    data = wire.frame(wire.DATA, content) if content else b""
    return wire.frame(wire.FILE, struct.pack("<Q", size) + path) + data


def refused(path: bytes, reason: int = 1) -> bytes:
    return wire.frame(wire.REFUSED, bytes([reason]) + path)


def live(stream: bytes, output: bytes, position: int = 0) -> bytes:
    return wire.frame(wire.LIVE, stream + struct.pack("<Q", position) + output)


def done(*, clean: bool = True) -> bytes:
    return wire.frame(wire.DONE, bytes([clean]))


@dataclass(frozen=True, slots=True)
class Script:
    """The frames of a fake supervisor.

    Attributes:
        on_connect: Sent at once.
        why_not_sandboxed: The reason why it cannot create sandboxes; None if it can.
        on_prepare: The answer to PREPARE, and to a run that prepares the next.
        on_run: The answer to RUN.
    """

    on_connect: bytes = hello()
    why_not_sandboxed: str = ""
    on_prepare: bytes = ready()
    on_run: bytes = exited() + done()


class FakeSupervisor:
    """Connects to the socket in a work directory and follows a script until either side disconnects.

    Args:
        script: Its frames.
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self._writer: asyncio.StreamWriter | None = None
        self.prepared = asyncio.Event()  # set when PREPARE has been received

    async def serve(self, path: Path) -> None:
        reader, self._writer = await asyncio.open_unix_connection(path)
        self._writer.write(self._script.on_connect)
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                length, kind = struct.unpack("<Ic", await reader.readexactly(5))
                self._answer(kind, await reader.readexactly(length))
        self.die()

    def _answer(self, kind: bytes, payload: bytes) -> None:
        assert self._writer is not None
        if kind == wire.CONFIGURE:
            why_not = self._script.why_not_sandboxed
            self._writer.write(level(wire.LEVEL_SHARED if why_not else payload[0], why_not) + ready())
        elif kind == wire.PREPARE:
            self.prepared.set()
            self._writer.write(self._script.on_prepare)
        elif kind == wire.RUN:
            self._writer.write(self._script.on_run)
            if payload[_RUN_FIXED_BYTES - 6]:
                self._writer.write(self._script.on_prepare)

    def die(self) -> None:
        """Disconnect, as a killed container does. Idempotent."""
        if self._writer is not None:
            self._writer.close()


class Writer:
    """A writer and transport that discards all data."""

    protocol: asyncio.Protocol

    def __init__(self) -> None:
        self.written = b""
        self.reads = True

    def write(self, data: bytes) -> None:
        self.written += data

    @property
    def transport(self) -> Writer:
        return self

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def abort(self) -> None:
        self.protocol.connection_lost(None)


def talk(data: bytes, *, hangs_up: bool = True, writer: Writer | None = None) -> Session:
    """Return a session whose supervisor sends these frames, then disconnects or is silent."""
    writer = writer or Writer()
    session = Session(asyncio.StreamReader(), cast("asyncio.StreamWriter", writer))
    writer.protocol.data_received(data)
    if hangs_up:
        writer.protocol.connection_lost(None)
    return session
