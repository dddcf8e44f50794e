"""Checks the byte code of a function's Python code, which a run in a container has made.

The run has read hostile sources, so its output is not trusted. All of it is accepted or all of it is refused.
Accepted byte code only adds files to the code: `__pycache__/NAME.cpython-313.pyc` beside a regular file
`NAME.py`. No file of the code is replaced, so byte code from the author stays as it is.

False content of an accepted file harms only runs of the same code, whose author could put the same file into
the zip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nanoagent.code import archive
from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.pack import FILE, FOLDER, LINK, Index, Pack, replace_index
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
_ENDING: Final = f".{TAG}.pyc".encode()
_ENTRY_FILE: Final = RECIPES[Runtime.PYTHON].entry.encode()
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


def survey(path: Path) -> Survey:
    """Measure a code tree, and count the sources that could be compiled. Blocking.

    Args:
        path: The pack of the tree.

    Raises:
        StorageError: The pack is damaged, or cannot be read.
    """
    tree = Pack(path)
    paths = _paths_of(tree)
    least = most = sources = 0
    for name, number in paths.items():
        kind, size = tree.kind(number), tree.records[number][1]
        if kind == LINK:
            most += _PAGE_BYTES
        elif kind == FILE:
            least, most = least + _in_pages(size), most + _in_pages(size)
            is_own = name.endswith(b".py") and name != _ENTRY_FILE
            sources += is_own and _target_of(name) not in paths
    return Survey(len(paths), least, most, sources)


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


def unpack(zip_path: Path, into: Path, code: Path, room: Room, limits: ArchiveLimits) -> None:
    """Check byte code, and write it into a pack. Blocking.

    Its files are not executable, and have the times of their sources.

    Args:
        zip_path: The zip that the run has written.
        into: The new pack. After an error it may be incomplete; the caller removes it.
        code: The pack of the code.
        room: The room for byte code.
        limits: The limits of code.

    Raises:
        Rejected: The zip is hostile or exceeds a limit, or has a file that is not byte code of the code.
        StorageError: The pack of the code is damaged, or cannot be read.
        OSError: The disk failed.
    """
    own = ArchiveLimits(
        zip_bytes=most_zip_bytes(room),
        unpacked_bytes=room.bytes,
        file_bytes=limits.file_bytes,
        entries=limits.entries,  # folders of the code count, too
    )
    archive.extract(zip_path, into, own)
    added = _Added(Pack(into), Pack(code))
    added.check_folder(0, b"")
    if added.entries > room.entries or added.bytes > room.bytes:
        raise _refusal(f"{added.entries} files and folders with {added.bytes} bytes exceed the room", b"")
    replace_index(into, added.index())


class _Added:
    """Checks the files that are added to the code, and counts them.

    Args:
        made: The byte code.
        code: The code.

    Attributes:
        entries: The number of checked files and new folders.
        bytes: The size of the checked files, in whole pages.
    """

    def __init__(self, made: Pack, code: Pack) -> None:
        self._made = made
        self._code = code
        self._paths = _paths_of(code)
        self.entries = 0
        self.bytes = 0
        self._times: dict[int, int] = {}  # number of a checked file → time of its source, Unix epoch ns

    def index(self) -> Index:
        """Return a new index of the byte code: its base is the root, and files have the times of sources."""
        index = Index()
        for number in range(1, len(self._made.records)):
            at, size, _, _, depth, kind, _ = self._made.records[number]
            index.add(self._made.names[number], depth, kind, at, size, self._times.get(number, 0))
        return index

    def check_folder(self, folder: int, path: bytes) -> None:
        """Check a folder of the byte code.

        Args:
            folder: Its number.
            path: Its path; it ends with a slash, unless it is the root.
        """
        for number in self._entries_of(folder, path):
            name = path + self._made.names[number]
            if self._made.kind(number) != FOLDER:
                raise _refusal(f"not in a folder {CACHE}", name)
            if self._made.names[number] == CACHE.encode():
                self._check_cache(number, path)
                continue
            if self._kind_in_code(name) != FOLDER:
                raise _refusal("the code has no such folder", name)
            self.check_folder(number, name + b"/")

    def _check_cache(self, folder: int, path: bytes) -> None:
        """Check a folder `__pycache__`; `path` is the path of the folder that has it."""
        cache = path + CACHE.encode()
        kind = self._kind_in_code(cache)
        if kind is None:
            self.entries += 1
        elif kind != FOLDER:
            raise _refusal("the code has a file of this name", cache)
        for number in self._entries_of(folder, cache):
            name = self._made.names[number]
            if self._made.kind(number) != FILE or not name.endswith(_ENDING):
                raise _refusal(f"not a file *{_ENDING.decode()}", cache + b"/" + name)
            if self._kind_in_code(cache + b"/" + name) is not None:
                raise _refusal("the code already has this file", cache + b"/" + name)
            self._check_file(number, cache + b"/" + name, path + name.removesuffix(_ENDING) + b".py")

    def _check_file(self, number: int, path: bytes, source: bytes) -> None:
        if self._kind_in_code(source) != FILE:
            raise _refusal("the code has no source for it", path)
        header = b"".join(self._made.read([number], _HEADER_BYTES + 1))
        if len(header) <= _HEADER_BYTES or header[:4] != MAGIC:
            raise _refusal("no byte code of the image's Python", path)
        if int.from_bytes(header[4:8], "little") != _CHECKED_HASH:
            raise _refusal("not based on a hash that imports check", path)
        self._times[number] = self._code.records[self._paths[source]][2]
        self.entries += 1
        self.bytes += _in_pages(self._made.records[number][1])

    def _entries_of(self, folder: int, path: bytes) -> list[int]:
        entries = list(self._made.children(folder))
        if not entries:
            raise _refusal("empty folder", path.removesuffix(b"/"))
        return entries

    def _kind_in_code(self, path: bytes) -> int | None:
        """Return the kind of an entry of the code; None if there is none. Links are not followed."""
        number = self._paths.get(path)
        return None if number is None else self._code.kind(number)


def _paths_of(tree: Pack) -> dict[bytes, int]:
    """Return path → number of all records below the base. The paths are relative to the base."""
    paths: dict[bytes, int] = {}
    folders = [b""]
    for number, depth, kind, name in tree.below_base():
        del folders[depth:]
        path = folders[-1] + name
        paths[path] = number
        if kind == FOLDER:
            folders.append(path + b"/")
    return paths


def _target_of(source: bytes) -> bytes:
    """Return the path of the byte code of a source."""
    folder, _, name = source.rpartition(b"/")
    target = CACHE.encode() + b"/" + name.removesuffix(b".py") + _ENDING
    return folder + b"/" + target if folder else target


def _in_pages(size: int) -> int:
    return -(-size // _PAGE_BYTES) * _PAGE_BYTES


def _refusal(rule: str, path: bytes) -> Rejected:
    shown = shown_name(path.decode())
    return Rejected(ErrorType.INVALID_CODE, Text.verbatim(f"byte code refused: {shown}: {rule}"))
