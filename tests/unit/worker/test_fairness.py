from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.common.backoff import Backoff
from nanoagent.worker import fairness
from nanoagent.worker.fairness import (
    MAX_WAITING,
    MAX_WAITING_PER_FUNCTION,
    ReceiveThrottle,
    count_over_limit,
    exceeds_waiting,
    has_max_waiting,
    return_delay_s,
)
from support.agents.worker_rig import Rig, name_of
from support.doubles.fakes import message

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

counts = st.dictionaries(st.sampled_from("fghi"), st.integers(1, 2 * MAX_WAITING_PER_FUNCTION))


# --- the rules


@given(counts, st.integers(0, 5))
def test_beyond_the_share_are_those_for_which_it_has_nothing_left(waiting, left):
    jobs = [(function, left) for function, count in waiting.items() for _ in range(count)]
    over_limit = count_over_limit(jobs)
    assert over_limit == {function: count - left for function, count in waiting.items() if count > left}


@given(counts)
def test_who_is_one_too_many_found_it_full(waiting):
    over_limit = Counter(waiting)
    for function in over_limit:
        if exceeds_waiting(over_limit, function):
            assert has_max_waiting(over_limit - Counter({function: 1}))


@given(st.lists(st.sampled_from("fghi"), max_size=80))
def test_so_many_wait_and_no_more_whoever_comes(arrivals):
    here: Counter[str] = Counter()
    for function in arrivals:
        here[function] += 1
        if exceeds_waiting(here, function):
            here[function] -= 1
    assert max(here.values(), default=0) <= MAX_WAITING_PER_FUNCTION
    assert here.total() <= MAX_WAITING


def test_a_function_with_nothing_beyond_its_share_is_never_one_too_many():
    assert not exceeds_waiting(Counter(f=15, g=15), "h")


@given(st.integers(1, 2**31), st.floats(0, 1e6), st.floats(0, 1))
def test_what_goes_back_stays_away_within_bounds(receive_count, waited_s, jitter):
    assert 1 <= return_delay_s(receive_count, waited_s, jitter) <= 120


def test_what_goes_back_stays_away_longer_each_time_but_no_longer_than_its_function_has_been_here():
    assert [return_delay_s(count, 1000, 0) for count in range(1, 8)] == [4, 8, 16, 32, 64, 120, 120]
    assert return_delay_s(5, 7, 0) == 7
    assert return_delay_s(5, 0.2, 0) == 1
    assert return_delay_s(2, 1000, 1) == 4


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_flood_has_to_stand_for_half_a_second_and_is_looked_past_ever_more_slowly():
    clock = Clock()
    throttle = ReceiveThrottle(clock)
    assert throttle.next_pause_s() == 0.5
    clock.now += 0.375
    assert throttle.next_pause_s() == 0.125
    clock.now += 0.125
    pauses = []
    for _ in range(13):
        assert throttle.next_pause_s() == 0
        throttle.received()
        pauses.append(throttle.next_pause_s())
        clock.now += pauses[-1]
    assert pauses[:3] == [0.5, 0.625, 0.78125]
    assert pauses[-2:] == [5, 5]
    throttle.found_below_limit()
    assert throttle.next_pause_s() == 0
    throttle.received()
    assert throttle.next_pause_s() == 0.5


def test_a_flood_after_a_quiet_time_has_to_stand_for_half_a_second_again():
    clock = Clock()
    throttle = ReceiveThrottle(clock)
    throttle.next_pause_s()
    clock.now += 60
    assert throttle.next_pause_s() == 0.5


# --- a worker


@pytest.fixture
def make_rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rig]:
    monkeypatch.setattr(fairness, "_FIRST_PAUSE_S", 0.001)

    def make(**changes: Any) -> Rig:
        return Rig(tmp_path, **({"worker_cpus": 2.0, "function_max_share": 0.75} | changes))

    return make


async def send_flood(rig: Rig, count: int) -> Callable[[], None]:
    """Jobs of one function that hang until the returned function is called."""
    gates = [rig.hold(f"flood{number}") for number in range(count)]
    for number in range(count):
        await rig.broker.send(message(f"flood{number}", functionId="flood"))

    def end() -> None:
        for gate in gates:
            gate.set()

    return end


