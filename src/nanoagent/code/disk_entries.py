"""The entries of a disk cache, in one of its folders.

All functions block, so callers run them in threads. `DiskEntries.pin` is an exception: without `wait`, it
takes so little time that `DiskCache` calls it in the event loop.

A `rename` from a workspace publishes an entry, and a `rename` into a workspace removes it. So no worker ever
sees half an entry.

A worker that removes an entry holds the removal lock. It first checks the inode of the file `meta`, because
a newer entry may have taken the same name.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from nanoagent.code import pack
from nanoagent.code.pack import DamagedPack
from nanoagent.code.pin import Meta, Pin, inode_of
from nanoagent.code.workspace import delete, make_private, removal_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from nanoagent.code.workspace import Workspace

_BLOCK_BYTES: Final = 4096  # the smallest file or folder takes one block on common file systems
_OWN_BYTES: Final = 2 * _BLOCK_BYTES  # the folder of the entry and its file `meta`
_ENTRY_FILES: Final = 3  # inodes: the folder, `meta`, and `content`, which is one file in all caches
# After a failed attempt to publish, the next one follows only if the entry that had the name was removed: by
# this worker, because the entry was damaged, or by another worker.
_PUBLISH_ATTEMPTS: Final = 8
EVICTED_FIRST: Final = "objects-"
"""The prefix of the names of entries that are evicted before all others."""

ENTRIES: Final = "entries"
"""The usual name of the folder that has the entries."""

_NO_CONTENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})
_OCCUPIED: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})


@dataclass(frozen=True, slots=True)
class EntryUse:
    """The size and the last use of an entry, for eviction.

    Attributes:
        digest: The name of the entry.
        disk_bytes: The disk space that it takes.
        used_at_ns: The time of its last pin, Unix epoch nanoseconds.
    """

    digest: str
    disk_bytes: int
    used_at_ns: int


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """The limits of a disk cache. Pinned entries may exceed them.

    Attributes:
        disk_bytes: The disk space of all entries together.
        entries: The number of entries.
    """

    disk_bytes: int
    entries: int


def eviction_order(uses: Iterable[EntryUse]) -> list[EntryUse]:
    """Sort entries: those of `EVICTED_FIRST` first, then by their last use, the least recently used first."""
    return sorted(
        uses, key=lambda use: (not use.digest.startswith(EVICTED_FIRST), use.used_at_ns, use.digest)
    )


def measure(content: Path) -> Meta:
    """Measure a file or folder. Links are not followed."""
    files = size = blocks = 0
    pending = [os.fspath(content)]
    while pending:
        path = pending.pop()
        status = os.lstat(path)
        blocks += 1
        if stat.S_ISDIR(status.st_mode):
            # Strings, because Path objects cost too much for thousands of files.
            pending += [f"{path}/{name}" for name in os.listdir(path)]  # noqa: PTH208
        else:
            files += 1
            size += status.st_size
            blocks += status.st_size // _BLOCK_BYTES  # the last block is counted above
    return Meta(files=files, bytes=size, disk_bytes=blocks * _BLOCK_BYTES)


def measure_pack(content: Path) -> Meta:
    """Check and measure a pack (`pack`). The number and the size of files are those of its tree.

    Raises:
        DamagedPack: The pack is damaged.
    """
    tree = pack.summary_of(content)
    return Meta(tree.files, tree.bytes, measure(content).disk_bytes, tree.memory_bytes)


class DiskEntries:
    """The entries of a disk cache, as one worker sees them.

    Args:
        root: The folder of the cache.
        workspace: The workspace of this worker.
        folder: The name of the folder that has the entries.
        measure_content: Returns the size of the content of an entry, and may check it, too.
    """

    def __init__(
        self,
        root: Path,
        workspace: Workspace,
        folder: str = ENTRIES,
        measure_content: Callable[[Path], Meta] = measure,
    ) -> None:
        self._root = root
        self._folder = root / folder
        self._workspace = workspace
        self._measure = measure_content

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            ConfigError: A folder belongs to another user.
        """
        for folder in (self._root, self._folder):
            make_private(folder)

    def is_intact(self, pin: Pin) -> bool:
        """Whether an entry still has the size that it had when it was published."""
        try:
            return self._measure(pin.content) == pin.meta()
        except (OSError, DamagedPack, msgspec.MsgspecError) as exc:
            if isinstance(exc, OSError) and exc.errno not in _NO_CONTENT:
                raise
            return False

    def digests(self) -> set[str]:
        """Return the names of all entries."""
        return {entry.name for entry in self._folder.iterdir()}

    def has(self, digest: str) -> bool:
        """Whether an entry exists. It may be damaged."""
        return inode_of(self._meta_of(digest)) is not None

    def _meta_of(self, digest: str) -> str:
        """Return the path of an entry's `meta` file. Each hot job asks for it, and a `Path` takes longer."""
        return f"{self._folder}/{digest}/meta"

    def pin(self, digest: str, *, wait: bool = False) -> Pin | None:
        """Pin an entry. That counts as a use.

        Args:
            digest: The name of the entry.
            wait: Whether to wait while another worker removes the entry.

        Returns:
            The pin; None if the entry does not exist, or is being removed.
        """
        meta = self._meta_of(digest)
        try:
            descriptor = os.open(meta, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        pin = Pin(descriptor, digest, self._folder.joinpath(digest, "content"))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB))
            if inode_of(meta) == inode_of(descriptor):
                # The kernel's clock for files ticks every 4 ms: too coarse to order two uses.
                now = time.time_ns()
                os.utime(descriptor, ns=(now, now))
                return pin
        except BlockingIOError:
            pass
        except BaseException:
            pin.release()
            raise
        pin.release()
        return None

    # --- publication

    def publish(self, digest: str, content: Path) -> Pin:
        """Make a file or folder the content of an entry, and pin the entry.

        If another worker has already published an intact entry of that name, that entry is pinned instead.

        Args:
            digest: The name of the entry.
            content: The file or folder, inside a scratch folder.

        Raises:
            OSError: The disk failed, or the name stays taken by a damaged entry.
        """
        target = self._folder / digest
        draft, own_pin = self._draft(digest, content)
        try:
            for _ in range(_PUBLISH_ATTEMPTS):
                if _renamed(draft, target):
                    return own_pin.share()
                if winner := self._pin_if_intact(digest):
                    return winner
        finally:
            own_pin.release()
        raise OSError(errno.EBUSY, "could not be replaced", str(target))

    def replace(self, digest: str, content: Path) -> Pin:
        """Publish an entry in place of an older one, and pin it. An older entry that is pinned stays.

        Args:
            digest: The name of the entry.
            content: The file or folder, inside a scratch folder.

        Raises:
            OSError: The disk failed.
        """
        with removal_lock(self._root):
            trash = self._take_away_unless_pinned(digest)
        if trash is not None:
            delete(trash)
        return self.publish(digest, content)

    def _draft(self, digest: str, content: Path) -> tuple[Path, Pin]:
        """Prepare the folder of an entry in the workspace, already pinned."""
        draft = content.with_name(f"{content.name}.entry")
        draft.mkdir(0o700)
        meta = draft / "meta"
        meta.write_bytes(msgspec.json.encode(self._measure(content)))
        content.rename(draft / "content")
        descriptor = os.open(meta, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return draft, Pin(descriptor, digest, self._folder / digest / "content")

    def _pin_if_intact(self, digest: str) -> Pin | None:
        """Pin an entry; a damaged one is removed instead."""
        pin = self.pin(digest, wait=True)
        if pin is None:
            self.remove(digest, None)
            return None
        try:
            if self.is_intact(pin):
                return pin.share()
            self.remove(digest, inode_of(pin.descriptor))
            return None
        finally:
            pin.release()

    # --- removal

    def remove(self, digest: str, inode: int | None) -> None:
        """Remove an entry, unless a newer one has taken its name.

        Args:
            digest: The name of the entry.
            inode: The inode of its file `meta`; None if it has none.
        """
        with removal_lock(self._root):
            trash = self._take_away(digest, inode)
        if trash is not None:
            delete(trash)

    def evict(self, limits: CacheLimits, missing_bytes: float, missing_files: int = 0) -> bool:
        """Remove the least recently used entries that are not pinned, until the limits are kept.

        Args:
            limits: The limits of the cache.
            missing_bytes: The disk space to free. Pinned entries stay, so less may be freed.
            missing_files: The number of inodes to free.

        Returns:
            Whether the cache still exceeds its limits.
        """
        with removal_lock(self._root):
            uses = [use for digest in self.digests() if (use := self._use_of(digest))]
            total, count = sum(use.disk_bytes for use in uses), len(uses)
            trash: list[Path] = []
            for use in eviction_order(uses):
                is_within_limits = total <= limits.disk_bytes and count <= limits.entries
                if is_within_limits and missing_bytes <= 0 and missing_files <= 0:
                    break
                if taken := self._take_away_unless_pinned(use.digest):
                    trash.append(taken)
                    total, count = total - use.disk_bytes, count - 1
                    missing_bytes -= use.disk_bytes
                    missing_files -= _ENTRY_FILES
        for path in trash:
            delete(path)
        return total > limits.disk_bytes or count > limits.entries

    def remove_all(self) -> None:
        """Remove all entries that are not pinned. The folder may be missing, and stays."""
        if self._folder.is_dir():
            self.evict(CacheLimits(0, 0), math.inf)

    def _use_of(self, digest: str) -> EntryUse | None:
        """Return the use of an entry; None without a `meta`. With a damaged `meta`, it is evicted first."""
        meta = self._folder / digest / "meta"
        try:
            used_at_ns = meta.stat().st_mtime_ns
            disk_bytes = msgspec.json.decode(meta.read_bytes(), type=Meta).disk_bytes + _OWN_BYTES
            return EntryUse(digest, disk_bytes, used_at_ns)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except msgspec.MsgspecError:
            return EntryUse(digest, 0, 0)

    def _take_away_unless_pinned(self, digest: str) -> Path | None:
        try:
            descriptor = os.open(self._folder / digest / "meta", os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._take_away(digest, inode_of(descriptor))
        except BlockingIOError:
            return None
        finally:
            os.close(descriptor)

    def _take_away(self, digest: str, inode: int | None) -> Path | None:
        """Move an entry into the workspace. The caller holds the removal lock.

        Returns:
            The new path; None if the entry has another inode by now, or does not exist.
        """
        entry = self._folder / digest
        if inode_of(entry / "meta") != inode:
            return None
        trash = self._workspace.new_path()
        try:
            entry.rename(trash)
        except FileNotFoundError:
            return None
        return trash


def _renamed(draft: Path, target: Path) -> bool:
    """Rename a folder; return False if the new name is taken."""
    try:
        draft.rename(target)
    except OSError as exc:
        if exc.errno not in _OCCUPIED:
            raise
        return False
    return True
