"""The order of a FIFO queue's message groups.

SQS hands out several messages of a group at once, in order, and no more of the group until all of them are
deleted or visible again. So order is only to be kept among what came together, and between that and what
comes next. A later one gets its turn when the one before it is settled for good: its result is stored then,
so that it is not run again even if its delete should fail, or its lease be lost. If one goes back, those
behind it go back before it. It is in flight until then, which keeps the whole group from everyone, and hidden
afterwards for as long as it is told to stay away, which keeps those behind it (Amazon SQS Developer Guide,
"FIFO queue delivery logic").

A message that cannot be read is no job, and nobody waits for it: those behind it, whose receipts would be
used up with its own, go on.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nanoagent.broker.base import Broker, Delivery

# A queue that hangs must not hold a drain up twice; and SQS hands out nothing past what is in flight.
_PATIENCE_S: Final = 5.0


def _future() -> asyncio.Future[bool]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, eq=False)
class _Place:
    """One delivery's place in its series.

    Attributes:
        series: What came together with it.
        turn: Done when it may be worked on (True), or has to go back (False).
        left: Set when it is settled.
    """

    series: _Series
    turn: asyncio.Future[bool] = field(default_factory=_future)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def decide(self, *, its_turn: bool) -> None:
        if not self.turn.done():
            self.turn.set_result(its_turn)


@dataclass(slots=True, eq=False)
class _Series:
    """Deliveries of one group that came together, in order, as far as they are not settled.

    Attributes:
        group: Which.
        places: Theirs.
        next: What came later, while this was still open: a lease was lost, say.
    """

    group: str
    places: list[_Place] = field(default_factory=list)
    next: _Series | None = None


class FifoOrder:
    """A `Broker` before which the deliveries of a message group wait for their turn.

    Args:
        broker: The broker itself.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._places: dict[Delivery, _Place] = {}
        self._latest: dict[str, _Series] = {}

    async def turn(self, delivery: Delivery) -> bool:
        """Wait until a delivery may be worked on; False when it has to go back to the queue instead."""
        place = self._places.get(delivery)
        return place is None or await asyncio.shield(place.turn)

    def must_wait(self, delivery: Delivery) -> bool:
        """Whether its turn is still to come."""
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
            self._begin(series)
        return deliveries

    def is_last(self, delivery: Delivery) -> bool:
        """See `Broker.is_last`."""
        return self._broker.is_last(delivery)

    async def ack(self, delivery: Delivery) -> None:
        """See `Broker.ack`."""
        await self._broker.ack(delivery)
        self._leave(delivery, for_good=True)

    async def nack(self, delivery: Delivery, delay_s: float, *, poison: bool = False) -> bool:
        """See `Broker.nack`; those behind it in its group go back first, unless it is poison."""
        place = self._places.get(delivery)
        if place is not None and not poison:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_S):
                    await asyncio.gather(*(later.left.wait() for later in _recall(place)))
        is_back = True
        try:
            is_back = await self._broker.nack(delivery, delay_s, poison=poison)
        finally:
            if is_back:
                self._leave(delivery, for_good=poison)
        return is_back

    async def dead_letter(self, delivery: Delivery, reason: str, attempts: int = 0) -> bool:
        """See `Broker.dead_letter`."""
        is_buried = await self._broker.dead_letter(delivery, reason, attempts)
        if is_buried:
            self._leave(delivery, for_good=True)
        return is_buried

    async def redrives(self) -> bool:
        """See `Broker.redrives`."""
        return await self._broker.redrives()

    async def close(self) -> None:
        """See `Broker.close`."""
        await self._broker.close()

    def _begin(self, series: _Series) -> None:
        before = self._latest.get(series.group)
        self._latest[series.group] = series
        if before is None:
            series.places[0].decide(its_turn=True)
        else:
            before.next = series

    def _leave(self, delivery: Delivery, *, for_good: bool) -> None:
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


def _recall(place: _Place) -> list[_Place]:
    """Have those behind it go back; returns them."""
    places = place.series.places
    behind = places[places.index(place) + 1 :] if place in places else []
    for later in behind:
        later.decide(its_turn=False)
    return behind