async def test_others_are_found_behind_a_flood_that_hangs_and_none_of_it_is_lost(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fairness, "_MIN_DELAY_S", 0.05)
    monkeypatch.setattr(fairness, "_FIRST_DELAY_S", 0.05)
    rig = make_rig()
    end_flood = await send_flood(rig, 60)
    others = [f"other{number}" for number in range(20)]
    for number, name in enumerate(others):
        await rig.broker.send(message(name, functionId=f"g{number % 3}"))
    async with rig.running():
        await rig.until_settled(len(others))
        assert sorted(name_of(delivery) for delivery in rig.broker.acked) == sorted(others)
        assert rig.admission._held["flood"].milli_cpus == 1500
        assert len(rig.worker._in_flight) <= 3 + MAX_WAITING_PER_FUNCTION + 10  # what goes back just then
        end_flood()
        await rig.until_settled(80)
    assert len(set(map(name_of, rig.broker.acked))) == 80
    assert {result.attempt for result in rig.documents()} == {1}
    assert rig.sample("worker_attempts_failed_total") == 0


async def test_a_flood_is_not_looked_past_before_its_time(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
):
    rig = make_rig()
    monkeypatch.setattr(rig.worker._shared.capacity.throttle, "_backoff", Backoff(3600, 3600))
    monkeypatch.setattr(fairness, "_FIRST_PAUSE_S", 3600)
    end_flood = await send_flood(rig, 60)
    async with rig.running():
        await rig.journal.until_noted("execute", times=3 + MAX_WAITING_PER_FUNCTION)
        for _ in range(100):
            await asyncio.sleep(0)
        assert rig.journal.count("delivered") == 3 + MAX_WAITING_PER_FUNCTION
        end_flood()
        await rig.until_settled(60)
    assert rig.journal.count("give back") == 0


async def test_a_message_in_order_that_would_not_come_again_stays(make_rig: Callable[..., Rig]):
    rig = make_rig(broker={"fifo": True, "max_receives": 1})
    gates = [rig.hold(f"flood{number}") for number in range(20)]
    for number in range(20):
        await rig.broker.send(message(f"flood{number}", functionId="flood"), group_id=f"group{number}")
    async with rig.running():
        await rig.journal.until_noted("execute", times=20)
        for gate in gates:
            gate.set()
        await rig.until_settled(20)
    assert {result.error_type for result in rig.documents()} == {None}


async def test_a_few_of_a_function_at_its_share_wait_here_and_there_is_still_room_for_others(
    make_rig: Callable[..., Rig],
):
    rig = make_rig()
    end_flood = await send_flood(rig, 9)
    async with rig.running():
        await rig.journal.until_noted("execute", times=9)
        await rig.journal.until(lambda: rig.journal.entries[-1] == ("receive?", "1"))
        assert rig.journal.count("running") == 3
        await rig.broker.send(message("other", functionId="g"))
        await rig.until_settled()
        end_flood()
        await rig.until_settled(10)
    assert rig.journal.count("give back") == 0


async def test_a_function_may_be_allowed_the_whole_worker(make_rig: Callable[..., Rig]):
    rig = make_rig(function_max_share=1.0)
    end_flood = await send_flood(rig, 6)
    async with rig.running():
        await rig.journal.until_noted("running", times=4)
        end_flood()
        await rig.until_settled(6)


async def test_a_worker_with_room_for_one_job_works_as_ever(make_rig: Callable[..., Rig]):
    rig = make_rig(worker_cpus=0.5)
    for number in range(5):
        await rig.broker.send(message(f"r{number}", functionId=f"f{number % 2}"))
    async with rig.running():
        await rig.until_settled(5)
    assert rig.journal.count("give back") == 0


async def test_a_drain_gives_back_those_that_wait_for_their_share(make_rig: Callable[..., Rig]):
    rig = make_rig()
    await send_flood(rig, 8)
    async with rig.running():
        await rig.journal.until_noted("running", times=3)
        await rig.journal.until_noted("execute", times=8)
        rig.worker.stop()
        await rig.journal.until_noted("give back", times=5)
