"""Reasons for the return of a message to the queue, and rules that bound returns for the same reason.

`RULES` decides, by the reason alone:

* **free**: no attempt, because the reason ends by itself or another worker can have the job.
* **checked**: no attempt, because a readiness check stops the intake while the reason lasts.
* **counted**: intake goes on for other jobs, so each return of this one counts as a failed attempt. Pauses of
  15 s and more lie in between, so that another worker can take it or an operator can correct the cause. At
  MAX_ATTEMPTS the job fails.
* **streak**: nothing can be counted for the job, because Redis refuses that, or because of an
  internal error. After several such returns in a row the intake stops (`Streak`).
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
    """Why a message goes back to the queue. The label `reason` of a metric."""

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
    """How repeated returns are treated; see the module."""

    FREE = "free"
    CHECKED = "checked"
    COUNTED = "counted"
    STREAK = "streak"


RULES: Final = {
    ReturnReason.STOPPING: Rule.FREE,  # a worker stops once
    ReturnReason.OVER_SHARE: Rule.FREE,  # the function's own jobs end
    ReturnReason.NO_ROOM: Rule.FREE,  # other jobs end
    ReturnReason.CLAIMED_ELSEWHERE: Rule.FREE,  # the other worker's claim ends; the pauses grow meanwhile
    ReturnReason.DUPLICATE: Rule.FREE,  # the first delivery ends
    ReturnReason.LEASE_LOST: Rule.FREE,  # another worker has the message
    ReturnReason.CLAIM_LOST: Rule.FREE,  # another worker answers
    ReturnReason.EARLIER_IN_GROUP: Rule.FREE,  # the earlier message is counted, or ends
    ReturnReason.STORE_UNAVAILABLE: Rule.CHECKED,  # `storage`; throttling passes, and three in a row close it
    ReturnReason.ENGINE_UNAVAILABLE: Rule.CHECKED,  # `containers`
    ReturnReason.NO_CONTAINERS: Rule.CHECKED,  # `containers`: they cannot be made for any runtime
    ReturnReason.NO_CONTAINERS_OF_RUNTIME: Rule.COUNTED,
    ReturnReason.NO_RUNTIME: Rule.CHECKED,  # `guards`: all are blocked
    ReturnReason.RUNTIME_BLOCKED: Rule.COUNTED,
    ReturnReason.NOT_CLAIMED: Rule.STREAK,
    ReturnReason.NOT_TOLD: Rule.STREAK,
    ReturnReason.NOT_SETTLED: Rule.STREAK,
}

_STREAK: Final = 5
_STOP_S: Final = 1.0
_STOP_MAX_S: Final = 60.0


def counts(reason: ReturnReason) -> bool:
    """Whether a return for that reason is a failed attempt."""
    return RULES[reason] is Rule.COUNTED


@dataclass(slots=True)
class _Run:
    """Returns in a row for one reason.

    Attributes:
        breaker: Counts them, and stops the intake while it is open.
        detail: The details of the last one.
    """

    breaker: CircuitBreaker
    detail: str = ""


class Streak:
    """Stops the intake after returns in a row that cannot be counted for their jobs.

    After a pause intake goes on with one message. If it goes back for the same reason, intake stops for twice
    as long. Otherwise intake goes on as usual.

    Args:
        most: How many in a row stop the intake.
        clock: Monotonic seconds.
    """

    def __init__(self, most: int = _STREAK, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._runs: dict[ReturnReason, _Run] = {}

    def returned(self, reason: ReturnReason, detail: str) -> None:
        """A message has gone back."""
        run = self._runs.get(reason)
        if run is None:
            breaker = CircuitBreaker(self._most, first_s=_STOP_S, longest_s=_STOP_MAX_S)
            run = self._runs[reason] = _Run(breaker)
        run.detail = detail
        run.breaker.failed(detail, self._clock())

    def worked(self, reason: ReturnReason) -> None:
        """The operation that fails for this reason has succeeded."""
        self._runs.pop(reason, None)

    @property
    def on_trial(self) -> bool:
        """Whether one message is to be tried before more are taken."""
        return any(run.breaker.is_broken for run in self._runs.values())

    def not_ready_reason(self) -> str | None:
        """Why no messages should be taken, or None."""
        now = self._clock()
        stopped = [
            f"{run.breaker.failures} messages in a row went back ({reason}): {run.detail}"
            for reason, run in self._runs.items()
            if run.breaker.is_open(now)
        ]
        return "; ".join(stopped) or None
