"""The receive loop: takes no more messages than there is room to run."""

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
    from nanoagent.model.returns import Streak
    from nanoagent.worker.capacity import Capacity
    from nanoagent.worker.lifecycle import Lifecycle
    from nanoagent.worker.parts import WorkerParts
    from nanoagent.worker.readiness import ReadinessChecks

log = structlog.get_logger(__name__)

_RETRY_S: Final = 1.0
_RETRY_MAX_S: Final = 30.0
_NOT_READY_PAUSE_S: Final = 1.0


class Intake:
    """Receives messages until the worker stops.

    Args:
        parts: The queue, and who is told whether it answers.
        capacity: Says how many.
        checks: Say whether the worker is ready.
        streak: Says whether one message is to be tried before others.
        lifecycle: Says when to stop.
        jitter: Random numbers from 0 to 1.
    """

    def __init__(
        self,
        parts: WorkerParts,
        capacity: Capacity,
        checks: ReadinessChecks,
        streak: Streak,
        lifecycle: Lifecycle,
        *,
        jitter: Callable[[], float],
    ) -> None:
        self._broker = parts.broker
        self._health = parts.health
        self._capacity = capacity
        self._checks = checks
        self._streak = streak
        self._lifecycle = lifecycle
        self._jitter = jitter
        self._backoff = Backoff(_RETRY_S, _RETRY_MAX_S)

    async def run(self, take: Callable[[Delivery], None]) -> None:
        """Receive until stopped, and hand each delivery to `take`.

        The last long poll is not cut short: its messages would be stranded.
        """
        try:
            while not self._lifecycle.stopping.is_set():
                for delivery in await self._next():
                    take(delivery)
        except asyncio.CancelledError:
            if not self._lifecycle.forced.is_set():
                raise

    async def _next(self) -> list[Delivery]:
        """The next messages; none when it was not the time for a request."""
        changed = self._lifecycle.capacity_changed
        changed.clear()
        room = self._capacity.room()
        if not room:
            await changed.wait()
            return []
        passes_waiting = self._capacity.is_full_of_jobs_over_limit()
        if passes_waiting and (early_s := self._capacity.throttle.next_pause_s()):
            await _wait(changed, early_s)
            return []
        if await self._checks.reason() is not None:
            await self._pause(_NOT_READY_PAUSE_S)
            return []
        if self._lifecycle.stopping.is_set():  # meanwhile: a long poll begun now would only delay the drain
            return []
        limit = MAX_BATCH if passes_waiting else room
        deliveries = await self._receive(1 if self._streak.on_trial else limit)
        if deliveries is not None and passes_waiting:
            self._capacity.throttle.received()
        return deliveries or []

    async def _receive(self, limit: int) -> list[Delivery] | None:
        """Ask the queue; None after a pause when it failed."""
        try:
            deliveries = await self._broker.receive(limit)
        except Exception as exc:
            if not isinstance(exc, BrokerError):  # intake must not end for one bad answer
                log.exception("internal error", operation="receive messages")
            # Workers that lost the queue together do not come back together.
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
    """Wait for the event, so long at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
