from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.jobs.admission import Admission
from nanoagent.jobs.admission_rules import (
    MAX_OVERTAKEN,
    NOTHING,
    Budget,
    FunctionLimits,
    Request,
    admissible,
    admit,
    waiting_for_room,
)

TOTAL = Budget(1000, 4000)
SHARE = 0.75
LIMIT = TOTAL.part(SHARE)
FUNCTIONS = (None, "f", "g", "h")
needs = st.builds(Budget, st.integers(1, TOTAL.memory_mb), st.integers(1, TOTAL.milli_cpus))
functions = st.sampled_from(FUNCTIONS)
requests = st.lists(st.builds(Request, needs, st.integers(0, MAX_OVERTAKEN), functions), max_size=20)
limits = st.dictionaries(st.sampled_from(FUNCTIONS[1:]), needs).map(lambda held: FunctionLimits(LIMIT, held))


def total_of(needs_of: list[Budget]) -> Budget:
    return sum(needs_of, NOTHING)


def after(limits: FunctionLimits, admitted: list[Request]) -> FunctionLimits:
    """What is held when those have been admitted."""
    held = dict(limits.held)
    for request in admitted:
        if request.function is not None:
            held[request.function] = held.get(request.function, NOTHING) + request.need
    return FunctionLimits(limits.limit, held)


@given(requests, needs, limits)
def test_the_admitted_never_need_more_than_is_free(waiting, free, limits):
    admitted = admit(waiting, free, limits).admitted
    assert admitted == sorted(set(admitted))
    assert total_of([waiting[index].need for index in admitted]).fits(free)


@given(requests, needs, limits)
def test_no_function_is_admitted_to_more_than_its_share_but_for_a_first_request(waiting, free, limits):
    admitted = [waiting[index] for index in admit(waiting, free, limits).admitted]
    for function in FUNCTIONS[1:]:
        own = [request.need for request in admitted if request.function == function]
        held = limits.held.get(function, NOTHING)
        assert not own or (held + total_of(own)).fits(LIMIT) or (held == NOTHING and len(own) == 1)


@given(requests, needs, limits)
def test_nobody_is_passed_more_often_than_allowed(waiting, free, limits):
    decision = admit(waiting, free, limits)
    for index in decision.lacking_room:
        later = sum(other > index for other in decision.admitted)
        assert waiting[index].overtaken + later <= MAX_OVERTAKEN


@given(requests, needs, limits)
def test_whoever_waits_for_its_share_is_passed_by_none_of_its_own_function(waiting, free, limits):
    decision = admit(waiting, free, limits)
    for index, request in enumerate(waiting):
        if request.function is None or index in decision.admitted or index in decision.lacking_room:
            continue
        held = after(limits, [waiting[other] for other in decision.admitted if other < index])
        if not held.allow(request.need, request.function):
            own = [other for other in decision.admitted if waiting[other].function == request.function]
            assert all(other < index for other in own)


@given(requests, needs, limits)
def test_whoever_fits_is_admitted_unless_that_would_pass_somebody_too_often(waiting, free, limits):
    decision = admit(waiting, free, limits)
    admitted = [waiting[index] for index in decision.admitted]
    left = free - total_of([request.need for request in admitted])
    held = after(limits, admitted)
    for index, request in enumerate(waiting):
        if index in decision.admitted or not request.need.fits(left):
            continue
        ahead = range(index)
        assert (
            not held.allow(request.need, request.function)
            or any(
                waiting[position].overtaken + sum(other > position for other in decision.admitted)
                >= MAX_OVERTAKEN
                for position in ahead
                if position in decision.lacking_room
            )
            or any(  # one of its own function waits for the share
                waiting[position].function == request.function is not None
                and position not in decision.admitted
                and position not in decision.lacking_room
                for position in ahead
            )
        )


