"""Runs use up each resource, in each language: they end as the contract says, the next run has everything.

The attacks are steps of tests/support/programs/attacks.py that a child process repeats until they fail.
test_endings.py has the attacks that need more than system calls.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.common.units import MIB
from nanoagent.model.result import ErrorType, Isolation
from support.programs.attacks import Attack, outcome_of
from support.sandboxes.adversarial import LEVELS, as_seen, yard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nanoagent.model.job import Runtime
    from support.sandboxes.adversarial import Function, Yard

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLACES = ("/tmp", "/output", "/work", "/input", "/dev/shm")
LOOK = (
    *("names /proc", *(f"list {place}" for place in PLACES), *(f"space {place}" for place in PLACES)),
    *(
        "names /dev/mqueue",
        "names /dev/pts",
        *(f"read /proc/sysvipc/{what}" for what in ("shm", "sem", "msg")),
    ),
)
HERE = -100  # AT_FDCWD
CREATE = 0o102  # O_RDWR | O_CREAT
ANONYMOUS = 0x22  # MAP_PRIVATE | MAP_ANONYMOUS
RESERVE_NOTHING = 0x4022  # and MAP_NORESERVE
READ_WRITE = 3
SET_PIPE_SIZE = 1031  # fcntl.h: F_SETPIPE_SZ
KILLED = frozenset({"SIGKILL"})
TRIED_AT = LEVELS


@dataclass(frozen=True, slots=True)
class Exhaustion:
    """Something that is used up.

    Attributes:
        steps: How.
        outcomes: What the process that does it may come to.
        ends: How the run may end.
        shared: The same outside a sandbox, where that has less of it; there the run ends well.
        memory_mb: The run's.
        timeout_ms: What it gets.
    """

    steps: str
    outcomes: frozenset[str]
    ends: frozenset[ErrorType | None] = frozenset({None})
    shared: frozenset[str] = frozenset()
    memory_mb: int = 128
    timeout_ms: int = 60_000

    def outcomes_at(self, level: Isolation) -> frozenset[str]:
        return self.shared if self.shared and level is not Isolation.SANDBOX else self.outcomes

    def ends_at(self, level: Isolation) -> frozenset[ErrorType | None]:
        return frozenset({None}) if self.shared and level is not Isolation.SANDBOX else self.ends


def opened(path: str, flags: int = CREATE) -> str:
    return f"call openat {HERE} @{path} {flags} {0o644}"


def fills(start: str, step: int = 1) -> str:
    """Steps that write to what is opened first for as long as that goes."""
    return f"{start} ; loop ; call write ${step} *{MIB} {MIB}"


# --- what a process can have too much of, with no harm to its run: all of it in one

TOO_MANY_FILES = frozenset({"EMFILE"})
TOO_LARGE = frozenset({"SIGXFSZ", "EFBIG"})
OF_A_PROCESS = {
    "open files": Exhaustion(f"loop ; {opened('/tmp/x')}", TOO_MANY_FILES),
    "pipes": Exhaustion("loop ; call pipe2 *8 0", TOO_MANY_FILES),
    "sockets": Exhaustion("loop ; call socket 2 1 0", TOO_MANY_FILES),
    "socket pairs": Exhaustion("loop ; call socketpair 1 1 0 *8", TOO_MANY_FILES),
    "epoll": Exhaustion("loop ; call epoll_create1 0", TOO_MANY_FILES),
    "inotify": Exhaustion("loop ; call inotify_init1 0", TOO_MANY_FILES),
    "eventfd": Exhaustion("loop ; call eventfd2 0 0", TOO_MANY_FILES),
    "timerfd": Exhaustion("loop ; call timerfd_create 1 0", TOO_MANY_FILES),
    "memfd": Exhaustion("loop ; call memfd_create @x 0", TOO_MANY_FILES),
    "files without a name": Exhaustion(
        f"loop ; call openat {HERE} @/tmp {0o20200002} {0o600}", TOO_MANY_FILES
    ),
    "terminals": Exhaustion(f"loop ; {opened('/dev/ptmx', 0o402)}", TOO_MANY_FILES | {"ENOSPC"}),
    # A user has 64 MB of them (pipe(7), pipe-user-pages-soft), and is one container.
    "buffers of pipes": Exhaustion(
        f"loop ; call mknodat {HERE} @/tmp/p {0o010600} 0 ; {opened('/tmp/p', 2)} ; "
        f"call unlinkat {HERE} @/tmp/p 0 ; call fcntl $3 {SET_PIPE_SIZE} {MIB} ; call write $3 *{MIB} {MIB}",
        frozenset({"EPERM"}),
    ),
    "queues": Exhaustion(
        f"loop ; call mq_open @x {CREATE} {0o600} 0", TOO_MANY_FILES, shared=frozenset({"EPERM"})
    ),
    "addresses": Exhaustion(
        f"loop ; call mmap 0 {1 << 40} 0 {RESERVE_NOTHING} -1 0", frozenset({"ENOMEM", "SIGKILL"})
    ),
    "locked memory": Exhaustion(
        f"call mmap 0 {MIB} {READ_WRITE} {ANONYMOUS} -1 0 ; call mlock $1 {MIB}",
        frozenset({"ENOMEM", "EPERM"}),
    ),
    "timers": Exhaustion(" ; ".join(["call timer_create 1 0 *8"] * 5_000), frozenset({"EAGAIN"})),
    "a file beyond the limit": Exhaustion(f"{opened('/tmp/huge')} ; call ftruncate $1 {1 << 40}", TOO_LARGE),
    "a file in memory beyond the limit": Exhaustion(
        f"call memfd_create @x 0 ; call ftruncate $1 {1 << 40}", TOO_LARGE
    ),
    "sparse files": Exhaustion(
        " ; ".join(
            f"call openat {HERE} @{place}/sparse {CREATE} {0o644} ; call ftruncate ${step} {500 * MIB}"
            for step, place in zip(range(1, 10, 2), PLACES, strict=True)
        ),
        frozenset({"done"}),
    ),
}

# --- what ends the run

OUT_OF_MEMORY = frozenset[ErrorType | None]({ErrorType.OUT_OF_MEMORY})
DISK_LIMIT = frozenset[ErrorType | None]({ErrorType.DISK_LIMIT})
TIMEOUT = frozenset[ErrorType | None]({ErrorType.TIMEOUT})
NO_ROOM = frozenset({"ENOSPC"})
NOT_SHARED = frozenset({"EPERM"})
OF_A_RUN = {
    **{
        f"{place} by bytes": Exhaustion(fills(opened(f"{place}/full")), NO_ROOM, DISK_LIMIT)
        for place in PLACES
        if place != "/dev/shm"  # bounded by memory alone, below
    },
    # As deep as it goes: there is no counting of names here, and each needs one all the same.
    **{
        f"{place} by names": Exhaustion(
            f"call chdir @{place} ; loop ; call mkdirat {HERE} @d 511 ; call chdir @d", NO_ROOM, DISK_LIMIT
        )
        for place in PLACES
    },
    "/dev/mqueue by bytes": Exhaustion(
        fills(opened("/dev/mqueue/x")), frozenset({"EINVAL"}), shared=frozenset({"EMFILE"})
    ),
    "/dev/mqueue by names": Exhaustion(
        f"call chdir @/dev/mqueue ; loop ; call mkdirat {HERE} @d 511", frozenset({"EPERM"})
    ),
    "memory by mmap": Exhaustion(
        f"{opened('/dev/zero', 0)} ; loop ; call mmap 0 {8 * MIB} {READ_WRITE} {ANONYMOUS} -1 0 ; "
        f"call read $1 $3 {8 * MIB}",
        KILLED,
        OUT_OF_MEMORY,
    ),
    "memory by memfd": Exhaustion(fills("call memfd_create @x 0"), KILLED, OUT_OF_MEMORY),
    "memory by /tmp": Exhaustion(fills(opened("/tmp/x")), KILLED, OUT_OF_MEMORY, memory_mb=32),
    "memory by /dev/shm": Exhaustion(fills(opened("/dev/shm/x")), KILLED, OUT_OF_MEMORY, memory_mb=32),
    "memory by System V": Exhaustion(
        f"{opened('/dev/zero', 0)} ; loop ; call shmget 0 {8 * MIB} {0o1600} ; call shmat $3 0 0 ; "
        f"call read $1 $4 {8 * MIB}",
        KILLED,
        OUT_OF_MEMORY,
        shared=NOT_SHARED,
    ),
    "segments": Exhaustion(f"loop ; call shmget 0 4096 {0o1600}", NO_ROOM, shared=NOT_SHARED),
    "semaphores": Exhaustion(
        f"loop ; call semget 0 250 {0o1600}", KILLED | NO_ROOM, OUT_OF_MEMORY | {None}, shared=NOT_SHARED
    ),
    "message queues": Exhaustion(
        f"loop ; call msgget 0 {0o1600}", KILLED | NO_ROOM, OUT_OF_MEMORY | {None}, shared=NOT_SHARED
    ),
    "the processor": Exhaustion("loop ; call getpid", KILLED, TIMEOUT, timeout_ms=400),
    "time": Exhaustion("call eventfd2 0 0 ; call read $1 *8 8", KILLED, TIMEOUT, timeout_ms=400),
    "both streams": Exhaustion(
        # Time enough for an interpreter to start beside other tests, and to write something.
        "loop ; call write 1 *65536 65536 ; call write 2 *65536 65536",
        KILLED,
        TIMEOUT,
        timeout_ms=4_000,
    ),
}


@dataclass(frozen=True, slots=True)
class Place:
    """An adversary and what it sees in a container that has served nothing else."""

    containers: Yard
    level: Isolation
    adversary: Function
    clean: dict[str, str]

    async def check_the_next_run(self) -> None:
        seen, _ = await self.containers.ask(self.adversary, look=LOOK)
        assert as_seen(seen) == self.clean


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(where: tuple[Runtime, Isolation, bytes | None]) -> AsyncIterator[Place]:
    runtime, level, program = where
    async with AsyncExitStack() as held:
        # One is kept ready: most of these runs are their container's last.
        containers = await held.enter_async_context(yard(level, (runtime,), ready=1))
        adversary = containers.adversary(runtime, program)
        seen, _ = await containers.ask(adversary, look=LOOK)
        yield Place(containers, level, adversary, as_seen(seen))


async def test_a_process_that_reaches_a_limit_gets_an_error(
    place: Place, record_property: Callable[[str, object], None]
):
    steps = {name: Attack(tried.steps).encoded() for name, tried in OF_A_PROCESS.items()}
    said = json.dumps({"try": list(steps.values())})
    ran = await place.containers.run(place.adversary, said, capture_bytes=4 * len(said))
    record_property("tried", ["attacks", len(steps)])
    assert ran.execution.error_type is None, (ran.execution.message, ran.stderr)
    answers = json.loads(ran.stdout)
    outcomes = {name: outcome_of(answers[step]) for name, step in steps.items()}
    assert not {
        name: outcome
        for name, outcome in outcomes.items()
        if outcome not in OF_A_PROCESS[name].outcomes_at(place.level)
    }
    await place.check_the_next_run()


@pytest.mark.rotating_levels("what", two_languages=True)
@pytest.mark.parametrize("what", OF_A_RUN)
async def test_a_run_that_uses_up_a_resource_ends_and_the_next_run_has_all_of_it(
    place: Place, what: str, record_property: Callable[[str, object], None]
):
    tried = OF_A_RUN[what]
    step = Attack(tried.steps).encoded()
    ran = await place.containers.run(
        place.adversary, json.dumps({"try": [step]}), timeout_ms=tried.timeout_ms, memory_mb=tried.memory_mb
    )
    record_property("tried", ["attacks", 1])
    assert ran.execution.error_type in tried.ends_at(place.level), (ran.execution.message, ran.stderr)
    if what == "both streams":
        assert ran.execution.collected.stdout.truncated_bytes > 0
        assert ran.execution.collected.stderr.truncated_bytes > 0
    elif ran.stdout:  # the program may have been killed with what it tried
        assert outcome_of(json.loads(ran.stdout)[step]) in tried.outcomes_at(place.level)
    else:
        assert ran.execution.error_type in {ErrorType.OUT_OF_MEMORY, ErrorType.TIMEOUT}
    await place.check_the_next_run()
