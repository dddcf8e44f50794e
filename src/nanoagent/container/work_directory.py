"""The folder that is bound into a container: one socket, and later the code or program it is bound to.

Layout below DOCKER_WORK_DIR_ROOT::

    <worker id>/            0700; lock: held by flock while the worker lives
        slots/<name>/       bound read-only at /slot
            agent.sock      until the supervisor has connected
            listening.sock  likewise; there it hands over the listening sockets of its runs
            hosts           the container's /etc/hosts
            passwd, group   likewise, where runs have the container's own user
            code/           the function's tree, hard links to the cache
            program         a built binary, likewise
        spool/<name>/       output files on their way to S3
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent.container.spec import GROUPS_FILE, HOST_NAME, HOSTS_FILE, RUN_USER, USERS_FILE
from nanoagent.host import private_dirs, untrusted_fds
from nanoagent.host.threads import in_thread
from nanoagent.model.errors import ConfigError, ContainerError, PlatformError
from nanoagent.network.listening_sockets import ListeningSockets
from nanoagent.supervisor.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from nanoagent.network.listening_sockets import ListeningAddress

log = structlog.get_logger(__name__)

_GONE: Final = ".gone-"  # no worker's name begins with it
_HOME: Final = frozenset({"lock", "slots", "spool", "selftest"})
_LOCK_PATIENCE_S: Final = 1.0  # a look at a lock takes microseconds
_LOCK_PAUSE_S: Final = 0.01
_STREAM_LIMIT: Final = 256 * 1024  # a frame is at most 128 KiB
# From 3.13 on a server removes the file at its address, which leads nowhere later.
_KEEP_FILE: Final[dict[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
_UCRED: Final = struct.Struct("iII")  # struct ucred, unix(7)
_LISTENING_SOCKET: Final = "listening.sock"
# Where the network has no IPv6, its address comes last when the name is resolved. getaddrinfo(3), RFC 6724
_HOSTS: Final = f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\t{HOST_NAME}\n"
# See passwd(5) and group(5).
_USERS: Final = (
    "root:x:0:0:root:/root:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    "{user}:x:{uid}:{uid}::/tmp:/bin/sh\n"
)
_GROUPS: Final = "root:x:0:\nnogroup:x:65534:\n{user}:x:{uid}:\n"


class WorkerHome:
    """The worker's own folder, locked as long as the process lives."""

    def __init__(self, root: Path, worker_id: str) -> None:
        self.path = root / worker_id
        self._lock = -1

    def claim(self) -> None:
        """Make the folder and lock it; what a dead worker of the same name left is removed.

        Raises:
            ConfigError: Another worker of this name lives, or the folder is another user's or cannot be made.
        """
        try:
            self._lock = self._locked()
        except BlockingIOError as exc:
            raise ConfigError(
                [f"WORKER_ID: another worker runs as {self.path.name}; name this one otherwise"]
            ) from exc
        except OSError as exc:
            problem = f"DOCKER_WORK_DIR_ROOT: {self.path} cannot be used: {exc.strerror}"
            raise ConfigError([f"{problem}; choose a folder that this user may write to"]) from exc
        for name in ("slots", "spool"):
            shutil.rmtree(self.path / name, ignore_errors=True)
            (self.path / name).mkdir(0o700)

    def _locked(self) -> int:
        """The lock's descriptor.

        Workers that start look whether others are dead, by taking their locks for a moment, and take the
        folder of a dead one away: such a moment is waited for, and such a folder is made anew.

        Raises:
            BlockingIOError: Another worker of this name lives.
        """
        give_up_at = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            private_dirs.make_private(self.path, "DOCKER_WORK_DIR_ROOT")
            with suppress(FileNotFoundError):  # taken away just now
                descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                    if time.monotonic() > give_up_at:
                        raise
                    time.sleep(_LOCK_PAUSE_S)  # there is nothing else to do yet
                    continue
                if _is_in_place(descriptor, self.path):
                    return descriptor
                os.close(descriptor)

    def release(self) -> None:
        """Remove the folder and the lock. Idempotent."""
        if self._lock >= 0:
            _take_away(self.path)
            os.close(self._lock)
            self._lock = -1

    def remove_dead_siblings(self) -> None:
        """Remove the folders of dead workers that have no containers any more, or never had one."""
        with suppress(OSError):
            for path in list(self.path.parent.iterdir()):
                if path.name.startswith(_GONE):
                    shutil.rmtree(path, ignore_errors=True)  # whoever took it away has died since
                elif path != self.path and _is_home(path):
                    remove_home(path)

    @property
    def spool(self) -> Path:
        """Where output files wait for their upload."""
        return self.path / "spool"

    def new_work_directory(self, name: str) -> WorkDirectory:
        """Make the folder of one container-to-be."""
        path = self.path / "slots" / name
        try:
            path.mkdir()
            path.chmod(0o755)  # the container's user, who is nobody here, must get in
            _write_for_all(path / HOSTS_FILE, _HOSTS)
        except OSError as exc:
            raise ContainerError(f"no work directory could be made: {exc}") from exc
        return WorkDirectory(path)


