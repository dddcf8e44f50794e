"""The pool's decisions, without its actions: what a container is for, is worth, and when it goes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, Final

from nanoagent.container.spec import MIB
from nanoagent.result import Isolation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from nanoagent.container.base import RunningContainer
    from nanoagent.container.spec import Limits
    from nanoagent.job import Runtime
    from nanoagent.network.doors import Door

GENERIC_MEMORY_MB: Final = 128  # the default memoryMb: most jobs then need no change of limits
_BREAKER_THRESHOLD: Final = 3
_BREAKER_MAX_PAUSE_S: Final = 60.0
_BREAKER_MAX_DOUBLINGS: Final = 6  # 64 s are over the maximum; a float has no room for a thousand


class Sharing(StrEnum):
    """Whom a container may serve (`CONTAINER_SHARING`)."""

    FUNCTION = "function"
    WORKER = "worker"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPolicy:
    """The pool's settings.

    Attributes:
        images: Runtime → image.
        sizes: Runtime → generic containers kept ready.
        memory_mb: The budget for all containers' limits together, MiB.
        generic_cpus: CPU share of a container that no job has been bound to.
        idle_s: A bound container unused for so long is retired.
        max_runs: Runs after which a container is retired.
        max_age_s: Age at which a container is retired.
        uid_base: Each container gets a user id of its own from here upward.
        limits: The same for all containers.
        isolation: The level that containers are made for: `SANDBOX` or `SHARED`.
        apparmor: The AppArmor profile that it takes, if any.
        docker_runtime: The engine's name of what makes containers, where that is not its default.
        sharing: Whom a container may serve.
        modules: Python modules that every interpreter has ready.
        doors: Where the agent wants to be able to listen in the network of runs.
        most_containers: How many there may be, busy and idle; each holds file descriptors of the worker.
    """

    images: dict[Runtime, str]
    sizes: dict[Runtime, int]
    memory_mb: int
    generic_cpus: float
    idle_s: float
    max_runs: int
    max_age_s: float
    uid_base: int
    limits: Limits
    isolation: Isolation = Isolation.SHARED
    apparmor: str | None = None
    docker_runtime: str | None = None
    sharing: Sharing = Sharing.FUNCTION
    modules: tuple[str, ...] = ()
    doors: tuple[Door, ...] = ()
    most_containers: int = 1 << 20

    @property
    def keeps_containers(self) -> bool:
        """Whether any container serves more than one run."""
        return self.sharing is not Sharing.NEVER and self.max_runs > 1

    @property
    def between_runs(self) -> Isolation:
        """What stands between one run and the next."""
        if self.isolation is Isolation.SANDBOX:
            return Isolation.SANDBOX
        return Isolation.SHARED if self.keeps_containers else Isolation.CONTAINER


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a container is for.

    Attributes:
        runtime: Its language.
        function_id: Whose code.
        digest: Which code: the sha256 of the zip.
        memory_mb: The limit, MiB.
        cpus: The CPU share that goes with it.
        most_cpus: What it may use while CPUs are free.
        tree: The unpacked code.
        tree_bytes: The memory that its copy in the container takes: whole pages.
        program: The built program, for compiled languages.
        find_modules: Reads the code for Python modules that are worth having ready; called in a thread.
        purpose: `run`, or `build`; a container built in is not run in.
    """

    runtime: Runtime
    function_id: str
    digest: str
    memory_mb: int
    cpus: float
    most_cpus: float
    tree: Path
    tree_bytes: int
    program: Path | None = None
    find_modules: Callable[[], tuple[str, ...]] = tuple
    purpose: str = "run"

    @property
    def needed_mb(self) -> int:
        """The memory that a run needs of the worker's budget, MiB: its own, and the copy of its code."""
        return self.memory_mb + self.tree_bytes // MIB

    @property
    def key(self) -> tuple[str, ...]:
        """Two jobs may share a container exactly when their keys are equal."""
        return (self.purpose, self.runtime, self.function_id, self.digest, str(self.memory_mb))


class ContainerState(StrEnum):
    """The state of a container that has been created."""

    IDLE = "idle"
    BUSY = "busy"  # one job has it
    DEAD = "dead"  # it has died while a job had it; that job retires it
    RETIRED = "retired"  # it is no longer the pool's; its removal has begun


NEXT: Final = {
    ContainerState.IDLE: {ContainerState.BUSY, ContainerState.RETIRED},
    ContainerState.BUSY: {ContainerState.IDLE, ContainerState.DEAD, ContainerState.RETIRED},
    ContainerState.DEAD: {ContainerState.RETIRED},
    ContainerState.RETIRED: set[ContainerState](),
}
"""State → the states that may follow."""


