from __future__ import annotations

import pytest

from nanoagent.jobs.admission import Admission
from nanoagent.model.job import Runtime
from nanoagent.model.result import OUTCOMES, Start, Timings
from nanoagent.telemetry.metrics import MAX_MODELS, Metrics


@pytest.fixture
def metrics():
    return Metrics()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.mark.parametrize(
    ("name", "kind", "labels"),
    [
        ("worker_jobs_processed", "counter", {"status", "runtime", "model"}),
        ("worker_job_duration_seconds", "histogram", {"runtime", "model"}),
        ("worker_active_jobs", "gauge", set()),
    ],
)
def test_the_contracts_metrics_have_its_names_types_and_labels(metrics, name, kind, labels):
    metrics.jobs.finished("success", "python", "m", 0.5)
    family = next(family for family in metrics.registry.collect() if family.name == name)
    assert family.type == kind
    assert set(family.samples[0].labels) - {"le"} == labels


def test_every_metric_has_the_workers_prefix(metrics):
    names = [family.name for family in metrics.registry.collect()]
    assert names
    assert all(name.startswith("worker_") for name in names)


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=lambda outcome: outcome.error_type or "SUCCESS")
def test_every_ending_is_counted_under_its_label(metrics, outcome):
    metrics.jobs.finished(outcome.label, "go", "m", None)
    labels = {"status": outcome.label, "runtime": "go", "model": "m"}
    assert value(metrics, "worker_jobs_processed_total", **labels) == 1


def test_a_job_that_never_started_has_no_duration(metrics):
    metrics.jobs.finished("invalid", "python", "m", None)
    assert value(metrics, "worker_job_duration_seconds_count", runtime="python", model="m") is None


def test_durations_from_a_millisecond_to_the_default_timeout_fall_into_different_buckets(metrics):
    for seconds in (0.0009, 300):
        metrics.jobs.finished("success", "python", "m", seconds)
    bucket = "worker_job_duration_seconds_bucket"
    assert value(metrics, bucket, runtime="python", model="m", le="0.001") == 1
    assert value(metrics, bucket, runtime="python", model="m", le="120.0") == 1
    assert value(metrics, bucket, runtime="python", model="m", le="300.0") == 2


@pytest.mark.parametrize("runtime", list(Runtime))
def test_a_known_runtime_keeps_its_name(metrics, runtime):
    metrics.jobs.peak_memory(runtime, 1)
    assert value(metrics, "worker_job_peak_memory_bytes_count", runtime=runtime.value) == 1


@pytest.mark.parametrize("runtime", ["ruby", "", "PYTHON", "x" * 64])
def test_any_other_runtime_counts_as_unknown(metrics, runtime):
    metrics.jobs.finished("invalid", runtime, "m", None)
    labels = {"status": "invalid", "runtime": "unknown", "model": "m"}
    assert value(metrics, "worker_jobs_processed_total", **labels) == 1


def test_only_the_first_models_keep_their_names(metrics):
    names = [f"model-{number}" for number in range(MAX_MODELS)]
    assert [metrics.model_labels.label(name) for name in names] == names
    assert metrics.model_labels.label("one-more") == "other"
    assert metrics.model_labels.label(names[0]) == names[0]


@pytest.mark.parametrize("model", ["", "  ", "a\nb", "\udc80", "x" * 65])
def test_a_model_that_makes_no_label_is_other_and_takes_no_place(metrics, model):
    for _ in range(2 * MAX_MODELS):
        assert metrics.model_labels.label(model) == "other"
    assert metrics.model_labels.label("llama3:8b") == "llama3:8b"


def test_a_job_is_active_while_its_context_lasts_also_when_it_fails(metrics):
    def fail():
        with metrics.jobs.active():
            assert value(metrics, "worker_active_jobs") == 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert value(metrics, "worker_active_jobs") == 0


