import pytest

from nanoagent.common.backoff import Backoff, pause_s


def test_the_pause_doubles_up_to_the_longest():
    pauses = [pause_s(failures, first_s=1, longest_s=30) for failures in range(1, 8)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_the_factor_says_how_fast_it_grows():
    assert [pause_s(n, first_s=15, longest_s=900, factor=4) for n in (1, 2, 3, 4)] == [15, 60, 240, 900]


@pytest.mark.parametrize(("jitter", "expected"), [(0, 8), (0.5, 6), (1, 4)])
def test_the_jitter_takes_away_up_to_half(jitter: float, expected: float):
    assert pause_s(4, first_s=1, longest_s=30, jitter=jitter) == expected


def test_a_first_pause_over_the_longest_is_cut():
    assert pause_s(1, first_s=60, longest_s=30) == 30


def test_an_operation_that_fails_for_months_has_the_longest_pause():
    assert pause_s(10**9, first_s=0.2, longest_s=5) == 5


def test_a_backoff_counts_failures_and_begins_again_after_a_success():
    backoff = Backoff(0.2, 1.0)
    assert [backoff.next_s() for _ in range(4)] == [0.2, 0.4, 0.8, 1.0]
    backoff.reset()
    assert (backoff.next_s(), backoff.next_s(jitter=1.0)) == (0.2, 0.2)
