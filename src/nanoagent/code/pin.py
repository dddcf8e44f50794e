"""A pin on an entry of a disk cache: while it is held, no worker removes the entry."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Final, Self

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

META_MAX_BYTES: Final = 4096
"""The largest number of bytes that is read from a `meta` file. Its numbers take less than 100 bytes."""


class Meta(msgspec.Struct, frozen=True):
    """The size of an entry when it was published; the content of its file `meta`.

    Attributes:
        files: The number of its files.
        bytes: The size of all its files together.
        disk_bytes: The disk space that it takes, in whole blocks.
        memory_bytes: For code, the memory that a copy takes at most, in whole pages.
    """

    files: int
    bytes: int
    disk_bytes: int
    memory_bytes: int = 0


class Pin:
    """A shared `flock` on the `meta` file of an entry.

    Args:
        descriptor: The open `meta` file, with the lock. The pin closes it.
        digest: The name of the entry.
        content: The file or folder of the entry.

    Attributes:
        digest: The name of the entry.
        content: The file or folder of the entry.
    """

    def __init__(self, descriptor: int, digest: str, content: Path) -> None:
        self._descriptor: int | None = descriptor
        self.digest = digest
        self.content = content

    @property
    def descriptor(self) -> int:
        """The descriptor of the `meta` file.

        Raises:
            ValueError: The pin was released.
        """
        if self._descriptor is None:
            raise ValueError("the pin was released")
        return self._descriptor

    def meta(self) -> Meta:
        """Return the size of the entry when it was published.

        Raises:
            msgspec.MsgspecError: The `meta` file is damaged.
        """
        return msgspec.json.decode(os.pread(self.descriptor, META_MAX_BYTES, 0), type=Meta)

    def has_content(self) -> bool:
        """Whether the file or folder exists. A process that ignores the locks can have removed it."""
        return inode_of(self.content) is not None

    def share(self) -> Self:
        """Return another pin with the same lock. The last release ends the lock (flock(2), on dup)."""
        return type(self)(os.dup(self.descriptor), self.digest, self.content)

    def release(self) -> None:
        """Release the entry. Idempotent."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def __del__(self) -> None:
        if self._descriptor is not None:
            warnings.warn(f"the pin of {self.digest} was never released", ResourceWarning, stacklevel=1)
            self.release()


def inode_of(file: Path | str | int) -> int | None:
    """Return the inode number of a path or of a descriptor; None if the path does not exist."""
    try:
        return (os.fstat(file) if isinstance(file, int) else os.lstat(file)).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None
