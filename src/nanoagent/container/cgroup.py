"""A container's control group: its limits and the kernel's own counters, as files. Both versions.

What the kernel counts decides how a run is judged; what a container says of itself does not. Reading takes
microseconds, where Docker's API takes milliseconds (limits) or a second (statistics); and half a microsecond
where the file is open already, ten where it is not, so that what a run reads is kept open.

Sources: kernel documentation, admin-guide/cgroup-v2 and cgroup-v1/{memory,pids}; pid_namespaces(7).
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nanoagent.common.units import MIB
from nanoagent.container import capability

_CPU_PERIOD_US: Final = 100_000  # the kernel's default
_SHARES_PER_CPU: Final = 1024  # cpu.shares of v1; v2's default weight is 100 for the same
_SOCKETS_PART: Final = 4  # v1: what waits in sockets may be a quarter of the memory limit, besides it
_LARGEST_FILE_BYTES: Final = 16 * 1024  # memory.stat has some 2 KiB


def controllers_of(proc_cgroup: str) -> dict[str, str]:
    """Controller → path, from the text of /proc/PID/cgroup; "" is the unified hierarchy's."""
    paths = {}
    for line in proc_cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def mounts_of(mountinfo: str) -> dict[str, Path]:
    """Controller → mount point, from the text of /proc/self/mountinfo; "" is the unified hierarchy's."""
    mounts = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        point = Path(left.split(" ")[4])
        if kind == "cgroup2":
            mounts[""] = point
        elif kind == "cgroup":
            for option in options.split(","):
                mounts.setdefault(option, point)
    return mounts


def find(pid: int, proc: Path = Path("/proc")) -> ControlGroup | None:
    """The control group of a process, or None where its files cannot be seen (a remote Docker)."""
    try:
        controllers = controllers_of((proc / str(pid) / "cgroup").read_text())
        mounts = mounts_of((proc / "self/mountinfo").read_text())
    except OSError:
        return None

    def folder(controller: str) -> Path:
        return mounts[controller] / controllers[controller].lstrip("/")

    try:
        if "memory" in controllers and "memory" in mounts:
            group: ControlGroup = ControlGroupV1(folder("memory"), folder("cpu"), folder("pids"))
        else:
            group = ControlGroupV2(folder(""))
        group.usage_bytes()
    except (KeyError, OSError):
        return None
    return group


class _Counters:
    """Files of one folder that are read again and again: opened once. Raises OSError when the group is gone.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[tuple[str, int], int] = {}

    def _descriptor(self, name: str, flags: int) -> int:
        if (name, flags) not in self._open:
            self._open[name, flags] = _opened(self._folder / name, flags)
        return self._open[name, flags]

    def text(self, name: str) -> bytes:
        """What the file has now."""
        return os.pread(self._descriptor(name, os.O_RDONLY), _LARGEST_FILE_BYTES, 0)

    def write(self, name: str, text: bytes) -> None:
        """Write to the file. PermissionError where the agent may not."""
        os.pwrite(self._descriptor(name, os.O_WRONLY), text, 0)

    def number(self, name: str) -> int:
        """The one number in the file."""
        return int(self.text(name))

    def close(self) -> None:
        """Close all of them. Idempotent."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()


def _opened(file: Path, flags: int) -> int:
    """A descriptor of a group's file, which is root's; PermissionError where the agent may not write it."""
    with nullcontext() if flags == os.O_RDONLY else capability.raised():
        return os.open(file, flags | os.O_CLOEXEC)


def _write(file: Path, text: str) -> None:
    """Write to a group's file once. PermissionError where the agent may not."""
    with capability.raised():
        file.write_text(text)


def _value(lines: bytes, name: bytes) -> int:
    """The number in the "name number" line of that name; 0 where this kernel has no such line."""
    _, found, behind = (b"\n" + lines).partition(b"\n" + name + b" ")
    return int(behind.partition(b"\n")[0]) if found else 0


