"""Metrics of containers: the warm pool, isolation and the self-test."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Final, Literal, get_args

from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation
from nanoagent.telemetry.metrics.labels import runtime_label

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.model.result import Start
    from nanoagent.telemetry.metrics.definitions import Definitions

PoolState = Literal["idle", "busy", "starting"]
PoolMemory = Literal["limit", "charged"]

_LEVELS: Final = {Isolation.SANDBOX: 2, Isolation.SHARED: 1, Isolation.CONTAINER: 0}


class ContainerMetrics:
    """Counts containers, and shows the isolation between runs.

    Args:
        define: Defines the metrics.
    """

    def __init__(self, define: Definitions) -> None:
        self._existing = define.gauge(
            "worker_pool_containers", "Containers, by runtime and state", "runtime", "state"
        )
        self._generic = define.gauge(
            "worker_pool_generic_containers", "Idle containers that are bound to no function", "runtime"
        )
        starts = define.counter(
            "worker_container_starts_total",
            "Runs and builds, by the state of their container at the start (hot, warm, cold)",
            *("runtime", "start"),
        )
        self._starts_by = cache(starts.labels)
        self._retired = define.counter(
            "worker_containers_retired_total", "Containers retired, by reason", "reason"
        )
        self._evicted = define.counter(
            "worker_containers_evicted_total", "Containers evicted because a job needed the room", "runtime"
        )
        self._rebound = define.counter(
            "worker_containers_rebound_total", "Containers bound to another function than before", "runtime"
        )
        self._imports = define.counter(
            "worker_imports_reuse_total",
            'Containers bound for a function with `reuse: "imports"`, by state: reused, or the reason',
            "state",
        )
        self._recycling = define.histogram(
            "worker_container_recycling_seconds", "Time to make a container generic again", "runtime"
        )
        self._recycling_failures = define.counter(
            "worker_container_recycling_failures_total",
            "Containers that could not be made generic again, and were removed, by kind of failure",
            "failure",
        )
        self._memory = define.gauge(
            "worker_pool_memory_bytes", "Memory of all containers: limit, and charged to the limit", "state"
        )
        self._creation_failures = define.counter(
            "worker_container_creation_failures_total", "Containers that could not be created"
        )
        self._breaker = define.gauge(
            "worker_pool_breaker_open",
            "1 while Docker is unavailable, or creations for at least one runtime keep failing",
        )
        self._isolation = define.gauge(
            "worker_isolation_level",
            "2: a sandbox for each run, 1: a container shared by runs, 0: a container for each run",
        )
        self._isolation_check = define.gauge(
            "worker_guard_ok", "1 if the last self-test passed this isolation check", "guard", "runtime"
        )

    def watch_pool(
        self,
        count: Callable[[Runtime, PoolState], int],
        generic: Callable[[Runtime], int],
        memory: Callable[[PoolMemory], int],
    ) -> None:
        """Ask for the numbers of containers and their memory at each scrape.

        Args:
            count: Returns the number of containers of a runtime in a state.
            generic: Returns the number of idle containers of a runtime that are bound to no function.
            memory: Returns an amount of memory, bytes.
        """
        for kind in get_args(PoolMemory):
            self._memory.labels(kind).set_function(partial(memory, kind))
        for runtime in Runtime:
            self._generic.labels(runtime).set_function(partial(generic, runtime))
            for state in get_args(PoolState):
                self._existing.labels(runtime, state).set_function(partial(count, runtime, state))

    def started(self, runtime: str, start: Start) -> None:
        """Count a run or a build by the state that its container was in."""
        self._starts_by(runtime_label(runtime), start.value).inc()

    def retired(self, reason: str, runtime: Runtime) -> None:
        """Count a container that was retired; `reason` is a constant of `nanoagent.container`."""
        self._retired.labels(reason).inc()
        if reason == "evicted":
            self._evicted.labels(runtime).inc()

    def rebound(self, runtime: Runtime) -> None:
        """Count a container that is bound to another function than before."""
        self._rebound.labels(runtime).inc()

    def bound_with_imports(self, state: str) -> None:
        """Count a container that is bound to a function whose imports are to be reused.

        Args:
            state: `ImportsState.label`.
        """
        self._imports.labels(state).inc()

    def recycled(self, runtime: Runtime, seconds: float) -> None:
        """Count a container that was made generic again, with the time that this took."""
        self._recycling.labels(runtime).observe(seconds)

    def recycling_failed(self, failure: str) -> None:
        """Count a container that could not be made generic; `failure` is a `RecyclingFailure`."""
        self._recycling_failures.labels(failure).inc()

    def creation_failed(self) -> None:
        """Count a container that could not be created."""
        self._creation_failures.inc()

    def breaker(self, *, is_open: bool) -> None:
        """Show whether Docker is unavailable, or creations for at least one runtime keep failing."""
        self._breaker.set(is_open)

    def isolation(self, between_runs: Isolation) -> None:
        """Show the isolation between one run and the next."""
        self._isolation.set(_LEVELS[between_runs])

    def isolation_check(self, check: str, runtime: Runtime, *, ok: bool) -> None:
        """Show the result of an isolation check; `check` is a `selftest.checks.IsolationCheck`."""
        self._isolation_check.labels(check, runtime).set(ok)
