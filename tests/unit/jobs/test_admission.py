from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.jobs.admission import (
    MAX_OVERTAKEN,
    NOTHING,
    Budget,
    Request,
    Shares,
    Slots,
    admissible,
    admit,
    waiting_for_room,
)

TOTAL = Budget(1000, 4000)
SHARE = 0.75
MOST = TOTAL.part(SHARE)
OWNERS = (None, "f", "g", "h")
needs = st.builds(Budget, st.integers(1, TOTAL.memory_mb), st.integers(1, TOTAL.milli_cpus))
owners = st.sampled_from(OWNERS)
requests = st.lists(st.builds(Request, needs, st.integers(0, MAX_OVERTAKEN), owners), max_size=20)
shares = st.dictionaries(st.sampled_from(OWNERS[1:]), needs).map(lambda held: Shares(MOST, held))


def total_of(needs_of: list[Budget]) -> Budget:
    return sum(needs_of, NOTHING)


def after(shares: Shares, admitted: list[Request]) -> Shares:
    """What is held when those have been admitted."""
    held = dict(shares.held)
    for request in admitted:
        if request.owner is not None:
            held[request.owner] = held.get(request.owner, NOTHING) + request.need
    return Shares(shares.most, held)


@given(requests, needs, shares)
def test_the_admitted_never_need_more_than_is_free(waiting, free, shares):
    admitted = admit(waiting, free, shares).admitted
    assert admitted == sorted(set(admitted))
    assert total_of([waiting[index].need for index in admitted]).fits(free)


@given(requests, needs, shares)
def test_no_function_is_admitted_to_more_than_its_share_but_for_a_first_request(waiting, free, shares):
    admitted = [waiting[index] for index in admit(waiting, free, shares).admitted]
    for owner in OWNERS[1:]:
        own = [request.need for request in admitted if request.owner == owner]
        held = shares.held.get(owner, NOTHING)
        assert not own or (held + total_of(own)).fits(MOST) or (held == NOTHING and len(own) == 1)


@given(requests, needs, shares)
def test_nobody_is_passed_more_often_than_allowed(waiting, free, shares):
    admission = admit(waiting, free, shares)
    for index in admission.passed:
        later = sum(other > index for other in admission.admitted)
        assert waiting[index].overtaken + later <= MAX_OVERTAKEN


@given(requests, needs, shares)
def test_whoever_waits_for_its_share_is_passed_by_none_of_its_own_function(waiting, free, shares):
    admission = admit(waiting, free, shares)
    for index, request in enumerate(waiting):
        if request.owner is None or index in admission.admitted or index in admission.passed:
            continue
        held = after(shares, [waiting[other] for other in admission.admitted if other < index])
        if not held.allow(request.need, request.owner):
            own = [other for other in admission.admitted if waiting[other].owner == request.owner]
            assert all(other < index for other in own)


@given(requests, needs, shares)
def test_whoever_fits_is_admitted_unless_that_would_pass_somebody_too_often(waiting, free, shares):
    admission = admit(waiting, free, shares)
    admitted = [waiting[index] for index in admission.admitted]
    left = free - total_of([request.need for request in admitted])
    held = after(shares, admitted)
    for index, request in enumerate(waiting):
        if index in admission.admitted or not request.need.fits(left):
            continue
        ahead = range(index)
        assert (
            not held.allow(request.need, request.owner)
            or any(
                waiting[position].overtaken + sum(other > position for other in admission.admitted)
                >= MAX_OVERTAKEN
                for position in ahead
                if position in admission.passed
            )
            or any(  # one of its own function waits for the share
                waiting[position].owner == request.owner is not None
                and position not in admission.admitted
                and position not in admission.passed
                for position in ahead
            )
        )


@given(requests, needs, shares, needs)
def test_as_many_as_are_admissible_are_admitted_and_no_more(waiting, free, shares, need):
    admission = admit(waiting, free, shares)
    left = [request for index, request in enumerate(waiting) if index not in admission.admitted]
    for index in admission.passed:
        waiting[index].overtaken += sum(later > index for later in admission.admitted)
    admitted = [waiting[index] for index in admission.admitted]
    free, shares = free - total_of([request.need for request in admitted]), after(shares, admitted)
    number = admissible(need, left, free, shares)
    come = [Request(need) for _ in range(number + 1)]
    later = admit([*left, *come], free, shares).admitted
    assert later == list(range(len(left), len(left) + number))


@given(requests, shares)
def test_whoever_waits_for_room_would_be_admitted_if_there_were_room_for_all(waiting, shares):
    everything = Budget(10**9, 10**9)
    assert waiting_for_room(waiting, shares) == len(admit(waiting, everything, shares).admitted)


