"""Watches Docker: checks whether it answers, and follows the deaths of containers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.container.policy import ContainerState
from nanoagent.model.errors import ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.container.availability import Availability
    from nanoagent.container.pool_context import PoolContext
    from nanoagent.container.retirement import Retirement

log = structlog.get_logger(__name__)

_EVENTS_RETRY_S: Final = 1.0
_CHECK_EVERY_S: Final = 5.0
_PING_TIMEOUT_S: Final = 10.0  # an answer takes milliseconds, but longer on an overloaded machine


class EngineWatch:
    """Checks every few seconds whether Docker answers, and follows its events.

    While Docker is unavailable, jobs that wait for a container return to the queue. When Docker is available
    again, the pool is refilled and stray containers are removed. `Availability` has the result of the last
    check.

    Args:
        context: The collaborators and the state that the parts of the pool share.
        availability: Gets the result of each check.
        retirement: Retires idle containers that have died.
        refill: Starts the creations that are needed and allowed. Called when Docker is available again.
    """

    def __init__(
        self,
        context: PoolContext,
        availability: Availability,
        retirement: Retirement,
        refill: Callable[[], None],
    ) -> None:
        self._driver = context.driver
        self._inventory = context.inventory
        self._strays = context.strays
        self._waiting = context.waiting
        self._availability = availability
        self._retirement = retirement
        self._refill = refill
        self._check_requested = asyncio.Event()

    # --- whether Docker answers

    async def check_regularly(self) -> None:
        """Check every few seconds, and at once after `check_soon`, until cancelled.

        If Docker answers, remove stray containers.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_EVERY_S):
                    await self._check_requested.wait()
            self._check_requested.clear()
            await self.check()
            if self._availability.engine_problem is None:
                await self._strays.remove()

    def check_soon(self) -> None:
        """Make `check_regularly` check at once."""
        self._check_requested.set()

    async def check(self) -> None:
        """Check whether Docker answers."""
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                await self._driver.ping()
        except ContainerError as exc:
            self._note_failure(str(exc))
        except TimeoutError:
            self._note_failure(f"Docker has not answered for {_PING_TIMEOUT_S:.0f} s")
        else:
            self._note_answer()

    def _note_failure(self, reason: str) -> None:
        self._availability.engine_failed(reason)
        self._waiting.fail_all(self._availability.engine_unavailable)  # another worker may have containers

    def _note_answer(self) -> None:
        if self._availability.engine_problem is None:
            return
        self._strays.suspect()
        self._availability.engine_answered()
        self._refill()

    # --- deaths

    async def follow_events(self) -> None:
        """Follow Docker's events, until cancelled."""
        while True:
            try:
                async for container_id in self._driver.deaths():
                    self._died(container_id)
            except ContainerError as exc:
                log.warning("Docker events interrupted", reason=str(exc))
            self._strays.suspect()
            self.check_soon()
            await asyncio.sleep(_EVENTS_RETRY_S)

    def _died(self, container_id: str) -> None:
        pooled = self._inventory.get(container_id)
        if pooled is None:
            return
        log.warning("container died", container=container_id[:12], runtime=pooled.runtime)
        if pooled.state is ContainerState.IDLE:
            self._retirement.retire(pooled, "died")
        elif pooled.state is ContainerState.BUSY:  # it is retired when its job ends
            self._inventory.note_death(pooled)
