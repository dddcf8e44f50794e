"""The filtering path to the internet: names by DNS, and TCP to the hosts behind them.

A run that asks for an allowed name gets an address of 127.64.0.0/10, which stands for that name in this run
alone. What it connects to there arrives at the agent, which knows the name by the connection's own address,
and connects for it to an address that it has resolved and judged itself. So a name that resolves otherwise
a moment later helps nobody, a connection to an address that was never given out reaches nothing, and TLS
stays between the two ends.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakValueDictionary

from nanoagent.common.token_bucket import TokenBucket
from nanoagent.network import dns, policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nanoagent.network.policy import AllowedHosts, IPNetwork

_FIRST_ADDRESS: Final = int(ipaddress.IPv4Address("127.64.0.1"))
_MAX_NAMES: Final = 4096  # a run's; each is an entry of a few hundred bytes
_LOCALHOST: Final = "127.0.0.1"
_RESOLVE_S: Final = 10.0
_RESOLVERS: Final = 32  # threads that wait for the host's resolver, all runs together
_RESOLVING_AT_ONCE: Final = 4  # of one function, so that a slow name server of its own holds up few others
_FRESH_S: Final = 60.0  # as long as a name's addresses are taken without asking again
_CONNECT_S: Final = 10.0
_MOST_ADDRESSES: Final = 4  # of one name that are tried
_CHUNK_BYTES: Final = 64 * 1024
# Of a run, both directions together: of whatever size, one costs the loop 0.08 ms. Whole ones make 64 MB/s.
_PIECES_PER_S: Final = 1000.0
_PIECES_BURST: Final = 2000


class Resolve(Protocol):
    """Finds a name's addresses."""

    async def __call__(self, name: str) -> list[str]:
        """The addresses, as numbers; empty when there is no such name.

        Raises:
            OSError: It could not be asked.
        """
        ...


class Connect(Protocol):
    """Connects to an address that has been judged."""

    async def __call__(self, address: str, port: int) -> socket.socket:
        """A connected, non-blocking socket.

        Raises:
            OSError: It could not be reached.
        """
        ...


@dataclass(slots=True)
class _Host:
    """A name in one run.

    Attributes:
        stand_in: Its address in the run's network.
        addresses: Those of its own that may be reached.
        resolved_at: When they were found, by the loop's clock.
    """

    name: str
    stand_in: str
    addresses: list[str]
    resolved_at: float


