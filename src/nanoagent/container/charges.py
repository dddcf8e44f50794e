"""The memory that a container takes from the pool's budget. The functions are pure, except `IdleMemory`.

* While a job has a container, it takes the memory limit of the job, and all that it holds besides a run:
  waiting interpreters and the code. So the memory that a run may use is free before the run begins.
* While a container is idle, it takes the memory that it holds. No program of a user runs in it then.
* A container takes `OVERHEAD_BYTES` in addition, for processes outside of its control group.
* If its control group is not visible (a remote Docker), it always takes as much as while a job has it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from nanoagent.container.cgroup import ControlGroup
    from nanoagent.container.policy import PooledContainer

OVERHEAD_BYTES: Final = 3 * MIB
"""The memory for a container outside of its control group, measured with 400 containers.

2.6 MiB for the containerd shim (its private pages), the rest for objects in dockerd, containerd and the
worker.
"""

LEFTOVER_BYTES: Final = 8 * MIB
"""The memory that a container may hold between runs beyond that after its binding.

The kernel frees its own structures shortly after the processes. If more memory remains, the run left it.
"""

_SMALL_CHANGE_BYTES: Final = 256 * 1024  # pages that the kernel frees late


def idle_mb(held_bytes: int) -> int:
    """Return the memory that an idle container takes from the budget, MiB.

    Args:
        held_bytes: The memory that it holds, without the page cache.
    """
    return math.ceil((held_bytes + OVERHEAD_BYTES) / MIB)


def busy_mb(memory_mb: int, held_bytes: int) -> int:
    """Return the memory that a container takes from the budget while a job has it, MiB.

    Args:
        memory_mb: The memory limit of the job, MiB.
        held_bytes: The memory that the container holds besides a run, without the page cache.
    """
    return memory_mb + idle_mb(held_bytes)


def of_idle(pooled: PooledContainer) -> int:
    """Return the memory that a container of the pool takes from the budget while it is idle, MiB."""
    container = pooled.container
    return pooled.memory_mb if container.group is None else idle_mb(container.held_bytes)


class IdleMemory:
    """Measures the memory of an idle container repeatedly.

    The usage with the page cache is one file of the kernel, and fast to read. The page cache is read again
    only after the usage has changed.

    Args:
        group: The control group of the container.
    """

    def __init__(self, group: ControlGroup) -> None:
        self._group = group
        self._usage = 0
        self._held = 0

    def held_bytes(self) -> int:
        """Return the memory that the container holds, without the page cache.

        The error is at most `_SMALL_CHANGE_BYTES`.

        Raises:
            OSError: The group does not exist any more.
        """
        usage = self._group.usage_bytes()
        if abs(usage - self._usage) > _SMALL_CHANGE_BYTES:
            self._usage = usage
            self._held = max(0, usage - self._group.page_cache_bytes())
        return self._held
