"""The benchmark program gives every figure, also in the shortest time. No figure is judged here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.figures import KEYS

from support.checks.matrix import EXHAUSTIVE

PROJECT = Path(__file__).parents[2]
DEADLINE_S = 600  # about 20 s on an idle machine; no time is judged
# These measurements compile programs and libraries, or do the same with another program.
SLOW = [
    "go_miss_vs_cold",
    "cpp_miss_vs_stock",
    "go_hello",
    "node_hello",
    "python_hello_b2b",
]
QUICK = [key for key in KEYS if key not in SLOW]


@pytest.mark.timeout(DEADLINE_S + 60)
@pytest.mark.parametrize("keys", [QUICK, pytest.param(SLOW, marks=EXHAUSTIVE)], ids=["quick", "slow"])
def test_the_benchmark_has_a_value_for_every_figure_and_nothing_fails(keys: list[str]):
    document, errors = run("benchmarks.bench", "--seconds", "0.1", "--only", *keys)
    assert document["failed"] == {}, errors
    assert set(document["skipped"]) == expected_to_be_skipped(keys), errors
    for key in keys:
        parts = KEYS[key]
        values = document[key] if parts else {"": document[key]}
        for part, value in values.items():
            name = f"{key}.{part}".rstrip(".")
            assert name in document["skipped"] or value > 0, name


@pytest.mark.timeout(DEADLINE_S + 60)
def test_the_benchmark_of_many_functions_has_a_value_for_every_figure():
    parts = ("--only", "passes", "mix", "--functions", "1", "2", "--jobs", "2", "--seconds", "1")
    document, errors = run("benchmarks.many", "--runtimes", "python", *parts)
    assert document["failed"] == [], errors
    assert set(document["functions"]) == {"1", "2"}
    for load in (*document["functions"].values(), document["mix"]):
        assert load["jobs_per_s"] > 0
    assert document["idle_mb"]["python"] > 0


@pytest.mark.timeout(DEADLINE_S + 60)
def test_the_benchmark_of_exec_has_a_value_for_every_figure():
    document, errors = run("benchmarks.exec_loop", "--runtimes", "python", "--rounds", "1")
    assert document["failed"] == {}, errors
    figures = document["runtimes"]["python"]
    for name in ("first_s", "first_vs_docker_run", "saved_ms", "bare_ms", "saved_vs_bare"):
        assert figures[name] > 0, name
    assert set(figures["goals"]) == {"first_s <= 2.5", "saved_ms <= 150"}


def run(module: str, *options: str) -> tuple[dict[str, Any], str]:
    """Run a benchmark; return its document and its standard error."""
    command = [sys.executable, "-m", module, *options]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # it removes its containers
            output, errors = process.communicate()
            pytest.fail(f"the benchmark did not end within {DEADLINE_S} s:\n{errors}")
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1]), errors


def expected_to_be_skipped(keys: list[str]) -> set[str]:
    """Return what a machine without Docker's command line cannot measure."""
    if shutil.which("docker") is not None:
        return set()
    return {
        f"{key}.vs_run" if parts else key
        for key, parts in KEYS.items()
        if key in keys
        if "vs_run" in parts or key == "throughput_vs_run"
    }
