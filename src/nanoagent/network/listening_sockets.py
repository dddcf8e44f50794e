"""Receives the listening sockets of a container from its supervisor, and checks them.

The sockets belong to the network of a run. In the supervisor, src/nanosupervisor/listening.c creates and
sends them. Each message is one set of sockets. It consists of a byte 255, one byte for each socket (the
number of its address), and the descriptors (SCM_RIGHTS, unix(7)). The set of a sandbox arrives before the
sandbox is ready, and serves one run. At isolation level L1 the supervisor sends one set for all runs.

The descriptors come out of a container and are hostile. A descriptor is accepted only if all of this is true:
it is a TCP or UDP socket of the requested kind, address and port; if it is a TCP socket, it is neither
connected nor listening; and it belongs to another network than the worker's (checked since Linux 5.14). All
descriptors are closed in a thread: the supervisor may still hold them, and can decide how long closing takes
(`host.untrusted_fds`).
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from nanoagent.host import untrusted_fds
from nanoagent.model.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_LISTENING_SOCKETS: Final = 16  # as in src/nanosupervisor/wire.h
_BEFORE_NUMBERS: Final = b"\xff"
_MOST_SETS: Final = 16  # between two runs; if a sandbox is created again, a second set arrives
_MESSAGE_BYTES: Final = 1 + MAX_LISTENING_SOCKETS
_SO_PROTOCOL: Final = 38  # asm-generic/socket.h
_SO_NETNS_COOKIE: Final = 71  # asm-generic/socket.h, since Linux 5.14
_COOKIE: Final = struct.Struct("=Q")
# The kernel charges the buffers of accepted connections to the worker. It allocates twice this size
# (socket(7), SO_RCVBUF).
_BUFFER_BYTES: Final = 64 * 1024
_TCP_CLOSE: Final = 7  # a socket that is neither connected nor listening: net/tcp_states.h, struct tcp_info


class SocketKind(IntEnum):
    """The kinds of listening sockets. The numbers are those of wire.h."""

    TCP = 1
    UDP = 2


_KINDS: Final = {
    SocketKind.TCP: (int(socket.SOCK_STREAM), socket.IPPROTO_TCP),
    SocketKind.UDP: (int(socket.SOCK_DGRAM), socket.IPPROTO_UDP),
}


@dataclass(frozen=True, slots=True)
class ListeningAddress:
    """An address in a run's network at which the worker may listen.

    Attributes:
        kind: TCP or UDP.
        host: An IPv4 address of loopback, or 0.0.0.0 for all of them.
        port: The port number.
    """

    kind: SocketKind
    host: str
    port: int

    def encode(self) -> bytes:
        """Return it as `struct listening_address` of wire.h."""
        return struct.pack("<B4sH", self.kind, socket.inet_aton(self.host), self.port)


class ListeningSockets:
    """The listening sockets of one container.

    Args:
        channel: The supervisor's connection for these messages only.
        wanted: The addresses with which the supervisor was configured.
        kept: Whether one set serves all runs of the container (isolation level L1).
    """

    def __init__(self, channel: socket.socket, wanted: Sequence[ListeningAddress], *, kept: bool) -> None:
        self._channel = channel
        self._wanted = tuple(wanted)
        self._kept = kept
        self._open: dict[ListeningAddress, socket.socket] = {}

    def take(self) -> Mapping[ListeningAddress, socket.socket]:
        """Return the sockets of the run that is about to begin.

        A socket that the supervisor could not bind is missing.

        Raises:
            ProtocolError: The supervisor handed over an unexpected descriptor or message.
        """
        for _ in range(_MOST_SETS):
            received = self._receive()
            if received is None:
                return self._open
            self.release(all_of_them=True)
            self._open = received
        raise ProtocolError(f"the supervisor handed over more than {_MOST_SETS} sets of sockets")

    def release(self, *, all_of_them: bool = False) -> None:
        """Close the sockets after a run, unless they serve all runs of the container.

        Args:
            all_of_them: Close the sockets in any case.
        """
        if all_of_them or not self._kept:
            for opened in self._open.values():
                untrusted_fds.close_socket(opened)
            self._open = {}

    def close(self) -> None:
        """Close the channel and all sockets. Idempotent."""
        untrusted_fds.close_socket(self._channel)
        self.release(all_of_them=True)

    def _receive(self) -> dict[ListeningAddress, socket.socket] | None:
        """Return the next set; None if no set has arrived or the supervisor has closed the channel."""
        try:
            message, descriptors, flags = untrusted_fds.receive(self._channel, _MESSAGE_BYTES)
        except OSError:  # no message yet, or the connection is broken
            return None
        if not message and not descriptors:  # hung up
            return None
        try:
            is_cut = bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))
            return self._matched(message, descriptors, is_cut=is_cut)
        except ProtocolError:
            for descriptor in descriptors:
                untrusted_fds.close(descriptor)
            raise

    def _matched(
        self, message: bytes, descriptors: list[int], *, is_cut: bool
    ) -> dict[ListeningAddress, socket.socket]:
        """Return the socket of each address, after a check of the message and of each descriptor."""
        numbers = message[1:]
        if (
            is_cut
            or message[:1] != _BEFORE_NUMBERS
            or len(numbers) != len(descriptors)
            or len(set(numbers)) != len(numbers)
            or any(number >= len(self._wanted) for number in numbers)
        ):
            raise ProtocolError(
                "the supervisor handed over descriptors without the numbers of their addresses"
            )
        found: dict[ListeningAddress, socket.socket] = {}
        try:
            for number, descriptor in zip(numbers, descriptors, strict=True):
                address = self._wanted[number]
                found[address] = _checked_socket(descriptor, address)
        except (OSError, ProtocolError) as exc:
            for opened in found.values():
                opened.detach()  # the caller closes all descriptors
            raise ProtocolError(f"the supervisor handed over an unexpected descriptor: {exc}") from exc
        return found


def _checked_socket(descriptor: int, address: ListeningAddress) -> socket.socket:
    """Return the socket of a descriptor. If this raises, the caller still owns the descriptor.

    Raises:
        OSError: The descriptor is not a socket.
        ProtocolError: The socket does not match the address.
    """
    opened = socket.socket(socket.AF_INET, *_KINDS[address.kind], fileno=descriptor)
    try:
        _check(opened, address)
        opened.setblocking(False)
        # Accepted connections inherit these sizes.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    except BaseException:
        opened.detach()
        raise
    return opened


def _check(opened: socket.socket, wanted: ListeningAddress) -> None:
    ask = opened.getsockopt
    if (ask(socket.SOL_SOCKET, socket.SO_TYPE), ask(socket.SOL_SOCKET, _SO_PROTOCOL)) != _KINDS[wanted.kind]:
        raise ProtocolError(f"a socket of another kind than {wanted.kind.name}")
    address = opened.getsockname()  # another family has another shape
    if address != (wanted.host, wanted.port):
        raise ProtocolError(f"a socket at {address}, not at {wanted.host}:{wanted.port}")
    # A connected UDP socket is harmless: it only receives the queries of one peer.
    if wanted.kind is SocketKind.TCP and ask(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_CLOSE:
        raise ProtocolError("a socket that already listens or is connected")
    cookie = _network_of(opened)
    if cookie is not None and cookie == _own_network():
        raise ProtocolError("a socket of the host's network")


def _network_of(opened: socket.socket) -> int | None:
    """Return the kernel's number of the socket's network namespace; None before Linux 5.14."""
    try:
        return int(_COOKIE.unpack(opened.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size))[0])
    except OSError:
        return None


@lru_cache(maxsize=1)
def _own_network() -> int | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        return _network_of(own)
