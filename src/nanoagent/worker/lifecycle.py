"""The lifecycle of the worker, which all its parts read."""

from __future__ import annotations

import asyncio
import math
import time


class Lifecycle:
    """The worker's lifecycle state: it receives messages, then drains, then ends by force.

    Attributes:
        stopping: Set when the worker receives no more messages.
        forced: Set when the drain waits for nothing any more.
        capacity_changed: Set when the worker may have room for another message. `Intake` clears it.
        drained_by: When the drain must have ended, monotonic seconds; infinite before the drain.
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
        """Begin the drain. A repeated call can only shorten it.

        Args:
            seconds: The time for the drain.
        """
        self.drained_by = min(self.drained_by, time.monotonic() + seconds)
        self.stopping.set()
        self.capacity_changed.set()

    def left_s(self) -> float:
        """Return how much longer running jobs may take, in seconds."""
        return 0.0 if self.forced.is_set() else max(0.0, self.drained_by - time.monotonic())
