"""One delivery, from its receipt until it is settled.

A delivery is settled exactly once, last, and as `settlement.decide` says. If its lease is lost, it is stopped
at once: nothing of it is uploaded, published or settled any more, because another worker may have the
message. The same holds for its claim. The lease says who has the message. The claim says who may answer the
request, which may come in two messages.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import structlog

from nanoagent.host.shielding import uninterrupted
from nanoagent.model import job as jobs
from nanoagent.model import result as results
from nanoagent.model.errors import UnreadableMessage
from nanoagent.model.returns import ReturnReason
from nanoagent.worker import accounting
from nanoagent.worker.answer import Answer
from nanoagent.worker.conclusion import conclude
from nanoagent.worker.endings import Returned
from nanoagent.worker.state import STOPPING, DeliveryState, Phase

if TYPE_CHECKING:
    from nanoagent.broker.base import Delivery
    from nanoagent.model.job import InvalidJob, Job
    from nanoagent.model.result import Result
    from nanoagent.results.base import Claim
    from nanoagent.worker.endings import Ending
    from nanoagent.worker.shared import Shared

log = structlog.get_logger(__name__)


class InFlight:
    """A delivery that is not settled, and the task that works on it.

    Args:
        delivery: The delivery.
        shared: What all deliveries share.

    Attributes:
        state: How far it has come.
        task: Done when it is settled.
    """

    def __init__(self, delivery: Delivery, shared: Shared) -> None:
        self.state = DeliveryState(delivery, shared.lifecycle)
        self._delivery = delivery
        self._shared = shared
        self.task = self.state.task = asyncio.create_task(self._process())

    async def _process(self) -> None:
        """From its receipt until it is settled."""
        self.state.enter(Phase.WAITING)
        settler = self._shared.settler
        try:
            if (ending := await self._work_or_wait()) is not None:
                self.state.enter(Phase.FINISHING)
                await uninterrupted(conclude(ending, self.state, self._shared))
        except Exception as exc:  # noqa: BLE001 - it is logged there
            # An unsettled delivery would be kept from everyone: the broker goes on to renew its lease.
            self.state.enter(Phase.FINISHING)
            await uninterrupted(settler.return_unsettled(self._delivery, exc))
        else:
            settler.note_settled(self._delivery)
        self.state.enter(Phase.SETTLED)

    async def _work_or_wait(self) -> Ending | None:
        """Do what the message asks for, in its turn; returns how that ended, None when it is settled."""
        gone_back = await self._wait_for_turn()
        try:
            job = jobs.parse_job(self._delivery.body, self._shared.parts.settings.job_defaults)
        except UnreadableMessage as exc:
            if gone_back is None:
                await self._settle_unreadable(str(exc))
            return gone_back
        except jobs.InvalidJob as exc:
            self.state.labels = (exc.runtime, "")
            return gone_back or await self._refuse(exc)
        # Not taken back: the delivery has its task, and with it its context, to itself.
        structlog.contextvars.bind_contextvars(
            request_id=job.request_id, function_id=job.function_id, runtime=job.runtime
        )
        self.state.job = job
        self.state.labels = (job.runtime, job.model_id)
        return gone_back or await self._work(job)

    async def _wait_for_turn(self) -> Returned | None:
        """Wait for the earlier deliveries of its message group; None when its turn has come."""
        gone_back = Returned(ReturnReason.EARLIER_IN_GROUP, "an earlier message of its group goes back")
        order = self._shared.order
        if not order.must_wait(self._delivery):
            return None if await order.turn(self._delivery) else gone_back
        self.state.enter(Phase.BEHIND)
        try:
            if not await order.turn(self._delivery):
                return gone_back
        except asyncio.CancelledError:
            return Returned(ReturnReason.STOPPING, STOPPING)
        self.state.enter(Phase.WAITING)
        return None

    async def _work(self, job: Job) -> Ending | None:
        """Run the job and answer its request, unless it has to go back at once."""
        if (ending := self._why_not_now(job)) is not None:
            return ending
        if await self._is_replaced():
            return None
        answer = Answer(self.state, self._shared)
        with self._shared.parts.metrics.jobs.active():
            return await answer.to(job, partial(answer.run, job))

    async def _refuse(self, invalid: InvalidJob) -> Ending | None:
        """Tell the sender that the job is invalid, unless its request has another answer, or gets one."""

        async def refusal(claim: Claim) -> Result:
            return _refusal(invalid, self._shared.parts.settings.worker_id, claim.failures + 1)

        return await Answer(self.state, self._shared).to(invalid, refusal)

    async def _settle_unreadable(self, problem: str) -> None:
        """Settle a message that names no request, so that no sender can be told."""
        self.state.enter(Phase.FINISHING)
        accounting.count_unreadable(self._shared.parts.metrics)
        await self._shared.settler.settle_unreadable(self._delivery, problem)

    def _why_not_now(self, job: Job) -> Returned | None:
        """Why the job goes back at once; None when it does not."""
        if self._shared.lifecycle.stopping.is_set() or self._delivery.lost.done():
            return Returned(ReturnReason.STOPPING, STOPPING)  # the last long poll brought it
        delay_s = self._shared.capacity.check_limit(job, self._delivery)
        if delay_s is None:
            return None
        detail = "enough jobs of the function wait here for its share (FUNCTION_MAX_SHARE)"
        return Returned(ReturnReason.OVER_SHARE, detail, delay_s)

    async def _is_replaced(self) -> bool:
        """Whether a fresh copy has taken its place, as it has to after the last receipt."""
        settler = self._shared.settler
        if not settler.needs_copy(self._delivery):
            return False
        self.state.enter(Phase.FINISHING)
        if await uninterrupted(settler.replace_with_copy(self._delivery)):
            return True
        self.state.enter(Phase.WAITING)
        return False


def _refusal(invalid: InvalidJob, worker_id: str, attempt: int) -> Result:
    """The result of a job that is invalid."""
    rejection, locale = invalid.rejection, invalid.locale
    hint = rejection.hint
    return results.Result(
        request_id=invalid.request_id,
        function_id=invalid.function_id,
        runtime=invalid.runtime,
        status=results.OUTCOMES[rejection.error_type].status or results.Status.FAILED,
        error_type=rejection.error_type,
        error_message=rejection.message.in_(locale),
        hint=results.hint_for(rejection.error_type, locale) if hint is None else hint.in_(locale),
        worker_id=worker_id,
        attempt=attempt,
    )
