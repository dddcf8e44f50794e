"""Separate Redis servers, for operations that must not affect the shared server."""

from __future__ import annotations

import asyncio
import shutil
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.services.certificates import Pair

HOST = "127.0.0.1"
_DEADLINE_S = 60


@dataclass(frozen=True)
class Tls:
    """The TLS settings of a server.

    Attributes:
        shown: The server's certificate.
        authority: The authority that the server and the operator's client trust.
        asks: Whether the server requires a client certificate.
        operator: The certificate of the operator's client.
    """

    shown: Pair
    authority: Path
    operator: Pair
    asks: bool = False

    def arguments(self) -> list[str]:
        return [
            *("--tls-cert-file", str(self.shown.certificate), "--tls-key-file", str(self.shown.key)),
            *("--tls-ca-cert-file", str(self.authority)),
            *("--tls-auth-clients", "yes" if self.asks else "no"),
        ]

    def client(self) -> dict[str, Any]:
        """The options of the operator's client, which accepts any certificate of the server."""
        return {
            "ssl": True,
            "ssl_cert_reqs": "none",
            "ssl_check_hostname": False,
            "ssl_certfile": str(self.operator.certificate),
            "ssl_keyfile": str(self.operator.key),
        }


class OwnRedis:
    """A running server.

    Attributes:
        port: Its port.
        client: The operator's connection to it.
    """

    def __init__(self, port: int, process: asyncio.subprocess.Process, **client: Any) -> None:
        self.port = port
        self.process = process
        self.client = client_of(port, **client)

    async def set(self, **settings: Any) -> None:
        """Call CONFIG SET for each option."""
        for name, value in settings.items():
            await self.client.config_set(name.replace("_", "-"), value)


def client_of(port: int, **settings: Any) -> redis.Redis:
    """Return a client without retries, which reports failures at once."""
    return redis.Redis(host=HOST, port=port, protocol=2, retry=Retry(NoBackoff(), 0), **settings)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def own_redis(
    folder: Path, *arguments: str, port: int = 0, durable: bool = False, tls: Tls | None = None
) -> AsyncIterator[OwnRedis]:
    """Start a server in a separate process. Its data is deleted at the end of the block.

    Args:
        folder: The folder of its log.
        *arguments: Arguments of the server.
        port: Its port; 0: any free port.
        durable: Keep the data: the next server in the same folder uses them.
        tls: Use only TLS, with these settings.
    """
    port = port or free_port()
    where = ["--port", str(port)] if tls is None else ["--port", "0", "--tls-port", str(port)]
    options = [
        *([] if tls is None else tls.arguments()),
        *arguments,
        *("--save", "", "--appendonly", "yes" if durable else "no"),
    ]
    async with _served(folder, port, *options, *where, **({} if tls is None else tls.client())) as server:
        yield server


@asynccontextmanager
async def sentinel_of(folder: Path, primary: OwnRedis) -> AsyncIterator[OwnRedis]:
    """Start a Sentinel that watches a server."""
    file = folder / "sentinel.conf"
    file.write_text(f"sentinel monitor primary {HOST} {primary.port} 1\n")
    port = free_port()
    async with _served(folder, port, str(file), "--sentinel", "--port", str(port)) as server:
        yield server


@asynccontextmanager
async def _served(folder: Path, port: int, *arguments: str, **client: Any) -> AsyncIterator[OwnRedis]:
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    assert program is not None, "neither redis-server nor valkey-server is on PATH"
    with (folder / f"redis-{port}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            program, *arguments, "--bind", HOST, stdout=log, stderr=log, cwd=folder
        )
    server = OwnRedis(port, process, **client)
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
