"""What a hot run costs its container, for each runtime, counted without a clock (benchmarks/budgets.toml)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.checks import costs

if TYPE_CHECKING:
    from benchmarks.budgets import Budget

    from nanoagent.model.job import Runtime

pytestmark = pytest.mark.timeout(costs.DEADLINE_S + 60)


@pytest.mark.parametrize(("budget", "runtime"), costs.cases("container"))
def test_a_hot_run_costs_its_container_what_is_planned(budget: Budget, runtime: Runtime):
    costs.check(budget, runtime)


def test_every_counter_has_a_budget():
    costs.check_that_all_have_budgets("container")
