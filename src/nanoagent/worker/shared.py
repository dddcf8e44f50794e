"""The objects that all deliveries in flight share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanoagent.broker.fifo import FifoOrder
    from nanoagent.model.returns import ReturnStreaks
    from nanoagent.worker.capacity import Capacity
    from nanoagent.worker.duplicates import Duplicates
    from nanoagent.worker.durations import Durations
    from nanoagent.worker.lifecycle import Lifecycle
    from nanoagent.worker.parts import WorkerParts
    from nanoagent.worker.publishing import Publisher
    from nanoagent.worker.settler import Settler


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The objects that all deliveries in flight share.

    Attributes:
        parts: The worker's collaborators.
        order: The broker, with the order of message groups (FIFO queues).
    """

    parts: WorkerParts
    order: FifoOrder
    lifecycle: Lifecycle
    capacity: Capacity
    duplicates: Duplicates
    durations: Durations
    streaks: ReturnStreaks
    publisher: Publisher
    settler: Settler
