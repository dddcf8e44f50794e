"""Background tasks: each is started in one place, and its function comes back after an unexpected error."""

from __future__ import annotations

import ast
import asyncio
import os
import socket
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
import structlog
from structlog.testing import capture_logs

import nanoagent
from nanoagent import app
from nanoagent.aws.interruption import InterruptionNotice
from nanoagent.broker.sqs import SqsBroker
from nanoagent.code.code_cache import CodeTree
from nanoagent.common.backoff import Backoff
from nanoagent.common.units import MIB
from nanoagent.container import engine_watch, retirement
from nanoagent.container.policy import GENERIC_MEMORY_MB, Binding
from nanoagent.container.pool import Pool
from nanoagent.host import untrusted_fds
from nanoagent.host.background import KINDS, Background, TaskName, next_pause_s
from nanoagent.jobs.admission import Admission
from nanoagent.jobs.attempt import Attempt
from nanoagent.jobs.byte_code import ByteCode, ByteCodeParts, Compilation
from nanoagent.model.job import Runtime
from nanoagent.results.base import Claim
from nanoagent.results.cancellations import RedisCancellations
from nanoagent.results.live_log import BEGINNING, Kind
from nanoagent.results.memory import MemoryResultStore
from nanoagent.results.redis import RedisResultStore
from nanoagent.results.server import RedisServer
from nanoagent.results.spool import Spool
from nanoagent.selftest import schedule as schedule_module
from nanoagent.selftest.schedule import SelfTestSchedule
from nanoagent.telemetry import systemd
from nanoagent.telemetry.cloudwatch import PeakMemoryReporter
from nanoagent.telemetry.metrics import Metrics
from nanoagent.telemetry.status import Health
from nanoagent.wiring import interruption
from nanoagent.worker.live_logs import LiveLogs, Policy
from nanoagent.worker.readiness import ReadinessCheck, ReadinessChecks
from support.agents.worker_rig import Rig
from support.doubles.fake_driver import FakeDriver, fake_policy
from support.doubles.fakes import DEADLINE_S, make_job, make_settings, message
from support.sandboxes.containers import worker_home

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from nanoagent.code.byte_code_cache import ByteCodeCache

SOURCES: Final = Path(nanoagent.__file__).parent
HOUR_S: Final = 3600.0
QUICK: Final[dict[str, Any]] = {"pause_s": 0.001, "pause_max_s": 0.01, "trial_s": 0.001}


class Unexpected(Exception):  # noqa: N818 - no module expects it
    """An error that nothing in the worker knows."""


# --- how a kept task is treated


class Reports:
    """What `Background` has said."""

    def __init__(self, **options: float) -> None:
        self.failed: Counter[TaskName] = Counter()
        self.said: list[tuple[bool, str]] = []
        self.changed = asyncio.Event()
        self.background = Background(self._count, self._report, **(QUICK | options))

    def _count(self, name: TaskName) -> None:
        self.failed[name] += 1

    def _report(self, ok: bool, reason: str) -> None:  # noqa: FBT001 - as `Health.set` has it
        self.said.append((ok, reason))
        self.changed.set()

    async def until_ready(self, *, ready: bool) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not self.said or self.said[-1][0] is not ready:
                self.changed.clear()
                await self.changed.wait()


async def test_a_task_that_fails_is_logged_counted_and_started_again():
    reports, runs, again = Reports(), 0, asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs <= 2:
            raise Unexpected
        again.set()
        await asyncio.Event().wait()

    with capture_logs() as logs:
        task = reports.background.keep(TaskName.LEASE_RENEWAL, work)
        async with asyncio.timeout(DEADLINE_S):
            await again.wait()
    task.cancel()

    assert reports.failed == {TaskName.LEASE_RENEWAL: 2}
    failures = [entry for entry in logs if entry["event"] == "background task failed"]
    assert [entry["task"] for entry in failures] == ["lease_renewal"] * 2
    assert isinstance(failures[0]["exc_info"], Unexpected)


