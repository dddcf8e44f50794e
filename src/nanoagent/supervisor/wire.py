"""The frames between the worker and a supervisor. src/nanosupervisor/wire.h is the supervisor's side.

A frame is the length of the payload (u32), the type (u8) and the payload. Integers are little-endian. Frames
from a container are hostile input: every length and number is checked before it is used.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Final, TypeAlias

from nanoagent.model.errors import ProtocolError, one_line
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nanoagent.network.listening_sockets import ListeningAddress

PROTOCOL_VERSION: Final = 10

# Frames from the worker to the supervisor.
CONFIGURE: Final = b"C"  # the configuration; sent once
PREPARE: Final = b"P"  # copy the code, and prepare the next run
RUN: Final = b"R"  # start a run
KILL: Final = b"K"  # end the run now
FOLLOW: Final = b"W"  # send the output of the running program from now on, or stop sending it

# Frames from the supervisor to the worker.
HELLO: Final = b"H"  # the version of the protocol
LEVEL: Final = b"L"  # the highest possible isolation level
READY: Final = b"Y"  # a preparation has ended
LIVE: Final = b"V"  # output of the running program, if the worker has asked for it
EXIT: Final = b"X"  # the program has ended
STDOUT: Final = b"O"  # captured standard output: the head, then the tail
STDERR: Final = b"E"  # captured standard error: the head, then the tail
FILE: Final = b"F"  # a file from /output; its content follows as DATA frames
DATA: Final = b"D"  # a part of that content
REFUSED: Final = b"N"  # a file from /output that is not sent
DONE: Final = b"Z"  # the end of the output, and whether the container is clean

MAX_FRAME_BYTES: Final = 128 * 1024  # the supervisor sends chunks of 64 KiB
_MAX_ERRNO: Final = 4095  # MAX_ERRNO in include/linux/err.h
# The largest accepted time or size: 285 years or 9 PB. JSON readers are exact up to this number (RFC 8259).
_MAX_NUMBER: Final = 1 << 53
_MAX_REASON_BYTES: Final = 500
_HEADER: Final = struct.Struct("<Ic")
_VERSION: Final = struct.Struct("<I")
_CONFIGURATION: Final = struct.Struct("<BQIQQB")
_READY: Final = struct.Struct("<IIQB")
_EXIT: Final = struct.Struct("<IIQQQQQIIII")
_FILE: Final = struct.Struct("<Q")
_LIVE: Final = struct.Struct("<cQ")
_RUN: Final = struct.Struct("<IIIQIIQQIIIBBI")

_LIMITS_CHANGED: Final = 1  # a flag of PREPARE
_REUSE: Final = 2  # a flag of PREPARE

LEVEL_SHARED: Final = 1
LEVEL_SANDBOX: Final = 2

REFUSALS: Final = {
    1: Text("is a link; only regular files are uploaded", "링크입니다. 일반 파일만 업로드됩니다"),
    2: Text(
        "is a device, pipe or socket; only regular files are uploaded",
        "장치, 파이프 또는 소켓입니다. 일반 파일만 업로드됩니다",
    ),
    3: Text("exceeds the number of files (OUTPUT_MAX_FILES)", "파일 수 한도를 넘습니다 (OUTPUT_MAX_FILES)"),
    4: Text("is too large (OUTPUT_MAX_FILE_MB)", "파일 크기 한도를 넘습니다 (OUTPUT_MAX_FILE_MB)"),
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
    """Facts about the program's end."""

    TIMED_OUT = 1  # the time limit ended it
    KILLED = 2  # the frame KILL ended it
    DISK_FULL = 4  # a writable directory has no block or no inode left
    FILE_LIMIT = 8  # the program failed, probably because a file has reached `file_size_bytes`
    NOT_STARTED = 16  # exec failed; see `exec_error`
    ORPHANED = 32  # the zygote ended during the run, so the program's exit status is not known
    SOCKETS = 64  # the supervisor ended it, because its sockets used too much kernel memory
    CREATING = 128  # another sandbox existed when the program was started, perhaps not complete
    LISTENING = 256  # when the time of the run was over, one of its TCP sockets was listening
    COMPUTING = 512  # when the time of the run was over, a thread was running or was waiting for a CPU
    WAITING = 1024  # when the time of the run was over, no thread was running or waiting for a CPU


_EXIT_FLAGS: Final = sum(ExitFlag)


class LiveMode(IntEnum):
    """Whether the output of a run is sent while the program runs, in addition to the output at the end."""

    OFF = 0
    LOSSLESS = 1  # all of it: the program waits while the worker does not receive
    LIMITED = 2  # at most `live_bytes_per_s`: the rest is skipped, and the program never waits


