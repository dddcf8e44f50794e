"""A store of function records in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoagent.dev.functions.records import Stored
from nanoagent.model import function_record
from nanoagent.model.function_record import FunctionRecord, InvalidRecord

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class FakeRecords:
    """A `RecordStore` in memory. It keeps the JSON, as S3 does.

    Attributes:
        may_read: Whether the caller may read records. A caller who may not gets no record, as on S3.
        before_write: Called before each write, so that another writer can be first.
        writes: The number of calls of `write`.
    """

    def __init__(self) -> None:
        self.may_read = True
        self.before_write: Callable[[], Awaitable[None]] | None = None
        self.writes = 0
        self._objects: dict[str, tuple[bytes, str]] = {}
        self._written = 0

    async def read(self, function_id: str) -> Stored | None:
        key = function_record.key_of(function_id)
        if not self.may_read or key not in self._objects:
            return None
        document, etag = self._objects[key]
        return Stored(function_record.decode(document, key, key), etag)

    async def write(self, record: FunctionRecord, etag: str | None) -> bool:
        self.writes += 1
        if self.before_write is not None:
            await self.before_write()
        key = function_record.key_of(record.function_id)
        if self._objects.get(key, (b"", None))[1] != etag:
            return False
        self.put(key, function_record.encode(record))
        return True

    async def all(self) -> list[FunctionRecord | InvalidRecord]:
        found: list[FunctionRecord | InvalidRecord] = []
        for key, (document, _) in self._objects.items():
            try:
                found.append(function_record.decode(document, key, key))
            except InvalidRecord as exc:
                found.append(exc)
        return found

    def put(self, key: str, document: bytes) -> None:
        """Store an object."""
        self._written += 1
        self._objects[key] = document, f'"{self._written}"'
