"""Folders that are this user's alone, whatever the umask says and whoever was there before."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from nanoagent.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_PRIVATE: Final = 0o700


def make_private(path: Path, variable: str) -> None:
    """Make a folder, and those above it that are missing; tighten one of our own that is there.

    Args:
        path: The folder.
        variable: The setting that it comes from, for the message.

    Raises:
        ConfigError: It is another user's, or another could put his own in its place.
        OSError: It cannot be made.
    """
    _make(path)
    check_nobody_can_swap(path.parent, variable)
    ours = os.geteuid()
    # A link may be an administrator's; one of somebody else's could lead to any folder that is ours.
    if path.stat().st_uid != ours or path.lstat().st_uid not in {0, ours}:
        problem = f"{variable}: {path} belongs to another user"
        raise ConfigError([f"{problem}; choose another folder, or give this one to the user of this worker"])
    if stat.S_IMODE(path.stat().st_mode) != _PRIVATE:
        path.chmod(_PRIVATE)


def check_nobody_can_swap(folder: Path, variable: str) -> None:
    """Refuse a folder in which, or above which, another user of the host could swap ours for his own.

    Args:
        folder: What ours lies in.
        variable: The setting that it comes from, for the message.

    Raises:
        ConfigError: It is one.
    """
    info = folder.stat()
    if _is_strangers(info) or _lets_swap(info, 0o022):
        problem = f"{variable}: {folder} belongs to another user, or others may write to it"
        raise ConfigError([f"{problem}; choose a folder that only this user may write to"])
    for above in sorted({*folder.absolute().parents, *folder.resolve().parents}):
        # Less strict: a group may be the user's own, and root works in others' homes (`sudo nanoagent dev`).
        info = above.stat()
        if (os.geteuid() != 0 and _is_strangers(info)) or _lets_swap(info, 0o002):
            problem = f"{variable}: {above}, above {folder}, belongs to another user or is open to everybody"
            raise ConfigError([f"{problem}; choose a folder that nobody else can move away"])


def _is_strangers(info: os.stat_result) -> bool:
    return info.st_uid not in {0, os.geteuid()}


def _lets_swap(info: os.stat_result, others: int) -> bool:
    """Whether those bits of a folder's mode let others put theirs in the place of what lies in it."""
    return bool(info.st_mode & others and not info.st_mode & stat.S_ISVTX)


def _make(path: Path) -> None:
    """As mkdir(parents=True), which leaves the mode of the parents to the umask."""
    try:
        path.mkdir(_PRIVATE, exist_ok=True)
    except FileNotFoundError:
        _make(path.parent)
        path.mkdir(_PRIVATE, exist_ok=True)
