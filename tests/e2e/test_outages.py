"""Services that are down, slow, hanging, full, read-only, throttling, refusing or talking nonsense.

Four workers, each with ways to its services that are the test's: for one Redis goes wrong, for one S3, for
one SQS, for one Docker and the disk, all at the same time and one fault after another. Each time a job is
sent before, one while the worker is not ready, and one afterwards; all have one result, of their first
attempt but where a run went with its container. CloudWatch is away all the while, in three manners.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from nanoagent.model.job import Runtime
from support.agents.worker import WorkerUnderTest
from support.checks.leftovers import containers_of
from support.checks.reliability import COUNTED, Observation, observed, until
from support.sandboxes import engines
from support.services.own_redis import HOST, own_redis
from support.services.proxy import Proxy
from support.services.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.dev.local_services import EmbeddedStack
    from support.services.own_redis import OwnRedis
    from support.services.recorder import Call

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

PYTHON_ONLY = {f"WARM_POOL_{runtime.upper()}_SIZE": "0" for runtime in Runtime if runtime != "python"}
SETTINGS: Final = {
    **PYTHON_ONLY,
    **COUNTED,
    "CODE_FRESH_SECONDS": "3600",  # a job whose code is here meets S3 only when it uploads
    "CLOUDWATCH_INTERVAL_SECONDS": "0.5",
    "DRAIN_SECONDS": "5",
}
SOURCE: Final = (
    "import json, os, time\n"
    "open('/output/kept', 'w').write('whole')\n"
    "time.sleep(json.loads(os.environ['PAYLOAD'])['seconds'])\n"
    "print('whole')\n"
)
IMAGE: Final = "nanoagent-python:latest"
DISK_MIB: Final = 64
RIGHTS: Final = ("~*", "&*", "+@all", "-@dangerous", "-@admin")


@dataclass(eq=False)
class Place:
    """A worker, and its ways to the services.

    Attributes:
        user: Its name on Redis: the service that goes wrong for it.
        refuses: What the AWS services refuse, and how; see `Recorder`.
        key: The code of its jobs.
        more: Settings of its own.
        failed: How many attempts have failed of which that is known.
    """

    stack: EmbeddedStack
    server: OwnRedis
    user: str
    redis: Proxy
    s3: Proxy
    sqs: Proxy
    cloudwatch: Proxy
    refuses: Callable[[Call], tuple[int, str] | None] = field(default=lambda _: None)
    password: str = field(default_factory=lambda: secrets.token_hex(8))
    worker: WorkerUnderTest = field(init=False)
    key: str = ""
    more: dict[str, str] = field(default_factory=dict)
    folder: Path = field(init=False)
    engine: engines.OwnEngine = field(init=False)
    failed: float = 0

    def refusal(self, call: Call) -> tuple[int, str] | None:
        return self.refuses(call)

    def settings(self) -> dict[str, str]:
        return {
            **SETTINGS,
            "REDIS_HOST": HOST,
            "REDIS_PORT": str(self.redis.port),
            "REDIS_USERNAME": self.user,
            "REDIS_PASSWORD": self.password,
            "AWS_ENDPOINT_URL_S3": f"http://{HOST}:{self.s3.port}",
            "AWS_ENDPOINT_URL_SQS": f"http://{HOST}:{self.sqs.port}",
            "AWS_ENDPOINT_URL_CLOUDWATCH": f"http://{HOST}:{self.cloudwatch.port}",
            **self.more,
        }

    async def allow(self, password: str) -> None:
        """Have Redis take that password from the worker, and no other."""
        await self.server.client.execute_command(
            "ACL", "SETUSER", self.user, "reset", "on", f">{password}", *RIGHTS
        )

    @property
    def address(self) -> tuple[str, int]:
        """Redis's own."""
        return HOST, self.server.port

    def message(self, seconds: float = 0) -> dict[str, Any]:
        return self.worker.message(s3Key=self.key, timeoutMs=60_000, input={"seconds": seconds})

    async def send(self, message: dict[str, Any]) -> None:
        await self.stack.queues.send(self.worker.body(message), queue_url=self.worker.queue_url)

    async def readiness(self) -> tuple[int, dict[str, Any]]:
        status, text = await self.worker.get("/readyz")
        return status, json.loads(text)["parts"]

    async def until_ready(self) -> None:
        async def is_ready() -> bool:
            return (await self.readiness())[0] == 200

        await until(is_ready)

    async def until_busy(self) -> None:
        async def is_busy() -> bool:
            return await self.worker.metric("worker_pool_containers", state="busy") == 1

        await until(is_busy)

    async def until_not_ready(self, part: str, says: str) -> None:
        """Until readiness and metrics name the part, and the first says why."""

        async def tells() -> bool:
            status, parts = await self.readiness()
            return status == 503 and says in parts.get(part, {}).get("reason", "")

        await until(tells)
        assert await self.worker.metric("worker_part_ok", part=part) == 0


