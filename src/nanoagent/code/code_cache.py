"""Fetches and unpacks the code of functions, and keeps it on disk while there is room.

Three parts save requests and unpacking:

* `fresh_trees` lets a tree be used without a request for a short time after the last request.
* `code_index` has the ETag of each object that was fetched before, for a conditional request.
* `CodeCache` remembers the digests of refused archives, in this process only.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import structlog

from nanoagent.code import archive, refusals
from nanoagent.code.code_index import CodeIndex, IndexEntry
from nanoagent.code.disk_cache import DiskCache, retry_when_full
from nanoagent.code.disk_errors import disk_errors
from nanoagent.code.fresh_trees import FreshTrees
from nanoagent.code.missing_code import rejection
from nanoagent.code.refusals import refused
from nanoagent.code.single_flight import SingleFlight
from nanoagent.common.bounded_map import BoundedMap
from nanoagent.common.units import MIB
from nanoagent.host.threads import in_thread
from nanoagent.model.errors import CachedRejection, DamagedCode, Rejected, StorageError
from nanoagent.model.result import ErrorType
from nanoagent.model.text import Text
from nanoagent.storage.base import Absence, ObjectMissing, ObjectTooLarge, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from nanoagent.code.pin import Pin
    from nanoagent.model.cause import Cause
    from nanoagent.storage.base import ObjectStore

log = structlog.get_logger(__name__)

# All jobs share the few threads of the event loop. Unpacking an archive may occupy one of them for seconds,
# and take hundreds of megabytes.
_PARALLEL_UNPACKINGS: Final = 2
_MAX_REFUSALS: Final = 1024  # the refusals that are remembered; each takes about 300 bytes
_REFUSAL_REMEMBERED: Final = Text(
    "{message} (remembered: the same bytes were examined {ago_s} s ago)",
    "{message} (기억된 결과: {ago_s}초 전에 같은 내용을 검사했습니다)",
)
MOST_FRESH: Final = 256
"""The limit of `FreshTrees`; each tree holds a file descriptor."""

FetchOutcome: TypeAlias = Literal["hit", "revalidated", "miss"]
"""How a fetch was served.

* `hit`: the fetch used a fresh tree, or shared the request of another fetch, or the disk already had the tree
  of the fetched zip.
