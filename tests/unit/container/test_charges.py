"""The memory that a container takes from the budget."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from nanoagent.common.units import MIB
from nanoagent.container import charges
from nanoagent.container.charges import OVERHEAD_BYTES, IdleMemory
from support.doubles.pooled import pooled

if TYPE_CHECKING:
    from nanoagent.container.cgroup import ControlGroup


class Counters:
    """The counters of a group; counts how often the page cache is read."""

    def __init__(self, usage: int, page_cache: int) -> None:
        self.usage, self.page_cache, self.reads = usage, page_cache, 0

    def usage_bytes(self) -> int:
        return self.usage

    def page_cache_bytes(self) -> int:
        self.reads += 1
        return self.page_cache


def memory_of(counters: Counters) -> IdleMemory:
    return IdleMemory(cast("ControlGroup", counters))


@pytest.mark.parametrize(("held", "expected"), [(0, 3), (1, 4), (15 * MIB, 18), (15 * MIB + 1, 19)])
def test_an_idle_container_takes_what_it_holds_and_its_overhead_in_whole_mebibytes(held, expected):
    assert OVERHEAD_BYTES == 3 * MIB
    assert charges.idle_mb(held) == expected
    assert charges.busy_mb(128, held) == 128 + expected


def test_a_container_without_visible_counters_takes_as_much_idle_as_busy():
    assert charges.of_idle(pooled(memory_mb=200)) == 200


def test_a_container_with_counters_takes_what_it_held_last():
    container = pooled(memory_mb=200, held_bytes=10 * MIB)
    cast("Any", container.container).group = SimpleNamespace()
    assert charges.of_idle(container) == 13


def test_page_cache_does_not_count():
    assert memory_of(Counters(50 * MIB, 30 * MIB)).held_bytes() == 20 * MIB


def test_the_page_cache_is_read_again_only_after_the_usage_has_changed():
    counters = Counters(50 * MIB, 30 * MIB)
    memory = memory_of(counters)
    for usage in (50 * MIB, 50 * MIB + 1000, 50 * MIB - 1000):
        counters.usage = usage
        assert memory.held_bytes() == 20 * MIB
    assert counters.reads == 1
    counters.usage, counters.page_cache = 40 * MIB, 10 * MIB
    assert memory.held_bytes() == 30 * MIB
    assert counters.reads == 2
