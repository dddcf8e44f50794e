"""An object store in a folder: buckets are its folders, and keys are paths below them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
from typing import TYPE_CHECKING

from nanoagent.model.errors import StorageError, Superseded
from nanoagent.storage.base import ObjectMissing, ObjectTooLarge, plain_link

if TYPE_CHECKING:
    from pathlib import Path


class FolderStore:
    """`storage.base.ObjectStore` over a local folder.

    A bucket exists if its folder exists. An ETag is the SHA-256 of the content. Content types are not stored.
    It has one user: fencing tokens are not on the disk.

    Args:
        root: The folder that holds the buckets.
        endpoint: The beginning of plain links; empty: they are `file:` URLs.
    """

    def __init__(self, root: Path, endpoint: str = "") -> None:
        self._root = root
        self._endpoint = endpoint
        self._fencing_tokens: dict[Path, int] = {}

    def path(self, bucket: str, key: str) -> Path:
        """Return the path of an object, whether it exists or not.

        Raises:
            ObjectMissing: The path is outside the bucket, so no such object is possible.
        """
        path = self._root / bucket / key
        if not os.path.normpath(path).startswith(f"{self._root / bucket}{os.sep}") or "\0" in f"{path}":
            raise ObjectMissing(f"{bucket}/{key}: no such object")
        return path

    async def is_unchanged(self, bucket: str, key: str, etag: str) -> bool:  # noqa: ARG002
        """Return False, because reading the object costs as little."""
        return False

    async def fetch(
        self, bucket: str, key: str, into: Path, *, etag: str | None, max_bytes: int
    ) -> str | None:
        """See `ObjectStore.fetch`. The content is read as a whole."""
        return await asyncio.to_thread(self._fetch, bucket, key, into, etag, max_bytes)

    def _fetch(self, bucket: str, key: str, into: Path, etag: str | None, max_bytes: int) -> str | None:
        path = self.path(bucket, key)
        try:
            if path.stat().st_size > max_bytes:
                raise ObjectTooLarge(f"{bucket}/{key}: larger than {max_bytes} bytes")
            content = path.read_bytes()
            current = hashlib.sha256(content).hexdigest()
            if current == etag:
                return None
            into.write_bytes(content)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as exc:
            if not into.parent.is_dir():
                raise StorageError(f"{into}: {exc}") from exc
            raise ObjectMissing(f"{bucket}/{key}: {exc}") from exc
        except OSError as exc:
            raise StorageError(f"{bucket}/{key}: {exc}") from exc
        return current

    async def put(
        self,
        bucket: str,
        key: str,
        source: Path,
        *,
        content_type: str,  # noqa: ARG002
        to_be_saved: bool = False,  # noqa: ARG002
        fencing_token: int = 0,
    ) -> None:
        """See `ObjectStore.put`. The bucket must exist."""
        try:
            path = self.path(bucket, key)
            if not (self._root / bucket).is_dir():
                raise StorageError(f"{bucket}: no such bucket")
            if self._fencing_tokens.get(path, 0) > fencing_token:
                raise Superseded(f"{bucket}/{key}: a later attempt has written it")
            if fencing_token and path.exists() and self._fencing_tokens.get(path) == fencing_token:
                return
            self._fencing_tokens[path] = fencing_token
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".put-{secrets.token_hex(8)}")  # in the same file system
            shutil.copyfile(source, draft)
            draft.replace(path)  # a reader sees the old object or the new one
        except (OSError, ObjectMissing) as exc:
            raise StorageError(f"{bucket}/{key}: {exc}") from exc

    def plain_url(self, bucket: str, key: str) -> str:
        """Return a link below `endpoint`, or a `file:` URL."""
        return plain_link(self._endpoint, bucket, key) if self._endpoint else self._file_url(bucket, key)

    async def presigned_url(self, bucket: str, key: str, *, expires_s: int) -> str:  # noqa: ARG002
        """Return a `file:` URL, which does not expire."""
        return self._file_url(bucket, key)

    async def close(self) -> None:
        """Do nothing: there are no connections."""

    def _file_url(self, bucket: str, key: str) -> str:
        return self.path(bucket, key).absolute().as_uri()
