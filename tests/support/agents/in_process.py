"""A worker in this process, on a real queue and a real Redis. The test plays its jobs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nanoagent.broker.sqs import SqsBroker
from nanoagent.results.redis import RedisResultStore
from nanoagent.results.server import RedisServer
from nanoagent.results.spool import Spool
from nanoagent.worker.worker import Worker
from support.agents.worker_rig import Rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

DATABASE = 6  # of Redis; workers under test use another one


@dataclass(frozen=True, kw_only=True)
class Queues:
    """A queue and its dead-letter queue."""

    url: str
    dead_letter_url: str

    @classmethod
    def make(cls, stack: EmbeddedStack, *, max_receives: int, fifo: bool = False) -> Queues:
        kind = {"FifoQueue": "true"} if fifo else {}
        dead_letter_url = stack.new_queue(**kind)
        policy = stack.redrive_policy(dead_letter_url, max_receives=max_receives)
        url = stack.new_queue(VisibilityTimeout="30", RedrivePolicy=policy, **kind)
        return cls(url=url, dead_letter_url=dead_letter_url)


@asynccontextmanager
async def real_rig(stack: EmbeddedStack, folder: Path, queues: Queues, **settings: Any) -> AsyncIterator[Rig]:
    """Run a worker until the block ends, then stop it by force.

    Use the scripts and the journal of the rig. Its broker and result store are not used.
    """
    rig = Rig(folder, **settings)
    async with AsyncExitStack() as opened:
        clients = await opened.enter_async_context(stack.clients())
        # No long polls: moto's would find returned messages only a second later.
        broker = SqsBroker(
            await clients.sqs(), queues.url, dlq_url=None, wait_s=0, visibility_s=30, worker="worker-1"
        )
        opened.push_async_callback(broker.close)
        result_store = RedisResultStore(RedisServer(stack.redis_host, stack.redis_port, db=DATABASE))
        opened.push_async_callback(result_store.close)
        spool = Spool(folder / "results", result_store, 2**20, rig.metrics.worker.spooled)
        await spool.open()
        opened.push_async_callback(spool.close)
        cancellations = result_store.cancellations()
        opened.push_async_callback(cancellations.close)
        parts = replace(
            rig.worker._parts,
            broker=broker,
            result_store=result_store,
            spool=spool,
            cancellations=cancellations,
        )
        worker = Worker(parts, jitter=lambda: 0.0)
        run = asyncio.create_task(worker.run())
        try:
            yield rig
        finally:
            for _ in range(2):
                worker.stop()
            await run
