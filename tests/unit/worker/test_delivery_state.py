"""The phases of a delivery."""

from __future__ import annotations

import asyncio

import pytest

from nanoagent.broker.base import Delivery
from nanoagent.model.returns import ReturnReason
from nanoagent.results.base import Claim
from nanoagent.worker.lifecycle import Lifecycle
from nanoagent.worker.state import NEXT, DeliveryState, Phase

STOPPABLE = {Phase.WAITING, Phase.BEHIND, Phase.RUNNING}


async def state_in(phase: Phase) -> DeliveryState:
    state = DeliveryState(Delivery("m", "r", "{}", 1, 0.0, 0.0), Lifecycle())
    state.phase = phase
    state.task = asyncio.create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
    return state


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("following", Phase)
async def test_a_delivery_goes_on_as_the_table_says_and_no_other_way(phase: Phase, following: Phase):
    state = await state_in(phase)
    if following is phase or following in NEXT[phase]:
        state.enter(following)
        assert state.phase is following
    else:
        with pytest.raises(AssertionError, match=f"from {phase} to {following}"):
            state.enter(following)
    state.task.cancel()


def test_every_phase_can_be_reached_and_all_but_the_last_left():
    assert {phase for phases in NEXT.values() for phase in phases} == set(Phase) - {Phase.RECEIVED}
    assert {phase for phase, phases in NEXT.items() if not phases} == {Phase.SETTLED}


@pytest.mark.parametrize("phase", Phase)
async def test_nothing_interrupts_a_delivery_before_its_task_has_begun_or_at_its_end(phase: Phase):
    state = await state_in(phase)
    state.stop()
    await asyncio.sleep(0)
    assert state.task.cancelled() is (phase in STOPPABLE)
    state.task.cancel()


@pytest.mark.parametrize("phase", Phase)
async def test_a_drain_stops_and_counts_a_delivery_once(phase: Phase):
    state = await state_in(phase)
    assert state.stop_for_drain("first") is (phase in STOPPABLE)
    assert state.stop_for_drain("second") is False
    assert state.is_stopped_by_drain is (phase in STOPPABLE)
    if phase in STOPPABLE:
        assert state.stopped().detail == "first"
    state.task.cancel()


async def test_each_change_may_make_room():
    state = await state_in(Phase.WAITING)
    changed = state._lifecycle.capacity_changed.is_set
    state.enter(Phase.WAITING)
    told = [changed()]
    state.enter(Phase.RUNNING)
    assert [*told, changed()] == [False, True]
    state.task.cancel()


async def test_a_lost_lease_counts_before_a_lost_claim_and_that_before_a_drain():
    state = await state_in(Phase.RUNNING)
    seen = [(state.stopped().reason, state.is_lost)]
    state.claim = Claim("r1", 1)
    state.claim.lost.set_result("taken over")
    seen.append((state.stopped().reason, state.is_lost))
    state.delivery.lost.set_result("expired")
    seen.append((state.stopped().reason, state.is_lost))
    state.task.cancel()
    assert seen == [
        (ReturnReason.STOPPING, False),
        (ReturnReason.CLAIM_LOST, True),
        (ReturnReason.LEASE_LOST, True),
    ]
