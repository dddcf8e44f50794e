"""Folders that are this user's alone, whatever the umask says and whoever was there before."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from nanoagent.model.errors import ConfigError

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


def unusable(folder: Path, variable: str) -> str | None:
    """Why a worker could not make its folders in this one, with the remedy; None if it could.

    Where the folder is missing, the nearest one above it is asked: a folder is made there and removed again.

    Args:
        folder: What the worker's folders lie in; it may be missing.
        variable: The setting that it comes from, for the message.
    """
    nearest = folder.absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    try:
        if not stat.S_ISDIR(nearest.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, f"{nearest} is not a folder")
        if nearest == folder.absolute():
            check_nobody_can_swap(folder, variable)
        else:
            _check_above(nearest / "folder", variable)
        # Modes do not tell of read-only mounts, full disks and file systems such as /proc.
        Path(tempfile.mkdtemp(prefix=".nanoagent-check-", dir=nearest)).rmdir()
    except ConfigError as exc:
        return "; ".join(exc.problems)
    except OSError as exc:
        where = "" if nearest == folder.absolute() or exc.errno == errno.ENOTDIR else f" below {nearest}"
        return (
            f"{variable}: {folder} cannot be made or written{where} ({exc.strerror}); choose a folder that "
            f"the worker's user may write to, or make it: install -d -m 700 -o USER {folder}"
        )
    return None


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
    _check_above(folder, variable)


def _check_above(folder: Path, variable: str) -> None:
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
