"""Redis servers of a test's own, to do things to that the shared one must not have done."""

from __future__ import annotations

import asyncio
import shutil
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HOST = "127.0.0.1"
_DEADLINE_S = 60


class OwnRedis:
    """A server that runs.

    Attributes:
        port: Where it listens.
        client: An operator's connection to it.
    """

    def __init__(self, port: int, process: asyncio.subprocess.Process) -> None:
        self.port = port
        self.process = process
        self.client = client_of(port)

    async def set(self, **settings: Any) -> None:
        """CONFIG SET, each."""
        for name, value in settings.items():
            await self.client.config_set(name.replace("_", "-"), value)


def client_of(port: int) -> redis.Redis:
    """A client that says at once what is wrong."""
    return redis.Redis(host=HOST, port=port, protocol=2, retry=Retry(NoBackoff(), 0))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def own_redis(folder: Path, *, port: int = 0, durable: bool = False) -> AsyncIterator[OwnRedis]:
    """A server in a process of its own, which forgets everything when the block ends.

    Args:
        folder: For its log.
        port: Where it is to listen; 0: on any free one.
        durable: It forgets nothing: another in the same folder goes on with its data.
    """
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    assert program is not None, "neither redis-server nor valkey-server is on PATH"
    port = port or free_port()
    with (folder / f"redis-{port}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(program, "--bind", HOST, "--port", str(port), "--save", ""),
            *("--appendonly", "yes" if durable else "no"),
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    server = OwnRedis(port, process)
    try:
        await _until_it_answers(server)
        yield server
    finally:
        await server.client.aclose()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _until_it_answers(server: OwnRedis) -> None:
    async with asyncio.timeout(_DEADLINE_S):
        while True:
            try:
                await server.client.ping()
            except (RedisError, OSError):
                assert server.process.returncode is None, "the server ended at its start"
                await asyncio.sleep(0.02)
            else:
                return