def worker_is_dead(home: Path) -> bool | None:
    """Whether no process holds the lock of that worker's folder any more; None when it is not to be seen."""
    try:
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError:
        return False  # another user's: not ours to judge
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def is_there(home: Path, name: str) -> bool:
    """Whether a worker has a work directory of that name."""
    return (home / "slots" / name).is_dir()


def remove_home(home: Path) -> None:
    """Remove a worker's folder, unless one of its name lives, again perhaps."""
    try:
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # gone, or another user's
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_in_place(descriptor, home):
            _take_away(home)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)


def _take_away(home: Path) -> None:
    """Remove a folder whose lock is held: out of the way first, where a worker of that name makes its own."""
    gone = home.with_name(f"{_GONE}{secrets.token_hex(8)}")
    with suppress(OSError):
        home.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _is_in_place(lock: int, home: Path) -> bool:
    """Whether the folder still is the one that this lock is of."""
    try:
        return os.path.samestat(os.fstat(lock), (home / "lock").stat())
    except FileNotFoundError:
        return False


def _is_home(path: Path) -> bool:
    """Whether a folder is a worker's, and nothing else that somebody keeps beside it."""
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError:
        return False
    return "lock" in names and names <= _HOME


@dataclass(slots=True)
class WorkDirectory:
    """One container's folder on the host.

    Attributes:
        path: Where it is.
        listening_sockets: Where runs in the container can reach the agent; None where they cannot.
    """

    path: Path
    listening_sockets: ListeningSockets | None = None
    _server: asyncio.Server | None = None
    _channel_listener: socket.socket | None = None
    _admitted: frozenset[int] | None = None
    _callers: list[tuple[int, asyncio.StreamWriter, Session]] = field(default_factory=list)
    _session: asyncio.Future[Session] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def name_user(self, uid: int) -> None:
        """Give the container's user a name.

        Raises:
            ContainerError: The files cannot be written.
        """
        try:
            for name, text in ((USERS_FILE, _USERS), (GROUPS_FILE, _GROUPS)):
                _write_for_all(self.path / name, text.format(user=RUN_USER, uid=uid))
        except OSError as exc:
            raise ContainerError(f"the container's user could not be named in {self.path}: {exc}") from exc

    async def listen(self, uid: int | None = None) -> None:
        """Await one connection on the directory's socket, from that user only.

        Args:
            uid: Whose, or None when that is known only later: whoever calls then waits for `admit`.
        """

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # A session from the start: what comes first must not be lost in the reader.
            self._callers.append((_peer_uid(writer), writer, Session(reader, writer)))
            self._answer()

        if uid is not None:
            self.admit({uid})
        path = self.path / "agent.sock"
        try:
            self._server = await asyncio.start_unix_server(
                accept, sock=_bound_below(self.path, path.name), limit=_STREAM_LIMIT, **_KEEP_FILE
            )
            path.chmod(0o666)  # the container's user is another; the folder above is 0700
            self._channel_listener = _bound_below(self.path, _LISTENING_SOCKET, socket.SOCK_SEQPACKET)
            self._channel_listener.setblocking(False)
            self._channel_listener.listen(1)
            (self.path / _LISTENING_SOCKET).chmod(0o666)
        except OSError as exc:
            raise ContainerError(f"no socket could be made in {self.path}: {exc}") from exc

    def admit(self, uids: AbstractSet[int]) -> None:
        """Say who may connect: the first of these users is taken, anyone else is hung up on."""
        self._admitted = frozenset(uids)
        self._answer()

    def _answer(self) -> None:
        if self._admitted is None:
            return
        for uid, writer, session in self._callers:
            if self._session.done() or uid not in self._admitted:
                writer.close()
            else:
                self._session.set_result(session)
        self._callers.clear()

    async def session(self, timeout_s: float) -> Session:
        """The supervisor's connection; from then on nobody else can connect.

        Raises:
            ContainerError: It did not connect in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                session = await asyncio.shield(self._session)
        except TimeoutError as exc:
            raise ContainerError(
                f"the container's supervisor did not connect within {timeout_s:.0f} s"
            ) from exc
        self._stop_listening()
        return session

    def take_listening_sockets(self, wanted: Sequence[ListeningAddress], *, kept: bool) -> None:
        """Let the supervisor hand over `listening_sockets`, if it does. Once, when it has said hello.

        It connects there before it says hello, if it can at all, so that nothing is to be waited for.

        Args:
            wanted: What it was configured with.
            kept: Whether they are the container's for good, not a sandbox's.
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

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            (self.path / "agent.sock").unlink(missing_ok=True)

    def _close_channel_listener(self) -> None:
        if self._channel_listener is not None:
            self._channel_listener.close()
            self._channel_listener = None
            (self.path / _LISTENING_SOCKET).unlink(missing_ok=True)

    async def put_code(self, tree: Path) -> None:
        """Put a function's tree where the supervisor finds it."""
        await self._link(link_tree, tree, self.path / "code")

    async def put_program(self, program: Path) -> None:
        """Put a built program where a run starts it."""
        await self._link(_link_file, program, self.path / "program")

    async def clear(self) -> None:
        """Take code and program away again, for another function's."""
        program = self.path / "program"
        await asyncio.to_thread(shutil.rmtree, self.path / "code", ignore_errors=True)
        program.unlink(missing_ok=True)

    @staticmethod
    async def _link(link: Callable[[Path, Path], None], source: Path, target: Path) -> None:
        try:
            # Not left behind when it is cancelled: it would go on filling a folder that is being removed.
            await in_thread(partial(link, source, target))
        except OSError as exc:
            raise PlatformError(f"{source.name} could not be put into a work directory: {exc}") from exc

    async def remove(self) -> None:
        """Remove the folder. Idempotent."""
        self._stop_listening()
        self._close_channel_listener()
        if self.listening_sockets is not None:
            self.listening_sockets.close()
        if self._session.done() and not self._session.cancelled():
            await self._session.result().close()
        else:
            self._session.cancel()
        await asyncio.to_thread(shutil.rmtree, self.path, ignore_errors=True)


