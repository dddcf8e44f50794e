"""The port to a job queue."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol


def _not_lost() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """One receipt of one message. Identity is the object's: two receipts of a message are two deliveries.

    Attributes:
        message_id: The queue's own name for the message.
        receipt: What the queue wants to see when the message is settled.
        body: The message's text.
        receive_count: How often the queue has handed it out, this time included (≥ 1).
        sent_at: When its sender sent it, Unix epoch seconds.
        received_at: When this receipt arrived here, Unix epoch seconds.
        group_id: The message group of a FIFO (or fair) queue, if any.
        in_order: Whether the queue keeps the order of its group: what comes later is not to be worked on
            before this is settled.
        lost: Done, with the reason, once the lease is no longer ours: another worker may have the message.
            A future rather than an event, so that watching it takes no task of its own.
    """

    message_id: str
    receipt: str
    body: str
    receive_count: int
    sent_at: float
    received_at: float
    group_id: str | None = None
    in_order: bool = False
    lost: asyncio.Future[str] = field(default_factory=_not_lost, repr=False)


class Broker(Protocol):
    """At-least-once delivery with leases.

    From `receive` until it is settled by exactly one of `ack`, `nack` or `dead_letter`, a delivery's lease
    is renewed by the broker itself. Settling twice is a mistake of the caller's and is ignored. When a lease
    cannot be kept, the broker says so by `Delivery.lost`; settling that delivery then does nothing.

    Every method raises `BrokerError` when the queue fails; `ack` may do its work in a batch a moment
    later, and a failure to delete only means that the message comes again.
    """

    async def receive(self, limit: int) -> list[Delivery]:
        """Wait (long poll) for up to `limit` messages, 1 ≤ limit ≤ 10; may return none."""
        ...

    async def ack(self, delivery: Delivery) -> None:
        """The job is done and its result stored: delete the message."""
        ...

    def is_last(self, delivery: Delivery) -> bool:
        """Whether the queue, by its redrive policy, hands the message out no more after this receipt.

        It would move it to its dead-letter queue then, and tell nobody. False where no policy is known.
        """
        ...

    async def nack(self, delivery: Delivery, delay_s: float, *, poison: bool = False) -> bool:
        """Let the message be received again, by anyone, after `delay_s` seconds (0: at once).

        After its last receipt a fresh copy takes its place, whose receipts are counted anew; `poison` is left
        to the redrive policy instead.

        Returns False, with the lease kept, when the message would not come again: it is its last receipt,
        and the queue took no copy, or its order would be lost with it.
        """
        ...

    async def dead_letter(self, delivery: Delivery, reason: str, attempts: int = 0) -> bool:
        """Move the message to the dead-letter queue, with `reason` and `attempts` as attributes.

        Returns False, with the lease kept, when no dead-letter queue is known.
        """
        ...

    async def redrives(self) -> bool:
        """Whether the queue has a redrive policy of its own, so that poison may be left to it."""
        ...

    async def close(self) -> None:
        """Flush pending deletes, stop renewing leases, close connections. Idempotent."""
        ...
