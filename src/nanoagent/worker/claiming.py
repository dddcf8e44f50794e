"""Claims a request: takes the right to answer it, unless it has an answer or another worker has the right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from nanoagent.results import base
from nanoagent.worker.endings import Answered

if TYPE_CHECKING:
    from nanoagent.results.base import Claim, ResultStore, Taken

log = structlog.get_logger(__name__)


async def claim(request_id: str, result_store: ResultStore) -> Claim | Taken | Answered:
    """Take the right to answer a request.

    Returns:
        The claim; `Taken` when another worker has it; `Answered` when the request has a result, which the
        store has published again.

    Raises:
        ResultStoreError: The store failed.
    """
    claim = await result_store.claim(request_id)
    if isinstance(claim, base.Answered):
        log.info("result published again", reason="the request has been answered before")
        return Answered.by_document(claim.document)
    return claim
