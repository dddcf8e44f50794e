"""Deletes acknowledged SQS messages, in batches of ten."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent.broker.sqs_queue import BATCH_SIZE, failed_entries, in_batches
from nanoagent.common.backoff import Backoff
from nanoagent.host.background import Background, TaskName
from nanoagent.model.errors import BrokerError

if TYPE_CHECKING:
    from nanoagent.broker.sqs_leases import Lease, Leases
    from nanoagent.broker.sqs_queue import SqsQueue

# The time for which a batch collects messages. At 500 jobs/s a batch fills up in this time. The time is far
# below any visibility timeout. It is only about one round trip, because the next messages of a FIFO group
# wait until the messages before them are deleted.
_BATCH_DELAY_S: Final = 0.02
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0

_log = structlog.get_logger(__name__)


class Deletions:
    """The messages of one broker that are to be deleted.

    The lease of a message is renewed until the message is deleted, or until the last try has failed.

    Args:
        queue: The queue.
        leases: The broker's leases.
        retry_s: For how long failed deletions are tried again, seconds. If SQS never allows a deletion, this
            limit ends the lease. Without the limit, such leases would fill the memory.
        background: Runs the tasks that delete.
        tasks: The set of the broker's short tasks; `close` of the broker waits for them.
    """

    def __init__(
        self,
        queue: SqsQueue,
        leases: Leases,
        *,
        retry_s: float,
        background: Background,
        tasks: set[asyncio.Task[Any]],
    ) -> None:
        self._queue = queue
        self._leases = leases
        self._retry_s = retry_s
        self._background = background
        self._tasks = tasks
        self._waiting: list[Lease] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def add(self, lease: Lease) -> None:
        """Delete this message with the next batch, within 20 ms."""
        self._waiting.append(lease)
        if len(self._waiting) >= BATCH_SIZE or self._closed:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_BATCH_DELAY_S, self._flush)

    def close(self) -> None:
        """Delete the messages that wait for a batch at once, and later messages without a wait."""
        self._closed = True
        self._flush()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        for leases in in_batches(waiting):
            self._background.once(TaskName.MESSAGE_DELETION, self._delete(leases), self._tasks)

    async def _delete(self, leases: list[Lease]) -> None:
        """Delete a batch; try failed entries again for `retry_s` seconds."""
        remaining = leases
        give_up_at = time.monotonic() + self._retry_s
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        try:
            while remaining := await self._try_and_note_failure(remaining):
                pause_s = backoff.next_s()
                if time.monotonic() + pause_s > give_up_at:
                    message_ids = [lease.delivery.message_id for lease in remaining]
                    _log.error("messages not deleted", message_ids=message_ids)
                    return
                await asyncio.sleep(pause_s)
        finally:
            for lease in remaining:
                self._leases.end(lease)

    async def _try_and_note_failure(self, leases: list[Lease]) -> list[Lease]:
        """Call `_try`; after an internal error, return all leases to be tried again."""
        try:
            return await self._try(leases)
        except Exception as exc:  # noqa: BLE001 - `note_failure` logs and counts it
            self._background.note_failure(TaskName.MESSAGE_DELETION, exc)
            return leases

    async def _try(self, leases: list[Lease]) -> list[Lease]:
        """Send one request, and end the leases of deleted messages; returns the leases to be tried again."""
        entries = [
            {"Id": str(number), "ReceiptHandle": lease.delivery.receipt}
            for number, lease in enumerate(leases)
        ]
        try:
            async with self._queue.call(f"delete messages of {self._queue.url}"):
                answer = await self._queue.client.delete_message_batch(
                    QueueUrl=self._queue.url, Entries=entries
                )
        except BrokerError as exc:
            _log.warning("batch not deleted", error=str(exc))
            return leases
        again = []
        for lease, failure in failed_entries(answer, leases):
            if failure.get("SenderFault", False):  # the next try would fail in the same way
                _log.error(
                    "message not deleted",
                    message_id=lease.delivery.message_id,
                    code=failure.get("Code"),
                )
            else:
                again.append(lease)
        for lease in set(leases).difference(again):
            self._leases.end(lease)
        return again
