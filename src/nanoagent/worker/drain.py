"""The drain: ends the work on all deliveries before the worker ends.

First it returns to the queue all jobs that are not running. Then it lets running jobs finish, within the time
of the drain. At the end it returns the rest. Leases are renewed until the last delivery is settled.
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
"""The time to return messages at the end, seconds. Redis takes at most 5 s; a slow SQS may use the rest."""

_REVIEW_S: Final = 1.0


class DrainReason(StrEnum):
    """The reason for which a drain returns a job to the queue; the label of a metric."""

    WAITING = "waiting"  # the job is not running yet
    TOO_LONG = "too_long"  # the job will probably not end in the time that is left
    TIME_UP = "time_up"  # the time of the drain is over
    FORCED = "hurried"  # after a second signal; metrics keep the old word


class Drain:
    """Ends the work on all deliveries.

    Args:
        in_flight: The deliveries that are not settled.
        lifecycle: The time that is left for the drain.
        durations: How long jobs take.
        metrics: Counts the jobs that are returned.
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
        """Count a job that is returned."""
        self._returned[reason] += 1
        self._metrics.jobs.returned_by_drain(reason)

    async def run(self, intake: asyncio.Task[None]) -> None:
        """Drain. Return when every delivery is settled or the time is over.

        A job whose build is in progress counts as not running: another worker can build and run it at once.

        Args:
            intake: The task that receives messages. The drain waits for its last long poll. Messages that
                this poll receives are returned to the queue.
        """
        begun_at, jobs = time.monotonic(), len(self._in_flight)
        for each in self._in_flight:
            if each.state.phase is not Phase.RUNNING:
                self._stop(each.state, DrainReason.WAITING, STOPPING)
        await self._let_finish(intake)
        self._lifecycle.grace_ended.set()
        await self._return_rest(intake)
        took_s = round(time.monotonic() - begun_at, 1)
        log.info("drained", jobs=jobs, returned=dict(self._returned), seconds=took_s)

    async def _let_finish(self, intake: asyncio.Task[None]) -> None:
        """Wait for running jobs until they have ended, the time is over, or a second signal comes."""
        grace_ended = asyncio.create_task(self._lifecycle.grace_ended.wait())
        while (open_tasks := self._open_tasks(intake)) and not grace_ended.done():
            if (left_s := self._lifecycle.left_s()) <= 0:
                self._lifecycle.grace_ended.set()
            self._stop_too_long(left_s)
            pause_s = min(left_s, _REVIEW_S)
            await asyncio.wait(
                {*open_tasks, grace_ended}, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED
            )
        grace_ended.cancel()

    def _stop_too_long(self, left_s: float) -> None:
        """Stop each job that will probably not finish in time, so that another worker can run it.

        The durations of earlier jobs of its function decide. The drain repeats this every second: the longer
        a job has run, the more likely it is one of the long jobs.
        """
        now = time.monotonic()
        for each in self._in_flight:
            job, running_since = each.state.job, each.state.running_since
            if job is None or running_since is None or each.state.has_run or each.state.is_stopped_by_drain:
                continue
            known = self._durations.of(job)
            if will_finish(now - running_since, left_s, known, job.timeout_ms / 1000) is False:
                detail = f"the job will probably not end within the {left_s:.0f} s that the drain has left"
                self._stop(each.state, DrainReason.TOO_LONG, detail)

    async def _return_rest(self, intake: asyncio.Task[None]) -> None:
        """Return the remaining jobs. This takes at most `DRAIN_TAIL_S`.

        SQS delivers unsettled messages again.

        A job whose program has ended gets half of that time for its uploads. If it were returned, another
        worker would run the program again.
        """
        reason = DrainReason.TIME_UP if self._lifecycle.is_time_up else DrainReason.FORCED
        ends_at = time.monotonic() + DRAIN_TAIL_S
        uploads_end_at = ends_at - DRAIN_TAIL_S / 2
        while (open_tasks := self._open_tasks(intake)) and (left_s := ends_at - time.monotonic()) > 0:
            intake.cancel()  # loses no message: a broker returns the messages of an abandoned poll
            for each in self._in_flight:
                if not each.state.has_run or time.monotonic() >= uploads_end_at:
                    self._stop(each.state, reason, STOPPING)
            await asyncio.wait(open_tasks, timeout=min(left_s, _REVIEW_S))
        if self._in_flight:
            log.error(
                "messages not settled in time",
                jobs=len(self._in_flight),
                effect="SQS delivers them again when their leases end",
            )

    def _stop(self, state: DeliveryState, reason: DrainReason, detail: str) -> None:
        if state.stop_for_drain(detail):
            self.count(reason)

    def _open_tasks(self, intake: asyncio.Task[None]) -> set[asyncio.Task[None]]:
        """Return the tasks that the drain still waits for."""
        tasks = {each.task for each in self._in_flight}
        return tasks if intake.done() else {*tasks, intake}
