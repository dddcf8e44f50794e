"""The operations that the self-test attempts, and the answers that it expects: one table for all languages.

One run attempts many operations. Each operation is one line of the program's input; programs/python/main.py
describes the lines. An isolation check accepts only the error numbers of a refusal. Another error, such as a
timeout, does not show that the sandbox refused the operation. If the sandbox may hide a folder, a missing
folder is accepted, too.
"""

from __future__ import annotations

import errno
import platform
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB
from nanoagent.model.errors import ConfigError
from nanoagent.model.result import ErrorType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nanoagent.config import Settings


class IsolationCheck(StrEnum):
    """A protection that the self-test tests; the label `guard` of the metric `worker_guard_ok`."""

    NETWORK = "network"
    ROOT_FILE_SYSTEM = "root_file_system"
    SUPERVISOR = "supervisor"
    PROCESSES = "processes"
    NAMESPACES = "namespaces"
    SYSTEM_CALLS = "system_calls"
    PRIVILEGES = "privileges"
    ENVIRONMENT = "environment"
    TRACES = "traces"
    SIZES = "sizes"
    OUTPUT_LINKS = "output_links"
    PROCESS_LIMIT = "process_limit"
    MEMORY_LIMIT = "memory_limit"
    FILE_LIMIT = "file_limit"
    TIME_LIMIT = "time_limit"


MARK: Final = "nanoagent-selftest"
"""The name of files that the self-test tries to write."""

OUTPUT_LINK: Final = f"/output/{MARK}-link"
_LINE_SEPARATOR: Final = "\x1e"  # between the lines of an answer's text

