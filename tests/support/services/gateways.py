"""The AI gateway with the stub model server. A client on a local socket takes the place of a run."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import aiohttp

from nanoagent.ai.gateway import Gateway
from nanoagent.ai.limits import GatewayLimits
from nanoagent.ai.upstreams import HttpUpstream, Upstreams, new_session
from nanoagent.dev.stub_model_server import StubModelServer
from nanoagent.model.job import NetworkPolicy, Runtime
from nanoagent.network.base import NetworkRun
from nanoagent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from nanoagent.ai.upstreams import Upstream

DEADLINE_S = 60.0


def new_run(number: int = 1, **changes: Any) -> NetworkRun:
    fields: dict[str, Any] = {
        "request_id": f"r-{number}",
        "function_id": "f",
        "runtime": Runtime.PYTHON,
        "model": "llama3:8b",
        "policy": NetworkPolicy.AI,
        "deadline": float("inf"),
    }
    return NetworkRun(**(fields | changes))


class GatewayClient:
    """A client of the gateway, like a run. Its exit is the end of the run."""

    def __init__(self, gateway: Gateway, run: NetworkRun) -> None:
        self._gateway = gateway
        self.run = run
        self.served: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._socket.setblocking(False)
        self.host, self.port = self._socket.getsockname()
        self.url = f"http://{self.host}:{self.port}"
        self._accepting = asyncio.create_task(self._accept())
        self.http = aiohttp.ClientSession(self.url, connector=aiohttp.TCPConnector(limit=0))
        return self

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._socket)
            connection.setblocking(False)
            task = asyncio.create_task(self._gateway.serve(connection, self.run))
            self.served.add(task)
            task.add_done_callback(self.served.discard)

    async def end(self) -> None:
        """End the run. When this returns, the gateway has ended all connections."""
        self._accepting.cancel()
        self._socket.close()
        tasks = [self._accepting, *self.served]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.close()
        await self.end()

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Return the status and the decoded JSON of an answer."""
        async with self.http.post(path, json=body) as response:
            return response.status, json.loads(await response.read())

    async def stream(self, path: str, body: Any) -> bytes:
        async with self.http.post(path, json=body) as response:
            assert response.status == 200, await response.text()
            return await response.read()

    async def raw(self, sent: bytes) -> bytes:
        """Send unchanged bytes. Return all data until the gateway closes the connection."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(sent)
            with suppress(ConnectionError):
                return await asyncio.wait_for(reader.read(), DEADLINE_S)
            return b""
        finally:
            writer.close()


class Rig:
    """A gateway with the stub model server behind it.

    Attributes:
        stub_model_server: The model server.
        session: The HTTP client for model servers.
        metrics: The gateway's metrics.
    """

    def __init__(self, stub_model_server: StubModelServer, session: aiohttp.ClientSession) -> None:
        self.stub_model_server = stub_model_server
        self.session = session
        self.metrics = Metrics()

    def gateway(
        self, limits: GatewayLimits | None = None, *servers: Upstream, allowed: tuple[str, ...] = ("*",)
    ) -> Gateway:
        servers = servers or (HttpUpstream(self.session, self.stub_model_server.url),)
        return Gateway(Upstreams(servers, allowed), limits or GatewayLimits(), self.metrics)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    session = new_session()
    try:
        async with StubModelServer() as stub_model_server:
            yield Rig(stub_model_server, session)
    finally:
        await session.close()
