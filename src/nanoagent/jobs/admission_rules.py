"""The rules of admission: which waiting requests may hold a part of the budget now. Pure functions.

Requests wait in order of arrival. A request that does not fit yet may be overtaken by later, smaller
requests, so that the budget is used. After `MAX_OVERTAKEN` overtakers, no further request overtakes it, so
that it is admitted in the end. An overtaker that has ended no longer counts if the waiting request would not
fit even without any overtakers. In that case other jobs block the request, and small overtakers do not delay
it.

All jobs and builds of one function together hold at most the function's concurrency limit
(`FUNCTION_MAX_SHARE`). Only the first request of a function may exceed the limit. The rest of the budget is
left for other functions. A request over its function's limit waits only for requests of the same function, in
order of arrival. It delays no request of another function. A request that passes it does not count as an
overtaker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MAX_OVERTAKEN: Final = 8
"""The largest number of later requests that may pass a request which waits for room.

While a large job waits and nothing may pass it, a part of the budget is unused. Eight overtakers keep the
budget of a two-core worker in use until there is room for the large job. They delay it by at most eight small
jobs.
"""


@dataclass(frozen=True, slots=True)
class Budget:
    """An amount of memory and CPU.

    CPUs are whole thousandths, so that adding an amount and subtracting it again has no rounding error.

    Attributes:
        memory_mb: MiB.
        milli_cpus: Thousandths of a CPU.
    """

    memory_mb: int
    milli_cpus: int

    @classmethod
    def of(cls, memory_mb: int, cpus: float) -> Budget:
        """Return the amount for values in the units of the settings.

        Args:
            memory_mb: MiB.
            cpus: CPUs; rounded to the nearest thousandth, and at least one thousandth.

        Raises:
            ValueError: One of them is not positive.
        """
        if memory_mb <= 0 or cpus <= 0:
            raise ValueError(f"memory and CPUs must be positive, not {memory_mb} MiB and {cpus} CPUs")
        return cls(memory_mb, max(1, round(cpus * 1000)))

    @property
    def cpus(self) -> float:
        """The CPUs as a number, for log and metrics."""
        return self.milli_cpus / 1000

    def fits(self, whole: Budget) -> bool:
        """Whether this amount can be taken from `whole`."""
        return self.memory_mb <= whole.memory_mb and self.milli_cpus <= whole.milli_cpus

    def times_in(self, whole: Budget) -> int:
        """Return how many times this amount can be taken from `whole`; negative when `whole` is."""
        return min(whole.memory_mb // self.memory_mb, whole.milli_cpus // self.milli_cpus)

    def part(self, share: float) -> Budget:
        """Return that share of the amount, rounded down.

        The rounding corrects floating-point products: a share of 0.29 of 100 is 29, not 28.
        """
        return Budget(*(int(round(amount * share, 6)) for amount in (self.memory_mb, self.milli_cpus)))

    def __add__(self, other: Budget) -> Budget:
        return Budget(self.memory_mb + other.memory_mb, self.milli_cpus + other.milli_cpus)

    def __sub__(self, other: Budget) -> Budget:
        return Budget(self.memory_mb - other.memory_mb, self.milli_cpus - other.milli_cpus)


NOTHING: Final = Budget(0, 0)


@dataclass(frozen=True, slots=True)
class FunctionLimits:
    """The concurrency limit of functions, and the amounts that they hold.

    Attributes:
        limit: The largest amount that one function may hold. The first request of a function may exceed it.
        held: Function → the amount that its jobs and builds hold. Functions that hold nothing may be absent.
    """

    limit: Budget
    held: Mapping[str, Budget]

    def held_by(self, function: str | None) -> Budget:
        """Return the amount that the function holds; nothing for None."""
        return self.held.get(function, NOTHING) if function is not None else NOTHING

    def allow(self, need: Budget, function: str | None) -> bool:
        """Whether the function may hold `need` in addition. A function that holds nothing may hold anything.

        A request without a function (None) has no limit.
        """
        held = self.held_by(function)
        return held == NOTHING or (held + need).fits(self.limit)

    def remaining(self, need: Budget, function: str | None) -> int:
        """Return how many more requests of that size the function's limit allows."""
        held = self.held_by(function)
        return max(need.times_in(self.limit - held), 1 if held == NOTHING else 0)


