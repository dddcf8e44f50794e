"""Code trees by bucket and key, and built programs by digest, each kept on disk for as long as there is room.

Beside the folders of `store`, the code cache keeps `index/<sha256 of bucket and key>.json`: which ETag the
object had and which digest its bytes. It outlives the process and is shared like the rest, so that a new
worker's first request for known code is already a conditional one. An entry of it is only ever a hint: the
store is asked, and a tree that is gone is fetched anew.

What the store has answered is taken to hold for a moment (`fresh_s`), in memory and in this process only: a
busy function's code is asked for once in that time, not once a job.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec
import structlog

from nanoagent.code import archive, refusals
from nanoagent.code.absence import rejection
from nanoagent.code.refusals import refused
from nanoagent.code.single_flight import SingleFlight
from nanoagent.code.store import DiskCache, Pin, disk_errors, is_full, make_private
from nanoagent.common.bounded_map import BoundedMap
from nanoagent.common.units import MIB
from nanoagent.host.threads import in_thread
from nanoagent.model.errors import PlatformError, Rejected, Remembered, StorageError
from nanoagent.model.result import ErrorType
from nanoagent.model.text import Text
from nanoagent.storage.base import Absence, ObjectMissing, ObjectTooLarge, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from nanoagent.storage.base import ObjectStore

log = structlog.get_logger(__name__)

# The loop has a handful of threads, which every other job wants for a moment, and an archive may take one of
# them for seconds and hundreds of megabytes.
_PARALLEL_UNPACKINGS: Final = 2
_REFUSALS: Final = 1024  # remembered; some 300 bytes each
_REFUSAL_REMEMBERED: Final = Text(
    "{message} (remembered: the same bytes were examined {ago_s} s ago)",
    "{message} (기억된 결과: {ago_s}초 전에 같은 내용을 검사했습니다)",
)
_PRUNE_EVERY: Final = 1024  # index entries written between two looks for stale ones
_MOST_INDEXED: Final = 16_384  # a block of the disk each; the same bytes may lie under any number of keys
MOST_FRESH: Final = 256
"""The most objects whose tree is kept open because the store was asked lately; each holds a descriptor."""

_DIGEST: Final = re.compile(r"[0-9a-f]{16,128}")

FetchOutcome: TypeAlias = Literal["hit", "revalidated", "miss"]
"""How a fetch was served.

* `revalidated`: one conditional request; the object has not changed and its tree is on disk.
* `hit`: by an answer that is still fresh, by a request that another caller had under way, or by a tree that
  the same bytes had left on disk.
* `miss`: fetched and unpacked, or refused.
"""


@dataclass(frozen=True, slots=True)
class CodeTree:
    """Unpacked code, while the lease on it lasts.

    Attributes:
        digest: SHA-256 of the zip, hex.
        path: The folder; files are 0444 or 0555, folders 0755; links stay inside the code.
        bytes: Size of its files together.
        disk_bytes: The room that files and folders take, in whole blocks; a copy in memory takes as much.
    """

    digest: str
    path: Path
    bytes: int
    disk_bytes: int


class _IndexEntry(msgspec.Struct, frozen=True):
    bucket: str
    key: str
    etag: str
    digest: str


@dataclass(frozen=True, slots=True)
class _Fresh:
    """The tree of an object that the store was asked about a moment ago.

    Attributes:
        pin: Keeps the tree while it is fresh.
        end: When it no longer is.
    """

    pin: Pin
    end: asyncio.TimerHandle


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What was found wrong with an archive, and when, in the loop's seconds."""

    message: Text
    hint: Text | None
    at: float


def _observe_nothing(_: FetchOutcome) -> None:
    pass


