"""The finite resources of the host: a budget for each, or a readiness reason when little is left.

* **File descriptors** of the worker: the soft limit is raised to the hard one at the start.
  `descriptor_plan` divides it among the worker itself, its containers, the connections of runs and the trees
  that the code cache keeps open. The pool evicts idle containers to stay within its part
  (`container.budget`). The descriptors that are really open are counted as well. Intake stops when few are
  left.
* **Processes, open files and control groups** of the whole machine are counted: runs and other programs use
  them up together. Intake stops when few are left.
* **Disk space and inodes** are looked at in `disk`. Memory, CPUs and user ids have budgets: `admission`,
  `container.budget`, `CONTAINER_UID_BASE`.

docs/operations.md lists all finite resources that were examined, also those without a budget.
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MIN_DESCRIPTORS: Final = 192
"""With fewer, there would be no room for containers."""

# Standard streams, the loop, 64 connections of scrapers and probes, 32 to Redis, and those to AWS and Docker.
OWN_DESCRIPTORS: Final = 128
DESCRIPTORS_PER_CONTAINER: Final = 12
"""Its supervisor's two connections, files of its control group, the leases on its code and program.

Nine were counted on control groups v1, where it has the most (tests/integration/test_supervisor.py).
"""

_PER_CONNECTION: Final = 2  # a run's, and the one that it is relayed to
_SPARE_DESCRIPTORS: Final = 32
_SPARE_PROCESSES: Final = 256
_SPARE_FILES: Final = 4096
_SPARE_GROUPS: Final = 1024
_MOST_MEMORY_GROUPS: Final = 65_535  # MEM_CGROUP_ID_MAX, mm/memcontrol.c; groups that are dying count too
_HOLDS_S: Final = 2.0

log = structlog.get_logger(__name__)


# --- file descriptors


@dataclass(frozen=True, slots=True)
class DescriptorPlan:
    """How many things that hold descriptors the worker may have.

    Attributes:
        containers: Containers, busy and idle.
        connections: Connections of all runs together.
        fresh_trees: Trees that the code cache keeps open because the store was asked lately.
    """

    containers: int
    connections: int
    fresh_trees: int


def descriptor_plan(limit: int, sockets_per_run: int) -> DescriptorPlan:
    """Divide the worker's file descriptors: half for containers, three eighths for connections of runs.

    Args:
        limit: How many there may be; `MIN_DESCRIPTORS` or more.
        sockets_per_run: How many listening sockets a run hands over.
    """
    rest = limit - OWN_DESCRIPTORS
    return DescriptorPlan(
        containers=max(1, rest // 2 // (DESCRIPTORS_PER_CONTAINER + sockets_per_run)),
        connections=max(1, rest * 3 // 8 // _PER_CONNECTION),
        fresh_trees=max(1, rest // 8),
    )


def raise_descriptor_limit() -> int:
    """Raise the soft limit on file descriptors to the hard one; returns the new limit."""
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
    """As many file descriptors as this process could allow itself."""
    return _finite(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _finite(limit: int) -> int:
    return 1 << 30 if limit == resource.RLIM_INFINITY else limit


def open_descriptors() -> int:
    """How many this process has open now."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - thousands of names, of which only the number counts


class Descriptors:
    """A readiness check: enough file descriptors of this process are left.

    Args:
        limit: How many there may be.
        evict: Evicts up to that many idle containers.
        count: How many are open now.
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
        self._limit = limit
        self._evict = evict
        self._count = count
        self._clock = clock
        self._looked_at = -math.inf
        self._reason: str | None = None

    async def not_ready_reason(self) -> str | None:
        """Why too few are left for jobs, or None; looks every two seconds at most."""
        if self._clock() - self._looked_at >= _HOLDS_S:
            used = await asyncio.to_thread(self._count)
            self._looked_at = self._clock()
            self._reason = descriptor_shortage(used, self._limit)
            if (missing := used + _SPARE_DESCRIPTORS - self._limit) > 0:
                self._evict(math.ceil(missing / DESCRIPTORS_PER_CONTAINER))
        return self._reason


def descriptor_shortage(used: int, limit: int) -> str | None:
    """Why too few descriptors are left, with the remedy; None if enough are left."""
    if limit - used >= _SPARE_DESCRIPTORS:
        return None
    return (
        f"{used} of {limit} file descriptors of the worker are open; idle containers are evicted: raise the "
        "hard limit (LimitNOFILE of the unit, ulimit -n)"
    )


# --- the whole machine


@dataclass(frozen=True, slots=True)
class Supply:
    """A finite thing of the whole machine.

    Attributes:
        name: Its name, in the plural.
        used: How many exist; None where that cannot be seen.
        most: How many there may be; None likewise.
        spare: Fewer left than this are too few.
        remedy: What to do.
    """

    name: str
    used: int | None
    most: int | None
    spare: int
    remedy: str

    def shortage(self) -> str | None:
        """Why it is short, with the remedy; None when it is not, or cannot be seen."""
        if self.used is None or self.most is None or self.most - self.used >= min(self.spare, self.most // 4):
            return None
        return f"{self.used} of {self.most} {self.name} of the machine are in use: {self.remedy}"


def supplies(text: Callable[[str], str | None]) -> list[Supply]:
    """The finite things of the machine that are counted.

    Args:
        text: The content of a file of the kernel's; None where it cannot be read.
    """
    open_files = (text("/proc/sys/fs/file-nr") or "").split()
    return [
        Supply(
            "processes and threads",
            _number((text("/proc/loadavg") or "").partition("/")[2]),
            _least(map(_number, map(text, ("/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max")))),
            _SPARE_PROCESSES,
            "end some, raise kernel.pid_max and kernel.threads-max, or lower MAX_PROCESSES",
        ),
        Supply(
            "open files",
            _number(open_files[0]) if open_files else None,
            _number(open_files[-1]) if open_files else None,
            _SPARE_FILES,
            "raise fs.file-max, or lower MAX_OPEN_FILES",
        ),
        Supply(
            "memory control groups",
            _memory_groups(text),
            _MOST_MEMORY_GROUPS,
            _SPARE_GROUPS,
            "groups of removed containers disappear when their memory is reclaimed "
            "(echo 2 > /proc/sys/vm/drop_caches)",
        ),
    ]


def _memory_groups(text: Callable[[str], str | None]) -> int | None:
    """How many there are, also of removed containers whose pages remain (cgroups(7))."""
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


class HostRoom:
    """A readiness check: the machine has enough processes, open files and control groups left.

    Args:
        text: The content of a file of the kernel's; None where it cannot be read.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        text: Callable[[str], str | None] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._text = text or _text
        self._clock = clock
        self._looked_at = -math.inf
        self._reason: str | None = None

    async def not_ready_reason(self) -> str | None:
        """Why too little is left for jobs, or None; looks every two seconds at most."""
        if self._clock() - self._looked_at >= _HOLDS_S:
            found = await asyncio.to_thread(supplies, self._text)
            self._looked_at = self._clock()
            self._reason = "; ".join(filter(None, (supply.shortage() for supply in found))) or None
        return self._reason


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except (OSError, ValueError):
        return None
