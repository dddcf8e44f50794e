"""Untrusted descriptors: file descriptors that came from a container, closed in a thread of their own.

Closing can block: a program sets with SO_LINGER (socket(7)) for how long, while the other end of a TCP
connection takes no more data. The thread that drops the last reference closes. It may also be the thread that
reads a message without room for the descriptors in it (SCM_RIGHTS, unix(7)), or that closes a socket in which
such a message waits. In the event loop, a supervisor under attack could stop the worker by any of these. So
only this module receives and closes descriptors from containers.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from nanoagent.host.background import TaskName, keep_thread

if TYPE_CHECKING:
    import threading

# Of one message: SCM_MAX_FD, include/net/scm.h. What there is no room for, the kernel closes at once.
_MOST_IN_A_MESSAGE: Final = 253
_ROOM: Final = socket.CMSG_SPACE(_MOST_IN_A_MESSAGE * array.array("i").itemsize)
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_PIECE_BYTES: Final = 64 * 1024
_AT_ONCE: Final = struct.pack("ii", 1, 0)  # close without waiting: SO_LINGER, socket(7)
# Whoever sets SO_LINGER again at the right moment has one of them wait all the same.
_MOST_THREADS: Final = 8

_to_close: Final[SimpleQueue[int]] = SimpleQueue()
_threads: Final[list[threading.Thread]] = []


def close(descriptor: int) -> None:
    """Close it some time soon, without waiting here. From the loop's thread only."""
    _to_close.put(descriptor)
    if not _threads or (_to_close.qsize() > 1 and len(_threads) < _MOST_THREADS):
        # The worker's end does not wait for a thread that is stuck.
        _threads.append(keep_thread(TaskName.DESCRIPTOR_CLOSING, _close_next))


def close_socket(held: socket.socket) -> None:
    """`close` for what is held as a socket. Idempotent."""
    if (descriptor := held.detach()) >= 0:
        close(descriptor)


def receive(channel: socket.socket, size: int) -> tuple[bytes, list[int], int]:
    """What has come on a Unix socket: its bytes, the descriptors that are the caller's now, and flags.

    Args:
        channel: Nobody waits for it.
        size: Bytes to take at most.

    Raises:
        OSError: As `socket.recvmsg`; BlockingIOError where nothing is there.
    """
    said, ancillary, flags, _ = channel.recvmsg(size, _ROOM, _FLAGS)
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return said, numbers.tolist(), flags


class Connection(socket.socket):
    """A Unix connection to a container that has no descriptors to send; asyncio may have it."""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As of any socket that does not wait; whatever descriptors come with it are closed."""
        assert not flags  # noqa: S101 - asyncio gives none
        said, descriptors, _ = receive(self, size)
        for descriptor in descriptors:
            close(descriptor)
        return said

    def close(self) -> None:
        """Idempotent; see the module."""
        close_socket(self)


class Listener(socket.socket):
    """Listens for containers' connections."""

    def accept(self) -> tuple[Connection, Any]:
        """As of any socket."""
        accepted, address = super().accept()
        return Connection(fileno=accepted.detach()), address


def _close_next() -> None:
    _close(_to_close.get())


def _close(descriptor: int) -> None:
    try:
        stranger = socket.socket(fileno=descriptor)
    except OSError:  # no socket
        with suppress(OSError):
            os.close(descriptor)
        return
    with suppress(OSError):
        if stranger.family == socket.AF_UNIX:
            _empty(stranger)
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    with suppress(OSError):
        stranger.close()


def _empty(stranger: socket.socket) -> None:
    """Take what lies in it, one by one: what the kernel closes with it cannot be told not to wait."""
    with suppress(OSError):
        stranger.shutdown(socket.SHUT_RDWR)  # after that nothing more comes
    with suppress(OSError):
        while True:
            said, descriptors, _ = receive(stranger, _PIECE_BYTES)
            for descriptor in descriptors:
                _to_close.put(descriptor)
            if not said and not descriptors:
                return
