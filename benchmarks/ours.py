"""The arm "ours": the whole agent, as `nanoagent run` builds it, with a queue in this process.

The composition root of the agent makes every part: caches, pool, sandboxes, Redis, S3 client. Only the broker
is replaced. It measures the time from the receipt of a message until the message is settled, just after the
result is stored. So the time of a run includes the parsing of the message, but not the queue.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from benchmarks.timed_broker import JobFailed, TimedBroker, run_all
from redis import asyncio as redis

from nanoagent.container.isolation import HostIsolation
from nanoagent.jobs.byte_code import ByteCode
from nanoagent.model.result import Isolation
from nanoagent.wiring import assembly, containers, runs, services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from nanoagent.broker.base import Broker
    from nanoagent.config import Settings
    from nanoagent.jobs.byte_code import ByteCodeParts, Compilation

_JOB_DEADLINE_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Call:
    """A job, and its expected output.

    Attributes:
        message: The fields of the job without its requestId.
        expected: The expected output of the program.
    """

    message: Mapping[str, Any]
    expected: str


class Compilations:
    """Records the compilations of Python code in the background."""

    def __init__(self) -> None:
        self._compilers: list[ByteCode] = []
        self._ended: list[Compilation] = []

    def make(self, parts: ByteCodeParts) -> ByteCode:
        """Make the agent's compiler, and record how its compilations end."""

        def observe(ended: Compilation) -> None:
            self._ended.append(ended)
            parts.observe(ended)

        self._compilers.append(ByteCode(replace(parts, observe=observe)))
        return self._compilers[-1]

    async def settled(self) -> Compilation | None:
        """Wait as `AgentUnderTest.compiled` does, and return the same."""
        for compiler in self._compilers:
            await compiler.settled()
        ended, self._ended = self._ended, []
        return ended[-1] if ended else None


class AgentUnderTest:
    """A running agent; `agent_under_test` makes it.

    Args:
        worker_id: The ID of its worker.
        broker: Its queue.
        store: The Redis with its results.
        compilations: The compilations of Python code in the background.

    Attributes:
        levels: The isolation levels of all checked results.
    """

    def __init__(
        self,
        worker_id: str,
        broker: TimedBroker,
        store: redis.Redis,
        compilations: Compilations | None = None,
    ) -> None:
        self.worker_id = worker_id
        self._compilations = compilations or Compilations()
        self._broker = broker
        self._store = store
        self._count = 0
        self._unchecked: list[tuple[str, Call, asyncio.Future[float]]] = []
        self.levels: set[str] = set()

    async def send(self, call: Call) -> asyncio.Future[float]:
        """Queue one job. The result of the future is its time, ms. `results` checks its result."""
        self._count += 1
        request_id = f"{self.worker_id}-{self._count}"
        settled = await self._broker.submit(json.dumps({**call.message, "requestId": request_id}))
        self._unchecked.append((request_id, call, settled))
        return settled

    async def run(self, call: Call) -> float:
        """Run one job, and return its time, ms."""
        async with asyncio.timeout(_JOB_DEADLINE_S):
            return await (await self.send(call))

    async def run_many(self, call: Call, count: int) -> float:
        """Queue `count` jobs at once, wait for all, and return the total time, seconds."""
        begun = time.perf_counter()
        async with asyncio.timeout(_JOB_DEADLINE_S):
            await asyncio.gather(*[await self.send(call) for _ in range(count)])
        return time.perf_counter() - begun

    async def run_in_order(self, calls: Iterable[Call], at_once: int) -> list[float]:
        """Send jobs so that `at_once` of them are unsettled, and wait until all are settled.

        Returns:
            The time of each job, ms.
        """
        return await run_all(self.send, calls, at_once, deadline_s=_JOB_DEADLINE_S)

    async def compiled(self) -> Compilation | None:
        """Wait until no compilation of Python code is under way.

        Returns:
            How the last compilation since the last call has ended; None if there was none.
        """
        return await self._compilations.settled()

    async def results(self) -> list[dict[str, Any]]:
        """Check and return the stored results of all jobs that were settled since the last call.

        Raises:
            JobFailed: A result is missing, or is not the expected one.
        """
        sent, self._unchecked = self._unchecked, []
        # The futures of failed jobs have raised JobFailed.
        unchecked = [(name, call) for name, call, settled in sent if settled.done() and not _failed(settled)]
        if not unchecked:
            return []
        stored = await self._store.mget([f"job:{name}" for name, _ in unchecked])
        documents = []
        for (request_id, call), text in zip(unchecked, stored, strict=True):
            if text is None:
                raise JobFailed(f"{request_id}: no result is stored")
            document = json.loads(text)
            if document["status"] != "SUCCESS" or document["stdout"] != call.expected or document["stderr"]:
                shown = {name: document.get(name) for name in ("status", "errorMessage", "stdout", "stderr")}
                raise JobFailed(f"{call.message['functionId']}: {shown}")
            self.levels.add(str(document["isolation"]))
            documents.append(document)
        return documents


def _failed(settled: asyncio.Future[float]) -> bool:
    return settled.cancelled() or settled.exception() is not None


@asynccontextmanager
async def agent_under_test(settings: Settings, *, shared: bool = False) -> AsyncIterator[AgentUnderTest]:
    """Run an agent; it is ready at the start, and is drained and closed at the end.

    Args:
        settings: Its settings.
        shared: Whether it has the isolation level `shared`, as on a host without support for sandboxes.
    """
    broker = TimedBroker()

    async def this_broker(*_: object) -> Broker:
        return broker

    async def skip_checks(*_: object) -> None:
        """Skip the readiness checks: one of them uploads, and the stub of S3 accepts no uploads."""

    async def no_sandbox(*_: object, **__: object) -> HostIsolation:
        return HostIsolation(Isolation.SHARED, reason="the benchmark compares it with a sandbox")

    compilations = Compilations()

    async with AsyncExitStack() as opened:
        store = redis.Redis(host=settings.redis_host, port=settings.redis_port, db=settings.redis_db)
        opened.push_async_callback(store.aclose)
        with ExitStack() as patched:
            patched.enter_context(mock.patch.object(services, "open_broker", this_broker))
            patched.enter_context(mock.patch.object(assembly, "wait_until_ready", skip_checks))
            patched.enter_context(mock.patch.object(runs, "ByteCode", compilations.make))
            if shared:
                patched.enter_context(mock.patch.object(containers, "probe", no_sandbox))
            worker = await assembly.assemble(settings, opened)
        working = asyncio.create_task(worker.run())
        try:
            yield AgentUnderTest(settings.worker_id, broker, store, compilations)
        finally:
            worker.stop()
            await broker.close()
            await working
