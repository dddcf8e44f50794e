"""The egress filter: connects runs to hosts of the internet that they are allowed to reach, by name.

If a run asks for the address of an allowed name, it gets an address of 127.64.0.0/10. This stand-in address
stands for the name, and only in this run. A connection to the stand-in address arrives at the worker. The
worker looks up which name the address stands for, resolves this name itself, checks the resulting addresses,
and connects to one of them.

Therefore DNS rebinding has no effect: the worker connects to the address that it has checked. A connection to
an address that stands for no name is refused. TLS is end to end between the program and the remote host.
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

_FIRST_STAND_IN: Final = int(ipaddress.IPv4Address("127.64.0.1"))
_MAX_NAMES: Final = 4096  # of one run; each takes a few hundred bytes
_LOCALHOST: Final = "127.0.0.1"
_RESOLVE_S: Final = 10.0  # includes the time that a lookup waits for other lookups of its function
_RESOLVING_THREADS: Final = 32  # for all runs; each waits for the host's resolver
# The number of lookups that one function may have in progress. If the names of a function have a slow name
# server, this limit keeps most threads free.
_LOOKUPS_PER_FUNCTION: Final = 4
_FRESH_S: Final = 60.0  # after this time, a name is resolved again
_CONNECT_S: Final = 10.0
_MOST_ADDRESSES: Final = 4  # of one name; the worker tries at most this many
_CHUNK_BYTES: Final = 64 * 1024
# The rate limit of one run, in chunks of any size, both directions together. A chunk takes about 0.08 ms of
# the event loop. Full chunks make 64 MB/s.
_CHUNKS_PER_S: Final = 1000.0
_CHUNKS_BURST: Final = 2000


class Resolve(Protocol):
    """Resolves names."""

    async def __call__(self, name: str) -> list[str]:
        """Return the numeric addresses of a name. The list is empty if the name does not exist.

        Raises:
            OSError: The lookup failed.
        """
        ...


class Connect(Protocol):
    """Connects to addresses that have been checked."""

    async def __call__(self, address: str, port: int) -> socket.socket:
        """Return a connected, non-blocking socket.

        Raises:
            OSError: The host was not reached.
        """
        ...


@dataclass(slots=True)
class _Host:
    """A name in one run.

    Attributes:
        name: The name.
        stand_in: Its stand-in address in the run's network.
        addresses: Its addresses in the internet that the run may reach.
        resolved_at: The time of the lookup, by the loop's clock, in seconds.
    """

    name: str
    stand_in: str
    addresses: list[str]
    resolved_at: float


class Egress:
    """The egress filter of a worker, for all runs.

    Args:
        hosts: The allowed names.
        denied: Networks that are not allowed, in addition to the private networks in `policy`.
        max_bytes: The largest number of bytes of one run, both directions together.
        count: Called for each connection with "connected", "refused" or "unreachable". Called again with
            "cut" if the connection ends because the run has used up its bytes.
    """

    def __init__(
        self,
        hosts: AllowedHosts,
        denied: Sequence[IPNetwork],
        max_bytes: int,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._lookup_limits: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._lookups: set[asyncio.Future[list[str]]] = set()
        self.hosts = hosts
        self.max_bytes = max_bytes
        self.count = count
        # Tests replace these three, because not every machine has access to the internet.
        self.may_reach: Callable[[str], bool] = partial(policy.is_public, denied=denied)
        self.resolve: Resolve = self._resolve
        self.connect: Connect = connect

    def for_run(self, function_id: str = "") -> RunEgress:
        """Return the egress filter of one run.

        Args:
            function_id: The function of the run. All runs of a function share one limit on lookups.
        """
        lookup_limit = self._lookup_limits.get(function_id)
        if lookup_limit is None:
            lookup_limit = self._lookup_limits[function_id] = asyncio.Semaphore(_LOOKUPS_PER_FUNCTION)
        return RunEgress(self, lookup_limit)

    async def find(self, name: str, lookup_limit: asyncio.Semaphore) -> list[str]:
        """Return the addresses of a name.

        The caller waits for a limited time, which includes the time until the limit of the function allows
        the lookup. Then the lookup counts towards the limit until its thread is free again, even if the
        caller no longer waits. Otherwise a function could block all threads with many short runs, each of
        which starts lookups.

        Args:
            name: The name.
            lookup_limit: The limit of the function.

        Raises:
            OSError: The lookup failed or took too long.
        """
        async with asyncio.timeout(_RESOLVE_S):
            await lookup_limit.acquire()
            lookup = asyncio.ensure_future(self.resolve(name))
            self._lookups.add(lookup)

            def ended(_: object) -> None:
                lookup_limit.release()
                self._lookups.discard(lookup)
                if not lookup.cancelled():
                    lookup.exception()  # otherwise asyncio logs it if the caller no longer waits

            lookup.add_done_callback(ended)
            return await asyncio.shield(lookup)

    async def _resolve(self, name: str) -> list[str]:
        if self._threads is None:  # separate threads, because foreign name servers may be slow
            self._threads = ThreadPoolExecutor(_RESOLVING_THREADS, "resolve")
        # The dot at the end excludes the host's search domains. The name is passed as bytes, because Python
        # would encode a str as IDNA.
        lookup = partial(socket.getaddrinfo, f"{name}.".encode(), None, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        except socket.gaierror as exc:
            if exc.errno in {socket.EAI_NONAME, socket.EAI_NODATA}:
                return []
            raise
        return [str(address[0]) for *_, address in found]

    def close(self) -> None:
        """End the threads without waiting for them. Idempotent."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None