class CodeCache:
    """Trees of code, fetched once.

    Call `start` before and `close` after use; workers of the same user may share `root`.

    Args:
        root: The folder.
        store: Where the zips are.
        limits: What a zip may be at most.
        max_bytes: How much room the trees may take; exceeded only by trees in use.
        observe: Told how each fetch was served.
        fresh_s: How long an answer of the store is taken to hold, seconds; 0 asks it each time.
        most_fresh: For how many objects at a time; each holds a file descriptor.
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
        self._fresh_s = fresh_s
        self._most_fresh = most_fresh
        self._fresh: dict[tuple[str, str], _Fresh] = {}  # the one asked about longest ago is first
        self._disk = DiskCache(root, max_bytes)
        self._index = root / "index"
        self._index_writes = 0
        self._refusals: BoundedMap[str, _Refusal] = BoundedMap(_REFUSALS)  # by digest
        self._flights: SingleFlight[Pin] = SingleFlight()
        self._unpackings = asyncio.Semaphore(_PARALLEL_UNPACKINGS)

    async def start(self) -> None:
        """Make the folders and remove what crashed workers and evicted trees have left.

        Raises:
            ConfigError: A folder is another user's.
            StorageError: The disk failed.
        """
        await self._disk.start()
        with disk_errors(self._root):
            make_private(self._index)
            await in_thread(self._prune_index)

    async def close(self) -> None:
        """End what is under way. Trees stay, for the next worker. Idempotent."""
        await self._flights.close()
        self._forget_all()
        await self._disk.close()

    @asynccontextmanager
    async def fetch(self, bucket: str, key: str) -> AsyncIterator[CodeTree]:
        """Hold the tree of the zip that is now at `bucket` and `key`, or was less than `fresh_s` ago.

        One conditional request at most, shared by callers who want the same object at the same time.

        Raises:
            Rejected: CODE_NOT_FOUND, or INVALID_CODE for a zip that is over a limit or hostile.
            StorageError: The object store or the disk failed.
        """
        pin = self._recall_fresh(bucket, key)
        if pin is not None or (bucket, key) in self._flights:
            self._observe("hit")
        if pin is None:
            pin = await self._flights.join((bucket, key), partial(self._resolve, bucket, key))
        async with self._disk.held(pin):
            meta = pin.meta()
            yield CodeTree(pin.digest, pin.content, meta.bytes, meta.disk_bytes)

    async def _resolve(self, bucket: str, key: str) -> Pin:
        asked_at = asyncio.get_running_loop().time()
        try:
            pin = await self._ask(bucket, key)
        except StorageError as exc:
            if not is_full(exc):
                raise
            log.warning("the disk is full: all code that nobody uses is evicted", reason=str(exc))
            await self.make_room(math.inf)
            pin = await self._ask(bucket, key)
        self._remember_fresh(bucket, key, pin, asked_at)
        return pin

    async def _ask(self, bucket: str, key: str) -> Pin:
        known = self._recall(bucket, key)
        pin = await self._disk.pin(known.digest) if known else None
        try:
            usable = known if known and (pin or known.digest in self._refusals) else None
            async with self._disk.scratch() as scratch:
                changed = await self._request(bucket, key, scratch / "code.zip", usable)
                if changed is not None:
                    return await self._adopt(changed, scratch)
            if usable is None:
                name = shown(bucket, key)
                raise StorageError(f"{name}: the store sent nothing, though asked for all of it")
            self._observe("revalidated")
            self._refuse_known(usable.digest)
            return _shared(pin)
        finally:
            if pin is not None:
                pin.release()

    async def _request(
        self, bucket: str, key: str, into: Path, known: _IndexEntry | None
    ) -> _IndexEntry | None:
        """Ask for the object unless it still is the known one; returns what it is now, None if unchanged."""
        etag = known.etag if known else None
        try:
            etag = await self._store.fetch(bucket, key, into, etag=etag, max_bytes=self._limits.zip_bytes)
        except ObjectMissing as exc:
            tell = log.info if exc.absence is Absence.KEY else log.warning
            tell("code not found", reason=str(exc))
            raise rejection(bucket, key, exc) from exc
        except ObjectTooLarge as exc:
            raise refused(refusals.ZIP_TOO_LARGE, limit_mb=self._limits.zip_bytes / MIB) from exc
        if etag is None:
            return None
        with disk_errors(self._root):
            return _IndexEntry(bucket, key, etag, await in_thread(partial(_sha256, into)))

    async def _adopt(self, changed: _IndexEntry, scratch: Path) -> Pin:
        """The tree of the bytes just fetched, from disk or unpacked now."""
        pin = await self._disk.pin(changed.digest)
        self._observe("hit" if pin else "miss")
        try:
            await self._remember(changed, scratch)
            if pin is None:
                self._refuse_known(changed.digest)
                await self._unpack(changed.digest, scratch)
                pin = await self._disk.publish(changed.digest, scratch / "tree")
                await self._evict()
            return pin.share()
        finally:
            if pin is not None:
                pin.release()

    async def make_room(self, size_bytes: float) -> None:
        """Remove so much of what nobody uses, the least recently used first; trees that are fresh as well.

        Raises:
            StorageError: The disk failed.
        """
        self._forget_all()
        await self._disk.evict(missing_bytes=size_bytes)

    async def _evict(self) -> None:
        await self._disk.evict()
        if self._disk.may_be_over and self._fresh:  # trees that are only remembered must not hold it up
            self._forget_all()
            await self._disk.evict()

    async def _unpack(self, digest: str, scratch: Path) -> None:
        try:
            with disk_errors(self._root):
                async with self._unpackings:
                    await in_thread(
                        partial(archive.extract, scratch / "code.zip", scratch / "tree", self._limits)
                    )
        except Rejected as exc:
            self._refusals[digest] = _Refusal(exc.message, exc.hint, asyncio.get_running_loop().time())
            raise

    def _refuse_known(self, digest: str) -> None:
        """Raise what was found wrong with these bytes before, if anything; they will not get any better."""
        if refusal := self._refusals.get(digest):
            ago_s = asyncio.get_running_loop().time() - refusal.at
            message = _REFUSAL_REMEMBERED.format(message=refusal.message, ago_s=round(ago_s))
            raise Remembered(ErrorType.INVALID_CODE, message, hint=refusal.hint, reason="archive")

    # --- what is fresh

    def _recall_fresh(self, bucket: str, key: str) -> Pin | None:
        fresh = self._fresh.get((bucket, key))
        if fresh is None:
            return None
        if not fresh.pin.exists():
            self._forget(bucket, key)
            return None
        return fresh.pin.share()

    def _remember_fresh(self, bucket: str, key: str, pin: Pin, asked_at: float) -> None:
        """Count from the question: what was deployed while it was answered may not be in the answer."""
        loop = asyncio.get_running_loop()
        self._forget(bucket, key)
        if asked_at + self._fresh_s <= loop.time() or self._disk.may_be_over:
            return
        if len(self._fresh) >= self._most_fresh:
            self._forget(*next(iter(self._fresh)))
        end = loop.call_at(asked_at + self._fresh_s, self._forget, bucket, key)
        self._fresh[bucket, key] = _Fresh(pin.share(), end)

    def _forget(self, bucket: str, key: str) -> None:
        fresh = self._fresh.pop((bucket, key), None)
        if fresh is not None:
            fresh.end.cancel()
            fresh.pin.release()

    def _forget_all(self) -> None:
        for bucket, key in list(self._fresh):
            self._forget(bucket, key)

    # --- the index

    def _index_path(self, bucket: str, key: str) -> Path:
        name = hashlib.sha256(f"{bucket}\0{key}".encode()).hexdigest()
        return self._index / f"{name}.json"

    def _recall(self, bucket: str, key: str) -> _IndexEntry | None:
        with disk_errors(self._root):
            entry = _read_index(self._index_path(bucket, key))
        return entry if entry and (entry.bucket, entry.key) == (bucket, key) else None

    async def _remember(self, entry: _IndexEntry, scratch: Path) -> None:
        with disk_errors(self._root):
            draft = scratch / "index.json"
            draft.write_bytes(msgspec.json.encode(entry))
            draft.rename(self._index_path(entry.bucket, entry.key))
            self._index_writes += 1
            if self._index_writes % _PRUNE_EVERY == 0:
                await in_thread(self._prune_index)

    def _prune_index(self) -> None:
        """Remove entries that name no tree (of evicted trees, of refused archives, unreadable ones).

        Of the others the oldest, if they are too many.
        """
        digests = self._disk.digests()
        kept: list[tuple[int, Path]] = []
        for path in self._index.glob("*.json"):
            entry = _read_index(path)
            if entry is None or entry.digest not in digests:
                path.unlink(missing_ok=True)
            else:
                kept.append((_written_at_ns(path), path))
        for _, path in sorted(kept)[:-_MOST_INDEXED]:
            path.unlink(missing_ok=True)


class ProgramCache:
    """Built programs: one file each, built once per key.

    Call `start` before and `close` after use; workers of the same user may share `root`.

    Args:
        root: The folder; not that of another cache.
        max_bytes: How much room the programs may take; exceeded only by programs in use.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._disk = DiskCache(root, max_bytes)
        self._root = root
        self._flights: SingleFlight[Pin] = SingleFlight()

    async def start(self) -> None:
        """Make the folders and remove what crashed workers have left.

        Raises:
            ConfigError: A folder is another user's.
            StorageError: The disk failed.
        """
        await self._disk.start()

    async def close(self) -> None:
        """End what is under way, builders included. Programs stay. Idempotent."""
        await self._flights.close()
        await self._disk.close()

    @asynccontextmanager
    async def get_or_build(self, key: str, build: Callable[[Path], Awaitable[None]]) -> AsyncIterator[Path]:
        """Hold the program of that key; `build` makes it if there is none.

        A builder is cancelled when all who wait for it are; its end is then waited for.

        Args:
            key: Hex digest of all that the program depends on.
            build: Writes one file to the path it is given. It is run once for callers at the same time;
                what it raises is raised to all of them, and nothing is kept.

        Returns:
            The file, mode 0555.

        Raises:
            ValueError: The key is no hex digest.
            StorageError: The disk failed, or the builder wrote no file.
            Exception: Whatever the builder raises.
        """
        if not _DIGEST.fullmatch(key):
            raise ValueError(f"{key!r} is no hex digest")
        pin = None if key in self._flights else await self._disk.pin(key)
        if pin is None:
            pin = await self._flights.join(key, partial(self._resolve, key, build))
        async with self._disk.held(pin):
            yield pin.content

    async def make_room(self, size_bytes: float) -> None:
        """Remove so much of what nobody uses, the least recently used first.

        Raises:
            StorageError: The disk failed.
        """
        await self._disk.evict(missing_bytes=size_bytes)

    async def _resolve(self, key: str, build: Callable[[Path], Awaitable[None]]) -> Pin:
        try:
            return await self._make(key, build)
        except PlatformError as exc:
            if not is_full(exc):
                raise
            log.warning("the disk is full: all programs that nobody uses are evicted", reason=str(exc))
        await self.make_room(math.inf)
        return await self._make(key, build)

    async def _make(self, key: str, build: Callable[[Path], Awaitable[None]]) -> Pin:
        if pin := await self._disk.pin(key):
            return pin
        async with self._disk.scratch() as scratch:
            program = scratch / "program"
            await build(program)
            with disk_errors(self._root):
                _seal(program)
            pin = await self._disk.publish(key, program)
        try:
            await self._disk.evict()
            return pin.share()
        finally:
            pin.release()


def _shared(pin: Pin | None) -> Pin:
    """A share of the pin of a tree that was just revalidated."""
    if pin is None:
        raise StorageError("the tree was neither pinned nor refused")
    return pin.share()


def _seal(program: Path) -> None:
    if program.is_symlink() or not program.is_file():
        raise StorageError("the builder wrote no file")
    program.chmod(0o555)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _written_at_ns(path: Path) -> int:
    """When a file was last written; 0 when it is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _read_index(path: Path) -> _IndexEntry | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_IndexEntry)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
