"""Reads recent jobs of all workers from the index in Redis; see `nanoagent.results.job_index`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from nanoagent.model.errors import InvalidCall
from nanoagent.model.result import ErrorType, Status
from nanoagent.results import job_index

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nanoagent.dev.sender.delivery import ClaimedRequest, Results

_PAGE: Final = 500
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION: Final = re.compile(r"([0-9]{1,9})([smhd])")
_LOST: Final = "its worker stopped answering; the queue delivers the job again"


class State(StrEnum):
    """The status of a job in the list."""

    RUNNING = "RUNNING"  # a worker has claimed it: it waits for room, is prepared, or runs
    WAITING = "WAITING"  # an attempt has failed, or its worker has died; it waits for another attempt
    SUCCESS = Status.SUCCESS
    FAILED = Status.FAILED
    TIMEOUT = Status.TIMEOUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job of the list.

    Attributes:
        at_ms: When it ended, its last attempt failed, or its attempt began, ms since the Unix epoch.
        started_at_ms: When the attempt began, ms since the Unix epoch; None if this is unknown.

    The other attributes are those of `job_index.Entry`.
    """

    request_id: str
    function_id: str
    state: State
    at_ms: int
    started_at_ms: int | None = None
    error_type: str | None = None
    message: str | None = None
    exit_code: int | None = None
    start: str | None = None
    duration_ms: int | None = None
    peak_memory_bytes: int | None = None
    memory_mb: int | None = None
    attempt: int | None = None

    def document(self) -> dict[str, Any]:
        """Return the job as `nanoagent jobs --json` prints it."""
        has_ended = self.state not in {State.RUNNING, State.WAITING}
        return {
            "requestId": self.request_id,
            "functionId": self.function_id,
            "status": self.state,
            "startedAt": None if self.started_at_ms is None else timestamp(self.started_at_ms),
            "endedAt": timestamp(self.at_ms) if has_ended else None,
            "durationMs": self.duration_ms,
            "exitCode": self.exit_code,
            "start": self.start,
            "memoryMb": self.memory_mb,
            "peakMemoryBytes": self.peak_memory_bytes,
            "errorType": self.error_type,
            "errorMessage": self.message,
            "attempt": self.attempt,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which jobs to list.

    Attributes:
        function_id: The function; empty for all.
        states: The statuses; empty for all.
        since_s: The largest age of jobs that have ended, seconds; None for any.
        limit: The largest number of jobs.
        without_cancelled: Whether to leave out jobs that their senders have cancelled.
    """

    function_id: str = ""
    states: frozenset[State] = field(default_factory=frozenset)
    since_s: int | None = None
    limit: int = 20
    without_cancelled: bool = False

    def has(self, job: Job) -> bool:
        """Return whether the list has a job, apart from its age."""
        is_of_function = not self.function_id or job_index.is_same_function(job.function_id, self.function_id)
        is_left_out = self.without_cancelled and job.error_type == ErrorType.CANCELLED
        return is_of_function and not is_left_out and (not self.states or job.state in self.states)


def query_of(function_id: str, statuses: Sequence[str], since: str, limit: int, *, failed: bool) -> Query:
    """Return the query of the options.

    Raises:
        InvalidCall: An option is invalid.
    """
    problems, states = [], set()
    for status in statuses:
        try:
            states.add(State(status.upper()))
        except ValueError:
            names = ", ".join(state.lower() for state in State)
            problems.append(f"--status {status}: is not one of {names}")
    duration = _DURATION.fullmatch(since)
    if since and duration is None:
        problems.append(f"--since {since}: is not a number with s, m, h or d, such as 30m")
    if limit < 1:
        problems.append(f"--limit {limit}: is below 1")
    if problems:
        raise InvalidCall(problems)
    if failed:
        states |= {State.FAILED, State.TIMEOUT}
    since_s = None if duration is None else int(duration[1]) * _UNITS_S[duration[2]]
    return Query(
        function_id=function_id,
        states=frozenset(states),
        since_s=since_s,
        limit=limit,
        without_cancelled=failed,
    )


async def recent(results: Results, query: Query) -> list[Job]:
    """Return jobs: first those that run, then the others, the newest first.

    Raises:
        ResultStoreError: Redis failed.
    """
    claimed = await results.running()
    found = [_of_claim(claim) for claim in claimed]
    seen = {job.request_id for job in found}
    jobs = sorted(filter(query.has, found), key=lambda job: (job.state is not State.RUNNING, -job.at_ms))
    async for entry_ms, entry in _entries(results, query.since_s):
        if len(jobs) >= query.limit:
            break
        if entry.status == job_index.WAITING and entry.request_id in seen:
            continue  # a later attempt runs or has ended
        seen.add(entry.request_id)
        job = _of_entry(entry_ms, entry)
        if job is not None and query.has(job):
            jobs.append(job)
    return jobs[: query.limit]


async def last_of(results: Results, request_id: str) -> Job | None:
    """Return the newest entry of a request; None if there is none.

    Raises:
        ResultStoreError: Redis failed.
    """
    async for entry_ms, entry in _entries(results, None):
        if entry.request_id == request_id:
            return _of_entry(entry_ms, entry)
    return None


async def _entries(results: Results, since_s: int | None) -> AsyncIterator[tuple[int, job_index.Entry]]:
    """Yield the entries with their times, ms since the Unix epoch, the newest first."""
    oldest_ms = 0 if since_s is None else await results.time_ms() - since_s * 1000
    newest = "+"
    while True:
        page = await results.entries(newest=newest, oldest_ms=oldest_ms, count=_PAGE)
        for entry_id, data in page:
            entry = job_index.decode(data)
            if entry is not None:
                yield int(entry_id.partition("-")[0]), entry
        if len(page) < _PAGE:
            return
        newest = _before(page[-1][0])


def _before(entry_id: str) -> str:
    """Return the end of a range that has all entries before this one. Redis 5 has no exclusive ranges."""
    ms, sequence = map(int, entry_id.split("-"))
    return f"{ms}-{sequence - 1}" if sequence else str(ms - 1)


def _of_claim(claim: ClaimedRequest) -> Job:
    state, message = (State.RUNNING, None) if claim.is_live else (State.WAITING, _LOST)
    return Job(
        request_id=claim.request_id,
        function_id=claim.about.function_id,
        state=state,
        at_ms=claim.started_at_ms,
        started_at_ms=claim.started_at_ms,
        duration_ms=claim.age_ms if claim.is_live else None,
        message=message,
        memory_mb=claim.about.memory_mb,
    )


def _of_entry(entry_ms: int, entry: job_index.Entry) -> Job | None:
    """Return the job of an entry; None if a later version has written an unknown status."""
    if entry.status not in set(State):
        return None
    state = State(entry.status)
    has_ended = state is not State.WAITING
    return Job(
        request_id=entry.request_id,
        function_id=entry.function_id,
        state=state,
        at_ms=entry_ms,
        started_at_ms=entry_ms - entry.total_ms if has_ended else None,
        error_type=entry.error_type,
        message=entry.message,
        exit_code=entry.exit_code if has_ended else None,
        start=entry.start,
        duration_ms=entry.duration_ms if entry.start is not None else None,
        peak_memory_bytes=entry.peak_memory_bytes,
        memory_mb=entry.memory_mb,
        attempt=entry.attempt,
    )


def timestamp(ms: int) -> str:
    """Return a time in UTC by ISO 8601, with milliseconds.

    Args:
        ms: The time, ms since the Unix epoch.
    """
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
