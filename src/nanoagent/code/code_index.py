"""The index of the code cache: the ETag and the digest of each object that was fetched.

It has one file per object, `index/<SHA-256 of bucket and key>.json`. The index outlives the process, and
workers share it. So even a new worker's first request for known code is a conditional request.

An entry is only a hint: the worker still asks the store, and fetches an evicted tree again.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from nanoagent.code.disk_errors import disk_errors
from nanoagent.code.workspace import make_private
from nanoagent.host.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PRUNE_EVERY: Final = 1024  # entries written between two prunings
# Each entry takes a block of the disk. The limit on trees does not limit the entries: many keys may share a
# tree.
_MOST_INDEXED: Final = 16_384


class IndexEntry(msgspec.Struct, frozen=True):
    """The version of an object that was fetched last.

    Attributes:
        bucket: The bucket's name.
        key: The object's key.
        etag: The object's ETag.
        digest: SHA-256 of its bytes, hex.
    """

    bucket: str
    key: str
    etag: str
    digest: str


class CodeIndex:
    """The index, as one worker uses it. Methods raise `StorageError` when the disk fails.

    Args:
        root: The folder of the code cache.
        digests: Returns the digests of all trees in the cache. It is called in a thread.
    """

    def __init__(self, root: Path, digests: Callable[[], set[str]]) -> None:
        self._root = root
        self._folder = root / "index"
        self._digests = digests
        self._writes = 0

    async def start(self) -> None:
        """Make the folder, and remove entries of trees that do not exist any more.

        Raises:
            ConfigError: The folder belongs to another user.
        """
        with disk_errors(self._root):
            make_private(self._folder)
            await in_thread(self._prune)

    def recall(self, bucket: str, key: str) -> IndexEntry | None:
        """Return the entry of an object; None if the index has none."""
        with disk_errors(self._root):
            entry = _read(self._path_of(bucket, key))
        return entry if entry and (entry.bucket, entry.key) == (bucket, key) else None

    async def remember(self, entry: IndexEntry, scratch: Path) -> None:
        """Write an entry, in place of the older one of the same object.

        Args:
            entry: The entry.
            scratch: A scratch folder of the cache.
        """
        with disk_errors(self._root):
            draft = scratch / "index.json"
            draft.write_bytes(msgspec.json.encode(entry))
            draft.rename(self._path_of(entry.bucket, entry.key))
            self._writes += 1
            if self._writes % _PRUNE_EVERY == 0:
                await in_thread(self._prune)

    def _path_of(self, bucket: str, key: str) -> Path:
        name = hashlib.sha256(f"{bucket}\0{key}".encode()).hexdigest()
        return self._folder / f"{name}.json"

    def _prune(self) -> None:
        """Remove entries without a tree, and the oldest entries over the limit.

        An entry has no tree if the tree was evicted or the archive was refused. Unreadable entries are also
        removed.
        """
        digests = self._digests()
        kept: list[tuple[int, Path]] = []
        for path in self._folder.glob("*.json"):
            entry = _read(path)
            if entry is None or entry.digest not in digests:
                path.unlink(missing_ok=True)
            else:
                kept.append((_written_at_ns(path), path))
        for _, path in sorted(kept)[:-_MOST_INDEXED]:
            path.unlink(missing_ok=True)


def _written_at_ns(path: Path) -> int:
    """Return the time of a file's last change, Unix epoch nanoseconds; 0 if the file does not exist."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _read(path: Path) -> IndexEntry | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=IndexEntry)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
