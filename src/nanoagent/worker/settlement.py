"""What happens to a message: the decision, and carrying it out.

`decide` is the only place where an ending becomes an acknowledgement, a return or a dead letter. Which of
them is possible comes from `result.OUTCOMES`; the delays of returns come from `DELAYS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, assert_never

import structlog

from nanoagent.common.bounded_map import BoundedMap
from nanoagent.model import envelopes
from nanoagent.model import result as results
from nanoagent.model.errors import PlatformError
from nanoagent.model.result import ErrorType, Settle
from nanoagent.model.returns import ReturnReason
from nanoagent.worker import retry
from nanoagent.worker.endings import Answered, Exhausted, Failed, Kept, Returned, Unreadable, Untold

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.broker.base import Broker, Delivery
    from nanoagent.config import Settings
    from nanoagent.model.returns import Streak
    from nanoagent.worker.endings import Ending

log = structlog.get_logger(__name__)

_MOST_UNSETTLED: Final = 1024  # messages; their ids are short


# --- the decision


class IfLast(StrEnum):
    """What happens to a message that would not come again if it were returned."""

    DEAD_LETTER = "dead_letter"  # the reason is in the dead-letter queue and in the log
    GIVE_UP = "give_up"  # its sender is told first, under the claim of this attempt
    WITHDRAW = "withdraw"  # its sender is told first, under a claim that has to be taken


@dataclass(frozen=True, slots=True)
class Ack:
    """Delete the message."""


@dataclass(frozen=True, slots=True)
class Nack:
    """Return the message to the queue.

    Attributes:
        delay_s: When it can be received again, seconds from now.
        detail: Why, for the log.
        if_last: What to do if it would not come again.
        is_poison: Whether the redrive policy of the queue is to take it at last, as it is.
    """

    delay_s: float
    detail: str
    if_last: IfLast = IfLast.DEAD_LETTER
    is_poison: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Move the message to the dead-letter queue; without one, delete and log it.

    Attributes:
        reason: Why; an attribute of the message there.
        attempts: How many attempts were made; likewise.
    """

    reason: str
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Tell the sender; what then happens to the message is decided by whether that succeeded."""


Settlement = Ack | Nack | DeadLetter | GiveUp


@dataclass(frozen=True, slots=True)
class Facts:
    """What else the decision depends on.

    Attributes:
        receive_count: How often the message was received, at least 1.
        in_order: Whether it keeps its message group from others while it is hidden.
        redrives: Whether the queue has a redrive policy.
        failures: How many attempts at its request have failed, this one included; None: not known.
        jitter: A random number from 0 to 1.
    """

    receive_count: int
    in_order: bool = False
    redrives: bool = False
    failures: int | None = None
    jitter: float = 0.0


class Delay(StrEnum):
    """The delay of a return, where the ending brings none."""

    NONE = "none"
    CROWDED = "crowded"  # 15 s: other jobs end meanwhile
    CLAIM = "claim"  # SQS_VISIBILITY_SECONDS: the longest that a claim lasts unless it is renewed
    GROWING = "growing"  # with each receipt
    LONGEST = "longest"  # RETRY_MAX_SECONDS


DELAYS: Final = {
    ReturnReason.STOPPING: Delay.NONE,
    ReturnReason.OVER_SHARE: Delay.CROWDED,
    ReturnReason.NO_ROOM: Delay.CROWDED,
    ReturnReason.CLAIMED_ELSEWHERE: Delay.CLAIM,
    ReturnReason.DUPLICATE: Delay.CROWDED,
    ReturnReason.LEASE_LOST: Delay.NONE,  # the queue ignores it
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
    """What happens to the message of a delivery whose work has ended that way."""
    settle = results.OUTCOMES[ending.error_type].settle
    match ending:
        case Answered():
            gave_up = settle is Settle.RETRY  # the platform failed for the last time
            reason = ending.message or ErrorType.PLATFORM
            return DeadLetter(reason, ending.attempts) if gave_up else Ack()
        case Failed() | Exhausted():
            return _after_failure(ending, facts, settings)
        case Returned():
            delay_s = ending.delay_s
            if delay_s is None:
                delay_s = _delay_s(DELAYS[ending.reason], facts, settings)
            return Nack(delay_s, ending.detail, IfLast.WITHDRAW)
        case Kept() | Untold():
            return Nack(settings.retry_max_seconds, ending.detail)
        case Unreadable():
            return _unreadable(ending, facts, settings)
        case _:
            assert_never(ending)


def _unreadable(unreadable: Unreadable, facts: Facts, settings: Settings) -> Nack | DeadLetter:
    if not facts.redrives:
        return DeadLetter(unreadable.problem)
    # While it is hidden it keeps its message group, if it has one, from everyone.
    receipts = 1 if facts.in_order else facts.receive_count
    return Nack(_growing_s(receipts, facts, settings), unreadable.problem, is_poison=True)


def _after_failure(failed: Failed | Exhausted, facts: Facts, settings: Settings) -> Nack | GiveUp:
    if isinstance(failed, Exhausted):
        return GiveUp()
    if facts.failures is not None and facts.failures >= settings.max_attempts:
        return GiveUp()
    # Without Redis nothing was counted. Then the receipts decide the delay, and nothing is given up.
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


# --- carrying it out


class Settler:
    """Carries decisions out. Its callers see to it that nothing interrupts it.

    Args:
        broker: The queue.
        settings: Delays and limits.
        streak: Is told of messages that could not be settled.
        jitter: Random numbers from 0 to 1.
    """

    def __init__(
        self, broker: Broker, settings: Settings, streak: Streak, *, jitter: Callable[[], float]
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._streak = streak
        self._jitter = jitter
        # Message ID → how often an internal error returned it.
        self._unsettled: BoundedMap[str, int] = BoundedMap(_MOST_UNSETTLED)

    def decide(self, delivery: Delivery, ending: Ending, failures: int | None = None) -> Settlement:
        """`settlement.decide` for a delivery."""
        facts = Facts(delivery.receive_count, delivery.in_order, failures=failures, jitter=self._jitter())
        return decide(ending, facts, self._settings)

    async def ack(self, delivery: Delivery) -> None:
        """Delete the message."""
        await self._broker.ack(delivery)

    async def nack(self, delivery: Delivery, nack: Nack) -> bool:
        """Return the message; False when it would not come again, and nothing was done."""
        return await self._broker.nack(delivery, nack.delay_s, poison=nack.is_poison)

    async def nack_or_dead_letter(self, delivery: Delivery, nack: Nack) -> None:
        """Return the message; if it would not come again, the dead-letter queue gets the reason."""
        if not await self._broker.nack(delivery, nack.delay_s, poison=nack.is_poison):
            log.error("dead-lettered without a result", reason=nack.detail, message_id=delivery.message_id)
            await self._broker.dead_letter(delivery, nack.detail)

    async def dead_letter(self, delivery: Delivery, dead_letter: DeadLetter) -> None:
        """Move the message to the dead-letter queue; without one, delete and log it."""
        if not await self._broker.dead_letter(delivery, dead_letter.reason, dead_letter.attempts):
            log.error("given up, and there is no dead-letter queue", body=delivery.body)
            await self._broker.ack(delivery)

    def needs_copy(self, delivery: Delivery) -> bool:
        """Whether a fresh copy has to take the place of the message before it is worked on.

        After the last receipt the queue would move it to the dead-letter queue if this worker died with it,
        and nobody would be told. A message that is received for the first time is not copied: a queue that
        delivers each message only once would have it copied for ever.
        """
        return delivery.receive_count > 1 and self._broker.is_last(delivery)

    async def replace_with_copy(self, delivery: Delivery) -> bool:
        """Have the queue take a fresh copy of the message; False when it takes none."""
        return await self._broker.nack(delivery, 0)

    async def settle_unreadable(self, delivery: Delivery, problem: str) -> None:
        """Settle a message that names no request."""
        if envelope := envelopes.recognised(delivery.body):
            problem = f"{problem} ({envelope})"
        redrives = await self._broker.redrives()
        facts = Facts(delivery.receive_count, delivery.in_order, redrives, jitter=self._jitter())
        settlement = decide(Unreadable(problem), facts, self._settings)
        if isinstance(settlement, Nack):
            say = log.warning if delivery.receive_count == 1 else log.info  # it comes again, unchanged
            say("unreadable message left to the redrive policy", problem=problem)
            await self._broker.nack(delivery, settlement.delay_s, poison=settlement.is_poison)
        elif await self._broker.dead_letter(delivery, problem):
            log.warning("unreadable message moved to the dead-letter queue", problem=problem)
        else:
            log.error("unreadable message dropped: no dead-letter queue", problem=problem, body=delivery.body)
            await self._broker.ack(delivery)

    # --- errors while settling

    def note_settled(self, delivery: Delivery) -> None:
        """The delivery was settled without an error."""
        self._streak.worked(ReturnReason.NOT_SETTLED)
        self._unsettled.pop(delivery.message_id, None)

    async def return_unsettled(self, delivery: Delivery, exc: Exception) -> None:
        """Return a message that could not be settled; dead-letter it if that happens each time.

        If a service failed, the message is not the cause. It may be the cause of an internal error: then it
        is not copied after its last receipt, and is dead-lettered after MAX_ATTEMPTS here.
        """
        log.error("internal error", operation="settle a message", exc_info=exc)
        reason = f"it could not be settled: {type(exc).__name__}"
        self._streak.returned(ReturnReason.NOT_SETTLED, reason)
        nack = self.decide(delivery, Returned(ReturnReason.NOT_SETTLED, reason))
        assert isinstance(nack, Nack)  # noqa: S101 - a return is one
        if isinstance(exc, PlatformError):
            await self.nack_or_dead_letter(delivery, nack)
        elif self._count_unsettled(delivery) < self._settings.max_attempts:
            await self._broker.nack(delivery, nack.delay_s, poison=True)
        else:
            await self.dead_letter(delivery, DeadLetter(reason, self._settings.max_attempts))

    def _count_unsettled(self, delivery: Delivery) -> int:
        times = self._unsettled.get(delivery.message_id, 0) + 1
        self._unsettled[delivery.message_id] = times
        return times