async def test_the_worker_is_unready_while_a_needed_task_is_down_and_ready_after_its_trial():
    reports = Reports(trial_s=0.001)
    failing = True

    async def work() -> None:
        if failing:
            raise Unexpected
        await asyncio.Event().wait()

    task = reports.background.keep(TaskName.CLAIM_RENEWAL, work)
    await reports.until_ready(ready=False)
    reason = reports.background.not_ready_reason()
    failing = False
    await reports.until_ready(ready=True)

    assert reason == reports.said[0][1]
    assert reason.startswith("the claims on requests are not renewed: the background task claim_renewal")
    assert "Unexpected" in reason
    assert reports.background.not_ready_reason() is None
    task.cancel()


async def test_a_task_on_trial_is_still_down():
    reports, runs, restarted = Reports(trial_s=HOUR_S), 0, asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise Unexpected
        restarted.set()
        await asyncio.Event().wait()

    task = reports.background.keep(TaskName.INTAKE, work)
    async with asyncio.timeout(DEADLINE_S):
        await restarted.wait()
    assert reports.background.not_ready_reason() is not None
    task.cancel()
    await asyncio.wait({task})
    assert reports.background.not_ready_reason() is None  # it was stopped


async def test_a_task_that_no_job_needs_does_not_touch_readiness():
    reports, runs, again = Reports(), 0, asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise Unexpected
        again.set()
        await asyncio.Event().wait()

    task = reports.background.keep(TaskName.CLOUDWATCH, work)
    async with asyncio.timeout(DEADLINE_S):
        await again.wait()
    assert reports.said == []
    assert reports.failed == {TaskName.CLOUDWATCH: 1}
    task.cancel()


async def test_a_cancelled_future_of_someone_else_does_not_end_a_task():
    reports, runs, again = Reports(), 0, asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        again.set()
        await asyncio.Event().wait()

    task = reports.background.keep(TaskName.LEASE_EXPIRY, work)
    async with asyncio.timeout(DEADLINE_S):
        await again.wait()
    assert reports.failed == {TaskName.LEASE_EXPIRY: 1}
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_a_pause_ends_when_the_task_has_to_come_to_its_end():
    reports = Reports(pause_s=HOUR_S, pause_max_s=HOUR_S)
    until, runs = asyncio.Event(), 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise Unexpected

    task = reports.background.keep(TaskName.INTAKE, work, until=until)
    await reports.until_ready(ready=False)
    until.set()
    async with asyncio.timeout(DEADLINE_S):
        await task
    assert runs == 2


async def test_the_log_of_a_task_has_no_fields_of_the_job_that_started_it():
    fields: dict[str, Any] = {}

    async def work() -> None:
        fields.update(structlog.contextvars.get_contextvars())

    with structlog.contextvars.bound_contextvars(request_id="r1"):
        await Reports().background.keep(TaskName.LEASE_RENEWAL, work)
    assert fields == {}


async def test_a_short_task_that_fails_is_logged_and_counted():
    reports = Reports()
    held: set[asyncio.Task[Any]] = set()

    async def work() -> None:
        raise Unexpected

    task = reports.background.once(TaskName.CLAIM_RELEASE, work(), held)
    assert held == {task}
    with capture_logs() as logs:
        await asyncio.wait({task})
        await asyncio.sleep(0)
    assert (held, reports.failed) == (set(), {TaskName.CLAIM_RELEASE: 1})
    assert [entry["task"] for entry in logs] == ["claim_release"]


@pytest.mark.parametrize(
    ("failures", "ran_s", "expected"),
    [(0, 0, 1), (1, 0, 2), (5, 5, 32), (6, 5, 40), (7, 40, 40), (7, 41, 1)],
)
def test_the_pause_doubles_and_begins_anew_after_a_long_run(failures, ran_s, expected):
    assert next_pause_s(Backoff(1, 40, failures=failures), ran_s) == expected


