"""Keeps the objects that a build has compiled, for the next build of the same function.

An entry is one file, which only programs of the image write and read (`docker/cpp/object-cache.cpp`,
`docker/go/read-cache.go`). The worker never looks into it. A build reads hostile sources, so the file is not
trusted: it only reaches builds of the function whose build has written it.

Objects share the disk cache of the programs and its limits, and are evicted before any program.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from typing import TYPE_CHECKING, Final

from nanoagent.code.disk_entries import EVICTED_FIRST
from nanoagent.code.disk_errors import disk_errors
from nanoagent.host.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from nanoagent.code.disk_cache import DiskCache
    from nanoagent.code.pin import Pin
    from nanoagent.model.job import Job

_FORMAT: Final = "objects 1"  # a new number makes the objects of older workers unused
_MODE: Final = 0o444


def key_of(job: Job, image_id: str, command: Sequence[str]) -> str:
    """Return the key of the objects of a function.

    The S3 object is a part of the key because all jobs without a functionId have the same function ID.

    Args:
        job: A job of the function.
        image_id: The ID of the image, which stands for the compiler.
        command: The build command.
    """
    # As JSON, because a function ID and an S3 key may contain any separator.
    identity = [_FORMAT, job.runtime, job.function_id, job.s3_bucket, job.s3_key, image_id, *command]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


class ObjectCache:
    """The objects of functions: one file for each function and image.

    Args:
        disk: The disk cache of the programs.
        root: The folder of the disk cache, for messages.
    """

    def __init__(self, disk: DiskCache, root: Path) -> None:
        self._disk = disk
        self._root = root

    def has(self, key: str) -> bool:
        """Whether there are objects for a key.

        Raises:
            StorageError: The disk failed.
        """
        return self._disk.has(EVICTED_FIRST + key)

    async def pin(self, key: str) -> Pin | None:
        """Pin the objects for a key; None if there are none.

        Raises:
            StorageError: The disk failed.
        """
        return await self._disk.pin(EVICTED_FIRST + key)

    def releasing(self, pin: Pin) -> AbstractAsyncContextManager[None]:
        """Release a pin when the block ends."""
        return self._disk.releasing(pin)

    async def keep(self, key: str, staged: Path) -> None:
        """Keep the objects of a build in place of earlier ones. Earlier objects that are pinned stay.

        Args:
            key: The key.
            staged: The file. It is moved. Its content is not trusted.

        Raises:
            StorageError: The disk failed.
        """
        async with self._disk.scratch() as scratch:
            with disk_errors(self._root):
                await in_thread(partial(_move, staged, scratch / "objects"))
            pin = await self._disk.replace(EVICTED_FIRST + key, scratch / "objects")
        pin.release()
        await self._disk.evict()


def _move(source: Path, target: Path) -> None:
    shutil.move(source, target)
    target.chmod(_MODE)  # the container's user reads it
