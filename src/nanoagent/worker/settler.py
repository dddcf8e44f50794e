"""Carries out the decision about a message: calls the queue, and logs the calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.common.bounded_map import BoundedMap
from nanoagent.model import envelopes, message
from nanoagent.model.errors import PlatformError
from nanoagent.model.returns import ReturnReason
from nanoagent.worker.endings import Returned, Unreadable
from nanoagent.worker.settlement import DeadLetter, Facts, Nack, decide

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.broker.base import Broker, Delivery
    from nanoagent.config import Settings
    from nanoagent.model.returns import ReturnStreaks
    from nanoagent.worker.endings import Ending
    from nanoagent.worker.settlement import Settlement

log = structlog.get_logger(__name__)

_MAX_UNSETTLED: Final = 1024  # message IDs, which are short


class Settler:
    """Settles messages. Its callers protect each call from cancellation.

    Args:
        broker: The queue.
        settings: Delays and limits.
        streaks: Counts messages that could not be settled.
        jitter: Random numbers from 0 to 1.
    """

    def __init__(
        self, broker: Broker, settings: Settings, streaks: ReturnStreaks, *, jitter: Callable[[], float]
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._streaks = streaks
        self._jitter = jitter
        # Message ID → how often an internal error returned it.
        self._unsettled: BoundedMap[str, int] = BoundedMap(_MAX_UNSETTLED)

    def decide(self, delivery: Delivery, ending: Ending, failures: int | None = None) -> Settlement:
        """Return the decision of `settlement.decide` for a delivery.

        Args:
            delivery: The delivery.
            ending: How the work on it has ended.
            failures: How many attempts at its request have failed; None: unknown.
        """
        facts = Facts(delivery.receive_count, delivery.in_order, failures=failures, jitter=self._jitter())
        return decide(ending, facts, self._settings)

    async def ack(self, delivery: Delivery) -> None:
        """Delete the message."""
        await self._broker.ack(delivery)

    async def nack(self, delivery: Delivery, nack: Nack) -> bool:
        """Return the message to the queue.

        Returns:
            False if the queue would not deliver the message again. Then the message is not returned.
        """
        return await self._broker.nack(delivery, nack.delay_s, poison=nack.is_poison)

    async def nack_or_dead_letter(self, delivery: Delivery, nack: Nack) -> None:
        """Return the message; if the queue would not deliver it again, dead-letter it with the reason."""
        if not await self._broker.nack(delivery, nack.delay_s, poison=nack.is_poison):
            log.error("dead-lettered without a result", reason=nack.detail, message_id=delivery.message_id)
            await self._broker.dead_letter(delivery, nack.detail)

    async def dead_letter(self, delivery: Delivery, dead_letter: DeadLetter) -> None:
        """Move the message to the dead-letter queue. If there is none, log the message and delete it."""
        if not await self._broker.dead_letter(delivery, dead_letter.reason, dead_letter.attempts):
            log.error("message dropped: no dead-letter queue", body=message.for_log(delivery.body))
            await self._broker.ack(delivery)

    def needs_copy(self, delivery: Delivery) -> bool:
        """Whether a fresh copy must replace the message before its job is worked on.

        A copy is needed if this is the last receipt that the redrive policy allows. If the worker died during
        the job, the queue would move the message to the dead-letter queue, and no result would be published.
        A message that is received for the first time is not copied. In a queue that allows only one receipt,
        each copy would otherwise be copied again, without end.
        """
        return delivery.receive_count > 1 and self._broker.is_last(delivery)

    async def replace_with_copy(self, delivery: Delivery) -> bool:
        """Replace the message with a fresh copy, which can be received at once.

        Returns:
            False if the queue takes no copy. Then the delivery is not settled.
        """
        return await self._broker.nack(delivery, 0)

    async def settle_unreadable(self, delivery: Delivery, problem: str) -> None:
        """Settle a message without a readable requestId.

        Args:
            delivery: The delivery.
            problem: The fault of the message, for the log and the dead-letter queue.
        """
        if envelope := envelopes.recognise(delivery.body):
            problem = f"{problem} ({envelope})"
        redrives = await self._broker.redrives()
        facts = Facts(delivery.receive_count, delivery.in_order, redrives, jitter=self._jitter())
        settlement = decide(Unreadable(problem), facts, self._settings)
        if isinstance(settlement, Nack):
            # The queue delivers it several times. One warning is enough.
            level = log.warning if delivery.receive_count == 1 else log.info
            level("unreadable message left to the redrive policy", problem=problem)
            await self._broker.nack(delivery, settlement.delay_s, poison=settlement.is_poison)
        elif await self._broker.dead_letter(delivery, problem):
            log.warning("unreadable message moved to the dead-letter queue", problem=problem)
        else:
            log.error(
                "unreadable message dropped: no dead-letter queue",
                problem=problem,
                body=message.for_log(delivery.body),
            )
            await self._broker.ack(delivery)

    # --- errors while settling

    def note_settled(self, delivery: Delivery) -> None:
        """Note that the delivery was settled without an error."""
        self._streaks.succeeded(ReturnReason.NOT_SETTLED)
        self._unsettled.pop(delivery.message_id, None)

    async def return_unsettled(self, delivery: Delivery, exc: Exception) -> None:
        """Return a message whose settlement failed.

        A `PlatformError` is the failure of a service, and the message is not the cause. Any other error may
        be caused by the message. Therefore such a message is not copied after its last receipt, and it is
        dead-lettered after MAX_ATTEMPTS such errors in this worker.

        Args:
            delivery: The delivery.
            exc: The error.
        """
        log.error("internal error", operation="settle a message", exc_info=exc)
        reason = f"it could not be settled: {type(exc).__name__}"
        self._streaks.returned(ReturnReason.NOT_SETTLED, reason)
        nack = self.decide(delivery, Returned(ReturnReason.NOT_SETTLED, reason))
        assert isinstance(nack, Nack)  # noqa: S101 - `decide` returns a Nack for a Returned
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
