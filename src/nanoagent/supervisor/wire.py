"""The frames between agent and supervisor, host's end. The other end is src/nanosupervisor/wire.h.

A frame is: u32 length of the payload, u8 type, payload; little-endian. Everything that is read here came
out of a container and is hostile: lengths are checked before they are believed.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Final, TypeAlias

from nanoagent.model.errors import ProtocolError, one_line
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nanoagent.network.listening_sockets import ListeningAddress

PROTOCOL_VERSION: Final = 4

CONFIGURE: Final = b"C"
PREPARE: Final = b"P"
RUN: Final = b"R"
KILL: Final = b"K"
HELLO: Final = b"H"
LEVEL: Final = b"L"
READY: Final = b"Y"
EXIT: Final = b"X"
STDOUT: Final = b"O"
STDERR: Final = b"E"
FILE: Final = b"F"
DATA: Final = b"D"
REFUSED: Final = b"N"
DONE: Final = b"Z"

MAX_FRAME_BYTES: Final = 128 * 1024  # the supervisor sends chunks of 64 KiB
_MAX_ERRNO: Final = 4095  # the kernel's own bound, include/linux/err.h
_MAX_NUMBER: Final = 1 << 53  # of times and sizes: 9 PB and 285 years; what JSON's readers can be sure of
_MAX_REASON_BYTES: Final = 500
_HEADER: Final = struct.Struct("<Ic")
_VERSION: Final = struct.Struct("<I")
_CONFIGURATION: Final = struct.Struct("<BQIQQB")
_READY: Final = struct.Struct("<IIQ")
_EXIT: Final = struct.Struct("<IIQQQQQIIII")
_FILE: Final = struct.Struct("<Q")
_RUN: Final = struct.Struct("<IIIQIIQQIIIB")

LEVEL_SHARED: Final = 1
LEVEL_SANDBOX: Final = 2

REFUSALS: Final = {
    1: Text("is a link; only regular files are uploaded", "링크입니다. 일반 파일만 업로드됩니다"),
    2: Text(
        "is a device, pipe or socket; only regular files are uploaded",
        "장치, 파이프 또는 소켓입니다. 일반 파일만 업로드됩니다",
    ),
    3: Text("is over the number of files (OUTPUT_MAX_FILES)", "파일 수 한도를 넘습니다 (OUTPUT_MAX_FILES)"),
    4: Text(
        "is larger than a file may be (OUTPUT_MAX_FILE_MB)", "파일 크기 한도를 넘습니다 (OUTPUT_MAX_FILE_MB)"
    ),
    5: Text(
        "does not fit: all files together are too large (OUTPUT_MAX_TOTAL_MB)",
        "들어가지 않습니다. 모든 파일의 합계가 한도를 넘습니다 (OUTPUT_MAX_TOTAL_MB)",
    ),
    6: Text(
        "is in a folder that is too deep, or its path is too long",
        "폴더가 너무 깊거나 경로가 너무 깁니다",
    ),
    7: Text("could not be read", "읽을 수 없습니다"),
}


class ExitFlag(IntFlag):
    """What ended the program, or was found when it had ended."""

    TIMED_OUT = 1
    KILLED = 2
    DISK_FULL = 4
    FILE_LIMIT = 8
    NOT_STARTED = 16
    ORPHANED = 32
    SOCKETS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What a supervisor is told once, before anything else.

    Attributes:
        highest_level: Not to be exceeded: `LEVEL_SHARED` or `LEVEL_SANDBOX`.
        file_size_bytes: RLIMIT_FSIZE that runs will most likely have.
        open_files: RLIMIT_NOFILE likewise.
        work_bytes: How much a run in a sandbox may write to its working directory.
        work_files: How many files it may make there.
        listening_addresses: The addresses in a run's network at which the agent may listen.
        modules: Python modules that its interpreter imports ahead.
    """

    highest_level: int
    file_size_bytes: int
    open_files: int
    work_bytes: int
    work_files: int
    listening_addresses: Sequence[ListeningAddress] = ()
    modules: Sequence[str] = ()

    def encode(self) -> bytes:
        """The payload of a CONFIGURE frame."""
        fixed = _CONFIGURATION.pack(
            self.highest_level,
            self.file_size_bytes,
            self.open_files,
            self.work_bytes,
            self.work_files,
            len(self.listening_addresses),
        )
        return (
            fixed
            + b"".join(address.encode() for address in self.listening_addresses)
            + encode_names(self.modules)
        )


def encode_names(names: Sequence[str]) -> bytes:
    """NUL-terminated, as in CONFIGURE and PREPARE."""
    return b"".join(name.encode() + b"\0" for name in names)


