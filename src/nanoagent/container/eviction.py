"""Decides which idle containers to evict. All of it is pure: no clock, no input or output.

An idle container is worth the cold start that it saves, if its function is used again. `UseForecast` learns
from the arrivals of jobs how long functions stay unused, and gives the value of a container. `choose_victims`
chooses containers with the lowest values.

**The forecast.** The time between two uses of a function is an interval. Functions with intervals of about
the same length form a class; functions that have been used once are a class of their own. For each class, the
forecast counts how many intervals have reached an age, and how many ended there. This gives the probability
of the next use at each age (the Kaplan-Meier estimate; Kaplan and Meier, 1958). The value of a container is

    expected savings in ms / (expected time in s * size in bytes)

up to the time at which this ratio is highest (the Gittins index; also the hit density of Beckmann, Chen and
Cidon, "LHD", NSDI 2018). The consequences:

* In a round robin over more functions than fit, all intervals have the same length. The function that was
  used last is used again last, and it is evicted first. The others stay.
* Most functions of a one-time sweep are used once. The class of these functions learns that, and its
  containers make room first.
* The age of a function that is no longer used exceeds its earlier intervals. Then its value falls, whatever
  the number of its earlier uses.
* A burst counts as one use and one long interval, and not as many uses. One container saves one cold start.

**Concurrent jobs.** With k jobs at the same time, a function needs k containers, and the k-th is used less
often than the first. So each rank has its own intervals. The rank of a job is the number of busy containers
of its function when it starts. The rank of an idle container is the number of busy containers of its
function, plus the number of idle ones that were used more recently. This is the order in which the pool gives
out containers.

**Generic containers** get an infinite value from the caller, so that they are evicted last. Each of them can
save a cold start of any function. A value that is forecast from the starts that are not hot was not better,
and led to more evictions.

benchmarks/evictions compares the policy with others; docs/adr/0033 has the reasons.
"""

from __future__ import annotations

import heapq
from itertools import count
from math import log2
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

ItemT = TypeVar("ItemT")

MAX_KEYS: Final = 4096
"""The number of keys and ranks that a forecast remembers: four for each of a thousand functions."""

# Ages and intervals are counted in bins: the first second, and then two bins for each power of two. With one
# bin for each power of two, a round robin over functions of different sizes had a tenth more cold cost.
_BINS_PER_OCTAVE: Final = 2
_OCTAVES: Final = 17  # 2^17 s are 36 hours, so that the forecast can learn daily intervals
_BINS: Final = _OCTAVES * _BINS_PER_OCTAVE + 1
_EDGES: Final = (0.0, *(2 ** (number / _BINS_PER_OCTAVE) for number in range(_BINS)))

_ONCE: Final = 0  # the class of keys that have been used once; each other class is an octave
_CLASSES: Final = _OCTAVES + 2

# The evidence for these constants is in docs/adr/0033: the mean cold cost changes by less than 1 % if one of
# them is halved or doubled.
_MEAN_OF: Final = 8  # intervals in the mean that gives the class of a key
_WINDOW: Final = 1024  # intervals of a class; older ones count half, so that the forecast follows the load
_ASSUMED: Final = 4.0  # intervals that each class is assumed to have had
_CHECK_FACTOR: Final = 2.0  # an open interval is checked whenever its age has grown by this factor
_MOST_CHECKS: Final = 16  # for each recorded use, so that it takes at most 0.2 ms
_REFRESH: Final = 32  # intervals of a class after which its rates are computed again


class Candidate(NamedTuple, Generic[ItemT]):
    """An idle container that can be evicted.

    Attributes:
        item: The container.
        size_bytes: The memory that its eviction frees, bytes.
        value: The value of each of its bytes, as `UseForecast.value` returns it.
    """

    item: ItemT
    size_bytes: int
    value: float


def choose_victims(
    candidates: Iterable[Candidate[ItemT]], need_bytes: int, number: int = 0
) -> list[Candidate[ItemT]]:
    """Choose the containers to evict: those with the lowest values that free enough memory.

    A container is not evicted if the more valuable ones among the victims already free enough. For equal
    values, the earlier candidate is evicted first. It takes O(n + v log n) for n candidates and v victims.

    Args:
        candidates: The idle containers, the most recently used one first. Many of them have equal values, and
            this order evicts fewer of those that a round robin needs next.
        need_bytes: The memory to free, bytes.
        number: The least number of containers to evict.

    Returns:
        The victims, the least valuable first. If all candidates are not enough, these are all candidates.
    """
    order = count()
    heap = [(candidate.value, next(order), candidate) for candidate in candidates]
    heapq.heapify(heap)
    chosen: list[Candidate[ItemT]] = []
    freed_bytes = 0
    while heap and (freed_bytes < need_bytes or len(chosen) < number):
        candidate = heapq.heappop(heap)[2]
        chosen.append(candidate)
        freed_bytes += candidate.size_bytes
    return _without_surplus(chosen, freed_bytes - need_bytes, number)


