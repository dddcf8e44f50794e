"""A result store in this process, for tests of the worker and for trying the worker without Redis."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nanoagent.model.errors import ResultStoreError
from nanoagent.results.base import Answered, Claim, Taken
from nanoagent.results.live_log import FOLLOWER_LEASE_S, Appended, Holder, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(slots=True, eq=False)
class _ClaimEntry:
    """The claim on one request.

    Attributes:
        holder: The result store of the worker that has the claim.
        claim: The claim.
        lapsed: Whether `lapse` has ended the claim, as if it had not been renewed.
        refusals: How often another worker was refused because of this claim.
    """

    holder: MemoryResultStore
    claim: Claim
    lapsed: bool = False
    refusals: int = 0


@dataclass(slots=True, eq=False)
class _Store:
    """The data that Redis would hold; several result stores can share it.

    Attributes:
        documents: The result of each request, and when it expires, seconds of the store's clock.
        claims: The claim on each request.
        cancelled: The requests that were cancelled before a claim.
        watched: The callbacks for cancellations and for followers, by request.
        logs: The records of each live log.
        trimmed: The number of records that were deleted from the beginning of each live log.
        leases: When the lease of the followers of each request ends, seconds of the store's clock.
        published: Every published result, in order.
        failures: The tokens of the failed attempts, by request.
        tokens: Yields the fencing tokens.
        entries: The index of jobs, the oldest entry first.
        running: The description of each claimed request that is in the index.
    """

    documents: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    claims: dict[str, _ClaimEntry] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    watched: dict[str, list[tuple[Callable[[], object], Callable[[], object]]]] = field(default_factory=dict)
    logs: defaultdict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    trimmed: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    leases: dict[str, float] = field(default_factory=dict)
    published: list[tuple[str, bytes]] = field(default_factory=list)
    failures: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    tokens: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    entries: list[bytes] = field(default_factory=list)
    running: dict[str, bytes] = field(default_factory=dict)


class MemoryResultStore:
    """A `ResultStore` and `Cancellations` whose data is in dictionaries.

    A claim does not end by itself. `lapse` ends a claim as if its worker had crashed or paused.

    Args:
        ttl_s: How long a result is kept, seconds.
        clock: Returns monotonic seconds.
        claim_s: The value of `Taken.left_s`, seconds.

    Attributes:
        down: While True, `claim`, `publish`, `release` and `ping` raise `ResultStoreError`, as with a server
            that does not answer.
    """

    def __init__(
        self, *, ttl_s: int = 3600, clock: Callable[[], float] = time.monotonic, claim_s: float = 60
    ) -> None:
        self.down = False
        self._ttl_s = ttl_s
        self._clock = clock
        self._claim_s = claim_s
        self._store = _Store()

    def beside(self) -> MemoryResultStore:
        """Return the result store of another worker, with the same data."""
        other = MemoryResultStore(ttl_s=self._ttl_s, clock=self._clock, claim_s=self._claim_s)
        other._store = self._store
        return other

    @property
    def published(self) -> list[tuple[str, bytes]]:
        """Every published result, in order: the request's ID and the document."""
        return self._store.published

    @property
    def entries(self) -> list[bytes]:
        """The index of jobs, the oldest entry first."""
        return self._store.entries

    @property
    def running(self) -> dict[str, bytes]:
        """The description of each claimed request that is in the index of jobs."""
        return self._store.running

    @property
    def failures(self) -> dict[str, int]:
        """The number of failed attempts at each request that has no result yet."""
        return {request: len(tokens) for request, tokens in self._store.failures.items() if tokens}

    def cancel(self, request_id: str) -> int:
        """Cancel a request; return the number of callbacks that were called."""
        watching = self._store.watched.pop(request_id, [])
        for cancelled, _ in watching:
            cancelled()
        return len(watching)

    def cancel_ahead(self, request_id: str) -> None:
        """Cancel a request for all later claims."""
        self._store.cancelled.add(request_id)

    def watch(
        self,
        request_id: str,
        cancelled: Callable[[], object],
        followed: Callable[[], object] = lambda: None,
    ) -> Callable[[], None]:
        """Call `cancelled` when the request is cancelled; see `Cancellations.watch`."""
        watched = cancelled, followed
        self._store.watched.setdefault(request_id, []).append(watched)

        def end() -> None:
            watching = self._store.watched.get(request_id, [])
            if watched in watching:
                watching.remove(watched)

        return end

    def lapse(self, request_id: str) -> None:
        """End the claim on a request, as if it had not been renewed; the next worker takes it over."""
        self._store.claims[request_id].lapsed = True

    async def claim(self, request_id: str, about: bytes = b"") -> Claim | Taken | Answered:
        """Claim a request; see `ResultStore.claim`."""
        self._check()
        document = await self.stored(request_id)
        if document is not None:
            self._publish(request_id, document)
            return Answered(document)
        held = self._store.claims.get(request_id)
        failures = self._store.failures[request_id]
        if held is not None and held.holder is not self:
            if not held.lapsed:
                held.refusals += 1
                return Taken(self._claim_s, held.refusals)
            failures.add(held.claim.token)
        cancelled = request_id in self._store.cancelled
        followed = self._clock() < self._store.leases.get(request_id, 0)
        claim = Claim(request_id, next(self._store.tokens), cancelled, len(failures), followed)
        self._store.claims[request_id] = _ClaimEntry(self, claim)
        if held is not None and not held.claim.lost.done():
            held.claim.lost.set_result("taken over")
        if about:
            self._store.running[request_id] = about
        return claim

    async def publish(self, claim: Claim, document: bytes, entry: bytes = b"") -> bool:
        """Store and publish a result; see `ResultStore.publish`."""
        self._check()
        stored = await self.stored(claim.request_id)
        if stored is not None:
            return stored == document
        held = self._store.claims.get(claim.request_id)
        if held is not None and held.claim.token != claim.token:
            return False
        self._publish(claim.request_id, document)
        self._store.failures.pop(claim.request_id, None)
        self._store.claims.pop(claim.request_id, None)
        if entry:
            self._store.running.pop(claim.request_id, None)
            self._store.entries.append(entry)
        return True

    async def release(self, claim: Claim, *, failed: bool = False, entry: bytes = b"") -> int:
        """End a claim; see `ResultStore.release`."""
        self._check()
        failures = self._store.failures[claim.request_id]
        if failed and await self.stored(claim.request_id) is None:
            failures.add(claim.token)
        held = self._store.claims.get(claim.request_id)
        if held is not None and held.claim.token == claim.token:
            del self._store.claims[claim.request_id]
            self._store.running.pop(claim.request_id, None)
            if entry:
                self._store.entries.append(entry)
        return len(failures)

    async def stored(self, request_id: str) -> bytes | None:
        """Return the stored result of a request; None if there is no result, or if it has expired."""
        document, expires_at = self._store.documents.get(request_id, (None, 0.0))
        return document if self._clock() < expires_at else None

    async def ping(self) -> None:
        """Check that the store is not `down`; see `ResultStore.ping`."""
        self._check()

    def took_write_lately(self) -> bool:
        """Return False, so that the caller always calls `ping`, which costs nothing here."""
        return False

    async def close(self) -> None:
        """Do nothing: the store has no connections."""

    def live_log(self, *, max_bytes: int) -> MemoryLiveLog:
        """Return the live logs with the same data; see `MemoryLiveLog`."""
        return MemoryLiveLog(self, self._store, self._clock, max_bytes=max_bytes)

    def _publish(self, request_id: str, document: bytes) -> None:
        self._store.documents[request_id] = document, self._clock() + self._ttl_s
        self.published.append((request_id, document))

    def _check(self) -> None:
        if self.down:
            raise ResultStoreError("results in memory: marked as down")


