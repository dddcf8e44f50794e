"""Builds the parts that report on the worker: metrics, health, background tasks and CloudWatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.host.background import Background
from nanoagent.telemetry.cloudwatch import CloudWatchSender, PeakMemoryReporter
from nanoagent.telemetry.metrics import Metrics
from nanoagent.telemetry.status import Health, StatusServer

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from nanoagent.aws.clients import AwsClients
    from nanoagent.config import Settings

log = structlog.get_logger(__name__)

_FIRST_PARTS: Final = ("containers", "queue", "results", "storage")


@dataclass(frozen=True, slots=True)
class Telemetry:
    """The metrics, the health and the background tasks of a worker.

    Attributes:
        metrics: Counts events.
        health: Knows whether each part is ready.
        background: Starts background tasks, and reports their failures to metrics and health.
        status: Serves metrics, health and the state of the pool; None without a server.
    """

    metrics: Metrics
    health: Health
    background: Background
    status: StatusServer | None = None


def new_metrics(settings: Settings) -> Metrics:
    """Make the metrics of a worker. Models that the settings name always have a label."""
    metrics = Metrics()
    for model in settings.named_models:
        metrics.model_labels.label(model)
    return metrics


async def open_telemetry(settings: Settings, opened: AsyncExitStack) -> Telemetry:
    """Make the telemetry of a worker that is starting, and serve metrics and health from now on."""
    metrics = new_metrics(settings)
    health = Health(metrics.worker.part)
    background = _new_background(metrics, health)
    for part in _FIRST_PARTS:
        health.set(part, ok=False, reason="the worker is starting; this part has not answered yet")
    status = StatusServer(health, metrics.registry, settings.metrics_host, settings.metrics_port)
    await status.start()
    opened.push_async_callback(status.stop)
    log.info("metrics and health", port=status.port)
    return Telemetry(metrics, health, background, status)


def _new_background(metrics: Metrics, health: Health) -> Background:
    def report(ok: bool, reason: str) -> None:  # noqa: FBT001 - the signature of `Health.set`
        health.set("background", ok=ok, reason=reason)

    report(ok=True, reason="")
    return Background(metrics.worker.background_task_failed, report)


async def open_cloudwatch(
    settings: Settings, clients: AwsClients, telemetry: Telemetry, opened: AsyncExitStack
) -> PeakMemoryReporter | None:
    """Start to send peak memory to CloudWatch; None if the settings disable it."""
    if not settings.cloudwatch_enabled:
        return None
    sender = CloudWatchSender(await clients.cloudwatch())
    interval_s, metrics = settings.cloudwatch_interval_seconds, telemetry.metrics
    reporter = PeakMemoryReporter(sender, interval_s, metrics, telemetry.background)
    return await opened.enter_async_context(reporter)
