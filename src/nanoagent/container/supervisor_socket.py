"""The sockets in a work directory at which the worker awaits the supervisor of the container.

* `agent.sock`: the supervisor connects there once, and the connection becomes the session.
* `listening.sock`: there the supervisor hands over the listening sockets of its runs.
* `launcher.sock`: there the launcher connects, before it starts the first supervisor. Only containers at
  isolation level L2 have it.

`agent.sock` and `launcher.sock` are removed when the supervisor has connected, and `listening.sock` when the
supervisor has been configured. So all are removed before the first run. In addition, the worker accepts a
connection only if the process at the other end has the user ID of the supervisor.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

from nanoagent.host import untrusted_fds
from nanoagent.model.errors import ContainerError
from nanoagent.network.listening_sockets import ListeningSockets
from nanoagent.supervisor.launcher import Launcher
from nanoagent.supervisor.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from nanoagent.network.listening_sockets import ListeningAddress

_SESSION_SOCKET: Final = "agent.sock"
_LISTENING_SOCKET: Final = "listening.sock"
_LAUNCHER_SOCKET: Final = "launcher.sock"
_STREAM_LIMIT: Final = 256 * 1024  # a frame has at most 128 KiB
# From Python 3.13 on, a server that closes removes the file at its address. That would fail here: the address
# contains the number of a descriptor that is already closed.
_KEEP_FILE: Final[dict[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
_UCRED: Final = struct.Struct("iII")  # struct ucred, unix(7)


class SupervisorSocket:
    """Awaits the supervisor of one container.

    Args:
        folder: The work directory.

    Attributes:
        listening_sockets: The listening sockets of the container's runs; None if they have none.
    """

    def __init__(self, folder: Path) -> None:
        self.listening_sockets: ListeningSockets | None = None
        self._folder = folder
        self._server: asyncio.Server | None = None
        self._channel_listener: socket.socket | None = None
        self._launcher_listener: socket.socket | None = None
        self._admitted: frozenset[int] | None = None
        self._waiting: list[tuple[int, asyncio.StreamWriter, Session]] = []
        self._session: asyncio.Future[Session] = asyncio.get_running_loop().create_future()

    async def listen(self, uid: int | None = None, *, launcher: bool = False) -> None:
        """Listen at the sockets.

        Args:
            uid: The user ID of the supervisor. If it is None, connections wait until `admit` is called.
            launcher: Whether process 1 of the container should become a launcher.

        Raises:
            ContainerError: The sockets cannot be made.
        """

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # The session is made at once, so that it gets the first bytes.
            uid = _uid_of(writer.get_extra_info("socket"))
            self._waiting.append((uid, writer, Session(reader, writer)))
            self._decide()

        if uid is not None:
            self.admit({uid})
        try:
            self._server = await asyncio.start_unix_server(
                accept, sock=_bound_in(self._folder, _SESSION_SOCKET), limit=_STREAM_LIMIT, **_KEEP_FILE
            )
            # The container's user must be able to connect. The mode 0700 of the worker's folder, above this
            # one, keeps other users of the host out.
            (self._folder / _SESSION_SOCKET).chmod(0o666)
            self._channel_listener = self._listen_for_one(_LISTENING_SOCKET)
            if launcher:
                self._launcher_listener = self._listen_for_one(_LAUNCHER_SOCKET)
        except OSError as exc:
            raise ContainerError(f"no socket could be made in {self._folder}: {exc}") from exc

    def _listen_for_one(self, name: str) -> socket.socket:
        """Listen at a socket for messages, at which one connection is expected."""
        listener = _bound_in(self._folder, name, socket.SOCK_SEQPACKET)
        listener.setblocking(False)
        listener.listen(1)
        (self._folder / name).chmod(0o666)
        return listener

    def admit(self, uids: AbstractSet[int]) -> None:
        """Accept the first connection of these users. All other connections are closed.

        Args:
            uids: The user IDs that the supervisor may have.
        """
        self._admitted = frozenset(uids)
        self._decide()

    def _decide(self) -> None:
        if self._admitted is None:
            return
        for uid, writer, session in self._waiting:
            if self._session.done() or uid not in self._admitted:
                writer.close()
            else:
                self._session.set_result(session)
        self._waiting.clear()

    async def session(self, timeout_s: float) -> Session:
        """Wait for the supervisor's connection. After that, no other connection is accepted.

        Args:
            timeout_s: How long to wait, seconds.

        Raises:
            ContainerError: The supervisor did not connect in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                session = await asyncio.shield(self._session)
        except TimeoutError as exc:
            raise ContainerError(
                f"the container's supervisor did not connect within {timeout_s:.0f} s"
            ) from exc
        self._close_server()
        return session

    def take_launcher(self, pid: int) -> Launcher | None:
        """Accept the connection of the launcher, if there is one.

        Call this once, when `session` has returned. The launcher connects before it starts the supervisor, so
        no wait is necessary.

        Args:
            pid: Process 1 of the container, as this machine numbers it.
        """
        try:
            connection = self._launcher_listener.accept()[0] if self._launcher_listener is not None else None
        except OSError:
            connection = None
        self._close_launcher_listener()
        if connection is None:
            return None
        connection.setblocking(False)
        peer_pid, peer_uid = _peer_of(connection)
        is_process_1 = peer_pid == pid and peer_uid in (self._admitted or ())
        return Launcher(connection, is_process_1=is_process_1)

    def take_listening_sockets(self, wanted: Sequence[ListeningAddress], *, kept: bool) -> None:
        """Accept the connection by which the supervisor hands over listening sockets, if there is one.

        Call this once, after the session was configured. The supervisor connects to `listening.sock` before
        it greets in the session, so no wait is necessary.

        Args:
            wanted: The addresses with which the supervisor was configured.
            kept: Whether one set of listening sockets serves all runs of the container.
        """
        try:
            channel = self._channel_listener.accept()[0] if self._channel_listener is not None else None
        except OSError:
            channel = None
        self._close_channel_listener()
        if channel is not None and wanted and _uid_of(channel) in (self._admitted or ()):
            self.listening_sockets = ListeningSockets(channel, wanted, kept=kept)
        elif channel is not None:
            untrusted_fds.close_socket(channel)

    async def close(self) -> None:
        """Close the sockets and the session. Idempotent."""
        self._close_server()
        self._close_channel_listener()
        self._close_launcher_listener()
        if self.listening_sockets is not None:
            self.listening_sockets.close()
        if self._session.done() and not self._session.cancelled():
            await self._session.result().close()
        else:
            self._session.cancel()

    def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            (self._folder / _SESSION_SOCKET).unlink(missing_ok=True)

    def _close_channel_listener(self) -> None:
        if self._channel_listener is not None:
            self._channel_listener.close()
            self._channel_listener = None
            (self._folder / _LISTENING_SOCKET).unlink(missing_ok=True)

    def _close_launcher_listener(self) -> None:
        if self._launcher_listener is not None:
            self._launcher_listener.close()
            self._launcher_listener = None
            (self._folder / _LAUNCHER_SOCKET).unlink(missing_ok=True)


def _bound_in(folder: Path, name: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Return a socket that is bound in a folder. Its address does not contain the path of the folder.

    The reason: /proc/net/unix shows the address, and a container without a sandbox can read that file.
    """
    bound = untrusted_fds.Listener(socket.AF_UNIX, kind)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        bound.bind(f"/proc/self/fd/{descriptor}/{name}")
    except OSError:
        bound.close()
        raise
    finally:
        os.close(descriptor)
    return bound


def _uid_of(peer: socket.socket) -> int:
    """Return the user ID of the process at the other end."""
    return _peer_of(peer)[1]


def _peer_of(peer: socket.socket) -> tuple[int, int]:
    """Return the process ID and the user ID of the process at the other end, when it connected."""
    pid, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid), int(uid)
