"""Builds the self-test: in a worker at intervals, and once for the command `nanoagent selftest`."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from nanoagent.host.background import Background
from nanoagent.jobs.admission import Admission
from nanoagent.jobs.parts import RunnerParts
from nanoagent.selftest.schedule import SelfTestSchedule
from nanoagent.selftest.suite import SelfTestResult, Suite, run_all
from nanoagent.telemetry.metrics import Metrics
from nanoagent.telemetry.status import Health
from nanoagent.wiring import code, containers
from nanoagent.wiring.runs import open_home
from nanoagent.wiring.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.config import Settings
    from nanoagent.model.job import Runtime
    from nanoagent.wiring.runs import Runs


async def start(
    settings: Settings, runs: Runs, telemetry: Telemetry, opened: AsyncExitStack
) -> Callable[[Runtime], str | None]:
    """Test every runtime now, and from now on at intervals.

    Returns:
        A function that returns why the worker takes no jobs of a runtime; None if it takes them.
    """
    if not settings.selftest_interval_seconds:
        return lambda _: None
    memory_mb = settings.job_defaults.memory_mb
    cpus = settings.cpus_for(memory_mb)
    schedule = SelfTestSchedule(
        Suite(runs.parts, runs.home.path / "selftest"),
        lambda: runs.parts.admission.free_for(memory_mb, cpus) > 0,
        telemetry.metrics,
        telemetry.health,
        settings.selftest_interval_seconds,
        telemetry.background,
    )
    opened.push_async_callback(schedule.close)
    await schedule.start()
    return schedule.blocked


async def run_once(settings: Settings) -> SelfTestResult:
    """Test every runtime once, in separate containers. A worker may run meanwhile.

    Raises:
        ConfigError: Images are missing, or the machine cannot provide the required isolation.
        PlatformError: No containers can be created.
    """
    async with AsyncExitStack() as opened:
        await code.refuse_unusable_folders(settings)
        home = open_home(settings, f"selftest-{os.getpid()}", opened)
        telemetry = Telemetry(Metrics(), Health(), Background())
        pool, image_ids = await containers.open_pool(settings, home, telemetry, opened)
        parts = RunnerParts(
            settings=settings,
            programs=await opened.enter_async_context(code.program_cache(settings)),
            admission=Admission(settings.worker_memory_mb, settings.worker_cpus),
            pool=pool,
            image_ids=image_ids,
            staging=home.staging,
        )
        results = await run_all(Suite(parts, home.path / "selftest"))
        return SelfTestResult(pool.isolation_between_runs, results)
