"""Stores the output of jobs in their live logs while they run, if somebody follows them.

No job waits for this. Output is collected in a small buffer, and a task of the job stores it in batches. If
Redis is slow or down, the buffer becomes full, and further output is left out. The end of a job does not wait
for its last batch, either.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent.common.units import MIB
from nanoagent.host.background import Background, TaskName
from nanoagent.model.errors import ProtocolError, ResultStoreError
from nanoagent.results.live_log import Appended, Kind, Record
from nanoagent.supervisor import wire

if TYPE_CHECKING:
    from nanoagent.jobs.attempt import Attempt
    from nanoagent.model.result import Result
    from nanoagent.results.base import Claim
    from nanoagent.results.live_log import LiveLog

_KINDS: Final = {wire.STDOUT: Kind.STDOUT, wire.STDERR: Kind.STDERR}
_BATCH_S: Final = 0.05  # the shortest time between two batches
_RETRY_S: Final = 1.0
_APPEND_MAX_S: Final = 2.0
_MAX_BUFFER_BYTES: Final = 512 * 1024
_MAX_BUFFER_RECORDS: Final = 256
_MERGED_BYTES: Final = 16 * 1024  # a record is extended up to this size
_CLOSE_MAX_S: Final = 2.0
# A supervisor sends at most the limit, and more only for the end of a run. Socket buffers let a second of
# output arrive at once.
_EXTRA_BYTES: Final = 4 * MIB
_FRAMES_PER_S: Final = 200
_EXTRA_FRAMES: Final = 1000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of live logs.

    Attributes:
        is_on: Whether live logs are written at all.
        is_always: Whether they are written without followers, too.
        bytes_per_s: The limit on the output of a run, bytes per second.
        max_jobs: The largest number of jobs whose output is stored at the same time.
        worker_id: The ID of this worker.
    """

    is_on: bool
    is_always: bool
    bytes_per_s: int
    max_jobs: int
    worker_id: str


