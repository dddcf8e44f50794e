"""The worker's side of the session with one container's supervisor.

A session does one run at a time:

1. `greet` and `configure`, once.
2. `prepare`: the supervisor copies the code and prepares the next run.
3. `start`: the program starts.
4. `wait_exit`: the program has ended.
5. `collect`: the worker has the output, and knows whether the container may be used again.

If the request has `prepare_next`, the supervisor prepares the next run without a request, and step 3 is next.
After an exception the session cannot be used any more: close it and remove its container.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from nanoagent.model.errors import ContainerError, DamagedCode, ProtocolError
from nanoagent.supervisor import wire
from nanoagent.supervisor.output import OutputCollector
from nanoagent.supervisor.stream import FrameStream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from nanoagent.supervisor.output import Collected
    from nanoagent.supervisor.wire import Frame

_STEP_TIMEOUT_S: Final = 60.0  # for one frame outside a run; then the supervisor counts as stuck
_PREPARE_TIMEOUT_S: Final = 120.0  # for copying the largest code with the smallest CPU share
# The supervisor ends a run after its time limit and the grace period. The worker waits longer by this
# margin. The margin is large, because a small CPU share slows the supervisor down, too.
_EXIT_MARGIN_S: Final = 15.0


FromSupervisor: TypeAlias = "Callable[[bytes, int, bytes], None]"
"""Takes `wire.STDOUT` or `wire.STDERR`, the number of bytes of that stream before, and output of it."""


class OnOutput(Protocol):
    """Receives the output of a run."""

    def __call__(self, stream: bytes, position: int, output: bytes, printed: int | None = None, /) -> None:
        """Take a piece of output.

        Args:
            stream: `wire.STDOUT` or `wire.STDERR`.
            position: The number of bytes of the stream before it.
            output: The output.
            printed: The number of bytes of the stream that it stands for; None: as many as it has. They
                differ if secrets are hidden.
        """
        ...


class Overdue(ContainerError):  # noqa: N818 - a state of the run; `container.judgment` decides its meaning
    """The supervisor did not end the run in time. The container must be killed."""


class Session:
    """The session with one supervisor.

    Args:
        writer: The writer of a Unix connection from which nothing has been read. The session takes over its
            transport.

    Attributes:
        imports: Whether the next run gets the packages of its code imported, as the last READY says.
    """

    def __init__(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._stream = FrameStream()
        self._writer = writer  # a reference: in Python 3.13 an unreferenced writer closes its transport
        writer.transport.set_protocol(self._stream)
        self._stream.connection_made(writer.transport)
        self._ready_by: float | None = None  # deadline of an outstanding READY, loop's time
        self._failure: ContainerError | None = None  # of a preparation
        self.imports = wire.ImportsState.OFF

    @property
    def is_usable(self) -> bool:
        """Whether the connection is open, and no preparation has failed or is late."""
        if self._failure is not None or not self._stream.is_open:
            return False
        if self._ready_by is None:
            return True
        try:
            frame = self._stream.peek()
            if frame is not None:
                _check_ready(frame)
        except ContainerError:
            return False
        return frame is not None or asyncio.get_running_loop().time() <= self._ready_by

    # --- before the first run

    async def greet(self) -> None:
        """Wait for the supervisor's first frame.

        Raises:
            ContainerError: It does not arrive, or it has another version of the protocol.
        """
        payload = _payload_of(await self._receive(_STEP_TIMEOUT_S), wire.HELLO)
        version = wire.decode_version(payload)
        if version != wire.PROTOCOL_VERSION:
            raise ContainerError(
                f"the image's supervisor has protocol version {version}, this worker "
                f"{wire.PROTOCOL_VERSION}: rebuild the images (nanoagent images)"
            )

    async def configure(self, configuration: wire.Configuration) -> tuple[int, str]:
        """Send the configuration, and wait until the supervisor is ready for code.

        Returns:
            The highest isolation level that is possible in the container, and why it is not a higher one.

        Raises:
            ContainerError: The supervisor cannot apply the configuration.
        """
        self._send(wire.CONFIGURE, configuration.encode())
        level, reason = wire.decode_level(_payload_of(await self._receive(_STEP_TIMEOUT_S), wire.LEVEL))
        self._expect_ready()
        await self.ready()
        return level, reason

    # --- one run

    async def prepare(
        self,
        modules: Sequence[str] = (),
        *,
        limits_changed: bool = False,
        reuses_imports: bool = False,
    ) -> None:
        """Make the supervisor copy the code from the work directory, and wait until a run can start.

        Args:
            modules: Python modules that the zygote should import, in addition to those of the configuration.
            limits_changed: Whether to restart a waiting interpreter that has read the container's limits.
            reuses_imports: Whether to import the packages of the code once for all runs, if that is possible.
                Afterwards `imports` has the result.

        Raises:
            ContainerError: The preparation failed.
        """
        await self.ready()  # of a preparation that the supervisor began after the previous run
        self._send(
            wire.PREPARE,
            wire.encode_preparation(modules, limits_changed=limits_changed, reuses_imports=reuses_imports),
        )
        self._expect_ready()
        await self.ready()

    async def ready(self) -> None:
        """Wait until the next run is prepared.

        Raises:
            ContainerError: The preparation failed.
        """
        if self._failure is not None:
            raise self._failure
        if self._ready_by is None:
            return
        left_s = max(0.0, self._ready_by - asyncio.get_running_loop().time())
        try:
            frame = await self._receive(left_s, allowed_s=_PREPARE_TIMEOUT_S)
            self.imports = _check_ready(frame).imports
        except ContainerError as exc:
            self._failure = exc
            raise
        self._ready_by = None

    async def start(self, request: wire.RunRequest) -> None:
        """Send the request for a run. The supervisor starts the program when it has the whole request.

        Raises:
            ContainerError: The supervisor did not take the request in time.
        """
        self._send(wire.RUN, request.encode())
        try:
            await self._stream.sent(_STEP_TIMEOUT_S)
        except TimeoutError as exc:
            raise ContainerError(f"the supervisor took no request within {_STEP_TIMEOUT_S:.0f} s") from exc

    def kill(self) -> None:
        """End the running program now. `wait_exit` then returns a report with `ExitFlag.KILLED`."""
        self._send(wire.KILL)

    def follow(self, is_on: bool) -> None:  # noqa: FBT001 - as in the frame
        """Let the supervisor send the output of the running program, or stop that. See `LiveMode.LIMITED`."""
        self._send(wire.FOLLOW, bytes([is_on]))

    async def wait_exit(
        self, request: wire.RunRequest, on_output: FromSupervisor | None = None
    ) -> wire.ExitReport:
        """Wait for the end of the program.

        Args:
            request: The request of the run.
            on_output: Called with each piece of output that arrives while the program runs. Raises
                `ProtocolError` if no output was requested. None if none was.

        Raises:
            Overdue: It did not end within its time limit, the grace period and a margin.
            Disconnected: The container died.
            ProtocolError: The report is not valid.
        """
        limit_s = (request.timeout_ms + request.grace_ms) / 1000 + _EXIT_MARGIN_S
        try:
            kind, payload = await self._stream.receive(limit_s)
            if kind == wire.LIVE and on_output is not None:
                kind, payload = await self._pass_on_output((kind, payload), limit_s, on_output)
        except TimeoutError as exc:
            raise Overdue(f"the supervisor did not end the run within {limit_s:.0f} s") from exc
        if kind != wire.EXIT:
            raise ProtocolError(f"the supervisor sent {kind!r}, expected the end of the run")
        report = wire.decode_exit(payload)
        if report.wall_us > limit_s * 1_000_000:
            raise ProtocolError(
                f"the supervisor reported a run of {report.wall_us} µs, expected {limit_s:.0f} s at most"
            )
        return report

    async def _pass_on_output(self, frame: Frame, limit_s: float, on_output: FromSupervisor) -> Frame:
        """Pass the output of LIVE frames on, and return the first frame of another type.

        Args:
            frame: The first frame of the run.
            limit_s: The time for all frames, seconds.
            on_output: Called with each piece of output.
        """
        deadline = asyncio.get_running_loop().time() + limit_s
        while frame[0] == wire.LIVE:
            on_output(*wire.decode_live(frame[1]))
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0:  # frames that have arrived would never time out
                raise TimeoutError
            frame = await self._stream.receive(left_s)
        return frame

    async def collect(self, request: wire.RunRequest, report: wire.ExitReport, staging: Path) -> Collected:
        """Receive the output of the run. Returns after DONE, or when the container has died or is too slow.

        Args:
            request: The request of the run.
            report: The report of its end.
            staging: The folder for the files, see `OutputCollector`.

        Raises:
            ProtocolError: The supervisor broke the protocol, or a limit of the run.
        """
        collected = await OutputCollector(self._stream, request, staging).collect(report)
        if collected.clean and request.prepare_next:
            self._expect_ready()
        return collected

    async def close(self) -> None:
        """Close the connection, which ends the container. Idempotent."""
        await self._stream.close()

    # --- frames

    def _expect_ready(self) -> None:
        self._ready_by = asyncio.get_running_loop().time() + _PREPARE_TIMEOUT_S

    def _send(self, kind: bytes, payload: bytes = b"") -> None:
        self._stream.send(wire.frame(kind, payload))

    async def _receive(self, timeout_s: float, *, allowed_s: float | None = None) -> Frame:
        """Receive a frame.

        Args:
            timeout_s: The time that is left, seconds.
            allowed_s: The whole time limit, for the error message. None if it is `timeout_s`.
        """
        try:
            return await self._stream.receive(timeout_s)
        except TimeoutError as exc:
            seconds = timeout_s if allowed_s is None else allowed_s
            raise ContainerError(f"the supervisor did not answer within {seconds:.0f} s") from exc


def _payload_of(frame: Frame, expected: bytes) -> bytes:
    kind, payload = frame
    if kind != expected:
        raise ProtocolError(f"the supervisor sent {kind!r}, expected {expected!r}")
    return payload


def _check_ready(frame: Frame) -> wire.ReadyReport:
    """Raise an error unless the frame is a READY that reports success."""
    report = wire.decode_ready(_payload_of(frame, wire.READY))
    if report.error == errno.EBADMSG:
        raise DamagedCode(f"the code in CODE_CACHE_DIR is damaged: it ended after {report.files} files")
    if report.error:
        raise ContainerError(
            f"the code could not be copied into the container: {os.strerror(report.error)} "
            f"after {report.files} files, {report.bytes} bytes (see CODE_MAX_UNPACKED_MB, CODE_MAX_ENTRIES)"
        )
    return report
