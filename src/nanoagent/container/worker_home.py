"""The folder of one worker below DOCKER_WORK_DIR_ROOT, and the lock that shows whether the worker lives.

::

    <worker id>/          mode 0700
        lock              held by flock while the worker lives
        slots/<name>/     one work directory (`work_directory`)
        staging/<name>/   output files until they are uploaded

A worker that starts tries to take the locks of other workers. If a lock is free, its worker is dead, and the
folder is removed. So a worker that starts with the ID of a dead worker must expect two events: another worker
holds the lock for a moment, and another worker removes the folder.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nanoagent.container.work_directory import WorkDirectory
from nanoagent.host import private_dirs
from nanoagent.model.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_REMOVED: Final = ".gone-"  # the prefix of a folder that is being removed; no worker ID begins with it
# Earlier versions of the worker named the staging folder "spool".
_NAMES: Final = frozenset({"lock", "slots", "staging", "spool", "selftest"})
_LOCK_PATIENCE_S: Final = 1.0  # another worker that tests the lock holds it for microseconds
_LOCK_PAUSE_S: Final = 0.01


class WorkerHome:
    """The folder of this worker.

    Args:
        root: DOCKER_WORK_DIR_ROOT.
        worker_id: The name of the folder.

    Attributes:
        path: The folder.
    """

    def __init__(self, root: Path, worker_id: str) -> None:
        self.path = root / worker_id
        self._lock = -1

    def claim(self) -> None:
        """Make the folder and lock it. Leftovers of a dead worker with this ID are removed.

        Raises:
            ConfigError: Another worker with this ID lives, the folder belongs to another user, or it cannot
                be made.
        """
        try:
            self._lock = self._acquire_lock()
        except BlockingIOError as exc:
            raise ConfigError(
                [f"WORKER_ID: another worker runs as {self.path.name}; choose another WORKER_ID"]
            ) from exc
        except OSError as exc:
            problem = f"DOCKER_WORK_DIR_ROOT: {self.path} cannot be used: {exc.strerror}"
            raise ConfigError([f"{problem}; choose a folder that this user may write to"]) from exc
        for name in ("slots", "staging"):
            shutil.rmtree(self.path / name, ignore_errors=True)
            (self.path / name).mkdir(0o700)

    def _acquire_lock(self) -> int:
        """Make the folder, and wait for its lock.

        Returns:
            The descriptor of the lock.

        Raises:
            BlockingIOError: Another worker with this ID lives.
        """
        give_up_at = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            private_dirs.make_private(self.path, "DOCKER_WORK_DIR_ROOT")
            with suppress(FileNotFoundError):  # another worker has just removed the folder
                descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                    if time.monotonic() > give_up_at:
                        raise
                    time.sleep(_LOCK_PAUSE_S)  # the worker has no other work before it has the lock
                    continue
                if _is_lock_of(descriptor, self.path):
                    return descriptor
                os.close(descriptor)

    def release(self) -> None:
        """Remove the folder and release the lock. Idempotent."""
        if self._lock >= 0:
            _remove(self.path)
            os.close(self._lock)
            self._lock = -1

    def remove_dead_siblings(self) -> None:
        """Remove the folders of dead workers. Their containers must have been removed before."""
        with suppress(OSError):
            for path in list(self.path.parent.iterdir()):
                if path.name.startswith(_REMOVED):
                    shutil.rmtree(path, ignore_errors=True)  # the worker that began to remove it has died
                elif path != self.path and _is_home(path):
                    remove_if_dead(path)

    @property
    def staging(self) -> Path:
        """The folder for output files until they are uploaded."""
        return self.path / "staging"

    def new_work_directory(self, name: str) -> WorkDirectory:
        """Make the work directory of a container that will be created.

        Args:
            name: The name of the work directory.

        Raises:
            ContainerError: The disk failed.
        """
        return WorkDirectory.make(self.path / "slots" / name)


def has_work_directory(home: Path, name: str) -> bool:
    """Whether a worker has a work directory of that name.

    Args:
        home: The folder of the worker.
        name: The name of the work directory.
    """
    return (home / "slots" / name).is_dir()


def is_worker_dead(home: Path) -> bool | None:
    """Whether the lock of a worker's folder is free.

    Args:
        home: The folder of the worker.

    Returns:
        Whether it is free; None if the folder is not visible here. False if the lock belongs to another user.
    """
    try:
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def remove_if_dead(home: Path) -> None:
    """Remove the folder of a worker, unless a worker with this ID lives.

    Args:
        home: The folder of the worker.
    """
    try:
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # the folder does not exist, or belongs to another user
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_lock_of(descriptor, home):
            _remove(home)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)


def _remove(home: Path) -> None:
    """Remove a folder whose lock the caller holds.

    The folder is renamed first. Otherwise a new worker with this ID could make files in it during the
    removal.
    """
    removed = home.with_name(f"{_REMOVED}{secrets.token_hex(8)}")
    with suppress(OSError):
        home.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _is_lock_of(descriptor: int, home: Path) -> bool:
    """Whether a descriptor is still that of the folder's lock. If not, the folder has been removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), (home / "lock").stat())
    except FileNotFoundError:
        return False


def _is_home(path: Path) -> bool:
    """Whether a folder is the folder of a worker: it has a lock, and only names that a worker makes."""
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError:
        return False
    return "lock" in names and names <= _NAMES
