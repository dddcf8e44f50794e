"""Pauses that grow with the number of failures in a row.

`pause_s` is the formula, for callers that count the failures themselves. `Backoff` also counts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# A larger exponent could exceed the range of a float. After 64 steps each pause has reached its maximum.
_MAX_EXPONENT: Final = 64


def pause_s(
    failures: int, *, first_s: float, longest_s: float, factor: float = 2.0, jitter: float = 0.0
) -> float:
    """Return the pause after a number of failures in a row, seconds.

    The jitter shortens the pause by up to half. Then callers that failed together do not retry together
    ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

    Args:
        failures: The number of failures in a row, at least 1.
        first_s: The pause after the first failure, seconds.
        longest_s: The longest pause, seconds.
        factor: The factor by which each pause is longer than the previous one, at least 1.
        jitter: A random number from 0 to 1; 0 for no jitter.
    """
    grown_s = first_s * factor ** min(failures - 1, _MAX_EXPONENT)
    return min(grown_s, longest_s) * (1 - jitter / 2)


@dataclass(slots=True)
class Backoff:
    """Counts the consecutive failures of one operation.

    Attributes:
        first_s: The pause after the first failure, seconds.
        longest_s: The longest pause, seconds.
        factor: The factor by which each pause is longer than the previous one, at least 1.
        failures: The number of failures in a row.
    """

    first_s: float
    longest_s: float
    factor: float = 2.0
    failures: int = 0

    def next_s(self, jitter: float = 0.0) -> float:
        """Count a failure; returns the pause after it, seconds. For the jitter see `pause_s`."""
        self.failures += 1
        return pause_s(
            self.failures, first_s=self.first_s, longest_s=self.longest_s, factor=self.factor, jitter=jitter
        )

    def reset(self) -> None:
        """Set the number of failures to 0: the operation has succeeded."""
        self.failures = 0
