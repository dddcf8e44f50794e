"""Publishes results. A result that Redis does not take is kept in the spool."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import structlog

from nanoagent.model.errors import ResultStoreError
from nanoagent.model.returns import ReturnReason

if TYPE_CHECKING:
    from nanoagent.model.returns import ReturnStreaks
    from nanoagent.results.base import Claim, ResultStore
    from nanoagent.results.spool import Spool

log = structlog.get_logger(__name__)


class Publication(StrEnum):
    """The outcome of the publication of a result."""

    STORED = "stored"
    REFUSED = "refused"  # another worker has answered the request, or has claimed it after this worker
    SPOOLED = "spooled"  # the result is on this worker's disk, and the worker stops


class Publisher:
    """Publishes results.

    Args:
        result_store: Redis.
        spool: Keeps results that Redis does not take.
        streaks: Counts failed publications of jobs that were given up.
        grace_ended: `Lifecycle.grace_ended`.
    """

    def __init__(
        self, result_store: ResultStore, spool: Spool, streaks: ReturnStreaks, grace_ended: asyncio.Event
    ) -> None:
        self._result_store = result_store
        self._spool = spool
        self._streaks = streaks
        self._grace_ended = grace_ended

    async def publish(self, claim: Claim, document: bytes, entry: bytes = b"") -> Publication:
        """Publish the result of a job that has run; if Redis fails, spool it and wait until Redis takes it.

        The wait also ends when a drain gives no more time. Then the result stays in the spool.

        Args:
            claim: The claim under which the job has run.
            document: The result as JSON.
            entry: The entry of the index of jobs.
        """
        try:
            is_stored = await self._result_store.publish(claim, document, entry)
        except ResultStoreError as exc:
            log.warning("result spooled", reason=str(exc))
        else:
            self._streaks.succeeded(ReturnReason.NOT_TOLD)
            return Publication.STORED if is_stored else Publication.REFUSED
        delivered = await self._spool.keep(claim, document)
        grace_ended = asyncio.create_task(self._grace_ended.wait())
        either: set[asyncio.Future[Any]] = {delivered, grace_ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        grace_ended.cancel()
        if not delivered.done():
            return Publication.SPOOLED
        return Publication.STORED if delivered.result() else Publication.REFUSED

    async def publish_once(self, claim: Claim, document: bytes, entry: bytes = b"") -> bool:
        """Publish the result of a job that was given up, without the spool.

        Returns:
            Whether the result is stored. If Redis fails, or another worker has the claim, it is not.
        """
        try:
            is_stored = await self._result_store.publish(claim, document, entry)
        except ResultStoreError as exc:
            log.warning("result not published", reason=str(exc))
            self._streaks.returned(ReturnReason.NOT_TOLD, str(exc))
            return False
        self._streaks.succeeded(ReturnReason.NOT_TOLD)
        return is_stored
