"""Who fires when: arms take turns round by round, in an order that is shuffled anew each round."""

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

# Docker goes on cleaning up after a command has returned; that is not to be measured with whoever is next.
_SETTLE_S: Final = 0.15


class Arm(Protocol):
    """Something that can be done again and again, and timed."""

    @property
    def name(self) -> str:
        """Its name in tables."""
        ...

    @property
    def leaves_work(self) -> bool:
        """Whether the machine is still busy with it when it has returned."""
        ...

    async def fire(self) -> float:
        """Do it once; what it took."""
        ...

    async def check(self) -> None:
        """Raise unless everything fired since the last check was right; not timed."""
        ...


@dataclass(frozen=True, slots=True)
class Train:
    """Shots of one arm, one after the other.

    Attributes:
        arm: Which.
        shots: How many are recorded in a round.
        every: It takes part in every so many rounds, the first included.
    """

    arm: Arm
    shots: int
    every: int = 1


class Budget:
    """How long a measurement may take.

    Args:
        until: When it should be over, in the clock's seconds.
        least: Rounds that are done however long they take.
        most: Rounds that are enough.
        clock: Monotonic seconds.

    Attributes:
        rounds: How many have begun.
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

    def another(self) -> bool:
        """Return whether there is time for one more round, as short as the shortest so far; counts it."""
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
    trains: Sequence[Train],
    budget: Budget,
    *,
    pause_s: float,
    back_to_back: bool = False,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> dict[str, list[float]]:
    """Fire the trains until the budget is used up.

    Args:
        trains: The arms, of different names.
        budget: For how long.
        pause_s: How long it is quiet before each shot; back to back, before each train.
        back_to_back: No pause within a train; its first shot, which had one before it, is not recorded (but
            for Docker's arms, to which so short a pause is nothing).
        sleep: Pauses.

    Returns:
        Arm's name → what its shots took, in the order they were fired.
    """
    rng = random.Random()  # noqa: S311 - an order of turns, no secret
    samples: dict[str, list[float]] = defaultdict(list)
    busy = False
    while budget.another():
        turns = [train for train in trains if (budget.rounds - 1) % train.every == 0]
        rng.shuffle(turns)
        for train in turns:
            await sleep(max(pause_s, _SETTLE_S if busy else 0.0))
            samples[train.arm.name] += await _fire(train, pause_s, sleep, back_to_back=back_to_back)
            await train.arm.check()
            busy = train.arm.leaves_work
    return samples


async def _fire(
    train: Train, pause_s: float, sleep: Callable[[float], Awaitable[None]], *, back_to_back: bool
) -> list[float]:
    if back_to_back:
        if not train.arm.leaves_work:
            await train.arm.fire()
        return [await train.arm.fire() for _ in range(train.shots)]
    taken = [await train.arm.fire()]
    for _ in range(train.shots - 1):
        await sleep(max(pause_s, _SETTLE_S if train.arm.leaves_work else 0.0))
        taken.append(await train.arm.fire())
    return taken
