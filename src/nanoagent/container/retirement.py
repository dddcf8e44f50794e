"""Retires containers: removes them from the pool and from Docker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent.common.units import MIB
from nanoagent.container import charges
from nanoagent.container.eviction import choose_victims
from nanoagent.container.policy import retirement_reason
from nanoagent.host.background import TaskName
from nanoagent.host.shielding import uninterrupted
from nanoagent.model.errors import ContainerError
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.container.policy import PooledContainer
    from nanoagent.container.pool_context import PoolContext

log = structlog.get_logger(__name__)

_SWEEP_S: Final = 2.0
_PASSES_IN_PEAK: Final = 8  # so that a peak of the runs' memory counts for 16 to 32 s


class Retirement:
    """Retires containers: after an unclean run, at a certain age, or because a job needs their memory.

    It owns the removals that are under way.

    Args:
        context: The collaborators and the state that the parts of the pool share.
        refill: Starts the creations that are needed and allowed. Called when the budget may have more room.
        recycle: Begins to recycle an idle container whose function is unused, and returns True; returns False
            if no generic container is wanted.

    Attributes:
        removals: The tasks of the removals that are under way.
    """

    def __init__(
        self, context: PoolContext, refill: Callable[[], None], recycle: Callable[[PooledContainer], bool]
    ) -> None:
        self.removals: set[asyncio.Task[Any]] = set()
        self._context = context
        self._inventory = context.inventory
        self._budget = context.budget
        self._changes = context.changes
        self._refill = refill
        self._recycle = recycle

    # --- one container

    def retire(self, pooled: PooledContainer, reason: str) -> None:
        """Remove a container from the pool and its budget, in any state. Docker removes it in the background.

        Idempotent, because a job may release a container that the closing pool has already retired.

        Args:
            pooled: The container.
            reason: The label `reason` of the metric.
        """
        if not self._inventory.remove(pooled):
            return
        self._context.metrics.containers.retired(reason, pooled.runtime)
        self._context.totals.record_retirement(pooled, reason, self._context.clock())
        self._budget.begin_removal(pooled)
        work = self._remove(pooled)
        removal = self._context.background.once(TaskName.CONTAINER_REMOVAL, work, self.removals)
        removal.add_done_callback(lambda _: self._removed())
        self._changes.notify()
        asyncio.get_running_loop().call_soon(self._refill)

    async def _remove(self, pooled: PooledContainer) -> None:
        container = pooled.container
        if container.group is not None:
            container.group.close()
        removed = False
        try:
            await self._context.driver.remove(container.id)
            removed = True
        except ContainerError as exc:
            log.warning("container not removed", container=container.id[:12], reason=str(exc))
        finally:
            # A container counts as stray only after its work directory is removed. So the directory is
            # removed before `suspect`. Otherwise the search could miss this container, and there is no second
            # search.
            await uninterrupted(container.work_directory.remove())
            if not removed:
                self._context.strays.suspect()

    def _removed(self) -> None:
        self._budget.finish_removal()
        self._changes.notify()
        self._refill()

    # --- room

    async def make_room(self, memory_mb: int, containers: int = 0) -> None:
        """Retire idle containers until the budget has room. If that is not enough, wait for other jobs.

        A job that needs memory for a container which it already has does not wait if no other job runs.

        Args:
            memory_mb: The additional memory, MiB.
            containers: The number of containers that will be created.
        """
        with self._budget.wanting(memory_mb):
            while (shortage := self._budget.shortage(memory_mb, containers)) is not None:
                if self.evict(shortage.memory_mb, shortage.containers):
                    continue
                if not containers and self._budget.is_unused:
                    return
                await self._changes.wait()

    def evict(self, memory_mb: int, containers: int) -> bool:
        """Retire the least valuable idle containers.

        Args:
            memory_mb: The memory to free, MiB.
            containers: The least number of containers to retire.

        Returns:
            Whether a container was retired.
        """
        chosen = choose_victims(self._context.valuation.candidates(), memory_mb * MIB, containers)
        for victim in chosen:
            self.retire(victim.item, "evicted")
        return bool(chosen)

    # --- time

    async def sweep(self) -> None:
        """Retire idle containers that are old, unused or have grown, and refill, until cancelled.

        Each pass also measures their memory. If they have grown beyond the budget, some are evicted.
        """
        passes = 0
        while True:
            await asyncio.sleep(_SWEEP_S)
            passes += 1
            if passes % _PASSES_IN_PEAK == 0:
                self._budget.begin_peak()
            self.sweep_once()

    def sweep_once(self) -> None:
        """Make one pass of the sweep."""
        now = self._context.clock()
        for pooled in self._inventory.all_idle():
            self._measure(pooled)
            reason = retirement_reason(pooled, self._context.policy, now)
            if reason is not None and not (reason == "idle" and self._recycle(pooled)):
                self.retire(pooled, reason)
        for runtime in Runtime:
            generic = [*self._inventory.idle(runtime).generic]
            for pooled in generic[self._context.wanted.number(runtime) :]:
                self.retire(pooled, "surplus")
        if (overdraft_mb := self._budget.overdraft_mb) > 0:
            self.evict(overdraft_mb, containers=0)
        self._refill()

    def _measure(self, pooled: PooledContainer) -> None:
        """Measure the memory of an idle container, and count it in the budget."""
        container = pooled.container
        if container.idle_memory is None:
            return
        try:
            container.held_bytes = container.idle_memory.held_bytes()
        except OSError:  # the container has died, which the pool learns in another way
            return
        self._budget.resize(pooled, charges.of_idle(pooled))
