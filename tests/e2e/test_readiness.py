"""When a worker says that it is ready: after every part has answered, and not while a default is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from support.agents.worker import WorkerUnderTest
from support.checks.reliability import until
from support.checks.zips import make_zip
from support.services.own_redis import HOST, free_port, own_redis
from support.services.proxy import Proxy

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

PYTHON_ONLY = {f"WARM_POOL_{runtime}_SIZE": "0" for runtime in ("NODEJS", "CPP", "GO")}
ANSWERS_MAX_S = 120


class Watched:
    """A worker whose queue, bucket and Redis are the test's, and its service manager.

    Attributes:
        told: What the service manager has been told.
    """

    def __init__(self, worker: WorkerUnderTest, channel: socket.socket) -> None:
        self.worker = worker
        self._channel = channel
        self.told: list[str] = []

    async def parts(self) -> dict[str, str]:
        """Why the worker is not ready, by part; empty when it is."""
        status, text = await self.worker.get("/readyz")
        reasons = {name: part["reason"] for name, part in json.loads(text)["parts"].items() if not part["ok"]}
        assert (status == 200) is (not reasons)
        return reasons

    async def until_not_ready(self, **says: str) -> None:
        """Until each of these parts gives a reason that has these words."""

        async def tells() -> bool:
            reasons = await self.parts()
            return all(words in reasons.get(part, "") for part, words in says.items())

        await until(tells)

    async def until_ready(self) -> None:
        async def is_ready() -> bool:
            return not await self.parts()

        await until(is_ready)

    def hear(self) -> list[str]:
        """Everything that the service manager has been told by now."""
        while True:
            try:
                self.told += self._channel.recv(4096).decode().splitlines()
            except BlockingIOError:
                return self.told

    async def check(self) -> tuple[int | None, dict[str, Any]]:
        """What `nanoagent check` says with the worker's settings."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nanoagent", "check", "--json", "--env-file", os.devnull),
            env=os.environ | self.worker.environment(),
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(ANSWERS_MAX_S):
            said, _ = await process.communicate()
        return process.returncode, json.loads(said)


async def create_bucket(stack: EmbeddedStack, name: str) -> None:
    async with stack.clients() as clients:
        where = {"LocationConstraint": "ap-northeast-2"}
        await (await clients.s3()).create_bucket(Bucket=name, CreateBucketConfiguration=where)


async def delete_bucket(stack: EmbeddedStack, name: str, *keys: str) -> None:
    async with stack.clients() as clients:
        s3 = await clients.s3()
        for key in keys:
            await s3.delete_object(Bucket=name, Key=key)
        await s3.delete_bucket(Bucket=name)


async def put(stack: EmbeddedStack, bucket: str, key: str) -> None:
    async with stack.clients() as clients:
        body = make_zip({"main.py": "print('ran')"})
        await (await clients.s3()).put_object(Bucket=bucket, Key=key, Body=body)


async def test_a_worker_is_ready_when_all_have_answered_and_never_blames_a_job_for_its_defaults(
    stack: EmbeddedStack, tmp_path: Path
):
    bucket = f"not-there-{secrets.token_hex(4)}"
    async with AsyncExitStack() as opened:
        cluster = await opened.enter_async_context(
            own_redis(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
        )
        single = await opened.enter_async_context(own_redis(tmp_path))
        redis = await opened.enter_async_context(Proxy(HOST, cluster.port))
        sqs = await opened.enter_async_context(Proxy(HOST, urlsplit(stack.endpoint_url).port or 0))
        channel = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        channel.bind(str(tmp_path / "notify"))
        channel.setblocking(False)
        settings = {
            **PYTHON_ONLY,
            "S3_CODE_BUCKET": bucket,
            "REDIS_HOST": HOST,
            "REDIS_PORT": str(redis.port),
            "AWS_ENDPOINT_URL_SQS": f"http://{HOST}:{sqs.port}",
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "CODE_CACHE_DIR": str(tmp_path / "cache"),
        }
        await sqs.cut()
        worker = WorkerUnderTest(stack, tmp_path, settings, until_ready=False)
        watched = Watched(await opened.enter_async_context(worker), channel)

        # --- a queue that is away, a bucket that does not exist
        await watched.until_not_ready(
            queue="it does not answer", storage="there is no such bucket", results="has not answered yet"
        )
        code, said = await watched.check()
        assert (code, said["verdict"]) == (1, "not ready: SQS queue, S3 buckets, Redis")
        assert f"{bucket} (S3_CODE_BUCKET)" in said["problems"]["S3 buckets"]
        assert "it is a Redis Cluster" in said["problems"]["Redis"]

        # --- a cluster, and nothing is received meanwhile
        await create_bucket(stack, bucket)
        await put(stack, bucket, "first.zip")
        first = worker.message(s3Key="first.zip")
        await stack.queues.send(worker.body(first), queue_url=worker.queue_url)
        await sqs.restore()
        await watched.until_not_ready(results="it is a Redis Cluster, which is not supported")
        assert await stack.queues.depth(queue_url=worker.queue_url) == (1, 0, 0)
        assert "READY=1" not in watched.hear()
        assert '"event": "ready"' not in worker.log.read_text()

        # --- all is well
        await redis.lead_to(HOST, single.port)
        await watched.until_ready()

        async def is_answered(message: dict[str, Any]) -> bool:
            return await single.client.exists(f"job:{message['requestId']}") == 1

        await until(lambda: is_answered(first))
        assert watched.hear().count("READY=1") == 1
        assert (await watched.check())[1]["verdict"] == "ready"

        # --- the bucket goes: its job goes back, and no sender is blamed
        await delete_bucket(stack, bucket, "first.zip")
        second = worker.message(s3Key="second.zip")
        await stack.queues.send(worker.body(second), queue_url=worker.queue_url)
        await watched.until_not_ready(storage="(S3_CODE_BUCKET)")
        assert not await is_answered(second)
        assert sum(await stack.queues.depth(queue_url=worker.queue_url)) == 1
