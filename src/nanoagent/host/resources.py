"""Budgets of the host's finite resources, and readiness checks: if little is left, the worker takes no jobs.

* **File descriptors** of the worker: at the start, the worker raises its soft limit to the hard limit.
  `descriptor_plan` divides the limit among the worker itself, its containers, the connections of runs, and
  the trees that the code cache keeps open. The pool evicts idle containers to stay within its part
  (`container.budget`). `Descriptors` counts the descriptors that are open.
* **Processes, open files and control groups** of the whole machine: runs and other programs share them.
  `HostRoom` counts them.
* **Disk space and inodes**: `host.disk` checks them.
* **Memory, CPUs and user IDs** have their budgets elsewhere: `jobs.admission`, `container.budget` and
  CONTAINER_UID_BASE.

docs/operations.md lists all finite resources, including those without a budget.
"""

from __future__ import annotations

import asyncio
import math
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.host.cached_check import CachedCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MIN_DESCRIPTORS: Final = 192
"""The lowest limit on file descriptors with which a worker starts. Below it, containers get too few."""

# The standard streams, the event loop, 64 connections to the status server, 32 to Redis, and some to AWS and
# Docker.
OWN_DESCRIPTORS: Final = 128
DESCRIPTORS_PER_CONTAINER: Final = 11
"""The descriptors for one container: the connections of its launcher and supervisor, files of its control
group, and the folders of its code and program.

A container needs ten of them with control groups v1, and fewer with v2. One is a reserve
(tests/integration/test_supervisor.py).
"""

_PER_CONNECTION: Final = 2  # the connection of the run, and the worker's connection to the other end
_RESERVED_DESCRIPTORS: Final = 32
_RESERVED_PROCESSES: Final = 256
_RESERVED_FILES: Final = 4096
_RESERVED_GROUPS: Final = 1024
_MAX_MEMORY_GROUPS: Final = 65_535  # MEM_CGROUP_ID_MAX in mm/memcontrol.c, including groups that are dying
_CHECK_INTERVAL_S: Final = 2.0

log = structlog.get_logger(__name__)


# --- file descriptors


@dataclass(frozen=True, slots=True)
class DescriptorPlan:
    """The worker's budget of file descriptors, as numbers of the objects that hold descriptors.

    Attributes:
        containers: The largest number of containers, busy and idle.
        connections: The largest number of connections of all runs together.
        fresh_trees: The largest number of trees that the code cache keeps open (`code.fresh_trees`).
    """

    containers: int
    connections: int
    fresh_trees: int


