"""Many jobs, several workers, and a random fault every few seconds; what must hold is looked at afterwards.

`PYTHONPATH=tests python -m faults.random_run --seed N` runs the long one (`make soak` does), the tests a
short one. The seed decides which jobs there are, which faults strike and for how long; not how processes
interleave, so that a run is repeated roughly, not exactly.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from nanoagent.dev.local_services import EmbeddedStack
from nanoagent.model.errors import PlatformError
from nanoagent.model.job import Runtime
from support.agents.worker import WorkerUnderTest
from support.checks.leftovers import (
    MARKED_PROGRAM,
    Places,
    containers_of,
    leftovers_of,
    story_of,
    wrong_outputs,
)
from support.checks.reliability import COUNTED, Observation, observed, until
from support.services.own_redis import HOST, own_redis
from support.services.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from support.services.own_redis import OwnRedis

VISIBILITY_S: Final = 8
FUNCTIONS: Final = 8  # of each language
DEADLINE_S: Final = 300.0  # for what is still open when the faults are over
REPEATS: Final = "workers were killed or paused while programs ran, Redis lost claims"
_BATCH: Final = 10
_START_ATTEMPTS: Final = 3
_SHOWN: Final = 20  # of problems

NODE_PROGRAM: Final = """
const fs = require('fs'), crypto = require('crypto');
const wanted = JSON.parse(process.env.PAYLOAD), name = crypto.randomUUID();
for (let number = 0; number < wanted.files; number++) fs.writeFileSync(`/output/${number}.txt`, name);
setTimeout(() => { console.log(name); process.exitCode = wanted.code; }, wanted.seconds * 1000);
"""
CPP_PROGRAM: Final = """
#include <fstream>
#include <iostream>
#include <random>
int main() {
  std::random_device chance;
  const auto name = std::to_string(chance()) + std::to_string(chance());
  std::ofstream("/output/0.txt") << name;
  std::cout << name << std::endl;
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is made of.

    Attributes:
        seed: Decides everything that is drawn.
        jobs: How many requests; a few of them come in two messages.
        workers: How many work at a time.
        seconds: Over how long the requests are sent.
        every_s: The mean time between two faults.
    """

    seed: int
    jobs: int
    workers: int = 2
    seconds: float
    every_s: float


@dataclass(slots=True, eq=False)
class Place:
    """A worker's place: its ways to the services, and whoever works there now.

    Attributes:
        ways: Service → proxy.
        worker: The present life.
        struck: Held while something happens to it: no second thing does meanwhile.
    """

    number: int
    ways: dict[str, Proxy]
    worker: WorkerUnderTest
    struck: asyncio.Lock = field(default_factory=asyncio.Lock)


class RandomRun:
    """One run.

    Args:
        plan: What it is made of.
        say: Is told how it goes.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._began = time.monotonic()
        self._opened = AsyncExitStack()
        self._redis_open = AsyncExitStack()
        self._redis: OwnRedis
        self._stack: EmbeddedStack
        self._folder: Path
        self._places: list[Place] = []
        self._lives: list[WorkerUnderTest] = []
        self._sent: dict[str, dict[str, Any]] = {}
        self._faults: Counter[str] = Counter()
        self._chance = random.Random(plan.seed)  # noqa: S311 - to be repeated, not to be secret
        self.problems: list[str] = []

    async def play(self) -> None:
        """Run it; `problems` has what was wrong."""
        folder = tempfile.TemporaryDirectory(prefix="na-random-", ignore_cleanup_errors=True)
        with folder as path:
            self._folder = Path(path)
            async with self._opened:
                await self._open()
                first = self._places[0].worker
                async with observed(
                    first,
                    fault=f"a random fault every {self._plan.every_s:g} s, seed {self._plan.seed}",
                    when="at any time",
                    repeats=REPEATS,
                    server=(HOST, self._redis.port),
                ) as seen:
                    await self._act(seen)
                    seen.logs = [life.log for life in self._lives]
                    await self._judge(seen)

    # --- the stage

    async def _open(self) -> None:
        await self._start_redis(0)
        self._opened.push_async_callback(self._stop_redis)
        address = (HOST, self._redis.port)
        self._stack = EmbeddedStack(self._folder / "stack", redis_address=address)
        await self._opened.enter_async_context(self._stack)
        aws = urlsplit(self._stack.endpoint_url)
        for number in range(self._plan.workers):
            ways = {
                name: await self._opened.enter_async_context(Proxy(*target))
                for name, target in {
                    "Redis": address,
                    "S3": (str(aws.hostname), int(aws.port or 0)),
                    "SQS": (str(aws.hostname), int(aws.port or 0)),
                }.items()
            }
            worker = await self._new_life(ways, f"random-{number}-{secrets.token_hex(3)}")
            self._places.append(Place(number, ways, worker))

    async def _start_redis(self, port: int) -> None:
        folder = self._folder / "redis"
        folder.mkdir(exist_ok=True)
        self._redis = await self._redis_open.enter_async_context(own_redis(folder, port=port, durable=True))

    async def _stop_redis(self) -> None:
        opened, self._redis_open = self._redis_open, AsyncExitStack()
        await opened.aclose()  # by SIGKILL

    async def _new_life(self, ways: dict[str, Proxy], worker_id: str) -> WorkerUnderTest:
        """A worker that has come up; again where a service was away just then, as systemd would."""
        settings = self._settings(ways)
        for attempt in range(1, _START_ATTEMPTS + 1):
            folder = self._folder / f"life-{len(self._lives)}"
            folder.mkdir()
            beside = self._lives[0] if self._lives else None
            life = WorkerUnderTest(
                self._stack, folder, settings, beside=beside, worker_id=worker_id, max_receives=100
            )
            self._lives.append(life)
            self._opened.push_async_exit(life)
            try:
                await life.__aenter__()
            except PlatformError as exc:
                self._say(f"{worker_id} did not come up: {str(exc).splitlines()[-1][:200]}")
                if attempt == _START_ATTEMPTS:
                    raise
            else:
                break
        return life

    def _settings(self, ways: dict[str, Proxy]) -> dict[str, str]:
        pools = {f"WARM_POOL_{runtime.upper()}_SIZE": "0" for runtime in Runtime}
        return {
            **COUNTED,
            **pools,
            "WARM_POOL_PYTHON_SIZE": "2",
            "WORKER_CPUS": "4",
            "CPU_MIN": "0.5",
            "BUILD_CPUS": "1",
            "SQS_VISIBILITY_SECONDS": str(VISIBILITY_S),
            "DOCKER_WORK_DIR_ROOT": str(self._folder / "tasks"),
            "CODE_CACHE_DIR": str(self._folder / "cache"),
            "RETRY_BASE_SECONDS": "1",
            "RETRY_MAX_SECONDS": "8",
            "DRAIN_SECONDS": "10",
            "REDIS_HOST": HOST,
            "REDIS_PORT": str(ways["Redis"].port),
            "AWS_ENDPOINT_URL_S3": f"http://{HOST}:{ways['S3'].port}",
            "AWS_ENDPOINT_URL_SQS": f"http://{HOST}:{ways['SQS'].port}",
        }

    # --- the play

    async def _act(self, seen: Observation) -> None:
        sending = asyncio.create_task(self._send_all(seen))
        telling = asyncio.create_task(self._tell(seen))
        happening = asyncio.create_task(self._disturb())
        try:
            await sending
            self._say("all are sent")
            with suppress(TimeoutError):  # then the rest comes in peace
                async with asyncio.timeout(self._plan.seconds / 4):
                    await until(lambda: self._has_all(seen), DEADLINE_S)
        finally:
            happening.cancel()
            await asyncio.wait({happening})
        seen.over()
        self._say("no more faults")
        try:
            await seen.answered(DEADLINE_S)
            await until(self._queue_is_empty, DEADLINE_S)
        finally:
            telling.cancel()

    @staticmethod
    async def _has_all(seen: Observation) -> bool:
        return await seen.missing() == 0

    async def _queue_is_empty(self) -> bool:
        return await self._stack.queues.depth(queue_url=self._lives[0].queue_url) == (0, 0, 0)

    async def _send_all(self, seen: Observation) -> None:
        chance = random.Random(self._plan.seed)  # noqa: S311 - as above
        keys = await self._upload_all()
        began = time.monotonic()
        url = self._lives[0].queue_url
        async with self._stack.clients() as clients:
            client = await clients.sqs()
            for first in range(0, self._plan.jobs, _BATCH):
                bodies: list[str] = []
                for number in range(first, min(first + _BATCH, self._plan.jobs)):
                    message = self._job(number, keys, chance)
                    self._sent[message["requestId"]] = message
                    bodies += [WorkerUnderTest.body(message)] * (2 if chance.random() < 0.02 else 1)
                seen.sent(*self._sent)
                for part in (bodies[:_BATCH], bodies[_BATCH:]):
                    entries = [{"Id": str(at), "MessageBody": body} for at, body in enumerate(part)]
                    if entries:
                        answer = await client.send_message_batch(QueueUrl=url, Entries=entries)
                        assert not answer.get("Failed"), answer
                due = began + self._plan.seconds * (first + _BATCH) / self._plan.jobs
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _upload_all(self) -> dict[tuple[Runtime, int], str]:
        programs = {
            Runtime.PYTHON: ("main.py", MARKED_PROGRAM),
            Runtime.NODEJS: ("index.js", NODE_PROGRAM),
            Runtime.CPP: ("main.cpp", CPP_PROGRAM),
        }
        upload = self._lives[0].upload
        return {
            (runtime, function): await upload({name: source, "function": f"{runtime} {function}"})
            for runtime, (name, source) in programs.items()
            for function in range(FUNCTIONS if runtime is not Runtime.CPP else 1)
        }

    def _job(
        self, number: int, keys: dict[tuple[Runtime, int], str], chance: random.Random
    ) -> dict[str, Any]:
        runtime = chance.choices([Runtime.PYTHON, Runtime.NODEJS, Runtime.CPP], [8, 1, 1])[0]
        function = chance.randrange(FUNCTIONS) if runtime is not Runtime.CPP else 0
        wanted = {
            "seconds": round(chance.random() * chance.choice((0.2, 2)), 2),
            "files": chance.randrange(3) if runtime is not Runtime.CPP else 1,
            "code": int(chance.random() < 0.1) if runtime is not Runtime.CPP else 0,
        }
        return {
            "requestId": f"r{self._plan.seed}-{number}-{secrets.token_hex(4)}",
            "functionId": f"{runtime}-{function}",
            "runtime": runtime,
            "s3Key": keys[runtime, function],
            "memoryMb": 128,
            "timeoutMs": 60_000,
            "input": wanted,
        }

    async def _tell(self, seen: Observation) -> None:
        while True:
            await asyncio.sleep(5)
            sent, missing = len(self._sent), await seen.missing()
            self._say(f"{sent} sent, {sent - missing} answered, {self._faults.total()} faults")

    # --- the faults

    async def _disturb(self) -> None:
        """One fault after the other, on places that nothing happens to just then, until cancelled."""
        kinds: dict[Callable[[Place], Awaitable[str]], int] = {
            self._kill_worker: 3,
            self._pause_worker: 2,
            self._spoil_way: 6,
            self._restart_redis: 1,
            self._lose_claims: 1,
            self._kill_container: 3,
            self._replace_worker: 2,
        }
        under_way: set[asyncio.Task[None]] = set()
        try:
            while True:
                await asyncio.sleep(self._chance.uniform(0.5, 1.5) * self._plan.every_s)
                (fault,) = self._chance.choices(list(kinds), list(kinds.values()))
                place = self._chance.choice(self._places)
                if not place.struck.locked():
                    task = asyncio.create_task(self._strike(fault, place))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
        finally:
            # Each ends by itself in seconds, and leaves everything as it should be.
            await asyncio.gather(*under_way)

    async def _strike(self, fault: Callable[[Place], Awaitable[str]], place: Place) -> None:
        async with place.struck:
            try:
                what = await fault(place)
            except Exception as exc:  # noqa: BLE001 - told at the end, with the rest
                self.problems.append(f"{fault.__name__} failed: {exc!r}"[:2000])
                return
        self._faults[what] += 1
        self._say(f"fault at {place.worker.worker_id}: {what}")

    async def _kill_worker(self, place: Place) -> str:
        pause_s = self._chance.uniform(0, 2)
        await place.worker.agent.kill()
        await asyncio.sleep(pause_s)
        place.worker = await self._new_life(place.ways, place.worker.worker_id)
        return "worker killed, started again"

    async def _replace_worker(self, place: Place) -> str:
        old = place.worker
        name = f"random-{place.number}-{secrets.token_hex(3)}"
        place.worker = await self._new_life(place.ways, name)
        if (code := await old.agent.stop()) != 0:
            self.problems.append(f"a drained worker ended with {code}: {old.agent.log_tail()}")
        return "worker replaced by another, drained"

    async def _pause_worker(self, place: Place) -> str:
        seconds = VISIBILITY_S * self._chance.uniform(1.1, 1.6)
        place.worker.agent.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            place.worker.agent.signal(signal.SIGCONT)
        return "worker paused past the visibility timeout"

    async def _spoil_way(self, place: Place) -> str:
        service = self._chance.choice(sorted(place.ways))
        how = self._chance.choice(("cut", "delayed", "garbled", "hung"))
        seconds = self._chance.uniform(0.5, 5)
        way = place.ways[service]
        try:
            if how == "cut":
                await way.cut()
            elif how == "delayed":
                way.delay(self._chance.uniform(0.05, 0.5))
            elif how == "garbled":
                way.garble()
            else:
                way.hang()
            await asyncio.sleep(seconds)
        finally:
            await way.restore()
        return f"{service} {how}"

    async def _restart_redis(self, _: Place) -> str:
        pause_s, port = self._chance.uniform(0, 2), self._redis.port
        await self._stop_redis()
        await asyncio.sleep(pause_s)
        await self._start_redis(port)
        return "Redis killed, started again with its data"

    async def _lose_claims(self, _: Place) -> str:
        """As after a failover to a replica that is a moment behind."""
        keys = [key async for key in self._redis.client.scan_iter("nanoagent:claim:*", count=1000)]
        if keys:
            await self._redis.client.delete(*keys)
        return "Redis has lost its claims"

    async def _kill_container(self, place: Place) -> str:
        names = await containers_of(place.worker.worker_id)
        if not names:
            return "no container to kill"
        name = self._chance.choice(sorted(names))
        # It may have gone meanwhile.
        process = await asyncio.create_subprocess_exec(
            *("docker", "kill", name), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        await process.wait()
        return "container killed"

    # --- afterwards

    async def _judge(self, seen: Observation) -> None:
        results = await seen.answered(DEADLINE_S)
        for place in self._places:
            if (code := await place.worker.agent.stop()) != 0:
                self.problems.append(f"a worker ended with {code}: {place.worker.agent.log_tail()}")
        given_up = {name for name, result in results.items() if result["errorType"] == "PLATFORM"}
        honest = [result for name, result in results.items() if name not in given_up]
        self.problems += [problem for result in honest for problem in self._not_as_sent(result, seen)]
        self.problems += await wrong_outputs(self._stack, honest, self._files_of)
        first = self._lives[0]
        places = Places(
            stack=self._stack,
            queue_url=first.queue_url,
            dead_letter_url=first.dead_letter_url,
            redis=self._redis.client,
            work_root=self._folder / "tasks",
            cache=self._folder / "cache",
        )
        names = {life.worker_id for life in self._lives}
        self.problems += await leftovers_of(places, results, names, given_up=given_up)
        for what, times in sorted(self._faults.items()):
            self._say(f"{times:5} x {what}")
        row = await seen.row()
        self._say(f"{row}")
        self._say(f"given up, and told so: {len(given_up)}; workers' lives: {len(self._lives)}")

    def _files_of(self, request_id: str) -> int:
        return int(self._sent[request_id]["input"]["files"])

    def _not_as_sent(self, result: dict[str, Any], seen: Observation) -> list[str]:
        name = result["requestId"]
        failed = self._sent[name]["input"]["code"] != 0
        expected = ("FAILED", "USER_ERROR") if failed else ("SUCCESS", None)
        if (result["status"], result["errorType"]) == expected:
            return []
        found = f"{name}: {result['status']} {result['errorType']} {result['errorMessage']}"
        return [f"{found}\n{story_of(seen.logs, name)}"]


async def play(plan: Plan, say: Callable[[str], None] = print) -> None:
    """Run it.

    Raises:
        AssertionError: Something did not hold; the seed stands in the message.
    """
    began = time.monotonic()
    run = RandomRun(plan, lambda text: say(f"{time.monotonic() - began:6.1f} s  {text}"))
    try:
        await run.play()
    except AssertionError as exc:
        run.problems.append(str(exc))
    shown = "\n".join(run.problems[:_SHOWN])
    assert not run.problems, f"{plan}: {len(run.problems)} problems\n{shown}"


def main() -> int:
    """The long run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=420, help="over how long the jobs are sent")
    parser.add_argument("--every", type=float, default=3, help="mean seconds between two faults")
    chosen = parser.parse_args()
    plan = Plan(
        seed=chosen.seed,
        jobs=chosen.jobs,
        workers=chosen.workers,
        seconds=chosen.seconds,
        every_s=chosen.every,
    )
    print(f"{plan}; the same again: --seed {plan.seed}", flush=True)
    try:
        asyncio.run(play(plan, lambda text: print(text, flush=True)))
    except AssertionError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
