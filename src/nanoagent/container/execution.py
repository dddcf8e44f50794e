"""One run in an acquired container: counted by the kernel, timed by the supervisor, judged here."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.common.units import MIB
from nanoagent.container.cgroup import MemoryUse, RunMeter
from nanoagent.languages import error_line
from nanoagent.languages.recipes import PROGRAM_PATH
from nanoagent.model.errors import ContainerError
from nanoagent.model.result import ErrorType
from nanoagent.model.text import Text
from nanoagent.supervisor import session, stream
from nanoagent.supervisor.exit_status import exit_code_of, signal_of
from nanoagent.supervisor.output import Collected
from nanoagent.supervisor.wire import ExitFlag, ExitReport

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from nanoagent.container.base import RunningContainer
    from nanoagent.container.cgroup import ControlGroup
    from nanoagent.container.pool import AcquiredContainer
    from nanoagent.container.spec import Limits
    from nanoagent.model.job import Runtime
    from nanoagent.supervisor.wire import RunRequest

log = structlog.get_logger(__name__)

# A sample costs some 20 µs. Programs that end sooner than the first are measured by the peak alone.
_SAMPLE_S: Final = 0.05
# What the supervisor may need after a run: names of files, captured output; measured far below.
_SUPERVISOR_BYTES: Final = 16 * MIB
# The kernel's own structures go a moment after the processes; more than that is the run's doing.
_LEFT_OVER_BYTES: Final = 8 * MIB
_CANCELLED: Final = Text("the run was cancelled", "실행이 취소되었습니다")
_STILL_RUNNING: Final = Text(
    "the program was still running after {timeout_ms} ms",
    "프로그램이 {timeout_ms} ms가 지난 뒤에도 실행 중이었습니다",
)
_WOULD_NOT_END: Final = Text(
    "the program was still running after {timeout_ms} ms and could not be ended",
    "프로그램이 {timeout_ms} ms가 지난 뒤에도 실행 중이었고 종료할 수 없었습니다",
)
_OUT_OF_MEMORY: Final = Text(
    "the kernel killed a process of the run because its memory was used up{limit}",
    "메모리를 모두 사용해{limit} 커널이 실행 중인 프로세스를 종료했습니다",
)
_MEMORY_LIMIT: Final = "MEMORY_LIMIT_MB"  # the program's environment variable
_SOCKET_MEMORY: Final = Text(
    "too many open sockets, or unread answers in netlink sockets (limits 16384 and 4 MiB); close connections"
    " you no longer use",
    "열린 소켓이나 netlink 소켓의 읽지 않은 응답이 너무 많습니다 (한도 16384개, 4 MiB). 더 쓰지 않는 연결을"
    " 닫으세요",
)
# The supervisor sees that a folder has no room left for data or for files, and does not tell which.
_FOLDER_FULL: Final = Text(
    "a writable folder is full: /tmp (TMP_MAX_MB={tmp_mb}), /output (OUTPUT_DIR_MAX_MB={output_mb}), the"
    " working directory (WORK_MAX_MB={work_mb}) or /dev/shm; or one has too many files"
    " (MAX_INODES={inodes})",
    "쓰기 가능한 폴더가 가득 찼습니다: /tmp(TMP_MAX_MB={tmp_mb}), /output(OUTPUT_DIR_MAX_MB={output_mb}),"
    " 작업 디렉터리(WORK_MAX_MB={work_mb}), /dev/shm 중 하나입니다. 또는 파일이 너무 많습니다"
    "(MAX_INODES={inodes})",
)
_FILE_TOO_LARGE: Final = Text(
    "a file reached the limit of {limit_bytes} bytes (MAX_FILE_MB={limit_mb})",
    "파일이 한도인 {limit_bytes}바이트에 도달했습니다 (MAX_FILE_MB={limit_mb})",
)
_TOO_MANY_PROCESSES: Final = Text(
    "the run wanted more than {most} processes and threads (MAX_PROCESSES={most}); refused: {times}",
    "프로세스와 스레드를 {most}개보다 많이 만들려고 했습니다 (MAX_PROCESSES={most}). 거부된 횟수: {times}",
)
_KILLED: Final = Text("the program was killed by {signal}", "프로그램이 {signal} 시그널로 종료되었습니다")
_EXITED: Final = Text("the program exited with {code}", "프로그램이 종료 코드 {code}(으)로 끝났습니다")
_NOT_A_PROGRAM: Final = Text(
    "the build did not produce an executable program: {reason}",
    "빌드 결과가 실행 가능한 프로그램이 아닙니다: {reason}",
)
_NO_PROGRAM: Final = frozenset({errno.ENOEXEC, errno.ENOENT, errno.EACCES, errno.ELIBBAD})


@dataclass(slots=True)
class Control:
    """Cancels a run.

    Attributes:
        kill: Ends the program; None while it does not run.
        has_ended: The program has ended: there is nothing left to cancel.
    """

    kill: Callable[[], None] | None = None
    has_ended: bool = False


@dataclass(frozen=True, slots=True)
class Execution:
    """What came of one run.

    Attributes:
        error_type: None when it ended well.
        message: What happened, for the result; None when it ended well.
        exit_code: The contract's.
        wall_ms: Of the program.
        use: What it did to its control group; None where that cannot be seen.
        collected: What it printed and left.
    """

    error_type: ErrorType | None
    message: Text | None
    exit_code: int
    wall_ms: float
    use: MemoryUse | None
    collected: Collected


async def execute(
    acquired: AcquiredContainer,
    request: RunRequest,
    spool: Path,
    control: Control | None = None,
    network: AbstractAsyncContextManager[None] | None = None,
    *,
    language: Runtime | None = None,
) -> Execution:
    """Run once, and mark the acquired clean when its container may serve again.

    Args:
        acquired: A container with the code in place.
        request: What to run.
        spool: A folder for the output files; made when there are any.
        control: Gets the means to cancel the run while it runs.
        network: Entered before the program starts, left when none of its processes lives any more.
        language: The program's; None for one of the image, such as a compiler.

    Raises:
        ContainerError: The container could not do it; nothing can be said of the program.
    """
    container, limits = acquired.container, acquired.container.spec.limits
    await container.session.ready()
    try:
        meter = RunMeter(container.group) if container.group is not None else None
    except OSError as exc:
        raise ContainerError("the container died before the run") from exc
    try:
        async with network or nullcontext():
            await container.session.start(request)
            log.debug("run begins", command=request.arguments[0])
            with _sampled(meter), _killable(container, control or Control()):
                report = await container.session.wait_exit(request)
    except session.Overdue:
        return _overdue(request, meter)
    except stream.Disconnected:
        use = _last_reading(meter)
        if use is not None and use.oom_kills:
            return Execution(ErrorType.OUT_OF_MEMORY, _memory_used_up(request), 137, 0, use, Collected())
        if use is not None and use.refused_processes:  # a kernel of its own (gVisor) ends for want of threads
            return Execution(ErrorType.PROCESS_LIMIT, _too_many(use, limits), 137, 0, use, Collected())
        raise
    use = _last_reading(meter)
    if ExitFlag.NOT_STARTED in report.flags:
        return _not_started(request, report)
    if ExitFlag.ORPHANED in report.flags and (use is None or not use.oom_kills):
        raise ContainerError("the container's interpreter ended during the run, and with it the run")
    has_room = _make_room(container.group, meter)
    collected = await container.session.collect(request, report, spool)
    error_type, message = judge(request, report, use, collected, language, limits=limits)
    acquired.clean = (
        collected.clean and has_room and _leaves_no_doubt(error_type) and _holds_no_more(acquired.container)
    )
    return Execution(
        error_type,
        message,
        exit_code_of(report.wait_status),
        report.wall_us / 1000,
        use,
        collected,
    )


def judge(  # noqa: PLR0911 - a decision list, one line a rule, read from the top
    request: RunRequest,
    report: ExitReport,
    use: MemoryUse | None,
    collected: Collected,
    language: Runtime | None = None,
    *,
    limits: Limits,
) -> tuple[ErrorType | None, Text | None]:
    """How the run ended, by what the agent and the kernel have seen: the kind and a sentence.

    The first that applies counts: what the platform ended, then which limit was hit, then what the program
    made of it itself. A limit that was hit is a failure even when the exit code is 0.
    """
    code = exit_code_of(report.wait_status)
    killed_by = signal_of(report.wait_status)
    if ExitFlag.KILLED in report.flags:
        return ErrorType.CANCELLED, _CANCELLED
    if ExitFlag.TIMED_OUT in report.flags:
        return ErrorType.TIMEOUT, _STILL_RUNNING.format(timeout_ms=request.timeout_ms)
    if use is not None and use.oom_kills:
        return ErrorType.OUT_OF_MEMORY, _memory_used_up(request)
    if ExitFlag.SOCKETS in report.flags:
        return ErrorType.OUT_OF_MEMORY, _SOCKET_MEMORY
    if ExitFlag.DISK_FULL in report.flags:
        return ErrorType.DISK_LIMIT, _folder_full(limits)
    if ExitFlag.FILE_LIMIT in report.flags:
        return ErrorType.DISK_LIMIT, _file_too_large(request)
    if use is not None and use.refused_processes:
        return ErrorType.PROCESS_LIMIT, _too_many(use, limits)
    if code == 0:
        return None, None
    return _own_end(
        request, code, killed_by, error_line.error_line(language, collected.stderr.text, code, killed_by)
    )


def _own_end(
    request: RunRequest, code: int, killed_by: signal.Signals | None, said: str | None
) -> tuple[ErrorType, Text]:
    """How a program ended by itself, by its exit code, its signal and its error line."""
    if said and error_line.reports_file_size_limit(said):  # the file may have been removed
        return ErrorType.DISK_LIMIT, _file_too_large(request)
    if killed_by is not None:
        message = Text.verbatim(said) if said else _KILLED.format(signal=killed_by.name)
        return ErrorType.SIGNAL, message
    return ErrorType.USER_ERROR, Text.verbatim(said) if said else _EXITED.format(code=code)


def _make_room(group: ControlGroup | None, meter: RunMeter | None) -> bool:
    """Let a supervisor whose container is full of the run's files still send them; False when it was.

    The limit stays raised: the container is not used again.
    """
    if group is None or meter is None:
        return True
    try:
        limit = group.memory_limit()
        if meter.held_bytes + _SUPERVISOR_BYTES <= limit:
            return True
        group.set_memory_limit(limit + _SUPERVISOR_BYTES)
    except OSError:  # not ours to write, or gone: then what can be had is what comes
        return False
    return False


def _holds_no_more(container: RunningContainer) -> bool:
    """Whether nothing of the run is still charged to its container.

    Memory can outlive every process in what the kernel frees late: files and pipes whose descriptors were
    in flight between sockets. The next run would have so much less.
    """
    if container.group is None:
        return True
    try:
        most = container.base_bytes + _LEFT_OVER_BYTES
        # With the page cache it is more; most often not too much, and telling it apart takes longer.
        return container.group.usage_bytes() <= most or container.group.held_bytes() <= most
    except OSError:
        return False


def _not_started(request: RunRequest, report: ExitReport) -> Execution:
    """The program could not be executed: its own fault when it was built from the user's code."""
    if request.arguments[0] == PROGRAM_PATH and report.exec_error in _NO_PROGRAM:
        message = _NOT_A_PROGRAM.format(reason=os.strerror(report.exec_error))
        return Execution(ErrorType.BUILD_FAILED, message, -1, 0, None, Collected())
    raise ContainerError(f"{request.arguments[0]} could not be started: {os.strerror(report.exec_error)}")


