"""A token bucket: limits how fast something is used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """Tokens that are spent and that are refilled at a constant rate, up to a limit.

    More tokens can be spent than the bucket has. The number of tokens is then negative, and the caller waits
    until it is 0.

    Attributes:
        amount: The number of tokens that are refilled in one period.
        size: The largest number of tokens.
        tokens: The number of tokens at the time `at`; negative if too many were spent.
        at: The time of the last count, seconds, by the same clock as the arguments `now` of the methods.
        period_s: The length of a period, seconds.
    """

    amount: float
    size: float
    tokens: float
    at: float
    period_s: float = 1.0

    @classmethod
    def full(cls, amount: float, size: float, now: float, *, period_s: float = 1.0) -> TokenBucket:
        """Return a full bucket."""
        return cls(amount, size, size, now, period_s)

    def level(self, now: float) -> float:
        """Return the number of tokens now; negative if too many were spent."""
        gained = (now - self.at) * self.amount / self.period_s
        self.tokens = min(self.size, self.tokens + gained)
        self.at = now
        return self.tokens

    def spend(self, tokens: float, now: float) -> None:
        """Spend tokens, even more than the bucket has."""
        self.tokens = self.level(now) - tokens

    def debt_s(self, now: float) -> float:
        """Return the time until the number of tokens is no longer negative, seconds."""
        return max(0.0, -self.level(now) * self.period_s / self.amount)

    def delay_s(self, now: float) -> float:
        """Spend one token; returns how long the caller must wait before the use, seconds."""
        self.spend(1, now)
        return self.debt_s(now)

    def take(self, now: float) -> bool:
        """Spend one token if the bucket has one; returns whether it had."""
        if self.level(now) < 1:
            return False
        self.tokens -= 1
        return True
