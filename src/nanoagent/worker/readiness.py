"""The readiness checks: the worker takes jobs only while all of them pass.

There is one check for each part that a job needs. All of them run before each long poll and once a second,
so that `/readyz` and the metrics show an outage also during a poll. They run at the same time. A check
that takes longer than `CHECK_MAX_S` fails.

Most checks read only values in memory. These checks are plain functions, because a task for each of them
would cost more time than the check itself.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import structlog

from nanoagent.model.errors import PlatformError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from nanoagent.telemetry.status import Health

CHECK_MAX_S: Final = 10.0
"""The longest time that a check may take, in seconds."""

_EVERY_S: Final = 1.0

log = structlog.get_logger(__name__)


_ANSWER: Final = (str, type(None))  # the types of a result for which nobody has to wait

CheckResult: TypeAlias = "str | Awaitable[str | None] | None"
"""The reason why no job may be taken, or None. If the check has to wait: an awaitable of one of these."""


@dataclass(frozen=True, slots=True)
class ReadinessCheck:
    """A check of one part.

    Attributes:
        part: The name of the part in `/readyz` and in the metrics; a constant.
        run: Returns the reason why no job may be taken, or None. It may raise `PlatformError` instead.
        reports_itself: The part reports its state to `Health` itself, with more detail than this check has.
    """

    part: str
    run: Callable[[], CheckResult]
    reports_itself: bool = False


class ReadinessChecks:
    """All readiness checks of a worker.

    Args:
        checks: The checks.
        health: Receives the state of each part.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self, checks: Iterable[ReadinessCheck], health: Health, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._checks = tuple(checks)
        self._health = health
        self._clock = clock
        self._failed: dict[str, str] = {}  # part → reason
        self._failed_at = 0.0
        self._running: asyncio.Task[str | None] | None = None

    async def reason(self) -> str | None:
        """Run every check; return the reason why no job may be taken now, or None.

        Callers that arrive while checks are running share their result.
        """
        if self._running is None or self._running.done():
            results = [_run(check) for check in self._checks]
            waits = [result for result in results if not isinstance(result, _ANSWER)]
            if not waits:
                return self._report(cast("list[str | None]", results))
            self._running = asyncio.create_task(self._wait_for(results, waits))
        return await asyncio.shield(self._running)

    async def watch(self) -> None:
        """Run the checks once a second, until cancelled."""
        try:
            while True:
                await self.reason()
                await asyncio.sleep(_EVERY_S)
        finally:
            if self._running is not None:
                self._running.cancel()

    async def _wait_for(self, results: list[CheckResult], waits: list[Awaitable[str | None]]) -> str | None:
        awaited = iter(await asyncio.gather(*waits))
        return self._report([result if isinstance(result, _ANSWER) else next(awaited) for result in results])

    def _report(self, reasons: list[str | None]) -> str | None:
        """Report the state of each part to `Health`, and log changes; return all reasons as one text."""
        failed = {}
        for check, reason in zip(self._checks, reasons, strict=True):
            if not check.reports_itself:
                self._health.set(check.part, ok=reason is None, reason=reason or "")
            if reason is not None:
                failed[check.part] = reason
        self._log_change(failed)
        return "; ".join(failed.values()) or None

    def _log_change(self, failed: dict[str, str]) -> None:
        """Log when checks begin to fail, when other parts fail, and when all pass again."""
        if failed.keys() != self._failed.keys():
            if not self._failed:
                self._failed_at = self._clock()
            if failed:
                log.warning("not taking jobs", parts=sorted(failed), reason="; ".join(failed.values()))
            else:
                log.info("taking jobs again", after_s=round(self._clock() - self._failed_at, 1))
        self._failed = failed


def _run(check: ReadinessCheck) -> CheckResult:
    try:
        result = check.run()
    except Exception as exc:  # noqa: BLE001 - `_reason_of` logs an internal error
        return _reason_of(check, exc)
    return result if isinstance(result, _ANSWER) else _wait(check, result)


async def _wait(check: ReadinessCheck, result: Awaitable[str | None]) -> str | None:
    try:
        async with asyncio.timeout(CHECK_MAX_S):
            return await result
    except Exception as exc:  # noqa: BLE001 - `_reason_of` logs an internal error
        return _reason_of(check, exc)


def _reason_of(check: ReadinessCheck, exc: Exception) -> str:
    if isinstance(exc, PlatformError):
        return str(exc)
    if isinstance(exc, TimeoutError):
        return f"{check.part}: the readiness check took longer than {CHECK_MAX_S:g} s"
    log.error("internal error", operation="readiness check", part=check.part, exc_info=exc)
    return f"{check.part}: an error inside the worker: {type(exc).__name__}"