class LiveLogs:
    """The live logs of this worker's jobs.

    Args:
        live_log: Stores the records.
        policy: The settings.
        background: Runs the tasks that store output.
    """

    def __init__(self, live_log: LiveLog, policy: Policy, background: Background | None = None) -> None:
        self.is_always = policy.is_on and policy.is_always
        self._live_log = live_log
        self._policy = policy
        self._background = background or Background()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._followed: set[FollowedAttempt] = set()

    def open(self, claim: Claim, attempt: Attempt) -> FollowedAttempt:
        """Return the live log of an attempt. The caller must call its `end`."""
        return FollowedAttempt(self, claim, attempt)

    async def close(self) -> None:
        """Store what is left, within a short time. Idempotent."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_MAX_S)
        for task in set(self._tasks):
            task.cancel()

    # --- for FollowedAttempt

    @property
    def policy(self) -> Policy:
        """The settings."""
        return self._policy

    def admit(self, followed: FollowedAttempt) -> bool:
        """Count an attempt whose output is stored, and return whether it is within the limit."""
        if len(self._followed) >= self._policy.max_jobs:
            return False
        self._followed.add(followed)
        return True

    def dismiss(self, followed: FollowedAttempt) -> None:
        """Do not count the attempt any more. Idempotent."""
        self._followed.discard(followed)

    def start(self, followed: FollowedAttempt) -> None:
        """Start the task that stores the output of an attempt."""
        self._background.once(TaskName.LIVE_LOG, followed.store_batches(self._live_log), self._tasks)


class FollowedAttempt:
    """The live log of one attempt.

    Args:
        logs: The live logs of this worker.
        claim: The claim of the attempt.
        attempt: The attempt.
    """

    def __init__(self, logs: LiveLogs, claim: Claim, attempt: Attempt) -> None:
        self._logs = logs
        self._claim = claim
        self._attempt = attempt
        self._buffer: deque[Record] = deque()
        self._buffered_bytes = 0
        self._ends = {Kind.STDOUT: 0, Kind.STDERR: 0}  # the positions up to which output has arrived
        self._stored_ends = dict(self._ends)  # and up to which it is buffered or stored
        self._is_followed = self._is_followed_before = False
        self._is_refused = False
        self._is_running = False
        self._needs_start = False  # a record STARTED must be stored
        self._has_records = False
        self._end_status: str | None = None
        self._wake = asyncio.Event()
        self._began_at = asyncio.get_running_loop().time()
        self._received_bytes = self._received_frames = 0

    def follow(self) -> None:
        """Store the output from now on; the supervisor also sends the output that it has kept."""
        if self._is_followed or self._end_status is not None:
            return
        if not self._logs.admit(self):
            self._refuse()
            return
        self._needs_start |= not self._is_followed_before
        self._is_followed = self._is_followed_before = True
        self._attempt.control.follow(self._take)
        self._start()

    def end(self, result: Result | None) -> None:
        """The attempt has ended: store the rest in the background.

        Args:
            result: The result; None if the attempt has none, so that the job will be tried again.
        """
        self._end_status = "" if result is None else str(result.status)
        self._logs.dismiss(self)
        if self._has_records or self._is_running:
            self._start()

    def _start(self) -> None:
        self._wake.set()
        if not self._is_running:
            self._is_running = True
            self._logs.start(self)

    def _refuse(self) -> None:
        """Tell the followers, once, that the output appears only at the end."""
        if not self._is_refused:
            self._is_refused = True
            self._buffer.append(self._record(Kind.REFUSED, self._logs.policy.worker_id))
            self._start()

    def _unfollow(self) -> None:
        self._is_followed = False
        self._logs.dismiss(self)
        self._attempt.control.unfollow()

    # --- output

    def _take(self, stream: bytes, position: int, output: bytes, printed: int | None = None) -> None:
        """Take a piece of output from the supervisor.

        Raises:
            ProtocolError: The supervisor sends more than it was allowed, or output that it has sent before.
        """
        record = Record(_KINDS[stream], self._attempt.number, position, output, printed)
        kind, end = record.kind, record.end
        self._check(kind, position, len(output))
        self._ends[kind] = end
        last = self._buffer[-1] if self._buffer else None
        has_room = self._buffered_bytes + len(output) <= _MAX_BUFFER_BYTES
        if not has_room or len(self._buffer) >= _MAX_BUFFER_RECORDS:
            return  # the next record has a later position, so that followers notice the gap
        if (
            last is not None
            and last.kind is kind
            and last.end == position
            and len(last.data) + len(output) <= _MERGED_BYTES
        ):
            hides = last.printed is not None or printed is not None
            merged = end - last.position if hides else None
            self._buffer[-1] = Record(kind, last.attempt, last.position, last.data + output, merged)
        else:
            self._buffer.append(record)
        self._buffered_bytes += len(output)
        self._stored_ends[kind] = end
        self._wake.set()

    def _check(self, kind: Kind, position: int, length: int) -> None:
        elapsed_s = asyncio.get_running_loop().time() - self._began_at
        self._received_bytes += length
        self._received_frames += 1
        if self._received_bytes > _EXTRA_BYTES + 2 * elapsed_s * self._logs.policy.bytes_per_s or (
            self._received_frames > _EXTRA_FRAMES + elapsed_s * _FRAMES_PER_S
        ):
            raise ProtocolError("the supervisor sent more output than it was allowed while the program ran")
        if position < self._ends[kind]:
            raise ProtocolError("the supervisor sent the same output twice")

    # --- storing

    async def store_batches(self, live_log: LiveLog) -> None:
        """Store the output in batches until the attempt has ended, or another worker has taken the job.

        After an unexpected error, the next call of `follow` starts this again.
        """
        try:
            await self._store_batches(live_log)
        finally:
            self._is_running = False
            if self._is_followed:
                self._unfollow()

    async def _store_batches(self, live_log: LiveLog) -> None:
        loop = asyncio.get_running_loop()
        has_failed = False
        while True:
            batch, is_last = self._next_batch()
            if batch:
                begun_at = loop.time()
                answer = await self._append(live_log, batch, is_first_failure=not has_failed)
                has_failed = answer is None
                if answer is Appended.SUPERSEDED:
                    self._end_status = ""
                    return
                if is_last:
                    return
                if answer is Appended.UNFOLLOWED and self._is_followed and not self._logs.is_always:
                    self._unfollow()
                pause_s = _RETRY_S if has_failed else _BATCH_S - (loop.time() - begun_at)
                await asyncio.sleep(max(0.0, pause_s))
            elif is_last:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    def _next_batch(self) -> tuple[list[Record], bool]:
        """Return the records to store now, and whether no more will follow."""
        batch = list(self._buffer)
        self._buffer.clear()
        self._buffered_bytes = 0
        is_last = self._end_status is not None
        if is_last:
            batch += self._closing_records()
        if self._needs_start:
            worker = self._logs.policy.worker_id.encode()
            batch.insert(0, Record(Kind.STARTED, self._attempt.number, self._claim.token, worker))
        return batch, is_last

    def _closing_records(self) -> list[Record]:
        """Return the records at the end of an attempt: where output is missing, and the status."""
        missing = [
            Record(kind, self._attempt.number, end)
            for kind, end in self._ends.items()
            if end > self._stored_ends[kind]
        ]
        return [*missing, self._record(Kind.ENDED, self._end_status or "")]

    def _record(self, kind: Kind, text: str) -> Record:
        return Record(kind, self._attempt.number, data=text.encode())

    async def _append(
        self, live_log: LiveLog, batch: list[Record], *, is_first_failure: bool
    ) -> Appended | None:
        """Store a batch. If that fails, the batch is lost, and None is returned."""
        try:
            async with asyncio.timeout(_APPEND_MAX_S):
                answer = await live_log.append(self._claim, batch)
        except (ResultStoreError, TimeoutError) as exc:
            if is_first_failure:
                log.warning(
                    "live output not stored",
                    request_id=self._claim.request_id,
                    reason=str(exc) or "Redis is too slow",
                )
            return None
        self._has_records = True
        self._needs_start = False
        return answer