@dataclass(frozen=True, slots=True)
class ReadyReport:
    """The workspace is prepared, or `error` (an errno) says why not."""

    error: int
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ExitReport:
    """What the supervisor saw of the program's end; times in microseconds, totals in bytes.

    Attributes:
        wait_status: As from waitpid(2).
        left_over: Processes that outlived the program and were killed.
        exec_error: The errno when the program could not be started.
    """

    wait_status: int
    flags: ExitFlag
    wall_us: int
    user_us: int
    system_us: int
    stdout_total: int
    stderr_total: int
    stdout_kept: int
    stderr_kept: int
    left_over: int
    exec_error: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What the supervisor needs for one run.

    Attributes:
        arguments: The program and its arguments.
        environment: All of it; nothing is inherited.
        payload: For standard input and $PAYLOAD_FILE.
        timeout_ms: Wall time of the program.
        grace_ms: From SIGTERM to SIGKILL.
        capture_bytes: Kept of each of stdout and stderr, half head and half tail.
        file_size_bytes: RLIMIT_FSIZE.
        open_files: RLIMIT_NOFILE.
        output_max_files: Files sent from /output, and so on.
        prepare_next: Whether another run of the same code will follow.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    payload: bytes
    timeout_ms: int
    grace_ms: int
    capture_bytes: int
    file_size_bytes: int
    open_files: int
    output_max_files: int
    output_max_file_bytes: int
    output_max_total_bytes: int
    prepare_next: bool

    def encode(self) -> bytes:
        """The payload of a RUN frame."""
        strings = [*self.arguments, *(f"{name}={value}" for name, value in self.environment.items()), ""]
        return b"".join(
            (
                _RUN.pack(
                    self.timeout_ms,
                    self.grace_ms,
                    self.capture_bytes,
                    self.file_size_bytes,
                    self.open_files,
                    self.output_max_files,
                    self.output_max_file_bytes,
                    self.output_max_total_bytes,
                    len(self.arguments),
                    len(self.environment),
                    len(self.payload),
                    self.prepare_next,
                ),
                "\0".join(strings).encode(errors="surrogateescape"),
                self.payload,
            )
        )


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return _HEADER.pack(len(payload), kind) + payload


Frame: TypeAlias = "tuple[bytes, bytes]"
"""Type and payload."""


class Frames:
    """Takes apart what was read, in pieces of any size: several frames often arrive at once."""

    def __init__(self) -> None:
        self._pending = bytearray()

    @property
    def held_bytes(self) -> int:
        """How much was read and not taken."""
        return len(self._pending)

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        self._pending += data

    def take(self) -> Frame | None:
        """The next frame's type and payload; None while it is not complete.

        Raises:
            ProtocolError: It claims to be longer than any honest frame.
        """
        if len(self._pending) < _HEADER.size:
            return None
        length, kind = _HEADER.unpack_from(self._pending)
        if length > MAX_FRAME_BYTES:
            raise ProtocolError(f"the supervisor announced a frame of {length} bytes")
        end = _HEADER.size + length
        if len(self._pending) < end:
            return None
        payload = bytes(self._pending[_HEADER.size : end])
        del self._pending[:end]
        return kind, payload


def _unpack(layout: struct.Struct, payload: bytes, what: str) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise ProtocolError(f"the supervisor sent {len(payload)} bytes as {what}")
    return layout.unpack(payload)


def _check_errno(number: int) -> None:
    """`os.strerror` takes no number that is no C int."""
    if number > _MAX_ERRNO:
        raise ProtocolError(f"the supervisor reported error {number}, which there is not")


def decode_version(payload: bytes) -> int:
    """The payload of HELLO."""
    return _unpack(_VERSION, payload, "HELLO")[0]


def decode_level(payload: bytes) -> tuple[int, str]:
    """The payload of LEVEL: the level, and why it is not a higher one."""
    if not payload or payload[0] not in {LEVEL_SHARED, LEVEL_SANDBOX}:
        raise ProtocolError("the supervisor reported no level of isolation")
    return payload[0], one_line(payload[1 : 1 + _MAX_REASON_BYTES].decode(errors="replace"))


def decode_ready(payload: bytes) -> ReadyReport:
    """The payload of READY."""
    error, files, size = _unpack(_READY, payload, "READY")
    _check_errno(error)
    return ReadyReport(error, files, size)


def decode_exit(payload: bytes) -> ExitReport:
    """The payload of EXIT."""
    wait_status, flags, *rest = _unpack(_EXIT, payload, "EXIT")
    if not (os.WIFEXITED(wait_status & 0xFFFF) or os.WIFSIGNALED(wait_status & 0xFFFF)):
        raise ProtocolError(f"the supervisor reported wait status {wait_status}, which is no end")
    _check_errno(rest[-1])
    if max(rest) > _MAX_NUMBER:
        raise ProtocolError(f"the supervisor reported the number {max(rest)}, which is no time and no size")
    return ExitReport(wait_status, ExitFlag(flags & 127), *rest)


def decode_file(payload: bytes) -> tuple[int, bytes]:
    """The payload of FILE: size and path."""
    if len(payload) <= _FILE.size:
        raise ProtocolError("the supervisor announced a file without a name")
    return _FILE.unpack_from(payload)[0], payload[_FILE.size :]


def decode_refused(payload: bytes) -> tuple[Text, bytes]:
    """The payload of REFUSED: the reason and the path, which is empty for the whole of /output."""
    if not payload or payload[0] not in REFUSALS:
        raise ProtocolError("the supervisor refused a file without a reason")
    return REFUSALS[payload[0]], payload[1:]
