"""The settings of the pool, its data types, and its decisions. All functions are pure.

* `PoolPolicy`: the settings. `Binding`: the function version for which a job needs a container.
* `PooledContainer`: a container, with its `ContainerState`; `NEXT` has the transitions. `IdleContainers`: the
  idle containers of a runtime, by the code that they are bound to.
* Decisions: `choose_idle` chooses the container for a job. `retirement_reason` decides when to retire a
  container, `age_limit_s` at which age. `eviction` chooses the containers to evict.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeVar

from nanoagent.common.units import MIB
from nanoagent.container.charges import LEFTOVER_BYTES
from nanoagent.model.job import FunctionVersion
from nanoagent.model.result import Isolation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

    from nanoagent.container.base import RunningContainer
    from nanoagent.container.spec import Limits
    from nanoagent.model.job import Runtime
    from nanoagent.network.listening_sockets import ListeningAddress

GENERIC_MEMORY_MB: Final = 128  # the default memoryMb, so that most jobs need no change of limits
AGE_SPREAD: Final = 0.2
"""The part of the largest age by which the ages of retirement differ, at most.

A burst of first jobs creates many containers within a minute. With the same age for all, they would also be
replaced within a minute. With the default of an hour, their replacement takes 12 minutes.
"""


class Sharing(StrEnum):
    """The runs that a container may serve (`CONTAINER_SHARING`)."""

    FUNCTION = "function"  # runs of one function version
    TENANT = "tenant"  # runs of all functions of one owner, one after another
    WORKER = "worker"  # runs of all functions, one after another
    NEVER = "never"  # one run


class OwnerSource(StrEnum):
    """The part of a job that names the owner."""

    FIELD = "tenantId"
    KEY = "s3Key"
    FUNCTION_ID = "functionId"


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of functions that may share containers, with CONTAINER_SHARING=tenant.

    Attributes:
        source: The part of the job that names the owner.
        name: The name.
        bucket: The bucket of the code, if the source is its key. The same folder in another bucket may belong
            to another owner.
    """

    source: OwnerSource
    name: str
    bucket: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPolicy:
    """The pool's settings.

    Attributes:
        images: Runtime → name of the image.
        sizes: Runtime → number of generic containers to keep ready.
        memory_mb: The limit of the memory of all containers together, MiB.
        generic_cpus: The CPU share of a generic container.
        idle_s: The idle time after which a bound container is retired, seconds.
        max_runs: The number of runs after which a container is retired.
        max_age_s: The largest age at which a container is retired, seconds (`age_limit_s`).
        uid_base: The lowest user ID of containers. Each container has a different ID.
        limits: The limits that all containers have in common.
        isolation: The level with which containers are created: `SANDBOX` or `SHARED`.
        apparmor: The AppArmor profile of containers; None for Docker's default.
        docker_runtime: The name of Docker's runtime for containers; None for its default.
        sharing: The runs that a container may serve.
        recycles: Whether a container that is evicted may become generic again, instead of being removed.
        modules: Python modules that every interpreter has imported in advance.
        listening_addresses: The addresses in the network of runs at which the worker listens.
        most_containers: The largest number of containers. Each takes file descriptors of the worker.
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
    recycles: bool = False
    modules: tuple[str, ...] = ()
    listening_addresses: tuple[ListeningAddress, ...] = ()
    most_containers: int = 1 << 20

    @property
    def keeps_containers(self) -> bool:
        """Whether any container serves more than one run."""
        return self.sharing is not Sharing.NEVER and self.max_runs > 1

    @property
    def isolation_between_runs(self) -> Isolation:
        """The isolation between two runs on this worker."""
        if self.isolation is Isolation.SANDBOX:
            return Isolation.SANDBOX
        return Isolation.SHARED if self.keeps_containers else Isolation.CONTAINER


@dataclass(frozen=True, slots=True)
class BindingKey:
    """The purpose, the function version and the program of a binding, and whether it has byte code.

    A container can serve a job without a new binding only if its key `serves` that of the job.

    Attributes:
        purpose: The purpose of the binding.
        version: The function version.
        has_byte_code: Whether the byte code of the code is beside it.
        program: The program. One function version may have two programs, because all functions without an ID
            have the same version, and one of them may have linked its program from earlier objects.
        owner: The owner of the function, with `CONTAINER_SHARING=tenant`. Functions of two owners may have
            the same ID and the same code.
        reuses_imports: Whether the packages of the code are imported once.
        code: The key without the byte code. Containers with equal keys have the same code and program.
    """

    purpose: str
    version: FunctionVersion
    has_byte_code: bool = False
    program: Path | None = None
    owner: Owner | None = None
    reuses_imports: bool = False
    code: CodeKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        code = self.purpose, self.version, self.program, self.owner, self.reuses_imports
        object.__setattr__(self, "code", code)

    def is_like(self, wanted: BindingKey) -> bool:
        """Whether a container with this key has the code of `wanted`, with or without its byte code."""
        return self.code == wanted.code

    def serves(self, wanted: BindingKey) -> bool:
        """Whether a container with this key has all that `wanted` needs. It may also have byte code."""
        return self.is_like(wanted) and self.has_byte_code >= wanted.has_byte_code


CodeKey = tuple[str, FunctionVersion, "Path | None", Owner | None, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The function version that a container is bound to, with its limits.

    Attributes:
        runtime: The runtime of the function.
        function_id: The ID of the function.
        digest: The version of its code: the SHA-256 of the zip file.
        memory_mb: The memory limit of a run, MiB.
        cpus: The CPUs that belong to that memory limit; the container gets them under contention.
        most_cpus: The CPUs that a run may use while they are free.
        tree: The code, as a pack (`code.pack`).
        tree_bytes: The memory that the copy of the code takes in the container, bytes. Each file takes whole
            pages.
        program: The built program; for a build, the objects of an earlier build; None if there is none.
        byte_code: A pack with byte code to put beside the code; None if there is none.
        find_modules: Returns the Python modules to import in advance. Blocking; it is called in a thread.
        reuses_imports: Whether the packages of the code are imported once for all runs, if that is possible.
        purpose: `run`, `build` or `compile`. A container for builds or compilations serves no runs.
        owner: The owner of the function; None if it is unknown, or does not matter.
        key: The key of the binding. A container whose key does not serve it must be bound first.
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
    byte_code: Path | None = None
    find_modules: Callable[[], tuple[str, ...]] = tuple
    reuses_imports: bool = False
    purpose: str = "run"
    owner: Owner | None = None
    key: BindingKey = field(init=False, repr=False)

    def __post_init__(self) -> None:
        version = FunctionVersion(self.function_id, self.runtime, self.digest, self.memory_mb)
        key = BindingKey(
            self.purpose,
            version,
            self.byte_code is not None,
            self.program,
            self.owner,
            self.reuses_imports,
        )
        object.__setattr__(self, "key", key)

    @property
    def needed_mb(self) -> int:
        """The memory that a run takes from the budget, MiB: its memory limit and the copy of its code."""
        return self.memory_mb + self.tree_bytes // MIB


class ContainerState(StrEnum):
    """The state of a container that has been created."""

    IDLE = "idle"
    BUSY = "busy"  # a job has it
    RECYCLING = "recycling"  # it is being made generic again
    DEAD = "dead"  # it died while a job had it; it is retired when the job ends
    RETIRED = "retired"  # it no longer belongs to the pool, and its removal has begun


NEXT: Final = {
    ContainerState.IDLE: {ContainerState.BUSY, ContainerState.RECYCLING, ContainerState.RETIRED},
    ContainerState.RECYCLING: {ContainerState.IDLE, ContainerState.RETIRED},
    ContainerState.BUSY: {ContainerState.IDLE, ContainerState.DEAD, ContainerState.RETIRED},
    ContainerState.DEAD: {ContainerState.RETIRED},
    ContainerState.RETIRED: set[ContainerState](),
}
"""State → the states that may follow."""


@dataclass(slots=True, eq=False)
class PooledContainer:
    """A container as the pool sees it.

    Attributes:
        container: The container.
        memory_mb: The memory that it takes from the budget now, MiB. Only the budget changes this value.
        busy_mb: The memory that it takes from the budget while a job has it, MiB; 0 before it is bound.
        made_at: The time of its creation, in the pool's clock.
        used_at: The time when it last became idle, in the pool's clock.
        key: The key of its binding; None while it is generic.
        bound_ms: The time that its last binding took, ms.
        runs: The number of jobs that have had it.
        state: The state. Only the inventory changes the state, with `enter`.
    """

    container: RunningContainer
    memory_mb: int
    made_at: float
    used_at: float
    key: BindingKey | None = None
    busy_mb: int = 0
    bound_ms: float = 0.0
    runs: int = 0
    state: ContainerState = ContainerState.IDLE

    def enter(self, state: ContainerState) -> None:
        """Change the state.

        Raises:
            AssertionError: The transition is not in `NEXT`.
        """
        if state not in NEXT[self.state]:
            raise AssertionError(f"a container cannot go from {self.state} to {state}")
        self.state = state

    def become_generic(self, now: float) -> None:
        """Forget the binding. The age and the number of runs stay.

        Args:
            now: The time in the pool's clock.
        """
        self.key = None
        self.busy_mb = 0
        self.bound_ms = 0.0
        self.used_at = now

    @property
    def cold_ms(self) -> float:
        """The time that a cold start takes for the same function, as measured for this container, ms."""
        return self.container.created_ms + self.bound_ms

    @property
    def runtime(self) -> Runtime:
        """The runtime for which the container was created."""
        return self.container.spec.runtime

    @property
    def is_generic(self) -> bool:
        """Whether the container has not been bound to a function version yet."""
        return self.key is None

    def serves(self, wanted: BindingKey) -> bool:
        """Whether the container is bound to the function version, with byte code if that is wanted."""
        return self.key is not None and self.key.serves(wanted)

    @property
    def alive(self) -> bool:
        """Whether the container runs and can serve a job, as far as the worker knows."""
        return self.state is not ContainerState.DEAD and self.container.session.is_usable


class IdleContainers:
    """The idle containers of one runtime. Each lookup by code takes the same time for any number of them.

    The order is that of `add`: the container that has been idle for the shortest time is the last.
    """

    def __init__(self, containers: Iterable[PooledContainer] = ()) -> None:
        self._all: dict[PooledContainer, None] = {}
        self._generic: dict[PooledContainer, None] = {}
        self._bound: dict[CodeKey, dict[PooledContainer, None]] = {}
        self._owned: dict[Owner, dict[PooledContainer, None]] = {}
        for pooled in containers:
            self.add(pooled)

    def add(self, pooled: PooledContainer) -> None:
        """Add a container. Its key does not change while it is here."""
        self._all[pooled] = None
        if pooled.key is None:
            self._generic[pooled] = None
            return
        self._bound.setdefault(pooled.key.code, {})[pooled] = None
        if pooled.key.owner is not None:
            self._owned.setdefault(pooled.key.owner, {})[pooled] = None

    def remove(self, pooled: PooledContainer) -> None:
        """Remove a container."""
        del self._all[pooled]
        if pooled.key is None:
            del self._generic[pooled]
            return
        _remove(self._bound, pooled.key.code, pooled)
        if pooled.key.owner is not None:
            _remove(self._owned, pooled.key.owner, pooled)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[PooledContainer]:
        return iter(self._all)

    @property
    def generic(self) -> Collection[PooledContainer]:
        """The generic containers."""
        return self._generic

    def by_code(self) -> Iterator[tuple[CodeKey, dict[PooledContainer, None]]]:
        """Yield the bound containers with the same code, the most recently used one last.

        The code that was used last comes first: of equal values, the newest container is evicted first.
        """
        yield from reversed(self._bound.items())

    def like(self, key: BindingKey) -> list[PooledContainer]:
        """Return the containers with the code of a key, the most recently used one first."""
        return [*reversed(self._bound.get(key.code, {}))]

    def of_owner(self, owner: Owner | None) -> Collection[PooledContainer]:
        """Return the containers of an owner; none if the owner is unknown."""
        return self._owned.get(owner, {}) if owner is not None else ()


_K = TypeVar("_K")


def _remove(index: dict[_K, dict[PooledContainer, None]], key: _K, pooled: PooledContainer) -> None:
    containers = index[key]
    del containers[pooled]
    if not containers:
        del index[key]


def choose_idle(binding: Binding, idle: IdleContainers, sharing: Sharing) -> PooledContainer | None:
    """Choose the idle container for a job.

    A container that is bound to the same function version comes first. If there are several, the most
    recently used one is chosen. Its memory is most likely still in the CPU caches, and the others can reach
    the idle time at which they are retired. If the job has byte code, a container of the same function
    version without byte code comes next: it is bound again, and a generic container stays ready for other
    functions. A generic container follows. A container of another function comes last, and only with
    `CONTAINER_SHARING=worker`, or with `CONTAINER_SHARING=tenant` if it has only served functions of the same
    owner.

    A compilation gets no idle container, because jobs may need it.

    Args:
        binding: The binding of the job.
        idle: The idle containers of its runtime.
        sharing: CONTAINER_SHARING.

    Returns:
        The container; None if one must be created.
    """
    if binding.purpose == "compile":
        return None
    wanted = binding.key
    alike = idle.like(wanted)
    bound = (pooled for pooled in alike if pooled.serves(wanted))
    others: Iterable[PooledContainer] = ()
    if binding.purpose == "run" and sharing is Sharing.WORKER:
        others = idle
    elif binding.purpose == "run" and sharing is Sharing.TENANT:
        others = idle.of_owner(binding.owner)
    return next((pooled for pooled in chain(bound, alike, idle.generic, others) if pooled.alive), None)


def retirement_reason(pooled: PooledContainer, policy: PoolPolicy, now: float) -> str | None:
    """Return the reason to retire an idle container now; None if it can stay.

    Args:
        pooled: The container.
        policy: The settings of the pool.
        now: The time in the pool's clock.

    Returns:
        A value of the metric label `reason`.
    """
    if not pooled.alive:
        return "died"
    if pooled.container.held_bytes > pooled.container.base_bytes + LEFTOVER_BYTES:
        return "grown"
    if pooled.runs >= policy.max_runs:
        return "runs"
    if now - pooled.made_at >= age_limit_s(pooled.container.id, policy.max_age_s):
        return "age"
    if not pooled.is_generic and now - pooled.used_at >= policy.idle_s:
        return "idle"
    return None


def age_limit_s(container_id: str, max_age_s: float) -> float:
    """Return the age at which a container is retired: 80 to 100 % of the largest age, seconds.

    The ID decides, because the engine chooses it at random. So the age of a container does not change.

    Args:
        container_id: The ID of the container.
        max_age_s: The largest age, seconds.
    """
    part = zlib.crc32(container_id.encode()) / 2**32
    return max_age_s * (1 - AGE_SPREAD * part)


def may_recycle(pooled: PooledContainer, policy: PoolPolicy, now: float) -> bool:
    """Whether an idle container may be made generic again, instead of being removed.

    A container with a reason to retire is not recycled. The exception is `idle`: only its function is unused.

    Args:
        pooled: The container.
        policy: The settings of the pool.
        now: The time in the pool's clock.
    """
    return (
        policy.recycles
        and not pooled.is_generic
        and pooled.container.can_be_recycled
        and retirement_reason(pooled, policy, now) in {None, "idle"}
    )
