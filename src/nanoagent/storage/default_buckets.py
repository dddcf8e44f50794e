"""Checks that the worker can use the buckets of the settings."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from nanoagent.aws import clients as aws
from nanoagent.aws import failures as aws_failures
from nanoagent.model.errors import StorageError
from nanoagent.storage.base import Absence
from nanoagent.storage.s3_errors import NOT_SUPPORTED, absence_of
from nanoagent.storage.s3_uploads import abort

# Error codes that show a working store: it knows the bucket, and accepts the credentials.
_GOOD_CODES: Final = frozenset({"NoSuchKey", "InvalidRange"})
_PROBE_KEY: Final = "nanoagent-probe"
# A worker needs permissions only below outputs/. No output file of a job can have this key, because the key
# of an output file has a slash after the requestId.
_OUTPUT_PROBE_KEY: Final = f"outputs/{_PROBE_KEY}"
_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class DefaultBuckets:
    """The buckets of the settings S3_CODE_BUCKET and S3_USER_DATA_BUCKET.

    The checks change no data.

    Attributes:
        client: An aiobotocore S3 client for these checks only, so that they do not wait for a connection
            while files are transferred.
        code: The value of S3_CODE_BUCKET.
        outputs: The value of S3_USER_DATA_BUCKET.
    """

    client: Any
    code: str
    outputs: str

    async def probe(self) -> None:
        """Check that both buckets exist and that code may be read.

        Raises:
            StorageError: A check failed, or took more than 5 seconds.
        """
        await asyncio.gather(self.probe_code(), self.probe_outputs())

    async def not_ready_reason(self) -> str | None:
        """Return why code cannot be read or outputs cannot be written; None if both can."""
        answers = await asyncio.gather(self.probe_code(), self.probe_writing(), return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        for error in errors:
            if not isinstance(error, StorageError):
                raise error
        return "; ".join(dict.fromkeys(map(str, errors))) or None

    async def probe_code(self) -> None:
        """Check that the bucket of code exists and that reading is allowed.

        The check reads a key that does not exist. It does not use HeadBucket, for two reasons. HeadBucket
        requires s3:ListBucket, which a worker does not need. And the error of HeadBucket has no body, so a
        missing permission and a wrong access key look the same.

        Raises:
            StorageError: The check failed, or took more than 5 seconds.
        """
        await self._read(self.code, _PROBE_KEY, "S3_CODE_BUCKET", must_read=True)

    async def probe_outputs(self) -> None:
        """Check that the bucket of outputs exists.

        Raises:
            StorageError: The check failed, or took more than 5 seconds.
        """
        await self._read(self.outputs, _OUTPUT_PROBE_KEY, "S3_USER_DATA_BUCKET", must_read=False)

    async def probe_writing(self) -> None:
        """Check that writing below `outputs/` is allowed: begin a multipart upload and abort it.

        If the store does not support multipart uploads, only check that the bucket exists.

        Raises:
            StorageError: The check failed, or took more than 5 seconds.
        """
        target = {"Bucket": self.outputs, "Key": _OUTPUT_PROBE_KEY}
        operation = f"write to the bucket {self.outputs} (S3_USER_DATA_BUCKET)"
        async with aws_failures.deadline(_TIMEOUT_S, StorageError, operation):
            try:
                upload = await self.client.create_multipart_upload(**target)
            except aws_failures.CALL_ERRORS as exc:
                if aws_failures.error_code(exc) not in NOT_SUPPORTED:
                    raise
                upload = None
        if upload is None:
            await self.probe_outputs()
        else:
            await abort(self.client, {**target, "UploadId": upload["UploadId"]}, timeout_s=aws.CALL_TIMEOUT_S)

    async def _read(self, bucket: str, key: str, setting: str, *, must_read: bool) -> None:
        async with aws_failures.deadline(
            _TIMEOUT_S, StorageError, f"look for the bucket {bucket} ({setting})"
        ):
            try:
                answer = await self.client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
            except aws_failures.CALL_ERRORS as exc:
                if aws_failures.error_code(exc) in _GOOD_CODES or _is_acceptable_refusal(
                    exc, must_read=must_read
                ):
                    return
                raise
            answer["Body"].close()


def _is_acceptable_refusal(error: BaseException, *, must_read: bool) -> bool:
    """Whether the worker may be able to use the bucket although S3 refused the read.

    The worker does not need to read outputs. If the error does not name the missing permission, S3 may have
    refused only because the key does not exist.
    """
    absence, action = absence_of(aws_failures.error_code(error), str(error))
    if absence is Absence.KEY:
        return True
    is_denied = aws_failures.error_code(error) == "AccessDenied"
    return is_denied and (action is None or not must_read)
