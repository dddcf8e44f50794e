from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.model.job import Runtime
from nanoagent.worker.durations import FUNCTIONS, SAMPLES, Durations, will_finish
from support.doubles.fakes import make_job

HOUR_S = 3600.0
NO_LIMIT_S = 12 * HOUR_S

seconds = st.floats(min_value=0, max_value=1e5)
histories = st.lists(seconds, max_size=SAMPLES)


@pytest.mark.parametrize(
    ("elapsed_s", "grace_s", "history", "expected"),
    [
        pytest.param(0, 120, [], None, id="nothing is known"),
        pytest.param(0, 120, [HOUR_S] * 2, None, id="two show no pattern"),
        pytest.param(0, 120, [HOUR_S] * 3, False, id="all took longer than the grace"),
        pytest.param(0, 120, [1.0] * 20, True, id="all were done in time"),
        pytest.param(HOUR_S - 60, 120, [HOUR_S] * 20, True, id="nearly done"),
        pytest.param(HOUR_S - 180, 120, [HOUR_S] * 20, False, id="a minute too early"),
        pytest.param(0, 120, [1.0] * 10 + [HOUR_S] * 10, None, id="one of two kinds"),
        pytest.param(60, 120, [1.0] * 10 + [HOUR_S] * 10, False, id="of the long kind, as has shown"),
        pytest.param(0, 120, [1.0] * 18 + [HOUR_S] * 2, True, id="nine in ten are enough to wait"),
        pytest.param(0, 120, [1.0] * 2 + [HOUR_S] * 18, False, id="one in ten is not"),
        pytest.param(2 * HOUR_S, 120, [HOUR_S] * 20, None, id="longer than any before"),
        pytest.param(0, 0, [0.001] * 20, False, id="no grace at all"),
    ],
)
def test_a_job_is_waited_for_by_what_earlier_ones_took(elapsed_s, grace_s, history, expected):
    assert will_finish(elapsed_s, grace_s, history, NO_LIMIT_S) is expected


def test_a_job_whose_own_time_is_over_before_is_waited_for():
    assert will_finish(10, 120, [HOUR_S] * 20, 60) is True


@given(seconds, seconds, histories, seconds, seconds)
def test_more_grace_never_makes_a_job_hopeless(elapsed_s, grace_s, history, timeout_s, more_s):
    rank = {False: 0, None: 1, True: 2}
    less = will_finish(elapsed_s, grace_s, history, timeout_s)
    more = will_finish(elapsed_s, grace_s + more_s, history, timeout_s)
    assert rank[more] >= rank[less]


@given(seconds, seconds, histories, seconds)
def test_what_is_given_up_would_not_have_finished_nine_times_in_ten(elapsed_s, grace_s, history, timeout_s):
    if will_finish(elapsed_s, grace_s, history, timeout_s) is False:
        longer = [duration for duration in history if duration > elapsed_s]
        assert len(longer) >= 3
        assert sum(duration <= elapsed_s + grace_s for duration in longer) <= math.floor(len(longer) / 10)


def test_the_last_durations_are_kept_and_no_more():
    history = Durations()
    for number in range(SAMPLES + 5):
        history.add(make_job(), float(number))
    assert history.of(make_job()) == tuple(float(number) for number in range(5, SAMPLES + 5))


@pytest.mark.parametrize(
    "other",
    [
        {"function_id": "g"},
        {"runtime": Runtime.NODEJS},
        {"s3_bucket": "another"},
        {"s3_key": "g.zip"},
        {"memory_mb": 256},
    ],
)
def test_versions_do_not_speak_for_each_other(other):
    history = Durations()
    history.add(make_job(), 1.0)
    assert history.of(make_job(**other)) == ()
    assert history.of(make_job(request_id="another", timeout_ms=5, payload=b"[]")) == (1.0,)


def test_the_versions_that_have_not_run_for_longest_are_forgotten():
    history = Durations(functions=2)
    for name in ("a", "b", "a", "c"):
        history.add(make_job(function_id=name), 1.0)
    assert [len(history.of(make_job(function_id=name))) for name in "abc"] == [2, 0, 1]


def test_what_is_remembered_is_bounded():
    history = Durations()
    for number in range(2 * FUNCTIONS):
        for _ in range(SAMPLES + 1):
            history.add(make_job(function_id=f"f{number}"), 1.0)
    assert len(history._durations) == FUNCTIONS
    size = sum(sys.getsizeof(kept) + sys.getsizeof(version) for version, kept in history._durations.items())
    assert size < 2**20
