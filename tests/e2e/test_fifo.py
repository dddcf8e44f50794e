"""A FIFO queue: within a message group one job after the other, whatever happens to them."""

from __future__ import annotations

import asyncio
import json
import secrets
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from nanoagent.model.errors import PlatformError, ReturnToQueue
from nanoagent.model.job import Runtime
from support.agents.in_process import DATABASE, Queues, real_rig
from support.agents.worker import WorkerUnderTest
from support.checks.reliability import COUNTED, starts_in
from support.checks.waiting import announced
from support.doubles.fakes import finished, message

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack
    from nanoagent.jobs.attempt import Attempt
    from nanoagent.model.result import Result

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

DEADLINE_S = 120
GROUPS = "abc"
IN_A_GROUP = 4
PYTHON_ONLY = {f"WARM_POOL_{runtime.upper()}_SIZE": "0" for runtime in Runtime if runtime != "python"}


async def send(stack: EmbeddedStack, queue_url: str, *jobs: tuple[str, str]) -> None:
    """Bodies, each with its message group; in this order, in one call for ten."""
    async with stack.clients() as clients:
        client = await clients.sqs()
        for first in range(0, len(jobs), 10):
            entries = [
                {
                    "Id": str(number),
                    "MessageBody": body,
                    "MessageGroupId": group,
                    "MessageDeduplicationId": secrets.token_hex(8),
                }
                for number, (body, group) in enumerate(jobs[first : first + 10])
            ]
            answer = await client.send_message_batch(QueueUrl=queue_url, Entries=entries)
            assert not answer.get("Failed")


async def all_of(heard: asyncio.Queue[bytes], number: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(DEADLINE_S):
        return [json.loads(await heard.get()) for _ in range(number)]


def scripts_of(names: list[str]) -> dict[str, Callable[[Attempt], Any]]:
    """The second of each group fails once, the third finds no room once."""
    troubles: dict[str, list[Exception]] = {
        "2": [PlatformError("S3 is unavailable")],
        "3": [ReturnToQueue("no room", 0)],
    }
    left = {name: list(troubles.get(name[-1], ())) for name in names}

    def script_of(name: str) -> Callable[[Attempt], Any]:
        async def script(attempt: Attempt) -> Result:
            if left[name]:
                raise left[name].pop()
            return finished(attempt)

        return script

    return {name: script_of(name) for name in names}


async def test_groups_are_worked_on_in_order_while_jobs_fail_and_find_no_room(
    stack: EmbeddedStack, tmp_path: Path
):
    names = [f"order-{group}{number}" for number in range(1, IN_A_GROUP + 1) for group in GROUPS]
    queues = await asyncio.to_thread(Queues.make, stack, max_receives=50, fifo=True)
    room = {"worker_memory_mb": 4096, "worker_cpus": 6.0}
    async with (
        Redis(host=stack.redis_host, port=stack.redis_port, db=DATABASE, protocol=2) as redis,
        announced(redis, *names) as heard,
        real_rig(stack, tmp_path, queues, **room) as rig,
    ):
        rig.executor.scripts = scripts_of(names)
        await send(stack, queues.url, *((message(name), name[-2]) for name in names))
        results = await all_of(heard, len(names))
    for group in GROUPS:
        begun = [name for _, name in rig.journal.of("execute") if name[-2] == group]
        assert begun == [f"order-{group}{number}" for number in (1, 2, 2, 3, 3, 4)]
        ended = [(each["requestId"], each["attempt"]) for each in results if each["requestId"][-2] == group]
        assert ended == [(f"order-{group}{number}", 1 + (number == 2)) for number in range(1, IN_A_GROUP + 1)]
    assert await stack.queues.depth(queue_url=queues.url) == (0, 0, 0)
    assert await stack.queues.dead_letters(queue_url=queues.dead_letter_url) == []


SOURCE = """
import time
begun = time.time()
time.sleep(0.5)
print(begun, time.time())
"""


@pytest.mark.timeout(600)  # two workers are started
async def test_groups_keep_their_order_over_a_drain_and_a_buried_message_stays_in_its_group(
    stack: EmbeddedStack, tmp_path: Path
):
    settings = {
        "SQS_VISIBILITY_SECONDS": "5",
        "WORKER_CPUS": "3",
        "CPU_MIN": "0.5",
        "MAX_ATTEMPTS": "1",
        **COUNTED,
        **PYTHON_ONLY,
    }
    for name in ("one", "next"):
        (tmp_path / name).mkdir()
    async with WorkerUnderTest(stack, tmp_path / "one", settings, fifo=True, max_receives=50) as one:
        key = await one.upload({"main.py": SOURCE})
        tag = secrets.token_hex(4)
        names = [f"{tag}-{group}{number}" for number in range(1, IN_A_GROUP + 1) for group in GROUPS]
        dead = f"{tag}-a2"
        await one.redis.sadd(f"nanoagent:failed:{dead}", 1)  # its only attempt ended with its worker, say
        jobs = [(one.body(one.message(requestId=name, s3Key=key)), name[-2]) for name in names]
        async with announced(one.redis, *names) as heard:
            await send(stack, one.queue_url, *jobs)
            results = await all_of(heard, 2)
            assert await one.agent.stop() == 0  # SIGTERM: what runs is finished
            async with WorkerUnderTest(stack, tmp_path / "next", settings, beside=one) as after:
                results += await all_of(heard, len(names) - 2)
                assert heard.empty()
                assert await after.agent.stop() == 0
        assert await stack.queues.depth(queue_url=one.queue_url) == (0, 0, 0)
        async with stack.clients() as clients:
            answer = await (await clients.sqs()).receive_message(
                QueueUrl=one.dead_letter_url,
                MessageSystemAttributeNames=["All"],
                MessageAttributeNames=["All"],
                MaxNumberOfMessages=10,
            )
    (letter,) = answer["Messages"]
    assert (json.loads(letter["Body"])["requestId"], letter["Attributes"]["MessageGroupId"]) == (dead, "a")
    assert letter["MessageAttributes"]["attempts"]["StringValue"] == "1"

    assert starts_in([one.log, after.log]) == dict.fromkeys(set(names) - {dead}, 1)
    assert {result["workerId"] for result in results} == {one.worker_id, after.worker_id}
    times = {result["requestId"]: result["stdout"].split() for result in results}
    for group in GROUPS:
        ended = [result["requestId"] for result in results if result["requestId"][-2] == group]
        assert ended == [f"{tag}-{group}{number}" for number in range(1, IN_A_GROUP + 1)]
        spans = [tuple(map(float, times[name])) for name in ended if name != dead]
        assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans))
