"""Writes downloaded files into a folder. The names come from untrusted programs.

Each part of a path is opened relative to the folder above it, and no symbolic link is followed (openat(2),
O_NOFOLLOW). So no file is written outside of the folder, even if another process changes the folder
meanwhile. A file appears under its name only with its complete content, and replaces another file only if
that is wanted.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, TYPE_CHECKING, Final

from nanoagent.model.errors import NanoAgentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_PART_BYTES: Final = 255  # NAME_MAX of Linux
_LINK_PARENT: Final = (errno.ELOOP, errno.ENOTDIR)


class NotWritten(NanoAgentError):  # noqa: N818 - names what has not happened
    """A file cannot or must not be written. The message has the reason."""


def problem_of(name: str) -> str | None:
    """Return why a name is refused; None if it is a path below the folder."""
    parts = name.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return "its path has an empty part, . or .."
    if not name.isprintable():
        return "its name has control characters"
    if any(len(part.encode(errors="replace")) > _MAX_PART_BYTES for part in parts):
        return f"a part of its path is longer than {_MAX_PART_BYTES} bytes"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not valid Unicode"
    return None


class Folder:
    """The folder into which files are downloaded; it is created if it does not exist.

    Args:
        path: The folder. The user has named it, so it may be reached through symbolic links.
        replace: Whether to replace existing files.

    Raises:
        NotWritten: The folder cannot be created or opened.
    """

    def __init__(self, path: Path, *, replace: bool) -> None:
        self._replace = replace
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise NotWritten(f"{path}: {exc.strerror}") from exc

    def close(self) -> None:
        """Close the folder."""
        os.close(self._descriptor)

    @property
    def free_bytes(self) -> int:
        """The free space of the file system, bytes."""
        state = os.fstatvfs(self._descriptor)
        return state.f_bavail * state.f_frsize

    @contextmanager
    def new_file(self, name: str) -> Iterator[IO[bytes]]:
        """Yield a file for the content; at the end of the block it appears under its name.

        If the block raises an exception, nothing is left.

        Raises:
            NotWritten: The name is refused, a file of this name exists, a symbolic link is in the way, or the
                file system refuses the file.
        """
        if (problem := problem_of(name)) is not None:
            raise NotWritten(problem)
        *folders, last = name.split("/")
        with ExitStack() as opened:
            try:
                folder = self._open_folders(folders, opened)
                if not self._replace and _exists(folder, last):
                    raise NotWritten("a file of this name exists; --force replaces it")
                draft = f".nanoagent-{secrets.token_hex(8)}"
                file = os.fdopen(os.open(draft, _NEW_FILE, 0o666, dir_fd=folder), "wb")
            except OSError as exc:
                raise NotWritten(_reason(exc)) from exc
            try:
                with file:
                    yield file
                self._publish(draft, last, folder)
            except OSError as exc:
                raise NotWritten(_reason(exc)) from exc
            finally:
                with suppress(OSError):
                    os.unlink(draft, dir_fd=folder)

    def _open_folders(self, names: list[str], opened: ExitStack) -> int:
        """Return the descriptor of a folder below this folder; create what does not exist."""
        folder = self._descriptor
        for name in names:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=folder)
            folder = os.open(name, _FOLDER, dir_fd=folder)
            opened.callback(os.close, folder)
        return folder

    def _publish(self, draft: str, name: str, folder: int) -> None:
        if self._replace:
            os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
            return
        try:  # unlike a rename, a link never replaces a file
            os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError as exc:
            raise NotWritten("a file of this name exists; --force replaces it") from exc


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _reason(error: OSError) -> str:
    if error.errno in _LINK_PARENT:
        return "a part of its path is a symbolic link or a file"
    return error.strerror or str(error)
