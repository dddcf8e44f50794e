"""One result for each request, whatever becomes of messages, workers and services meanwhile."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from nanoagent.model.job import Runtime
from support.agents.worker import WorkerUnderTest
from support.checks.waiting import EVENTUALLY_S, announced, eventually
from support.services.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

VISIBILITY_S = 5  # the shortest that settings allow
PYTHON_ONLY = {f"WARM_POOL_{runtime.upper()}_SIZE": "0" for runtime in Runtime if runtime != "python"}
SETTINGS = {"SQS_VISIBILITY_SECONDS": str(VISIBILITY_S), "LOG_LEVEL": "INFO", **PYTHON_ONLY}


async def test_a_job_that_outlasts_the_visibility_timeout_twice_is_received_once(
    stack: EmbeddedStack, tmp_path: Path
):
    async with WorkerUnderTest(stack, tmp_path, SETTINGS) as worker:
        key = await worker.upload({"main.py": "import time; time.sleep(12); print('whole')"})
        message = worker.message(s3Key=key, timeoutMs=60_000)
        async with announced(worker.redis, message["requestId"]) as heard:
            (result,) = await worker.run_all([message])

            async def is_deleted() -> bool:
                return await stack.queues.depth(queue_url=worker.queue_url) == (0, 0, 0)

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
        async with announced(worker.redis, message["requestId"]) as heard:
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
        assert await stack.buckets.keys(stack.data_bucket, f"outputs/{message['requestId']}/") == []


# --- two workers


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(
    stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[WorkerUnderTest, WorkerUnderTest]]:
    """Two workers on one queue."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "other")]
    async with (
        WorkerUnderTest(stack, folders[0], SETTINGS) as one,
        WorkerUnderTest(stack, folders[1], SETTINGS, beside=one) as other,
    ):
        yield one, other


async def busy_one(
    pair: tuple[WorkerUnderTest, WorkerUnderTest],
) -> tuple[WorkerUnderTest, WorkerUnderTest]:
    """The worker that runs a job, and the other; as soon as one does."""
    async with asyncio.timeout(EVENTUALLY_S):
        while True:
            for worker, other in (pair, pair[::-1]):
                if await worker.metric("worker_pool_containers", runtime="python", state="busy"):
                    return worker, other
            await asyncio.sleep(0.05)


async def runs_of(pair: tuple[WorkerUnderTest, WorkerUnderTest]) -> float:
    return sum([await worker.metric("worker_container_starts_total") for worker in pair])


async def test_a_request_that_comes_in_two_messages_runs_once_on_two_workers(
    pair: tuple[WorkerUnderTest, WorkerUnderTest], stack: EmbeddedStack
):
    key = await pair[0].upload({"main.py": "import time, uuid; time.sleep(3); print(uuid.uuid4())"})
    message = pair[0].message(s3Key=key)
    before = await runs_of(pair)
    async with announced(pair[0].redis, message["requestId"]) as heard:
        for _ in range(4):
            await send(pair[0], message)

        async def all_are_settled() -> bool:
            return await stack.queues.depth(queue_url=pair[0].queue_url) == (0, 0, 0)

        await eventually(all_are_settled)
        documents = {await heard.get() for _ in range(heard.qsize())}
    assert len(documents) == 1
    assert await pair[0].redis.get(f"job:{message['requestId']}") in documents
    assert await runs_of(pair) == before + 1
    assert await stack.queues.dead_letters(queue_url=pair[0].dead_letter_url) == []


async def test_a_worker_that_was_paused_during_a_takeover_publishes_and_overwrites_nothing(
    pair: tuple[WorkerUnderTest, WorkerUnderTest], stack: EmbeddedStack
):
    source = (
        "import time, uuid\n"
        "name = str(uuid.uuid4())\n"
        "open('/output/name', 'w').write(name)\n"
        "time.sleep(3)\n"  # over when the paused worker wakes: it finds a result to publish
        "print(name)\n"
    )
    message = pair[0].message(s3Key=await pair[0].upload({"main.py": source}), timeoutMs=60_000)
    lost = [await worker.metric("worker_leases_lost_total") for worker in pair]
    async with announced(pair[0].redis, message["requestId"]) as heard:
        await send(pair[0], message)
        paused, other = await busy_one(pair)
        paused.agent.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(EVENTUALLY_S):
                document = await heard.get()
        finally:
            paused.agent.signal(signal.SIGCONT)

        async def is_idle() -> bool:
            return await paused.metric("worker_active_jobs") == 0

        await eventually(is_idle)
        assert heard.empty()
    result = json.loads(document)
    assert result["workerId"] == other.worker_id
    assert await paused.redis.get(f"job:{message['requestId']}") == document
    (link,) = result["outputFiles"]
    assert (await paused.output(link)).decode() == result["stdout"].strip()
    now = [await worker.metric("worker_leases_lost_total") for worker in pair]
    assert sum(now) == sum(lost) + 1


