"""Workers that stop while jobs run: for a new version, by an operator in a hurry, with their machine."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.aws.interruption import POLL_S
from nanoagent.model.job import Runtime
from nanoagent.wiring.interruption import NOTICE_RESERVE_S
from support.agents.agent_server import ForkedAgent
from support.agents.experienced_agent import KNOWN
from support.agents.worker import TESTS, WorkerUnderTest
from support.checks.matrix import EXHAUSTIVE
from support.checks.reliability import COUNTED, observed, starts_in, until
from support.services.metadata_service import metadata_service

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

JOBS = 60  # in `make test`
DRAIN_SEED = 7  # where in the sequence the workers are replaced, and for how long each job runs
NOTICE_S = 120.0  # EC2's
FUNCTIONS = 4  # one that has the queue to itself would not have all of a worker
EVENTUALLY_S = 400  # up to two hundred jobs, and starts of three workers, on a machine that does much else
SETTINGS = {
    "WORKER_CPUS": "2",
    "CPU_MIN": "0.5",
    **COUNTED,
    **{f"WARM_POOL_{runtime.upper()}_SIZE": "0" for runtime in Runtime if runtime != "python"},
}
PROGRAM = (
    "import json, os, time, uuid\n"
    "print(uuid.uuid4(), flush=True)\n"
    "time.sleep(json.loads(os.environ['PAYLOAD']).get('seconds', 0))\n"
)


def folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


async def stop(worker: WorkerUnderTest) -> int | None:
    """SIGTERM, and the exit code."""
    worker.agent.signal(signal.SIGTERM)
    async with asyncio.timeout(EVENTUALLY_S):
        await worker.agent.ended()
    return worker.agent.exit_code


async def begun(worker: WorkerUnderTest, *messages: dict[str, Any]) -> None:
    async def have_begun() -> bool:
        starts = starts_in([worker.log])
        return all(starts[message["requestId"]] for message in messages)

    await until(have_begun)


def lines(worker: WorkerUnderTest, event: str) -> list[dict[str, Any]]:
    """What its log says of something."""
    found = (json.loads(line) for line in worker.log.read_text().splitlines() if f'"{event}"' in line)
    return [line for line in found if line["event"] == event]


async def queued(worker: WorkerUnderTest) -> tuple[int, int, int]:
    """Messages of its queue that are there for others, that somebody has, and that are delayed."""
    return await worker.stack.queues.depth(queue_url=worker.queue_url)


async def is_draining(worker: WorkerUnderTest) -> str:
    """The reason that readiness gives; waits until there is one."""
    reason = ""

    async def says_so() -> bool:
        nonlocal reason
        status, document = await worker.get("/readyz")
        part = json.loads(document)["parts"].get("drain", {"ok": True})
        reason = part.get("reason", "")
        return status == 503 and not part["ok"]

    await until(says_so)
    return reason


@pytest.mark.parametrize("jobs", [JOBS, pytest.param(200, marks=EXHAUSTIVE)])
async def test_two_workers_are_replaced_amid_many_jobs_and_each_runs_once(
    stack: EmbeddedStack, tmp_path: Path, record_property: Callable[[str, object], None], jobs: int
):
    seed = int(os.environ.get("DRAIN_SEED", DRAIN_SEED))
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    half = jobs // 2
    points = [chance.randrange(half // 3, half - 10), chance.randrange(half + 5, jobs - 15)]
    async with AsyncExitStack() as crew:
        old = await crew.enter_async_context(WorkerUnderTest(stack, folder(tmp_path, "old"), SETTINGS))

        async def another(name: str) -> WorkerUnderTest:
            worker = WorkerUnderTest(stack, folder(tmp_path, name), SETTINGS, beside=old)
            return await crew.enter_async_context(worker)

        older = await another("older")
        key = await old.upload({"main.py": PROGRAM})
        messages = [
            old.message(
                s3Key=key,
                functionId=f"drain-{number % FUNCTIONS}",
                input={"seconds": round(chance.uniform(0, 0.3), 2)},
            )
            for number in range(jobs)
        ]
        when = f"two workers are replaced amid {jobs} jobs"
        async with observed(old, older, fault="SIGTERM", when=when) as seen:
            seen.sent(*(message["requestId"] for message in messages))
            bodies = [old.body(message) for message in messages]
            await old._send_many(bodies[:half])

            async def are_seen() -> bool:
                return len(seen.documents) >= points[0]

            await until(are_seen, EVENTUALLY_S)
            seen.struck()
            code, new = await asyncio.gather(stop(old), another("new"))
            seen.logs.append(new.log)
            assert code == 0
            # The new worker has started: on a slow machine, the others could have done all jobs before.
            await old._send_many(bodies[half:])
            points[0] = points[1]
            await until(are_seen, EVENTUALLY_S)
            assert await stop(older) == 0
            results = await seen.answered(EVENTUALLY_S)
            assert {(result["status"], result["attempt"]) for result in results.values()} == {("SUCCESS", 1)}
            assert len({result["stdout"] for result in results.values()}) == jobs
            by_worker = {worker.worker_id: 0 for worker in (old, older, new)}
            for result in results.values():
                by_worker[result["workerId"]] += 1
            assert all(by_worker.values()), by_worker

            async def nothing_is_left() -> bool:
                return await queued(new) == (0, 0, 0)

            await until(nothing_is_left)
            assert await stack.queues.dead_letters(queue_url=old.dead_letter_url) == []
    record_property("tried", ["job", jobs])


async def test_readiness_says_that_it_drains_and_a_second_signal_gives_back_what_runs(
    stack: EmbeddedStack, tmp_path: Path
):
    async with WorkerUnderTest(stack, tmp_path, SETTINGS | {"DRAIN_SECONDS": "3600"}) as worker:
        key = await worker.upload({"main.py": PROGRAM})
        messages = [
            worker.message(s3Key=key, functionId=name, timeoutMs=3_600_000, input={"seconds": 3600})
            for name in ("one", "two")
        ]
        for message in messages:
            await stack.queues.send(worker.body(message), queue_url=worker.queue_url)
        await begun(worker, *messages)
        worker.agent.signal(signal.SIGTERM)
        assert "draining" in await is_draining(worker)
        assert await worker.metric("worker_active_jobs") == 2
        assert await stop(worker) == 0
        assert await queued(worker) == (2, 0, 0)
        assert await stack.queues.dead_letters(queue_url=worker.dead_letter_url) == []
        assert not await worker.redis.exists(*(f"job:{message['requestId']}" for message in messages))
        # Nobody has to wait for a claim to run out.
        assert not [name async for name in worker.redis.scan_iter(f"*{messages[0]['requestId']}*")]


class ExperiencedWorker(WorkerUnderTest):
    """One that knows how long jobs take which it has not run."""

    def _new_agent(self) -> ForkedAgent:
        known = {KNOWN: json.dumps({"long": 3600, "short": 10}), "PYTHONPATH": str(TESTS)}
        return ForkedAgent(self.environment() | known, self.log, module="support.agents.experienced_agent")


async def test_a_spot_notice_gives_back_what_is_known_to_take_longer_and_finishes_the_rest(
    stack: EmbeddedStack, tmp_path: Path
):
    async with metadata_service() as service:
        settings = SETTINGS | {
            "INTERRUPTION_NOTICES": "ec2",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url,
            "AWS_EC2_METADATA_DISABLED": "false",
            "DRAIN_SECONDS": "3600",
        }
        async with ExperiencedWorker(stack, tmp_path, settings) as worker:
            key = await worker.upload({"main.py": PROGRAM})
            long, short = (
                worker.message(s3Key=key, functionId=name, timeoutMs=3_600_000, input={"seconds": seconds})
                # The short one is still running whenever the notice is heard.
                for name, seconds in (("long", 3600), ("short", POLL_S + 2))
            )
            for message in (long, short):
                await stack.queues.send(worker.body(message), queue_url=worker.queue_url)
            await begun(worker, long, short)
            service.interrupt("terminate", time.time() + NOTICE_S)
            assert "EC2 is about to terminate this spot instance" in await is_draining(worker)
            async with asyncio.timeout(EVENTUALLY_S):
                await worker.agent.ended()
            assert worker.agent.exit_code == 0
            assert [line["request_id"] for line in lines(worker, "returned to the queue")] == [
                long["requestId"]
            ]
            (result,) = await worker.redis.mget([f"job:{short['requestId']}"])
            assert result is not None
            assert json.loads(result)["status"] == "SUCCESS"
            assert await queued(worker) == (1, 0, 0)
            (told,) = lines(worker, "drained")
            assert told["returned"] == {"too_long": 1}
            # DRAIN_SECONDS would have allowed an hour.
            (begins,) = lines(worker, "draining")
            assert begins["seconds"] <= NOTICE_S - NOTICE_RESERVE_S
