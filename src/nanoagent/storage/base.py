"""The interface of an object store."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from nanoagent.model.errors import NanoAgentError, one_line

if TYPE_CHECKING:
    from pathlib import Path


class Absence(Enum):
    """Why an object cannot be read. `code.missing_code` has the message for each reason."""

    KEY = "there is no such key"
    BUCKET = "there is no such bucket"
    DENIED = "access is denied"
    ARCHIVED = "the object is archived"
    ELSEWHERE = "the bucket is in another region, which cannot be reached"
    NAME = "no bucket or key can have such a name"


class ObjectMissing(NanoAgentError):  # noqa: N818 - a fact about the object, not a failure
    """An object does not exist or cannot be read; the reason concerns only this object or its bucket.

    Args:
        message: The message for the log, with the store's error text.
        absence: The reason.
        action: The missing permission ("kms:Decrypt"); None if the store does not name it.
    """

    def __init__(self, message: str, absence: Absence = Absence.KEY, action: str | None = None) -> None:
        super().__init__(message)
        self.absence = absence
        self.action = action


class ObjectTooLarge(NanoAgentError):  # noqa: N818 - a fact about the object, not a failure
    """The object is larger than the caller's limit."""


def shown(bucket: str, key: str) -> str:
    """Return an object's name for messages. Special characters of the key are escaped."""
    return one_line(f"s3://{bucket}/{key}")


def plain_link(endpoint: str, bucket: str, key: str) -> str:
    """Return the URL of an object in path style.

    Args:
        endpoint: The store's URL.
        bucket: The bucket's name.
        key: The object's key. Characters that a URL cannot contain are percent-encoded.
    """
    return f"{endpoint}/{bucket}/{quote(key)}"


class ObjectStore(Protocol):
    """Stores objects in buckets, by key.

    Every method except `is_unchanged` raises `StorageError` when the store fails.
    """

    async def is_unchanged(self, bucket: str, key: str, etag: str) -> bool:
        """Ask whether an object still has an ETag, if the store can tell it at a low cost.

        Args:
            bucket: The bucket's name.
            key: The object's key.
            etag: The ETag of the content that the caller already has.

        Returns:
            False if the object has another ETag, or if this is not known. Then `fetch` must be called, which
            also tells the reason of a failure.
        """
        ...

    async def fetch(
        self, bucket: str, key: str, into: Path, *, etag: str | None, max_bytes: int
    ) -> str | None:
        """Write an object's content to a file.

        Args:
            bucket: The bucket's name.
            key: The object's key.
            into: The file, which is created or overwritten.
            etag: The ETag of the content that the caller already has. If the object still has this ETag, it
                is not fetched. None: always fetch.
            max_bytes: The largest accepted size.

        Returns:
            The object's ETag; None if the object still has the given ETag.

        Raises:
            ObjectMissing: The object cannot be read; `absence` is the reason.
            ObjectTooLarge: The object is larger than `max_bytes`.
            StorageError: Any other failure.
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
        """Store a file as an object.

        Args:
            bucket: The bucket's name.
            key: The object's key.
            source: The file.
            content_type: The object's media type.
            to_be_saved: Whether browsers should save the object instead of showing it.
            fencing_token: Stored with the object. An existing object is replaced only if its token is smaller
                or missing. If it has the same token, it is kept, and the call succeeds. 0: no token.

        Raises:
            Superseded: An object with a larger token exists.
            StorageError: Any other failure.
        """
        ...

    def plain_url(self, bucket: str, key: str) -> str:
        """Return the object's URL, for readers with credentials."""
        ...

    async def presigned_url(self, bucket: str, key: str, *, expires_s: int) -> str:
        """Return a URL with which anyone can read the object for `expires_s` seconds."""
        ...

    async def close(self) -> None:
        """Close connections. Idempotent."""
        ...
