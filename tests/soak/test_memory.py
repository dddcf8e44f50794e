"""The agent's own memory over ten thousand jobs: what it keeps is bounded, whoever sends what.

What is compared are two moments of one process, both after a collection of garbage and with no job under way:
after 2,000 jobs, when every bounded memory that jobs can fill is full, and after 10,000.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.dev.agent_process import AgentProcess
from support.agents import watched_agent
from support.agents.worker import WorkerUnderTest

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.dev.local_services import EmbeddedStack
    from support.agents.watched_agent import Holdings

JOBS = int(os.environ.get("SOAK_JOBS", "10000"))
FIRST = JOBS // 5
AHEAD = 200  # that lie in the queue or are worked on
DEADLINE_S = 3600  # a hang is a failure; nothing is measured by it

# An object that is kept for each job costs 8,000 times its size between the two moments. The smallest that
# says anything of a job, a Job with its strings, takes 1 KiB: 8 MiB. What an allocator keeps of its pages
# when jobs of other sizes have come and gone was 1.5 MiB from the 2,000th to the 4,000th job.
MOST_GROWTH_KIB = 8 * 1024
# One object of any kind in every eight jobs would be seen.
MOST_OBJECTS = JOBS // 10
# Beside those below, nothing that has a length may grow by more than what is under way now and then.
MOST_ENTRIES = 100
BOUNDED = {
    # Crashes, builds, durations, refused code, and messages that could not be settled.
    "nanoagent.common.bounded_map.BoundedMap.data": 1024 + 32 + 1024 + 1024 + 1024,
    "nanoagent.code.fresh_trees.FreshTrees._trees": 256,
}

KINDS = 20
PROGRAMS = 250


def program(number: int) -> dict[str, str]:
    """Each has its own digest."""
    return {
        "main.py": f"# {number}\n"
        "import json, sys\n"
        "do = json.load(sys.stdin)\n"
        "print('x' * do.get('say', 1))\n"
        "if do.get('file'): open('/output/file.txt', 'w').write('y' * 1000)\n"
        "sys.exit(do.get('exit', 0))\n"
    }


class WatchedWorker(WorkerUnderTest):
    """A worker that tells what it holds."""

    def _new_agent(self) -> AgentProcess:
        return AgentProcess(self.environment(), self.log, module="support.agents.watched_agent")


class Sender:
    """Sends jobs of all kinds, and counts how they end.

    Args:
        worker: The worker.
        keys: Of good programs, of bad archives, of what no compiler takes.
    """

    def __init__(self, worker: WorkerUnderTest, keys: dict[str, list[str]]) -> None:
        self.worker = worker
        self.ends: Counter[str] = Counter()
        self._keys = keys
        self._sent = 0
        self._answered: set[str] = set()

    def job(self, number: int) -> dict[str, Any]:
        kind = number % KINDS
        good, bad, broken = (self._keys[name] for name in ("good", "bad", "broken"))
        fields: dict[str, Any] = {
            "functionId": f"hot-{number % 5}" if kind < 8 else f"once-{number}",
            "s3Key": good[number % len(good)],
            "input": {"say": number % 2000},
            "modelId": f"model-{number % 300}",
        }
        if kind in {8, 9}:
            fields["input"] |= {"file": True}
        elif kind in {10, 11}:
            fields["input"] |= {"exit": 3}
        elif kind == 12:
            fields["memoryMb"] = "much"
        elif kind == 13:
            fields["s3Key"] = f"missing/{number}.zip"
        elif kind == 14:
            fields["s3Key"] = bad[number // KINDS % len(bad)]
        elif kind == 15:
            fields |= {"runtime": "cpp", "s3Key": broken[number // KINDS % len(broken)]}
        elif kind == 16:
            fields["memoryMb"] = 160
        return self.worker.message(requestId=f"soak-{secrets.token_hex(12)}", **fields)

    async def send(self, jobs: int) -> None:
        """Send so many, a few ahead of their results, and wait for all of these."""
        async with self.worker.redis.pubsub() as listener, asyncio.timeout(DEADLINE_S):
            await listener.psubscribe("result:*")
            goal = self._sent + jobs
            while len(self._answered) < goal:
                while self._sent < goal and self._sent - len(self._answered) <= AHEAD - 50:
                    count = min(50, goal - self._sent)
                    messages = [self.job(number) for number in range(self._sent, self._sent + count)]
                    bodies = [self.worker.body(message) for message in messages]
                    # SQS delivers at least once: every fiftieth comes twice.
                    await self.worker._send_many([*bodies, bodies[0]])
                    self._sent += count
                event = await listener.get_message(ignore_subscribe_messages=True, timeout=None)
                if event is not None:
                    result = json.loads(event["data"])
                    if result["requestId"] not in self._answered:
                        self._answered.add(result["requestId"])
                        self.ends[result["errorType"] or "SUCCESS"] += 1


async def until_idle(worker: WorkerUnderTest) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await worker.metric("worker_active_jobs"):  # noqa: ASYNC110 - another process's state has no event
            await asyncio.sleep(0.2)


async def told_by(worker: WorkerUnderTest, path: Path, number: int) -> Holdings:
    await until_idle(worker)
    worker.agent.signal(signal.SIGUSR2)
    async with asyncio.timeout(DEADLINE_S):
        while not path.exists() or watched_agent.read(path).number < number:
            assert not worker.agent.has_ended, worker.agent.log_tail()
            await asyncio.sleep(0.1)
    return watched_agent.read(path)


@pytest.mark.soak
@pytest.mark.timeout(DEADLINE_S)
async def test_the_workers_memory_stays_flat_over_ten_thousand_jobs(
    stack: EmbeddedStack, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    watch = tmp_path / "holdings.json"
    settings = {
        "WATCH": str(watch),
        "CONTAINER_SHARING": "worker",  # thousands of functions, and no container for each
        "WORKER_CPUS": "4",
        "WORKER_MEMORY_MB": "2048",
        "CODE_CACHE_DIR": str(tmp_path / "cache"),
        "CODE_FRESH_SECONDS": "1",
        "CLOUDWATCH_INTERVAL_SECONDS": "10",
        "PYTHONPATH": str(Path(watched_agent.__file__).parents[1]),
    }
    async with WatchedWorker(stack, tmp_path, settings, max_receives=100) as worker:
        keys = {
            "good": [await worker.upload(program(number)) for number in range(PROGRAMS)],
            "bad": [await worker.upload(b"no zip, %d" % number) for number in range(40)],
            "broken": [
                await worker.upload({"main.cpp": f"int main() {{ return no_{n}; }}"}) for n in range(40)
            ],
        }
        sender = Sender(worker, keys)
        holdings: list[Holdings] = []
        begun_at = time.monotonic()
        for part in range(JOBS // FIRST):
            await sender.send(FIRST)
            holdings.append(await told_by(worker, watch, part + 1))
            rate = (part + 1) * FIRST / (time.monotonic() - begun_at)
            print(f"{(part + 1) * FIRST} jobs: {describe(holdings[-1])}; {rate:.0f} jobs/s")
    first, last = holdings[0], holdings[-1]
    print(f"ends: {dict(sender.ends)}")
    print(f"grown: {grown(first.types, last.types, 20)}")
    print(f"maps: {last.maps}")
    assert sender.ends.keys() == {
        *("SUCCESS", "USER_ERROR", "INVALID_JOB", "CODE_NOT_FOUND", "INVALID_CODE", "BUILD_FAILED"),
    }
    for name, bound in BOUNDED.items():
        assert last.maps[name] <= bound
    maps = grown(first.maps, last.maps, MOST_ENTRIES)
    assert maps.keys() <= BOUNDED.keys(), maps
    assert last.objects - first.objects < MOST_OBJECTS, grown(first.types, last.types, 100)
    assert last.private_kib - first.private_kib < MOST_GROWTH_KIB
    record_property("tried", ["jobs on one agent, for its memory", JOBS])


def describe(held: Holdings) -> str:
    entries = sum(held.maps.values())
    return f"{held.private_kib / 1024:.1f} MiB private, {held.objects} objects, {entries} entries"


def grown(first: dict[str, int], last: dict[str, int], least: int) -> dict[str, int]:
    """What has grown by more than that."""
    differences = {name: count - first.get(name, 0) for name, count in last.items()}
    return {name: count for name, count in differences.items() if count > least}
