"""Reacts to EC2's interruption notices: delays the start, and drains the worker."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.aws.interruption import InterruptionWatcher, endpoint_of
from nanoagent.host.background import TaskName
from nanoagent.telemetry import systemd
from nanoagent.wiring.closing import STOP_TAIL_S

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from nanoagent.aws.interruption import InterruptionNotice
    from nanoagent.config import Settings
    from nanoagent.telemetry.status import Health
    from nanoagent.worker.worker import Worker

log = structlog.get_logger(__name__)

START_EXTENSION_S: Final = 60.0
"""The extension that the worker requests from systemd repeatedly while the start waits, seconds."""

NOTICE_RESERVE_S: Final = 10.0
"""The time before the end of the instance at which running jobs are returned to the queue, seconds.

The return takes 1 s.
"""


async def open_watcher(
    settings: Settings, health: Health, opened: AsyncExitStack
) -> InterruptionWatcher | None:
    """Make the watcher of interruption notices; None if the settings or the environment disable it.

    While a notice is in effect, the start waits. The reason: after a worker has drained for a notice, a
    service manager may start a new one. Without the wait, the new worker would take jobs that it cannot
    finish.
    """
    if settings.interruption_notices == "none":
        return None
    endpoint = endpoint_of(os.environ)
    if endpoint is None:
        log.warning("interruption notices not watched", reason="AWS_EC2_METADATA_DISABLED is true")
        return None
    watcher = await opened.enter_async_context(InterruptionWatcher(endpoint))
    last: InterruptionNotice | None = None
    while (notice := await watcher.poll()) is not None:
        if notice != last:
            log.warning("start delayed by interruption notice", reason=notice.reason)
            health.set("drain", ok=False, reason=f"not started: {notice.reason}")
        last = notice
        systemd.extend_start(START_EXTENSION_S)
        await watcher.pause()
    health.set("drain", ok=True)
    return watcher


def drain_on_notice(
    watcher: InterruptionWatcher, worker: Worker, settings: Settings, opened: AsyncExitStack
) -> None:
    """Drain the worker when a notice arrives, within the time that the notice leaves."""

    def drain(notice: InterruptionNotice) -> None:
        systemd.stopping(settings.drain_seconds + STOP_TAIL_S)
        worker.drain(notice.reason, notice.grace_s(time.time(), NOTICE_RESERVE_S))

    watching = worker.background.keep(TaskName.INTERRUPTION_NOTICES, lambda: watcher.watch(drain))
    opened.callback(watching.cancel)