@dataclass(slots=True, eq=False)
class Request:
    """A waiting request for a part of the budget.

    Attributes:
        need: The amount that it asks for.
        overtaken: How many overtakers count against it.
        function: The function that the amount counts for; None for work that belongs to no function.
        overtaking: The amount that its overtakers hold now.
    """

    need: Budget
    overtaken: int = 0
    function: str | None = None
    overtaking: Budget = NOTHING

    def waits_for_others(self, free: Budget) -> bool:
        """Whether it would not fit even if its overtakers held nothing."""
        return not self.need.fits(free + self.overtaking)


@dataclass(frozen=True, slots=True)
class Decision:
    """The waiting requests that are admitted, and those that lack room.

    Attributes:
        admitted: Indices of the admitted requests, ascending.
        lacking_room: Indices of requests that were examined and did not fit, ascending. All other requests
            are over their function's limit, or were not examined.
    """

    admitted: list[int]
    lacking_room: list[int]


def admit(waiting: Sequence[Request], free: Budget, limits: FunctionLimits) -> Decision:
    """Decide which waiting requests may have a part of the free budget.

    Args:
        waiting: In order of arrival.
        free: The free part of the budget.
        limits: The functions' limit, and the amounts that they hold.

    Returns:
        The decision. The admitted requests fit into `free` together, and into their functions' limits. A
        request that lacks room is passed at most `MAX_OVERTAKEN` times, earlier decisions included. A later
        request of the same function never passes a request over the function's limit. Within these rules,
        each request that fits is admitted.
    """
    held = dict(limits.held)
    within = FunctionLimits(limits.limit, held)
    decision = Decision([], [])
    passes_left: int | None = None  # None until the first request that lacks room
    for index, request in within_limits(waiting, within):
        if not request.need.fits(free):
            decision.lacking_room.append(index)
            own_passes_left = MAX_OVERTAKEN - request.overtaken
            passes_left = own_passes_left if passes_left is None else min(passes_left, own_passes_left)
        else:
            decision.admitted.append(index)
            free -= request.need
            if request.function is not None:
                held[request.function] = within.held_by(request.function) + request.need
            passes_left = None if passes_left is None else passes_left - 1
        if passes_left is not None and passes_left <= 0:
            break
    return decision


def within_limits(waiting: Sequence[Request], limits: FunctionLimits) -> Iterator[tuple[int, Request]]:
    """Yield each request that its function's limit allows, with its index.

    `limits.held` may change during the iteration: it is read again for each request. A small request does not
    pass a large one of the same function. Otherwise the large one might never be admitted.
    """
    at_limit: set[str | None] = set()
    for index, request in enumerate(waiting):
        if request.function in at_limit:
            continue
        if limits.allow(request.need, request.function):
            yield index, request
        else:
            at_limit.add(request.function)


def admissible(need: Budget, waiting: Sequence[Request], free: Budget, limits: FunctionLimits) -> int:
    """Return how many new requests of one size would be admitted at once.

    Args:
        need: The size. The requests are of functions that hold nothing and have no waiting requests.
        waiting: In order of arrival. Requests that could be admitted now must not be among them.
        free: The free part of the budget.
        limits: The functions' limit, and the amounts that they hold.
    """
    passes = (MAX_OVERTAKEN - request.overtaken for _, request in within_limits(waiting, limits))
    return max(0, min(need.times_in(free), min(passes, default=need.times_in(free))))


def waiting_for_room(waiting: Sequence[Request], limits: FunctionLimits) -> int:
    """Return how many requests wait for room, and not because of their function's limit."""
    held = dict(limits.held)
    within = FunctionLimits(limits.limit, held)
    count = 0
    for _, request in within_limits(waiting, within):
        count += 1
        if request.function is not None:
            held[request.function] = within.held_by(request.function) + request.need
    return count
