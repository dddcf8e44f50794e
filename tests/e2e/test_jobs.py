"""`nanoagent jobs` and `cancel` with real workers: jobs that succeed, fail, run, and lose their worker."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from support.agents.worker import RESULT_DEADLINE_S, WorkerUnderTest
from support.services.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

pytestmark = [pytest.mark.asyncio(loop_scope="session")]
SETTINGS = {f"WARM_POOL_{runtime}_SIZE": "0" for runtime in ("NODEJS", "CPP", "GO")}
SLEEPS = {"main.py": "import time\nprint('begun', flush=True)\ntime.sleep(600)\n"}


async def command(worker: WorkerUnderTest, *words: str) -> tuple[int, dict[str, Any]]:
    """A command in a process of its own, without settings of the queue and of the buckets."""
    left_out = ("SQS_QUEUE_URL", "S3_CODE_BUCKET", "S3_USER_DATA_BUCKET")
    environment = {name: value for name, value in worker.environment().items() if name not in left_out}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nanoagent", *words, "--json"),
        env={name: value for name, value in os.environ.items() if name not in left_out} | environment,
        cwd=worker.folder,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, json.loads(out)


async def listed(worker: WorkerUnderTest, *options: str) -> dict[str, dict[str, Any]]:
    """The jobs by request; the newest entry of each."""
    code, document = await command(worker, "jobs", "--limit", "1000", *options)
    assert (code, document["error"]) == (0, None)
    return {job["requestId"]: job for job in reversed(document["jobs"])}


async def until(worker: WorkerUnderTest, request_id: str, is_so: Callable[[dict[str, Any]], bool]) -> Any:
    """Wait until a job is listed so."""
    async with asyncio.timeout(RESULT_DEADLINE_S):
        while True:
            job = (await listed(worker)).get(request_id)
            if job is not None and is_so(job):
                return job
            await asyncio.sleep(0.1)


async def test_jobs_of_two_workers_are_listed_while_they_run_and_after_they_ended(
    stack: EmbeddedStack, tmp_path: Path
):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with (
        WorkerUnderTest(stack, tmp_path / "one", SETTINGS) as one,
        WorkerUnderTest(stack, tmp_path / "two", SETTINGS, beside=one) as two,
    ):
        good = one.message(s3Key=await one.upload({"main.py": "print(1)"}), functionId="good")
        bad = one.message(s3Key=await one.upload({"main.py": "raise ValueError('no')"}), functionId="bad")
        await one.run_all([good, bad])
        sleeping = [one.message(s3Key=await one.upload(SLEEPS), functionId="slow") for _ in range(2)]
        for message in sleeping:
            await one.stack.queues.send(one.body(message), queue_url=one.queue_url)
        for message in sleeping:
            job = await until(one, message["requestId"], lambda job: job["status"] == "RUNNING")
            assert (job["functionId"], job["memoryMb"], job["endedAt"]) == ("slow", 128, None)

        jobs = await listed(two)
        job = jobs[good["requestId"]]
        assert (job["status"], job["exitCode"], job["start"] in {"warm", "cold"}) == ("SUCCESS", 0, True)
        assert 0 < job["peakMemoryBytes"] < 128 << 20
        job = jobs[bad["requestId"]]
        assert (job["status"], job["errorType"], job["errorMessage"]) == (
            "FAILED",
            "USER_ERROR",
            "ValueError: no",
        )

        for message in sleeping:
            code, cancelled = await command(one, "cancel", message["requestId"], "--wait", "60")
            assert (code, cancelled["outcome"], cancelled["result"]["stdout"]) == (0, "stopped", "begun\n")
            code, cancelled = await command(one, "cancel", message["requestId"])
            assert (code, cancelled["outcome"], cancelled["status"]) == (1, "finished", "FAILED")
            assert cancelled["endedAt"] is not None
        jobs = await listed(one)
        assert {jobs[message["requestId"]]["errorType"] for message in sleeping} == {"CANCELLED"}


async def test_a_job_that_is_cancelled_before_a_worker_receives_it_does_not_run(
    worker: WorkerUnderTest,
):
    message = worker.message(s3Key=await worker.upload(SLEEPS))
    code, cancelled = await command(worker, "cancel", message["requestId"])
    assert (code, cancelled["outcome"], cancelled["stage"]) == (4, "unknown", "unknown")

    (result,) = await worker.run_all([message])

    assert (result["errorType"], result["exitCode"]) == ("CANCELLED", -1)
    assert (await listed(worker))[message["requestId"]]["errorType"] == "CANCELLED"


async def test_a_job_waits_after_a_failed_attempt(stack: EmbeddedStack, tmp_path: Path):
    async with Recorder(stack.endpoint_url) as recorder:
        recorder.fault = lambda call: call.operation == "PutObject"
        slow = {"RETRY_BASE_SECONDS": "600", "RETRY_MAX_SECONDS": "600"}
        async with WorkerUnderTest(stack, tmp_path, SETTINGS | slow | recorder.environment()) as worker:
            key = await worker.upload({"main.py": "open('/output/x', 'w').write('x')"})
            message = worker.message(s3Key=key, functionId="waits")
            await worker.stack.queues.send(worker.body(message), queue_url=worker.queue_url)
            job = await until(worker, message["requestId"], lambda job: job["status"] == "WAITING")
            assert (job["errorType"], job["attempt"], job["endedAt"]) == ("PLATFORM", 1, None)

            code, cancelled = await command(worker, "cancel", message["requestId"])
            assert (code, cancelled["outcome"]) == (0, "waiting")


async def test_a_worker_that_is_killed_leaves_no_job_that_runs_for_ever(stack: EmbeddedStack, tmp_path: Path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    settings = SETTINGS | {"SQS_VISIBILITY_SECONDS": "5"}
    async with WorkerUnderTest(stack, tmp_path / "one", settings) as one:
        message = one.message(s3Key=await one.upload(SLEEPS), functionId="slow")
        await one.stack.queues.send(one.body(message), queue_url=one.queue_url)
        await until(one, message["requestId"], lambda job: job["status"] == "RUNNING")
        await one.agent.kill()

        job = await until(one, message["requestId"], lambda job: job["status"] == "WAITING")
        assert "its worker stopped answering" in job["errorMessage"]

        async with WorkerUnderTest(stack, tmp_path / "two", settings, beside=one) as two:
            await until(two, message["requestId"], lambda job: job["status"] == "RUNNING")
            await command(two, "cancel", message["requestId"], "--wait", "60")
            job = (await listed(two))[message["requestId"]]
            assert (job["errorType"], job["attempt"]) == ("CANCELLED", 2)
            assert await two.redis.zscore("nanoagent:running", message["requestId"]) is None


async def test_the_index_has_no_secret_of_a_job(worker: WorkerUnderTest):
    code = (
        "import os, sys\nprint(os.environ['KEY'])\nprint(sys.stdin.read(), file=sys.stderr)\n"
        "sys.exit('the line of the error')"
    )
    result = await worker.run(
        s3Key=await worker.upload({"main.py": code}), env={"KEY": "secret-1"}, input={"password": "secret-2"}
    )
    assert "secret-1" in result["stdout"]
    assert "secret-2" in result["stderr"]

    entries: Any = await worker.redis.xrevrange("nanoagent:jobs", count=50)
    own = [fields[b"job"] for _, fields in entries if result["requestId"].encode() in fields[b"job"]]
    assert len(own) == 1
    assert b"secret" not in own[0]
    assert b"the line of the error" in own[0]
    assert not await worker.redis.exists(f"nanoagent:claim:{result['requestId']}")


@pytest.mark.soak
async def test_five_thousand_jobs_keep_the_index_bounded(stack: EmbeddedStack, tmp_path: Path):
    settings = SETTINGS | {"JOB_INDEX_SIZE": "500", "REDIS_DB": "9"}
    async with WorkerUnderTest(stack, tmp_path, settings) as worker:
        key = await worker.upload({"main.py": "print(1)"})
        for _ in range(10):
            messages = [worker.message(s3Key=key) for _ in range(500)]
            for message in messages:
                await worker.stack.queues.send(worker.body(message), queue_url=worker.queue_url)
        worker.redis.connection_pool.connection_kwargs["db"] = 9
        async with asyncio.timeout(1800):
            while len(await worker.redis.keys("job:*")) < 5000:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(1)
        assert 500 <= await worker.redis.xlen("nanoagent:jobs") < 600
        assert await worker.redis.zcard("nanoagent:running") == 0
