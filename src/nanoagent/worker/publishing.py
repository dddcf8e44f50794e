"""Storing and announcing results, on this worker's disk if Redis does not take them."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import structlog

from nanoagent.model.errors import ResultStoreError
from nanoagent.model.returns import ReturnReason

if TYPE_CHECKING:
    from nanoagent.model.returns import Streak
    from nanoagent.results.base import Claim, ResultStore
    from nanoagent.results.spool import Spool

log = structlog.get_logger(__name__)


class Publication(StrEnum):
    """What became of a result."""

    STORED = "stored"
    REFUSED = "refused"  # another worker has claimed the request since, or has answered it
    KEPT = "kept"  # it lies on this worker's disk


class Publisher:
    """Publishes results.

    Args:
        result_store: Redis.
        spool: Keeps results that Redis does not take.
        streak: Is told whether results could be published.
        forced: Set when the worker waits for nothing any more.
    """

    def __init__(
        self, result_store: ResultStore, spool: Spool, streak: Streak, forced: asyncio.Event
    ) -> None:
        self._result_store = result_store
        self._spool = spool
        self._streak = streak
        self._forced = forced

    async def publish(self, claim: Claim, document: bytes) -> Publication:
        """Publish at once, or as soon as Redis is back: the job has run, and its result must not be lost."""
        try:
            is_stored = await self._result_store.publish(claim, document)
        except ResultStoreError as exc:
            log.warning("result kept until Redis takes it", reason=str(exc))
        else:
            self._streak.worked(ReturnReason.NOT_TOLD)
            return Publication.STORED if is_stored else Publication.REFUSED
        delivered = await self._spool.keep(claim, document)
        forced = asyncio.create_task(self._forced.wait())
        either: set[asyncio.Future[Any]] = {delivered, forced}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if not delivered.done():
            return Publication.KEPT
        return Publication.STORED if delivered.result() else Publication.REFUSED

    async def tell(self, claim: Claim, document: bytes) -> bool:
        """Publish the result of a job that was given up, if Redis takes it now."""
        try:
            is_stored = await self._result_store.publish(claim, document)
        except ResultStoreError as exc:
            log.warning("result not published", reason=str(exc))
            self._streak.returned(ReturnReason.NOT_TOLD, str(exc))
            return False
        self._streak.worked(ReturnReason.NOT_TOLD)
        return is_stored
