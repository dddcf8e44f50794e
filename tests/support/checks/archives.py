"""The oracle for archives, for property tests and fuzzing."""

from __future__ import annotations

import io
import os
import posixpath
import stat
import struct
import zipfile
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING

from nanoagent.code.archive import ArchiveLimits, TreeInfo
from nanoagent.code.entry_file import is_leftover
from nanoagent.model.errors import Rejected
from nanoagent.model.result import ErrorType
from support.checks.packs import extract
from support.checks.zips import UTF8_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from typing_extensions import Buffer

KIB = 1024
SMALL = ArchiveLimits(zip_bytes=256 * KIB, unpacked_bytes=64 * KIB, file_bytes=32 * KIB, entries=40)
SIBLING = "tree-of-another"  # starts with the target's name
LONGEST_MESSAGE = 500
_LOCAL = struct.Struct("<4s5H3I2H")
# One buffer of the file object: a read anywhere in the file fills it.
_BUFFER_BYTES = io.DEFAULT_BUFFER_SIZE
_END_SEARCH_BYTES = 2 * (1 << 16)  # the part of a file in which zipfile searches for the end record


class _Counted(io.FileIO):
    """Counts the bytes that are read from a file."""

    count = 0

    def readinto(self, buffer: Buffer, /) -> int:
        got = super().readinto(buffer)
        self.count += got
        return got

    def readall(self) -> bytes:
        got = super().readall()
        self.count += len(got)
        return got


class CountingPath(PosixPath):
    """A path that counts the bytes that are read from it."""

    raw: _Counted | None = None

    def open(self, *_: Any, **__: Any) -> Any:
        self.raw = _Counted(str(self))
        return io.BufferedReader(self.raw)

    @property
    def bytes_read(self) -> int:
        return self.raw.count if self.raw else 0


def tried(folder: Path, content: bytes, limits: ArchiveLimits = SMALL) -> TreeInfo | None:
    """Unpack an archive into an empty folder; return None if it was refused.

    Raises:
        AssertionError: It was neither unpacked exactly nor refused with one clear sentence. Or a file is
            outside the tree, the tree exceeds the limits, or the archive was read repeatedly.
    """
    archive, tree, sibling = folder / "code.zip", folder / "tree", folder / SIBLING
    archive.write_bytes(content)
    counting = CountingPath(archive)
    sibling.mkdir()
    try:
        info = extract(counting, tree, limits)
    except Rejected as refusal:
        info = None
        check_refusal(refusal)
    assert {path.name for path in folder.iterdir()} <= {"code.zip", "tree", SIBLING}, "written outside"
    assert not any(sibling.iterdir()), "written into a sibling"
    assert archive.read_bytes() == content, "the archive was changed"
    # If data were refused, their file is unfinished, and only the worker may read it.
    files, count = tree_of(tree, unfinished=int(info is None))
    size = sum(len(data) for data in files.values() if isinstance(data, bytes))
    assert size <= limits.unpacked_bytes, "more bytes than the limit"
    assert count <= limits.entries, "more files and folders than the limit"
    assert all(len(data) <= limits.file_bytes for data in files.values()), "a file over the limit"
    # The directory once; of each entry, the local header for the check and all bytes for the data.
    most = 2 * len(content) + _END_SEARCH_BYTES + (2 * limits.entries + 8) * _BUFFER_BYTES
    assert counting.bytes_read <= most, "read again and again"
    if info is not None:
        assert info == TreeInfo(sum(isinstance(data, bytes) for data in files.values()), size)
        assert files == described(content), "another tree than the directory describes"
        check_links(tree)
    return info


def check_links(tree: Path) -> None:
    """Check that each symbolic link leads into the code's own folder, as the kernel follows it."""
    top = [path for path in tree.iterdir() if not is_leftover(path.name)]
    base = top[0] if len(top) == 1 and top[0].is_dir() and not top[0].is_symlink() else tree
    for folder, folders, names in os.walk(tree):
        for path in (Path(folder, name) for name in folders + names):
            if path.is_symlink():
                assert path.resolve(strict=True).is_relative_to(base.resolve()), "a link that leads out"