class ImportsState(IntEnum):
    """Whether the runs of a container get the packages of their code imported, or the reason if not."""

    OFF = 0  # not requested
    REUSED = 1
    UNAVAILABLE = 2  # the isolation level, the language or the host does not allow it
    NONE = 3  # the code imports no installed package
    SHADOWED = 4  # the code has a file with the name of a module that the interpreter has imported already
    FAILED = 5  # an import has raised an exception
    SLOW = 6  # the imports, or the creation of a sandbox with a fork
    ENDED = 7  # the interpreter has ended: by a signal, by itself, or because it broke the protocol
    PRINTED = 8
    FILES = 9  # an import has written files
    THREADS = 10  # an import has left threads; so for the next ones
    CHILDREN = 11
    DESCRIPTORS = 12
    SIGNALS = 13
    PROCESS = 14  # another working directory, umask or limit
    ENVIRONMENT = 15
    INTERPRETER = 16
    MEMORY = 17  # writable memory that forks share
    OWN_CODE = 18  # a package has imported a module of the author's code

    @property
    def label(self) -> str:
        """The name of the state in metrics and logs."""
        return self.name.lower()

    @property
    def is_refusal(self) -> bool:
        """Whether reuse was requested and is not possible because of the code."""
        return self > ImportsState.UNAVAILABLE


