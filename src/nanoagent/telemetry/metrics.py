"""The worker's Prometheus metrics, in a registry of their own.

Names, types and labels of the first three are the contract's (section 5) and never change. Every label
value is bounded: runtimes by `job.Runtime`, models by `MAX_MODELS`, all others by constants in the code.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Final, Literal, Protocol, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nanoagent.common.units import MIB
from nanoagent.host.background import TaskName
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from nanoagent.model.result import Start, Timings
    from nanoagent.model.returns import ReturnReason

MAX_MODELS: Final = 50
"""Distinct `model` labels: 50 x 4 runtimes x 20 buckets are 4,000 series, what one scrape carries easily."""

_MAX_MODEL_LENGTH: Final = 64
_OTHER_MODEL: Final = "other"
_UNKNOWN_RUNTIME: Final = "unknown"
_RUNTIMES: Final = frozenset(str(runtime) for runtime in Runtime)
_PHASES: Final = ("fetch", "build", "acquire", "start", "run", "upload", "total")

# From a sandbox's own cost (under 1 ms) to an hour; the default timeout, 300 s, is a bound of its own.
_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0),
)
# Powers of two from 4 MiB to 16 GiB, as memory sizes are chosen.
_MEMORY_BYTES: Final = tuple(float(MIB * 2**exponent) for exponent in range(2, 15))

PoolState = Literal["idle", "busy", "starting"]


class Amount(Protocol):
    """Memory and CPU."""

    @property
    def memory_mb(self) -> int:
        """MiB."""
        ...

    @property
    def cpus(self) -> float:
        """CPUs."""
        ...


class BudgetUse(Protocol):
    """How much of the budget for running jobs is used."""

    @property
    def used(self) -> Amount:
        """What jobs hold now."""
        ...

    @property
    def total(self) -> Amount:
        """What all jobs may hold together."""
        ...

    @property
    def waiting(self) -> int:
        """How many jobs wait for a part of it."""
        ...


class Metrics:
    """Counts what happens; one method per fact, so that no caller handles names or labels.

    Args:
        registry: Where the metrics are registered; a new one by default, so that two workers (or tests)
            in one process do not meet.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._models: set[str] = set()
        self._make_job_metrics()
        self._make_pool_metrics()
        self._make_llm_metrics()
        self._make_other_metrics()
        # `labels` takes a lock and makes strings of its arguments each time, 30 times a job. Every label's
        # values are bounded, and so is what is kept here.
        self._processed_by = cache(self._processed.labels)
        self._duration_by = cache(self._duration.labels)
        self._phase_by = cache(self._phase.labels)
        self._peak_by = cache(self._peak.labels)
        self._starts_by = cache(self._starts.labels)
        self._cache_by = cache(self._cache.labels)
        self._llm_tokens_by = cache(self._llm_tokens.labels)
        self._llm_token_parts_by = cache(self._llm_token_parts.labels)
        self._llm_requests_by = cache(self._llm_requests.labels)
        self._llm_seconds_by = cache(self._llm_seconds.labels)

    def _make_job_metrics(self) -> None:
        self._processed = self._counter(
            "worker_jobs_processed_total", "Jobs that ended, by how they ended", "status", "runtime", "model"
        )
        self._duration = self._histogram(
            "worker_job_duration_seconds", "Wall time of the user's program", "runtime", "model"
        )
        self._active = self._gauge("worker_active_jobs", "Jobs that are being worked on now")
        self._phase = self._histogram(
            "worker_phase_seconds", "Time a job spent in one phase", "phase", "runtime"
        )
        self._queue_delay = self._histogram(
            "worker_queue_delay_seconds", "Time from sending a job to its receipt here"
        )
        self._peak = self._histogram(
            "worker_job_peak_memory_bytes", "Peak memory of a run", "runtime", buckets=_MEMORY_BYTES
        )
        self._attempts_failed = self._counter(
            "worker_attempts_failed_total", "Attempts at a job that failed by the platform's fault"
        )
        self._drain_gave_back = self._counter(
            "worker_drain_given_back_total", "Jobs that a stopping worker gave back, by why", "reason"
        )
        self._returned = self._counter(
            "worker_jobs_returned_total", "Jobs returned to the queue without an attempt, by reason", "reason"
        )
        self._leases_lost = self._counter(
            "worker_leases_lost_total", "Messages whose lease was lost while they were held"
        )
        self._claims_lost = self._counter(
            "worker_claims_lost_total", "Requests that another worker took over while they were worked on"
        )

        self._egress = self._counter(
            "worker_egress_connections_total",
            "Runs' connections to the internet, by what came of them",
            "outcome",
        )

    def _make_pool_metrics(self) -> None:
        self._pool = self._gauge("worker_pool_containers", "Containers that exist now", "runtime", "state")
        self._starts = self._counter(
            "worker_container_starts_total",
            "Runs by where their container came from (hot, warm, cold)",
            *("runtime", "start"),
        )
        self._retired = self._counter(
            "worker_containers_retired_total", "Containers thrown away, by reason", "reason"
        )
        self._creation_failures = self._counter(
            "worker_container_creation_failures_total", "Containers that could not be made"
        )
        self._breaker = self._gauge(
            "worker_pool_breaker_open", "1 while no containers are made because making them keeps failing"
        )

        self._isolation = self._gauge(
            "worker_isolation_level",
            "2: a sandbox for each run, 1: a container shared by runs, 0: one for each",
        )

        self._part = self._gauge(
            "worker_part_ok", "1 while jobs can be taken as far as it is concerned", "part"
        )
        self._isolation_check = self._gauge(
            "worker_guard_ok", "1 if the last self-test passed this isolation check", "guard", "runtime"
        )

    def _make_llm_metrics(self) -> None:
        self._llm_tokens = self._counter(
            "worker_llm_tokens_total", "Tokens that runs have used, prompt and completion", "model", "kind"
        )
        # A separate metric, so that a sum over worker_llm_tokens_total counts each token once.
        self._llm_token_parts = self._counter(
            "worker_llm_token_parts_total",
            "Tokens among those of worker_llm_tokens_total that came from a cache (prompt) or are reasoning "
            "(completion)",
            "model",
            "part",
        )
        self._llm_requests = self._counter(
            "worker_llm_requests_total",
            "Requests of runs for models, by how they ended (ok, error, cut, refused)",
            *("model", "outcome"),
        )
        self._llm_seconds = self._histogram(
            "worker_llm_request_seconds", "Time a request to a model took in all", "model"
        )

    def _make_other_metrics(self) -> None:
        self._budget_memory = self._gauge(
            "worker_slots_memory_bytes", "Memory budget of the running jobs", "state"
        )
        self._budget_cpus = self._gauge("worker_slots_cpus", "CPU budget of the running jobs", "state")
        self._descriptors = self._gauge(
            "worker_file_descriptors", "File descriptors of the worker, those open and the limit", "state"
        )
        self._waiting = self._gauge("worker_jobs_waiting", "Jobs that wait for memory or CPU")
        self._cache = self._counter(
            "worker_cache_requests_total", "Lookups in a cache, by result", "cache", "result"
        )
        self._remembered = self._counter(
            "worker_remembered_failures_total", "Jobs answered from memory instead of being tried", "reason"
        )
        self._uploaded = self._counter(
            "worker_outputs_uploaded_bytes_total", "Bytes of output files uploaded"
        )
        self._spooled = self._gauge(
            "worker_spooled_results", "Finished results that wait on disk until Redis takes them"
        )
        self._spooled_bytes = self._gauge("worker_spooled_bytes", "Their size")
        self._task_failures = self._counter(
            "worker_background_task_failures_total",
            "Failures of background tasks, which are started again",
            "task",
        )
        for name in TaskName:
            self._task_failures.labels(name)
        self._cloudwatch_failures = self._counter(
            "worker_cloudwatch_failures_total", "Calls of PutMetricData that failed"
        )
        self._cloudwatch_dropped = self._counter(
            "worker_cloudwatch_dropped_values_total", "Peak memory values that never reached CloudWatch"
        )

    def job_finished(self, label: str, runtime: str, model: str, duration_s: float | None) -> None:
        """Count a job that ended.

        Args:
            label: The `label` of its row in the outcome table.
            runtime: As the job has it; anything that is no runtime counts as `unknown`.
            model: As the job has it; see `model_label`.
            duration_s: Wall time of the user's program; None when it never started.
        """
        runtime, model = _runtime_label(runtime), self.model_label(model)
        self._processed_by(label, runtime, model).inc()
        if duration_s is not None:
            self._duration_by(runtime, model).observe(duration_s)

    def job_active(self) -> AbstractContextManager[None]:
        """While the returned context lasts, one more job is active."""
        return self._active.track_inprogress()

    def model_label(self, model: str) -> str:
        """The `model` label for a name that a user made.

        The first `MAX_MODELS` names keep theirs; later ones, and names that are blank, unprintable or
        longer than 64 characters, are `other`. A name asked for at start keeps its place.
        """
        name = model.strip()
        if name in self._models:
            return name
        if not name or len(name) > _MAX_MODEL_LENGTH or not name.isprintable():
            return _OTHER_MODEL
        if len(self._models) >= MAX_MODELS:
            return _OTHER_MODEL
        self._models.add(name)
        return name

    def has_model_label(self, model: str) -> bool:
        """Whether a name is a label already: it is configured, or such a model has answered."""
        return model.strip() in self._models

    def phases(self, runtime: str, timings: Timings) -> None:
        """Observe the phases that happened (above 0 ms); `queue` goes to `worker_queue_delay_seconds`."""
        if timings.queue > 0:
            self._queue_delay.observe(timings.queue / 1000)
        runtime = _runtime_label(runtime)
        for phase in _PHASES:
            milliseconds = getattr(timings, phase)
            if milliseconds > 0:
                self._phase_by(phase, runtime).observe(milliseconds / 1000)

    def peak_memory(self, runtime: str, peak_bytes: int) -> None:
        """Observe the peak memory of a run."""
        self._peak_by(_runtime_label(runtime)).observe(peak_bytes)

    def attempt_failed(self) -> None:
        """An attempt failed by the platform's fault; the job may be tried again."""
        self._attempts_failed.inc()

    def drain_gave_back(self, reason: str) -> None:
        """A drain has given a job back; `reason` is one of the worker's constants."""
        self._drain_gave_back.labels(reason).inc()

    def job_returned(self, reason: ReturnReason) -> None:
        """A job has gone back to the queue, and this was no attempt."""
        self._returned.labels(reason).inc()

    def claim_lost(self) -> None:
        """Another worker has taken over a request; its run here, if there still was one, is stopped."""
        self._claims_lost.inc()

    def egress(self, outcome: str) -> None:
        """A run has connected to the internet, or not; `outcome` is one of `network.egress`'s."""
        self._egress.labels(outcome).inc()

    def lease_lost(self) -> None:
        """The lease on a message was lost; its run, if there was one, is stopped."""
        self._leases_lost.inc()

    def watch_pool(self, count: Callable[[Runtime, PoolState], int]) -> None:
        """Ask how many containers of a runtime are in a state whenever the metrics are asked for."""
        for runtime in Runtime:
            for state in get_args(PoolState):
                self._pool.labels(runtime, state).set_function(partial(count, runtime, state))

    def container_start(self, runtime: str, start: Start) -> None:
        """A run got its container from there."""
        self._starts_by(_runtime_label(runtime), start.value).inc()

    def container_retired(self, reason: str) -> None:
        """A container was thrown away; `reason` is one of the pool's constants."""
        self._retired.labels(reason).inc()

    def container_creation_failed(self) -> None:
        """A container could not be made."""
        self._creation_failures.inc()

    def pool_breaker(self, *, is_open: bool) -> None:
        """Whether the pool has stopped making containers because making them keeps failing."""
        self._breaker.set(is_open)

    def isolation(self, between_runs: Isolation) -> None:
        """What stands between one run and the next."""
        self._isolation.set({Isolation.SANDBOX: 2, Isolation.SHARED: 1, Isolation.CONTAINER: 0}[between_runs])

    def part(self, part: str, ok: bool) -> None:  # noqa: FBT001 - what `Health` hands on
        """How a part of the worker is; its name is one of the code's constants."""
        self._part.labels(part).set(ok)

    def isolation_check(self, check: str, runtime: Runtime, *, ok: bool) -> None:
        """Set the result of an isolation check; `check` is a value of `selftest.checks.IsolationCheck`."""
        self._isolation_check.labels(check, runtime).set(ok)

    def watch_admission(self, admission: BudgetUse) -> None:
        """Read the budget's use from `admission` whenever the metrics are asked for."""
        self._budget_memory.labels("used").set_function(lambda: admission.used.memory_mb * MIB)
        self._budget_memory.labels("total").set_function(lambda: admission.total.memory_mb * MIB)
        self._budget_cpus.labels("used").set_function(lambda: admission.used.cpus)
        self._budget_cpus.labels("total").set_function(lambda: admission.total.cpus)
        self._waiting.set_function(lambda: admission.waiting)

    def watch_descriptors(self, limit: int, count: Callable[[], int]) -> None:
        """Count the open file descriptors whenever the metrics are asked for."""
        self._descriptors.labels("total").set(limit)
        self._descriptors.labels("used").set_function(count)

    def cache_request(self, cache: str, result: str) -> None:
        """A cache was asked; both arguments are constants of the cache's code (`code`, `hit`)."""
        self._cache_by(cache, result).inc()

    def failure_remembered(self, reason: str) -> None:
        """A job was not tried because its code has just failed; `reason` is one of `failures`' constants."""
        self._remembered.labels(reason).inc()

    def llm_request(self, model: str | None, outcome: str, seconds: float | None = None) -> None:
        """A run's request to the AI gateway is over.

        Args:
            model: None where nothing has shown that there is such a model; see `model_label` otherwise.
            outcome: One of the gateway's constants: ok, error, cut, refused.
            seconds: What it took, None when it was not forwarded.
        """
        label = self._llm_label(model)
        self._llm_requests_by(label, outcome).inc()
        if seconds is not None:
            self._llm_seconds_by(label).observe(seconds)

    def llm_tokens(
        self, model: str | None, prompt: int, completion: int, *, cached: int = 0, reasoning: int = 0
    ) -> None:
        """Count tokens that were used.

        Args:
            model: As for `llm_request`.
            prompt: Tokens of the prompt.
            completion: Tokens of the answer.
            cached: Tokens of the prompt that came from the model server's cache.
            reasoning: Reasoning tokens of the answer.
        """
        label = self._llm_label(model)
        self._llm_tokens_by(label, "prompt").inc(prompt)
        self._llm_tokens_by(label, "completion").inc(completion)
        for part, count in (("cached", cached), ("reasoning", reasoning)):
            if count:
                self._llm_token_parts_by(label, part).inc(count)

    def _llm_label(self, model: str | None) -> str:
        return _OTHER_MODEL if model is None else self.model_label(model)

    def outputs_uploaded(self, size_bytes: int) -> None:
        """So many bytes of output files were uploaded."""
        self._uploaded.inc(size_bytes)

    def spooled(self, results: int, size_bytes: int) -> None:
        """So many results wait on disk, of so many bytes together."""
        self._spooled.set(results)
        self._spooled_bytes.set(size_bytes)

    def background_task_failed(self, name: TaskName) -> None:
        """A background task has failed."""
        self._task_failures.labels(name).inc()

    def cloudwatch_failed(self) -> None:
        """A call of PutMetricData failed."""
        self._cloudwatch_failures.inc()

    def cloudwatch_dropped(self, values: int) -> None:
        """So many peak memory values were given up on."""
        self._cloudwatch_dropped.inc(values)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, registry=self.registry)

    def _histogram(
        self, name: str, meaning: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
    ) -> Histogram:
        return Histogram(name, meaning, labels, registry=self.registry, buckets=buckets)


def _runtime_label(runtime: str) -> str:
    """The runtime, or `unknown`: an invalid job may have any text there."""
    return str(runtime) if runtime in _RUNTIMES else _UNKNOWN_RUNTIME
