"""Metrics of the worker's parts, such as its caches, its spool and its background tasks."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from nanoagent.host.background import TaskName

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.telemetry.metrics.definitions import Definitions


class WorkerMetrics:
    """Counts the work of the worker's parts, and shows whether they are ready.

    Args:
        define: Defines the metrics.
    """

    def __init__(self, define: Definitions) -> None:
        self._part = define.gauge("worker_part_ok", "1 while this part of the worker is ready", "part")
        self._descriptors = define.gauge(
            "worker_file_descriptors", "File descriptors of the worker, used and total", "state"
        )
        caches = define.counter(
            "worker_cache_requests_total", "Lookups in a cache, by result", "cache", "result"
        )
        self._cache_by = cache(caches.labels)
        self._compilations = define.counter(
            "worker_byte_code_compilations_total", "Compilations of Python code, by outcome", "outcome"
        )
        self._spooled = define.gauge("worker_spooled_results", "Results on disk that wait for Redis")
        self._spooled_bytes = define.gauge(
            "worker_spooled_bytes", "Size of the results on disk that wait for Redis"
        )
        self._egress = define.counter(
            "worker_egress_connections_total", "Connections of runs to the internet, by outcome", "outcome"
        )
        self._task_failures = define.counter(
            "worker_background_task_failures_total", "Failures of background tasks", "task"
        )
        for name in TaskName:
            self._task_failures.labels(name)
        self._cloudwatch_failures = define.counter(
            "worker_cloudwatch_failures_total", "Calls of PutMetricData that failed"
        )
        self._cloudwatch_dropped = define.counter(
            "worker_cloudwatch_dropped_values_total", "Peak memory values that were not sent to CloudWatch"
        )

    def part(self, part: str, ok: bool) -> None:  # noqa: FBT001 - a callback of `Health`
        """Show whether a part of the worker is ready; `part` is a constant in the code."""
        self._part.labels(part).set(ok)

    def watch_descriptors(self, limit: int, count: Callable[[], int]) -> None:
        """Count the open file descriptors at each scrape."""
        self._descriptors.labels("total").set(limit)
        self._descriptors.labels("used").set_function(count)

    def cache_request(self, name: str, result: str) -> None:
        """Count a lookup in a cache; both arguments are constants of the cache, such as `code` and `hit`."""
        self._cache_by(name, result).inc()

    def compiled(self, outcome: str) -> None:
        """Count a compilation of Python code; the outcome is a value of `jobs.byte_code.Compilation`."""
        self._compilations.labels(outcome).inc()

    def spooled(self, results: int, size_bytes: int) -> None:
        """Show the number of results on disk, and their total size."""
        self._spooled.set(results)
        self._spooled_bytes.set(size_bytes)

    def egress(self, outcome: str) -> None:
        """Count an attempt of a run to connect to the internet; `network.egress` chooses the outcome."""
        self._egress.labels(outcome).inc()

    def background_task_failed(self, name: TaskName) -> None:
        """Count a failure of a background task."""
        self._task_failures.labels(name).inc()

    def cloudwatch_failed(self) -> None:
        """Count a call of PutMetricData that failed."""
        self._cloudwatch_failures.inc()

    def cloudwatch_dropped(self, values: int) -> None:
        """Count peak memory values that were discarded."""
        self._cloudwatch_dropped.inc(values)
