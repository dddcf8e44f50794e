from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.container.eviction import Candidate, UseForecast, choose_recycled, choose_victims

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

MIB = 1 << 20
SIZES = st.integers(1, 50)
VALUES = st.sampled_from([0.0, 0.5, 1.0, 1.5, math.inf])
CANDIDATES = st.lists(st.tuples(SIZES, VALUES), max_size=20).map(
    lambda rows: [Candidate(number, size, value) for number, (size, value) in enumerate(rows)]
)


def total(candidates: Iterable[Candidate[int]]) -> int:
    return sum(candidate.size_bytes for candidate in candidates)


# --- victims


@given(CANDIDATES, st.integers(-5, 300), st.integers(0, 5))
def test_victims_free_what_is_asked_if_it_is_available(candidates, need_bytes, number):
    victims = choose_victims(candidates, need_bytes, number)
    assert set(victims) <= set(candidates)
    assert len(set(victims)) == len(victims)
    assert total(victims) >= min(need_bytes, total(candidates))
    assert len(victims) >= min(number, len(candidates))


@given(CANDIDATES, st.integers(-5, 300), st.integers(0, 5))
def test_no_victim_can_be_left_out(candidates, need_bytes, number):
    victims = choose_victims(candidates, need_bytes, number)
    for victim in victims:
        freed_bytes = total(victims) - victim.size_bytes
        assert freed_bytes < need_bytes or len(victims) - 1 < number


@given(CANDIDATES, st.integers(-5, 300), st.integers(0, 5))
def test_a_container_is_spared_only_if_no_more_valuable_victim_has_its_size(candidates, need_bytes, number):
    victims = choose_victims(candidates, need_bytes, number)
    spared = set(candidates) - set(victims)
    assert [victim.value for victim in victims] == sorted(victim.value for victim in victims)
    for victim in victims:
        assert not any(
            other.value < victim.value and other.size_bytes >= victim.size_bytes for other in spared
        )


# --- recycling


@pytest.mark.parametrize(
    ("suitable", "need_bytes", "chosen"),
    [
        # a is worth 10, b 20, c 60, d 10
        ("abcd", 10, "a"),  # instead of an eviction of a
        ("bc", 10, None),  # a would be evicted, which is worth less than b
        ("bc", 20, "b"),  # a and d would be evicted, which are worth as much as b
        ("c", 30, None),  # a, d and b would be evicted
        ("c", 60, "c"),
        ("c", 1000, "c"),
        ("", 10, None),
        ("bc", -5, None),  # nothing would be evicted
    ],
)
def test_a_container_is_recycled_if_it_is_worth_no_more_than_the_victims(suitable, need_bytes, chosen):
    candidates = [
        Candidate("a", 10, 1.0),
        Candidate("b", 10, 2.0),
        Candidate("c", 30, 2.0),
        Candidate("d", 10, 1.0),
    ]
    assert choose_recycled(candidates, lambda item: item in suitable, need_bytes) == chosen


def test_a_container_is_recycled_to_keep_a_generic_one():
    candidates = [Candidate("bound", 10, 1e9), Candidate("generic", 10, math.inf)]
    assert choose_recycled(candidates, lambda item: item == "bound", 15) == "bound"


@given(CANDIDATES, st.integers(-5, 300), st.integers(0, 5), st.integers(0, 19))
def test_only_a_suitable_container_is_recycled_and_the_least_valuable(candidates, need_bytes, number, most):
    chosen = choose_recycled(candidates, lambda item: item <= most, need_bytes, number)
    worths = {one.item: one.value * one.size_bytes for one in candidates if one.item <= most}
    assert chosen is None or worths[chosen] == min(worths.values())


def items(victims: Sequence[Candidate[str]]) -> list[str]:
    return [victim.item for victim in victims]


def test_several_small_containers_make_room_for_a_large_one():
    candidates = [
        Candidate("a", 4, 3.0),
        Candidate("b", 4, 1.0),
        Candidate("c", 4, 2.0),
        Candidate("d", 4, 9.0),
    ]
    assert items(choose_victims(candidates, 10)) == ["b", "c", "a"]


def test_a_small_container_is_spared_if_the_large_one_after_it_is_enough():
    assert items(choose_victims([Candidate("small", 4, 1.0), Candidate("large", 50, 2.0)], 40)) == ["large"]


def test_of_equal_values_the_earlier_candidate_is_evicted():
    assert items(choose_victims([Candidate("a", 4, 1.0), Candidate("b", 4, 1.0)], 1)) == ["a"]


def test_an_infinite_value_is_evicted_last_but_is_evicted():
    candidates = [Candidate("generic", 4, math.inf), Candidate("bound", 4, 7.0)]
    assert items(choose_victims(candidates, 1)) == ["bound"]
    assert items(choose_victims(candidates, 8)) == ["bound", "generic"]


# --- the forecast


def value(forecast: UseForecast, key: Hashable, now: float, *, rank: int = 0) -> float:
    return forecast.value(key, rank=rank, size_bytes=18 * MIB, cold_ms=250, now=now)


def use_regularly(forecast: UseForecast, keys: Sequence[Hashable], interval_s: float, until_s: float) -> None:
    """Use the keys in turn, each at the interval."""
    step_s = interval_s / len(keys)
    for number in range(int(until_s / step_s)):
        forecast.record_use(keys[number % len(keys)], number * step_s)


def test_in_a_round_robin_the_most_recent_uses_have_the_lowest_values():
    forecast = UseForecast()
    keys = list(range(100))
    use_regularly(forecast, keys, 30, 300)
    by_value = sorted(keys, key=lambda key: value(forecast, key, 300))
    assert set(by_value[:2]) <= {97, 98, 99}  # used in the last second
    assert set(by_value[-10:]) <= set(range(25))  # used again in the next eight seconds


