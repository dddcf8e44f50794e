import pytest

from nanoagent.common.token_bucket import TokenBucket


def test_who_takes_tokens_too_fast_is_made_to_wait():
    bucket = TokenBucket.full(10.0, 3, now=0.0)
    assert [bucket.delay_s(0.0) for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    assert bucket.delay_s(0.2) == pytest.approx(0.1)


def test_what_was_not_taken_does_not_pile_up():
    bucket = TokenBucket.full(10.0, 3, now=0.0)
    assert bucket.level(100.0) == 3
    assert [bucket.delay_s(100.0) for _ in range(4)] == pytest.approx([0, 0, 0, 0.1])


def test_a_token_is_taken_only_if_there_is_one():
    bucket = TokenBucket.full(1.0, 2, now=0.0)
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]
    assert [bucket.take(1.0), bucket.take(1.0)] == [True, False]


def test_tokens_of_a_minute_come_back_within_it():
    bucket = TokenBucket.full(600, 600, now=0.0, period_s=60)
    bucket.spend(700, 0.0)
    assert (bucket.level(0.0), bucket.debt_s(0.0)) == (-100, 10)
    assert bucket.level(30.0) == 200
