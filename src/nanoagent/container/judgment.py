"""Decides how a run ended: the error type and the message of its result. All functions are pure.

The decision uses the counters of the kernel (`MemoryUse`), the report of the supervisor (`ExitReport`) and
the output of the program.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB
from nanoagent.languages import error_line
from nanoagent.languages.recipes import PROGRAM_PATH
from nanoagent.model.errors import ContainerError
from nanoagent.model.result import OUTCOMES, ErrorType
from nanoagent.model.text import Text
from nanoagent.supervisor.exit_status import exit_code_of, signal_of
from nanoagent.supervisor.wire import ExitFlag

if TYPE_CHECKING:
    import signal

    from nanoagent.container.cgroup import MemoryUse
    from nanoagent.container.spec import Limits
    from nanoagent.model.job import Runtime
    from nanoagent.supervisor.output import Collected
    from nanoagent.supervisor.wire import ExitReport, RunRequest

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
_MEMORY_LIMIT: Final = "MEMORY_LIMIT_MB"  # an environment variable of the program
_SOCKET_MEMORY: Final = Text(
    "too many open sockets, or unread answers in netlink sockets (limits 16384 and 4 MiB); close connections"
    " you no longer use",
    "열린 소켓이나 netlink 소켓의 읽지 않은 응답이 너무 많습니다 (한도 16384개, 4 MiB). 더 쓰지 않는 연결을"
    " 닫으세요",
)
# The supervisor reports that a folder is full: of bytes, or of inodes. It does not report which folder.
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
_NOT_EXECUTABLE: Final = frozenset({errno.ENOEXEC, errno.ENOENT, errno.EACCES, errno.ELIBBAD})


def judge(  # noqa: PLR0911 - a decision list, one rule per line
    request: RunRequest,
    report: ExitReport,
    use: MemoryUse | None,
    collected: Collected,
    language: Runtime | None = None,
    *,
    limits: Limits,
) -> tuple[ErrorType | None, Text | None]:
    """Return the error type and the message of a run whose report has arrived.

    The first rule that applies decides. First come cancellation and timeout, then the other limits, then the
    exit code and the signal of the program. A run that hits a limit has failed, even with the exit code 0.

    Args:
        request: The run.
        report: The report of the supervisor.
        use: The counters of the control group; None if they are not visible.
        collected: The output of the run.
        language: The language of the program; None for a program of the image, such as a compiler.
        limits: The limits of the container.

    Returns:
        The error type and the message; both are None if the run succeeded.
    """
    code = exit_code_of(report.wait_status)
    if ExitFlag.KILLED in report.flags:
        return ErrorType.CANCELLED, _CANCELLED
    if ExitFlag.TIMED_OUT in report.flags:
        return ErrorType.TIMEOUT, _STILL_RUNNING.format(timeout_ms=request.timeout_ms)
    if use is not None and use.oom_kills:
        return ErrorType.OUT_OF_MEMORY, _out_of_memory(request)
    if ExitFlag.SOCKETS in report.flags:
        return ErrorType.OUT_OF_MEMORY, _SOCKET_MEMORY
    if ExitFlag.DISK_FULL in report.flags:
        return ErrorType.DISK_LIMIT, _folder_full(limits)
    if ExitFlag.FILE_LIMIT in report.flags:
        return ErrorType.DISK_LIMIT, _file_too_large(request)
    if use is not None and use.refused_processes:
        return ErrorType.PROCESS_LIMIT, _too_many_processes(use, limits)
    if code == 0:
        return None, None
    killed_by = signal_of(report.wait_status)
    line = error_line.error_line(language, collected.stderr.text, code, killed_by)
    return _program_failure(request, code, killed_by, line)


def container_death(
    request: RunRequest, use: MemoryUse | None, limits: Limits
) -> tuple[ErrorType, Text] | None:
    """Return the error of a run that had hit a limit before its container died.

    Args:
        request: The run.
        use: The last counters of the control group; None if they are not visible.
        limits: The limits of the container.

    Returns:
        The error type and the message; None if the run had hit no limit.
    """
    if use is not None and use.oom_kills:
        return ErrorType.OUT_OF_MEMORY, _out_of_memory(request)
    if use is not None and use.refused_processes:  # a separate kernel (gVisor) ends when it gets no threads
        return ErrorType.PROCESS_LIMIT, _too_many_processes(use, limits)
    return None


def overdue(request: RunRequest, use: MemoryUse | None) -> tuple[ErrorType, Text]:
    """Return the error type and the message of a run that the supervisor could not end.

    Args:
        request: The run.
        use: The last counters of the control group; None if they are not visible.
    """
    if use is not None and use.oom_kills:
        return ErrorType.OUT_OF_MEMORY, _out_of_memory(request)
    return ErrorType.TIMEOUT, _WOULD_NOT_END.format(timeout_ms=request.timeout_ms)


def not_started(request: RunRequest, report: ExitReport) -> tuple[ErrorType, Text]:
    """Return the error type and the message of a program that could not be executed.

    Raises:
        ContainerError: The failure is not the author's fault: the program belongs to the image, or the error
            does not come from the program's file.
    """
    reason = os.strerror(report.exec_error)
    if request.arguments[0] == PROGRAM_PATH and report.exec_error in _NOT_EXECUTABLE:
        return ErrorType.BUILD_FAILED, _NOT_A_PROGRAM.format(reason=reason)
    raise ContainerError(f"{request.arguments[0]} could not be started: {reason}")


def allows_reuse(error_type: ErrorType | None) -> bool:
    """Whether the container may be used again: the run hit no limit, and the worker did not end it."""
    return OUTCOMES[error_type].ended_by_itself


def _program_failure(
    request: RunRequest, code: int, killed_by: signal.Signals | None, line: str | None
) -> tuple[ErrorType, Text]:
    """Judge a program that ended by itself, by its exit code, its signal and its error line."""
    # If the program has already removed the file that was too large, the supervisor has not seen that file.
    if line and error_line.reports_file_size_limit(line):
        return ErrorType.DISK_LIMIT, _file_too_large(request)
    if killed_by is not None:
        return ErrorType.SIGNAL, Text.verbatim(line) if line else _KILLED.format(signal=killed_by.name)
    return ErrorType.USER_ERROR, Text.verbatim(line) if line else _EXITED.format(code=code)


def _too_many_processes(use: MemoryUse, limits: Limits) -> Text:
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


def _out_of_memory(request: RunRequest) -> Text:
    # The environment of a build has no such variable. The message of a build names the build's limit.
    memory_mb = request.environment.get(_MEMORY_LIMIT)
    return _OUT_OF_MEMORY.format(limit=f" (memoryMb={memory_mb})" if memory_mb else "")
