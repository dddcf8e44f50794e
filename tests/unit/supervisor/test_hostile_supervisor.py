"""A supervisor that has been taken over, at the other end of a real socket: the run ends, and costs little.

What single wrong frames come to is in test_session.py; this is about floods, drips and silence.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from nanoagent.common.units import MIB
from nanoagent.container import execution
from nanoagent.container.execution import Execution
from nanoagent.container.pool import AcquiredContainer
from nanoagent.model.errors import ContainerError, PlatformError
from nanoagent.model.result import ErrorType, Start
from nanoagent.supervisor import output, wire
from nanoagent.supervisor import session as session_module
from nanoagent.supervisor.session import Session
from support.doubles import fake_supervisor as says
from support.sandboxes.containers import LIMITS, request_for

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.container.base import RunningContainer

SPEC = SimpleNamespace(limits=LIMITS)
WAIT_S: Final = 30.0  # a hang is a failure; nothing is measured by it
SHORT_S: Final = 0.3
DRIP_S: Final = 0.005
REQUEST: Final = request_for(
    b"{}",
    timeout_ms=100,
    grace_ms=50,
    capture_bytes=64 * 1024,
    output_max_files=100,
    output_max_file_bytes=MIB,
    output_max_total_bytes=4 * MIB,
)
# Frames on their way and output as far as it was asked for, each a few times over; spooled files are on disk.
MOST_HELD_BYTES: Final = 8 * wire.MAX_FRAME_BYTES + 8 * REQUEST.capture_bytes + MIB

Pieces = Iterator[bytes]


def forever(data: bytes) -> Pieces:
    while True:
        yield data


def byte_by_byte(data: bytes) -> Pieces:
    return (data[at : at + 1] for at in range(len(data)))


def then(*parts: bytes | Pieces) -> Pieces:
    for part in parts:
        yield from [part] if isinstance(part, bytes) else part


EXIT: Final = says.exited()
PRINTED_TOO_MUCH: Final = wire.frame(
    wire.EXIT, struct.pack("<IIQQQQQIIII", 0, 0, 1000, 0, 0, 2**64 - 1, 0, 0, 0, 0, 0)
)
FLOOD: Final = 64 * 1024 // 8
DATA_OF_1: Final = wire.frame(wire.DATA, b"x")
LARGE_FILE: Final = says.file(b"f", b"", announced=MIB)


def drip_of_longest() -> Pieces:
    return then(struct.pack("<Ic", wire.MAX_FRAME_BYTES, b"X"), forever(b"x"))


@dataclass(frozen=True)
class Attack:
    """What the other end does once a run was asked for, and what must come of it.

    Attributes:
        ending: An exception, or what the run's own ending is.
        drips: It takes its time with each piece.
        is_outwaited: It ends when our patience does.
        hangs_up: At its end; else it stays, and says nothing more.
    """

    name: str
    says: Callable[[], Pieces]
    ending: type[PlatformError] | ErrorType | None
    drips: bool = False
    is_outwaited: bool = False
    hangs_up: bool = False


ATTACKS: Final = [
    # Before the run's end.
    Attack("is silent", then, ErrorType.TIMEOUT, is_outwaited=True),
    Attack(
        "drips an end that never is whole",
        lambda: byte_by_byte(EXIT[:-1]),
        ErrorType.TIMEOUT,
        drips=True,
        is_outwaited=True,
    ),
    Attack("drips zeros: a frame of no length and type", lambda: forever(b"\0"), ContainerError, drips=True),
    Attack(
        "drips a frame as long as may be", drip_of_longest, ErrorType.TIMEOUT, drips=True, is_outwaited=True
    ),
    Attack("floods with ends of length 0", lambda: forever(wire.frame(wire.EXIT) * FLOOD), ContainerError),
    Attack("floods with 0xff", lambda: forever(b"\xff" * 65536), ContainerError),
    Attack("floods with zeros", lambda: forever(bytes(65536)), ContainerError),
    Attack("floods with READY", lambda: forever(says.ready() * FLOOD), ContainerError),
    Attack(
        "announces 4 GiB and sends them",
        lambda: then(b"\xff\xff\xff\xffX", forever(bytes(65536))),
        ContainerError,
    ),
    Attack(
        "announces the longest frame and sends half",
        lambda: then(struct.pack("<Ic", wire.MAX_FRAME_BYTES, b"X"), bytes(wire.MAX_FRAME_BYTES // 2)),
        ErrorType.TIMEOUT,
        is_outwaited=True,
    ),
    Attack("sends output first", lambda: then(wire.frame(wire.STDOUT, b"x"), EXIT), ContainerError),
    Attack("hangs up", then, ContainerError, hangs_up=True),
    Attack("hangs up within the end", lambda: then(EXIT[:-1]), ContainerError, hangs_up=True),
    Attack("has run for ever", lambda: then(says.exited(wall_us=2**53), says.done()), ContainerError),
    Attack(
        "has run for longer than it could",
        lambda: then(says.exited(wall_us=10**9), says.done()),
        ContainerError,
    ),
    Attack(
        "has printed 2^64 bytes",
        lambda: then(PRINTED_TOO_MUCH, says.done()),
        ContainerError,
    ),
    # After it: the ending is known, and stands.
    Attack("says nothing more", lambda: then(EXIT), None, is_outwaited=True),
    Attack("drips nothing whole", lambda: then(EXIT, forever(b"\x01")), ContainerError, drips=True),
    Attack(
        "drips a frame that never is whole",
        lambda: then(EXIT, byte_by_byte(LARGE_FILE[:-1])),
        None,
        drips=True,
        is_outwaited=True,
    ),
    Attack(
        "drips output a byte a frame",
        lambda: then(EXIT, forever(wire.frame(wire.STDOUT, b"x"))),
        None,
        drips=True,
        is_outwaited=True,
    ),
    Attack(
        "drips a file a byte a frame",
        lambda: then(EXIT, LARGE_FILE, forever(DATA_OF_1)),
        None,
        drips=True,
        is_outwaited=True,
    ),
    Attack(
        "drips refusals", lambda: then(EXIT, forever(says.refused(b"x"))), None, drips=True, is_outwaited=True
    ),
    Attack("floods with refusals", lambda: then(EXIT, forever(says.refused(b"x") * FLOOD)), ContainerError),
    Attack(
        "floods with long refusals",
        lambda: then(EXIT, forever(says.refused(b"x" * 100_000))),
        ContainerError,
    ),
    Attack(
        "floods with output", lambda: then(EXIT, forever(wire.frame(wire.STDOUT, b"x" * 999))), ContainerError
    ),
    Attack(
        "floods with output of no length",
        lambda: then(EXIT, forever(wire.frame(wire.STDERR))),
        ContainerError,
    ),
    Attack(
        "floods with files of no length", lambda: then(EXIT, forever(says.file(b"f", b""))), ContainerError
    ),
    Attack("floods with files", lambda: then(EXIT, forever(says.file(b"f", b"x" * 60_000))), ContainerError),
    Attack(
        "announces a file of 2^64 bytes",
        lambda: then(EXIT, says.file(b"f", b"", announced=2**64 - 1)),
        ContainerError,
    ),
    Attack(
        "sends more of a file than was announced",
        lambda: then(EXIT, LARGE_FILE, forever(wire.frame(wire.DATA, b"x" * 65_000))),
        ContainerError,
    ),
    Attack(
        "sends a file's end without its middle", lambda: then(EXIT, LARGE_FILE, says.done()), ContainerError
    ),
    Attack("ends twice", lambda: then(EXIT, EXIT), ContainerError),
    Attack("greets again", lambda: then(EXIT, says.hello()), ContainerError),
    Attack("hangs up among outputs", lambda: then(EXIT, LARGE_FILE), None, hangs_up=True),
    # And as it should be, so that the rest means something.
    Attack("is honest", lambda: then(EXIT, says.done()), None),
    Attack("is honest, a byte at a time", lambda: then(byte_by_byte(EXIT + says.done())), None),
]


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Session, socket.socket]]:
    """A session, and the socket that is its supervisor's."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs:
        session = Session(*await asyncio.open_connection(sock=ours))
        try:
            yield session, theirs
        finally:
            await session.close()


