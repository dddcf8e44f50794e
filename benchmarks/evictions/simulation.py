"""The simulation of one trace under one policy."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from benchmarks.evictions.workload import GENERIC

from nanoagent.common.units import MIB
from nanoagent.container.eviction import Candidate

if TYPE_CHECKING:
    from benchmarks.evictions.policies import Policy
    from benchmarks.evictions.workload import Job, Trace

_BIND_MS: Final = 5.0  # the duration of a warm start
_CREATION_S: Final = 0.2  # between two creations of generic containers, one at a time


class Refill(StrEnum):
    """How generic containers are created and evicted."""

    FREE = "free"  # they are evicted last, and created when memory is free
    FIRST = "first"  # they are evicted last, and bound containers are evicted for them
    VALUE = "value"  # they are evicted, and bound containers are evicted for them, by their values


@dataclass(frozen=True, slots=True)
class Generics:
    """The generic containers of a simulation: the number for each runtime, and how they are refilled."""

    number: int = 0
    refill: Refill = Refill.FREE


@dataclass(slots=True, eq=False)
class Container:
    """A container.

    Attributes:
        function: The number of its function; for a generic container, the number of its kind.
        held_bytes: The memory that it holds while it is idle.
        made_s: The time of its creation or binding.
        idle_since_s: The time at which it last became idle.
        runs: The number of its runs.
        credit: A value that a policy may keep.
    """

    function: int
    held_bytes: int
    made_s: float
    idle_since_s: float = 0.0
    runs: int = 0
    credit: float = 0.0


@dataclass(slots=True)
class Result:
    """The counts of a simulation. The first job of each function is not counted: it never starts hot.

    Attributes:
        jobs: The number of counted jobs.
        cold: The number of their cold starts.
        warm: The number of their warm starts.
        start_ms: The sum of the durations of their starts.
        wasted_mib_s: The memory times idle time of containers that were evicted before their next use, MiB s.
        evictions: The number of evicted containers.
        waited: The number of jobs that waited for memory.
        starts: The times of the counted jobs, with the durations of their starts.
    """

    jobs: int = 0
    cold: int = 0
    warm: int = 0
    start_ms: float = 0.0
    wasted_mib_s: float = 0.0
    evictions: int = 0
    waited: int = 0
    starts: list[tuple[float, float]] = field(default_factory=list)

    @property
    def cold_share(self) -> float:
        """The share of cold starts."""
        return self.cold / max(self.jobs, 1)

    @property
    def ms_per_job(self) -> float:
        """The mean duration of a start, ms."""
        return self.start_ms / max(self.jobs, 1)


class Simulation:
    """Runs the jobs of a trace.

    Args:
        trace: The trace.
        policy: The policy, which must be new.
        generics: The generic containers.
    """

    def __init__(self, trace: Trace, policy: Policy, generics: Generics | None = None) -> None:
        self.result = Result()
        self._trace = trace
        self._policy = policy
        self._generics = generics or Generics()
        kinds = len(trace.functions)
        self._specs = [*trace.functions, *GENERIC.values()]
        self._generic_kind = {runtime: kinds + number for number, runtime in enumerate(GENERIC)}
        self._idle: list[list[Container]] = [[] for _ in self._specs]  # the most recently used one last
        self._with_idle: dict[int, None] = {}  # the kinds that have idle containers
        self._idle_bytes = 0
        self._free_bytes = trace.budget_bytes
        # Function → its busy containers; generic kind → its missing containers.
        self._busy = [0] * len(self._specs)
        self._known: set[int] = set()
        self._ends: list[tuple[float, int, Container]] = []
        self._number = 0
        self._queue: deque[Job] = deque()
        self._refill_at_s = math.inf

    def run(self) -> Result:
        """Run all jobs, and return the counts."""
        self._create_generics()
        for job in self._trace.jobs:
            self._advance(job.at_s)
            if self._queue or not self._start(job, job.at_s):
                self._queue.append(job)
                self.result.waited += 1
        while self._ends:
            self._end(*heapq.heappop(self._ends))
        return self.result

    def _advance(self, now: float) -> None:
        while (first := min(self._refill_at_s, self._ends[0][0] if self._ends else math.inf)) <= now:
            if first == self._refill_at_s:
                self._refill(first)
            else:
                self._end(*heapq.heappop(self._ends))

    # --- jobs

    def _start(self, job: Job, now: float) -> bool:
        """Start a job, unless it must wait for memory."""
        function = job.function
        spec = self._specs[function]
        generic = self._generic_kind[spec.runtime]
        idle = self._idle[function] or self._idle[generic]
        taken = idle[-1] if idle else None
        held_bytes = taken.held_bytes if taken else 0
        missing_bytes = spec.limit_bytes - held_bytes - self._free_bytes
        if missing_bytes > self._idle_bytes - held_bytes:
            return False
        if taken:
            self._remove_idle(taken)
        is_hot = taken is not None and taken.function == function
        start_ms = 0.0 if is_hot else _BIND_MS if taken else spec.cold_ms
        self._policy.record_use(function, self._busy[function], now)
        self._busy[function] += 1
        if not is_hot and self._generics.number:
            self._policy.record_use(generic, self._busy[generic], now)
            if taken:
                self._miss_generic(generic, now)
        if missing_bytes > 0:
            self._evict(missing_bytes, now, with_generic=True)
        container = taken if taken and is_hot else Container(function, spec.held_bytes, now)
        container.runs += 1
        self._policy.note_start(container)
        self._free_bytes -= spec.limit_bytes - held_bytes
        self._number += 1
        heapq.heappush(self._ends, (now + job.duration_s + start_ms / 1000, self._number, container))
        self._count(function, now, start_ms)
        return True

    def _end(self, now: float, _number: int, container: Container) -> None:
        """End a run, and start the jobs that waited for its memory."""
        self._busy[container.function] -= 1
        self._free_bytes += self._specs[container.function].limit_bytes
        self._add_idle(container, now)
        while self._queue and self._start(self._queue[0], now):
            self._queue.popleft()

    def _count(self, function: int, now: float, start_ms: float) -> None:
        if function not in self._known:
            self._known.add(function)
            return
        result = self.result
        result.jobs += 1
        result.start_ms += start_ms
        result.starts.append((now, start_ms))
        result.cold += start_ms > _BIND_MS
        result.warm += start_ms == _BIND_MS

    # --- idle containers

    def _add_idle(self, container: Container, now: float) -> None:
        container.idle_since_s = now
        self._idle[container.function].append(container)
        self._with_idle.pop(container.function, None)  # to the end
        self._with_idle[container.function] = None
        self._idle_bytes += container.held_bytes
        self._free_bytes -= container.held_bytes

    def _remove_idle(self, container: Container) -> None:
        """Remove an idle container. Its memory does not become free."""
        idle = self._idle[container.function]
        idle.remove(container)
        if not idle:
            del self._with_idle[container.function]
        self._idle_bytes -= container.held_bytes

    def _candidates(self, now: float, *, with_generic: bool) -> list[Candidate[Container]]:
        """Return the idle containers, those of the most recently used functions first."""
        candidates: list[Candidate[Container]] = []
        for kind in self._with_idle:
            is_generic = kind >= len(self._trace.functions)
            if is_generic and not with_generic:
                continue
            keeps = is_generic and self._generics.refill is not Refill.VALUE
            rank = self._busy[kind] + len(self._idle[kind])
            for container in self._idle[kind]:
                rank -= 1
                value = math.inf if keeps else self._policy.value(container, rank, now)
                candidates.append(Candidate(container, container.held_bytes, value))
        candidates.reverse()
        return candidates

    def _evict(self, need_bytes: int, now: float, *, with_generic: bool) -> None:
        victims = self._policy.choose(self._candidates(now, with_generic=with_generic), need_bytes)
        self._evict_all(victims, now)

    def _evict_all(self, victims: list[Candidate[Container]], now: float) -> None:
        for container, held_bytes, value in victims:
            self._remove_idle(container)
            self._free_bytes += held_bytes
            self.result.evictions += 1
            self.result.wasted_mib_s += held_bytes / MIB * (now - container.idle_since_s)
            if container.function >= len(self._trace.functions):
                self._miss_generic(container.function, now)
            self._policy.note_eviction(container, value)

    # --- generic containers

    def _create_generics(self) -> None:
        for kind in self._generic_kind.values():
            for _ in range(self._generics.number):
                self._add_idle(Container(kind, self._specs[kind].held_bytes, 0.0), 0.0)

    def _miss_generic(self, kind: int, now: float) -> None:
        """Note that a generic container is missing. A refill begins, unless one is under way."""
        self._busy[kind] += 1
        self._refill_at_s = min(self._refill_at_s, now + _CREATION_S)

    def _refill(self, now: float) -> None:
        """Create a generic container of the kind that has the most missing ones, if it finds memory."""
        kinds = self._generic_kind.values()
        kind = max(kinds, key=self._busy.__getitem__)
        if self._make_room_for_generic(kind, now):
            self._busy[kind] -= 1
            self._add_idle(Container(kind, self._specs[kind].held_bytes, now), now)
        is_missing = any(self._busy[kind] for kind in kinds)
        self._refill_at_s = now + _CREATION_S if is_missing else math.inf

    def _make_room_for_generic(self, kind: int, now: float) -> bool:
        held_bytes = self._specs[kind].held_bytes
        missing_bytes = held_bytes - self._free_bytes
        if missing_bytes <= 0:
            return True
        if self._generics.refill is Refill.FREE:
            return False
        victims = self._policy.choose(self._candidates(now, with_generic=False), missing_bytes)
        if sum(victim.size_bytes for victim in victims) < missing_bytes:
            return False
        if self._generics.refill is Refill.VALUE:
            generic = Container(kind, held_bytes, now)
            rank = self._busy[kind] - 1 + len(self._idle[kind])
            gain = self._policy.value(generic, rank, now) * held_bytes
            if gain <= sum(victim.value * victim.size_bytes for victim in victims):
                return False
        self._evict_all(victims, now)
        return True
