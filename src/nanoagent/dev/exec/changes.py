"""Notices that the files of a function have changed, by polling.

Polling also works for folders of other machines and for editors that replace files. A poll reads no contents.
The command packs the files again after a change, and compares the digest of the code.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_PAUSE_S: Final = 0.02
_MOST_OF_THE_TIME: Final = 10  # a poll of many files must not take more than a tenth of a CPU
# Folders with many files that tools write at any time.
_NOT_WATCHED: Final = frozenset(
    {".git", ".hg", ".svn", ".jj", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
)

State: TypeAlias = "frozenset[tuple[str, int, int, int]]"
"""The path, the time of the last change, the size and the inode of each file."""


def state_of(paths: Sequence[Path]) -> State:
    """Return the state of files, and of all files in folders. Files that cannot be read are left out."""
    return frozenset(state for path in paths for state in _states(path))


def _states(path: Path) -> Iterator[tuple[str, int, int, int]]:
    if not path.is_dir():
        yield from _state(str(path))
        return
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if name not in _NOT_WATCHED]
        for name in names:
            yield from _state(os.path.join(folder, name))  # noqa: PTH118 - pathlib takes several times as long


def _state(file: str) -> Iterator[tuple[str, int, int, int]]:
    """Yield the state of one file, unless it cannot be read, as when an editor replaces it."""
    with suppress(OSError):
        info = os.stat(file)  # noqa: PTH116
        yield file, info.st_mtime_ns, info.st_size, info.st_ino


async def wait_for_change(paths: Sequence[Path], seen: State) -> None:
    """Return when the state of the files differs from `seen`, and did not change during the last pause.

    Many editors empty a file before they write it.
    """
    last = seen
    while True:
        begun = time.monotonic()
        now = await asyncio.to_thread(state_of, paths)
        if now == last != seen:
            return
        last = now
        await asyncio.sleep(max(_PAUSE_S, _MOST_OF_THE_TIME * (time.monotonic() - begun)))
