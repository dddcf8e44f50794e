"""One job, end to end: fetch the code, build it, run it, upload the outputs, make the result.

The caller publishes the result. If the platform fails, an exception is raised instead.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from nanoagent.host.threads import in_thread
from nanoagent.jobs.explanation import advice_of
from nanoagent.jobs.tuner import Advice, RunUsage
from nanoagent.languages import reuse_hints
from nanoagent.model import result as results
from nanoagent.model.errors import CachedRejection, CrashLoop, Rejected
from nanoagent.model.job import Reuse
from nanoagent.model.result import NOT_STARTED, ErrorType, Result
from nanoagent.model.text import Text
from nanoagent.secrets.resolver import SecretResolver
from nanoagent.supervisor.wire import ImportsState

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.code.code_cache import CodeCache, CodeTree
    from nanoagent.config import Settings
    from nanoagent.container.execution import Execution
    from nanoagent.jobs.attempt import Attempt, FinishedRun
    from nanoagent.jobs.outputs import OutputUploader
    from nanoagent.jobs.runner import Runner
    from nanoagent.jobs.tuner import Tuner
    from nanoagent.model.cause import Cause
    from nanoagent.model.job import Job
    from nanoagent.model.message import InvalidJob


_CANCELLED: Final = Text("the job was cancelled", "작업이 취소되었습니다")
_SEE_LOG: Final = Text(
    "{message}; see the worker's log for this requestId",
    "{message}. 자세한 내용은 워커 로그에서 이 requestId로 확인하세요",
)


class Failure(Protocol):
    """The reason for which the platform has given a job up."""

    @property
    def sender_message(self) -> Text:
        """The reason as a sentence for the sender."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorParts:
    """The collaborators of the executor.

    Attributes:
        secrets: Finds the values of secrets; by default it refuses all references.
        on_cached_failure: Called with `archive`, `build` or `crash`, for each job that fails at once because
            of a cached failure of this kind.
    """

    settings: Settings
    code: CodeCache
    runner: Runner
    outputs: OutputUploader
    tuner: Tuner
    secrets: SecretResolver = field(default_factory=SecretResolver)
    on_cached_failure: Callable[[str], None] = lambda _: None