def test_failures_are_counted_for_every_task_from_the_start():
    metrics = Metrics()
    metrics.worker.background_task_failed(TaskName.WATCHDOG)
    value = metrics.registry.get_sample_value
    for name in TaskName:
        expected = 1 if name is TaskName.WATCHDOG else 0
        assert value("worker_background_task_failures_total", {"task": name}) == expected


async def test_no_jobs_are_taken_while_a_needed_task_is_down(tmp_path):
    rig = Rig(tmp_path)
    background = rig.worker.background
    background._set_down(TaskName.CLAIM_RENEWAL, Unexpected())
    async with rig.running():
        reason = await rig.worker._checks.reason()
        assert reason is not None
        assert "claim_renewal" in reason
        background._set_up(TaskName.CLAIM_RENEWAL)
        await rig.broker.send(message("r1"))
        await rig.until_settled()


# --- where tasks are started

STARTS: Final = {
    *("create_task", "ensure_future", "Thread", "Timer", "call_later", "call_at", "TaskGroup"),
    *("ThreadPoolExecutor", "run_coroutine_threadsafe", "start_new_thread"),
}
# Each of these is awaited or cancelled by the code that starts it, or happens once.
ENDS_WITH_ITS_CALLER: Final = {
    ("app.py", "_start"): "the start, awaited there",
    ("broker/sqs.py", "SqsBroker.receive"): "one poll, awaited, or left to message_return",
    ("broker/sqs_leases.py", "Leases._renew_all"): "one round's batches, awaited there",
    ("broker/sqs_deletions.py", "Deletions.add"): "one timer for one batch; the next batch sets another",
    ("code/fresh_trees.py", "FreshTrees.remember"): "one timer for one entry",
    ("code/single_flight.py", "SingleFlight._start"): "one fetch, awaited by all that want it",
    ("code/unpacking.py", "_for_each"): "threads that unpack one archive, joined there",
    ("container/docker.py", "DockerDriver.create"): "one container, awaited there",
    ("container/execution.py", "_sampled.again"): "samples of one run; ends with it",
    ("dev/develop.py", "run"): "no part of a worker",
    ("dev/exec/command.py", "_run_until_changed"): "one run, awaited there",
    ("dev/exec/command.py", "_watch"): "one wait for a change, awaited or cancelled there",
    ("dev/local_services/calls.py", "ServiceCalls.__enter__"): "no part of a worker",
    ("dev/local_services/calls.py", "ServiceCalls._submit"): "no part of a worker",
    ("dev/local_services/stack.py", "_run_in_thread"): "no part of a worker",
    ("network/egress.py", "Egress.find"): "one lookup, awaited there",
    ("network/egress.py", "Egress._resolve"): "its threads run one lookup at a time, each awaited",
    ("network/egress.py", "RunEgress._relay"): "one connection's two directions, awaited there",
    ("network/listeners.py", "Network.__init__"): "its threads accept one connection at a time, each awaited",
    ("network/run_tasks.py", "RunTasks.start"): "ends with its run, which waits for it",
    ("network/acceptor.py", "Acceptor._accept"): "one timer for one accept",
    ("jobs/capsules.py", "Capsules.keep"): "one capsule; its failure is logged, closing waits for it",
    ("jobs/outputs.py", "OutputUploader.upload"): "awaited there",
    ("secrets/cache.py", "SecretCache._join"): "one read, awaited by the jobs that share it",
    ("secrets/cache.py", "SecretCache._ask"): "one timer for one cached answer",
    ("supervisor/stream.py", "FrameStream.receive"): "one timer for one frame",
    ("results/redis.py", "RedisResultStore.claim"): "one call, awaited there or by what releases the claim",
    ("results/cancellations.py", "RedisCancellations.watch"): "one timer for one job",
    ("results/cancellations.py", "RedisCancellations._use"): "awaited there; their failures are raised",
    ("storage/health.py", "StoreHealth._probe_shared"): "one probe, awaited by those that share it",
    ("host/threads.py", "in_thread"): "awaited there",
    ("host/shielding.py", "uninterrupted"): "awaited there",
    ("worker/answer.py", "Answer._cancel"): "one timer for one job",
    ("worker/drain.py", "Drain._let_finish"): "awaited there",
    (
        "worker/inflight.py",
        "InFlight.__init__",
    ): "one delivery; its failure is logged, the drain waits for it",
    ("worker/publishing.py", "Publisher.publish"): "awaited there",
    ("worker/readiness.py", "ReadinessChecks.reason"): "one look, awaited by those that share it",
    ("worker/worker.py", "Worker.run"): "awaited there",
}


