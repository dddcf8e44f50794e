"""Values the idle containers of the pool, so that an eviction takes the least valuable ones (`eviction`)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB
from nanoagent.container.eviction import Candidate, UseForecast
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nanoagent.container.inventory import Inventory
    from nanoagent.container.policy import Binding, CodeKey, PooledContainer


_LEAST_COLD_MS: Final = 1.0  # so that a cold start always counts, also with a clock that stands still


class Valuation:
    """Learns from the starts of runs which functions will be used again soon.

    Args:
        inventory: The containers.
        clock: Returns monotonic seconds.
    """

    def __init__(self, inventory: Inventory, clock: Callable[[], float]) -> None:
        self._inventory = inventory
        self._clock = clock
        self._forecast = UseForecast()
        self._jobs: dict[CodeKey, int] = {}  # the number of those that have a container or wait for one

    def begin_job(self, binding: Binding) -> None:
        """Record a use of a function. Builds are not recorded."""
        if binding.purpose == "run":
            code = binding.key.code
            rank = self._jobs.get(code, 0)
            self._forecast.record_use(code, self._clock(), rank=rank)
            self._jobs[code] = rank + 1

    def end_job(self, binding: Binding) -> None:
        """Note that the job of a `begin_job` has ended."""
        if binding.purpose == "run":
            code = binding.key.code
            self._jobs[code] -= 1
            if not self._jobs[code]:
                del self._jobs[code]

    def candidates(self) -> Iterator[Candidate[PooledContainer]]:
        """Yield the idle containers with their values. Those with equal values are in the order of eviction.

        Generic containers have the highest value, because each can save a cold start of any function.
        """
        now = self._clock()
        for runtime in Runtime:
            for code, containers in self._inventory.idle(runtime).by_code():
                busy = self._jobs.get(code, 0)
                for position, pooled in enumerate(reversed(containers)):
                    size_bytes = pooled.memory_mb * MIB
                    value = self._forecast.value(
                        code,
                        rank=busy + position,
                        size_bytes=size_bytes,
                        cold_ms=max(pooled.cold_ms, _LEAST_COLD_MS),
                        now=now,
                    )
                    yield Candidate(pooled, size_bytes, value)
        for runtime in Runtime:
            for pooled in self._inventory.idle(runtime).generic:
                yield Candidate(pooled, pooled.memory_mb * MIB, math.inf)
