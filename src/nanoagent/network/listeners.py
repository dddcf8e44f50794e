"""A run's network: listens on its sockets while the run may use them, and accepts its connections.

**Accepting is done in threads.** The supervisor may still hold the sockets that it has handed over, and
whoever holds a socket can make it one that blocks. In the loop, an accept that blocks would stop the whole
worker; in a thread it is woken by shutting the socket down. Connections, once accepted, are the agent's
alone.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.common import gateway_address
from nanoagent.common.token_bucket import TokenBucket
from nanoagent.host.shielding import until_done
from nanoagent.model.errors import ProtocolError
from nanoagent.model.job import NetworkPolicy
from nanoagent.network import dns
from nanoagent.network.listening_sockets import ListeningAddress, SocketKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from nanoagent.network.base import Gateway, NetworkRun
    from nanoagent.network.egress import Egress
    from nanoagent.network.listening_sockets import ListeningSockets

    Serve = Callable[[socket.socket], Awaitable[None]]

log = structlog.get_logger(__name__)

GATEWAY: Final = ListeningAddress(SocketKind.TCP, gateway_address.HOST, gateway_address.PORT)
NAMES: Final = ListeningAddress(SocketKind.UDP, "127.0.0.1", 53)
_BACKLOG: Final = 16
_ACCEPT_S: Final = 2.0  # an accept that was promised to be immediate
_ACCEPTING_THREADS: Final = 4
_QUERIES_AT_ONCE: Final = 32  # of a run; more are not answered, and asked again
_QUERIES_IN_A_TURN: Final = 8
_MOST_LEFT_OVER: Final = 1024  # queries; fewer fit into the socket
# Of a run. A connection costs the worker some 0.2 ms of CPU time, a name lookup 0.3 ms.
_KNOCKS_PER_S: Final = 100.0
_KNOCKS_BURST: Final = 100
_RESET: Final = struct.pack("ii", 1, 0)  # close at once, and tell the other end so: SO_LINGER, socket(7)
_DO_NOT_LINGER: Final = struct.pack("ii", 0, 0)


class Network:
    """What the runs of a worker may reach.

    Args:
        policy: The widest that a run can have.
        gateway: To models; None where there is none.
        egress: To the internet; None where there is none.
        egress_ports: The TCP ports that runs may connect to there.
        max_connections: Of one run at a time, all its sockets together; more wait to be accepted.
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
        self._told = False
        self._threads = ThreadPoolExecutor(_ACCEPTING_THREADS, "accept")
        wanted: list[ListeningAddress] = []
        if policy.allows(NetworkPolicy.AI) and gateway is not None:
            wanted.append(GATEWAY)
        if policy.allows(NetworkPolicy.EGRESS) and egress is not None:
            wanted.append(NAMES)
            # All of loopback: an address there stands for a name.
            wanted += [ListeningAddress(SocketKind.TCP, "0.0.0.0", port) for port in egress_ports]  # noqa: S104
        self.listening_addresses = tuple(wanted)

    def opened(self, sockets: ListeningSockets | None, run: NetworkRun) -> AbstractAsyncContextManager[None]:
        """Let a run reach what its policy allows, for as long as the block lasts.

        At the block's end nobody listens any more, every connection is cut, and whoever served one has ended.

        Args:
            sockets: Of its container; None where there are none.
            run: Which one.
        """
        if not self.listening_addresses:
            return nullcontext()
        if sockets is None:
            self._warn_of_no_sockets(run)
            return nullcontext()
        # For a run that may reach nothing as well: what was handed over for it is to be let go, or networks
        # of runs that are over would pile up; and where names can be asked for, it is told that there are
        # none.
        return _Opened(
            sockets, self._services(run), self._threads, self._max_connections, self._warn_of_no_sockets
        )

    def _warn_of_no_sockets(self, run: NetworkRun) -> None:
        """Say so once: every run of such a container is alike, and goes on."""
        if run.policy is not NetworkPolicy.NONE and not self._told:
            self._told = True
            log.warning(
                "runs cannot reach what NETWORK allows: their container hands over no sockets. A kernel of "
                "its own (gVisor, a virtual machine) cannot; calls of models are refused there",
                network=str(run.policy),
                runtime=str(run.runtime),
            )

    def _services(self, run: NetworkRun) -> _Services:
        gateway, egress = self._gateway, self._egress
        services = _Services(run)
        if gateway is not None and run.policy.allows(NetworkPolicy.AI):
            services.by_address[GATEWAY] = lambda connection: gateway.serve(connection, run)
        if egress is not None and run.policy.allows(NetworkPolicy.EGRESS):
            visit = egress.visit(run.function_id)
            services.answer = visit.answer
            for address in self.listening_addresses:
                if address not in {GATEWAY, NAMES}:
                    services.by_address[address] = visit.serve
        return services

    def close(self) -> None:
        """Let go of the threads. Idempotent."""
        self._threads.shutdown(wait=False)


async def _no_such_name(message: bytes) -> bytes | None:
    query = dns.parse(message)
    return dns.answer(query, code=dns.Code.NO_SUCH_NAME) if isinstance(query, dns.Query) else query


class _Services:
    """The service of each address; the agent does not listen at an address without a service."""

    def __init__(self, run: NetworkRun) -> None:
        self.run = run
        self.by_address: dict[ListeningAddress, Serve] = {}
        self.answer: Callable[[bytes], Awaitable[bytes | None]] = _no_such_name


