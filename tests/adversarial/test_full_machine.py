"""Functions that fill the budget of memory, and containers that grow while they are idle.

The memory is read from the kernel, and not from the budget of the pool.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from nanoagent.common.units import MIB
from nanoagent.container import charges
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation, Start
from support.checks.waiting import eventually
from support.sandboxes.adversarial import yard
from support.sandboxes.containers import FILL_PAGE_CACHE, RUN_STDIN, exec_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.sandboxes.adversarial import Function, Yard

BUDGET_MB = 600
GREEDY_MB = 96
# Writes to each page, so that the kernel allocates it. Some memory is left for the interpreter.
HOLD = f"""
import time
held = bytearray({GREEDY_MB - 24} * 1024 * 1024)
for index in range(0, len(held), 4096):
    held[index] = 1
time.sleep(1)
print("held")
"""
SAMPLE_S = 0.01
GROWTH_MB = 40


@asynccontextmanager
async def highest_use(yard: Yard) -> AsyncIterator[list[int]]:
    """Sample the memory that all containers hold; the list gets each sample in MiB, with the overhead."""
    samples: list[int] = []

    async def sample() -> None:
        while True:
            groups = [pooled.container.group for pooled in yard.pool._inventory.all()]
            held = sum(group.held_bytes() + charges.OVERHEAD_BYTES for group in groups if group is not None)
            samples.append(held // MIB)
            await asyncio.sleep(SAMPLE_S)

    sampling = asyncio.create_task(sample())
    try:
        yield samples
        assert not sampling.done(), sampling.exception()
    finally:
        sampling.cancel()


async def hot(yard: Yard, count: int) -> list[Function]:
    functions = [yard.function(Runtime.PYTHON, RUN_STDIN[Runtime.PYTHON]) for _ in range(count)]
    for function in functions:
        await yard.run(function, "print(1)", memory_mb=GREEDY_MB)
    return functions


async def test_runs_that_use_their_whole_memory_never_exceed_the_budget_beside_idle_functions():
    async with yard(Isolation.SANDBOX, [Runtime.PYTHON], memory_mb=BUDGET_MB) as place:
        idle = await hot(place, 12)
        async with highest_use(place) as samples:
            for greedy in (idle[:4], idle[4:8], await hot(place, 4)):
                runs = await asyncio.gather(
                    *(place.run(function, HOLD, memory_mb=GREEDY_MB) for function in greedy)
                )
                assert [(ran.execution.error_type, ran.stdout) for ran in runs] == [(None, "held\n")] * 4
        assert 4 * (GREEDY_MB - 24) < max(samples) <= BUDGET_MB
        again = await place.run(idle[0], "print(1)", memory_mb=GREEDY_MB)
        assert again.acquired.start in {Start.HOT, Start.COLD}


async def test_more_runs_than_the_budget_holds_take_turns():
    async with yard(Isolation.SANDBOX, [Runtime.PYTHON], memory_mb=BUDGET_MB // 2) as place:
        functions = await hot(place, 6)
        async with highest_use(place) as samples:
            runs = await asyncio.gather(
                *(place.run(function, HOLD, memory_mb=GREEDY_MB) for function in functions)
            )
        assert [ran.execution.error_type for ran in runs] == [None] * 6
        assert max(samples) <= BUDGET_MB // 2


@pytest.fixture
async def idle_container() -> AsyncIterator[tuple[Yard, str]]:
    async with yard(Isolation.SANDBOX, [Runtime.PYTHON]) as place:
        (function,) = await hot(place, 1)
        ran = await place.run(function, "print(1)", memory_mb=GREEDY_MB)
        assert ran.acquired.start is Start.HOT
        yield place, ran.acquired.container.id


async def test_an_idle_container_whose_processes_grow_is_removed(idle_container):
    place, container_id = idle_container

    async def is_removed() -> bool:
        return place.pool._inventory.get(container_id) is None

    exec_in(
        container_id, "python3", "-c", f"import time; leak = bytearray({GROWTH_MB * MIB}); time.sleep(60)"
    )
    await eventually(is_removed)
    removed = place.pool._context.metrics.registry.get_sample_value(
        "worker_containers_retired_total", {"reason": "grown"}
    )
    assert removed == 1


async def test_the_page_cache_of_an_idle_container_is_not_charged(idle_container):
    place, container_id = idle_container
    pooled = place.pool._inventory.get(container_id)
    group = pooled.container.group
    before = group.page_cache_bytes()

    async def has_grown() -> bool:
        return bool(group.page_cache_bytes() > before + charges.LEFTOVER_BYTES)

    exec_in(container_id, "/bin/sh", "-c", FILL_PAGE_CACHE)
    await eventually(has_grown)
    place.pool._retirement.sweep_once()
    assert place.pool._inventory.get(container_id) is pooled
