"""The folder on the host that is mounted into one container, read-only, at /slot.

::

    launcher.sock       the launcher connects here; then it is removed (`supervisor_socket`)
    agent.sock          the supervisor connects here; then it is removed
    listening.sock      the supervisor connects here to hand over listening sockets; then it is removed
    hosts               the container's /etc/hosts
    passwd, group       the container's /etc/passwd and /etc/group, if its runs have no sandbox
    code                the code of the function, as a hard link to its pack in the cache
    byte_code           a pack with the byte code of the code, in the same way
    program             the built program, as a hard link to the cache; for a build, objects of an earlier one
"""

from __future__ import annotations

import asyncio
import os
import shutil
from functools import partial
from typing import TYPE_CHECKING, Final

from nanoagent.container.spec import GROUPS_FILE, HOST_NAME, HOSTS_FILE, RUN_USER, USERS_FILE
from nanoagent.container.supervisor_socket import SupervisorSocket
from nanoagent.host.threads import in_thread
from nanoagent.model.errors import ContainerError, PlatformError

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.supervisor.launcher import Launcher

# In a network without IPv6, getaddrinfo(3) returns the IPv6 address of localhost last (RFC 6724).
_HOSTS: Final = f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\t{HOST_NAME}\n"
# Formats: passwd(5), group(5).
_USERS: Final = (
    "root:x:0:0:root:/root:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    "{user}:x:{uid}:{uid}::/tmp:/bin/sh\n"
)
_GROUPS: Final = "root:x:0:\nnogroup:x:65534:\n{user}:x:{uid}:\n"


class WorkDirectory:
    """The work directory of one container.

    Args:
        path: The folder, which exists.

    Attributes:
        path: The folder.
        socket: Awaits the supervisor.
        launcher: The connection with the launcher of the container; None if it has no launcher.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = SupervisorSocket(path)
        self.launcher: Launcher | None = None

    @classmethod
    def make(cls, path: Path) -> WorkDirectory:
        """Make the folder.

        Args:
            path: The folder, which does not exist.

        Raises:
            ContainerError: The disk failed.
        """
        try:
            path.mkdir()
            path.chmod(0o755)  # the container's user is neither the owner nor in the group
            _write_readable(path / HOSTS_FILE, _HOSTS)
        except OSError as exc:
            raise ContainerError(f"no work directory could be made: {exc}") from exc
        return cls(path)

    def name_user(self, uid: int) -> None:
        """Write /etc/passwd and /etc/group of the container, with a name for its user.

        Args:
            uid: The user ID.

        Raises:
            ContainerError: The disk failed.
        """
        try:
            for name, text in ((USERS_FILE, _USERS), (GROUPS_FILE, _GROUPS)):
                _write_readable(self.path / name, text.format(user=RUN_USER, uid=uid))
        except OSError as exc:
            raise ContainerError(f"the container's user could not be named in {self.path}: {exc}") from exc

    async def put_code(self, tree: Path) -> None:
        """Link the code of a function into the folder.

        Args:
            tree: The pack.

        Raises:
            PlatformError: The disk failed.
        """
        await self._link(tree, self.path / "code")

    async def put_byte_code(self, byte_code: Path) -> None:
        """Link byte code into the folder. The supervisor adds its files to those of the code.

        Args:
            byte_code: The pack.

        Raises:
            PlatformError: The disk failed.
        """
        await self._link(byte_code, self.path / "byte_code")

    async def put_program(self, program: Path) -> None:
        """Link a built program into the folder.

        Args:
            program: The file.

        Raises:
            PlatformError: The disk failed.
        """
        await self._link(program, self.path / "program")

    async def renew_socket(self) -> None:
        """Close the sockets and the session, and await another supervisor."""
        await self.socket.close()
        self.socket = SupervisorSocket(self.path)

    async def clear(self) -> None:
        """Remove the code and the program, so that the container can serve another function."""
        for name in ("code", "byte_code", "program"):
            # In a thread, because the removal of the last link to a large file takes long.
            await asyncio.to_thread((self.path / name).unlink, missing_ok=True)

    @staticmethod
    async def _link(source: Path, target: Path) -> None:
        try:
            # `in_thread` waits for the thread even when cancelled. Otherwise the thread would fill a folder
            # that is being removed.
            await in_thread(partial(_link_file, source, target))
        except OSError as exc:
            raise PlatformError(f"{source.name} could not be put into a work directory: {exc}") from exc

    async def remove(self) -> None:
        """Close the sockets and remove the folder. Idempotent."""
        if self.launcher is not None:
            self.launcher.close()
        await self.socket.close()
        await asyncio.to_thread(shutil.rmtree, self.path, ignore_errors=True)


def _write_readable(path: Path, text: str) -> None:
    """Write a file that the container's user can read."""
    path.write_text(text)
    path.chmod(0o644)


def _link_file(source: Path, target: Path) -> None:
    """Make a hard link. Make a copy if that fails: between file systems, or if a file has too many links.

    An existing target, also a symbolic link, is an error: link(2) reports EEXIST before other errors.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copy2(source, target)  # keeps mode and time
