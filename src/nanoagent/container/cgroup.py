"""Reads and writes the files of a container's control group: limits, and counters of the kernel.

Both versions of control groups are supported.

The worker judges a run by the counters of the kernel, because a container could report false numbers. The
worker reads the files itself, because Docker's API takes milliseconds for limits and a second for statistics.
Reading a file takes 0.5 µs if it is open, and 10 µs if it must be opened. So files that are read in every run
stay open.

Sources: kernel documentation, admin-guide/cgroup-v2 and cgroup-v1/{memory,pids}; pid_namespaces(7).
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from nanoagent.common.units import MIB
from nanoagent.container import capability

_CPU_PERIOD_US: Final = 100_000  # the default of the kernel
_SHARES_PER_CPU: Final = 1024  # cpu.shares of version 1; version 2 has a weight of 100 for one CPU
# Version 1 has a separate limit for the data in sockets. It is the memory limit divided by this number.
_SOCKETS_PART: Final = 4
_LARGEST_FILE_BYTES: Final = 16 * 1024  # memory.stat has about 2 KiB


def controllers_of(proc_cgroup: str) -> dict[str, str]:
    """Parse /proc/PID/cgroup.

    Returns:
        Controller → path. The controller of the unified hierarchy is "".
    """
    paths = {}
    for line in proc_cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def mounts_of(mountinfo: str) -> dict[str, Path]:
    """Parse /proc/self/mountinfo.

    Returns:
        Controller → mount point. The controller of the unified hierarchy is "".
    """
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
    """Return the control group of a process; None if its files are not visible (a remote Docker).

    Args:
        pid: The process.
        proc: The folder of procfs.
    """
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


class _GroupFiles:
    """The files of one folder. Each is opened at its first use, and stays open.

    Methods raise OSError when the group does not exist any more.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[tuple[str, int], int] = {}

    def _descriptor(self, name: str, flags: int) -> int:
        if (name, flags) not in self._open:
            self._open[name, flags] = _opened(self._folder / name, flags)
        return self._open[name, flags]

    def text(self, name: str) -> bytes:
        """Read a file."""
        return os.pread(self._descriptor(name, os.O_RDONLY), _LARGEST_FILE_BYTES, 0)

    def write(self, name: str, text: bytes) -> None:
        """Write to a file. Raises PermissionError if the worker may not."""
        os.pwrite(self._descriptor(name, os.O_WRONLY), text, 0)

    def number(self, name: str) -> int:
        """Read a file that has one number."""
        return int(self.text(name))

    def close(self) -> None:
        """Close all files. Idempotent."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()


def _opened(file: Path, flags: int) -> int:
    """Open a file of a group. Raises PermissionError if the worker may not write to it."""
    with nullcontext() if flags == os.O_RDONLY else capability.raised():
        return os.open(file, flags | os.O_CLOEXEC)


def _write(file: Path, text: str) -> None:
    """Write to a file of a group, without keeping it open. Raises PermissionError if the worker may not."""
    with capability.raised():
        file.write_text(text)


def _value(lines: bytes, name: bytes) -> int:
    """Return the number in the line "name number"; 0 if the kernel has no such line."""
    _, found, behind = (b"\n" + lines).partition(b"\n" + name + b" ")
    return int(behind.partition(b"\n")[0]) if found else 0


class ControlGroup(ABC):
    """The control group of a container. Methods raise OSError when the group does not exist any more."""

    @abstractmethod
    def set_memory_limit(self, limit_bytes: int) -> None:
        """Set the limit of memory; there is no swap. Raises PermissionError if the worker may not."""

    @abstractmethod
    def memory_limit(self) -> int:
        """Return the limit of memory in bytes."""

    @abstractmethod
    def set_cpus(self, share: float, most: float) -> None:
        """Set the CPUs of the group.

        Args:
            share: The CPUs that it gets under contention.
            most: The CPUs that it may use while they are free.
        """

    @abstractmethod
    def usage_bytes(self) -> int:
        """Return the memory that is charged to the group now, with the page cache."""

    @abstractmethod
    def page_cache_bytes(self) -> int:
        """Return the page cache, without tmpfs. The kernel drops it before it kills a process."""

    def cache_bytes(self) -> tuple[int, int]:
        """Return the page cache without tmpfs, and the memory of tmpfs and of other shared memory."""
        return self.page_cache_bytes(), 0

    def held_bytes(self) -> int:
        """Return the memory that is charged to the group now, without the page cache."""
        return self.usage_bytes() - self.page_cache_bytes()

    @abstractmethod
    def peak_bytes(self) -> int:
        """Return the highest usage since the last successful `reset_peak`, or since the group was made.

        It is `sys.maxsize` if the kernel does not record the peak.
        """

    @abstractmethod
    def reset_peak(self) -> bool:
        """Start a new peak; return False if the kernel or the permissions of the worker do not allow it."""

    @abstractmethod
    def oom_kills(self) -> int:
        """Return the number of processes that the kernel has killed because memory was used up."""

    @abstractmethod
    def refused_processes(self) -> int:
        """Return the number of forks that failed because of the limit on processes."""

    @abstractmethod
    def processes(self) -> list[int]:
        """Return the IDs of the processes in the group."""

    @abstractmethod
    def task_count(self) -> int:
        """Return the number of the group's threads, including those that have ended and are not reaped."""

    def close(self) -> None:  # noqa: B027 - a test double has no open files
        """Close the open files. Idempotent."""