def calls_in(path: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in a file: the function that it stands in, the last part of what is called, the call."""

    def below(node: ast.AST, inside: str) -> Iterator[tuple[str, str, ast.Call]]:
        for child in ast.iter_child_nodes(node):
            is_scope = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            scope = f"{inside}.{child.name}".lstrip(".") if is_scope else inside  # type: ignore[attr-defined]
            if isinstance(child, ast.Call):
                called = child.func
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                yield inside, name, child
            yield from below(child, scope)

    return below(ast.parse(path.read_text()), "")


def sources() -> Iterator[tuple[str, Path]]:
    for path in SOURCES.rglob("*.py"):
        if not {"programs", "templates"} & set(path.parts):  # these run in containers
            yield path.relative_to(SOURCES).as_posix(), path


def test_tasks_are_started_in_one_place_or_end_with_their_caller():
    found = {
        (module, inside)
        for module, path in sources()
        if module != "host/background.py"
        for inside, name, _ in calls_in(path)
        if name in STARTS
    }
    assert found == set(ENDS_WITH_ITS_CALLER)


def test_each_background_task_is_started_once_and_as_its_kind_has_it():
    started: dict[str, list[bool]] = {}
    for _, path in sources():
        for _, name, call in calls_in(path):
            if name not in {"keep", "once", "keep_thread"} or not call.args:
                continue
            first = call.args[0]
            if isinstance(first, ast.Attribute) and getattr(first.value, "id", "") == "TaskName":
                started.setdefault(first.attr, []).append(name != "once")
    assert started == {name.name: [KINDS[name].kept] for name in TaskName}


def test_every_background_task_has_a_kind_and_a_recovery():
    assert set(KINDS) == set(TaskName) == set(RECOVERIES)


# --- the function of each comes back


class Fault:
    """Raises an unexpected error once, in place of a method, which works again afterwards."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self._monkeypatch = monkeypatch
        self.setattr = monkeypatch.setattr
        self.folder = tmp_path
        self.raised = 0
        self.metrics = Metrics()
        self.health = Health()
        self.background = Background(self.metrics.worker.background_task_failed, **QUICK)

    def once(self, owner: object, method: str) -> None:
        works = getattr(owner, method)
        is_async = asyncio.iscoroutinefunction(works)
        before = self.raised

        def fail_or(*args: Any, **kwargs: Any) -> Any:
            if self.raised == before:
                self.raised += 1
                raise Unexpected(method)
            return works(*args, **kwargs)

        async def fail_or_await(*args: Any, **kwargs: Any) -> Any:
            return await fail_or(*args, **kwargs)

        self._monkeypatch.setattr(owner, method, fail_or_await if is_async else fail_or)

    def failures(self, name: TaskName) -> float:
        labels = {"task": str(name)}
        return self.metrics.registry.get_sample_value("worker_background_task_failures_total", labels) or 0.0


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


class Queue:
    """SQS, as far as a broker with one message asks it."""

    def __init__(self) -> None:
        self.renewed = self.deleted = self.asked = self.shown = 0
        self.grants = True
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def receive_message(self, **_: Any) -> dict[str, Any]:
        await self.may_answer.wait()
        return {"Messages": [{"MessageId": "m", "ReceiptHandle": "r", "Body": "{}"}]}

    async def change_message_visibility_batch(self, **_: Any) -> dict[str, Any]:
        self.renewed += 1
        return {"Successful": [{"Id": "0"}]} if self.grants else {}

    async def change_message_visibility(self, **_: Any) -> None:
        self.shown += 1

    async def delete_message_batch(self, **_: Any) -> dict[str, Any]:
        self.deleted += 1
        return {}

    async def get_queue_attributes(self, **_: Any) -> dict[str, Any]:
        self.asked += 1
        return {}


@asynccontextmanager
async def sqs(fault: Fault, *, visibility_s: int = 3600) -> AsyncIterator[tuple[SqsBroker, Queue]]:
    queue = Queue()
    options: dict[str, Any] = {"dlq_url": None, "wait_s": 0, "visibility_s": visibility_s}
    broker = SqsBroker(queue, "http://127.0.0.1:9/q", background=fault.background, **options)
    try:
        yield broker, queue
    finally:
        await broker.close()


async def intake(fault: Fault) -> None:
    rig = Rig(fault.folder, background=fault.background)
    fault.once(rig.worker._shared.capacity, "room")
    async with rig.running():
        await rig.broker.send(message("r1"))
        await rig.until_settled()


async def readiness_checks(fault: Fault) -> None:
    async def look() -> str | None:
        return "closed"

    gates = ReadinessChecks([ReadinessCheck("part", look)], fault.health)
    fault.once(gates, "_report")
    task = fault.background.keep(TaskName.READINESS_CHECKS, gates.watch)
    await until(lambda: fault.health.document()["parts"].get("part") == {"ok": False, "reason": "closed"})
    task.cancel()


async def lease_renewal(fault: Fault) -> None:
    async with sqs(fault) as (broker, queue):
        fault.once(broker._leases, "_renew_all")
        await broker.receive(1)
        await until(lambda: queue.renewed)


async def lease_expiry(fault: Fault) -> None:
    async with sqs(fault, visibility_s=1) as (broker, queue):
        queue.grants = False
        fault.once(broker._leases, "_lose")
        (delivery,) = await broker.receive(1)
        async with asyncio.timeout(DEADLINE_S):
            assert await delivery.lost == "not renewed in time"


async def redrive_policy(fault: Fault) -> None:
    async with sqs(fault) as (broker, queue):
        fault.once(broker._redrive, "read")
        await broker.receive(1)
        await until(lambda: queue.asked)


async def message_deletion(fault: Fault) -> None:
    async with sqs(fault) as (broker, queue):
        (delivery,) = await broker.receive(1)
        fault.once(queue, "delete_message_batch")
        await broker.ack(delivery)
        await until(lambda: queue.deleted)


async def message_return(fault: Fault) -> None:
    async with sqs(fault) as (broker, queue):
        for _ in range(2):
            fault.once(broker, "_return") if not fault.raised else None
            queue.may_answer.clear()
            poll = asyncio.create_task(broker.receive(1))
            await asyncio.sleep(0)
            poll.cancel()
            await asyncio.wait({poll})
            queue.may_answer.set()
            await until(lambda: not broker._short_tasks)
        assert queue.shown == 1  # of the second poll; what the first brought comes back by itself


async def claim_renewal(fault: Fault) -> None:
    renewed = asyncio.Event()

    async def evaluate(doing: str, *calls: object) -> list[Any]:
        if doing == "renew claims":
            renewed.set()
            return [1] * len(calls)
        return [b"claimed 1 0 0 0"]

    result_store = RedisResultStore(RedisServer("127.0.0.1", 9), claim_s=0.01, background=fault.background)
    fault.setattr(result_store._connections, "run_scripts", evaluate)
    fault.once(result_store, "_renew_all")
    await result_store.claim("r")
    async with asyncio.timeout(DEADLINE_S):
        await renewed.wait()
    await result_store.close()


async def claim_release(fault: Fault) -> None:
    result_store = RedisResultStore(RedisServer("127.0.0.1", 9), background=fault.background)
    released = asyncio.Event()

    async def evaluate(doing: str, *_: object) -> list[Any]:
        if doing == "release":
            released.set()
            return [0]
        await asyncio.sleep(0.01)
        return [(0, 0, 0)]

    fault.setattr(result_store._connections, "run_scripts", evaluate)
    fault.once(result_store, "_release")
    for _ in range(2):
        claim = asyncio.create_task(result_store.claim("r"))
        await asyncio.sleep(0)
        claim.cancel()
        await asyncio.wait({claim})
        await until(lambda: not result_store._releases)
    assert released.is_set()
    await result_store.close()


async def result_delivery(fault: Fault) -> None:
    result_store = MemoryResultStore()
    spool = Spool(fault.folder / "results", result_store, 2**20, lambda _, __: None, fault.background)
    await spool.open()
    claims = [await result_store.claim(request) for request in ("a", "b")]
    fault.once(result_store, "publish")
    for claim in claims:
        assert isinstance(claim, Claim)
        delivered = await spool.keep(claim, b"{}")
    async with asyncio.timeout(DEADLINE_S):
        assert await delivered
        await spool.delivered("a")
    await spool.close()


class Subscriber:
    """A connection that is told of each cancellation that it subscribes to."""

    def __init__(self) -> None:
        self.replies: asyncio.Queue[Any] = asyncio.Queue()

    async def connect(self) -> None:
        pass

    async def disconnect(self, *, nowait: bool) -> None:
        pass

    async def send_packed_command(self, packed: bytes, *, check_health: bool) -> None:
        verb, channel = packed.split()
        self.replies.put_nowait([verb.lower(), channel, 1])

    async def read_response(self) -> Any:
        return await self.replies.get()


def cancellations_of(fault: Fault, *, is_set: bool) -> RedisCancellations:
    async def look(_: str) -> bool:
        return is_set

    return RedisCancellations(
        lambda: cast("Any", Subscriber()),
        lambda words: " ".join(words).encode(),
        look,
        background=fault.background,
    )


async def cancellations(fault: Fault) -> None:
    received = asyncio.Event()
    listening = cancellations_of(fault, is_set=True)
    fault.once(listening, "_read")
    listening.watch("r", received.set)
    async with asyncio.timeout(DEADLINE_S):
        await received.wait()
    await listening.close()


async def cancellation_lookup(fault: Fault) -> None:
    received = asyncio.Event()
    listening = cancellations_of(fault, is_set=True)
    fault.once(listening, "_look_up")
    listening.watch("r", lambda: None)
    await until(lambda: fault.raised and not listening._lookups)
    listening.watch("s", received.set)
    async with asyncio.timeout(DEADLINE_S):
        await received.wait()
    await listening.close()


@asynccontextmanager
async def filled_pool(fault: Fault, before: Callable[[Pool, FakeDriver], object]) -> AsyncIterator[Any]:
    """A pool with one generic container; `before` is called before it starts."""
    fault.setattr(retirement, "_SWEEP_S", 0.001)
    for interval in ("_CHECK_EVERY_S", "_EVENTS_RETRY_S"):
        fault.setattr(engine_watch, interval, 0.001)
    driver = FakeDriver()
    policy = fake_policy(sizes=dict.fromkeys(Runtime, 0) | {Runtime.PYTHON: 1})
    with worker_home() as home:
        pool = Pool(driver, home, policy, fault.metrics, fault.health, background=fault.background)
        before(pool, driver)
        await pool.start()
        try:
            yield pool, driver
        finally:
            await pool.close()
            await driver.close()


async def pool_sweep(fault: Fault) -> None:
    async with filled_pool(fault, lambda pool, _: fault.once(pool._retirement, "sweep_once")) as (
        pool,
        driver,
    ):
        await pool.filled()
        await until(lambda: fault.raised)
        pool._inventory.all_idle()[0].made_at -= HOUR_S
        await until(lambda: driver.removed)


async def engine_events(fault: Fault) -> None:
    async with filled_pool(fault, lambda pool, _: fault.once(pool._watch, "_died")) as (pool, driver):
        await pool.filled()
        driver._deaths.put_nowait("of no container of ours")
        await until(lambda: fault.raised)
        await until(lambda: driver.created)
        driver._deaths.put_nowait(next(iter(driver.running)))
        await until(lambda: driver.removed)


async def engine_check(fault: Fault) -> None:
    async with filled_pool(fault, lambda _, __: fault.once(FakeDriver, "ping")) as (pool, driver):
        await until(lambda: fault.raised)
        driver.away = "gone"
        await until(lambda: pool.unavailable_reason)


async def container_creation(fault: Fault) -> None:
    async with filled_pool(fault, lambda _, __: fault.once(FakeDriver, "create")) as (pool, driver):
        await until(lambda: driver.created)
        assert pool.unavailable_reason is None


async def container_removal(fault: Fault) -> None:
    async with filled_pool(fault, lambda _, __: None) as (pool, driver):
        await pool.filled()
        fault.once(FakeDriver, "remove")
        (fault.folder / "pack").write_text("a pack")
        async with pool.acquire(binding_of(fault.folder / "pack")):
            pass  # not clean: its container is removed
        await until(lambda: fault.raised)
        await until(lambda: driver.removed)  # as a stray one


def binding_of(tree: Path) -> Binding:
    return Binding(
        runtime=Runtime.PYTHON,
        function_id="f",
        digest="d",
        memory_mb=GENERIC_MEMORY_MB,
        cpus=1.0,
        most_cpus=2.0,
        tree=tree,
        tree_bytes=1,
    )


async def cloudwatch(fault: Fault) -> None:
    sent = asyncio.Event()

    class Sender:
        async def send(self, data: object) -> None:
            sent.set()

    async with PeakMemoryReporter(Sender(), 0.001, fault.metrics, fault.background) as reporter:
        fault.once(reporter, "flush")
        reporter.record("f", "python", 1, 0.0)
        async with asyncio.timeout(DEADLINE_S):
            await sent.wait()


async def byte_code_compilation(fault: Fault) -> None:
    class Cache:
        async def pin_code(self, _digest: str) -> None:
            """Answer that the tree was evicted."""

    outcomes: list[Compilation] = []
    now_s = 0.0
    settings = make_settings()
    parts = ByteCodeParts(
        settings=settings,
        cache=cast("ByteCodeCache", Cache()),
        admission=Admission(settings.worker_memory_mb, settings.worker_cpus),
        pool=cast("Pool", None),
        staging=fault.folder,
        background=fault.background,
        observe=outcomes.append,
        delay_s=0,
        clock=lambda: now_s,
    )
    byte_code = ByteCode(parts)
    fault.once(byte_code, "_compile_pinned")
    tree = CodeTree("digest", fault.folder, 1, 1)
    for _ in range(2):
        byte_code.compile_later(tree)
        await byte_code.settled()
        now_s += 3600  # a failed compilation is not repeated at once
    assert outcomes == [Compilation.FAILED, Compilation.NO_ROOM]


async def self_test(fault: Fault) -> None:
    tested: Counter[Runtime] = Counter()

    class Suite:
        async def run(self, runtime: Runtime) -> list[Any]:
            tested[runtime] += 1
            return []

    fault.setattr(schedule_module, "_IDLE_POLL_S", 0.001)
    suite = cast("Any", Suite())
    schedule = SelfTestSchedule(suite, lambda: True, fault.metrics, fault.health, 0.001, fault.background)
    fault.once(schedule, "_wait_until_idle")
    await schedule.start()
    await until(lambda: tested[Runtime.PYTHON] > 1)
    await schedule.close()


async def interruption_notices(fault: Fault) -> None:
    class Notices:
        async def watch(self, heard: Callable[[InterruptionNotice], object]) -> None:
            heard(InterruptionNotice("the machine ends"))
            await asyncio.Event().wait()

    rig = Rig(fault.folder, background=fault.background)
    notices = Notices()
    fault.once(notices, "watch")
    async with rig.running(), AsyncExitStack() as opened:
        interruption.drain_on_notice(cast("Any", notices), rig.worker, rig.settings, opened)
        await until(lambda: "drain" in rig.health.document()["parts"])


async def watchdog(fault: Fault) -> None:
    fault.setattr(os, "environ", os.environ | {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(os.getpid())})
    told: list[str] = []
    fault.setattr(systemd, "notify", told.append)
    fault.once(systemd, "notify")
    task = fault.background.keep(TaskName.WATCHDOG, app._feed_watchdog)
    await until(lambda: told)
    task.cancel()


async def descriptor_closing(fault: Fault) -> None:
    fault.once(untrusted_fds, "_close")
    # Threads of earlier tests wait with the working function. Each of them closes one descriptor with it.
    while not fault.raised:
        descriptor = socket.socket(socket.AF_UNIX).detach()
        untrusted_fds.close(descriptor)
        await until(partial(_is_closed_or_raised, descriptor, fault))
    os.close(descriptor)
    closed = socket.socket(socket.AF_UNIX).detach()
    untrusted_fds.close(closed)
    await until(lambda: not is_open(closed))


def _is_closed_or_raised(descriptor: int, fault: Fault) -> bool:
    return bool(fault.raised) or not is_open(descriptor)


def is_open(descriptor: int) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").exists()


async def live_log(fault: Fault) -> None:
    result_store = MemoryResultStore()
    claim = await result_store.claim("r")
    assert isinstance(claim, Claim)
    store = result_store.live_log(max_bytes=MIB)
    policy = Policy(is_on=True, is_always=False, bytes_per_s=MIB, max_jobs=1, worker_id="w")
    logs = LiveLogs(store, policy, fault.background)
    followed = logs.open(claim, Attempt(make_job(), 1))
    fault.once(store, "append")
    followed.follow()
    await until(lambda: fault.raised and not logs._tasks)
    followed.follow()  # as when the follower renews its lease
    records = await store.read("r", BEGINNING, DEADLINE_S)
    assert [record.kind for _, record in records] == [Kind.STARTED]
    followed.end(None)
    await logs.close()


RECOVERIES: Final[dict[TaskName, Callable[[Fault], Awaitable[None]]]] = {
    TaskName.INTAKE: intake,
    TaskName.LIVE_LOG: live_log,
    TaskName.READINESS_CHECKS: readiness_checks,
    TaskName.LEASE_RENEWAL: lease_renewal,
    TaskName.LEASE_EXPIRY: lease_expiry,
    TaskName.REDRIVE_POLICY: redrive_policy,
    TaskName.MESSAGE_DELETION: message_deletion,
    TaskName.MESSAGE_RETURN: message_return,
    TaskName.CLAIM_RENEWAL: claim_renewal,
    TaskName.CLAIM_RELEASE: claim_release,
    TaskName.RESULT_DELIVERY: result_delivery,
    TaskName.CANCELLATIONS: cancellations,
    TaskName.CANCELLATION_LOOKUP: cancellation_lookup,
    TaskName.POOL_SWEEP: pool_sweep,
    TaskName.ENGINE_EVENTS: engine_events,
    TaskName.ENGINE_CHECK: engine_check,
    TaskName.CONTAINER_CREATION: container_creation,
    TaskName.CONTAINER_REMOVAL: container_removal,
    TaskName.CLOUDWATCH: cloudwatch,
    TaskName.BYTE_CODE_COMPILATION: byte_code_compilation,
    TaskName.SELF_TEST: self_test,
    TaskName.INTERRUPTION_NOTICES: interruption_notices,
    TaskName.WATCHDOG: watchdog,
    TaskName.DESCRIPTOR_CLOSING: descriptor_closing,
}


@pytest.mark.parametrize("name", TaskName)
async def test_the_function_of_a_background_task_comes_back_after_an_unexpected_error(
    name: TaskName, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    fault = Fault(monkeypatch, tmp_path)
    await RECOVERIES[name](fault)
    assert fault.raised == 1
    await until(lambda: fault.failures(name) == 1)