arrivals = st.tuples(needs, owners)


@given(st.lists(st.one_of(arrivals, st.integers(0, 30)), max_size=60))
async def test_in_any_history_budget_and_shares_hold_and_everyone_gets_a_turn(history):
    """A need and whose it is are an arrival; a number says which of the holders leaves."""
    slots = Slots(TOTAL.memory_mb, TOTAL.cpus, SHARE)
    world = World(slots)
    for step in history:
        if isinstance(step, tuple):
            need, owner = step
            at_once = slots.free_for(need.memory_mb, need.cpus, owner) > 0
            waiting = slots.waiting
            await world.arrive(need, owner)
            assert not at_once or slots.waiting == waiting
        elif world.holding:
            await world.leave(step % len(world.holding))
        assert slots.used == total_of([need for need, _ in world.holding])
        assert slots.used.fits(slots.total)
        assert all(0 <= ticket.overtaken <= MAX_OVERTAKEN for ticket in slots._waiting)
        assert all(ticket.overtaking.fits(slots.used) for ticket in slots._waiting)
        for function in ("f", "g", "h"):
            own = world.held_by(function)
            assert total_of(own).fits(MOST) or len(own) == 1
            assert slots._held.get(function, NOTHING) == total_of(own)
        assert admit(slots._waiting, slots._free, slots._shares).admitted == []  # whoever may has been
    while world.holding:
        await world.leave(0)
    assert slots.waiting == 0
    assert slots.used == NOTHING
    assert slots._held == {}


class World:
    """Holders of slots, as tasks that wait to be told to leave."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.holding: list[tuple[Budget, asyncio.Event]] = []
        self.owners: dict[asyncio.Event, str | None] = {}
        self.tasks: dict[asyncio.Event, asyncio.Task[None]] = {}

    async def arrive(self, need: Budget, owner: str | None = None) -> None:
        told_to_leave = asyncio.Event()
        self.owners[told_to_leave] = owner
        self.tasks[told_to_leave] = asyncio.create_task(self._hold(need, owner, told_to_leave))
        await settle()

    async def leave(self, index: int) -> None:
        _, told_to_leave = self.holding.pop(index)
        told_to_leave.set()
        await self.tasks[told_to_leave]
        await settle()

    def held_by(self, owner: str | None) -> list[Budget]:
        return [need for need, told_to_leave in self.holding if self.owners[told_to_leave] == owner]

    async def _hold(self, need: Budget, owner: str | None, told_to_leave: asyncio.Event) -> None:
        async with self.slots.reserve(need.memory_mb, need.cpus, owner):
            self.holding.append((need, told_to_leave))
            await told_to_leave.wait()


async def settle() -> None:
    """Let every task that can go on do so: a grant wakes its waiter in the next turn of the loop."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_large_request_lets_eight_small_ones_at_a_time_pass_while_another_is_in_its_way():
    slots = Slots(1000, 100)
    world = World(slots)
    await world.arrive(Budget(600, 1))
    await world.arrive(Budget(1000, 1))
    for _ in range(MAX_OVERTAKEN + 3):
        await world.arrive(Budget(10, 1))
    assert len(world.holding) == 1 + MAX_OVERTAKEN
    assert slots.waiting == 1 + 3

    for _ in range(3):
        await world.leave(1)
    assert len(world.holding) == 1 + MAX_OVERTAKEN
    assert slots.waiting == 1
    while len(world.holding) > 1:
        await world.leave(1)
    await world.leave(0)
    assert [need.memory_mb for need, _ in world.holding] == [1000]


async def test_requests_are_woken_in_the_order_of_arrival():
    world = World(Slots(100, 100))
    await world.arrive(Budget(100, 1))
    for memory_mb in (30, 20, 10):
        await world.arrive(Budget(memory_mb, 1))
    await world.leave(0)
    assert [need.memory_mb for need, _ in world.holding] == [30, 20, 10]


async def test_cpu_alone_can_be_what_is_waited_for():
    world = World(Slots(1000, 1))
    await world.arrive(Budget(1, 800))
    await world.arrive(Budget(1, 300))
    assert world.slots.waiting == 1
    await world.leave(0)
    assert world.slots.waiting == 0


@pytest.mark.parametrize(("memory_mb", "cpus"), [(101, 1), (1, 1.01), (0, 1), (1, 0), (-1, 1)])
def test_a_request_that_could_never_be_met_is_refused_at_once(memory_mb, cpus):
    slots = Slots(100, 1)
    with pytest.raises(ValueError, match=r"were asked for|must be positive"):
        slots.reserve(memory_mb, cpus)


