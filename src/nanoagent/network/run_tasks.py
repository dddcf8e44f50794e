"""The tasks that serve one run, and end with it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nanoagent.host.shielding import until_done

if TYPE_CHECKING:
    from collections.abc import Coroutine


class RunTasks:
    """The tasks that serve one run."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Start a task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Cancel all tasks, and wait until they have ended, even if the caller is cancelled meanwhile."""
        for task in self._tasks:
            task.cancel()
        await until_done(*self._tasks)
