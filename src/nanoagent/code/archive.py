"""Unpacking a code zip that nobody vouches for.

Every entry is checked before the first byte is written; then `zipfile` reads, and what it reads is counted,
because headers lie. An archive is taken whole or refused whole, with the entry and the rule named: an
entry that is quietly skipped or renamed would come back as somebody's puzzling ImportError.

The central directory is the authority, as APPNOTE.TXT has it (PKWARE, .ZIP File Format Specification,
4.3.12); a local header may only repeat it. Only stored and deflated entries are taken: `zipfile` expands
bzip2 and LZMA without a bound on memory.
"""

from __future__ import annotations

import copy
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from nanoagent.errors import Rejected
from nanoagent.result import ErrorType

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator
    from pathlib import Path

_MIB: Final = 1024 * 1024
_CHUNK_BYTES: Final = 64 * 1024
_RATIO_FROM_BYTES: Final = _MIB  # smaller ones compress well by nature and cannot hurt
_NAME_BYTES: Final = 1024
_COMPONENT_BYTES: Final = 255  # NAME_MAX, limits.h
# zipfile takes time by the square of it: 13 s for an archive of 46 MB. Known fields take less than 2 KiB
# together, a Unicode path of the longest name that is taken included.
_EXTRA_BYTES: Final = 4096
_DEPTH: Final = 64  # removal of a tree keeps one descriptor and one stack frame open per level
_SHOWN_CHARACTERS: Final = 120
_FOLDER_MODE: Final = 0o755

# General purpose bits, APPNOTE 4.4.4.
_ENCRYPTED: Final = 0x0001 | 0x0040 | 0x2000
_PATCH: Final = 0x0020
_UTF8_NAME: Final = 0x0800

_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")  # APPNOTE 4.3.7
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc
_DRIVE: Final = re.compile(r"[A-Za-z]:")

# Whatever `zipfile` raises for bytes that are no archive. RuntimeError covers NotImplementedError.
_DAMAGE: Final = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError)


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may be at most.

    Attributes:
        zip_bytes: Size of the archive.
        unpacked_bytes: Size of all its files together.
        file_bytes: Size of one file.
        entries: Files and folders, those counted that are only implied by a path.
        ratio: Unpacked by packed size, of an entry over 1 MiB.
    """

    zip_bytes: int
    unpacked_bytes: int
    file_bytes: int
    entries: int
    ratio: int


@dataclass(frozen=True, slots=True)
class TreeInfo:
    """What was unpacked.

    Attributes:
        files: How many files.
        bytes: Their size together.
    """

    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A checked entry: `name` as the archive has it, `parts` its path."""

    info: zipfile.ZipInfo
    name: str
    parts: tuple[str, ...]
    is_folder: bool


@dataclass(slots=True)
class _Place:
    """A path that an entry takes, or implies as a folder on the way."""

    path: str
    is_folder: bool
    is_listed: bool


def extract(zip_path: Path, into: Path, limits: ArchiveLimits) -> TreeInfo:
    """Unpack an archive, or refuse it.

    Files become 0444, or 0555 where the archive marks them executable; folders 0755. Set-id bits, owners
    and times are not kept. Blocking: call it in a thread.

    Args:
        zip_path: The archive.
        into: A folder that is empty or does not exist yet. After a refusal it may hold some of the files;
            removing it is the caller's part.
        limits: What the archive may be at most.

    Returns:
        The number of files and their real size in bytes.

    Raises:
        Rejected: INVALID_CODE; the message names the entry and the rule.
        OSError: The disk failed.
    """
    size = zip_path.stat().st_size
    if size > limits.zip_bytes:
        raise _refusal(f"has {size} bytes, more than the limit of {limits.zip_bytes} (CODE_MAX_ZIP_MB)")
    with zip_path.open("rb") as file, _opened(file, limits) as archive:
        entries = _checked(archive, file, limits)
        return _write(archive, entries, into)


def find_root(tree: Path, entry: str) -> Path | None:
    """The folder of an unpacked tree that holds the entry file, or None.

    That is the tree itself, else its single top folder. The folder `__MACOSX`, which the Finder adds, does
    not count.

    Args:
        tree: The unpacked tree.
        entry: The entry file's name, such as `main.py`.
    """
    if (tree / entry).is_file():
        return tree
    top = [item for item in tree.iterdir() if item.name != "__MACOSX"]
    return top[0] if len(top) == 1 and (top[0] / entry).is_file() else None


