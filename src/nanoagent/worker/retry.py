"""The delays of messages that are returned to the queue, in seconds. Pure functions."""

from __future__ import annotations

from typing import Final

from nanoagent.common.backoff import pause_s

CROWDED_DELAY_S: Final = 15.0
"""The delay of a job that this worker has no room for, or cannot run now."""

_TAKEN_DELAY_MAX_S: Final = 1800.0
_TAKEN_GROWTH_MAX: Final = 256.0
_COUNTED_PAUSE_S: Final = 15.0
_COUNTED_FACTOR: Final = 4.0


def retry_delay_s(failures: int, base_s: float, longest_s: float, jitter: float) -> float:
    """Return the delay after an attempt that failed because of the platform.

    The delay doubles with each failure. The jitter spreads the retries of jobs that failed together.

    Args:
        failures: How many attempts have failed, at least 1.
        base_s: The delay after the first failure, seconds.
        longest_s: The longest delay, seconds.
        jitter: A random number from 0 to 1.
    """
    return pause_s(failures, first_s=base_s, longest_s=longest_s, jitter=jitter)


def taken_delay_s(left_s: float, refusals: int = 1) -> float:
    """Return the delay of a message whose request another worker is working on.

    The first delay lasts until the other worker's claim ends, in case that worker has died. The delay doubles
    each time that a worker is refused because of the same claim. With a constant delay, the message would
    be received too often during a run of some hours, up to maxReceiveCount. The receipt count is not used:
    the message may have been received before for other reasons, such as lack of room.

    Args:
        left_s: The time until the other claim ends, seconds.
        refusals: How often a worker was refused because of that claim, this time included.
    """
    first_s = max(left_s, 1.0)
    longest_s = min(first_s * _TAKEN_GROWTH_MAX, _TAKEN_DELAY_MAX_S)
    return max(pause_s(refusals, first_s=first_s, longest_s=longest_s), left_s)


def counted_delay_s(failures: int, longest_s: float) -> float:
    """Return the delay after a return that counts as an attempt.

    With the default settings it is 15 s, then 1, 4 and 5 minutes. After the fifth return the job fails.
    Until then another worker has had time to take the job, and an operator has had time to react to
    `/readyz`.

    Args:
        failures: How many attempts have failed, this one included, at least 1.
        longest_s: RETRY_MAX_SECONDS.
    """
    longest_s = max(longest_s, _COUNTED_PAUSE_S)
    return pause_s(failures, first_s=_COUNTED_PAUSE_S, longest_s=longest_s, factor=_COUNTED_FACTOR)
