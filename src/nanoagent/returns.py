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

if TYPE_CHECKING:
    from collections.abc import Callable


class Why(StrEnum):
    """The reason of a return."""

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
    Why.STOPPING: Rule.FREE,  # a worker stops once
    Why.OVER_SHARE: Rule.FREE,  # the function's own jobs end
    Why.NO_ROOM: Rule.FREE,  # other jobs end
    Why.CLAIMED_ELSEWHERE: Rule.FREE,  # the other worker's claim ends; the pauses grow meanwhile
    Why.DUPLICATE: Rule.FREE,  # the first delivery ends
    Why.LEASE_LOST: Rule.FREE,  # another worker has the message
    Why.CLAIM_LOST: Rule.FREE,  # another worker answers
    Why.EARLIER_IN_GROUP: Rule.FREE,  # the earlier message is counted, or ends
    Why.STORE_UNAVAILABLE: Rule.CHECKED,  # `storage`; throttling passes, and three in a row close it
    Why.ENGINE_UNAVAILABLE: Rule.CHECKED,  # `containers`
    Why.NO_CONTAINERS: Rule.CHECKED,  # `containers`: they cannot be made for any runtime
    Why.NO_CONTAINERS_OF_RUNTIME: Rule.COUNTED,
    Why.NO_RUNTIME: Rule.CHECKED,  # `guards`: all are blocked
    Why.RUNTIME_BLOCKED: Rule.COUNTED,
    Why.NOT_CLAIMED: Rule.STREAK,
    Why.NOT_TOLD: Rule.STREAK,
    Why.NOT_SETTLED: Rule.STREAK,
}

_COUNTED_PAUSE_S: Final = 15.0
_FACTOR: Final = 4.0
_STREAK: Final = 5
_STOP_S: Final = 1.0
_STOP_MAX_S: Final = 60.0


def counts(why: Why) -> bool:
    """Whether a return for that reason is a failed attempt."""
    return RULES[why] is Rule.COUNTED


def counted_delay_s(failures: int, longest_s: float) -> float:
    """How long a job stays away after a counted return.

    With the default settings 15 s, 1, 4 and 15 minutes: a healthy worker beside this one has had time to take
    it, and an operator to act on `/readyz`, before the fifth ends it.

    Args:
        failures: How many attempts have failed, this one included, at least 1.
        longest_s: RETRY_MAX_SECONDS.
    """
    return max(_COUNTED_PAUSE_S, min(_COUNTED_PAUSE_S * _FACTOR ** min(failures - 1, 16), longest_s))


@dataclass(slots=True)
class _Run:
    """Returns in a row for one reason.

    Attributes:
        number: How many.
        detail: The details of the last one.
        stopped_until: Intake stops until then, monotonic seconds.
        pause_s: How long it stops next.
    """

    number: int = 0
    detail: str = ""
    stopped_until: float = 0.0
    pause_s: float = _STOP_S


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
        self._runs: dict[Why, _Run] = {}

    def returned(self, why: Why, detail: str) -> None:
        """A message has gone back."""
        run = self._runs.setdefault(why, _Run())
        run.number += 1
        run.detail = detail
        now = self._clock()
        if run.number >= self._most and now >= run.stopped_until:
            run.stopped_until = now + run.pause_s
            run.pause_s = min(run.pause_s * 2, _STOP_MAX_S)

    def worked(self, why: Why) -> None:
        """The operation that fails for this reason has succeeded."""
        self._runs.pop(why, None)

    @property
    def on_trial(self) -> bool:
        """Whether one message is to be tried before more are taken."""
        return any(run.number >= self._most for run in self._runs.values())

    async def trouble(self) -> str | None:
        """Why no messages should be taken, or None."""
        now = self._clock()
        stopped = [
            f"{run.number} messages in a row went back ({why}): {run.detail}"
            for why, run in self._runs.items()
            if run.number >= self._most and now < run.stopped_until
        ]
        return "; ".join(stopped) or None
