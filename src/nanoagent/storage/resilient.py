"""An object store with a circuit breaker. While the store is down, jobs lose no attempts.

After a failure of the service, a probe asks whether the store answers at all. The breaker opens if it does
not, if calls for three different jobs have failed in a row, or if three calls were throttled. While it is
open, the worker is not ready (`not_ready_reason` is the readiness check). Jobs that need to read are returned
to the queue uncounted. Jobs that need to write wait, because they have run. After a pause, which grows each
time, a probe closes the breaker on trial: the next failure opens it again. Waiting jobs go first.

Throttling is never a failed attempt. Refused credentials open the breaker at once, and so do an output bucket
that cannot be written to and a missing code bucket: no user's job can cause them. If access to the code
bucket is denied, S3 does not always say whether the key is missing or the worker may not read. Then the
breaker opens after three different keys if nothing was read yet.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from nanoagent.aws import clients as aws
from nanoagent.aws.clients import FailureKind
from nanoagent.common.circuit_breaker import CircuitBreaker
from nanoagent.model.errors import ReturnToQueue, StorageError, Superseded
from nanoagent.model.returns import ReturnReason
from nanoagent.storage.base import Absence, ObjectMissing, ObjectTooLarge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from nanoagent.storage.base import ObjectStore

_THRESHOLD: Final = 3
_OPEN_S: Final = 1.0
_OPEN_MAX_S: Final = 30.0
_PAUSE_S: Final = 1.0  # between two tries of a write
_SILENT_S: Final = 3.0  # calls that are without an answer for so long are reason enough to ask
_PUT_TRIES: Final = 3  # of a store that is not down; the job has run, and that is not to be lost
_PATIENCE_S: Final = 600.0  # for what has run; the lease is renewed meanwhile
_OURS: Final = frozenset(
    {
        FailureKind.NO_CREDENTIALS,
        FailureKind.REFUSED,
        FailureKind.CLOCK,
        FailureKind.DENIED,
        FailureKind.NO_BUCKET,
    }
)

_T = TypeVar("_T")
log = structlog.get_logger(__name__)


def storage_breaker() -> CircuitBreaker:
    """A circuit breaker for an object store. Its causes are the objects that calls were made for."""
    return CircuitBreaker(_THRESHOLD, first_s=_OPEN_S, longest_s=_OPEN_MAX_S)


class ResilientStore:
    """An `ObjectStore` around another; see the module's docstring.

    Args:
        store: The other.
        probe: Asks whether it answers; raises `StorageError`, in a bounded time.
        code_bucket: The default bucket of code; no job is to blame for its faults.
        clock: Monotonic seconds.
        patience_s: For how long a write waits for the store to come back, seconds.
    """

    def __init__(
        self,
        store: ObjectStore,
        probe: Callable[[], Awaitable[None]],
        *,
        code_bucket: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._store = store
        self._probe = probe
        self._code_bucket = code_bucket
        self._has_read = False
        self._clock = clock
        self._patience_s = patience_s
        self._breaker = storage_breaker()
        self._began: dict[object, float] = {}  # calls under way
        self._answered_at = clock()
        self._waiting = 0
        self._changed = asyncio.Event()
        self._probing: asyncio.Task[str | None] | None = None

    async def fetch(
        self, bucket: str, key: str, into: Path, *, etag: str | None, max_bytes: int
    ) -> str | None:
        """See `ObjectStore.fetch`.

        Raises:
            ReturnToQueue: The store is down.
        """
        if self._breaker.reason is not None:
            raise _unavailable(self._breaker.reason)
        work = self._store.fetch(bucket, key, into, etag=etag, max_bytes=max_bytes)
        try:
            done = await self._watched(f"{bucket}/{key}", work, is_write=False)
        except ObjectMissing as exc:
            self._judge_absence(bucket, key, exc)
            raise
        self._has_read = True
        return done

    def _judge_absence(self, bucket: str, key: str, missing: ObjectMissing) -> None:
        """Update the breaker for an object that cannot be read.

        Raises:
            ReturnToQueue: The default bucket of code itself cannot be used; the job is not at fault.
        """
        self._answered_at = self._clock()
        is_default = bucket == self._code_bucket
        if is_default and missing.absence in {Absence.BUCKET, Absence.ELSEWHERE}:
            self._open(f"{missing} (S3_CODE_BUCKET)")
        elif missing.absence is not Absence.DENIED:
            self._has_read |= missing.absence is Absence.KEY  # S3 says so only to callers that may read
            self._succeeded()
            return
        elif is_default and not self._has_read:
            reason = f"S3_CODE_BUCKET: access was denied each time, and nothing was read yet; {missing}"
            self._breaker.failed(reason, self._clock(), cause=key)
        else:
            return
        self._tell()
        if self._breaker.reason is not None:
            raise _unavailable(self._breaker.reason) from missing

    async def put(
        self,
        bucket: str,
        key: str,
        source: Path,
        **how: Any,
    ) -> None:
        """See `ObjectStore.put`. While the store is down this waits, for some minutes.

        Raises:
            ReturnToQueue: The store has not come back.
        """
        who = "/".join(key.split("/")[:2])  # outputs/{requestId}: the many files of a job are one
        give_up_at = self._clock() + self._patience_s
        tries = 0
        self._waiting += 1
        try:
            while True:
                await self._until_closed(give_up_at)
                try:
                    work = self._store.put(bucket, key, source, **how)
                    return await self._watched(who, work, is_write=True)
                except ReturnToQueue:
                    if self._clock() >= give_up_at:
                        raise
                except StorageError as exc:
                    tries += 1
                    if tries >= _PUT_TRIES or aws.failure_kind(exc.__cause__) is None:
                        raise
                if self._breaker.reason is None:
                    await asyncio.sleep(_PAUSE_S)
        finally:
            self._waiting -= 1

    def plain_url(self, bucket: str, key: str) -> str:
        """See `ObjectStore.plain_url`."""
        return self._store.plain_url(bucket, key)

    async def presigned_url(self, bucket: str, key: str, *, expires_s: int) -> str:
        """See `ObjectStore.presigned_url`: the store is not asked."""
        return await self._store.presigned_url(bucket, key, expires_s=expires_s)

    async def close(self) -> None:
        """Close the other. Idempotent."""
        if self._probing is not None:
            self._probing.cancel()
        await self._store.close()

    async def not_ready_reason(self) -> str | None:
        """Why jobs should not be taken, or None; to be asked every now and then: it looks, and mends."""
        breaker, now = self._breaker, self._clock()
        if breaker.reason is not None and now >= breaker.open_until:
            problem = await self._problem()
            if problem is not None:
                breaker.open(problem, self._clock())
            elif breaker.reason is not None:
                breaker.try_again()
                log.info("the object store answers again")
        elif self._is_silent(now) and (problem := await self._problem()) is not None:
            self._open(problem)
        self._tell()
        if breaker.reason is not None:
            return breaker.reason
        return breaker.on_trial if self._waiting else None

    def _is_silent(self, now: float) -> bool:
        """Whether calls are under way and none is answered."""
        oldest = min(self._began.values(), default=now)
        return now - max(oldest, self._answered_at) > _SILENT_S

    async def _watched(self, who: str, work: Awaitable[_T], *, is_write: bool) -> _T:
        """Do it, and draw conclusions.

        Raises:
            ReturnToQueue: It failed because the store is down, or throttles.
        """
        call = object()
        self._began[call] = self._clock()
        try:
            done = await work
        except StorageError as exc:
            await self._failed(who, exc, is_write=is_write)
            raise
        except (ObjectTooLarge, Superseded):
            self._succeeded()
            raise
        finally:
            del self._began[call]
        self._succeeded()
        return done

    async def _failed(self, who: str, exc: StorageError, *, is_write: bool) -> None:
        kind = aws.failure_kind(exc.__cause__)
        if kind is None:  # the disk, say: neither good nor bad of the store
            return
        if is_write and kind in _OURS:
            self._open(str(exc))
        elif kind is FailureKind.THROTTLED:  # each refusal counts
            self._breaker.failed(str(exc), self._clock())
        else:
            self._breaker.failed(str(exc), self._clock(), cause=who)
        if self._breaker.reason is None and kind is not FailureKind.THROTTLED:
            problem = await self._problem()
            if problem is not None:
                self._open(problem)
        self._tell()
        if self._breaker.reason is not None or kind is FailureKind.THROTTLED:
            raise _unavailable(self._breaker.reason or str(exc)) from exc

    def _open(self, reason: str) -> None:
        if self._breaker.reason is None:
            log.warning("the object store is down", reason=reason)
        self._breaker.open(reason, self._clock())

    def _succeeded(self) -> None:
        self._answered_at = self._clock()
        self._breaker.succeeded()
        self._tell()

    def _tell(self) -> None:
        """Wake those that wait for it to close."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until_closed(self, give_up_at: float) -> None:
        while (reason := self._breaker.reason) is not None:
            try:
                async with asyncio.timeout(max(0.0, give_up_at - self._clock())):
                    await self._changed.wait()
            except TimeoutError as exc:
                raise _unavailable(reason) from exc

    async def _problem(self) -> str | None:
        """What a probe shows to be wrong; one under way is shared."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._ask())
        return await asyncio.shield(self._probing)

    async def _ask(self) -> str | None:
        try:
            await self._probe()
        except StorageError as exc:
            return str(exc)
        self._answered_at = self._clock()
        return None


def _unavailable(reason: str) -> ReturnToQueue:
    return ReturnToQueue(
        f"the object store is not to be used at present: {reason}", reason=ReturnReason.STORE_UNAVAILABLE
    )
