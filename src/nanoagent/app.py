"""Runs the process of a worker: start, signals, systemd notifications and stop."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import structlog

from nanoagent.container import capability
from nanoagent.host.background import TaskName
from nanoagent.telemetry import systemd
from nanoagent.wiring import assembly
from nanoagent.wiring.closing import STOP_TAIL_S

if TYPE_CHECKING:
    from nanoagent.config import Settings
    from nanoagent.worker.worker import Worker

log = structlog.get_logger(__name__)


async def serve(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT, then drain it. A second signal ends the drain at once.

    Raises:
        ConfigError: A setting does not fit this machine or the services.
        PlatformError: A service that the start requires is unavailable.
    """
    capability.lower()
    async with AsyncExitStack() as opened:
        worker = await _start(settings, opened)
        if worker is None:
            return
        watchdog = worker.background.keep(TaskName.WATCHDOG, _feed_watchdog)
        systemd.notify("READY=1")
        log.info("ready", worker_id=settings.worker_id)
        try:
            await worker.run()
        finally:
            watchdog.cancel()
            log.info("stopped")


async def _start(settings: Settings, opened: AsyncExitStack) -> Worker | None:
    """Build the worker. Return None if a signal ended the start. In both cases, `opened` closes the parts."""
    loop = asyncio.get_running_loop()
    starting = asyncio.create_task(assembly.assemble(settings, opened))
    signalled = False

    def cancel_start() -> None:
        nonlocal signalled
        signalled = True
        starting.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, cancel_start)
    try:
        worker = await starting
    except asyncio.CancelledError:
        if not signalled:
            raise
    if signalled:  # perhaps the signal arrived just after `assemble` had returned
        log.info("stopped before it was ready")
        return None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, worker, settings)
    return worker


def _stop(worker: Worker, settings: Settings) -> None:
    systemd.stopping(settings.drain_seconds + STOP_TAIL_S)
    log.info("stopping")
    worker.stop()


async def _feed_watchdog() -> None:
    """Notify systemd at its watchdog interval, as long as the event loop runs."""
    interval_s = systemd.watchdog_interval_s()
    while interval_s is not None:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)