@dataclass(slots=True, eq=False)
class Pooled:
    """A container as the pool sees it.

    Attributes:
        container: The container itself.
        memory_mb: Its part of the memory budget, MiB. Only the budget changes it.
        made_at: When it was created, in the pool's clock.
        used_at: When it became idle last, in the pool's clock.
        key: The key of its binding; None while it is generic.
        runs: How many jobs have had it.
        state: Its state. Only the inventory changes it, by `enter`.
    """

    container: RunningContainer
    memory_mb: int
    made_at: float
    used_at: float
    key: tuple[str, ...] | None = None
    runs: int = 0
    state: ContainerState = ContainerState.IDLE

    def enter(self, state: ContainerState) -> None:
        """Go on to a state.

        Raises:
            AssertionError: The state cannot follow.
        """
        if state not in NEXT[self.state]:
            raise AssertionError(f"a container cannot go from {self.state} to {state}")
        self.state = state

    @property
    def runtime(self) -> Runtime:
        """Its language."""
        return self.container.spec.runtime

    @property
    def is_generic(self) -> bool:
        """Whether it has not been bound to a function version yet."""
        return self.key is None

    @property
    def alive(self) -> bool:
        """Whether it still runs, as far as is known: a supervisor that dies closes its connection."""
        return self.state is not ContainerState.DEAD and self.container.session.connected


def idle_for(binding: Binding, idle: Sequence[Pooled], sharing: Sharing) -> Pooled | None:
    """The idle container that serves a job best; None when one has to be created.

    The best is one that is bound to the same function version. Of several, the one that was used last: its
    pages are warm, and the others can reach their idle time. The next best is a generic one. The last is one
    of another function, if containers serve all functions of the worker.

    Args:
        binding: The binding for the job.
        idle: The idle containers of its runtime, the one that was used last at the end.
        sharing: CONTAINER_SHARING.
    """
    bound = (pooled for pooled in reversed(idle) if pooled.key == binding.key)
    generic = (pooled for pooled in idle if pooled.is_generic)
    others = idle if sharing is Sharing.WORKER and binding.purpose == "run" else ()
    return next((pooled for pooled in chain(bound, generic, others) if pooled.alive), None)


def victims(idle: Iterable[Pooled], need_mb: int, now: float, number: int = 0) -> list[Pooled]:
    """The idle containers to evict, least valuable first: for `need_mb` MiB, and at least `number`.

    A container is worth more the more often it has been used, the more recently, and the less memory it
    binds (the idea of GreedyDual-Size-Frequency; Fuerst and Sharma, "FaasCache", ASPLOS 2021). Generic
    ones go last: each is worth a cold start to whatever function comes next.
    """

    def value(pooled: Pooled) -> tuple[bool, float]:
        idle_s = max(now - pooled.used_at, 0.001)
        return (pooled.is_generic, (1 + pooled.runs) / (idle_s * pooled.memory_mb))

    chosen: list[Pooled] = []
    for pooled in sorted(idle, key=value):
        if need_mb <= 0 and len(chosen) >= number:
            break
        chosen.append(pooled)
        need_mb -= pooled.memory_mb
    return chosen


def retirement_reason(pooled: Pooled, policy: PoolPolicy, now: float) -> str | None:
    """Why an idle container should go now, or None."""
    if not pooled.alive:
        return "died"
    if pooled.runs >= policy.max_runs:
        return "runs"
    if now - pooled.made_at >= policy.max_age_s:
        return "age"
    if not pooled.is_generic and now - pooled.used_at >= policy.idle_s:
        return "idle"
    return None


@dataclass(slots=True)
class CircuitBreaker:
    """Opens when creations fail in a row, and allows one trial after a pause that grows.

    Attributes:
        failures: How many creations have failed in a row.
        reason: The reason of the last failure.
        open_until: When one more creation may be tried, in the pool's clock.
    """

    failures: int = 0
    reason: str = ""
    open_until: float = 0.0

    def failed(self, reason: str, now: float) -> None:
        """A creation has failed."""
        self.failures += 1
        self.reason = reason
        if self.failures >= _BREAKER_THRESHOLD:
            doublings = min(self.failures - _BREAKER_THRESHOLD, _BREAKER_MAX_DOUBLINGS)
            pause = min(2.0**doublings, _BREAKER_MAX_PAUSE_S)
            self.open_until = now + pause

    def succeeded(self) -> None:
        """A container has been created: the cause of the failures is gone."""
        self.failures = 0
        self.open_until = 0.0

    @property
    def is_broken(self) -> bool:
        """Whether so many creations have failed in a row that jobs should not wait for the next one."""
        return self.failures >= _BREAKER_THRESHOLD

    def is_open(self, now: float) -> bool:
        """Whether it is broken and its pause is not over."""
        return self.is_broken and now < self.open_until

    def allows(self, now: float, in_flight: int) -> bool:
        """Whether a creation may begin. If it is broken: after the pause, and one creation at a time.

        Args:
            now: The time, in the pool's clock.
            in_flight: How many creations have begun and not ended.
        """
        return not self.is_broken or (now >= self.open_until and in_flight == 0)
