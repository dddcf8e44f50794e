"""A worker on test doubles, which record its calls."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from nanoagent.broker.memory import MemoryBroker
from nanoagent.jobs.admission import Admission
from nanoagent.jobs.outputs import OutputUploader
from nanoagent.model import result as results
from nanoagent.results.base import Answered, Claim, Taken
from nanoagent.results.memory import MemoryResultStore
from nanoagent.results.spool import Spool
from nanoagent.storage.folder import FolderStore
from nanoagent.telemetry.metrics import Metrics
from nanoagent.telemetry.status import Health
from nanoagent.worker.live_logs import LiveLogs, Policy
from nanoagent.worker.parts import WorkerParts
from nanoagent.worker.worker import Worker
from support.doubles.fakes import DEADLINE_S, FakePool, Journal, ScriptedExecutor, finished, make_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.broker.base import Delivery
    from nanoagent.container.pool import Pool
    from nanoagent.host.background import Background
    from nanoagent.jobs.attempt import Attempt
    from nanoagent.jobs.capsules import Capsules
    from nanoagent.jobs.executor import Executor
    from nanoagent.model.job import Runtime
    from nanoagent.model.result import Result
    from nanoagent.telemetry.cloudwatch import PeakMemoryReporter

POLL_S = 3600  # a long poll ends when a message arrives or the poll is cancelled


class NotedBroker(MemoryBroker):
    """A broker that records its calls, and fails or waits if the test says so."""

    def __init__(self, journal: Journal, **options: Any) -> None:
        super().__init__(**({"wait_s": POLL_S} | options))
        self._journal = journal
        self.failures: dict[str, list[Exception]] = {}
        self.gates: dict[str, asyncio.Event] = {}

    async def _step(self, method: str, which: str) -> None:
        self._journal.note(f"{method}?", which)
        if method in self.gates:
            await self.gates[method].wait()
        if self.failures.get(method):
            raise self.failures[method].pop(0)

    async def receive(self, limit: int) -> list[Delivery]:
        await self._step("receive", str(limit))
        deliveries = await super().receive(limit)
        for delivery in deliveries:
            self._journal.note("delivered", delivery.body)
        return deliveries

    def _take(self, limit: int) -> list[Delivery]:
        deliveries = super()._take(limit)
        for body in self.redriven[self._journal.count("redriven") :]:
            self._journal.note("redriven", body)
        return deliveries

    async def ack(self, delivery: Delivery) -> None:
        await self._step("ack", delivery.body)
        await super().ack(delivery)
        self._journal.note("ack", name_of(delivery))

    async def nack(self, delivery: Delivery, delay_s: float, *, poison: bool = False) -> bool:
        await self._step("nack", delivery.body)
        is_back = await super().nack(delivery, delay_s, poison=poison)
        self._journal.note("give back" if is_back else "keep", name_of(delivery))
        return is_back

    async def dead_letter(self, delivery: Delivery, reason: str, attempts: int = 0) -> bool:
        await self._step("dead_letter", delivery.body)
        was_buried = await super().dead_letter(delivery, reason, attempts)
        if was_buried:
            self._journal.note("dead_letter", name_of(delivery))
        return was_buried

    async def redrives(self) -> bool:
        await self._step("redrives", "")
        return await super().redrives()


class NotedResultStore(MemoryResultStore):
    """A result store that records published results, and waits if the test says so."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal
        self.gates: dict[str, asyncio.Event] = {}

    async def _step(self, method: str, which: str = "") -> None:
        self._journal.note(f"{method}?", which)
        if method in self.gates:
            await self.gates[method].wait()

    async def claim(self, request_id: str, about: bytes = b"") -> Claim | Taken | Answered:
        await self._step("claim", request_id)
        claim = await super().claim(request_id, about)
        self._journal.note(type(claim).__name__.lower(), request_id)
        return claim

    async def publish(self, claim: Claim, document: bytes, entry: bytes = b"") -> bool:
        await self._step("publish", claim.request_id)
        published = await super().publish(claim, document, entry)
        self._journal.note("publish" if published else "refuse", claim.request_id)
        return published

    async def answer(self, request_id: str, document: bytes) -> None:
        """Answer a request as another worker would."""
        other = self.beside()
        claim = await other.claim(request_id)
        assert isinstance(claim, Claim)
        assert await other.publish(claim, document)

    async def ping(self) -> None:
        await self._step("ping")
        await super().ping()

    async def release(self, claim: Claim, *, failed: bool = False, entry: bytes = b"") -> int:
        await self._step("failed" if failed else "release", claim.request_id)
        return await super().release(claim, failed=failed, entry=entry)


