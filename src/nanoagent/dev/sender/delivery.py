"""Talks to S3, SQS and Redis: uploads code, sends and cancels jobs, and reads results.

The calls to AWS are those that deploy/iam-policy-sender.json allows. A sender may write code and send
messages, but may not read code or messages. So it finds out with a conditional write whether an object
already exists.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from nanoagent.aws import clients as aws
from nanoagent.aws import failures as aws_failures
from nanoagent.dev.sender import progress
from nanoagent.model.errors import BrokerError, ResultStoreError, StorageError
from nanoagent.results import failures, job_index, scripts
from nanoagent.results.failures import RedisCallError
from nanoagent.wiring.redis_address import redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nanoagent.config import Settings
    from nanoagent.dev.sender.package import Package
    from nanoagent.results.job_index import About
    from nanoagent.results.server import RedisServer

CANCEL_TTL_S: Final = 3600
"""The lifetime of a cancellation of a job that no worker has received yet, seconds; see docs/sending.md."""

SENT_TTL_S: Final = 345_600
"""The lifetime of the note that a job was sent, seconds: the default retention of a queue (4 days)."""

_MOST_RUNNING: Final = 1000
_REDIS_TIMEOUT_S: Final = 5.0
# If the server has not answered for this time, its protocol is examined. A round trip around the world takes
# 0.5 s.
_SILENCE_S: Final = 1.5
_POLL_S: Final = 5.0  # a result that is published during a reconnection is found only by a poll
_PAUSE_S: Final = 1.0
_PUT_ATTEMPTS: Final = 3
_LEAST_BYTES_PER_S: Final = 100_000  # a slower upload fails
_EXISTS: Final = ("PreconditionFailed", "412")
_CONFLICT: Final = ("ConditionalRequestConflict", "409")
_TOO_LONG: Final = "must be shorter than"
_NO_CONDITIONS: Final = ("NotImplemented", "501")  # S3-compatible stores without If-None-Match


@asynccontextmanager
async def results(settings: Settings) -> AsyncIterator[Results]:
    """Connect to the Redis server of the settings.

    Raises:
        ResultStoreError: The server does not answer.
    """
    server = redis_server(settings)
    client = redis.Redis(
        **server.client_settings(),
        ssl=server.tls is not None,
        socket_connect_timeout=_REDIS_TIMEOUT_S,
        # Each call has its own time limit. With this limit, the client would call asyncio.wait_for(). Before
        # Python 3.12, that function can lose a cancellation, and so Ctrl-C.
        socket_timeout=None,
        retry=Retry(NoBackoff(), 1),  # the server may have closed an idle connection
    )
    try:
        answers = Results(client, server)
        await answers.ping()
        yield answers
    finally:
        await client.aclose()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedRequest:
    """A request that a worker has claimed.

    Attributes:
        request_id: The request.
        started_at_ms: When it was claimed, ms since the Unix epoch.
        age_ms: The time since then, ms.
        is_live: Whether the claim is renewed. Otherwise its worker has died or hangs.
        about: The function and the memory of the job.
    """

    request_id: str
    started_at_ms: int
    age_ms: int
    is_live: bool
    about: About


class Results:
    """Reads results from Redis, waits for them, and cancels jobs.

    Args:
        client: The client of the server; it connects when a method is called.
        server: The server's address and credentials.
    """

    def __init__(self, client: redis.Redis, server: RedisServer) -> None:
        self._client = client
        self._server = server

    async def ping(self) -> None:
        """Check that the server answers.

        A server without TLS does not answer a TLS handshake. After a short time without an answer, the
        protocol of the server is examined, so that a wrong REDIS_TLS is reported before the timeout.

        Raises:
            ResultStoreError: The server does not answer.
        """
        for patience_s in (_SILENCE_S, _REDIS_TIMEOUT_S):
            try:
                async with asyncio.timeout(patience_s):
                    await self._client.ping()
            except (RedisError, OSError) as exc:
                failure = await self._failure("connect", exc)
                if failure.kind is not failures.NO_ANSWER or patience_s == _REDIS_TIMEOUT_S:
                    raise failure from exc
            else:
                return

    async def stored(self, request_id: str) -> dict[str, Any] | None:
        """Return the document of a result; None if no result is stored.

        Raises:
            ResultStoreError: Redis failed.
        """
        return _document(await self._asked("read the result", self._client.get(f"job:{request_id}")))

    async def wait(self, request_id: str, wait_s: float) -> dict[str, Any] | None:
        """Wait for a result, and return its document; None if `wait_s` seconds have passed.

        If the connection breaks, connect again.

        Raises:
            ResultStoreError: Redis did not answer at the end of that time.
        """
        deadline = time.monotonic() + wait_s
        while True:
            try:
                return await self._listen(request_id, deadline)
            except (RedisError, OSError) as exc:
                if time.monotonic() + _PAUSE_S >= deadline:
                    raise await self._failure("wait for the result", exc) from exc
            await asyncio.sleep(_PAUSE_S)

    async def cancel(self, request_id: str) -> int:
        """Cancel a request; return the number of workers that received the cancellation.

        The cancellation is also stored, for a worker that receives the job later.

        Raises:
            ResultStoreError: Redis failed.
        """
        channel = f"cancel:{request_id}"
        operation = "cancel the job"
        await self._asked(operation, self._client.set(channel, "1", ex=CANCEL_TTL_S))
        return int(await self._asked(operation, self._client.publish(channel, "1")))

    async def mark_sent(self, request_id: str) -> None:
        """Note that a job was sent, so that `nanoagent cancel` knows it before a worker does.

        A user without the permission for that key can send jobs, too.

        Raises:
            ResultStoreError: Redis failed.
        """
        try:
            await self._asked("note the job", self._client.set(_sent_key(request_id), "1", ex=SENT_TTL_S))
        except RedisCallError as exc:
            if not exc.is_denied:
                raise

    async def was_sent(self, request_id: str) -> bool:
        """Return whether a job was sent by `nanoagent` and noted.

        Raises:
            ResultStoreError: Redis failed.
        """
        return await self._asked("look for the job", self._client.get(_sent_key(request_id))) is not None

    # --- the index of jobs

    async def entries(self, *, newest: str, oldest_ms: int, count: int) -> list[tuple[str, bytes]]:
        """Return entries of the index of jobs, the newest first: their IDs, and their data.

        Args:
            newest: The largest ID; `+` for the newest entry.
            oldest_ms: The time of the oldest entry, ms since the Unix epoch.
            count: The largest number of entries.

        Raises:
            ResultStoreError: Redis failed.
        """
        call = self._client.xrevrange(scripts.INDEX_KEY, newest, str(oldest_ms), count)
        answer = await self._asked("list jobs", call)
        return [(entry_id.decode(), fields.get(b"job", b"")) for entry_id, fields in answer]

    async def running(self) -> list[ClaimedRequest]:
        """Return the claimed requests; those whose claim ends last come first.

        Raises:
            ResultStoreError: Redis failed.
        """
        call = self._client.zrevrange(scripts.RUNNING_KEY, 0, _MOST_RUNNING - 1)
        members = await self._asked("list running jobs", call)
        return await self._claims([member.decode(errors="replace") for member in members])

    async def claimed(self, request_id: str) -> ClaimedRequest | None:
        """Return the claim of a request; None if no worker has claimed it.

        Raises:
            ResultStoreError: Redis failed.
        """
        return next(iter(await self._claims([request_id])), None)

    async def time_ms(self) -> int:
        """Return the time of the server, ms since the Unix epoch.

        Raises:
            ResultStoreError: Redis failed.
        """
        seconds, microseconds = await self._asked("read the time", self._client.time())
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def _claims(self, request_ids: Sequence[str]) -> list[ClaimedRequest]:
        """Return the claims of requests, without those that have ended by a release or a result."""
        if not request_ids:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for request_id in request_ids:
            pipeline.hmget(f"nanoagent:claim:{request_id}", "token", "until", "about")
        answers = await self._asked("read the claims", pipeline.execute())
        now_us = 1000 * await self.time_ms()
        return [
            ClaimedRequest(
                request_id=request_id,
                started_at_ms=int(token) // 1000,
                age_ms=max(0, now_us - int(token)) // 1000,
                is_live=int(until) > now_us,
                about=job_index.about_of(about),
            )
            for request_id, (token, until, about) in zip(request_ids, answers, strict=True)
            if token is not None and int(until or 0)
        ]

    async def _listen(self, request_id: str, deadline: float) -> dict[str, Any] | None:
        async with self._client.pubsub() as listener:
            async with asyncio.timeout(_REDIS_TIMEOUT_S):
                await listener.subscribe(f"result:{request_id}")
            while True:
                # A result that was published before the subscription is stored.
                async with asyncio.timeout(_REDIS_TIMEOUT_S):
                    stored = await self._client.get(f"job:{request_id}")
                if found := _document(stored):
                    return found
                left_s = min(deadline - time.monotonic(), _POLL_S)
                if left_s <= 0:
                    return None
                if found := await _published(listener, time.monotonic() + left_s):
                    return found

    async def _asked(self, operation: str, answer: Any) -> Any:
        try:
            async with asyncio.timeout(_REDIS_TIMEOUT_S):
                return await answer
        except (RedisError, OSError) as exc:
            raise await self._failure(operation, exc) from exc

    async def _failure(self, operation: str, error: Exception) -> RedisCallError:
        return RedisCallError(self._server.address, operation, await self._server.diagnose(error), error)


async def _published(listener: Any, until: float) -> dict[str, Any] | None:
    while (left_s := until - time.monotonic()) > 0:
        message = await listener.get_message(ignore_subscribe_messages=True, timeout=left_s)
        if message is not None and message["type"] == "message":
            return _document(message["data"])
    return None


def _sent_key(request_id: str) -> str:
    return f"nanoagent:sent:{request_id}"


def _document(data: Any) -> dict[str, Any] | None:
    """Parse the document of a result. A worker writes JSON objects only."""
    if data is None:
        return None
    try:
        found = json.loads(data)
    except ValueError as exc:
        raise ResultStoreError(f"the stored result is not JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise ResultStoreError("the stored result is not a JSON object")
    return found


async def upload(clients: aws.AwsClients, bucket: str, package: Package) -> bool:
    """Store the code; return False if it is already stored. On a terminal, show the progress.

    Raises:
        StorageError: S3 failed.
    """
    operation = f"uploading {package.key} to the bucket {bucket}"
    seconds = aws.CALL_TIMEOUT_S + package.zip_bytes / _LEAST_BYTES_PER_S
    condition = {"IfNoneMatch": "*"}
    async with aws_failures.deadline(seconds, StorageError, operation):
        s3 = await clients.s3()
        for attempt in range(_PUT_ATTEMPTS):
            try:
                with progress.shown(package.zip, package.zip_bytes) as body:
                    await s3.put_object(Bucket=bucket, Key=package.key, Body=body, **condition)
            except aws_failures.CALL_ERRORS as exc:
                code = aws_failures.error_code(exc)
                if code in _EXISTS:
                    return False
                if code in _NO_CONDITIONS and condition:
                    condition = {}
                elif code not in _CONFLICT or attempt == _PUT_ATTEMPTS - 1:
                    raise
            else:
                return True
    raise StorageError(f"{operation}: concurrent uploads of the same object; try again")


async def enqueue(clients: aws.AwsClients, queue_url: str, request_id: str, body: str) -> None:
    """Send the message of a job.

    Raises:
        BrokerError: SQS failed, or refused the message.
    """
    sqs = await clients.sqs()
    try:
        await sqs.send_message(QueueUrl=queue_url, MessageBody=body, **fifo_fields(queue_url, request_id))
    except aws_failures.CALL_ERRORS as exc:
        reason = aws_failures.describe(exc)
        if _TOO_LONG in reason:  # the error code is InvalidParameterValue, as for many other errors
            reason = f"the queue accepts only smaller messages (its MaximumMessageSize); SQS says: {reason}"
        raise BrokerError(f"sending the job: {reason}") from exc


def may_have_arrived(error: BaseException) -> bool:
    """Return whether a message may be in the queue although sending it failed."""
    # The error is that of the last try. An earlier try may have succeeded without an answer.
    return aws_failures.failure_kind(error.__cause__) in {
        aws_failures.FailureKind.UNREACHABLE,
        aws_failures.FailureKind.FAILING,
    }


def fifo_fields(queue_url: str, request_id: str) -> dict[str, str]:
    """Return the fields that a FIFO queue requires. Each message has its own group, so no order is kept."""
    if not queue_url.endswith(".fifo"):
        return {}
    return {"MessageGroupId": request_id, "MessageDeduplicationId": request_id}
