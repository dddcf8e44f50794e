"""The self-test over time: before the first job, then now and then on an idle slot.

A runtime whose guard does not stand takes no jobs; nor does one that could not be tried yet. When a later
test cannot be made, what the last one has shown stays.
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

    from nanoagent.selftest.suite import Finding, Suite
    from nanoagent.telemetry.metrics import Metrics
    from nanoagent.telemetry.status import Health

log = structlog.get_logger(__name__)

_RETRY_S: Final = 60.0  # after a guard has failed, or could not be tried
_PATIENCE_S: Final = 600.0  # a worker that is never idle is tested all the same
_LOOK_S: Final = 1.0


class Keeper:
    """Keeps watch over the guards.

    Args:
        suite: Attacks a runtime.
        idle: Whether there is a slot that no job wants.
        metrics: Shows each guard.
        health: Is told which runtimes take no jobs.
        interval_s: Seconds between two tests.
        background: Keeps the task that tests.
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
        self._untried = dict.fromkeys(Runtime, "its guards have not been tried yet")
        self._failed: dict[Runtime, str] = {}
        self._missed: set[Runtime] = set()
        self._task: asyncio.Task[None] | None = None

    def blocked(self, runtime: Runtime) -> str | None:
        """Why that runtime takes no jobs; None when it does."""
        return self._failed.get(runtime) or self._untried.get(runtime)

    async def start(self) -> None:
        """Test all runtimes at once, then keep on in the background."""
        log.info("trying the guards")
        self._tell()
        await asyncio.gather(*map(self._test, Runtime))
        self._tell()
        self._task = self._background.keep(TaskName.SELF_TEST, self._keep)

    async def close(self) -> None:
        """Stop; a test that runs is abandoned. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _keep(self) -> None:
        while True:
            in_doubt = self._failed or self._missed
            await asyncio.sleep(min(_RETRY_S, self._interval_s) if in_doubt else self._interval_s)
            for runtime in Runtime:
                await self._wait_until_idle()
                await self._test(runtime)
                self._tell()

    async def _wait_until_idle(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                while not self._idle():  # noqa: ASYNC110 - within a second is soon enough
                    await asyncio.sleep(_LOOK_S)

    async def _test(self, runtime: Runtime) -> None:
        try:
            findings = await self._suite.attack(runtime)
        except Exception as exc:
            bug = None if isinstance(exc, PlatformError | ReturnToQueue) else exc
            log.warning("the guards could not be tried", runtime=runtime, reason=str(exc), exc_info=bug)
            self._missed.add(runtime)
            if runtime in self._untried:
                self._untried[runtime] = f"its guards could not be tried: {exc}"
            return
        self._missed.discard(runtime)
        self._untried.pop(runtime, None)
        self._judge(runtime, findings)

    def _judge(self, runtime: Runtime, findings: list[Finding]) -> None:
        for finding in findings:
            self._metrics.guard(finding.guard, runtime, ok=finding.problem is None)
        failed = [f"{finding.guard}: {finding.problem}" for finding in findings if finding.problem]
        if failed:
            self._failed[runtime] = "; ".join(failed)
            log.error("a guard does not stand: no more jobs are taken", runtime=runtime, failed=failed)
        elif self._failed.pop(runtime, None) is not None:
            log.warning("all guards stand again: jobs are taken", runtime=runtime)
        else:
            log.info("all guards stand", runtime=runtime, guards=len(findings))

    def _tell(self) -> None:
        blocked = {runtime: reason for runtime in Runtime if (reason := self.blocked(runtime)) is not None}
        reasons = [f"{runtime} takes no jobs: {reason}" for runtime, reason in blocked.items()]
        self._health.set("guards", ok=not reasons, reason="; ".join(reasons))
