"""Jobs from Amazon SQS.

A delivery's life here::

    receive ─► _leases ─┬─ ack ───────► _deletes ─► DeleteMessageBatch ─► out of _leases
               renewed  ├─ nack ─► out of _leases, last renewal awaited ─► ChangeMessageVisibility
                        │    its last ► SendMessage to the same queue ─► as ack
                        ├─ dead_letter ──────► SendMessage to the dead-letter queue ─► as ack
                        └─ lost ──────► out of _leases, its holder is told

A lease is renewed every third of the visibility timeout, so that two renewals in a row may fail, and
until the message is deleted, so that a slow delete does not let it out again. It is lost when SQS says that
the receipt is not valid any more, or when the time that SQS has last granted is over: someone else may have
the message then. Requests are what SQS bills and what costs CPU here (about 1 ms each), so renewals and
deletes go in batches of ten.

SQS counts every receipt, also those that were no attempt at the job, and moves a message that was received
more often than the redrive policy's maxReceiveCount to the dead-letter queue, which tells nobody. After its
last receipt a message is replaced by a copy therefore, sent before it is deleted: a crash in between leaves
two messages of one request, of which one is run. A FIFO queue would put the copy behind the rest of its
group; there the caller is told that the message will not come again.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent.aws import clients as aws
from nanoagent.broker.base import Delivery
from nanoagent.common.backoff import Backoff
from nanoagent.host.background import Background, TaskName
from nanoagent.host.shielding import unless_cancelled
from nanoagent.model.errors import BrokerError
from nanoagent.model.job import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

# Limits of the SQS API:
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-quotas.html
_BATCH: Final = 10
_MAX_HELD_S: Final = 43_200  # 12 h, counted from the receipt, however often it is renewed
_MAX_ATTRIBUTES: Final = 10
_MAX_RECEIVE_COUNT: Final = 2**31 - 1  # what no message reaches in the 14 days that one is kept
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}")
_NOT_SQS_TEXT: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_CALL_TIMEOUT_S: Final = 30.0  # for milliseconds' work; a queue that hangs holds up neither intake nor exit
_POLL_SLACK_S: Final = 10.0  # beyond the length of the poll
_REASON_BYTES: Final = 256
_SEND_DELAY_MAX_S: Final = 900
# Long enough to fill a batch at 500 jobs/s, far below any visibility timeout, and about one round trip: a
# message group of a FIFO queue waits for its deletes.
_DELETE_DELAY_S: Final = 0.02
_DELETE_BACKOFF_S: Final = 0.2  # doubled each time
_DELETE_BACKOFF_MAX_S: Final = 5.0
_POLICY_HOLDS_S: Final = 300.0  # whoever changes maxReceiveCount has to wait for so long
_POLICY_RETRY_S: Final = 30.0
_POLICY_PATIENCE_S: Final = 5.0  # for the first answer, where a message has to be returned before it
_FIRST_SENT: Final = "firstSentAt"  # attribute of a copy: when the message was sent that it replaces, ms

_log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class _Lease:
    """A delivery that we answer for.

    Attributes:
        delivery: What was received.
        attributes: The message's own attributes, as received.
        held_since: Monotonic seconds just before the receipt, for the 12 h limit.
        held_until: Monotonic seconds until which the message is certainly hidden from others.
        settled: Whether the caller has said what becomes of it.
        renewal: The batch under way that renews it.
    """

    delivery: Delivery
    attributes: Mapping[str, Any]
    held_since: float
    held_until: float
    settled: bool = False
    renewal: asyncio.Task[None] | None = None

    def grantable_s(self) -> int:
        """For how many seconds from now SQS would let the message be hidden."""
        return max(0, int(_MAX_HELD_S - (time.monotonic() - self.held_since)))


class SqsBroker:
    """A `Broker` on one SQS queue, standard or FIFO.

    Args:
        client: An aiobotocore SQS client; its owner closes it, after this broker.
        queue_url: The queue that jobs are taken from.
        dlq_url: Where `dead_letter` moves messages; None takes the target of the queue's redrive policy.
        wait_s: The length of a long poll, 0 … 20 seconds.
        visibility_s: The lease on a message, seconds.
        worker: Who buries, for people.
        least_receives: A smaller maxReceiveCount is warned of.
        call_timeout_s: The longest any call takes, new tries included, seconds.
        background: Keeps the tasks that renew and end leases.
    """

    def __init__(  # noqa: PLR0913 - the settings that the queue has; they are only kept
        self,
        client: Any,
        queue_url: str,
        *,
        dlq_url: str | None,
        wait_s: int,
        visibility_s: int,
        worker: str = "",
        least_receives: int = 0,
        call_timeout_s: float = _CALL_TIMEOUT_S,
        background: Background | None = None,
    ) -> None:
        self._client = client
        self._queue_url = queue_url
        self._dlq_url = dlq_url
        self._wait_s = wait_s
        self._visibility_s = visibility_s
        self._worker = worker
        self._least_receives = least_receives
        self._fifo = queue_url.endswith(".fifo")
        self._call_timeout_s = call_timeout_s
        self._leases: dict[Delivery, _Lease] = {}
        self._deletes: list[_Lease] = []
        self._delete_timer: asyncio.TimerHandle | None = None
        self._background = background or Background()
        self._short: set[asyncio.Task[Any]] = set()
        self._heartbeats: tuple[asyncio.Task[None], ...] = ()
        self._policy: dict[str, Any] | None = None
        self._policy_asked = asyncio.Event()
        self._receive_id: str | None = None
        self._closed = False

    async def receive(self, limit: int) -> list[Delivery]:
        """Wait for up to `limit` messages; see `Broker.receive`.

        Cancelling this does not cancel the request, which SQS would answer all the same: what it brings
        is returned at once, and `close` waits for that.

        Raises:
            BrokerError: The queue failed, or the broker is closed.
        """
        if self._closed:
            raise BrokerError(f"receive from {self._queue_url}: the broker is closed")
        request = asyncio.ensure_future(self._receive(limit))

        def abandoned() -> None:
            self._background.once(TaskName.MESSAGE_RETURN, self._return_unwanted(request), self._short)

        return await unless_cancelled(request, abandoned)

    async def ack(self, delivery: Delivery) -> None:
        """Delete the message, in a batch within a moment; its lease is kept until then."""
        lease = self._claim(delivery)
        if lease is not None:
            self._delete_soon(lease)

    def is_last(self, delivery: Delivery) -> bool:
        """Whether the redrive policy lets it come no more; see `Broker.is_last`."""
        most = _between(1, (self._policy or {}).get("maxReceiveCount"), _MAX_RECEIVE_COUNT)
        return most is not None and delivery.receive_count >= most

    async def nack(self, delivery: Delivery, delay_s: float, *, poison: bool = False) -> bool:
        """Let the message be received again after `delay_s` seconds; see `Broker.nack`.

        The delay is rounded up, and at most 12 h; that of a copy at most 15 minutes.

        Raises:
            BrokerError: The queue failed; the message comes back when its visibility timeout ends.
        """
        lease = self._claim(delivery)
        if lease is None:
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLICY_PATIENCE_S):
                await self._policy_asked.wait()
        if self.is_last(delivery) and not poison:
            return await self._start_over(lease, delay_s)
        await self._show(lease, delay_s)
        return True

    async def _show(self, lease: _Lease, delay_s: float) -> None:
        delivery = lease.delivery
        self._forget(lease)
        if lease.renewal is not None:  # it would hide the message anew if it arrived after us
            await asyncio.wait({lease.renewal})
        async with self._within(f"give {delivery.message_id} back to {self._queue_url}"):
            await self._client.change_message_visibility(
                QueueUrl=self._queue_url,
                ReceiptHandle=delivery.receipt,
                VisibilityTimeout=min(math.ceil(max(0.0, delay_s)), lease.grantable_s()),
            )

    async def _start_over(self, lease: _Lease, delay_s: float) -> bool:
        """Have a fresh copy take the message's place; False, with the lease kept, when that cannot be."""
        sent = False
        try:
            if not self._fifo:
                await self._send_copy(lease, delay_s)
                sent = True
        except BrokerError as exc:
            _log.error("a message after its last receipt was not copied", reason=str(exc))
        finally:
            if not sent:
                lease.settled = False
        if sent:
            _log.info("message copied after its last receipt", message_id=lease.delivery.message_id)
            self._delete_soon(lease)
        return sent

    async def _send_copy(self, lease: _Lease, delay_s: float) -> None:
        delivery = lease.delivery
        first_sent = {_FIRST_SENT: _text(str(int(delivery.sent_at * 1000)))}
        request: dict[str, Any] = {
            "QueueUrl": self._queue_url,
            "MessageBody": delivery.body,
            "MessageAttributes": _that_fit(
                delivery.body, ({**lease.attributes, **first_sent}, lease.attributes)
            ),
            "DelaySeconds": min(math.ceil(max(0.0, delay_s)), _SEND_DELAY_MAX_S),
        }
        if delivery.group_id is not None:
            request["MessageGroupId"] = delivery.group_id
        async with self._within(f"send a copy of {delivery.message_id} to {self._queue_url}"):
            await self._client.send_message(**request)

    async def dead_letter(self, delivery: Delivery, reason: str, attempts: int = 0) -> bool:
        """Move the message to the dead-letter queue; see `Broker.dead_letter`.

        The copy carries the message's own attributes and `reason`, `attempts`, `worker`, `receiveCount`,
        `sourceQueue`, as far as SQS's limits leave room for them. A crash in between leaves two copies, never
        none.

        Raises:
            BrokerError: A queue failed; the lease is kept and the delivery unsettled.
        """
        lease = self._claim(delivery)
        if lease is None:
            return True
        try:
            dlq_url = await self._dead_letter_url()
            if dlq_url is not None:
                await self._send_dead_letter(dlq_url, lease, reason, attempts)
        except BaseException:
            lease.settled = False
            raise
        if dlq_url is None:
            lease.settled = False
            return False
        self._delete_soon(lease)
        return True

    async def redrives(self) -> bool:
        """Whether the queue has a redrive policy of its own, as of the last time that it was asked.

        Raises:
            BrokerError: The queue could not be asked.
        """
        return bool(await self._redrive_policy())

    async def not_ready_reason(self) -> str | None:
        """Why messages cannot be taken, as far as can be told without taking one; None when they can.

        Raises:
            BrokerError: The queue could not be asked, or does not exist.
        """
        await self._read_policy()
        return None

    async def close(self) -> None:
        """Flush deletes, wait for a poll that was abandoned (`wait_s` at most), stop renewing.

        Leases that were not settled run out by themselves. The client stays open.
        """
        self._closed = True
        self._flush_deletes()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_s + self._call_timeout_s
        while self._short and (left_s := deadline - loop.time()) > 0:
            await asyncio.wait(self._short, timeout=left_s)
            self._flush_deletes()
        for task in self._short:  # messages that were not deleted come again, and find their results
            task.cancel()
        for heartbeat in self._heartbeats:
            heartbeat.cancel()
        if self._heartbeats:
            await asyncio.wait(self._heartbeats)
        self._leases.clear()

    # --- receiving

    async def _receive(self, limit: int) -> list[Delivery]:
        asked_at = time.monotonic()
        request: dict[str, Any] = {}
        if self._fifo:
            # What an answer that was lost has brought is brought once more, instead of being hidden, and its
            # groups with it, until its time is over.
            self._receive_id = self._receive_id or secrets.token_hex(16)
            request["ReceiveRequestAttemptId"] = self._receive_id
        seconds = self._wait_s + min(_POLL_SLACK_S, self._call_timeout_s)
        async with aws.deadline(seconds, BrokerError, f"receive from {self._queue_url}"):
            answer = await self._client.receive_message(
                QueueUrl=self._queue_url,
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
        delivery = _delivery(message, fifo=self._fifo)
        self._leases[delivery] = _Lease(
            delivery, message.get("MessageAttributes", {}), held_since, held_since + self._visibility_s
        )
        if not self._heartbeats:
            keep = self._background.keep
            self._heartbeats = (
                keep(TaskName.LEASE_RENEWAL, self._renew_forever),
                keep(TaskName.LEASE_EXPIRY, self._expire_forever),
                keep(TaskName.REDRIVE_POLICY, self._watch_policy_forever),
            )
        return delivery

    async def _return_unwanted(self, request: asyncio.Future[list[Delivery]]) -> None:
        try:
            deliveries = await request
        except BrokerError as exc:
            _log.warning("abandoned poll failed", reason=str(exc))
            return
        await asyncio.gather(*(self._return(delivery) for delivery in deliveries))

    async def _return(self, delivery: Delivery) -> None:
        try:
            if not await self.nack(delivery, 0):
                await self.dead_letter(delivery, "its last receipt was by a worker that had to stop")
        except BrokerError as exc:  # it comes back when its visibility timeout ends
            _log.warning("message not returned", message_id=delivery.message_id, reason=str(exc))

    # --- leases

    def _claim(self, delivery: Delivery) -> _Lease | None:
        """The lease of a delivery that is now being settled; None if it was already."""
        lease = self._leases.get(delivery)
        if lease is None or lease.settled:
            return None
        lease.settled = True
        return lease

    def _forget(self, lease: _Lease) -> None:
        self._leases.pop(lease.delivery, None)

    async def _renew_forever(self) -> None:
        period_s = self._visibility_s / 3
        loop = asyncio.get_running_loop()
        while True:
            started_at = loop.time()
            await self._renew_all()
            await asyncio.sleep(max(0.0, started_at + period_s - loop.time()))

    async def _renew_all(self) -> None:
        batches = []
        for leases in _in_batches(self._renewable_leases()):
            batch = asyncio.create_task(self._renew(leases))
            for lease in leases:
                lease.renewal = batch
            batches.append(batch)
        for problem in await asyncio.gather(*batches, return_exceptions=True):
            if problem is not None:  # the next round tries again, well before the visibility timeout ends
                _log.warning("leases not renewed", queue=self._queue_url, error=aws.describe(problem))

    def _renewable_leases(self) -> Iterator[_Lease]:
        return (lease for lease in list(self._leases.values()) if lease.grantable_s() > 0)

    async def _expire_forever(self) -> None:
        """Lose every lease at the moment when what SQS has granted is over.

        Apart from renewing, which may be waiting for an answer just then. A lease that comes meanwhile lasts
        longer than this sleeps.
        """
        while True:
            now = time.monotonic()
            for lease in list(self._leases.values()):
                if lease.held_until <= now:
                    used_up = lease.grantable_s() == 0
                    self._lose(lease, "held for 12 h, SQS's limit" if used_up else "not renewed in time")
            ends = (lease.held_until for lease in self._leases.values())
            await asyncio.sleep(min(ends, default=now + self._visibility_s) - now)

    def _lose(self, lease: _Lease, reason: str) -> None:
        self._forget(lease)
        if not lease.settled:
            lease.settled = True
            _log.error("lease lost", message_id=lease.delivery.message_id, reason=reason)
            lease.delivery.lost.set_result(reason)

    async def _renew(self, leases: Sequence[_Lease]) -> None:
        # One hung call must not keep the next round, and with it every lease, waiting.
        with aws.errors_as(BrokerError, f"renew leases on {self._queue_url}"):
            async with asyncio.timeout(self._visibility_s / 3):
                await self._renew_batch(leases)

    async def _renew_batch(self, leases: Sequence[_Lease]) -> None:
        asked_at = time.monotonic()
        grants_s = [min(self._visibility_s, lease.grantable_s()) for lease in leases]
        answer = await self._client.change_message_visibility_batch(
            QueueUrl=self._queue_url,
            Entries=[
                {
                    "Id": str(number),
                    "ReceiptHandle": lease.delivery.receipt,
                    "VisibilityTimeout": grant_s,
                }
                for number, (lease, grant_s) in enumerate(zip(leases, grants_s, strict=True))
            ],
        )
        for granted in answer.get("Successful", []):
            number = int(granted["Id"])
            leases[number].held_until = asked_at + grants_s[number]
        for lease, failure in _failures(answer, leases):
            if lease.settled:  # its delete may have overtaken us
                continue
            code = str(failure.get("Code"))
            _log.warning(
                "lease not renewed",
                message_id=lease.delivery.message_id,
                code=code,
                error=failure.get("Message"),
            )
            # Ours to answer for, by SQS's word, is also a receipt that is none any more; throttling is not.
            if failure.get("SenderFault", False) and "throttl" not in code.lower():
                self._lose(lease, f"SQS knows the receipt no more: {code}")

    # --- deleting

    def _delete_soon(self, lease: _Lease) -> None:
        self._deletes.append(lease)
        if len(self._deletes) >= _BATCH or self._closed:
            self._flush_deletes()
        elif self._delete_timer is None:
            loop = asyncio.get_running_loop()
            self._delete_timer = loop.call_later(_DELETE_DELAY_S, self._flush_deletes)

    def _flush_deletes(self) -> None:
        if self._delete_timer is not None:
            self._delete_timer.cancel()
            self._delete_timer = None
        waiting, self._deletes = self._deletes, []
        for leases in _in_batches(waiting):
            self._background.once(TaskName.MESSAGE_DELETION, self._delete(leases), self._short)

    async def _delete(self, leases: list[_Lease]) -> None:
        """Delete a batch, failed entries again while the queue is away; the leases end here in any case.

        That is after a visibility timeout: a delete that is never allowed would keep messages, and memory.
        """
        remaining = leases
        give_up_at = time.monotonic() + self._visibility_s
        backoff = Backoff(_DELETE_BACKOFF_S, _DELETE_BACKOFF_MAX_S)
        try:
            while remaining := await self._delete_or_note(remaining):
                pause_s = backoff.next_s()
                if time.monotonic() + pause_s > give_up_at:
                    _log.error(
                        "messages not deleted; they will come again",
                        message_ids=[lease.delivery.message_id for lease in remaining],
                    )
                    return
                await asyncio.sleep(pause_s)
        finally:
            for lease in remaining:
                self._forget(lease)

    async def _delete_or_note(self, leases: list[_Lease]) -> list[_Lease]:
        """As `_try_delete`; after an internal error another try makes sense as well."""
        try:
            return await self._try_delete(leases)
        except Exception as exc:  # noqa: BLE001 - it is logged and counted there
            self._background.note_failure(TaskName.MESSAGE_DELETION, exc)
            return leases

    async def _try_delete(self, leases: list[_Lease]) -> list[_Lease]:
        """One request; returns the leases for which another try makes sense."""
        entries = [
            {"Id": str(number), "ReceiptHandle": lease.delivery.receipt}
            for number, lease in enumerate(leases)
        ]
        try:
            async with self._within(f"delete messages of {self._queue_url}"):
                answer = await self._client.delete_message_batch(QueueUrl=self._queue_url, Entries=entries)
        except BrokerError as exc:
            _log.warning("batch not deleted", error=str(exc))
            return leases
        again = []
        for lease, failure in _failures(answer, leases):
            if failure.get("SenderFault", False):
                _log.error(
                    "message not deleted; it will come again",
                    message_id=lease.delivery.message_id,
                    code=failure.get("Code"),
                )
            else:
                again.append(lease)
        for lease in set(leases).difference(again):
            self._forget(lease)
        return again

    # --- the dead-letter queue

    async def _redrive_policy(self) -> dict[str, Any]:
        return await self._read_policy() if self._policy is None else self._policy

    async def _read_policy(self) -> dict[str, Any]:
        async with self._within(f"read the attributes of {self._queue_url}"):
            answer = await self._client.get_queue_attributes(
                QueueUrl=self._queue_url, AttributeNames=["RedrivePolicy"]
            )
        before, self._policy = self._policy, _policy(answer)
        most = _between(1, self._policy.get("maxReceiveCount"), _MAX_RECEIVE_COUNT)
        if self._policy != before and most is not None and most < self._least_receives:
            _log.warning(
                "the queue moves messages away early; raise maxReceiveCount in its redrive policy",
                queue=self._queue_url,
                max_receive_count=most,
                should_be=self._least_receives,
            )
        return self._policy

    async def _watch_policy_forever(self) -> None:
        """Know the redrive policy before a message has to be returned: a drain has no time to ask."""
        while True:
            pause_s = _POLICY_HOLDS_S
            try:
                await self._read_policy()
            except BrokerError as exc:
                _log.warning("redrive policy not read", reason=str(exc))
                pause_s = _POLICY_RETRY_S
            self._policy_asked.set()
            await asyncio.sleep(pause_s)

    async def _dead_letter_url(self) -> str | None:
        if self._dlq_url is None:
            arn = (await self._redrive_policy()).get("deadLetterTargetArn")
            if arn is None:
                return None
            account, name = str(arn).split(":")[-2:]  # arn:aws:sqs:region:account:name
            async with self._within(f"find the dead-letter queue {arn}"):
                answer = await self._client.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)
            self._dlq_url = str(answer["QueueUrl"])
        return self._dlq_url

    async def _send_dead_letter(self, dlq_url: str, lease: _Lease, reason: str, attempts: int) -> None:
        delivery = lease.delivery
        ours = {
            "reason": _text(_sendable(reason)),
            "attempts": _text(str(attempts)),
            "worker": _text(_sendable(self._worker)),
            "receiveCount": _text(str(delivery.receive_count)),
            "sourceQueue": _text(self._queue_url.rsplit("/", 1)[-1]),
        }
        request: dict[str, Any] = {
            "QueueUrl": dlq_url,
            "MessageBody": delivery.body,
            "MessageAttributes": _that_fit(delivery.body, ({**lease.attributes, **ours}, ours)),
        }
        if dlq_url.endswith(".fifo"):
            request["MessageGroupId"] = delivery.group_id or delivery.message_id
            request["MessageDeduplicationId"] = delivery.message_id
        async with self._within(f"dead_letter {delivery.message_id} in {dlq_url}"):
            await self._client.send_message(**request)

    # --- small things

    def _within(self, doing: str) -> AbstractAsyncContextManager[None]:
        """One call, which ends in time whatever the queue does."""
        return aws.deadline(self._call_timeout_s, BrokerError, doing)


