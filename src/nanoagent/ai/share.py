"""The part of the agent's loop that one run may take: what it takes more, every other job would wait for."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from nanoagent.common.token_bucket import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OF_A_CORE: Final = 0.1
_AT_ONCE_S: Final = 0.5
REQUEST_S: Final = 0.001
"""CPU time that a request takes beside what is measured; from benchmarks/gateway.py."""


class LoopShare:
    """CPU time that comes back steadily; what is taken beyond that is waited for.

    A hostile job makes the agent work by bytes that are cheap to send: chunks of one byte, requests behind
    one another, JSON of a million keys. So it is not bytes that are counted but the time they take.

    Args:
        now: The clock, seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._cpu = TokenBucket.full(_OF_A_CORE, _AT_ONCE_S, now())  # its tokens are seconds

    def charge(self, cpu_s: float) -> None:
        """The run has taken so many seconds of CPU time."""
        self._cpu.spend(cpu_s, self._now())

    @contextmanager
    def charged(self) -> Iterator[None]:
        """What the block takes is charged; nothing is waited for in it."""
        begun = time.thread_time()
        try:
            yield
        finally:
            self.charge(time.thread_time() - begun)

    def delay_s(self) -> float:
        """How long nothing more is to be done for it, seconds."""
        return self._cpu.debt_s(self._now())

    async def turn(self) -> None:
        """Wait until something more may be done for it."""
        if (delay_s := self.delay_s()) > 0:
            await asyncio.sleep(delay_s)
