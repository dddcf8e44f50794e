"""The object store on Amazon S3 and compatible services."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import structlog

from nanoagent.aws import clients as aws
from nanoagent.aws import failures as aws_failures
from nanoagent.aws.revalidation import Revalidation, noting_requests
from nanoagent.model.errors import StorageError, Superseded
from nanoagent.storage.base import ObjectMissing, ObjectTooLarge, plain_link, shown
from nanoagent.storage.s3_errors import CONFLICT, NOT_FOUND, NOT_MODIFIED, NOT_SUPPORTED, absence_of
from nanoagent.storage.s3_uploads import PART_BYTES, upload_parts

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

_CHUNK_BYTES: Final = 256 * 1024  # a write of this size to the page cache blocks the event loop for 0.1 ms
_LEAST_BYTES_PER_S: Final = 128 * 1024  # a slower transfer is a failure
_METADATA_KEY: Final = "nanoagent-fence"  # sent as x-amz-meta-nanoagent-fence
# A write is tried again only if its condition does not hold or is not supported. The condition does not hold
# if another worker or an earlier attempt has written the object.
_PUT_TRIES: Final = 5

_log = structlog.get_logger(__name__)


class S3Store:
    """An `ObjectStore` on S3.

    The fencing token of an object is checked by conditional writes (`If-None-Match`, `If-Match`). A write
    succeeds only if the object does not exist, or if it is still the object whose token was read. The first
    try requires that the object does not exist. So the token is read only if an earlier attempt has stored
    the object. If a store does not support conditional writes, the token is read before each write.

    Args:
        client: An aiobotocore S3 client. Its owner closes it.
        call_timeout_s: The longest time of a call, seconds. For each 128 KiB of content, one second is added.
    """

    def __init__(self, client: Any, *, call_timeout_s: float = aws.CALL_TIMEOUT_S) -> None:
        self._client = client
        self._revalidation = Revalidation(client)
        self._writes_conditionally = True
        self._call_timeout_s = call_timeout_s

    async def is_unchanged(self, bucket: str, key: str, etag: str) -> bool:
        """Ask whether an object still has an ETag; see `ObjectStore.is_unchanged`."""
        return await self._revalidation.is_unchanged(bucket, key, etag)

    async def fetch(
        self, bucket: str, key: str, into: Path, *, etag: str | None, max_bytes: int
    ) -> str | None:
        """Write an object's content to a file; see `ObjectStore.fetch`.

        After a failure the file may have a part of the content.
        """
        async with self._within(max_bytes, f"read {shown(bucket, key)}"):
            answer = await self._get(bucket, key, etag)
            if answer is None:
                return None
            async with answer["Body"] as body:
                if answer["ContentLength"] > max_bytes:
                    raise _too_large(bucket, key, answer["ContentLength"], max_bytes)
                is_complete = await _copy(body, into, max_bytes)
        if not is_complete:
            raise _too_large(bucket, key, None, max_bytes)
        return str(answer["ETag"])

    async def put(
        self,
        bucket: str,
        key: str,
        source: Path,
        *,
        content_type: str,
        to_be_saved: bool = False,
        fencing_token: int = 0,
    ) -> None:
        """Store a file, in parts if it is larger than 8 MiB; see `ObjectStore.put`.

        Raises:
            Superseded: An object with a larger fencing token exists.
            StorageError: The file could not be read or stored. Its parts in S3 are deleted.
        """
        target = {"Bucket": bucket, "Key": key}
        described: dict[str, Any] = {
            "ContentType": content_type,
            "Metadata": {_METADATA_KEY: str(fencing_token)},
        }
        if to_be_saved:
            described["ContentDisposition"] = "attachment"
        condition: dict[str, str] | None = {"IfNoneMatch": "*"}
        operation = f"write {shown(bucket, key)}"
        with aws_failures.errors_as(StorageError, operation):
            if not self._writes_conditionally:
                condition = await self._condition_to_replace(target, fencing_token)
            for _ in range(_PUT_TRIES):
                if condition is None:
                    return
                used = condition if self._writes_conditionally else {}
                if await self._put_if(target, source, described, used, operation):
                    return
                condition = await self._condition_to_replace(target, fencing_token)
        raise StorageError(f"{operation}: other workers changed the object {_PUT_TRIES} times meanwhile")

    def plain_url(self, bucket: str, key: str) -> str:
        """Return the object's URL in path style, at the endpoint that the worker uses."""
        endpoint = urlsplit(self._client.meta.endpoint_url)
        # A user and a password in AWS_ENDPOINT_URL must not get into results.
        address = endpoint._replace(netloc=endpoint.netloc.rpartition("@")[2])
        return plain_link(address.geturl().rstrip("/"), bucket, key)

    async def presigned_url(self, bucket: str, key: str, *, expires_s: int) -> str:
        """Return a URL with which anyone can read the object for `expires_s` seconds (at most 604,800).

        Raises:
            StorageError: The SDK has no credentials.
        """
        with aws_failures.errors_as(StorageError, f"sign a link to {shown(bucket, key)}"):
            return str(
                await self._client.generate_presigned_url(
                    "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=expires_s
                )
            )

    async def close(self) -> None:
        """Do nothing: the client's owner closes it."""

    def _within(self, size_bytes: int, operation: str) -> AbstractAsyncContextManager[None]:
        """Limit the calls in the block to the time that a transfer of this size may take."""
        seconds = self._call_timeout_s + size_bytes // _LEAST_BYTES_PER_S
        return aws_failures.deadline(seconds, StorageError, operation)

    async def _get(self, bucket: str, key: str, etag: str | None) -> Any:
        """Return GetObject's answer before its body is read; None if the object still has the ETag."""
        condition = {} if etag is None else {"IfNoneMatch": etag}
        try:
            with noting_requests() as requests:
                answer = await self._client.get_object(Bucket=bucket, Key=key, **condition)
        except aws_failures.CALL_ERRORS as exc:
            code = aws_failures.error_code(exc)
            if code in NOT_MODIFIED:
                await self._revalidation.remember(bucket, key, requests)
                return None
            message = f"read {shown(bucket, key)}: {aws_failures.describe(exc)}"
            absence, action = absence_of(code, str(exc))
            if absence is None:
                raise StorageError(message) from exc
            raise ObjectMissing(message, absence, action) from exc
        await self._revalidation.remember(bucket, key, requests)
        return answer

    async def _put_if(
        self,
        target: dict[str, str],
        source: Path,
        described: dict[str, Any],
        condition: dict[str, str],
        operation: str,
    ) -> bool:
        """Store the file if the condition holds; returns False if it does not hold."""
        with await asyncio.to_thread(source.open, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = await asyncio.to_thread(file.read, PART_BYTES + 1)
            async with self._within(size, operation):
                try:
                    if len(first) > PART_BYTES:
                        file.seek(0)
                        await upload_parts(
                            self._client,
                            target,
                            file,
                            described=described,
                            condition=condition,
                            timeout_s=self._call_timeout_s,
                        )
                    else:
                        await self._client.put_object(**target, **described, **condition, Body=first)
                except aws_failures.CALL_ERRORS as exc:
                    if not condition or not self._failed_by_condition(exc):
                        raise
                    return False
        return True

    def _failed_by_condition(self, error: BaseException) -> bool:
        """Return whether a write failed because its condition does not hold, or is not supported.

        In the second case, later writes have no condition.
        """
        code = aws_failures.error_code(error)
        if code in NOT_SUPPORTED:
            _log.warning("conditional writes not supported", effect="a late attempt can overwrite outputs")
            self._writes_conditionally = False
        return code in CONFLICT | NOT_FOUND | NOT_SUPPORTED

    async def _condition_to_replace(
        self, target: dict[str, str], fencing_token: int
    ) -> dict[str, str] | None:
        """Return the condition of a write that replaces the existing object.

        Returns:
            None if nothing must be written. The existing object has the same token, because an earlier write
            of this job succeeded, but its answer was lost.

        Raises:
            Superseded: The existing object has a larger token.
        """
        try:
            async with asyncio.timeout(self._call_timeout_s):
                existing = await self._client.head_object(**target)
        except aws_failures.CALL_ERRORS as exc:
            if aws_failures.error_code(exc) in NOT_FOUND:
                return {"IfNoneMatch": "*"}
            raise
        found = existing.get("Metadata", {}).get(_METADATA_KEY, "")
        existing_token = int(found) if found.isdecimal() else 0
        if existing_token > fencing_token:
            raise Superseded(
                f"write {shown(target['Bucket'], target['Key'])}: a later attempt has written it"
            )
        if fencing_token and existing_token == fencing_token:
            return None
        return {"IfMatch": existing["ETag"]}


async def _copy(body: Any, into: Path, max_bytes: int) -> bool:
    """Write the body to a file; returns False, with a part written, if it is larger than `max_bytes`."""
    written = 0
    with await asyncio.to_thread(into.open, "wb") as file:
        async for chunk in body.iter_chunks(_CHUNK_BYTES):
            written += len(chunk)
            if written > max_bytes:
                return False
            file.write(chunk)
    return True


def _too_large(bucket: str, key: str, size_bytes: int | None, max_bytes: int) -> ObjectTooLarge:
    size = "too many bytes" if size_bytes is None else f"{size_bytes:,} bytes"
    return ObjectTooLarge(f"{shown(bucket, key)} has {size}; the limit is {max_bytes:,} bytes")
