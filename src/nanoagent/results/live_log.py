"""Live logs: the output of jobs while they run, for the people who follow them.

A live log is a list of records. The worker that has claimed the request appends records, in batches. A
follower reads them, and continues after a record that it has read before. Each record of output has the
number of bytes of its stream before it, so a follower knows how much is missing, and where: the supervisor
and the worker leave output out if it is too much, and the store deletes the oldest records.

A worker writes the live log of a job only while somebody follows the job, unless LIVE_LOGS is `always`. A
follower holds a short lease, which it renews. A worker finds the lease when it claims the request. If the
worker has the request already, the follower tells it. The answer to each batch says whether the lease still
exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoagent.results.base import Claim

FOLLOWER_LEASE_S: Final = 10
"""The time for which a follower counts as present after it has renewed its lease, seconds."""

BEGINNING: Final = "0-0"
"""The position before the first record."""


class Kind(StrEnum):
    """The kind of a record."""

    STARTED = "start"  # a worker has taken the job; `data` is its ID
    STDOUT = "out"
    STDERR = "err"
    REFUSED = "busy"  # the worker stores the output of too many jobs already; `data` is its ID
    ENDED = "end"  # the attempt has ended; `data` is the status of the result, or empty if there is none


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a live log.

    Attributes:
        kind: Its kind.
        attempt: The number of the attempt, from 1.
        position: The number of bytes of the stream before `data`. For STARTED it is the fencing token of the
            claim, which tells two runs of a job apart.
        data: The output, or the text that the kind describes. Empty output only marks a position.
        printed: The number of bytes of the stream that `data` stands for; None: as many as it has. They
            differ if parts of the output are hidden.
    """

    kind: Kind
    attempt: int
    position: int = 0
    data: bytes = b""
    printed: int | None = None

    @property
    def end(self) -> int:
        """The number of bytes of the stream up to the end of `data`."""
        return self.position + (len(self.data) if self.printed is None else self.printed)


class Appended(Enum):
    """The answer to a batch of records."""

    FOLLOWED = "followed"
    UNFOLLOWED = "nobody follows the job"  # the records are stored nevertheless
    SUPERSEDED = "another worker has claimed the request"  # nothing is stored


class LiveLog(Protocol):
    """The worker's side of live logs."""

    async def append(self, claim: Claim, records: Sequence[Record]) -> Appended:
        """Append records to the live log of the claim's request.

        Raises:
            ResultStoreError: The store failed. The records may be stored.
        """
        ...


@dataclass(frozen=True, slots=True)
class Holder:
    """The state of the claim on a request.

    Attributes:
        worker: The ID of the worker that has claimed the request.
        told: How many workers were told that somebody follows the job.
    """

    worker: str
    told: int


class LiveLogReader(Protocol):
    """The follower's side of live logs. All methods raise `ResultStoreError` when the store fails."""

    async def read(self, request_id: str, after: str, wait_s: float) -> list[tuple[str, Record]]:
        """Return records after a position, each with its position. If there is none yet, wait for it.

        Args:
            request_id: The request's ID.
            after: The position of a record, or `BEGINNING`.
            wait_s: How long to wait for a record, seconds.
        """
        ...

    async def follow(self, request_id: str) -> Holder | None:
        """Renew the lease of this follower, and tell the worker that has claimed the request.

        Returns:
            The worker; None if no worker has claimed the request now.
        """
        ...

    async def result(self, request_id: str) -> bytes | None:
        """Return the result document of the request; None if there is none."""
        ...
