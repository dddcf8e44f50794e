"""Prevents a function that has reached its concurrency limit from filling the worker with waiting jobs.

Admission lets no function hold more than its concurrency limit (`FUNCTION_MAX_SHARE`). Other functions
benefit only if the worker also receives their messages. In the queue, these may come after many messages of
the limited function. So the worker searches for them:

* A few jobs over the limit wait here, so that the next one can start at once when a job of the function ends.
  They do not stop the worker from receiving more messages.
* Further jobs over the limit are returned to the queue, with a delay. Such a return is not an attempt.
* The search costs requests to SQS, and hides the returned messages from other workers. Therefore the worker
  receives full batches during the search, at growing intervals (`ReceiveThrottle`).
* The delay of a returned message grows with each receipt of the message, from 4 s to 120 s. It is not longer
  than the time for which the function's oldest job in this worker has been here, but at least 1 s.

A burst of short jobs is hardly affected: most of them have run before the worker reaches the messages behind
them. If long jobs of one function keep coming, the worker reaches messages further and further behind them.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from nanoagent.common.backoff import Backoff, pause_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

MAX_WAITING_PER_FUNCTION: Final = 10
"""The most jobs that may wait here because of the limit of one function: one batch of SQS."""

MAX_WAITING: Final = 20
"""The most jobs that may wait here because of the limits of all functions: two batches of SQS."""

_FIRST_DELAY_S: Final = 4.0
_MIN_DELAY_S: Final = 1.0  # SQS counts whole seconds
_MAX_DELAY_S: Final = 120.0
_FIRST_PAUSE_S: Final = 0.5
# Each receive costs about eleven requests: one to receive ten messages, and one to return each of them. The
# worker reaches the message behind a hundred others within 15 s. Against thousands of messages of one
# function, the fair queues of SQS help: they deliver the messages of other functions first.
_MAX_PAUSE_S: Final = 5.0
_PAUSE_FACTOR: Final = 1.25


def count_over_limit(waiting: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Count the waiting jobs that must wait because of their function's limit, by function.

    Args:
        waiting: A pair (function, allowed) for each job that is here and does not run yet. `allowed` is how
            many more jobs of this size the function's limit allows. If a function has several pairs, the
            number of the last pair is used.

    Returns:
        Function → number of jobs, without functions whose number is 0.
    """
    count: dict[str, int] = {}
    allowed: dict[str, int] = {}
    for function, more in waiting:
        count[function] = count.get(function, 0) + 1
        allowed[function] = more
    return {
        function: here - allowed[function] for function, here in count.items() if here > allowed[function]
    }


def exceeds_waiting(over_limit: Mapping[str, int], function: str) -> bool:
    """Whether too many jobs over the limit wait here, so that the function's latest job must be returned.

    Args:
        over_limit: The result of `count_over_limit`.
        function: The function.
    """
    own = over_limit.get(function, 0)
    return own > MAX_WAITING_PER_FUNCTION or (own > 0 and sum(over_limit.values()) > MAX_WAITING)


def has_max_waiting(over_limit: Mapping[str, int]) -> bool:
    """Whether one more job over the limit would be too many, for at least one function."""
    waiting = over_limit.values()
    return max(waiting, default=0) >= MAX_WAITING_PER_FUNCTION or sum(waiting) >= MAX_WAITING


def return_delay_s(receive_count: int, waited_s: float, jitter: float) -> float:
    """Return the delay of a job that is returned because of its function's limit, in seconds.

    Args:
        receive_count: How often its message has been received.
        waited_s: The time since the oldest job of its function that is still here was received, seconds.
        jitter: A random number from 0 to 1; subtracts up to half of the delay.
    """
    longest_s = min(_MAX_DELAY_S, waited_s)
    delay_s = pause_s(receive_count, first_s=_FIRST_DELAY_S, longest_s=longest_s, jitter=jitter)
    return max(delay_s, _MIN_DELAY_S)


class ReceiveThrottle:
    """The intervals at which the worker receives messages while `has_max_waiting`.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._backoff = Backoff(_FIRST_PAUSE_S, _MAX_PAUSE_S, factor=_PAUSE_FACTOR)
        self._asked_at = -math.inf
        self._next_at = 0.0

    def next_pause_s(self) -> float:
        """Return the pause before the next receive, in seconds. Call this only while `has_max_waiting`."""
        now = self._clock()
        # If this was not called for so long, `has_max_waiting` was false in between. A new search begins with
        # the shortest pause, because the waiting jobs may end soon.
        if now - self._asked_at > 2 * _MAX_PAUSE_S:
            self._backoff.reset()
            self._next_at = now + _FIRST_PAUSE_S
        self._asked_at = now
        return max(0.0, self._next_at - now)

    def received(self) -> None:
        """Note a receive. The next pause is longer, unless `found_below_limit` is called."""
        self._asked_at = self._clock()
        self._next_at = self._asked_at + self._backoff.next_s()

    def found_below_limit(self) -> None:
        """Note that a received job is within its function's limit. The next receive is due at once."""
        self._backoff.reset()
        self._next_at = min(self._next_at, self._clock())