class Reporter:
    """Records the values for CloudWatch."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, str, int]] = []

    def record(self, function_id: str, runtime: str, peak_bytes: int, at: float) -> None:
        self.recorded.append((function_id, runtime, peak_bytes))


class Rig:
    """A worker on test doubles."""

    def __init__(
        self,
        folder: Path,
        *,
        broker: dict[str, Any] | None = None,
        background: Background | None = None,
        capsules: Capsules | None = None,
        **changes: Any,
    ) -> None:
        (folder / "data").mkdir(exist_ok=True)
        self.journal = Journal()
        self.settings = make_settings(**changes)
        self.broker = NotedBroker(self.journal, **(broker or {}))
        self.result_store = NotedResultStore(self.journal)
        self.metrics = Metrics()
        self.spool_folder = folder / "results"
        self.spool = Spool(
            self.spool_folder,
            self.result_store,
            self.settings.result_spool_mb * 2**20,
            self.metrics.worker.spooled,
        )
        self.admission = Admission(
            self.settings.worker_memory_mb, self.settings.worker_cpus, self.settings.function_max_share
        )
        self.executor = ScriptedExecutor(self.admission, self.journal)
        self.pool = FakePool()
        self.health = Health()
        self.cloudwatch = Reporter()
        self.blocked: dict[Runtime, str] = {}
        self.live_log = self.result_store.live_log(max_bytes=self.settings.live_logs_max_bytes)
        policy = Policy(
            is_on=True,
            is_always=False,
            bytes_per_s=self.settings.live_logs_bytes_per_second,
            max_jobs=self.settings.live_logs_max_jobs,
            worker_id=self.settings.worker_id,
        )
        self.live_logs = LiveLogs(self.live_log, policy)
        parts = WorkerParts(
            settings=self.settings,
            broker=self.broker,
            result_store=self.result_store,
            cancellations=self.result_store,
            live_logs=self.live_logs,
            spool=self.spool,
            executor=cast("Executor", self.executor),
            outputs=OutputUploader(FolderStore(folder), self.settings, self.metrics),
            admission=self.admission,
            pool=cast("Pool", self.pool),
            metrics=self.metrics,
            health=self.health,
            cloudwatch=cast("PeakMemoryReporter", self.cloudwatch),
            capsules=capsules,
            blocked=self.blocked.get,
            on_drain=lambda: self.journal.note("drain"),
        )
        if background is not None:
            parts = replace(parts, background=background)
        self.worker = Worker(parts, jitter=lambda: 0.0)
        self._run: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        async def run() -> None:
            await self.spool.open()
            try:
                await self.worker.run()
            finally:
                await self.spool.close()

        self._run = asyncio.create_task(run())
        return self._run

    async def stopped(self) -> None:
        """Stop by force, and wait until the worker has ended."""
        self.worker.stop()
        self.worker.stop()
        assert self._run is not None
        async with asyncio.timeout(DEADLINE_S):
            await self._run

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Rig]:
        self.start()
        try:
            yield self
        finally:
            await self.stopped()

    async def until_settled(self, number: int = 1) -> None:
        await self.journal.until(lambda: self.journal.count("ack", "dead_letter") >= number)

    def hold(self, request_id: str) -> asyncio.Event:
        """Let the request run until the returned event is set."""
        gate = asyncio.Event()

        async def script(attempt: Attempt) -> Result:
            async with self.executor.running(attempt):
                await gate.wait()
            return finished(attempt)

        self.executor.scripts[request_id] = script
        return gate

    def processed(self, status: str, runtime: str = "python", model: str = "llama3:8b") -> float:
        labels = {"status": status, "runtime": runtime, "model": model}
        return self.metrics.registry.get_sample_value("worker_jobs_processed_total", labels) or 0.0

    def sample(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0

    def documents(self) -> list[Result]:
        return [results.decode(document) for _, document in self.result_store.published]


def name_of(delivery: Delivery) -> str:
    try:
        return str(json.loads(delivery.body)["requestId"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return delivery.body
