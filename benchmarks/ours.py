"""Our arm: the whole agent as `nanoagent run` builds it, but for its queue, which is in this process.

The agent's own composition root makes every part: caches, pool, sandboxes, Redis, S3 client. Only the broker
is replaced, by one that notes when it hands a message out and when the message is settled, which is right
after its result is stored. The time between is what a run is said to take: parsing included, the queue not.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from redis import asyncio as redis

from nanoagent.broker.base import Delivery
from nanoagent.container.isolation import HostIsolation
from nanoagent.model.result import Isolation
from nanoagent.wiring import assembly, containers, services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from nanoagent.broker.base import Broker
    from nanoagent.config import Settings

_JOB_DEADLINE_S: Final = 120.0


class JobFailed(Exception):  # noqa: N818 - says what happened to the job
    """A job did not end as it should."""


@dataclass(eq=False, slots=True)
class _Sent:
    """A message, and how long it took: from being handed out until it was settled, ms."""

    number: int
    body: str
    settled: asyncio.Future[float]
    handed_out_at: float = 0.0


class TimingBroker:
    """A `Broker` whose queue is a list in this process."""

    def __init__(self) -> None:
        self._waiting: deque[_Sent] = deque()
        self._held: dict[Delivery, _Sent] = {}
        self._changed = asyncio.Event()
        self._closed = False
        self._count = 0

    def send(self, body: str) -> asyncio.Future[float]:
        """Queue a message; the future's result is how long it took once it was handed out, ms."""
        self._count += 1
        sent = _Sent(self._count, body, asyncio.get_running_loop().create_future())
        self._waiting.append(sent)
        self._changed.set()
        return sent.settled

    async def receive(self, limit: int) -> list[Delivery]:
        """Up to `limit` messages as soon as there are any; none only when the broker is closed."""
        while not self._waiting and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        batch = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
        return [self._handed_out(sent) for sent in batch]

    def _handed_out(self, sent: _Sent) -> Delivery:
        now = time.time()
        delivery = Delivery(f"m{sent.number}", f"r{sent.number}", sent.body, 1, now, now)
        self._held[delivery] = sent
        sent.handed_out_at = time.perf_counter()
        return delivery

    async def ack(self, delivery: Delivery) -> None:
        """The result is stored: the clock stops."""
        now = time.perf_counter()
        sent = self._held.pop(delivery)
        if not sent.settled.done():
            sent.settled.set_result((now - sent.handed_out_at) * 1000)

    def is_last(self, delivery: Delivery) -> bool:
        """There is no redrive policy."""
        del delivery
        return False

    async def nack(self, delivery: Delivery, delay_s: float, *, poison: bool = False) -> bool:
        """A failure here: a benchmark's jobs have nothing to be tried again for."""
        del delay_s, poison
        self._failed(delivery, "given back")
        return True

    async def dead_letter(self, delivery: Delivery, reason: str, attempts: int = 0) -> bool:
        """Likewise."""
        del attempts
        self._failed(delivery, reason)
        return True

    def _failed(self, delivery: Delivery, reason: str) -> None:
        sent = self._held.pop(delivery)
        if not sent.settled.done():
            sent.settled.set_exception(
                JobFailed(f"a job was not finished: {reason} (the agent's log says why)")
            )

    async def redrives(self) -> bool:
        """There is no redrive policy."""
        return False

    async def verify(self) -> None:
        """Succeed: this queue is always available."""

    async def close(self) -> None:
        """Let a waiting `receive` return."""
        self._closed = True
        self._changed.set()


@dataclass(frozen=True, slots=True)
class Call:
    """A kind of job, and what must come of it.

    Attributes:
        message: The job without its requestId.
        expected: What the program must print.
    """

    message: Mapping[str, Any]
    expected: str


class AgentUnderTest:
    """A running agent; made by `agent_under_test`.

    Args:
        worker_id: The agent's name.
        broker: Its queue.
        store: Where its results are.
    """

    def __init__(self, worker_id: str, broker: TimingBroker, store: redis.Redis) -> None:
        self.worker_id = worker_id
        self._broker = broker
        self._store = store
        self._count = 0
        self._unchecked: list[tuple[str, Call, asyncio.Future[float]]] = []
        self.levels: set[str] = set()

    def send(self, call: Call) -> asyncio.Future[float]:
        """Queue one job; the future is how long it takes, ms. `results` checks what came of it."""
        self._count += 1
        request_id = f"{self.worker_id}-{self._count}"
        settled = self._broker.send(json.dumps({**call.message, "requestId": request_id}))
        self._unchecked.append((request_id, call, settled))
        return settled

    async def run(self, call: Call) -> float:
        """Queue one job and wait; ms."""
        async with asyncio.timeout(_JOB_DEADLINE_S):
            return await self.send(call)

    async def run_many(self, call: Call, count: int) -> float:
        """Queue as many jobs at once and wait for all; seconds from the first to the last."""
        begun = time.perf_counter()
        async with asyncio.timeout(_JOB_DEADLINE_S):
            await asyncio.gather(*(self.send(call) for _ in range(count)))
        return time.perf_counter() - begun

    async def results(self) -> list[dict[str, Any]]:
        """The results of all jobs that were settled since the last call, as they are stored, each checked.

        Raises:
            JobFailed: One is missing, or is not what it should be.
        """
        sent, self._unchecked = self._unchecked, []
        # Of those that failed, whoever waited for them was told.
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
    """An agent that is ready; drained and closed at the end.

    Args:
        settings: Its settings.
        shared: Keep it from the highest level of isolation, as if the host did not allow it.
    """
    broker = TimingBroker()

    async def this_broker(*_: object) -> Broker:
        return broker

    async def not_asked(*_: object) -> None:
        """The stand-in for S3 takes no uploads, which a worker tries before it is ready."""

    async def no_sandbox(*_: object, **__: object) -> HostIsolation:
        return HostIsolation(Isolation.SHARED, reason="the benchmark compares it with a sandbox")

    async with AsyncExitStack() as opened:
        store = redis.Redis(host=settings.redis_host, port=settings.redis_port, db=settings.redis_db)
        opened.push_async_callback(store.aclose)
        with ExitStack() as patched:
            patched.enter_context(mock.patch.object(services, "open_broker", this_broker))
            patched.enter_context(mock.patch.object(assembly, "wait_until_ready", not_asked))
            if shared:
                patched.enter_context(mock.patch.object(containers, "probe", no_sandbox))
            worker = await assembly.assemble(settings, opened)
        working = asyncio.create_task(worker.run())
        try:
            yield AgentUnderTest(settings.worker_id, broker, store)
        finally:
            worker.stop()
            await broker.close()
            await working