async def connect(address: str, port: int) -> socket.socket:
    """See `Connect`. An address of this host is refused, whatever network it belongs to."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # connecting a UDP socket sends nothing
        probe.connect((address, port))
        if _is_of_this_host(address, probe.getsockname()[0]):
            raise OSError("an address of this host")
    connecting = socket.socket(family, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connecting, (address, port))
    except BaseException:
        connecting.close()
        raise
    return connecting


def _is_of_this_host(address: str, source: str) -> bool:
    """Whether an address belongs to this host.

    For most addresses of the host, `source` is the address itself. If the host has two addresses in one
    network, then for the second one `source` is the first one. So this function also tests whether a socket
    can be bound to the address.

    Args:
        address: The address.
        source: The source address of packets to it.
    """
    if source == address:
        return True
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        # With ip_nonlocal_bind (ip-sysctl.rst) a socket can be bound to any address, so the test tells
        # nothing.
        setting = Path("/proc/sys/net", "ipv6" if ":" in address else "ipv4", "ip_nonlocal_bind")
        with suppress(OSError):
            return setting.read_text("ascii").strip() == "0"
    return True


class RunEgress:
    """The egress filter of one run: its names, and the bytes that it may still use.

    Args:
        egress: The egress filter of the worker.
        lookup_limit: Limits the lookups of the run's function.
    """

    def __init__(self, egress: Egress, lookup_limit: asyncio.Semaphore) -> None:
        self._egress = egress
        self._lookup_limit = lookup_limit
        self._hosts: dict[str, _Host] = {}
        self._by_stand_in: dict[str, _Host] = {}
        self._bytes_left = egress.max_bytes
        self._rate_limit = TokenBucket.full(_CHUNKS_PER_S, _CHUNKS_BURST, _now())

    # --- names

    async def answer(self, message: bytes) -> bytes | None:
        """Return the answer to a DNS message of the run; None if it gets no answer."""
        query = dns.parse(message)
        if not isinstance(query, dns.Query):
            return query
        if query.name.lower() == "localhost":
            return dns.answer(query, _LOCALHOST if query.wants_address else None)
        try:
            host = await self._host(query.name)
        except OSError:
            return dns.answer(query, code=dns.ResponseCode.FAILED)
        if host is None:
            return dns.answer(query, code=dns.ResponseCode.NO_SUCH_NAME)
        return dns.answer(query, host.stand_in if query.wants_address else None)

    async def _host(self, asked: str) -> _Host | None:
        """Return the host of a name; None if the name is not allowed, invalid, or has no public address.

        Raises:
            OSError: The lookup failed, or the run has used too many names.
        """
        name = policy.host_name(asked)
        if name is None or not self._egress.hosts.allows(name):
            return None
        host = self._hosts.get(name)
        if host is not None and not self._is_stale(host):
            return host
        addresses = await self._resolve(name)
        host = self._hosts.get(name)
        if host is not None:
            host.addresses, host.resolved_at = addresses, _now()
        elif addresses:
            if len(self._hosts) >= _MAX_NAMES:
                raise OSError(f"more than {_MAX_NAMES} names")
            stand_in = str(ipaddress.IPv4Address(_FIRST_STAND_IN + len(self._hosts)))
            host = _Host(name, stand_in, addresses, _now())
            self._hosts[name] = self._by_stand_in[stand_in] = host
        return host if addresses else None

    async def _resolve(self, name: str) -> list[str]:
        """Return those addresses of a name that the run may reach."""
        found = await self._egress.find(name, self._lookup_limit)
        return [address for address in dict.fromkeys(found) if self._egress.may_reach(address)][
            :_MOST_ADDRESSES
        ]

    @staticmethod
    def _is_stale(host: _Host) -> bool:
        return _now() - host.resolved_at > _FRESH_S

    # --- connections

    async def serve(self, connection: socket.socket) -> None:
        """Connect a program to the host that it wants, and pass data in both directions.

        Returns when both ends have finished.

        Args:
            connection: The accepted connection. Its own address is the stand-in of the host.

        Raises:
            OSError: The host is not allowed or was not reached, or the run has used up its bytes.
        """
        address, port = connection.getsockname()
        host = self._by_stand_in.get(address)
        if host is None:  # the address does not stand for a name
            self._egress.count("refused")
            raise ConnectionRefusedError
        far = await self._connect(host, port)
        if far is None:
            self._egress.count("unreachable")
            raise ConnectionRefusedError
        self._egress.count("connected")
        with far:
            await self._relay(connection, far)

    async def _connect(self, host: _Host, port: int) -> socket.socket | None:
        """Connect to the first address of a host that can be reached; None if no address can be reached."""
        with suppress(OSError):
            if self._is_stale(host):
                await self._host(host.name)
            for address in host.addresses:
                with suppress(OSError):  # includes TimeoutError
                    async with asyncio.timeout(_CONNECT_S):
                        return await self._egress.connect(address, port)
        return None

    async def _relay(self, near: socket.socket, far: socket.socket) -> None:
        both = [asyncio.ensure_future(self._pump(near, far)), asyncio.ensure_future(self._pump(far, near))]
        try:
            # An error in one direction ends both directions. If one direction has finished, the other one
            # continues.
            await asyncio.gather(*both)
        except OSError:
            if self._bytes_left < 0:
                self._egress.count("cut")
            raise
        finally:
            for pump in both:
                pump.cancel()
            await asyncio.wait(both)

    async def _pump(self, source: socket.socket, target: socket.socket) -> None:
        """Pass data in one direction until the source has finished."""
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, _CHUNK_BYTES):
            self._bytes_left -= len(data)
            if self._bytes_left < 0:
                raise OSError("the run has used up its bytes (EGRESS_MAX_MB)")
            await loop.sock_sendall(target, data)
            # If both ends are fast, receiving and sending never wait. Even a sleep of 0 s lets other tasks
            # run.
            await asyncio.sleep(self._rate_limit.delay_s(_now()))
        target.shutdown(socket.SHUT_WR)


def _now() -> float:
    return asyncio.get_running_loop().time()
