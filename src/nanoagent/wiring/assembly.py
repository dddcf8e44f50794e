"""Builds the worker.

Each part removes the leftovers of dead workers when it is opened. The worker is ready when the pool is full,
the self-test has ended, and all readiness checks pass.
"""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Final

from nanoagent.host import resources
from nanoagent.jobs.outputs import OutputUploader
from nanoagent.telemetry import systemd
from nanoagent.wiring import code, containers, interruption, self_test, services
from nanoagent.wiring.closing import CLOSE_MAX_S, close_within
from nanoagent.wiring.interruption import START_EXTENSION_S
from nanoagent.wiring.runs import new_executor, open_runs
from nanoagent.wiring.telemetry import open_cloudwatch, open_telemetry
from nanoagent.worker.parts import WorkerParts
from nanoagent.worker.readiness import ReadinessCheck, ReadinessChecks
from nanoagent.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

    from nanoagent.config import Settings
    from nanoagent.storage.resilient import ResilientStore
    from nanoagent.wiring.runs import Runs

_RETRY_S: Final = 1.0


async def assemble(settings: Settings, opened: AsyncExitStack) -> Worker:
    """Build every part, and wait until the worker is ready.

    Args:
        settings: The settings.
        opened: The exit stack that closes the opened parts, the last one first.
    """
    telemetry = await open_telemetry(settings, opened)
    watcher = await interruption.open_watcher(settings, telemetry.health, opened)
    clients = services.open_clients(settings, opened)
    buckets = await services.open_buckets(settings, clients, opened)
    store = await services.open_store(settings, clients, buckets)
    descriptors = containers.raise_descriptor_limit()
    telemetry.metrics.worker.watch_descriptors(descriptors, resources.open_descriptors)
    runs = await open_runs(settings, store, telemetry, descriptors, opened)
    broker = await services.open_broker(settings, clients, telemetry.background)
    close_within(opened, "queue", broker.close, settings.sqs_wait_seconds + CLOSE_MAX_S)
    results = await services.open_results(settings, telemetry, opened)
    secrets = await services.open_secrets(settings, clients, telemetry, opened)
    await runs.parts.pool.filled()
    blocked_reason = await self_test.start(settings, runs, telemetry, opened)
    _exempt_from_garbage_collection()
    outputs = OutputUploader(store, settings, telemetry.metrics)
    capsules = await services.open_capsules(settings, clients, runs, telemetry, opened)
    worker = Worker(
        WorkerParts(
            settings=settings,
            broker=broker,
            result_store=results.store,
            cancellations=results.cancellations,
            live_logs=results.live_logs,
            spool=results.spool,
            executor=new_executor(settings, runs, outputs, telemetry, secrets),
            outputs=outputs,
            admission=runs.parts.admission,
            pool=runs.parts.pool,
            metrics=telemetry.metrics,
            health=telemetry.health,
            cloudwatch=await open_cloudwatch(settings, clients, telemetry, opened),
            capsules=capsules,
            blocked=blocked_reason,
            checks=_readiness_checks(settings, runs, store, descriptors),
            background=telemetry.background,
            on_drain=_drain_hook(runs),
        )
    )
    first = (ReadinessCheck("queue", broker.verify), ReadinessCheck("storage", buckets.not_ready_reason))
    await wait_until_ready(ReadinessChecks(first, telemetry.health), worker)
    if watcher is not None:
        interruption.drain_on_notice(watcher, worker, settings, opened)
    return worker


def _exempt_from_garbage_collection() -> None:
    """Exclude the objects of the start from later collections: they live as long as the process."""
    gc.collect()
    gc.freeze()


def _drain_hook(runs: Runs) -> Callable[[], object]:
    """Return what a drain calls when it begins."""
    return runs.parts.byte_code.stop if runs.parts.byte_code else lambda: None


def _readiness_checks(
    settings: Settings, runs: Runs, store: ResilientStore, descriptors: int
) -> tuple[ReadinessCheck, ...]:
    room = code.disk_room(settings, runs.code, runs.parts.programs)
    return (
        ReadinessCheck("storage", store.reason_now),
        ReadinessCheck("disk", room.reason_now),
        ReadinessCheck("descriptors", resources.Descriptors(descriptors, runs.parts.pool.evict).reason_now),
        ReadinessCheck("host", resources.HostRoom().reason_now),
    )


async def wait_until_ready(first: ReadinessChecks, worker: Worker) -> None:
    """Wait until all checks pass. Until then, the worker receives no messages.

    The reason: a service manager that replaces a worker stops the old worker as soon as the new one is ready.

    Args:
        first: The checks that are made only at the start.
        worker: Has all other checks.
    """
    while await first.reason() is not None or await worker.not_ready_reason() is not None:
        systemd.extend_start(START_EXTENSION_S)
        await asyncio.sleep(_RETRY_S)