def _refusal(rule: str, name: str | None = None) -> Rejected:
    if name is None:
        return Rejected(ErrorType.INVALID_CODE, f"the code zip {rule}")
    return Rejected(ErrorType.INVALID_CODE, f"the code zip's entry {_shown(name)} {rule}")


def _shown(name: str) -> str:
    """A name as a message may have it: escaped first, which can make it ten times as long, then cut."""
    return _cut(repr(name))


def _said(exc: BaseException) -> str:
    """What zipfile found; it repeats names in full."""
    return _cut(str(exc))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


class _BoundedList(list[zipfile.ZipInfo]):
    """The entries read so far; one too many, or one that takes long to read, ends the reading."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def append(self, info: zipfile.ZipInfo) -> None:
        if len(self) >= self._limit:
            raise _refusal(f"has more than {self._limit} entries (CODE_MAX_ENTRIES)", info.orig_filename)
        if len(info.extra) > _EXTRA_BYTES:
            raise _refusal(f"has more than {_EXTRA_BYTES} bytes of extra fields", info.orig_filename)
        # Characters are no more than bytes. Names of 64 KiB each would be decoded to hundreds of megabytes.
        if len(info.orig_filename) > _NAME_BYTES:
            raise _refusal(f"has a name of more than {_NAME_BYTES} bytes", info.orig_filename)
        super().append(info)


class _BoundedZip(zipfile.ZipFile):
    """A `ZipFile` that stops reading the directory at the first entry too many.

    A million entries fit into 50 MB and would take half a gigabyte as objects before they could be counted.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._limit = limit
        super().__init__(file)

    @property
    def filelist(self) -> list[zipfile.ZipInfo]:
        return self._filelist

    @filelist.setter
    def filelist(self, _: list[zipfile.ZipInfo]) -> None:
        self._filelist = _BoundedList(self._limit)


@contextmanager
def _opened(file: BinaryIO, limits: ArchiveLimits) -> Iterator[zipfile.ZipFile]:
    try:
        archive = _BoundedZip(file, limits.entries)
    except _DAMAGE as exc:
        raise _refusal(f"is not a zip that can be read: {_said(exc)}") from exc
    with archive:
        yield archive


def _checked(archive: zipfile.ZipFile, file: BinaryIO, limits: ArchiveLimits) -> list[_Entry]:
    """All entries, each of them fit to be written."""
    infos = archive.infolist()
    if not infos:
        raise _refusal("has no entries")
    entries = [_entry(info, name) for info, name in zip(infos, _names(infos), strict=True)]
    for entry in entries:
        _check_kind(entry)
        _check_size(entry, limits)
    _check_total(entries, limits)
    _check_collisions(entries, limits)
    _check_layout(entries, file, archive.start_dir)
    return entries


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    """The name's bytes. cp437, which zipfile decodes with, maps all 256 of them, so nothing is lost."""
    return info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8_NAME else "cp437")


def _names(infos: list[zipfile.ZipInfo]) -> Iterator[str]:
    """The entries' names. Without the UTF-8 flag: UTF-8 if it is that, else cp949 (Korean Windows)."""
    legacy = b"\0".join(_raw_name(info) for info in infos if not info.flag_bits & _UTF8_NAME)
    encoding = next(name for name in ("utf-8", "cp949", "cp437") if _decodes(legacy, name))
    for info in infos:
        # Not info.filename: zipfile has cut that at the first NUL.
        yield _raw_name(info).decode("utf-8" if info.flag_bits & _UTF8_NAME else encoding)


