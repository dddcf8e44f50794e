"""The objects and the state that all runs share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.common.token_bucket import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.ai.bodies import BodyMemory
    from nanoagent.ai.budgets import FunctionBudgets
    from nanoagent.ai.limits import GatewayLimits
    from nanoagent.ai.upstreams import Upstream, Upstreams
    from nanoagent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_ENTRIES_PER_S: Final = 1 / 30
_ENTRIES_BURST: Final = 20


@dataclass(slots=True, kw_only=True)
class Shared:
    """The objects and the state that all runs share.

    Attributes:
        servers: The model servers.
        limits: The limits from the settings.
        metrics: The metrics of the worker.
        memory: The memory for the bodies of all runs.
        functions: The token budgets of all functions.
        server_log: Logs failures of model servers.
        large_body_lock: The lock that a task holds while it parses a large body. So other tasks run between
            two large bodies.
    """

    servers: Upstreams
    limits: GatewayLimits
    metrics: Metrics
    memory: BodyMemory
    functions: FunctionBudgets
    server_log: ServerLog
    large_body_lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class ServerLog:
    """Logs when a model server begins to fail, and when it works again.

    A token bucket limits the number of log entries, because jobs can make a server fail again and again.

    Args:
        now: The clock, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failing: dict[str, str] = {}
        self._bucket = TokenBucket.full(_ENTRIES_PER_S, _ENTRIES_BURST, now())

    def note(self, server: Upstream, reason: str | None) -> None:
        """Record the result of a request, and log it if it is news.

        Args:
            server: The model server.
            reason: The reason of its failure; None if it answered.
        """
        # If the bucket is empty, the recorded state stays unchanged. So a later request can log the change.
        if reason == self._failing.get(server.name) or not self._bucket.take(self._now()):
            return
        if reason is None:
            del self._failing[server.name]
            log.info("model server recovered", server=server.name)
        else:
            self._failing[server.name] = reason
            log.warning("model server failed", server=server.name, reason=reason)
