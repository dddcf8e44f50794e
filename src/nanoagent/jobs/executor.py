"""One job, end to end: fetch, build, run, upload, report. What may fail by our fault raises PlatformError."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from nanoagent.host.threads import in_thread
from nanoagent.jobs.runner import entry_source
from nanoagent.jobs.tuner import RunUsage
from nanoagent.languages import hints
from nanoagent.model import payload
from nanoagent.model.errors import KnownToCrash, Rejected, Remembered
from nanoagent.model.result import OUTCOMES, ErrorType, Result, hint_for
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.code.code_cache import CodeCache, CodeTree
    from nanoagent.config import Settings
    from nanoagent.container.execution import Execution
    from nanoagent.jobs.outputs import OutputUploader
    from nanoagent.jobs.runner import Attempt, Ran, Runner
    from nanoagent.jobs.tuner import Tuner
    from nanoagent.model.job import Job


# Outcomes of a program that did not find its input.
_OWN_FAULTS: Final = frozenset({ErrorType.USER_ERROR, ErrorType.SIGNAL})
_CANCELLED: Final = Text("the job was cancelled", "작업이 취소되었습니다")
_LOG_SAYS_MORE: Final = Text(
    "{message}; see the worker's log for this requestId",
    "{message}. 자세한 내용은 워커 로그에서 이 requestId로 확인하세요",
)


class Failure(Protocol):
    """Why the platform gave a job up."""

    @property
    def sender_message(self) -> Text:
        """What the sender is told."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorParts:
    """What the executor works with.

    Attributes:
        remembered: Told of each job that is not tried, and of which memory says so.
    """

    settings: Settings
    code: CodeCache
    runner: Runner
    outputs: OutputUploader
    tuner: Tuner
    remembered: Callable[[str], None] = lambda _: None


