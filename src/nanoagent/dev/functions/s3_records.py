"""The records of functions in the code bucket.

Records are written with conditions (`If-None-Match`, `If-Match`), so that of two writers at the same time one
is refused.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from nanoagent.aws import clients as aws
from nanoagent.aws import failures as aws_failures
from nanoagent.dev.functions.records import Stored
from nanoagent.model import function_record
from nanoagent.model.errors import StorageError
from nanoagent.model.function_record import FunctionRecord, InvalidRecord
from nanoagent.storage.base import Absence, shown
from nanoagent.storage.s3_errors import CONFLICT, NOT_FOUND, NOT_SUPPORTED, absence_of

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

_MOST_READS: Final = 16  # at the same time; the client has 32 connections
_NO_CONDITIONS: Final = (
    "this store does not support conditional writes, so that one of two deployments of a function at the "
    "same time can be lost; use a store that supports If-Match, such as Amazon S3"
)


class S3Records:
    """A `RecordStore` on S3.

    Args:
        client: An aiobotocore S3 client. Its owner closes it.
        bucket: The code bucket.
    """

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    async def read(self, function_id: str) -> Stored | None:
        """See `RecordStore.read`. Without s3:ListBucket, S3 answers AccessDenied for a missing object."""
        return await self._read(function_record.key_of(function_id))

    async def write(self, record: FunctionRecord, etag: str | None) -> bool:
        """See `RecordStore.write`.

        Raises:
            StorageError: S3 failed, or does not support conditional writes.
        """
        key = function_record.key_of(record.function_id)
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        async with self._within(f"write {shown(self._bucket, key)}"):
            try:
                await self._client.put_object(
                    Bucket=self._bucket,
                    Key=key,
                    Body=function_record.encode(record),
                    ContentType="application/json",
                    **condition,
                )
            except aws_failures.CALL_ERRORS as exc:
                code = aws_failures.error_code(exc)
                if code in NOT_SUPPORTED:
                    raise StorageError(f"write {shown(self._bucket, key)}: {_NO_CONDITIONS}") from exc
                if code in CONFLICT or (etag is not None and code in NOT_FOUND):
                    return False
                raise
        return True

    async def all(self) -> list[FunctionRecord | InvalidRecord]:
        """See `RecordStore.all`."""
        room = asyncio.Semaphore(_MOST_READS)

        async def read(key: str) -> FunctionRecord | InvalidRecord | None:
            async with room:
                try:
                    stored = await self._read(key)
                except InvalidRecord as exc:
                    return exc
                return None if stored is None else stored.record

        found = await asyncio.gather(*(read(key) for key in await self._keys()))
        return [record for record in found if record is not None]  # None: deleted since it was listed

    async def _keys(self) -> list[str]:
        prefix = function_record.KEY_PREFIX
        keys: list[str] = []
        following: dict[str, str] = {}
        async with self._within(f"list {shown(self._bucket, prefix)}"):
            while True:
                page = await self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, **following)
                keys += [item["Key"] for item in page.get("Contents", []) if item["Key"].endswith(".json")]
                if not page.get("IsTruncated"):
                    return keys
                following = {"ContinuationToken": page["NextContinuationToken"]}

    async def _read(self, key: str) -> Stored | None:
        name = shown(self._bucket, key)
        async with self._within(f"read {name}"):
            try:
                answer = await self._client.get_object(Bucket=self._bucket, Key=key)
            except aws_failures.CALL_ERRORS as exc:
                absence, _ = absence_of(aws_failures.error_code(exc), str(exc))
                if absence in {Absence.KEY, Absence.DENIED}:
                    return None
                raise
            async with answer["Body"] as body:
                if answer["ContentLength"] > function_record.MAX_RECORD_BYTES:
                    raise InvalidRecord(f"{name}: has {answer['ContentLength']:,} bytes; it is no record")
                document = await body.read()
        return Stored(function_record.decode(document, key, name), str(answer["ETag"]))

    def _within(self, operation: str) -> AbstractAsyncContextManager[None]:
        return aws_failures.deadline(aws.CALL_TIMEOUT_S, StorageError, operation)
