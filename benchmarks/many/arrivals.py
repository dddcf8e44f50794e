"""The arrival times of a mixed load with popular functions and bursts. Pure functions."""

from __future__ import annotations

import bisect
import itertools
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job that arrives.

    Attributes:
        at_s: When it arrives, seconds after the begin of the load.
        function: The number of its function. Function 0 is the most popular one.
    """

    at_s: float
    function: int


@dataclass(frozen=True, slots=True)
class Mix:
    """A mixed load.

    Arrivals are random (a Poisson process). In each period, a burst with a higher rate comes first. The rest
    of the period has a lower rate, so that the mean rate is `rate`.

    Attributes:
        functions: The number of functions.
        exponent: The exponent of Zipf's law: the function number n is called in proportion to (n + 1) to the
            power of minus this exponent.
        rate: The mean number of jobs per second.
        seconds: The length of the load.
        period_s: The time from one burst to the next.
        burst_s: The length of a burst.
        burst_rate: The number of jobs per second during a burst.
    """

    functions: int = 200
    exponent: float = 1.1
    rate: float = 20.0
    seconds: float = 180.0
    period_s: float = 10.0
    burst_s: float = 1.0
    burst_rate: float = 60.0

    def rate_at(self, at_s: float) -> float:
        """Return the rate of arrivals at a time, jobs per second."""
        if at_s % self.period_s < self.burst_s:
            return self.burst_rate
        burst = self.burst_rate * self.burst_s
        return (self.rate * self.period_s - burst) / (self.period_s - self.burst_s)


def arrivals(mix: Mix, seed: int) -> list[Arrival]:
    """Return the arrivals of a load in their order in time. The same seed gives the same arrivals."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    shares = list(itertools.accumulate((number + 1) ** -mix.exponent for number in range(mix.functions)))
    found: list[Arrival] = []
    at_s = 0.0
    while True:
        # Thinning: arrivals at the highest rate, of which some are left out.
        at_s += rng.expovariate(mix.burst_rate)
        if at_s >= mix.seconds:
            return found
        if rng.random() * mix.burst_rate < mix.rate_at(at_s):
            found.append(Arrival(at_s, bisect.bisect(shares, rng.random() * shares[-1])))
