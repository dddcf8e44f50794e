"""A folder of things named by a digest: bounded, shared by workers, repaired when damaged.

::

    entries/<digest>/content     the thing: a file, or a folder of files
    entries/<digest>/meta        JSON, `Meta`; its flock is the pin, its mtime the last use
    workspaces/<worker>.lock     held for as long as the worker lives
    workspaces/<worker>/         what it builds, and what it is about to delete
    lock                         held while something is moved out of `entries`

An entry comes by `rename` from a workspace and goes by `rename` to one; it is never seen half. Whoever takes
an entry away holds `lock` and has made sure that it is the one that was judged: its name may already stand
for a successor.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import shutil
import stat
import time
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Self

import msgspec

from nanoagent.host import private_dirs
from nanoagent.host.threads import in_thread
from nanoagent.model.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path

_BLOCK_BYTES: Final = 4096  # what the smallest file or folder takes on the usual file systems
_OWN_BYTES: Final = 2 * _BLOCK_BYTES  # an entry's own folder and its meta, beside the thing
# Each insertion looks at all of them, at some 0.05 ms an entry. Tiny ones could be half a million in 4 GiB.
_MOST_ENTRIES: Final = 16_384
_META_MAX_BYTES: Final = 4096  # three numbers take under a hundred
_PUBLISH_ATTEMPTS: Final = 8  # each is lost only to another worker's success or to damage just removed
_OCCUPIED: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})


class Meta(msgspec.Struct, frozen=True):
    """What an entry was when it was published.

    Attributes:
        files: Number of files.
        bytes: Their size together.
        disk_bytes: The room they and the folders take, in whole blocks.
    """

    files: int
    bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class Use:
    """An entry as eviction sees it.

    Attributes:
        digest: Its name.
        disk_bytes: The room it takes.
        used_at_ns: When it was last pinned, Unix epoch nanoseconds.
    """

    digest: str
    disk_bytes: int
    used_at_ns: int


class Pin:
    """A shared lock on an entry: while it is held, no worker removes the entry.

    Attributes:
        digest: The entry's name.
        content: The file or folder.
    """

    def __init__(self, handle: int, digest: str, content: Path) -> None:
        self._handle: int | None = handle
        self.digest = digest
        self.content = content

    @property
    def handle(self) -> int:
        """The descriptor of the entry's `meta`.

        Raises:
            ValueError: It was released.
        """
        if self._handle is None:
            raise ValueError("the pin was released")
        return self._handle

    def meta(self) -> Meta:
        """What the entry was when it was published."""
        return msgspec.json.decode(os.pread(self.handle, _META_MAX_BYTES, 0), type=Meta)

    def exists(self) -> bool:
        """Whether the thing still is there; nobody removes it who keeps to the rules."""
        return _inode(self.content) is not None

    def share(self) -> Self:
        """The same lock once more: it ends when the last share is released (flock(2), on dup)."""
        return type(self)(os.dup(self.handle), self.digest, self.content)

    def release(self) -> None:
        """Let go of the entry. Idempotent."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            os.close(handle)

    def __del__(self) -> None:
        if self._handle is not None:
            warnings.warn(f"the pin of {self.digest} was never released", ResourceWarning, stacklevel=1)
            self.release()


@contextlib.contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Translate the disk's errors.

    Raises:
        StorageError: For any OSError inside.
    """
    try:
        yield
    except OSError as exc:
        raise StorageError(f"CODE_CACHE_DIR: the cache in {root} failed: {exc}") from exc


def is_full(error: BaseException) -> bool:
    """Whether a failure is for want of room on a disk."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}


def make_private(folder: Path) -> None:
    """Make one of the cache's folders, for this user only.

    Raises:
        ConfigError: It is there and another user's.
    """
    private_dirs.make_private(folder, "CODE_CACHE_DIR")


def eviction_order(uses: Iterable[Use]) -> list[Use]:
    """Least recently used first."""
    return sorted(uses, key=lambda use: (use.used_at_ns, use.digest))


