"""The order of the samples: in each round all arms take their turns, in random order."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

# Docker cleans up after a command has returned. That work must not be measured with the next arm.
_SETTLE_S: Final = 0.15


class Arm(Protocol):
    """A repeatable operation that returns its cost."""

    @property
    def name(self) -> str:
        """The name in tables."""
        ...

    @property
    def leaves_work(self) -> bool:
        """Whether the machine still works for it after it has returned."""
        ...

    async def sample(self) -> float:
        """Do the operation once, and return its cost, such as its time."""
        ...

    async def check(self) -> None:
        """Raise an error if an operation since the last check was wrong. This is not timed."""
        ...


@dataclass(frozen=True, slots=True)
class Series:
    """Successive samples of one arm.

    Attributes:
        arm: The arm.
        count: The number of recorded samples in a round.
        every: The arm takes part in every `every`-th round, and in the first.
    """

    arm: Arm
    count: int
    every: int = 1


class Budget:
    """The limit on the time of a measurement.

    Args:
        until: The end of the time, on the clock, seconds.
        least: The least number of rounds, even if they take longer.
        most: The largest number of rounds.
        clock: Returns monotonic seconds.

    Attributes:
        rounds: The number of rounds that have begun.
    """

    def __init__(
        self,
        until: float,
        *,
        least: int = 1,
        most: int = 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._until = until
        self._least = least
        self._most = most
        self._begun_at = 0.0
        self._shortest_s = math.inf
        self.rounds = 0

    @property
    def is_over(self) -> bool:
        """Whether the end of the time has passed."""
        return self._clock() > self._until

    def begin_round(self) -> bool:
        """Begin a round if the time is enough for one like the shortest so far; return whether it began."""
        now = self._clock()
        if self.rounds:
            self._shortest_s = min(self._shortest_s, now - self._begun_at)
            has_time = now + self._shortest_s <= self._until
            if self.rounds >= self._most or (self.rounds >= self._least and not has_time):
                return False
        self._begun_at = now
        self.rounds += 1
        return True


async def interleave(
    series: Sequence[Series],
    budget: Budget,
    *,
    pause_s: float,
    back_to_back: bool = False,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> dict[str, list[float]]:
    """Take samples of all arms in turns until the time is over.

    Every arm takes part in the first round. After the end of the time, arms of Docker take one sample in each
    turn. All other arms take all their samples, because a median of one sample differs by half from run to
    run.

    Args:
        series: The series of samples, one for each arm. The names of the arms differ.
        budget: The limit on the time.
        pause_s: The pause before each sample, seconds. With `back_to_back`, the pause before each series.
        back_to_back: Whether a series has no pauses. The first sample of a series follows a pause, so it is
            not recorded. Arms of Docker record it, because the pause is short compared with their time.
        sleep: Makes the pauses.

    Returns:
        The name of each arm → its samples, in their order in time.
    """
    rng = random.Random()  # noqa: S311 - not a secret
    samples: dict[str, list[float]] = defaultdict(list)
    busy = False
    while budget.begin_round():
        turns = [one for one in series if (budget.rounds - 1) % one.every == 0]
        rng.shuffle(turns)
        for one in turns:
            await sleep(max(pause_s, _SETTLE_S if busy else 0.0))
            samples[one.arm.name] += await _take_samples(
                one, budget, pause_s, sleep, back_to_back=back_to_back
            )
            await one.arm.check()
            busy = one.arm.leaves_work
    return samples


async def _take_samples(
    one: Series,
    budget: Budget,
    pause_s: float,
    sleep: Callable[[float], Awaitable[None]],
    *,
    back_to_back: bool,
) -> list[float]:
    if back_to_back and not one.arm.leaves_work:
        await one.arm.sample()
    taken = [await one.arm.sample()]
    while len(taken) < one.count and not (one.arm.leaves_work and budget.is_over):
        if not back_to_back:
            await sleep(max(pause_s, _SETTLE_S if one.arm.leaves_work else 0.0))
        taken.append(await one.arm.sample())
    return taken
