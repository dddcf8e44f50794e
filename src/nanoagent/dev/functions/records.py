"""The interface of a store of function records, and updates that lose no version."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from nanoagent.model.errors import StorageError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.model.function_record import FunctionRecord, InvalidRecord

_TRIES: Final = 20  # a deployment fails only after it has lost so many races
_UNREADABLE_TRIES: Final = 3  # another first deployment may have been refused, too, so that no record exists
_PAUSE_S: Final = 0.05


class Stored(NamedTuple):
    """A record, and the version of the object that it was read from.

    Attributes:
        record: The record.
        etag: The ETag of the object.
    """

    record: FunctionRecord
    etag: str


class RecordStore(Protocol):
    """Stores one record for each function. Every method raises `StorageError` when the store fails."""

    async def read(self, function_id: str) -> Stored | None:
        """Return the record of a function; None if there is none, or if it may not be read.

        A store that does not let a caller list its objects does not tell such a caller which of them exist.

        Raises:
            InvalidRecord: The stored record cannot be used.
        """
        ...

    async def write(self, record: FunctionRecord, etag: str | None) -> bool:
        """Store a record, if the stored one is still the one that was read.

        Args:
            record: The record.
            etag: The ETag of the record that was read; None if there was none.

        Returns:
            False if another record is stored now. Nothing was written.
        """
        ...

    async def all(self) -> list[FunctionRecord | InvalidRecord]:
        """Return the records of all functions, in no order. A record that cannot be used is an error."""
        ...


class Update(NamedTuple):
    """An update of a record.

    Attributes:
        before: The record before the update; None for a new function.
        after: The record after it; the same object if nothing has changed.
    """

    before: FunctionRecord | None
    after: FunctionRecord


async def update(
    store: RecordStore,
    function_id: str,
    change: Callable[[FunctionRecord | None], FunctionRecord],
    stored: Stored | None,
) -> Update:
    """Change the record of a function. If another program changes it meanwhile, change the new record.

    Args:
        store: The records.
        function_id: The function.
        change: Returns the new record for the stored one, or the same one if nothing must change. It may be
            called several times.
        stored: The record as it was read last.

    Raises:
        InvalidRecord: The stored record cannot be used.
        StorageError: The store failed, or the record changed too often meanwhile.
    """
    for attempt in range(_TRIES):
        before = None if stored is None else stored.record
        after = change(before)
        if after is before or await store.write(after, None if stored is None else stored.etag):
            return Update(before, after)
        await asyncio.sleep(random.uniform(0, _PAUSE_S * attempt))  # noqa: S311 - spreads competing writers
        stored = await store.read(function_id)
        if stored is None and attempt >= _UNREADABLE_TRIES:
            raise StorageError(
                f"the record of {one_line(function_id)} exists, but may not be read: allow s3:GetObject "
                "on it (deploy/iam-policy-deployer.json)"
            )
    raise StorageError(
        f"the record of {one_line(function_id)} was changed {_TRIES} times meanwhile; try again"
    )
