"""Checks the byte code of a function's Python code, which a run in a container has made.

The run has read hostile sources, so its output is not trusted. All of it is accepted or all of it is refused.
Accepted byte code only adds files to the code: `__pycache__/NAME.cpython-313.pyc` beside a regular file
`NAME.py`. No file of the code is replaced, so byte code from the author stays as it is.

False content of an accepted file harms only runs of the same code, whose author could put the same file into
the zip.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nanoagent.code import archive
from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.refusals import shown_name
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.errors import Rejected
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from pathlib import Path

TAG: Final = "cpython-313"
"""`sys.implementation.cache_tag` of the Python image."""

MAGIC: Final = (3571).to_bytes(2, "little") + b"\r\n"
"""`importlib.util.MAGIC_NUMBER` of the Python image."""

CACHE: Final = "__pycache__"
SMALL_ENTRIES: Final = 15
"""Code of at most so many files and folders is small. `SMALL_FILES` in sandbox_mounts.c includes the root."""

SMALL_BYTES: Final = 256 * 1024
"""Code up to this size in whole pages is small (`SMALL_BYTES` in sandbox_mounts.c)."""

_CHECKED_HASH: Final = 0b11  # PEP 552: an import compares the byte code with the hash of the source
_HEADER_BYTES: Final = 16  # magic number, flags, hash of the source
_PAGE_BYTES: Final = 4096
_ENDING: Final = f".{TAG}.pyc"
_MODE: Final = 0o444
_ZIP_ENTRY_BYTES: Final = 4096  # two headers with a path of at most 1024 bytes


@dataclass(frozen=True, slots=True)
class Survey:
    """The size of a code tree, and its sources without byte code.

    Attributes:
        entries: The number of files, links and folders, without the root.
        least_bytes: The memory that a copy takes at least, in whole pages.
        most_bytes: The memory that a copy takes at most, in whole pages.
        sources: The number of Python files that have no byte code yet, without the entry file.
    """

    entries: int
    least_bytes: int
    most_bytes: int
    sources: int


@dataclass(frozen=True, slots=True)
class Room:
    """The room for byte code beside the code.

    Attributes:
        entries: The number of files and new folders.
        bytes: The size of all files together, in whole pages.
    """

    entries: int
    bytes: int


def survey(root: Path) -> Survey:
    """Measure a code tree, and count the sources that could be compiled. Blocking.

    Args:
        root: The folder of the code, which has the entry file.
    """
    entries = least = most = sources = 0
    pending = [os.fspath(root)]
    entry_file = os.path.join(root, RECIPES[Runtime.PYTHON].entry)  # noqa: PTH118 - as below
    while pending:
        folder = pending.pop()
        # Strings, because Path objects cost too much for thousands of files.
        with os.scandir(folder) as found:
            for entry in found:
                entries += 1
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_symlink():
                    most += _PAGE_BYTES
                else:
                    size = _in_pages(entry.stat(follow_symlinks=False).st_size)
                    least, most = least + size, most + size
                    is_own = entry.name.endswith(".py") and entry.path != entry_file
                    sources += is_own and not os.path.lexists(_target_of(folder, entry.name))
    return Survey(entries, least, most, sources)


def room_beside(code: Survey, limits: ArchiveLimits) -> Room:
    """Return how much byte code may be added to a code tree.

    Small code must stay small: a run has a copy of small code, and an overlay over large code. A program can
    tell one from the other.

    Args:
        code: The tree.
        limits: The limits of code.
    """
    if code.entries <= SMALL_ENTRIES and code.least_bytes <= SMALL_BYTES:
        return Room(SMALL_ENTRIES - code.entries, SMALL_BYTES - code.most_bytes)
    return Room(limits.entries - code.entries, limits.unpacked_bytes - code.most_bytes)


def most_zip_bytes(room: Room) -> int:
    """Return the largest size of a stored zip with as much byte code as there is room for."""
    return room.bytes + room.entries * _ZIP_ENTRY_BYTES


def unpack(zip_path: Path, into: Path, root: Path, room: Room, limits: ArchiveLimits) -> None:
    """Check and unpack byte code. Blocking.

    Files get mode 0444 and the times of their sources.

    Args:
        zip_path: The zip that the run has written.
        into: A folder that does not exist. After an error it may hold some files; the caller removes it.
        root: The folder of the code.
        room: The room for byte code.
        limits: The limits of code.

    Raises:
        Rejected: The zip is hostile or exceeds a limit, or has a file that is not byte code of the code.
        OSError: The disk failed.
    """
    own = ArchiveLimits(
        zip_bytes=most_zip_bytes(room),
        unpacked_bytes=room.bytes,
        file_bytes=limits.file_bytes,
        entries=limits.entries,  # folders of the code count, too
    )
    archive.extract(zip_path, into, own)
    added = _Added(os.fspath(into))
    added.check_folder(os.fspath(into), os.fspath(root))
    if added.entries > room.entries or added.bytes > room.bytes:
        raise _refusal(f"{added.entries} files and folders with {added.bytes} bytes exceed the room", "")


class _Added:
    """Checks the files that are added to the code, and counts them.

    Args:
        top: The folder of the unpacked byte code.

    Attributes:
        entries: The number of checked files and new folders.
        bytes: The size of the checked files, in whole pages.
    """

    def __init__(self, top: str) -> None:
        self._top = top
        self.entries = 0
        self.bytes = 0

    def check_folder(self, made: str, code: str) -> None:
        """Check an unpacked folder, and the folder of the code with the same path."""
        with os.scandir(made) as found:
            entries = list(found)
        if not entries:
            raise _refusal("empty folder", self._shown(made))
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                raise _refusal(f"not in a folder {CACHE}", self._shown(entry.path))
            if entry.name == CACHE:
                self._check_cache(entry.path, code)
                continue
            if not _is_kind(f"{code}/{entry.name}", stat.S_IFDIR):
                raise _refusal("the code has no such folder", self._shown(entry.path))
            self.check_folder(entry.path, f"{code}/{entry.name}")

    def _check_cache(self, made: str, code: str) -> None:
        target = f"{code}/{CACHE}"
        if not os.path.lexists(target):
            self.entries += 1
        elif not _is_kind(target, stat.S_IFDIR):
            raise _refusal("the code has a file of this name", self._shown(made))
        with os.scandir(made) as found:
            entries = list(found)
        if not entries:
            raise _refusal("empty folder", self._shown(made))
        for entry in entries:
            if not entry.is_file(follow_symlinks=False) or not entry.name.endswith(_ENDING):
                raise _refusal(f"not a file *{_ENDING}", self._shown(entry.path))
            if os.path.lexists(f"{target}/{entry.name}"):
                raise _refusal("the code already has this file", self._shown(entry.path))
            self._check_file(entry.path, f"{code}/{entry.name.removesuffix(_ENDING)}.py")

    def _check_file(self, made: str, source: str) -> None:
        if not _is_kind(source, stat.S_IFREG):
            raise _refusal("the code has no source for it", self._shown(made))
        with open(made, "rb") as file:  # noqa: PTH123 - as in `survey`
            header = file.read(_HEADER_BYTES + 1)
        if len(header) <= _HEADER_BYTES or header[:4] != MAGIC:
            raise _refusal("no byte code of the image's Python", self._shown(made))
        if int.from_bytes(header[4:8], "little") != _CHECKED_HASH:
            raise _refusal("not based on a hash that imports check", self._shown(made))
        modified_ns = os.lstat(source).st_mtime_ns
        os.utime(made, ns=(modified_ns, modified_ns))
        os.chmod(made, _MODE)  # noqa: PTH101
        self.entries += 1
        self.bytes += _in_pages(os.lstat(made).st_size)

    def _shown(self, path: str) -> str:
        return path.removeprefix(f"{self._top}/")


def _target_of(folder: str, name: str) -> str:
    return f"{folder}/{CACHE}/{name.removesuffix('.py')}{_ENDING}"


def _in_pages(size: int) -> int:
    return -(-size // _PAGE_BYTES) * _PAGE_BYTES


def _is_kind(path: str, kind: int) -> bool:
    """Whether a path is of a kind, such as S_IFREG. A link at the end of the path is not followed."""
    try:
        return stat.S_IFMT(os.lstat(path).st_mode) == kind
    except (FileNotFoundError, NotADirectoryError):
        return False


def _refusal(rule: str, path: str) -> Rejected:
    return Rejected(ErrorType.INVALID_CODE, Text.verbatim(f"byte code refused: {shown_name(path)}: {rule}"))
