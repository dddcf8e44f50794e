"""The port to where results go."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


def _not_lost() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """The right to answer a request. Identity is the object's: two claims of a request are two claims.

    Attributes:
        request_id: Which request.
        token: Larger than that of every earlier claim of the request, on any worker: what was written with a
            smaller one may be replaced, what was written with a larger one may not.
        cancelled: Whether the request had been cancelled when it was claimed.
        failures: How many attempts at it had failed by our fault when it was claimed.
        lost: Done, with the reason, once someone else has the right.
    """

    request_id: str
    token: int
    cancelled: bool = False
    failures: int = 0
    lost: asyncio.Future[str] = field(default_factory=_not_lost, repr=False)


@dataclass(frozen=True, slots=True)
class Taken:
    """Another worker has the claim.

    Attributes:
        left_s: For how much longer, unless it is renewed, seconds.
        refusals: How often that claim has been in somebody's way, this time included.
    """

    left_s: float
    refusals: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The request has a result, which has been announced once more.

    Attributes:
        document: The result.
    """

    document: bytes


class ResultStore(Protocol):
    """Stores and announces results, one for each request.

    From `claim` until `publish` or `release`, the result store itself renews a claim. If that fails, the
    claim runs out. It is still good until another worker has taken it: then `Claim.lost` says so.

    The result store counts the failed attempts at a request, each once, by its token, until the request has
    an answer. An attempt failed if `release` says so, or if its claim ran out and another worker took it
    over, because its worker has died or hung.

    Every method raises `ResultStoreError` when the store fails.
    """

    async def claim(self, request_id: str) -> Claim | Taken | Answered:
        """Take the right to answer a request, unless it has an answer or another worker has the right."""
        ...

    async def publish(self, claim: Claim, document: bytes) -> bool:
        """Store the document under the request and announce it, both or neither, and let the claim go.

        Returns False, and does neither, when someone else has claimed the request since, or has answered it
        otherwise. The same document may be published again: it is announced once or more.
        """
        ...

    async def release(self, claim: Claim, *, failed: bool = False) -> int:
        """Let others claim the request at once. Harmless when the claim is lost.

        Args:
            claim: Which.
            failed: Whether the attempt has failed by our fault, which counts; said again, it counts once.

        Returns:
            How many attempts at the request have failed.
        """
        ...

    async def ping(self) -> None:
        """Succeed when the store takes results, as far as can be told beforehand."""
        ...

    async def close(self) -> None:
        """Stop renewing, close connections. Idempotent."""
        ...


class Cancellations(Protocol):
    """Receives the cancellations of requests."""

    def watch(self, request_id: str, cancelled: Callable[[], object]) -> Callable[[], None]:
        """Have `cancelled` called, once at most, when the request is cancelled.

        Returns:
            What ends the watch; to be called exactly once.
        """
        ...

    async def close(self) -> None:
        """Close connections. Idempotent."""
        ...