* `revalidated`: the store has answered that the object had not changed.
* `miss`: the zip was fetched and unpacked, or refused.
"""


@dataclass(frozen=True, slots=True)
class CodeTree:
    """Unpacked code. It stays on disk while the block of `CodeCache.fetch` runs.

    Attributes:
        digest: SHA-256 of the zip, hex.
        path: The pack. Its links stay inside the code.
        bytes: The size of all files together.
        memory_bytes: The memory that a copy takes at most, in whole pages.
    """

    digest: str
    path: Path
    bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class _Refusal:
    """The refusal of an archive.

    Attributes:
        message: The rule that the archive breaks.
        hint: The advice for the author.
        cause: The cause on which the advice is based.
        at: The time of the refusal, in the loop's clock.
    """

    message: Text
    hint: Text | None
    cause: Cause | None
    at: float


def _observe_nothing(_: FetchOutcome) -> None:
    pass


class CodeCache:
    """Unpacked code, fetched from an object store and kept on disk.

    Call `start` before use and `close` afterwards. Workers of the same user may share `root`.

    Args:
        root: The folder; not that of another cache.
        store: The object store that has the zips.
        limits: The limits of a zip.
        max_bytes: The limit of the disk space of all packs. Trees in use may exceed it.
        observe: Called with the outcome of each fetch, unless its request fails. If a fetch is repeated
            because the disk is full, `observe` is called again.
        fresh_s: For how long after a request the tree is used without another request, seconds. With 0, each
            fetch makes a request.
        most_fresh: The largest number of trees that may be used without a request.
    """

    def __init__(  # noqa: PLR0913 - the settings that it has
        self,
        root: Path,
        store: ObjectStore,
        limits: archive.ArchiveLimits,
        max_bytes: int,
        observe: Callable[[FetchOutcome], None] = _observe_nothing,
        *,
        fresh_s: float = 0,
        most_fresh: int = MOST_FRESH,
    ) -> None:
        self._root = root
        self._store = store
        self._limits = limits
        self._observe = observe
        self._disk = DiskCache(root, max_bytes, has_packs=True)
        self._index = CodeIndex(root, self._disk.digests)
        self._fresh = FreshTrees(fresh_s, most_fresh)
        self._refusals: BoundedMap[str, _Refusal] = BoundedMap(_MAX_REFUSALS)  # by digest
        self._fetches: SingleFlight[Pin] = SingleFlight()
        self._unpackings = asyncio.Semaphore(_PARALLEL_UNPACKINGS)

    @property
    def disk(self) -> DiskCache:
        """The disk cache that has the trees. The byte code of trees is in it, too (`byte_code_cache`)."""
        return self._disk

    async def start(self) -> None:
        """Make the folders, and remove the leftovers of workers that crashed.

        Raises:
            ConfigError: A folder belongs to another user.
            StorageError: The disk failed.
        """
        await self._disk.start()
        await self._index.start()

    async def close(self) -> None:
        """Cancel all fetches. The trees remain on disk. Idempotent."""
        await self._fetches.close()
        self._fresh.forget_all()
        await self._disk.close()

    @asynccontextmanager
    async def fetch(self, bucket: str, key: str) -> AsyncIterator[CodeTree]:
        """Yield the tree of a zip, and keep it on disk until the block ends.

        The tree is that of the newest version of the zip, or of the version that the store had less than
        `fresh_s` ago. A fetch makes at most one request if the object has not changed or is new, and at
        most two if it has changed; twice as many if the disk is full. Callers that want the same object
        at the same time share the requests.

        Args:
            bucket: The bucket's name.
            key: The object's key.

        Raises:
            Rejected: CODE_NOT_FOUND; or INVALID_CODE, for a zip that breaks a rule of `refusals`.
            StorageError: The object store or the disk failed.
            DamagedCode: The block raised it.
        """
        pin = self._fresh.recall(bucket, key)
        if pin is not None or (bucket, key) in self._fetches:
            self._observe("hit")
        if pin is None:
            pin = await self._fetches.join((bucket, key), partial(self._fetch, bucket, key))
        try:
            meta = pin.meta()
            yield CodeTree(pin.digest, pin.content, meta.bytes, meta.memory_bytes)
        except DamagedCode:  # the next fetch removes the damaged tree
            self._disk.distrust()
            self._fresh.forget_all()
            raise
        finally:
            await self._disk.release(pin)

    def etag_of(self, bucket: str, key: str, digest: str) -> str | None:
        """Return the ETag of an object when it had that digest; None if this is not known any more.

        Raises:
            StorageError: The disk failed.
        """
        known = self._index.recall(bucket, key)
        return known.etag if known is not None and known.digest == digest else None

    async def make_room(self, size_bytes: float, files: int = 0) -> None:
        """Evict the least recently used trees that are not in use. The next fetch of any code asks the store.

        Args:
            size_bytes: The disk space to free. Trees in use stay, so less may be freed.
            files: The number of inodes to free.

        Raises:
            StorageError: The disk failed.
        """
        self._fresh.forget_all()
        await self._disk.evict(missing_bytes=size_bytes, missing_files=files)

    async def _fetch(self, bucket: str, key: str) -> Pin:
        asked_at = asyncio.get_running_loop().time()
        pin = await retry_when_full(partial(self._try_to_fetch, bucket, key), self.make_room)
        if self._disk.may_exceed_limits:
            self._fresh.forget(bucket, key)  # a fresh tree has a pin, which would prevent its eviction
        else:
            self._fresh.remember(bucket, key, pin, asked_at)
        return pin

    async def _try_to_fetch(self, bucket: str, key: str) -> Pin:
        known = self._index.recall(bucket, key)
        pin = await self._disk.pin(known.digest) if known else None
        try:
            # A conditional request is useful only if the tree or the refusal is known: after "not modified",
            # the fetch ends with one of them.
            usable = known if known and (pin or known.digest in self._refusals) else None
            if usable and await self._store.is_unchanged(bucket, key, usable.etag):
                return self._revalidated(usable, pin)
            async with self._disk.scratch() as scratch:
                fetched = await self._request(bucket, key, scratch / "code.zip", usable)
                if fetched is not None:
                    return await self._adopt(fetched, scratch)
            if usable is None:
                raise StorageError(
                    f"{shown(bucket, key)}: an unconditional request was answered 'not modified'"
                )
            return self._revalidated(usable, pin)
        finally:
            if pin is not None:
                pin.release()

    def _revalidated(self, known: IndexEntry, pin: Pin | None) -> Pin:
        """Return a pin of the tree of an object that has not changed, or raise the refusal of its archive."""
        self._observe("revalidated")
        self._refuse_known(known.digest)
        if pin is None:  # the refusal was dropped from memory during the request
            name = shown(known.bucket, known.key)
            raise StorageError(f"{name}: neither the tree nor the refusal is known any more")
        return pin.share()

    async def _request(
        self, bucket: str, key: str, into: Path, known: IndexEntry | None
    ) -> IndexEntry | None:
        """Fetch an object unless it still has the known version.

        Returns:
            The version that was fetched; None if the object has not changed.
        """
        etag = known.etag if known else None
        try:
            etag = await self._store.fetch(bucket, key, into, etag=etag, max_bytes=self._limits.zip_bytes)
        except ObjectMissing as exc:
            log_event = log.info if exc.absence is Absence.KEY else log.warning
            log_event("code not found", reason=str(exc))
            raise rejection(bucket, key, exc) from exc
        except ObjectTooLarge as exc:
            raise refused(refusals.ZIP_TOO_LARGE, limit_mb=self._limits.zip_bytes / MIB) from exc
        if etag is None:
            return None
        with disk_errors(self._root):
            return IndexEntry(bucket, key, etag, await in_thread(partial(_sha256, into)))

    async def _adopt(self, fetched: IndexEntry, scratch: Path) -> Pin:
        """Pin the tree of the zip that was just fetched. If the disk does not have it, unpack the zip."""
        pin = await self._disk.pin(fetched.digest)
        self._observe("hit" if pin else "miss")
        try:
            await self._index.remember(fetched, scratch)
            if pin is None:
                self._refuse_known(fetched.digest)
                await self._unpack(fetched.digest, scratch)
                pin = await self._disk.publish(fetched.digest, scratch / "pack")
                await self._evict()
            return pin.share()
        finally:
            if pin is not None:
                pin.release()

    async def _unpack(self, digest: str, scratch: Path) -> None:
        try:
            with disk_errors(self._root):
                async with self._unpackings:
                    await in_thread(
                        partial(archive.extract, scratch / "code.zip", scratch / "pack", self._limits)
                    )
        except Rejected as exc:
            self._refusals[digest] = _Refusal(
                exc.message, exc.hint, exc.cause, asyncio.get_running_loop().time()
            )
            raise

    def _refuse_known(self, digest: str) -> None:
        """Raise the remembered refusal of an archive, if there is one."""
        if refusal := self._refusals.get(digest):
            ago_s = asyncio.get_running_loop().time() - refusal.at
            message = _REFUSAL_REMEMBERED.format(message=refusal.message, ago_s=round(ago_s))
            raise CachedRejection(
                ErrorType.INVALID_CODE, message, hint=refusal.hint, cause=refusal.cause, kind="archive"
            )

    async def _evict(self) -> None:
        await self._disk.evict()
        if self._disk.may_exceed_limits and len(self._fresh):  # the pins of fresh trees prevent the eviction
            self._fresh.forget_all()
            await self._disk.evict()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