_REFUSED: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})
_READ_ONLY: Final = _REFUSED | {errno.EROFS}
_UNREACHABLE: Final = _REFUSED | {errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_NO_SUCH_SOCKET: Final = _REFUSED | {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT}
# A program may see process 1 and itself. The perl process through which Node.js makes system calls has ended
# before the program reads /proc. A third process may be one that the previous run has left behind.
_MAX_VISIBLE_PROCESSES: Final = 2

# The numbers of system calls on x86-64 and on aarch64.
_CALLS: Final[Mapping[str, tuple[int, int]]] = {
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_settime": (227, 112),
    "init_module": (175, 105),
    "io_uring_setup": (425, 425),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "process_vm_readv": (310, 270),
    "ptrace": (101, 117),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setuid": (105, 146),
    "socket": (41, 198),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_ARGUMENTS: Final = 6  # of a system call
_COLUMNS: Final = {"x86_64": 0, "aarch64": 1}
# The CLONE_NEW… flags of <linux/sched.h>: time, mount, cgroup, uts, ipc, user, pid, net.
_NAMESPACES: Final = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
# Family and type, as in <sys/socket.h>: AF_INET raw, AF_PACKET raw, AF_ALG, AF_VSOCK, AF_XDP.
_SOCKETS: Final = ((2, 3), (17, 3), (38, 5), (40, 1), (44, 3))
_PTRACE_ATTACH: Final = 16
# The metadata service of EC2, and addresses for documentation (RFC 5737, RFC 3849) that no host has.
_ADDRESSES: Final = ("169.254.169.254", "fd00:ec2::254", "192.0.2.1", "2001:db8::1")


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation that the program attempts.

    Attributes:
        check: The isolation check that it belongs to.
        line: The line of the program's input.
        problem: Takes the program's answer. Returns why the isolation failed; None if it held.
    """

    check: IsolationCheck
    line: str
    problem: Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class LimitTest:
    """A run that uses up one limit.

    Attributes:
        check: The isolation check that it belongs to.
        limit: The word for the limit in the program's input.
        expected: The run must end with one of these error types.
        timeout_ms: The run's time limit; None for the usual one.
    """

    check: IsolationCheck
    limit: str
    expected: frozenset[ErrorType]
    timeout_ms: int | None = None


_MAX_MEMORY_MB: Final = 512  # small, so that jobs fit into the worker's memory beside the self-test

LEAVE_TRACES: Final = (
    *(f"write {folder}/{MARK}" for folder in ("/tmp", "/dev/shm", "/output")),  # noqa: S108 - the run's own
    "daemon",
)
"""The input of the first run: it leaves files and a process behind, which the next run must not find."""


def check_machine() -> None:
    """Make sure that the numbers of this machine's system calls are known.

    Raises:
        ConfigError: The architecture is not in the table.
    """
    if platform.machine() not in _COLUMNS:
        problem = f"the self-test does not know the system calls of {platform.machine()}"
        raise ConfigError([f"SELFTEST_INTERVAL_SECONDS: {problem}; it should be 0"])


def memory_mb(settings: Settings) -> int:
    """Return the memory of each run of the self-test, in MiB.

    Each process of the fork bomb takes less than 1 MiB. So the run reaches the limit on processes before the
    limit on memory, unless MAX_PROCESSES is higher than the returned number.
    """
    wanted = max(settings.job_defaults.memory_mb, settings.max_processes)
    return min(wanted, settings.largest_job_mb, _MAX_MEMORY_MB)


def limit_tests(settings: Settings) -> tuple[LimitTest, ...]:
    """Return the tests of limits. Each needs a separate run, because reaching a limit ends the run."""
    fork_bomb_ends = {ErrorType.PROCESS_LIMIT}
    if settings.max_processes > memory_mb(settings):  # the processes may use up the memory first
        fork_bomb_ends.add(ErrorType.OUT_OF_MEMORY)
    return (
        LimitTest(IsolationCheck.PROCESS_LIMIT, "fork", frozenset(fork_bomb_ends)),
        LimitTest(IsolationCheck.MEMORY_LIMIT, "memory", frozenset({ErrorType.OUT_OF_MEMORY})),
        LimitTest(IsolationCheck.FILE_LIMIT, "file", frozenset({ErrorType.DISK_LIMIT})),
        LimitTest(IsolationCheck.TIME_LIMIT, "time", frozenset({ErrorType.TIMEOUT}), timeout_ms=300),
    )


def operations(settings: Settings, listener_port: int, variables: Iterable[str]) -> tuple[Operation, ...]:
    """Return all operations that one run attempts.

    Args:
        settings: The worker's settings.
        listener_port: The port on the host's loopback where the worker listens. A run must not reach it.
        variables: The only environment variables that a run may have.
    """
    return (
        *_reach_network(listener_port),
        *_change_files(),
        *_attack_supervisor(),
        *_call_kernel(),
        *_read_privileges(),
        *_read_surroundings(frozenset(variables)),
        *_read_sizes(settings),
        # The answer does not matter: `suite` looks for the link among the collected output files.
        Operation(IsolationCheck.OUTPUT_LINKS, f"link /etc/passwd {OUTPUT_LINK}", lambda _: None),
    )


def _reach_network(listener_port: int) -> Iterable[Operation]:
    loopback = _refused(_UNREACHABLE | {errno.ECONNREFUSED})
    yield Operation(IsolationCheck.NETWORK, f"connect 127.0.0.1 {listener_port}", loopback)
    for address in _ADDRESSES:
        yield Operation(IsolationCheck.NETWORK, f"connect {address} 80", _refused(_UNREACHABLE))
    yield Operation(IsolationCheck.NETWORK, "names /sys/class/net", _only({"lo"}))


def _change_files() -> Iterable[Operation]:
    for folder in ("", "/etc", "/usr/bin", "/nanosupervisor", "/slot", "/proc/sys/kernel", "/sys/fs/cgroup"):
        yield Operation(
            IsolationCheck.ROOT_FILE_SYSTEM, f"write {folder}/{MARK}", _refused(_READ_ONLY | {errno.ENOENT})
        )
    for file in ("/etc/passwd", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger"):
        yield Operation(
            IsolationCheck.ROOT_FILE_SYSTEM, f"write {file}", _refused(_READ_ONLY | {errno.ENOENT})
        )


def _attack_supervisor() -> Iterable[Operation]:
    # Process 1 ignores the signals. That is tested by the end of the run: the run must end normally.
    for number in (9, 15, 19):
        yield Operation(IsolationCheck.SUPERVISOR, f"signal 1 {number}", lambda _: None)
    for name in ("environ", "maps", "mem"):
        yield Operation(IsolationCheck.SUPERVISOR, f"read /proc/1/{name}", _refused(_REFUSED))
    for name in ("fd", "root", "cwd"):
        yield Operation(IsolationCheck.SUPERVISOR, f"names /proc/1/{name}/", _refused(_REFUSED))
    yield _call(IsolationCheck.SUPERVISOR, "ptrace", _PTRACE_ATTACH, 1)
    yield _call(IsolationCheck.SUPERVISOR, "process_vm_readv", 1)


def _call_kernel() -> Iterable[Operation]:
    for flag in _NAMESPACES:
        yield _call(IsolationCheck.NAMESPACES, "unshare", flag)
    yield _call(IsolationCheck.NAMESPACES, "setns", 0)
    yield _call(IsolationCheck.NAMESPACES, "mount")
    yield _call(IsolationCheck.NAMESPACES, "chroot")
    for name in (
        *("bpf", "clock_settime", "init_module", "io_uring_setup", "kexec_load", "keyctl"),
        *("open_by_handle_at", "perf_event_open", "sethostname", "userfaultfd"),
    ):
        yield _call(IsolationCheck.SYSTEM_CALLS, name)
    for family, kind in _SOCKETS:
        yield _call(IsolationCheck.SYSTEM_CALLS, "socket", family, kind, accepted=_NO_SUCH_SOCKET)


def _read_privileges() -> Iterable[Operation]:
    yield _call(IsolationCheck.PRIVILEGES, "setuid", 0, accepted=_REFUSED | {errno.EINVAL})
    yield Operation(IsolationCheck.PRIVILEGES, "read /proc/self/status", _unprivileged)


def _read_surroundings(variables: frozenset[str]) -> Iterable[Operation]:
    yield Operation(IsolationCheck.ENVIRONMENT, "environment", _only(variables))
    yield Operation(IsolationCheck.PROCESSES, "names /proc", _few_processes)
    for folder in ("/tmp", "/dev/shm", "/output"):  # noqa: S108 - the run's own
        yield Operation(IsolationCheck.TRACES, f"names {folder}", _nothing_left)


def _read_sizes(settings: Settings) -> Iterable[Operation]:
    bounds = {"/tmp": settings.tmp_max_mb, "/output": settings.output_dir_max_mb}  # noqa: S108 - the run's own
    for folder, mebibytes in bounds.items():
        yield Operation(
            IsolationCheck.SIZES, f"space {folder}", _not_larger_than(mebibytes * MIB, settings.max_inodes)
        )
    yield Operation(IsolationCheck.SIZES, "read /proc/self/limits", _limits(settings))


def _call(
    check: IsolationCheck, name: str, *arguments: int, accepted: frozenset[int] = _REFUSED
) -> Operation:
    """Return the operation that makes a system call; missing arguments are 0."""
    number = _CALLS[name][_COLUMNS[platform.machine()]]
    refused = _refused(accepted)

    def problem(answer: str) -> str | None:
        found = refused(answer)
        return None if found is None else f"{name} {found}"

    padded = (*arguments, *[0] * _ARGUMENTS)[:_ARGUMENTS]
    return Operation(check, " ".join(map(str, ("call", number, *padded))), problem)


def _refused(accepted: frozenset[int]) -> Callable[[str], str | None]:
    def problem(answer: str) -> str | None:
        status, _, number = answer.partition(" ")
        if status != "error":
            return "was not refused"
        if int(number) not in accepted:
            name = errno.errorcode.get(int(number), number)
            return f"failed with {name}, which does not show a refusal"
        return None

    return problem


def _text(answer: str) -> str | None:
    """Return the text of an answer; None if the operation failed."""
    status, _, text = answer.partition(" ")
    return text.replace(_LINE_SEPARATOR, "\n") if status == "done" else None


def _readable(problem: Callable[[str], str | None]) -> Callable[[str], str | None]:
    """Judge the text of an answer; a failure to read it is a problem, too."""

    def judge(answer: str) -> str | None:
        text = _text(answer)
        return f"could not be read: {answer}" if text is None else problem(text)

    return judge


def _only(allowed: Iterable[str]) -> Callable[[str], str | None]:
    names = frozenset(allowed)

    def problem(text: str) -> str | None:
        unexpected = sorted(set(text.split("\n")) - names - {""})
        return f"has {', '.join(unexpected)}" if unexpected else None

    def judge(answer: str) -> str | None:
        # A folder that is missing or cannot be read shows no names.
        return problem(text) if (text := _text(answer)) is not None else None

    return judge


def _not_larger_than(max_bytes: int, max_files: int) -> Callable[[str], str | None]:
    def problem(text: str) -> str | None:
        size, files = map(int, text.split())
        if size > max_bytes or files > max_files:
            return (
                f"has room for {size} bytes and {files} files; expected {max_bytes} and {max_files} at most"
            )
        return None

    return _readable(problem)


def _limits(settings: Settings) -> Callable[[str], str | None]:
    highest_values = {
        "Max file size": settings.max_file_mb * MIB,
        "Max open files": settings.max_open_files,
        "Max core file size": 1,  # with 1 (not 0), the kernel does not start the program in core_pattern
    }

    def problem(text: str) -> str | None:
        for name, highest in highest_values.items():
            row = re.search(rf"^{name}\s+(\S+)\s+(\S+)", text, re.MULTILINE)
            if row is None or not row[2].isdecimal() or int(row[2]) > highest:
                return f"{name} is {row[2] if row else 'missing'}, expected {highest} at most"
        return None

    return _readable(problem)


@_readable
def _nothing_left(text: str) -> str | None:
    found = [name for name in text.split("\n") if name.startswith(MARK)]
    return "has a file of the previous run" if found else None


@_readable
def _few_processes(text: str) -> str | None:
    count = sum(name.isdecimal() for name in text.split("\n"))
    return f"shows {count} processes" if count > _MAX_VISIBLE_PROCESSES else None


@_readable
def _unprivileged(text: str) -> str | None:
    fields = dict(line.split(":\t", 1) for line in text.split("\n") if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        if int(fields.get(name, "1"), 16):
            return f"{name} is {fields.get(name)}"
    for name, wanted in (("NoNewPrivs", "1"), ("Seccomp", "2")):
        if fields.get(name) != wanted:
            return f"{name} is {fields.get(name)}, expected {wanted}"
    return "runs as root" if "0" in fields.get("Uid", "0").split("\t") else None