def descriptor_plan(limit: int, sockets_per_run: int) -> DescriptorPlan:
    """Divide the worker's file descriptors.

    The worker itself needs `OWN_DESCRIPTORS`. Of the others, five eighths are for containers, a quarter for
    connections of runs, and an eighth for trees. So 20,000 descriptors are enough for a thousand functions.

    Args:
        limit: The limit on file descriptors; `MIN_DESCRIPTORS` or more.
        sockets_per_run: The number of listening sockets that each run passes to the worker.
    """
    rest = limit - OWN_DESCRIPTORS
    return DescriptorPlan(
        containers=max(1, rest * 5 // 8 // (DESCRIPTORS_PER_CONTAINER + sockets_per_run)),
        connections=max(1, rest // 4 // _PER_CONNECTION),
        fresh_trees=max(1, rest // 8),
    )


def raise_descriptor_limit() -> int:
    """Raise the soft limit on file descriptors to the hard limit. Return the new soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return _finite(soft)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as exc:
        log.warning("file descriptor limit not raised", soft=soft, hard=hard, reason=str(exc))
        return _finite(soft)
    log.info("file descriptor limit raised", before=soft, limit=hard)
    return _finite(hard)


def hard_descriptor_limit() -> int:
    """Return the hard limit on file descriptors of this process."""
    return _finite(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _finite(limit: int) -> int:
    return 1 << 30 if limit == resource.RLIM_INFINITY else limit


def open_descriptors() -> int:
    """Return the number of file descriptors that this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - thousands of names; only their number is needed


class Descriptors(CachedCheck):
    """A readiness check: this process has enough file descriptors left.

    Args:
        limit: The limit on file descriptors.
        evict: Evicts idle containers. Its argument is the largest number of containers to evict.
        count: Returns the number of open file descriptors.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        limit: int,
        evict: Callable[[int], object],
        *,
        count: Callable[[], int] = open_descriptors,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(_CHECK_INTERVAL_S, clock)
        self._limit = limit
        self._evict = evict
        self._count = count

    async def _check(self) -> str | None:
        used = await asyncio.to_thread(self._count)
        if (missing := used + _RESERVED_DESCRIPTORS - self._limit) > 0:
            self._evict(math.ceil(missing / DESCRIPTORS_PER_CONTAINER))
        return descriptor_shortage(used, self._limit)


def descriptor_shortage(used: int, limit: int) -> str | None:
    """Return a sentence with the remedy if too few descriptors are left; else None."""
    if limit - used >= _RESERVED_DESCRIPTORS:
        return None
    return (
        f"{used} of {limit} file descriptors of the worker are open; idle containers are evicted: raise the "
        "hard limit (LimitNOFILE of the unit, ulimit -n)"
    )


# --- the whole machine


@dataclass(frozen=True, slots=True)
class Supply:
    """A finite resource of the whole machine.

    Attributes:
        name: Its name, in the plural.
        used: The number in use; None if the number is unknown.
        limit: The largest number that can be in use; None if the limit is unknown.
        reserve: The number that must be left. A quarter of the limit is enough on a small machine.
        remedy: The remedy for a shortage.
    """

    name: str
    used: int | None
    limit: int | None
    reserve: int
    remedy: str

    def shortage(self) -> str | None:
        """Return a sentence with the remedy if too few are left; None if enough are left, or if unknown."""
        if self.used is None or self.limit is None:
            return None
        if self.limit - self.used >= min(self.reserve, self.limit // 4):
            return None
        return f"{self.used} of {self.limit} {self.name} of the machine are in use: {self.remedy}"


def supplies(text: Callable[[str], str | None]) -> list[Supply]:
    """Return the finite resources of the machine.

    Args:
        text: Returns the content of a file of the kernel; None if it cannot be read.
    """
    open_files = (text("/proc/sys/fs/file-nr") or "").split()
    return [
        Supply(
            "processes and threads",
            _number((text("/proc/loadavg") or "").partition("/")[2]),
            _least(map(_number, map(text, ("/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max")))),
            _RESERVED_PROCESSES,
            "end some processes, raise kernel.pid_max and kernel.threads-max, or lower MAX_PROCESSES",
        ),
        Supply(
            "open files",
            _number(open_files[0]) if open_files else None,
            _number(open_files[-1]) if open_files else None,
            _RESERVED_FILES,
            "raise fs.file-max, or lower MAX_OPEN_FILES",
        ),
        Supply(
            "memory control groups",
            _memory_groups(text),
            _MAX_MEMORY_GROUPS,
            _RESERVED_GROUPS,
            "groups of removed containers disappear when their memory is reclaimed "
            "(echo 2 > /proc/sys/vm/drop_caches)",
        ),
    ]


def _memory_groups(text: Callable[[str], str | None]) -> int | None:
    """Return the number of groups, including those of removed containers whose pages remain (cgroups(7))."""
    stat = dict(line.split() for line in (text("/sys/fs/cgroup/cgroup.stat") or "").splitlines())
    if "nr_descendants" in stat:
        return int(stat["nr_descendants"]) + int(stat.get("nr_dying_descendants", 0))
    for line in (text("/proc/cgroups") or "").splitlines():
        name, *numbers = line.split()
        if name == "memory":
            return int(numbers[1])
    return None


def _number(text: str | None) -> int | None:
    word = (text or "").split()[:1]
    return int(word[0]) if word and word[0].isdigit() else None


def _least(numbers: Iterable[int | None]) -> int | None:
    return min((number for number in numbers if number is not None), default=None)


class HostRoom(CachedCheck):
    """A readiness check: the machine has enough processes, open files and control groups left.

    Args:
        text: Returns the content of a file of the kernel; None if it cannot be read.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        text: Callable[[str], str | None] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(_CHECK_INTERVAL_S, clock)
        self._text = text or _text

    async def _check(self) -> str | None:
        found = await asyncio.to_thread(supplies, self._text)
        return "; ".join(filter(None, (supply.shortage() for supply in found))) or None


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except (OSError, ValueError):
        return None
