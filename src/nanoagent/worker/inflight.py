"""One delivery, from its receipt until it is settled.

A delivery is settled exactly once, as the last step. `settlement.decide` decides how. If the lease is lost,
another worker may have the message. So the work stops at once, except in the phase `FINISHING`: nothing more
is uploaded, published or settled. If the claim is lost, the work stops in the same way, and the message is
returned to the queue. A lease is for one message. A claim is for one request, and two messages may have the
same request.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from nanoagent.host.shielding import uninterrupted
from nanoagent.model import message
from nanoagent.model.errors import UnreadableMessage
from nanoagent.model.returns import ReturnReason
from nanoagent.worker import accounting
from nanoagent.worker.answer import Answer
from nanoagent.worker.conclusion import conclude
from nanoagent.worker.endings import Returned
from nanoagent.worker.state import STOPPING, DeliveryState, Phase

if TYPE_CHECKING:
    from nanoagent.broker.base import Delivery
    from nanoagent.model.job import Job
    from nanoagent.worker.endings import Ending
    from nanoagent.worker.shared import Shared

log = structlog.get_logger(__name__)


class InFlight:
    """A delivery that is not settled, and the task that works on it.

    Args:
        delivery: The delivery.
        shared: The objects that all deliveries share.

    Attributes:
        state: The phase of the delivery, its job, its claim and its attempt.
        task: Done when the delivery is settled.
    """

    def __init__(self, delivery: Delivery, shared: Shared) -> None:
        self.state = DeliveryState(delivery, shared.lifecycle)
        self._delivery = delivery
        self._shared = shared
        self.task = self.state.task = asyncio.create_task(self._process())

    async def _process(self) -> None:
        """Work on the delivery and settle it."""
        self.state.enter(Phase.WAITING)
        settler = self._shared.settler
        try:
            if (ending := await self._work_in_turn()) is not None:
                self.state.enter(Phase.FINISHING)
                await uninterrupted(conclude(ending, self.state, self._shared))
        except Exception as exc:  # noqa: BLE001 - `return_unsettled` logs it
            # The broker would always renew the lease of an unsettled delivery, and no worker would get it.
            self.state.enter(Phase.FINISHING)
            await uninterrupted(settler.return_unsettled(self._delivery, exc))
        else:
            settler.note_settled(self._delivery)
        self.state.enter(Phase.SETTLED)

    async def _work_in_turn(self) -> Ending | None:
        """Do the work that the message asks for, after the earlier deliveries of its message group.

        Returns:
            How the work has ended; None when the message is settled already.
        """
        returned = await self._wait_for_turn()
        try:
            job = message.parse_job(self._delivery.body, self._shared.parts.settings.job_defaults)
        except UnreadableMessage as exc:
            if returned is None:
                await self._settle_unreadable(str(exc))
            return returned
        except message.InvalidJob as exc:
            self.state.labels = (exc.runtime, "")
            return returned or await Answer(self.state, self._shared).to(exc)
        # The fields are never unbound: the task of this delivery has a separate context, which ends with it.
        structlog.contextvars.bind_contextvars(
            request_id=job.request_id, function_id=job.function_id, runtime=job.runtime
        )
        self.state.job = job
        self.state.labels = (job.runtime, job.model_id)
        return returned or await self._work(job)

    async def _wait_for_turn(self) -> Returned | None:
        """Wait for the earlier deliveries of its message group.

        Returns:
            None if the work on the delivery may begin. Otherwise the ending with which it is returned.
        """
        returned = Returned(ReturnReason.EARLIER_IN_GROUP, "an earlier message of its group is returned")
        order = self._shared.order
        if not order.must_wait(self._delivery):
            return None if await order.turn(self._delivery) else returned
        self.state.enter(Phase.BEHIND)
        try:
            if not await order.turn(self._delivery):
                return returned
        except asyncio.CancelledError:
            return Returned(ReturnReason.STOPPING, STOPPING)
        self.state.enter(Phase.WAITING)
        return None

    async def _work(self, job: Job) -> Ending | None:
        """Run the job and answer its request, unless the job must be returned at once."""
        if (returned := self._return_at_once(job)) is not None:
            return returned
        if await self._replace_last_receipt():
            return None
        with self._shared.parts.metrics.jobs.active():
            return await Answer(self.state, self._shared).to(job)

    async def _settle_unreadable(self, problem: str) -> None:
        """Settle a message without a readable requestId. No sender can be notified."""
        self.state.enter(Phase.FINISHING)
        accounting.count_unreadable(self._shared.parts.metrics)
        await self._shared.settler.settle_unreadable(self._delivery, problem)

    def _return_at_once(self, job: Job) -> Returned | None:
        """Return the ending of a job that cannot be worked on now; None for any other job."""
        if self._shared.lifecycle.stopping.is_set() or self._delivery.lost.done():
            return Returned(ReturnReason.STOPPING, STOPPING)  # received by the last long poll
        delay_s = self._shared.capacity.check_limit(job, self._delivery)
        if delay_s is None:
            return None
        detail = "enough jobs of the function wait here for its concurrency limit (FUNCTION_MAX_SHARE)"
        return Returned(ReturnReason.OVER_SHARE, detail, delay_s)

    async def _replace_last_receipt(self) -> bool:
        """Replace the message with a fresh copy if it needs one (`Settler.needs_copy`).

        Returns:
            Whether a copy has replaced the message. If not, the work on this delivery continues.
        """
        settler = self._shared.settler
        if not settler.needs_copy(self._delivery):
            return False
        self.state.enter(Phase.FINISHING)
        if await uninterrupted(settler.replace_with_copy(self._delivery)):
            return True
        self.state.enter(Phase.WAITING)
        return False
