"""Objects in S3, or anything that speaks it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import structlog

from nanoagent.aws import clients as aws
from nanoagent.common.units import MIB
from nanoagent.model.errors import StorageError, Superseded
from nanoagent.storage.base import Absence, ObjectMissing, ObjectTooLarge, plain_link, shown

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

_CHUNK_BYTES: Final = 256 * 1024  # written within the loop: about 0.1 ms to the page cache
_PART_BYTES: Final = 8 * MIB  # S3 wants 5 MiB at least and 10,000 parts at most: up to 78 GiB
_LEAST_BYTES_PER_S: Final = 128 * 1024  # slower than any network that a worker could live with
_NOT_MODIFIED: Final = frozenset({"304", "NotModified"})
# By code and not by HTTP status: 403 is also the answer to wrong or expired credentials of the worker.
_ABSENCES: Final = {
    **dict.fromkeys(("404", "NoSuchKey", "NotFound"), Absence.KEY),
    **dict.fromkeys(("NoSuchBucket", "InvalidBucketName"), Absence.BUCKET),
    **dict.fromkeys(("403", "AccessDenied", "AllAccessDisabled"), Absence.DENIED),
    **dict.fromkeys(
        (
            "KMS.AccessDeniedException",
            "KMS.DisabledException",
            "KMS.InvalidStateException",
            "KMS.KMSInvalidStateException",
            "KMS.NotFoundException",
        ),
        Absence.DENIED,
    ),
    "InvalidObjectState": Absence.ARCHIVED,  # it would have to be restored first
    # botocore follows a bucket to its region once, by the region that S3 names. These remain where it
    # cannot: in another partition, in a region that is not enabled for the account, or behind an endpoint of
    # one region.
    **dict.fromkeys(
        (
            *("301", "307", "PermanentRedirect", "TemporaryRedirect", "Redirect"),
            *("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
        ),
        Absence.ELSEWHERE,
    ),
    **dict.fromkeys(("KeyTooLongError", "ParamValidationError"), Absence.NAME),  # the latter is botocore's
}
_LIST: Final = "s3:listbucket"
_CHANGED: Final = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409"})
_GONE: Final = frozenset({"NoSuchKey", "NotFound", "404"})
_CANNOT: Final = frozenset({"NotImplemented", "501"})
_METADATA_KEY: Final = "nanoagent-fence"  # sent as x-amz-meta-nanoagent-fence
# Answers to the probe's question that show a working store: it knows the bucket and the credentials.
_PROBE_ANSWERS: Final = frozenset({"NoSuchKey", "InvalidRange"})
_PROBE_NAME: Final = "nanoagent-probe"
# A worker may read and write below outputs/. No job has this object: a slash follows each requestId.
_PROBE_OUTPUT: Final = f"outputs/{_PROBE_NAME}"
_PROBE_S: Final = 5.0
_PUT_ATTEMPTS: Final = 5  # each but the first after someone else has written or removed the object in between

_log = structlog.get_logger(__name__)


class S3Store:
    """An `ObjectStore` on S3.

    What fences a late writer off is the store's: a put succeeds only while no object is there, or the very
    one that was looked at (conditional writes, `If-None-Match` and `If-Match`). That costs nothing unless an
    earlier attempt has left the object. A store that says it cannot do that is looked at, then written to.

    Args:
        client: An aiobotocore S3 client; its owner closes it.
        call_timeout_s: The longest a call takes, besides a second for each 128 KiB that it moves.
    """

    def __init__(self, client: Any, *, call_timeout_s: float = aws.CALL_TIMEOUT_S) -> None:
        self._client = client
        self._conditions = True
        self._call_timeout_s = call_timeout_s

    async def fetch(
        self, bucket: str, key: str, into: Path, *, etag: str | None, max_bytes: int
    ) -> str | None:
        """Write an object's bytes to the file `into`; see `ObjectStore.fetch`.

        A fetch that fails midway leaves what it has written.
        """
        async with self._within(max_bytes, f"read {shown(bucket, key)}"):
            answer = await self._get(bucket, key, etag)
            if answer is None:
                return None
            async with answer["Body"] as body:
                if answer["ContentLength"] > max_bytes:
                    raise _too_large(bucket, key, answer["ContentLength"], max_bytes)
                complete = await _copy(body, into, max_bytes)
        if not complete:
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
        """Store the file `source`, in parts of 8 MiB if it is larger than one; see `ObjectStore.put`.

        Raises:
            Superseded: An object with a larger fencing token is there.
            StorageError: The file could not be read or stored; no parts are left behind.
        """
        target = {"Bucket": bucket, "Key": key}
        described: dict[str, Any] = {
            "ContentType": content_type,
            "Metadata": {_METADATA_KEY: str(fencing_token)},
        }
        if to_be_saved:
            described["ContentDisposition"] = "attachment"
        condition: dict[str, str] | None = {"IfNoneMatch": "*"}
        doing = f"write {shown(bucket, key)}"
        with aws.errors_as(StorageError, doing):
            if not self._conditions:  # then at least look before
                condition = await self._replacing(target, fencing_token)
            for _ in range(_PUT_ATTEMPTS):
                if condition is None:
                    return
                conditions = condition if self._conditions else {}
                if await self._put_if(target, source, described, conditions, doing):
                    return
                condition = await self._replacing(target, fencing_token)
        raise StorageError(f"{doing}: others keep writing it")

    def plain_url(self, bucket: str, key: str) -> str:
        """The object's address in path style, at the endpoint that the worker itself uses."""
        endpoint = urlsplit(self._client.meta.endpoint_url)
        # A user and a password in AWS_ENDPOINT_URL are for the worker alone.
        address = endpoint._replace(netloc=endpoint.netloc.rpartition("@")[2])
        return plain_link(address.geturl().rstrip("/"), bucket, key)

    async def presigned_url(self, bucket: str, key: str, *, expires_s: int) -> str:
        """A link that lets anyone read the object for `expires_s` seconds, 604,800 at most.

        Raises:
            StorageError: There are no credentials to sign with.
        """
        with aws.errors_as(StorageError, f"sign a link to {shown(bucket, key)}"):
            return str(
                await self._client.generate_presigned_url(
                    "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=expires_s
                )
            )

    async def probe_code(self, bucket: str) -> None:
        """Succeed when the bucket of code exists and reading from it is not refused; nothing is changed.

        It reads a key that does not exist. HeadBucket would require s3:ListBucket, which a worker need not
        have, and its answer has no body that tells a missing permission from a wrong access key.

        Raises:
            StorageError: The store, the bucket or a permission is missing, or no answer came in 5 seconds.
        """
        await self._probe(bucket, _PROBE_NAME, "S3_CODE_BUCKET", may_read=True)

    async def probe_outputs(self, bucket: str) -> None:
        """Succeed when the store answers and has the bucket of outputs; nothing is changed.

        Raises:
            StorageError: The store or the bucket is missing, or no answer came in 5 seconds.
        """
        await self._probe(bucket, _PROBE_OUTPUT, "S3_USER_DATA_BUCKET", may_read=False)

    async def probe_writing(self, bucket: str) -> None:
        """Succeed when writing below `outputs/` is not refused: begin a multipart upload, then abort it.

        A store without multipart uploads is only asked for the bucket.

        Raises:
            StorageError: Writing is refused, or no answer came in 5 seconds.
        """
        target = {"Bucket": bucket, "Key": _PROBE_OUTPUT}
        async with aws.deadline(
            _PROBE_S, StorageError, f"write to the bucket {bucket} (S3_USER_DATA_BUCKET)"
        ):
            try:
                upload = await self._client.create_multipart_upload(**target)
            except aws.CALL_ERRORS as exc:
                if aws.error_code(exc) not in _CANNOT:
                    raise
                upload = None
        if upload is None:
            await self.probe_outputs(bucket)
        else:
            await self._abort({**target, "UploadId": upload["UploadId"]})

    async def _probe(self, bucket: str, key: str, setting: str, *, may_read: bool) -> None:
        async with aws.deadline(_PROBE_S, StorageError, f"look for the bucket {bucket} ({setting})"):
            try:
                answer = await self._client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
            except aws.CALL_ERRORS as exc:
                if aws.error_code(exc) in _PROBE_ANSWERS or _is_harmless_refusal(exc, may_read=may_read):
                    return
                raise
            answer["Body"].close()

    async def close(self) -> None:
        """Nothing to close: the client is its owner's."""

    def _within(self, size_bytes: int, doing: str) -> AbstractAsyncContextManager[None]:
        """The time that moving so many bytes may take; then the store is given up."""
        seconds = self._call_timeout_s + size_bytes // _LEAST_BYTES_PER_S
        return aws.deadline(seconds, StorageError, doing)

    async def _get(self, bucket: str, key: str, etag: str | None) -> Any:
        """GetObject's answer, body unread; None when `etag` is still current."""
        condition = {} if etag is None else {"IfNoneMatch": etag}
        try:
            return await self._client.get_object(Bucket=bucket, Key=key, **condition)
        except aws.CALL_ERRORS as exc:
            code = aws.error_code(exc)
            if code in _NOT_MODIFIED:
                return None
            said = f"read {shown(bucket, key)}: {aws.describe(exc)}"
            absence, action = absence_of(code, str(exc))
            if absence is None:
                raise StorageError(said) from exc
            raise ObjectMissing(said, absence, action) from exc

    async def _put_if(
        self,
        target: dict[str, str],
        source: Path,
        described: dict[str, Any],
        condition: dict[str, str],
        doing: str,
    ) -> bool:
        """Store the file under a condition; False when it does not hold."""
        with await asyncio.to_thread(source.open, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = await asyncio.to_thread(file.read, _PART_BYTES + 1)
            async with self._within(size, doing):
                try:
                    if len(first) > _PART_BYTES:
                        file.seek(0)
                        await self._put_parts(target, file, described, condition)
                    else:
                        await self._client.put_object(**target, **described, **condition, Body=first)
                except aws.CALL_ERRORS as exc:
                    if not condition or not self._is_answer_to_condition(exc):
                        raise
                    return False
        return True

    def _is_answer_to_condition(self, error: BaseException) -> bool:
        """Whether a write failed because of its condition: it does not hold, or is not understood."""
        code = aws.error_code(error)
        if code in _CANNOT:
            _log.warning("the store cannot write conditionally; a late attempt could overwrite outputs")
            self._conditions = False
        return code in _CHANGED | _GONE | _CANNOT

    async def _replacing(self, target: dict[str, str], fencing_token: int) -> dict[str, str] | None:
        """The condition under which the object that is there may be replaced; None when it is ours.

        Raises:
            Superseded: It may not be.
        """
        try:
            async with asyncio.timeout(self._call_timeout_s):
                there = await self._client.head_object(**target)
        except aws.CALL_ERRORS as exc:
            if aws.error_code(exc) in _GONE:
                return {"IfNoneMatch": "*"}
            raise
        found = there.get("Metadata", {}).get(_METADATA_KEY, "")
        theirs = int(found) if found.isdecimal() else 0
        if theirs > fencing_token:
            raise Superseded(
                f"write {shown(target['Bucket'], target['Key'])}: a later attempt has written it"
            )
        if fencing_token and theirs == fencing_token:  # written, and the answer was lost
            return None
        return {"IfMatch": there["ETag"]}

    async def _put_parts(
        self, where: dict[str, str], file: Any, described: dict[str, Any], condition: dict[str, str]
    ) -> None:
        upload = await self._client.create_multipart_upload(**where, **described)
        target = {**where, "UploadId": upload["UploadId"]}
        try:
            parts: list[dict[str, Any]] = []
            while data := await asyncio.to_thread(file.read, _PART_BYTES):
                number = len(parts) + 1
                part = await self._client.upload_part(**target, PartNumber=number, Body=data)
                parts.append({"PartNumber": number, "ETag": part["ETag"]})
            await self._client.complete_multipart_upload(
                **target, **condition, MultipartUpload={"Parts": parts}
            )
        except BaseException:
            await self._abort(target)
            raise

    async def _abort(self, target: dict[str, str]) -> None:
        """Remove the parts of an upload, which S3 bills until then."""
        try:
            async with asyncio.timeout(self._call_timeout_s):
                await self._client.abort_multipart_upload(**target)
        except aws.CALL_ERRORS as exc:
            _log.warning("multipart upload not aborted", error=aws.describe(exc), **target)


def absence_of(code: str, message: str) -> tuple[Absence | None, str | None]:
    """Why an object cannot be read, by S3's refusal; None for a failure that is not about the object.

    A caller without s3:ListBucket is refused a key that does not exist ("GetObject" in the Amazon S3 API
    Reference). Where S3 names s3:ListBucket, reading is allowed, and the key is missing.

    Returns:
        The reason, and the action that S3 says is missing.
    """
    absence = _ABSENCES.get(code)
    action = aws.missing_action(message) if absence is Absence.DENIED else None
    if action is not None and action.lower() == _LIST:
        return Absence.KEY, None
    return absence, action


def _is_harmless_refusal(error: BaseException, *, may_read: bool) -> bool:
    """Whether the worker may be able to work although the probe was refused.

    Outputs are written, not read. A refusal that names no action may mean that the key does not exist.
    """
    absence, action = absence_of(aws.error_code(error), str(error))
    if absence is Absence.KEY:
        return True
    is_denied = aws.error_code(error) == "AccessDenied"
    return is_denied and (action is None or not may_read)


async def _copy(body: Any, into: Path, max_bytes: int) -> bool:
    """Write the body to the file; False, midway, as soon as it is more than `max_bytes`."""
    written = 0
    with await asyncio.to_thread(into.open, "wb") as file:
        async for chunk in body.iter_chunks(_CHUNK_BYTES):
            written += len(chunk)
            if written > max_bytes:
                return False
            file.write(chunk)
    return True


def _too_large(bucket: str, key: str, size_bytes: int | None, max_bytes: int) -> ObjectTooLarge:
    size = "more" if size_bytes is None else f"{size_bytes:,} bytes"
    return ObjectTooLarge(f"{shown(bucket, key)} has {size}; at most {max_bytes:,} bytes are taken")
