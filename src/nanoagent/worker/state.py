"""The state of one delivery in flight, which the worker and the parts of `InFlight` see."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from nanoagent.model.returns import ReturnReason
from nanoagent.worker.endings import Returned

if TYPE_CHECKING:
    import asyncio

    from nanoagent.broker.base import Delivery
    from nanoagent.jobs.runner import Attempt
    from nanoagent.model.job import Job
    from nanoagent.results.base import Claim
    from nanoagent.worker.lifecycle import Lifecycle

STOPPING: Final = "the worker is stopping"


class Phase(StrEnum):
    """How far a delivery has come."""

    RECEIVED = "received"  # its task has not begun: a cancellation would settle nothing
    WAITING = "waiting"  # for its claim, its code, its build, or room
    BEHIND = "behind"  # for another delivery, of the same request or earlier in its message group
    RUNNING = "running"  # it has room: a drain lets it finish
    FINISHING = "finishing"  # nothing interrupts it any more
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

_MAKES_ROOM: Final = frozenset({Phase.BEHIND, Phase.RUNNING})  # for another message
_UNINTERRUPTED: Final = frozenset({Phase.RECEIVED, Phase.FINISHING, Phase.SETTLED})


class DeliveryState:
    """How far a delivery has come, and why it was stopped.

    Args:
        delivery: The delivery.
        lifecycle: Is told when there may be room for another message.

    Attributes:
        delivery: The delivery.
        phase: How far it has come. Only `enter` changes it.
        task: The task that works on it.
        since: When it was received, monotonic seconds.
        job: What it asks for, once that is known.
        labels: Runtime and model of the job for metrics; empty while they are not known.
        claim: The right to answer its request, once it has been taken.
        attempt: The attempt to run its job, once it has begun.
        failures: How many attempts at its request have failed, if the result store has said so.
        running_since: When its job got room, monotonic seconds; None before.
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
        """Go on to a phase; harmless when it is in that phase already.

        Raises:
            AssertionError: The phase cannot follow.
        """
        if phase is self.phase:
            return
        if phase not in NEXT[self.phase]:
            raise AssertionError(f"a delivery cannot go from {self.phase} to {phase}")
        self.phase = phase
        if phase in _MAKES_ROOM:
            self._lifecycle.capacity_changed.set()

    @property
    def wants_room(self) -> bool:
        """Whether its job would run now if there were room for it."""
        return self.phase in {Phase.RECEIVED, Phase.WAITING}

    @property
    def has_run(self) -> bool:
        """Whether its program has ended, so that only its outputs and its result are still on their way."""
        return self.attempt is not None and self.attempt.control.has_ended

    @property
    def is_stopped_by_drain(self) -> bool:
        """Whether a drain has stopped it."""
        return self._stop_detail is not None

    @property
    def is_lost(self) -> bool:
        """Whether another worker may be working on it."""
        return self.delivery.lost.done() or (self.claim is not None and self.claim.lost.done())

    def stop(self) -> None:
        """Cancel the work on it, unless nothing interrupts it."""
        if self.phase not in _UNINTERRUPTED:
            self.task.cancel()

    def stop_for_drain(self, detail: str) -> bool:
        """Stop it, unless nothing interrupts it; again, in case the work has ignored the cancellation.

        Returns:
            Whether that is new.
        """
        if self.phase in _UNINTERRUPTED:
            return False
        is_new = self._stop_detail is None
        self._stop_detail = self._stop_detail or detail
        self.stop()
        return is_new

    def stopped(self) -> Returned:
        """The ending of a delivery whose work was cancelled."""
        if self.delivery.lost.done():
            return Returned(ReturnReason.LEASE_LOST, f"its lease is lost: {self.delivery.lost.result()}")
        if self.claim is not None and self.claim.lost.done():
            return Returned(ReturnReason.CLAIM_LOST, f"its claim is lost: {self.claim.lost.result()}")
        # A duplicate comes back when the run that it waits for, which the drain lets finish, is over.
        delay_s = self._lifecycle.left_s() if self.phase is Phase.BEHIND else 0
        return Returned(ReturnReason.STOPPING, self._stop_detail or STOPPING, delay_s)
