"""Whether containers can be created, for jobs, readiness and metrics."""

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
    """A circuit breaker for the creations of one runtime. Several run at once, so late failures count."""
    return CircuitBreaker(_THRESHOLD, first_s=_PAUSE_S, longest_s=_PAUSE_MAX_S, counts_late=True)


class Availability:
    """Whether containers can be created, and why not.

    It owns the circuit breaker of each runtime and the reason why Docker is unavailable, and reports them to
    readiness and metrics. Until the pool has been filled, readiness is told of faults only.

    Args:
        context: The collaborators and the state that the parts of the pool share.
        health: Is told when containers cannot be created.

    Attributes:
        engine_problem: Why Docker is unavailable, and how to examine it; None while it is available.
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
            starting: How many creations for it are under way.
        """
        return self.engine_problem is None and self._breakers[runtime].allows(self._clock(), starting)

    def is_failing(self, runtime: Runtime) -> bool:
        """Whether the creations for a runtime keep failing."""
        return self._breakers[runtime].is_open

    def refuse_unavailable(self, runtime: Runtime, starting: int) -> None:
        """Send a job back to the queue if no container can be created for it: another worker may be able to.

        Args:
            runtime: The runtime of the job.
            starting: How many creations for it are under way.

        Raises:
            ReturnToQueue: Docker is unavailable, or the creations for the runtime keep failing.
        """
        if self.engine_problem is not None:
            raise self.engine_unavailable()
        breaker = self._breakers[runtime]
        if not breaker.allows(self._clock(), starting):
            others = any(not breaker.is_open for breaker in self._decisive())
            reason = ReturnReason.NO_CONTAINERS_OF_RUNTIME if others else ReturnReason.NO_CONTAINERS
            raise ReturnToQueue(f"containers cannot be made: {breaker.reason}", reason=reason)

    def engine_unavailable(self) -> ReturnToQueue:
        """The return of a job to the queue while Docker is unavailable."""
        assert self.engine_problem is not None  # noqa: S101 - the callers have looked
        return ReturnToQueue(self.engine_problem, reason=ReturnReason.ENGINE_UNAVAILABLE)

    @property
    def unavailable_reason(self) -> str | None:
        """Why no job at all can be run at present, or None.

        A runtime whose containers cannot be created does not stop the others; and once its circuit breaker
        allows a trial, the worker takes a job for it.
        """
        if self.engine_problem is not None:
            return self.engine_problem
        now = self._clock()
        breakers = self._decisive()
        return breakers[0].reason if all(breaker.is_pausing(now) for breaker in breakers) else None

    def _decisive(self) -> list[CircuitBreaker]:
        """The circuit breakers of the runtimes that are kept ready; of all runtimes if none is."""
        kept_ready = [self._breakers[runtime] for runtime, size in self._sizes.items() if size]
        return kept_ready or list(self._breakers.values())

    # --- changes

    def pool_filled(self) -> None:
        """The pool has been filled, as far as that was possible."""
        self._was_filled = True
        self._report()

    def creation_succeeded(self, runtime: Runtime) -> None:
        """A container of a runtime has been created."""
        breaker = self._breakers[runtime]
        if breaker.is_open:
            log.info("containers can be made again", runtime=runtime)
        breaker.record_success()
        self._report()

    def creation_failed(self, runtime: Runtime, reason: str) -> None:
        """A container of a runtime could not be created, though Docker is available."""
        breaker = self._breakers[runtime]
        was_broken = breaker.is_open
        breaker.record_failure(reason, self._clock())
        self._metrics.containers.creation_failed()
        log.warning("container not made", runtime=runtime, reason=reason, failures=breaker.failures)
        if breaker.is_open and not was_broken:
            event = "containers cannot be created; jobs go back to the queue"
            log.error(event, runtime=runtime, reason=reason)
        self._report()

    def engine_failed(self, reason: str) -> None:
        """Docker does not answer."""
        if self.engine_problem is None:
            log.error("Docker is away; no jobs are taken", reason=reason)
        self.engine_problem = f"{reason}; systemctl status docker"
        self._report()

    def engine_answered(self) -> None:
        """Docker answers again: the faults from before are forgotten."""
        log.info("Docker is back")
        self.engine_problem = None
        for breaker in self._breakers.values():
            breaker.record_success()
        self._report()

    def _report(self) -> None:
        """Tell readiness and metrics for which runtimes containers cannot be created."""
        reasons = [] if self.engine_problem is None else [self.engine_problem]
        reasons += [
            f"{runtime}: {breaker.reason}" for runtime, breaker in self._breakers.items() if breaker.is_open
        ]
        self._metrics.containers.breaker(is_open=bool(reasons))
        if reasons or self._was_filled:
            self._health.set("containers", ok=not reasons, reason="; ".join(reasons))
