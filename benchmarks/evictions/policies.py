"""The policies that the benchmark compares."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, ClassVar, Final

from benchmarks.evictions.workload import GENERIC

from nanoagent.container.eviction import UseForecast, choose_victims

if TYPE_CHECKING:
    from benchmarks.evictions.simulation import Container
    from benchmarks.evictions.workload import Trace

    from nanoagent.container.eviction import Candidate


class Policy:
    """A policy: the value of an idle container, or another way to choose victims.

    Args:
        trace: The trace. Only the offline policy looks at its jobs.
    """

    name: ClassVar[str]

    def __init__(self, trace: Trace) -> None:
        self._functions = (*trace.functions, *GENERIC.values())

    def record_use(self, function: int, rank: int, now: float) -> None:
        """Note that a job starts, or needs a generic container.

        Args:
            function: The function, or the kind of the generic container.
            rank: The number of busy containers of the function, or of missing generic containers.
            now: The time, seconds.
        """

    def note_start(self, container: Container) -> None:
        """Note that a run starts in a container."""

    def note_eviction(self, container: Container, value: float) -> None:
        """Note that a container was evicted, with its value."""

    def value(self, container: Container, rank: int, now: float) -> float:
        """Return the value of each byte of an idle container.

        Args:
            container: The container.
            rank: The number of containers of its function that are busy or were used more recently.
            now: The time, seconds.
        """
        raise NotImplementedError

    def choose(self, candidates: list[Candidate[Container]], need_bytes: int) -> list[Candidate[Container]]:
        """Choose the victims."""
        return choose_victims(candidates, need_bytes)

    def _cost_per_byte(self, container: Container) -> float:
        return self._functions[container.function].cold_ms / container.held_bytes


class Lru(Policy):
    """Evicts the least recently used container."""

    name = "LRU"

    def value(self, container: Container, rank: int, now: float) -> float:  # noqa: ARG002 - of the base class
        """Return the time of the last use."""
        return container.idle_since_s


class RunsByAge(Policy):
    """The score of the pool before ADR 0033: runs ÷ (idle time times memory), as in hyperbolic caching."""

    name = "runs/age"

    def value(self, container: Container, rank: int, now: float) -> float:  # noqa: ARG002 - of the base class
        """Return the score."""
        idle_s = max(now - container.idle_since_s, 0.001)
        return (1 + container.runs) / (idle_s * container.held_bytes)


class GreedyDual(Policy):
    """GreedyDual-Size-Frequency as in FaaSCache (Fuerst and Sharma, ASPLOS 2021).

    The priority of a container is the clock of its last use + the uses of its function times cold cost ÷
    size. The clock is the highest priority of the containers evicted so far. The uses of a function are
    counted until its last container is evicted.
    """

    name = "GDSF"

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self._clock = 0.0
        self._uses: dict[int, int] = defaultdict(int)
        self._containers: dict[int, int] = defaultdict(int)

    def note_start(self, container: Container) -> None:
        """Count the use."""
        self._uses[container.function] += 1
        self._containers[container.function] += container.runs == 1
        container.credit = self._clock

    def note_eviction(self, container: Container, value: float) -> None:
        """Advance the clock."""
        self._clock = max(self._clock, value)
        self._containers[container.function] -= 1
        if not self._containers[container.function]:
            del self._uses[container.function]

    def value(self, container: Container, rank: int, now: float) -> float:  # noqa: ARG002 - of the base class
        """Return the priority."""
        return container.credit + self._uses[container.function] * self._cost_per_byte(container)


class TinyLfu(Policy):
    """Aged frequencies as in TinyLFU (Einziger, Friedman and Manes, 2017), with cold cost and size.

    The counts are exact, which is better than a sketch, and are kept for each rank. They are halved after a
    number of uses. A new container is evicted before others with the same value: it is not admitted.
    """

    name = "TinyLFU"
    _PERIOD: Final = 1000  # uses; from 1,000 to 20,000 all results but `shift` stay the same

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self._counts: dict[tuple[int, int], int] = defaultdict(int)
        self._uses = 0

    def record_use(self, function: int, rank: int, now: float) -> None:  # noqa: ARG002 - of the base class
        """Count the use."""
        self._counts[function, rank] += 1
        self._uses += 1
        if self._uses % self._PERIOD == 0:
            for key in self._counts:
                self._counts[key] //= 2

    def value(self, container: Container, rank: int, now: float) -> float:  # noqa: ARG002 - of the base class
        """Return the frequency times cold cost ÷ size. The tiny second term evicts the newest of equals."""
        count = self._counts[container.function, rank]
        return count * self._cost_per_byte(container) - 1e-15 * container.made_s


class S3Fifo(Policy):
    """S3-FIFO (Yang et al., SOSP 2023): a small queue for new containers, a main queue, and a ghost queue.

    The small queue has a tenth of the memory. A container that was used again moves to the main queue, as
    does a new one whose function is in the ghost queue. Busy containers keep their places.
    """

    name = "S3-FIFO"
    _SMALL_SHARE: Final = 0.1
    _MOST_USES: Final = 3

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self._small: deque[Container] = deque()
        self._main: deque[Container] = deque()
        self._ghosts: dict[int, None] = {}
        self._small_bytes = trace.budget_bytes * self._SMALL_SHARE

    def note_start(self, container: Container) -> None:
        """Count the use, and put a new container into its queue."""
        if container.runs > 1:
            container.credit = min(container.credit + 1, self._MOST_USES)
        elif container.function in self._ghosts:
            del self._ghosts[container.function]
            self._main.append(container)
        else:
            self._small.append(container)

    def value(self, container: Container, rank: int, now: float) -> float:  # noqa: ARG002 - of the base class
        """Return 0. The queues decide."""
        return 0.0

    def choose(self, candidates: list[Candidate[Container]], need_bytes: int) -> list[Candidate[Container]]:
        """Take victims from the small queue while it is too large, else from the main queue."""
        idle = {id(candidate.item): candidate for candidate in candidates}
        victims: list[Candidate[Container]] = []
        while need_bytes > 0 and idle:
            small_bytes = sum(container.held_bytes for container in self._small)
            uses_small = small_bytes > self._small_bytes or not any(id(item) in idle for item in self._main)
            container = self._pop(self._small if uses_small else self._main, idle)
            if container is None:
                container = self._pop(self._main if uses_small else self._small, idle)
            if container is None:
                continue
            victims.append(idle.pop(id(container)))
            need_bytes -= container.held_bytes
            if uses_small:
                self._remember(container.function)
        return victims

    def _pop(self, queue: deque[Container], idle: dict[int, Candidate[Container]]) -> Container | None:
        """Remove the first idle container of a queue that was not used again. Others move on."""
        is_small = queue is self._small
        for _ in range(len(queue)):
            container = queue.popleft()
            if id(container) not in idle:
                queue.append(container)
            elif container.credit > 0:
                container.credit -= 0 if is_small else 1
                self._main.append(container)
            else:
                return container
        return None

    def _remember(self, function: int) -> None:
        self._ghosts[function] = None
        if len(self._ghosts) > len(self._main) + len(self._small):
            del self._ghosts[next(iter(self._ghosts))]


class Forecast(Policy):
    """The forecast of `nanoagent.container.eviction`."""

    name = "forecast"

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self._forecast = UseForecast()

    def record_use(self, function: int, rank: int, now: float) -> None:
        """Record the use."""
        self._forecast.record_use(function, now, rank=rank)

    def value(self, container: Container, rank: int, now: float) -> float:
        """Return the value."""
        function = container.function
        return self._forecast.value(
            function,
            rank=rank,
            size_bytes=container.held_bytes,
            cold_ms=self._functions[function].cold_ms,
            now=now,
        )


ONLINE: Final = (Lru, RunsByAge, GreedyDual, TinyLfu, S3Fifo, Forecast)
