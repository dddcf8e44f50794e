"""Limits how much CPU time of the event loop one run may use.

While the event loop works for one run, all other jobs wait.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from nanoagent.common.token_bucket import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CORES: Final = 0.1
_BURST_S: Final = 0.5
REQUEST_S: Final = 0.001
"""The part of a request's CPU time that the gateway does not measure, in seconds (benchmarks/gateway.py)."""


class CpuTimeLimit:
    """A token bucket of CPU time. A run that has overdrawn it waits until the debt is paid.

    A hostile job can cost the worker much time with few bytes: chunks of one byte, pipelined requests, JSON
    with a million keys. Therefore the gateway limits the CPU time, not the bytes.

    Args:
        now: The clock, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._bucket = TokenBucket.full(_CORES, _BURST_S, now())  # its tokens are seconds of CPU time

    def charge(self, cpu_s: float) -> None:
        """Take CPU time from the bucket, in seconds."""
        self._bucket.spend(cpu_s, self._now())

    @contextmanager
    def charged(self) -> Iterator[None]:
        """Charge the CPU time of the block.

        The block must not await. Otherwise the CPU time of other tasks would be charged to this run.
        """
        begun = time.thread_time()
        try:
            yield
        finally:
            self.charge(time.thread_time() - begun)

    def delay_s(self) -> float:
        """Return how long the run has to wait, in seconds."""
        return self._bucket.debt_s(self._now())

    async def wait(self) -> None:
        """Wait until the run may use CPU time again."""
        if (delay_s := self.delay_s()) > 0:
            await asyncio.sleep(delay_s)
