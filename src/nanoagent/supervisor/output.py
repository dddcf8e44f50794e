"""Receives the output of one run from its supervisor: two output streams, and the files in /output."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB
from nanoagent.model.errors import ContainerError, ProtocolError
from nanoagent.model.result import Refusal
from nanoagent.model.text import Text
from nanoagent.supervisor import gap, wire

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.supervisor.stream import FrameStream
    from nanoagent.supervisor.wire import ExitReport, Frame, RunRequest

_MAX_NAMED_REFUSALS: Final = 100  # the result names these files, and counts the others
_MAX_REFUSALS: Final = 1_000_000  # the highest value of MAX_INODES, so a run cannot leave more files
_FRAME_TIMEOUT_S: Final = 60.0  # for one frame
# The time limit for the whole output has two parts. The base is for the files: 7 ms for each, with the
# default of MAX_INODES. The rest is for the bytes: 60 times the measured 1 ms per MB, because CPU shares
# can be small.
_BASE_TIMEOUT_S: Final = 120.0
_MIN_BYTES_PER_S: Final = 16 * MIB
_MAX_SHOWN_PATH_BYTES: Final = 1024
_OUTPUT_LOST: Final = Text(
    "not all output was read, because the container died or was too slow",
    "컨테이너가 종료되었거나 너무 느려서 출력을 모두 읽지 못했습니다",
)
_MORE_REFUSED: Final = Text(
    "{count} more files were not uploaded", "그 밖에 파일 {count}개가 업로드되지 않았습니다"
)


@dataclass(frozen=True, slots=True)
class Captured:
    """The captured text of stdout or stderr. Invalid UTF-8 is replaced by U+FFFD.

    Attributes:
        head: The beginning of the stream; the whole stream if no bytes are missing.
        truncated_bytes: The number of missing bytes between head and tail.
        tail: The end of the stream; empty if no bytes are missing.
    """

    head: str = ""
    truncated_bytes: int = 0
    tail: str = ""

    @property
    def text(self) -> str:
        """The text in English. A line replaces missing bytes."""
        return str(self.in_every_language())

    def in_every_language(self) -> Text:
        """Return the text. A line in the reader's language replaces missing bytes."""
        if not self.truncated_bytes:
            return Text.verbatim(self.head)
        return gap.joined(self.head, self.truncated_bytes, self.tail)


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file from /output.

    Attributes:
        path: Its path below /output, as the program named it. Bytes that are not UTF-8 are surrogates.
        staged: The local file with its content. The worker chose its name.
        size: Its size, bytes.
    """

    path: str
    staged: Path
    size: int


@dataclass(slots=True)
class Collected:
    """The output of a run.

    Attributes:
        stdout: The standard output.
        stderr: The standard error.
        files: The files from /output.
        refused: The files that are not uploaded, each with the reason. If there are very many, the last entry
            has the number of the others.
        clean: Whether no later run can reach anything of this run, so that the container may be used again.
    """

    stdout: Captured = field(default_factory=Captured)
    stderr: Captured = field(default_factory=Captured)
    files: list[OutputFile] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    clean: bool = False


class OutputCollector:
    """Receives the output of one run, and enforces the run's limits on it.

    Args:
        stream: The stream of frames from the supervisor.
        request: The request of the run, for its limits.
        staging: The folder for the files. It is created for the first file. The names in it are numbers.
    """

    def __init__(self, stream: FrameStream, request: RunRequest, staging: Path) -> None:
        self._stream = stream
        self._request = request
        self._staging = staging
        self._collected = Collected()
        self._streams = {wire.STDOUT: bytearray(), wire.STDERR: bytearray()}
        self._files_bytes = 0
        self._refusals = 0
        self._deadline = 0.0  # loop's time

    async def collect(self, report: ExitReport) -> Collected:
        """Receive all frames up to DONE. If the container dies or is too slow, return the output so far.

        Args:
            report: The report of the run's end.

        Raises:
            ProtocolError: The supervisor broke the protocol, or a limit of the run.
        """
        max_bytes = 2 * self._request.capture_bytes + self._request.output_max_total_bytes
        limit_s = _BASE_TIMEOUT_S + max_bytes / _MIN_BYTES_PER_S
        self._deadline = asyncio.get_running_loop().time() + limit_s
        collected = self._collected
        try:
            while (frame := await self._receive())[0] != wire.DONE:
                await self._take(frame)
            collected.clean = frame[1] == b"\1"
        except ProtocolError:
            raise
        except ContainerError:
            # The report of the run is already here. Return it even without the rest of the output.
            collected.refused.append(Refusal("", _OUTPUT_LOST))
        if self._refusals > _MAX_NAMED_REFUSALS:
            count = self._refusals - _MAX_NAMED_REFUSALS
            collected.refused.append(Refusal("", _MORE_REFUSED.format(count=count)))
        capacity = self._request.capture_bytes
        collected.stdout = captured(bytes(self._streams[wire.STDOUT]), report.stdout_total, capacity)
        collected.stderr = captured(bytes(self._streams[wire.STDERR]), report.stderr_total, capacity)
        return collected

    async def _receive(self) -> Frame:
        left_s = self._deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise ContainerError("the supervisor was too slow with the run's output")
        try:
            return await self._stream.receive(min(left_s, _FRAME_TIMEOUT_S))
        except TimeoutError as exc:
            raise ContainerError("the supervisor was silent, or too slow with the run's output") from exc

    async def _take(self, frame: Frame) -> None:
        kind, payload = frame
        if kind in self._streams:
            self._take_output(kind, payload)
        elif kind == wire.FILE:
            await self._take_file(payload)
        elif kind == wire.REFUSED:
            self._take_refusal(payload)
        else:
            raise ProtocolError(f"the supervisor sent {kind!r} among a run's outputs")

    def _take_output(self, kind: bytes, payload: bytes) -> None:
        stream = self._streams[kind]
        # Refuse empty frames, too, because their number would have no limit.
        if not 0 < len(payload) <= self._request.capture_bytes - len(stream):
            raise ProtocolError("the supervisor sent more output than was requested, or an empty frame")
        stream += payload

    async def _take_file(self, payload: bytes) -> None:
        size, path = wire.decode_file(payload)
        files = self._collected.files
        if (
            len(files) >= self._request.output_max_files
            or size > self._request.output_max_file_bytes
            or self._files_bytes + size > self._request.output_max_total_bytes
        ):
            raise ProtocolError("the supervisor sent more or larger files than were requested")
        if not files:
            self._staging.mkdir(mode=0o700, exist_ok=True)
        staged = self._staging / str(len(files))
        await self._write(staged, size)
        files.append(OutputFile(path.decode(errors="surrogateescape"), staged, size))
        self._files_bytes += size

    async def _write(self, staged: Path, size: int) -> None:
        """Write the DATA frames of a file.

        This blocks the event loop for some microseconds per 64 KiB. A thread would take about 100 µs.
        """
        left = size
        with staged.open("xb") as file:
            while left:
                kind, data = await self._receive()
                if kind != wire.DATA or len(data) > left or not data:
                    raise ProtocolError("the supervisor sent incomplete or wrong data of a file")
                file.write(data)
                left -= len(data)

    def _take_refusal(self, payload: bytes) -> None:
        self._refusals += 1
        if self._refusals > _MAX_REFUSALS:
            raise ProtocolError(f"the supervisor refused more than {_MAX_REFUSALS} files")
        if self._refusals <= _MAX_NAMED_REFUSALS:
            reason, path = wire.decode_refused(payload)
            shown = path[:_MAX_SHOWN_PATH_BYTES].decode(errors="replace")
            self._collected.refused.append(Refusal(shown, reason))


def captured(kept: bytes, total: int, capacity: int) -> Captured:
    """Decode the captured bytes of a stream. Characters that the gap has split are left out.

    Args:
        kept: The head, followed by the tail.
        total: The length of the whole stream, bytes.
        capacity: The largest number of bytes that can be kept. The head has half of them, rounded up.
    """
    missing = total - len(kept)
    if missing <= 0:
        return Captured(kept.decode(errors="replace"))
    head_bytes = capacity - capacity // 2
    head, split_before = gap.decode_head(kept[:head_bytes])
    tail, split_behind = gap.decode_tail(kept[head_bytes:])
    return Captured(head, missing + split_before + split_behind, tail)
