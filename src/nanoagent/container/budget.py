"""The memory and the number of containers that the pool has left: pure questions, no actions.

The sum of the memory of all containers, whether they are idle or busy, stays within one limit. A generic
container counts with its memory limit; a bound one counts with its job's memory limit plus the memory that
it holds beside a run (waiting interpreters, the code), once that has been measured. The number of containers
is limited as well, because each holds file descriptors of the worker.

A container counts from the beginning of its creation. Its memory counts until it is retired. It counts in the
number until its removal has ended, because the worker holds its file descriptors until then.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanoagent.container.policy import GENERIC_MEMORY_MB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.container.policy import PooledContainer


@dataclass(frozen=True, slots=True)
class Shortage:
    """The memory and the number of containers that idle containers have to free.

    Attributes:
        memory_mb: MiB; 0 or less if enough is free.
        containers: How many containers; 0 or less if it suffices that the removals end which have begun.
    """

    memory_mb: int
    containers: int


@dataclass(slots=True)
class Budget:
    """The memory and the number of containers, with their limits.

    Attributes:
        limit_mb: The limit of the memory of all containers together, MiB.
        most_containers: The limit of their number.
        committed_mb: The memory of the containers that are up or being created, MiB.
        wanted_mb: The memory that jobs wait for, MiB. Refills leave it free.
        up: How many containers are up.
        creating: How many are being created.
        removing: How many are being removed.
    """

    limit_mb: int
    most_containers: int
    committed_mb: int = 0
    wanted_mb: int = 0
    up: int = 0
    creating: int = 0
    removing: int = 0

    # --- changes

    def begin_creation(self) -> None:
        """The creation of a generic container begins."""
        self.committed_mb += GENERIC_MEMORY_MB
        self.creating += 1

    def fail_creation(self) -> None:
        """A creation has failed."""
        self.committed_mb -= GENERIC_MEMORY_MB
        self.creating -= 1

    def finish_creation(self) -> None:
        """A creation has succeeded."""
        self.creating -= 1
        self.up += 1

    def resize(self, pooled: PooledContainer, memory_mb: int) -> None:
        """Count a container with another amount of memory, MiB."""
        self.committed_mb += memory_mb - pooled.memory_mb
        pooled.memory_mb = memory_mb

    def begin_removal(self, pooled: PooledContainer) -> None:
        """A container is retired and its removal begins."""
        self.committed_mb -= pooled.memory_mb
        self.up -= 1
        self.removing += 1

    def finish_removal(self) -> None:
        """A removal has ended, whether it succeeded or not."""
        self.removing -= 1

    @contextmanager
    def wanting(self, memory_mb: int) -> Iterator[None]:
        """Keep refills from the memory that a job waits for."""
        self.wanted_mb += memory_mb
        try:
            yield
        finally:
            self.wanted_mb -= memory_mb

    # --- questions

    def shortage(self, memory_mb: int, containers: int = 0) -> Shortage | None:
        """The shortage for so much more memory and so many more containers; None if they fit.

        Args:
            memory_mb: MiB.
            containers: How many containers are about to be created. Containers whose removal has not ended
                count in that case.
        """
        missing_mb = self.committed_mb + memory_mb - self.limit_mb
        too_many = self.up + self.creating + containers - self.most_containers if containers else 0
        waits_for_removals = containers > 0 and too_many + self.removing > 0
        return Shortage(missing_mb, too_many) if missing_mb > 0 or waits_for_removals else None

    def fits_generic(self) -> bool:
        """Whether one more generic container fits beside all containers and the jobs that wait for memory."""
        memory_mb = self.committed_mb + self.wanted_mb + GENERIC_MEMORY_MB
        number = self.up + self.creating + self.removing
        return memory_mb <= self.limit_mb and number < self.most_containers

    def allows_refill(self, planned: int) -> bool:
        """Whether a refill may plan one more generic container.

        Args:
            planned: How many creations have been started. The memory of a creation that `creating` counts
                as well counts twice, until it ends. The refill that follows then corrects that.
        """
        memory_mb = self.committed_mb + self.wanted_mb + (planned + 1) * GENERIC_MEMORY_MB
        number = self.up + self.removing + planned
        return memory_mb <= self.limit_mb and number < self.most_containers