def _delivery(message: Mapping[str, Any], *, fifo: bool = False) -> Delivery:
    """What was received. A queue that counts or dates oddly must not keep the rest of a batch from anyone."""
    now = time.time()
    attributes = message.get("Attributes", {})
    first_sent = message.get("MessageAttributes", {}).get(_FIRST_SENT, {}).get("StringValue")
    return Delivery(
        message_id=message["MessageId"],
        receipt=message["ReceiptHandle"],
        body=message.get("Body", ""),
        receive_count=_between(1, attributes.get("ApproximateReceiveCount"), _MAX_RECEIVE_COUNT) or 1,
        sent_at=min(_seconds(attributes.get("SentTimestamp"), now), _seconds(first_sent, now)),
        received_at=now,
        group_id=attributes.get("MessageGroupId"),
        in_order=fifo and "MessageGroupId" in attributes,
    )


def _policy(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The redrive policy in the answer to GetQueueAttributes; empty when there is none, or none to read."""
    try:
        policy = json.loads(answer.get("Attributes", {}).get("RedrivePolicy") or "{}")
    except ValueError:
        return {}
    return policy if isinstance(policy, dict) else {}


def _seconds(milliseconds: object, now: float) -> float:
    """A point in time as SQS has it, in seconds; now when it is not known, or is yet to come."""
    return min(now, (_between(0, milliseconds, 1 << 52) or 0) / 1000) or now


def _between(least: int, text: object, most: int) -> int | None:
    """The number within its bounds; None when there is none."""
    found = _NUMBER.fullmatch(str(text))
    return min(max(int(found[0]), least), most) if found else None


def _in_batches(leases: Iterable[_Lease]) -> Iterator[list[_Lease]]:
    everything = list(leases)
    for start in range(0, len(everything), _BATCH):
        yield everything[start : start + _BATCH]


def _failures(
    answer: Mapping[str, Any], leases: Sequence[_Lease]
) -> Iterator[tuple[_Lease, Mapping[str, Any]]]:
    """The failed entries of a batch, each with the lease whose place in the batch was its Id."""
    for failure in answer.get("Failed", []):
        yield leases[int(failure["Id"])], failure


def _text(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}


def _sendable(reason: str) -> str:
    """The reason within what an attribute may hold: no control characters, not empty, 256 bytes."""
    cleaned = _NOT_SQS_TEXT.sub(" ", reason).strip() or "unknown"
    return cleaned.encode()[:_REASON_BYTES].decode(errors="ignore")


def _that_fit(body: str, choices: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first of the attribute sets that SQS takes beside this body; none if none does."""
    room = MAX_MESSAGE_BYTES - len(body.encode())
    for attributes in choices:
        if len(attributes) <= _MAX_ATTRIBUTES and _size_bytes(attributes) <= room:
            return attributes
    return {}


def _size_bytes(attributes: Mapping[str, Any]) -> int:
    """What attributes count toward the message's size: name, type and value of each."""
    return sum(
        len(name.encode())
        + len(value["DataType"])
        + len(value.get("StringValue", "").encode())
        + len(value.get("BinaryValue", b""))
        for name, value in attributes.items()
    )
