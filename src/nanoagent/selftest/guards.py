"""What the canary tries, and what has to come of it: one table for all languages.

The steps are told to the program in one run, a line each; see programs/python/main.py for what they mean.
What may be refused is refused with a number out of a short list: a time-out, or "no such file", would only
show that there was nothing to be reached.
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


class Guard(StrEnum):
    """What stands between a run and everything else, one wall each; the label of `worker_guard_ok`."""

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


MARK: Final = "nanoagent-canary"
OUTPUT_LINK: Final = f"/output/{MARK}-link"
_LINES: Final = "\x1e"  # parts the lines of an answer's text

_REFUSED: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})
_READ_ONLY: Final = _REFUSED | {errno.EROFS}
_UNREACHABLE: Final = _REFUSED | {errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_NO_SUCH_SOCKET: Final = _REFUSED | {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT}
# What a program may see of /proc: process 1, itself, and what Node.js starts perl for.
_FEW_PROCESSES: Final = 4

# Numbers of system calls: x86-64's and those that all later architectures have.
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
_ARGUMENTS: Final = 6
_COLUMNS: Final = {"x86_64": 0, "aarch64": 1}
# CLONE_NEW… of <linux/sched.h>: time, mount, cgroup, uts, ipc, user, pid, net.
_NAMESPACES: Final = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
# AF_INET raw, AF_PACKET raw, AF_ALG, AF_VSOCK, AF_XDP: family and type of <sys/socket.h>.
_SOCKETS: Final = ((2, 3), (17, 3), (38, 5), (40, 1), (44, 3))
_PTRACE_ATTACH: Final = 16
# Documentation's own addresses (RFC 5737, RFC 3849) stand for the internet: nobody is called by mistake.
_ADDRESSES: Final = ("169.254.169.254", "fd00:ec2::254", "192.0.2.1", "2001:db8::1")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that the canary tries.

    Attributes:
        guard: The wall that it is tried on.
        line: What the canary is told.
        problem: What is wrong with its answer, or None when the wall stands.
    """

    guard: Guard
    line: str
    problem: Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Ending:
    """A limit that the canary runs into; the run has to end as one of these."""

    guard: Guard
    how: str
    expected: frozenset[ErrorType]
    timeout_ms: int | None = None


_MOST_MEMORY_MB: Final = 512  # it has to fit into the worker's budget beside jobs

LEFT: Final = (
    *(f"write {folder}/{MARK}" for folder in ("/tmp", "/dev/shm", "/output")),  # noqa: S108 - the run's own
    "daemon",
)
"""What the run before the one that tries is told: to leave something wherever it can."""


def check_machine() -> None:
    """Make sure that this machine's system calls are known.

    Raises:
        ConfigError: They are not.
    """
    if platform.machine() not in _COLUMNS:
        problem = f"the self-test does not know the system calls of {platform.machine()}"
        raise ConfigError([f"SELFTEST_INTERVAL_SECONDS: {problem}; it should be 0"])


def memory_mb(settings: Settings) -> int:
    """The memory of the self-test's runs, MiB: each process that a run may have takes less than 1 MiB."""
    wanted = max(settings.job_defaults.memory_mb, settings.max_processes)
    return min(wanted, settings.largest_job_mb, _MOST_MEMORY_MB)


def endings(settings: Settings) -> tuple[Ending, ...]:
    """The limits, each used up in a run of its own."""
    # Where very many processes are allowed, their memory may be used up first: a wall, too.
    roomy = settings.max_processes > memory_mb(settings)
    crowd = {ErrorType.PROCESS_LIMIT, ErrorType.OUT_OF_MEMORY} if roomy else {ErrorType.PROCESS_LIMIT}
    return (
        Ending(Guard.PROCESS_LIMIT, "fork", frozenset(crowd)),
        Ending(Guard.MEMORY_LIMIT, "memory", frozenset({ErrorType.OUT_OF_MEMORY})),
        Ending(Guard.FILE_LIMIT, "file", frozenset({ErrorType.DISK_LIMIT})),
        Ending(Guard.TIME_LIMIT, "time", frozenset({ErrorType.TIMEOUT}), timeout_ms=300),
    )


