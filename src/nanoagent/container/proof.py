"""Checks from outside that nothing of a function is left in a container.

The launcher of the container looks for residue from inside. It never reads untrusted data, so its answer can
be trusted. The checks here do not depend on that answer: the kernel counts the processes and the memory of
the container.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB
from nanoagent.container.base import NotRecycled, RecyclingFailure

if TYPE_CHECKING:
    from nanoagent.container.cgroup import ControlGroup

MOST_BYTES: Final = 4 * MIB
"""The memory that a container may hold while its launcher is the only process, without the page cache.

The launcher takes 0.3 MiB. The rest is memory of the kernel for names of files that were used.
"""

_ATTEMPTS: Final = 100
_PAUSE_S: Final = 0.005  # the kernel frees namespaces and their memory a little later than the last process


async def check_alone(group: ControlGroup, process_1: int) -> None:
    """Check that process 1 is alone in its container, and that the memory of all others is free.

    Args:
        group: The control group of the container.
        process_1: Process 1 of the container, as this machine numbers it.

    Raises:
        NotRecycled: Another process exists, memory is still in use, or the container has died.
    """
    problem = NotRecycled(RecyclingFailure.PROCESSES, "the container has ended")
    for attempt in range(_ATTEMPTS):
        if attempt:
            await asyncio.sleep(_PAUSE_S)
        try:
            processes, tasks, held_bytes = group.processes(), group.task_count(), group.held_bytes()
        except OSError as exc:
            raise problem from exc
        if processes != [process_1] or tasks != 1:
            text = (
                f"{len(processes)} processes and {tasks} threads are left, expected process {process_1} only"
            )
            problem = NotRecycled(RecyclingFailure.PROCESSES, text)
        elif held_bytes > MOST_BYTES:
            text = f"{held_bytes} bytes of memory are in use (limit {MOST_BYTES})"
            problem = NotRecycled(RecyclingFailure.MEMORY, text)
        else:
            return
    raise problem
