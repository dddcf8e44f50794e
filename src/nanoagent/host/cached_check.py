"""A readiness check that looks at the host at most once in an interval."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class CachedCheck(ABC):
    """A readiness check whose answer is used again until the interval ends.

    Args:
        interval_s: The interval, seconds.
        clock: Returns monotonic seconds.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float]) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._checked_at = -math.inf
        self._reason: str | None = None

    def reason_now(self) -> str | Awaitable[str | None] | None:
        """Return the last answer if it is recent; otherwise the coroutine of `not_ready_reason`."""
        return self._reason if self._is_recent() else self.not_ready_reason()

    async def not_ready_reason(self) -> str | None:
        """Return the reason why no jobs may be taken, or None. Checks at most once in an interval."""
        if not self._is_recent():
            self._reason = await self._check()
            self._checked_at = self._clock()
        return self._reason

    def _is_recent(self) -> bool:
        return self._clock() - self._checked_at < self._interval_s

    @abstractmethod
    async def _check(self) -> str | None:
        """Look at the host; return the reason why no jobs may be taken, or None."""
