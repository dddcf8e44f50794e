"""The services of the agent under test, as child processes: a real Redis, and stubs of S3 and of models."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from redis import asyncio as redis
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HOST: Final = "127.0.0.1"
_START_DEADLINE_S: Final = 20.0
_STOP_DEADLINE_S: Final = 5.0
_PROBE_INTERVAL_S: Final = 0.02


class ServiceError(Exception):
    """A service that a benchmark requires is missing or did not start. The message has the remedy."""


@asynccontextmanager
async def redis_server(folder: Path) -> AsyncIterator[int]:
    """Run a Redis server that keeps its data in memory only; yield its port.

    Raises:
        ServiceError: Redis is not installed, or did not start.
    """
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise ServiceError("neither redis-server nor valkey-server is on PATH: make setup installs one")
    port = _free_port()
    options = ["--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    process = await asyncio.create_subprocess_exec(
        program,
        *options,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C must not reach it: the agent needs Redis for its drain
    )
    try:
        await _wait_until_ready(port, process)
        yield port
    finally:
        await _end(process)


async def _wait_until_ready(port: int, process: asyncio.subprocess.Process) -> None:
    client = redis.Redis(host=HOST, port=port)
    try:
        async with asyncio.timeout(_START_DEADLINE_S), client:
            while process.returncode is None:
                with suppress(RedisError, OSError):
                    await client.ping()
                    return
                await asyncio.sleep(_PROBE_INTERVAL_S)
    except TimeoutError as exc:
        raise ServiceError(f"Redis did not answer within {_START_DEADLINE_S:.0f} s") from exc
    raise ServiceError(f"Redis ended at its start with exit code {process.returncode}")


@asynccontextmanager
async def object_stub(folder: Path) -> AsyncIterator[str]:
    """Run the stub of S3 with the objects of a folder; yield its URL.

    Raises:
        ServiceError: The stub did not start.
    """
    async with _stub("the stub of S3", "benchmarks.object_stub", str(folder)) as port:
        yield f"http://{HOST}:{int(port)}"


@asynccontextmanager
async def stub_model_server() -> AsyncIterator[str]:
    """Run the stub model server; yield its URL.

    Raises:
        ServiceError: The server did not start.
    """
    async with _stub("the stub model server", "nanoagent.dev.stub_model_server", "--port", "0") as url:
        yield url


@asynccontextmanager
async def _stub(name: str, *arguments: str) -> AsyncIterator[str]:
    """Run a Python module; yield the first line of its output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_START_DEADLINE_S):
                line = await process.stdout.readline()
        except TimeoutError as exc:
            raise ServiceError(f"{name} did not start") from exc
        if not line.strip():
            raise ServiceError(f"{name} ended at its start; its output is above")
        yield line.decode().strip()
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_DEADLINE_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
