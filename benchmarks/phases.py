"""Measures the duration of each phase of a job: medians for each runtime, cold, warm and hot.

`make bench-phases` runs it, with real Docker and Redis, and with moto. It runs one job at a time, and needs
an idle machine. The figures are valid for one machine only.

* cold: no container is ready; one is created for the job.
* warm: a container is ready. The function is new to it. Its program is already built.
* hot: the function has a container.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from redis import asyncio as redis
from rich.console import Console
from rich.table import Table

from nanoagent.dev.agent_process import AgentProcess
from nanoagent.dev.local_services import EmbeddedStack
from nanoagent.dev.sender import pack
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

_PHASES: Final = ("fetch", "build", "acquire", "start", "run", "upload", "total")
_DEADLINE_S: Final = 120
_PAUSE_S: Final = 0.1
# The worker is measured, so the programs do almost no work.
_HELLO: Final = {
    Runtime.PYTHON: ("main.py", "print('hello')\n"),
    Runtime.NODEJS: ("index.js", "console.log('hello')\n"),
    Runtime.CPP: ("main.cpp", '#include <cstdio>\nint main() { std::puts("hello"); }\n'),
    Runtime.GO: (
        "main.go",
        'package main\n\nimport "os"\n\nfunc main() { os.Stdout.WriteString("hello\\n") }\n',
    ),
}


class Bench:
    """An agent on an embedded stack, and the code of the four programs.

    Args:
        stack: The services.
        folder: The folder for logs and caches.
        queue: An SQS client. It stays open, because opening one takes more CPU than a job.
    """

    def __init__(self, stack: EmbeddedStack, folder: Path, queue: Any) -> None:
        self._stack = stack
        self._folder = folder
        self._queue = queue

    async def upload(self) -> None:
        """Upload the code of the four programs."""
        for runtime, (name, source) in _HELLO.items():
            code = self._folder / runtime
            code.mkdir()
            (code / name).write_text(source)
            await self._stack.buckets.put_code(f"{runtime}.zip", pack(code))

    def agent(self, pool_size: int) -> AgentProcess:
        """Make an agent that keeps `pool_size` containers ready for each runtime."""
        sizes = {f"WARM_POOL_{runtime.upper()}_SIZE": str(pool_size) for runtime in Runtime}
        settings = {
            "CODE_CACHE_DIR": str(self._folder / "cache"),
            "METRICS_PORT": "0",
            "SELFTEST_INTERVAL_SECONDS": "0",
            "SQS_WAIT_SECONDS": "1",
        }
        return AgentProcess(self._stack.environment() | settings | sizes, self._folder / "agent.log")

    async def run(self, runtime: Runtime, function_id: str) -> dict[str, Any]:
        """Run one job, and return its result."""
        request_id = f"bench-{secrets.token_hex(6)}"
        job = {
            "requestId": request_id,
            "functionId": function_id,
            "runtime": runtime,
            "s3Key": f"{runtime}.zip",
        }
        client = redis.Redis(host=self._stack.redis_host, port=self._stack.redis_port)
        async with client, client.pubsub() as listener, asyncio.timeout(_DEADLINE_S):
            await listener.subscribe(f"result:{request_id}")
            # The agent and moto still work for the previous job. That must not be measured with this one.
            await asyncio.sleep(_PAUSE_S)
            await self._queue.send_message(QueueUrl=self._stack.queue_url, MessageBody=json.dumps(job))
            async for event in listener.listen():
                if event["type"] == "message":
                    return dict(json.loads(event["data"]))
        raise AssertionError("a subscription does not end by itself")

    async def runs(
        self, count: int, runtime: Runtime, start: str, function_id: str = ""
    ) -> list[dict[str, float]]:
        """Run jobs until `count` of them started in that way, and return their timings."""
        timings: list[dict[str, float]] = []
        while len(timings) < count:
            result = await self.run(runtime, function_id or f"new-{secrets.token_hex(4)}")
            assert result["status"] == "SUCCESS", result
            if result["start"] == start:
                timings.append(result["timings"])
        return timings


async def measure(count: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the medians: runtime → start → phase → median, ms."""
    medians: dict[str, dict[str, dict[str, float]]] = {runtime: {} for runtime in Runtime}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with EmbeddedStack(folder / "stack") as stack, stack.clients() as clients:
            bench = Bench(stack, folder, await clients.sqs())
            await bench.upload()
            for pool_size, starts in ((2, ("warm", "hot")), (0, ("cold",))):
                agent = bench.agent(pool_size)
                await agent.start()
                for runtime in Runtime:
                    await bench.run(runtime, "builds-the-program")
                    for start in starts:
                        same = "the-same" if start == "hot" else ""
                        timings = await bench.runs(count, runtime, start, same)
                        medians[runtime][start] = {
                            phase: statistics.median(timing[phase] for timing in timings) for phase in _PHASES
                        }
                await agent.stop()
    return medians


def show(medians: dict[str, dict[str, dict[str, float]]], console: Console) -> None:
    """Print the medians as a table."""
    table = Table(
        title=f"median ms per phase; {platform.machine()}, {os.cpu_count()} CPUs", title_justify="left"
    )
    table.add_column("runtime")
    table.add_column("start")
    for phase in _PHASES:
        table.add_column(phase, justify="right")
    for runtime, starts in medians.items():
        for start in ("cold", "warm", "hot"):
            table.add_row(runtime, start, *(f"{starts[start][phase]:.1f}" for phase in _PHASES))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=15, help="runs of each kind (default 15)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    medians = asyncio.run(measure(options.count))
    if options.json:
        print(json.dumps(medians))
    else:
        show(medians, Console())


if __name__ == "__main__":
    main()
