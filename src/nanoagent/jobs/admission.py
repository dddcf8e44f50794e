"""Admission: which of the waiting jobs may run now, by memory and CPU.

A job waits in order of arrival. One that does not fit yet may be overtaken by later, smaller ones, so
that the budget is used. At most `MAX_OVERTAKEN` overtakers count against it, so that it is not starved by
them. An overtaker that ends no longer counts if the job would not have fitted without all of its overtakers:
then other jobs are in its way, and small jobs that come and go do not delay it.

A function's jobs and builds together hold no more than its share of the budget, so that the rest is left to
others whatever one function does. Whoever waits for that waits for others of its function only, in order of
arrival, and is in nobody else's way: being passed meanwhile is not being overtaken.

`admit` decides, purely; `Slots` keeps the queue and wakes those who were admitted.
"""

from __future__ import annotations

import asyncio
from bisect import bisect
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

MAX_OVERTAKEN: Final = 8
"""How many later requests may pass one that waits for room.

A blocked large job costs its waiting time times the capacity it blocks. Eight keeps a two-core worker's
slots full for several small jobs each while the large one's room is cleared, and bounds its extra wait to
eight of them.
"""


@dataclass(frozen=True, slots=True)
class Budget:
    """An amount of memory and CPU. CPUs are whole thousandths, so that sums come back to what they were.

    Attributes:
        memory_mb: MiB.
        milli_cpus: Thousandths of a CPU.
    """

    memory_mb: int
    milli_cpus: int

    @classmethod
    def of(cls, memory_mb: int, cpus: float) -> Budget:
        """The amount in the units that settings have; CPUs are rounded to the nearest thousandth (least 1).

        Raises:
            ValueError: One of them is not positive.
        """
        if memory_mb <= 0 or cpus <= 0:
            raise ValueError(f"memory and CPUs must be positive, not {memory_mb} MiB and {cpus} CPUs")
        return cls(memory_mb, max(1, round(cpus * 1000)))

    @property
    def cpus(self) -> float:
        """CPUs, for people and metrics."""
        return self.milli_cpus / 1000

    def fits(self, whole: Budget) -> bool:
        """Whether this much can be taken from `whole`."""
        return self.memory_mb <= whole.memory_mb and self.milli_cpus <= whole.milli_cpus

    def times_in(self, whole: Budget) -> int:
        """How many times this much can be taken from `whole`."""
        return min(whole.memory_mb // self.memory_mb, whole.milli_cpus // self.milli_cpus)

    def part(self, share: float) -> Budget:
        """The share of it, rounded down. 0.29 of 100 is 29, though their product is a little less."""
        return Budget(*(int(round(amount * share, 6)) for amount in (self.memory_mb, self.milli_cpus)))

    def __add__(self, other: Budget) -> Budget:
        return Budget(self.memory_mb + other.memory_mb, self.milli_cpus + other.milli_cpus)

    def __sub__(self, other: Budget) -> Budget:
        return Budget(self.memory_mb - other.memory_mb, self.milli_cpus - other.milli_cpus)


NOTHING: Final = Budget(0, 0)


@dataclass(frozen=True, slots=True)
class Shares:
    """What each function holds, and the most that one may.

    Attributes:
        most: One function's, of the whole.
        held: Function → what its jobs and builds hold; those that hold nothing may be left out.
    """

    most: Budget
    held: Mapping[str, Budget]

    def allow(self, need: Budget, owner: str | None) -> bool:
        """Whether the owner may have that much as well. Whoever holds nothing may have any one thing."""
        held = self.held.get(owner, NOTHING) if owner is not None else NOTHING
        return held == NOTHING or (held + need).fits(self.most)

    def left(self, need: Budget, owner: str | None) -> int:
        """How many more of that size the owner may have, if there were room for them."""
        held = self.held.get(owner, NOTHING) if owner is not None else NOTHING
        return max(need.times_in(self.most - held), 1 if held == NOTHING else 0)


@dataclass(slots=True, eq=False)
class Request:
    """Someone who waits for a part of the budget.

    Attributes:
        need: How much.
        overtaken: How many of its overtakers count against it.
        owner: The function that it counts for; None for what is nobody's.
        overtaking: The part of the budget that its overtakers hold now.
    """

    need: Budget
    overtaken: int = 0
    owner: str | None = None
    overtaking: Budget = NOTHING

    def waits_for_others(self, free: Budget) -> bool:
        """Whether it would not fit even if its overtakers held nothing."""
        return not self.need.fits(free + self.overtaking)


@dataclass(frozen=True, slots=True)
class Admission:
    """Who of those who wait may go on.

    Attributes:
        admitted: Indices, ascending.
        passed: Of those who were passed over for lack of room, ascending; the others wait for their share.
    """

    admitted: list[int]
    passed: list[int]


def admit(waiting: Sequence[Request], free: Budget, shares: Shares) -> Admission:
    """Decide who of `waiting` may have a part of `free`.

    Args:
        waiting: In order of arrival.
        free: What nobody holds.
        shares: What functions hold and may hold.

    Returns:
        The admitted fit into `free` together, and into their functions' shares; nobody is passed more than
        `MAX_OVERTAKEN` times for lack of room, earlier passes included, or by a later request of the same
        function for lack of its share; apart from that nobody who fits is left out.
    """
    held = dict(shares.held)
    asking = Shares(shares.most, held)
    admission = Admission([], [])
    passes_left: int | None = None  # None while nobody has been passed over
    for index, request in _within_share(waiting, asking):
        if not request.need.fits(free):
            admission.passed.append(index)
            patience = MAX_OVERTAKEN - request.overtaken
            passes_left = patience if passes_left is None else min(passes_left, patience)
        else:
            admission.admitted.append(index)
            free -= request.need
            if request.owner is not None:
                held[request.owner] = held.get(request.owner, NOTHING) + request.need
            passes_left = None if passes_left is None else passes_left - 1
        if passes_left is not None and passes_left <= 0:
            break
    return admission


def _within_share(waiting: Sequence[Request], shares: Shares) -> Iterator[tuple[int, Request]]:
    """Those whose share allows them, as things stand when each is reached.

    A small request does not pass a large one of its own function, which would wait for ever otherwise.
    """
    at_share: set[str | None] = set()
    for index, request in enumerate(waiting):
        if request.owner in at_share:
            continue
        if shares.allow(request.need, request.owner):
            yield index, request
        else:
            at_share.add(request.owner)


def admissible(need: Budget, waiting: Sequence[Request], free: Budget, shares: Shares) -> int:
    """How many requests of one size would be admitted at once if they came now.

    Args:
        need: The size; the requests are of functions that hold nothing and have no waiting requests.
        waiting: In order of arrival; none of them can be admitted now.
        free: The free part of the budget.
        shares: The parts that functions hold, and their limit.
    """
    passes = (MAX_OVERTAKEN - request.overtaken for _, request in _within_share(waiting, shares))
    return max(0, min(need.times_in(free), min(passes, default=need.times_in(free))))


def waiting_for_room(waiting: Sequence[Request], shares: Shares) -> int:
    """How many requests wait for room, and not for their function's share."""
    held = dict(shares.held)
    asking = Shares(shares.most, held)
    count = 0
    for _, request in _within_share(waiting, asking):
        count += 1
        if request.owner is not None:
            held[request.owner] = held.get(request.owner, NOTHING) + request.need
    return count


@dataclass(slots=True, eq=False)
class _Ticket(Request):
    """A request, and the future that its caller waits for.

    Attributes:
        granted: Done when the request is admitted.
        passed: The requests that it has overtaken.
    """

    passed: list[_Ticket] = field(default_factory=list)
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Slots:
    """The budget that all running jobs share. Belongs to one event loop.

    Args:
        memory_mb: MiB for all together.
        cpus: CPUs for all together.
        share: How much of both one function may hold, over 0 and at most 1; one request at least.

    Raises:
        ValueError: One of them is not positive.
    """

    def __init__(self, memory_mb: int, cpus: float, share: float = 1.0) -> None:
        self.total = Budget.of(memory_mb, cpus)
        self._free = self.total
        self._held: dict[str, Budget] = {}
        self._shares = Shares(self.total.part(share), self._held)
        self._waiting: list[_Ticket] = []
        self._watchers: list[Callable[[], object]] = []

    @property
    def used(self) -> Budget:
        """What is held now."""
        return self.total - self._free

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    @property
    def waiting_for_room(self) -> int:
        """How many wait for room, and not for their function's share."""
        return waiting_for_room(self._waiting, self._shares)

    def reserve(
        self, memory_mb: int, cpus: float, owner: str | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Hold a part of the budget while the returned context lasts; entering it waits for its turn.

        Args:
            memory_mb: MiB.
            cpus: CPUs.
            owner: The function whose share it is taken from; None: nobody's.

        Raises:
            ValueError: At once, when it is more than the whole budget (it would wait for ever) or not
                positive.
        """
        need = Budget.of(memory_mb, cpus)
        if not need.fits(self.total):
            raise ValueError(
                f"{need.memory_mb} MiB and {need.cpus:g} CPUs were asked for, of {self.total.memory_mb} MiB"
                f" and {self.total.cpus:g} CPUs in all"
            )
        return self._hold(need, owner)

    @asynccontextmanager
    async def _hold(self, need: Budget, owner: str | None) -> AsyncIterator[None]:
        # If nobody waits there is nobody to be decided about.
        passed: Sequence[_Ticket] = ()
        if not self._waiting and need.fits(self._free) and self._shares.allow(need, owner):
            self._take(need, owner)
        else:
            passed = await self._turn(need, owner)
        try:
            yield
        finally:
            self._put_back(need, owner, passed)
            self._moved_on()

    async def _turn(self, need: Budget, owner: str | None) -> Sequence[_Ticket]:
        """Wait until that much is granted; returns the requests that were overtaken."""
        ticket = _Ticket(need, owner=owner)
        self._waiting.append(ticket)
        self._admit_waiting()
        if not ticket.granted.done():  # a request that waits changes how many are admissible
            self._tell()
        try:
            await ticket.granted
        except asyncio.CancelledError:
            self._give_up(ticket)
            raise
        return ticket.passed

    def free_for(self, memory_mb: int, cpus: float, owner: str | None = None) -> int:
        """How many requests of that size would be admitted at once; 0 while anyone waits for room.

        Args:
            memory_mb: MiB.
            cpus: CPUs.
            owner: Whose they would be; None: of functions that hold nothing and are not waited for.

        Raises:
            ValueError: The size is not positive.
        """
        need = Budget.of(memory_mb, cpus)
        if next(_within_share(self._waiting, self._shares), None) is not None:
            return 0
        room = need.times_in(self._free)
        if owner is None:
            return room
        if any(ticket.owner == owner for ticket in self._waiting):
            return 0
        return min(room, self._shares.left(need, owner))

    def admissible(self, memory_mb: int, cpus: float) -> int:
        """How many requests of that size would be admitted at once, past those that wait for room.

        Args:
            memory_mb: MiB.
            cpus: CPUs. The requests are of functions that hold nothing and have no waiting requests.

        Raises:
            ValueError: The size is not positive.
        """
        return admissible(Budget.of(memory_mb, cpus), self._waiting, self._free, self._shares)

    def share_left_for(self, memory_mb: int, cpus: float, owner: str) -> int:
        """How many more requests of that size the owner's share allows, if there were room for them.

        Raises:
            ValueError: The size is not positive.
        """
        return self._shares.left(Budget.of(memory_mb, cpus), owner)

    def watch(self, changed: Callable[[], object]) -> None:
        """Have `changed` called when a part is free again, and when a request begins or stops waiting."""
        self._watchers.append(changed)

    def _take(self, need: Budget, owner: str | None) -> None:
        self._free -= need
        if owner is not None:
            self._held[owner] = self._held.get(owner, NOTHING) + need

    def _put_back(self, need: Budget, owner: str | None, passed: Sequence[_Ticket]) -> None:
        self._free += need
        for ticket in passed:
            ticket.overtaking -= need
            if ticket.waits_for_others(self._free):
                ticket.overtaken -= 1
        if owner is not None:
            self._held[owner] -= need
            if self._held[owner] == NOTHING:  # names of functions come without end
                del self._held[owner]

    def _give_up(self, ticket: _Ticket) -> None:
        """Give back the ticket's place in the queue, or what it was granted in this very turn of the loop."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        else:
            self._put_back(ticket.need, ticket.owner, ticket.passed)
        self._moved_on()

    def _moved_on(self) -> None:
        self._admit_waiting()
        self._tell()

    def _tell(self) -> None:
        for changed in self._watchers:
            changed()

    def _admit_waiting(self) -> None:
        if not self._waiting:
            return
        admission = admit(self._waiting, self._free, self._shares)
        before, self._waiting = self._waiting, []
        for index in admission.passed:
            for later in admission.admitted[bisect(admission.admitted, index) :]:
                before[index].overtaken += 1
                before[index].overtaking += before[later].need
                before[later].passed.append(before[index])
        admitted = set(admission.admitted)
        for index, ticket in enumerate(before):
            if index in admitted:
                self._grant(ticket)
            else:
                self._waiting.append(ticket)

    def _grant(self, ticket: _Ticket) -> None:
        self._take(ticket.need, ticket.owner)
        # A waiter cancelled in this very turn of the loop gives its part back when it wakes, in `_give_up`.
        if not ticket.granted.done():
            ticket.granted.set_result(None)
