"""Live logs on Redis.

    nanoagent:logs:{requestId}      A stream with the records (`scripts.APPEND`).
    nanoagent:followed:{requestId}  The lease of the followers: a string that expires.
    nanoagent:follow:{owner}        A channel to one worker. A message is the ID of a request that somebody
                                    follows. The owner of a request is in its claim (`scripts`).

A subscription for each job would cost each job a message, although few jobs have followers. So each worker
has one subscription, on the connection of its cancellations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nanoagent.results import scripts
from nanoagent.results.live_log import FOLLOWER_LEASE_S, Appended, Holder, Kind, Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoagent.results.base import Claim
    from nanoagent.results.connections import RedisConnections

_ANSWERS: Final = {1: Appended.FOLLOWED, 0: Appended.UNFOLLOWED, -1: Appended.SUPERSEDED}
_RECORDS_AT_ONCE: Final = 200


def lease_key(request_id: str) -> str:
    """Return the key of the lease of a job's followers."""
    return f"nanoagent:followed:{request_id}"


def follow_channel(owner: str) -> str:
    """Return the channel on which a worker is told that a job has followers."""
    return f"nanoagent:follow:{owner}"


def _log_key(request_id: str) -> str:
    return f"nanoagent:logs:{request_id}"


def _claim_key(request_id: str) -> str:
    return f"nanoagent:claim:{request_id}"


class RedisLiveLog:
    """`LiveLog` on a Redis or Valkey server.

    Args:
        connections: The connections to the server.
        ttl_s: How long a live log is kept after its last record, seconds.
        max_bytes: The largest size of a live log, bytes. The oldest records are deleted, but never the
            newest one.
    """

    def __init__(self, connections: RedisConnections, *, ttl_s: int, max_bytes: int) -> None:
        self._connections = connections
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes

    async def append(self, claim: Claim, records: Sequence[Record]) -> Appended:
        """Append records; see `LiveLog.append`.

        Raises:
            ResultStoreError: Redis failed.
        """
        request_id = claim.request_id
        keys = _log_key(request_id), _claim_key(request_id), lease_key(request_id)
        fields: list[str | bytes | int] = []
        for record in records:
            printed = -1 if record.printed is None else record.printed
            fields += (str(record.kind), record.attempt, record.position, printed, record.data)
        arguments = (claim.token, self._ttl_s, self._max_bytes, *fields)
        call = scripts.APPEND, keys, arguments
        (answer,) = await self._connections.run_scripts("store live output", call)
        return _ANSWERS[int(answer)]


class RedisLiveLogReader:
    """`LiveLogReader` on a Redis or Valkey server.

    Args:
        connections: The connections to the server. Their time limit must be longer than `wait_s` of `read`.
    """

    def __init__(self, connections: RedisConnections) -> None:
        self._connections = connections

    async def read(self, request_id: str, after: str, wait_s: float) -> list[tuple[str, Record]]:
        """Return records; see `LiveLogReader.read`.

        Raises:
            ResultStoreError: Redis failed.
        """
        wait = ("BLOCK", max(1, round(wait_s * 1000))) if wait_s > 0 else ()
        command = ("XREAD", "COUNT", _RECORDS_AT_ONCE, *wait, "STREAMS", _log_key(request_id), after)
        (answer,) = await self._connections.ask("read the live output", command)
        return [_record(entry) for entry in _entries(answer)]

    async def follow(self, request_id: str) -> Holder | None:
        """Renew the lease; see `LiveLogReader.follow`.

        The claim is read after the lease is stored. So a later claim finds the lease.

        Raises:
            ResultStoreError: Redis failed.
        """
        operation = "follow the job"
        _, (owner, until), (seconds, microseconds) = await self._connections.ask(
            operation,
            ("SET", lease_key(request_id), 1, "EX", FOLLOWER_LEASE_S),
            ("HMGET", _claim_key(request_id), "owner", "until"),
            ("TIME",),
        )
        if owner is None or int(until) < int(seconds) * 1_000_000 + int(microseconds):
            return None
        name = owner.decode(errors="replace")
        (told,) = await self._connections.ask(operation, ("PUBLISH", follow_channel(name), request_id))
        return Holder(name.partition("/")[0], int(told))

    async def result(self, request_id: str) -> bytes | None:
        """Return the result document; see `LiveLogReader.result`.

        Raises:
            ResultStoreError: Redis failed.
        """
        (document,) = await self._connections.ask("read the result", ("GET", f"job:{request_id}"))
        assert document is None or isinstance(document, bytes)  # noqa: S101 - decode_responses is off
        return document

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._connections.close()


def _entries(answer: Any) -> list[Any]:
    """Return the entries of the only stream: a pair in a list (RESP2), or a map (RESP3)."""
    if not answer:
        return []
    ((_, entries),) = answer.items() if isinstance(answer, dict) else answer
    return list(entries)


def _record(entry: Any) -> tuple[str, Record]:
    position, words = entry
    fields = dict(zip(words[::2], words[1::2], strict=True))
    printed = int(fields[b"printed"])
    record = Record(
        kind=Kind(fields[b"kind"].decode()),
        attempt=int(fields[b"attempt"]),
        position=int(fields[b"position"]),
        data=fields[b"data"],
        printed=None if printed < 0 else printed,
    )
    return position.decode(), record
