"""The other end of the queue, for people and for the demo: upload code, send a job, wait for its result."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from redis import asyncio as redis
from redis.exceptions import RedisError

from nanoagent import aws
from nanoagent.errors import BrokerError, ConfigError, SinkError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.config import Settings


def pack(code: Path) -> bytes:
    """A zip of a folder's files, or the zip itself.

    Raises:
        ConfigError: There is nothing at that path, or nothing in it.
    """
    if code.is_file():
        return code.read_bytes()
    files = sorted(path for path in code.rglob("*") if path.is_file())
    if not files:
        raise ConfigError([f"{code}: is no folder with files, and no zip"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            # A fixed time stamp: the same code is then the same zip, and hits the same cache.
            info = zipfile.ZipInfo(path.relative_to(code).as_posix())
            info.external_attr = (path.stat().st_mode & 0o777) << 16
            archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def shown(result: dict[str, Any]) -> str:
    """The result as JSON that gives a terminal no orders: what a program printed is a stranger's text.

    JSON escapes the first 32 control characters itself, but not those from U+0080 on, nor what turns the
    direction of writing, nor lone surrogates, which cannot be printed at all.
    """
    text = json.dumps(result, indent=2, ensure_ascii=False)
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
        for character in text
    )


def fifo_fields(queue_url: str, request_id: str) -> dict[str, str]:
    """What a FIFO queue wants to know of a message that has no order with others."""
    if not queue_url.endswith(".fifo"):
        return {}
    return {"MessageGroupId": request_id, "MessageDeduplicationId": request_id}


async def send(settings: Settings, code: Path, job: dict[str, Any], wait_s: float) -> dict[str, Any]:
    """Upload the code, send the job, and wait for the result.

    Args:
        settings: Where queue, bucket and Redis are.
        code: A folder, or a zip.
        job: The message without `s3Key`.
        wait_s: Seconds.

    Returns:
        The result's document.

    Raises:
        SinkError: Redis failed, or no result came in time.
        BrokerError: The queue failed.
        StorageError: The upload failed.
    """
    key = f"functions/{job['functionId']}.zip"
    async with AsyncExitStack() as opened:
        clients = await opened.enter_async_context(aws.AwsClients(settings.aws_region))
        client = redis.Redis(
            host=settings.redis_host,
            port=settings.redis_port,
            db=settings.redis_db,
            username=settings.redis_username,
            password=settings.redis_password,
            ssl=settings.redis_tls,
        )
        opened.push_async_callback(client.aclose)
        try:
            # Before the job is sent: a result that comes at once is not missed.
            listener = await opened.enter_async_context(client.pubsub())
            await listener.subscribe(f"result:{job['requestId']}")
            with aws.translated(StorageError, f"uploading {key}"):
                s3 = await clients.s3()
                await s3.put_object(Bucket=settings.s3_code_bucket, Key=key, Body=pack(code))
            with aws.translated(BrokerError, "sending the job"):
                sqs = await clients.sqs()
                body = json.dumps(job | {"s3Key": key}, ensure_ascii=False)
                url = settings.sqs_queue_url
                await sqs.send_message(QueueUrl=url, MessageBody=body, **fifo_fields(url, job["requestId"]))
            async with asyncio.timeout(wait_s):
                async for message in listener.listen():
                    if message["type"] == "message":
                        return dict(json.loads(message["data"]))
        except TimeoutError as exc:
            raise SinkError(f"no result came within {wait_s:g} s; is a worker running?") from exc
        except (RedisError, OSError) as exc:
            raise SinkError(f"Redis at {settings.redis_host}:{settings.redis_port} failed: {exc}") from exc
    raise SinkError("Redis ended the subscription")