@dataclass(slots=True)
class ControlGroupV1(ControlGroup):
    """A control group of version 1: a folder in each of three hierarchies."""

    memory: Path
    cpu: Path
    pids: Path
    _memory: _GroupFiles = field(init=False, repr=False, compare=False)
    _pids: _GroupFiles = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._memory = _GroupFiles(self.memory)
        self._pids = _GroupFiles(self.pids)

    def set_memory_limit(self, limit_bytes: int) -> None:  # noqa: D102 - see ControlGroup
        memory = self.memory / "memory.limit_in_bytes"
        with_swap = self.memory / "memory.memsw.limit_in_bytes"  # missing without swap accounting
        files = [memory, with_swap] if with_swap.exists() else [memory]
        # The limit of memory must never exceed the limit of memory and swap together. So if the limit rises,
        # the limit of both together is written first.
        if limit_bytes > int(memory.read_text()):
            files.reverse()
        for file in files:
            _write(file, str(limit_bytes))
        # The memory limit does not include the data in TCP and UDP sockets. The kernel counts that data only
        # if a separate limit for it is set.
        socket_limit = self.memory / "memory.kmem.tcp.limit_in_bytes"
        if socket_limit.exists():
            _write(socket_limit, str(limit_bytes // _SOCKETS_PART))

    def memory_limit(self) -> int:  # noqa: D102
        return self._memory.number("memory.limit_in_bytes")

    def set_cpus(self, share: float, most: float) -> None:  # noqa: D102
        _write(self.cpu / "cpu.cfs_quota_us", str(int(most * _CPU_PERIOD_US)))
        _write(self.cpu / "cpu.shares", str(max(2, int(share * _SHARES_PER_CPU))))

    def usage_bytes(self) -> int:  # noqa: D102
        return self._memory.number("memory.usage_in_bytes")

    def page_cache_bytes(self) -> int:  # noqa: D102
        return self.cache_bytes()[0]

    def cache_bytes(self) -> tuple[int, int]:  # noqa: D102
        stat = self._memory.text("memory.stat")
        files = _value(stat, b"total_shmem")
        return max(0, _value(stat, b"total_cache") - files), files

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

    def processes(self) -> list[int]:  # noqa: D102
        return [int(pid) for pid in (self.pids / "cgroup.procs").read_text().split()]

    def task_count(self) -> int:  # noqa: D102
        return int((self.pids / "pids.current").read_text())

    def close(self) -> None:  # noqa: D102
        self._memory.close()
        self._pids.close()


@dataclass(slots=True)
class ControlGroupV2(ControlGroup):
    """A control group of version 2: one folder.

    A reset of the peak is valid only for the descriptor that wrote it (Linux 6.12). So that descriptor stays
    open.
    """

    folder: Path
    _peak: int = -1
    _files: _GroupFiles = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._files = _GroupFiles(self.folder)

    def set_memory_limit(self, limit_bytes: int) -> None:  # noqa: D102
        _write(self.folder / "memory.max", str(limit_bytes))
        swap = self.folder / "memory.swap.max"
        if swap.exists():
            _write(swap, "0")

    def memory_limit(self) -> int:  # noqa: D102
        text = self._files.text("memory.max").strip()
        return sys.maxsize if text == b"max" else int(text)

    def set_cpus(self, share: float, most: float) -> None:  # noqa: D102
        _write(self.folder / "cpu.max", f"{int(most * _CPU_PERIOD_US)} {_CPU_PERIOD_US}")
        _write(self.folder / "cpu.weight", str(min(10_000, max(1, int(share * 100)))))

    def usage_bytes(self) -> int:  # noqa: D102
        return self._files.number("memory.current")

    def page_cache_bytes(self) -> int:  # noqa: D102
        return self.cache_bytes()[0]

    def cache_bytes(self) -> tuple[int, int]:  # noqa: D102
        stat = self._files.text("memory.stat")
        files = _value(stat, b"shmem")
        return max(0, _value(stat, b"file") - files), files

    def peak_bytes(self) -> int:  # noqa: D102
        if self._peak >= 0:
            return int(os.pread(self._peak, 64, 0))
        try:
            return int((self.folder / "memory.peak").read_text())
        except FileNotFoundError:
            if not self.folder.exists():
                raise
            return sys.maxsize  # the peak is unknown before Linux 5.19

    def reset_peak(self) -> bool:  # noqa: D102
        try:
            if self._peak < 0:
                self._peak = _opened(self.folder / "memory.peak", os.O_RDWR)
            os.pwrite(self._peak, b"reset\n", 0)
        except OSError:  # EACCES: not permitted; EINVAL or ENOENT: an older kernel
            self._close_peak()
            return False
        return True

    def oom_kills(self) -> int:  # noqa: D102
        return _value(self._files.text("memory.events"), b"oom_kill")

    def refused_processes(self) -> int:  # noqa: D102
        return _value(self._files.text("pids.events"), b"max")

    def processes(self) -> list[int]:  # noqa: D102
        return [int(pid) for pid in (self.folder / "cgroup.procs").read_text().split()]

    def task_count(self) -> int:  # noqa: D102
        return int((self.folder / "pids.current").read_text())

    def close(self) -> None:  # noqa: D102
        self._files.close()
        self._close_peak()

    def _close_peak(self) -> None:
        if self._peak >= 0:
            os.close(self._peak)
            self._peak = -1


_SMALL_RUN_BYTES: Final = 2 * MIB
# Between runs the memory of a container differs by 0.3 MiB. The smallest sandbox with an interpreter takes
# 2.2 MiB.
_LEAST_GROWTH_BYTES: Final = MIB


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """The use of memory and processes by one run.

    Attributes:
        peak_bytes: The peak memory of the run, beyond the memory that the container held before. Files in
            tmpfs count; the page cache does not. None if it is unknown.
        oom_kills: The number of its processes that the kernel killed because memory was used up.
        refused_processes: The number of forks that failed because of the limit on processes.
        files_bytes: The largest sample of the memory of its files in tmpfs, if the kernel has killed a
            process; else None. The files may be gone at the end.
    """

    peak_bytes: int | None
    oom_kills: int
    refused_processes: int
    files_bytes: int | None = None


class RunMeter:
    """Measures one run of a container. It is made before the run, sampled during the run, and read after it.

    The kernel's peak includes page cache, which the kernel would drop if memory were short. So the page cache
    must not be part of the advice on memory. But the kernel does not record how large the page cache was at
    the peak. So two estimates are computed, and the larger one is the result:

    * the peak minus the page cache at the end. This is exact if the page cache did not change after the peak,
      and too low if it has grown since (docs/adr/0005);
    * the largest sample. Each sample is exact for its moment.

    If the worker cannot reset the peak, the peak may come from an earlier run. A peak that this run has not
    raised is only an upper bound. The result is then the largest sample if that is near the peak. If it is
    not, the result is unknown.

    Reading the size of the page cache takes 0.1 ms after a run, because the kernel adds the counters of all
    CPUs. A run that has hardly raised the peak has also read hardly any files. After such a run, the page
    cache is not read again. This is possible only if the peak was reset before the run.

    If runs follow each other without a pause, a sandbox for a later run is created during the run. Its memory
    does not belong to the run. `exclude_growth` subtracts it, when the memory of the run has been freed.

    Args:
        group: The control group of the container.
        idle_bytes: The memory that the container holds between two runs when all its sandboxes exist, without
            the page cache; 0 if unknown.

    Attributes:
        held_bytes: The memory that the group held at the last sample, without the page cache.
    """

    def __init__(self, group: ControlGroup, idle_bytes: int = 0) -> None:
        self._group = group
        self._exact = group.reset_peak()
        self._peak_before = group.peak_bytes()
        self._oom_kills = group.oom_kills()
        self._refused = group.refused_processes()
        usage = group.usage_bytes()
        self._page_cache, self._files_before = group.cache_bytes()
        self._most_files = self._files_before
        self._usage_before = usage
        self._base = self._sampled = self.held_bytes = usage - self._page_cache
        self._missing = idle_bytes - self._base

    def sample(self) -> None:
        """Sample the usage. Nothing happens if the group does not exist any more."""
        try:
            usage = self._group.usage_bytes()
            self._page_cache, files = self._group.cache_bytes()
        except OSError:
            return
        self._most_files = max(self._most_files, files)
        self.held_bytes = usage - self._page_cache
        self._sampled = max(self._sampled, self.held_bytes)

    def read(self) -> MemoryUse:
        """Return the use of the run until now.

        Raises:
            OSError: The group does not exist any more.
        """
        peak = self._group.peak_bytes()
        if not self._exact or peak - self._usage_before > _SMALL_RUN_BYTES or not self.began_complete:
            self.sample()
        held: int | None = self._sampled
        # Without a reset, a peak that has risen is still the peak of this run.
        if self._exact or peak > self._peak_before:
            held = max(self._sampled, peak - self._page_cache)
        elif peak - self._sampled > _SMALL_RUN_BYTES:
            held = None
        oom_kills = self._group.oom_kills() - self._oom_kills
        return MemoryUse(
            peak_bytes=None if held is None else max(0, held - self._base),
            oom_kills=oom_kills,
            refused_processes=self._group.refused_processes() - self._refused,
            files_bytes=self._most_files - self._files_before if oom_kills else None,
        )

    @property
    def began_complete(self) -> bool:
        """Whether all sandboxes of the container existed at the beginning of the run."""
        return self._missing < _LEAST_GROWTH_BYTES

    def freed_bytes(self) -> int:
        """Return how much less than `idle_bytes` the container holds now.

        After a run whose memory has been freed, and which began with all sandboxes, this is the size of a
        sandbox.

        The last sample is from the end of the program, and includes the files of the run. Now the files are
        freed, but new sandboxes may have grown. Both are too high, so the lower one counts.

        Raises:
            OSError: The group does not exist any more.
        """
        return self._base + self._missing - min(self.held_bytes, self._group.held_bytes())

    def exclude_growth(self, use: MemoryUse, sandbox_bytes: int) -> MemoryUse:
        """Return the use of the run without the memory of a sandbox that was created during the run.

        The result is exact if the sandbox was complete at the peak of the run. Otherwise the peak is too low,
        by the memory that the sandbox took between the peak and the end of the run. Call this after the
        memory of the run has been freed.

        Args:
            use: The use that `read` returned.
            sandbox_bytes: The memory of one sandbox. The run had one, which has been freed.

        Raises:
            OSError: The group does not exist any more.
        """
        if use.peak_bytes is None or self.began_complete:
            return use
        growth = sandbox_bytes + self._missing - self.freed_bytes()
        return replace(use, peak_bytes=max(0, use.peak_bytes - max(0, min(growth, self._missing))))