def _leaves_no_doubt(error_type: ErrorType | None) -> bool:
    """Whether the container may be used again: after a run that hit no limit and was not killed by us."""
    return error_type in {None, ErrorType.USER_ERROR, ErrorType.SIGNAL}


def _too_many(use: MemoryUse, limits: Limits) -> Text:
    return _TOO_MANY_PROCESSES.format(most=limits.processes, times=use.refused_processes)


def _folder_full(limits: Limits) -> Text:
    return _FOLDER_FULL.format(
        tmp_mb=limits.tmp_bytes // MIB,
        output_mb=limits.output_bytes // MIB,
        work_mb=limits.work_bytes // MIB,
        inodes=limits.inodes,
    )


def _file_too_large(request: RunRequest) -> Text:
    size = request.file_size_bytes
    return _FILE_TOO_LARGE.format(limit_bytes=size, limit_mb=size // MIB)


def _memory_used_up(request: RunRequest) -> Text:
    memory_mb = request.environment.get(_MEMORY_LIMIT)  # builds have another limit, which their message names
    return _OUT_OF_MEMORY.format(limit=f" (memoryMb={memory_mb})" if memory_mb else "")


def _overdue(request: RunRequest, meter: RunMeter | None) -> Execution:
    """The supervisor could not end the run; its container is about to be killed with everything in it."""
    use = _last_reading(meter)
    if use is not None and use.oom_kills:
        return Execution(ErrorType.OUT_OF_MEMORY, _memory_used_up(request), 137, 0, use, Collected())
    message = _WOULD_NOT_END.format(timeout_ms=request.timeout_ms)
    wall_ms = float(request.timeout_ms + request.grace_ms)
    return Execution(ErrorType.TIMEOUT, message, 137, wall_ms, use, Collected())


def _last_reading(meter: RunMeter | None) -> MemoryUse | None:
    try:
        return meter.read() if meter is not None else None
    except OSError:  # the group went with its container
        return None


@contextmanager
def _killable(container: RunningContainer, control: Control) -> Iterator[None]:
    control.kill = container.session.kill
    try:
        yield
        control.has_ended = True
    finally:
        control.kill = None


@contextmanager
def _sampled(meter: RunMeter | None) -> Iterator[None]:
    """Sample the meter until the block ends."""
    if meter is None:
        yield
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def again() -> None:
        nonlocal timer
        timer = loop.call_later(_SAMPLE_S, sample)

    def sample() -> None:
        again()  # first: whatever this sample raises, the next one follows
        meter.sample()

    again()
    try:
        yield
    finally:
        timer.cancel()
