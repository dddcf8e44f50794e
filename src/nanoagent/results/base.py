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

    Two claims are equal only if they are the same object, even if they are for the same request.

    Attributes:
        request_id: The request's ID.
        token: The fencing token. It is larger than the token of every earlier claim of the request, on any
            worker. Data that was written with a smaller token may be overwritten. Data that was written with
            a larger token must not be overwritten.
        cancelled: Whether the request was cancelled before this claim.
        failures: How many attempts at the request had failed by a platform error before this claim.
        followed: Whether somebody followed the job before this claim (`live_log`).
        lost: Completed with the reason when another worker has claimed or answered the request.
    """

    request_id: str
    token: int
    cancelled: bool = False
    failures: int = 0
    followed: bool = False
    lost: asyncio.Future[str] = field(default_factory=_new_future, repr=False)


@dataclass(frozen=True, slots=True)
class Taken:
    """Another worker has claimed the request.

    Attributes:
        left_s: The time until that claim ends, unless it is renewed, seconds.
        refusals: How often a worker was refused because of that claim, including this time.
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

    The result store renews a claim from `claim` until `publish` or `release`. If the claim is not renewed for
    some time, another worker may claim the request. Until another worker does so, the first worker can still
    publish and renew. Afterwards `Claim.lost` of the first claim is completed.

    The result store counts the failed attempts at a request until the request has a result. Each attempt
    counts once, by its token. An attempt has failed if `release` is called with `failed`. It has also failed
    if its claim was not renewed and another worker has claimed the request: the first worker has died or
    hung.

    `claim`, `publish`, `release` and `ping` raise `ResultStoreError` when the store fails.
    """

    async def claim(self, request_id: str, about: bytes = b"") -> Claim | Taken | Answered:
        """Claim a request, unless the request has a result or another worker has claimed it.

        Args:
            request_id: The request.
            about: The description of the job for the index of jobs (`job_index.about`); empty: not indexed.
        """
        ...

    async def publish(self, claim: Claim, document: bytes, entry: bytes = b"") -> bool:
        """Store a result, publish it, and end the claim, in one step.

        The same document may be published repeatedly. Subscribers then receive it once or more. The index of
        jobs gets one entry.

        Args:
            claim: The claim.
            document: The result.
            entry: The entry of the index of jobs (`job_index.of_result`); empty for none.

        Returns:
            False if another worker has claimed the request after this claim, or if the request has another
            result. Then nothing is stored or published.
        """
        ...

    async def release(self, claim: Claim, *, failed: bool = False, entry: bytes = b"") -> int:
        """End a claim, so that any worker can claim the request at once. A lost claim is not an error.

        Args:
            claim: The claim.
            failed: Whether the attempt failed by a platform error. The attempt counts once, even if `release`
                is called repeatedly.
            entry: The entry of the index of jobs, if the job waits for another attempt; empty for none.

        Returns:
            How many attempts at the request have failed.
        """
        ...

    async def ping(self) -> None:
        """Check that the store can take results. Raises `ResultStoreError` otherwise."""
        ...

    def took_write_lately(self) -> bool:
        """Return whether a write succeeded a moment ago, and no call failed after it. Then skip `ping`."""
        ...

    async def close(self) -> None:
        """Stop renewing claims and close connections. Idempotent."""
        ...


class Cancellations(Protocol):
    """Receives the cancellations of requests, and the news that somebody follows a job."""

    def watch(
        self,
        request_id: str,
        cancelled: Callable[[], object],
        followed: Callable[[], object] = lambda: None,
    ) -> Callable[[], None]:
        """Call `cancelled` when the request is cancelled, at most once.

        Until then, call `followed` each time that a follower renews its lease.

        Returns:
            A function that ends the watch. The caller must call it exactly once.
        """
        ...

    async def close(self) -> None:
        """Close connections. Idempotent."""
        ...
