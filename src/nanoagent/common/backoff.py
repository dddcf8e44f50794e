"""Pauses that grow with each failure in a row.

`pause_s` is the formula; the caller knows how often something has failed. `Backoff` also counts the failures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# A float has no room for the thousandth power of two. By then each pause here has reached its longest.
_MOST_STEPS: Final = 64


def pause_s(
    failures: int, *, first_s: float, longest_s: float, factor: float = 2.0, jitter: float = 0.0
) -> float:
    """The pause after a number of failures in a row.

    The jitter takes away up to half, so that callers that failed together do not come back together
    ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

    Args:
        failures: How many there were, at least 1.
        first_s: The pause after the first failure, seconds.
        longest_s: The longest pause, seconds.
        factor: How many times as long each pause is as the one before, at least 1.
        jitter: A random number from 0 to 1; 0 takes nothing away.
    """
    grown_s = first_s * factor ** min(failures - 1, _MOST_STEPS)
    return min(grown_s, longest_s) * (1 - jitter / 2)


@dataclass(slots=True)
class Backoff:
    """The pauses of one operation, from its first failure to its next success.

    Attributes:
        first_s: The pause after the first failure, seconds.
        longest_s: The longest pause, seconds.
        factor: How many times as long each pause is as the one before, at least 1.
        failures: How many failures in a row there were.
    """

    first_s: float
    longest_s: float
    factor: float = 2.0
    failures: int = 0

    def next_s(self, jitter: float = 0.0) -> float:
        """Count a failure; returns the pause after it, seconds. The jitter is that of `pause_s`."""
        self.failures += 1
        return pause_s(
            self.failures, first_s=self.first_s, longest_s=self.longest_s, factor=self.factor, jitter=jitter
        )

    def reset(self) -> None:
        """Begin again with the first pause: the operation has succeeded."""
        self.failures = 0
