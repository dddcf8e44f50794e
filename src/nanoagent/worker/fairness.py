"""How a function that floods the queue is kept from filling the worker's door.

`slots` sees to it that one function's jobs never hold more than its share. That is of use to others only if
their messages are found behind those of the flood:

* A few jobs of a function that is at its share wait here, so that its share never stands empty. They are no
  reason to take no more messages.
* More of them go back for a while. Nobody has tried them: that is no attempt.
* To look past them costs requests, and keeps what goes back from other workers that may have room. So it is
  done in whole batches, at a pace that slows down while nothing is found, and what goes back stays away for
  a short time at first, longer each time, and no longer than others of its function have been here already.

So a burst of short jobs of one function is hardly touched: most of it has run before anybody looks past it,
and the rest is away for a second. The longer a flood stands, the further intake looks.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from nanoagent.common.backoff import Backoff, pause_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nanoagent.model.job import Job

# A batch of SQS for one function, and two in all.
MAX_PER_FUNCTION: Final = 10
MAX_IN_ALL: Final = 20

_AWAY_S: Final = 4.0
_LEAST_AWAY_S: Final = 1.0  # SQS counts whole seconds
_MOST_AWAY_S: Final = 120.0
_PACE_S: Final = 0.5
# Ten messages in that time: a request to receive them, one for each that goes back. A hundred messages are
# passed within 15 s; behind a flood of thousands it is SQS's fair queues that bring others to the front.
_SLOWEST_PACE_S: Final = 5.0
_SLOWER: Final = 1.25


def beyond_share(waiting: Iterable[Job], left: Callable[[Job], int]) -> Counter[str]:
    """How many jobs here could not run now even if there were room, by function.

    Args:
        waiting: Those that are here and do not run yet.
        left: How many more jobs of that size the job's function may run.
    """
    waiting = list(waiting)
    count = Counter(job.function_id for job in waiting)
    allowed = {job.function_id: left(job) for job in waiting}
    return +Counter({function: count[function] - allowed[function] for function in count})


def is_crowded(beyond: Mapping[str, int], function: str) -> bool:
    """Whether one of the function's jobs that wait for its share, the last to come, is one too many."""
    own = beyond.get(function, 0)
    return own > MAX_PER_FUNCTION or (own > 0 and sum(beyond.values()) > MAX_IN_ALL)


def is_full(beyond: Mapping[str, int]) -> bool:
    """Whether a further job of some function would be one too many."""
    return max(beyond.values(), default=0) >= MAX_PER_FUNCTION or sum(beyond.values()) >= MAX_IN_ALL


def away_s(receive_count: int, waited_s: float, jitter: float) -> float:
    """How long a job that is one too many stays away.

    Args:
        receive_count: How often its message has been handed out.
        waited_s: How long the first of those of its function that run or wait here has been here, seconds.
        jitter: A random number from 0 to 1; takes away up to half.
    """
    longest_s = min(_MOST_AWAY_S, waited_s)
    away = pause_s(receive_count, first_s=_AWAY_S, longest_s=longest_s, jitter=jitter)
    return max(away, _LEAST_AWAY_S)


class Pace:
    """When to look for what lies behind a flood.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pace = Backoff(_PACE_S, _SLOWEST_PACE_S, factor=_SLOWER)
        self._asked_at = -math.inf
        self._next_at = 0.0

    def left_s(self) -> float:
        """How long not to look yet, seconds; asked while there is a flood to look past."""
        now = self._clock()
        if (
            now - self._asked_at > 2 * _SLOWEST_PACE_S
        ):  # there was none: what has come may be gone in a moment
            self._pace.reset()
            self._next_at = now + _PACE_S
        self._asked_at = now
        return max(0.0, self._next_at - now)

    def looked(self) -> None:
        """A look is over; what came of it is yet to be seen."""
        self._asked_at = self._clock()
        self._next_at = self._asked_at + self._pace.next_s()

    def found(self) -> None:
        """A job of a function that is below its share was among what came: there may be more of them."""
        self._pace.reset()
        self._next_at = min(self._next_at, self._clock())
