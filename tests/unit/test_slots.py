from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.slots import MAX_OVERTAKEN, Budget, Request, Slots, admit

TOTAL = Budget(1000, 4000)
needs = st.builds(Budget, st.integers(1, TOTAL.memory_mb), st.integers(1, TOTAL.milli_cpus))
requests = st.lists(st.builds(Request, needs, st.integers(0, MAX_OVERTAKEN)), max_size=20)


def total_of(needs_of: list[Budget]) -> Budget:
    return sum(needs_of, Budget(0, 0))


@given(requests, needs)
def test_the_admitted_never_need_more_than_is_free(waiting, free):
    admitted = admit(waiting, free)
    assert admitted == sorted(set(admitted))
    assert total_of([waiting[index].need for index in admitted]).fits(free)


@given(requests, needs)
def test_nobody_is_passed_more_often_than_allowed(waiting, free):
    admitted = admit(waiting, free)
    for index, request in enumerate(waiting):
        if index not in admitted:
            later = sum(other > index for other in admitted)
            assert request.overtaken + later <= MAX_OVERTAKEN


@given(requests, needs)
def test_whoever_fits_is_admitted_unless_that_would_pass_somebody_too_often(waiting, free):
    admitted = admit(waiting, free)
    left = free - total_of([waiting[index].need for index in admitted])
    for index, request in enumerate(waiting):
        if index in admitted or not request.need.fits(left):
            continue
        assert any(
            ahead.overtaken + sum(other > position for other in admitted) >= MAX_OVERTAKEN
            for position, ahead in enumerate(waiting[:index])
            if position not in admitted
        )


@given(st.lists(st.one_of(needs, st.integers(0, 30)), max_size=60))
async def test_in_any_history_the_budget_holds_and_everyone_gets_a_turn(history):
    """A need is an arrival; a number says which of the holders leaves."""
    slots = Slots(TOTAL.memory_mb, TOTAL.cpus)
    world = World(slots)
    for step in history:
        if isinstance(step, Budget):
            await world.arrive(step)
        elif world.holding:
            await world.leave(step % len(world.holding))
        assert slots.used == total_of([need for need, _ in world.holding])
        assert slots.used.fits(slots.total)
        assert all(ticket.overtaken <= MAX_OVERTAKEN for ticket in slots._waiting)
    while world.holding:
        await world.leave(0)
    assert slots.waiting == 0
    assert slots.used == Budget(0, 0)


class World:
    """Holders of slots, as tasks that wait to be told to leave."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.holding: list[tuple[Budget, asyncio.Event]] = []
        self.tasks: dict[asyncio.Event, asyncio.Task[None]] = {}

    async def arrive(self, need: Budget) -> None:
        told_to_leave = asyncio.Event()
        self.tasks[told_to_leave] = asyncio.create_task(self._hold(need, told_to_leave))
        await settle()

    async def leave(self, index: int) -> None:
        _, told_to_leave = self.holding.pop(index)
        told_to_leave.set()
        await self.tasks[told_to_leave]
        await settle()

    async def _hold(self, need: Budget, told_to_leave: asyncio.Event) -> None:
        async with self.slots.reserve(need.memory_mb, need.cpus):
            self.holding.append((need, told_to_leave))
            await told_to_leave.wait()


async def settle() -> None:
    """Let every task that can go on do so: a grant wakes its waiter in the next turn of the loop."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_large_request_lets_eight_small_ones_pass_and_then_none():
    slots = Slots(1000, 100)
    world = World(slots)
    await world.arrive(Budget(600, 1))
    await world.arrive(Budget(1000, 1))
    for _ in range(MAX_OVERTAKEN + 3):
        await world.arrive(Budget(10, 1))
    assert len(world.holding) == 1 + MAX_OVERTAKEN
    assert slots.waiting == 1 + 3

    while len(world.holding) > 1:
        await world.leave(1)
    assert slots.waiting == 1 + 3
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
