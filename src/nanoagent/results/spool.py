"""Results that could not be published yet, on disk.

A file is one result, named `{requestId}~{token}`. It is there as soon as its bytes are safe (written aside,
fsync, rename, fsync of the folder) and goes when the result is published, or refused because someone else has
claimed or answered the request since: an older result never takes the place of a newer one, however late.

The folder outlives the worker, and workers of one machine may share it: whoever starts next delivers what is
there. That two of them deliver the same result is harmless, since the same result published twice is one.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.common.backoff import Backoff
from nanoagent.host import private_dirs
from nanoagent.host.background import Background, TaskName
from nanoagent.model.errors import ConfigError, ResultStoreError
from nanoagent.results.base import Claim

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nanoagent.results.base import ResultStore

_NAME: Final = re.compile(r"([A-Za-z0-9._-]{1,128})~([0-9]{1,20})")  # a requestId has no tilde
_DRAFT: Final = ".draft-"
_PAUSE_S: Final = 0.2
_PAUSE_MAX_S: Final = 5.0

log = structlog.get_logger(__name__)


def _future() -> asyncio.Future[bool]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, eq=False)
class _Entry:
    """A result that waits.

    Attributes:
        claim: What it may be published with.
        size: Of the document, bytes.
        document: The document itself, where it could not be written to the disk.
        delivered: Done when it is published (True) or refused (False).
    """

    claim: Claim
    size: int
    document: bytes | None = None
    delivered: asyncio.Future[bool] = field(default_factory=_future)


class Spool:
    """Keeps results and publishes them as soon as that can be done.

    Args:
        folder: Where; made by `open`.
        result_store: Where they go.
        max_bytes: How many bytes of results it is meant to hold.
        watch: Called with the number of results and of their bytes whenever that changes.
        background: Keeps the task that delivers.
    """

    def __init__(
        self,
        folder: Path,
        result_store: ResultStore,
        max_bytes: int,
        watch: Callable[[int, int], None],
        background: Background | None = None,
    ) -> None:
        self._folder = folder
        self._result_store = result_store
        self._max_bytes = max_bytes
        self._watch = watch
        self._background = background or Background()
        self._entries: dict[tuple[str, int], _Entry] = {}
        self._waiting = asyncio.Event()
        self._deliverer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Find what earlier workers have left, and begin to deliver it.

        Raises:
            ConfigError: The folder cannot be used.
        """
        try:
            found = await asyncio.to_thread(self._find)
        except OSError as exc:
            problem = f"CODE_CACHE_DIR: {self._folder} cannot be used: {exc.strerror}"
            raise ConfigError([f"{problem}; choose a folder that this user may write to"]) from exc
        for request_id, token, size in found:
            self._entries[request_id, token] = _Entry(Claim(request_id, token), size)
        if found:
            log.info("results of earlier workers are delivered", results=len(found))
        self._changed()
        self._deliverer = self._background.keep(TaskName.RESULT_DELIVERY, self._deliver_forever)

    async def close(self) -> None:
        """Stop delivering; what is on disk stays there. Idempotent."""
        if self._deliverer is not None:
            self._deliverer.cancel()
            await asyncio.wait({self._deliverer})

    def has_room_for(self, size: int) -> bool:
        """Whether so many more bytes would not be too much."""
        return self._bytes + size <= self._max_bytes

    async def keep(self, claim: Claim, document: bytes) -> asyncio.Future[bool]:
        """Keep a result safe until it can be published.

        A result is never turned away: whoever has run the job cannot take that back. Where the disk does not
        take it either, it is kept in memory.

        Returns:
            Done when it is published (True), or refused (False) as by `ResultStore.publish`.
        """
        entry = _Entry(claim, len(document))
        try:
            await asyncio.to_thread(self._write, self._path(claim), document)
        except OSError as exc:
            entry.document = document
            log.error("result kept in memory only", request_id=claim.request_id, reason=str(exc))  # noqa: TRY400 - what it says is all there is to know
        self._entries[claim.request_id, claim.token] = entry  # from here on it may be looked for on the disk
        self._changed()
        return entry.delivered

    async def delivered(self, request_id: str) -> None:
        """Wait until nothing of a request is kept here any more."""
        while waiting := [
            entry.delivered for entry in self._entries.values() if entry.claim.request_id == request_id
        ]:
            await asyncio.wait(waiting)

    # --- delivering

    @property
    def _bytes(self) -> int:
        return sum(entry.size for entry in self._entries.values())

    def _changed(self) -> None:
        self._watch(len(self._entries), self._bytes)
        if self._entries:
            self._waiting.set()

    async def _deliver_forever(self) -> None:
        backoff = Backoff(_PAUSE_S, _PAUSE_MAX_S)
        while True:
            self._waiting.clear()
            if not self._entries:
                await self._waiting.wait()
            key, entry = next(iter(self._entries.items()))
            try:
                await self._deliver(key, entry)
                backoff.reset()
            except ResultStoreError:
                self._postpone(key)
                await asyncio.sleep(backoff.next_s())
            except Exception:
                self._postpone(key)
                raise

    def _postpone(self, key: tuple[str, int]) -> None:
        """Put it last: it may be the only one that cannot be delivered."""
        if key in self._entries:
            self._entries[key] = self._entries.pop(key)

    async def _deliver(self, key: tuple[str, int], entry: _Entry) -> None:
        path = self._path(entry.claim)
        published = False
        try:
            document = entry.document
            if document is None:
                document = await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            # Another worker that shares the folder has delivered it; how that went, the message will tell
            # when it comes again.
            log.info("kept result delivered by another worker", request_id=entry.claim.request_id)
        except OSError as exc:
            log.error("a kept result cannot be read", path=str(path), reason=str(exc))  # noqa: TRY400 - likewise
        else:
            published = await self._result_store.publish(entry.claim, document)
            log.info("kept result delivered", request_id=entry.claim.request_id, refused=not published)
            try:
                await asyncio.to_thread(path.unlink, missing_ok=True)
            except OSError as exc:  # the next worker publishes it once more, which does no harm
                log.warning("delivered result not removed", path=str(path), reason=str(exc))
        del self._entries[key]
        self._changed()
        entry.delivered.set_result(published)

    # --- the folder

    def _path(self, claim: Claim) -> Path:
        return self._folder / f"{claim.request_id}~{claim.token}"

    def _find(self) -> list[tuple[str, int, int]]:
        """Request, token and size of every result, the oldest first; drafts that nobody writes now go."""
        private_dirs.make_private(self._folder, "CODE_CACHE_DIR")
        found = []
        for entry in os.scandir(self._folder):
            name = _NAME.fullmatch(entry.name)
            if name is not None and entry.is_file(follow_symlinks=False):
                found.append((entry.stat().st_mtime, name[1], int(name[2]), entry.stat().st_size))
            elif entry.name.startswith(_DRAFT):
                _remove_if_abandoned(self._folder / entry.name)
        return [(request_id, token, size) for _, request_id, token, size in sorted(found)]

    def _write(self, path: Path, document: bytes) -> None:
        """Have the document at the path, whole and safe from a loss of power, or not at all."""
        try:
            self._write_aside(path, document)
        except FileNotFoundError:
            # A worker that started at this very moment found the draft before it was locked.
            self._write_aside(path, document)

    def _write_aside(self, path: Path, document: bytes) -> None:
        draft = self._folder / f"{_DRAFT}{secrets.token_hex(8)}"
        try:
            with draft.open("xb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # somebody writes it: see `_remove_if_abandoned`
                file.write(document)
                file.flush()
                os.fsync(file.fileno())
                draft.rename(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_if_abandoned(draft: Path) -> None:
    """Remove what a worker was writing when it died; one that lives holds a lock on it."""
    try:
        with draft.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink(missing_ok=True)
    except (BlockingIOError, FileNotFoundError):
        return
