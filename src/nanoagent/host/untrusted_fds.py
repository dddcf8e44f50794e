"""Receives and closes untrusted descriptors: file descriptors that came from a container.

Closing a socket can block while the other end of a TCP connection takes no more data. With SO_LINGER
(socket(7)), a program sets how long. The thread that drops the last reference to the socket blocks. This can
be the thread that

* closes the descriptor,
* reads a message with descriptors (SCM_RIGHTS, unix(7)) into a buffer that has no room for them, or
* closes a socket in which such a message waits.

If the event loop did one of these, a supervisor that an attacker controls could stop the worker. So only this
module receives and closes descriptors from containers, and it closes them in threads.
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

# SCM_MAX_FD in include/net/scm.h. If the buffer has no room for a descriptor, the kernel closes it at once.
_MAX_IN_MESSAGE: Final = 253
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_MAX_IN_MESSAGE * array.array("i").itemsize)
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_READ_BYTES: Final = 64 * 1024
_NO_LINGER: Final = struct.pack("ii", 1, 0)  # close without waiting: SO_LINGER, socket(7)
# A program that sets SO_LINGER again just before the close blocks one thread. The other threads continue.
_MAX_THREADS: Final = 8

_to_close: Final[SimpleQueue[int]] = SimpleQueue()
_threads: Final[list[threading.Thread]] = []


def close(descriptor: int) -> None:
    """Close a descriptor soon, in a thread. Call this from the event loop's thread only."""
    _to_close.put(descriptor)
    if not _threads or (_to_close.qsize() > 1 and len(_threads) < _MAX_THREADS):
        _threads.append(keep_thread(TaskName.DESCRIPTOR_CLOSING, _close_next))


def close_socket(connection: socket.socket) -> None:
    """Close a socket soon, in a thread. Idempotent."""
    if (descriptor := connection.detach()) >= 0:
        close(descriptor)


def receive(channel: socket.socket, size: int) -> tuple[bytes, list[int], int]:
    """Read from a Unix socket without waiting.

    Args:
        channel: The socket.
        size: The most bytes to read.

    Returns:
        The bytes, the descriptors, which the caller must close, and the flags of recvmsg(2).

    Raises:
        BlockingIOError: The socket has no data.
        OSError: As `socket.recvmsg`.
    """
    data, ancillary, flags, _ = channel.recvmsg(size, _ANCILLARY_BYTES, _FLAGS)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, descriptors.tolist(), flags


class Connection(socket.socket):
    """A Unix connection to a container that should not send descriptors. Safe to use with asyncio."""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Read without waiting, and close all descriptors that come with the data."""
        assert not flags  # noqa: S101 - asyncio passes no flags
        data, descriptors, _ = receive(self, size)
        for descriptor in descriptors:
            close(descriptor)
        return data

    def close(self) -> None:
        """Close the connection soon, in a thread. Idempotent."""
        close_socket(self)


class Listener(socket.socket):
    """A listening socket for containers. Its connections are of the class `Connection`."""

    def accept(self) -> tuple[Connection, Any]:
        """Accept a connection, as `socket.socket.accept` does."""
        accepted, address = super().accept()
        return Connection(fileno=accepted.detach()), address


# --- in the threads


def _close_next() -> None:
    _close(_to_close.get())


def _close(descriptor: int) -> None:
    try:
        untrusted = socket.socket(fileno=descriptor)
    except OSError:  # not a socket
        with suppress(OSError):
            os.close(descriptor)
        return
    with suppress(OSError):
        if untrusted.family == socket.AF_UNIX:
            _drain(untrusted)
        untrusted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    with suppress(OSError):
        untrusted.close()


def _drain(untrusted: socket.socket) -> None:
    """Read all messages that wait in the socket, and close their descriptors one by one.

    Otherwise the kernel would close these descriptors together with the socket, and might block for each.
    """
    with suppress(OSError):
        untrusted.shutdown(socket.SHUT_RDWR)  # no more messages can arrive
    with suppress(OSError):
        while True:
            data, descriptors, _ = receive(untrusted, _READ_BYTES)
            for descriptor in descriptors:
                _to_close.put(descriptor)
            if not data and not descriptors:
                return