def choose_recycled(
    candidates: Iterable[Candidate[ItemT]],
    is_suitable: Callable[[ItemT], bool],
    need_bytes: int,
    number: int = 0,
) -> ItemT | None:
    """Choose the container to recycle, instead of evicting others and creating a new one.

    This is the least valuable suitable container. But if the containers that would be evicted are worth less
    together, none is recycled.

    Args:
        candidates: As for `choose_victims`.
        is_suitable: Whether a container can be recycled, and could be used instead of the new one.
        need_bytes: The memory that must be freed for a new container, bytes.
        number: The least number of containers to evict for a new one.
    """
    known = [*candidates]
    suitable = [candidate for candidate in known if is_suitable(candidate.item)]
    if not suitable:
        return None
    chosen = min(suitable, key=_worth)
    victims = choose_victims(known, need_bytes, number)
    return chosen.item if _worth(chosen) <= sum(map(_worth, victims)) else None


def _worth(candidate: Candidate[ItemT]) -> float:
    """Return the value of all bytes of a container."""
    return candidate.value * max(candidate.size_bytes, 1)


def _without_surplus(
    chosen: list[Candidate[ItemT]], surplus_bytes: int, number: int
) -> list[Candidate[ItemT]]:
    """Return the victims without those whose memory is not needed, and keep the most valuable containers."""
    unneeded = len(chosen) - number
    victims: list[Candidate[ItemT]] = []
    for candidate in reversed(chosen):
        if unneeded > 0 and candidate.size_bytes <= surplus_bytes:
            surplus_bytes -= candidate.size_bytes
            unneeded -= 1
        else:
            victims.append(candidate)
    victims.reverse()
    return victims


