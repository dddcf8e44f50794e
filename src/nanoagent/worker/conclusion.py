"""The last step of a delivery: publish a failed result if the job is given up, and settle the message."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.jobs.attempt import Attempt
from nanoagent.model import result as results
from nanoagent.model.errors import ResultStoreError, ReturnToQueue
from nanoagent.model.returns import RULES, Rule
from nanoagent.model.text import Text
from nanoagent.results import job_index
from nanoagent.results.base import Taken
from nanoagent.worker import accounting, claiming, keeping
from nanoagent.worker.endings import Answered, Exhausted, Failed, Returned, Unpublished
from nanoagent.worker.settlement import Ack, DeadLetter, GiveUp, IfLast, Nack

if TYPE_CHECKING:
    from nanoagent.model.job import Job
    from nanoagent.results.base import Claim
    from nanoagent.worker.endings import Ending
    from nanoagent.worker.shared import Shared
    from nanoagent.worker.state import DeliveryState

log = structlog.get_logger(__name__)

_NO_RECEIPTS_LEFT: Final = Text(
    "the queue has delivered the message as often as maxReceiveCount of its redrive policy allows, and no"
    " worker has finished the job",
    "큐가 redrive policy의 maxReceiveCount만큼 메시지를 전달했지만 작업을 끝낸 워커가 없습니다",
)


async def conclude(ending: Ending, state: DeliveryState, shared: Shared) -> None:
    """Settle a delivery as `settlement.decide` says.

    The delivery is in the phase `FINISHING`. The callers protect this call from cancellation.
    """
    _record(ending, state, shared)
    settler = shared.settler
    match settler.decide(state.delivery, ending, state.failures):
        case Ack():
            await settler.ack(state.delivery)
        case DeadLetter() as dead_letter:
            await settler.dead_letter(state.delivery, dead_letter)
        case GiveUp():
            await _give_up(ending, state, shared)
        case Nack() as nack:
            await _return(ending, nack, state, shared)


def _record(ending: Ending, state: DeliveryState, shared: Shared) -> None:
    """Count and log an ending without a result."""
    runtime, model = state.labels
    if isinstance(ending, Failed):
        shared.parts.metrics.jobs.attempt_failed()
        event = "attempt failed" if ending.reason is None else "return counted as an attempt"
        log.warning(event, reason=ending.detail, failures=state.failures)
    elif isinstance(ending, Returned):
        if RULES[ending.reason] is Rule.STREAK:
            shared.streaks.returned(ending.reason, ending.detail)
        if runtime:
            accounting.count_return(shared.parts.metrics, ending.reason, runtime, model)


async def _return(ending: Ending, nack: Nack, state: DeliveryState, shared: Shared) -> None:
    """Return the message to the queue. If this was its last receipt, do what `nack.if_last` says instead."""
    settler, job = shared.settler, state.job
    if job is None or nack.if_last is IfLast.DEAD_LETTER:
        await settler.nack_or_dead_letter(state.delivery, nack)
    elif await settler.nack(state.delivery, nack):
        if isinstance(ending, Returned):
            log.info("returned to the queue", reason=ending.reason, detail=nack.detail)
    elif nack.if_last is IfLast.GIVE_UP:
        await _give_up(ending, state, shared)
    else:
        log.warning("message not returned after its last receipt", reason=nack.detail)
        await _claim_and_give_up(job, nack.detail, state, shared)


async def _give_up(ending: Ending, state: DeliveryState, shared: Shared) -> None:
    """Publish a failed result under the claim of the last attempt, then settle the message.

    The claim was released when the attempt failed. The store accepts its token until another worker has
    claimed the request.
    """
    assert isinstance(ending, Failed | Exhausted)  # noqa: S101 - only these endings lead to `GiveUp`
    job, claim = state.job, state.claim
    if job is None or claim is None:
        await conclude(Unpublished(), state, shared)
        return
    # `state.attempt` is None if no attempts were left when the request was claimed.
    attempt = state.attempt or Attempt(job=job, number=claim.failures)
    await _publish_failure(claim, attempt, ending, state, shared)


async def _publish_failure(
    claim: Claim, attempt: Attempt, ending: Failed | Exhausted, state: DeliveryState, shared: Shared
) -> None:
    result = shared.parts.executor.failed(attempt, ending)
    if shared.parts.capsules is not None:
        result = keeping.naming_capsule(result)
    document, entry = results.encode(result), job_index.of_result(result)
    if await shared.publisher.publish_once(claim, document, entry):
        keeping.keep(shared.parts.capsules, state, claim, result)
        await conclude(Answered.by(result), state, shared)
        model = attempt.job.model_id
        accounting.count_result(shared.parts.metrics, shared.parts.cloudwatch, result, model)
    else:  # the message stays in the queue until the sender is notified; the failed attempts stay counted
        await conclude(Unpublished(), state, shared)


async def _claim_and_give_up(job: Job, detail: str, state: DeliveryState, shared: Shared) -> None:
    """Claim the request, publish a failed result, and dead-letter the message.

    This was the last receipt of the message, and the message was not replaced by a copy (see `Broker.nack`).
    If another worker has claimed the request, this worker waits until it can claim the request, or until it
    stops. Without a claim, this worker tries once more to replace the message by a copy. If that fails, the
    message is dead-lettered without a result.
    """
    try:
        async with shared.duplicates.alone(job.request_id):
            claim = await _claim_when_free(job.request_id, shared)
            if isinstance(claim, Answered):
                await conclude(claim, state, shared)
                return
            if claim is not None:
                attempt = Attempt(job=job, number=claim.failures)
                await _publish_failure(claim, attempt, Exhausted(_NO_RECEIPTS_LEFT), state, shared)
                return
    except (ReturnToQueue, ResultStoreError) as exc:
        detail = f"{detail}; {exc}"
    await shared.settler.nack_or_dead_letter(state.delivery, Nack(0, detail))


async def _claim_when_free(request_id: str, shared: Shared) -> Claim | Answered | None:
    """Claim a request as soon as no other worker has claimed it; return None if this worker stops first."""
    stopping = shared.lifecycle.stopping
    while isinstance(claim := await claiming.claim(request_id, shared.parts.result_store), Taken):
        if stopping.is_set():
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(claim.left_s):
                await stopping.wait()
    return claim
