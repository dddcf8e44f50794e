"""Keeps results on disk until Redis takes them.

Each file is one result, named `{requestId}~{token}`. The file exists only with its complete content: it is
written under another name, flushed to the disk, and renamed. It is deleted when the result is published. It
is also deleted when the result store refuses the result, because another worker has answered the request, or
has claimed it later. So an older result never replaces a newer one.

The folder remains after the end of the worker, and the workers of one machine may share it. The next worker
that starts publishes the results in it. Two workers may publish the same result: the second publication has
no effect.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from nanoagent.common.backoff import Backoff
from nanoagent.host import private_dirs
from nanoagent.host.background import Background, TaskName
from nanoagent.model import result as results
from nanoagent.model.errors import ConfigError, ResultStoreError
from nanoagent.results import job_index
from nanoagent.results.base import Claim

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nanoagent.results.base import ResultStore

_NAME: Final = re.compile(r"([A-Za-z0-9._-]{1,128})~([0-9]{1,20})")  # a requestId cannot contain a tilde
_DRAFT: Final = ".draft-"
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0

log = structlog.get_logger(__name__)


def _new_future() -> asyncio.Future[bool]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, eq=False)
class _Entry:
    """A kept result.

    Attributes:
        claim: The claim to publish the result with.
        size_bytes: The size of the document, bytes.
        document: The document, if it could not be written to the disk; otherwise None.
        delivered: Completed with True when the result is published, with False when it is refused, or when
            its file does not exist or cannot be read.
    """

    claim: Claim
    size_bytes: int
    document: bytes | None = None
    delivered: asyncio.Future[bool] = field(default_factory=_new_future)


class Spool:
    """Keeps results, and publishes them as soon as Redis takes them.

    Args:
        folder: The folder of the files; `open` creates it.
        result_store: Publishes the results.
        max_bytes: The largest total size of results for which `has_room_for` returns True, bytes.
        watch: Called with the number of results and their size in bytes after each change.
        background: Runs the task that publishes.
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
        self._has_entries = asyncio.Event()
        self._deliverer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Create the folder, and begin to publish the results in it.

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
            log.info("kept results found", results=len(found))
        self._changed()
        self._deliverer = self._background.keep(TaskName.RESULT_DELIVERY, self._deliver_forever)

    async def close(self) -> None:
        """Stop publishing. The files stay on the disk. Idempotent."""
        if self._deliverer is not None:
            self._deliverer.cancel()
            await asyncio.wait({self._deliverer})

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether a result of this size, bytes, fits into `max_bytes`."""
        return self._bytes + size_bytes <= self._max_bytes

    async def keep(self, claim: Claim, document: bytes) -> asyncio.Future[bool]:
        """Keep a result until it is published.

        Every result is accepted, even above `max_bytes`, because the job has already run. If the disk fails,
        the result is kept in memory.

        Returns:
            A future: True when the result is published, False when `ResultStore.publish` refuses it, or when
            its file does not exist any more or cannot be read.
        """
        entry = _Entry(claim, len(document))
        try:
            await asyncio.to_thread(self._write, self._path(claim), document)
        except OSError as exc:
            entry.document = document
            log.error("result kept in memory only", request_id=claim.request_id, reason=str(exc))  # noqa: TRY400 - the reason is enough
        # Only now, because the file of an entry must exist.
        self._entries[claim.request_id, claim.token] = entry
        self._changed()
        return entry.delivered

    async def delivered(self, request_id: str) -> None:
        """Wait until all kept results of a request are published or refused."""
        while waiting := [
            entry.delivered for entry in self._entries.values() if entry.claim.request_id == request_id
        ]:
            await asyncio.wait(waiting)

    # --- delivering

    @property
    def _bytes(self) -> int:
        return sum(entry.size_bytes for entry in self._entries.values())

    def _changed(self) -> None:
        self._watch(len(self._entries), self._bytes)
        if self._entries:
            self._has_entries.set()

    async def _deliver_forever(self) -> None:
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            self._has_entries.clear()
            if not self._entries:
                await self._has_entries.wait()
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
        """Move a result to the end: perhaps only this one cannot be delivered."""
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
            # Another worker that shares the folder has published the result, or it was refused. This worker
            # does not know which, and reports a refusal. So the message is received again, and the next
            # claim finds the result if it was published.
            log.info("kept result delivered by another worker", request_id=entry.claim.request_id)
        except OSError as exc:
            log.error("kept result not readable", path=str(path), reason=str(exc))  # noqa: TRY400 - as above
        else:
            published = await self._result_store.publish(entry.claim, document, _index_entry(document))
            log.info("kept result delivered", request_id=entry.claim.request_id, refused=not published)
            try:
                await asyncio.to_thread(path.unlink, missing_ok=True)
            except OSError as exc:  # the next worker publishes it once more, which is harmless
                log.warning("delivered result not removed", path=str(path), reason=str(exc))
        del self._entries[key]
        self._changed()
        entry.delivered.set_result(published)

    # --- the folder

    def _path(self, claim: Claim) -> Path:
        return self._folder / f"{claim.request_id}~{claim.token}"

    def _find(self) -> list[tuple[str, int, int]]:
        """Return request, token and size of every result, the oldest first; delete abandoned drafts."""
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
        """Create the file with its complete content, safe from a power failure, or not at all."""
        try:
            self._write_draft(path, document)
        except FileNotFoundError:
            # A worker that was starting deleted the draft before it was locked.
            self._write_draft(path, document)

    def _write_draft(self, path: Path, document: bytes) -> None:
        draft = self._folder / f"{_DRAFT}{secrets.token_hex(8)}"
        try:
            with draft.open("xb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # the lock marks it as in use: see `_remove_if_abandoned`
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


def _index_entry(document: bytes) -> bytes:
    """Return the entry of a result for the index of jobs; empty if the result cannot be read."""
    try:
        return job_index.of_result(results.decode(document))
    except msgspec.DecodeError:
        return b""


def _remove_if_abandoned(draft: Path) -> None:
    """Delete a draft if its worker has died. A running worker holds a lock on its draft."""
    try:
        with draft.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink(missing_ok=True)
    except (BlockingIOError, FileNotFoundError):
        return
