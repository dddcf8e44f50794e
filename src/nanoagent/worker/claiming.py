"""Claims a request: takes the right to answer it, unless it has a result or another worker has claimed it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from nanoagent.results import base
from nanoagent.worker.endings import Answered

if TYPE_CHECKING:
    from nanoagent.results.base import Claim, ResultStore, Taken

log = structlog.get_logger(__name__)


async def claim(request_id: str, result_store: ResultStore, about: bytes = b"") -> Claim | Taken | Answered:
    """Take the right to answer a request.

    Args:
        request_id: The request.
        result_store: The store.
        about: The description of the job for the index of jobs.

    Returns:
        The claim. `Taken` if another worker has claimed the request. `Answered` if the request has a result;
        the store has then published this result again.

    Raises:
        ResultStoreError: The store failed.
    """
    claim = await result_store.claim(request_id, about)
    if isinstance(claim, base.Answered):
        log.info("result published again", reason="the request has been answered before")
        return Answered.by_document(claim.document)
    return claim
