"""An object store that protects jobs from outages of the service. `health` decides whether it can be used.

While the store cannot be used:

* the worker is not ready (`ResilientStore.not_ready_reason`);
* a job that must still read its code goes back to the queue, which does not count as an attempt;
* a job that must write its outputs waits, because its program has already run. After the outage, the worker
  receives new jobs only when a call has succeeded or no write waits any more.

A throttled call never counts as an attempt.

The store also counts as unusable if the default bucket of code does not exist. If S3 denies access to a key
in this bucket, it does not always say why: perhaps the key does not exist, perhaps the worker lacks a
permission. The store then counts as unusable after access to three different keys was denied, if nothing was
read before.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nanoagent.aws import failures as aws_failures
from nanoagent.model.errors import ReturnToQueue, StorageError, Superseded
from nanoagent.storage.base import Absence, ObjectMissing, ObjectTooLarge
from nanoagent.storage.health import StoreHealth, unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from nanoagent.storage.base import ObjectStore

_RETRY_PAUSE_S: Final = 1.0  # between two tries of a write
_PUT_TRIES: Final = 3  # the job has run, and its outputs should not be lost by one failure
_WRITE_WAIT_S: Final = 600.0  # the lease on the message is renewed meanwhile

_T = TypeVar("_T")


class ResilientStore:
    """An `ObjectStore` that makes its calls on another object store; see the module's docstring.

    Args:
        store: The other object store.
        probe: Asks whether the store answers. If not, the probe raises `StorageError`. It ends within a
            limited time.
        code_bucket: The default bucket of code. If the bucket cannot be used, the job is not at fault.
        clock: Returns monotonic seconds.
        write_wait_s: How long a write waits until the store can be used, seconds.
    """

    def __init__(
        self,
        store: ObjectStore,
        probe: Callable[[], Awaitable[None]],
        *,
        code_bucket: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        write_wait_s: float = _WRITE_WAIT_S,
    ) -> None:
        self._store = store
        self._health = StoreHealth(probe, clock=clock)
        self._code_bucket = code_bucket
        self._clock = clock
        self._write_wait_s = write_wait_s
        self._has_read = False
        self._waiting_writes = 0

    async def is_unchanged(self, bucket: str, key: str, etag: str) -> bool:
        """See `ObjectStore.is_unchanged`. While the store cannot be used, it is not asked."""
        health = self._health
        if health.reason is not None:
            return False
        call = health.begin_call()
        try:
            unchanged = await self._store.is_unchanged(bucket, key, etag)
        finally:
            health.end_call(call)
        if unchanged:
            health.succeeded()
            self._has_read = True
        return unchanged

    async def fetch(
        self, bucket: str, key: str, into: Path, *, etag: str | None, max_bytes: int
    ) -> str | None:
        """See `ObjectStore.fetch`.

        Raises:
            ReturnToQueue: The store cannot be used.
        """
        if (reason := self._health.reason) is not None:
            raise unavailable(reason)
        work = self._store.fetch(bucket, key, into, etag=etag, max_bytes=max_bytes)
        try:
            fetched = await self._observe(f"{bucket}/{key}", work, is_write=False)
        except ObjectMissing as exc:
            self._judge_missing_object(bucket, key, exc)
            raise
        self._has_read = True
        return fetched

    async def put(self, bucket: str, key: str, source: Path, **options: Any) -> None:
        """See `ObjectStore.put`. While the store cannot be used, wait for at most `write_wait_s`.

        Raises:
            ReturnToQueue: The store could not be used in this time.
        """
        cause = "/".join(key.split("/")[:2])  # outputs/{requestId}: all files of a job are one cause
        give_up_at = self._clock() + self._write_wait_s
        tries = 0
        self._waiting_writes += 1
        try:
            while True:
                await self._health.wait_until_usable(give_up_at)
                try:
                    work = self._store.put(bucket, key, source, **options)
                    return await self._observe(cause, work, is_write=True)
                except ReturnToQueue:
                    if self._clock() >= give_up_at:
                        raise
                except StorageError as exc:
                    tries += 1
                    if tries >= _PUT_TRIES or aws_failures.failure_kind(exc.__cause__) is None:
                        raise
                if self._health.reason is None:
                    await asyncio.sleep(_RETRY_PAUSE_S)
        finally:
            self._waiting_writes -= 1

    def plain_url(self, bucket: str, key: str) -> str:
        """See `ObjectStore.plain_url`."""
        return self._store.plain_url(bucket, key)

    async def presigned_url(self, bucket: str, key: str, *, expires_s: int) -> str:
        """See `ObjectStore.presigned_url`. This works during an outage: signing needs no request."""
        return await self._store.presigned_url(bucket, key, expires_s=expires_s)

    async def close(self) -> None:
        """Close the other store. Idempotent."""
        self._health.close()
        await self._store.close()

    def reason_now(self) -> str | Awaitable[str | None] | None:
        """Like `not_ready_reason`, but return None without a coroutine while the store works."""
        works = self._health.is_usable_without_probe and not self._waiting_writes
        return None if works else self.not_ready_reason()

    async def not_ready_reason(self) -> str | None:
        """Return why no jobs should be received; None if they should.

        This is a readiness check. It must be called regularly, because it also probes the store.
        """
        await self._health.check()
        if self._health.reason is not None:
            return self._health.reason
        return self._health.trial_reason if self._waiting_writes else None

    def _judge_missing_object(self, bucket: str, key: str, missing: ObjectMissing) -> None:
        """Decide from an object that cannot be read whether the store can be used.

        Raises:
            ReturnToQueue: The default bucket of code cannot be used; the job is not at fault.
        """
        health = self._health
        health.answered()
        is_default = bucket == self._code_bucket
        if is_default and missing.absence in {Absence.BUCKET, Absence.ELSEWHERE}:
            health.open(f"{missing} (S3_CODE_BUCKET)")
        elif missing.absence is not Absence.DENIED:
            self._has_read |= missing.absence is Absence.KEY  # S3 says this only to callers that may read
            health.succeeded()
            return
        elif is_default and not self._has_read:
            reason = f"S3_CODE_BUCKET: access was denied each time, and nothing was read yet; {missing}"
            health.count_failure(reason, cause=key)
        else:
            return
        health.wake_waiting()
        if health.reason is not None:
            raise unavailable(health.reason) from missing

    async def _observe(self, cause: str, work: Awaitable[_T], *, is_write: bool) -> _T:
        """Make a call, and report how it ended to `health`.

        Args:
            cause: The job or object of the call.
            work: The call.
            is_write: Whether the call is a write.

        Raises:
            ReturnToQueue: The call failed because the store is down or throttles.
        """
        call = self._health.begin_call()
        try:
            done = await work
        except StorageError as exc:
            await self._health.failed(exc, cause=cause, is_write=is_write)
            raise
        except (ObjectTooLarge, Superseded):
            self._health.succeeded()
            raise
        finally:
            self._health.end_call(call)
        self._health.succeeded()
        return done