class _Opened:
    """One run's network, while it is open.

    Most runs open no connection, and pay for this all the same. So it has no task, and uses descriptors by
    their number, because asyncio describes in words any object that it does not know yet.
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
        self._threads = threads
        self._warn_of_no_sockets = warn_of_no_sockets
        self._places = asyncio.Semaphore(max_connections)
        self._loop = asyncio.get_running_loop()
        self._listening: list[socket.socket] = []
        self._answering: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._knocks = TokenBucket.full(_KNOCKS_PER_S, _KNOCKS_BURST, self._loop.time())
        self._queries = TokenBucket.full(_KNOCKS_PER_S, _KNOCKS_BURST, self._loop.time())
        self._queries_pending = 0
        self._ended = False

    async def __aenter__(self) -> None:
        try:
            taken = self._sockets.take()
            if not taken:
                self._warn_of_no_sockets(self._services.run)
            for address, opened in taken.items():
                serve = self._services.by_address.get(address)
                if address == NAMES:
                    _drain(opened)
                    self._answering.append(opened)
                    self._loop.add_reader(opened.fileno(), self._asked, opened)
                elif serve is not None:
                    opened.listen(_BACKLOG)
                    self._listening.append(opened)
                    self._loop.add_reader(opened.fileno(), self._knocked, opened, serve)
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
        self._ended = True
        for opened in self._answering:
            self._loop.remove_reader(opened.fileno())
        for opened in self._listening:
            self._loop.remove_reader(opened.fileno())
            with suppress(OSError):
                # Ends listening, resets what nobody has accepted, and wakes whoever accepts; the port stays
                # bound.
                opened.shutdown(socket.SHUT_RDWR)
        for task in self._tasks:
            task.cancel()
        try:
            await until_done(*self._tasks)
        finally:
            self._sockets.release()

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)  # noqa: S101 - only coroutines are passed
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- connections

    def _knocked(self, listener: socket.socket, serve: Serve) -> None:
        self._loop.remove_reader(listener.fileno())
        self._spawn(self._let_in(listener, serve))

    async def _let_in(self, listener: socket.socket, serve: Serve) -> None:
        """Accept one connection, watch for the next, and serve this one to its end."""
        async with self._places:
            if (delay_s := self._knocks.delay_s(self._loop.time())) > 0:
                await asyncio.sleep(delay_s)
            connection = await self._accepted(listener)
            # Where another that holds the socket has ended its listening, there would be knocks without end.
            if not self._ended and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                self._loop.add_reader(listener.fileno(), self._knocked, listener, serve)
            if connection is None:
                return
            try:
                await serve(connection)
            except OSError:
                _reset(connection)  # hung up on, most likely
            except asyncio.CancelledError:
                _reset(connection)
                raise
            except Exception:
                _reset(connection)
                log.exception("internal error", operation="serve a connection")
            finally:
                connection.close()

    async def _accepted(self, listener: socket.socket) -> socket.socket | None:
        """The next connection; None when there is none any more."""
        accepting = self._loop.run_in_executor(self._threads, _accept, listener)
        too_late = self._loop.call_later(_ACCEPT_S, _shut, listener)
        try:
            # When this is cancelled the listener is closed next: not while a thread has its number.
            await until_done(accepting)
            return accepting.result()
        except asyncio.CancelledError:
            if (connection := accepting.result()) is not None:
                _reset(connection)
                connection.close()
            raise
        finally:
            too_late.cancel()

    # --- names

    def _asked(self, opened: socket.socket) -> None:
        """Take what has come, a few at a time; each is answered by a task of its own."""
        delay_s = 0.0
        for turn in range(_QUERIES_IN_A_TURN):
            try:
                message, asker = opened.recvfrom(dns.MAX_QUERY_BYTES + 1, socket.MSG_DONTWAIT)
            except OSError:
                if turn == 0:  # another that holds the socket can have us woken for nothing, again and again
                    delay_s = self._queries.delay_s(self._loop.time())
                break
            delay_s = self._queries.delay_s(self._loop.time())
            if self._queries_pending < _QUERIES_AT_ONCE:
                self._queries_pending += 1
                self._spawn(self._reply(opened, message, asker))
        if delay_s > 0:
            self._loop.remove_reader(opened.fileno())
            self._spawn(self._ask_again(opened, delay_s))

    async def _ask_again(self, opened: socket.socket, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if not self._ended:
            self._loop.add_reader(opened.fileno(), self._asked, opened)

    async def _reply(self, opened: socket.socket, message: bytes, asker: tuple[str, int]) -> None:
        try:
            reply = await self._services.answer(message)
            if reply is not None:
                opened.sendto(reply, socket.MSG_DONTWAIT, asker)
        except OSError:
            pass  # it has gone, or takes no more
        except Exception:
            log.exception("internal error", operation="serve a connection")
        finally:
            self._queries_pending -= 1


def _accept(listener: socket.socket) -> socket.socket | None:
    """In a thread: see the module."""
    try:
        connection, _ = listener.accept()
    except OSError:
        return None
    connection.setblocking(False)
    with suppress(OSError):
        # Taken over from the listener, where the supervisor may have set it: closing would wait.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DO_NOT_LINGER)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _drain(opened: socket.socket) -> None:
    """Take what the run before has asked last: nobody is there to hear of it."""
    with suppress(OSError):
        for _ in range(_MOST_LEFT_OVER):
            opened.recvfrom(0, socket.MSG_DONTWAIT)


def _shut(listener: socket.socket) -> None:
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
