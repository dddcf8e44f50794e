"""Receives jobs from Amazon SQS and settles their messages.

The life of a delivery::

    receive ─► lease ─┬─ ack ──────────► batch of deletions ─► DeleteMessageBatch ─► lease ends
               renewed├─ nack ─────────► lease ends, its last renewal is awaited ─► ChangeMessageVisibility
                      │  last receipt ─► SendMessage to the same queue ─► as ack
                      ├─ dead_letter ──► SendMessage to the dead-letter queue ─► as ack
                      └─ lease lost ───► lease ends, `Delivery.lost` is completed

SQS counts every receipt of a message, including receipts that started no attempt. After maxReceiveCount
receipts (redrive policy) SQS moves the message to the dead-letter queue, and its sender gets no result.
Therefore `nack` replaces a message by a copy after the last receipt that the policy allows. The copy is sent
before the message is deleted. A crash in between leaves two messages of one request; the claim on the request
lets only one of them run. On a FIFO queue the copy would be behind the rest of its group, so `nack` makes no
copy and returns False.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent.aws import failures as aws_failures
from nanoagent.broker import sqs_messages
from nanoagent.broker.sqs_deletions import Deletions
from nanoagent.broker.sqs_leases import Lease, Leases, longest_poll_s
from nanoagent.broker.sqs_queue import SqsQueue
from nanoagent.broker.sqs_redrive import RedrivePolicy
from nanoagent.host.background import Background, TaskName
from nanoagent.host.shielding import unless_cancelled
from nanoagent.model.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nanoagent.broker.base import Delivery

# A call takes milliseconds. A queue that hangs must not delay the exit for longer than this.
_CALL_TIMEOUT_S: Final = 30.0
_POLL_SLACK_S: Final = 10.0  # added to the length of a long poll

_log = structlog.get_logger(__name__)


class SqsBroker:
    """A `Broker` on one SQS queue, standard or FIFO.

    Args:
        client: An aiobotocore SQS client. Its owner closes it, after this broker.
        queue_url: The URL of the queue.
        dlq_url: The URL of the dead-letter queue; None to use the target of the queue's redrive policy.
        wait_s: The length of a long poll, 0 to 20 seconds; a longer poll than `longest_poll_s` is shortened.
        visibility_s: The length of a lease, seconds.
        worker: The worker's name, an attribute of dead letters.
        min_max_receive_count: Log a warning if maxReceiveCount is smaller.
        call_timeout_s: The longest time that a call may take, including the client's retries, seconds.
        background: Runs the tasks that renew leases, delete messages and read the redrive policy.
    """

    def __init__(  # noqa: PLR0913 - the settings of a queue
        self,
        client: Any,
        queue_url: str,
        *,
        dlq_url: str | None,
        wait_s: int,
        visibility_s: int,
        worker: str = "",
        min_max_receive_count: int = 0,
        call_timeout_s: float = _CALL_TIMEOUT_S,
        background: Background | None = None,
    ) -> None:
        self._wait_s = min(wait_s, longest_poll_s(visibility_s))
        self._visibility_s = visibility_s
        self._worker = worker
        self._background = background or Background()
        self._queue = SqsQueue(client, queue_url, call_timeout_s)
        self._redrive = RedrivePolicy(
            self._queue, dlq_url=dlq_url, min_max_receive_count=min_max_receive_count
        )
        self._leases = Leases(self._queue, visibility_s, self._background)
        self._short_tasks: set[asyncio.Task[Any]] = set()
        self._deletions = Deletions(
            self._queue,
            self._leases,
            retry_s=visibility_s,
            background=self._background,
            tasks=self._short_tasks,
        )
        self._lasting_tasks: tuple[asyncio.Task[None], ...] = ()
        self._receive_id: str | None = None
        self._closed = False

    async def receive(self, limit: int) -> list[Delivery]:
        """Wait for up to `limit` messages; see `Broker.receive`.

        If the caller is cancelled, the request continues, because SQS answers it in any case. The messages in
        this answer are returned to the queue at once. `close` waits until they are returned.

        Raises:
            BrokerError: The queue failed, or the broker is closed.
        """
        if self._closed:
            raise BrokerError(f"receive from {self._queue.url}: the broker is closed")
        request = asyncio.ensure_future(self._receive(limit))

        def abandoned() -> None:
            self._background.once(TaskName.MESSAGE_RETURN, self._return_all(request), self._short_tasks)

        return await unless_cancelled(request, abandoned)

    async def ack(self, delivery: Delivery) -> None:
        """Delete the message with the next batch; see `Broker.ack`."""
        lease = self._leases.settle(delivery)
        if lease is not None:
            self._deletions.add(lease)

    def is_last(self, delivery: Delivery) -> bool:
        """Whether the redrive policy allows no further receipt; see `Broker.is_last`."""
        most = self._redrive.max_receives
        return most is not None and delivery.receive_count >= most

    async def nack(self, delivery: Delivery, delay_s: float, *, poison: bool = False) -> bool:
        """Return the message to the queue; see `Broker.nack`.

        The delay is rounded up to seconds. It is at most 12 h, and at most 15 minutes for a copy.

        Raises:
            BrokerError: The queue failed. The message is received again when its visibility timeout ends.
        """
        lease = self._leases.settle(delivery)
        if lease is None:
            return True
        await self._redrive.wait_for_first_read()
        if self.is_last(delivery) and not poison:
            return await self._replace_by_copy(lease, delay_s)
        await self._make_visible(lease, delay_s)
        return True

    async def dead_letter(self, delivery: Delivery, reason: str, attempts: int = 0) -> bool:
        """Move the message to the dead-letter queue; see `Broker.dead_letter`.

        The dead letter has the message's own attributes and `reason`, `attempts`, `worker`, `receiveCount`
        and `sourceQueue`, if SQS's limits allow. It is sent before the message is deleted. A crash in between
        leaves both messages.

        Raises:
            BrokerError: A call failed. The lease is kept, and the delivery is not settled.
        """
        lease = self._leases.settle(delivery)
        if lease is None:
            return True
        try:
            dlq_url = await self._redrive.dead_letter_url()
            if dlq_url is not None:
                await self._send_dead_letter(dlq_url, lease, reason, attempts)
        except BaseException:
            lease.settled = False
            raise
        if dlq_url is None:
            lease.settled = False
            return False
        self._deletions.add(lease)
        return True

    async def redrives(self) -> bool:
        """Whether the queue has a redrive policy, as of the last read; see `Broker.redrives`.

        Raises:
            BrokerError: The policy could not be read.
        """
        return await self._redrive.exists()

    async def verify(self) -> None:
        """Check that the queue exists and can be read, without receiving a message.

        Raises:
            BrokerError: The queue does not exist, or cannot be read.
        """
        await self._redrive.read()

    async def close(self) -> None:
        """Delete the messages of `ack`, wait for an abandoned long poll, and stop renewing leases.

        This takes at most as long as a long poll and one call. Leases of unsettled deliveries run out. The
        client stays open.
        """
        self._closed = True
        self._deletions.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_s + self._queue.call_timeout_s
        while self._short_tasks and (left_s := deadline - loop.time()) > 0:
            await asyncio.wait(self._short_tasks, timeout=left_s)
        # A message that is not deleted is received again. Its request has a result, so no job runs again.
        for task in self._short_tasks:
            task.cancel()
        for task in self._lasting_tasks:
            task.cancel()
        if self._lasting_tasks:
            await asyncio.wait(self._lasting_tasks)
        self._leases.end_all()

    # --- receive

    async def _receive(self, limit: int) -> list[Delivery]:
        asked_at = time.monotonic()
        request: dict[str, Any] = {}
        if self._queue.is_fifo:
            # If the answer to a request is lost, its messages stay hidden, and their groups are blocked. A
            # repeated request with the same ID receives these messages again.
            self._receive_id = self._receive_id or secrets.token_hex(16)
            request["ReceiveRequestAttemptId"] = self._receive_id
        seconds = self._wait_s + min(_POLL_SLACK_S, self._queue.call_timeout_s)
        async with aws_failures.deadline(seconds, BrokerError, f"receive from {self._queue.url}"):
            answer = await self._queue.client.receive_message(
                QueueUrl=self._queue.url,
                MaxNumberOfMessages=limit,
                WaitTimeSeconds=self._wait_s,
                VisibilityTimeout=self._visibility_s,
                MessageSystemAttributeNames=["All"],
                MessageAttributeNames=["All"],
                **request,
            )
        self._receive_id = None
        return [self._lease(message, asked_at) for message in answer.get("Messages", [])]

    def _lease(self, message: Mapping[str, Any], held_since: float) -> Delivery:
        delivery = sqs_messages.delivery_of(message, is_fifo=self._queue.is_fifo)
        attributes = message.get("MessageAttributes", {})
        self._leases.add(Lease(delivery, attributes, held_since, held_since + self._visibility_s))
        if not self._lasting_tasks:
            self._lasting_tasks = (
                *self._leases.start(),
                self._background.keep(TaskName.REDRIVE_POLICY, self._redrive.watch_forever),
            )
        return delivery

    async def _return_all(self, request: asyncio.Future[list[Delivery]]) -> None:
        """Return the messages of an abandoned long poll."""
        try:
            deliveries = await request
        except BrokerError as exc:
            _log.warning("abandoned poll failed", reason=str(exc))
            return
        await asyncio.gather(*(self._return(delivery) for delivery in deliveries))

    async def _return(self, delivery: Delivery) -> None:
        try:
            if not await self.nack(delivery, 0):
                await self.dead_letter(delivery, "the last receipt was by a worker that was stopping")
        except BrokerError as exc:  # the message is received again when its visibility timeout ends
            _log.warning("message not returned", message_id=delivery.message_id, reason=str(exc))

    # --- settle

    async def _make_visible(self, lease: Lease, delay_s: float) -> None:
        delivery = lease.delivery
        self._leases.end(lease)
        if lease.renewal is not None:  # a renewal after the return would hide the message again
            await asyncio.wait({lease.renewal})
        async with self._queue.call(f"return {delivery.message_id} to {self._queue.url}"):
            await self._queue.client.change_message_visibility(
                QueueUrl=self._queue.url,
                ReceiptHandle=delivery.receipt,
                VisibilityTimeout=min(sqs_messages.whole_seconds(delay_s), lease.grantable_s()),
            )

    async def _replace_by_copy(self, lease: Lease, delay_s: float) -> bool:
        """Send a copy of the message, and delete the message.

        Returns:
            False if no copy was sent. The lease is then kept.
        """
        is_sent = False
        try:
            if not self._queue.is_fifo:
                await self._send_copy(lease, delay_s)
                is_sent = True
        except BrokerError as exc:
            _log.error("message not copied after its last receipt", reason=str(exc))
        finally:
            if not is_sent:
                lease.settled = False
        if is_sent:
            _log.info("message copied after its last receipt", message_id=lease.delivery.message_id)
            self._deletions.add(lease)
        return is_sent

    async def _send_copy(self, lease: Lease, delay_s: float) -> None:
        queue, delivery = self._queue, lease.delivery
        request = sqs_messages.copy_request(queue.url, delivery, lease.attributes, delay_s)
        async with queue.call(f"send a copy of {delivery.message_id} to {queue.url}"):
            await queue.client.send_message(**request)

    async def _send_dead_letter(self, dlq_url: str, lease: Lease, reason: str, attempts: int) -> None:
        details = {
            "reason": reason,
            "attempts": str(attempts),
            "worker": self._worker,
            "receiveCount": str(lease.delivery.receive_count),
            "sourceQueue": self._queue.name,
        }
        request = sqs_messages.dead_letter_request(dlq_url, lease.delivery, lease.attributes, details)
        async with self._queue.call(f"move {lease.delivery.message_id} to {dlq_url}"):
            await self._queue.client.send_message(**request)
