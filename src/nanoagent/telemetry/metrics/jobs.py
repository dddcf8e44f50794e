"""Metrics of jobs: how they end, how long they take, and the budget that they share."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, Protocol

from nanoagent.common.units import MIB
from nanoagent.telemetry.metrics.definitions import MEMORY_BYTES
from nanoagent.telemetry.metrics.labels import runtime_label

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from nanoagent.model.result import Timings
    from nanoagent.model.returns import ReturnReason
    from nanoagent.telemetry.metrics.definitions import Definitions
    from nanoagent.telemetry.metrics.labels import ModelLabels

_PHASES: Final = ("fetch", "build", "acquire", "start", "run", "upload", "total")


class Amount(Protocol):
    """An amount of memory and CPU."""

    @property
    def memory_mb(self) -> int:
        """The memory, MiB."""
        ...

    @property
    def cpus(self) -> float:
        """The CPUs."""
        ...


class BudgetUse(Protocol):
    """The use of the budget for running jobs."""

    @property
    def used(self) -> Amount:
        """The amount that jobs hold now."""
        ...

    @property
    def total(self) -> Amount:
        """The amount that all jobs together may hold."""
        ...

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for memory or CPU."""
        ...


class JobMetrics:
    """Counts jobs.

    Args:
        define: Defines the metrics.
        models: The `model` labels that are in use.
    """

    def __init__(self, define: Definitions, models: ModelLabels) -> None:
        self._models = models
        processed = define.counter(
            "worker_jobs_processed_total", "Jobs that ended, by outcome", "status", "runtime", "model"
        )
        duration = define.histogram(
            "worker_job_duration_seconds", "Wall time of the user's program", "runtime", "model"
        )
        self._active = define.gauge("worker_active_jobs", "Jobs in progress")
        phase = define.histogram("worker_phase_seconds", "Duration of one phase of a job", "phase", "runtime")
        self._queue_delay = define.histogram(
            "worker_queue_delay_seconds", "Time from the sending of a message to its receipt by this worker"
        )
        peak = define.histogram(
            "worker_job_peak_memory_bytes", "Peak memory of a run", "runtime", buckets=MEMORY_BYTES
        )
        self._remembered = define.counter(
            "worker_remembered_failures_total", "Jobs answered from the failure cache, by reason", "reason"
        )
        self._uploaded = define.counter(
            "worker_outputs_uploaded_bytes_total", "Bytes of output files uploaded"
        )
        self._secrets = define.counter(
            "worker_secrets_total", "Secrets that jobs refer to, by how they were resolved", "outcome"
        )
        self._capsules = define.counter(
            "worker_capsules_total", "Capsules of jobs, by whether they were stored", "outcome"
        )
        self._processed_by = cache(processed.labels)
        self._duration_by = cache(duration.labels)
        self._phase_by = cache(phase.labels)
        self._peak_by = cache(peak.labels)
        self._define_returns(define)
        self._define_budget(define)

    def _define_returns(self, define: Definitions) -> None:
        self._attempts_failed = define.counter(
            "worker_attempts_failed_total", "Attempts that failed because of a platform error"
        )
        self._returned_by_drain = define.counter(
            "worker_drain_given_back_total", "Jobs that a drain returned to the queue, by reason", "reason"
        )
        self._returned = define.counter(
            "worker_jobs_returned_total", "Jobs returned to the queue without an attempt, by reason", "reason"
        )
        self._leases_lost = define.counter(
            "worker_leases_lost_total", "Leases lost while the message was in flight"
        )
        self._claims_lost = define.counter(
            "worker_claims_lost_total", "Claims lost to another worker while the request was in flight"
        )

    def _define_budget(self, define: Definitions) -> None:
        self._budget_memory = define.gauge(
            "worker_slots_memory_bytes", "Memory budget of running jobs, used and total", "state"
        )
        self._budget_cpus = define.gauge(
            "worker_slots_cpus", "CPU budget of running jobs, used and total", "state"
        )
        self._waiting = define.gauge("worker_jobs_waiting", "Jobs that wait for memory or CPU")

    # --- the job and its run

    def active(self) -> AbstractContextManager[None]:
        """Return a context in which one more job is in progress."""
        return self._active.track_inprogress()

    def finished(self, label: str, runtime: str, model: str, duration_s: float | None) -> None:
        """Count a job that ended.

        Args:
            label: The `label` of its row in the outcome table.
            runtime: The runtime in the message; a text that is not a runtime counts as `unknown`.
            model: The model in the message; see `ModelLabels.label`.
            duration_s: Wall time of the user's program, seconds; None if the program did not start.
        """
        runtime, model = runtime_label(runtime), self._models.label(model)
        self._processed_by(label, runtime, model).inc()
        if duration_s is not None:
            self._duration_by(runtime, model).observe(duration_s)

    def phases(self, runtime: str, timings: Timings) -> None:
        """Observe each phase above 0 ms; `queue` has a separate metric, `worker_queue_delay_seconds`."""
        if timings.queue > 0:
            self._queue_delay.observe(timings.queue / 1000)
        runtime = runtime_label(runtime)
        for phase in _PHASES:
            milliseconds = getattr(timings, phase)
            if milliseconds > 0:
                self._phase_by(phase, runtime).observe(milliseconds / 1000)

    def peak_memory(self, runtime: str, peak_bytes: int) -> None:
        """Observe the peak memory of a run."""
        self._peak_by(runtime_label(runtime)).observe(peak_bytes)

    def failure_remembered(self, reason: str) -> None:
        """Count a job that the failure cache answered; `reason` is a constant of `nanoagent.jobs`."""
        self._remembered.labels(reason).inc()

    def secret_resolved(self, outcome: str) -> None:
        """Count a secret; `outcome` is a constant of `secrets.cache`, or `refused`."""
        self._secrets.labels(outcome).inc()

    def outputs_uploaded(self, size_bytes: int) -> None:
        """Count uploaded bytes of output files."""
        self._uploaded.inc(size_bytes)

    def capsule(self, outcome: str) -> None:
        """Count a capsule; the outcome is a constant of `jobs.capsules`."""
        self._capsules.labels(outcome).inc()

    # --- the delivery

    def attempt_failed(self) -> None:
        """Count an attempt that failed because of a platform error."""
        self._attempts_failed.inc()

    def returned(self, reason: ReturnReason) -> None:
        """Count a job that was returned to the queue without an attempt."""
        self._returned.labels(reason).inc()

    def returned_by_drain(self, reason: str) -> None:
        """Count a job that a drain returned to the queue; `reason` is a `worker.drain.DrainReason`."""
        self._returned_by_drain.labels(reason).inc()

    def claim_lost(self) -> None:
        """Count a request that another worker has claimed while it was in flight here."""
        self._claims_lost.inc()

    def lease_lost(self) -> None:
        """Count a message whose lease was lost while it was in flight."""
        self._leases_lost.inc()

    # --- the budget

    def watch_admission(self, admission: BudgetUse) -> None:
        """Read the use of the budget at each scrape."""
        self._budget_memory.labels("used").set_function(lambda: admission.used.memory_mb * MIB)
        self._budget_memory.labels("total").set_function(lambda: admission.total.memory_mb * MIB)
        self._budget_cpus.labels("used").set_function(lambda: admission.used.cpus)
        self._budget_cpus.labels("total").set_function(lambda: admission.total.cpus)
        self._waiting.set_function(lambda: admission.waiting)