def _write_for_all(path: Path, text: str) -> None:
    """Write a file that the container's user, who is nobody here, can read."""
    path.write_text(text)
    path.chmod(0o644)


def _bound_below(folder: Path, name: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket in the folder by an address that does not say where the folder is.

    The address is what /proc/net/unix shows, in the container as well while it has no sandbox.
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


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    return _uid_of(writer.get_extra_info("socket"))


def _uid_of(peer: socket.socket) -> int:
    _, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def _link_file(source: Path | str, target: Path | str) -> None:
    """A hard link, or a copy where the file systems differ or the links are used up."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)  # with its mode and its time


def link_tree(source: Path, target: Path) -> None:
    """A tree of the same folders and symbolic links whose files are hard links (or copies) of the source's.

    A symbolic link is never followed here. Only the program in the container follows it.
    """
    _link_folder(os.fspath(source), os.fspath(target))


def _link_folder(source: str, target: str) -> None:
    os.mkdir(target)  # noqa: PTH102 - strings: there are thousands of them
    os.chmod(target, 0o755)  # noqa: PTH101, S103 - the container's user must get in
    with os.scandir(source) as entries:
        for entry in entries:
            place = f"{target}/{entry.name}"
            if entry.is_symlink():
                _copy_link(entry.path, place)
            elif entry.is_dir():
                _link_folder(entry.path, place)
            elif entry.is_file():
                _link_file(entry.path, place)


def _copy_link(source: str, target: str) -> None:
    os.symlink(os.readlink(source), target)  # noqa: PTH115, PTH211
    modified_ns = os.lstat(source).st_mtime_ns
    os.utime(target, ns=(modified_ns, modified_ns), follow_symlinks=False)
