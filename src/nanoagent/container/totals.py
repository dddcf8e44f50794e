"""Counts the starts and retirements of the pool, for `nanoagent pool`."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from nanoagent.container.base import RecyclingFailure
    from nanoagent.container.policy import PooledContainer
    from nanoagent.model.result import Start

_RETIREMENTS: Final = 10  # for each runtime


@dataclass(frozen=True, slots=True)
class RetiredContainer:
    """A container that was retired.

    Attributes:
        reason: The reason, as in the label of the metric.
        at: The time of the retirement, in the pool's clock.
        idle_s: The time since its last run, or since its creation, seconds.
        runs: The number of its runs.
        memory_mb: The memory that it took from the budget, MiB.
    """

    reason: str
    at: float
    idle_s: float
    runs: int
    memory_mb: int


class Totals:
    """What has happened to the containers since the worker started.

    Attributes:
        starts: Runtime → kind of start → number of runs and builds.
        rebinds: Runtime → number of containers that were bound to another function.
        recycled: Runtime → number of containers that were made generic again.
        recycling_failures: Runtime → kind of failure → number of containers that could not be.
        retirements: Runtime → reason → number of retired containers.
        last_retired: Runtime → the last retired containers, the latest one last.
    """

    def __init__(self) -> None:
        self.starts: dict[Runtime, Counter[Start]] = {runtime: Counter() for runtime in Runtime}
        self.rebinds: Counter[Runtime] = Counter()
        self.recycled: Counter[Runtime] = Counter()
        self.recycling_failures: dict[Runtime, Counter[RecyclingFailure]] = {
            runtime: Counter() for runtime in Runtime
        }
        self.retirements: dict[Runtime, Counter[str]] = {runtime: Counter() for runtime in Runtime}
        self.last_retired: dict[Runtime, deque[RetiredContainer]] = {
            runtime: deque(maxlen=_RETIREMENTS) for runtime in Runtime
        }

    def record_retirement(self, pooled: PooledContainer, reason: str, now: float) -> None:
        """Note that a container is retired. It still has its memory in the budget."""
        self.retirements[pooled.runtime][reason] += 1
        self.last_retired[pooled.runtime].append(
            RetiredContainer(reason, now, now - pooled.used_at, pooled.runs, pooled.memory_mb)
        )
