"""A queue in this process, for tests of the worker without SQS."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nanoagent.broker.base import Delivery
from nanoagent.model.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_MAX_SEND_DELAY_S: Final = 900  # as in SQS


@dataclass(eq=False, slots=True)
class _Message:
    """A message in the queue.

    Attributes:
        message_id: The message's ID.
        body: The message's text.
        sent_at: When the message was sent, Unix epoch seconds.
        group_id: The message group ID; None for a message without a group.
        visible_at: When the message can be received, monotonic seconds.
        is_held: Whether a delivery of the message has a lease.
        receive_count: How often the message was received.
    """

    message_id: str
    body: str
    sent_at: float
    group_id: str | None
    visible_at: float
    is_held: bool = False
    receive_count: int = 0


class _Queue:
    """The messages of a queue: which of them can be received, and when.

    Args:
        max_receives: The redrive policy's maxReceiveCount; None for a queue without a policy.
        fifo: Whether the order of message groups is kept.
        clock: Returns monotonic seconds; None for the event loop's clock.
    """

    def __init__(self, *, max_receives: int | None, fifo: bool, clock: Callable[[], float] | None) -> None:
        self.redriven: list[str] = []
        self._max_receives = max_receives
        self._fifo = fifo
        self._clock = clock
        self._messages: list[_Message] = []
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()

    def now(self) -> float:
        """Return the time, monotonic seconds."""
        return self._clock() if self._clock is not None else asyncio.get_running_loop().time()

    def put(self, body: str, *, group_id: str | None, sent_at: float, delay_s: float = 0) -> _Message:
        """Add a message. It can be received after the delay."""
        message_id = f"message-{next(self._numbers)}"
        message = _Message(message_id, body, sent_at, group_id, self.now() + delay_s)
        self._messages.append(message)
        self._changed.set()
        return message

    def remove(self, message: _Message) -> None:
        """Delete a message."""
        self._messages.remove(message)
        self._changed.set()  # the next message of its group may be free now

    def release(self, message: _Message, delay_s: float) -> None:
        """End the lease on a message. The message can be received again after the delay."""
        message.is_held = False
        message.visible_at = self.now() + max(0.0, delay_s)
        self._changed.set()

    def take(self, limit: int) -> list[_Message]:
        """Lease up to `limit` messages. Before that, move messages without receipts left to `redriven`."""
        taken: list[_Message] = []
        exhausted: list[_Message] = []
        for message in self._ready():
            if self._max_receives is not None and message.receive_count >= self._max_receives:
                exhausted.append(message)
            elif len(taken) < limit:
                taken.append(message)
            elif self._max_receives is None:
                break  # the rest of a long queue need not be looked at
        for message in exhausted:
            self._messages.remove(message)
            self.redriven.append(message.body)
        for message in taken:
            message.is_held = True
            message.receive_count += 1
        return taken

    def depth(self) -> tuple[int, int, int]:
        """Return how many messages are visible, how many are held, and how many are hidden by a delay."""
        now = self.now()
        held = sum(message.is_held for message in self._messages)
        visible = sum(message.visible_at <= now for message in self._messages if not message.is_held)
        return visible, held, len(self._messages) - held - visible

    def next_visible_at(self) -> float:
        """Return when the next message can be received, monotonic seconds; infinity without one.

        If the order of groups is kept, a message behind a held or hidden one of its group does not count.
        """
        now = self.now()
        free: list[float] = []
        blocked: set[str | None] = set()
        for message in self._messages:
            if not message.is_held and not (self._fifo and message.group_id in blocked):
                free.append(message.visible_at)
            if message.is_held or message.visible_at > now:
                blocked.add(message.group_id)
        return min(free, default=math.inf)

    def wake(self) -> None:
        """End the waiting of all `wait_for_change` calls."""
        self._changed.set()

    async def wait_for_change(self, timeout_s: float) -> None:
        """Wait until a message is added or released, or until the timeout."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):  # unlike `wait_for`, it makes no task
                await self._changed.wait()

    def _ready(self) -> Iterator[_Message]:
        """Yield the messages that can be received.

        If the order of groups is kept, a held or hidden message blocks the later messages of its group.
        """
        now = self.now()
        blocked: set[str | None] = set()
        for message in self._messages:
            if message.is_held or message.visible_at > now:
                blocked.add(message.group_id)
            elif not self._fifo or message.group_id not in blocked:
                yield message