class UseForecast:
    """Forecasts when functions will be used again, and gives the value of their idle containers.

    The pool records each start of a job, and asks for values when it must evict containers. A use that is
    recorded costs O(log n) for n remembered keys, a value O(1).

    Args:
        max_keys: The number of keys and ranks to remember. The one whose last use is longest ago is
            forgotten.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._uses: dict[tuple[Hashable, int], _Use] = {}  # the longest unused one first
        self._classes = [_IntervalClass(number) for number in range(_CLASSES)]
        # The time of the next check of each use. Each use has one entry, also if it is forgotten.
        self._due: list[tuple[float, int, _Use]] = []
        self._order = count()

    def __len__(self) -> int:
        """Return the number of remembered keys and ranks."""
        return len(self._uses)

    def record_use(self, key: Hashable, now: float, *, rank: int = 0) -> None:
        """Record that a job of a function starts.

        Args:
            key: The function version.
            now: The time, seconds, of a clock that does not go back.
            rank: The number of busy containers with this key, without the container of this job.
        """
        self._pass_bins(now)
        use = self._uses.pop((key, rank), None)
        if use is None:
            use = _Use(now)
            self._forget_surplus()
            heapq.heappush(self._due, (now + _EDGES[1], next(self._order), use))
        else:
            self._end_interval(use, now - use.last_s)
            use.last_s = now
        self._uses[key, rank] = use
        self._classes[use.class_number].begin()

    def value(self, key: Hashable, *, rank: int, size_bytes: int, cold_ms: float, now: float) -> float:
        """Return the value of an idle container: the savings to expect, for each byte and second.

        Args:
            key: The key of `record_use`.
            rank: The number of busy containers with this key, plus the number of idle containers with this
                key that were used more recently.
            size_bytes: The memory that the idle container holds, bytes.
            cold_ms: The time that a start takes longer without the container, ms.
            now: The time, seconds, in the clock of `record_use`.

        Returns:
            The value, ms per second and byte; 0 if the key is not remembered.
        """
        use = self._uses.get((key, rank))
        if use is None:
            return 0.0
        rate = self._classes[use.class_number].rate(_bin_of(now - use.last_s))
        return rate * cold_ms / max(size_bytes, 1)

    def _end_interval(self, use: _Use, interval_s: float) -> None:
        ended_in = _bin_of(interval_s)
        self._classes[use.class_number].end(ended_in, passed=use.passed)
        use.passed = 0
        use.intervals = min(use.intervals + 1, _MEAN_OF)
        use.mean_octave += (log2(max(interval_s, 0.5)) - use.mean_octave) / use.intervals
        use.class_number = min(round(use.mean_octave + 1) + 1, _CLASSES - 1)

    def _pass_bins(self, now: float) -> None:
        """Count the bins that open intervals have passed.

        Otherwise only functions that are used again would count. After a pause, many checks are due. The rest
        of them follows with the next uses.
        """
        due: list[_Use] = []
        while self._due and self._due[0][0] <= now and len(due) < _MOST_CHECKS:
            due.append(heapq.heappop(self._due)[2])
        for use in due:
            if use.is_forgotten:
                continue
            reached = _bin_of(now - use.last_s)
            self._classes[use.class_number].reach(reached, passed=use.passed)
            use.passed = reached
            age_s = max(_EDGES[1], _CHECK_FACTOR * (now - use.last_s))
            heapq.heappush(self._due, (use.last_s + age_s, next(self._order), use))

    def _forget_surplus(self) -> None:
        if len(self._uses) >= self._max_keys:
            self._uses.pop(next(iter(self._uses))).is_forgotten = True
        if len(self._due) >= 2 * self._max_keys:
            self._due = [entry for entry in self._due if not entry[2].is_forgotten]
            heapq.heapify(self._due)


class _Use:
    """The uses of a key at a rank.

    Attributes:
        last_s: The time of the last use, seconds.
        class_number: The class of the current interval.
        passed: The number of bins that the current interval has passed, as far as they are counted.
        intervals: The number of intervals in the mean.
        mean_octave: The mean of the binary logarithms of the intervals.
        is_forgotten: Whether the forecast no longer remembers the key.
    """

    __slots__ = ("class_number", "intervals", "is_forgotten", "last_s", "mean_octave", "passed")

    def __init__(self, now: float) -> None:
        self.last_s = now
        self.class_number = _ONCE
        self.passed = 0
        self.intervals = 0
        self.mean_octave = 0.0
        self.is_forgotten = False


class _IntervalClass:
    """The intervals of a class: how many reached each bin, and how many ended there."""

    def __init__(self, number: int) -> None:
        mean_s = 1.0 if number == _ONCE else 2.0 ** (number - 2)
        self._reached = [_ASSUMED] * _BINS
        # Until there are data: the longer a function was not used, the longer it will not be used.
        self._ended = [
            _ASSUMED * _width(bin_) / (max(mean_s, _EDGES[bin_]) + _width(bin_)) for bin_ in range(_BINS)
        ]
        self._begun = 0  # since the rates were computed
        self._rates = self._compute_rates()

    def begin(self) -> None:
        """Count an interval that begins."""
        self._reached[0] += 1
        if self._reached[0] > _WINDOW:
            self._reached = [number / 2 for number in self._reached]
            self._ended = [number / 2 for number in self._ended]
        self._begun += 1

    def reach(self, bin_: int, *, passed: int) -> None:
        """Count that an interval has reached a bin; `passed` of its bins have been counted before."""
        for number in range(passed + 1, bin_ + 1):
            self._reached[number] += 1

    def end(self, bin_: int, *, passed: int) -> None:
        """Count that an interval has ended in a bin; `passed` of its bins have been counted before."""
        self.reach(bin_, passed=passed)
        self._ended[bin_] += 1

    def rate(self, bin_: int) -> float:
        """Return the savings to expect at an age, as a share of a cold start for each second."""
        if self._begun >= _REFRESH:
            self._rates = self._compute_rates()
            self._begun = 0
        return self._rates[bin_]

    def _compute_rates(self) -> list[float]:
        shares = [
            min(ended / reached, 1.0) for ended, reached in zip(self._ended, self._reached, strict=True)
        ]
        return [_best_rate(shares, start) for start in range(_BINS)]


def _best_rate(shares: list[float], start: int) -> float:
    """Return the highest ratio of the probability of a use to the expected time until then, 1/s.

    Args:
        shares: Bin → the share of the intervals that reached this bin and ended in it.
        start: The bin of the current age.
    """
    unused, used, time_s, best = 1.0, 0.0, 0.0, 0.0
    for bin_ in range(start, _BINS):
        share = shares[bin_]
        used += unused * share
        time_s += unused * _width(bin_) * (1 - share / 2)  # uses are in the middle of a bin
        unused *= 1 - share
        best = max(best, used / time_s)
    return best


def _width(bin_: int) -> float:
    return _EDGES[bin_ + 1] - _EDGES[bin_]


def _bin_of(age_s: float) -> int:
    if age_s < 1:
        return 0
    return min(int(_BINS_PER_OCTAVE * log2(age_s)) + 1, _BINS - 1)
