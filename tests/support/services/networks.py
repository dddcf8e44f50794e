"""Runs with a network in real containers, and a fake internet: one server behind every address."""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from nanoagent.model.job import NetworkPolicy, Runtime
from nanoagent.network.base import NetworkRun
from nanoagent.network.egress import Egress
from nanoagent.network.listeners import Network
from nanoagent.network.policy import AllowedHosts
from support.sandboxes.adversarial import yard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nanoagent.model.result import Isolation
    from nanoagent.network.base import Gateway
    from support.sandboxes.adversarial import Function, Yard
    from support.sandboxes.containers import Ran

OPEN_FILES = (
    1024  # the value of pre-created sandboxes: a sandbox created for a run has no listening sockets in time
)


class Echo:
    """A gateway that returns the run and the received text, and counts requests."""

    def __init__(self) -> None:
        self.told: dict[str, list[bytes]] = defaultdict(list)
        self.cut: list[str] = []

    async def serve(self, connection: socket.socket, run: NetworkRun) -> None:
        loop = asyncio.get_running_loop()
        try:
            while said := await loop.sock_recv(connection, 65536):
                self.told[run.request_id].append(said)
                run.usage.prompt_tokens += 1
                await loop.sock_sendall(connection, run.request_id.encode() + b":" + said)
        except asyncio.CancelledError:
            self.cut.append(run.request_id)
            raise


class Internet:
    """A fake internet: DNS answers, and a server that returns its address and the received text.

    Attributes:
        names: Name → the addresses of each lookup in turn; the last addresses are repeated.
        asked: The names that were looked up.
        reached: The addresses and ports of the connections.
    """

    def __init__(self) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []
        self.reached: list[tuple[str, int]] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    @staticmethod
    async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while said := await reader.read(65536):
                writer.write(said)
                await writer.drain()
            writer.write(b"<end>")
            writer.close()
        except OSError:
            writer.close()

    async def resolve(self, name: str) -> list[str]:
        self.asked.append(name)
        answers = self.names.get(name, [[]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def connect(self, address: str, port: int) -> socket.socket:
        assert self._server is not None
        self.reached.append((address, port))
        near = socket.socket()
        near.setblocking(False)
        await asyncio.get_running_loop().sock_connect(near, self._server.sockets[0].getsockname())
        return near

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


class NetworkedYard:
    """A yard whose runs have a network policy.

    Attributes:
        containers: The yard.
        level: The isolation level of its containers.
        internet: The fake internet.
        egress: The egress filter.
        outcomes: The outcomes of connections to the internet.
    """

    def __init__(
        self, containers: Yard, level: Isolation, network: Network, egress: Egress, internet: Internet
    ) -> None:
        self.containers = containers
        self.level = level
        self.network = network
        self.egress = egress
        self.internet = internet
        self.outcomes: list[str] = []

    async def run(
        self,
        function: Function,
        said: str,
        policy: NetworkPolicy,
        name: str = "run",
        *,
        model: str = "m",
        **changes: Any,
    ) -> tuple[Ran, NetworkRun]:
        """Run a function; `changes` are fields of `RunRequest`."""
        run = NetworkRun(
            request_id=name,
            function_id=function.name,
            runtime=function.runtime,
            model=model,
            policy=policy,
            deadline=float("inf"),
        )
        fields = {"open_files": OPEN_FILES} | changes
        async with self.containers.acquire(function) as acquired:
            reached = self.network.opened(acquired.container.listening_sockets, run)
            ran = await self.containers.run_in(acquired, function, said, network=reached, **fields)
        return ran, run


@asynccontextmanager
async def networked_yard(
    level: Isolation,
    runtimes: Sequence[Runtime],
    gateway: Gateway,
    *,
    worker: NetworkPolicy = NetworkPolicy.EGRESS,
    allow: Sequence[str] = ("*",),
    max_bytes: int = 10_000_000,
    connections: int = 64,
) -> AsyncIterator[NetworkedYard]:
    """Make a yard of an isolation level, with settings of a worker."""
    outcomes: list[str] = []
    internet = Internet()
    egress = Egress(AllowedHosts(allow), (), max_bytes, outcomes.append)
    egress.resolve, egress.connect = internet.resolve, internet.connect
    network = Network(worker, gateway, egress, (80, 443), connections)
    async with AsyncExitStack() as opened:
        await internet.start()
        opened.callback(internet.close)
        opened.callback(network.close)
        containers = await opened.enter_async_context(
            yard(level, runtimes, listening_addresses=network.listening_addresses)
        )
        made = NetworkedYard(containers, level, network, egress, internet)
        made.outcomes = outcomes
        yield made
