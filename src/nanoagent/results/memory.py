"""Results kept in this process: for tests of the worker, and for trying it without Redis."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nanoagent.model.errors import ResultStoreError
from nanoagent.results.base import Answered, Claim, Taken

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(slots=True, eq=False)
class _Held:
    """A claim, and who has it; `lapsed` when it ran out; how often it was in somebody's way."""

    holder: MemoryResultStore
    claim: Claim
    lapsed: bool = False
    refusals: int = 0


@dataclass(slots=True, eq=False)
class _Store:
    """What Redis would hold."""

    documents: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    claims: dict[str, _Held] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    watched: dict[str, list[Callable[[], object]]] = field(default_factory=dict)
    published: list[tuple[str, bytes]] = field(default_factory=list)
    failures: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    tokens: itertools.count[int] = field(default_factory=lambda: itertools.count(1))


class MemoryResultStore:
    """A `ResultStore`, and `Cancellations`, that are dictionaries.

    A claim never runs out, as if it were renewed in time; `lapse` lets it run out as a crash of the worker,
    or a pause, would.

    Args:
        ttl_s: How long a document is kept, seconds.
        clock: Monotonic seconds.
        claim_s: What is said of a claim that another has, seconds.

    Attributes:
        down: While True, every method raises `ResultStoreError`, as with a server that does not answer.
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
        """The result store of another worker, with the same contents."""
        other = MemoryResultStore(ttl_s=self._ttl_s, clock=self._clock, claim_s=self._claim_s)
        other._store = self._store
        return other

    @property
    def published(self) -> list[tuple[str, bytes]]:
        """Every announcement, in order: the request and its document."""
        return self._store.published

    @property
    def failures(self) -> dict[str, int]:
        """How many attempts at each request that has no answer yet failed by our fault."""
        return {request: len(tokens) for request, tokens in self._store.failures.items() if tokens}

    def cancel(self, request_id: str) -> int:
        """Call a request off for those who watch it; returns how many do."""
        watching = self._store.watched.pop(request_id, [])
        for cancelled in watching:
            cancelled()
        return len(watching)

    def cancel_ahead(self, request_id: str) -> None:
        """Call a request off for whoever claims it from now on."""
        self._store.cancelled.add(request_id)

    def watch(self, request_id: str, cancelled: Callable[[], object]) -> Callable[[], None]:
        """Have it called when the request is cancelled; see `Cancellations.watch`."""
        self._store.watched.setdefault(request_id, []).append(cancelled)

        def end() -> None:
            watching = self._store.watched.get(request_id, [])
            if cancelled in watching:
                watching.remove(cancelled)

        return end

    def lapse(self, request_id: str) -> None:
        """Let the claim of a request run out: the next one who wants it takes it over."""
        self._store.claims[request_id].lapsed = True

    async def claim(self, request_id: str) -> Claim | Taken | Answered:
        """Take the right to answer a request; see `ResultStore.claim`."""
        self._check()
        document = await self.stored(request_id)
        if document is not None:
            self._announce(request_id, document)
            return Answered(document)
        held = self._store.claims.get(request_id)
        failures = self._store.failures[request_id]
        if held is not None and held.holder is not self:
            if not held.lapsed:
                held.refusals += 1
                return Taken(self._claim_s, held.refusals)
            failures.add(held.claim.token)
        cancelled = request_id in self._store.cancelled
        claim = Claim(request_id, next(self._store.tokens), cancelled, len(failures))
        self._store.claims[request_id] = _Held(self, claim)
        if held is not None and not held.claim.lost.done():
            held.claim.lost.set_result("taken over")
        return claim

    async def publish(self, claim: Claim, document: bytes) -> bool:
        """Store and announce the document; see `ResultStore.publish`."""
        self._check()
        stored = await self.stored(claim.request_id)
        if stored is not None:
            return stored == document
        held = self._store.claims.get(claim.request_id)
        if held is not None and held.claim.token != claim.token:
            return False
        self._announce(claim.request_id, document)
        self._store.failures.pop(claim.request_id, None)
        self._store.claims.pop(claim.request_id, None)
        return True

    def _announce(self, request_id: str, document: bytes) -> None:
        self._store.documents[request_id] = document, self._clock() + self._ttl_s
        self.published.append((request_id, document))

    async def release(self, claim: Claim, *, failed: bool = False) -> int:
        """Let others claim the request; see `ResultStore.release`."""
        self._check()
        failures = self._store.failures[claim.request_id]
        if failed and await self.stored(claim.request_id) is None:
            failures.add(claim.token)
        held = self._store.claims.get(claim.request_id)
        if held is not None and held.claim.token == claim.token:
            del self._store.claims[claim.request_id]
        return len(failures)

    async def stored(self, request_id: str) -> bytes | None:
        """The document stored for the request, if it is still kept."""
        document, expires_at = self._store.documents.get(request_id, (None, 0.0))
        return document if self._clock() < expires_at else None

    async def ping(self) -> None:
        """Succeed unless `down`."""
        self._check()

    async def close(self) -> None:
        """There is nothing to close."""

    def _check(self) -> None:
        if self.down:
            raise ResultStoreError("results in memory: marked as down")
