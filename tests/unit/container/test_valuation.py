"""The values of idle containers in the pool: what is recorded, and the order of evictions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoagent.container.eviction import choose_victims
from nanoagent.container.inventory import Inventory
from nanoagent.container.policy import Binding
from nanoagent.container.valuation import Valuation
from nanoagent.model.job import Runtime
from support.doubles.pooled import pooled

if TYPE_CHECKING:
    from nanoagent.container.policy import PooledContainer


class Bench:
    """Containers and their valuation, with a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.inventory = Inventory()
        self.valuation = Valuation(self.inventory, lambda: self.now)

    def idle(self, function: str | None, **fields: Any) -> PooledContainer:
        container = pooled(key=None if function is None else binding(function).key, **fields)
        self.inventory.add(container)
        return container

    def use(self, function: str, at: float, **changes: Any) -> None:
        self.now = at
        self.valuation.begin_job(binding(function, **changes))
        self.valuation.end_job(binding(function, **changes))

    def order(self) -> list[PooledContainer]:
        """Return all idle containers in the order of their eviction."""
        candidates = [*self.valuation.candidates()]
        return [victim.item for victim in choose_victims(candidates, 0, len(candidates))]


def binding(function: str, **changes: Any) -> Binding:
    fields: dict[str, Any] = {
        "runtime": Runtime.PYTHON,
        "function_id": function,
        "digest": "d",
        "memory_mb": 128,
        "cpus": 1.0,
        "most_cpus": 1.0,
        "tree": Path("/code"),
        "tree_bytes": 10,
    }
    return Binding(**(fields | changes))


def test_generic_containers_are_evicted_last():
    bench = Bench()
    generic, bound = bench.idle(None), bench.idle("f")
    bench.use("f", 0.0)
    assert bench.order() == [bound, generic]
    assert {candidate.value for candidate in bench.valuation.candidates()} >= {math.inf}


def test_a_function_that_is_used_often_stays_longer_than_one_that_was_used_once():
    bench = Bench()
    often, once = bench.idle("often"), bench.idle("once")
    for second in range(200):
        bench.use("often", float(second))
        if second == 190:
            bench.use("once", 190.0)
    bench.now = 199.5
    assert bench.order() == [once, often]


def test_in_a_round_robin_the_function_that_was_used_last_is_evicted_first():
    bench = Bench()
    containers = [bench.idle(f"f{number}") for number in range(40)]
    for step in range(40 * 20):
        bench.use(f"f{step % 40}", float(step))
    bench.now += 1
    assert bench.order()[0] is containers[39]
    assert bench.order()[-1] in containers[:20]


def test_a_container_that_takes_more_memory_or_less_time_to_create_is_evicted_first():
    bench = Bench()
    sizes = {"small": 16, "large": 200}
    small, large = (bench.idle(name, memory_mb=size, bound_ms=10.0) for name, size in sizes.items())
    slow = bench.idle("slow", memory_mb=200, bound_ms=9000.0)
    for function in ("small", "large", "slow"):
        bench.use(function, 0.0)
    bench.now = 1.0
    assert bench.order()[0] is large
    assert {*bench.order()[1:]} == {small, slow}


def test_the_second_container_of_a_function_that_never_needs_two_is_evicted_first():
    bench = Bench()
    first, second = bench.idle("f"), bench.idle("f")
    for second_of_time in range(100):
        bench.use("f", float(second_of_time))
    assert bench.order() == [first, second]  # the one that was used longer ago has the higher rank


def test_a_job_that_runs_raises_the_rank_of_the_others_and_builds_are_not_recorded():
    bench = Bench()
    jobs = [binding("f"), binding("f"), binding("g", purpose="build")]
    for job in jobs:
        bench.valuation.begin_job(job)
    for job in jobs:
        bench.valuation.end_job(job)
    assert len(bench.valuation._forecast) == 2
    assert bench.valuation._jobs == {}
