"""The lists of the pool's containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.container.inventory import Inventory
from nanoagent.container.policy import NEXT, ContainerState
from nanoagent.model.job import Runtime
from support.doubles.pooled import KEY, pooled

if TYPE_CHECKING:
    from nanoagent.container.policy import PooledContainer

STEPS = {
    ContainerState.BUSY: Inventory.take,
    ContainerState.IDLE: Inventory.put_back,
    ContainerState.RECYCLING: Inventory.begin_recycling,
    ContainerState.DEAD: Inventory.note_death,
    ContainerState.RETIRED: Inventory.remove,
}


def holding(*containers: PooledContainer) -> Inventory:
    inventory = Inventory()
    for container in containers:
        inventory.add(container)
    return inventory


def counts(inventory: Inventory) -> tuple[int, int, int]:
    """How many there are, idle and busy."""
    idle = [pooled for runtime in Runtime for pooled in inventory.idle(runtime)]
    assert sorted(map(id, idle)) == sorted(map(id, inventory.all_idle()))
    return len(inventory.all()), len(idle), sum(inventory.busy(runtime) for runtime in Runtime)


def test_a_new_container_is_idle_and_found_by_its_id():
    container = pooled()
    inventory = holding(container)
    assert inventory.get(container.container.id) is container
    assert inventory.get("of another pool") is None
    assert counts(inventory) == (1, 1, 0)


def test_the_containers_of_a_runtime_are_its_own():
    python, go = pooled(), pooled(runtime=Runtime.GO, key=None)
    inventory = holding(python, go)
    inventory.take(python)
    assert ([*inventory.idle(Runtime.PYTHON)], [*inventory.idle(Runtime.GO)]) == ([], [go])
    assert (inventory.busy(Runtime.PYTHON), inventory.busy(Runtime.GO)) == (1, 0)
    assert (inventory.generic(Runtime.PYTHON), inventory.generic(Runtime.GO)) == (0, 1)


def test_idle_containers_are_in_the_order_of_their_last_use():
    first, second, third = containers = [pooled() for _ in range(3)]
    inventory = holding(*containers)
    inventory.take(first)
    inventory.put_back(first)
    assert [*inventory.idle(Runtime.PYTHON)] == [second, third, first]
    assert inventory.idle(Runtime.PYTHON).like(KEY) == [first, third, second]


def test_the_list_of_idle_containers_can_be_walked_through_while_they_are_removed():
    inventory = holding(*(pooled() for _ in range(4)))
    for container in inventory.all_idle():
        inventory.remove(container)
    assert counts(inventory) == (0, 0, 0)


@pytest.mark.parametrize("state", [ContainerState.IDLE, ContainerState.BUSY, ContainerState.DEAD])
def test_a_container_is_removed_from_wherever_it_is_and_once(state: ContainerState):
    container = pooled()
    inventory = holding(container, pooled())
    if state is not ContainerState.IDLE:
        inventory.take(container)
    if state is ContainerState.DEAD:
        inventory.note_death(container)
    assert inventory.remove(container) is True
    assert container.state is ContainerState.RETIRED
    assert counts(inventory) == (1, 1, 0)
    assert inventory.get(container.container.id) is None
    assert inventory.remove(container) is False


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(ContainerState)), max_size=40))
def test_a_container_is_in_the_lists_of_its_state_and_in_no_other(steps):
    containers = [pooled(runtime=runtime) for runtime in Runtime]
    inventory = holding(*containers)
    for number, state in steps:
        container = containers[number]
        if state in NEXT[container.state]:
            STEPS[state](inventory, container)
        elif state is not ContainerState.RETIRED:
            with pytest.raises(AssertionError):
                STEPS[state](inventory, container)
        states = [container.state for container in containers]
        idle = states.count(ContainerState.IDLE)
        busy = states.count(ContainerState.BUSY) + states.count(ContainerState.DEAD)
        assert counts(inventory) == (idle + busy + states.count(ContainerState.RECYCLING), idle, busy)