def throttle_metrics(call: Call) -> tuple[int, str] | None:
    return (400, "ThrottlingException") if call.operation == "PutMetricData" else None


def refusing(service: str, status: int, code: str) -> Callable[[Place], Awaitable[None]]:
    """Have every call of a service refused."""

    async def strike(place: Place) -> None:
        def refusal(call: Call) -> tuple[int, str] | None:
            return (status, code) if call.action.startswith(service) else throttle_metrics(call)

        place.refuses = refusal

    return strike


async def refusing_writes(place: Place) -> None:
    def refusal(call: Call) -> tuple[int, str] | None:
        return (403, "AccessDenied") if call.operation == "PutObject" else throttle_metrics(call)

    place.refuses = refusal


async def another_password(place: Place) -> None:
    await place.allow("another")
    await place.server.client.execute_command("CLIENT", "KILL", "USER", place.user)


async def read_only(place: Place) -> None:
    await place.server.client.replicaof(HOST, "1")


async def full(place: Place) -> None:
    await place.server.set(maxmemory_policy="noeviction", maxmemory=1)


def on(way: str, what: str, *arguments: float) -> Callable[[Place], Awaitable[None]]:
    """Have something done by one of the place's proxies."""

    async def strike(place: Place) -> None:
        done = getattr(getattr(place, way), what)(*arguments)
        if done is not None:
            await done

    return strike


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a service.

    Attributes:
        what: For the table.
        strike: Does it.
        says: What readiness says of it; None where the worker bears with it.
    """

    what: str
    strike: Callable[[Place], Awaitable[None]]
    says: str | None = None


SILENT: Final = "it does not answer"
FAULTS: Final[dict[str, dict[str, Fault]]] = {
    "down": {
        "Redis": Fault("down", on("redis", "cut"), "it refuses connections: start it"),
        "S3": Fault("down", on("s3", "cut"), SILENT),
        "SQS": Fault("down", on("sqs", "cut"), SILENT),
    },
    "hanging": {
        "Redis": Fault("hanging", on("redis", "hang"), "it did not answer in time"),
        "S3": Fault("hanging", on("s3", "hang"), "not done within 5 s"),
        "SQS": Fault("hanging", on("sqs", "hang"), "not done within 11 s"),
    },
    "slow": {
        "Redis": Fault("slow", on("redis", "delay", 0.1)),
        "S3": Fault("slow", on("s3", "delay", 0.3)),
        "SQS": Fault("slow", on("sqs", "delay", 0.3)),
    },
    "garbled": {
        "Redis": Fault(
            "garbled", on("redis", "garble"), "the server that answers is not Redis, or its reply is garbled"
        ),
        "S3": Fault("garbled", on("s3", "garble"), SILENT),
        "SQS": Fault("garbled", on("sqs", "garble"), SILENT),
    },
    "refusing": {
        "Redis": Fault("password changed", another_password, "it refuses the user or the password"),
        "S3": Fault(
            "credentials expired", refusing("s3:", 400, "ExpiredToken"), "it refuses these credentials"
        ),
        "SQS": Fault(
            "unknown credentials", refusing("sqs:", 403, "InvalidClientTokenId"), "it refuses these cred"
        ),
    },
    "throttling, full": {
        "Redis": Fault("memory used up", full, "its memory is used up"),
        "S3": Fault("throttling", refusing("s3:", 503, "SlowDown"), "it throttles"),
        "SQS": Fault("throttling", refusing("sqs:", 400, "ThrottlingException"), "it throttles"),
    },
    "not to be written to": {
        "Redis": Fault("read-only (failover)", read_only, "it is a read-only replica"),
        "S3": Fault("writes denied", refusing_writes, "these credentials lack a permission"),
        "SQS": Fault("queue deleted", refusing("sqs:", 400, "QueueDoesNotExist"), "there is no such queue"),
    },
}
PARTS: Final = {"Redis": "results", "S3": "storage", "SQS": "queue"}


async def mend(place: Place) -> None:
    place.refuses = throttle_metrics
    for proxy in (place.redis, place.s3, place.sqs):
        await proxy.restore()
    if place.user == "Redis":
        await place.allow(place.password)
        await place.server.client.replicaof("NO", "ONE")
        await place.server.set(maxmemory=0)


async def endure(place: Place, fault: Fault) -> None:
    """A service goes wrong around a job, is well again, and every job has one result."""
    service, when = place.user, "before, while and after a job is sent"
    async with observed(
        place.worker, fault=f"{service}: {fault.what}", when=when, server=place.address
    ) as seen:
        before, during, after = (place.message() for _ in range(3))
        seen.sent(*(message["requestId"] for message in (before, during, after)))
        try:
            if service != "S3":  # with S3, that which has run is what finds out
                await place.send(before)
            await fault.strike(place)
            seen.struck()
            if service == "S3":
                await place.send(before)
            if fault.says is not None:
                await place.until_not_ready(PARTS[service], fault.says)
                assert (await place.worker.get("/healthz"))[0] == 200
            await place.send(during)
        finally:
            if fault.says is not None:
                await mend(place)
        seen.over()
        await place.until_ready()
        await place.send(after)
        await are_whole(place, seen)
        await mend(place)


async def are_whole(place: Place, seen: Observation, attempts: frozenset[int] = frozenset({1})) -> None:
    """Every request has its result and output, and nothing is left in the queues."""
    results = await seen.answered()
    for result in results.values():
        assert (result["status"], result["stdout"]) == ("SUCCESS", "whole\n")
        assert result["attempt"] in attempts
        (link,) = result["outputFiles"]
        assert await place.worker.output(link) == b"whole"

    async def is_settled() -> bool:
        return await place.stack.queues.depth(queue_url=place.worker.queue_url) == (0, 0, 0)

    await until(is_settled)
    assert await place.stack.queues.dead_letters(queue_url=place.worker.dead_letter_url) == []
    if attempts == {1}:
        assert await place.worker.metric("worker_attempts_failed_total") == place.failed


async def has_noticed_that_cloudwatch_is_away(place: Place) -> None:
    async def is_counted() -> bool:
        return await place.worker.metric("worker_cloudwatch_failures_total") > 0

    await until(is_counted)


async def ends_in_order_though_everything_hangs(place: Place) -> None:
    for proxy in (place.redis, place.s3, place.sqs, place.cloudwatch):
        proxy.hang()
    place.worker.agent.signal(signal.SIGTERM)
    await asyncio.wait_for(place.worker.agent.ended(), 120)
    assert await place.worker.agent.stop() == 0


# --- Docker and the disk


async def around(place: Place, what: str, part: str, says: str, strike: Strike, heal: Strike) -> None:
    """Something of the machine fails while a job runs; its run may have gone with it."""
    when, repeats = "in the run", "a program goes with its container"
    async with observed(place.worker, fault=what, when=when, repeats=repeats, server=place.address) as seen:
        before, during, after = place.message(seconds=2), place.message(), place.message()
        seen.sent(*(message["requestId"] for message in (before, during, after)))
        await place.send(before)
        await place.until_busy()
        await strike(place)
        seen.struck()
        try:
            await place.until_not_ready(part, says)
            await place.send(during)
        finally:
            await heal(place)
        seen.over()
        await place.until_ready()
        await place.send(after)
        await are_whole(place, seen, frozenset({1, 2}))
    place.failed = await place.worker.metric("worker_attempts_failed_total")

    async def nothing_is_left_over() -> bool:
        containers = await containers_of(place.worker.worker_id, host=place.engine.address)
        slots = list((place.folder / "tasks" / place.worker.worker_id / "slots").iterdir())
        pool = [
            await place.worker.metric("worker_pool_containers", state=state) for state in ("idle", "busy")
        ]
        return len(containers) == len(slots) == sum(pool)

    await until(nothing_is_left_over)


async def engine_restarts(place: Place) -> None:
    async def stop(place: Place) -> None:
        await asyncio.to_thread(place.engine.stop)

    async def start(place: Place) -> None:
        await asyncio.to_thread(place.engine.start)

    await around(place, "Docker: stopped, started", "containers", "Docker cannot be reached", stop, start)


async def engine_hangs(place: Place) -> None:
    async def pause(place: Place) -> None:
        place.engine.process.send_signal(signal.SIGSTOP)

    async def go_on(place: Place) -> None:
        place.engine.process.send_signal(signal.SIGCONT)

    await around(place, "Docker: hanging", "containers", "Docker has not answered", pause, go_on)


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, left_bytes: int) -> None:
    """Leave so much room on a disk."""
    free = shutil.disk_usage(folder).free
    with (folder / "filler").open("ab") as file, suppress(OSError):
        file.write(bytes(free - left_bytes))


async def disk_fills(place: Place) -> None:
    disk = place.folder / "disk"

    async def strike(_: Place) -> None:
        fill(disk, left_bytes=4 * 2**20)

    async def heal(_: Place) -> None:
        (disk / "filler").unlink()

    await around(place, "disk: nearly full", "disk", "MIN_FREE_DISK_MB=16", strike, heal)


async def disk_is_full_when_redis_is_away(place: Place) -> None:
    """The result that has to wait finds no place on the disk, and is delivered all the same."""
    disk = place.folder / "disk"
    async with observed(
        place.worker, fault="disk: full, and Redis down", when="in the run", server=place.address
    ) as seen:
        message = place.message(seconds=2)
        seen.sent(message["requestId"])
        await place.send(message)
        await place.until_busy()
        await place.redis.cut()
        fill(disk, left_bytes=0)
        seen.struck()

        async def is_kept() -> bool:
            return await place.worker.metric("worker_spooled_results") == 1

        try:
            await until(is_kept)
            # Or on the disk, should the gate have let go of code that nobody uses just then.
            in_memory = "result kept in memory only" in place.worker.log.read_text()
            assert in_memory != bool(list((disk / "results").glob("*~*")))
        finally:
            (disk / "filler").unlink()
            await place.redis.restore()
        seen.over()
        await are_whole(place, seen)
        await place.until_ready()


# --- all of it, at once

Strike = Callable[[Place], Awaitable[None]]
FAULTY: Final = {
    service: {kind: partial(endure, fault=FAULTS[kind][service]) for kind in FAULTS} for service in PARTS
}
STEPS: Final[dict[str, dict[str, Strike]]] = {
    "Redis": {
        **FAULTY["Redis"],
        "hanging while the worker stops": ends_in_order_though_everything_hangs,
    },
    "S3": {**FAULTY["S3"], "beside a throttling CloudWatch": has_noticed_that_cloudwatch_is_away},
    "SQS": {**FAULTY["SQS"], "beside a CloudWatch that is down": has_noticed_that_cloudwatch_is_away},
    "Docker": {
        "restarted": engine_restarts,
        "hanging": engine_hangs,
        "without room on the disk": disk_fills,
        "without room for a result that waits for Redis": disk_is_full_when_redis_is_away,
    },
}
CASES: Final = [(service, step) for service, steps in STEPS.items() for step in steps]


class Course:
    """The four workers, and what became of each step."""

    def __init__(self, stack: EmbeddedStack, folder: Path, opened: AsyncExitStack) -> None:
        self._stack = stack
        self._folder = folder
        self._opened = opened
        loop = asyncio.get_running_loop()
        self.ends: dict[tuple[str, str], asyncio.Future[None]] = {
            case: loop.create_future() for case in CASES
        }

    async def run(self, service: str) -> None:
        """Take the steps, one after the other; one that fails does not keep the others from theirs."""
        try:
            place = await self._place(service)
        except Exception as exc:  # noqa: BLE001 - every test of the service has it to tell
            for step in STEPS[service]:
                self.ends[service, step].set_exception(exc)
            return
        for step, take in STEPS[service].items():
            try:
                await take(place)
            except Exception as exc:  # noqa: BLE001 - the test of that name has it to tell
                self.ends[service, step].set_exception(exc)
            else:
                self.ends[service, step].set_result(None)

    async def _place(self, service: str) -> Place:
        enter = self._opened.enter_async_context
        folder = self._folder / service
        folder.mkdir()
        server = await enter(own_redis(folder))
        recorder = await enter(Recorder(self._stack.endpoint_url))
        aws = urlsplit(recorder.url).port
        assert aws is not None
        redis, s3, sqs, cloudwatch = [await enter(Proxy(HOST, port)) for port in (server.port, aws, aws, aws)]
        place = Place(self._stack, server, service, redis, s3, sqs, cloudwatch)
        recorder.refusal = place.refusal
        await place.allow(place.password)
        place.folder = folder
        if service == "Docker":
            await self._give_engine(place)
        elif service == "SQS":
            # What was handed out on a connection that breaks is hidden for so long; nobody can help that.
            place.more = {"SQS_VISIBILITY_SECONDS": "10"}
        place.worker = WorkerUnderTest(self._stack, place.folder, place.settings())
        await enter(place.worker)
        await self._warm_up(place)
        if service == "Redis":
            place.cloudwatch.hang()
        elif service == "S3":
            place.refuses = throttle_metrics
        elif service == "SQS":
            await place.cloudwatch.cut()
        return place

    async def _give_engine(self, place: Place) -> None:
        """An engine, and a small disk, of its own."""
        engine = engines.own_engine({})
        place.engine = await asyncio.to_thread(engine.__enter__)
        self._opened.push_async_callback(asyncio.to_thread, engine.__exit__, None, None, None)
        image = await asyncio.to_thread(subprocess.check_output, ["docker", "save", IMAGE])
        await asyncio.to_thread(place.engine.docker, "load", input=image)
        disk = place.folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", disk], check=True)
        self._opened.push_async_callback(asyncio.to_thread, unmount, disk)
        place.more = {f"DOCKER_{runtime.upper()}_IMAGE": IMAGE for runtime in Runtime} | {
            "DOCKER_HOST": place.engine.address,
            "DOCKER_WORK_DIR_ROOT": str(place.folder / "tasks"),
            "CODE_CACHE_DIR": str(disk),
            "MIN_FREE_DISK_MB": "16",
        }

    async def _warm_up(self, place: Place) -> None:
        """From here on the code is in the cache."""
        place.key = await place.worker.upload({"main.py": SOURCE})
        message = place.message()
        await place.send(message)

        async def is_answered() -> bool:
            return await place.server.client.exists(f"job:{message['requestId']}") == 1

        await until(is_answered)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ends(stack: EmbeddedStack) -> AsyncIterator[dict[tuple[str, str], asyncio.Future[None]]]:
    """How every step ends, each as soon as it does."""
    async with AsyncExitStack() as opened:
        # Not pytest's own folder: the sockets below it would have too long a path.
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="na-outages-")))
        course = Course(stack, folder, opened)
        services = [service for service in STEPS if service != "Docker" or engines.why_none() is None]
        runs = [asyncio.create_task(course.run(service)) for service in services]
        try:
            yield course.ends
        finally:
            await asyncio.wait(runs)


@pytest.mark.parametrize(("service", "step"), CASES)
async def test_an_outage(service: str, step: str, ends: dict[tuple[str, str], asyncio.Future[None]]):
    if service == "Docker" and (reason := engines.why_none()) is not None:
        pytest.skip(reason)
    await ends[service, step]
