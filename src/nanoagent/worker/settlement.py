"""The decision about the message of a delivery: acknowledge, return, dead-letter, or give up the job.

Only `decide` makes this decision, from the ending. If the request has a result, it also reads the column
`settle` of `result.OUTCOMES`. The delays of returns come from `DELAYS`. `settler` carries the decision out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, assert_never

from nanoagent.model import result as results
from nanoagent.model.result import ErrorType, Settle
from nanoagent.model.returns import ReturnReason
from nanoagent.worker import retry
from nanoagent.worker.endings import Answered, Exhausted, Failed, Returned, Spooled, Unpublished, Unreadable

if TYPE_CHECKING:
    from nanoagent.config import Settings
    from nanoagent.worker.endings import Ending


class IfLast(StrEnum):
    """The treatment of a message that the queue would not deliver again after a return."""

    DEAD_LETTER = "dead_letter"  # with the reason, which is also logged
    GIVE_UP = "give_up"  # publish a failed result first, under the claim of this attempt
    CLAIM_AND_GIVE_UP = "claim_and_give_up"  # claim the request and publish a failed result first


@dataclass(frozen=True, slots=True)
class Ack:
    """Delete the message."""


@dataclass(frozen=True, slots=True)
class Nack:
    """Return the message to the queue.

    Attributes:
        delay_s: The delay until it can be received again, seconds.
        detail: The reason as a sentence, for the log.
        if_last: What to do if the queue would not deliver it again.
        is_poison: Whether the redrive policy of the queue may move it to the dead-letter queue unchanged.
    """

    delay_s: float
    detail: str
    if_last: IfLast = IfLast.DEAD_LETTER
    is_poison: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Move the message to the dead-letter queue. If there is no such queue, log the message and delete it.

    Attributes:
        reason: The reason as a sentence; an attribute of the message in the dead-letter queue.
        attempts: How many attempts were made; another attribute.
    """

    reason: str
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Publish a failed result. Whether that succeeds decides what happens to the message."""


Settlement = Ack | Nack | DeadLetter | GiveUp


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about a delivery on which the decision depends, besides the ending.

    Attributes:
        receive_count: How often the message was received, at least 1.
        in_order: Whether the message blocks later messages of its group while it is hidden (FIFO queue).
        redrives: Whether the queue has a redrive policy.
        failures: How many attempts at its request have failed, this one included; None: unknown.
        jitter: A random number from 0 to 1.
    """

    receive_count: int
    in_order: bool = False
    redrives: bool = False
    failures: int | None = None
    jitter: float = 0.0


class Delay(StrEnum):
    """The delay of a return, if its ending has no delay (`Returned.delay_s` is None)."""

    NONE = "none"
    CROWDED = "crowded"  # `retry.CROWDED_DELAY_S`
    CLAIM = "claim"  # SQS_VISIBILITY_SECONDS: the longest time that a claim lasts without renewal
    GROWING = "growing"  # grows with each receipt, up to RETRY_MAX_SECONDS
    LONGEST = "longest"  # RETRY_MAX_SECONDS


DELAYS: Final = {
    ReturnReason.STOPPING: Delay.NONE,
    ReturnReason.OVER_SHARE: Delay.CROWDED,
    ReturnReason.NO_ROOM: Delay.CROWDED,
    ReturnReason.CLAIMED_ELSEWHERE: Delay.CLAIM,
    ReturnReason.DUPLICATE: Delay.CROWDED,
    ReturnReason.LEASE_LOST: Delay.NONE,  # the queue ignores this return
    ReturnReason.CLAIM_LOST: Delay.CLAIM,  # the other worker may have another message of the request
    ReturnReason.EARLIER_IN_GROUP: Delay.NONE,
    ReturnReason.STORE_UNAVAILABLE: Delay.CROWDED,
    ReturnReason.ENGINE_UNAVAILABLE: Delay.CROWDED,
    ReturnReason.NO_CONTAINERS: Delay.CROWDED,
    ReturnReason.NO_CONTAINERS_OF_RUNTIME: Delay.CROWDED,
    ReturnReason.NO_RUNTIME: Delay.CROWDED,
    ReturnReason.RUNTIME_BLOCKED: Delay.CROWDED,
    ReturnReason.NOT_CLAIMED: Delay.GROWING,
    ReturnReason.NOT_TOLD: Delay.LONGEST,
    ReturnReason.NOT_SETTLED: Delay.GROWING,
}


def decide(ending: Ending, facts: Facts, settings: Settings) -> Settlement:
    """Decide what happens to the message of a delivery whose work has ended."""
    settle = results.OUTCOMES[ending.error_type].settle
    match ending:
        case Answered():
            was_given_up = settle is Settle.RETRY  # the platform failed in the last attempt
            reason = ending.message or ErrorType.PLATFORM
            return DeadLetter(reason, ending.attempts) if was_given_up else Ack()
        case Failed() | Exhausted():
            return _after_failure(ending, facts, settings)
        case Returned():
            delay_s = ending.delay_s
            if delay_s is None:
                delay_s = _delay_s(DELAYS[ending.reason], facts, settings)
            return Nack(delay_s, ending.detail, IfLast.CLAIM_AND_GIVE_UP)
        case Spooled() | Unpublished():
            return Nack(settings.retry_max_seconds, ending.detail)
        case Unreadable():
            return _unreadable(ending, facts, settings)
        case _:
            assert_never(ending)


def _unreadable(unreadable: Unreadable, facts: Facts, settings: Settings) -> Nack | DeadLetter:
    if not facts.redrives:
        return DeadLetter(unreadable.problem)
    # While a message in order is hidden, no worker receives its message group: its delay must not grow.
    receipts = 1 if facts.in_order else facts.receive_count
    return Nack(_growing_s(receipts, facts, settings), unreadable.problem, is_poison=True)


def _after_failure(failed: Failed | Exhausted, facts: Facts, settings: Settings) -> Nack | GiveUp:
    if isinstance(failed, Exhausted):
        return GiveUp()
    if facts.failures is not None and facts.failures >= settings.max_attempts:
        return GiveUp()
    # If Redis failed, the number of failures is unknown. Then the receipts decide the delay, and the job is
    # not given up.
    failures = facts.failures or facts.receive_count
    delay_s = _growing_s(failures, facts, settings)
    if failed.reason is not None:
        delay_s = retry.counted_delay_s(failures, settings.retry_max_seconds)
    return Nack(delay_s, failed.detail, IfLast.GIVE_UP)


def _delay_s(delay: Delay, facts: Facts, settings: Settings) -> float:
    match delay:
        case Delay.NONE:
            return 0.0
        case Delay.CROWDED:
            return retry.CROWDED_DELAY_S
        case Delay.CLAIM:
            return retry.taken_delay_s(settings.sqs_visibility_seconds)
        case Delay.GROWING:
            return _growing_s(facts.receive_count, facts, settings)
        case Delay.LONGEST:
            return settings.retry_max_seconds


def _growing_s(failures: int, facts: Facts, settings: Settings) -> float:
    return retry.retry_delay_s(
        failures, settings.retry_base_seconds, settings.retry_max_seconds, facts.jitter
    )
