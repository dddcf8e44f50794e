"""The containers of the pool, and the only place that changes their states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoagent.container.policy import ContainerState
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from nanoagent.container.policy import PooledContainer


class Inventory:
    """The containers of the pool: by id, idle ones per runtime in the order of their last use, and busy ones.

    A container is in the lists that belong to its state. A change of the state moves it.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, PooledContainer] = {}
        self._idle: dict[Runtime, list[PooledContainer]] = {runtime: [] for runtime in Runtime}
        self._busy: set[PooledContainer] = set()

    # --- changes

    def add(self, pooled: PooledContainer) -> None:
        """Add a container that has just been created; it is idle."""
        self._by_id[pooled.container.id] = pooled
        self._idle[pooled.runtime].append(pooled)

    def take(self, pooled: PooledContainer) -> None:
        """Give an idle container to a job."""
        self._move(pooled, ContainerState.BUSY)

    def put_back(self, pooled: PooledContainer) -> None:
        """Make the container of a job idle again."""
        self._move(pooled, ContainerState.IDLE)

    def note_death(self, pooled: PooledContainer) -> None:
        """Note that the container of a job has died; the job still has it."""
        self._move(pooled, ContainerState.DEAD)

    def remove(self, pooled: PooledContainer) -> bool:
        """Remove a container, whatever its state.

        Returns:
            False if that has been done before.
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
            self._idle[pooled.runtime].append(pooled)
        elif state is ContainerState.RETIRED:
            del self._by_id[pooled.container.id]
        else:
            self._busy.add(pooled)

    # --- questions

    def get(self, container_id: str) -> PooledContainer | None:
        """The container with that id; None if the pool has none."""
        return self._by_id.get(container_id)

    def all(self) -> list[PooledContainer]:
        """Every container, in the order of their creation."""
        return list(self._by_id.values())

    def idle(self, runtime: Runtime) -> list[PooledContainer]:
        """The idle containers of a runtime, the one that was used last at the end."""
        return list(self._idle[runtime])

    def all_idle(self) -> list[PooledContainer]:
        """The idle containers of all runtimes."""
        return [pooled for idle in self._idle.values() for pooled in idle]

    def generic(self, runtime: Runtime) -> int:
        """How many generic containers of a runtime are idle."""
        return sum(pooled.is_generic for pooled in self._idle[runtime])

    def busy(self, runtime: Runtime) -> int:
        """How many containers of a runtime jobs have, dead ones included."""
        return sum(pooled.runtime == runtime for pooled in self._busy)
