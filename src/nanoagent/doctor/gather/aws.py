"""Facts about SQS, S3 and CloudWatch, from requests that leave no changes or have wrong arguments."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, Final

from nanoagent.aws import clients as aws
from nanoagent.doctor.facts import redrive_target
from nanoagent.doctor.gather.answers import DEADLINE_S, ask, ask_all
from nanoagent.model.errors import NanoAgentError
from nanoagent.telemetry.cloudwatch import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from nanoagent.aws.clients import AwsClients
    from nanoagent.config import Settings
    from nanoagent.doctor.facts import Answer

_TOO_MANY_MESSAGES: Final = 11  # SQS gives ten at most, and refuses the request


async def sqs(settings: Settings, clients: AwsClients) -> dict[str, Answer]:
    """Ask the queue for its attributes, then try the worker's actions. No message is received or changed.

    Returns:
        The answers by name: `attributes`, `delete`, `change` and `receive`; and `dead letters` if the
        dead-letter queue is known. If SQS cannot be reached, only `attributes`.
    """
    where = {"QueueUrl": settings.sqs_queue_url}
    invalid_handle = {**where, "ReceiptHandle": f"nanoagent-doctor-{secrets.token_hex(8)}"}
    client: Any = None

    async def attributes() -> Any:
        nonlocal client
        client = await clients.sqs()
        return await client.get_queue_attributes(**where, AttributeNames=["All"])

    first = await ask(attributes)
    if client is None or first.code in {"TimeoutError", "EndpointConnectionError", "ConnectTimeoutError"}:
        return {"attributes": first}
    requests: dict[str, Callable[[], Awaitable[Any]]] = {
        "delete": lambda: client.delete_message(**invalid_handle),
        "change": lambda: client.change_message_visibility(**invalid_handle, VisibilityTimeout=0),
        "receive": lambda: client.receive_message(**where, MaxNumberOfMessages=_TOO_MANY_MESSAGES),
    }
    target = _account_and_name(settings.sqs_dlq_url) if settings.sqs_dlq_url else redrive_target(first.data)
    if target is not None:
        account, name = target
        requests["dead letters"] = lambda: client.get_queue_url(
            QueueName=name, QueueOwnerAWSAccountId=account
        )
    return {"attributes": first} | await ask_all(requests)


def _account_and_name(url: str) -> tuple[str, str] | None:
    parts = url.rstrip("/").rsplit("/", 2)
    return (parts[1], parts[2]) if len(parts) == 3 and parts[1].isdecimal() else None


async def code_bucket(settings: Settings, clients: AwsClients) -> Answer:
    """Ask S3_CODE_BUCKET for a key that does not exist."""
    key = f".nanoagent-doctor-{secrets.token_hex(8)}"
    return await ask(lambda: _get(clients, settings.s3_code_bucket, key))


async def _get(clients: AwsClients, bucket: str, key: str) -> Any:
    answer = await (await clients.s3()).get_object(Bucket=bucket, Key=key)
    answer["Body"].close()
    return answer


async def bucket_regions(clients: AwsClients, buckets: Iterable[str]) -> dict[str, str | None]:
    """Return bucket → region; None if S3 does not name the region."""
    try:
        client = await clients.s3()
    except NanoAgentError:  # the other requests report errors in the client's settings
        return {}
    names = sorted(set(buckets))
    return dict(zip(names, await asyncio.gather(*(_region(client, name) for name in names)), strict=True))


async def _region(client: Any, bucket: str) -> str | None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await aws.bucket_region(client, bucket)
    except TimeoutError:
        return None


async def data_bucket(settings: Settings, clients: AwsClients, prefix: str) -> tuple[Answer, Answer | None]:
    """Begin a multipart upload to S3_USER_DATA_BUCKET, and abort it.

    Returns:
        The answers to both requests; the second is None if the first failed.
    """
    where = {
        "Bucket": settings.s3_user_data_bucket,
        "Key": f"{prefix}.nanoagent-doctor-{secrets.token_hex(8)}",
    }

    async def begin() -> Any:
        return await (await clients.s3()).create_multipart_upload(**where)

    async def abort() -> Any:
        return await (await clients.s3()).abort_multipart_upload(**where, UploadId=begun.data["UploadId"])

    begun = await ask(begin)
    return begun, None if begun.code is not None else await ask(abort)


async def credentials_lifetime(clients: AwsClients) -> aws.CredentialsLifetime | None:
    """Return the lifetime of the credentials that sign links.

    None if there are no credentials. Other findings report this.
    """
    answer = await ask(clients.credentials_lifetime)
    return answer.data if isinstance(answer.data, aws.CredentialsLifetime) else None


async def cloudwatch(clients: AwsClients) -> Answer:
    """Send PutMetricData without metric data."""

    async def put() -> Any:
        return await (await clients.cloudwatch()).put_metric_data(Namespace=NAMESPACE, MetricData=[])

    return await ask(put)
