"""Makes bound containers of the pool generic again, instead of removing them and creating others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from nanoagent.common.units import MIB
from nanoagent.container import charges
from nanoagent.container.base import NotRecycled, RecyclingFailure
from nanoagent.container.eviction import choose_recycled
from nanoagent.container.policy import GENERIC_MEMORY_MB, ContainerState, may_recycle
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from nanoagent.container.policy import PooledContainer
    from nanoagent.container.pool_context import PoolContext
    from nanoagent.container.retirement import Retirement

log = structlog.get_logger(__name__)


class Recycler:
    """Chooses containers to recycle, and recycles them. A container that has residue is retired.

    A container is recycled instead of an eviction. So two conditions must be true. First, the budget has no
    room for a new container, or it will have none when as many jobs run at the same time as lately: then one
    more container would only cause the next eviction. Second, the container is worth no more than those that
    would be evicted.

    Args:
        context: The collaborators and the state that the parts of the pool share.
        retirement: Retires a container that cannot be made generic again.
    """

    def __init__(self, context: PoolContext, retirement: Retirement) -> None:
        self._context = context
        self._policy = context.policy
        self._inventory = context.inventory
        self._retirement = retirement
        self._new_mb = dict.fromkeys(Runtime, 0)

    def note_created(self, pooled: PooledContainer) -> None:
        """Note how much memory a new container of a runtime takes from the budget while it is idle."""
        self._new_mb[pooled.runtime] = pooled.memory_mb

    def candidate(self, runtime: Runtime) -> PooledContainer | None:
        """Return the idle container to recycle for a generic container of a runtime.

        None if there is room for a new container, or if other containers should be evicted for it.
        """
        if not self._policy.recycles:
            return None
        now = self._context.clock()
        budget, waiting_mb = self._context.budget, GENERIC_MEMORY_MB * self._context.waiting.count(runtime)
        shortage = budget.shortage(GENERIC_MEMORY_MB, containers=1) or budget.coming_shortage(
            self._new_mb[runtime], waiting_mb
        )
        if shortage is None:
            return None

        def is_suitable(pooled: PooledContainer) -> bool:
            return pooled.runtime is runtime and may_recycle(pooled, self._policy, now)

        return choose_recycled(
            self._context.valuation.candidates(), is_suitable, shortage.memory_mb * MIB, shortage.containers
        )

    async def recycle(self, pooled: PooledContainer) -> bool:
        """Make an idle container generic. It is idle again afterwards, or it is retired.

        Returns:
            Whether the container is generic.
        """
        if pooled.state is not ContainerState.IDLE:
            return False
        begun = self._context.clock()
        self._inventory.begin_recycling(pooled)
        try:
            await self._context.driver.recycle(pooled.container)
            self._measure(pooled)
        except NotRecycled as exc:
            self._failed(pooled, exc.failure, str(exc))
        except Exception as exc:
            self._failed(pooled, RecyclingFailure.ERROR, f"an error inside the worker: {type(exc).__name__}")
            raise
        if not self._inventory.is_recycling(pooled):
            return False
        pooled.become_generic(self._context.clock())
        self._context.budget.resize(pooled, charges.of_idle(pooled))
        self._inventory.put_back(pooled)
        self._context.totals.recycled[pooled.runtime] += 1
        self._context.metrics.containers.recycled(pooled.runtime, self._context.clock() - begun)
        return True

    def _measure(self, pooled: PooledContainer) -> None:
        """Measure the memory of a generic container, and compare it with that after its creation.

        Raises:
            NotRecycled: It holds more than it did as a new container.
        """
        container = pooled.container
        if container.idle_memory is None:
            return
        try:
            container.base_bytes = container.held_bytes = container.idle_memory.held_bytes()
        except OSError as exc:
            raise NotRecycled(RecyclingFailure.ERROR, "the container has ended") from exc
        most_bytes = container.generic_bytes + charges.LEFTOVER_BYTES
        if container.held_bytes > most_bytes:
            reason = f"it holds {container.held_bytes} bytes (limit {most_bytes})"
            raise NotRecycled(RecyclingFailure.MEMORY, reason)

    def _failed(self, pooled: PooledContainer, failure: RecyclingFailure, reason: str) -> None:
        log.warning(
            "container not recycled",
            container=pooled.container.id[:12],
            runtime=pooled.runtime,
            failure=failure,
            reason=reason,
        )
        self._context.totals.recycling_failures[pooled.runtime][failure] += 1
        self._context.metrics.containers.recycling_failed(failure)
        self._retirement.retire(pooled, "recycling")
