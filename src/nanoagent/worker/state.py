"""The state of one delivery in flight. `InFlight` and its parts share it, and the worker reads it."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from nanoagent.model.returns import ReturnReason
from nanoagent.worker.endings import Returned

if TYPE_CHECKING:
    import asyncio

    from nanoagent.broker.base import Delivery
    from nanoagent.jobs.attempt import Attempt
    from nanoagent.model.job import Job
    from nanoagent.results.base import Claim
    from nanoagent.worker.lifecycle import Lifecycle

STOPPING: Final = "the worker is stopping"


class Phase(StrEnum):
    """The phase of a delivery."""

    RECEIVED = "received"  # its task has not begun; if cancelled now, the task would settle nothing
    WAITING = "waiting"  # for its claim, its code, its build, or room
    BEHIND = "behind"  # waits for another delivery of its request, or an earlier one of its message group
    RUNNING = "running"  # admitted: a drain lets it finish
    FINISHING = "finishing"  # the work on it cannot be cancelled any more
    SETTLED = "settled"


NEXT: Final = {
    Phase.RECEIVED: {Phase.WAITING},
    Phase.WAITING: {Phase.BEHIND, Phase.RUNNING, Phase.FINISHING},
    Phase.BEHIND: {Phase.WAITING, Phase.FINISHING},
    Phase.RUNNING: {Phase.FINISHING},
    Phase.FINISHING: {Phase.WAITING, Phase.SETTLED},  # WAITING: the queue took no copy of the message
    Phase.SETTLED: set[Phase](),
}
"""Phase → the phases that may follow."""

_CHANGES_CAPACITY: Final = frozenset({Phase.BEHIND, Phase.RUNNING})  # the worker may receive more messages
_UNINTERRUPTED: Final = frozenset({Phase.RECEIVED, Phase.FINISHING, Phase.SETTLED})


class DeliveryState:
    """The phase of a delivery, its job, its claim and its attempt.

    Args:
        delivery: The delivery.
        lifecycle: `capacity_changed` is set when the worker may receive more messages.

    Attributes:
        delivery: The delivery.
        phase: The phase. Only `enter` changes it.
        task: The task that works on it.
        since: When it was received, monotonic seconds.
        job: Its job; None until the message has been parsed.
        labels: Runtime and model of the job, for metrics; empty strings while they are unknown.
        claim: The right to answer its request; None until it is taken.
        attempt: The attempt to run its job; None until it has begun.
        failures: How many attempts at its request have failed; None while this is unknown.
        running_since: When its job was admitted, monotonic seconds; None before.
    """

    def __init__(self, delivery: Delivery, lifecycle: Lifecycle) -> None:
        self.delivery = delivery
        self.phase = Phase.RECEIVED
        self.task: asyncio.Task[None]
        self.since = time.monotonic()
        self.job: Job | None = None
        self.labels = ("", "")
        self.claim: Claim | None = None
        self.attempt: Attempt | None = None
        self.failures: int | None = None
        self.running_since: float | None = None
        self._lifecycle = lifecycle
        self._stop_detail: str | None = None

    def enter(self, phase: Phase) -> None:
        """Change the phase. Entering the present phase again has no effect.

        Raises:
            AssertionError: The phase may not follow the present one.
        """
        if phase is self.phase:
            return
        if phase not in NEXT[self.phase]:
            raise AssertionError(f"a delivery cannot go from {self.phase} to {phase}")
        self.phase = phase
        if phase in _CHANGES_CAPACITY:
            self._lifecycle.capacity_changed.set()

    def start_running(self) -> None:
        """Note that the job is admitted."""
        self.running_since = time.monotonic()
        self.enter(Phase.RUNNING)

    @property
    def wants_room(self) -> bool:
        """Whether its job waits for room in the budget, or will soon ask for room."""
        return self.phase in {Phase.RECEIVED, Phase.WAITING}

    @property
    def has_run(self) -> bool:
        """Whether its program has ended. Then only its outputs and its result remain to be stored."""
        return self.attempt is not None and self.attempt.control.has_ended

    @property
    def is_stopped_by_drain(self) -> bool:
        """Whether a drain has stopped it."""
        return self._stop_detail is not None

    @property
    def is_lost(self) -> bool:
        """Whether its lease or its claim is lost, so that another worker may be working on it."""
        return self.delivery.lost.done() or (self.claim is not None and self.claim.lost.done())

    def stop(self) -> None:
        """Cancel the work on it, unless the phase is uninterrupted."""
        if self.phase not in _UNINTERRUPTED:
            self.task.cancel()

    def stop_for_drain(self, detail: str) -> bool:
        """Cancel the work on it, unless the phase is uninterrupted.

        A repeated call cancels again, in case the work has ignored the first cancellation.

        Returns:
            Whether this is the first call that cancels it.
        """
        if self.phase in _UNINTERRUPTED:
            return False
        is_first = self._stop_detail is None
        self._stop_detail = self._stop_detail or detail
        self.stop()
        return is_first

    def stopped(self) -> Returned:
        """Return the ending of a delivery whose work was cancelled."""
        if self.delivery.lost.done():
            return Returned(ReturnReason.LEASE_LOST, f"its lease is lost: {self.delivery.lost.result()}")
        if self.claim is not None and self.claim.lost.done():
            return Returned(ReturnReason.CLAIM_LOST, f"its claim is lost: {self.claim.lost.result()}")
        # A duplicate waits for the first delivery, and the drain may let the first one finish. So the message
        # of the duplicate stays hidden during the drain.
        delay_s = self._lifecycle.left_s() if self.phase is Phase.BEHIND else 0
        return Returned(ReturnReason.STOPPING, self._stop_detail or STOPPING, delay_s)