async def play(attack: Attack, theirs: socket.socket) -> None:
    """Say it all, until the other end has hung up."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        for piece in attack.says():
            await loop.sock_sendall(theirs, piece)
            await asyncio.sleep(DRIP_S if attack.drips else 0)
        if attack.hangs_up:
            theirs.shutdown(socket.SHUT_RDWR)


async def run_against(attack: Attack, staging: Path) -> tuple[Execution | ContainerError, bool]:
    """How a run ends, and whether its container would be used again."""
    async with connected() as (session, theirs), asyncio.timeout(WAIT_S):
        container = cast(
            "RunningContainer",
            SimpleNamespace(session=session, group=None, spec=SPEC),
        )
        acquired = AcquiredContainer(container, Start.WARM, reuse=True)
        enemy = asyncio.create_task(play(attack, theirs))
        try:
            return await execution.execute(acquired, REQUEST, staging), acquired.clean
        except ContainerError as exc:
            return exc, acquired.clean
        finally:
            if not enemy.cancel():
                enemy.result()


def have_patience(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Wait as long as is good for a test."""
    for name in ("_EXIT_MARGIN_S", "_STEP_TIMEOUT_S", "_PREPARE_TIMEOUT_S"):
        monkeypatch.setattr(session_module, name, seconds)
    for name in ("_BASE_TIMEOUT_S", "_FRAME_TIMEOUT_S"):
        monkeypatch.setattr(output, name, seconds)
    monkeypatch.setattr(output, "_MIN_BYTES_PER_S", 1 << 40)
    monkeypatch.setattr(output, "_MAX_REFUSALS", 2000)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    have_patience(monkeypatch, SHORT_S)


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
async def test_whatever_a_supervisor_does_the_run_ends_by_the_table_and_uses_little_memory(
    attack: Attack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, Any], None],
) -> None:
    have_patience(monkeypatch, SHORT_S if attack.is_outwaited else WAIT_S / 3)
    tracemalloc.start()
    try:
        ended, is_clean = await run_against(attack, tmp_path / "staging")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    if isinstance(attack.ending, type):
        assert isinstance(ended, attack.ending)
        assert str(ended).isprintable()
        assert len(str(ended)) < 300
    else:
        assert isinstance(ended, Execution), ended
        assert ended.error_type is attack.ending
    assert is_clean == attack.name.startswith("is honest")
    assert peak < MOST_HELD_BYTES
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert on_disk <= REQUEST.output_max_total_bytes
    record_property("tried", ["replies", 1])


