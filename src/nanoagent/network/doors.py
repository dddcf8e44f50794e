"""The agent's end of a container's doors: sockets in its network, handed over by its supervisor.

The supervisor's end is src/nanosupervisor/doors.c. Each message is one set: a byte 255, the number of each
door whose descriptor comes with it, and the descriptors (SCM_RIGHTS, unix(7)). A sandbox's set comes before
it is ready for its run and is of use for that run alone; at the shared level the one set is the container's
for good.

What comes here comes out of a container and is hostile. A descriptor is taken for a door only if it is a
TCP or UDP socket of the kind, address and port that were asked for, which nobody has connected or listens
on, in a network that is not our own. All others are closed, and so are those, where nobody waits for it: the
supervisor may still hold them, and decide how long closing takes (`host.untrusted_fds`).
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

MAX_DOORS: Final = 16  # of src/nanosupervisor/wire.h
_BEFORE_NUMBERS: Final = b"\xff"
_MOST_SETS: Final = 16  # at once; two come where an interpreter was parked, and parked anew
_MESSAGE_BYTES: Final = 1 + MAX_DOORS
_SO_PROTOCOL: Final = 38  # asm-generic/socket.h
_SO_NETNS_COOKIE: Final = 71  # the same, since Linux 5.14
_COOKIE: Final = struct.Struct("=Q")
# What the kernel holds for a connection that the agent has accepted is charged to the agent. The kernel
# takes the double (socket(7), SO_RCVBUF).
_BUFFER_BYTES: Final = 64 * 1024
_TCP_CLOSE: Final = 7  # of a socket that is neither connected nor listens: net/tcp_states.h, struct tcp_info


class DoorKind(IntEnum):
    """The numbers are wire.h's."""

    TCP = 1
    UDP = 2


_KINDS: Final = {
    DoorKind.TCP: (int(socket.SOCK_STREAM), socket.IPPROTO_TCP),
    DoorKind.UDP: (int(socket.SOCK_DGRAM), socket.IPPROTO_UDP),
}


@dataclass(frozen=True, slots=True)
class Door:
    """Where the agent may listen in a run's network.

    Attributes:
        kind: TCP or UDP.
        host: An IPv4 address of loopback, or 0.0.0.0 for all of them.
        port: Its number.
    """

    kind: DoorKind
    host: str
    port: int

    def encode(self) -> bytes:
        """`struct door` of wire.h."""
        return struct.pack("<B4sH", self.kind, socket.inet_aton(self.host), self.port)


class Doors:
    """The doors of one container.

    Args:
        channel: The supervisor's connection, which serves for nothing else.
        wanted: What its supervisor was configured with.
        kept: Whether they are the container's for good, not a sandbox's.
    """

    def __init__(self, channel: socket.socket, wanted: Sequence[Door], *, kept: bool) -> None:
        self._channel = channel
        self._wanted = tuple(wanted)
        self._kept = kept
        self._open: dict[Door, socket.socket] = {}

    def take(self) -> Mapping[Door, socket.socket]:
        """The doors of the run that is about to begin; those that could not be made are missing.

        Raises:
            ProtocolError: The supervisor has handed over what is none.
        """
        for _ in range(_MOST_SETS):
            received = self._receive()
            if received is None:
                return self._open
            self.release(all_of_them=True)
            self._open = received
        raise ProtocolError(f"the supervisor handed over more than {_MOST_SETS} sets of doors")

    def release(self, *, all_of_them: bool = False) -> None:
        """The run is over: let go of what is of no more use."""
        if all_of_them or not self._kept:
            for door in self._open.values():
                untrusted_fds.close_socket(door)
            self._open = {}

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        untrusted_fds.close_socket(self._channel)
        self.release(all_of_them=True)

    def _receive(self) -> dict[Door, socket.socket] | None:
        """The next set, or None while there is no other."""
        try:
            said, descriptors, flags = untrusted_fds.receive(self._channel, _MESSAGE_BYTES)
        except OSError:  # nothing there, or nobody any more
            return None
        if not said and not descriptors:  # hung up
            return None
        try:
            is_cut = bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))
            return self._matched(said, descriptors, is_cut=is_cut)
        except ProtocolError:
            for descriptor in descriptors:
                untrusted_fds.close(descriptor)
            raise

    def _matched(self, said: bytes, descriptors: list[int], *, is_cut: bool) -> dict[Door, socket.socket]:
        """Each descriptor as the door that it is said to be."""
        numbers = said[1:]
        if (
            is_cut
            or said[:1] != _BEFORE_NUMBERS
            or len(numbers) != len(descriptors)
            or len(set(numbers)) != len(numbers)
            or any(number >= len(self._wanted) for number in numbers)
        ):
            raise ProtocolError("the supervisor handed over descriptors without saying which doors they are")
        found: dict[Door, socket.socket] = {}
        try:
            for number, descriptor in zip(numbers, descriptors, strict=True):
                door = self._wanted[number]
                found[door] = _door(descriptor, door)
        except (OSError, ProtocolError) as exc:
            for opened in found.values():
                opened.detach()  # closed with the others
            raise ProtocolError(f"the supervisor handed over what is no door: {exc}") from exc
        return found


def _door(descriptor: int, door: Door) -> socket.socket:
    """The socket behind a descriptor, which stays the caller's when this raises.

    Raises:
        OSError: It is no socket.
        ProtocolError: It is another than the door asks for.
    """
    opened = socket.socket(socket.AF_INET, *_KINDS[door.kind], fileno=descriptor)
    try:
        _check(opened, door)
        opened.setblocking(False)
        # What is accepted has the same.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    except BaseException:
        opened.detach()
        raise
    return opened


def _check(opened: socket.socket, door: Door) -> None:
    ask = opened.getsockopt
    if (ask(socket.SOL_SOCKET, socket.SO_TYPE), ask(socket.SOL_SOCKET, _SO_PROTOCOL)) != _KINDS[door.kind]:
        raise ProtocolError(f"a socket of another kind than {door.kind.name}")
    address = opened.getsockname()  # of another family it is of another shape
    if address != (door.host, door.port):
        raise ProtocolError(f"a socket at {address}, not at {door.host}:{door.port}")
    # Of UDP, a connection to somewhere would only keep others from asking.
    if door.kind is DoorKind.TCP and ask(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_CLOSE:
        raise ProtocolError("a socket that listens already, or is connected")
    cookie = _network_of(opened)
    if cookie is not None and cookie == _own_network():
        raise ProtocolError("a socket of the host's network")


def _network_of(of: socket.socket) -> int | None:
    """What the kernel knows a network namespace by; None where it is too old to say."""
    try:
        return int(_COOKIE.unpack(of.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size))[0])
    except OSError:
        return None


@lru_cache(maxsize=1)
def _own_network() -> int | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        return _network_of(own)
