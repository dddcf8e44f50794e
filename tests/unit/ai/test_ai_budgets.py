from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nanoagent.ai.budgets import FunctionBudget, FunctionBudgets, Reservation, RunBudget
from nanoagent.ai.limits import RunLimits
from nanoagent.ai.refusals import Refused

UNHURRIED = hypothesis_settings(deadline=None)  # the machine is shared


def reserve(budget: RunBudget, prompt: int = 0, wanted: int | None = None, *, answers: int = 1):
    return budget.reserve(prompt, wanted, answers=answers)


def test_without_a_limit_nothing_is_bounded():
    reservation = reserve(RunBudget(RunLimits()), 10_000)
    assert reservation.cap is None
    assert not reservation.is_exceeded_with(10**9)


def test_a_call_gets_what_it_asks_for_or_what_is_left():
    budget = RunBudget(RunLimits(tokens=100, concurrent=1))
    assert reserve(budget, 10, 20).cap == 20
    assert budget.reserved == 30
    assert reserve(budget, 10, 1000).cap == 60
    assert budget.reserved == 100


def test_what_was_not_used_is_free_again():
    budget = RunBudget(RunLimits(tokens=100, concurrent=1))
    reservation = reserve(budget, 10, 90)
    with pytest.raises(Refused, match=r"100 are reserved by calls in flight") as refusal:
        reserve(budget, 1, 1)
    assert refusal.value.retry_after_s == 1  # it will be free
    reservation.settle(15)
    assert (budget.used, budget.reserved) == (15, 0)
    assert reserve(budget, 5, 1000).cap == 80


def test_what_is_used_up_is_not_worth_asking_again():
    budget = RunBudget(RunLimits(tokens=100, concurrent=1))
    reserve(budget, 0, 100).settle(100)
    with pytest.raises(Refused, match=r"used 100 of its 100 tokens \(AI_MAX_TOKENS=100\)") as refusal:
        reserve(budget, 0, 1)
    assert refusal.value.retry_after_s is None


def test_one_that_names_no_bound_leaves_room_for_those_beside_it():
    budget = RunBudget(RunLimits(tokens=8000, concurrent=8))
    with budget.request():
        assert reserve(budget).cap == 1000
        with budget.request():
            assert reserve(budget).cap == 1000


def test_each_of_many_answers_needs_a_token():
    budget = RunBudget(RunLimits(tokens=2000, concurrent=8))
    with pytest.raises(Refused, match="needs about 10010"):
        reserve(budget, 10, 10_000, answers=10_000)
    with budget.request():
        assert reserve(budget, 10, answers=1500).cap == 1500  # not the share of one call beside others


def test_one_that_has_no_answer_needs_its_prompt_only():
    budget = RunBudget(RunLimits(tokens=100, concurrent=1))
    reservation = reserve(budget, 100, answers=0)
    assert (reservation.cap, budget.reserved) == (0, 100)


@UNHURRIED
@given(
    st.integers(1, 5000),
    st.lists(
        st.tuples(st.integers(0, 500), st.none() | st.integers(0, 3000), st.integers(0, 100)), max_size=60
    ),
)
def test_calls_that_keep_to_their_bounds_never_overrun_the_run(limit, calls):
    """Whatever order they come and end in, when prompts are no longer than estimated."""
    budget = RunBudget(RunLimits(tokens=limit, concurrent=8))
    open_calls: list[tuple[Reservation, int]] = []
    for prompt, wanted, share in calls:
        try:
            reservation = reserve(budget, prompt, wanted)
        except Refused:
            if open_calls:
                reservation, most = open_calls.pop(0)
                reservation.settle(most)
            continue
        assert reservation.cap is not None
        open_calls.append((reservation, (prompt + reservation.cap) * share // 100))
        assert budget.used + budget.reserved <= limit
    for reservation, most in open_calls:
        reservation.settle(most)
    assert budget.used <= limit
    assert budget.reserved == 0


def test_requests_at_once_and_altogether_are_counted():
    budget = RunBudget(RunLimits(requests=3, concurrent=1))
    for _ in range(2):
        with budget.request(), pytest.raises(Refused, match="AI_MAX_CONCURRENT=1"), budget.request():
            pass
    with budget.request():
        pass
    with pytest.raises(Refused, match="AI_MAX_REQUESTS=3"), budget.request():
        pass


def test_a_function_gains_what_it_may_use_steadily_and_pays_off_what_it_owes():
    now = [0.0]
    budget = FunctionBudget(60, lambda: now[0])
    assert budget.left(60) == 60
    budget.spend(90)
    with pytest.raises(Refused, match="AI_FUNCTION_TOKENS_PER_MINUTE=60") as refusal:
        budget.left(1)
    assert refusal.value.retry_after_s == 31
    now[0] = 31
    assert budget.left(1) == 1
    now[0] = 1000
    assert budget.left(1) == 60  # no more than a minute's


def test_one_call_that_no_minute_has_room_for_is_not_told_to_wait():
    with pytest.raises(Refused) as refusal:
        FunctionBudget(60, lambda: 0.0).left(61)
    assert refusal.value.retry_after_s is None


def test_a_functions_budget_bounds_a_runs():
    now = [0.0]
    functions = FunctionBudgets(60, lambda: now[0])
    first, second = (RunBudget(RunLimits(concurrent=1), functions.get("f")) for _ in range(2))
    assert reserve(first, 10, 30).cap == 30
    assert reserve(second, 10, 30).cap == 10
    with pytest.raises(Refused, match="function"):
        reserve(second, 1, 1)


def test_what_is_remembered_of_functions_is_bounded_and_debts_go_last(monkeypatch):
    monkeypatch.setattr("nanoagent.ai.budgets._MAX_FUNCTIONS", 4)
    functions = FunctionBudgets(60, lambda: 0.0)
    owing = functions.get("owing")
    assert owing is not None
    owing.spend(100)
    for number in range(50):
        functions.get(f"f{number}")
    assert functions.get("owing") is owing
    assert len(functions._budgets) <= 4
    assert FunctionBudgets(0, lambda: 0.0).get("f") is None
