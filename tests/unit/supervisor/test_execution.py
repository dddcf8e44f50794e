"""One run with a fake supervisor: what becomes of its container, whatever it says."""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.common.units import MIB
from nanoagent.container import execution
from nanoagent.container.cgroup import ControlGroup
from nanoagent.container.pool import AcquiredContainer
from nanoagent.languages.recipes import PROGRAM_PATH
from nanoagent.model.errors import ContainerError, ProtocolError
from nanoagent.model.result import ErrorType, Start
from nanoagent.supervisor import session, stream, wire
from nanoagent.supervisor.wire import ExitFlag
from support.doubles import fake_supervisor as says
from support.doubles.fake_driver import FakeDriver
from support.doubles.fake_supervisor import Script
from support.sandboxes.containers import request_for, spec_for, worker_home

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

ONLY = request_for(b"{}", prepare_next=False)


class Group(ControlGroup):
    """Counters that a run has moved when it is looked at for the second time."""

    def __init__(
        self,
        *,
        kills: int = 0,
        refused: int = 0,
        peak_mb: int = 0,
        gone: bool = False,
        limit_mb: int = 128,
        left_mb: int = 0,
    ) -> None:
        self.limit_bytes, self._left_mb = limit_mb * MIB, left_mb
        self._kills, self._refused, self._peak_mb, self._gone = kills, refused, peak_mb, gone
        self._reads = 0
        self.sampled = asyncio.Event()

    def set_memory_limit(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes

    def memory_limit(self) -> int:
        return self.limit_bytes

    def set_cpus(self, share: float, most: float) -> None:
        raise NotImplementedError

    def usage_bytes(self) -> int:
        self._reads += 1
        if self._reads > 1:
            self.sampled.set()
            return self._left_mb * MIB
        return 0

    def page_cache_bytes(self) -> int:
        return 0

    def peak_bytes(self) -> int:
        if self._gone and self._reads:
            raise OSError(errno.ENODEV, "gone")
        return self._peak_mb * MIB if self._reads else 0

    def reset_peak(self) -> bool:
        return True

    def oom_kills(self) -> int:
        return self._kills if self._reads else 0

    def processes(self) -> list[int]:
        raise NotImplementedError

    def task_count(self) -> int:
        raise NotImplementedError

    def refused_processes(self) -> int:
        return self._refused if self._reads else 0


@asynccontextmanager
async def acquired_container(
    said: bytes, group: ControlGroup | None = None
) -> AsyncIterator[AcquiredContainer]:
    driver = FakeDriver(script=Script(on_run=said), group=group)
    with worker_home() as home:
        directory = home.new_work_directory("one")
        container = await driver.create(spec_for(home, directory), directory)
        yield AcquiredContainer(container, Start.HOT, reuse=True)
        await driver.close()
        await directory.remove()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    async def run(
        said: bytes, group: ControlGroup | None = None, **changes: Any
    ) -> tuple[execution.Execution, bool]:
        """The end of a run of which the supervisor said that, and whether its container may serve again."""
        async with acquired_container(said, group) as acquired:
            ran = await execution.execute(acquired, request_for(b"{}", **changes), tmp_path)
            return ran, acquired.clean

    return run


async def test_a_run_that_goes_well_leaves_its_container_to_the_next(run):
    ran, clean = await run(says.exited(wall_us=2500) + says.done(), Group(peak_mb=7))
    assert (ran.error_type, ran.message, ran.exit_code, ran.wall_ms) == (None, None, 0, 2.5)
    assert ran.use.peak_bytes == 7 * MIB
    assert clean


async def test_without_a_control_group_nothing_is_known_of_memory(run):
    ran, clean = await run(says.exited() + says.done())
    assert ran.use is None
    assert clean


@pytest.mark.parametrize(
    ("exited", "group", "error_type"),
    [
        (says.exited(1 << 8), Group(), ErrorType.USER_ERROR),
        (says.exited(11), Group(), ErrorType.SIGNAL),
    ],
)
async def test_a_program_s_own_failure_does_not_cost_the_container(run, exited, group, error_type):
    ran, clean = await run(exited + says.done(), group)
    assert ran.error_type is error_type
    assert clean


@pytest.mark.parametrize(
    ("exited", "counters", "error_type"),
    [
        (says.exited(9, ExitFlag.TIMED_OUT), {}, ErrorType.TIMEOUT),
        (says.exited(9, ExitFlag.KILLED), {}, ErrorType.CANCELLED),
        (says.exited(0, ExitFlag.DISK_FULL), {}, ErrorType.DISK_LIMIT),
        (says.exited(1 << 8, ExitFlag.FILE_LIMIT), {}, ErrorType.DISK_LIMIT),
        (says.exited(0), {"kills": 1}, ErrorType.OUT_OF_MEMORY),
        (says.exited(0), {"refused": 1}, ErrorType.PROCESS_LIMIT),
    ],
)
async def test_a_limit_that_was_hit_costs_the_container(run, exited, counters, error_type):
    ran, clean = await run(exited + says.done(), Group(**counters))
    assert ran.error_type is error_type
    assert not clean


async def test_a_container_that_could_not_be_wiped_is_not_used_again(run):
    ran, clean = await run(says.exited() + says.done(clean=False))
    assert ran.error_type is None
    assert not clean


async def test_a_program_that_cannot_be_started_is_our_fault(run):
    with pytest.raises(ContainerError, match="/usr/bin/python3 could not be started: No such file"):
        await run(says.exited(flags=ExitFlag.NOT_STARTED, exec_error=errno.ENOENT) + says.done())


@pytest.mark.parametrize("number", [errno.ENOEXEC, errno.ENOENT, errno.EACCES])
async def test_a_built_program_that_cannot_be_started_is_the_users_fault(run, number):
    said = says.exited(flags=ExitFlag.NOT_STARTED, exec_error=number) + says.done()
    ran, clean = await run(said, arguments=(PROGRAM_PATH,))
    assert (ran.error_type, ran.exit_code) == (ErrorType.BUILD_FAILED, -1)
    assert not clean


async def test_a_built_program_that_lacked_memory_to_start_is_our_fault(run):
    said = says.exited(flags=ExitFlag.NOT_STARTED, exec_error=errno.ENOMEM) + says.done()
    with pytest.raises(ContainerError, match="Cannot allocate memory"):
        await run(said, arguments=(PROGRAM_PATH,))


async def test_a_container_full_of_the_runs_files_gets_room_to_send_them_and_is_not_used_again(run):
    group = Group(limit_mb=128, left_mb=127, peak_mb=127)
    ran, clean = await run(says.exited() + says.file(b"f", b"x") + says.done(), group)
    assert ran.error_type is None
    assert len(ran.collected.files) == 1
    assert group.limit_bytes > 128 * MIB
    assert not clean


async def test_a_container_that_died_before_the_run_is_our_fault(run):
    group = Group(gone=True)
    group._reads = 1
    with pytest.raises(ContainerError, match="died before the run"):
        await run(b"", group)


async def test_a_supervisor_that_breaks_the_protocol_is_our_fault(run):
    with pytest.raises(ProtocolError):
        await run(says.done())


async def test_a_program_that_will_not_be_ended_has_timed_out(run, monkeypatch):
    monkeypatch.setattr(session, "_EXIT_MARGIN_S", 0)
    ran, clean = await run(b"", Group(peak_mb=3), timeout_ms=1, grace_ms=1, prepare_next=False)
    assert (ran.error_type, ran.exit_code) == (ErrorType.TIMEOUT, 137)
    assert ran.use.peak_bytes == 3 * MIB
    assert not clean


async def dies_under(group: ControlGroup | None, tmp_path: Path) -> execution.Execution:
    async with acquired_container(b"", group) as acquired:
        running = asyncio.create_task(execution.execute(acquired, ONLY, tmp_path))
        if isinstance(group, Group):
            await group.sampled.wait()
        acquired.container.session._stream.connection_lost(None)
        return await running


async def test_a_container_that_the_kernel_killed_for_memory_is_the_programs_fault(tmp_path):
    ran = await dies_under(Group(kills=1), tmp_path)
    assert (ran.error_type, ran.exit_code) == (ErrorType.OUT_OF_MEMORY, 137)


async def test_a_container_whose_own_kernel_ends_for_want_of_threads_is_the_programs_fault(tmp_path):
    ran = await dies_under(Group(refused=2), tmp_path)
    assert (ran.error_type, ran.exit_code) == (ErrorType.PROCESS_LIMIT, 137)


@pytest.mark.parametrize("group", [Group(), Group(gone=True), None], ids=["seen", "gone", "unseen"])
async def test_a_container_that_died_for_another_reason_is_our_fault(tmp_path, group):
    with pytest.raises(stream.Disconnected):
        await dies_under(group, tmp_path)


async def test_memory_is_sampled_while_the_program_runs(tmp_path):
    group = Group()
    async with acquired_container(b"", group) as acquired:
        running = asyncio.create_task(execution.execute(acquired, ONLY, tmp_path))
        async with asyncio.timeout(20):
            await group.sampled.wait()
        assert not running.done()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not acquired.clean


# --- an interpreter that is lost


ORPHANED = says.exited(9, ExitFlag.ORPHANED, stdout_total=2) + wire.frame(wire.STDOUT, b"hi") + says.done()


async def test_a_run_whose_interpreter_the_kernel_killed_for_memory_is_out_of_memory_and_keeps_its_output(
    run,
):
    ran, clean = await run(ORPHANED, Group(kills=1))
    assert (ran.error_type, ran.collected.stdout.text, clean) == (ErrorType.OUT_OF_MEMORY, "hi", False)


async def test_a_run_whose_interpreter_was_lost_otherwise_is_the_platforms_fault(run):
    with pytest.raises(ContainerError, match="interpreter ended"):
        await run(ORPHANED, Group())
