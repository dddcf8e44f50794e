"""The reasons for which a message is returned to the queue, and the rules for repeated returns.

`RULES` has one of four rules for each reason:

* **free**: not an attempt. The cause ends by itself, or another worker can take the job.
* **checked**: not an attempt. A readiness check stops the intake while the cause lasts.
* **counted**: a failed attempt. The worker still takes other jobs, so only the number of attempts limits
  these returns. The delays are 15 s and more, so that another worker can take the job or an operator can
  remove the cause. After MAX_ATTEMPTS the job fails.
* **streak**: not an attempt, because the worker cannot count it: Redis or the worker's own code has failed.
  After several such returns in a row the intake stops (`ReturnStreaks`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from nanoagent.common.circuit_breaker import CircuitBreaker

if TYPE_CHECKING:
    from collections.abc import Callable


class ReturnReason(StrEnum):
    """The reason for a return to the queue; the label `reason` of `worker_jobs_returned_total`."""

    STOPPING = "stopping"
    OVER_SHARE = "over_share"
    NO_ROOM = "no_room"
    CLAIMED_ELSEWHERE = "claimed_elsewhere"
    DUPLICATE = "duplicate"
    LEASE_LOST = "lease_lost"
    CLAIM_LOST = "claim_lost"
    EARLIER_IN_GROUP = "earlier_in_group"
    STORE_UNAVAILABLE = "store_unavailable"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    NO_CONTAINERS = "no_containers"
    NO_CONTAINERS_OF_RUNTIME = "no_containers_of_runtime"
    NO_RUNTIME = "no_runtime"
    RUNTIME_BLOCKED = "runtime_blocked"
    NOT_CLAIMED = "not_claimed"
    NOT_TOLD = "not_told"
    NOT_SETTLED = "not_settled"


class Rule(StrEnum):
    """The treatment of repeated returns; see the docstring of the module."""

    FREE = "free"
    CHECKED = "checked"
    COUNTED = "counted"
    STREAK = "streak"


RULES: Final = {
    ReturnReason.STOPPING: Rule.FREE,  # a worker stops once
    ReturnReason.OVER_SHARE: Rule.FREE,  # other jobs of the function end
    ReturnReason.NO_ROOM: Rule.FREE,  # other jobs end
    ReturnReason.CLAIMED_ELSEWHERE: Rule.FREE,  # the other worker's claim ends; the delays grow
    ReturnReason.DUPLICATE: Rule.FREE,  # the first delivery ends
    ReturnReason.LEASE_LOST: Rule.FREE,  # another worker has the message
    ReturnReason.CLAIM_LOST: Rule.FREE,  # another worker answers the request
    ReturnReason.EARLIER_IN_GROUP: Rule.FREE,  # the rule of the earlier message limits these returns, too
    ReturnReason.STORE_UNAVAILABLE: Rule.CHECKED,  # check `storage`: three failures in a row
    ReturnReason.ENGINE_UNAVAILABLE: Rule.CHECKED,  # check `containers`
    ReturnReason.NO_CONTAINERS: Rule.CHECKED,  # check `containers`: no runtime can get containers
    ReturnReason.NO_CONTAINERS_OF_RUNTIME: Rule.COUNTED,  # other runtimes can get containers
    ReturnReason.NO_RUNTIME: Rule.CHECKED,  # check `guards`: no runtime has passed the self-test
    ReturnReason.RUNTIME_BLOCKED: Rule.COUNTED,  # other runtimes have passed the self-test
    ReturnReason.NOT_CLAIMED: Rule.STREAK,  # the claim on the request could not be made
    ReturnReason.NOT_TOLD: Rule.STREAK,  # the job was given up, but its result could not be published
    ReturnReason.NOT_SETTLED: Rule.STREAK,  # the message could not be settled
}
"""Reason → the rule for repeated returns."""

_MAX_STREAK: Final = 5
_FIRST_STOP_S: Final = 1.0
_MAX_STOP_S: Final = 60.0


def counts(reason: ReturnReason) -> bool:
    """Whether a return for that reason is a failed attempt."""
    return RULES[reason] is Rule.COUNTED


@dataclass(slots=True)
class _Streak:
    """Returns in a row for one reason.

    Attributes:
        breaker: Counts the returns. While the breaker is open, the intake stops.
        detail: The detail of the latest return.
    """

    breaker: CircuitBreaker
    detail: str = ""


class ReturnStreaks:
    """Stops the intake after several returns in a row for the same reason.

    It counts returns with the rule `Rule.STREAK`. After a pause the intake receives one message at a time. If
    such a message is returned for the same reason, the intake stops for twice as long. When the failed
    operation succeeds, the intake continues as usual.

    Args:
        most: How many returns in a row stop the intake.
        clock: Monotonic seconds.
    """

    def __init__(self, most: int = _MAX_STREAK, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._streaks: dict[ReturnReason, _Streak] = {}

    def returned(self, reason: ReturnReason, detail: str) -> None:
        """Count a message that is returned for that reason.

        Args:
            reason: The reason.
            detail: The reason as a sentence, for readiness.
        """
        streak = self._streaks.get(reason)
        if streak is None:
            breaker = CircuitBreaker(self._most, first_s=_FIRST_STOP_S, longest_s=_MAX_STOP_S)
            streak = self._streaks[reason] = _Streak(breaker)
        streak.detail = detail
        streak.breaker.record_failure(detail, self._clock())

    def succeeded(self, reason: ReturnReason) -> None:
        """End the streak of that reason, because the operation that had failed has succeeded."""
        self._streaks.pop(reason, None)

    @property
    def is_on_trial(self) -> bool:
        """Whether the intake may receive only one message at a time, to test whether the cause has ended."""
        return any(streak.breaker.is_open for streak in self._streaks.values())

    def not_ready_reason(self) -> str | None:
        """Return the reason why no messages may be received now, or None."""
        now = self._clock()
        stopped = [
            f"{streak.breaker.failures} messages in a row were returned ({reason}): {streak.detail}"
            for reason, streak in self._streaks.items()
            if streak.breaker.is_pausing(now)
        ]
        return "; ".join(stopped) or None
