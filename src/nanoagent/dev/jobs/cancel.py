"""The command `nanoagent cancel`: cancels a job, and says what has happened to it."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from nanoagent.dev.jobs import listing, table
from nanoagent.dev.jobs.result import show
from nanoagent.dev.sender import delivery, dev, message
from nanoagent.dev.sender.command import Report
from nanoagent.dev.sender.stages import Exit, Stage, service_failed, settings_option
from nanoagent.model.errors import InvalidCall, PlatformError
from nanoagent.model.result import ErrorType
from nanoagent.results.failures import RedisCallError

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

    from nanoagent.config import Settings
    from nanoagent.dev.jobs.listing import Job
    from nanoagent.dev.sender.delivery import Results

WAIT_S: Final = 10.0
"""The default time to wait for the result of a job that a worker stops, seconds."""


class Outcome(StrEnum):
    """What has happened to a job that was to be cancelled; the values are documented in docs/jobs.md."""

    STOPPED = "stopped"  # its result is CANCELLED
    FINISHED = "finished"  # it had ended before
    SENT = "sent"  # its worker has received the cancellation, and there is no result yet
    WAITING = "waiting"  # it waits for another attempt, and the next worker will not run it
    NOT_RECEIVED = "not received"  # it was sent, and the worker that receives it will not run it
    UNKNOWN = "unknown"  # Redis knows nothing of it; if it is in the queue, no worker will run it


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The outcome of a cancellation.

    Attributes:
        outcome: The outcome.
        workers: How many workers have received the cancellation.
        result: The result, if there is one.
        job: The entry of the job in the index; None if there is none, or if it may not be read.
        now_ms: The server's time, ms since the Unix epoch.
    """

    outcome: Outcome
    workers: int = 0
    result: dict[str, Any] | None = None
    job: Job | None = None
    now_ms: int = 0


_EXITS: Final = {Outcome.FINISHED: Exit.NOT_SUCCESSFUL, Outcome.UNKNOWN: Exit.NO_RESULT}


def cancel(
    settings: Settings,
    request_id: str,
    *,
    wait_s: float = WAIT_S,
    as_json: bool,
    env_file: Path = dev.DEFAULT,
    settings_file: Path = dev.DEFAULT,
) -> int:
    """Cancel a request, say what has happened, and return the exit code."""

    async def ask() -> Cancelled:
        async with delivery.results(settings) as results:
            return await _cancel(results, request_id, wait_s)

    report = Report(as_json, Stage.UNKNOWN, {"requestId": request_id})
    try:
        message.check_request_id(request_id)
        cancelled = asyncio.run(ask())
    except InvalidCall as exc:
        return report.end(Exit.INVALID_CALL, error=str(exc))
    except PlatformError as exc:
        return report.end(Exit.SERVICE_FAILED, error=service_failed(exc, settings_file))
    if cancelled.outcome is not Outcome.UNKNOWN:
        report.stage = Stage.SENT
    wait = " --wait 10" if cancelled.outcome is Outcome.SENT else ""
    proposed = f"nanoagent result {request_id}{wait}{settings_option(env_file)}"
    text = f"{request_id} {_sentence(cancelled, wait_s)}"
    return _end(report, cancelled, text, proposed, wait_s)


async def _cancel(results: Results, request_id: str, wait_s: float) -> Cancelled:
    """Cancel a request. What this user may not read counts as not there."""
    if (stored := await results.stored(request_id)) is not None:
        job = await _if_allowed(listing.last_of(results, request_id))
        return Cancelled(Outcome.FINISHED, result=stored, job=job, now_ms=await _time_ms(results))
    claim = await _if_allowed(results.claimed(request_id))
    workers = await results.cancel(request_id)
    if workers or (claim is not None and claim.is_live):
        found = await results.wait(request_id, wait_s) if wait_s else None
        if found is None:
            return Cancelled(Outcome.SENT, workers)
        is_stopped = found.get("errorType") == ErrorType.CANCELLED
        return Cancelled(Outcome.STOPPED if is_stopped else Outcome.FINISHED, workers, found)
    job = await _if_allowed(listing.last_of(results, request_id))
    if job is not None and job.state is not listing.State.WAITING:
        # The result has expired, or a worker published it a moment ago.
        stored = await results.stored(request_id)
        return Cancelled(Outcome.FINISHED, result=stored, job=job, now_ms=await _time_ms(results))
    if job is not None or claim is not None:
        return Cancelled(Outcome.WAITING, job=job)
    was_sent = await _if_allowed(results.was_sent(request_id))
    return Cancelled(Outcome.NOT_RECEIVED if was_sent else Outcome.UNKNOWN)


async def _if_allowed(answer: Awaitable[Any]) -> Any:
    """Return an answer of Redis; None if the user lacks the permission, as in rules of earlier versions."""
    try:
        return await answer
    except RedisCallError as exc:
        if not exc.is_denied:
            raise
        return None


async def _time_ms(results: Results) -> int:
    return await _if_allowed(results.time_ms()) or 0


def _sentence(cancelled: Cancelled, wait_s: float) -> str:
    """Return what has happened, without the request at its start."""
    will_be_refused = "a worker that receives it within an hour will not run it"
    match cancelled.outcome:
        case Outcome.STOPPED:
            return "was stopped."
        case Outcome.FINISHED:
            return _finished(cancelled)
        case Outcome.SENT:
            waited = f"; there is no result after {wait_s:g} s" if wait_s else ""
            return f"is being stopped: the worker that runs it received the cancellation{waited}."
        case Outcome.WAITING:
            why = "" if cancelled.job is None else f" (attempt {cancelled.job.attempt} failed)"
            return f"waits for another attempt{why}: {will_be_refused}."
        case Outcome.NOT_RECEIVED:
            return f"was not yet received by a worker: {will_be_refused}."
        case Outcome.UNKNOWN:
            return (
                f"is not known: check the ID. No worker has received it, or its result has expired. If it is "
                f"in the queue, {will_be_refused}."
            )


def _finished(cancelled: Cancelled) -> str:
    found, job = cancelled.result, cancelled.job
    status = found.get("status") if found is not None else job and job.state
    error_type = found.get("errorType") if found is not None else job and job.error_type
    status = f"{status} ({error_type})" if error_type else status
    if cancelled.workers or job is None:
        when = " before the cancellation reached it" if cancelled.workers else ""
    else:
        when = f", {table.age(cancelled.now_ms - job.at_ms)} ago"
    return f"had already ended with status {status}{when}."


def _end(report: Report, cancelled: Cancelled, text: str, proposed: str, wait_s: float) -> int:
    """Print the outcome, and return the exit code."""
    outcome, found, job = cancelled.outcome, cancelled.result, cancelled.job
    code = _EXITS.get(outcome, Exit.SUCCESS)
    if outcome is Outcome.SENT and wait_s:
        code = Exit.NO_RESULT
    ended_at = None if job is None or outcome is not Outcome.FINISHED else listing.timestamp(job.at_ms)
    report.fields |= {
        "outcome": outcome,
        "status": None if found is None else found.get("status"),
        "endedAt": ended_at,
        "workers": cancelled.workers,
    }
    if report.as_json:
        is_error = code is not Exit.SUCCESS
        return report.end(
            code, result=found if outcome is Outcome.STOPPED else None, error=text if is_error else None
        )
    if outcome is Outcome.STOPPED and found is not None:
        report.say(text)
        if sys.stdout.isatty():
            show(found)
        return code
    report.say(text)
    if outcome is Outcome.SENT or (outcome is Outcome.FINISHED and found is not None):
        report.say(f"  its result:  {proposed}")
    return code
