"""Measures the CPU time of the agent's process per job, with programs that print hello.

    python -m benchmarks.agent_cost                    with stubs in place of containers
    python -m benchmarks.agent_cost --containers cpp   with real containers (or python)
    python -m benchmarks.agent_cost --profile          also list the functions that take the most time

The agent is that of `nanoagent run`, with its code cache on disk, an S3 client and a real Redis. Its queue is
a list in this process. Redis, the stub of S3 and the supervisors are other processes. A stub of a supervisor
reports after a few milliseconds that a program printed hello.

The agent works less per job when several jobs arrive at once, so two loads are measured. `single` waits for
each result before it sends the next job. `saturated` keeps the queue full. A bare `python3 main.py` is
measured as well, for comparison.

Other work on the machine makes every figure worse, because of cold caches. Compare only figures that were
measured at the same time, on an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import resource
import secrets
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from benchmarks import services
from benchmarks.timed_broker import JobFailed, TimedBroker, run_all

from nanoagent.config import Settings
from nanoagent.container.base import (
    NotRecycled,
    RecyclingFailure,
    RunningContainer,
    configuration_of,
)
from nanoagent.dev.sender import pack
from nanoagent.host import event_loop
from nanoagent.model.job import Runtime
from nanoagent.supervisor import wire
from nanoagent.telemetry import logs
from nanoagent.wiring import assembly, containers
from nanoagent.wiring import services as wired_services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from nanoagent.broker.base import Broker
    from nanoagent.container.base import Driver
    from nanoagent.container.spec import ContainerSpec
    from nanoagent.container.work_directory import WorkDirectory
    from nanoagent.worker.worker import Worker

_BUCKET: Final = "benchmark-code"
_HELLO: Final = {
    Runtime.PYTHON: ("main.py", "print('hello')\n"),
    Runtime.NODEJS: ("index.js", "console.log('hello')\n"),
    Runtime.CPP: ("main.cpp", '#include <cstdio>\nint main() { std::puts("hello"); }\n'),
    Runtime.GO: (
        "main.go",
        'package main\n\nimport "os"\n\nfunc main() { os.Stdout.WriteString("hello\\n") }\n',
    ),
}
_AT_ONCE: Final = 8  # unsettled messages of the saturated load
_WARM_UP_JOBS: Final = 30
_BARE_RUNS: Final = 20
_DEADLINE_S: Final = 300  # for a hang; on a busy machine, thirty jobs of Node.js have taken a minute
_SHOWN_FUNCTIONS: Final = 45
_SHOWN_LINES: Final = 10

# The frames of the stub; the layouts are those of src/nanosupervisor/wire.h.
_HEADER: Final = struct.Struct("<Ic")
_READY: Final = struct.pack("<IIQB", 0, 1, 20, 0)
_EXIT: Final = struct.pack("<IIQQQQQIIII", 0, 0, 3000, 0, 0, 6, 0, 6, 0, 0, 0)
# The output of a build, whose container has no next run: the file `program`.
_BUILT: Final = wire.frame(wire.FILE, struct.pack("<Q", 4) + b"program") + wire.frame(wire.DATA, b"\x7fELF")
_PREPARE_NEXT_OFFSET: Final = 56
_RUN_S: Final = 0.003
_NEXT_S: Final = 0.0005


# --- the stub supervisor, a separate process


def supervise(path: str) -> None:
    """Connect to the socket of a work directory, and act as a supervisor whose programs all print hello."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(path)
        stream.sendall(wire.frame(wire.HELLO, struct.pack("<I", wire.PROTOCOL_VERSION)))
        while header := stream.recv(_HEADER.size, socket.MSG_WAITALL):
            length, kind = _HEADER.unpack(header)
            payload = stream.recv(length, socket.MSG_WAITALL) if length else b""
            _answer(stream, kind, payload)