@given(requests, needs, limits, needs)
def test_as_many_as_are_admissible_are_admitted_and_no_more(waiting, free, limits, need):
    decision = admit(waiting, free, limits)
    left = [request for index, request in enumerate(waiting) if index not in decision.admitted]
    for index in decision.lacking_room:
        waiting[index].overtaken += sum(later > index for later in decision.admitted)
    admitted = [waiting[index] for index in decision.admitted]
    free, limits = free - total_of([request.need for request in admitted]), after(limits, admitted)
    number = admissible(need, left, free, limits)
    come = [Request(need) for _ in range(number + 1)]
    later = admit([*left, *come], free, limits).admitted
    assert later == list(range(len(left), len(left) + number))


@given(requests, limits)
def test_whoever_waits_for_room_would_be_admitted_if_there_were_room_for_all(waiting, limits):
    everything = Budget(10**9, 10**9)
    assert waiting_for_room(waiting, limits) == len(admit(waiting, everything, limits).admitted)


arrivals = st.tuples(needs, functions)


@given(st.lists(st.one_of(arrivals, st.integers(0, 30)), max_size=60))
async def test_in_any_history_budget_and_shares_hold_and_everyone_gets_a_turn(history):
    """A need and whose it is are an arrival; a number says which of the holders leaves."""
    admission = Admission(TOTAL.memory_mb, TOTAL.cpus, SHARE)
    world = World(admission)
    for step in history:
        if isinstance(step, tuple):
            need, function = step
            at_once = admission.free_for(need.memory_mb, need.cpus, function) > 0
            waiting = admission.waiting
            await world.arrive(need, function)
            assert not at_once or admission.waiting == waiting
        elif world.holding:
            await world.leave(step % len(world.holding))
        assert admission.used == total_of([need for need, _ in world.holding])
        assert admission.used.fits(admission.total)
        assert all(0 <= ticket.overtaken <= MAX_OVERTAKEN for ticket in admission._waiting)
        assert all(ticket.overtaking.fits(admission.used) for ticket in admission._waiting)
        for function in ("f", "g", "h"):
            own = world.held_by(function)
            assert total_of(own).fits(LIMIT) or len(own) == 1
            assert admission._held.get(function, NOTHING) == total_of(own)
        assert (
            admit(admission._waiting, admission._free, admission._limits).admitted == []
        )  # whoever may has been
    while world.holding:
        await world.leave(0)
    assert admission.waiting == 0
    assert admission.used == NOTHING
    assert admission._held == {}


class World:
    """Tasks that hold a part of the budget until they are told to leave."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.holding: list[tuple[Budget, asyncio.Event]] = []
        self.functions: dict[asyncio.Event, str | None] = {}
        self.tasks: dict[asyncio.Event, asyncio.Task[None]] = {}

    async def arrive(self, need: Budget, function: str | None = None) -> None:
        told_to_leave = asyncio.Event()
        self.functions[told_to_leave] = function
        self.tasks[told_to_leave] = asyncio.create_task(self._hold(need, function, told_to_leave))
        await settle()

    async def leave(self, index: int) -> None:
        _, told_to_leave = self.holding.pop(index)
        told_to_leave.set()
        await self.tasks[told_to_leave]
        await settle()

    def held_by(self, function: str | None) -> list[Budget]:
        return [need for need, told_to_leave in self.holding if self.functions[told_to_leave] == function]

    async def _hold(self, need: Budget, function: str | None, told_to_leave: asyncio.Event) -> None:
        async with self.admission.reserve(need.memory_mb, need.cpus, function):
            self.holding.append((need, told_to_leave))
            await told_to_leave.wait()


async def settle() -> None:
    """Let every task that can go on do so: a grant wakes its waiter in the next turn of the loop."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_large_request_lets_eight_small_ones_at_a_time_pass_while_another_is_in_its_way():
    admission = Admission(1000, 100)
    world = World(admission)
    await world.arrive(Budget(600, 1))
    await world.arrive(Budget(1000, 1))
    for _ in range(MAX_OVERTAKEN + 3):
        await world.arrive(Budget(10, 1))
    assert len(world.holding) == 1 + MAX_OVERTAKEN
    assert admission.waiting == 1 + 3

    for _ in range(3):
        await world.leave(1)
    assert len(world.holding) == 1 + MAX_OVERTAKEN
    assert admission.waiting == 1
    while len(world.holding) > 1:
        await world.leave(1)
    await world.leave(0)
    assert [need.memory_mb for need, _ in world.holding] == [1000]