def check_refusal(refusal: Rejected) -> None:
    """Check that a message is one clear line."""
    assert refusal.error_type is ErrorType.INVALID_CODE
    message = str(refusal.message)
    assert message.startswith("the code zip")
    assert refusal.hint is not None, "no advice"
    for text in (refusal.message.ko, refusal.hint.en, refusal.hint.ko):
        assert text.isprintable(), f"not one printable line: {text!r}"
    assert message.isprintable(), f"not one printable line: {message!r}"
    assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters"


def tree_of(tree: Path, *, unfinished: int = 0) -> tuple[dict[str, bytes | str], int]:
    """Return the files and links below a folder by path, and the number of files, links and folders.

    The value of a file is its content, that of a link is its target.

    Raises:
        AssertionError: A device exists, or a file has unusual permissions. As many as `unfinished` files may
            have the permissions of an unfinished file.
    """
    files: dict[str, bytes | str] = {}
    count = 0
    modes: Counter[int] = Counter()
    for folder, folders, names in os.walk(tree):
        count += len(folders) + len(names)
        for path in (Path(folder, name) for name in folders + names):
            name = path.relative_to(tree).as_posix()
            if path.is_symlink():
                files[name] = os.readlink(path)  # noqa: PTH115 - pathlib would tidy it
            elif not path.is_dir():
                assert path.is_file(), "neither file nor folder nor link"
                modes[path.stat().st_mode & 0o7777] += 1
                files[name] = path.read_bytes()
    assert modes.keys() <= {0o444, 0o555, 0o600}, "unusual permissions"
    assert modes[0o600] <= unfinished, "an unfinished file"
    return files, count


def described(content: bytes) -> dict[str, bytes | str]:
    """Return the files and links of the central directory.

    This reader is independent of the tested code: it searches for fields and normalises paths as text.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
    names = _names(infos)
    if not any("/" in name for name in names):
        names = [name.replace("\\", "/") for name in names]
    # Of equal entries for one path the last counts, and the data of the others is not examined.
    places = {
        posixpath.normpath(name): info
        for name, info in zip(names, infos, strict=True)
        if not (name.endswith(("/", "/.")) or name == ".")
    }
    files: dict[str, bytes | str] = {}
    for place, info in places.items():
        data = _data(content, info)
        files[place] = data.decode() if stat.S_ISLNK(info.external_attr >> 16) else data
    return files


def _names(infos: Sequence[zipfile.ZipInfo]) -> list[str]:
    """Return the names: the Unicode path, or UTF-8 if flagged, or the first encoding that fits all others."""
    names = [_unicode_path(info) or (info.orig_filename if _is_utf8(info) else None) for info in infos]
    legacy = [
        info.orig_filename.encode("cp437") for info, name in zip(infos, names, strict=True) if name is None
    ]
    decoded: list[str] = []
    for encoding in ("utf-8", "cp949", "cp437"):
        with suppress(UnicodeDecodeError):
            decoded = [name.decode(encoding) for name in legacy]
            break
    rest = iter(decoded)
    return [next(rest) if name is None else name for name in names]


def _unicode_path(info: zipfile.ZipInfo) -> str | None:
    raw = info.orig_filename.encode("utf-8" if _is_utf8(info) else "cp437")
    extra = info.extra
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == 0x7075:
            field = extra[4 : 4 + length]
            fits = field[:5] == b"\x01" + struct.pack("<I", zlib.crc32(raw))
            return field[5:].decode() if fits else None
        extra = extra[4 + length :]
    return None


def _is_utf8(info: zipfile.ZipInfo) -> bool:
    return bool(info.flag_bits & UTF8_NAME)


def _data(content: bytes, info: zipfile.ZipInfo) -> bytes:
    fields = _LOCAL.unpack_from(content, info.header_offset)
    start = info.header_offset + _LOCAL.size + fields[-2] + fields[-1]
    packed = content[start : start + info.compress_size]
    data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed) if info.compress_type else packed
    assert (len(data), zlib.crc32(data)) == (info.file_size, info.CRC), "taken although its sums are wrong"
    return data