def _answer(stream: socket.socket, kind: bytes, payload: bytes) -> None:
    ready = wire.frame(wire.READY, _READY)
    if kind == wire.CONFIGURE:
        stream.sendall(wire.frame(wire.LEVEL, payload[:1]) + ready)
    elif kind == wire.PREPARE:
        stream.sendall(ready)
    elif kind == wire.RUN:
        time.sleep(_RUN_S)
        has_next = payload[_PREPARE_NEXT_OFFSET]
        output = wire.frame(wire.STDOUT, b"hello\n") if has_next else _BUILT
        stream.sendall(wire.frame(wire.EXIT, _EXIT) + output + wire.frame(wire.DONE, b"\1"))
        if has_next:
            time.sleep(_NEXT_S)
            stream.sendall(ready)


class StubDriver:
    """A `Driver` whose containers are processes that run `supervise`. They have no control group.

    Attributes:
        client: The client of Docker: this object.
    """

    def __init__(self) -> None:
        self.client = self
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def create(self, spec: ContainerSpec, directory: WorkDirectory) -> RunningContainer:
        """Start a process in place of a container."""
        await directory.socket.listen(os.getuid())
        arguments = ["-m", "benchmarks.agent_cost", "--supervise", str(directory.path / "agent.sock")]
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, start_new_session=True)
        self._running[str(process.pid)] = process
        session = await directory.socket.session(_DEADLINE_S)
        await session.greet()
        await session.configure(configuration_of(spec))
        return RunningContainer(str(process.pid), spec, directory, session, None)

    async def recycle(self, container: RunningContainer) -> None:
        """Fail: no container of the stub can be recycled."""
        raise NotRecycled(RecyclingFailure.ERROR, container.id)

    async def remove(self, container_id: str) -> None:
        """End the process."""
        process = self._running.pop(container_id, None)
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def remove_strays(self, home: Path) -> int:
        """Return 0: every process has its work directory."""
        del home
        return 0

    async def set_limits(self, container_id: str, memory_bytes: int, *, share: float, most: float) -> None:
        """Do nothing: a process has no limits."""

    async def deaths(self) -> AsyncIterator[str]:
        """Wait forever: no process dies."""
        await asyncio.Event().wait()
        yield ""

    async def ping(self) -> None:
        """Succeed: the stub is always available."""

    async def image_id(self, image: str) -> str:
        """Return an ID that is derived from the name."""
        return f"sha256:{image}"

    async def get(self, path: str) -> dict[str, object]:
        """Return an empty answer, in which the worker finds no problem."""
        del path
        return {}

    async def list_containers(self, *labels: str) -> list[object]:
        """Return no containers of dead workers."""
        del labels
        return []

    async def confines_with_apparmor(self) -> bool:
        """Return False: AppArmor is not used."""
        return False

    async def close(self) -> None:
        """End all processes."""
        for container_id in list(self._running):
            await self.remove(container_id)


if TYPE_CHECKING:
    # mypy reports methods that the port has, and this class lacks.
    _DRIVER: type[Driver] = StubDriver


# --- the agent


@dataclass(frozen=True, slots=True)
class Load:
    """A way to send jobs.

    Attributes:
        name: The name in the output.
        at_once: The largest number of unsettled messages.
    """

    name: str
    at_once: int


_LOADS: Final = (Load("single", 1), Load("saturated", _AT_ONCE))


@dataclass(slots=True)
class Cost:
    """The cost of a job under one load.

    Attributes:
        user_ms: CPU time of the agent's process in user mode, ms per job.
        system_ms: CPU time of the agent's process in system mode, ms per job.
        per_second: Jobs per second.
    """

    user_ms: float
    system_ms: float
    per_second: float

    @property
    def cpu_ms(self) -> float:
        """CPU time in both modes, ms per job."""
        return self.user_ms + self.system_ms


