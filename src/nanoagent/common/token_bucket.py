"""A token bucket: how fast something may be used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """Tokens that come back steadily, up to a limit.

    The bucket may be overdrawn: tokens are taken first, and the caller waits until none are owed.

    Attributes:
        amount: How many tokens come back in one period.
        size: How many there are at most, and at first.
        tokens: How many there were at `at`. Below 0 while some are owed.
        at: When they were counted last, seconds of the clock that the methods are given.
        period_s: The length of a period, seconds.
    """

    amount: float
    size: float
    tokens: float
    at: float
    period_s: float = 1.0

    @classmethod
    def full(cls, amount: float, size: float, now: float, *, period_s: float = 1.0) -> TokenBucket:
        """A bucket with all of its tokens."""
        return cls(amount, size, size, now, period_s)

    def level(self, now: float) -> float:
        """How many tokens there are now; below 0 while some are owed."""
        gained = (now - self.at) * self.amount / self.period_s
        self.tokens = min(self.size, self.tokens + gained)
        self.at = now
        return self.tokens

    def spend(self, tokens: float, now: float) -> None:
        """Take so many tokens, also more than there are."""
        self.tokens = self.level(now) - tokens

    def debt_s(self, now: float) -> float:
        """How long it takes until no tokens are owed, seconds."""
        return max(0.0, -self.level(now) * self.period_s / self.amount)

    def delay_s(self, now: float) -> float:
        """Take one token, and say how long to wait for it, seconds."""
        self.spend(1, now)
        return self.debt_s(now)

    def take(self, now: float) -> bool:
        """Take one token if there is one."""
        if self.level(now) < 1:
            return False
        self.tokens -= 1
        return True
