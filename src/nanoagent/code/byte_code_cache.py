"""Keeps the byte code of Python code. It shares the disk cache of the code, its limits and its eviction.

The entry of a tree's byte code is a pack with the files that are added to the tree (`byte_code`). The tree
itself is another entry. So each byte on the disk counts once, and each of the two entries can be evicted
alone.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Final

from nanoagent.code import byte_code
from nanoagent.code.disk_errors import disk_errors
from nanoagent.host.threads import in_thread

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from nanoagent.code.archive import ArchiveLimits
    from nanoagent.code.byte_code import Room, Survey
    from nanoagent.code.disk_cache import DiskCache
    from nanoagent.code.pin import Pin

_FORMAT: Final = "byte code 2"  # a new number makes the byte code of older workers unused


class ByteCodeCache:
    """The byte code of code trees, made once for each tree and image.

    Args:
        disk: The disk cache of the trees.
        root: The folder of the disk cache, for messages.
        image_id: The ID of the Python image.
        limits: The limits of code. A tree and its byte code together stay within them.
    """

    def __init__(self, disk: DiskCache, root: Path, image_id: str, limits: ArchiveLimits) -> None:
        self._disk = disk
        self._root = root
        self._image_id = image_id
        self._limits = limits

    def key(self, digest: str) -> str:
        """Return the name of the entry that has the byte code of a tree."""
        return hashlib.sha256(f"{_FORMAT}\n{digest}\n{self._image_id}".encode()).hexdigest()

    async def pin(self, digest: str) -> Pin | None:
        """Pin the byte code of a tree.

        Args:
            digest: The digest of the tree.

        Returns:
            The pin, whose content is a pack; None if there is no byte code.

        Raises:
            StorageError: The disk failed.
        """
        return await self._disk.pin(self.key(digest))

    async def pin_code(self, digest: str) -> Pin | None:
        """Pin a tree; None if it is no longer on the disk."""
        return await self._disk.pin(digest)

    def releasing(self, pin: Pin) -> AbstractAsyncContextManager[None]:
        """Release a pin when the block ends."""
        return self._disk.releasing(pin)

    async def survey(self, tree: Path) -> tuple[Survey, Room]:
        """Measure a tree, and return the room for byte code beside it.

        Args:
            tree: The pack of the tree.

        Raises:
            StorageError: The disk failed.
        """
        with disk_errors(self._root):
            found = await in_thread(partial(byte_code.survey, tree))
        return found, byte_code.room_beside(found, self._limits)

    async def add(self, digest: str, tree: Path, room: Room, zip_path: Path) -> None:
        """Check the byte code of a tree, and keep it.

        Args:
            digest: The digest of the tree.
            tree: The pack of the tree. The caller has pinned it.
            room: The room for byte code.
            zip_path: The zip that the compilation has written. It is not trusted.

        Raises:
            Rejected: The byte code is refused.
            StorageError: The disk failed.
        """
        async with self._disk.scratch() as scratch:
            made = scratch / "byte_code"
            with disk_errors(self._root):
                await in_thread(partial(byte_code.unpack, zip_path, made, tree, room, self._limits))
            pin = await self._disk.publish(self.key(digest), made)
        try:
            await self._disk.evict()
        finally:
            pin.release()