@pytest.mark.parametrize(("memory_mb", "cpus"), [(0, 1), (1, 0)])
def test_a_budget_of_nothing_is_refused(memory_mb, cpus):
    with pytest.raises(ValueError, match="must be positive"):
        Slots(memory_mb, cpus)


async def test_fractions_of_cpus_add_up_to_exactly_what_they_were():
    slots = Slots(100, 0.3)
    async with slots.reserve(1, 0.1), slots.reserve(1, 0.1), slots.reserve(1, 0.1):
        assert slots.used.cpus == 0.3
        assert slots.free_for(1, 0.001) == 0
    assert slots.used == Budget(0, 0)


async def test_a_failure_while_holding_gives_everything_back():
    slots = Slots(100, 1)
    with pytest.raises(RuntimeError):
        async with slots.reserve(100, 1):
            raise RuntimeError
    assert slots.free_for(100, 1) == 1


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_cancelling_a_holder_gives_everything_back():
    world = World(Slots(100, 1))
    await world.arrive(Budget(100, 1000))
    await cancel(next(iter(world.tasks.values())))
    assert world.slots.used == Budget(0, 0)


async def test_cancelling_a_waiter_lets_those_behind_it_go_on():
    slots = Slots(100, 1)
    world = World(slots)
    await world.arrive(Budget(50, 1))
    await world.arrive(Budget(100, 1))
    slots._waiting[0].overtaken = MAX_OVERTAKEN
    await world.arrive(Budget(50, 1))
    assert slots.waiting == 2
    await cancel(list(world.tasks.values())[1])
    await settle()
    assert slots.waiting == 0
    assert slots.used.memory_mb == 100


async def test_a_waiter_cancelled_after_its_grant_and_before_it_woke_keeps_nothing():
    slots = Slots(100, 1)
    async with contextlib.AsyncExitStack() as holder:
        await holder.enter_async_context(slots.reserve(100, 1))
        world = World(slots)
        await world.arrive(Budget(100, 1))
    assert slots.used.memory_mb == 100  # granted, and not yet woken
    assert world.holding == []
    await cancel(next(iter(world.tasks.values())))
    assert slots.used == Budget(0, 0)


async def test_a_waiter_cancelled_before_a_grant_in_the_same_turn_keeps_nothing():
    slots = Slots(100, 1)
    async with contextlib.AsyncExitStack() as holder:
        await holder.enter_async_context(slots.reserve(100, 1))
        world = World(slots)
        await world.arrive(Budget(100, 1))
        waiter = next(iter(world.tasks.values()))
        waiter.cancel()
    await cancel(waiter)
    assert waiter.cancelled()
    assert slots.used == Budget(0, 0)
    assert slots.free_for(100, 1) == 1


async def test_free_for_counts_by_whichever_runs_out_first():
    slots = Slots(1000, 2)
    assert slots.free_for(100, 0.5) == 4
    assert slots.free_for(400, 0.5) == 2
    assert slots.free_for(1001, 0.5) == 0
    async with slots.reserve(1, 1):
        assert slots.free_for(100, 0.5) == 2


async def test_free_for_is_nothing_while_anyone_waits():
    world = World(Slots(100, 100))
    await world.arrive(Budget(60, 1))
    await world.arrive(Budget(60, 1))
    assert world.slots.free_for(10, 0.1) == 0
    await world.leave(0)
    assert world.slots.free_for(10, 0.1) == 4


async def test_small_ones_that_come_and_go_pass_a_large_one_while_others_are_in_its_way():
    world = World(Slots(100, 100))
    await world.arrive(Budget(60, 1))  # ends last
    await world.arrive(Budget(80, 1))  # waits for it
    for _ in range(5 * MAX_OVERTAKEN):
        assert world.slots.admissible(10, 0.1) == 4
        await world.arrive(Budget(10, 1))
        assert world.slots.waiting == 1
        await world.leave(1)
    await world.leave(0)
    assert world.slots.waiting == 0


async def test_a_large_one_is_passed_a_bounded_number_of_times_once_only_its_overtakers_are_in_its_way():
    world = World(Slots(100, 100))
    await world.arrive(Budget(60, 1))
    await world.arrive(Budget(80, 1))
    for _ in range(3):
        await world.arrive(Budget(10, 1))
    await world.leave(0)  # from here on the large one would fit without the three
    passed = 0
    while world.slots.admissible(10, 0.1):
        await world.arrive(Budget(10, 1))
        passed += 1
        await world.leave(0)
    assert passed == MAX_OVERTAKEN - 3
    assert world.slots.waiting == 1
    await world.leave(0)
    assert world.slots.waiting == 0


