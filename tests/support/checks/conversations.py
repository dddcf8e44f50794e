"""The oracle for the session with a supervisor, for tests and fuzzing.

`conversation_of` makes the supervisor's messages from any bytes, as `raw_archives` makes archives.
"""

from __future__ import annotations

import asyncio
import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final, cast

from nanoagent.container import execution
from nanoagent.container.pool import AcquiredContainer
from nanoagent.model import result as results
from nanoagent.model.errors import ContainerError
from nanoagent.model.result import Result, Start
from nanoagent.supervisor import wire
from support.checks.raw_archives import Choices
from support.doubles import fake_supervisor as says
from support.sandboxes.containers import LIMITS, request_for

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.container.base import RunningContainer
    from nanoagent.container.execution import Execution
    from nanoagent.supervisor.session import Session

SPEC = SimpleNamespace(limits=LIMITS)
REQUEST: Final = request_for(
    b"{}",
    capture_bytes=10,
    output_max_files=3,
    output_max_file_bytes=100,
    output_max_total_bytes=150,
    prepare_next=False,
)
LONGEST_ERROR: Final = 300
_SURE_NUMBER: Final = 1 << 53  # every JSON reader keeps integers below this exactly
_HEADER_BYTES: Final = 5
_DEADLINE_S: Final = 20.0  # only a hang takes this long