def _decodes(raw: bytes, encoding: str) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _entry(info: zipfile.ZipInfo, name: str) -> _Entry:
    """The entry with its path, if that is a path inside the tree on every system."""
    if not name:
        raise _refusal("has an empty name", name)
    if _CONTROL.search(name):
        raise _refusal("has a NUL or control character in its name", name)
    if "\\" in name:
        raise _refusal("has a backslash in its name; folders are separated by /", name)
    if name.startswith("/") or _DRIVE.match(name):
        raise _refusal("is an absolute path", name)
    if len(name.encode()) > _NAME_BYTES:
        raise _refusal(f"has a name of more than {_NAME_BYTES} bytes", name)
    is_folder = name.endswith("/")
    parts = tuple(name.removesuffix("/").split("/"))
    _check_parts(parts, name)
    return _Entry(info, name, parts, is_folder)


def _check_parts(parts: tuple[str, ...], name: str) -> None:
    if len(parts) > _DEPTH:
        raise _refusal(f"is more than {_DEPTH} folders deep", name)
    for part in parts:
        if part in ("", ".", ".."):
            raise _refusal(f"has the part {part!r} in its path", name)
        if len(part.encode()) > _COMPONENT_BYTES:
            raise _refusal(f"has a part of more than {_COMPONENT_BYTES} bytes in its path", name)


def _check_kind(entry: _Entry) -> None:
    info, name = entry.info, entry.name
    if info.flag_bits & _ENCRYPTED:
        raise _refusal("is encrypted", name)
    if info.compress_type not in _METHODS or info.flag_bits & _PATCH:
        raise _refusal(
            f"uses compression method {info.compress_type}; only stored and deflate are taken", name
        )
    # The upper half is a Unix mode, whatever system the archive says it is from.
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise _refusal("is a symbolic link", name)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refusal("is a device, pipe or socket", name)
    if kind == stat.S_IFDIR and not entry.is_folder:
        raise _refusal("is marked as a folder, but its name does not end with /", name)


def _check_size(entry: _Entry, limits: ArchiveLimits) -> None:
    info, name = entry.info, entry.name
    if entry.is_folder and info.file_size:
        raise _refusal("is a folder with contents of its own", name)
    if info.file_size > limits.file_bytes:
        raise _refusal(
            f"has {info.file_size} bytes, more than the limit of {limits.file_bytes} (CODE_MAX_FILE_MB)", name
        )
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        raise _refusal("is stored, but its two sizes differ", name)
    if info.file_size > max(_RATIO_FROM_BYTES, info.compress_size * limits.ratio):
        raise _refusal(f"is compressed by more than the ratio of {limits.ratio} (CODE_MAX_RATIO)", name)


def _check_total(entries: list[_Entry], limits: ArchiveLimits) -> None:
    total = 0
    for entry in entries:
        total += entry.info.file_size
        if total > limits.unpacked_bytes:
            raise _refusal(
                f"brings the total over the limit of {limits.unpacked_bytes} bytes (CODE_MAX_UNPACKED_MB)",
                entry.name,
            )


def _check_collisions(entries: list[_Entry], limits: ArchiveLimits) -> None:
    """No two paths are the same, not even on a file system that folds case or normalises."""
    places: dict[str, _Place] = {}
    folders: dict[tuple[str, ...], str] = {(): ""}  # those that are checked, to their keys in `places`
    for entry in entries:
        parts = entry.parts
        checked = _known_depth(parts[:-1], folders)
        key, path = folders[parts[:checked]], "".join(f"/{part}" for part in parts[:checked])
        for depth, part in enumerate(parts[checked:], start=checked + 1):
            is_last = depth == len(parts)
            key, path = f"{key}/{_folded(part)}", f"{path}/{part}"
            place = _Place(path, is_folder=entry.is_folder or not is_last, is_listed=is_last)
            _check_place(entry.name, place, places.setdefault(key, place))
            if not is_last:
                folders[parts[:depth]] = key
        if len(places) > limits.entries:
            raise _refusal(
                f"brings the files and folders to more than {limits.entries} (CODE_MAX_ENTRIES)", entry.name
            )


def _known_depth(parts: tuple[str, ...], known: Container[tuple[str, ...]]) -> int:
    """How many of the parts lead to a folder that is known.

    From the deepest up: thousands of files in a folder sixty levels deep do not ask for all of them again.
    """
    return next(depth for depth in range(len(parts), -1, -1) if parts[:depth] in known)