_IMPORTS_STATES: Final = {int(state): state for state in ImportsState}


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The configuration of a supervisor. It is sent once, before all other frames.

    Attributes:
        highest_level: The highest isolation level that is allowed: `LEVEL_SHARED` or `LEVEL_SANDBOX`.
        file_size_bytes: The RLIMIT_FSIZE of pre-created processes. A run that requests another limit (a
            build) gets a new sandbox.
        open_files: The RLIMIT_NOFILE of pre-created processes. As with `file_size_bytes`, a run that requests
            another limit gets a new sandbox.
        work_bytes: The most bytes that a run in a sandbox may write to its working directory.
        work_files: The most files that such a run may create in its working directory.
        listening_addresses: The addresses in a run's network at which the worker may listen.
        modules: Python modules that the zygote imports before the first run.
    """

    highest_level: int
    file_size_bytes: int
    open_files: int
    work_bytes: int
    work_files: int
    listening_addresses: Sequence[ListeningAddress] = ()
    modules: Sequence[str] = ()

    def encode(self) -> bytes:
        """Return the payload of a CONFIGURE frame."""
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
    """Encode names for CONFIGURE and PREPARE, each terminated by NUL."""
    return b"".join(name.encode() + b"\0" for name in names)


def encode_preparation(modules: Sequence[str], *, limits_changed: bool, reuses_imports: bool) -> bytes:
    """Encode the payload of PREPARE.

    Args:
        modules: Python modules that the zygote imports.
        limits_changed: Whether to restart a waiting interpreter that has read the container's limits.
        reuses_imports: Whether the packages of the code are imported once for all runs.
    """
    flags = (_LIMITS_CHANGED if limits_changed else 0) | (_REUSE if reuses_imports else 0)
    return bytes([flags]) + encode_names(modules)


@dataclass(frozen=True, slots=True)
class ReadyReport:
    """The result of a preparation.

    Attributes:
        error: The errno of the failure; 0 if the next run is prepared.
        files: The number of files that were made.
        bytes: The size of these files, bytes.
        imports: Whether runs get packages imported.
    """

    error: int
    files: int
    bytes: int
    imports: ImportsState = ImportsState.OFF


@dataclass(frozen=True, slots=True)
class ExitReport:
    """The supervisor's report of the program's end.

    Attributes:
        wait_status: The wait status, as from waitpid(2).
        flags: Facts about the end.
        wall_us: The wall time of the program, microseconds.
        user_us: Its CPU time in user mode, microseconds.
        system_us: Its CPU time in the kernel, microseconds.
        stdout_total: The length of its standard output, bytes.
        stderr_total: The length of its standard error, bytes.
        stdout_kept: The bytes of the standard output that follow as frames.
        stderr_kept: The bytes of the standard error that follow as frames.
        left_over: The number of processes that outlived the program and were killed. Only `LEVEL_SHARED`
            counts them.
        exec_error: The errno if the program could not be started; else 0.
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
    """The request for one run.

    Attributes:
        arguments: The program and its arguments.
        environment: All environment variables of the program. It inherits none.
        payload: The content of standard input and of $PAYLOAD_FILE.
        timeout_ms: The time limit of the program (wall time).
        grace_ms: The time between SIGTERM and SIGKILL.
        capture_bytes: The most bytes of stdout that are kept: half head, half tail. The same for stderr.
        file_size_bytes: RLIMIT_FSIZE of the program.
        open_files: RLIMIT_NOFILE of the program.
        output_max_files: The most files that are sent from /output.
        output_max_file_bytes: The most bytes of each file from /output.
        output_max_total_bytes: The most bytes of all files from /output together.
        prepare_next: Whether to prepare another run of the same code afterwards.
        live: Whether to send the output while the program runs.
        live_bytes_per_s: The limit of `LiveMode.LIMITED`, also if the output is requested during the run.
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
    live: LiveMode = LiveMode.OFF
    live_bytes_per_s: int = 0

    def encode(self) -> bytes:
        """Return the payload of a RUN frame."""
        strings = [*self.arguments, *[f"{name}={value}" for name, value in self.environment.items()], ""]
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
                    self.live,
                    self.live_bytes_per_s,
                ),
                "\0".join(strings).encode(errors="surrogateescape"),
                self.payload,
            )
        )


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """Return a whole frame with that type and payload."""
    return _HEADER.pack(len(payload), kind) + payload


Frame: TypeAlias = "tuple[bytes, bytes]"
"""The type and the payload of a frame."""


class Frames:
    """Splits received bytes into frames. The bytes may arrive in pieces of any size."""

    def __init__(self) -> None:
        self._pending = bytearray()

    @property
    def held_bytes(self) -> int:
        """The number of bytes that were fed and not taken."""
        return len(self._pending)

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        self._pending += data

    def peek(self) -> Frame | None:
        """Return the next frame, and keep it; None if it is not complete.

        Raises:
            ProtocolError: Its length is over `MAX_FRAME_BYTES`.
        """
        if len(self._pending) < _HEADER.size:
            return None
        length, kind = _HEADER.unpack_from(self._pending)
        if length > MAX_FRAME_BYTES:
            raise ProtocolError(f"the supervisor announced a frame of {length} bytes")
        end = _HEADER.size + length
        if len(self._pending) < end:
            return None
        return kind, bytes(self._pending[_HEADER.size : end])

    def take(self) -> Frame | None:
        """Return the next frame, and remove it; None if it is not complete.

        Raises:
            ProtocolError: Its length is over `MAX_FRAME_BYTES`.
        """
        frame = self.peek()
        if frame is not None:
            del self._pending[: _HEADER.size + len(frame[1])]
        return frame


def _unpack(layout: struct.Struct, payload: bytes, frame_name: str) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise ProtocolError(
            f"the supervisor sent {len(payload)} bytes as {frame_name}, expected {layout.size}"
        )
    return layout.unpack(payload)


def _check_errno(number: int) -> None:
    """Refuse a number that is not an errno; `os.strerror` fails for numbers that are not a C int."""
    if number > _MAX_ERRNO:
        raise ProtocolError(f"the supervisor reported error {number}, which does not exist")


def decode_version(payload: bytes) -> int:
    """Decode the payload of HELLO: the version of the protocol."""
    return _unpack(_VERSION, payload, "HELLO")[0]


def decode_level(payload: bytes) -> tuple[int, str]:
    """Decode the payload of LEVEL: the isolation level, and why it is not a higher one."""
    if not payload or payload[0] not in {LEVEL_SHARED, LEVEL_SANDBOX}:
        raise ProtocolError("the supervisor reported an unknown isolation level")
    return payload[0], one_line(payload[1 : 1 + _MAX_REASON_BYTES].decode(errors="replace"))


def decode_ready(payload: bytes) -> ReadyReport:
    """Decode the payload of READY."""
    error, files, size, imports = _unpack(_READY, payload, "READY")
    _check_errno(error)
    try:
        return ReadyReport(error, files, size, _IMPORTS_STATES[imports])
    except KeyError:
        raise ProtocolError(f"the supervisor reported the unknown state {imports} of imports") from None


def decode_live(payload: bytes) -> tuple[bytes, int, bytes]:
    """Decode the payload of LIVE.

    Returns:
        `STDOUT` or `STDERR`; the number of bytes of the stream before this output; the output.
    """
    if len(payload) <= _LIVE.size:
        raise ProtocolError("the supervisor sent no output")
    stream, position = _LIVE.unpack_from(payload)
    if stream not in {STDOUT, STDERR} or position > _MAX_NUMBER:
        raise ProtocolError("the supervisor sent output of an unknown stream, or with an invalid position")
    return stream, position, payload[_LIVE.size :]


def decode_exit(payload: bytes) -> ExitReport:
    """Decode the payload of EXIT."""
    wait_status, flags, *rest = _unpack(_EXIT, payload, "EXIT")
    if not (os.WIFEXITED(wait_status & 0xFFFF) or os.WIFSIGNALED(wait_status & 0xFFFF)):
        raise ProtocolError(
            f"the supervisor reported wait status {wait_status}, which is not the end of a process"
        )
    _check_errno(rest[-1])
    if max(rest) > _MAX_NUMBER:
        raise ProtocolError(f"the supervisor reported the number {max(rest)}, expected {_MAX_NUMBER} at most")
    return ExitReport(wait_status, ExitFlag(flags & _EXIT_FLAGS), *rest)


def decode_file(payload: bytes) -> tuple[int, bytes]:
    """Decode the payload of FILE: the size in bytes, and the path below /output."""
    if len(payload) <= _FILE.size:
        raise ProtocolError("the supervisor announced a file without a name")
    return _FILE.unpack_from(payload)[0], payload[_FILE.size :]


def decode_refused(payload: bytes) -> tuple[Text, bytes]:
    """Decode the payload of REFUSED: the reason, and the path, which is empty for all of /output."""
    if not payload or payload[0] not in REFUSALS:
        raise ProtocolError("the supervisor refused a file without a known reason")
    return REFUSALS[payload[0]], payload[1:]
