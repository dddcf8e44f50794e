"""The collaborators and the state that the parts of the pool share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.container.base import Driver
    from nanoagent.container.budget import Budget
    from nanoagent.container.demand import WantedGeneric
    from nanoagent.container.inventory import Inventory
    from nanoagent.container.policy import PoolPolicy
    from nanoagent.container.strays import Strays
    from nanoagent.container.totals import Totals
    from nanoagent.container.valuation import Valuation
    from nanoagent.container.waiting import WaitingJobs
    from nanoagent.container.worker_home import WorkerHome
    from nanoagent.host.background import Background
    from nanoagent.telemetry.metrics import Metrics


class Changes:
    """Wakes the tasks that wait for room in the budget, or for the end of a creation."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Wake all tasks that wait now."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolContext:
    """The collaborators of the pool, and the state that several of its parts change.

    Attributes:
        driver: Creates and removes containers.
        home: The worker's folder, with the work directories of containers.
        policy: The pool's settings.
        metrics: Counts starts, retirements and failures.
        background: Starts the pool's tasks.
        clock: Returns monotonic seconds.
        inventory: The containers.
        budget: The budget of the pool: counts the memory and the number of the containers.
        waiting: The jobs that wait for a container.
        valuation: The values of idle containers.
        totals: The starts and retirements until now.
        wanted: How many generic containers to keep ready.
        changes: Wakes tasks when the budget may have more room.
        strays: Removes stray containers after a creation or a removal has failed.
    """

    driver: Driver
    home: WorkerHome
    policy: PoolPolicy
    metrics: Metrics
    background: Background
    clock: Callable[[], float]
    inventory: Inventory
    budget: Budget
    waiting: WaitingJobs
    valuation: Valuation
    totals: Totals
    wanted: WantedGeneric
    changes: Changes
    strays: Strays