def _folded(part: str) -> str:
    """Equal for names that match without regard to case and composition (The Unicode Standard, D145)."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", part).casefold())


def _check_place(name: str, wanted: _Place, taken: _Place) -> None:
    if taken is wanted:
        return
    if taken.path != wanted.path:
        raise _refusal(
            f"collides with {_shown(taken.path[1:])}, which differs only in case or composition", name
        )
    if taken.is_folder != wanted.is_folder:
        raise _refusal(f"makes {_shown(taken.path[1:])} both a file and a folder", name)
    if taken.is_listed and wanted.is_listed:
        raise _refusal("is there twice", name)
    taken.is_listed |= wanted.is_listed


def _check_layout(entries: list[_Entry], file: BinaryIO, directory_offset: int) -> None:
    """Each entry has bytes of its own: overlapping ones make a small archive unpack to anything."""
    end, before = 0, ""
    for entry in sorted(entries, key=lambda entry: entry.info.header_offset):
        start = entry.info.header_offset
        if start < end:
            raise _refusal(
                f"overlaps with {_shown(before)}" if before else "starts before the file", entry.name
            )
        end, before = _data_end(entry, file), entry.name
        if end > directory_offset:
            raise _refusal("is truncated: its data reaches into the directory", entry.name)


def _data_end(entry: _Entry, file: BinaryIO) -> int:
    """Where the entry's packed data ends; its local header has to repeat what the directory says."""
    info = entry.info
    file.seek(min(info.header_offset, os.fstat(file.fileno()).st_size))
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(_LOCAL_SIGNATURE):
        raise _refusal("is truncated: it has no header of its own", entry.name)
    fields: tuple[int, ...] = _LOCAL_HEADER.unpack(header)[1:]
    _, flags, method, _, _, _, _, _, name_length, extra_length = fields
    is_alike = method == info.compress_type and not flags & _ENCRYPTED
    if file.read(name_length) != _raw_name(info) or not is_alike:
        raise _refusal("has a header of its own that differs from the directory", entry.name)
    return info.header_offset + _LOCAL_HEADER.size + name_length + extra_length + info.compress_size


def _write(archive: zipfile.ZipFile, entries: Iterable[_Entry], into: Path) -> TreeInfo:
    into.mkdir(exist_ok=True)  # the tree's own folder alone may be there already
    into.chmod(_FOLDER_MODE)
    folders: dict[tuple[str, ...], Path] = {(): into}
    files = total = 0
    for entry in entries:
        folder = _make_folders(entry.parts if entry.is_folder else entry.parts[:-1], folders)
        if not entry.is_folder:
            total += _write_file(archive, entry, folder / entry.parts[-1])
            files += 1
    return TreeInfo(files=files, bytes=total)


def _make_folders(parts: tuple[str, ...], made: dict[tuple[str, ...], Path]) -> Path:
    """The folder of that path, which is made with those above it if it is not among `made`."""
    for depth in range(_known_depth(parts, made) + 1, len(parts) + 1):
        path = made[parts[: depth - 1]] / parts[depth - 1]
        path.mkdir()
        path.chmod(_FOLDER_MODE)  # not left to the umask: the code's user is another one
        made[parts[:depth]] = path
    return made[parts]


def _write_file(archive: zipfile.ZipFile, entry: _Entry, target: Path) -> int:
    """Write one file; returns its size in bytes."""
    # zipfile stops silently at the size that the header claims; told a larger one, it shows what follows.
    info = copy.copy(entry.info)
    declared = info.file_size
    info.file_size += _CHUNK_BYTES
    is_executable = bool(info.external_attr >> 16 & 0o111)
    written = 0
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(handle, "wb") as out:  # noqa: PTH123 - a descriptor
        for chunk in _chunks(archive, info, entry.name):
            written += len(chunk)
            if written > declared:
                break
            out.write(chunk)
        os.fchmod(handle, 0o555 if is_executable else 0o444)
    if written != declared:
        raise _refusal("has another size than its header says", entry.name)
    return written


def _chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Iterator[bytes]:
    """The entry's data; its CRC-32 is checked by zipfile at the end."""
    try:
        with archive.open(info) as data:
            while chunk := data.read(_CHUNK_BYTES):
                yield chunk
    except _DAMAGE as exc:
        raise _refusal(f"has damaged data: {_said(exc)}", name) from exc