def steps(settings: Settings, listener_port: int, variables: Iterable[str]) -> tuple[Step, ...]:
    """Everything that is tried in one run.

    Args:
        settings: Those in use.
        listener_port: Where the agent listens on the host's own loopback, and nobody may get through.
        variables: The only ones that the environment may hold.

    """
    return (
        *_reaching(listener_port),
        *_changing(),
        *_meddling(),
        *_calling(),
        *_seeing(frozenset(variables)),
        *_sizes(settings),
        Step(Guard.OUTPUT_LINKS, f"link /etc/passwd {OUTPUT_LINK}", lambda _: None),  # the runner looks
    )


def _reaching(listener_port: int) -> Iterable[Step]:
    loopback = _refused(_UNREACHABLE | {errno.ECONNREFUSED})
    yield Step(Guard.NETWORK, f"connect 127.0.0.1 {listener_port}", loopback)
    for address in _ADDRESSES:
        yield Step(Guard.NETWORK, f"connect {address} 80", _refused(_UNREACHABLE))
    yield Step(Guard.NETWORK, "names /sys/class/net", _only({"lo"}))


def _changing() -> Iterable[Step]:
    for folder in ("", "/etc", "/usr/bin", "/nanosupervisor", "/slot", "/proc/sys/kernel", "/sys/fs/cgroup"):
        yield Step(Guard.ROOT_FILE_SYSTEM, f"write {folder}/{MARK}", _refused(_READ_ONLY | {errno.ENOENT}))
    for file in ("/etc/passwd", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger"):
        yield Step(Guard.ROOT_FILE_SYSTEM, f"write {file}", _refused(_READ_ONLY | {errno.ENOENT}))


def _meddling() -> Iterable[Step]:
    # Process 1 takes no signal; what shows it is that this run goes on and ends well.
    for number in (9, 15, 19):
        yield Step(Guard.SUPERVISOR, f"signal 1 {number}", lambda _: None)
    for name in ("environ", "maps", "mem"):
        yield Step(Guard.SUPERVISOR, f"read /proc/1/{name}", _refused(_REFUSED))
    for name in ("fd", "root", "cwd"):
        yield Step(Guard.SUPERVISOR, f"names /proc/1/{name}/", _refused(_REFUSED))
    yield _call(Guard.SUPERVISOR, "ptrace", _PTRACE_ATTACH, 1)
    yield _call(Guard.SUPERVISOR, "process_vm_readv", 1)


def _calling() -> Iterable[Step]:
    for flag in _NAMESPACES:
        yield _call(Guard.NAMESPACES, "unshare", flag)
    yield _call(Guard.NAMESPACES, "setns", 0)
    yield _call(Guard.NAMESPACES, "mount")
    yield _call(Guard.NAMESPACES, "chroot")
    for name in (
        *("bpf", "clock_settime", "init_module", "io_uring_setup", "kexec_load", "keyctl"),
        *("open_by_handle_at", "perf_event_open", "sethostname", "userfaultfd"),
    ):
        yield _call(Guard.SYSTEM_CALLS, name)
    for family, kind in _SOCKETS:
        yield _call(Guard.SYSTEM_CALLS, "socket", family, kind, accepted=_NO_SUCH_SOCKET)


def _seeing(variables: frozenset[str]) -> Iterable[Step]:
    yield _call(Guard.PRIVILEGES, "setuid", 0, accepted=_REFUSED | {errno.EINVAL})
    yield Step(Guard.PRIVILEGES, "read /proc/self/status", _unprivileged)
    yield Step(Guard.ENVIRONMENT, "environment", _only(variables))
    yield Step(Guard.PROCESSES, "names /proc", _few_processes)
    for folder in ("/tmp", "/dev/shm", "/output"):  # noqa: S108 - the run's own
        yield Step(Guard.TRACES, f"names {folder}", _nothing_left)


def _sizes(settings: Settings) -> Iterable[Step]:
    bounds = {"/tmp": settings.tmp_max_mb, "/output": settings.output_dir_max_mb}  # noqa: S108 - the run's own
    for folder, mebibytes in bounds.items():
        yield Step(Guard.SIZES, f"space {folder}", _has_room_for(mebibytes * MIB, settings.max_inodes))
    yield Step(Guard.SIZES, "read /proc/self/limits", _limits(settings))


def _call(guard: Guard, name: str, *arguments: int, accepted: frozenset[int] = _REFUSED) -> Step:
    """A system call; arguments that are left out are 0, and not what a register happens to hold."""
    number = _CALLS[name][_COLUMNS[platform.machine()]]
    refused = _refused(accepted)

    def problem(answer: str) -> str | None:
        found = refused(answer)
        return None if found is None else f"{name} {found}"

    padded = (*arguments, *[0] * _ARGUMENTS)[:_ARGUMENTS]
    return Step(guard, " ".join(map(str, ("call", number, *padded))), problem)


def _refused(accepted: frozenset[int]) -> Callable[[str], str | None]:
    def problem(answer: str) -> str | None:
        verdict, _, number = answer.partition(" ")
        if verdict != "error":
            return "was not refused"
        if int(number) not in accepted:
            name = errno.errorcode.get(int(number), number)
            return f"was refused for another reason: {name}"
        return None

    return problem


def _text(answer: str) -> str | None:
    verdict, _, text = answer.partition(" ")
    return text.replace(_LINES, "\n") if verdict == "done" else None


def _reading(problem: Callable[[str], str | None]) -> Callable[[str], str | None]:
    """For steps that have to succeed: judge the text."""

    def judged(answer: str) -> str | None:
        text = _text(answer)
        return f"could not be looked at: {answer}" if text is None else problem(text)

    return judged


def _only(allowed: Iterable[str]) -> Callable[[str], str | None]:
    names = frozenset(allowed)

    def problem(text: str) -> str | None:
        strangers = sorted(set(text.split("\n")) - names - {""})
        return f"has {', '.join(strangers)}" if strangers else None

    def judged(answer: str) -> str | None:
        # What is not there, or must not be looked at, holds nothing.
        return problem(text) if (text := _text(answer)) is not None else None

    return judged


def _has_room_for(most_bytes: int, most_files: int) -> Callable[[str], str | None]:
    def problem(text: str) -> str | None:
        size, files = map(int, text.split())
        if size > most_bytes or files > most_files:
            return f"has room for {size} bytes and {files} files, not {most_bytes} and {most_files}"
        return None

    return _reading(problem)


def _limits(settings: Settings) -> Callable[[str], str | None]:
    most = {
        "Max file size": settings.max_file_mb * MIB,
        "Max open files": settings.max_open_files,
        "Max core file size": 1,  # 1 and not 0: then the kernel does not start a helper either
    }

    def problem(text: str) -> str | None:
        for name, highest in most.items():
            row = re.search(rf"^{name}\s+(\S+)\s+(\S+)", text, re.MULTILINE)
            if row is None or not row[2].isdecimal() or int(row[2]) > highest:
                return f"{name} is {row[2] if row else 'not told'}, not {highest}"
        return None

    return _reading(problem)


@_reading
def _nothing_left(text: str) -> str | None:
    found = [name for name in text.split("\n") if name.startswith(MARK)]
    return "the run before has left something" if found else None


@_reading
def _few_processes(text: str) -> str | None:
    count = sum(name.isdecimal() for name in text.split("\n"))
    return f"shows {count} processes" if count > _FEW_PROCESSES else None


@_reading
def _unprivileged(text: str) -> str | None:
    fields = dict(line.split(":\t", 1) for line in text.split("\n") if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        if int(fields.get(name, "1"), 16):
            return f"{name} is {fields.get(name)}"
    for name, wanted in (("NoNewPrivs", "1"), ("Seccomp", "2")):
        if fields.get(name) != wanted:
            return f"{name} is {fields.get(name)}, not {wanted}"
    return "runs as root" if "0" in fields.get("Uid", "0").split("\t") else None