async def test_a_job_whose_worker_was_killed_has_one_result_from_another(
    stack: EmbeddedStack, tmp_path: Path
):
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    source = "import json, os, time\ntime.sleep(json.loads(os.environ['PAYLOAD'])['s'])\nprint('whole')\n"
    async with WorkerUnderTest(stack, folders[0], SETTINGS) as one:
        key = await one.upload({"main.py": source})
        message = one.message(s3Key=key, input={"s": 2})
        async with announced(one.redis, message["requestId"]) as heard:
            await send(one, message)

            async def runs() -> bool:
                return await one.metric("worker_pool_containers", runtime="python", state="busy") == 1

            await eventually(runs)
            await one.agent.kill()
            async with WorkerUnderTest(stack, folders[1], SETTINGS, beside=one) as other:
                async with asyncio.timeout(EVENTUALLY_S):
                    result = json.loads(await heard.get())

                async def is_settled() -> bool:
                    return await stack.queues.depth(queue_url=one.queue_url) == (0, 0, 0)

                await eventually(is_settled)
                assert result["workerId"] == other.worker_id
                assert (result["stdout"], result["status"]) == ("whole\n", "SUCCESS")
                assert heard.empty()
                # One that was taken over is remembered, so that a late answer is refused; nobody has it.
                assert await other.redis.hget(f"nanoagent:claim:{message['requestId']}", "until") == b"0"


# --- without Redis


async def test_a_result_that_redis_was_away_for_is_published_when_it_is_back(
    stack: EmbeddedStack, tmp_path: Path
):
    async with (
        Proxy(stack.redis_host, stack.redis_port) as redis,
        WorkerUnderTest(stack, tmp_path, settings_of(redis, tmp_path)) as worker,
    ):
        message = await a_job(worker, seconds=2)
        async with announced(worker.redis, message["requestId"]) as heard:
            await send(worker, message)
            await until_it_runs(worker)
            await redis.cut()
            await until_kept(worker)
            assert heard.empty()
            # Longer than the visibility timeout: the lease is kept for the result.
            await asyncio.sleep(VISIBILITY_S + 1)
            await redis.restore()
            async with asyncio.timeout(EVENTUALLY_S):
                result = json.loads(await heard.get())
            await until_settled(worker)
            assert heard.empty()
        assert (result["status"], result["attempt"]) == ("SUCCESS", 1)
        assert await worker.metric("worker_container_starts_total") == 1
        assert await worker.metric("worker_spooled_results") == 0


async def test_a_result_outlives_the_worker_that_could_not_publish_it(stack: EmbeddedStack, tmp_path: Path):
    folders = [tmp_path / name for name in ("one", "next")]
    for folder in folders:
        folder.mkdir()
    async with Proxy(stack.redis_host, stack.redis_port) as redis:
        settings = settings_of(redis, tmp_path)
        async with WorkerUnderTest(stack, folders[0], settings) as one:
            message = await a_job(one, seconds=1)
            async with announced(one.redis, message["requestId"]) as heard:
                await send(one, message)
                await until_it_runs(one)
                await redis.cut()
                await until_kept(one)
                await one.agent.kill()
                await redis.restore()
                async with WorkerUnderTest(stack, folders[1], settings, beside=one) as after:
                    async with asyncio.timeout(EVENTUALLY_S):
                        document = await heard.get()
                    await until_settled(after)
                    # The message has come back, and found the result.
                    assert {await heard.get() for _ in range(heard.qsize())} <= {document}
                    assert await after.metric("worker_container_starts_total") == 0
                    assert await after.metric("worker_spooled_results") == 0
    assert json.loads(document)["workerId"] == one.worker_id
    assert list((tmp_path / "cache/results").iterdir()) == []