async def test_one_that_begins_to_wait_is_a_change_too():
    world = World(Slots(100, 1))
    await world.arrive(Budget(60, 1))
    told: list[int] = []
    world.slots.watch(lambda: told.append(world.slots.waiting))
    await world.arrive(Budget(100, 1))
    assert told == [1]


async def test_everyone_who_watches_is_told_of_a_release_when_it_has_happened():
    world = World(Slots(100, 1))
    free: list[int] = []
    for _ in range(2):
        world.slots.watch(lambda: free.append(world.slots.free_for(100, 1)))
    await world.arrive(Budget(100, 1))
    await settle()
    assert free == []
    await world.leave(0)
    assert free == [1, 1]


async def test_a_waiter_that_gives_up_is_a_change_too():
    world = World(Slots(100, 1))
    await world.arrive(Budget(60, 1))
    await world.arrive(Budget(100, 1))
    told: list[int] = []
    world.slots.watch(lambda: told.append(world.slots.waiting))
    await cancel(list(world.tasks.values())[1])
    assert told == [0]


# --- shares


async def test_a_function_that_takes_all_it_can_leaves_the_rest_to_others():
    world = World(Slots(1000, 4, 0.75))
    for _ in range(6):
        await world.arrive(Budget(100, 1000), "flood")
    assert len(world.held_by("flood")) == 3
    await world.arrive(Budget(100, 1000), "other")
    assert len(world.held_by("other")) == 1
    while world.held_by("flood"):
        await world.leave(0)
    assert world.slots.waiting == 0


async def test_those_who_wait_for_their_share_do_not_count_as_passed_and_keep_no_one_from_room():
    world = World(Slots(1000, 4, 0.5))
    for _ in range(3):
        await world.arrive(Budget(100, 1000), "flood")
    for _ in range(MAX_OVERTAKEN + 3):
        assert world.slots.free_for(100, 1) == 2
        await world.arrive(Budget(100, 1000), "other")
        await world.leave(2)
    assert [ticket.overtaken for ticket in world.slots._waiting] == [0]
    assert world.slots.free_for(100, 1, "flood") == 0
    assert world.slots.free_for(100, 1, "other") == 2


async def test_a_function_with_one_job_larger_than_its_share_runs_it_alone():
    world = World(Slots(1000, 1, 0.5))
    await world.arrive(Budget(900, 1000), "large")
    await world.arrive(Budget(1, 1), "large")
    assert [need.memory_mb for need in world.held_by("large")] == [900]
    await world.leave(0)
    assert [need.memory_mb for need in world.held_by("large")] == [1]


async def test_a_small_job_does_not_pass_a_large_one_of_its_function_that_waits_for_the_share():
    world = World(Slots(1000, 100, 0.75))
    await world.arrive(Budget(400, 1), "f")
    await world.arrive(Budget(600, 1), "f")
    await world.arrive(Budget(10, 1), "f")
    assert world.slots.share_left_for(10, 0.001, "f") > 0
    assert world.slots.free_for(10, 0.001, "f") == 0
    await world.arrive(Budget(600, 1), "g")
    assert [need.memory_mb for need, _ in world.holding] == [400, 600]
    await world.leave(0)  # now it waits for room, and smaller ones may pass
    assert [need.memory_mb for need, _ in world.holding] == [600, 10]
    await world.leave(0)
    assert [need.memory_mb for need, _ in world.holding] == [10, 600]


async def test_a_waiter_of_a_function_that_is_cancelled_after_its_grant_gives_the_share_back():
    slots = Slots(100, 1, 0.5)
    async with contextlib.AsyncExitStack() as holder:
        await holder.enter_async_context(slots.reserve(50, 0.5, "f"))
        world = World(slots)
        await world.arrive(Budget(50, 500), "f")
    await cancel(next(iter(world.tasks.values())))
    assert slots._held == {}
    assert slots.free_for(50, 0.5, "f") == 1


@pytest.mark.parametrize("share", [0.29, 0.5, 0.57, 0.58, 1.0])
def test_a_share_of_a_hundred_is_as_many(share):
    assert Budget(100, 100).part(share) == Budget(round(100 * share), round(100 * share))


def test_what_a_share_has_left_is_one_at_least_while_nothing_is_held():
    slots = Slots(1000, 4, 0.1)
    assert slots.share_left_for(128, 0.5, "f") == 1
    assert Slots(1000, 4, 0.5).share_left_for(128, 0.5, "f") == 3
