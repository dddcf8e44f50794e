"""The demand for generic containers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.container.demand import MEMORY_S, MOST, REFILL_S, Demand, WantedGeneric
from nanoagent.model.job import Runtime


def demand_of(*times: float) -> Demand:
    demand = Demand()
    for at in times:
        demand.record(at)
    return demand


def test_without_starts_nothing_is_wanted():
    assert demand_of().wanted(0.0) == 0


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ([0.0], 1),
        ([0.0, 10.0, 20.0], 1),
        ([0.0, 0.1, 0.2], 3),
        ([0.0, REFILL_S], 2),
        ([0.0, REFILL_S + 0.01], 1),
        ([0.0, 0.1, 10.0], 2),
        ([0.01 * number for number in range(100)], MOST),
    ],
)
def test_as_many_are_wanted_as_were_taken_within_the_time_of_a_refill(times, wanted):
    assert demand_of(*times).wanted(times[-1]) == wanted


def test_a_peak_is_forgotten_after_a_minute():
    demand = demand_of(0.0, 0.1, 0.2, 30.0)
    assert demand.wanted(0.2 + MEMORY_S) == 3
    assert demand.wanted(0.3 + MEMORY_S) == 1
    assert demand.wanted(30.1 + MEMORY_S) == 0


@given(st.lists(st.floats(0.0, 30.0), max_size=60), st.floats(0.0, 120.0))
def test_the_largest_group_of_the_last_minute_is_wanted(gaps, later):
    times = [sum(gaps[: number + 1]) for number in range(len(gaps))]
    now = (times[-1] if times else 0.0) + later
    groups = [
        min(MOST, sum(end - REFILL_S <= at <= end for at in times[: index + 1]))
        for index, end in enumerate(times)
        if now - end <= MEMORY_S
    ]
    found = demand_of(*times).wanted(now)
    assert found == max(groups, default=0)


def test_bound_containers_are_recycled_only_for_the_size_of_the_pool_and_after_a_start():
    now = 0.0
    wanted = WantedGeneric(dict.fromkeys(Runtime, 0) | {Runtime.PYTHON: 2}, lambda: now)
    assert wanted.lately_taken(Runtime.PYTHON) == 0
    seen = []
    for _ in range(3):
        wanted.record_taken(Runtime.PYTHON)
        wanted.record_taken(Runtime.GO)
        seen.append(wanted.lately_taken(Runtime.PYTHON))
    assert (seen, wanted.number(Runtime.PYTHON)) == ([1, 2, 2], 3)
    assert wanted.lately_taken(Runtime.GO) == 0
    now = MEMORY_S + 1
    assert wanted.lately_taken(Runtime.PYTHON) == 0
