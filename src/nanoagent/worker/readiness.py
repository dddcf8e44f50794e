"""Why no jobs are taken: a check for each part without which a job could not be finished.

The checks are looked at before every long poll, and every second besides: readiness and metrics tell of an
outage also while a poll lasts, and while there is no room for jobs. All are looked at each time, at once, so
that one that hangs hides no other, and none for longer than `LOOK_MAX_S`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from inspect import isawaitable
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.model.errors import PlatformError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from nanoagent.telemetry.status import Health

LOOK_MAX_S: Final = 10.0
"""What cannot be looked at within so many seconds is not well."""

_EVERY_S: Final = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReadinessCheck:
    """One part's word on whether jobs may be taken.

    Attributes:
        part: Its name in readiness and metrics; one of the code's constants.
        look: Why a job that is taken now could not be finished, as far as the part is concerned, or None. A
            `PlatformError` says the same. A part that has to wait for its answer is a coroutine function.
        tells_itself: The part says more to `Health` than what closes the check; the check leaves that alone.
    """

    part: str
    look: Callable[[], str | Awaitable[str | None] | None]
    tells_itself: bool = False


class ReadinessChecks:
    """All checks of a worker.

    Args:
        checks: Whom to ask.
        health: Is told of every part.
        clock: Monotonic seconds.
    """

    def __init__(
        self, checks: Iterable[ReadinessCheck], health: Health, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._checks = tuple(checks)
        self._health = health
        self._clock = clock
        self._closed: dict[str, str] = {}
        self._closed_at = 0.0
        self._looking: asyncio.Task[str | None] | None = None

    async def reason(self) -> str | None:
        """Look at every check: why no job may be taken now, or None. A look that is under way is shared."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(self._looking)

    async def watch(self) -> None:
        """Look every second, for good."""
        try:
            while True:
                await self.reason()
                await asyncio.sleep(_EVERY_S)
        finally:
            if self._looking is not None:
                self._looking.cancel()

    async def _look(self) -> str | None:
        answers = [_ask(check) for check in self._checks]
        # Most answer at once. A task for each of them would cost more than all of them do.
        waiting = [answer for answer in answers if isawaitable(answer)]
        waited_for = iter(await asyncio.gather(*waiting) if waiting else ())
        reasons = [next(waited_for) if isawaitable(answer) else answer for answer in answers]
        for check, reason in zip(self._checks, reasons, strict=True):
            if not check.tells_itself:
                self._health.set(check.part, ok=reason is None, reason=reason or "")
        found = zip(self._checks, reasons, strict=True)
        closed = {check.part: reason for check, reason in found if reason is not None}
        self._tell(closed)
        return "; ".join(closed.values()) or None

    def _tell(self, closed: dict[str, str]) -> None:
        """The log says it once: when it begins, when the parts change, when it is over."""
        if closed.keys() != self._closed.keys():
            if not self._closed:
                self._closed_at = self._clock()
            if closed:
                log.warning("not taking jobs", parts=sorted(closed), reason="; ".join(closed.values()))
            else:
                log.info("taking jobs again", after_s=round(self._clock() - self._closed_at, 1))
        self._closed = closed


def _ask(check: ReadinessCheck) -> str | Awaitable[str | None] | None:
    try:
        answer = check.look()
    except Exception as exc:  # noqa: BLE001 - an internal error is logged there
        return _reason_of(check, exc)
    return _wait(check, answer) if isawaitable(answer) else answer


async def _wait(check: ReadinessCheck, answer: Awaitable[str | None]) -> str | None:
    try:
        async with asyncio.timeout(LOOK_MAX_S):
            return await answer
    except Exception as exc:  # noqa: BLE001 - an internal error is logged there
        return _reason_of(check, exc)


def _reason_of(check: ReadinessCheck, exc: Exception) -> str:
    if isinstance(exc, PlatformError):
        return str(exc)
    if isinstance(exc, TimeoutError):
        return f"{check.part}: could not be looked at within {LOOK_MAX_S:g} s"
    log.error("internal error", operation="readiness check", part=check.part, exc_info=exc)
    return f"{check.part}: an error inside the worker: {type(exc).__name__}"