async def test_requests_are_woken_in_the_order_of_arrival():
    world = World(Admission(100, 100))
    await world.arrive(Budget(100, 1))
    for memory_mb in (30, 20, 10):
        await world.arrive(Budget(memory_mb, 1))
    await world.leave(0)
    assert [need.memory_mb for need, _ in world.holding] == [30, 20, 10]


async def test_cpu_alone_can_be_what_is_waited_for():
    world = World(Admission(1000, 1))
    await world.arrive(Budget(1, 800))
    await world.arrive(Budget(1, 300))
    assert world.admission.waiting == 1
    await world.leave(0)
    assert world.admission.waiting == 0


@pytest.mark.parametrize(("memory_mb", "cpus"), [(101, 1), (1, 1.01), (0, 1), (1, 0), (-1, 1)])
def test_a_request_that_could_never_be_met_is_refused_at_once(memory_mb, cpus):
    admission = Admission(100, 1)
    with pytest.raises(ValueError, match=r"were asked for|must be positive"):
        admission.reserve(memory_mb, cpus)


@pytest.mark.parametrize(("memory_mb", "cpus"), [(0, 1), (1, 0)])
def test_a_budget_of_nothing_is_refused(memory_mb, cpus):
    with pytest.raises(ValueError, match="must be positive"):
        Admission(memory_mb, cpus)


async def test_fractions_of_cpus_add_up_to_exactly_what_they_were():
    admission = Admission(100, 0.3)
    async with admission.reserve(1, 0.1), admission.reserve(1, 0.1), admission.reserve(1, 0.1):
        assert admission.used.cpus == 0.3
        assert admission.free_for(1, 0.001) == 0
    assert admission.used == Budget(0, 0)


async def test_a_failure_while_holding_gives_everything_back():
    admission = Admission(100, 1)
    with pytest.raises(RuntimeError):
        async with admission.reserve(100, 1):
            raise RuntimeError
    assert admission.free_for(100, 1) == 1


async def test_a_part_that_is_taken_now_is_held_until_it_is_released():
    admission = Admission(100, 1, max_share=0.5)
    release = admission.take_now(60, 0.1, "f")
    assert release is not None
    assert admission.used == Budget(60, 100)
    assert admission.take_now(50, 0.1, "g") is None  # no room
    assert admission.take_now(10, 0.1, "f") is None  # over the limit of the function
    assert admission.used == Budget(60, 100)
    release()
    assert admission.used == Budget(0, 0)


async def test_nothing_is_taken_now_while_a_request_waits():
    world = World(Admission(100, 1))
    await world.arrive(Budget(60, 1))
    await world.arrive(Budget(60, 1))
    assert world.admission.take_now(10, 0.001) is None
    await cancel(list(world.tasks.values())[1])
    assert world.admission.take_now(10, 0.001) is not None


async def test_the_release_of_a_part_that_was_taken_now_admits_a_waiting_request():
    world = World(Admission(100, 1))
    release = world.admission.take_now(60, 0.1)
    assert release is not None
    await world.arrive(Budget(60, 100))
    assert world.admission.waiting == 1
    release()
    assert world.admission.waiting == 0


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_cancelling_a_holder_gives_everything_back():
    world = World(Admission(100, 1))
    await world.arrive(Budget(100, 1000))
    await cancel(next(iter(world.tasks.values())))
    assert world.admission.used == Budget(0, 0)


