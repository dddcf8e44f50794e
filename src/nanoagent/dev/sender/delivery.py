"""Uploads code, sends jobs, and reads results and cancels jobs: S3, SQS and Redis.

The calls to AWS are those of deploy/iam-policy-sender.json: a sender may write code and send messages,
but may not read them. So a conditional write shows whether an object exists already.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from nanoagent.aws import clients as aws
from nanoagent.aws import failures as aws_failures
from nanoagent.model.errors import BrokerError, ResultStoreError, StorageError
from nanoagent.results import failures
from nanoagent.results.failures import RedisCallError
from nanoagent.wiring import services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.config import Settings
    from nanoagent.dev.sender.package import Package
    from nanoagent.results.server import RedisServer

CANCEL_TTL_S: Final = 3600
"""How long a cancellation waits for a job that no worker has received yet; see docs/sending.md."""

_REDIS_TIMEOUT_S: Final = 5.0
_SILENCE_S: Final = (
    1.5  # before the server is asked for its protocol; a round trip around the world takes 0.5 s
)
_LOOK_EVERY_S: Final = 5.0  # a published result may be missed during a reconnection
_PAUSE_S: Final = 1.0
_PUT_ATTEMPTS: Final = 3
_LEAST_BYTES_PER_S: Final = 100_000  # slower than that, an upload is given up
_EXISTS: Final = ("PreconditionFailed", "412")
_CONFLICT: Final = ("ConditionalRequestConflict", "409")
_TOO_LONG: Final = "must be shorter than"
_NO_CONDITIONS: Final = ("NotImplemented", "501")  # S3-compatible stores without If-None-Match


@asynccontextmanager
async def results(settings: Settings) -> AsyncIterator[Results]:
    """The results of a Redis server.

    Raises:
        ResultStoreError: It does not answer.
    """
    server = services.redis_server(settings)
    client = redis.Redis(
        **server.client_settings(),
        ssl=server.tls is not None,
        socket_connect_timeout=_REDIS_TIMEOUT_S,
        socket_timeout=_REDIS_TIMEOUT_S,
        retry=Retry(NoBackoff(), 1),  # the first try may meet a connection that the server has closed
    )
    try:
        answers = Results(client, server)
        await answers.ping()
        yield answers
    finally:
        await client.aclose()


class Results:
    """Reads results from Redis, waits for them, and cancels jobs.

    Args:
        client: Connected on demand.
        server: The server that it connects to.
    """

    def __init__(self, client: redis.Redis, server: RedisServer) -> None:
        self._client = client
        self._server = server

    async def ping(self) -> None:
        """Ask whether the server answers.

        A plain server does not answer a TLS handshake. After a short silence, the server is asked for its
        protocol, so that nobody waits for the whole timeout to learn that REDIS_TLS is wrong.

        Raises:
            ResultStoreError: It does not.
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
        """The result's document; None while there is none.

        Raises:
            ResultStoreError: Redis failed.
        """
        return _document(await self._asked("read the result", self._client.get(f"job:{request_id}")))

    async def wait(self, request_id: str, wait_s: float) -> dict[str, Any] | None:
        """The result's document as soon as it is there; None when `wait_s` have passed.

        A connection that breaks meanwhile is replaced.

        Raises:
            ResultStoreError: Redis did not answer at the end.
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
        """Cancel a request; returns how many workers received that at once.

        The key is for a worker that receives the job later.

        Raises:
            ResultStoreError: Redis failed.
        """
        channel = f"cancel:{request_id}"
        doing = "cancel the job"
        await self._asked(doing, self._client.set(channel, "1", ex=CANCEL_TTL_S))
        return int(await self._asked(doing, self._client.publish(channel, "1")))

    async def _listen(self, request_id: str, deadline: float) -> dict[str, Any] | None:
        async with self._client.pubsub() as listener:
            await listener.subscribe(f"result:{request_id}")
            while True:
                # After the subscription: a result that came before it is stored.
                if found := _document(await self._client.get(f"job:{request_id}")):
                    return found
                left_s = min(deadline - time.monotonic(), _LOOK_EVERY_S)
                if left_s <= 0:
                    return None
                if found := await _published(listener, time.monotonic() + left_s):
                    return found

    async def _asked(self, doing: str, answer: Any) -> Any:
        try:
            return await answer
        except (RedisError, OSError) as exc:
            raise await self._failure(doing, exc) from exc

    async def _failure(self, doing: str, error: Exception) -> RedisCallError:
        return RedisCallError(self._server.address, doing, await self._server.diagnose(error), error)


async def _published(listener: Any, until: float) -> dict[str, Any] | None:
    while (left_s := until - time.monotonic()) > 0:
        message = await listener.get_message(ignore_subscribe_messages=True, timeout=left_s)
        if message is not None and message["type"] == "message":
            return _document(message["data"])
    return None


def _document(data: Any) -> dict[str, Any] | None:
    """A result's document; one that cannot be read is not a result of a worker."""
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
    """Store the code; False when it is there already.

    Raises:
        StorageError: S3 failed.
    """
    doing = f"uploading {package.key} to the bucket {bucket}"
    seconds = aws.CALL_TIMEOUT_S + package.zip_bytes / _LEAST_BYTES_PER_S
    condition = {"IfNoneMatch": "*"}
    async with aws_failures.deadline(seconds, StorageError, doing):
        s3 = await clients.s3()
        for attempt in range(_PUT_ATTEMPTS):
            package.zip.seek(0)
            try:
                await s3.put_object(Bucket=bucket, Key=package.key, Body=package.zip, **condition)
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
    raise StorageError(f"{doing}: others keep writing it")


async def enqueue(clients: aws.AwsClients, queue_url: str, request_id: str, body: str) -> None:
    """Send the job's message.

    Raises:
        BrokerError: SQS failed, or refuses the message.
    """
    sqs = await clients.sqs()
    try:
        await sqs.send_message(QueueUrl=queue_url, MessageBody=body, **fifo_fields(queue_url, request_id))
    except aws_failures.CALL_ERRORS as exc:
        said = aws_failures.describe(exc)
        if _TOO_LONG in said:  # the error code is InvalidParameterValue, as for many other errors
            said = f"the queue takes smaller messages (its MaximumMessageSize); SQS says: {said}"
        raise BrokerError(f"sending the job: {said}") from exc


def may_have_arrived(error: BaseException) -> bool:
    """Whether a message may lie in the queue although sending it has failed."""
    # Of several tries, the last one's error is known, and an earlier one may have arrived.
    return aws_failures.failure_kind(error.__cause__) in {
        aws_failures.FailureKind.UNREACHABLE,
        aws_failures.FailureKind.FAILING,
    }


def fifo_fields(queue_url: str, request_id: str) -> dict[str, str]:
    """The fields that a FIFO queue requires, for a message without an order among others."""
    if not queue_url.endswith(".fifo"):
        return {}
    return {"MessageGroupId": request_id, "MessageDeduplicationId": request_id}
