"""Keeps the order of a FIFO queue's message groups.

SQS may deliver several messages of one group together, in order. It delivers no further message of the group
until each of these is deleted or visible again (Amazon SQS Developer Guide, "FIFO queue delivery logic").
So this module keeps the order of messages that came together. Another message of the group can arrive too
early, for example after a lost lease. Such a message waits until the messages before it are settled.

* A delivery gets its turn when the delivery before it has ended for good (it was acknowledged or
  dead-lettered). By then the result of the earlier job is stored. So the earlier job does not run again, even
  if the deletion of its message fails, or its lease is lost.
* When a delivery is returned to the queue, the later deliveries of its group are returned first. The group
  stays blocked until the earliest message is returned, and then for that message's delay. So SQS delivers the
  group in order again.
* A message that is not a valid job (poison) does not block its group. Otherwise the later messages would be
  returned each time. They would use up their receipts together with the invalid message.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nanoagent.broker.base import Broker, Delivery

# The longest wait for the return of later deliveries. A queue that hangs must not delay a drain for longer.
# The order is kept even if the wait ends early: SQS delivers no message of a group while an earlier one is in
# flight.
_RETURN_MAX_S: Final = 5.0


def _new_future() -> asyncio.Future[bool]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, eq=False)
class _Place:
    """The place of one delivery in its series.

    Attributes:
        series: The series.
        turn: Completed with True when the delivery may be processed, with False when it must be returned.
        left: Set when the delivery is settled.
    """

    series: _Series
    turn: asyncio.Future[bool] = field(default_factory=_new_future)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def decide(self, *, its_turn: bool) -> None:
        if not self.turn.done():
            self.turn.set_result(its_turn)


@dataclass(slots=True, eq=False)
class _Series:
    """The unsettled deliveries of one group that were received together.

    Attributes:
        group: The message group ID.
        places: Their places, in order.
        next: The series that was received while this one was unsettled, for example after a lost lease.
    """

    group: str
    places: list[_Place] = field(default_factory=list)
    next: _Series | None = None


class FifoOrder:
    """A `Broker` that makes the deliveries of a message group wait for their turn.

    Args:
        broker: The broker that receives and settles messages.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._places: dict[Delivery, _Place] = {}
        self._latest: dict[str, _Series] = {}

    async def turn(self, delivery: Delivery) -> bool:
        """Wait until a delivery may be processed; returns False if it must be returned to the queue."""
        place = self._places.get(delivery)
        return place is None or await asyncio.shield(place.turn)

    def must_wait(self, delivery: Delivery) -> bool:
        """Whether an earlier delivery of the group must end first."""
        place = self._places.get(delivery)
        return place is not None and not place.turn.done()

    async def receive(self, limit: int) -> list[Delivery]:
        """See `Broker.receive`."""
        deliveries = await self._broker.receive(limit)
        together: dict[str, _Series] = {}
        for delivery in deliveries:
            if delivery.in_order and delivery.group_id is not None:
                series = together.setdefault(delivery.group_id, _Series(delivery.group_id))
                place = self._places[delivery] = _Place(series)
                series.places.append(place)
        for series in together.values():
            self._append(series)
        return deliveries

    def is_last(self, delivery: Delivery) -> bool:
        """See `Broker.is_last`."""
        return self._broker.is_last(delivery)

    async def ack(self, delivery: Delivery) -> None:
        """See `Broker.ack`."""
        await self._broker.ack(delivery)
        self._leave(delivery, for_good=True)

    async def nack(self, delivery: Delivery, delay_s: float, *, poison: bool = False) -> bool:
        """See `Broker.nack`. Later deliveries of the group are returned first, unless this one is poison."""
        place = self._places.get(delivery)
        if place is not None and not poison:
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETURN_MAX_S):
                    await asyncio.gather(*(later.left.wait() for later in _recall_later(place)))
        is_settled = True  # even if the call fails: then the message is returned when its lease ends
        try:
            is_settled = await self._broker.nack(delivery, delay_s, poison=poison)
        finally:
            if is_settled:
                self._leave(delivery, for_good=poison)
        return is_settled

    async def dead_letter(self, delivery: Delivery, reason: str, attempts: int = 0) -> bool:
        """See `Broker.dead_letter`."""
        is_settled = await self._broker.dead_letter(delivery, reason, attempts)
        if is_settled:
            self._leave(delivery, for_good=True)
        return is_settled

    async def redrives(self) -> bool:
        """See `Broker.redrives`."""
        return await self._broker.redrives()

    async def close(self) -> None:
        """See `Broker.close`."""
        await self._broker.close()

    def _append(self, series: _Series) -> None:
        """Put a series behind the unsettled series of its group. If there is none, begin this series."""
        before = self._latest.get(series.group)
        self._latest[series.group] = series
        if before is None:
            series.places[0].decide(its_turn=True)
        else:
            before.next = series

    def _leave(self, delivery: Delivery, *, for_good: bool) -> None:
        """Remove a settled delivery; the next one of the group gets its turn.

        Within a series, the next delivery gets its turn only if this one has ended for good. Otherwise the
        next delivery must be returned, too.
        """
        place = self._places.pop(delivery, None)
        if place is None:
            return
        series = place.series
        was_first = series.places[0] is place
        series.places.remove(place)
        place.left.set()
        if series.places:
            if was_first and for_good:
                series.places[0].decide(its_turn=True)
        elif series.next is not None:
            series.next.places[0].decide(its_turn=True)
        else:
            del self._latest[series.group]


def _recall_later(place: _Place) -> list[_Place]:
    """Make the later deliveries of the series return to the queue; returns their places."""
    places = place.series.places
    later = places[places.index(place) + 1 :] if place in places else []
    for each in later:
        each.decide(its_turn=False)
    return later