class ControlGroup(ABC):
    """What the agent wants of a container's group. Methods raise OSError when the group is gone."""

    @abstractmethod
    def set_memory_limit(self, limit_bytes: int) -> None:
        """Limit memory, swap excluded. PermissionError where the agent may not."""

    @abstractmethod
    def memory_limit(self) -> int:
        """The present limit."""

    @abstractmethod
    def set_cpus(self, share: float, most: float) -> None:
        """Set the share of CPU under contention, and the most that may be used while CPUs are free."""

    @abstractmethod
    def usage_bytes(self) -> int:
        """What is charged to the group now, page cache included."""

    @abstractmethod
    def page_cache_bytes(self) -> int:
        """The part of it that is cache of files and that the kernel drops before it kills. Not tmpfs."""

    def held_bytes(self) -> int:
        """What is charged to the group now and would not be dropped: all but the page cache."""
        return self.usage_bytes() - self.page_cache_bytes()

    @abstractmethod
    def peak_bytes(self) -> int:
        """The highest usage since the last `reset_peak` that worked, or since the group was made."""

    @abstractmethod
    def reset_peak(self) -> bool:
        """Start a new peak; False where the kernel or the agent's rights do not allow it."""

    @abstractmethod
    def oom_kills(self) -> int:
        """How many processes the kernel has killed for memory."""

    @abstractmethod
    def refused_processes(self) -> int:
        """How often a fork was refused because of the limit on processes."""

    def close(self) -> None:  # noqa: B027 - most have nothing open
        """Give up what is held open. Idempotent."""


