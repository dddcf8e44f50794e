"""Stores the capsules of jobs, after their results were published.

A capsule is stored in the background: no answer waits for it, and no failure of it fails a job. If the worker
dies at that moment, or S3 fails, the result names a capsule that does not exist.
"""

from __future__ import annotations

import asyncio
import platform
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent import __version__
from nanoagent.host.threads import in_thread
from nanoagent.jobs import capsule_document
from nanoagent.jobs.capsule_document import Facts
from nanoagent.model import capsule as capsules
from nanoagent.model.capsule import CapsuleWorker
from nanoagent.model.errors import Superseded

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.code.code_cache import CodeCache
    from nanoagent.config import Settings
    from nanoagent.jobs.attempt import Attempt
    from nanoagent.model.job import Job, Runtime
    from nanoagent.model.result import Result
    from nanoagent.storage.base import ObjectStore

log = structlog.get_logger(__name__)

_PARALLEL_UPLOADS: Final = 4
_MOST_WAITING: Final = 64  # each holds its message and its result, up to 1.5 MiB
_TIMEOUT_S: Final = 15.0
_CLOSE_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CapsuleParts:
    """The collaborators.

    Attributes:
        settings: The settings of the worker.
        store: The object store. It should not wait for an outage to end.
        code: Knows the ETag of the code.
        image_ids: Runtime → ID of its image.
        observe: Called with `stored`, `failed` or `dropped` for each capsule.
    """

    settings: Settings
    store: ObjectStore
    code: CodeCache
    image_ids: dict[Runtime, str]
    observe: Callable[[str], None] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredJob:
    """A job whose result has been published.

    Attributes:
        body: The message.
        job: The job; None if the message was not a valid job.
        attempt: The last attempt; None if there was none.
        result: The result, with whole texts.
        fencing_token: The token of the claim under which the result was published.
    """

    body: str
    job: Job | None
    attempt: Attempt | None
    result: Result
    fencing_token: int


class Capsules:
    """Stores capsules in the background, a few at a time.

    Args:
        parts: The collaborators.

    Attributes:
        of_all: Whether each job leaves a capsule, not only a failed one.
    """

    def __init__(self, parts: CapsuleParts) -> None:
        self._parts = parts
        self._worker = CapsuleWorker(parts.settings.worker_id, __version__, platform.machine())
        self._uploads = asyncio.Semaphore(_PARALLEL_UPLOADS)
        self._tasks: set[asyncio.Task[None]] = set()
        self.of_all = parts.settings.capsules == "all"

    def keep(self, answered: AnsweredJob) -> None:
        """Begin to store the capsule of a job. If too many wait already, it is dropped."""
        if len(self._tasks) >= _MOST_WAITING:
            self._parts.observe("dropped")
            log.warning("capsule not stored", reason=f"{_MOST_WAITING} others wait to be stored")
            return
        task = asyncio.create_task(self._keep(answered))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for a few seconds until all capsules are stored, then drop the others. Idempotent."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_CLOSE_S)
        for task in set(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, answered: AnsweredJob) -> None:
        try:
            async with self._uploads:
                await self._store(answered)
        except Superseded:  # a later attempt has another result, and its capsule
            return
        except Exception as exc:  # noqa: BLE001 - a capsule must not fail its job
            self._parts.observe("failed")
            log.warning(
                "capsule not stored",
                reason=str(exc) or type(exc).__name__,
                remedy="allow s3:PutObject and s3:GetObject on capsules/* of S3_USER_DATA_BUCKET, or set "
                "CAPSULES=off",
            )
        else:
            self._parts.observe("stored")

    async def _store(self, answered: AnsweredJob) -> None:
        request_id = answered.result.request_id
        with tempfile.NamedTemporaryFile(prefix="nanoagent-capsule-") as file:
            path = Path(file.name)
            facts = self._facts(answered)
            await in_thread(lambda: path.write_bytes(capsule_document.document(facts)))
            async with asyncio.timeout(_TIMEOUT_S):
                await self._parts.store.put(
                    self._parts.settings.s3_user_data_bucket,
                    capsules.key_of(request_id),
                    path,
                    content_type="application/json",
                    fencing_token=answered.fencing_token,
                )

    def _facts(self, answered: AnsweredJob) -> Facts:
        job, attempt = answered.job, answered.attempt
        digest = attempt.code_digest if attempt else ""
        etag = self._parts.code.etag_of(job.s3_bucket, job.s3_key, digest) if job and digest else None
        return Facts(
            body=answered.body,
            job=job,
            result=answered.result,
            settings=self._parts.settings,
            worker=self._worker,
            image_id=self._parts.image_ids.get(job.runtime) if job else None,
            digest=digest or None,
            etag=etag,
            hidden=_hidden(job, attempt),
            ai_record_key=attempt.ai_record_key if attempt else None,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _hidden(job: Job | None, attempt: Attempt | None) -> tuple[str, ...]:
    """Return the values of the job's environment variables, and those of its secrets."""
    values = [value for _, value in job.env] if job else []
    return (*values, *(attempt.secrets or {}).values()) if attempt else tuple(values)
