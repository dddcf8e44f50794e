"""Answers the request of one delivery: claims the request, runs the job, publishes the result."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.host.shielding import uninterrupted
from nanoagent.jobs.attempt import Attempt
from nanoagent.jobs.executor import result_of_invalid
from nanoagent.model.errors import PlatformError, ResultStoreError, ReturnToQueue, Superseded
from nanoagent.model.job import Runtime
from nanoagent.model.message import InvalidJob
from nanoagent.model.result import ErrorType
from nanoagent.model.returns import ReturnReason
from nanoagent.model.text import Text
from nanoagent.results import job_index
from nanoagent.results.base import Taken
from nanoagent.worker import accounting, claiming, endings, keeping, retry
from nanoagent.worker.conclusion import conclude
from nanoagent.worker.endings import Answered, Exhausted, Failed, Returned, Spooled
from nanoagent.worker.publishing import Publication
from nanoagent.worker.state import Phase

if TYPE_CHECKING:
    from nanoagent.model.job import Job
    from nanoagent.model.result import Result
    from nanoagent.results.base import Claim
    from nanoagent.worker.endings import Ending
    from nanoagent.worker.live_logs import FollowedAttempt
    from nanoagent.worker.shared import Shared
    from nanoagent.worker.state import DeliveryState

log = structlog.get_logger(__name__)

_ATTEMPTS_FAILED: Final = Text(
    "{failures} attempts failed, or ended with their worker",
    "{failures}번의 시도가 실패했거나 워커와 함께 중단되었습니다",
)
_KILL_TIMEOUT_S: Final = 0.5  # a cancelled run that has not ended by then is stopped with its container


class Answer:
    """Answers the request of one delivery.

    Args:
        state: The state of the delivery.
        shared: The objects that all deliveries share.
    """

    def __init__(self, state: DeliveryState, shared: Shared) -> None:
        self._state = state
        self._shared = shared
        self._parts = shared.parts
        self._begun_at = time.perf_counter()
        self._is_cancelled = False  # whether the sender has cancelled the job
        self._live_log: FollowedAttempt | None = None  # None until somebody follows the job

    async def to(self, asked: Job | InvalidJob) -> Ending | None:
        """Wait for this worker's other deliveries of the same request; then claim the request and answer it.

        Args:
            asked: The content of the message: a job to run, or an invalid job to reject.

        Returns:
            How the work has ended; None if the message is already settled.
        """
        duplicates, state = self._shared.duplicates, self._state
        try:
            if duplicates.has(asked.request_id):
                state.enter(Phase.BEHIND)
            async with duplicates.alone(asked.request_id):
                if state.phase is Phase.BEHIND:
                    state.enter(Phase.WAITING)
                claim = await self._claim(asked)
                if isinstance(claim, Answered):
                    state.enter(Phase.FINISHING)
                    await uninterrupted(conclude(claim, state, self._shared))
                    return None
                if isinstance(claim, Returned):
                    return claim
                return await self._answer_under(claim, asked)
        except asyncio.CancelledError:
            if state.phase is Phase.FINISHING:
                raise
            return state.stopped()
        except ReturnToQueue as exc:
            return endings.of_error(exc)

    async def _claim(self, asked: Job | InvalidJob) -> Claim | Answered | Returned:
        """Claim the request.

        Returns:
            The claim; if the request cannot be claimed, the ending of the delivery.
        """
        try:
            # The spool may have a result of this request from an earlier process. The claim can find this
            # result only after Redis has taken it.
            await self._parts.spool.delivered(asked.request_id)
            memory_mb = None if isinstance(asked, InvalidJob) else asked.memory_mb
            about = job_index.about(asked.function_id, memory_mb)
            claim = await claiming.claim(asked.request_id, self._parts.result_store, about)
        except Exception as exc:  # noqa: BLE001 - an internal error is logged by of_error
            return Returned(ReturnReason.NOT_CLAIMED, str(endings.of_error(exc)))
        self._shared.streaks.succeeded(ReturnReason.NOT_CLAIMED)
        if isinstance(claim, Taken):
            delay_s = retry.taken_delay_s(claim.left_s, claim.refusals)
            detail = "another worker is working on the request"
            return Returned(ReturnReason.CLAIMED_ELSEWHERE, detail, delay_s)
        return claim

    async def _answer_under(self, claim: Claim, asked: Job | InvalidJob) -> Ending | None:
        """Answer the request under its claim, and release the claim unless a result was published.

        Returns:
            How the work has ended; None if the message is already settled.
        """
        state = self._state
        state.claim = claim
        claim.lost.add_done_callback(lambda _: self._stop_superseded())
        ending: Ending | None
        made: Result | Exhausted
        try:
            if isinstance(asked, InvalidJob):
                made = result_of_invalid(asked, self._parts.settings.worker_id, claim.failures + 1)
            else:
                made = await self._run(asked, claim)
            ending = made if isinstance(made, Exhausted) else await self._finish(claim, made, asked.locale)
        except asyncio.CancelledError:
            if state.phase is Phase.FINISHING:
                raise
            ending = state.stopped()
        except Exception as exc:  # noqa: BLE001 - an internal error is logged by of_error
            ending = endings.of_error(exc)
            if state.is_lost:  # another worker answers the request, so this error is not a failed attempt
                ending = state.stopped()
        if ending is not None:
            state.enter(Phase.FINISHING)
            await uninterrupted(self._release(claim, ending))
        return ending

    async def _release(self, claim: Claim, ending: Ending) -> None:
        """Release the claim. This also counts the attempt if it has failed."""
        if claim.lost.done():
            return
        try:
            entry = self._index_entry(claim, ending) if isinstance(ending, Failed) else b""
            failures = await self._parts.result_store.release(
                claim, failed=isinstance(ending, Failed), entry=entry
            )
        except ResultStoreError as exc:
            log.warning("claim not released", reason=str(exc))
        else:
            self._state.failures = failures
        if isinstance(ending, Returned) and ending.reason is ReturnReason.CLAIM_LOST:
            claim.lost.set_result(ending.detail)

    def _index_entry(self, claim: Claim, failed: Failed) -> bytes:
        """Return the entry of the index of jobs for a failed attempt; empty for an invalid job."""
        job = self._state.job
        if job is None:
            return b""
        message = failed.sender_message.in_(job.locale)
        return job_index.of_failed_attempt(job, claim.failures + 1, failed.error_type, message)

    def _stop_superseded(self) -> None:
        self._parts.metrics.jobs.claim_lost()
        self._state.stop()

    # --- the run

    async def _run(self, job: Job, claim: Claim) -> Result | Exhausted:
        """Run the job, unless its sender has cancelled it or it has no attempts left."""
        executor = self._parts.executor
        if claim.failures >= self._parts.settings.max_attempts and not claim.cancelled:
            # The worker of the last attempt died, or could not publish the result of the failed job.
            return Exhausted(_ATTEMPTS_FAILED.format(failures=claim.failures))
        queue_ms = max(0.0, self._state.delivery.received_at - self._state.delivery.sent_at) * 1000
        attempt = self._state.attempt = Attempt(
            job=job,
            number=claim.failures + 1,
            fencing_token=claim.token,
            queue_ms=queue_ms,
            started_at=self._begun_at,
            on_running=self._state.start_running,
        )
        if claim.cancelled:
            return executor.cancelled(attempt)
        if claim.followed or self._parts.live_logs.is_always:
            self._follow(claim, attempt)
        end_watch = self._parts.cancellations.watch(
            job.request_id, lambda: self._cancel(attempt), lambda: self._follow(claim, attempt)
        )
        result = None
        try:
            self._check_isolation(job.runtime)
            result = await executor.execute(attempt)
        except (asyncio.CancelledError, PlatformError, ReturnToQueue, Superseded):
            if not self._is_cancelled or self._state.is_lost:
                raise
            result = executor.cancelled(attempt)
        finally:
            end_watch()
            if self._live_log is not None:
                self._live_log.end(result)
        return result

    def _check_isolation(self, runtime: Runtime) -> None:
        """Check that this worker takes jobs of the runtime, because the isolation checks of the runtime pass.

        Raises:
            ReturnToQueue: An isolation check fails.
        """
        if (problem := self._parts.blocked(runtime)) is not None:
            takes_others = any(self._parts.blocked(other) is None for other in Runtime)
            reason = ReturnReason.RUNTIME_BLOCKED if takes_others else ReturnReason.NO_RUNTIME
            raise ReturnToQueue(f"no {runtime} jobs are taken here: {problem}", reason=reason)

    def _follow(self, claim: Claim, attempt: Attempt) -> None:
        """Store the output of the job while it runs, because somebody follows it."""
        if self._live_log is None:
            if not self._parts.live_logs.policy.is_on:
                return
            self._live_log = self._parts.live_logs.open(claim, attempt)
        self._live_log.follow()

    def _cancel(self, attempt: Attempt) -> None:
        """Stop the job because its sender has cancelled it.

        Only the running program is killed. Its container stays, so that the result has the program's output.
        """
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

        def stop_if_running() -> None:
            if not attempt.control.has_ended:
                self._state.stop()

        asyncio.get_running_loop().call_later(_KILL_TIMEOUT_S, stop_if_running)

    # --- the result

    async def _finish(self, claim: Claim, result: Result, locale: str) -> Returned | None:
        """Publish the result and settle the message. Nothing cancels this once the publication has begun.

        Returns:
            The ending if no result was published; None if the message is settled.
        """
        state = self._state
        if (capsules := self._parts.capsules) is not None and (result.error_type or capsules.of_all):
            result = keeping.naming_capsule(result)
        document = await self._parts.outputs.document(result, locale, claim.token)
        job, running_since = state.job, state.running_since
        if job is not None and running_since is not None and result.error_type is not ErrorType.CANCELLED:
            self._shared.durations.add(job, time.monotonic() - running_since)
        if state.is_lost:  # lost during the last await; only the next await would raise the cancellation
            return state.stopped()
        state.enter(Phase.FINISHING)
        return await uninterrupted(self._publish(claim, result, document))

    async def _publish(self, claim: Claim, result: Result, document: bytes) -> Returned | None:
        entry = job_index.of_result(result)
        publication = await self._shared.publisher.publish(claim, document, entry)
        if publication is Publication.REFUSED:
            detail = "its claim is lost: another worker has claimed or answered the request"
            return Returned(ReturnReason.CLAIM_LOST, detail)
        if result.capsule is not None:
            keeping.keep(self._parts.capsules, self._state, claim, result)
        # The next process that uses this worker's folder publishes a spooled result. Before that, no worker
        # should run the job again, so the message is hidden for RETRY_MAX_SECONDS.
        ending = Spooled() if publication is Publication.SPOOLED else Answered.by(result)
        await conclude(ending, self._state, self._shared)
        accounting.count_result(self._parts.metrics, self._parts.cloudwatch, result, self._state.labels[1])
        return None
