"""The interface of a job queue."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol


def _new_future() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """One receipt of one message.

    Deliveries compare by identity: two receipts of one message are two deliveries.

    Attributes:
        message_id: The message's ID, given by the queue.
        receipt: The receipt handle, which the queue requires to settle the message.
        body: The message's text.
        receive_count: How often the queue has delivered the message, including this delivery (at least 1).
        sent_at: When the sender sent the message, Unix epoch seconds.
        received_at: When this delivery arrived, Unix epoch seconds.
        group_id: The message group ID; None for a message without a group.
        in_order: Whether the queue keeps the order of the group. A later message of the group must not be
            processed before this one is settled.
        lost: Completed with the reason when the lease is lost. Another worker may then receive the message.
            A future is used because a callback on it needs no task per delivery.
    """

    message_id: str
    receipt: str
    body: str
    receive_count: int
    sent_at: float
    received_at: float
    group_id: str | None = None
    in_order: bool = False
    lost: asyncio.Future[str] = field(default_factory=_new_future, repr=False)


class Broker(Protocol):
    """A queue that delivers each message at least once, and leases it to the receiver.

    The broker renews the lease of a delivery from `receive` until the delivery is settled. Exactly one of
    `ack`, `nack` and `dead_letter` settles a delivery. A second attempt to settle it has no effect. If the
    lease cannot be renewed, the broker completes `Delivery.lost`; settling the delivery then has no effect.

    Every method raises `BrokerError` when the queue fails. `ack` may delete the message later, in a batch. A
    message that could not be deleted is received again.
    """

    async def receive(self, limit: int) -> list[Delivery]:
        """Wait for up to `limit` messages (1 to 10) by a long poll; the list may be empty."""
        ...

    async def ack(self, delivery: Delivery) -> None:
        """Delete the message: the job has ended and its result is stored."""
        ...

    def is_last(self, delivery: Delivery) -> bool:
        """Whether the queue's redrive policy allows no further receipt of the message.

        If such a message only became visible again, the queue would move it to its dead-letter queue, and
        the sender would get no result. So `nack` replaces the message by a copy. False if no redrive policy
        is known.
        """
        ...

    async def nack(self, delivery: Delivery, delay_s: float, *, poison: bool = False) -> bool:
        """Return the message to the queue; any worker may receive it after the delay.

        If this was the last receipt of the message (`is_last`), the message is replaced by a copy. The queue
        counts the receipts of the copy from zero.

        Args:
            delivery: The delivery to settle.
            delay_s: The delay, seconds; 0 for none.
            poison: If this was the last receipt, do not copy the message. Leave it to the redrive policy.

        Returns:
            False if this was the last receipt of the message, and no copy was sent: the queue has failed, or
            a copy would break the order of its group. The delivery then stays unsettled.
        """
        ...

    async def dead_letter(self, delivery: Delivery, reason: str, attempts: int = 0) -> bool:
        """Move the message to the dead-letter queue.

        Args:
            delivery: The delivery to settle.
            reason: The reason, one sentence; stored as the attribute `reason`.
            attempts: The number of failed attempts; stored as the attribute `attempts`.

        Returns:
            False if no dead-letter queue is known. The delivery then stays unsettled.
        """
        ...

    async def redrives(self) -> bool:
        """Whether the queue has a redrive policy, so that poison messages can be left to it."""
        ...

    async def close(self) -> None:
        """Finish pending deletions, stop renewing leases, and close connections. Idempotent."""
        ...