@dataclass(slots=True)
class ControlGroupV1(ControlGroup):
    """Three hierarchies, three folders."""

    memory: Path
    cpu: Path
    pids: Path
    _memory: _Counters = field(init=False, repr=False, compare=False)
    _pids: _Counters = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._memory = _Counters(self.memory)
        self._pids = _Counters(self.pids)

    def set_memory_limit(self, limit_bytes: int) -> None:  # noqa: D102 - see ControlGroup
        memory = self.memory / "memory.limit_in_bytes"
        with_swap = self.memory / "memory.memsw.limit_in_bytes"  # absent without swap accounting
        files = [memory, with_swap] if with_swap.exists() else [memory]
        # memory ≤ memory + swap must hold after each write: the order depends on the direction.
        if limit_bytes > int(memory.read_text()):
            files.reverse()
        for file in files:
            _write(file, str(limit_bytes))
        # What waits in sockets of TCP and UDP is no part of that, and without a limit not even counted.
        of_sockets = self.memory / "memory.kmem.tcp.limit_in_bytes"
        if of_sockets.exists():
            _write(of_sockets, str(limit_bytes // _SOCKETS_PART))

    def memory_limit(self) -> int:  # noqa: D102
        return self._memory.number("memory.limit_in_bytes")

    def set_cpus(self, share: float, most: float) -> None:  # noqa: D102
        _write(self.cpu / "cpu.cfs_quota_us", str(int(most * _CPU_PERIOD_US)))
        _write(self.cpu / "cpu.shares", str(max(2, int(share * _SHARES_PER_CPU))))

    def usage_bytes(self) -> int:  # noqa: D102
        return self._memory.number("memory.usage_in_bytes")

    def page_cache_bytes(self) -> int:  # noqa: D102
        stat = self._memory.text("memory.stat")
        return max(0, _value(stat, b"total_cache") - _value(stat, b"total_shmem"))

    def peak_bytes(self) -> int:  # noqa: D102
        return self._memory.number("memory.max_usage_in_bytes")

    def reset_peak(self) -> bool:  # noqa: D102
        try:
            self._memory.write("memory.max_usage_in_bytes", b"0")
        except PermissionError:
            return False
        return True

    def oom_kills(self) -> int:  # noqa: D102
        return _value(self._memory.text("memory.oom_control"), b"oom_kill")

    def refused_processes(self) -> int:  # noqa: D102
        return _value(self._pids.text("pids.events"), b"max")

    def close(self) -> None:  # noqa: D102
        self._memory.close()
        self._pids.close()


@dataclass(slots=True)
class ControlGroupV2(ControlGroup):
    """One folder. The peak's reset belongs to one open descriptor, so it is kept open (Linux ≥ 6.12)."""

    folder: Path
    _peak: int = -1
    _counters: _Counters = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._counters = _Counters(self.folder)

    def set_memory_limit(self, limit_bytes: int) -> None:  # noqa: D102
        _write(self.folder / "memory.max", str(limit_bytes))
        swap = self.folder / "memory.swap.max"
        if swap.exists():
            _write(swap, "0")

    def memory_limit(self) -> int:  # noqa: D102
        text = self._counters.text("memory.max").strip()
        return sys.maxsize if text == b"max" else int(text)

    def set_cpus(self, share: float, most: float) -> None:  # noqa: D102
        _write(self.folder / "cpu.max", f"{int(most * _CPU_PERIOD_US)} {_CPU_PERIOD_US}")
        _write(self.folder / "cpu.weight", str(min(10_000, max(1, int(share * 100)))))

    def usage_bytes(self) -> int:  # noqa: D102
        return self._counters.number("memory.current")

    def page_cache_bytes(self) -> int:  # noqa: D102
        stat = self._counters.text("memory.stat")
        return max(0, _value(stat, b"file") - _value(stat, b"shmem"))

    def peak_bytes(self) -> int:  # noqa: D102
        if self._peak >= 0:
            return int(os.pread(self._peak, 64, 0))
        try:
            return int((self.folder / "memory.peak").read_text())
        except FileNotFoundError:
            if not self.folder.exists():
                raise
            return sys.maxsize  # before Linux 5.19: it may have been any

    def reset_peak(self) -> bool:  # noqa: D102
        try:
            if self._peak < 0:
                self._peak = _opened(self.folder / "memory.peak", os.O_RDWR)
            os.pwrite(self._peak, b"reset\n", 0)
        except OSError:  # EACCES: not ours to write; EINVAL or ENOENT: an older kernel
            self._close_peak()
            return False
        return True

    def oom_kills(self) -> int:  # noqa: D102
        return _value(self._counters.text("memory.events"), b"oom_kill")

    def refused_processes(self) -> int:  # noqa: D102
        return _value(self._counters.text("pids.events"), b"max")

    def close(self) -> None:  # noqa: D102
        self._counters.close()
        self._close_peak()

    def _close_peak(self) -> None:
        if self._peak >= 0:
            os.close(self._peak)
            self._peak = -1


_SMALL_RUN_BYTES: Final = 2 * MIB


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What one run did to its group.

    Attributes:
        peak_bytes: The most it held at once beyond what the container held before; files in tmpfs count,
            the kernel's cache of other files does not. None when that is not known.
        oom_kills: Processes of it that the kernel killed for memory.
        refused_processes: Forks that the limit on processes refused.
    """

    peak_bytes: int | None
    oom_kills: int
    refused_processes: int


class RunMeter:
    """Measures one run of a container: made before it, `sample`d during it, read after it.

    The kernel's peak counts page cache, which would be dropped if memory were wanted; advice based on it
    misleads. What was cache when the peak was reached is not recorded, so two lower bounds are taken and
    the larger is believed: the peak less the cache at the end (exact when the cache only grew), and the
    largest of the samples, each exact at its moment.

    Where the counter cannot be reset it may still be an earlier run's. Then this run held no more than that,
    and whether it held as much is known only from a sample that comes near; else nothing is.

    To read the cache makes the kernel add up what each CPU has counted, which takes a tenth of a millisecond
    after a run. A run that has hardly raised the peak can have read hardly any file: its cache is left alone.

    Attributes:
        held_bytes: What the group held when it was last read, page cache excluded.
    """

    def __init__(self, group: ControlGroup) -> None:
        self._group = group
        self._exact = group.reset_peak()
        self._peak_before = group.peak_bytes()
        self._oom_kills = group.oom_kills()
        self._refused = group.refused_processes()
        usage, self._page_cache = group.usage_bytes(), group.page_cache_bytes()
        self._usage_before = usage
        self._base = self._sampled = self.held_bytes = usage - self._page_cache

    def sample(self) -> None:
        """Look at the usage now; harmless when the group is gone."""
        try:
            usage, self._page_cache = self._group.usage_bytes(), self._group.page_cache_bytes()
        except OSError:
            return
        self.held_bytes = usage - self._page_cache
        self._sampled = max(self._sampled, self.held_bytes)

    def read(self) -> MemoryUse:
        """The run's figures so far.

        Raises:
            OSError: The group is gone.
        """
        peak = self._group.peak_bytes()
        if not self._exact or peak - self._usage_before > _SMALL_RUN_BYTES:
            self.sample()
        held: int | None = self._sampled
        # Without a reset the counter still tells the truth when this run has raised it.
        if self._exact or peak > self._peak_before:
            held = max(self._sampled, peak - self._page_cache)
        elif peak - self._sampled > _SMALL_RUN_BYTES:
            held = None
        return MemoryUse(
            peak_bytes=None if held is None else max(0, held - self._base),
            oom_kills=self._group.oom_kills() - self._oom_kills,
            refused_processes=self._group.refused_processes() - self._refused,
        )