class DiskCache:
    """The folder above, as one worker uses it. Methods raise `StorageError` when the disk fails.

    Its size is bounded by `max_bytes` and `most_entries`, exceeded only by what is pinned; workspaces are not
    counted.

    Args:
        root: The folder; made when missing, for this user only.
        max_bytes: How much room all entries together may take.
        most_entries: How many they may be.
    """

    def __init__(self, root: Path, max_bytes: int, *, most_entries: int = _MOST_ENTRIES) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._most_entries = most_entries
        self._entries = root / "entries"
        self._workspaces = root / "workspaces"
        self._workspace: Path | None = None
        self._workspace_lock = -1
        self._names = itertools.count()
        self._verified: dict[str, int | None] = {}  # digest to the inode of its meta
        self._may_be_over = False  # something was published, or pins held up the last eviction

    async def start(self) -> None:
        """Make the folders, remove dead workers' workspaces, open one of its own.

        Raises:
            ConfigError: A folder is another user's.
        """
        with disk_errors(self._root):
            await in_thread(self._open_workspace)

    async def close(self) -> None:
        """Remove the workspace. Idempotent."""
        if self._workspace is not None:
            workspace, self._workspace = self._workspace, None
            with disk_errors(self._root):
                await in_thread(partial(self._close_workspace, workspace))

    @contextlib.asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        """A private folder on the same file system as the entries, gone afterwards."""
        with disk_errors(self._root):
            folder = self._scratch_path()
            folder.mkdir(0o700)
        try:
            yield folder
        finally:
            with disk_errors(self._root):
                try:
                    folder.rmdir()  # the usual case, an object that has not changed, left nothing in it
                except OSError:
                    await in_thread(partial(_delete, folder))

    async def pin(self, digest: str) -> Pin | None:
        """Hold an entry, and count that as its last use.

        The first time in this process the entry is measured against its `meta`, later only looked at. A
        damaged one is removed.

        Returns:
            The pin, which the caller releases; None when there is no such entry or no longer.
        """
        with disk_errors(self._root):
            pin = self._lock_shared(digest, fcntl.LOCK_NB)
            if pin is None:
                self._verified.pop(digest, None)
                return None
            try:
                if await self._is_usable(pin):
                    return pin
            except BaseException:
                pin.release()
                raise
            # The pin is kept meanwhile: it keeps the inode, and so the successor's, from being the same.
            try:
                await in_thread(partial(self._remove, digest, _inode(pin.handle)))
            finally:
                pin.release()
            return None

    async def publish(self, digest: str, content: Path) -> Pin:
        """Make `content`, a file or folder inside a scratch folder, the entry `digest`, and hold it.

        When another worker was first, its entry is held and `content` is left to the scratch folder's end.
        """
        with disk_errors(self._root):
            self._may_be_over = True
            pin = await in_thread(partial(self._publish, digest, content), undo=Pin.release)
            self._verified[digest] = _inode(pin.handle)
            return pin

    async def evict(self, *, missing_bytes: float = 0) -> None:
        """Remove least recently used entries that nobody holds, until the bound is kept.

        Args:
            missing_bytes: Remove so much at least, if there is so much that nobody holds.
        """
        with disk_errors(self._root):
            self._may_be_over = await in_thread(partial(self._evict, missing_bytes))

    @contextlib.asynccontextmanager
    async def held(self, pin: Pin) -> AsyncIterator[None]:
        """Release the pin at the end, and catch up on an eviction that pins have held up."""
        try:
            yield
        finally:
            pin.release()
            if self._may_be_over:
                # Whoever has finished with an entry is not to fail by this; the next insertion reports it.
                with contextlib.suppress(StorageError):
                    await self.evict()

    @property
    def may_be_over(self) -> bool:
        """Whether there may be more than there should be; as long as not, an eviction would find nothing."""
        return self._may_be_over

    def digests(self) -> set[str]:
        """The names of all entries. Blocking."""
        return {entry.name for entry in self._entries.iterdir()}

    # --- workspaces

    def _scratch_path(self) -> Path:
        if self._workspace is None:
            raise StorageError(f"the cache in {self._root} is not open")
        return self._workspace / str(next(self._names))

    def _open_workspace(self) -> None:
        for folder in (self._root, self._entries, self._workspaces):
            make_private(folder)
        with self._exclusive():
            for lock in self._workspaces.glob("*.lock"):
                _remove_if_dead(lock)
            workspace = self._workspaces / f"{os.getpid()}-{secrets.token_hex(4)}"
            self._workspace_lock = os.open(_lock_of(workspace), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(self._workspace_lock, fcntl.LOCK_EX)
            workspace.mkdir(0o700)
        self._workspace = workspace

    def _close_workspace(self, workspace: Path) -> None:
        _delete(workspace)
        _lock_of(workspace).unlink(missing_ok=True)
        os.close(self._workspace_lock)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep the other workers, and this one's other threads, from removing anything."""
        handle = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    # --- pins

    def _lock_shared(self, digest: str, flags: int = 0) -> Pin | None:
        """Take the pin; None when there is no entry, or (with LOCK_NB) one that is just being removed."""
        meta = self._entries / digest / "meta"
        try:
            handle = os.open(meta, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        pin = Pin(handle, digest, self._entries / digest / "content")
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | flags)
            if _inode(meta) == _inode(handle):
                # Not left to the kernel, whose clock for files ticks every 4 ms: too coarse for an order.
                now = time.time_ns()
                os.utime(handle, ns=(now, now))
                return pin
        except BlockingIOError:
            pass
        except BaseException:
            pin.release()
            raise
        pin.release()
        return None

    async def _is_usable(self, pin: Pin) -> bool:
        inode = _inode(pin.handle)
        if self._verified.get(pin.digest) == inode:
            return pin.exists()
        if await in_thread(partial(_is_sound, pin)):
            self._verified[pin.digest] = inode
            return True
        return False

    # --- coming and going

    def _publish(self, digest: str, content: Path) -> Pin:
        target = self._entries / digest
        draft, own = self._draft(digest, content)
        try:
            for _ in range(_PUBLISH_ATTEMPTS):
                if _moved(draft, target):
                    return own.share()
                if winner := self._winner(digest):
                    return winner
        finally:
            own.release()
        raise OSError(errno.EBUSY, "could not be replaced", str(target))

    def _draft(self, digest: str, content: Path) -> tuple[Path, Pin]:
        """The entry as it is to appear, in the workspace and already pinned."""
        draft = content.with_name(f"{content.name}.entry")
        draft.mkdir(0o700)
        meta = draft / "meta"
        meta.write_bytes(msgspec.json.encode(_measure(content)))
        content.rename(draft / "content")
        handle = os.open(meta, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_SH)
        return draft, Pin(handle, digest, self._entries / digest / "content")

    def _winner(self, digest: str) -> Pin | None:
        """The sound entry of that name; one that is not is removed."""
        pin = self._lock_shared(digest)
        if pin is None:
            self._remove(digest, None)
            return None
        try:
            if _is_sound(pin):
                return pin.share()
            self._remove(digest, _inode(pin.handle))
            return None
        finally:
            pin.release()

    def _remove(self, digest: str, inode: int | None) -> None:
        """Remove an entry if its meta still is the one judged (None: if it still has none)."""
        with self._exclusive():
            trash = self._take_away(digest, inode)
        if trash is not None:
            _delete(trash)

    def _take_away(self, digest: str, inode: int | None) -> Path | None:
        """Move an entry out of sight; `_exclusive` is held."""
        entry = self._entries / digest
        if _inode(entry / "meta") != inode:
            return None
        trash = self._scratch_path()
        try:
            entry.rename(trash)
        except FileNotFoundError:
            return None
        return trash

    def _evict(self, missing_bytes: float = 0) -> bool:
        """Returns whether more is pinned than there should be."""
        with self._exclusive():
            uses = [use for digest in self.digests() if (use := self._use(digest))]
            total, count = sum(use.disk_bytes for use in uses), len(uses)
            trash: list[Path] = []
            for use in eviction_order(uses):
                if total <= self._max_bytes and count <= self._most_entries and missing_bytes <= 0:
                    break
                if taken := self._take_if_free(use.digest):
                    trash.append(taken)
                    total, count = total - use.disk_bytes, count - 1
                    missing_bytes -= use.disk_bytes
        for path in trash:
            _delete(path)
        return total > self._max_bytes or count > self._most_entries

    def _use(self, digest: str) -> Use | None:
        """What eviction wants to know; of a damaged entry, that it is old and takes nothing."""
        meta = self._entries / digest / "meta"
        try:
            used_at_ns = meta.stat().st_mtime_ns
            disk_bytes = msgspec.json.decode(meta.read_bytes(), type=Meta).disk_bytes + _OWN_BYTES
            return Use(digest, disk_bytes, used_at_ns)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except msgspec.MsgspecError:
            return Use(digest, 0, 0)

    def _take_if_free(self, digest: str) -> Path | None:
        try:
            handle = os.open(self._entries / digest / "meta", os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._take_away(digest, _inode(handle))
        except BlockingIOError:
            return None
        finally:
            os.close(handle)


def _lock_of(workspace: Path) -> Path:
    return workspace.with_name(f"{workspace.name}.lock")


def _remove_if_dead(lock: Path) -> None:
    """Remove a workspace whose lock nobody holds."""
    handle = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _delete(lock.with_suffix(""))
        lock.unlink(missing_ok=True)
    except BlockingIOError:
        return
    finally:
        os.close(handle)


def _inode(file: Path | int) -> int | None:
    """The inode of a path or descriptor; None when there is nothing."""
    try:
        return (os.fstat(file) if isinstance(file, int) else file.lstat()).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def _moved(draft: Path, target: Path) -> bool:
    """Rename unless something is there already."""
    try:
        draft.rename(target)
    except OSError as exc:
        if exc.errno not in _OCCUPIED:
            raise
        return False
    return True


def _delete(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_sound(pin: Pin) -> bool:
    """Whether the entry still is what its meta says."""
    try:
        meta = msgspec.json.decode(os.pread(pin.handle, _BLOCK_BYTES, 0), type=Meta)
        return _measure(pin.content) == meta
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, msgspec.MsgspecError):
        return False


def _measure(content: Path) -> Meta:
    """Count files and bytes without following links."""
    files = size = blocks = 0
    pending = [os.fspath(content)]
    while pending:
        path = pending.pop()
        status = os.lstat(path)
        blocks += 1
        if stat.S_ISDIR(status.st_mode):
            pending += [f"{path}/{name}" for name in os.listdir(path)]  # noqa: PTH208 - strings: thousands of them
        else:
            files += 1
            size += status.st_size
            blocks += status.st_size // _BLOCK_BYTES  # the block counted above holds the rest
    return Meta(files=files, bytes=size, disk_bytes=blocks * _BLOCK_BYTES)
