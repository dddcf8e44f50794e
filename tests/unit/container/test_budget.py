"""The pool's budget of memory and containers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.container.budget import Budget, Shortage
from nanoagent.container.policy import GENERIC_MEMORY_MB
from support.doubles.pooled import pooled

GENERIC = GENERIC_MEMORY_MB


def budget_of(generic: int = 0, *, limit_mb: int = 10 * GENERIC, most_containers: int = 10) -> Budget:
    """A budget with so many generic containers."""
    budget = Budget(limit_mb, most_containers)
    for _ in range(generic):
        budget.begin_creation()
        budget.finish_creation()
    return budget


def test_a_container_counts_from_the_beginning_of_its_creation():
    budget = budget_of()
    budget.begin_creation()
    assert (budget.committed_mb, budget.creating, budget.running) == (GENERIC, 1, 0)
    budget.finish_creation()
    assert (budget.committed_mb, budget.creating, budget.running) == (GENERIC, 0, 1)


def test_a_creation_that_fails_leaves_nothing():
    budget = budget_of()
    budget.begin_creation()
    budget.fail_creation()
    assert budget == budget_of()


def test_a_container_counts_with_the_memory_that_it_was_given_last():
    budget, container = budget_of(1), pooled(memory_mb=GENERIC)
    budget.resize(container, 300)
    assert (budget.committed_mb, container.memory_mb) == (300, 300)
    budget.resize(container, 200)
    assert (budget.committed_mb, container.memory_mb) == (200, 200)


def test_a_removal_frees_memory_at_once_and_the_number_when_it_ends():
    budget = budget_of(1, most_containers=1)
    budget.begin_removal(pooled(memory_mb=GENERIC))
    assert (budget.committed_mb, budget.running, budget.removing) == (0, 0, 1)
    assert not budget.fits_generic()
    budget.finish_removal()
    assert budget.fits_generic()


@pytest.mark.parametrize(
    ("memory_mb", "shortage"),
    [(-5, None), (0, None), (8 * GENERIC, None), (8 * GENERIC + 1, Shortage(1, 0))],
)
def test_the_shortage_is_the_memory_that_is_over_the_limit(memory_mb, shortage):
    assert budget_of(2).shortage(memory_mb) == shortage


def test_a_budget_that_is_exceeded_already_has_a_shortage_even_for_nothing():
    budget = budget_of(2)
    budget.resize(pooled(memory_mb=GENERIC), 20 * GENERIC)
    assert budget.shortage(0) == Shortage(11 * GENERIC, 0)


@pytest.mark.parametrize(
    ("most_containers", "shortage"),
    [(4, None), (3, Shortage(-7 * GENERIC, 1)), (2, Shortage(-7 * GENERIC, 2))],
)
def test_a_container_that_is_being_created_counts_in_the_number(most_containers, shortage):
    budget = budget_of(2, most_containers=most_containers)
    budget.begin_creation()
    assert budget.shortage(0, containers=1) == shortage
    assert budget.shortage(0) is None  # the number does not matter where none is created


def test_a_creation_waits_for_removals_at_the_limit_though_no_more_have_to_be_evicted():
    budget = budget_of(2, most_containers=2)
    budget.begin_removal(pooled(memory_mb=GENERIC))
    assert budget.shortage(GENERIC, containers=1) == Shortage(-8 * GENERIC, 0)
    budget.finish_removal()
    assert budget.shortage(GENERIC, containers=1) is None


@pytest.mark.parametrize(("wanted_mb", "fits"), [(0, True), (GENERIC, True), (GENERIC + 1, False)])
def test_a_generic_container_fits_beside_the_memory_that_jobs_wait_for(wanted_mb, fits):
    budget = budget_of(8)
    with budget.wanting(wanted_mb):
        assert budget.fits_generic() is fits
        assert budget.allows_refill(0) is fits
    assert budget.wanted_mb == 0


def test_what_a_job_wants_is_forgotten_when_it_stops_waiting():
    budget = budget_of()
    with pytest.raises(ZeroDivisionError), budget.wanting(100):
        raise ZeroDivisionError
    assert budget.wanted_mb == 0


@pytest.mark.parametrize(("planned", "allows"), [(0, True), (1, True), (2, False)])
def test_a_refill_leaves_room_for_the_creations_that_are_planned(planned, allows):
    assert budget_of(8).allows_refill(planned) is allows
    assert budget_of(3, most_containers=5).allows_refill(planned) is allows


@given(
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(0, 12 * GENERIC),
    st.integers(0, 12 * GENERIC),
    st.integers(1, 12),
)
def test_where_a_generic_container_fits_nothing_is_missing_for_it(up, creating, wanted, limit, most):
    budget = budget_of(up, limit_mb=limit, most_containers=most)
    for _ in range(creating):
        budget.begin_creation()
    budget.wanted_mb = wanted
    if budget.allows_refill(planned=creating):
        assert budget.fits_generic()
    if budget.fits_generic():
        assert budget.shortage(GENERIC, containers=1) is None


# --- one more container


@pytest.mark.parametrize(
    ("idle_mb", "peak_mb", "waiting_mb", "missing_mb"),
    [
        (500, 0, 0, None),
        (500, 400, 0, None),
        (500, 490, 0, 8),  # as many jobs as lately leave no room
        (500, 0, 490, 8),  # the jobs that wait leave no room
        (500, 400, 490, 8),
        (990, 0, 0, 8),
    ],
)
def test_one_more_container_is_compared_with_the_runs_of_the_last_time(
    idle_mb, peak_mb, waiting_mb, missing_mb
):
    budget = Budget(1000, 100)
    idle, busy = pooled(memory_mb=0), pooled(memory_mb=0)
    budget.resize(idle, idle_mb)
    budget.lend(busy, peak_mb)
    budget.take_back(busy, 0)
    shortage = budget.coming_shortage(18, waiting_mb)
    assert (shortage.memory_mb if shortage else None) == missing_mb


@pytest.mark.parametrize(("run_mb", "missing_mb"), [(400, None), (490, 8)])
def test_a_build_that_has_ended_needs_no_room(run_mb, missing_mb):
    budget = Budget(1000, 100)
    idle, busy, building = pooled(memory_mb=0), pooled(memory_mb=0), pooled(memory_mb=0)
    budget.resize(idle, 500)
    budget.lend(busy, run_mb)
    budget.take_back(busy, 0)
    budget.lend(building, 450, is_run=False)
    assert not budget.is_unused
    during = budget.coming_shortage(18, 0)
    assert during == Shortage(450 + run_mb + 18 - 500, 0)  # it does need room until then
    budget.take_back(building, 0)
    after = budget.coming_shortage(18, 0)
    assert (after.memory_mb if after else None) == missing_mb
    assert (budget.is_unused, budget.runs_mb, budget.peaks_mb) == (True, 0, (run_mb, 0))


def test_a_peak_is_forgotten_after_two_calls():
    budget = Budget(1000, 100)
    busy, other = pooled(memory_mb=18), pooled(memory_mb=18)
    for container in (busy, other):
        budget.resize(container, 18)
        budget.lend(container, 146)
    assert (budget.runs_mb, budget.peaks_mb) == (256, (256, 0))
    budget.take_back(busy, 18)
    budget.begin_peak()
    assert (budget.runs_mb, budget.peaks_mb) == (128, (128, 256))
    budget.begin_removal(other)
    budget.begin_peak()
    assert (budget.runs_mb, budget.peaks_mb) == (0, (0, 128))
    budget.begin_peak()
    assert budget.peaks_mb == (0, 0)