def test_phases_are_observed_in_seconds_and_only_where_they_happened(metrics):
    metrics.jobs.phases("cpp", Timings(queue=1500, run=250))
    assert value(metrics, "worker_queue_delay_seconds_sum") == 1.5
    assert value(metrics, "worker_phase_seconds_sum", phase="run", runtime="cpp") == 0.25
    assert value(metrics, "worker_phase_seconds_count", phase="build", runtime="cpp") is None


def test_every_phase_of_a_result_is_observed_somewhere(metrics):
    timings = Timings()
    for phase in Timings.__struct_fields__:
        setattr(timings, phase, 1000.0)
    metrics.jobs.phases("go", timings)
    assert value(metrics, "worker_queue_delay_seconds_count") == 1
    for phase in set(Timings.__struct_fields__) - {"queue"}:
        assert value(metrics, "worker_phase_seconds_sum", phase=phase, runtime="go") == 1


async def test_the_budget_is_read_when_the_metrics_are_asked_for(metrics):
    admission = Admission(1024, 2)
    metrics.jobs.watch_admission(admission)
    async with admission.reserve(256, 0.5):
        assert value(metrics, "worker_slots_memory_bytes", state="used") == 256 * 1024 * 1024
        assert value(metrics, "worker_slots_cpus", state="used") == 0.5
    assert value(metrics, "worker_slots_memory_bytes", state="used") == 0
    assert value(metrics, "worker_slots_memory_bytes", state="total") == 1024 * 1024 * 1024
    assert value(metrics, "worker_slots_cpus", state="total") == 2
    assert value(metrics, "worker_jobs_waiting") == 0


def test_the_pools_facts_are_told(metrics):
    metrics.containers.watch_pool(
        lambda runtime, state: 3 if (runtime, state) == ("python", "idle") else 0,
        lambda runtime: 2 if runtime == "go" else 0,
        lambda kind: 1024 if kind == "limit" else 512,
    )
    metrics.containers.started("python", Start.WARM)
    metrics.containers.retired("max_runs", Runtime.GO)
    metrics.containers.retired("evicted", Runtime.GO)
    metrics.containers.rebound(Runtime.GO)
    metrics.containers.creation_failed()
    metrics.containers.breaker(is_open=True)
    assert value(metrics, "worker_pool_containers", runtime="python", state="idle") == 3
    assert value(metrics, "worker_container_starts_total", runtime="python", start="warm") == 1
    assert value(metrics, "worker_containers_retired_total", reason="max_runs") == 1
    assert value(metrics, "worker_containers_evicted_total", runtime="go") == 1
    assert value(metrics, "worker_containers_rebound_total", runtime="go") == 1
    assert value(metrics, "worker_pool_generic_containers", runtime="go") == 2
    assert value(metrics, "worker_pool_memory_bytes", state="limit") == 1024
    assert value(metrics, "worker_pool_memory_bytes", state="charged") == 512
    assert value(metrics, "worker_container_creation_failures_total") == 1
    assert value(metrics, "worker_pool_breaker_open") == 1


def test_what_is_around_a_run_is_told(metrics):
    metrics.worker.cache_request("code", "hit")
    metrics.jobs.outputs_uploaded(10)
    metrics.jobs.outputs_uploaded(5)
    metrics.jobs.attempt_failed()
    metrics.worker.cloudwatch_failed()
    metrics.worker.cloudwatch_dropped(7)
    assert value(metrics, "worker_cache_requests_total", cache="code", result="hit") == 1
    assert value(metrics, "worker_outputs_uploaded_bytes_total") == 15
    assert value(metrics, "worker_attempts_failed_total") == 1
    assert value(metrics, "worker_cloudwatch_failures_total") == 1
    assert value(metrics, "worker_cloudwatch_dropped_values_total") == 7


def test_two_workers_in_one_process_count_apart(metrics):
    metrics.jobs.attempt_failed()
    assert value(Metrics(), "worker_attempts_failed_total") == 0
