"""The worker's side of the connection with a launcher, process 1 of a container at isolation level L2.

The launcher starts the supervisor, and makes a container generic again: it ends every other process, empties
the writable directories, and looks for residue. src/nanosupervisor/launcher.h describes the messages.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from nanoagent.host import untrusted_fds
from nanoagent.model.errors import ContainerError, ProtocolError

if TYPE_CHECKING:
    import socket

_CLEAN: Final = b"C"
_START: Final = b"S"
_IS_CLEAN: Final = b"c"
_HAS_RESIDUE: Final = b"r"
_MESSAGE_BYTES: Final = 256  # the launcher sends less


class ResidueFound(ContainerError):  # noqa: N818 - a state of the container
    """Something of the last function is left in the container, so it must be removed."""


class Launcher:
    """The connection with one launcher. After an error it cannot be used any more.

    A cleaning has two steps, because the worker's connections with the supervisor count as residue. The
    worker must close them in between: later than the request, because the launcher ends if its supervisor
    ends by itself.

    Args:
        connection: The connection, non-blocking.
        is_process_1: Whether the kernel names process 1 of the container as the other end. If not, the
            answers prove nothing.
    """

    def __init__(self, connection: socket.socket, *, is_process_1: bool) -> None:
        self._connection = connection
        self.is_process_1 = is_process_1

    async def begin_cleaning(self) -> None:
        """Ask the launcher to end every other process of the container, and to remove what they have left.

        Raises:
            ContainerError: The launcher has ended.
        """
        await self._send(_CLEAN)

    async def finish_cleaning(self) -> None:
        """Wait until the container is clean.

        Raises:
            ResidueFound: Something is left.
            ContainerError: The launcher has ended.
            ProtocolError: The answer is not valid.
        """
        try:
            answer = await asyncio.get_running_loop().sock_recv(self._connection, _MESSAGE_BYTES)
        except OSError as exc:
            raise ContainerError(f"the launcher of the container cannot be reached: {exc}") from exc
        if not answer:
            raise ContainerError("the launcher of the container has ended")
        if answer[:1] == _HAS_RESIDUE:
            raise ResidueFound(f"the container has residue: {answer[1:].decode(errors='replace')}")
        if answer != _IS_CLEAN:
            raise ProtocolError(f"the launcher sent {answer!r}, expected {_IS_CLEAN!r}")

    async def start_supervisor(self) -> None:
        """Make the launcher start a new supervisor. Call this after `finish_cleaning`.

        Raises:
            ContainerError: The launcher has ended.
        """
        await self._send(_START)

    def close(self) -> None:
        """Close the connection, which ends the container. Idempotent."""
        untrusted_fds.close_socket(self._connection)

    async def _send(self, command: bytes) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self._connection, command)
        except OSError as exc:
            raise ContainerError(f"the launcher of the container cannot be reached: {exc}") from exc
