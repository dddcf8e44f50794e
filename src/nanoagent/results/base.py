"""The interfaces of the result store and of cancellations."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


def _new_future() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """The right to answer a request.

    Claims compare by identity: two claims of one request are two claims.

    Attributes:
        request_id: The request's ID.
        token: The fencing token. It is larger than the token of every earlier claim of the request, on any
            worker. Data that was written with a smaller token may be replaced; data with a larger token may
            not.
        cancelled: Whether the request was cancelled before this claim.
        failures: How many attempts at the request had failed by a platform error before this claim.
        lost: Completed with the reason when another worker has claimed or answered the request.
    """

    request_id: str
    token: int
    cancelled: bool = False
    failures: int = 0
    lost: asyncio.Future[str] = field(default_factory=_new_future, repr=False)


@dataclass(frozen=True, slots=True)
class Taken:
    """Another worker has claimed the request.

    Attributes:
        left_s: The time until that claim ends, unless it is renewed, seconds.
        refusals: How often that claim has caused this answer, including this time.
    """

    left_s: float
    refusals: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The request has a result, which was published again.

    Attributes:
        document: The result.
    """

    document: bytes


class ResultStore(Protocol):
    """Stores and publishes one result for each request.

    The result store renews a claim from `claim` until `publish` or `release`. If it cannot renew the claim,
    the claim ends after some time. It stays valid until another worker claims the request; then `Claim.lost`
    is completed.

    The result store counts the failed attempts at a request until the request has a result. Each attempt
    counts once, by its token. An attempt has failed if `release` says so. It has also failed if its claim
    ended by itself and another worker took it over: the first worker has died or hung.

    Every method raises `ResultStoreError` when the store fails.
    """

    async def claim(self, request_id: str) -> Claim | Taken | Answered:
        """Claim a request, unless the request has a result or another worker has claimed it."""
        ...

    async def publish(self, claim: Claim, document: bytes) -> bool:
        """Store a result, publish it, and end the claim, in one step.

        The same document may be published repeatedly. Subscribers then receive it once or more.

        Returns:
            False if another worker has claimed the request since, or if the request has another result. Then
            nothing is stored or published.
        """
        ...

    async def release(self, claim: Claim, *, failed: bool = False) -> int:
        """End a claim, so that any worker can claim the request at once. A lost claim is not an error.

        Args:
            claim: The claim.
            failed: Whether the attempt failed by a platform error. It counts once, even if this is repeated.

        Returns:
            How many attempts at the request have failed.
        """
        ...

    async def ping(self) -> None:
        """Check that the store can take results. Raises `ResultStoreError` otherwise."""
        ...

    def took_write_lately(self) -> bool:
        """Return whether a write succeeded a moment ago and none has failed since; `ping` would succeed."""
        ...

    async def close(self) -> None:
        """Stop renewing claims and close connections. Idempotent."""
        ...


class Cancellations(Protocol):
    """Receives the cancellations of requests."""

    def watch(self, request_id: str, cancelled: Callable[[], object]) -> Callable[[], None]:
        """Call `cancelled` when the request is cancelled, at most once.

        Returns:
            A function that ends the watch. The caller must call it exactly once.
        """
        ...

    async def close(self) -> None:
        """Close connections. Idempotent."""
        ...
