"""The containers of the pool. Only this module changes their states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoagent.container.policy import ContainerState, IdleContainers
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from nanoagent.container.policy import PooledContainer


class Inventory:
    """The containers of the pool: all of them by ID, the idle ones per runtime, and the busy ones.

    The state of a container decides in which lists the container is. A change of the state moves it.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, PooledContainer] = {}
        self._idle = {runtime: IdleContainers() for runtime in Runtime}
        self._busy: set[PooledContainer] = set()

    # --- changes

    def add(self, pooled: PooledContainer) -> None:
        """Add a container that was just created. It is idle."""
        self._by_id[pooled.container.id] = pooled
        self._idle[pooled.runtime].add(pooled)

    def take(self, pooled: PooledContainer) -> None:
        """Give an idle container to a job."""
        self._move(pooled, ContainerState.BUSY)

    def put_back(self, pooled: PooledContainer) -> None:
        """Make the container of a job, or one that was recycled, idle again."""
        self._move(pooled, ContainerState.IDLE)

    def begin_recycling(self, pooled: PooledContainer) -> None:
        """Take an idle container out of use, until it is put back."""
        self._move(pooled, ContainerState.RECYCLING)

    def note_death(self, pooled: PooledContainer) -> None:
        """Note that the container of a job has died. The job still has it."""
        self._move(pooled, ContainerState.DEAD)

    def remove(self, pooled: PooledContainer) -> bool:
        """Remove a container in any state.

        Returns:
            False if it was removed before.
        """
        if pooled.state is ContainerState.RETIRED:
            return False
        self._move(pooled, ContainerState.RETIRED)
        return True

    def _move(self, pooled: PooledContainer, state: ContainerState) -> None:
        before = pooled.state
        pooled.enter(state)
        if before is ContainerState.IDLE:
            self._idle[pooled.runtime].remove(pooled)
        else:
            self._busy.discard(pooled)
        if state is ContainerState.IDLE:
            self._idle[pooled.runtime].add(pooled)
        elif state is ContainerState.RETIRED:
            del self._by_id[pooled.container.id]
        elif state is not ContainerState.RECYCLING:
            self._busy.add(pooled)

    # --- questions

    @staticmethod
    def is_recycling(pooled: PooledContainer) -> bool:
        """Whether a container is being recycled. It may have been retired meanwhile."""
        return pooled.state is ContainerState.RECYCLING

    def get(self, container_id: str) -> PooledContainer | None:
        """Return the container with an ID; None if the pool does not have it."""
        return self._by_id.get(container_id)

    def all(self) -> list[PooledContainer]:
        """Return all containers in the order of their creation."""
        return list(self._by_id.values())

    def idle(self, runtime: Runtime) -> IdleContainers:
        """Return the idle containers of a runtime. Only the inventory changes them."""
        return self._idle[runtime]

    def all_idle(self) -> list[PooledContainer]:
        """Return the idle containers of all runtimes."""
        return [pooled for idle in self._idle.values() for pooled in idle]

    def generic(self, runtime: Runtime) -> int:
        """Return the number of idle generic containers of a runtime."""
        return len(self._idle[runtime].generic)

    def busy(self, runtime: Runtime) -> int:
        """Return the number of a runtime's containers that are in use by jobs, including dead containers."""
        return sum(pooled.runtime == runtime for pooled in self._busy)