class Egress:
    """The path, for all runs of a worker.

    Args:
        hosts: Which names may be reached.
        denied: Networks that may not, besides those that nobody may.
        max_bytes: For each run, both directions together.
        counted: Is told of each connection how it went: "connected", "refused", "unreachable" or "cut".
    """

    def __init__(
        self,
        hosts: AllowedHosts,
        denied: Sequence[IPNetwork],
        max_bytes: int,
        counted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._looking: set[asyncio.Future[list[str]]] = set()
        self.hosts = hosts
        self.max_bytes = max_bytes
        self.counted = counted
        # The three edges, which tests replace: there is no internet on every machine.
        self.may_reach: Callable[[str], bool] = partial(policy.is_public, denied=denied)
        self.resolve: Resolve = self._resolve
        self.connect: Connect = connect

    def visit(self, function_id: str = "") -> Visit:
        """What one run has of it.

        Args:
            function_id: Whose names wait for one another, over all its runs.
        """
        places = self._places.get(function_id)
        if places is None:
            places = self._places[function_id] = asyncio.Semaphore(_RESOLVING_AT_ONCE)
        return Visit(self, places)

    async def find(self, name: str, places: asyncio.Semaphore) -> list[str]:
        """A name's addresses.

        Whoever asks waits for a bounded time, but the place is taken for as long as a thread is busy with it:
        nobody can have others' threads by not waiting, as a run does that ends.

        Raises:
            OSError: It could not be asked, or not in time.
        """
        await places.acquire()
        looking = asyncio.ensure_future(self.resolve(name))
        self._looking.add(looking)

        def ended(_: object) -> None:
            places.release()
            self._looking.discard(looking)
            if not looking.cancelled():
                looking.exception()  # told to whoever still waits, and otherwise to nobody

        looking.add_done_callback(ended)
        async with asyncio.timeout(_RESOLVE_S):
            return await asyncio.shield(looking)

    async def _resolve(self, name: str) -> list[str]:
        if self._threads is None:  # threads of its own: others' names may be slow for as long as others like
            self._threads = ThreadPoolExecutor(_RESOLVERS, "resolve")
        # Absolute, so that the host's search domains are no part of it; as bytes, because it is ASCII
        # already.
        ask = partial(socket.getaddrinfo, f"{name}.".encode(), None, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        except socket.gaierror as exc:
            if exc.errno in {socket.EAI_NONAME, socket.EAI_NODATA}:
                return []
            raise
        return [str(address[0]) for *_, address in found]

    def close(self) -> None:
        """Let go of the threads. Idempotent."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None


async def connect(address: str, port: int) -> socket.socket:
    """See `Connect`; an address of this host's own is not reached, whatever it is."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # sends nothing
        probe.connect((address, port))
        if _is_hosts_own(address, probe.getsockname()[0]):
            raise OSError("an address of the host's own")
    connecting = socket.socket(family, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connecting, (address, port))
    except BaseException:
        connecting.close()
        raise
    return connecting


def _is_hosts_own(address: str, source: str) -> bool:
    """Whether an address is this host's, by the address that would be the source of what is sent to it.

    That is the same address for most, but for a second one in a network the first; so it is asked for as well
    whether somebody here could listen there.
    """
    if source == address:
        return True
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        # With ip_nonlocal_bind (ip-sysctl.rst) one can listen anywhere, and that says nothing.
        setting = Path("/proc/sys/net", "ipv6" if ":" in address else "ipv4", "ip_nonlocal_bind")
        with suppress(OSError):
            return setting.read_text("ascii").strip() == "0"
    return True


class Visit:
    """The path, as one run has it: its names and what is left of its bytes."""

    def __init__(self, egress: Egress, places: asyncio.Semaphore) -> None:
        self._egress = egress
        self._places = places
        self._hosts: dict[str, _Host] = {}
        self._stand_ins: dict[str, _Host] = {}
        self._bytes_left = egress.max_bytes
        self._pieces = TokenBucket.full(_PIECES_PER_S, _PIECES_BURST, _now())

    # --- names

    async def answer(self, message: bytes) -> bytes | None:
        """The answer to a query that a run has sent, None for what deserves none."""
        query = dns.parse(message)
        if not isinstance(query, dns.Query):
            return query
        if query.name.lower() == "localhost":
            return dns.answer(query, _LOCALHOST if query.wants_address else None)
        try:
            host = await self._host(query.name)
        except OSError:
            return dns.answer(query, code=dns.Code.FAILED)
        if host is None:
            return dns.answer(query, code=dns.Code.NO_SUCH_NAME)
        return dns.answer(query, host.stand_in if query.wants_address else None)

    async def _host(self, asked: str) -> _Host | None:
        """What stands for a name; None when it may not be reached, has no public address, or is none."""
        name = policy.host_name(asked)
        if name is None or not self._egress.hosts.allows(name):
            return None
        host = self._hosts.get(name)
        if host is not None and not self._is_stale(host):
            return host
        addresses = await self._resolved(name)
        host = self._hosts.get(name)
        if host is not None:
            host.addresses, host.resolved_at = addresses, _now()
        elif addresses:
            if len(self._hosts) >= _MAX_NAMES:
                raise OSError(f"more than {_MAX_NAMES} names")
            stand_in = str(ipaddress.IPv4Address(_FIRST_ADDRESS + len(self._hosts)))
            host = _Host(name, stand_in, addresses, _now())
            self._hosts[name] = self._stand_ins[stand_in] = host
        return host if addresses else None

    async def _resolved(self, name: str) -> list[str]:
        found = await self._egress.find(name, self._places)
        return [address for address in dict.fromkeys(found) if self._egress.may_reach(address)][
            :_MOST_ADDRESSES
        ]

    @staticmethod
    def _is_stale(host: _Host) -> bool:
        return _now() - host.resolved_at > _FRESH_S

    # --- connections

    async def serve(self, connection: socket.socket) -> None:
        """Connect through to where a run meant to connect to, until both ends are done or its bytes are.

        Raises:
            OSError: It may not go there, or nobody is there.
        """
        address, port = connection.getsockname()
        host = self._stand_ins.get(address)
        if host is None:  # an address that stands for nothing
            self._egress.counted("refused")
            raise ConnectionRefusedError
        far = await self._reached(host, port)
        if far is None:
            self._egress.counted("unreachable")
            raise ConnectionRefusedError
        self._egress.counted("connected")
        with far:
            await self._relay(connection, far)

    async def _reached(self, host: _Host, port: int) -> socket.socket | None:
        with suppress(OSError):
            if self._is_stale(host):
                await self._host(host.name)
            for address in host.addresses:
                with suppress(OSError):  # TimeoutError is one
                    async with asyncio.timeout(_CONNECT_S):
                        return await self._egress.connect(address, port)
        return None

    async def _relay(self, near: socket.socket, far: socket.socket) -> None:
        both = [asyncio.ensure_future(self._pump(near, far)), asyncio.ensure_future(self._pump(far, near))]
        try:
            # An error of one ends both; an end of one is told to the other, which goes on.
            await asyncio.gather(*both)
        except OSError:
            if self._bytes_left < 0:
                self._egress.counted("cut")
            raise
        finally:
            for pump in both:
                pump.cancel()
            await asyncio.wait(both)

    async def _pump(self, source: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, _CHUNK_BYTES):
            self._bytes_left -= len(data)
            if self._bytes_left < 0:
                raise OSError("the run has moved as many bytes as it may")
            await loop.sock_sendall(target, data)
            # Neither waits for anything while both ends are quick: others come first, also where it is 0.
            await asyncio.sleep(self._pieces.delay_s(_now()))
        target.shutdown(socket.SHUT_WR)


def _now() -> float:
    return asyncio.get_running_loop().time()