async def test_cancelling_a_waiter_lets_those_behind_it_go_on():
    admission = Admission(100, 1)
    world = World(admission)
    await world.arrive(Budget(50, 1))
    await world.arrive(Budget(100, 1))
    admission._waiting[0].overtaken = MAX_OVERTAKEN
    await world.arrive(Budget(50, 1))
    assert admission.waiting == 2
    await cancel(list(world.tasks.values())[1])
    await settle()
    assert admission.waiting == 0
    assert admission.used.memory_mb == 100


async def test_a_waiter_cancelled_after_its_grant_and_before_it_woke_keeps_nothing():
    admission = Admission(100, 1)
    async with contextlib.AsyncExitStack() as holder:
        await holder.enter_async_context(admission.reserve(100, 1))
        world = World(admission)
        await world.arrive(Budget(100, 1))
    assert admission.used.memory_mb == 100  # granted, and not yet woken
    assert world.holding == []
    await cancel(next(iter(world.tasks.values())))
    assert admission.used == Budget(0, 0)


async def test_a_waiter_cancelled_before_a_grant_in_the_same_turn_keeps_nothing():
    admission = Admission(100, 1)
    async with contextlib.AsyncExitStack() as holder:
        await holder.enter_async_context(admission.reserve(100, 1))
        world = World(admission)
        await world.arrive(Budget(100, 1))
        waiter = next(iter(world.tasks.values()))
        waiter.cancel()
    await cancel(waiter)
    assert waiter.cancelled()
    assert admission.used == Budget(0, 0)
    assert admission.free_for(100, 1) == 1


async def test_free_for_counts_by_whichever_runs_out_first():
    admission = Admission(1000, 2)
    assert admission.free_for(100, 0.5) == 4
    assert admission.free_for(400, 0.5) == 2
    assert admission.free_for(1001, 0.5) == 0
    async with admission.reserve(1, 1):
        assert admission.free_for(100, 0.5) == 2


async def test_free_for_is_nothing_while_anyone_waits():
    world = World(Admission(100, 100))
    await world.arrive(Budget(60, 1))
    await world.arrive(Budget(60, 1))
    assert world.admission.free_for(10, 0.1) == 0
    await world.leave(0)
    assert world.admission.free_for(10, 0.1) == 4


async def test_small_ones_that_come_and_go_pass_a_large_one_while_others_are_in_its_way():
    world = World(Admission(100, 100))
    await world.arrive(Budget(60, 1))  # ends last
    await world.arrive(Budget(80, 1))  # waits for it
    for _ in range(5 * MAX_OVERTAKEN):
        assert world.admission.admissible(10, 0.1) == 4
        await world.arrive(Budget(10, 1))
        assert world.admission.waiting == 1
        await world.leave(1)
    await world.leave(0)
    assert world.admission.waiting == 0


async def test_a_large_one_is_passed_a_bounded_number_of_times_once_only_its_overtakers_are_in_its_way():
    world = World(Admission(100, 100))
    await world.arrive(Budget(60, 1))
    await world.arrive(Budget(80, 1))
    for _ in range(3):
        await world.arrive(Budget(10, 1))
    await world.leave(0)  # from here on the large one would fit without the three
    passed = 0
    while world.admission.admissible(10, 0.1):
        await world.arrive(Budget(10, 1))
        passed += 1
        await world.leave(0)
    assert passed == MAX_OVERTAKEN - 3
    assert world.admission.waiting == 1
    await world.leave(0)
    assert world.admission.waiting == 0


async def test_one_that_begins_to_wait_is_a_change_too():
    world = World(Admission(100, 1))
    await world.arrive(Budget(60, 1))
    told: list[int] = []
    world.admission.watch(lambda: told.append(world.admission.waiting))
    await world.arrive(Budget(100, 1))
    assert told == [1]


async def test_everyone_who_watches_is_told_of_a_release_when_it_has_happened():
    world = World(Admission(100, 1))
    free: list[int] = []
    for _ in range(2):
        world.admission.watch(lambda: free.append(world.admission.free_for(100, 1)))
    await world.arrive(Budget(100, 1))
    await settle()
    assert free == []
    await world.leave(0)
    assert free == [1, 1]