class Executor:
    """Turns jobs into results.

    Args:
        parts: The collaborators.
    """

    def __init__(self, parts: ExecutorParts) -> None:
        self._parts = parts
        self._settings = parts.settings

    async def execute(self, attempt: Attempt) -> Result:
        """Run the job of an attempt.

        Returns:
            The result of a job that has succeeded, or has failed because of its sender or author.

        Raises:
            PlatformError: The platform failed.
            ReturnToQueue: There was no room for a minute, or containers cannot be made now.
            Superseded: A later attempt has already stored outputs.
        """
        try:
            async with AsyncExitStack() as resources:
                if attempt.job.secrets:
                    await self._resolve_secrets(attempt)
                tree = await self._fetch(attempt, resources)
                attempt.code_digest = tree.digest
                run = await self._parts.runner.run(attempt, tree, resources)
                return await self._report(attempt, tree, run)
        except Rejected as rejection:
            return self.rejected(attempt, rejection)
        except CrashLoop:
            self._parts.on_cached_failure("crash")
            raise

    async def _resolve_secrets(self, attempt: Attempt) -> None:
        """Read the secrets of the job, for its environment, and hide them in its output."""
        with attempt.timed("fetch"):
            resolved = await self._parts.secrets.resolve(attempt.job)
        attempt.secrets = resolved.environment
        attempt.control.hide_secrets(resolved.mask)

    async def _fetch(self, attempt: Attempt, resources: AsyncExitStack) -> CodeTree:
        """Return the job's code; it stays on the disk until `resources` is closed."""
        with attempt.timed("fetch"):
            cached = self._parts.code.fetch(attempt.job.s3_bucket, attempt.job.s3_key)
            return await resources.enter_async_context(cached)

    # --- results

    async def _report(self, attempt: Attempt, tree: CodeTree, run: FinishedRun) -> Result:
        """Upload the outputs of a run, and return its result."""
        job, ended = attempt.job, run.execution
        with attempt.timed("upload"):
            links, refused = await self._parts.outputs.upload(
                job.request_id, ended.collected.files, attempt.fencing_token
            )
            if attempt.ai_record is not None:
                attempt.ai_record_key = await self._parts.outputs.upload_ai_record(
                    job.request_id, attempt.ai_record, attempt.fencing_token
                )
        result = self._result(attempt, ended.error_type, ended.message, ended.exit_code)
        cause, hint = await self._advice(job, tree, ended)
        if run.imports and hint is None:
            hint = reuse_hints.hint_for(run.imports)
        peak_bytes = None if ended.use is None else ended.use.peak_bytes
        duration_ms = round(ended.wall_ms)
        advice = self._advise(job, ended.error_type, peak_bytes, duration_ms)
        return msgspec.structs.replace(
            result,
            hint=None if hint is None else hint.in_(job.locale),
            cause=cause,
            stdout=ended.collected.stdout.in_every_language().in_(job.locale),
            stderr=ended.collected.stderr.in_every_language().in_(job.locale),
            stdout_truncated_bytes=ended.collected.stdout.truncated_bytes,
            stderr_truncated_bytes=ended.collected.stderr.truncated_bytes,
            duration_ms=duration_ms,
            output_files=links,
            output_errors=[refusal.in_(job.locale) for refusal in (*ended.collected.refused, *refused)],
            llm_token_count=attempt.ai_usage.tokens,
            start=run.start,
            isolation=run.isolation,
            reuse=_reuse_of(run.imports) if run.imports else None,
            peak_memory_bytes=peak_bytes,
            optimization_tip=advice.tip,
            estimated_savings=advice.estimated_savings,
            tuning=advice.tuning,
        )

    async def _advice(self, job: Job, tree: CodeTree, ended: Execution) -> tuple[Cause | None, Text | None]:
        """Return cause and advice for a program that failed, or that succeeded without doing anything."""
        if ended.error_type is None and (
            ended.collected.stdout.head or ended.collected.stderr.head or ended.collected.files
        ):
            return None, None
        return await in_thread(partial(advice_of, job, tree, ended, self._settings))

    def _advise(
        self, job: Job, error_type: ErrorType | None, peak_bytes: int | None, duration_ms: int
    ) -> Advice:
        """Return the advice on memoryMb; empty when the peak is unknown."""
        if peak_bytes is None:
            return Advice(None, None, None)
        usage = RunUsage(job.memory_mb, peak_bytes, duration_ms, error_type)
        return self._parts.tuner.advise(job.function_id, usage, job.locale)

    def rejected(self, attempt: Attempt, rejection: Rejected) -> Result:
        """Return the result of a job whose program could not be started. The sender or author is to blame."""
        if isinstance(rejection, CachedRejection):
            self._parts.on_cached_failure(rejection.kind)
            attempt.timings.build = round(rejection.build_ms, 3) or attempt.timings.build
        locale = attempt.job.locale
        result = self._result(attempt, rejection.error_type, rejection.message)
        hint = result.hint if rejection.hint is None else rejection.hint.in_(locale)
        return msgspec.structs.replace(
            result, stderr=rejection.stderr.in_(locale), hint=hint, cause=rejection.cause
        )

    def failed(self, attempt: Attempt, failure: Failure) -> Result:
        """Return the result of a job that was given up. The platform is to blame; the log has the details."""
        message = _SEE_LOG.format(message=failure.sender_message)
        return self._result(attempt, ErrorType.PLATFORM, message)

    def cancelled(self, attempt: Attempt) -> Result:
        """Return the result of a cancelled job that has no run to report.

        Its program has not started, or did not end in time after it was killed.
        """
        return self._result(attempt, ErrorType.CANCELLED, _CANCELLED)

    def _result(
        self,
        attempt: Attempt,
        error_type: ErrorType | None,
        message: Text | None,
        exit_code: int = NOT_STARTED,
    ) -> Result:
        """Return a result with the fields that every job has."""
        job = attempt.job
        attempt.timings.queue = round(attempt.queue_ms, 3)
        attempt.timings.total = round((time.perf_counter() - attempt.started_at) * 1000, 3)
        return Result(
            request_id=job.request_id,
            function_id=job.function_id,
            runtime=job.runtime,
            status=results.status_of(error_type),
            exit_code=exit_code,
            error_type=error_type,
            error_message=None if message is None else message.in_(job.locale),
            hint=results.hint_for(error_type, job.locale),
            memory_mb=job.memory_mb,
            timings=attempt.timings,
            worker_id=self._settings.worker_id,
            attempt=attempt.number,
        )


def result_of_invalid(invalid: InvalidJob, worker_id: str, attempt: int) -> Result:
    """Return the result of a message that is not a valid job.

    Args:
        invalid: The problems of the message.
        worker_id: The ID of the worker.
        attempt: The number of the attempt, from 1.
    """
    rejection, locale = invalid.rejection, invalid.locale
    hint = rejection.hint
    return Result(
        request_id=invalid.request_id,
        function_id=invalid.function_id,
        runtime=invalid.runtime,
        status=results.status_of(rejection.error_type),
        error_type=rejection.error_type,
        error_message=rejection.message.in_(locale),
        hint=results.hint_for(rejection.error_type, locale) if hint is None else hint.in_(locale),
        worker_id=worker_id,
        attempt=attempt,
    )


def _reuse_of(imports: ImportsState) -> Reuse:
    """Return what a run has reused whose job asks for that."""
    return Reuse.IMPORTS if imports is ImportsState.REUSED else Reuse.NONE
