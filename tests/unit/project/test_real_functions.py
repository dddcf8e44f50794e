"""The functions of `make bench-real`, and the texts of its report; not what it measures."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
from benchmarks.libraries import install
from benchmarks.real import __main__ as command
from benchmarks.real import summary as summaries
from benchmarks.real import vendor
from benchmarks.real.catalogue import FOLDER, RealFunction, functions
from benchmarks.real.measure import NeverHot, is_steady, reach_steady_state
from benchmarks.real.summary import Row, Summary
from benchmarks.stats import Ratio

from nanoagent.jobs.byte_code import Compilation
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from pathlib import Path

FUNCTIONS = functions()


# --- the catalogue


def test_there_are_at_least_25_functions_in_every_language():
    assert len(FUNCTIONS) >= 25
    counts = Counter(function.runtime for function in FUNCTIONS)
    assert min(counts[runtime] for runtime in Runtime) >= 3


def test_the_names_and_the_descriptions_are_unique():
    assert len({function.name for function in FUNCTIONS}) == len(FUNCTIONS)
    assert len({(function.runtime, function.about) for function in FUNCTIONS}) == len(FUNCTIONS)


def test_every_folder_is_a_function():
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {function.name for function in FUNCTIONS}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_a_function_has_code_an_input_and_an_expected_output(function: RealFunction):
    assert (function.code / RECIPES[function.runtime].entry).is_file()
    assert isinstance(json.loads(function.payload), dict)
    assert function.expected.endswith("\n")
    assert function.about.strip()


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_every_package_has_a_fixed_version(function: RealFunction):
    mark = {Runtime.PYTHON: "==", Runtime.NODEJS: "@"}.get(function.runtime, "no packages")
    assert all(mark in package for package in function.packages)


def test_a_description_has_no_unknown_fields():
    known = set(RealFunction.__dataclass_fields__) - {"name"}
    for file in FOLDER.glob("*/function.toml"):
        assert set(tomllib.loads(file.read_text())) <= known, file


# --- packages


def test_packages_are_fetched_once_and_without_byte_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fetched = []

    def fetch(library: object, tree: Path) -> None:
        fetched.append(library)
        (tree / "lib/__pycache__").mkdir(parents=True)
        (tree / "lib/a.py").write_text("")

    monkeypatch.setattr(install, "fetch", fetch)
    function = RealFunction("f", Runtime.PYTHON, "does it", ("a==1",))
    folder = vendor.packages_of(function, tmp_path)
    assert folder is not None
    assert vendor.packages_of(function, tmp_path) == folder
    assert [path.name for path in folder.rglob("*")] == ["lib", "a.py"]
    assert len(fetched) == 1


def test_other_versions_of_packages_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(install, "fetch", lambda _library, _tree: None)
    kept = {
        vendor.packages_of(RealFunction("f", runtime, "does it", packages), tmp_path)
        for runtime, packages in (
            (Runtime.PYTHON, ("a==1",)),
            (Runtime.PYTHON, ("a==2",)),
            (Runtime.NODEJS, ("a==1",)),
        )
    }
    assert len(kept) == 3


def test_nothing_is_kept_of_packages_that_could_not_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fetch(_library: object, tree: Path) -> None:
        (tree / "half").write_text("")
        raise install.InstallError("no such package")

    monkeypatch.setattr(install, "fetch", fetch)
    with pytest.raises(install.InstallError):
        vendor.packages_of(RealFunction("f", Runtime.PYTHON, "does it", ("a==1",)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_function_without_packages_has_no_folder(tmp_path: Path):
    assert vendor.packages_of(RealFunction("f", Runtime.GO, "does it"), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


# --- the steady state


@pytest.mark.parametrize(
    ("times_ms", "expected"),
    [
        ([], False),
        ([5.0] * 5, False),  # too few
        ([5.0] * 6, True),
        ([90.0, 80.0, 70.0, 60.0, 50.0, 40.0], False),  # still falling
        ([90.0, 80.0, 70.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0], True),
        ([10.0, 10.0, 10.0, 10.0, 99.0, 10.0], True),  # one slow run
        ([10.0, 10.0, 10.0, 30.0, 30.0, 30.0], True),  # slower is not faster
    ],
)
def test_times_are_steady_once_they_stop_falling(times_ms: list[float], expected: bool):  # noqa: FBT001 - a case
    assert is_steady(times_ms) is expected


class StubAgent:
    """An agent whose compilations end as given, one after each of the first runs."""

    def __init__(self, *ended: Compilation | None, start: str = "hot") -> None:
        self._ended = list(ended)
        self._start = start
        self.runs = 0
        self.runs_before_steady = 0

    async def run(self, _call: object) -> float:
        self.runs += 1
        return 5.0

    async def compiled(self) -> Compilation | None:
        self.runs_before_steady = self.runs
        return self._ended.pop(0)

    async def results(self) -> list[dict[str, str]]:
        return [{"start": "warm"}] * (self.runs - 1) + [{"start": self._start}]


@pytest.mark.parametrize(
    ("ended", "runs", "expected"),
    [
        ([None], 1, True),
        ([Compilation.COMPILED], 1, True),
        ([Compilation.NO_ROOM, Compilation.CANCELLED, Compilation.COMPILED], 3, True),
        ([Compilation.NO_ROOM, Compilation.NOTHING], 2, True),
        ([Compilation.NO_ROOM] * 3, 3, False),
        ([Compilation.FAILED], 1, False),
    ],
    ids=str,
)
async def test_a_function_runs_until_its_code_is_compiled(
    ended: list[Compilation | None],
    runs: int,
    expected: bool,  # noqa: FBT001 - a case
):
    agent = StubAgent(*ended)
    assert await reach_steady_state(cast("Any", agent), cast("Any", None), 0) is expected
    assert agent.runs_before_steady == runs
    assert agent.runs == runs + 6


async def test_a_function_that_does_not_become_hot_is_an_error():
    agent = StubAgent(None, start="warm")
    with pytest.raises(NeverHot, match="warm start"):
        await reach_steady_state(cast("Any", agent), cast("Any", None), 0)


# --- the summary


def row(ratio: float, run: Ratio | None = None) -> Row:
    return Row(
        hot_ms=10 * ratio, bare_ms=10, vs_bare=Ratio(ratio, ratio, ratio), vs_compiled=None, vs_run=run
    )


def test_the_document_has_the_figures_of_each_function_and_of_all():
    summary = Summary({"b": row(0.2, Ratio(0.01, 0, 1)), "a": row(1.2), "c": row(1.5)}, {"d": "no output"})
    document = summaries.as_document(summary, {"cpus": 2})
    assert document["functions"]["b"] == {
        "vs_bare": 0.2,
        "vs_compiled": None,
        "vs_run": 0.01,
        "reuse_vs_bare": None,
        "hot_ms": 2.0,
        "bare_ms": 10.0,
        "reuse_ms": None,
    }
    assert (document["median_vs_bare"], document["max_vs_bare"]) == (1.2, 1.5)
    assert document["above_1_1"] == ["c", "a"]
    assert document["failed"] == {"d": "no output"}
    assert document["machine"] == {"cpus": 2}


def test_a_benchmark_without_figures_has_a_document():
    document = summaries.as_document(Summary(failed={"a": "no package"}), {})
    assert (document["median_vs_bare"], document["max_vs_bare"], document["above_1_1"]) == (None, None, [])
    assert all("not measured" in line for line in summaries.goal_lines(Summary()))


def test_a_goal_is_met_at_its_bound():
    met = summaries.goal_lines(Summary({"a": row(0.1), "b": row(0.6), "c": row(1.1)}))
    assert [line.rpartition(": ")[2] for line in met] == ["met", "met"]
    missed = summaries.goal_lines(Summary({"a": row(0.61), "b": row(1.11)}))
    assert [line.rpartition(": ")[2] for line in missed] == ["missed", "missed"]


def test_the_page_names_the_goals_and_every_function():
    summary = Summary({"a": row(1.2)}, {"b": "exit | code\n1"}, ["the machine was busy"])
    page = summaries.as_markdown(summary, {"a": "adds", "b": "breaks", "c": "not run"}, {"cpus": 2})
    assert "max_vs_bare: 1.2 (goal ≤ 1.1): missed" in page
    assert "| a | 12 | 10 | 1.2 | 1.2 … 1.2 |  |  |  |  | above 1.1 |" in page
    assert "failed: exit \\| code 1 |" in page
    assert "| a | adds |" in page
    assert "not run" not in page
    assert "* the machine was busy" in page


def test_functions_that_were_not_compiled_are_named():
    slow = replace(row(0.5), is_compiled=False)
    assert Summary({"a": row(0.1)}).remarks() == []
    assert Summary({"a": row(0.1), "b": slow}, notes=["busy"]).remarks() == [
        "busy",
        "not compiled, so their hot runs are too slow: b",
    ]


# --- the command


@pytest.mark.parametrize(
    ("failed", "code"), [({}, 0), ({"go-json": "another output"}, 1)], ids=["missed goal", "failed"]
)
def test_only_a_failed_function_changes_the_exit_code(
    failed: dict[str, str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    async def measured(*_: object) -> tuple[Summary, dict[str, object]]:
        return Summary({"cpp-json": row(9.0)}, failed), {"cpus": 2}

    monkeypatch.setattr(command, "measure_all", measured)
    assert command.main(["--only", "cpp-json", "go-json", "--report", str(tmp_path)]) == code
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["failed"] == failed
    assert json.loads((tmp_path / "real.json").read_text()) == last
    assert "cpp-json" in (tmp_path / "real.md").read_text()


def test_an_unknown_function_is_refused():
    with pytest.raises(SystemExit):
        command.arguments(["--only", "no-such-function"])
