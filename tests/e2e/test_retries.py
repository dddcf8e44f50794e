"""Attempts and receipts: what counts, what is told, and what comes to the dead-letter queue."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from nanoagent.model.errors import ReturnToQueue
from nanoagent.model.job import Runtime
from support.agents.in_process import DATABASE, Queues, real_rig
from support.agents.worker import WorkerUnderTest
from support.checks.reliability import COUNTED, starts_in
from support.checks.waiting import EVENTUALLY_S, announced, eventually
from support.doubles.fakes import finished, message

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack
    from nanoagent.jobs.attempt import Attempt
    from nanoagent.model.result import Result

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

MAX_ATTEMPTS = 2
MAX_RECEIVES = 3
PYTHON_ONLY = {f"WARM_POOL_{runtime.upper()}_SIZE": "0" for runtime in Runtime if runtime != "python"}
SETTINGS = {"SQS_VISIBILITY_SECONDS": "5", "MAX_ATTEMPTS": str(MAX_ATTEMPTS), **COUNTED, **PYTHON_ONLY}


@pytest.mark.timeout(600)  # three workers are started
async def test_a_job_that_ends_its_worker_each_time_is_given_up_and_so_is_an_unreadable_message(
    stack: EmbeddedStack, tmp_path: Path
):
    async with AsyncExitStack() as workers:
        one: WorkerUnderTest | None = None
        logs = []
        for number in range(MAX_ATTEMPTS):
            (tmp_path / str(number)).mkdir()
            worker = WorkerUnderTest(
                stack, tmp_path / str(number), SETTINGS, beside=one, max_receives=MAX_RECEIVES
            )
            await workers.enter_async_context(worker)
            logs.append(worker.log)
            if one is None:
                one = worker
                key = await one.upload({"main.py": "import time; time.sleep(600)"})
                job = one.message(s3Key=key, timeoutMs=600_000)
                await stack.queues.send(one.body(job), queue_url=one.queue_url)

            async def runs(worker: WorkerUnderTest = worker) -> bool:
                return bool(starts_in([worker.log]))

            await eventually(runs)
            await worker.agent.kill()
        assert one is not None
        (tmp_path / "last").mkdir()
        async with (
            announced(one.redis, job["requestId"]) as heard,
            WorkerUnderTest(stack, tmp_path / "last", SETTINGS, beside=one) as last,
        ):
            await stack.queues.send("no JSON", queue_url=one.queue_url)
            async with asyncio.timeout(EVENTUALLY_S):
                result = json.loads(await heard.get())
            queue, dead_letters = one.queue_url, one.dead_letter_url

            async def all_is_settled() -> bool:
                settled = await stack.queues.depth(queue_url=queue) == (0, 0, 0)
                return settled and len(await stack.queues.dead_letters(queue_url=dead_letters)) == 2

            await eventually(all_is_settled)
            unreadable = await last.metric("worker_jobs_processed_total", status="invalid")
            assert heard.empty()
        letters = {
            letter["body"]: letter["attributes"]
            for letter in await stack.queues.dead_letters(queue_url=dead_letters)
        }
        stored = await one.redis.get(f"job:{job['requestId']}")
        assert not await one.redis.exists(f"nanoagent:failed:{job['requestId']}")

    assert starts_in([*logs, last.log])[job["requestId"]] == MAX_ATTEMPTS
    assert (result["status"], result["errorType"], result["attempt"]) == ("FAILED", "PLATFORM", MAX_ATTEMPTS)
    assert "ended with their worker" in result["errorMessage"]
    assert json.loads(stored or b"") == result
    told = letters[one.body(job)]
    assert "ended with their worker" in told.pop("reason")
    assert int(told.pop("receiveCount")) >= 1
    told.pop("firstSentAt", None)  # it has been copied, if another worker's claim was in the way at first
    assert told == {
        "attempts": str(MAX_ATTEMPTS),
        "worker": last.worker_id,
        "sourceQueue": queue.rsplit("/", 1)[-1],
    }
    assert letters["no JSON"] == {}  # the queue's own doing
    assert unreadable == MAX_RECEIVES


async def test_twenty_interruptions_on_a_queue_that_hands_out_five_times_are_no_attempt_and_bury_nothing(
    stack: EmbeddedStack, tmp_path: Path
):
    left = 20

    async def script(attempt: Attempt) -> Result:
        nonlocal left
        left -= 1
        if left >= 0:
            raise ReturnToQueue("no room", 0)
        return finished(attempt)

    queues = await asyncio.to_thread(Queues.make, stack, max_receives=5)
    async with (
        Redis(host=stack.redis_host, port=stack.redis_port, db=DATABASE, protocol=2) as redis,
        announced(redis, "interrupted") as heard,
        real_rig(stack, tmp_path, queues) as rig,
    ):
        rig.executor.scripts["interrupted"] = script
        await stack.queues.send(message("interrupted"), queue_url=queues.url)
        async with asyncio.timeout(EVENTUALLY_S):
            result = json.loads(await heard.get())
    assert rig.journal.count("execute") == 21
    assert (result["status"], result["attempt"]) == ("SUCCESS", 1)
    assert await stack.queues.depth(queue_url=queues.url) == (0, 0, 0)
    assert await stack.queues.dead_letters(queue_url=queues.dead_letter_url) == []
