"""The budget of the pool: counts the memory and the number of its containers. Other modules apply it.

All containers together, idle and busy, stay within one limit of memory. `charges` says how much a container
takes: while it is idle, the memory that it holds; while a job has it, the limit of the job in addition.
During its creation it takes `GENERIC_MEMORY_MB`. The number of containers has a limit because each takes file
descriptors of the worker.

A container takes memory from the start of its creation until it is retired. It counts towards the number of
containers until the end of its removal, because the worker holds its file descriptors until then.

One job may always run: if no other job has a container with its memory limit, and nothing can be evicted, a
job does not wait for memory. Otherwise jobs could wait for each other: a container that waits for the memory
of its job also holds memory.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nanoagent.container.policy import GENERIC_MEMORY_MB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.container.policy import PooledContainer


@dataclass(frozen=True, slots=True)
class Shortage:
    """The memory and the number of containers that must be freed.

    Attributes:
        memory_mb: The memory to free, MiB; 0 or less if enough is free.
        containers: The number of containers to retire; 0 or less if the removals under way are enough.
    """

    memory_mb: int
    containers: int


@dataclass(slots=True)
class Budget:
    """The memory and the number of containers, with their limits.

    Attributes:
        limit_mb: The limit of the memory of all containers together, MiB.
        most_containers: The limit of the number of containers.
        committed_mb: The memory of the containers that are running or being created, MiB.
        wanted_mb: The memory that jobs wait for, MiB. Refills leave it free.
        running: The number of containers that are running.
        creating: The number of containers that are being created.
        removing: The number of containers that are being removed.
        lent: The containers that take the memory of a job, with that memory, MiB; 0 if the job is no run.
        runs_mb: The memory of all runs together, MiB. Builds and compilations do not count: they are rare,
            and a build takes as much memory as several runs.
        peaks_mb: The highest `runs_mb` since the last call of `begin_peak`, and between the two calls before
            it, MiB.
    """

    limit_mb: int
    most_containers: int
    committed_mb: int = 0
    wanted_mb: int = 0
    running: int = 0
    creating: int = 0
    removing: int = 0
    lent: dict[PooledContainer, int] = field(default_factory=dict)
    runs_mb: int = 0
    peaks_mb: tuple[int, int] = field(default=(0, 0), compare=False)

    # --- changes

    def begin_creation(self) -> None:
        """Count a generic container whose creation begins."""
        self.committed_mb += GENERIC_MEMORY_MB
        self.creating += 1

    def fail_creation(self) -> None:
        """Note that a creation has failed."""
        self.committed_mb -= GENERIC_MEMORY_MB
        self.creating -= 1

    def finish_creation(self) -> None:
        """Note that a creation has succeeded."""
        self.creating -= 1
        self.running += 1

    def resize(self, pooled: PooledContainer, memory_mb: int) -> None:
        """Change the memory that a container takes from the budget, MiB."""
        self.committed_mb += memory_mb - pooled.memory_mb
        pooled.memory_mb = memory_mb

    def lend(self, pooled: PooledContainer, memory_mb: int, *, is_run: bool = True) -> None:
        """Give a container the memory of a job.

        Args:
            pooled: The container.
            memory_mb: The memory that the container takes from now on, MiB.
            is_run: Whether the job is a run, and not a build or a compilation.
        """
        self.lent[pooled] = memory_mb - pooled.memory_mb if is_run else 0
        self.runs_mb += self.lent[pooled]
        if self.runs_mb > self.peaks_mb[0]:
            self.peaks_mb = (self.runs_mb, self.peaks_mb[1])
        self.resize(pooled, memory_mb)

    def take_back(self, pooled: PooledContainer, memory_mb: int) -> None:
        """Note that the job has ended, and that its container is idle and takes this memory, MiB."""
        self.resize(pooled, memory_mb)
        self.runs_mb -= self.lent.pop(pooled, 0)

    def begin_removal(self, pooled: PooledContainer) -> None:
        """Note that a container was retired and its removal begins."""
        self.runs_mb -= self.lent.pop(pooled, 0)
        self.committed_mb -= pooled.memory_mb
        self.running -= 1
        self.removing += 1

    def finish_removal(self) -> None:
        """Note that a removal has ended, with or without success."""
        self.removing -= 1

    def begin_peak(self) -> None:
        """Forget an old peak of the runs' memory. Call this regularly."""
        self.peaks_mb = (self.runs_mb, self.peaks_mb[0])

    @contextmanager
    def wanting(self, memory_mb: int) -> Iterator[None]:
        """While the block runs, keep refills from using the memory that a job waits for."""
        self.wanted_mb += memory_mb
        try:
            yield
        finally:
            self.wanted_mb -= memory_mb

    # --- questions

    @property
    def overdraft_mb(self) -> int:
        """The memory that containers take beyond the limit, MiB; 0 or less within the limit."""
        return self.committed_mb - self.limit_mb

    @property
    def is_unused(self) -> bool:
        """Whether no job has its memory, and no container is being created."""
        return not self.lent and not self.creating

    def shortage(self, memory_mb: int, containers: int = 0) -> Shortage | None:
        """Return what must be freed for a job; None if the budget has room for the job.

        Args:
            memory_mb: The additional memory that the job needs, MiB.
            containers: The number of containers that will be created for the job. If it is not 0, containers
                whose removal has not ended also count.
        """
        missing_mb = self.committed_mb + memory_mb - self.limit_mb
        too_many = self.running + self.creating + containers - self.most_containers if containers else 0
        waits_for_removals = containers > 0 and too_many + self.removing > 0
        return Shortage(missing_mb, too_many) if missing_mb > 0 or waits_for_removals else None

    def coming_shortage(self, memory_mb: int, waiting_mb: int) -> Shortage | None:
        """Return what would be evicted if one more container existed and as many runs took place as lately.

        Args:
            memory_mb: The memory that the container takes while it is idle, MiB.
            waiting_mb: The memory of jobs that have no container yet, MiB.

        Returns:
            None if the budget has room for both.
        """
        runs_mb = max(*self.peaks_mb, self.runs_mb + waiting_mb)
        missing_mb = self.committed_mb - self.runs_mb + runs_mb + memory_mb - self.limit_mb
        return Shortage(missing_mb, 0) if missing_mb > 0 else None

    def fits_generic(self) -> bool:
        """Whether one more generic container fits, and leaves enough memory for jobs that wait for memory."""
        memory_mb = self.committed_mb + self.wanted_mb + GENERIC_MEMORY_MB
        number = self.running + self.creating + self.removing
        return memory_mb <= self.limit_mb and number < self.most_containers

    def allows_refill(self, planned: int) -> bool:
        """Whether a refill may start one more creation.

        Args:
            planned: The number of creations that are under way. Some of them have already taken memory
                (`creating`), so their memory is counted twice until they end. Therefore this refill may
                create too few containers; the next refill creates the rest.
        """
        memory_mb = self.committed_mb + self.wanted_mb + (planned + 1) * GENERIC_MEMORY_MB
        number = self.running + self.removing + planned
        return memory_mb <= self.limit_mb and number < self.most_containers
