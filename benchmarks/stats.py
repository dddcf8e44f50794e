"""The statistics of a benchmark: medians, their ratios, and the intervals of the ratios. Pure functions."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESAMPLES: Final = 400  # another seed moves the ends of an interval by a few percent of its width
_CONFIDENCE: Final = 0.95
_SEED: Final = 20260  # the same samples give the same interval


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two medians.

    Attributes:
        value: The ratio.
        low: The lower end of its 95 % bootstrap interval.
        high: The upper end of the interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary of the samples of one arm, in their unit.

    Attributes:
        count: The number of samples.
        low: The first quartile.
        median: The median.
        high: The third quartile.
        p99: The 99th percentile.
    """

    count: int
    low: float
    median: float
    high: float
    p99: float


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return a percentile: the smallest sample such that `percent` of all are not larger (nearest rank).

    Raises:
        ValueError: There are no samples.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    rank = math.ceil(percent / 100 * len(ordered))
    return ordered[max(rank, 1) - 1]


def summarise(samples: Sequence[float]) -> Summary:
    """Return the quartiles, the median and the 99th percentile.

    Raises:
        ValueError: There are no samples.
    """
    return Summary(
        count=len(samples),
        low=percentile(samples, 25),
        median=statistics.median(samples) if samples else percentile(samples, 50),
        high=percentile(samples, 75),
        p99=percentile(samples, 99),
    )


def ratio_of_medians(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Return the ratio of the medians of two arms, with its interval.

    The interval is that of the percentile bootstrap (Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, section 13.3): both arms are resampled with replacement.

    Raises:
        ValueError: An arm has no samples.
        ZeroDivisionError: The lower median is zero.
    """
    if not above or not below:
        raise ValueError("no samples")
    rng = random.Random(_SEED)  # noqa: S311 - not a secret

    def resampled(samples: Sequence[float]) -> float:
        return statistics.median(rng.choices(samples, k=len(samples)))

    ratios = sorted(resampled(above) / resampled(below) for _ in range(_RESAMPLES))
    tail = (1 - _CONFIDENCE) / 2 * 100
    return Ratio(
        value=statistics.median(above) / statistics.median(below),
        low=percentile(ratios, tail),
        high=percentile(ratios, 100 - tail),
    )
