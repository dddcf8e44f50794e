"""Receives messages, at most as many as the worker has room for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.common.backoff import Backoff
from nanoagent.model.errors import BrokerError
from nanoagent.worker.capacity import MAX_BATCH

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.broker.base import Delivery
    from nanoagent.model.returns import ReturnStreaks
    from nanoagent.worker.capacity import Capacity
    from nanoagent.worker.lifecycle import Lifecycle
    from nanoagent.worker.parts import WorkerParts
    from nanoagent.worker.readiness import ReadinessChecks

log = structlog.get_logger(__name__)

_RETRY_S: Final = 1.0
_RETRY_MAX_S: Final = 30.0
_NOT_READY_PAUSE_S: Final = 1.0


class Intake:
    """Receives messages when the worker is ready and has room.

    Args:
        parts: The queue, and the health to which its state is reported.
        capacity: Decides how many messages may be received.
        checks: The readiness checks.
        streaks: The returns in a row. After too many, only one message is received at a time.
        lifecycle: Says when the worker stops, and when its capacity changes.
        jitter: Random numbers from 0 to 1.
    """

    def __init__(
        self,
        parts: WorkerParts,
        capacity: Capacity,
        checks: ReadinessChecks,
        streaks: ReturnStreaks,
        lifecycle: Lifecycle,
        *,
        jitter: Callable[[], float],
    ) -> None:
        self._broker = parts.broker
        self._health = parts.health
        self._capacity = capacity
        self._checks = checks
        self._streaks = streaks
        self._lifecycle = lifecycle
        self._jitter = jitter
        self._backoff = Backoff(_RETRY_S, _RETRY_MAX_S)

    async def next(self) -> list[Delivery]:
        """Receive the next messages.

        Returns:
            The deliveries. The list is empty if no message came. It is also empty if the worker had no room
            or was not ready, or if the queue failed; in these cases this method has waited first.
        """
        changed = self._lifecycle.capacity_changed
        changed.clear()
        room = self._capacity.room()
        if not room:
            await changed.wait()
            return []
        # If enough jobs over a function's limit wait here, the worker searches for jobs of other functions.
        # It receives full batches, at growing intervals, and returns further jobs over the limit. `fairness`
        # describes the search.
        is_searching = self._capacity.has_max_waiting_over_limit()
        if is_searching and (pause_s := self._capacity.throttle.next_pause_s()):
            await _wait(changed, pause_s)
            return []
        if await self._checks.reason() is not None:
            await self._pause(_NOT_READY_PAUSE_S)
            return []
        if self._lifecycle.stopping.is_set():  # set during the checks: a long poll would only delay the drain
            return []
        limit = MAX_BATCH if is_searching else room
        deliveries = await self._receive(1 if self._streaks.is_on_trial else limit)
        if deliveries is not None and is_searching:
            self._capacity.throttle.received()
        return deliveries or []

    async def _receive(self, limit: int) -> list[Delivery] | None:
        """Receive up to `limit` messages; None after an error and a pause."""
        try:
            deliveries = await self._broker.receive(limit)
        except Exception as exc:
            if not isinstance(exc, BrokerError):  # an internal error must not end the intake
                log.exception("internal error", operation="receive messages")
            # The jitter spreads the retries of workers that lost the queue together.
            pause_s = self._backoff.next_s(self._jitter())
            log.warning("queue not readable", reason=str(exc), pause_s=round(pause_s, 2))
            self._health.set("queue", ok=False, reason=str(exc))
            await self._pause(pause_s)
            return None
        self._backoff.reset()
        self._health.set("queue", ok=True)
        return deliveries

    async def _pause(self, seconds: float) -> None:
        await _wait(self._lifecycle.stopping, seconds)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, for at most `seconds`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
