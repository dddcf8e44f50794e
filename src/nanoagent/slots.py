"""Admission: which of the waiting jobs may run now, by memory and CPU.

A job waits in order of arrival. One that does not fit yet may be overtaken by later, smaller ones, so
that the budget is used, but only `MAX_OVERTAKEN` times, so that it is not starved by them. `admit` decides
that, purely; `Slots` keeps the queue and wakes those who were admitted.
"""

from __future__ import annotations

import asyncio
from bisect import bisect
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

MAX_OVERTAKEN: Final = 8
"""How often one request may be passed by later ones.

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

    def __add__(self, other: Budget) -> Budget:
        return Budget(self.memory_mb + other.memory_mb, self.milli_cpus + other.milli_cpus)

    def __sub__(self, other: Budget) -> Budget:
        return Budget(self.memory_mb - other.memory_mb, self.milli_cpus - other.milli_cpus)


@dataclass(slots=True, eq=False)
class Request:
    """Someone who waits for a part of the budget.

    Attributes:
        need: How much.
        overtaken: How many later requests were admitted before it so far.
    """

    need: Budget
    overtaken: int = 0


def admit(waiting: Sequence[Request], free: Budget) -> list[int]:
    """Decide who of `waiting` may have a part of `free`.

    Args:
        waiting: In order of arrival.
        free: What nobody holds.

    Returns:
        Indices into `waiting`, ascending. Together they fit into `free`; nobody is passed more than
        `MAX_OVERTAKEN` times, earlier passes included; apart from that nobody who fits is left out.
    """
    admitted: list[int] = []
    passes_left: int | None = None  # None while nobody has been passed over
    for index, request in enumerate(waiting):
        if not request.need.fits(free):
            patience = MAX_OVERTAKEN - request.overtaken
            passes_left = patience if passes_left is None else min(passes_left, patience)
        elif passes_left is None or passes_left > 0:
            admitted.append(index)
            free -= request.need
            passes_left = None if passes_left is None else passes_left - 1
        if passes_left is not None and passes_left <= 0:
            break
    return admitted


@dataclass(slots=True, eq=False)
class _Ticket(Request):
    """A request and the way to tell whoever made it."""

    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Slots:
    """The budget that all running jobs share. Belongs to one event loop.

    Args:
        memory_mb: MiB for all together.
        cpus: CPUs for all together.

    Raises:
        ValueError: One of them is not positive.
    """

    def __init__(self, memory_mb: int, cpus: float) -> None:
        self.total = Budget.of(memory_mb, cpus)
        self._free = self.total
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

    def reserve(self, memory_mb: int, cpus: float) -> AbstractAsyncContextManager[None]:
        """Hold a part of the budget while the returned context lasts; entering it waits for its turn.

        Args:
            memory_mb: MiB.
            cpus: CPUs.

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
        return self._hold(need)

    @asynccontextmanager
    async def _hold(self, need: Budget) -> AsyncIterator[None]:
        if not self._waiting and need.fits(self._free):  # there is nobody to be decided about
            self._free -= need
        else:
            await self._turn(need)
        try:
            yield
        finally:
            self._free += need
            self._moved_on()

    async def _turn(self, need: Budget) -> None:
        """Wait until that much is granted."""
        ticket = _Ticket(need)
        self._waiting.append(ticket)
        self._admit_waiting()
        try:
            await ticket.granted
        except asyncio.CancelledError:
            self._give_up(ticket)
            raise

    def free_for(self, memory_mb: int, cpus: float) -> int:
        """How many requests of that size would be admitted at once; 0 while anyone waits.

        Raises:
            ValueError: The size is not positive.
        """
        need = Budget.of(memory_mb, cpus)
        if self._waiting:
            return 0
        return min(self._free.memory_mb // need.memory_mb, self._free.milli_cpus // need.milli_cpus)

    def watch(self, changed: Callable[[], object]) -> None:
        """Have `changed` called whenever someone has given back a part of the budget, or given up waiting."""
        self._watchers.append(changed)

    def _give_up(self, ticket: _Ticket) -> None:
        """Give back the ticket's place in the queue, or what it was granted in this very turn of the loop."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        else:
            self._free += ticket.need
        self._moved_on()

    def _moved_on(self) -> None:
        self._admit_waiting()
        for changed in self._watchers:
            changed()

    def _admit_waiting(self) -> None:
        if not self._waiting:
            return
        admitted = admit(self._waiting, self._free)
        before, self._waiting = self._waiting, []
        for index, ticket in enumerate(before):
            if index in admitted:
                self._grant(ticket)
            else:
                ticket.overtaken += len(admitted) - bisect(admitted, index)
                self._waiting.append(ticket)

    def _grant(self, ticket: _Ticket) -> None:
        self._free -= ticket.need
        # A waiter cancelled in this very turn of the loop gives its part back when it wakes, in `_give_up`.
        if not ticket.granted.done():
            ticket.granted.set_result(None)
