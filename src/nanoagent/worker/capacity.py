"""Decides how many messages the worker may receive, and which received jobs it must return."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from nanoagent.worker import fairness
from nanoagent.worker.state import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from nanoagent.broker.base import Broker, Delivery
    from nanoagent.config import Settings
    from nanoagent.jobs.admission import Admission
    from nanoagent.model.job import Job
    from nanoagent.worker.inflight import InFlight
    from nanoagent.worker.lifecycle import Lifecycle

MAX_BATCH: Final = 10
"""The most messages that SQS returns for one ReceiveMessage."""

_MAX_WAITING_FOR_ROOM: Final = 4  # with so many jobs that wait for room, no more messages are received
_IN_FLIGHT_PER_RUN: Final = 2  # while one job runs, another may upload its outputs


class Capacity:
    """The worker's capacity, from the deliveries in flight and the budget of memory and CPU.

    Args:
        in_flight: The deliveries that are not settled.
        admission: The budget.
        broker: Says whether a receipt is the last that the redrive policy allows.
        settings: The memory and CPU of a job with the default size.
        lifecycle: `capacity_changed` is set when capacity changes.
        jitter: Random numbers from 0 to 1.

    Attributes:
        throttle: The intervals between receives while `has_max_waiting_over_limit`.
    """

    def __init__(
        self,
        in_flight: Collection[InFlight],
        admission: Admission,
        broker: Broker,
        settings: Settings,
        lifecycle: Lifecycle,
        jitter: Callable[[], float],
    ) -> None:
        self._in_flight = in_flight
        self._admission = admission
        self._broker = broker
        self._settings = settings
        self._lifecycle = lifecycle
        self._jitter = jitter
        self._default_mb = settings.job_defaults.memory_mb
        self._default_cpus = settings.cpus_for(self._default_mb)
        self.throttle = fairness.ReceiveThrottle()

    def room(self) -> int:
        """Return the number of messages that may be received now, at most `MAX_BATCH`.

        It is the number of further jobs of the default size that would be admitted now, less the jobs here
        that will soon ask for room. Three kinds of jobs are special:

        * Jobs that upload their outputs hold no part of the budget. Their number is limited all the same,
          because each may have a folder of output files on the disk.
        * Jobs over their function's concurrency limit do not count.
        * A few jobs that wait for room do not count, while smaller jobs may overtake them. There may be only
          a few, because new jobs may be as large, and other workers may have room for those.
        """
        waiting = self._admission.waiting_for_room
        admissible = self._admission.admissible(self._default_mb, self._default_cpus)
        over_limit = sum(self.over_limit().values())
        will_ask = max(0, sum(each.state.wants_room for each in self._in_flight) - over_limit - waiting)
        total = self._admission.total
        max_runs = min(total.memory_mb // self._default_mb, int(total.cpus / self._default_cpus))
        not_behind = sum(each.state.phase is not Phase.BEHIND for each in self._in_flight) - over_limit
        room_beside_waiting = _MAX_WAITING_FOR_ROOM - waiting - will_ask if waiting else MAX_BATCH
        room_in_flight = _IN_FLIGHT_PER_RUN * max_runs - not_behind
        return max(0, min(admissible - will_ask, room_in_flight, room_beside_waiting, MAX_BATCH))

    def has_max_waiting_over_limit(self) -> bool:
        """Whether one more job over its function's limit would be too many, for at least one function."""
        return fairness.has_max_waiting(self.over_limit())

    def over_limit(self) -> dict[str, int]:
        """Count the jobs here that wait because of their function's concurrency limit, by function."""
        waiting = [
            each.state.job for each in self._in_flight if each.state.wants_room and each.state.job is not None
        ]
        return fairness.count_over_limit([(job.function_id, self._remaining(job)) for job in waiting])

    def _remaining(self, job: Job) -> int:
        cpus = self._settings.cpus_for(job.memory_mb)
        return self._admission.remaining_under_limit(job.memory_mb, cpus, job.function_id)

    def check_limit(self, job: Job, delivery: Delivery) -> float | None:
        """Check a job that has just been received against its function's concurrency limit.

        Returns:
            None if the job may stay. Otherwise the delay with which it must be returned, in seconds.
        """
        function = job.function_id
        over_limit = self.over_limit()
        if function not in over_limit:
            self.throttle.found_below_limit()
            return None
        self._lifecycle.capacity_changed.set()  # the job needs no room now
        if not fairness.exceeds_waiting(over_limit, function):
            return None
        if delivery.in_order and self._broker.is_last(delivery):
            # The queue would not deliver it again, and a copy would lose its place in the order.
            return None
        jobs = ((each.state.job, each.state.since) for each in self._in_flight)
        first = min(since for other, since in jobs if other is not None and other.function_id == function)
        return fairness.return_delay_s(delivery.receive_count, time.monotonic() - first, self._jitter())