class AgentUnderTest:
    """The agent, its queue, and the jobs of one function.

    Args:
        runtime: The runtime of the function.
        broker: The queue of the agent.
        settings: The settings of the agent.

    Attributes:
        worker_id: The ID of its worker.
        redis_port: The port of its Redis, on this machine.
    """

    def __init__(self, runtime: Runtime, broker: TimedBroker, settings: Settings) -> None:
        self._runtime = runtime
        self._broker = broker
        self.worker_id = settings.worker_id
        self.redis_port = settings.redis_port

    def _message(self) -> str:
        return json.dumps(
            {
                "requestId": f"cost-{secrets.token_hex(8)}",
                "functionId": "hello",
                "runtime": self._runtime,
                "s3Key": f"{self._runtime}.zip",
                "memoryMb": 128,
                "input": {"name": "benchmark"},
            }
        )

    async def run(self, load: Load, jobs: int) -> None:
        """Run jobs.

        Raises:
            JobFailed: A job was not finished.
        """
        await self._run([self._message() for _ in range(jobs)], load)

    async def _run(self, bodies: list[str], load: Load) -> None:
        async with asyncio.timeout(_DEADLINE_S):
            await run_all(self._broker.submit, bodies, load.at_once)

    async def cost(self, load: Load, jobs: int) -> Cost:
        """Run jobs, and return the cost of one job.

        Raises:
            JobFailed: A job was not finished.
        """
        bodies = [self._message() for _ in range(jobs)]
        before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        await self._run(bodies, load)
        after, ended = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        return Cost(
            (after.ru_utime - before.ru_utime) / jobs * 1000,
            (after.ru_stime - before.ru_stime) / jobs * 1000,
            jobs / (ended - begun),
        )


@asynccontextmanager
async def agent_under_test(
    runtime: Runtime, folder: Path, *, stub: bool, warm_up_jobs: int = _WARM_UP_JOBS, **changes: Any
) -> AsyncIterator[AgentUnderTest]:
    """Run an agent; it is ready and warm at the start, and is drained and closed at the end.

    Args:
        runtime: The runtime of the jobs.
        folder: An empty folder, whose path is short enough for Unix sockets below it.
        stub: Whether stubs take the place of the containers.
        warm_up_jobs: The jobs that are run with each load before the agent is yielded.
        **changes: Changes of its settings.
    """
    broker = TimedBroker()

    async def open_broker(*_: object) -> Broker:
        return broker

    async with AsyncExitStack() as opened:
        settings = await _settings(runtime, folder, opened, changes)
        opened.enter_context(mock.patch.object(wired_services, "open_broker", open_broker))
        # One of the readiness checks uploads an object, and the stub of S3 accepts no uploads.
        opened.enter_context(mock.patch.object(assembly, "wait_until_ready", mock.AsyncMock()))
        if stub:
            opened.enter_context(mock.patch.object(containers, "DockerDriver", StubDriver))
        worker: Worker = await assembly.assemble(settings, opened)
        working = asyncio.create_task(worker.run())
        try:
            agent = AgentUnderTest(runtime, broker, settings)
            for load in _LOADS:
                await agent.cost(load, warm_up_jobs)
            yield agent
        finally:
            worker.stop()
            await broker.close()
            await working


