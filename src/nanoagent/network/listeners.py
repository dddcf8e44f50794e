"""Opens the network of a run for the time of the run: listens on the sockets that the run's policy allows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.common import gateway_address
from nanoagent.model.errors import ProtocolError
from nanoagent.model.job import NetworkPolicy
from nanoagent.network import dns
from nanoagent.network.acceptor import Acceptor
from nanoagent.network.listening_sockets import ListeningAddress, SocketKind
from nanoagent.network.name_server import NameServer
from nanoagent.network.run_tasks import RunTasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from nanoagent.network.acceptor import Serve
    from nanoagent.network.base import Gateway, NetworkRun
    from nanoagent.network.egress import Egress
    from nanoagent.network.listening_sockets import ListeningSockets

log = structlog.get_logger(__name__)

GATEWAY: Final = ListeningAddress(SocketKind.TCP, gateway_address.HOST, gateway_address.PORT)
NAME_SERVER: Final = ListeningAddress(SocketKind.UDP, "127.0.0.1", 53)
_ACCEPTING_THREADS: Final = 4


class Network:
    """The networks of all runs of a worker.

    Args:
        policy: The widest policy of a run.
        gateway: The gateway to models; None without one.
        egress: The egress filter; None without one.
        egress_ports: The TCP ports of the internet that runs may connect to.
        max_connections: The largest number of open connections of one run, on all its sockets together.
            Further connections wait to be accepted.

    Attributes:
        listening_addresses: The addresses at which supervisors create sockets.
    """

    def __init__(
        self,
        policy: NetworkPolicy,
        gateway: Gateway | None,
        egress: Egress | None = None,
        egress_ports: Sequence[int] = (),
        max_connections: int = 64,
    ) -> None:
        self._gateway = gateway
        self._egress = egress
        self._max_connections = max_connections
        self._has_warned = False
        self._threads = ThreadPoolExecutor(_ACCEPTING_THREADS, "accept")
        wanted: list[ListeningAddress] = []
        if policy.allows(NetworkPolicy.AI) and gateway is not None:
            wanted.append(GATEWAY)
        if policy.allows(NetworkPolicy.EGRESS) and egress is not None:
            wanted.append(NAME_SERVER)
            # 0.0.0.0 means all addresses of loopback. Each may be the stand-in address of a name (egress.py).
            wanted += [ListeningAddress(SocketKind.TCP, "0.0.0.0", port) for port in egress_ports]  # noqa: S104
        self.listening_addresses = tuple(wanted)

    def opened(self, sockets: ListeningSockets | None, run: NetworkRun) -> AbstractAsyncContextManager[None]:
        """Open the network of a run, as far as its policy allows, until the end of the block.

        At the end of the block the worker stops listening, cuts all connections and awaits their tasks.

        Args:
            sockets: The listening sockets of the container; None if its supervisor has not connected to
                hand them over.
            run: The run.
        """
        if not self.listening_addresses:
            return nullcontext()
        if sockets is None:
            self._warn_of_no_sockets(run)
            return nullcontext()
        # The network is also opened for a run with the policy `none`. Otherwise its sockets would not be
        # released, and the networks of ended runs would accumulate. Its name server answers that no name
        # exists.
        return _OpenNetwork(
            sockets, self._services(run), self._threads, self._max_connections, self._warn_of_no_sockets
        )

    def _warn_of_no_sockets(self, run: NetworkRun) -> None:
        """Log that a run has no network. The run continues.

        This is logged only once, because all runs of such containers have no network.
        """
        if run.policy is not NetworkPolicy.NONE and not self._has_warned:
            self._has_warned = True
            log.warning(
                "runs have no network",
                reason="the container handed over no listening sockets; a container with a separate kernel "
                "(gVisor, a virtual machine) cannot, so its programs cannot call models",
                network=str(run.policy),
                runtime=str(run.runtime),
            )

    def _services(self, run: NetworkRun) -> _Services:
        gateway, egress = self._gateway, self._egress
        services = _Services(run)
        if gateway is not None and run.policy.allows(NetworkPolicy.AI):
            services.by_address[GATEWAY] = lambda connection: gateway.serve(connection, run)
        if egress is not None and run.policy.allows(NetworkPolicy.EGRESS):
            run_egress = egress.for_run(run.function_id)
            services.answer_query = run_egress.answer
            for address in self.listening_addresses:
                if address not in {GATEWAY, NAME_SERVER}:
                    services.by_address[address] = run_egress.serve
        return services

    def close(self) -> None:
        """End the threads without waiting for them. Idempotent."""
        self._threads.shutdown(wait=False)


async def _no_such_name(message: bytes) -> bytes | None:
    query = dns.parse(message)
    return dns.answer(query, code=dns.ResponseCode.NO_SUCH_NAME) if isinstance(query, dns.Query) else query


class _Services:
    """The services of one run. The worker accepts no connections at an address without a service.

    Args:
        run: The run.
    """

    def __init__(self, run: NetworkRun) -> None:
        self.run = run
        self.by_address: dict[ListeningAddress, Serve] = {}
        self.answer_query: Callable[[bytes], Awaitable[bytes | None]] = _no_such_name


class _OpenNetwork:
    """The network of one run, while it is open.

    Each run has such an object, but most runs open no connection. So the object starts a task only when one
    is needed. The event loop gets descriptors as numbers, not as sockets: when a socket is added, `selectors`
    would format its repr, which is slow.
    """

    def __init__(
        self,
        sockets: ListeningSockets,
        services: _Services,
        threads: ThreadPoolExecutor,
        max_connections: int,
        warn_of_no_sockets: Callable[[NetworkRun], None],
    ) -> None:
        self._sockets = sockets
        self._services = services
        self._warn_of_no_sockets = warn_of_no_sockets
        self._tasks = RunTasks()
        self._acceptor = Acceptor(threads, max_connections, self._tasks)
        self._name_server: NameServer | None = None

    async def __aenter__(self) -> None:
        try:
            taken = self._sockets.take()
            if not taken:
                self._warn_of_no_sockets(self._services.run)
            for address, opened in taken.items():
                serve = self._services.by_address.get(address)
                if address == NAME_SERVER:
                    self._name_server = NameServer(opened, self._services.answer_query, self._tasks)
                    self._name_server.start()
                elif serve is not None:
                    self._acceptor.listen(opened, serve)
        except OSError as exc:
            await self._end()
            raise ProtocolError(f"cannot listen on a socket that the supervisor made: {exc}") from exc
        except BaseException:
            await self._end()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        if self._name_server is not None:
            self._name_server.stop()
        self._acceptor.stop()
        try:
            await self._tasks.end()
        finally:
            self._sockets.release()
