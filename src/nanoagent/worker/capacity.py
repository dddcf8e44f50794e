"""How many more jobs the worker can take, and which of those here it cannot keep."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from nanoagent.worker import fairness
from nanoagent.worker.state import Phase

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Collection

    from nanoagent.broker.base import Broker, Delivery
    from nanoagent.config import Settings
    from nanoagent.jobs.admission import Slots
    from nanoagent.model.job import Job
    from nanoagent.worker.inflight import InFlight
    from nanoagent.worker.lifecycle import Lifecycle

MAX_BATCH: Final = 10
"""The most messages that SQS returns for one ReceiveMessage."""

_MOST_WAITING: Final = 4  # jobs that wait for room while more messages are received
_IN_FLIGHT_PER_SLOT: Final = 2  # one runs, one uploads


class Capacity:
    """The worker's capacity, by the deliveries in flight and the budget of memory and CPU.

    Args:
        in_flight: The deliveries that are not settled.
        slots: The budget.
        broker: Knows which receipts are the last.
        settings: The smallest job.
        lifecycle: Is told when capacity changes.
        jitter: Random numbers from 0 to 1.
    """

    def __init__(
        self,
        in_flight: Collection[InFlight],
        slots: Slots,
        broker: Broker,
        settings: Settings,
        lifecycle: Lifecycle,
        jitter: Callable[[], float],
    ) -> None:
        self._in_flight = in_flight
        self._slots = slots
        self._broker = broker
        self._settings = settings
        self._lifecycle = lifecycle
        self._jitter = jitter
        self._smallest_mb = settings.job_defaults.memory_mb
        self._smallest_cpus = settings.cpus_for(self._smallest_mb)
        self.pace = fairness.Pace()

    def room(self) -> int:
        """How many more messages could run at once, counting those already here that do not run yet.

        Jobs that have run and upload count too when they become many: each may have a folder of output files
        on the disk. Jobs over their function's concurrency limit do not count. Nor do jobs that wait for
        room, while they may be overtaken and are few. They have to be few because new messages may be as
        large, and other workers may have room for them.
        """
        waiting = self._slots.waiting_for_room
        free = self._slots.admissible(self._smallest_mb, self._smallest_cpus)
        over_limit = self.over_limit().total()
        coming = max(0, sum(each.state.wants_room for each in self._in_flight) - over_limit - waiting)
        total = self._slots.total
        at_once = min(total.memory_mb // self._smallest_mb, int(total.cpus / self._smallest_cpus))
        working = sum(each.state.phase is not Phase.BEHIND for each in self._in_flight) - over_limit
        most = _MOST_WAITING - waiting - coming if waiting else MAX_BATCH
        return max(0, min(free - coming, _IN_FLIGHT_PER_SLOT * at_once - working, most, MAX_BATCH))

    def is_full_of_waiting(self) -> bool:
        """Whether a further job of some function would be one too many to wait here."""
        return fairness.is_full(self.over_limit())

    def over_limit(self) -> Counter[str]:
        """How many jobs here wait for their function's concurrency limit, by function."""
        waiting = (
            each.state.job for each in self._in_flight if each.state.wants_room and each.state.job is not None
        )
        return fairness.beyond_share(waiting, self._share_left)

    def _share_left(self, job: Job) -> int:
        cpus = self._settings.cpus_for(job.memory_mb)
        return self._slots.share_left_for(job.memory_mb, cpus, job.function_id)

    def return_delay_s(self, job: Job, delivery: Delivery) -> float | None:
        """For how long a job that has just come has to go back, because too many of its function wait here.

        Returns:
            Seconds; None when it may stay.
        """
        function = job.function_id
        over_limit = self.over_limit()
        if not over_limit[function]:
            self.pace.found()
            return None
        self._lifecycle.capacity_changed.set()  # it wants no room after all
        if not fairness.is_crowded(over_limit, function):
            return None
        if delivery.in_order and self._broker.is_last(delivery):
            return None  # it would not come again: only a message without a place in an order can be copied
        jobs = ((each.state.job, each.state.since) for each in self._in_flight)
        first = min(since for other, since in jobs if other is not None and other.function_id == function)
        return fairness.away_s(delivery.receive_count, time.monotonic() - first, self._jitter())