class MemoryLiveLog:
    """`LiveLog` and `LiveLogReader` on the data of a `MemoryResultStore`.

    Args:
        result_store: The result store. While it is `down`, all methods raise `ResultStoreError`.
        store: Its data.
        clock: Returns monotonic seconds.
        max_bytes: The largest size of a live log, bytes. A record counts as 64 bytes and its data.
    """

    def __init__(
        self, result_store: MemoryResultStore, store: _Store, clock: Callable[[], float], *, max_bytes: int
    ) -> None:
        self._result_store = result_store
        self._store = store
        self._clock = clock
        self._max_bytes = max_bytes
        self._changed = asyncio.Event()

    async def append(self, claim: Claim, records: Sequence[Record]) -> Appended:
        """Append records; see `LiveLog.append`."""
        await self._result_store.ping()
        request_id = claim.request_id
        held = self._store.claims.get(request_id)
        if held is not None and held.claim.token != claim.token:
            return Appended.SUPERSEDED
        log = self._store.logs[request_id]
        log += records
        while len(log) > 1 and sum(64 + len(record.data) for record in log) > self._max_bytes:
            del log[0]
            self._store.trimmed[request_id] += 1
        self._changed.set()
        is_followed = self._clock() < self._store.leases.get(request_id, 0)
        return Appended.FOLLOWED if is_followed else Appended.UNFOLLOWED

    async def read(self, request_id: str, after: str, wait_s: float) -> list[tuple[str, Record]]:
        """Return records; see `LiveLogReader.read`. The position of record n is `n-0`."""
        await self._result_store.ping()
        self._changed.clear()
        if not (found := self._records(request_id, after)):
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                return []
            found = self._records(request_id, after)
        return found

    async def follow(self, request_id: str) -> Holder | None:
        """Renew the lease; see `LiveLogReader.follow`."""
        await self._result_store.ping()
        self._store.leases[request_id] = self._clock() + FOLLOWER_LEASE_S
        held = self._store.claims.get(request_id)
        if held is None or held.lapsed:
            return None
        watching = list(self._store.watched.get(request_id, []))
        for _, followed in watching:
            followed()
        return Holder("memory", min(1, len(watching)))

    async def result(self, request_id: str) -> bytes | None:
        """Return the result document; see `LiveLogReader.result`."""
        await self._result_store.ping()
        return await self._result_store.stored(request_id)

    def _records(self, request_id: str, after: str) -> list[tuple[str, Record]]:
        trimmed = self._store.trimmed[request_id]
        numbered = enumerate(self._store.logs[request_id], trimmed + 1)
        return [
            (f"{number}-0", record) for number, record in numbered if number > int(after.partition("-")[0])
        ]