def test_functions_of_a_sweep_are_worth_less_than_a_function_in_regular_use():
    forecast = UseForecast()
    now = 0.0
    for number in range(3000):
        now = number * 0.1
        forecast.record_use(("swept", number), now)
        if number % 300 == 0:
            forecast.record_use("regular", now)
    assert value(forecast, ("swept", 2990), now) < value(forecast, "regular", now)
    assert value(forecast, ("swept", 2000), now) < value(forecast, "regular", now)


def test_abandoned_functions_of_others_with_the_same_interval_make_room_first():
    forecast = UseForecast()
    events = [(60.0 * round_ + key / 2, f"abandoned {key}") for round_ in range(4) for key in range(100)]
    events += [(60.0 * round_ + 55, "regular") for round_ in range(8)]
    for now, key in sorted(events):
        forecast.record_use(key, now)
    now = 500.0
    assert value(forecast, "regular", now) > 3 * value(forecast, "abandoned 99", now)


def test_a_function_that_is_no_longer_used_loses_its_value_within_minutes():
    forecast = UseForecast()
    events = [(float(second), "popular") for second in range(600)]
    events += [(second * 60.0 + key, f"steady {key}") for second in range(15) for key in range(20)]
    for now, key in sorted(events):
        forecast.record_use(key, now)
    assert value(forecast, "popular", 600.5) > 5 * value(forecast, "steady 0", 600.5)
    for number in range(20):
        forecast.record_use(f"steady {number}", 900.0)
    assert value(forecast, "popular", 930.0) < value(forecast, "steady 0", 930.0)


def test_a_burst_counts_as_one_use():
    forecast = UseForecast()
    events = [
        (300.0 * round_ + key + 0.1 * job, f"burst {key}")
        for round_ in range(12)
        for key in range(10)
        for job in range(30)
    ]
    events += [(60.0 * round_ + key, f"steady {key}") for round_ in range(60) for key in range(10)]
    for now, key in sorted(events):
        forecast.record_use(key, now)
    # Both have been unused for half a minute. The burst had five times as many jobs, but comes back later.
    now = 3600.0
    for job in range(30):
        forecast.record_use("burst 0", now + 0.1 * job)
    forecast.record_use("steady 0", now + 3)
    assert value(forecast, "burst 0", now + 33) < value(forecast, "steady 0", now + 33)


def test_the_second_container_of_a_function_is_worth_less_than_the_first():
    forecast = UseForecast()
    for number in range(500):
        forecast.record_use("f", 2.0 * number)
        if number % 20 == 0:
            forecast.record_use("f", 2.0 * number + 0.5, rank=1)
    assert value(forecast, "f", 1001, rank=0) > 5 * value(forecast, "f", 1001, rank=1) > 0


def test_the_value_is_proportional_to_the_cold_cost_and_to_the_inverse_of_the_size():
    forecast = UseForecast()
    forecast.record_use("f", 0)
    one = forecast.value("f", rank=0, size_bytes=MIB, cold_ms=100, now=5)
    assert forecast.value("f", rank=0, size_bytes=2 * MIB, cold_ms=300, now=5) == pytest.approx(1.5 * one)
    assert forecast.value("f", rank=0, size_bytes=0, cold_ms=100, now=5) == pytest.approx(MIB * one)


def test_an_unknown_key_has_no_value():
    forecast = UseForecast()
    forecast.record_use("f", 0)
    assert value(forecast, "g", 1) == value(forecast, "f", 1, rank=1) == 0


def test_the_longest_unused_key_is_forgotten():
    forecast = UseForecast(max_keys=2)
    for now, key in enumerate("abac"):
        forecast.record_use(key, now)
    assert len(forecast) == 2
    assert value(forecast, "b", 4) == 0
    assert value(forecast, "a", 4) > 0


@pytest.mark.parametrize("step_s", [0.0, 0.001, 1.0, 10_000.0])
def test_a_flood_of_functions_takes_bounded_memory(step_s):
    forecast = UseForecast(max_keys=32)
    for number in range(2000):
        forecast.record_use(number, number * step_s, rank=number % 3)
    assert len(forecast) == 32
    assert len(forecast._due) <= 64


def test_after_a_pause_the_checks_that_are_due_are_spread_over_the_next_uses():
    forecast = UseForecast()
    for key in range(100):
        forecast.record_use(key, 0.0)
    for number, due in enumerate([84, 68, 52, 36, 20, 4, 0]):
        forecast.record_use("f", 1e5 + number / 10)
        assert sum(due_s <= 1e5 for due_s, _, _ in forecast._due) == due


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([0.0, 1e-9, 0.5, 1.0, math.sqrt(2), 2.0, 1e3, 1e7])),
        max_size=60,
    )
)
def test_values_are_finite_for_any_times(uses):
    forecast, now = UseForecast(max_keys=4), 0.0
    for key, step_s in uses:
        now += step_s
        forecast.record_use(key, now)
    for key in range(5):
        for age_s in (0.0, 1.0, 1e4, 1e9):
            rate = value(forecast, key, now + age_s) * 18 * MIB / 250
            assert 0 <= rate <= 2  # at most one use in the middle of the first bin, which is half a second


def test_the_forecast_follows_a_load_that_changes():
    forecast = UseForecast()
    keys = list(range(50))
    use_regularly(forecast, keys, 20, 400)
    before = value(forecast, 0, 415.0)
    now = 400.0
    for number in range(3000):  # the same functions, ten times as seldom
        now = 400.0 + number * 4
        forecast.record_use(keys[number % 50], now)
    assert value(forecast, keys[2999 % 50], now + 15) < before / 3
