"""How a delivery is settled once the work on it has ended, and what its sender is told then."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.jobs.runner import Attempt
from nanoagent.model import result as results
from nanoagent.model.errors import ResultStoreError, ReturnToQueue
from nanoagent.model.returns import RULES, Rule
from nanoagent.model.text import Text
from nanoagent.results.base import Answered as AlreadyAnswered
from nanoagent.results.base import Claim, Taken
from nanoagent.worker import accounting
from nanoagent.worker.endings import Answered, Exhausted, Failed, Returned, Untold
from nanoagent.worker.settlement import Ack, DeadLetter, GiveUp, IfLast, Nack

if TYPE_CHECKING:
    from nanoagent.model.job import Job
    from nanoagent.worker.endings import Ending
    from nanoagent.worker.shared import Shared
    from nanoagent.worker.state import DeliveryState

log = structlog.get_logger(__name__)

_RECEIPTS_USED_UP: Final = Text(
    "the worker had to return it after its last receipt (maxReceiveCount of the queue's redrive policy)",
    "마지막 수신 뒤에 워커가 되돌려 놓아야 했습니다 (큐 redrive policy의 maxReceiveCount)",
)


async def conclude(ending: Ending, state: DeliveryState, shared: Shared) -> None:
    """Settle a delivery as `settlement.decide` says. It is `FINISHING`, and its callers shield this call."""
    _note(ending, state, shared)
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


def _note(ending: Ending, state: DeliveryState, shared: Shared) -> None:
    """Count and log an ending without a result."""
    runtime, model = state.labels
    if isinstance(ending, Failed):
        shared.parts.metrics.jobs.attempt_failed()
        event = "attempt failed" if ending.reason is None else "return counted as an attempt"
        log.warning(event, reason=ending.detail, failures=state.failures)
    elif isinstance(ending, Returned):
        if RULES[ending.reason] is Rule.STREAK:
            shared.streak.returned(ending.reason, ending.detail)
        if runtime:
            accounting.count_return(shared.parts.metrics, ending.reason, runtime, model)


async def _return(ending: Ending, nack: Nack, state: DeliveryState, shared: Shared) -> None:
    """Return the message; if it would not come again, tell the sender and settle it otherwise."""
    settler, job = shared.settler, state.job
    if job is None or nack.if_last is IfLast.DEAD_LETTER:
        await settler.nack_or_dead_letter(state.delivery, nack)
    elif await settler.nack(state.delivery, nack):
        if isinstance(ending, Returned):
            log.info("returned to the queue", reason=ending.reason, detail=nack.detail)
    elif nack.if_last is IfLast.GIVE_UP:
        await _give_up(ending, state, shared)
    else:
        log.warning("job given up after the last receipt", reason=nack.detail)
        await _withdraw(job, nack.detail, state, shared)


async def _give_up(ending: Ending, state: DeliveryState, shared: Shared) -> None:
    """Tell the sender that the platform failed, then settle the message.

    The claim was released when the attempt failed. Its token is good until another worker has a newer one.
    """
    assert isinstance(ending, Failed | Exhausted)  # noqa: S101 - no other ending is given up
    job, claim = state.job, state.claim
    if job is None or claim is None:
        await conclude(Untold(), state, shared)
        return
    # Without an attempt it had none left.
    attempt = state.attempt or Attempt(job=job, number=claim.failures)
    await _tell(claim, attempt, ending, state, shared)


async def _tell(
    claim: Claim, attempt: Attempt, ending: Failed | Exhausted, state: DeliveryState, shared: Shared
) -> None:
    result = shared.parts.executor.failed(attempt, ending)
    if await shared.publisher.tell(claim, results.encode(result)):
        await conclude(Answered.by(result), state, shared)
        model = attempt.job.model_id
        accounting.count_result(shared.parts.metrics, shared.parts.cloudwatch, result, model)
    else:  # the sender has to be told before the message may go; the attempts stay counted
        await conclude(Untold(), state, shared)


async def _withdraw(job: Job, detail: str, state: DeliveryState, shared: Shared) -> None:
    """Answer a job that has to go back, and whose message would not come again, and dead-letter that.

    Another worker may have the right to answer, and is waited for; not for ever, when this one stops.
    """
    try:
        async with shared.duplicates.alone(job.request_id):
            claim = await _claim_when_free(job.request_id, shared)
            if isinstance(claim, AlreadyAnswered):
                log.info("already done; its result is published again")
                await conclude(Answered.by_document(claim.document), state, shared)
                return
            if claim is not None:
                attempt = Attempt(job=job, number=claim.failures)
                await _tell(claim, attempt, Exhausted(_RECEIPTS_USED_UP), state, shared)
                return
    except (ReturnToQueue, ResultStoreError) as exc:
        detail = f"{detail}; {exc}"
    await shared.settler.nack_or_dead_letter(state.delivery, Nack(0, detail))


async def _claim_when_free(request_id: str, shared: Shared) -> Claim | AlreadyAnswered | None:
    stopping = shared.lifecycle.stopping
    while isinstance(claim := await shared.parts.result_store.claim(request_id), Taken):
        if stopping.is_set():
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(claim.left_s):
                await stopping.wait()
    return claim
