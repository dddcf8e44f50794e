"""Delays after which a message that went back to the queue can be received again, in seconds."""

from __future__ import annotations

from typing import Final

CROWDED_DELAY_S: Final = 15.0
"""A job that found no room comes back then, here or elsewhere."""

_TAKEN_DELAY_MAX_S: Final = 1800.0
_TAKEN_DOUBLINGS: Final = 8
_COUNTED_PAUSE_S: Final = 15.0
_COUNTED_FACTOR: Final = 4.0


def retry_delay_s(failures: int, base_s: float, longest_s: float, jitter: float) -> float:
    """The delay after an attempt that the platform failed.

    It doubles with each failure. The jitter takes away up to half, so that jobs that failed together do not
    come back together ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

    Args:
        failures: How many attempts have failed, at least 1.
        base_s: The delay after the first failure, seconds.
        longest_s: The longest delay, seconds.
        jitter: A random number from 0 to 1.
    """
    delay = min(base_s * 2.0 ** min(failures - 1, 32), longest_s)
    return delay * (1 - jitter / 2)


def taken_delay_s(left_s: float, refusals: int = 1) -> float:
    """The delay of a second message of a request that another worker is working on.

    At first it lasts until the other worker's claim ends, in case that worker has died. It doubles each time
    that the same claim is in the way. Otherwise a run of some hours would use up the receipts of the message
    (maxReceiveCount). The number of receipts does not count here: they may have been for want of room.

    Args:
        left_s: How much longer the other claim lasts, seconds.
        refusals: How often that claim has been in the way, this time included.
    """
    delay = max(left_s, 1.0) * 2.0 ** min(refusals - 1, _TAKEN_DOUBLINGS)
    return max(min(delay, _TAKEN_DELAY_MAX_S), left_s)


def counted_delay_s(failures: int, longest_s: float) -> float:
    """The delay after a return that counts as an attempt.

    With the default settings 15 s, 1, 4 and 15 minutes. Before the fifth ends the job, another worker has had
    time to take it, and an operator to act on `/readyz`.

    Args:
        failures: How many attempts have failed, this one included, at least 1.
        longest_s: RETRY_MAX_SECONDS.
    """
    grown_s = _COUNTED_PAUSE_S * _COUNTED_FACTOR ** min(failures - 1, 16)
    return max(_COUNTED_PAUSE_S, min(grown_s, longest_s))
