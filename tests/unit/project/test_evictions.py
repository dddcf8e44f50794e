"""The simulator of evictions, on small traces: benchmarks/evictions."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from benchmarks.evictions import __main__ as command
from benchmarks.evictions import public
from benchmarks.evictions.findings import (
    Findings,
    as_document,
    examine_generic,
    examine_trace,
    goals,
    recovery_minutes,
)
from benchmarks.evictions.optimum import FurthestUse, least_cold_ms
from benchmarks.evictions.policies import ONLINE, Forecast, Lru
from benchmarks.evictions.report import as_markdown, draw
from benchmarks.evictions.simulation import Generics, Refill, Result, Simulation
from benchmarks.evictions.traces import GENERATORS, generate
from benchmarks.evictions.workload import CPP, PANDAS, PYTHON, Job, Trace

from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.evictions.workload import Function

POLICIES = (*ONLINE, FurthestUse)


def small_trace(functions: tuple[Function, ...], jobs: list[Job], budget_mib: int) -> Trace:
    return Trace("small", "a small trace", functions, tuple(sorted(jobs)), budget_mib * MIB)


def round_robin(number: int, rounds: int, budget_mib: int) -> Trace:
    jobs = [Job(float(arrival), arrival % number, 0.01) for arrival in range(number * rounds)]
    return small_trace((PYTHON,) * number, jobs, budget_mib)


def one_job_each(functions: tuple[Function, ...], order: list[int]) -> list[Job]:
    return [Job(float(at_s), function, 0.01) for at_s, function in enumerate(order)]


# --- the rules of the pool


def test_a_start_is_hot_if_the_function_has_an_idle_container():
    trace = small_trace((PYTHON,), one_job_each((PYTHON,), [0, 0, 0]), 128)
    result = Simulation(trace, Lru(trace)).run()
    assert (result.jobs, result.cold, result.evictions) == (2, 0, 0)  # the first job is not counted


def test_concurrent_jobs_of_a_function_take_a_container_each():
    jobs = [Job(0.0, 0, 0.01), Job(10.0, 0, 5.0), Job(11.0, 0, 0.01), Job(20.0, 0, 5.0), Job(21.0, 0, 0.01)]
    trace = small_trace((PYTHON,), jobs, 512)
    result = Simulation(trace, Lru(trace)).run()
    assert [start_ms for _, start_ms in result.starts] == [0, PYTHON.cold_ms, 0, 0]


def test_a_large_function_evicts_several_small_ones():
    functions = (PYTHON,) * 8 + (PANDAS,)
    trace = small_trace(functions, one_job_each(functions, [*range(9)]), 600)
    result = Simulation(trace, Lru(trace)).run()
    assert result.evictions == 4  # 512 MiB of 600 leave room for four containers of 18 MiB
    assert result.wasted_mib_s == pytest.approx(18 * (8 + 7 + 6 + 5 - 4 * 0.26))


def test_jobs_wait_in_order_while_busy_containers_have_the_memory():
    jobs = [Job(0.0, 0, 10.0), Job(1.0, 1, 0.01), Job(2.0, 2, 0.01)]
    trace = small_trace((PYTHON, PYTHON, CPP), jobs, 140)
    result = Simulation(trace, Lru(trace)).run()
    assert result.waited == 2


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_the_budget_holds_and_the_results_are_repeatable(policy):
    functions = (PYTHON, CPP, PANDAS) * 20
    jobs = [Job(0.05 * number, (number * number) % 60, 0.2) for number in range(1500)]
    trace = small_trace(functions, jobs, 1024)
    simulation = Simulation(trace, policy(trace), Generics(2, Refill.FIRST))
    result = simulation.run()
    assert simulation._free_bytes >= 0
    held_bytes = sum(container.held_bytes for idle in simulation._idle for container in idle)
    assert simulation._free_bytes + held_bytes == trace.budget_bytes
    assert held_bytes == simulation._idle_bytes
    again = Simulation(trace, policy(trace), Generics(2, Refill.FIRST)).run()
    assert again == result
    assert result.evictions > 0


# --- policies


def test_in_a_round_robin_the_forecast_is_near_the_optimum():
    trace = round_robin(60, 20, 128 + 50 * 18)
    results = {policy.name: Simulation(trace, policy(trace)).run() for policy in POLICIES}
    assert results["LRU"].cold_share == 1
    assert results["GDSF"].cold_share > 1.5 * results["forecast"].cold_share
    assert results["forecast"].cold_share <= results["offline"].cold_share + 0.03
    assert results["forecast"].cold_share < 0.3


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_no_policy_is_better_than_the_lower_bound(policy):
    trace = round_robin(30, 10, 128 + 10 * 18)
    bound_ms = least_cold_ms(trace)
    result = Simulation(trace, policy(trace)).run()
    assert 0 < bound_ms <= result.start_ms


def test_the_bound_is_zero_if_everything_fits():
    assert least_cold_ms(round_robin(5, 4, 300)) == 0


@pytest.mark.parametrize("refill", Refill)
def test_a_generic_container_saves_a_cold_start(refill):
    trace = round_robin(30, 5, 128 + 10 * 18)
    without = Simulation(trace, Forecast(trace)).run()
    result = Simulation(trace, Forecast(trace), Generics(2, refill)).run()
    assert result.warm > 0
    assert result.cold < without.cold
    assert result.start_ms < without.start_ms


# --- findings and report


def result_with(starts: list[tuple[float, float]]) -> Result:
    return Result(starts=starts)


def test_recovery_is_the_time_until_the_cost_is_steady_again():
    starts = [(float(second), 100.0 if second < 130 else 10.0) for second in range(900)]
    assert recovery_minutes(result_with(starts), (0.0,), 900.0) == 3
    assert recovery_minutes(result_with(starts), (), 900.0) is None


def test_the_report_has_all_policies_and_the_goals():
    found = Findings({"scan 1.1": examine_trace(round_robin(22, 10, 128 + 20 * 18))})
    found.generic += examine_generic(round_robin(22, 3, 128 + 20 * 18))
    page, picture = as_markdown(found), draw(found)
    ET.fromstring(picture)  # noqa: S314 - our own text
    for policy in POLICIES:
        assert policy.name in page
    for goal in goals(found):
        assert goal in page
    assert as_document(found)["traces"]["scan 1.1"]["policies"]["LRU"]["cold_share"] == 1


def test_a_missed_goal_is_reported():
    found = Findings({"scan 1.1": examine_trace(round_robin(22, 10, 128 + 20 * 18))})
    policies = found.traces["scan 1.1"].policies
    policies["forecast"] = policies["LRU"]
    assert "**missed**: scan 1.1: cold share 100.0%" in as_markdown(found)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generated_trace_has_its_name_and_is_in_order(name):
    trace = generate(name)
    assert trace.name == name
    times = [job.at_s for job in trace.jobs]
    assert times == sorted(times)
    assert {job.function for job in trace.jobs} <= set(range(len(trace.functions)))


def test_the_command_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert command.main(["--only", "scan 0.9", "--json", "--report", str(tmp_path)]) == 0
    assert "scan 0.9" in (tmp_path / "evictions.md").read_text()
    assert (tmp_path / "evictions.svg").exists()
    assert capsys.readouterr().out.splitlines()[-1].startswith('{"traces"')


def test_an_unknown_trace_is_an_error():
    with pytest.raises(SystemExit, match="unknown traces"):
        command.main(["--only", "scan 9"])


# --- public traces


def test_a_sample_of_the_azure_trace_is_read(tmp_path: Path):
    (tmp_path / "durations.csv").write_text("HashFunction,percentile_Average_50\na,2000\n")
    (tmp_path / "invocations.csv").write_text("HashFunction,Trigger,1,2,3\na,http,0,1,9\nb,timer,1,0,0\n")
    trace = public.azure(tmp_path)
    assert [(job.function, int(job.at_s // 60)) for job in trace.jobs] == [(1, 0), (0, 1), (0, 2), (0, 2)]
    assert {job.duration_s for job in trace.jobs if job.function == 0} == {2.0}


def test_a_workflow_is_read(tmp_path: Path):
    lines = [
        "process,submit,realtime,status",
        "b,3000,9000,COMPLETED",
        "a,1000,40,COMPLETED",
        "a,2000,1,FAILED",
    ]
    (tmp_path / "trace_x.csv").write_text("\n".join(lines))
    trace = public.workflow(tmp_path / "trace_x.csv")
    assert trace.name == "x"
    assert trace.jobs == (Job(0.0, 0, 0.04), Job(2.0, 1, 5.0))


def test_a_file_of_another_format_is_an_error(tmp_path: Path):
    (tmp_path / "trace_x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match="trace not read"):
        command.main(["--only", "--workflows", str(tmp_path)])
