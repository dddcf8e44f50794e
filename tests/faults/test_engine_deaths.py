"""What containers are made of is killed under the jobs in them: each is done again, and answered once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from nanoagent.model.job import Runtime
from support.agents.worker import WorkerUnderTest
from support.checks.leftovers import MARKED_PROGRAM, Places, containers_of, leftovers_of, wrong_outputs
from support.checks.reliability import COUNTED, Observation, observed, starts_in, until
from support.sandboxes import engines

if TYPE_CHECKING:
    from nanoagent.dev.local_services import EmbeddedStack

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

JOBS: Final = 20
REPEATS: Final = "a program goes with its container"
# The host sees by its name that a program runs: the interpreter was there before. 15 is PR_SET_NAME.
PROGRAM: Final = f"import ctypes\nctypes.CDLL(None).prctl(15, b'marked', 0, 0, 0)\n{MARKED_PROGRAM}"
_IMAGE: Final = "nanoagent-python:latest"


class Process(NamedTuple):
    """A process as the host sees it."""

    pid: int
    parent: int
    name: str
    command: str


async def processes_of(container: str) -> list[Process]:
    """Those of a container, the supervisor first; none when it is gone."""
    process = await asyncio.create_subprocess_exec(
        *("docker", "top", container, "-eo", "pid,ppid,comm,args"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    said, _ = await process.communicate()
    fields = (line.split(None, 3) for line in said.decode().splitlines()[1:])
    return [Process(int(pid), int(parent), name, command) for pid, parent, name, command in fields]


async def busy_container(worker: WorkerUnderTest) -> tuple[str, list[Process]]:
    """A container of the worker's in which a program runs."""
    found: list[tuple[str, list[Process]]] = []

    async def one_is_busy() -> bool:
        for name in await containers_of(worker.worker_id):
            processes = await processes_of(name)
            if any(process.name == "marked" for process in processes):
                found.append((name, processes))
                return True
        return False

    await until(one_is_busy)
    return found[0]


async def kill_a(part: str, worker: WorkerUnderTest) -> None:
    """Kill that part of a container in which a program runs."""
    name, processes = await busy_container(worker)
    supervisor = processes[0]
    assert supervisor.command == "/nanosupervisor/supervisor", processes
    if part == "the whole container":
        subprocess.run(["docker", "kill", name], check=False, capture_output=True)
        return
    # The first: the others are what it has forked. Its command line is a run's.
    zygote = next(process.pid for process in processes if process.command.endswith("python3 main.py"))
    victim = {"supervisor": supervisor.pid, "containerd-shim": supervisor.parent, "zygote": zygote}[part]
    os.kill(victim, signal.SIGKILL)


async def send_twenty(worker: WorkerUnderTest, seen: Observation) -> list[dict[str, Any]]:
    keys = [await worker.upload({"main.py": PROGRAM, "function": str(number)}) for number in range(4)]
    messages = [
        worker.message(
            s3Key=keys[number % 4], functionId=f"f{number % 4}", timeoutMs=60_000, input={"seconds": 1.5}
        )
        for number in range(JOBS)
    ]
    seen.sent(*(message["requestId"] for message in messages))
    await worker._send_many([worker.body(message) for message in messages])
    return messages


async def until_started(worker: WorkerUnderTest, number: int) -> None:
    async def so_many_have() -> bool:
        return starts_in([worker.log]).total() >= number

    await until(so_many_have)


def settings_in(folder: Path) -> dict[str, str]:
    pools = {f"WARM_POOL_{runtime.upper()}_SIZE": "0" for runtime in Runtime}
    return {
        **COUNTED,
        **pools,
        "WARM_POOL_PYTHON_SIZE": "2",
        "WORKER_CPUS": "4",
        "CPU_MIN": "0.8",  # five at once
        "FUNCTION_MAX_SHARE": "1",
        "DOCKER_WORK_DIR_ROOT": str(folder / "tasks"),
        "CODE_CACHE_DIR": str(folder / "cache"),
    }


def places_of(worker: WorkerUnderTest, folder: Path) -> Places:
    return Places(
        stack=worker.stack,
        queue_url=worker.queue_url,
        dead_letter_url=worker.dead_letter_url,
        redis=worker.redis,
        work_root=folder / "tasks",
        cache=folder / "cache",
    )


async def are_whole(worker: WorkerUnderTest, seen: Observation) -> None:
    """All have their one result, and the files that it names."""
    results = await seen.answered()
    assert {result["status"] for result in results.values()} == {"SUCCESS"}, results

    async def is_settled() -> bool:
        return await worker.stack.queues.depth(queue_url=worker.queue_url) == (0, 0, 0)

    await until(is_settled)
    assert await wrong_outputs(worker.stack, results.values()) == []


async def test_jobs_outlive_their_containers_and_the_parts_of_them(stack: EmbeddedStack):
    with tempfile.TemporaryDirectory(prefix="na-faults-") as path:
        folder = Path(path)
        async with WorkerUnderTest(stack, folder, settings_in(folder)) as worker:
            parts = ("supervisor", "zygote", "the whole container", "containerd-shim")
            fault = f"{', '.join(parts)} killed one after the other"
            async with observed(worker, fault=fault, when="in the run", repeats=REPEATS) as seen:
                messages = await send_twenty(worker, seen)
                seen.struck()
                for number, part in enumerate(parts, start=1):
                    await until_started(worker, 3 * number)
                    await kill_a(part, worker)
                await are_whole(worker, seen)
                row = await seen.row()
            assert row.repeated is not None
            assert row.repeated <= len(parts), row  # nobody's but those whose container was killed
            assert await worker.agent.stop() == 0
            names = [message["requestId"] for message in messages]
            assert await leftovers_of(places_of(worker, folder), names, [worker.worker_id]) == []


@pytest.mark.soak
async def test_jobs_outlive_dockerd_and_containerd(stack: EmbeddedStack):
    if (reason := engines.why_none()) is not None:
        pytest.skip(reason)
    with engines.own_engine({}) as engine, tempfile.TemporaryDirectory(prefix="na-faults-") as path:
        folder = Path(path)
        image = await asyncio.to_thread(subprocess.check_output, ["docker", "save", _IMAGE])
        await asyncio.to_thread(engine.docker, "load", input=image)
        images = {f"DOCKER_{runtime.upper()}_IMAGE": _IMAGE for runtime in Runtime}
        settings = settings_in(folder) | images | {"DOCKER_HOST": engine.address}
        async with WorkerUnderTest(stack, folder, settings) as worker:
            fault = "dockerd, with its containerd, killed with SIGKILL twice and started again"
            async with observed(worker, fault=fault, when="in the run", repeats=REPEATS) as seen:
                messages = await send_twenty(worker, seen)
                for number in (3, 12):
                    await until_started(worker, number)
                    await asyncio.to_thread(engine.kill)
                    seen.struck()
                    await asyncio.to_thread(engine.start)
                await are_whole(worker, seen)
            assert await worker.agent.stop() == 0
            names = [message["requestId"] for message in messages]
            assert await leftovers_of(places_of(worker, folder), names, [worker.worker_id]) == []
            assert await containers_of(worker.worker_id, host=engine.address) == []
