"""A worker in a child process, and the sender's end of the queue."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from redis import asyncio as redis

from nanoagent.dev.agent_process import AgentProcess
from nanoagent.dev.sender import pack
from support.agents.agent_server import ForkedAgent
from support.agents.faulty_agent import FAULT
from support.checks.zips import make_zip

if TYPE_CHECKING:
    from types import TracebackType

    from nanoagent.dev.local_services import EmbeddedStack
    from support.agents.faulty_agent import Fault

TESTS = Path(__file__).parents[2]
PROGRAMS = TESTS / "e2e/programs"
RESULT_DEADLINE_S = 120  # only a hang takes this long


class WorkerUnderTest:
    """Starts a worker on a separate queue, sends jobs and waits for their results.

    Args:
        stack: The services.
        folder: The place of the worker's log, caches and work directories.
        settings: Settings in addition to those of the stack.
        until_ready: Whether to wait until it is ready.
        beside: Another worker, whose queue it shares.
        max_receives: `maxReceiveCount` of the queue's redrive policy.
        fifo: Whether its queue is a FIFO queue.
        fault: The step at which the worker dies or stops; see `support.agents.faulty_agent`.
        worker_id: WORKER_ID, to give two workers the same ID.
        forks: Whether its process is forked from one that has the modules. Otherwise it is a new one, as its
            users start it.
    """

    def __init__(
        self,
        stack: EmbeddedStack,
        folder: Path,
        settings: dict[str, str] | None = None,
        *,
        until_ready: bool = True,
        beside: WorkerUnderTest | None = None,
        max_receives: int = 10,
        fifo: bool = False,
        fault: Fault | None = None,
        worker_id: str | None = None,
        forks: bool = True,
    ) -> None:
        self.stack = stack
        self.folder = folder
        self.settings = settings or {}
        self.queue_url = ""
        self.dead_letter_url = ""
        self.worker_id = worker_id or f"test-{secrets.token_hex(4)}"
        self.log = folder / "agent.log"
        self.tasks = Path("/tmp/nanoagent-tests")
        self._until_ready = until_ready
        self._beside = beside
        self._max_receives = max_receives
        self._fifo = fifo
        self._fault = fault
        self._forks = forks
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._make_queues)
        self.redis = redis.Redis(host=self.stack.redis_host, port=self.stack.redis_port)
        self._opened.push_async_callback(self.redis.aclose)
        # Tests poll often: one client for all requests. Each request has its own connection, because the
        # agent may be paused or killed meanwhile.
        connector = aiohttp.TCPConnector(force_close=True)
        self._http = await self._opened.enter_async_context(aiohttp.ClientSession(connector=connector))
        self.agent = self._new_agent()
        self._opened.push_async_callback(self.agent.stop)
        await self.agent.start(until_ready=self._until_ready)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()

    def _new_agent(self) -> AgentProcess:
        kind = ForkedAgent if self._forks else AgentProcess
        if self._fault is None:
            return kind(self.environment(), self.log)
        paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
        extra = {"PYTHONPATH": paths, FAULT: self._fault.text()}
        return kind(self.environment() | extra, self.log, module="support.agents.faulty_agent")

    def _make_queues(self) -> None:
        if self._beside is not None:
            self.queue_url = self._beside.queue_url
            self.dead_letter_url = self._beside.dead_letter_url
            return
        kind = {"FifoQueue": "true"} if self._fifo else {}
        self.dead_letter_url = self.stack.new_queue(**kind)
        policy = self.stack.redrive_policy(self.dead_letter_url, max_receives=self._max_receives)
        self.queue_url = self.stack.new_queue(VisibilityTimeout="30", RedrivePolicy=policy, **kind)

    def environment(self) -> dict[str, str]:
        return self.stack.environment() | {
            "SQS_QUEUE_URL": self.queue_url,
            "SQS_WAIT_SECONDS": "1",
            "WORKER_ID": self.worker_id,
            "DOCKER_WORK_DIR_ROOT": str(self.tasks),
            # One cache for all workers of all test processes: this also tests that workers can share it.
            "CODE_CACHE_DIR": "/tmp/nanoagent-tests-cache",
            "CODE_FRESH_SECONDS": "0",  # a new upload under the same key takes effect at once
            "METRICS_PORT": "0",
            "SELFTEST_INTERVAL_SECONDS": "0",  # tests/e2e/test_selftest.py enables it
            "LOCALE": "en",
            "RETRY_BASE_SECONDS": "0.1",
            "RETRY_MAX_SECONDS": "1",
            **self.settings,
        }

    # --- the sender's end

    async def upload(self, content: Path | bytes | Mapping[str, str | bytes], key: str | None = None) -> str:
        """Upload code and return its key. The code is a folder, files by name, or the bytes of a zip."""
        if isinstance(content, Mapping):
            content = make_zip(content)
        elif isinstance(content, Path):
            content = pack(content)
        key = key or f"code/{secrets.token_hex(6)}.zip"
        await self.stack.buckets.put_code(key, content)
        return key

    def message(self, **fields: Any) -> dict[str, Any]:
        return {"requestId": f"t-{secrets.token_hex(8)}", "functionId": "f", "memoryMb": 128, **fields}

    @staticmethod
    def body(message: dict[str, Any]) -> str:
        """Return a job as a message body."""
        return json.dumps(message, ensure_ascii=False, separators=(",", ":"))

    async def run(self, **fields: Any) -> dict[str, Any]:
        """Send one job and wait for its result."""
        (result,) = await self.run_all([self.message(**fields)])
        return result

    async def run_program(self, runtime: str, case: str, **fields: Any) -> dict[str, Any]:
        """Run one of the programs of tests/e2e/programs."""
        payload = {"case": case, **fields.pop("input", {})}
        key = await self.upload(PROGRAMS / runtime, f"programs/{runtime}.zip")
        defaults = {"functionId": f"program-{runtime}", "runtime": runtime, "s3Key": key, "timeoutMs": 60_000}
        return await self.run(**(defaults | fields), input=payload)

    async def run_all(
        self,
        messages: list[dict[str, Any]],
        *,
        deadline_s: float = RESULT_DEADLINE_S,
        at_once: bool = False,
    ) -> list[dict[str, Any]]:
        """Send jobs and return all results, in the order of the jobs.

        Args:
            messages: The jobs.
            deadline_s: The time limit for all of them, seconds.
            at_once: Pause the worker while the jobs are sent, so that it finds all of them in the queue.
        """
        waiting = {message["requestId"] for message in messages}
        results: dict[str, dict[str, Any]] = {}
        async with self.redis.pubsub() as listener, asyncio.timeout(deadline_s):
            await listener.subscribe(*(f"result:{request_id}" for request_id in waiting))
            bodies = [self.body(message) for message in messages]
            if at_once:
                self.agent.signal(signal.SIGSTOP)
                await self._send_many(bodies)
                self.agent.signal(signal.SIGCONT)
            else:
                for body in bodies:
                    await self.stack.queues.send(body, queue_url=self.queue_url)
            async for event in listener.listen():
                if event["type"] == "message":
                    result = json.loads(event["data"])
                    results[result["requestId"]] = result
                    if len(results) == len(waiting):
                        break
        return [results[message["requestId"]] for message in messages]

    async def _send_many(self, bodies: list[str]) -> None:
        """Send small jobs, ten in a call. A call for each would take longer than most jobs."""
        async with self.stack.clients() as clients:
            client = await clients.sqs()
            for first in range(0, len(bodies), 10):
                batch = bodies[first : first + 10]
                entries = [{"Id": str(number), "MessageBody": body} for number, body in enumerate(batch)]
                answer = await client.send_message_batch(QueueUrl=self.queue_url, Entries=entries)
                assert not answer.get("Failed")

    async def output(self, link: str) -> bytes:
        """Return the object behind a plain link of a result."""
        bucket, _, key = unquote(urlsplit(link).path).lstrip("/").partition("/")
        return await self.stack.buckets.read(bucket, key)

    # --- the operator's view

    async def get(self, path: str) -> tuple[int, str]:
        async with self._http.get(f"http://127.0.0.1:{self.agent.port}{path}") as response:
            return response.status, await response.text()

    async def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels."""
        _, text = await self.get("/metrics")
        # To parse the whole page takes longer than to get it.
        own = "".join(line for line in text.splitlines(keepends=True) if line.startswith(name))
        return sum(
            sample.value
            for family in text_string_to_metric_families(own)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
