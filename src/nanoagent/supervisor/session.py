"""The host's end of the conversation with one container's supervisor.

States: connected → ``prepare`` → ready → ``start`` → running → ``wait_exit`` → ended → ``collect`` → wiped
→ ready again. One run at a time. A session that raised is of no more use: close it and its container.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB
from nanoagent.model.errors import ContainerError, ProtocolError
from nanoagent.model.result import Refusal
from nanoagent.model.text import Text
from nanoagent.supervisor import gap, wire
from nanoagent.supervisor.stream import FrameStream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nanoagent.supervisor.wire import Frame

_MAX_REFUSALS: Final = 100  # named one by one in a result; more are summed up in one line
_MAX_REFUSED_FRAMES: Final = 1_000_000  # MAX_INODES is no more: a stream of them must end
_STEP_TIMEOUT_S: Final = 60.0  # for one frame outside a run: a supervisor that is stuck is given up
_PREPARE_TIMEOUT_S: Final = 120.0  # for copying the largest code under the smallest CPU share
# Over the deadline and its grace: the supervisor's own clock is then not believed any more. Generous,
# because a small CPU share slows the supervisor too.
_OVERTIME_S: Final = 15.0
# For all of a run's output together, into however many frames it is cut: 7 ms for each of MAX_INODES files,
# and for their bytes sixty times what was measured (1 ms per MB), because CPU shares can be small.
_COLLECT_TIMEOUT_S: Final = 120.0
_LEAST_BYTES_PER_S: Final = 16 * MIB
_MAX_PATH_BYTES: Final = 1024
_OUTPUT_LOST: Final = Text(
    "the container died before all output was read", "모든 출력을 읽기 전에 컨테이너가 종료되었습니다"
)
_MORE_REFUSED: Final = Text(
    "{count} more files were not uploaded", "그 밖에 파일 {count}개가 업로드되지 않았습니다"
)


class Overdue(ContainerError):  # noqa: N818 - a state of the run; the executor turns it into TIMEOUT
    """The supervisor did not end the run in time by itself; its container must be killed."""


@dataclass(frozen=True, slots=True)
class Captured:
    """One of the two output streams; invalid UTF-8 is replaced.

    Attributes:
        head: Its beginning, or all of it.
        truncated_bytes: How many bytes are missing between head and tail.
        tail: Its end, when bytes are missing.
    """

    head: str = ""
    truncated_bytes: int = 0
    tail: str = ""

    @property
    def text(self) -> str:
        """The stream with a line about the gap, in English, when there is one."""
        return str(self.in_every_language())

    def in_every_language(self) -> Text:
        """The stream with a line about the gap when there is one."""
        if not self.truncated_bytes:
            return Text.verbatim(self.head)
        return gap.joined(self.head, self.truncated_bytes, self.tail)


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file from /output, spooled under a name of our own choosing.

    Attributes:
        path: Its path below /output, as the program named it; bytes that are no UTF-8 are surrogates.
        spooled: Where its bytes lie.
        size: In bytes.
    """

    path: str
    spooled: Path
    size: int


@dataclass(slots=True)
class Collected:
    """What a run left behind, and whether its container may be used again."""

    stdout: Captured = field(default_factory=Captured)
    stderr: Captured = field(default_factory=Captured)
    files: list[OutputFile] = field(default_factory=list)
    files_bytes: int = 0
    refused: list[Refusal] = field(default_factory=list)
    refusals: int = 0
    clean: bool = False

    def note_refusal(self, payload: bytes) -> None:
        """Keep the first refusals one by one, and count them all."""
        self.refusals += 1
        if self.refusals > _MAX_REFUSED_FRAMES:
            raise ProtocolError("the supervisor refused more files than there can be")
        if self.refusals <= _MAX_REFUSALS:
            reason, path = wire.decode_refused(payload)
            self.refused.append(Refusal(_shown(path), reason))


def exit_code_of(wait_status: int) -> int:
    """The contract's exit code: the program's own, or 128 + the signal that killed it."""
    code = os.waitstatus_to_exitcode(wait_status & 0xFFFF)
    return code if code >= 0 else 128 - code


def signal_of(wait_status: int) -> signal.Signals | None:
    """The signal that killed the program, if one did."""
    if not os.WIFSIGNALED(wait_status & 0xFFFF):
        return None
    try:
        return signal.Signals(os.WTERMSIG(wait_status & 0xFFFF))
    except ValueError:  # a real-time signal has no name of its own
        return signal.SIGRTMIN