class MemoryBroker:
    """A `Broker` whose queue is a list.

    A lease does not run out by itself. `lapse` and `close` let leases run out, as if the worker had crashed.
    `lose` also completes `Delivery.lost`, as if the worker could not reach SQS for too long.

    Args:
        visibility_s: How long a message stays hidden after `lapse` or `close`, seconds.
        wait_s: The length of a long poll, seconds.
        max_receives: The redrive policy's maxReceiveCount; None for a queue without a policy.
        dead_letter_queue: Whether the queue has a dead-letter queue.
        fifo: Whether the order of message groups is kept.
        clock: Returns monotonic seconds; None for the event loop's clock. With another clock, `wait_s`
            should be 0, because a long poll waits by the event loop's clock.

    Attributes:
        acked: The acknowledged deliveries, in order.
        returned: The deliveries that were returned to the queue, each with its delay in seconds.
        dead_lettered: The deliveries that were dead-lettered, each with the reason and the attempts.
        copied: The deliveries whose message was replaced by a copy.
        redriven: The bodies of the messages that the redrive policy moved to the dead-letter queue.
    """

    def __init__(
        self,
        *,
        visibility_s: float = 30,
        wait_s: float = 1,
        max_receives: int | None = None,
        dead_letter_queue: bool = True,
        fifo: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._queue = _Queue(max_receives=max_receives, fifo=fifo, clock=clock)
        self.acked: list[Delivery] = []
        self.returned: list[tuple[Delivery, float]] = []
        self.dead_lettered: list[tuple[Delivery, str, int]] = []
        self.copied: list[Delivery] = []
        self.redriven = self._queue.redriven
        self._visibility_s = visibility_s
        self._wait_s = wait_s
        self._max_receives = max_receives
        self._has_dead_letter_queue = dead_letter_queue
        self._fifo = fifo
        self._held: dict[Delivery, _Message] = {}
        self._closed = False

    async def send(self, body: str, *, group_id: str | None = None) -> str:
        """Put a message into the queue; returns its ID."""
        return self._queue.put(body, group_id=group_id, sent_at=time.time()).message_id

    def depth(self) -> tuple[int, int, int]:
        """Return how many messages are visible, how many are held, and how many are hidden by a delay."""
        return self._queue.depth()

    def lapse(self, delivery: Delivery) -> None:
        """Let a lease run out, as if its worker had died."""
        self._release(delivery, self._visibility_s)

    def lose(self, delivery: Delivery, reason: str = "not renewed") -> None:
        """End a lease and complete `Delivery.lost`; the message can be received at once."""
        if self._release(delivery, 0):
            delivery.lost.set_result(reason)

    async def receive(self, limit: int) -> list[Delivery]:
        """Wait for up to `limit` messages; see `Broker.receive`.

        Raises:
            BrokerError: The broker is closed.
        """
        queue = self._queue
        deadline = queue.now() + self._wait_s
        while True:
            if self._closed:
                raise BrokerError("receive: the broker is closed")
            deliveries = self._take(limit)
            if deliveries or queue.now() >= deadline:
                return deliveries
            await queue.wait_for_change(min(deadline, queue.next_visible_at()) - queue.now())

    async def ack(self, delivery: Delivery) -> None:
        """Delete the message; see `Broker.ack`."""
        if self._remove(delivery):
            self.acked.append(delivery)

    def is_last(self, delivery: Delivery) -> bool:
        """Whether the redrive policy allows no further receipt; see `Broker.is_last`."""
        return self._max_receives is not None and delivery.receive_count >= self._max_receives

    async def nack(self, delivery: Delivery, delay_s: float, *, poison: bool = False) -> bool:
        """Return the message to the queue; see `Broker.nack`."""
        message = self._held.get(delivery)
        if message is None:
            return True
        if self.is_last(delivery) and not poison:
            if self._fifo:
                return False
            self._replace_by_copy(delivery, message, delay_s)
        else:
            self._release(delivery, delay_s)
        self.returned.append((delivery, delay_s))
        return True

    async def dead_letter(self, delivery: Delivery, reason: str, attempts: int = 0) -> bool:
        """Move the message to the dead-letter queue; see `Broker.dead_letter`."""
        if not self._has_dead_letter_queue:
            return delivery not in self._held
        if self._remove(delivery):
            self.dead_lettered.append((delivery, reason, attempts))
        return True

    async def redrives(self) -> bool:
        """Whether the queue has a redrive policy; see `Broker.redrives`."""
        return self._max_receives is not None

    async def close(self) -> None:
        """Let all leases run out. Idempotent."""
        self._closed = True
        for delivery in list(self._held):
            self.lapse(delivery)
        self._queue.wake()

    def _take(self, limit: int) -> list[Delivery]:
        return [self._lease(message) for message in self._queue.take(limit)]

    def _lease(self, message: _Message) -> Delivery:
        delivery = Delivery(
            message_id=message.message_id,
            receipt=f"{message.message_id}/{message.receive_count}",
            body=message.body,
            receive_count=message.receive_count,
            sent_at=message.sent_at,
            received_at=time.time(),
            group_id=message.group_id,
            in_order=self._fifo and message.group_id is not None,
        )
        self._held[delivery] = message
        return delivery

    def _release(self, delivery: Delivery, delay_s: float) -> bool:
        """End the lease of a delivery; returns False if it has ended before."""
        message = self._held.pop(delivery, None)
        if message is None:
            return False
        self._queue.release(message, delay_s)
        return True

    def _replace_by_copy(self, delivery: Delivery, message: _Message, delay_s: float) -> None:
        self._remove(delivery)
        self.copied.append(delivery)
        delay_s = min(max(0.0, delay_s), _MAX_SEND_DELAY_S)
        self._queue.put(message.body, group_id=message.group_id, sent_at=message.sent_at, delay_s=delay_s)

    def _remove(self, delivery: Delivery) -> bool:
        """Delete the message of a delivery; returns False if the lease has ended before."""
        message = self._held.pop(delivery, None)
        if message is None:
            return False
        self._queue.remove(message)
        return True
