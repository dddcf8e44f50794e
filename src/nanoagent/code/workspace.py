"""The private folder of one worker in a disk cache.

New entries are prepared in the workspace. Removed entries are moved into it before they are deleted. It is on
the same file system as the entries. Therefore one `rename` publishes an entry, and one `rename` removes it.

While the worker lives, it holds a lock on a file beside its workspace. If this lock is free, the worker is
dead, and the next worker that starts removes the workspace.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import shutil
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from nanoagent.code.disk_errors import disk_errors
from nanoagent.host import private_dirs
from nanoagent.host.threads import in_thread
from nanoagent.model.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


def make_private(folder: Path) -> None:
    """Make a folder of a cache, which only the worker's user may enter.

    Raises:
        ConfigError: The folder exists and belongs to another user.
    """
    private_dirs.make_private(folder, "CODE_CACHE_DIR")


@contextmanager
def removal_lock(root: Path) -> Iterator[None]:
    """Hold the lock that every removal from a cache needs. Blocking.

    The lock excludes other workers, and other threads of this worker.

    Args:
        root: The folder of the cache.
    """
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def delete(path: Path) -> None:
    """Delete a file or folder, if it exists. Blocking."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Workspace:
    """The private folder of this worker in a cache.

    Args:
        root: The folder of the cache.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path: Path | None = None
        self._lock = -1
        self._names = itertools.count()

    async def open(self) -> None:
        """Make the workspace, and remove the workspaces of dead workers.

        Raises:
            ConfigError: The folder of all workspaces belongs to another user.
            StorageError: The disk failed.
        """
        with disk_errors(self._root):
            self._path = await in_thread(self._open)

    async def close(self) -> None:
        """Remove the workspace. Idempotent.

        Raises:
            StorageError: The disk failed.
        """
        if self._path is not None:
            path, self._path = self._path, None
            with disk_errors(self._root):
                await in_thread(partial(self._remove, path))

    @asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        """Make a folder, and delete it when the block ends.

        Raises:
            StorageError: The disk failed, or the workspace is not open.
        """
        with disk_errors(self._root):
            folder = self.new_path()
            folder.mkdir(0o700)
        try:
            yield folder
        finally:
            with disk_errors(self._root):
                try:
                    folder.rmdir()  # usually empty, because the object in S3 has rarely changed
                except OSError:
                    await in_thread(partial(delete, folder))

    def new_path(self) -> Path:
        """Return a path in the workspace that nothing has used before.

        Raises:
            StorageError: The workspace is not open.
        """
        if self._path is None:
            raise StorageError(f"the cache in {self._root} is not open")
        return self._path / str(next(self._names))

    def _open(self) -> Path:
        workspaces = self._root / "workspaces"
        make_private(workspaces)
        with removal_lock(self._root):
            for lock in workspaces.glob("*.lock"):
                _remove_if_dead(lock)
            path = workspaces / f"{os.getpid()}-{secrets.token_hex(4)}"
            self._lock = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            path.mkdir(0o700)
        return path

    def _remove(self, path: Path) -> None:
        delete(path)
        _lock_of(path).unlink(missing_ok=True)
        os.close(self._lock)


def _lock_of(workspace: Path) -> Path:
    return workspace.with_name(f"{workspace.name}.lock")


def _remove_if_dead(lock: Path) -> None:
    """Remove a workspace and its lock, if no process holds the lock."""
    descriptor = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        delete(lock.with_suffix(""))
        lock.unlink(missing_ok=True)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)