# --- cancelled


async def call_off(worker: WorkerUnderTest, request_id: str) -> None:
    """Until a worker has heard it."""

    async def is_heard() -> bool:
        return await worker.redis.publish(f"cancel:{request_id}", "") > 0

    await eventually(is_heard)


async def test_jobs_are_called_off_while_they_run_wait_for_room_or_are_still_to_come_and_not_when_done(
    stack: EmbeddedStack, tmp_path: Path
):
    # Room for one more small job beside the first, but not for a large one, which is held until there is.
    settings = SETTINGS | {"WORKER_CPUS": "2", "CPU_MIN": "0.5", "WORKER_MEMORY_MB": "1100"}
    async with WorkerUnderTest(stack, tmp_path, settings) as worker:
        key = await worker.upload({"main.py": "import time; time.sleep(600)"})
        running, waiting, ahead = (
            worker.message(s3Key=key, functionId=name, timeoutMs=600_000, memoryMb=memory_mb)
            for name, memory_mb in (("running", 128), ("waiting", 1024), ("ahead", 128))
        )
        done = worker.message(s3Key=await worker.upload({"main.py": "print('done')"}))
        results = []

        async def cancelled(message: dict[str, Any]) -> dict[str, Any]:
            async with announced(worker.redis, message["requestId"]) as heard, asyncio.timeout(EVENTUALLY_S):
                await call_off(worker, message["requestId"])
                return dict(json.loads(await heard.get()))

        await send(worker, running)
        await until_it_runs(worker)
        await send(worker, waiting)

        async def is_held() -> bool:
            return await worker.metric("worker_jobs_waiting") == 1

        await eventually(is_held)
        results.append(await cancelled(waiting))
        assert await worker.metric("worker_jobs_waiting") == 0
        assert (results[-1]["start"], results[-1]["exitCode"]) == (None, -1)
        results.append(await cancelled(running))
        assert results[-1]["start"] is not None
        assert (results[-1]["exitCode"], results[-1]["durationMs"] < 600_000) == (137, True)

        await worker.redis.set(f"cancel:{ahead['requestId']}", "", ex=60)
        results += await worker.run_all([ahead])
        assert results[-1]["start"] is None
        assert {(result["status"], result["errorType"]) for result in results} == {("FAILED", "CANCELLED")}

        (result,) = await worker.run_all([done])
        assert await worker.redis.publish(f"cancel:{done['requestId']}", "") == 0
        assert json.loads(await worker.redis.get(f"job:{done['requestId']}") or b"") == result
        assert result["status"] == "SUCCESS"
        await until_settled(worker)
        assert await worker.metric("worker_jobs_processed_total", status="cancelled") == 3


def settings_of(redis: Proxy, folder: Path) -> dict[str, str]:
    """A way to Redis that can be cut, and caches of its own."""
    return SETTINGS | {"REDIS_PORT": str(redis.port), "CODE_CACHE_DIR": str(folder / "cache")}


async def a_job(worker: WorkerUnderTest, seconds: float) -> dict[str, Any]:
    """A job that takes so long; its code is there."""
    key = await worker.upload({"main.py": f"import time; time.sleep({seconds}); print('whole')"})
    return worker.message(s3Key=key, timeoutMs=60_000)


async def until_it_runs(worker: WorkerUnderTest) -> None:
    async def runs() -> bool:
        return await worker.metric("worker_pool_containers", runtime="python", state="busy") == 1

    await eventually(runs)


async def until_kept(worker: WorkerUnderTest) -> None:
    async def is_kept() -> bool:
        return await worker.metric("worker_spooled_results") == 1

    await eventually(is_kept)


async def until_settled(worker: WorkerUnderTest) -> None:
    async def is_settled() -> bool:
        return await worker.stack.queues.depth(queue_url=worker.queue_url) == (0, 0, 0)

    await eventually(is_settled)


async def send(worker: WorkerUnderTest, message: dict[str, Any]) -> None:
    await worker.stack.queues.send(worker.body(message), queue_url=worker.queue_url)
