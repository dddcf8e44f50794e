"""Jobs from a queue in this process: for tests of the worker, and for trying it without SQS."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nanoagent.broker.base import Delivery
from nanoagent.model.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable


_MAX_DELAY_S: Final = 900  # SQS's for a message that is sent


@dataclass(eq=False, slots=True)
class _Message:
    message_id: str
    body: str
    sent_at: float
    group_id: str | None
    visible_at: float
    receive_count: int = 0


class MemoryBroker:
    """A `Broker` whose queue is a list.

    A held lease never runs out, as if it were renewed in time; `lapse` and `close` let it run out as a
    crash of the worker would, `lose` as a queue that cannot be reached, of which the worker learns.

    Args:
        visibility_s: How long after `lapse` or `close` a message stays hidden, seconds.
        wait_s: The length of a long poll, seconds.
        max_receives: The redrive policy's maxReceiveCount; None for a queue without one.
        dead_letter_queue: Whether `dead_letter` has somewhere to move messages to.
        fifo: Whether it keeps the order of message groups.
        clock: Monotonic seconds; the event loop's own by default. With another clock, `wait_s` should be
            0: waiting takes the loop's time.

    Attributes:
        acked: Every delivery that was acknowledged, in order.
        returned: Every delivery that was returned, with its delay in seconds.
        dead_lettered: Every message moved to the dead-letter queue, with the reason and the attempts.
        copied: Every delivery that was returned as a fresh copy.
        redriven: The bodies that the redrive policy moved there.
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
        self.acked: list[Delivery] = []
        self.returned: list[tuple[Delivery, float]] = []
        self.dead_lettered: list[tuple[Delivery, str, int]] = []
        self.copied: list[Delivery] = []
        self.redriven: list[str] = []
        self._visibility_s = visibility_s
        self._wait_s = wait_s
        self._max_receives = max_receives
        self._has_dead_letter_queue = dead_letter_queue
        self._fifo = fifo
        self._clock = clock
        self._messages: list[_Message] = []
        self._held: dict[Delivery, _Message] = {}
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        self._closed = False

    async def send(self, body: str, *, group_id: str | None = None) -> str:
        """Put a message into the queue; returns its id."""
        message = _Message(f"message-{next(self._numbers)}", body, time.time(), group_id, self._now())
        self._messages.append(message)
        self._changed.set()
        return message.message_id

    def depth(self) -> tuple[int, int, int]:
        """How many messages are visible, held, and hidden without being held."""
        now = self._now()
        free = self._free()
        visible = sum(message.visible_at <= now for message in free)
        return visible, len(self._held), len(free) - visible

    def lapse(self, delivery: Delivery) -> None:
        """Stop renewing a lease, as if the worker that holds it had died."""
        self._release(delivery, self._visibility_s)

    def lose(self, delivery: Delivery, reason: str = "not renewed") -> None:
        """Take a lease away: the message can be received at once, and its holder is told."""
        if self._release(delivery, 0):
            delivery.lost.set_result(reason)

    async def receive(self, limit: int) -> list[Delivery]:
        """Wait for up to `limit` messages; see `Broker.receive`.

        Raises:
            BrokerError: The broker is closed.
        """
        deadline = self._now() + self._wait_s
        while True:
            if self._closed:
                raise BrokerError("receive: the broker is closed")
            deliveries = self._take(limit)
            until = min(deadline, self._next_visible_at())
            if deliveries or self._now() >= deadline:
                return deliveries
            await self._wait_for_change(until - self._now())

    async def ack(self, delivery: Delivery) -> None:
        """Delete the message."""
        if self._remove(delivery):
            self.acked.append(delivery)

    def is_last(self, delivery: Delivery) -> bool:
        """Whether the redrive policy lets it come no more; see `Broker.is_last`."""
        return self._max_receives is not None and delivery.receive_count >= self._max_receives

    async def nack(self, delivery: Delivery, delay_s: float, *, poison: bool = False) -> bool:
        """Let the message be received again after `delay_s` seconds; see `Broker.nack`."""
        message = self._held.get(delivery)
        if message is None:
            return True
        if self.is_last(delivery) and not poison:
            if self._fifo:
                return False
            self._start_over(delivery, message, delay_s)
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
        """Whether there is a redrive policy."""
        return self._max_receives is not None

    async def close(self) -> None:
        """Let go of all leases. Idempotent."""
        self._closed = True
        for delivery in list(self._held):
            self.lapse(delivery)
        self._changed.set()

    def _now(self) -> float:
        return self._clock() if self._clock is not None else asyncio.get_running_loop().time()

    def _free(self) -> list[_Message]:
        held = set(self._held.values())
        return [message for message in self._messages if message not in held]

    def _take(self, limit: int) -> list[Delivery]:
        ready = self._ready()
        if self._max_receives is not None:
            for message in [each for each in ready if each.receive_count >= self._max_receives]:
                ready.remove(message)
                self._messages.remove(message)
                self.redriven.append(message.body)
        return [self._deliver(message) for message in ready[:limit]]

    def _ready(self) -> list[_Message]:
        """What can be handed out; of a group in order nothing that is behind one that is not to be seen."""
        now = self._now()
        held = set(self._held.values())
        ready: list[_Message] = []
        blocked: set[str | None] = set()
        for message in self._messages:
            if message in held or message.visible_at > now:
                blocked.add(message.group_id)
            elif not self._fifo or message.group_id not in blocked:
                ready.append(message)
        return ready

    def _deliver(self, message: _Message) -> Delivery:
        message.receive_count += 1
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
        message = self._held.pop(delivery, None)
        if message is None:
            return False
        message.visible_at = self._now() + max(0.0, delay_s)
        self._changed.set()
        return True

    def _start_over(self, delivery: Delivery, message: _Message, delay_s: float) -> None:
        self._remove(delivery)
        self.copied.append(delivery)
        visible_at = self._now() + min(max(0.0, delay_s), _MAX_DELAY_S)
        message_id = f"message-{next(self._numbers)}"
        copy = _Message(message_id, message.body, message.sent_at, message.group_id, visible_at)
        self._messages.append(copy)
        self._changed.set()

    def _remove(self, delivery: Delivery) -> bool:
        message = self._held.pop(delivery, None)
        if message is None:
            return False
        self._messages.remove(message)
        return True

    def _next_visible_at(self) -> float:
        return min((message.visible_at for message in self._free()), default=math.inf)

    async def _wait_for_change(self, timeout_s: float) -> None:
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return
