"""How often a run may knock: what it costs the agent is paid by every other job on the loop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Pace:
    """A bucket of tokens; one is taken for each knock.

    Attributes:
        per_s: How many come back in a second.
        burst: How many there are at most, and at first.
        tokens: How many there are; below 0 while some are taken in advance.
        at: When that was counted, in seconds of whatever clock `delay_s` is told.
    """

    per_s: float
    burst: int
    tokens: float
    at: float

    @classmethod
    def of(cls, per_s: float, burst: int, now: float) -> Pace:
        """A full bucket."""
        return cls(per_s, burst, burst, now)

    def delay_s(self, now: float) -> float:
        """Take a token, and say how long to wait for it."""
        self._refill(now)
        self.tokens -= 1
        return max(0.0, -self.tokens / self.per_s)

    def take(self, now: float) -> bool:
        """Take a token if there is one."""
        self._refill(now)
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True

    def _refill(self, now: float) -> None:
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.per_s)
        self.at = now