_NUMBERS: Final = (
    0,
    1,
    2,
    9,
    11,
    100,
    101,
    150,
    255,
    256,
    4095,
    4096,
    65_535,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
)
_BIG_NUMBERS: Final = (*_NUMBERS, 1 << 32, 1 << 53, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_PATHS: Final = (
    b"a",
    b"a/b",
    b"../x",
    b"/etc/passwd",
    b"\xff\xfe",
    b"\n",
    b"\0",
    b"",
    b"x" * 3000,
    "한".encode(),
)
_SIZES: Final = (0, 1, 49, 50, 51, 99, 100, 101, 150, 151)  # around the limits of REQUEST
_STATUSES: Final = (0, 256, 9, 11 | 0x80, 0x7F, 0x137F, 0xFFFF, 1 << 16, 64, 127 << 8)


def conversation_of(data: bytes) -> list[bytes]:
    """Return the supervisor's messages for these bytes, in the pieces in which they arrive."""
    choices = Choices(data)
    parts = [says.hello() if choices.byte() >= 4 else says.hello(choices.of(_NUMBERS))]
    parts.append(says.ready() if choices.byte() >= 4 else _ready(choices))
    parts.append(_exited(choices))
    if choices.byte() < 64:  # only honest files, possibly too many or too large together
        parts += [says.file(b"f", b"x" * choices.of(_SIZES)) for _ in range(choices.byte() % 6)]
    else:
        parts += [_output(choices) for _ in range(choices.byte() % 12)]
    parts.append(says.done() if choices.byte() >= 64 else wire.frame(wire.DONE, choices.text(3)))
    if choices.byte() < 32:
        at = choices.byte() % len(parts)
        parts[at], parts[-1] = parts[-1], parts[at]
    stream = b"".join(parts)
    if (cut := choices.lie(range(256))) is not None:
        stream = stream[: len(stream) * cut // 256]
    return _in_pieces(choices, stream)


def _in_pieces(choices: Choices, stream: bytes) -> list[bytes]:
    pieces, at = [], 0
    while at < len(stream):
        length = 1 + choices.byte() % 64 if choices.byte() < 128 else len(stream)
        pieces.append(stream[at : at + length])
        at += length
    return pieces


def _ready(choices: Choices) -> bytes:
    return says.ready(choices.of(_NUMBERS), choices.of(_NUMBERS), choices.of(_BIG_NUMBERS))


def _exited(choices: Choices) -> bytes:
    if choices.byte() >= 48:
        flags = 0 if choices.byte() >= 64 else choices.byte() % 64
        return says.exited(
            choices.lie(_STATUSES) or 0, wire.ExitFlag(flags), stdout_total=choices.lie(_NUMBERS) or 0
        )
    numbers = [choices.lie(_BIG_NUMBERS) or 0 for _ in range(5)] + [
        choices.lie(_NUMBERS) or 0 for _ in range(4)
    ]
    fixed = struct.pack("<IIQQQQQIIII", choices.of(_STATUSES), choices.of(_NUMBERS), *numbers)
    return wire.frame(wire.EXIT, fixed + (b"x" if choices.byte() < 8 else b""))


def _output(choices: Choices) -> bytes:
    kind = choices.byte() % 8
    if kind < 2:
        return wire.frame((wire.STDOUT, wire.STDERR)[kind], choices.text(12))
    if kind == 2:
        return says.refused(choices.of(_PATHS), choices.byte() % 10)
    if kind < 5:
        content = choices.text(12) if choices.byte() < 128 else b"x" * choices.of(_SIZES)
        return says.file(choices.of(_PATHS), content, announced=choices.lie(_BIG_NUMBERS))
    if kind == 5:
        return wire.frame(bytes([choices.byte()]), choices.text(20))
    if kind == 6 and choices.byte() < 64:
        return struct.pack("<Ic", choices.of(_NUMBERS), bytes([choices.byte()])) + choices.text(20)
    return wire.frame(wire.STDERR, b"x")


def tried(pieces: list[bytes], staging: Path) -> Execution | ContainerError:
    """Let a supervisor send these pieces and close the connection; return how the run ends.

    Raises:
        AssertionError: The session accepted more than the limits allow, or misread the messages.
    """
    return asyncio.run(converse(pieces, staging))


async def converse(pieces: list[bytes], staging: Path) -> Execution | ContainerError:
    """Do the work of `tried`, within a loop."""
    writer = says.Writer()
    session = says.talk(b"", hangs_up=False, writer=writer)
    for piece in pieces:
        writer.protocol.data_received(piece)
        if not writer.reads:
            break
    most = 2 * wire.MAX_FRAME_BYTES + max(map(len, pieces), default=0)
    assert session._stream._frames.held_bytes <= most, "held more than it may"
    writer.protocol.connection_lost(None)
    acquired = AcquiredContainer(
        cast(
            "RunningContainer",
            SimpleNamespace(session=session, group=None, spec=SPEC),
        ),
        Start.WARM,
        reuse=True,
    )
    async with asyncio.timeout(_DEADLINE_S):
        ended = await _end_of(session, acquired, staging)
    if isinstance(ended, ContainerError):
        assert not acquired.clean, "used again after an error"
        assert str(ended).isprintable(), f"not one printable line: {ended}"
        assert len(str(ended)) <= LONGEST_ERROR
        return ended
    _check_ended(ended, staging)
    if acquired.clean:
        _check_clean(b"".join(pieces), ended)
    return ended


async def _end_of(session: Session, acquired: AcquiredContainer, staging: Path) -> Execution | ContainerError:
    try:
        await session.greet()
        await session.prepare()
        return await execution.execute(acquired, REQUEST, staging)
    except ContainerError as exc:
        return exc


def _check_ended(ended: Execution, staging: Path) -> None:
    """Check that an ended run stays within its limits and fits a result."""
    collected = ended.collected
    assert max(collected.stdout.truncated_bytes, collected.stderr.truncated_bytes) <= _SURE_NUMBER
    assert ended.wall_ms <= _SURE_NUMBER
    for captured in (collected.stdout, collected.stderr):
        gap = f"\n… {captured.truncated_bytes} bytes cut …\n"
        shown = captured.text.replace(gap, "") if captured.truncated_bytes else captured.text
        assert len(shown) <= REQUEST.capture_bytes
    sizes = [file.size for file in collected.files]
    assert len(sizes) <= REQUEST.output_max_files
    assert max(sizes, default=0) <= REQUEST.output_max_file_bytes
    assert sum(sizes) <= REQUEST.output_max_total_bytes
    for number, file in enumerate(collected.files):
        assert file.staged == staging / str(number)
        assert file.staged.stat().st_size == file.size
    there = {path.name for path in staging.iterdir()} if staging.exists() else set()
    assert there <= {str(number) for number in range(len(sizes) + 1)}, "more on the disk than files"
    assert len(collected.refused) <= 102
    result = Result(
        request_id="r",
        function_id="f",
        runtime="python",
        status=results.status_of(ended.error_type),
        exit_code=ended.exit_code,
        stdout=collected.stdout.text,
        stderr=collected.stderr.text,
        stdout_truncated_bytes=collected.stdout.truncated_bytes,
        stderr_truncated_bytes=collected.stderr.truncated_bytes,
        duration_ms=round(ended.wall_ms),
        output_errors=[refusal.in_("en") for refusal in collected.refused],
        error_type=ended.error_type,
        error_message=None if ended.message is None else str(ended.message),
    )
    assert results.decode(results.encode(result)) == result
    assert 0 <= ended.exit_code <= 255 or ended.exit_code == -1


def _check_clean(stream: bytes, ended: Execution) -> None:
    """Check that the container may be used again: all messages were honest, and no limit was hit."""
    frames = frames_of(stream)
    kinds = [kind for kind, _ in frames]
    done = kinds.index(wire.DONE)
    assert frames[done][1] == b"\1"
    assert kinds[:3] == [wire.HELLO, wire.READY, wire.EXIT]
    outputs = {wire.STDOUT, wire.STDERR, wire.FILE, wire.DATA, wire.REFUSED}
    assert outputs.issuperset(kinds[3:done])
    assert kinds.count(wire.FILE) >= len(ended.collected.files)
    given = b"".join(payload for kind, payload in frames[3:done] if kind == wire.DATA)
    assert given == b"".join(file.staged.read_bytes() for file in ended.collected.files)


def frames_of(stream: bytes) -> list[tuple[bytes, bytes]]:
    """Return the whole frames of a stream, by a reader independent of `wire.Frames`."""
    frames, at = [], 0
    while at + _HEADER_BYTES <= len(stream):
        end = at + _HEADER_BYTES + int.from_bytes(stream[at : at + 4], "little")
        if end > len(stream):
            break
        frames.append((stream[at + 4 : at + 5], stream[at + _HEADER_BYTES : end]))
        at = end
    return frames
