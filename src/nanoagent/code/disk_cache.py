"""Keeps files and folders by digest in one folder on disk, up to a size.

Workers share the folder. A damaged entry is removed when it is used.

::

    entries/<digest>/content     a file, or a folder of files; for code: packs/<digest>/content, a pack
    entries/<digest>/meta        JSON, `Meta`; a pin is a lock on it, its mtime is the last use
    workspaces/<worker>.lock     held while the worker lives
    workspaces/<worker>/         new entries before they are published, removed ones before they are deleted
    lock                         the removal lock: a worker holds it while it removes entries

`DiskCache` is the interface. `DiskEntries` does the blocking work, `Workspace` owns the workspace.
"""

from __future__ import annotations

import contextlib
import math
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.code.disk_entries import ENTRIES, CacheLimits, DiskEntries, measure, measure_pack
from nanoagent.code.disk_errors import disk_errors, is_disk_full
from nanoagent.code.pin import Pin, inode_of
from nanoagent.code.workspace import Workspace
from nanoagent.host.threads import in_thread
from nanoagent.model.errors import PlatformError, StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

log = structlog.get_logger(__name__)

# Each eviction reads all entries, which takes 0.05 ms per entry. 4 GiB can hold 350,000 tiny ones.
_MOST_ENTRIES: Final = 16_384
_PACKS: Final = "packs"  # not `entries`, so that neither an older nor a newer worker misreads an entry


class DiskCache:
    """A disk cache, as one worker uses it. Methods raise `StorageError` when the disk fails.

    Args:
        root: The folder; made if missing, for this user only.
        max_bytes: The limit of the disk space of all entries. Pinned entries may exceed it; workspaces do not
            count.
        most_entries: The limit of the number of entries. Pinned entries may exceed it.
        has_packs: Whether each entry is a pack. Then the folder may still have entries of an older version,
            which were folders. `start` removes them.
    """

    def __init__(
        self, root: Path, max_bytes: int, *, most_entries: int = _MOST_ENTRIES, has_packs: bool = False
    ) -> None:
        self._root = root
        self._limits = CacheLimits(max_bytes, most_entries)
        self._workspace = Workspace(root)
        self._old_entries = DiskEntries(root, self._workspace) if has_packs else None
        self._entries = DiskEntries(
            root,
            self._workspace,
            _PACKS if has_packs else ENTRIES,
            measure_pack if has_packs else measure,
        )
        self._verified: dict[str, int | None] = {}  # digest → inode of the `meta` of an intact entry
        self._may_exceed_limits = False

    async def start(self) -> None:
        """Make the folders, and remove the workspaces of dead workers.

        Raises:
            ConfigError: A folder belongs to another user.
        """
        with disk_errors(self._root):
            await in_thread(self._entries.prepare)
        await self._workspace.open()
        if self._old_entries is not None:
            with disk_errors(self._root):
                await in_thread(self._old_entries.remove_all)

    async def close(self) -> None:
        """Remove the workspace of this worker. Idempotent."""
        await self._workspace.close()

    def scratch(self) -> AbstractAsyncContextManager[Path]:
        """Make a private folder on the file system of the entries, and delete it when the block ends."""
        return self._workspace.scratch()

    async def pin(self, digest: str) -> Pin | None:
        """Pin an entry. That counts as a use.

        The first pin in this process measures the entry. Later pins only check that its content exists. A
        damaged entry is removed.

        Returns:
            The pin, which the caller releases; None if no intact entry exists.
        """
        with disk_errors(self._root):
            pin = self._entries.pin(digest)
            if pin is None:
                self._verified.pop(digest, None)
                return None
            try:
                if await self._verify(pin):
                    return pin
            except BaseException:
                pin.release()
                raise
            # The pin is held during the removal, so that no newer entry can get the same inode.
            try:
                await in_thread(partial(self._entries.remove, digest, inode_of(pin.descriptor)))
            finally:
                pin.release()
            return None

    async def publish(self, digest: str, content: Path) -> Pin:
        """Make a file or folder the content of an entry, and pin the entry.

        If another worker was first, the entry of that worker is pinned.

        Args:
            digest: The name of the entry.
            content: The file or folder, inside a scratch folder.

        Returns:
            The pin, which the caller releases.
        """
        return await self._publish_with(self._entries.publish, digest, content)

    async def replace(self, digest: str, content: Path) -> Pin:
        """Publish a file or folder in place of an older entry. An older entry that is pinned stays.

        Args:
            digest: The name of the entry.
            content: The file or folder, inside a scratch folder.

        Returns:
            The pin, which the caller releases.
        """
        return await self._publish_with(self._entries.replace, digest, content)

    async def _publish_with(self, method: Callable[[str, Path], Pin], digest: str, content: Path) -> Pin:
        with disk_errors(self._root):
            self._may_exceed_limits = True
            pin = await in_thread(partial(method, digest, content), undo=Pin.release)
            self._verified[digest] = inode_of(pin.descriptor)
            return pin

    def distrust(self) -> None:
        """Measure each entry again when it is pinned next, because one was found damaged."""
        self._verified.clear()

    async def evict(self, *, missing_bytes: float = 0, missing_files: int = 0) -> None:
        """Remove the least recently used entries that are not pinned, until the limits are kept.

        Args:
            missing_bytes: The disk space to free. Pinned entries stay, so less may be freed.
            missing_files: The number of inodes to free.
        """
        with disk_errors(self._root):
            evict = partial(self._entries.evict, self._limits, missing_bytes, missing_files)
            self._may_exceed_limits = await in_thread(evict)

    @contextlib.asynccontextmanager
    async def releasing(self, pin: Pin) -> AsyncIterator[None]:
        """Release a pin when the block ends; see `release`."""
        try:
            yield
        finally:
            await self.release(pin)

    async def release(self, pin: Pin) -> None:
        """Release a pin, and repeat an eviction that pins have prevented."""
        pin.release()
        if self._may_exceed_limits:
            # A job that is done must not fail because the eviction fails. The eviction after the next
            # publication reports the error.
            with contextlib.suppress(StorageError):
                await self.evict()

    @property
    def may_exceed_limits(self) -> bool:
        """Whether the entries may exceed the limits.

        That is so after a publication, and after an eviction that could not remove enough because of pins.
        """
        return self._may_exceed_limits

    def digests(self) -> set[str]:
        """Return the names of all entries. Blocking."""
        return self._entries.digests()

    def has(self, digest: str) -> bool:
        """Whether an entry exists. It may be damaged, and `pin` then removes it."""
        with disk_errors(self._root):
            return self._entries.has(digest)

    async def _verify(self, pin: Pin) -> bool:
        """Check an entry, and measure it if this process has not measured it before."""
        inode = inode_of(pin.descriptor)
        if self._verified.get(pin.digest) == inode:
            return pin.has_content()
        if await in_thread(partial(self._entries.is_intact, pin)):
            self._verified[pin.digest] = inode
            return True
        return False


async def retry_when_full(
    operation: Callable[[], Awaitable[Pin]], make_room: Callable[[float], Awaitable[None]]
) -> Pin:
    """Run an operation; if the disk is full, evict all entries that are not pinned and run it again.

    Args:
        operation: Publishes an entry.
        make_room: Evicts entries; its argument is the disk space to free, bytes.

    Raises:
        PlatformError: The operation failed for another reason than a full disk, or it failed a second time.
    """
    try:
        return await operation()
    except PlatformError as exc:
        if not is_disk_full(exc):
            raise
        log.warning("disk full; all unused entries of the cache are evicted", reason=str(exc))
    await make_room(math.inf)
    return await operation()
