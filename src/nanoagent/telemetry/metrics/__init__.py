"""The worker's Prometheus metrics: a method for each fact, so that no caller handles names or labels.

* `jobs`: the lifecycle of jobs, and the memory and CPU that they use.
* `containers`: the warm pool, isolation and the self-test.
* `models`: the requests of runs to models.
* `worker`: the parts of the worker, its caches, its spool, its background tasks and CloudWatch.
* `labels`: label values that users choose, bounded.
* `definitions`: the registry, and the buckets of histograms.

The contract (docs/contract.md) fixes the names, types and labels of the first three metrics in `jobs`. The
number of values of each label is bounded: `labels` bounds models and runtimes. The values of all other labels
are constants in the code.

These methods are called about 30 times for each job. The method `labels` of prometheus_client takes a lock
and formats its arguments at each call. So the classes here cache its results. The bounds on label values also
limit the size of these caches.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from nanoagent.telemetry.metrics.containers import ContainerMetrics, PoolMemory, PoolState
from nanoagent.telemetry.metrics.definitions import Definitions
from nanoagent.telemetry.metrics.jobs import JobMetrics
from nanoagent.telemetry.metrics.labels import MAX_MODELS, ModelLabels
from nanoagent.telemetry.metrics.models import ModelMetrics
from nanoagent.telemetry.metrics.worker import WorkerMetrics

__all__ = ["MAX_MODELS", "Metrics", "PoolMemory", "PoolState"]


class Metrics:
    """All metrics of one worker.

    Args:
        registry: The registry of the metrics. By default each worker has a new one, so that two workers (or
            tests) in one process count separately.

    Attributes:
        registry: The registry of the metrics.
        model_labels: The `model` labels that are in use.
        jobs: Counts jobs.
        containers: Counts containers and runs.
        models: Counts requests to models.
        worker: Counts the work of the worker's other parts.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.model_labels = ModelLabels()
        define = Definitions(self.registry)
        self.jobs = JobMetrics(define, self.model_labels)
        self.containers = ContainerMetrics(define)
        self.models = ModelMetrics(define, self.model_labels)
        self.worker = WorkerMetrics(define)
