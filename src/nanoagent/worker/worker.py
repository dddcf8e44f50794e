"""The worker as a whole: its parts, its start and its stop."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from nanoagent.broker.fifo import FifoOrder
from nanoagent.host.background import TaskName
from nanoagent.model.job import Runtime
from nanoagent.model.returns import ReturnStreaks
from nanoagent.worker.capacity import Capacity
from nanoagent.worker.drain import Drain, DrainReason
from nanoagent.worker.duplicates import Duplicates
from nanoagent.worker.durations import Durations
from nanoagent.worker.inflight import InFlight
from nanoagent.worker.intake import Intake
from nanoagent.worker.lifecycle import Lifecycle
from nanoagent.worker.publishing import Publisher
from nanoagent.worker.readiness import ReadinessCheck, ReadinessChecks
from nanoagent.worker.settler import Settler
from nanoagent.worker.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nanoagent.broker.base import Delivery
    from nanoagent.host.background import Background
    from nanoagent.worker.parts import WorkerParts

log = structlog.get_logger(__name__)


class Worker:
    """Receives deliveries from the broker and settles each of them.

    Args:
        parts: The collaborators.
        jitter: Random numbers from 0 to 1, for retry delays.
    """

    def __init__(self, parts: WorkerParts, *, jitter: Callable[[], float] = random.random) -> None:
        order = FifoOrder(parts.broker)
        self._parts = parts = replace(parts, broker=order)
        self._in_flight: set[InFlight] = set()
        self._lifecycle = lifecycle = Lifecycle()
        self._streaks = ReturnStreaks()
        self._durations = Durations()
        self._is_stop_requested = False
        settings = parts.settings
        self._checks = ReadinessChecks((*self._own_checks(), *parts.checks), parts.health)
        capacity = Capacity(self._in_flight, parts.admission, order, settings, lifecycle, jitter)
        self._intake = Intake(parts, capacity, self._checks, self._streaks, lifecycle, jitter=jitter)
        self._drain = Drain(self._in_flight, lifecycle, self._durations, parts.metrics)
        self._shared = Shared(
            parts=parts,
            order=order,
            lifecycle=lifecycle,
            capacity=capacity,
            duplicates=Duplicates(),
            durations=self._durations,
            streaks=self._streaks,
            publisher=Publisher(parts.result_store, parts.spool, self._streaks, lifecycle.grace_ended),
            settler=Settler(order, settings, self._streaks, jitter=jitter),
        )
        parts.admission.watch(lifecycle.capacity_changed.set)

    @property
    def background(self) -> Background:
        """The runner of the worker's background tasks."""
        return self._parts.background

    async def run(self) -> None:
        """Work until `stop` or `drain` is called, then drain. Return when the drain is over."""
        keep, stopping = self._parts.background.keep, self._lifecycle.stopping
        intake = keep(TaskName.INTAKE, self._receive, until=stopping)
        watch = keep(TaskName.READINESS_CHECKS, self._checks.watch)
        stopped = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({intake, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not stopping.is_set():  # this task is cancelled
                self.drain("the worker was cancelled")
            await self._drain.run(intake)
            watch.cancel()
        await intake

    def stop(self) -> None:
        """Drain because a signal asks the worker to end. A second call also stops the running jobs."""
        if self._is_stop_requested:
            self._lifecycle.grace_ended.set()
        self._is_stop_requested = True
        self.drain("a stop was requested")

    def drain(self, reason: str, grace_s: float | None = None) -> None:
        """Stop receiving messages, let running jobs finish, return the other jobs to the queue.

        A repeated call can only shorten the drain.

        Args:
            reason: The reason, for the log and `/readyz`.
            grace_s: How much longer jobs may run, seconds. The default and the maximum are DRAIN_SECONDS.
        """
        longest_s = float(self._parts.settings.drain_seconds)
        grace_s = longest_s if grace_s is None else max(0.0, min(grace_s, longest_s))
        self._lifecycle.drain_within(grace_s)
        self._parts.on_drain()
        self._parts.health.set("drain", ok=False, reason=f"draining: {reason}")
        left_s = round(self._lifecycle.left_s(), 1)
        log.info("draining", reason=reason, jobs=len(self._in_flight), seconds=left_s)

    async def not_ready_reason(self) -> str | None:
        """Run every readiness check; return the reason why no jobs can be taken now, or None."""
        return await self._checks.reason()

    # --- deliveries

    async def _receive(self) -> None:
        """Receive messages until the worker stops.

        A drain waits for the last long poll. It cancels the poll only when running jobs get no more time. The
        broker then returns the messages of the poll to the queue.
        """
        try:
            while not self._lifecycle.stopping.is_set():
                for delivery in await self._intake.next():
                    self._begin(delivery)
        except asyncio.CancelledError:
            if not self._lifecycle.grace_ended.is_set():
                raise

    def _begin(self, delivery: Delivery) -> None:
        """Begin the work on a delivery."""
        in_flight = InFlight(delivery, self._shared)
        self._in_flight.add(in_flight)
        if self._lifecycle.stopping.is_set():  # its task returns it to the queue
            self._drain.count(DrainReason.WAITING)
        delivery.lost.add_done_callback(lambda _: self._stop_lost(in_flight))
        in_flight.task.add_done_callback(lambda task: self._settled(in_flight, task))

    def _stop_lost(self, in_flight: InFlight) -> None:
        self._parts.metrics.jobs.lease_lost()
        in_flight.state.stop()

    def _settled(self, in_flight: InFlight, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(in_flight)
        self._lifecycle.capacity_changed.set()
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("delivery not settled", exc_info=exc)  # the return of the message has failed, too

    # --- readiness

    def _own_checks(self) -> tuple[ReadinessCheck, ...]:
        return (
            ReadinessCheck("containers", self._no_containers, reports_itself=True),
            ReadinessCheck("guards", self._all_blocked, reports_itself=True),
            ReadinessCheck("results", self._no_results),
            ReadinessCheck("spool", self._spool_full),
            ReadinessCheck("returns", self._streaks.not_ready_reason),
            ReadinessCheck("background", self._parts.background.not_ready_reason, reports_itself=True),
        )

    def _no_containers(self) -> str | None:
        return self._parts.pool.unavailable_reason

    def _all_blocked(self) -> str | None:
        """Return the reason if no job can run, because isolation checks of all runtimes fail."""
        reasons = [self._parts.blocked(runtime) for runtime in Runtime]
        return f"no runtime takes jobs: {reasons[0]}" if all(reasons) else None

    def _no_results(self) -> Awaitable[None] | None:
        store = self._parts.result_store
        return None if store.took_write_lately() else store.ping()

    def _spool_full(self) -> str | None:
        """Return the reason if the spool may have no room for the result of one more job."""
        settings = self._parts.settings
        if self._parts.spool.has_room_for((len(self._in_flight) + 1) * settings.max_result_bytes):
            return None
        return f"RESULT_SPOOL_MB={settings.result_spool_mb} is used up by results that wait for Redis"
