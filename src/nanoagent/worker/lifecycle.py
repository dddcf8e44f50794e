"""The lifecycle state of the worker. All parts of the worker read it."""

from __future__ import annotations

import asyncio
import math
import time


class Lifecycle:
    """The worker's lifecycle state: it receives messages, then it drains, then it stops the jobs that remain.

    Attributes:
        stopping: Set when the worker receives no more messages.
        grace_ended: Set when running jobs get no more time: all of them have ended, the time of the drain is
            over, or a second signal came.
        capacity_changed: Set when the worker may have room for another message. `Intake` clears it.
        drained_by: The end of the time that running jobs get, monotonic seconds; infinite before the drain.
    """

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.grace_ended = asyncio.Event()
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
        return 0.0 if self.grace_ended.is_set() else max(0.0, self.drained_by - time.monotonic())
