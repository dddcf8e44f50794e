"""The folder on the host that is mounted into one container, read-only, at /slot.

::

    agent.sock          the supervisor connects here; then it is removed (`supervisor_socket`)
    listening.sock      the supervisor connects here to hand over listening sockets; then it is removed
    hosts               the container's /etc/hosts
    passwd, group       the container's /etc/passwd and /etc/group, if its runs have no sandbox
    code/               the code of the function and its byte code, as hard links to the cache
    program             the built program, as a hard link to the cache; for a build, objects of an earlier one
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from functools import partial
from typing import TYPE_CHECKING, Final

from nanoagent.container.spec import GROUPS_FILE, HOST_NAME, HOSTS_FILE, RUN_USER, USERS_FILE
from nanoagent.container.supervisor_socket import SupervisorSocket
from nanoagent.host.threads import in_thread
from nanoagent.model.errors import ContainerError, PlatformError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = SupervisorSocket(path)

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
            tree: The unpacked code.

        Raises:
            PlatformError: The disk failed.
        """
        await self._link(link_tree, tree, self.path / "code")

    async def put_byte_code(self, byte_code: Path) -> None:
        """Link byte code into the code of the folder.

        Args:
            byte_code: A folder with the files that are added (`code.byte_code`).

        Raises:
            PlatformError: The disk failed, or the code already has a file of that name.
        """
        await self._link(add_tree, byte_code, self.path / "code")

    async def put_program(self, program: Path) -> None:
        """Link a built program into the folder.

        Args:
            program: The file.

        Raises:
            PlatformError: The disk failed.
        """
        await self._link(_link_file, program, self.path / "program")

    async def clear(self) -> None:
        """Remove the code and the program, so that the container can serve another function."""
        program = self.path / "program"
        await asyncio.to_thread(shutil.rmtree, self.path / "code", ignore_errors=True)
        program.unlink(missing_ok=True)

    @staticmethod
    async def _link(link: Callable[[Path, Path], None], source: Path, target: Path) -> None:
        try:
            # `in_thread` waits for the thread even when cancelled. Otherwise the thread would fill a folder
            # that is being removed.
            await in_thread(partial(link, source, target))
        except OSError as exc:
            raise PlatformError(f"{source.name} could not be put into a work directory: {exc}") from exc

    async def remove(self) -> None:
        """Close the sockets and remove the folder. Idempotent."""
        await self.socket.close()
        await asyncio.to_thread(shutil.rmtree, self.path, ignore_errors=True)


def _write_readable(path: Path, text: str) -> None:
    """Write a file that the container's user can read."""
    path.write_text(text)
    path.chmod(0o644)


def _link_file(source: Path | str, target: Path | str) -> None:
    """Make a hard link. Make a copy if that fails: between file systems, or if a file has too many links.

    An existing target, also a symbolic link, is an error: link(2) reports EEXIST before other errors.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copy2(source, target)  # keeps mode and time


def link_tree(source: Path, target: Path) -> None:
    """Make a tree with the same folders and symbolic links. Its files are hard links to those of the source.

    Symbolic links are copied, not followed. Blocking.

    Args:
        source: The tree to link.
        target: The new tree, which does not exist.
    """
    _make_folder(os.fspath(target))
    _link_entries(os.fspath(source), os.fspath(target))


def _link_entries(source: str, target: str) -> None:
    # Strings, because Path objects cost too much for thousands of files.
    with os.scandir(source) as entries:
        for entry in entries:
            path = f"{target}/{entry.name}"
            if entry.is_symlink():
                _copy_link(entry.path, path)
            elif entry.is_dir():
                _ensure_folder(path)
                _link_entries(entry.path, path)
            elif entry.is_file():
                _link_file(entry.path, path)


def add_tree(source: Path, target: Path) -> None:
    """Add files to a tree, as hard links. Blocking.

    Args:
        source: The tree that has the files. It has only folders and files.
        target: The tree that gets them.

    Raises:
        OSError: The disk failed, or the target has another entry where a folder or file is added.
    """
    _link_entries(os.fspath(source), os.fspath(target))


def _make_folder(path: str) -> None:
    os.mkdir(path)  # noqa: PTH102 - as in `_link_entries`
    os.chmod(path, 0o755)  # noqa: PTH101, S103 - the container's user reads it


def _ensure_folder(path: str) -> None:
    """Make a folder, unless it exists. A symbolic link to a folder is not a folder here."""
    try:
        _make_folder(path)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise


def _copy_link(source: str, target: str) -> None:
    os.symlink(os.readlink(source), target)  # noqa: PTH115, PTH211 - as in `_link_entries`
    modified_ns = os.lstat(source).st_mtime_ns
    os.utime(target, ns=(modified_ns, modified_ns), follow_symlinks=False)
