"""One function that floods the queue, hangs, or fails again and again, beside others: on a real worker."""

from __future__ import annotations

import asyncio
import json
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiodocker
import pytest
import pytest_asyncio

from support.agents.worker import WorkerUnderTest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from redis.asyncio.client import PubSub

    from nanoagent.dev.local_services import EmbeddedStack

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

DEADLINE_S = 300  # a hang is a failure; nothing is measured by it
SLOTS, SHARE = 8, 6  # of CPU_MIN = 0.5 each, of which FUNCTION_MAX_SHARE is for one function
PARKED, BATCH = 10, 10

HANGS = {"main.py": "import time\ntime.sleep(600)\n"}
QUICK = {"main.py": "print('quick')\n"}
# What runs shows by its command line: an interpreter that waits looks like one that runs.
SHOWS = {"main.py": "import subprocess\nsubprocess.run(['sleep', '600'])\n"}
BROKEN = {"main.cpp": "int main() { return not_declared; }\n"}
WHOLE = {"main.cpp": '#include <cstdio>\nint main() { std::puts("whole"); }\n'}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(
    stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[WorkerUnderTest]:
    settings = {"WORKER_CPUS": str(SLOTS / 2), "MAX_ATTEMPTS": "4"}
    async with WorkerUnderTest(stack, tmp_path_factory.mktemp("fair"), settings) as worker:
        yield worker


class Results:
    """What is announced, by request."""

    def __init__(self, listener: PubSub) -> None:
        self._listener = listener
        self.seen: dict[str, dict[str, Any]] = {}

    async def until(self, is_enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not is_enough():
                event = await self._listener.get_message(ignore_subscribe_messages=True, timeout=None)
                if event is not None:
                    result = json.loads(event["data"])
                    self.seen[result["requestId"]] = result

    def have(self, messages: list[dict[str, Any]]) -> bool:
        return all(message["requestId"] in self.seen for message in messages)


async def test_many_hanging_jobs_of_one_function_leave_room_for_others_and_none_is_lost(
    worker: WorkerUnderTest, record_property: Callable[[str, object], None]
):
    key = await worker.upload(HANGS)
    flood = [worker.message(functionId="flood", s3Key=key, timeoutMs=900_000) for _ in range(36)]
    quick = await worker.upload(QUICK)
    others = [worker.message(functionId=f"other-{number % 4}", s3Key=quick) for number in range(12)]
    async with worker.redis.pubsub() as listener:
        await listener.psubscribe("result:*")
        results = Results(listener)
        await worker._send_many([worker.body(message) for message in flood])
        await worker._send_many([worker.body(message) for message in others])
        await results.until(lambda: results.have(others))
        assert not any(message["requestId"] in results.seen for message in flood)
        assert {results.seen[message["requestId"]]["status"] for message in others} == {"SUCCESS"}
        # Nobody else runs any more: what is held is the flood's, and it is all of its share.
        assert await worker.metric("worker_slots_cpus", state="used") == SHARE / 2

        # What hangs is called off; the rest of the flood finds that its code has been mended.
        await worker.upload(QUICK, key)
        for message in flood:
            await worker.redis.publish(f"cancel:{message['requestId']}", "")
        await results.until(lambda: results.have(flood))
    ends = [results.seen[message["requestId"]] for message in flood]
    assert {result["status"] for result in ends} == {"SUCCESS", "FAILED"}
    cancelled = [result for result in ends if result["status"] == "FAILED"]
    assert {result["errorType"] for result in cancelled} == {"CANCELLED"}
    assert SHARE <= len(cancelled) <= SHARE + PARKED + BATCH
    assert {result["attempt"] for result in results.seen.values()} == {1}
    assert await worker.metric("worker_attempts_failed_total") == 0
    record_property("tried", ["jobs of a flood", len(flood)])


async def test_code_that_a_compiler_refuses_is_built_once_for_twenty_jobs_which_all_have_its_words(
    worker: WorkerUnderTest,
):
    key = await worker.upload(BROKEN)
    messages = [worker.message(functionId="broken", runtime="cpp", s3Key=key) for _ in range(20)]
    built = await worker.metric("worker_container_starts_total", runtime="cpp")
    results = []
    for first in range(0, 20, 5):
        results += await worker.run_all(messages[first : first + 5], deadline_s=DEADLINE_S)
    assert await worker.metric("worker_container_starts_total", runtime="cpp") - built == 1
    assert {result["errorType"] for result in results} == {"BUILD_FAILED"}
    assert all("not_declared" in result["stderr"] for result in results)
    told = [result for result in results if "remembered: built" in result["errorMessage"]]
    assert len(told) >= 15
    assert all(result["timings"]["build"] > 0 for result in told)
    assert await worker.metric("worker_remembered_failures_total", reason="build") == len(told)

    await worker.upload(WHOLE, key)
    mended = await worker.run(functionId="broken", runtime="cpp", s3Key=key)
    assert (mended["status"], mended["stdout"]) == ("SUCCESS", "whole\n")


async def test_code_whose_containers_die_each_time_gets_no_more_containers_and_the_sender_is_told(
    worker: WorkerUnderTest,
):
    function_id = f"killed-{secrets.token_hex(4)}"
    key = await worker.upload(SHOWS)
    quick = await worker.upload(QUICK)
    bystander = {"functionId": "bystander", "s3Key": quick}
    assert (await worker.run(**bystander))["status"] == "SUCCESS"
    killed: set[str] = set()
    killing = asyncio.create_task(kill_the_busy(worker, killed))
    try:
        result = await worker.run(functionId=function_id, s3Key=key, timeoutMs=900_000)
    finally:
        killing.cancel()
    assert (result["status"], result["errorType"], result["attempt"]) == ("FAILED", "PLATFORM", 4)
    assert "remembered: failed 3 times in sequence" in result["errorMessage"]
    assert await worker.metric("worker_remembered_failures_total", reason="crash") == 1
    assert len(killed) == 3
    assert (await worker.run(**bystander))["status"] == "SUCCESS"
    await worker.upload(QUICK, key)  # a new version is tried at once
    assert (await worker.run(functionId=function_id, s3Key=key))["status"] == "SUCCESS"


async def kill_the_busy(worker: WorkerUnderTest, killed: set[str]) -> None:
    """Kill every container of the worker in which a program runs, as soon as it does."""
    async with aiodocker.Docker() as docker:
        filters = json.dumps({"label": [f"nanoagent.worker={worker.worker_id}"]})
        while True:
            for found in await docker.containers.list(filters=filters):
                with suppress(aiodocker.DockerError):  # it has ended just now
                    processes = await found.top()
                    if any("sleep" in " ".join(process) for process in processes["Processes"]):
                        await found.kill()
                        killed.add(found.id)
            await asyncio.sleep(0.05)
