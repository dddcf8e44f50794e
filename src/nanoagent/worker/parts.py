"""The collaborators of the worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nanoagent.host.background import Background

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.broker.base import Broker
    from nanoagent.config import Settings
    from nanoagent.container.pool import Pool
    from nanoagent.jobs.admission import Admission
    from nanoagent.jobs.capsules import Capsules
    from nanoagent.jobs.executor import Executor
    from nanoagent.jobs.outputs import OutputUploader
    from nanoagent.model.job import Runtime
    from nanoagent.results.base import Cancellations, ResultStore
    from nanoagent.results.spool import Spool
    from nanoagent.telemetry.cloudwatch import PeakMemoryReporter
    from nanoagent.telemetry.metrics import Metrics
    from nanoagent.telemetry.status import Health
    from nanoagent.worker.live_logs import LiveLogs
    from nanoagent.worker.readiness import ReadinessCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    """The collaborators of the worker.

    Attributes:
        capsules: Stores the capsules of jobs; None: off.
        blocked: Returns the reason why the worker takes no jobs of a runtime, or None.
        checks: Readiness checks besides the worker's own.
        background: Runs the worker's background tasks.
        on_drain: Called when a drain begins, and perhaps again.
    """

    settings: Settings
    broker: Broker
    result_store: ResultStore
    cancellations: Cancellations
    live_logs: LiveLogs
    spool: Spool
    executor: Executor
    outputs: OutputUploader
    admission: Admission
    pool: Pool
    metrics: Metrics
    health: Health
    cloudwatch: PeakMemoryReporter | None
    capsules: Capsules | None = None
    blocked: Callable[[Runtime], str | None] = lambda _: None
    checks: tuple[ReadinessCheck, ...] = ()
    background: Background = field(default_factory=Background)
    on_drain: Callable[[], object] = lambda: None
