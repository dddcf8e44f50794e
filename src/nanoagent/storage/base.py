"""The port to an object store."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from nanoagent.model.errors import NanoAgentError, one_line

if TYPE_CHECKING:
    from pathlib import Path


class Absence(Enum):
    """Why an object cannot be read; the value is the reason in words."""

    KEY = "there is no such key"
    BUCKET = "there is no such bucket"
    DENIED = "access is denied"
    ARCHIVED = "the object is archived"
    ELSEWHERE = "the bucket is in another region, which cannot be reached"
    NAME = "no bucket or key can have such a name"


class ObjectMissing(NanoAgentError):  # noqa: N818 - a fact about the object, not a failure
    """An object cannot be read, for a reason that concerns this object or its bucket.

    Args:
        message: For the log; it quotes the store.
        absence: The reason.
        action: The permission that the store says is missing ("kms:Decrypt"), where it says so.
    """

    def __init__(self, message: str, absence: Absence = Absence.KEY, action: str | None = None) -> None:
        super().__init__(message)
        self.absence = absence
        self.action = action


class ObjectTooLarge(NanoAgentError):  # noqa: N818 - likewise
    """The object has more bytes than the caller is willing to take."""


def shown(bucket: str, key: str) -> str:
    """An object as a message names it; a key may be any characters."""
    return one_line(f"s3://{bucket}/{key}")


def plain_link(endpoint: str, bucket: str, key: str) -> str:
    """The address of an object in path style.

    Args:
        endpoint: The store's URL.
        bucket: The bucket's name.
        key: The object's key; characters that a URL cannot have are percent-encoded.
    """
    return f"{endpoint}/{bucket}/{quote(key)}"


class ObjectStore(Protocol):
    """Buckets, keys and bytes. Every method raises `StorageError` when the store fails."""

    async def fetch(
        self, bucket: str, key: str, into: Path, *, etag: str | None, max_bytes: int
    ) -> str | None:
        """Write an object's bytes to the file `into` and return its ETag.

        Args:
            bucket: The bucket's name.
            key: The object's key.
            into: A file to create or overwrite.
            etag: When given and still current, nothing is fetched and None is returned.
            max_bytes: More than this is refused, before or while it is read.

        Raises:
            ObjectMissing: No such bucket or key, access denied, or archived; `absence` says which.
            ObjectTooLarge: The object is larger than `max_bytes`.
            StorageError: Anything else.
        """
        ...

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
        """Store the file `source`; large files in parts.

        Args:
            bucket: The bucket's name.
            key: The object's key.
            source: A local file.
            content_type: Its media type.
            to_be_saved: Whether a browser is told to save it, whatever its type.
            fencing_token: Stored with the object. An existing object is replaced only if its token is smaller
                or missing. An existing object with the same token stays. 0: no token.

        Raises:
            Superseded: The object that is there has a larger one.
            StorageError: Anything else.
        """
        ...

    def plain_url(self, bucket: str, key: str) -> str:
        """The object's address, for readers with credentials."""
        ...

    async def presigned_url(self, bucket: str, key: str, *, expires_s: int) -> str:
        """A link that lets anyone read the object for that long."""
        ...

    async def close(self) -> None:
        """Close connections. Idempotent."""
        ...