class Executor:
    """Turns jobs into results.

    Args:
        parts: Its collaborators.
    """

    def __init__(self, parts: ExecutorParts) -> None:
        self._parts = parts
        self._settings = parts.settings

    async def execute(self, attempt: Attempt) -> Result:
        """Do the job; its result says how it ended, whatever the user's code did.

        Raises:
            PlatformError: Our side failed; nothing is known about the user's code.
        """
        try:
            async with AsyncExitStack() as held:
                tree = await self._fetch(attempt, held)
                ran = await self._parts.runner.run(attempt, tree, held)
                return await self._report(attempt, tree, ran)
        except Rejected as rejection:
            return self.rejected(attempt, rejection)
        except KnownToCrash:
            self._parts.remembered("crash")
            raise

    async def _fetch(self, attempt: Attempt, held: AsyncExitStack) -> CodeTree:
        """The job's code, for as long as `held` lasts."""
        with attempt.timed("fetch"):
            cached = self._parts.code.fetch(attempt.job.s3_bucket, attempt.job.s3_key)
            return await held.enter_async_context(cached)

    # --- reporting

    async def _report(self, attempt: Attempt, tree: CodeTree, done: Ran) -> Result:
        """Upload what the run left, and say everything about it."""
        ran = done.execution
        with attempt.timed("upload"):
            links, refused = await self._parts.outputs.upload(
                attempt.job.request_id, ran.collected.files, attempt.fencing_token
            )
            if attempt.ai_record is not None:
                await self._parts.outputs.record(
                    attempt.job.request_id, attempt.ai_record, attempt.fencing_token
                )
        result = self._blank(attempt, ran.error_type, ran.message)
        hint = await self._hint(attempt.job, tree, ran)
        result.hint = None if hint is None else hint.in_(attempt.job.locale)
        result.exit_code = ran.exit_code
        result.stdout = ran.collected.stdout.in_every_language().in_(attempt.job.locale)
        result.stderr = ran.collected.stderr.in_every_language().in_(attempt.job.locale)
        result.stdout_truncated_bytes = ran.collected.stdout.truncated_bytes
        result.stderr_truncated_bytes = ran.collected.stderr.truncated_bytes
        result.duration_ms = round(ran.wall_ms)
        result.output_files = links
        result.output_errors = [
            refusal.in_(attempt.job.locale) for refusal in (*ran.collected.refused, *refused)
        ]
        result.llm_token_count = attempt.ai_usage.tokens
        result.start = done.start
        result.isolation = done.isolation
        if ran.use is not None and ran.use.peak_bytes is not None:
            result.peak_memory_bytes = ran.use.peak_bytes
            self._advise(attempt.job, result, ran.use.peak_bytes)
        return result

    async def _hint(self, job: Job, tree: CodeTree, ran: Execution) -> Text | None:
        """The advice for a program that failed, or that ended well without doing anything."""
        if ran.error_type is None:
            if ran.collected.stdout.head or ran.collected.stderr.head or ran.collected.files:
                return None
            source = await in_thread(partial(entry_source, tree, job.runtime))
            return hints.for_silent_success(job.runtime, source)
        facts = hints.Facts(
            runtime=job.runtime,
            error_type=ran.error_type,
            exit_code=ran.exit_code,
            message=str(ran.message),
            stdout=ran.collected.stdout.head,
            stderr=ran.collected.stderr.text,
            network=job.network,
            open_files=self._settings.max_open_files,
        )
        return hints.for_run(facts, await _missing_payload(job, tree, ran))

    def _advise(self, job: Job, result: Result, peak_bytes: int) -> None:
        usage = RunUsage(job.memory_mb, peak_bytes, result.duration_ms, result.error_type)
        advice = self._parts.tuner.advise(job.function_id, usage, job.locale)
        result.optimization_tip = advice.tip
        result.estimated_savings = advice.estimated_savings
        result.tuning = advice.tuning

    def rejected(self, attempt: Attempt, rejection: Rejected) -> Result:
        """The result of a job that could not be started, by its sender's fault."""
        if isinstance(rejection, Remembered):
            self._parts.remembered(rejection.reason)
            attempt.timings.build = round(rejection.build_ms, 3) or attempt.timings.build
        result = self._blank(attempt, rejection.error_type, rejection.message)
        result.stderr = rejection.stderr.in_(attempt.job.locale)
        if rejection.hint is not None:
            result.hint = rejection.hint.in_(attempt.job.locale)
        return result

    def failed(self, attempt: Attempt, failure: Failure) -> Result:
        """The result of a job that was given up, by our fault; why in detail is the log's."""
        message = _LOG_SAYS_MORE.format(message=failure.sender_message)
        return self._blank(attempt, ErrorType.PLATFORM, message)

    def cancelled(self, attempt: Attempt) -> Result:
        """The result of a job that was cancelled before its program had run, or whose program did not end."""
        return self._blank(attempt, ErrorType.CANCELLED, _CANCELLED)

    def _blank(self, attempt: Attempt, error_type: ErrorType | None, message: Text | None) -> Result:
        """A result with what is known of every job."""
        job = attempt.job
        status = OUTCOMES[error_type].status
        assert status is not None  # noqa: S101 - the endings without a result do not come here
        attempt.timings.queue = round(attempt.queue_ms, 3)
        attempt.timings.total = round((time.perf_counter() - attempt.started_at) * 1000, 3)
        return Result(
            request_id=job.request_id,
            function_id=job.function_id,
            runtime=job.runtime,
            status=status,
            error_type=error_type,
            error_message=None if message is None else message.in_(job.locale),
            hint=None if error_type is None else hint_for(error_type, job.locale),
            timings=attempt.timings,
            worker_id=self._settings.worker_id,
            attempt=attempt.number,
        )


async def _missing_payload(job: Job, tree: CodeTree, ran: Execution) -> Text | None:
    """The hint about PAYLOAD for a failed program whose input does not fit the variable."""
    if ran.error_type not in _OWN_FAULTS or payload.fits_variable(job.payload):
        return None
    source = await in_thread(partial(entry_source, tree, job.runtime))
    return payload.left_out_hint(job.payload, ran.collected.stderr.text, str(ran.message), source)
