"""Agents that die, or stop for longer than anybody waits, at every step of the order of effects.

All share one queue, and each takes one job: it has room for no more, and never comes back for another. Those
that take over are started when the last has been struck. So that of 30 agents that wait for visibility
timeouts all do at the same time.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import tempfile
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from nanoagent.model.errors import PlatformError
from nanoagent.model.job import Runtime
from support.agents.faulty_agent import Fault
from support.agents.worker import WorkerUnderTest
from support.checks.leftovers import MARKED_PROGRAM, Places, leftovers_of, story_of, struck_in, wrong_outputs
from support.checks.reliability import COUNTED, Observation, observed, record, starts_in, until
from support.services.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nanoagent.dev.local_services import EmbeddedStack

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

VISIBILITY_S: Final = 12  # before that, all should be struck: else some take over from others
NO_POOL: Final = {f"WARM_POOL_{runtime.upper()}_SIZE": "0" for runtime in Runtime}
# Room for one job, and no job before it has ended.
ONE_JOB: Final = {"WORKER_CPUS": "1", "CPU_MIN": "1", "WORKER_MEMORY_MB": "1024", "BUILD_MEMORY_MB": "512"}
REPEATS: Final = (
    "its worker was gone between the start of the program and the moment when its result was safe"
)


@dataclass(frozen=True, slots=True)
class Point:
    """Where an agent is struck.

    Attributes:
        when: In words, for the table.
        fault: For the agent.
        repeats: Whether the program has been started by then and its result is not safe yet.
        without_redis: Redis is cut off from the agent as soon as its program runs.
        rarely: Whether it is left to `make soak`.
    """

    when: str
    fault: Fault
    repeats: bool = False
    without_redis: bool = False
    rarely: bool = False


KILLED: Final = (
    Point("received", Fault("receive", "after")),
    Point("about to claim", Fault("claim", "before"), rarely=True),
    Point("claimed", Fault("claim", "after")),
    Point("about to put unpacked code into the cache", Fault("unpack", "before")),
    Point("code fetched", Fault("fetch", "after"), rarely=True),
    Point("container acquired", Fault("lease", "after"), rarely=True),
    Point("about to start the program", Fault("start", "before")),
    Point("program started", Fault("start", "after"), repeats=True, rarely=True),
    Point("in the run", Fault("run", "before", delay_s=0.4), repeats=True),
    Point("run ended, nothing collected", Fault("collect", "before"), repeats=True, rarely=True),
    Point("one of three output files uploaded", Fault("upload", "after"), repeats=True),
    Point("two of three output files uploaded", Fault("upload", "after", nth=2), repeats=True, rarely=True),
    Point("all uploaded, about to publish", Fault("publish", "before"), repeats=True, rarely=True),
    Point("published", Fault("publish", "after")),
    Point("about to delete the message", Fault("ack", "before"), rarely=True),
    Point("delete requested, not sent", Fault("delete", "before"), rarely=True),
    Point(
        "Redis down, about to store the result on disk",
        Fault("keep", "before"),
        repeats=True,
        without_redis=True,
        rarely=True,
    ),
    Point("Redis down, result partly on disk", Fault("write", "before"), repeats=True, without_redis=True),
    Point("Redis down, result on disk", Fault("keep", "after"), without_redis=True),
    Point("draining, in the run", Fault("drain", "before", delay_s=0.2, told_to_stop=1), repeats=True),
    Point(
        "second stop signal, about to return the message",
        Fault("nack", "before", told_to_stop=2),
        repeats=True,
        rarely=True,
    ),
    Point(
        "second stop signal, message returned",
        Fault("nack", "after", told_to_stop=2),
        repeats=True,
        rarely=True,
    ),
)
_STOP: Final = "SIGSTOP"
STOPPED: Final = (
    Point("claimed", Fault("claim", "after", signal=_STOP), rarely=True),
    Point("about to start the program", Fault("start", "before", signal=_STOP), repeats=True, rarely=True),
    Point("in the run", Fault("run", "before", signal=_STOP, delay_s=0.4), repeats=True),
    Point(
        "one of three output files uploaded",
        Fault("upload", "after", signal=_STOP),
        repeats=True,
        rarely=True,
    ),
    Point("all uploaded, about to publish", Fault("publish", "before", signal=_STOP), repeats=True),
    Point("published", Fault("publish", "after", signal=_STOP), rarely=True),
    Point("delete requested, not sent", Fault("delete", "before", signal=_STOP), rarely=True),
)
STARTING: Final = (
    Point("at start, about to make the first container", Fault("create", "before")),
    Point("at start, first container made", Fault("create", "after"), rarely=True),
    Point("at start, the pool's first container made", Fault("create", "after", nth=2)),
)


@dataclass(slots=True)
class Struck:
    """An agent that is to be struck; the request that it was struck with, and when, Unix seconds."""

    point: Point
    worker: WorkerUnderTest
    redis: Proxy | None = None
    request_id: str = ""
    at: float = 0.0

    @property
    def is_stopped(self) -> bool:
        return self.point.fault.signal == _STOP


@dataclass(slots=True)
class Scene:
    """Agents on one queue, on a host of their own as far as folders go."""

    stack: EmbeddedStack
    folder: Path
    opened: AsyncExitStack
    workers: list[WorkerUnderTest] = field(default_factory=list)

    async def add(self, settings: dict[str, str], fault: Fault | None, **options: Any) -> WorkerUnderTest:
        """Another agent, started; `beside` the first."""
        folder = self.folder / f"agent-{len(self.workers)}"
        folder.mkdir()
        beside = self.workers[0] if self.workers else None
        worker = WorkerUnderTest(
            self.stack, folder, self._common() | settings, beside=beside, fault=fault, **options
        )
        self.workers.append(worker)
        self.opened.push_async_exit(worker)  # before it is started: some do not come up
        await worker.__aenter__()
        return worker

    def _common(self) -> dict[str, str]:
        return {
            "SQS_VISIBILITY_SECONDS": str(VISIBILITY_S),
            "DOCKER_WORK_DIR_ROOT": str(self.folder / "tasks"),
            "CODE_CACHE_DIR": str(self.folder / "cache"),
            **NO_POOL,
            **COUNTED,
        }

    @property
    def logs(self) -> list[Path]:
        return [worker.log for worker in self.workers]

    def places(self) -> Places:
        first = self.workers[0]
        return Places(
            stack=self.stack,
            queue_url=first.queue_url,
            dead_letter_url=first.dead_letter_url,
            redis=first.redis,
            work_root=self.folder / "tasks",
            cache=self.folder / "cache",
        )

    async def is_empty(self) -> bool:
        return await self.stack.queues.depth(queue_url=self.workers[0].queue_url) == (0, 0, 0)


@asynccontextmanager
async def a_scene(stack: EmbeddedStack) -> AsyncIterator[Scene]:
    # Not pytest's own folder: sockets below it would have too long a path.
    with tempfile.TemporaryDirectory(prefix="na-faults-", ignore_cleanup_errors=True) as folder:
        async with AsyncExitStack() as opened:
            yield Scene(stack, Path(folder), opened)


async def armed(scene: Scene, point: Point) -> Struck:
    """An agent that will be struck there, if it is not already, at its start."""
    redis = None
    settings = ONE_JOB | {"WARM_POOL_PYTHON_SIZE": "1"}
    if point.without_redis:
        redis = await scene.opened.enter_async_context(Proxy(scene.stack.redis_host, scene.stack.redis_port))
        settings |= {"REDIS_PORT": str(redis.port)}
    if point not in STARTING:
        return Struck(point, await scene.add(settings, point.fault), redis)
    number = len(scene.workers)
    with pytest.raises(PlatformError, match="ended at start"):
        await scene.add(settings, point.fault)
    return Struck(point, scene.workers[number])


async def all_armed(scene: Scene, points: Sequence[Point]) -> list[Struck]:
    """The first alone, because it makes the queue; then some at a time, for their start has a deadline."""
    turns = asyncio.Semaphore(4)

    async def in_turn(point: Point) -> Struck:
        async with turns:
            return await armed(scene, point)

    first = await armed(scene, points[0])
    return [first, *await asyncio.gather(*map(in_turn, points[1:]))]


async def take_redis_away(struck: Struck) -> None:
    """From an agent that is to do without, as soon as its program runs."""
    if struck.redis is None:
        return

    async def runs() -> bool:
        return bool(starts_in([struck.worker.log]))

    await until(runs)
    await struck.redis.cut()


async def until_struck(struck: Struck) -> None:
    async def is_struck() -> bool:
        if not struck.is_stopped:
            return struck.worker.agent.has_ended
        return struck_in(struck.worker.log) is not None

    await until(is_struck)
    found = struck_in(struck.worker.log)
    assert found is not None, (
        f"{struck.point}: it ended, but was not struck\n{struck.worker.agent.log_tail()}"
    )
    # A drain is nobody's in particular: that of the run that it found.
    struck.request_id = found.get("request_id") or next(iter(starts_in([struck.worker.log])), "")
    struck.at = datetime.fromisoformat(found["timestamp"]).timestamp()


async def successors(scene: Scene, struck: Sequence[Struck]) -> list[WorkerUnderTest]:
    """A worker of the same name as one that is dead, and one of another name."""
    settings = {"WORKER_CPUS": "8", "CPU_MIN": "0.5", "WARM_POOL_PYTHON_SIZE": "1"}
    again = next(one.worker.worker_id for one in struck if not one.is_stopped)
    return [
        await scene.add(settings, None, worker_id=again),
        await scene.add(settings, None),
    ]


async def idle(worker: WorkerUnderTest) -> None:
    async def is_idle() -> bool:
        return await worker.metric("worker_active_jobs") == 0

    await until(is_idle)


async def play(stack: EmbeddedStack, points: Sequence[Point]) -> None:
    """Strike an agent at each of the points, let others take over, wake those that were only stopped."""
    at_work = [point for point in points if point not in STARTING]
    async with a_scene(stack) as scene:
        struck = await all_armed(scene, points)
        first = scene.workers[0]
        async with observed(
            first, fault=f"{len(points)} workers are killed or paused", when="at every step", repeats=REPEATS
        ) as seen:
            messages = [await marked(first) for _ in at_work]
            seen.sent(*(message["requestId"] for message in messages))
            seen.struck()
            for message in messages:
                await stack.queues.send(first.body(message), queue_url=first.queue_url)
            await asyncio.gather(*map(take_redis_away, struck), *map(until_struck, struck))
            alive = await successors(scene, struck)
            results = await seen.answered()
            for one in struck:
                if one.is_stopped:
                    one.worker.agent.signal(signal.SIGCONT)
                    alive.append(one.worker)
            await asyncio.gather(*map(idle, alive))
            await until(scene.is_empty)
            seen.logs = scene.logs
            problems = await what_is_wrong(seen, struck, results)
        for worker in alive:
            if (code := await worker.agent.stop()) != 0:
                problems.append(f"exit code {code}: {worker.agent.log_tail()}")
        ids = {worker.worker_id for worker in scene.workers}
        problems += await leftovers_of(scene.places(), results, ids)
        problems += await wrong_outputs(stack, results.values())
    assert not problems, "\n".join(problems)


async def marked(worker: WorkerUnderTest) -> dict[str, Any]:
    """A job with code of its own, so that nobody has it in a cache."""
    key = await worker.upload({"main.py": MARKED_PROGRAM, "unique": secrets.token_hex(8)})
    return worker.message(s3Key=key, timeoutMs=60_000, input={"seconds": 3})


async def what_is_wrong(seen: Observation, struck: Sequence[Struck], results: dict[str, Any]) -> list[str]:
    """Record a row for each point; what is not as it should be."""
    problems = [f"{name}: {result}" for name, result in results.items() if result["status"] != "SUCCESS"]
    starts = starts_in(seen.logs)
    times = Counter(one.request_id for one in struck)
    excused: Counter[str] = Counter()
    for one in struck:
        # On a slow machine an agent may have begun with another's request, beside its own.
        begun = set(starts_in([one.worker.log]))
        if not one.point.repeats and times[one.request_id] == 1:
            begun.discard(one.request_id)
        excused.update(begun)
    problems += [
        f"{name}: its program was started {starts[name]} times\n{story_of(seen.logs, name)}"
        for name in results
        if starts[name] > 1 + excused[name]
    ]
    for one in struck:
        if one.point in STARTING:
            continue
        if not one.request_id:
            problems.append(f"{one.point}: it is not known which request it was struck with")
            continue
        signal_name = "paused past the visibility timeout" if one.is_stopped else "killed"
        row = await seen.row_of([one.request_id], one.point.when, struck_at=one.at)
        # What another agent that was struck with the same request made be run again is not counted here.
        others = excused[one.request_id] - one.point.repeats
        repeated = int(starts[one.request_id] > 1 + max(0, others))
        why = REPEATS if one.point.repeats else ""
        record(replace(row, fault=f"worker {signal_name}", repeated=repeated, why=why))
    return problems


ALL: Final = (*KILLED, *STARTING, *STOPPED)


async def test_a_job_has_one_result_wherever_its_agent_dies_or_stops(stack: EmbeddedStack):
    await play(stack, [point for point in ALL if not point.rarely])


@pytest.mark.soak
async def test_a_job_has_one_result_at_every_step_where_its_agent_dies_or_stops(stack: EmbeddedStack):
    await play(stack, ALL)


async def test_a_job_whose_agent_dies_while_it_builds_is_built_by_another_and_run_once(stack: EmbeddedStack):
    # Of its own every time: a build that is in the cache is none.
    source = f'#include <cstdio>\n// {secrets.token_hex(8)}\nint main() {{ std::puts("built"); }}\n'
    settings = ONE_JOB | {"SQS_VISIBILITY_SECONDS": "5"}
    async with a_scene(stack) as scene:
        worker = await scene.add(settings, Fault("run", "before", delay_s=0.2))  # the first run is the build
        async with observed(worker, fault="worker killed", when="in a build") as seen:
            key = await worker.upload({"main.cpp": source})
            message = worker.message(s3Key=key, runtime="cpp", timeoutMs=60_000)
            seen.sent(message["requestId"])
            await stack.queues.send(worker.body(message), queue_url=worker.queue_url)
            await worker.agent.ended()
            assert struck_in(worker.log) is not None, worker.agent.log_tail()
            seen.struck()
            again = await scene.add(settings, None, worker_id=worker.worker_id)
            (result,) = (await seen.answered()).values()
            await until(scene.is_empty)
            seen.logs = scene.logs
        assert (result["status"], result["stdout"]) == ("SUCCESS", "built\n")
        assert await again.agent.stop() == 0
        assert not await leftovers_of(scene.places(), [message["requestId"]], [worker.worker_id])
