"""The end of the worker: what does not run goes back at once, what runs is finished in time.

Stopping is not cancelling. Leases last until the last delivery is settled.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.worker.durations import will_finish
from nanoagent.worker.state import STOPPING, Phase

if TYPE_CHECKING:
    from collections.abc import Collection

    from nanoagent.telemetry.metrics import Metrics
    from nanoagent.worker.durations import Durations
    from nanoagent.worker.inflight import InFlight
    from nanoagent.worker.lifecycle import Lifecycle
    from nanoagent.worker.state import DeliveryState

log = structlog.get_logger(__name__)

DRAIN_TAIL_S: Final = 15.0
"""How long the return of messages may take at the end: Redis has 5 s at most, a hanging SQS the rest."""

_REVIEW_S: Final = 1.0


class DrainReason(StrEnum):
    """Why a drain returns a job; the label of a metric."""

    WAITING = "waiting"  # it does not run yet
    TOO_LONG = "too_long"  # such jobs take longer than the time that is left
    TIME_UP = "time_up"  # DRAIN_SECONDS are over
    FORCED = "hurried"  # a second signal


class Drain:
    """Ends the work on all deliveries.

    Args:
        in_flight: The deliveries that are not settled.
        lifecycle: How much time is left.
        durations: How long jobs take.
        metrics: Counts the jobs that go back.
    """

    def __init__(
        self, in_flight: Collection[InFlight], lifecycle: Lifecycle, durations: Durations, metrics: Metrics
    ) -> None:
        self._in_flight = in_flight
        self._lifecycle = lifecycle
        self._durations = durations
        self._metrics = metrics
        self._returned: Counter[str] = Counter()

    def count(self, reason: DrainReason) -> None:
        """A job goes back."""
        self._returned[reason] += 1
        self._metrics.jobs.returned_by_drain(reason)

    async def run(self, intake: asyncio.Task[None]) -> None:
        """Return what does not run, let the rest finish in time, return what does not.

        Builds count as not running: they, and then their jobs, can be done elsewhere at once. The last long
        poll is waited for meanwhile; its messages go back as well.
        """
        begun_at, jobs = time.monotonic(), len(self._in_flight)
        for each in self._in_flight:
            if each.state.phase is not Phase.RUNNING:
                self._stop(each.state, DrainReason.WAITING, STOPPING)
        await self._let_finish(intake)
        self._lifecycle.forced.set()
        await self._end(intake)
        took_s = round(time.monotonic() - begun_at, 1)
        log.info("drained", jobs=jobs, given_back=dict(self._returned), seconds=took_s)

    async def _let_finish(self, intake: asyncio.Task[None]) -> None:
        forced = asyncio.create_task(self._lifecycle.forced.wait())
        while (open_tasks := self._open_tasks(intake)) and not forced.done():
            if (left_s := self._lifecycle.left_s()) <= 0:
                self._lifecycle.forced.set()
            self._stop_hopeless(left_s)
            pause_s = min(left_s, _REVIEW_S)
            await asyncio.wait({*open_tasks, forced}, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()

    def _stop_hopeless(self, left_s: float) -> None:
        """Stop what will not be done in time, by how long such jobs have taken: another worker can begin it.

        Asked again as time passes: what has run for longer than most may show to be of the long kind.
        """
        now = time.monotonic()
        for each in self._in_flight:
            job, running_since = each.state.job, each.state.running_since
            if job is None or running_since is None or each.state.has_run or each.state.is_stopped_by_drain:
                continue
            known = self._durations.of(job)
            if will_finish(now - running_since, left_s, known, job.timeout_ms / 1000) is False:
                detail = f"such jobs take longer than the {left_s:.0f} s that are left to it"
                self._stop(each.state, DrainReason.TOO_LONG, detail)

    async def _end(self, intake: asyncio.Task[None]) -> None:
        """Return what is left; messages that cannot be settled within a while come back by themselves.

        What has run gets half of that while for its uploads: elsewhere it would have to run again.
        """
        reason = DrainReason.TIME_UP if self._lifecycle.is_time_up else DrainReason.FORCED
        ends_at = time.monotonic() + DRAIN_TAIL_S
        uploads_end_at = ends_at - DRAIN_TAIL_S / 2
        while (open_tasks := self._open_tasks(intake)) and (left_s := ends_at - time.monotonic()) > 0:
            intake.cancel()  # nothing is lost: a broker returns the messages of an abandoned poll
            for each in self._in_flight:
                if not each.state.has_run or time.monotonic() >= uploads_end_at:
                    self._stop(each.state, reason, STOPPING)
            await asyncio.wait(open_tasks, timeout=min(left_s, _REVIEW_S))
        if self._in_flight:
            log.error(
                "not settled in time: these messages come back by themselves", jobs=len(self._in_flight)
            )

    def _stop(self, state: DeliveryState, reason: DrainReason, detail: str) -> None:
        if state.stop_for_drain(detail):
            self.count(reason)

    def _open_tasks(self, intake: asyncio.Task[None]) -> set[asyncio.Task[None]]:
        """What a drain still has to wait for."""
        tasks = {each.task for each in self._in_flight}
        return tasks if intake.done() else {*tasks, intake}
