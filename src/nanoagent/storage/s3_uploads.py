"""Stores large files in S3 in parts (multipart upload)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent.aws import failures as aws_failures
from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

# S3 requires at least 5 MiB for each part but the last, and accepts 10,000 parts: files of up to 78 GiB.
PART_BYTES: Final = 8 * MIB
"""The size of a part, bytes."""

_log = structlog.get_logger(__name__)


async def upload_parts(
    client: Any,
    target: Mapping[str, str],
    file: Any,
    *,
    described: Mapping[str, Any],
    condition: Mapping[str, str],
    timeout_s: float,
) -> None:
    """Store an open file in parts. If that fails, delete the parts.

    Args:
        client: An aiobotocore S3 client.
        target: The bucket and the key.
        file: The file, opened for reading.
        described: The object's headers and metadata.
        condition: The condition of the write; empty for none.
        timeout_s: The longest time to delete the parts after a failure, seconds.
    """
    upload = await client.create_multipart_upload(**target, **described)
    upload_target = {**target, "UploadId": upload["UploadId"]}
    try:
        parts: list[dict[str, Any]] = []
        while data := await asyncio.to_thread(file.read, PART_BYTES):
            number = len(parts) + 1
            part = await client.upload_part(**upload_target, PartNumber=number, Body=data)
            parts.append({"PartNumber": number, "ETag": part["ETag"]})
        await client.complete_multipart_upload(**upload_target, **condition, MultipartUpload={"Parts": parts})
    except BaseException:
        await abort(client, upload_target, timeout_s=timeout_s)
        raise


async def abort(client: Any, upload_target: Mapping[str, str], *, timeout_s: float) -> None:
    """Delete the parts of an unfinished upload; S3 bills them otherwise. A failure is only logged.

    Args:
        client: An aiobotocore S3 client.
        upload_target: The bucket, the key and the upload's ID.
        timeout_s: The longest time, seconds.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await client.abort_multipart_upload(**upload_target)
    except aws_failures.CALL_ERRORS as exc:
        _log.warning("multipart upload not aborted", error=aws_failures.describe(exc), **upload_target)
