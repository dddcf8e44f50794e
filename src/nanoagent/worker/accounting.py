"""Counts finished and returned jobs in the metrics.

Each finished job is also logged, and its peak memory is sent to CloudWatch.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from nanoagent.model import result as results
from nanoagent.model.result import ErrorType

if TYPE_CHECKING:
    from nanoagent.model.result import Result
    from nanoagent.model.returns import ReturnReason
    from nanoagent.telemetry.cloudwatch import PeakMemoryReporter
    from nanoagent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


def count_result(metrics: Metrics, cloudwatch: PeakMemoryReporter | None, result: Result, model: str) -> None:
    """Count a job whose result has been published, or waits in the spool.

    Args:
        metrics: The worker's metrics.
        cloudwatch: The reporter of peak memory; None: off.
        result: The result.
        model: The job's model ID; empty for an invalid job.
    """
    started = result.start is not None
    duration_s = result.duration_ms / 1000 if started else None
    metrics.jobs.finished(result.outcome.label, result.runtime, model, duration_s)
    metrics.jobs.phases(result.runtime, result.timings)
    if result.peak_memory_bytes is not None:
        metrics.jobs.peak_memory(result.runtime, result.peak_memory_bytes)
        if cloudwatch is not None:
            cloudwatch.record(result.function_id, result.runtime, result.peak_memory_bytes, time.time())
    log.info(
        "job done",
        status=result.status,
        error_type=result.error_type,
        start=result.start,
        run_ms=result.timings.run,
        total_ms=result.timings.total,
        peak_memory_bytes=result.peak_memory_bytes,
    )


def count_return(metrics: Metrics, reason: ReturnReason, runtime: str, model: str) -> None:
    """Count a job that is returned to the queue without an attempt."""
    outcome = results.OUTCOMES[ErrorType.INTERRUPTED]
    metrics.jobs.finished(outcome.label, runtime, model, None)
    metrics.jobs.returned(reason)


def count_unreadable(metrics: Metrics) -> None:
    """Count a message without a readable requestId."""
    metrics.jobs.finished(results.OUTCOMES[ErrorType.UNREADABLE].label, "", "", None)
