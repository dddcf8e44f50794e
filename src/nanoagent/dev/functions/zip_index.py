"""Lists the files of a zip by its index. Of a zip in the bucket, only the end is fetched."""

from __future__ import annotations

import io
import zipfile
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from nanoagent.aws import clients as aws
from nanoagent.aws import failures as aws_failures
from nanoagent.model.errors import StorageError
from nanoagent.storage.base import shown
from nanoagent.storage.s3_errors import absence_of

if TYPE_CHECKING:
    from nanoagent.model.function_record import Version

# The index is at the end of a zip. An entry has about 100 bytes, so the first part is enough for 600 files.
_TAILS: Final = (64 * 1024, 1024 * 1024, 16 * 1024 * 1024)


class File(NamedTuple):
    """What an index tells about the contents of a file.

    Attributes:
        crc: The CRC-32 of the contents.
        size: The size, bytes.
        mode: The kind of file and the permissions.
    """

    crc: int
    size: int
    mode: int


Index: TypeAlias = "dict[str, File]"
"""Path → file. Folders are not in it."""


class FileChanges(NamedTuple):
    """The paths that differ between two versions, sorted."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def compared(before: Index, after: Index) -> FileChanges:
    """Return the differences between two indexes."""
    return FileChanges(
        added=tuple(sorted(after.keys() - before.keys())),
        changed=tuple(sorted(path for path in after.keys() & before.keys() if before[path] != after[path])),
        removed=tuple(sorted(before.keys() - after.keys())),
    )


def of_zip(file: IO[bytes]) -> Index:
    """Return the index of a zip, or of the end of a zip that has the whole index.

    Raises:
        zipfile.BadZipFile: The file is not a zip, or it does not have the whole index.
    """
    with zipfile.ZipFile(file) as archive:
        return {
            entry.filename: File(entry.CRC, entry.file_size, entry.external_attr >> 16)
            for entry in archive.infolist()
            if not entry.is_dir()
        }


async def of_version(s3: Any, bucket: str, version: Version) -> Index | None:
    """Return the index of a version's zip; None if the zip is missing, may not be read, or is damaged.

    Args:
        s3: An aiobotocore S3 client.
        bucket: The code bucket.
        version: The version.

    Raises:
        StorageError: S3 failed.
    """
    sizes = [size for size in _TAILS if size < version.zip_bytes]
    for size in (*sizes, version.zip_bytes):
        tail = await _tail(s3, bucket, version.key, size)
        if tail is None:
            return None
        try:
            return of_zip(io.BytesIO(tail))
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            continue  # the index begins before the tail
    return None


async def _tail(s3: Any, bucket: str, key: str, size: int) -> bytes | None:
    """Return the last bytes of an object; None if it cannot be read."""
    async with aws_failures.deadline(aws.CALL_TIMEOUT_S, StorageError, f"read {shown(bucket, key)}"):
        try:
            answer = await s3.get_object(Bucket=bucket, Key=key, Range=f"bytes=-{size}")
        except aws_failures.CALL_ERRORS as exc:
            absence, _ = absence_of(aws_failures.error_code(exc), str(exc))
            if absence is not None:
                return None
            raise
        async with answer["Body"] as body:
            return bytes(await body.read())


async def is_stored(s3: Any, bucket: str, key: str) -> bool:
    """Return whether an object exists and may be read.

    Raises:
        StorageError: S3 failed.
    """
    async with aws_failures.deadline(aws.CALL_TIMEOUT_S, StorageError, f"look for {shown(bucket, key)}"):
        try:
            await s3.head_object(Bucket=bucket, Key=key)
        except aws_failures.CALL_ERRORS as exc:
            absence, _ = absence_of(aws_failures.error_code(exc), str(exc))
            if absence is not None:
                return False
            raise
    return True
