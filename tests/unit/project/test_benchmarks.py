"""The pure parts of the benchmarks: statistics, turns, the result's shape; not what they measure."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import subprocess
from typing import TYPE_CHECKING, Any, Self
from xml.etree import ElementTree as ET

import pytest
from benchmarks import bench, figures, picture, stats
from benchmarks.agent_cost import StubDriver
from benchmarks.bare import BaselineError, Program
from benchmarks.figures import GOALS, KEYS, Arm, Findings, Goal
from benchmarks.measurements import MEASUREMENTS, CannotMeasureHere, Measurement
from benchmarks.object_stub import read_object
from benchmarks.schedule import Budget, Series, interleave
from benchmarks.stats import Ratio
from benchmarks.timed_broker import JobFailed, TimedBroker, run_all

from nanoagent.broker.sqs import SqsBroker
from nanoagent.container.docker import DockerDriver

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567-dirty"
MACHINE = {"commit": COMMIT, "cpus": 2, "architecture": "x86_64", "date": "2026-11-23 12:00 UTC"}


# --- statistics


def test_a_percentile_is_a_sample_of_nearest_rank():
    samples = list(range(100, 0, -1))
    assert stats.percentile(samples, 99) == 99
    assert stats.percentile(samples, 50) == 50
    assert stats.percentile([7.0], 99) == 7.0
    assert stats.percentile([1.0, 2.0], 0) == 1.0


def test_there_is_no_percentile_and_no_summary_of_nothing():
    for function in (lambda: stats.percentile([], 50), lambda: stats.summarise([])):
        with pytest.raises(ValueError, match="no samples"):
            function()


def test_a_summary_has_the_quartiles():
    summary = stats.summarise([4.0, 1.0, 3.0, 2.0])
    assert (summary.count, summary.low, summary.median, summary.high) == (4, 1.0, 2.5, 3.0)


def test_a_ratio_is_that_of_the_medians_whatever_the_outliers():
    ratio = stats.ratio_of_medians([2.0, 2.0, 2.0, 900.0], [4.0, 4.0, 4.0])
    assert ratio.value == 0.5
    assert ratio.low <= ratio.value <= ratio.high


def test_more_spread_gives_a_wider_interval_and_the_same_samples_the_same_one():
    steady = stats.ratio_of_medians([1.0, 1.01, 0.99] * 5, [2.0] * 9)
    unsteady = stats.ratio_of_medians([0.5, 1.0, 1.9] * 5, [2.0] * 9)
    assert unsteady.high - unsteady.low > steady.high - steady.low
    assert unsteady == stats.ratio_of_medians([0.5, 1.0, 1.9] * 5, [2.0] * 9)


def test_an_arm_without_samples_has_no_ratio():
    with pytest.raises(ValueError, match="no samples"):
        stats.ratio_of_medians([1.0], [])


# --- turns


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_ends_before_a_round_that_would_not_fit():
    clock = FakeClock()
    budget = Budget(10.0, clock=clock)
    lengths = iter([4.0, 2.0, 2.5, 2.0])  # the first has what is rare in it
    begun = 0
    while budget.begin_round():
        begun += 1
        clock.now += next(lengths)
    assert begun == 3  # 8.5 s have gone, and no round was shorter than 2 s


def test_a_budget_that_is_spent_still_has_its_least_rounds_and_never_more_than_the_most():
    clock = FakeClock()
    clock.now = 100.0
    spent, ample = Budget(0.0, least=2, clock=clock), Budget(1e9, most=5, clock=clock)
    assert [spent.begin_round() for _ in range(4)] == [True, True, False, False]
    assert sum(ample.begin_round() for _ in range(9)) == 5


class FakeArm:
    """Writes down what is done with it; its samples take 1, 2, 3, …"""

    def __init__(self, name: str, journal: list[str], *, leaves_work: bool = False) -> None:
        self.name = name
        self.leaves_work = leaves_work
        self._journal = journal
        self._count = 0

    async def sample(self) -> float:
        self._count += 1
        self._journal.append(self.name)
        return float(self._count)

    async def check(self) -> None:
        self._journal.append(f"{self.name} checked")


async def turns(*series: Series, journal: list[str], rounds: int, **options: Any) -> dict[str, list[float]]:
    async def sleep(seconds: float) -> None:
        journal.append(f"{seconds:g}")

    budget = Budget(math.inf, most=rounds)
    return dict(await interleave(series, budget, sleep=sleep, pause_s=0.03, **options))


async def test_every_arm_has_its_shots_in_every_round_and_rare_ones_in_some():
    journal: list[str] = []
    often, rarely = FakeArm("often", journal), FakeArm("rarely", journal)
    samples = await turns(Series(often, 3), Series(rarely, 1, every=2), journal=journal, rounds=5)
    assert samples == {"often": [float(n) for n in range(1, 16)], "rarely": [1.0, 2.0, 3.0]}
    assert journal.count("often checked") == 5


async def test_the_order_of_arms_changes_from_round_to_round():
    journal: list[str] = []
    arms = [Series(FakeArm(name, journal), 1) for name in "ab"]
    await turns(*arms, journal=journal, rounds=60)
    fired = [entry for entry in journal if entry in {"a", "b"}]
    first = fired[::2]
    assert {"a", "b"} == set(first)


async def test_it_is_quiet_before_every_shot():
    journal: list[str] = []
    await turns(Series(FakeArm("a", journal), 3), journal=journal, rounds=1)
    assert journal == ["0.03", "a", "0.03", "a", "0.03", "a", "a checked"]


async def test_after_the_end_of_the_time_an_arm_of_docker_has_one_sample_and_others_have_all():
    journal: list[str] = []
    arms = [FakeArm("ours", journal), FakeArm("run", journal, leaves_work=True)]
    samples = await interleave([Series(arm, 3) for arm in arms], Budget(-math.inf), pause_s=0.0)
    assert samples == {"ours": [1.0, 2.0, 3.0], "run": [1.0]}


async def test_back_to_back_shots_have_no_pause_and_the_first_does_not_count():
    journal: list[str] = []
    samples = await turns(Series(FakeArm("a", journal), 2), journal=journal, rounds=1, back_to_back=True)
    assert journal == ["0.03", "a", "a", "a", "a checked"]
    assert samples == {"a": [2.0, 3.0]}


async def test_who_comes_after_docker_waits_until_it_has_cleaned_up():
    journal: list[str] = []
    await turns(Series(FakeArm("run", journal, leaves_work=True), 1), journal=journal, rounds=2)
    before_second = journal[journal.index("run checked") + 1]
    assert float(before_second) > 0.03


# --- our arm's queue


async def test_a_message_is_timed_from_being_handed_out_until_it_is_settled():
    broker = TimedBroker()
    taken = [await broker.submit(body) for body in "abc"]
    first = await broker.receive(2)
    assert [delivery.body for delivery in first] == ["a", "b"]
    await broker.ack(first[0])
    assert await taken[0] >= 0
    assert not taken[1].done()
    assert [delivery.body for delivery in await broker.receive(10)] == ["c"]


async def test_a_job_that_is_returned_or_dead_lettered_fails_the_benchmark():
    broker = TimedBroker()
    taken = [await broker.submit("a"), await broker.submit("b")]
    deliveries = await broker.receive(2)
    assert await broker.nack(deliveries[0], 1.0)
    assert await broker.dead_letter(deliveries[1], "no such image")
    with pytest.raises(JobFailed, match="returned to the queue"):
        await taken[0]
    with pytest.raises(JobFailed, match="no such image"):
        await taken[1]


def test_a_queue_of_the_benchmarks_has_all_that_the_worker_asks_of_sqs():
    asked = {name for name in dir(SqsBroker) if not name.startswith("_")}
    assert asked <= set(dir(TimedBroker))


def test_the_stand_in_for_docker_has_all_that_the_pool_asks_of_it():
    asked = {name for name in dir(DockerDriver) if not name.startswith("_")}
    assert asked <= set(dir(StubDriver()))


async def test_no_more_jobs_are_unsettled_than_asked_for_and_all_are_run():
    broker = TimedBroker(wait_s=0)
    running = asyncio.create_task(run_all(broker.submit, "abcde", 2))
    seen: list[str] = []
    while len(seen) < 5:
        deliveries = await broker.receive(10)
        assert len(deliveries) <= 2
        for delivery in deliveries:
            seen.append(delivery.body)
            await broker.ack(delivery)
        await asyncio.sleep(0)
    assert len(await running) == 5
    assert seen == list("abcde")


# --- the baselines


def test_a_program_that_fails_or_prints_something_else_is_no_baseline():
    program = Program(("/bin/hello",), "/", {}, expected="hello\n")
    program.check(0, "hello\n")
    for status, output in ((1, "hello\n"), (0, "hallo\n")):
        with pytest.raises(BaselineError, match="/bin/hello"):
            program.check(status, output)


def test_the_stand_in_for_s3_does_not_lead_out_of_its_folder(tmp_path: Path):
    store = tmp_path / "store"
    (store / "bucket").mkdir(parents=True)
    (store / "bucket/key.zip").write_bytes(b"zip")
    (tmp_path / "secret").write_bytes(b"secret")
    assert read_object(store, "bucket/key.zip") == b"zip"
    assert read_object(store, "bucket/none") is None
    assert read_object(store, "../secret") is None


# --- keys, goals, the result


def test_every_key_is_measured_once_and_every_goal_is_that_of_a_figure():
    measured = [key for measurement in MEASUREMENTS for key in measurement.keys]
    assert sorted(measured) == sorted(KEYS)
    assert set(GOALS) <= {figure for key in KEYS for figure in figures.figures_of(key)}


def test_a_goal_says_which_way_it_goes():
    assert Goal(0.5).met(0.5)
    assert not Goal(0.5).met(0.51)
    assert Goal(2.0, most=False).met(2.0)
    assert not Goal(2.0, most=False).met(1.99)
    assert [str(Goal(0.33)), str(Goal(12, most=False))] == ["≤ 0.33", "≥ 12"]


def some_findings() -> Findings:
    findings = Findings()
    findings.put("python_hello.vs_bare", Ratio(0.2234567, 0.2, 0.25))
    findings.put("python_hello.vs_exec", Ratio(0.07, 0.06, 0.08))
    findings.put("throughput_vs_bare", Ratio(2.5, 2.4, 2.6))
    findings.skipped["python_hello.vs_run"] = "no docker command on PATH"
    findings.skipped["sandbox_vs_shared"] = "there is no | sandbox here"
    findings.failed["node_hello"] = "JobFailed: it printed nothing"
    findings.arms.append(Arm("python_hello", "bare", "ms", stats.summarise([12.0, 13.0])))
    return findings


KEYS_ASKED = ["python_hello", "node_hello", "sandbox_vs_shared", "throughput_vs_bare", "go_hello"]


def test_the_document_has_every_key_in_its_shape_and_null_for_what_is_missing():
    document = figures.as_document(some_findings(), KEYS_ASKED, MACHINE)
    assert document["python_hello"] == {
        "vs_bare": 0.2235,
        "vs_exec": 0.07,
        "vs_run": None,
        "p99_vs_bare_p50": None,
    }
    assert document["node_hello"] is None
    assert document["sandbox_vs_shared"] is None
    assert document["throughput_vs_bare"] == 2.5
    assert document["spread"]["python_hello.vs_bare"] == [0.2, 0.25]
    assert document["missed"] == ["python_hello.vs_exec"]
    assert "cpp_hello" not in document


def test_the_document_is_one_line_of_json():
    text = figures.encode(figures.as_document(some_findings(), KEYS_ASKED, MACHINE))
    assert "\n" not in text
    assert json.loads(text)["machine"]["cpus"] == 2


def test_a_figure_that_is_no_number_is_refused_rather_than_written():
    findings = some_findings()
    findings.values["throughput_vs_bare"] = math.nan
    with pytest.raises(ValueError, match="JSON"):
        figures.encode(figures.as_document(findings, KEYS_ASKED, MACHINE))


def test_the_table_says_of_each_figure_whether_its_goal_is_met_or_why_it_is_missing():
    remarks = {row[0]: row[-1] for row in figures.figure_rows(some_findings(), KEYS_ASKED)}
    assert remarks["python_hello.vs_bare"] == "met"
    assert remarks["python_hello.vs_exec"] == "missed"
    assert remarks["python_hello.vs_run"] == "skipped: no docker command on PATH"
    assert remarks["sandbox_vs_shared"].startswith("skipped: there is no")
    assert remarks["go_hello.vs_bare"] == "skipped: not measured"


def test_a_reason_is_said_once_for_all_figures_of_a_key():
    rows = figures.figure_rows(some_findings(), ["node_hello"])
    assert [row[-1] for row in rows] == ["failed: JobFailed: it printed nothing", *["failed"] * 3]


def test_the_page_has_both_tables_and_no_cell_breaks_them():
    page = figures.as_markdown(some_findings(), KEYS_ASKED, MACHINE)
    assert "| python_hello.vs_bare | 0.223 | 0.2 … 0.25 | ≤ 0.3 | met |" in page
    assert "there is no \\| sandbox here" in page
    assert "| python_hello | bare | 2 | 12.5 ms |" in page


# --- the picture


def test_a_share_of_its_goal_is_the_same_for_goals_of_both_directions():
    assert picture.share_of_goal(0.1, 0.2, most=True) == 0.5
    assert picture.share_of_goal(4.0, 2.0, most=False) == 0.5
    assert picture.share_of_goal(0.0, 2.0, most=False) > 0


def test_the_scale_grows_and_is_clipped_at_its_ends():
    shares = [0.001, 0.0625, 0.5, 1.0, 2.0, 4.0, 99.0]
    places = [picture.position(share) for share in shares]
    assert places == sorted(places)
    assert places[0] == places[1]
    assert places[-1] == places[-2]


def test_the_picture_shows_the_figures_that_have_a_value_and_a_goal():
    findings = some_findings()
    findings.values["python_hello.p99_vs_bare_p50"] = 3.0
    drawn = picture.draw(findings, KEYS_ASKED, "a <title>", "x & y")
    root = ET.fromstring(drawn)  # noqa: S314 - our own
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"a <title>", "x & y", "python_hello.vs_bare", "throughput_vs_bare"} <= texts
    assert not {"sandbox_vs_shared", "python_hello.vs_run"} & texts


# --- the command


def test_time_is_shared_out_by_weight_and_what_one_leaves_goes_to_the_others():
    plan = bench.plan(list(KEYS))
    assert bench.share(plan[-1:], 7.0) == 7.0
    assert sum(
        bench.share([each, *(other for other in plan if other is not each)], 60.0) for each in plan
    ) == (pytest.approx(60.0))
    assert bench.share(plan, -5.0) == 0.0


async def test_what_there_is_no_time_for_is_skipped_so_that_there_is_a_result(
    monkeypatch: pytest.MonkeyPatch,
):
    async def machine(_: object) -> dict[str, Any]:
        return dict(MACHINE)

    monkeypatch.setattr(bench, "Lab", contextlib.nullcontext)
    monkeypatch.setattr(bench, "describe_machine", machine)
    findings, described = await bench.measure(KEYS_ASKED, seconds=-1000.0, limit_s=-1000.0)
    assert findings.skipped.keys() >= set(KEYS_ASKED)
    assert "time" in findings.skipped["go_hello"]
    assert described["cpus"] == 2


async def test_a_measurement_that_fails_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch):
    async def machine(_: object) -> dict[str, Any]:
        return dict(MACHINE)

    async def fails(*_: object) -> None:
        raise JobFailed("it printed nothing")

    async def lacks(*_: object) -> None:
        raise CannotMeasureHere("there is no pandas")

    async def works(_: object, key: str, __: float, findings: Findings) -> None:
        findings.values[key] = 1.0

    measurements = (
        Measurement(("node_hello",), 1, fails),
        Measurement(("python_pandas",), 1, lacks),
        Measurement(("first_run_vs_hot",), 1, works),
    )
    monkeypatch.setattr(bench, "Lab", FakeLab)
    monkeypatch.setattr(bench, "describe_machine", machine)
    monkeypatch.setattr(bench, "MEASUREMENTS", measurements)
    findings, _ = await bench.measure(list(KEYS), seconds=1.0)
    assert findings.failed == {"node_hello": "JobFailed: it printed nothing"}
    assert findings.skipped == {"python_pandas": "there is no pandas"}
    assert findings.values == {"first_run_vs_hot": 1.0}


class FakeLab(contextlib.nullcontext[Any]):
    async def __aenter__(self) -> Self:
        return self

    def last_log_lines(self) -> str:
        return "nothing"


def test_keys_of_one_measurement_are_measured_once():
    assert len(bench.plan(["throughput_vs_bare", "throughput_vs_run"])) == 1


@pytest.mark.parametrize("given", [["--only", "python_helo"], ["--seconds", "0"]])
def test_a_wrong_option_is_refused(given: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        bench.arguments(given)
    assert ended.value.code == 2
    assert given[0] in capsys.readouterr().err


@pytest.mark.parametrize(("failed", "code"), [({}, 0), ({"node_hello": "it broke"}, 1)])
def test_the_last_line_is_the_document_and_only_failures_change_the_exit_code(
    failed: dict[str, str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    async def measured(*_: object) -> tuple[Findings, dict[str, Any]]:
        findings = some_findings()
        findings.failed = failed
        return findings, MACHINE

    monkeypatch.setattr(bench, "measure", measured)
    written = tmp_path / "out.json"
    assert bench.main(["--only", *KEYS_ASKED, "--json", str(written), "--report", str(tmp_path)]) == code
    last = capsys.readouterr().out.splitlines()[-1]
    document = json.loads(last)
    assert document["python_hello"]["vs_bare"] == 0.2235
    assert document["failed"] == failed
    assert json.loads(written.read_text()) == document
    assert json.loads((tmp_path / "results.json").read_text()) == document
    assert (tmp_path / "results.svg").read_text().startswith("<svg")
    assert (tmp_path / "results.md").read_text().startswith("# Benchmarks")
    assert document["machine"]["commit"] == COMMIT
    assert f"* commit: {COMMIT}" in (tmp_path / "results.md").read_text()
    assert "commit 0123456789ab-dirty" in (tmp_path / "results.svg").read_text()


def git(folder: Path, *arguments: str) -> str:
    name = ["-c", "user.name=n", "-c", "user.email=e", "-c", "core.hooksPath=/dev/null"]
    command = ["git", "-C", str(folder), *name, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_dirty_if_the_tree_differs_but_not_by_the_results(tmp_path: Path):
    results = tmp_path / "docs/benchmarks/results.json"
    results.parent.mkdir(parents=True)
    results.write_text("old")
    (tmp_path / "code.py").write_text("old")
    assert bench.commit_id(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "Begin")
    commit = git(tmp_path, "rev-parse", "HEAD")
    results.write_text("new")
    assert bench.commit_id(tmp_path) == commit
    (tmp_path / "code.py").write_text("new")
    assert bench.commit_id(tmp_path) == bench.commit_id(tmp_path / "docs") == f"{commit}-dirty"