class Session:
    """The connection to one supervisor.

    Args:
        writer: Of a Unix stream that was accepted this very moment, so that nothing has been read from it;
            its transport is taken over.
    """

    def __init__(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._stream = FrameStream()
        self._writer = writer  # kept: in Python 3.13 a writer that nobody has any more closes its transport
        writer.transport.set_protocol(self._stream)
        self._stream.connection_made(writer.transport)
        self._ready_by: float | None = None  # loop's time; None while no READY is due
        self._failure: ContainerError | None = None  # of the preparation of the next run
        self._output_by = 0.0  # loop's time; the present run's output has to be there

    @property
    def connected(self) -> bool:
        """Whether the supervisor has not hung up, and could prepare the next run if it was asked to."""
        self._notice_ready()
        late = self._ready_by is not None and asyncio.get_running_loop().time() > self._ready_by
        return self._stream.is_open and self._failure is None and not late

    async def greet(self) -> None:
        """Wait for the supervisor's first frame.

        Raises:
            ContainerError: It does not come, or speaks another version of the protocol.
        """
        payload = await self._expect(wire.HELLO, _STEP_TIMEOUT_S)
        version = wire.decode_version(payload)
        if version != wire.PROTOCOL_VERSION:
            raise ContainerError(
                f"the image's supervisor speaks protocol {version}, this agent {wire.PROTOCOL_VERSION}: "
                "build the images anew (make images)"
            )

    async def configure(self, configuration: wire.Configuration) -> tuple[int, str]:
        """Tell it what to be, and wait until it is ready for code.

        Returns:
            The level of isolation that it can have there, and why it is not a higher one.

        Raises:
            ContainerError: It cannot be what it was told to be.
        """
        self._send(wire.CONFIGURE, configuration.encode())
        level, reason = wire.decode_level(await self._expect(wire.LEVEL, _STEP_TIMEOUT_S))
        self._expect_ready()
        await self.ready()
        return level, reason

    async def prepare(self, modules: Sequence[str] = (), *, limits_changed: bool = False) -> None:
        """Have the code taken over from the slot folder, and wait until a run could start.

        Args:
            modules: What the interpreter that waits should have imported besides, if it can.
            limits_changed: Whether one that looked at the container's limits when it started must start anew.
        """
        await self.ready()  # of the run before, for another function
        self._send(wire.PREPARE, bytes([limits_changed]) + wire.encode_names(modules))
        self._expect_ready()
        await self.ready()

    async def ready(self) -> None:
        """Wait until the workspace of the next run is prepared.

        Raises:
            ContainerError: It could not be.
        """
        self._notice_ready()
        if self._failure is not None:
            raise self._failure
        if self._ready_by is not None:
            left_s = max(0.0, self._ready_by - asyncio.get_running_loop().time())
            payload = await self._expect(wire.READY, left_s, allowed_s=_PREPARE_TIMEOUT_S)
            self._ready_by = None
            _check_ready(payload)

    def _expect_ready(self) -> None:
        self._ready_by = asyncio.get_running_loop().time() + _PREPARE_TIMEOUT_S

    def _notice_ready(self) -> None:
        """Take the READY that is due, if it has come; what is wrong with it is raised by `ready`."""
        if self._ready_by is None or self._failure is not None:
            return
        try:
            frame = self._stream.take()
            if frame is not None:
                _check_ready(_payload_of(frame, wire.READY))
                self._ready_by = None
        except ContainerError as exc:
            self._failure = exc

    async def start(self, request: wire.RunRequest) -> None:
        """Ask for the run; the program is about to start when this returns."""
        self._send(wire.RUN, request.encode())
        try:
            await self._stream.sent(_STEP_TIMEOUT_S)
        except TimeoutError as exc:
            raise ContainerError(f"the supervisor took no request within {_STEP_TIMEOUT_S:.0f} s") from exc

    async def wait_exit(self, request: wire.RunRequest) -> wire.ExitReport:
        """Wait for the program's end.

        Raises:
            Overdue: It did not end although its time, the grace and a margin are over.
            Gone: The container died under it.
        """
        limit_s = (request.timeout_ms + request.grace_ms) / 1000 + _OVERTIME_S
        try:
            kind, payload = await self._stream.receive(limit_s)
        except TimeoutError as exc:
            raise Overdue(f"the supervisor did not end the run within {limit_s:.0f} s") from exc
        if kind != wire.EXIT:
            raise ProtocolError(f"the supervisor sent {kind!r} where a run's end was due")
        report = wire.decode_exit(payload)
        if report.wall_us > limit_s * 1_000_000:
            raise ProtocolError(f"the supervisor reported {report.wall_us} µs of a run with {limit_s:.0f} s")
        return report

    async def collect(self, request: wire.RunRequest, report: wire.ExitReport, spool: Path) -> Collected:
        """Take what the run printed and left in /output; return when the container is wiped, or has died.

        Args:
            request: The run's own, for its limits.
            report: The run's end.
            spool: A folder for the files, made for the first; their names in it are numbers.
        """
        collected = Collected()
        most_bytes = 2 * request.capture_bytes + request.output_max_total_bytes
        limit_s = _COLLECT_TIMEOUT_S + most_bytes / _LEAST_BYTES_PER_S
        self._output_by = asyncio.get_running_loop().time() + limit_s
        streams = {wire.STDOUT: bytearray(), wire.STDERR: bytearray()}
        try:
            while (frame := await self._receive_soon())[0] != wire.DONE:
                await self._collect_frame(request, frame, collected, streams, spool)
            collected.clean = frame[1] == b"\1"
        except ProtocolError:
            raise
        except ContainerError:
            # How the run ended is known already; that must not be lost with the rest of its output.
            collected.refused.append(Refusal("", _OUTPUT_LOST))
        if collected.refusals > _MAX_REFUSALS:
            more = _MORE_REFUSED.format(count=collected.refusals - _MAX_REFUSALS)
            collected.refused.append(Refusal("", more))
        collected.stdout = captured(bytes(streams[wire.STDOUT]), report.stdout_total, request.capture_bytes)
        collected.stderr = captured(bytes(streams[wire.STDERR]), report.stderr_total, request.capture_bytes)
        if collected.clean and request.prepare_next:
            self._expect_ready()
        return collected

    async def _collect_frame(
        self,
        request: wire.RunRequest,
        frame: Frame,
        collected: Collected,
        streams: dict[bytes, bytearray],
        spool: Path,
    ) -> None:
        kind, payload = frame
        if kind in streams:
            # Nothing is no honest output either, and there could be no end of it.
            if not 0 < len(payload) <= request.capture_bytes - len(streams[kind]):
                raise ProtocolError("the supervisor sent more output than was asked for, or none")
            streams[kind] += payload
        elif kind == wire.FILE:
            await self._take_file(request, collected, payload, spool)
        elif kind == wire.REFUSED:
            collected.note_refusal(payload)
        else:
            raise ProtocolError(f"the supervisor sent {kind!r} among a run's outputs")

    def kill(self) -> None:
        """End the present run now; `wait_exit` then returns a report that says so."""
        self._send(wire.KILL)

    async def close(self) -> None:
        """Hang up, which ends the container. Idempotent."""
        await self._stream.close()

    async def _take_file(
        self, request: wire.RunRequest, collected: Collected, payload: bytes, spool: Path
    ) -> None:
        size, path = wire.decode_file(payload)
        if (
            len(collected.files) >= request.output_max_files
            or size > request.output_max_file_bytes
            or collected.files_bytes + size > request.output_max_total_bytes
        ):
            raise ProtocolError("the supervisor sent more files than was asked for")
        spooled = _spooled(spool, len(collected.files))
        left = size
        # Written in the loop: 64 KiB to the page cache take microseconds, a thread's round trip a hundred.
        with spooled.open("xb") as file:
            while left:
                kind, data = await self._receive_soon()
                if kind != wire.DATA or len(data) > left or not data:
                    raise ProtocolError("the supervisor broke off within a file")
                file.write(data)
                left -= len(data)
        collected.files.append(OutputFile(path.decode(errors="surrogateescape"), spooled, size))
        collected.files_bytes += size

    def _send(self, kind: bytes, payload: bytes = b"") -> None:
        self._stream.send(wire.frame(kind, payload))

    async def _expect(self, expected: bytes, timeout_s: float, *, allowed_s: float | None = None) -> bytes:
        """The payload of the frame that is due; `allowed_s` is what it had in all, for the message."""
        try:
            frame = await self._stream.receive(timeout_s)
        except TimeoutError as exc:
            seconds = timeout_s if allowed_s is None else allowed_s
            raise ContainerError(f"the supervisor did not answer within {seconds:.0f} s") from exc
        return _payload_of(frame, expected)

    async def _receive_soon(self) -> Frame:
        """The next frame of a run's output; each may be slow, but not all together."""
        left_s = self._output_by - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise ContainerError("the supervisor was too slow with the run's output")
        try:
            return await self._stream.receive(min(left_s, _STEP_TIMEOUT_S))
        except TimeoutError as exc:
            raise ContainerError("the supervisor was silent, or too slow with the run's output") from exc


def _payload_of(frame: Frame, expected: bytes) -> bytes:
    kind, payload = frame
    if kind != expected:
        raise ProtocolError(f"the supervisor sent {kind!r} where {expected!r} was due")
    return payload


def _check_ready(payload: bytes) -> None:
    """Raise what a READY says went wrong."""
    report = wire.decode_ready(payload)
    if report.error:
        raise ContainerError(
            f"the code could not be copied into the container: {os.strerror(report.error)} "
            f"after {report.files} files, {report.bytes} bytes (see CODE_MAX_UNPACKED_MB, CODE_MAX_ENTRIES)"
        )


def _spooled(spool: Path, number: int) -> Path:
    """Where a run's file goes; its folder is made for the first."""
    if number == 0:
        spool.mkdir(mode=0o700, exist_ok=True)
    return spool / str(number)


def captured(kept: bytes, total: int, capacity: int) -> Captured:
    """Text from the head and tail of a stream, without characters that were split at the gap.

    Args:
        kept: The head and, behind it, the tail.
        total: The stream's whole length, bytes.
        capacity: What could be kept; the head's share is the larger half of it.
    """
    missing = total - len(kept)
    if missing <= 0:
        return Captured(kept.decode(errors="replace"))
    head_bytes = capacity - capacity // 2
    head, split_before = gap.decode_head(kept[:head_bytes])
    tail, split_behind = gap.decode_tail(kept[head_bytes:])
    return Captured(head, missing + split_before + split_behind, tail)


def _shown(path: bytes) -> str:
    """A path as the program named it; bytes that are no UTF-8 become U+FFFD."""
    return path[:_MAX_PATH_BYTES].decode(errors="replace")