async def test_a_waiter_that_gives_up_is_a_change_too():
    world = World(Admission(100, 1))
    await world.arrive(Budget(60, 1))
    await world.arrive(Budget(100, 1))
    told: list[int] = []
    world.admission.watch(lambda: told.append(world.admission.waiting))
    await cancel(list(world.tasks.values())[1])
    assert told == [0]


# --- limits


async def test_a_function_that_takes_all_it_can_leaves_the_rest_to_others():
    world = World(Admission(1000, 4, 0.75))
    for _ in range(6):
        await world.arrive(Budget(100, 1000), "flood")
    assert len(world.held_by("flood")) == 3
    await world.arrive(Budget(100, 1000), "other")
    assert len(world.held_by("other")) == 1
    while world.held_by("flood"):
        await world.leave(0)
    assert world.admission.waiting == 0


async def test_those_who_wait_for_their_share_do_not_count_as_passed_and_keep_no_one_from_room():
    world = World(Admission(1000, 4, 0.5))
    for _ in range(3):
        await world.arrive(Budget(100, 1000), "flood")
    for _ in range(MAX_OVERTAKEN + 3):
        assert world.admission.free_for(100, 1) == 2
        await world.arrive(Budget(100, 1000), "other")
        await world.leave(2)
    assert [ticket.overtaken for ticket in world.admission._waiting] == [0]
    assert world.admission.free_for(100, 1, "flood") == 0
    assert world.admission.free_for(100, 1, "other") == 2


async def test_a_function_with_one_job_larger_than_its_share_runs_it_alone():
    world = World(Admission(1000, 1, 0.5))
    await world.arrive(Budget(900, 1000), "large")
    await world.arrive(Budget(1, 1), "large")
    assert [need.memory_mb for need in world.held_by("large")] == [900]
    await world.leave(0)
    assert [need.memory_mb for need in world.held_by("large")] == [1]


async def test_a_small_job_does_not_pass_a_large_one_of_its_function_that_waits_for_the_share():
    world = World(Admission(1000, 100, 0.75))
    await world.arrive(Budget(400, 1), "f")
    await world.arrive(Budget(600, 1), "f")
    await world.arrive(Budget(10, 1), "f")
    assert world.admission.remaining_under_limit(10, 0.001, "f") > 0
    assert world.admission.free_for(10, 0.001, "f") == 0
    await world.arrive(Budget(600, 1), "g")
    assert [need.memory_mb for need, _ in world.holding] == [400, 600]
    await world.leave(0)  # now it waits for room, and smaller ones may pass
    assert [need.memory_mb for need, _ in world.holding] == [600, 10]
    await world.leave(0)
    assert [need.memory_mb for need, _ in world.holding] == [10, 600]


async def test_a_waiter_of_a_function_that_is_cancelled_after_its_grant_gives_the_share_back():
    admission = Admission(100, 1, 0.5)
    async with contextlib.AsyncExitStack() as holder:
        await holder.enter_async_context(admission.reserve(50, 0.5, "f"))
        world = World(admission)
        await world.arrive(Budget(50, 500), "f")
    await cancel(next(iter(world.tasks.values())))
    assert admission._held == {}
    assert admission.free_for(50, 0.5, "f") == 1


@pytest.mark.parametrize("share", [0.29, 0.5, 0.57, 0.58, 1.0])
def test_a_share_of_a_hundred_is_as_many(share):
    assert Budget(100, 100).part(share) == Budget(round(100 * share), round(100 * share))


def test_what_a_share_has_left_is_one_at_least_while_nothing_is_held():
    admission = Admission(1000, 4, 0.1)
    assert admission.remaining_under_limit(128, 0.5, "f") == 1
    assert Admission(1000, 4, 0.5).remaining_under_limit(128, 0.5, "f") == 3