CONVERSATION: Final = (
    EXIT
    + wire.frame(wire.STDOUT, b"hi")
    + says.file(b"a/b", b"content")
    + says.refused(b"link")
    + says.done()
)


async def test_a_supervisor_may_hang_up_after_any_byte(
    tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    endings: Counter[str] = Counter()
    for said in range(len(CONVERSATION) + 1):
        attack = Attack("", partial(then, CONVERSATION[:said]), None, hangs_up=True)
        ended, is_clean = await run_against(attack, tmp_path / str(said))
        endings[type(ended).__name__] += 1
        assert isinstance(ended, Execution) == (said >= len(EXIT))
        assert is_clean == (said == len(CONVERSATION))
    record_property("tried", ["replies", endings.total()])


@pytest.mark.usefixtures("impatient")
async def test_a_supervisor_that_takes_no_request_is_given_up(tmp_path: Path) -> None:
    request = request_for(b"x" * 8 * MIB)
    async with connected() as (session, _), asyncio.timeout(WAIT_S):
        with pytest.raises(ContainerError, match="took no request"):
            await session.start(request)


async def test_only_a_little_data_of_an_idle_supervisor_is_accepted(
    record_property: Callable[[str, Any], None],
) -> None:
    """The rest stays in the socket, whose buffer is the kernel's to bound: in the end the sender is stuck."""
    async with connected() as (session, theirs), asyncio.timeout(WAIT_S):
        sent = 0
        stuck = 0
        while stuck < 100:  # turns of the loop in which nothing more was taken
            try:
                sent += theirs.send(bytes(65536))
                stuck = 0
            except BlockingIOError:
                stuck += 1
            await asyncio.sleep(0)
        assert sent < 16 * MIB
        assert session._stream._frames.held_bytes <= 4 * wire.MAX_FRAME_BYTES
        assert session.is_usable
    record_property("tried", ["replies", 1])


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("step", ["greet", "configure", "prepare"])
@pytest.mark.parametrize("said", [b"", b"\0", wire.frame(wire.LEVEL, b"\2" + b"x" * 9)[:-1]], ids=len)
async def test_no_step_waits_long_for_a_supervisor_that_sends_slowly(step: str, said: bytes) -> None:
    steps: dict[str, Callable[[Session], Any]] = {
        "greet": Session.greet,
        "configure": lambda session: session.configure(
            wire.Configuration(highest_level=2, file_size_bytes=1, open_files=1, work_bytes=1, work_files=1)
        ),
        "prepare": Session.prepare,
    }
    attack = Attack("", lambda: byte_by_byte(said), None, drips=True)
    async with connected() as (session, theirs), asyncio.timeout(WAIT_S):
        enemy = asyncio.create_task(play(attack, theirs))
        with pytest.raises(ContainerError, match="did not answer"):
            await steps[step](session)
        enemy.cancel()


async def test_a_reason_for_a_lower_level_is_one_short_line() -> None:
    level, reason = wire.decode_level(b"\1" + b"\x1b[2J\n\xff" * 10_000)
    assert level == wire.LEVEL_SHARED
    assert reason.isprintable()
    assert len(reason) < 5000
