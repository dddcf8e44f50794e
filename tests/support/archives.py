"""What must be true of an archive that was tried, whatever is in it; shared by properties and fuzzing."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING

from nanoagent.code.archive import ArchiveLimits, TreeInfo, extract
from nanoagent.errors import Rejected
from nanoagent.result import ErrorType
from support.zips import UTF8_NAME

if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Buffer

KIB = 1024
SMALL = ArchiveLimits(
    zip_bytes=256 * KIB, unpacked_bytes=64 * KIB, file_bytes=32 * KIB, entries=40, ratio=200
)
SIBLING = "tree-of-another"  # starts with the target's name
LONGEST_MESSAGE = 500
_LOCAL = struct.Struct("<4s5H3I2H")
# One buffer of the file object, which a read anywhere in the file fills.
_BUFFER_BYTES = io.DEFAULT_BUFFER_SIZE
_END_SEARCH_BYTES = 2 * (1 << 16)  # where zipfile looks for the record at the end


class _Counted(io.FileIO):
    """Counts what is really read of a file."""

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
    """A path that knows how much was read of it."""

    raw: _Counted | None = None

    def open(self, *_: Any, **__: Any) -> Any:
        self.raw = _Counted(str(self))
        return io.BufferedReader(self.raw)

    @property
    def bytes_read(self) -> int:
        return self.raw.count if self.raw else 0


def tried(folder: Path, content: bytes, limits: ArchiveLimits = SMALL) -> TreeInfo | None:
    """Try an archive in an empty folder; None when it was refused.

    Raises:
        AssertionError: It was neither taken exactly nor refused with one clear sentence, or something came to
            be outside of the tree, or more than the limits allow, or it was read again and again.
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
    # Where data were refused, the file that they were for is left unfinished: for the agent alone to read.
    files, count = tree_of(tree, unfinished=int(info is None))
    size = sum(map(len, files.values()))
    assert size <= limits.unpacked_bytes, "more bytes than the limit"
    assert count <= limits.entries, "more files and folders than the limit"
    assert all(len(data) <= limits.file_bytes for data in files.values()), "a file over the limit"
    # The directory, then of each entry its local header for the check and all of it for the data.
    most = 2 * len(content) + _END_SEARCH_BYTES + (2 * limits.entries + 8) * _BUFFER_BYTES
    assert counting.bytes_read <= most, "read again and again"
    if info is not None:
        assert info == TreeInfo(len(files), size), "another tree than was reported"
        assert files == described(content), "another tree than the directory describes"
    return info


def check_refusal(refusal: Rejected) -> None:
    """Fit for a log line and for a person."""
    assert refusal.error_type is ErrorType.INVALID_CODE
    message = str(refusal.message)
    assert message.startswith("the code zip")
    assert message.isprintable(), f"not one printable line: {message!r}"
    assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters"


def tree_of(tree: Path, *, unfinished: int = 0) -> tuple[dict[str, bytes], int]:
    """The files below a folder by their paths, and how many files and folders there are.

    Raises:
        AssertionError: There is a link or a device, or a file with unusual permissions; those of a file that
            is not finished are usual for as many as `unfinished`.
    """
    files: dict[str, bytes] = {}
    count = 0
    modes: Counter[int] = Counter()
    for folder, folders, names in os.walk(tree):
        count += len(folders) + len(names)
        assert not any(Path(folder, name).is_symlink() for name in folders + names), "a link"
        for name in names:
            path = Path(folder, name)
            assert path.is_file(), "neither file nor folder"
            modes[path.stat().st_mode & 0o7777] += 1
            files[path.relative_to(tree).as_posix()] = path.read_bytes()
    assert modes.keys() <= {0o444, 0o555, 0o600}, "unusual permissions"
    assert modes[0o600] <= unfinished, "an unfinished file"
    return files, count


def described(content: bytes) -> dict[str, bytes]:
    """The files as the central directory has them, inflated here and not by zipfile.

    A name without the UTF-8 flag is in the first of UTF-8, cp949 and cp437 that fits all of them.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
    names = [info.orig_filename.encode("utf-8" if _is_utf8(info) else "cp437") for info in infos]
    legacy = b"".join(name + b"\0" for name, info in zip(names, infos, strict=True) if not _is_utf8(info))
    encoding = "cp437"
    for candidate in ("cp949", "utf-8"):
        try:
            legacy.decode(candidate)
        except UnicodeDecodeError:
            continue
        encoding = candidate
    return {
        name.decode("utf-8" if _is_utf8(info) else encoding): _data(content, info)
        for name, info in zip(names, infos, strict=True)
        if not name.endswith(b"/")
    }


def _is_utf8(info: zipfile.ZipInfo) -> bool:
    return bool(info.flag_bits & UTF8_NAME)


def _data(content: bytes, info: zipfile.ZipInfo) -> bytes:
    fields = _LOCAL.unpack_from(content, info.header_offset)
    start = info.header_offset + _LOCAL.size + fields[-2] + fields[-1]
    packed = content[start : start + info.compress_size]
    data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed) if info.compress_type else packed
    assert (len(data), zlib.crc32(data)) == (info.file_size, info.CRC), "taken although its sums are wrong"
    return data
