"""Leases on SQS messages: renewed until the message is settled, and lost when SQS does not renew them.

Each lease is renewed every quarter of the visibility timeout V. The worker does not know when SQS granted a
new lease, only that this was after the beginning of the long poll. A poll takes at most V/3, and the next
renewal begins at most V/4 after it. If that renewal fails, it ends after V/4, and the second one still has
V/6. So one renewal of a new lease may fail, and two in a row of a lease that was renewed before.

A lease is also renewed after `ack` until the message is deleted, so that a slow deletion does not make the
message visible again. Renewals go in batches of ten: SQS bills each request, and each costs about 1 ms of CPU
time.

A lease is lost when SQS rejects its receipt handle, or when the time that SQS granted last has passed. Then
another worker may receive the message.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent.aws import failures as aws_failures
from nanoagent.broker.sqs_queue import failed_entries, in_batches
from nanoagent.host.background import Background, TaskName
from nanoagent.model.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nanoagent.broker.base import Delivery
    from nanoagent.broker.sqs_queue import SqsQueue

# SQS hides a message for at most 12 h after its receipt, with all renewals (Amazon SQS Developer Guide,
# "Amazon SQS visibility timeout").
_MAX_LEASE_S: Final = 43_200

RENEWALS_PER_LEASE: Final = 4
_POLLS_PER_LEASE: Final = 3

_log = structlog.get_logger(__name__)


def longest_poll_s(visibility_s: int) -> int:
    """Return the longest time that a long poll may take, seconds; see the module's docstring.

    Args:
        visibility_s: The length of a lease, seconds.
    """
    return max(1, visibility_s // _POLLS_PER_LEASE)


@dataclass(eq=False, slots=True)
class Lease:
    """The lease on one delivery.

    Attributes:
        delivery: The delivery.
        attributes: The message's own attributes, as received.
        held_since: When the request that received the message was sent, monotonic seconds.
        held_until: The end of the time that SQS has granted, monotonic seconds.
        settled: Whether `ack`, `nack` or `dead_letter` has begun, or the lease is lost.
        renewal: The task of the renewal that is in progress, or of the last one.
    """

    delivery: Delivery
    attributes: Mapping[str, Any]
    held_since: float
    held_until: float
    settled: bool = False
    renewal: asyncio.Task[None] | None = None

    def grantable_s(self) -> int:
        """Return the longest visibility timeout that SQS accepts now, seconds."""
        return max(0, int(_MAX_LEASE_S - (time.monotonic() - self.held_since)))


class Leases:
    """All leases of one broker.

    Args:
        queue: The queue.
        visibility_s: The length of a lease, seconds.
        background: Runs the tasks that renew and end leases.
    """

    def __init__(self, queue: SqsQueue, visibility_s: int, background: Background) -> None:
        self._queue = queue
        self._visibility_s = visibility_s
        self._period_s = visibility_s / RENEWALS_PER_LEASE
        self._background = background
        self._leases: dict[Delivery, Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def add(self, lease: Lease) -> None:
        """Renew this lease from now on."""
        self._leases[lease.delivery] = lease

    def find(self, delivery: Delivery) -> Lease | None:
        """Return the lease on a delivery; None if it has ended."""
        return self._leases.get(delivery)

    def settle(self, delivery: Delivery) -> Lease | None:
        """Mark a delivery as settled; returns its lease, None if the delivery was settled or lost before."""
        lease = self._leases.get(delivery)
        if lease is None or lease.settled:
            return None
        lease.settled = True
        return lease

    def end(self, lease: Lease) -> None:
        """Stop renewing a lease."""
        self._leases.pop(lease.delivery, None)

    def end_all(self) -> None:
        """Stop renewing all leases; they run out."""
        self._leases.clear()

    def start(self) -> tuple[asyncio.Task[None], ...]:
        """Start the background tasks; the caller cancels them."""
        keep = self._background.keep
        return (
            keep(TaskName.LEASE_RENEWAL, self._renew_forever),
            keep(TaskName.LEASE_EXPIRY, self._expire_forever),
        )

    async def _renew_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started_at = loop.time()
            await self._renew_all()
            await asyncio.sleep(max(0.0, started_at + self._period_s - loop.time()))

    async def _renew_all(self) -> None:
        batches = []
        for leases in in_batches(self._renewable()):
            batch = asyncio.create_task(self._renew(leases))
            for lease in leases:
                lease.renewal = batch
            batches.append(batch)
        for failure in await asyncio.gather(*batches, return_exceptions=True):
            if failure is not None:  # the next round renews these leases before they end
                _log.warning(
                    "leases not renewed", queue=self._queue.url, error=aws_failures.describe(failure)
                )

    def _renewable(self) -> Iterator[Lease]:
        return (lease for lease in list(self._leases.values()) if lease.grantable_s() > 0)

    async def _renew(self, leases: Sequence[Lease]) -> None:
        # A call that hangs must not delay the next round of all leases.
        with aws_failures.errors_as(BrokerError, f"renew leases on {self._queue.url}"):
            async with asyncio.timeout(self._period_s):
                await self._renew_batch(leases)

    async def _renew_batch(self, leases: Sequence[Lease]) -> None:
        asked_at = time.monotonic()
        grants_s = [min(self._visibility_s, lease.grantable_s()) for lease in leases]
        answer = await self._queue.client.change_message_visibility_batch(
            QueueUrl=self._queue.url,
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
        for lease, failure in failed_entries(answer, leases):
            if not lease.settled:  # a settled message may have been deleted before this renewal
                self._renewal_failed(lease, failure)

    def _renewal_failed(self, lease: Lease, failure: Mapping[str, Any]) -> None:
        code = str(failure.get("Code"))
        _log.warning(
            "lease not renewed",
            message_id=lease.delivery.message_id,
            code=code,
            error=failure.get("Message"),
        )
        # SQS reports an invalid receipt handle as the sender's fault. It also reports throttling like this,
        # but after throttling the next renewal may succeed.
        if failure.get("SenderFault", False) and "throttl" not in code.lower():
            self._lose(lease, f"SQS no longer accepts the receipt handle: {code}")

    async def _expire_forever(self) -> None:
        """Lose each lease at the moment when the time that SQS granted has passed.

        This is a separate task, because a renewal may be waiting for SQS at that moment. A new lease does not
        interrupt the sleep, because it ends after the sleep: if its long poll began before the sleep, at most
        the length of a poll before it.
        """
        poll_s = longest_poll_s(self._visibility_s)
        longest_s = max(self._visibility_s - poll_s, self._visibility_s / 2)  # the latter only below 2 s
        while True:
            now = time.monotonic()
            for lease in list(self._leases.values()):
                if lease.held_until <= now:
                    used_up = lease.grantable_s() == 0
                    self._lose(lease, "held for 12 h, SQS's limit" if used_up else "not renewed in time")
            ends = (lease.held_until for lease in self._leases.values())
            await asyncio.sleep(min(longest_s, min(ends, default=math.inf) - now))

    def _lose(self, lease: Lease, reason: str) -> None:
        self.end(lease)
        if not lease.settled:
            lease.settled = True
            _log.error("lease lost", message_id=lease.delivery.message_id, reason=reason)
            lease.delivery.lost.set_result(reason)
