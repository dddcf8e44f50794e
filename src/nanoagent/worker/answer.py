"""How one delivery answers its request: claim, run, publish."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.host.shielding import uninterrupted
from nanoagent.jobs.runner import Attempt
from nanoagent.model.errors import PlatformError, ResultStoreError, ReturnToQueue, Superseded
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType
from nanoagent.model.returns import ReturnReason
from nanoagent.model.text import Text
from nanoagent.results.base import Answered as AlreadyAnswered
from nanoagent.results.base import Claim, Taken
from nanoagent.worker import accounting, endings, retry
from nanoagent.worker.conclusion import conclude
from nanoagent.worker.endings import Answered, Exhausted, Failed, Kept, Returned
from nanoagent.worker.publishing import Publication
from nanoagent.worker.state import Phase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nanoagent.model.job import InvalidJob, Job
    from nanoagent.model.result import Result
    from nanoagent.worker.endings import Ending
    from nanoagent.worker.shared import Shared
    from nanoagent.worker.state import DeliveryState

    Make = Callable[[Claim], Awaitable[Result | Exhausted]]

log = structlog.get_logger(__name__)

_ATTEMPTS_FAILED: Final = Text(
    "{failures} attempts failed, or ended with their worker",
    "{failures}번의 시도가 실패했거나 워커와 함께 중단되었습니다",
)
_KILL_PATIENCE_S: Final = 0.5  # a run that does not end by then is given up with its container


class Answer:
    """The answer to the request of one delivery.

    Args:
        state: The delivery.
        shared: What all deliveries share.
    """

    def __init__(self, state: DeliveryState, shared: Shared) -> None:
        self._state = state
        self._shared = shared
        self._parts = shared.parts
        self._begun_at = time.perf_counter()
        self._is_cancelled = False  # by the sender

    async def to(self, asked: Job | InvalidJob, make: Make) -> Ending | None:
        """Answer a request, alone in this worker and under a claim.

        Args:
            asked: What the message asks for.
            make: Makes the result: `run`, for a job.

        Returns:
            How the work has ended; None when the message is settled.
        """
        duplicates, state = self._shared.duplicates, self._state
        try:
            if duplicates.has(asked.request_id):
                state.enter(Phase.BEHIND)
            async with duplicates.alone(asked.request_id):
                if state.phase is Phase.BEHIND:
                    state.enter(Phase.WAITING)
                claim = await self._take_claim(asked.request_id)
                if isinstance(claim, Answered):
                    state.enter(Phase.FINISHING)
                    await uninterrupted(conclude(claim, state, self._shared))
                    return None
                if isinstance(claim, Returned):
                    return claim
                return await self._under(claim, asked, make)
        except asyncio.CancelledError:
            if state.phase is Phase.FINISHING:
                raise
            return state.stopped()
        except ReturnToQueue as exc:
            return endings.of_error(exc)

    async def _take_claim(self, request_id: str) -> Claim | Answered | Returned:
        """Take the right to answer, unless there is an answer or another worker has the right."""
        try:
            await self._parts.spool.delivered(request_id)  # by an earlier process of this worker, say
            claim = await self._parts.result_store.claim(request_id)
        except Exception as exc:  # noqa: BLE001 - an internal error is logged by of_error
            return Returned(ReturnReason.NOT_CLAIMED, str(endings.of_error(exc)))
        self._shared.streak.worked(ReturnReason.NOT_CLAIMED)
        if isinstance(claim, AlreadyAnswered):
            log.info("already done; its result is published again")
            return Answered.by_document(claim.document)
        if isinstance(claim, Taken):
            delay_s = retry.taken_delay_s(claim.left_s, claim.refusals)
            detail = "another worker is working on the request"
            return Returned(ReturnReason.CLAIMED_ELSEWHERE, detail, delay_s)
        return claim

    async def _under(self, claim: Claim, asked: Job | InvalidJob, make: Make) -> Ending | None:
        """As `to`; the claim is released unless the request has its answer."""
        state = self._state
        state.claim = claim
        claim.lost.add_done_callback(lambda _: self._stop_superseded())
        ending: Ending | None
        try:
            made = await make(claim)
            ending = made if isinstance(made, Exhausted) else await self._finish(claim, made, asked.locale)
        except asyncio.CancelledError:
            if state.phase is Phase.FINISHING:
                raise
            ending = state.stopped()
        except Exception as exc:  # noqa: BLE001 - an internal error is logged by of_error
            ending = endings.of_error(exc)
            if state.is_lost:  # the worker that has it now is told nothing of this
                ending = state.stopped()
        if ending is not None:
            state.enter(Phase.FINISHING)
            await uninterrupted(self._release(claim, ending))
        return ending

    async def _release(self, claim: Claim, ending: Ending) -> None:
        """Let others claim the request, and count a failed attempt."""
        if claim.lost.done():
            return
        try:
            failures = await self._parts.result_store.release(claim, failed=isinstance(ending, Failed))
        except ResultStoreError as exc:
            log.warning("claim not released; it runs out", reason=str(exc))
        else:
            self._state.failures = failures
        if isinstance(ending, Returned) and ending.reason is ReturnReason.CLAIM_LOST:
            claim.lost.set_result(ending.detail)

    def _stop_superseded(self) -> None:
        self._parts.metrics.jobs.claim_lost()
        self._state.stop()

    # --- the run

    async def run(self, job: Job, claim: Claim) -> Result | Exhausted:
        """Run the job, unless its sender has cancelled it or it has no attempts left."""
        executor = self._parts.executor
        if claim.failures >= self._parts.settings.max_attempts and not claim.cancelled:
            # The last attempt ended with its worker, or its sender could not be told.
            return Exhausted(_ATTEMPTS_FAILED.format(failures=claim.failures))
        queue_ms = max(0.0, self._state.delivery.received_at - self._state.delivery.sent_at) * 1000
        attempt = self._state.attempt = Attempt(
            job=job,
            number=claim.failures + 1,
            fencing_token=claim.token,
            queue_ms=queue_ms,
            started_at=self._begun_at,
            on_running=self._admitted,
        )
        if claim.cancelled:
            return executor.cancelled(attempt)
        end_watch = self._parts.cancellations.watch(job.request_id, lambda: self._cancel(attempt))
        try:
            self._check_isolation(job.runtime)
            return await executor.execute(attempt)
        except (asyncio.CancelledError, PlatformError, ReturnToQueue, Superseded):
            if not self._is_cancelled or self._state.is_lost:
                raise
            return executor.cancelled(attempt)
        finally:
            end_watch()

    def _admitted(self) -> None:
        self._state.running_since = time.monotonic()
        self._state.enter(Phase.RUNNING)

    def _check_isolation(self, runtime: Runtime) -> None:
        """Return a job whose isolation check fails here.

        Raises:
            ReturnToQueue: It does.
        """
        if (problem := self._parts.blocked(runtime)) is not None:
            is_one_of_many = any(self._parts.blocked(other) is None for other in Runtime)
            reason = ReturnReason.RUNTIME_BLOCKED if is_one_of_many else ReturnReason.NO_RUNTIME
            raise ReturnToQueue(f"no {runtime} jobs are taken here: {problem}", reason=reason)

    def _cancel(self, attempt: Attempt) -> None:
        """Stop the job for its sender: by ending its program, so that its output is not lost."""
        request_id = attempt.job.request_id
        if self._state.phase is Phase.FINISHING or attempt.control.has_ended:
            log.info("cancellation ignored", reason="already finished", request_id=request_id)
            return
        log.info("job cancelled", request_id=request_id)
        self._is_cancelled = True
        if attempt.control.kill is None:
            self._state.stop()
            return
        attempt.control.kill()

        def insist() -> None:
            if not attempt.control.has_ended:
                self._state.stop()

        asyncio.get_running_loop().call_later(_KILL_PATIENCE_S, insist)

    # --- the result

    async def _finish(self, claim: Claim, result: Result, locale: str) -> Returned | None:
        """Publish the result and settle the message; once begun, nothing interrupts that.

        Returns:
            None when the message is settled.
        """
        state = self._state
        document = await self._parts.outputs.document(result, locale, claim.token)
        is_whole = state.running_since is not None and result.error_type is not ErrorType.CANCELLED
        if state.job is not None and state.running_since is not None and is_whole:
            self._shared.durations.add(state.job, time.monotonic() - state.running_since)
        if state.is_lost:  # in this very turn of the loop: the cancellation has not come yet
            return state.stopped()
        state.enter(Phase.FINISHING)
        return await uninterrupted(self._publish(claim, result, document))

    async def _publish(self, claim: Claim, result: Result, document: bytes) -> Returned | None:
        publication = await self._shared.publisher.publish(claim, document)
        if publication is Publication.REFUSED:
            detail = "its claim is lost: another worker has claimed the request since, or answered it"
            return Returned(ReturnReason.CLAIM_LOST, detail)
        # Kept, the next process with this worker's folder publishes it; the job need not run before.
        ending = Kept() if publication is Publication.KEPT else Answered.by(result)
        await conclude(ending, self._state, self._shared)
        accounting.count_result(self._parts.metrics, self._parts.cloudwatch, result, self._state.labels[1])
        return None
