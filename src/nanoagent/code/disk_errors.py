"""Translates errors of the disk that holds a cache to `StorageError`."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nanoagent.model.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Translate the errors of a cache's disk.

    Args:
        root: The folder of the cache, for the message.

    Raises:
        StorageError: The block raised an OSError.
    """
    try:
        yield
    except OSError as exc:
        raise StorageError(f"CODE_CACHE_DIR: the cache in {root} failed: {exc}") from exc


def is_disk_full(error: BaseException) -> bool:
    """Whether an error was caused by a full disk or an exhausted quota."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}
