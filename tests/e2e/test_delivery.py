"""One result for each request, whatever becomes of messages, workers and services meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.job import Runtime
from support.worker import WorkerUnderTest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from nanoagent.local import EmbeddedStack

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

EVENTUALLY_S = 60
VISIBILITY_S = 5  # the shortest that settings allow
PYTHON_ONLY = {f"WARM_POOL_{runtime.upper()}_SIZE": "0" for runtime in Runtime if runtime != "python"}
SETTINGS = {"SQS_VISIBILITY_SECONDS": str(VISIBILITY_S), "LOG_LEVEL": "INFO", **PYTHON_ONLY}


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that has no signal of its own to wait for: another process's doing."""
    async with asyncio.timeout(EVENTUALLY_S):
        while not await condition():  # noqa: ASYNC110 - another process's state has no event
            await asyncio.sleep(0.05)


@asynccontextmanager
async def results_of(worker: WorkerUnderTest, request_id: str) -> AsyncIterator[asyncio.Queue[bytes]]:
    """Everything that is published for a request while the block runs."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen() -> None:
        async for event in listener.listen():
            if event["type"] == "message":
                heard.put_nowait(event["data"])

    async with worker.redis.pubsub() as listener:
        await listener.subscribe(f"result:{request_id}")
        await listener.get_message(timeout=10)
        task = asyncio.create_task(listen())
        try:
            yield heard
        finally:
            task.cancel()


async def test_a_job_that_outlasts_the_visibility_timeout_twice_is_received_once(
    stack: EmbeddedStack, tmp_path: Path
):
    async with WorkerUnderTest(stack, tmp_path, SETTINGS) as worker:
        key = await worker.upload({"main.py": "import time; time.sleep(12); print('whole')"})
        message = worker.message(s3Key=key, timeoutMs=60_000)
        async with results_of(worker, message["requestId"]) as heard:
            (result,) = await worker.run_all([message])

            async def is_deleted() -> bool:
                return await stack.queue_depth(queue_url=worker.queue_url) == (0, 0, 0)

            await eventually(is_deleted)
        assert (result["stdout"], result["attempt"], result["status"]) == ("whole\n", 1, "SUCCESS")
        assert heard.qsize() == 1
        assert await worker.metric("worker_leases_lost_total") == 0
        assert await worker.metric("worker_container_starts_total") == 1


async def test_a_run_whose_message_is_gone_is_stopped_and_publishes_nothing(
    stack: EmbeddedStack, tmp_path: Path
):
    async with WorkerUnderTest(stack, tmp_path, SETTINGS) as worker:
        source = "import time\nopen('/output/file', 'w').write('late')\ntime.sleep(600)\n"
        message = worker.message(s3Key=await worker.upload({"main.py": source}))
        async with results_of(worker, message["requestId"]) as heard:
            await send(worker, message)

            async def runs() -> bool:
                return await worker.metric("worker_pool_containers", runtime="python", state="busy") == 1

            await eventually(runs)
            async with stack.clients() as clients:
                await (await clients.sqs()).purge_queue(QueueUrl=worker.queue_url)

            async def is_stopped() -> bool:
                active = await worker.metric("worker_active_jobs")
                busy = await worker.metric("worker_pool_containers", runtime="python", state="busy")
                return (active, busy) == (0, 0)

            await eventually(is_stopped)
        assert await worker.metric("worker_leases_lost_total") == 1
        assert await worker.metric("worker_containers_retired_total", reason="unclean") == 1
        assert heard.empty()
        assert await worker.redis.get(f"job:{message['requestId']}") is None
        assert await stack.list_objects(stack.data_bucket, f"outputs/{message['requestId']}/") == []


async def send(worker: WorkerUnderTest, message: dict[str, Any]) -> None:
    await worker.stack.send(worker.body(message), queue_url=worker.queue_url)
