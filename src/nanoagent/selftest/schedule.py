"""When the self-test runs: before the first job, then at intervals, if possible while the worker is idle.

A runtime takes no jobs if it has failed the self-test, or has never been tested. If a later test cannot run,
the last result remains valid.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.host.background import Background, TaskName
from nanoagent.model.errors import PlatformError, ReturnToQueue
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.selftest.suite import CheckResult, Suite
    from nanoagent.telemetry.metrics import Metrics
    from nanoagent.telemetry.status import Health

log = structlog.get_logger(__name__)

_RETRY_S: Final = 60.0  # after a test that failed or could not run
_MAX_WAIT_FOR_IDLE_S: Final = 600.0  # then the test runs while jobs run
_IDLE_POLL_S: Final = 1.0


class SelfTestSchedule:
    """Repeats the self-test, and blocks runtimes that do not pass it.

    Args:
        suite: Tests a runtime.
        idle: Returns whether the memory and CPU of a self-test are free, and no job waits for them.
        metrics: Shows the result of each isolation check.
        health: Shows which runtimes take no jobs.
        interval_s: The time between two tests, seconds.
        background: Runs the task that tests.
    """

    def __init__(
        self,
        suite: Suite,
        idle: Callable[[], bool],
        metrics: Metrics,
        health: Health,
        interval_s: float,
        background: Background | None = None,
    ) -> None:
        self._suite = suite
        self._idle = idle
        self._metrics = metrics
        self._health = health
        self._interval_s = interval_s
        self._background = background or Background()
        self._untested = dict.fromkeys(Runtime, "the self-test has not run yet")  # runtime → reason
        self._failed: dict[Runtime, str] = {}  # runtime → its problems
        self._not_repeated: set[Runtime] = set()  # runtimes whose last test could not run
        self._task: asyncio.Task[None] | None = None

    def blocked(self, runtime: Runtime) -> str | None:
        """Return why the runtime takes no jobs; None if it takes jobs."""
        return self._failed.get(runtime) or self._untested.get(runtime)

    async def start(self) -> None:
        """Test all runtimes at the same time, then continue in the background."""
        log.info("self-test started")
        self._report_health()
        await asyncio.gather(*map(self._test, Runtime))
        self._report_health()
        self._task = self._background.keep(TaskName.SELF_TEST, self._repeat)

    async def close(self) -> None:
        """Stop, and abandon a test that is running. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _repeat(self) -> None:
        while True:
            in_doubt = self._failed or self._not_repeated
            await asyncio.sleep(min(_RETRY_S, self._interval_s) if in_doubt else self._interval_s)
            for runtime in Runtime:
                await self._wait_until_idle()
                await self._test(runtime)
                self._report_health()

    async def _wait_until_idle(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_MAX_WAIT_FOR_IDLE_S):
                while not self._idle():  # noqa: ASYNC110 - a test may start a second late
                    await asyncio.sleep(_IDLE_POLL_S)

    async def _test(self, runtime: Runtime) -> None:
        try:
            results = await self._suite.run(runtime)
        except Exception as exc:
            internal_error = None if isinstance(exc, PlatformError | ReturnToQueue) else exc
            log.warning("self-test not run", runtime=runtime, reason=str(exc), exc_info=internal_error)
            self._not_repeated.add(runtime)
            if runtime in self._untested:
                self._untested[runtime] = f"the self-test could not run: {exc}"
            return
        self._not_repeated.discard(runtime)
        self._untested.pop(runtime, None)
        self._apply(runtime, results)

    def _apply(self, runtime: Runtime, results: list[CheckResult]) -> None:
        for result in results:
            self._metrics.containers.isolation_check(result.check, runtime, ok=result.problem is None)
        failed = [f"{result.check}: {result.problem}" for result in results if result.problem]
        if failed:
            self._failed[runtime] = "; ".join(failed)
            log.error("isolation check failed", runtime=runtime, failed=failed)
        elif self._failed.pop(runtime, None) is not None:
            log.warning("isolation checks passed again", runtime=runtime)
        else:
            log.info("isolation checks passed", runtime=runtime, checks=len(results))

    def _report_health(self) -> None:
        blocked = {runtime: reason for runtime in Runtime if (reason := self.blocked(runtime)) is not None}
        reasons = [f"{runtime} takes no jobs: {reason}" for runtime, reason in blocked.items()]
        self._health.set("guards", ok=not reasons, reason="; ".join(reasons))
