"""Admission: makes jobs and builds wait until the budget of memory and CPU has room for them.

`admission_rules` decides which waiting requests are admitted. `Admission` keeps the requests and the free
budget, and wakes the admitted requests.
"""

from __future__ import annotations

import asyncio
from bisect import bisect
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from nanoagent.jobs import admission_rules
from nanoagent.jobs.admission_rules import NOTHING, Budget, FunctionLimits, Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager


@dataclass(slots=True, eq=False)
class _Ticket(Request):
    """A waiting request, and the future that its caller awaits.

    Attributes:
        overtook: The requests that it has overtaken.
        granted: Done when the request is admitted.
    """

    overtook: list[_Ticket] = field(default_factory=list)
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Admission:
    """The budget that all jobs and builds share. It belongs to one event loop.

    Args:
        memory_mb: Memory for all together, MiB.
        cpus: CPUs for all together.
        max_share: The part of the budget that one function may hold: over 0, at most 1. One request is
            always allowed.

    Raises:
        ValueError: The memory or the CPUs are not positive.
    """

    def __init__(self, memory_mb: int, cpus: float, max_share: float = 1.0) -> None:
        self.total = Budget.of(memory_mb, cpus)
        self._free = self.total
        self._held: dict[str, Budget] = {}
        self._limits = FunctionLimits(self.total.part(max_share), self._held)
        self._waiting: list[_Ticket] = []
        self._watchers: list[Callable[[], object]] = []

    @property
    def used(self) -> Budget:
        """The part of the budget that is held now."""
        return self.total - self._free

    @property
    def waiting(self) -> int:
        """The number of waiting requests."""
        return len(self._waiting)

    @property
    def waiting_for_room(self) -> int:
        """The number of requests that wait for room, and not because of their function's limit."""
        return admission_rules.waiting_for_room(self._waiting, self._limits)

    def watch(self, changed: Callable[[], object]) -> None:
        """Call `changed` when a part of the budget is released, or a request begins or stops waiting."""
        self._watchers.append(changed)

    # --- numbers of requests that would be admitted

    def free_for(self, memory_mb: int, cpus: float, function: str | None = None) -> int:
        """Return the number of requests of one size that would be admitted at once, without overtaking.

        The number is 0 while another request waits for room.

        Args:
            memory_mb: MiB.
            cpus: CPUs.
            function: The function of all these requests. None: each is of another function, which holds
                nothing and has no waiting request.

        Raises:
            ValueError: The size is not positive.
        """
        need = Budget.of(memory_mb, cpus)
        if next(admission_rules.within_limits(self._waiting, self._limits), None) is not None:
            return 0
        room = need.times_in(self._free)
        if function is None:
            return room
        if any(ticket.function == function for ticket in self._waiting):
            return 0
        return min(room, self._limits.remaining(need, function))

    def admissible(self, memory_mb: int, cpus: float) -> int:
        """Return the number of requests of one size that would be admitted at once, with overtaking.

        The new requests may overtake requests that wait for room. They are of functions that hold nothing
        and have no waiting requests.

        Args:
            memory_mb: MiB.
            cpus: CPUs.

        Raises:
            ValueError: The size is not positive.
        """
        need = Budget.of(memory_mb, cpus)
        return admission_rules.admissible(need, self._waiting, self._free, self._limits)

    def remaining_under_limit(self, memory_mb: int, cpus: float, function: str) -> int:
        """Return how many more requests of that size the function's limit allows, with unlimited room.

        Raises:
            ValueError: The size is not positive.
        """
        return self._limits.remaining(Budget.of(memory_mb, cpus), function)

    # --- waiting and holding

    def reserve(
        self, memory_mb: int, cpus: float, function: str | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Return a context that holds a part of the budget. Its entry waits until the request is admitted.

        Args:
            memory_mb: MiB.
            cpus: CPUs.
            function: The function whose limit applies; None: no limit.

        Raises:
            ValueError: The size is not positive, or exceeds the whole budget, so that the request could never
                be admitted. The error is raised at once, before the context is entered.
        """
        need = Budget.of(memory_mb, cpus)
        if not need.fits(self.total):
            raise ValueError(
                f"{need.memory_mb} MiB and {need.cpus:g} CPUs were asked for, of {self.total.memory_mb} MiB"
                f" and {self.total.cpus:g} CPUs in all"
            )
        return self._hold(need, function)

    def take_now(self, memory_mb: int, cpus: float, function: str | None = None) -> Callable[[], None] | None:
        """Take a part of the budget if no request waits and there is room.

        Args:
            memory_mb: MiB.
            cpus: CPUs.
            function: The function whose limit applies; None: no limit.

        Returns:
            Releases the part; to be called once. None if the request would have to wait.

        Raises:
            ValueError: The size is not positive.
        """
        need = Budget.of(memory_mb, cpus)
        if self._waiting or not need.fits(self._free) or not self._limits.allow(need, function):
            return None
        self._take(need, function)
        return partial(self._give_back, need, function)

    @asynccontextmanager
    async def _hold(self, need: Budget, function: str | None) -> AsyncIterator[None]:
        overtook = await self._wait_for_grant(need, function)
        try:
            yield
        finally:
            self._give_back(need, function, overtook)

    def _give_back(self, need: Budget, function: str | None, overtook: Sequence[_Ticket] = ()) -> None:
        self._release(need, function, overtook)
        self._admit_and_notify()

    async def _wait_for_grant(self, need: Budget, function: str | None) -> Sequence[_Ticket]:
        """Wait until the request is admitted; return the requests that it has overtaken."""
        ticket = _Ticket(need, function=function)
        self._waiting.append(ticket)
        self._admit_waiting()
        if not ticket.granted.done():  # a waiting request changes how many requests are admissible
            self._notify()
        try:
            await ticket.granted
        except asyncio.CancelledError:
            self._withdraw(ticket)
            raise
        return ticket.overtook

    def _withdraw(self, ticket: _Ticket) -> None:
        """Remove a cancelled request from the queue. If it was just admitted, release its part instead."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        else:
            self._release(ticket.need, ticket.function, ticket.overtook)
        self._admit_and_notify()

    def _take(self, need: Budget, function: str | None) -> None:
        self._free -= need
        if function is not None:
            self._held[function] = self._held.get(function, NOTHING) + need

    def _release(self, need: Budget, function: str | None, overtook: Sequence[_Ticket]) -> None:
        self._free += need
        for ticket in overtook:
            ticket.overtaking -= need
            if ticket.waits_for_others(self._free):
                ticket.overtaken -= 1
        if function is not None:
            self._held[function] -= need
            if self._held[function] == NOTHING:  # the number of functions has no bound
                del self._held[function]

    def _admit_and_notify(self) -> None:
        self._admit_waiting()
        self._notify()

    def _notify(self) -> None:
        for changed in self._watchers:
            changed()

    def _admit_waiting(self) -> None:
        """Grant the requests that the rules admit, and count how often the others were overtaken."""
        if not self._waiting:
            return
        decision = admission_rules.admit(self._waiting, self._free, self._limits)
        before, self._waiting = self._waiting, []
        for index in decision.lacking_room:
            for later in decision.admitted[bisect(decision.admitted, index) :]:
                before[index].overtaken += 1
                before[index].overtaking += before[later].need
                before[later].overtook.append(before[index])
        admitted = set(decision.admitted)
        for index, ticket in enumerate(before):
            if index in admitted:
                self._grant(ticket)
            else:
                self._waiting.append(ticket)

    def _grant(self, ticket: _Ticket) -> None:
        self._take(ticket.need, ticket.function)
        # A request may have been cancelled just before. Its task then releases the part, in `_withdraw`.
        if not ticket.granted.done():
            ticket.granted.set_result(None)
