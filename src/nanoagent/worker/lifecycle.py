"""How far the worker has come, for all its parts."""

from __future__ import annotations

import asyncio
import math
import time


class Lifecycle:
    """The worker takes messages, then drains, then ends by force.

    Attributes:
        stopping: Set when no more messages are taken.
        forced: Set when nothing is waited for any more.
        capacity_changed: Set when there may be room for another message. The intake clears it.
        drained_by: When the drain has to be over, monotonic seconds; infinite while there is no drain.
    """

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.forced = asyncio.Event()
        self.capacity_changed = asyncio.Event()
        self.drained_by = math.inf

    @property
    def is_time_up(self) -> bool:
        """Whether the time for the drain is over."""
        return self.drained_by <= time.monotonic()

    def drain_within(self, seconds: float) -> None:
        """Begin the drain. Called again, it can only bring the end nearer."""
        self.drained_by = min(self.drained_by, time.monotonic() + seconds)
        self.stopping.set()
        self.capacity_changed.set()

    def left_s(self) -> float:
        """How much longer running jobs may take, seconds."""
        return 0.0 if self.forced.is_set() else max(0.0, self.drained_by - time.monotonic())