async def _settings(
    runtime: Runtime, folder: Path, opened: AsyncExitStack, changes: Mapping[str, Any]
) -> Settings:
    """Start the services, and return the default settings with their addresses."""
    objects = folder / "objects"
    code = folder / "code"
    for made in (objects / _BUCKET, code):
        made.mkdir(parents=True)
    name, source = _HELLO[runtime]
    (code / name).write_text(source)
    (objects / _BUCKET / f"{runtime}.zip").write_bytes(pack(code))
    addresses = {
        "AWS_ENDPOINT_URL": await opened.enter_async_context(services.object_stub(objects)),
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    opened.enter_context(mock.patch.dict(os.environ, addresses))
    port = await opened.enter_async_context(services.redis_server(folder))
    sizes: dict[str, Any] = {f"warm_pool_{each}_size": 2 if each is runtime else 0 for each in Runtime}
    return Settings(  # type: ignore[call-arg]  # mypy cannot know which fields the environment has
        _env_file=None,
        aws_region="ap-northeast-2",
        sqs_queue_url="http://127.0.0.1:9/none",
        s3_code_bucket=_BUCKET,
        s3_user_data_bucket="benchmark-data",
        redis_host=services.HOST,
        redis_port=port,
        worker_id=f"cost-{secrets.token_hex(4)}",
        docker_work_dir_root=folder / "w",
        code_cache_dir=folder / "cache",
        metrics_host=services.HOST,
        metrics_port=0,
        cloudwatch_enabled=False,
        selftest_interval_seconds=0,
        drain_seconds=5,
        function_max_share=1,  # only one function uses the worker
        container_max_runs=1_000_000,  # the creation of containers is not measured
        **sizes,
        **changes,
    )


def bare_cpu_ms(folder: Path) -> float:
    """Return the median CPU time of `python3 main.py` outside of containers, ms."""
    (folder / "main.py").write_text(_HELLO[Runtime.PYTHON][1])
    times = []
    for _ in range(_BARE_RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(["/usr/bin/python3", "main.py"], cwd=folder, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return statistics.median(times) * 1000


# --- the command


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Measure the loads in alternation; return load → figure → median of the rounds."""
    runtime = Runtime(options.containers) if options.containers != "stub" else Runtime.PYTHON
    samples: dict[str, list[Cost]] = {load.name: [] for load in _LOADS}
    async with agent_under_test(runtime, folder, stub=options.containers == "stub") as agent:
        for _ in range(options.rounds):
            for load in _LOADS:
                samples[load.name].append(await agent.cost(load, options.jobs))
        if options.profile:
            for load in _LOADS:
                await _profile(agent, load, options.jobs, options.profile)
    return {
        name: {
            figure: round(statistics.median(getattr(cost, figure) for cost in costs), 3)
            for figure in ("cpu_ms", "user_ms", "system_ms", "per_second")
        }
        for name, costs in samples.items()
    }


async def _profile(agent: AgentUnderTest, load: Load, jobs: int, order: str) -> None:
    """Print the functions that take the most time. The profiler exaggerates the time of small functions."""
    profiler = cProfile.Profile()
    profiler.enable()
    await agent.cost(load, jobs)
    profiler.disable()
    print(f"--- {load.name}, {jobs} jobs")
    pstats.Stats(profiler).sort_stats(order).print_stats(_SHOWN_FUNCTIONS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the results. The last line is a JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--containers", choices=("stub", "cpp", "python"), default="stub")
    parser.add_argument("--jobs", type=int, default=200, help="jobs in one round of one load (default 200)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each load (default 7)")
    parser.add_argument(
        "--profile",
        nargs="?",
        const="tottime",
        choices=("tottime", "cumulative", "ncalls"),
        help="list functions, sorted by this column",
    )
    parser.add_argument("--supervise", metavar="SOCKET", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.supervise:
        supervise(options.supervise)
        return
    folder = Path(tempfile.mkdtemp(prefix="na-cost-"))  # a short path, because Unix sockets are made below it
    try:
        with (folder / "agent.log").open("w") as log:
            logs.configure("json", "INFO", stream=log)
            bare_ms = bare_cpu_ms(folder)
            loads = event_loop.run(measure(options, folder))
    except (JobFailed, TimeoutError):
        print(
            "".join((folder / "agent.log").read_text().splitlines(keepends=True)[-_SHOWN_LINES:]),
            file=sys.stderr,
        )
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, figures in loads.items():
        ratio = figures["cpu_ms"] / bare_ms
        print(
            f"{name:10} {figures['cpu_ms']:6.3f} ms CPU a job ({figures['user_ms']:.3f} user, "
            f"{figures['system_ms']:.3f} system), {ratio:.3f} of a bare python3 ({bare_ms:.1f} ms); "
            f"{figures['per_second']:.0f} jobs/s"
        )
    print(json.dumps({"containers": options.containers, "bare_cpu_ms": round(bare_ms, 2), **loads}))


if __name__ == "__main__":
    main()
