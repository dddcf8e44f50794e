"""The counts of a hot job, compared with benchmarks/budgets.toml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from benchmarks import budgets
from benchmarks.budgets import Verdict

from nanoagent.model.job import Runtime
from support.checks.matrix import EXHAUSTIVE

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet
    from benchmarks.budgets import Budget

PROJECT = Path(__file__).parents[3]
DEADLINE_S = 400
BUDGETS = budgets.read()


@cache
def counted(side: str, runtime: Runtime) -> dict[str, dict[str, float]]:
    """Count once for all tests, in a separate process: the counters slow down and change its event loop."""
    command = [sys.executable, "-m", "benchmarks.counts", side, runtime]
    ended = subprocess.run(
        command,
        check=False,
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": f"{PROJECT / 'src'}:{PROJECT}"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert ended.returncode == 0, ended.stderr
    document: dict[str, dict[str, float]] = json.loads(ended.stdout.splitlines()[-1])
    return document


def cases(side: str) -> list[ParameterSet]:
    """Return the budgets of a side, each with each runtime.

    The agent does the same for both interpreted languages, and for both compiled languages. So `make test`
    counts one of each.
    """
    return [
        pytest.param(
            budget,
            runtime,
            id=f"{runtime}-{budget.counter}",
            marks=EXHAUSTIVE if side == "agent" and runtime in {Runtime.NODEJS, Runtime.GO} else (),
        )
        for runtime in Runtime
        for budget in BUDGETS
        if budget.side == side
    ]


def check(budget: Budget, runtime: Runtime) -> None:
    """Count, and fail if the count is over the budget or far below it. Skip if it cannot be counted here."""
    document = counted(budget.side, runtime)
    if budget.counter in document["skipped"]:
        pytest.skip(str(document["skipped"][budget.counter]))
    check_count(budget, runtime, document["counts"][budget.counter])


def check_count(budget: Budget, runtime: Runtime, measured: float) -> None:
    """Fail if the count is over the budget or far below it."""
    assert budget.judge(runtime, measured) is Verdict.KEPT, budget.message(runtime, measured)


def check_that_all_have_budgets(side: str) -> None:
    """Fail if a counter has no budget, or a budget has no counter."""
    document = counted(side, Runtime.PYTHON)
    assert document["counts"].keys() | document["skipped"].keys() == {
        budget.counter for budget in BUDGETS if budget.side == side
    }
