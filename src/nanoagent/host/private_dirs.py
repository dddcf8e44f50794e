"""Makes folders that no other user can read or replace. The umask has no effect.

A folder that already exists is checked, and made private.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from nanoagent.model.errors import ConfigError

_PRIVATE: Final = 0o700
_GROUP_AND_OTHERS: Final = 0o022
_OTHERS: Final = 0o002


def make_private(path: Path, variable: str) -> None:
    """Make a folder that only this user can use, and the missing folders above it.

    If the folder exists and belongs to this user, its mode becomes 0700.

    Args:
        path: The folder.
        variable: The setting that names it, for the message.

    Raises:
        ConfigError: The folder belongs to another user, or another user could replace it.
        OSError: The folder cannot be made.
    """
    _make(path)
    refuse_replaceable(path.parent, variable)
    this_user = os.geteuid()
    # The path may be a link that root or this user has made. Another user's link could lead to any folder of
    # this user.
    if path.stat().st_uid != this_user or path.lstat().st_uid not in {0, this_user}:
        problem = f"{variable}: {path} belongs to another user"
        raise ConfigError([f"{problem}; choose another folder, or give this one to the user of this worker"])
    if stat.S_IMODE(path.stat().st_mode) != _PRIVATE:
        path.chmod(_PRIVATE)


def unusable(folder: Path, variable: str) -> str | None:
    """Return why a worker could not make folders in this folder, with the remedy; None if it could.

    A folder is made for the test and removed again. If `folder` is missing, the test uses the nearest folder
    above it that exists.

    Args:
        folder: The folder for the worker's folders; it may be missing.
        variable: The setting that names it, for the message.
    """
    nearest = folder.absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    try:
        if not stat.S_ISDIR(nearest.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, f"{nearest} is not a folder")
        if nearest == folder.absolute():
            refuse_replaceable(folder, variable)
        else:
            first_missing = nearest / folder.absolute().relative_to(nearest).parts[0]
            _refuse_replaceable_parents(first_missing, variable)
        # The mode does not show a read-only mount, a full disk or a special file system such as /proc.
        Path(tempfile.mkdtemp(prefix=".nanoagent-check-", dir=nearest)).rmdir()
    except ConfigError as exc:
        return "; ".join(exc.problems)
    except OSError as exc:
        place = "" if nearest == folder.absolute() or exc.errno == errno.ENOTDIR else f" below {nearest}"
        return (
            f"{variable}: {folder} cannot be made or written{place} ({exc.strerror}); choose a folder that "
            f"the worker's user may write to, or make it: install -d -m 700 -o USER {folder}"
        )
    return None


def refuse_replaceable(folder: Path, variable: str) -> None:
    """Refuse a folder if another user of the host could replace it, or the folders in it.

    Args:
        folder: The folder for the worker's folders.
        variable: The setting that names it, for the message.

    Raises:
        ConfigError: Another user owns the folder or may write to it, or could replace a folder above it.
    """
    info = folder.stat()
    if _is_another_users(info) or _can_replace_entries(info, _GROUP_AND_OTHERS):
        problem = f"{variable}: {folder} belongs to another user, or others may write to it"
        raise ConfigError([f"{problem}; choose a folder that only this user may write to"])
    _refuse_replaceable_parents(folder, variable)


def _refuse_replaceable_parents(folder: Path, variable: str) -> None:
    """Check the folders above a folder. The rule is less strict than for the folder itself.

    Their groups may write to them, because often a group contains only this user. If this user is root, they
    may belong to another user, so that root can work in the home folder of that user (`sudo nanoagent dev`).
    """
    for above in sorted({*folder.absolute().parents, *folder.resolve().parents}):
        info = above.stat()
        if (os.geteuid() != 0 and _is_another_users(info)) or _can_replace_entries(info, _OTHERS):
            problem = f"{variable}: {above}, above {folder}, belongs to another user or is open to everybody"
            raise ConfigError([f"{problem}; choose a folder that no other user can move"])


def _is_another_users(info: os.stat_result) -> bool:
    return info.st_uid not in {0, os.geteuid()}


def _can_replace_entries(info: os.stat_result, users: int) -> bool:
    """Whether users with these write bits may replace entries of the folder. The sticky bit prevents that."""
    return bool(info.st_mode & users and not info.st_mode & stat.S_ISVTX)


def _make(path: Path) -> None:
    """Make a folder and its parents with mode 0700; `mkdir(parents=True)` ignores the mode for parents."""
    try:
        path.mkdir(_PRIVATE, exist_ok=True)
    except FileNotFoundError:
        _make(path.parent)
        path.mkdir(_PRIVATE, exist_ok=True)
