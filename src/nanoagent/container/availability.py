"""Knows whether containers can be created, and tells jobs, readiness and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.common.circuit_breaker import CircuitBreaker
from nanoagent.model.errors import ReturnToQueue
from nanoagent.model.job import Runtime
from nanoagent.model.returns import ReturnReason

if TYPE_CHECKING:
    from nanoagent.container.pool_context import PoolContext
    from nanoagent.telemetry.status import Health

log = structlog.get_logger(__name__)

_THRESHOLD: Final = 3  # failed creations in a row
_PAUSE_S: Final = 1.0
_PAUSE_MAX_S: Final = 60.0


def creation_breaker() -> CircuitBreaker:
    """Return a circuit breaker for the creations of one runtime.

    Several creations run at the same time. A failure during the pause lengthens the pause, even if its
    creation began before the circuit breaker opened.
    """
    return CircuitBreaker(_THRESHOLD, first_s=_PAUSE_S, longest_s=_PAUSE_MAX_S, counts_late=True)


class Availability:
    """Whether containers can be created, and why not.

    It owns the circuit breaker of each runtime and the reason why Docker is unavailable. It reports both to
    readiness and metrics. Before the pool has been filled for the first time, it reports no success to
    readiness.

    Args:
        context: The collaborators and the state that the parts of the pool share.
        health: The readiness to which it reports.

    Attributes:
        engine_problem: Why Docker is unavailable, and how to examine it; None while Docker is available.
    """

    def __init__(self, context: PoolContext, health: Health) -> None:
        self.engine_problem: str | None = None
        self._sizes = context.policy.sizes
        self._metrics = context.metrics
        self._clock = context.clock
        self._health = health
        self._breakers = {runtime: creation_breaker() for runtime in Runtime}
        self._was_filled = False

    # --- questions

    def allows(self, runtime: Runtime, starting: int) -> bool:
        """Whether a container of a runtime may be created now.

        Args:
            runtime: The runtime.
            starting: The number of creations for it that are under way.
        """
        return self.engine_problem is None and self._breakers[runtime].allows(self._clock(), starting)

    def is_failing(self, runtime: Runtime) -> bool:
        """Whether the creations for a runtime keep failing."""
        return self._breakers[runtime].is_open

    def refuse_unavailable(self, runtime: Runtime, starting: int) -> None:
        """Return a job to the queue if no container can be created for it. Another worker may run it.

        Args:
            runtime: The runtime of the job.
            starting: The number of creations for it that are under way.

        Raises:
            ReturnToQueue: Docker is unavailable, or the creations for the runtime keep failing.
        """
        if self.engine_problem is not None:
            raise self.engine_unavailable()
        breaker = self._breakers[runtime]
        if not breaker.allows(self._clock(), starting):
            others = any(not breaker.is_open for breaker in self._decisive())
            reason = ReturnReason.NO_CONTAINERS_OF_RUNTIME if others else ReturnReason.NO_CONTAINERS
            raise ReturnToQueue(f"containers cannot be created: {breaker.reason}", reason=reason)

    def engine_unavailable(self) -> ReturnToQueue:
        """Return the exception for a job while Docker is unavailable."""
        assert self.engine_problem is not None  # noqa: S101 - the callers have checked it
        return ReturnToQueue(self.engine_problem, reason=ReturnReason.ENGINE_UNAVAILABLE)

    @property
    def unavailable_reason(self) -> str | None:
        """Why the worker takes no jobs at present; None if it can take jobs.

        The runtimes with a warm pool decide, or all runtimes if none has a warm pool. If creations are paused
        for all of them, this is the reason of one pause. It is None again when any of the pauses ends.
        """
        if self.engine_problem is not None:
            return self.engine_problem
        now = self._clock()
        breakers = self._decisive()
        return breakers[0].reason if all(breaker.is_pausing(now) for breaker in breakers) else None

    def _decisive(self) -> list[CircuitBreaker]:
        """The circuit breakers that decide whether the worker takes jobs.

        They belong to the runtimes with a warm pool, or to all runtimes if none has a warm pool.
        """
        kept_ready = [self._breakers[runtime] for runtime, size in self._sizes.items() if size]
        return kept_ready or list(self._breakers.values())

    # --- changes

    def pool_filled(self) -> None:
        """Note that the pool has been filled, as far as that was possible."""
        self._was_filled = True
        self._report()

    def creation_succeeded(self, runtime: Runtime) -> None:
        """Note that a container of a runtime was created."""
        breaker = self._breakers[runtime]
        if breaker.is_open:
            log.info("containers can be created again", runtime=runtime)
        breaker.record_success()
        self._report()

    def creation_failed(self, runtime: Runtime, reason: str) -> None:
        """Note that a container of a runtime could not be created, while Docker was available."""
        breaker = self._breakers[runtime]
        was_open = breaker.is_open
        breaker.record_failure(reason, self._clock())
        self._metrics.containers.creation_failed()
        log.warning("container not created", runtime=runtime, reason=reason, failures=breaker.failures)
        if breaker.is_open and not was_open:
            log.error("containers cannot be created", runtime=runtime, reason=reason)
        self._report()

    def engine_failed(self, reason: str) -> None:
        """Note that Docker does not answer."""
        if self.engine_problem is None:
            log.error("Docker unavailable", reason=reason)
        self.engine_problem = f"{reason}; systemctl status docker"
        self._report()

    def engine_answered(self) -> None:
        """Note that Docker answers again. Earlier failures of creations no longer count."""
        log.info("Docker available again")
        self.engine_problem = None
        for breaker in self._breakers.values():
            breaker.record_success()
        self._report()

    def _report(self) -> None:
        """Report to readiness and metrics whether Docker is unavailable, or creations keep failing."""
        reasons = [] if self.engine_problem is None else [self.engine_problem]
        reasons += [
            f"{runtime}: {breaker.reason}" for runtime, breaker in self._breakers.items() if breaker.is_open
        ]
        self._metrics.containers.breaker(is_open=bool(reasons))
        if reasons or self._was_filled:
            self._health.set("containers", ok=not reasons, reason="; ".join(reasons))
