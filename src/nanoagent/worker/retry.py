"""Delays after which a message that went back to the queue can be received again, in seconds."""

from __future__ import annotations

from typing import Final

from nanoagent.common.backoff import pause_s

CROWDED_DELAY_S: Final = 15.0
"""A job that found no room comes back then, here or elsewhere."""

_TAKEN_DELAY_MAX_S: Final = 1800.0
_TAKEN_GROWTH_MAX: Final = 256.0
_COUNTED_PAUSE_S: Final = 15.0
_COUNTED_FACTOR: Final = 4.0


def retry_delay_s(failures: int, base_s: float, longest_s: float, jitter: float) -> float:
    """The delay after an attempt that the platform failed.

    It doubles with each failure. The jitter keeps jobs that failed together from coming back together.

    Args:
        failures: How many attempts have failed, at least 1.
        base_s: The delay after the first failure, seconds.
        longest_s: The longest delay, seconds.
        jitter: A random number from 0 to 1.
    """
    return pause_s(failures, first_s=base_s, longest_s=longest_s, jitter=jitter)


def taken_delay_s(left_s: float, refusals: int = 1) -> float:
    """The delay of a second message of a request that another worker is working on.

    At first it lasts until the other worker's claim ends, in case that worker has died. It doubles each time
    that the same claim is in the way. Otherwise a run of some hours would use up the receipts of the message
    (maxReceiveCount). The number of receipts does not count here: they may have been for want of room.

    Args:
        left_s: How much longer the other claim lasts, seconds.
        refusals: How often that claim has been in the way, this time included.
    """
    first_s = max(left_s, 1.0)
    longest_s = min(first_s * _TAKEN_GROWTH_MAX, _TAKEN_DELAY_MAX_S)
    return max(pause_s(refusals, first_s=first_s, longest_s=longest_s), left_s)


def counted_delay_s(failures: int, longest_s: float) -> float:
    """The delay after a return that counts as an attempt.

    With the default settings 15 s, 1, 4 and 15 minutes. Before the fifth ends the job, another worker has had
    time to take it, and an operator to act on `/readyz`.

    Args:
        failures: How many attempts have failed, this one included, at least 1.
        longest_s: RETRY_MAX_SECONDS.
    """
    longest_s = max(longest_s, _COUNTED_PAUSE_S)
    return pause_s(failures, first_s=_COUNTED_PAUSE_S, longest_s=longest_s, factor=_COUNTED_FACTOR)
