"""Archives made to hurt, case by case: each is refused for its own reason, or is just the tree that is given.

What is wrong with single names, kinds and sizes is in test_archive.py; any archive at all in
test_archive_properties.py.
"""

from __future__ import annotations

import stat
import struct
import sys
import tracemalloc
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.archive import extract as unpack_archive
from nanoagent.code.pack import Pack
from nanoagent.common.units import MIB
from nanoagent.model.errors import Rejected
from support.checks.archives import KIB, SIBLING, check_refusal, described, tree_of, tried
from support.checks.packs import extract
from support.checks.zips import (
    ENCRYPTED,
    UTF8_NAME,
    End,
    RawEntry,
    deflated,
    descriptor,
    extra_field,
    make_zip,
    overlapping_bomb,
    parts,
    quoted_bomb,
    raw_zip,
    symlink,
    zip64_end,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType

LIMITS: Final = ArchiveLimits(zip_bytes=8 * MIB, unpacked_bytes=16 * MIB, file_bytes=8 * MIB, entries=1000)
UNLIMITED: Final = ArchiveLimits(10**9, 10**9, 10**9, 10**6)
ALL_ONES: Final = 0xFFFF_FFFF


@dataclass(frozen=True)
class Case:
    """An archive and what must come of it: a tree, or a part of the refusal."""

    name: str
    content: bytes
    expected: dict[str, bytes] | str
    limits: ArchiveLimits = LIMITS


def check(case: Case, folder: Path) -> None:
    archive, tree, sibling = folder / "code.zip", folder / "tree", folder / SIBLING
    archive.write_bytes(case.content)
    sibling.mkdir()
    if isinstance(case.expected, str):
        with pytest.raises(Rejected) as caught:
            extract(archive, tree, case.limits)
        check_refusal(caught.value)
        assert case.expected in str(caught.value.message)
    else:
        extract(archive, tree, case.limits)
        assert tree_of(tree)[0] == case.expected
    assert {path.name for path in folder.iterdir()} <= {"code.zip", "tree", SIBLING}
    assert not any(sibling.iterdir())


def run(case: Case, folder: Path, record_property: Callable[[str, Any], None]) -> None:
    check(case, folder)
    record_property("tried", ["archives", 1])


def cases(*all_: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", all_, ids=[case.name for case in all_])


def entry(name: bytes = b"main.py", content: bytes = b"print(1)\n", **fields: Any) -> RawEntry:
    return RawEntry(name, content, **fields)


ONE: Final = {"main.py": b"print(1)\n"}
SIZE: Final = len(ONE["main.py"])
GOOD: Final = raw_zip(entry())


# --- bombs


def nested(depth: int) -> bytes:
    content = make_zip({"zeros": bytes(MIB)})
    for _ in range(depth):
        content = make_zip({"inner.zip": content})
    return content


def kernels_of_one(copies: int, content: bytes) -> bytes:
    """Every entry of the directory points to the same header and data: full overlap."""
    return overlapping_bomb(copies, content)


INNER: Final = nested(2)
BOMBS: Final = [
    Case("full overlap, one name", kernels_of_one(3, bytes(MIB)), "overlaps with 'f'", UNLIMITED),
    Case(
        "full overlap, names of their own",
        raw_zip(entry(b"a", b"x" * 99), entry(b"b", b"x" * 99, offset=0, is_hidden=True)),
        "overlaps with 'a'",
        UNLIMITED,
    ),
    Case("quoted overlap, 52 MB in 6 kB", quoted_bomb(50, bytes(MIB)), "overlaps with '00000'", UNLIMITED),
    Case("quoted overlap of two", quoted_bomb(2, b"kernel"), "overlaps with '00000'", UNLIMITED),
    Case("a bomb in a bomb is a file", make_zip({"inner.zip": INNER}), {"inner.zip": INNER}),
    Case("5 MB of zeros are 5 MB", make_zip({"zeros": bytes(5 * MIB)}), {"zeros": bytes(5 * MIB)}),
    Case("9 MB of zeros by size", make_zip({"zeros": bytes(9 * MIB)}), "CODE_MAX_FILE_MB"),
    Case(
        "equal entries for one place count with all their bytes",
        raw_zip(*[RawEntry(b"f", bytes(MIB), method=8)] * 17),
        "CODE_MAX_UNPACKED_MB",
    ),
    Case(
        "many small bombs by their sum",
        make_zip({str(number): bytes(MIB) for number in range(17)}),
        "CODE_MAX_UNPACKED_MB",
    ),
    Case(
        "an entry within the directory",
        raw_zip(entry(), entry(b"b", b"", offset=len(GOOD) - 22, is_hidden=True)),
        "is truncated",
    ),
]


@cases(*BOMBS)
def test_a_bomb_is_refused_or_only_a_file(case: Case, tmp_path: Path, record_property: Any) -> None:
    run(case, tmp_path, record_property)


def test_the_quoted_bomb_is_one_that_zipfile_would_unpack() -> None:
    assert sum(map(len, described(quoted_bomb(50, bytes(MIB))).values())) > 50 * MIB


# --- sizes in headers


WRONG: Final = 7
BIG_LIE: Final = 1 << 31
SIZES: Final = [
    Case("local size", raw_zip(entry(local_file_size=WRONG)), ONE),
    Case("local packed size", raw_zip(entry(local_packed_size=BIG_LIE)), ONE),
    Case("local CRC", raw_zip(entry(local_crc=1)), ONE),
    Case("central size", raw_zip(entry(file_size=WRONG)), "two sizes differ"),
    Case("both sizes, too small", raw_zip(entry(file_size=WRONG, packed_size=WRONG)), "checksum"),
    Case("both sizes, too large", raw_zip(entry(file_size=SIZE + 1, packed_size=SIZE + 1)), "is truncated"),
    Case(
        "both sizes, into the next entry",
        raw_zip(entry(file_size=SIZE + 1, packed_size=SIZE + 1), entry(b"b")),
        "overlaps with 'main.py'",
    ),
    Case("2 GiB", raw_zip(entry(file_size=BIG_LIE, packed_size=BIG_LIE)), "CODE_MAX_FILE_MB"),
    Case("4 GiB, but no zip64", raw_zip(entry(file_size=ALL_ONES)), "CODE_MAX_FILE_MB"),
    Case("a size with no data", raw_zip(entry(data=b"")), "two sizes differ"),
    Case("data with no size", raw_zip(entry(file_size=0, packed_size=0, crc=0)), {"main.py": b""}),
    Case(
        "descriptor, honest",
        raw_zip(
            entry(
                flags=8,
                local_crc=0,
                local_file_size=0,
                local_packed_size=0,
                trailer=descriptor(ONE["main.py"], SIZE),
            ),
            entry(b"b", b"2"),
        ),
        ONE | {"b": b"2"},
    ),
    Case(
        "descriptor that lies: the directory counts",
        raw_zip(entry(flags=8, trailer=descriptor(b"something else", 1)), entry(b"b", b"2")),
        ONE | {"b": b"2"},
    ),
    Case("descriptor announced, and none there", raw_zip(entry(flags=8)), ONE),
    Case(
        "hidden data between entries",
        raw_zip(entry(trailer=b"PK" * 999), entry(b"b", b"2")),
        ONE | {"b": b"2"},
    ),
]


@cases(*SIZES)
def test_sizes_are_those_of_the_central_directory_or_refused(
    case: Case, tmp_path: Path, record_property: Any
) -> None:
    run(case, tmp_path, record_property)


# --- zip64


def zip64(**fields: int) -> bytes:
    """An entry's zip64 field with those numbers, in the order in which they must come."""
    order = ("file_size", "packed_size", "offset")
    return extra_field(1, b"".join(struct.pack("<Q", fields[name]) for name in order if name in fields))


def with_zip64_end(*entries: RawEntry, **lies: int) -> bytes:
    body, directory = parts(*entries)
    fields = {"entries": len(entries), "size": len(directory), "offset": len(body)} | lies
    position = len(body) + len(directory)
    disks = fields.pop("disks", 1)
    end = zip64_end(**fields, position=position, disks=disks)
    return raw_zip(*entries, end=End(entries=0xFFFF, size=ALL_ONES, offset=ALL_ONES, zip64=end))


HUGE: Final = 1 << 63
EXTENDED: Final[dict[str, Any]] = {"file_size": ALL_ONES, "packed_size": ALL_ONES, "offset": ALL_ONES}
ZIP64: Final = [
    Case(
        "honest entry",
        raw_zip(entry(**EXTENDED, extra=zip64(file_size=SIZE, packed_size=SIZE, offset=0))),
        ONE,
    ),
    Case("honest end", with_zip64_end(entry()), ONE),
    Case("no field", raw_zip(entry(file_size=ALL_ONES, packed_size=ALL_ONES)), "CODE_MAX_FILE_MB"),
    Case(
        "field too short",
        raw_zip(entry(**EXTENDED, extra=extra_field(1, b"1234"))),
        "Corrupt zip64 extra field",
    ),
    Case(
        "field longer than there is",
        raw_zip(entry(**EXTENDED, extra=extra_field(1, b"", claimed=24))),
        "Corrupt extra field",
    ),
    Case(
        "sizes of 2^63",
        raw_zip(entry(**EXTENDED, extra=zip64(file_size=HUGE, packed_size=HUGE, offset=0))),
        "CODE_MAX_FILE_MB",
    ),
    Case(
        "packed size of 2^63",
        raw_zip(entry(method=8, packed_size=ALL_ONES, extra=zip64(packed_size=HUGE))),
        "is truncated",
    ),
    Case("offset of 2^63", raw_zip(entry(offset=ALL_ONES, extra=zip64(offset=HUGE))), "no header"),
    Case(
        "offset of 2^64 - 1",
        raw_zip(entry(offset=ALL_ONES, extra=zip64(offset=2**64 - 1))),
        "no header",
    ),
    Case("end: directory at 2^63", with_zip64_end(entry(), offset=HUGE), "starts before the file"),
    Case(
        "end: directory of 2^63 bytes", with_zip64_end(entry(), size=HUGE), "Bad offset for central directory"
    ),
    Case("end: 2^64 - 1 entries claimed", with_zip64_end(entry(), entries=2**64 - 1), ONE),
    Case("end: two disks", with_zip64_end(entry(), disks=2), "span multiple disks"),
    Case(
        "two fields that contradict each other",
        raw_zip(
            entry(
                **EXTENDED,
                extra=zip64(file_size=SIZE, packed_size=SIZE, offset=0)
                + zip64(file_size=1, packed_size=1, offset=1),
            )
        ),
        ONE,
    ),
]


@cases(*ZIP64)
def test_honest_zip64_is_accepted(case: Case, tmp_path: Path, record_property: Any) -> None:
    run(case, tmp_path, record_property)


# --- before and behind the archive, and at its end


OTHER: Final = raw_zip(entry(content=b"the other"))
FULL: Final = raw_zip(
    entry(
        extra=extra_field(0x5455, b"\x01" + struct.pack("<i", 1)),
        comment=b"a comment",
        method=8,
        flags=8,
        trailer=descriptor(ONE["main.py"], len(deflated(ONE["main.py"]))),
    ),
    entry(b"d/", b""),
    end=End(comment=b"the archive's own comment"),
)
AROUND: Final = [
    Case("a script before it", b"#!/bin/sh\nexit\n" + GOOD, ONE),
    Case("an archive before it: the last one counts", OTHER + GOOD, ONE),
    Case("a few bytes behind it", GOOD + b"\n\0garbage", ONE),
    Case("64 KiB behind it", GOOD + bytes(65_536 + 22), "is not a zip"),
    Case("a comment", raw_zip(entry(), end=End(comment=b"hello")), ONE),
    Case("the longest comment", raw_zip(entry(), end=End(comment=b"c" * 65_535)), ONE),
    Case(
        "an archive in the comment: the last one counts",
        raw_zip(entry(content=b"the other"), end=End(comment=GOOD)),
        ONE,
    ),
    Case(
        "the end's signature in the comment",
        raw_zip(entry(), end=End(comment=b"PK\x05\x06" + b"c" * 40)),
        "is not a zip",
    ),
    Case(
        "the signature at the comment's end", raw_zip(entry(), end=End(comment=b"PK\x05\x06")), "is not a zip"
    ),
    Case(
        "a directory that is too short",
        raw_zip(entry(), entry(b"b"), end=End(size=53)),
        "Bad magic number",
    ),
    Case("a directory that is too long", raw_zip(entry(), end=End(size=60)), "Bad magic number"),
    Case(
        "a directory of 4 GiB", raw_zip(entry(), end=End(size=ALL_ONES)), "Bad offset for central directory"
    ),
    Case("a directory elsewhere", raw_zip(entry(), end=End(offset=10**6)), "starts before the file"),
    Case(
        "fewer entries than there are",
        raw_zip(entry(), entry(b"b", b"2"), end=End(entries=1)),
        ONE | {"b": b"2"},
    ),
    Case("more entries than there are", raw_zip(entry(), end=End(entries=9)), ONE),
    Case("multi-disk, as zip -s makes it", b"PK\x07\x08" + raw_zip(entry(), end=End(disk=1)), ONE),
    Case("an entry on another disk", raw_zip(entry(disk=3)), ONE),
]


@cases(*AROUND)
def test_the_last_directory_counts_whatever_stands_around_it(
    case: Case, tmp_path: Path, record_property: Any
) -> None:
    run(case, tmp_path, record_property)


def test_an_archive_with_everything_in_it_is_refused_wherever_it_is_cut_within_its_parts(
    tmp_path_factory: pytest.TempPathFactory, record_property: Any
) -> None:
    """Its own comment alone may be cut: zipfile does not insist on that."""
    whole = len(FULL) - len(b"the archive's own comment")
    for length in range(len(FULL)):
        info = tried(tmp_path_factory.mktemp("cut"), FULL[:length])
        assert (info is None) == (length < whole), f"cut at {length}"
    record_property("tried", ["archives", len(FULL)])


# --- names


NFKC_TWINS: Final = ("①.py", "1.py")
NAMES: Final = [
    Case("by case", raw_zip(entry(b"A.py", b"1"), entry(b"a.py", b"2")), {"A.py": b"1", "a.py": b"2"}),
    Case("folders by case", raw_zip(entry(b"A/x", b"1"), entry(b"a/x", b"2")), {"A/x": b"1", "a/x": b"2"}),
    Case(
        "by composition and case at once",
        raw_zip(
            *[entry(name.encode(), flags=UTF8_NAME) for name in ("É", unicodedata.normalize("NFD", "é"))]
        ),
        dict.fromkeys(("É", unicodedata.normalize("NFD", "é")), b"print(1)\n"),
    ),
    Case(
        "Greek sigmas",
        raw_zip(*[entry(name.encode(), flags=UTF8_NAME) for name in ("ΣΑΣ", "σας")]),
        dict.fromkeys(("ΣΑΣ", "σας"), b"print(1)\n"),
    ),
    Case(
        "the sign of kelvin",
        raw_zip(*[entry(name.encode(), flags=UTF8_NAME) for name in ("\u212a", "k")]),
        dict.fromkeys(("\u212a", "k"), b"print(1)\n"),
    ),
    Case(
        "equal only by compatibility: to no file system the same",
        raw_zip(*[entry(name.encode(), b"x", flags=UTF8_NAME) for name in NFKC_TWINS]),
        dict.fromkeys(NFKC_TWINS, b"x"),
    ),
    Case(
        "one flagged as UTF-8, one not",
        raw_zip(entry("é".encode(), flags=UTF8_NAME), entry("é".encode())),
        {"é": b"print(1)\n"},
    ),
    Case("the same bytes twice", raw_zip(entry(), entry()), ONE),
    Case(
        "the same bytes twice, and those that do not count are damaged",
        raw_zip(entry(method=8, data=b"\xff" * 9), entry()),
        ONE,
    ),
    Case("the same file twice, packed otherwise", raw_zip(entry(), entry(method=8)), ONE),
    Case("the same name by two spellings", raw_zip(entry(b"a/b"), entry(b"./a//b")), {"a/b": b"print(1)\n"}),
    Case("the same folder twice", raw_zip(entry(), entry(b"a/", b""), entry(b"a/", b"")), ONE),
    Case("the same name, other bytes", raw_zip(entry(), entry(content=b"print(2)\n")), "exists twice"),
    Case("the same name, other size", raw_zip(entry(), entry(content=b"")), "exists twice"),
    Case(
        "the same header twice", raw_zip(entry(), entry(offset=0, is_hidden=True)), "overlaps with 'main.py'"
    ),
    Case("a file and a folder", raw_zip(entry(b"a"), entry(b"a/", b"")), "both a file and a folder"),
    Case("a folder deep in a file", raw_zip(entry(b"a/b"), entry(b"a/b/c/d")), "both a file and a folder"),
    Case("10 kB", raw_zip(entry(b"n" * 10_000)), "more than 1024 bytes"),
    Case(
        "64 kB of three bytes each", raw_zip(entry("한".encode() * 21_845, flags=UTF8_NAME)), "more than 1024"
    ),
    Case("10,000 parts", raw_zip(entry(b"a/" * 10_000 + b"b")), "more than 1024 bytes"),
    Case(
        "characters that escape to ten",
        raw_zip(entry("\U000e0001".encode() * 80, flags=UTF8_NAME)),
        "more than 255",
    ),
    Case(
        "a part of 255 bytes that do not decode",
        raw_zip(entry(b"\xff\xfe" * 2)),
        {"\xa0\u25a0" * 2: b"print(1)\n"},
    ),
    Case("a sibling's name", raw_zip(entry(b"../" + SIBLING.encode() + b"/x")), "the part '..'"),
    Case("the tree's own name", raw_zip(entry(b"tree/../../tree-of-another/x")), "the part '..'"),
    Case("the tree's own name, honest", raw_zip(entry(b"tree/main.py")), {"tree/main.py": b"print(1)\n"}),
    Case("three dots", raw_zip(entry(b".../x")), {".../x": b"print(1)\n"}),
    Case("UNC", raw_zip(entry(b"\\\\host\\share\\x")), "absolute path"),
    Case("UNC beside slashes", raw_zip(entry(b"a/b"), entry(b"\\\\host\\share\\x")), "backslash"),
    Case("backslashes that lead out", raw_zip(entry(), entry(b"lib\\..\\..\\x")), "the part '..'"),
    Case("a drive and a backslash", raw_zip(entry(b"C:\\x")), "absolute path"),
    Case("backslashes only", raw_zip(entry(b"lib\\a.py"), entry(b"d\\", b"")), {"lib/a.py": b"print(1)\n"}),
    Case("backslashes beside slashes", raw_zip(entry(b"lib\\a.py"), entry(b"lib/b.py")), "has a backslash"),
    Case(
        "a backslash that collides",
        raw_zip(entry(b"a\\b", b"1"), entry(b"a", b"2")),
        "both a file and a folder",
    ),
    Case("dots and empty parts", raw_zip(entry(b"./", b""), entry(b"./a//./b")), {"a/b": b"print(1)\n"}),
    Case("nothing but the tree", raw_zip(entry(b"./", b"")), {}),
    Case("UNC with slashes", raw_zip(entry(b"//host/share/x")), "absolute path"),
    Case("a drive and ..", raw_zip(entry(b"C:../x")), "absolute path"),
    Case("a device of Windows is only a name", raw_zip(entry(b"NUL")), {"NUL": b"print(1)\n"}),
    Case("newlines", raw_zip(entry(b"a\r\nb")), "NUL or control"),
    Case("NUL behind a good name", raw_zip(entry(b"main.py\0/../x")), "NUL or control"),
    Case("an escape sequence", raw_zip(entry(b"\x1b]0;owned\x07")), "NUL or control"),
    Case(
        "right to left",
        raw_zip(entry("a\u202eyp.b".encode(), flags=UTF8_NAME)),
        {"a\u202eyp.b": b"print(1)\n"},
    ),
    Case(
        "a lone surrogate in UTF-8",
        raw_zip(entry(b"\xed\xa0\x80", flags=UTF8_NAME)),
        "is not a zip that can be",
    ),
    Case("overlong ..", raw_zip(entry(b"\xc0\xae\xc0\xae/x", flags=UTF8_NAME)), "is not a zip that can be"),
    Case("local name of another case", raw_zip(entry(local_name=b"Main.py")), "differs from the directory"),
    Case(
        "local name that is flagged otherwise",
        raw_zip(entry("é".encode(), local_flags=UTF8_NAME)),
        {"é": b"print(1)\n"},
    ),
]


@cases(*NAMES)
def test_names_are_kept_unchanged_or_refused(case: Case, tmp_path: Path, record_property: Any) -> None:
    run(case, tmp_path, record_property)


# --- attributes and times


SYSTEMS: Final = (0, 3, 7, 10, 11, 19, 255)  # MS-DOS, Unix, Macintosh, NTFS, MVS, OS X, unknown
IRREGULAR: Final = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "device, pipe or socket",
    stat.S_IFCHR: "device, pipe or socket",
    stat.S_IFBLK: "device, pipe or socket",
    stat.S_IFSOCK: "device, pipe or socket",
    0o150000: "device, pipe or socket",  # a door of Solaris
    0o160000: "device, pipe or socket",  # a whiteout of BSD
}
SPECIAL_BITS: Final = (stat.S_ISUID, stat.S_ISGID, stat.S_ISVTX, 0o7000)


def test_no_kind_of_entry_but_files_and_folders_is_taken_from_whatever_system(
    tmp_path_factory: pytest.TempPathFactory, record_property: Any
) -> None:
    for system in SYSTEMS:
        for kind, rule in IRREGULAR.items():
            content = raw_zip(entry(), entry(b"odd", b"", mode=kind | 0o777, system=system))
            check(Case("", content, rule), tmp_path_factory.mktemp("kind"))
    record_property("tried", ["archives", len(SYSTEMS) * len(IRREGULAR)])


def test_special_bits_of_files_and_folders_are_dropped(
    tmp_path_factory: pytest.TempPathFactory, record_property: Any
) -> None:
    for system in SYSTEMS:
        for bits in SPECIAL_BITS:
            folder = tmp_path_factory.mktemp("bits")
            archive = folder / "code.zip"
            archive.write_bytes(
                raw_zip(
                    entry(mode=stat.S_IFREG | bits | 0o755, system=system),
                    entry(b"d/", b"", mode=stat.S_IFDIR | bits | 0o777, system=system),
                )
            )
            extract(archive, folder / "tree", LIMITS)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder / "tree").iterdir()}
            assert modes == {"main.py": 0o555, "d": 0o755}
    record_property("tried", ["archives", len(SYSTEMS) * len(SPECIAL_BITS)])


def dos_time(year: int, month: int, day: int, seconds: int = 0) -> int:
    """As a header has it; nothing keeps the fields within a calendar."""
    return ((year - 1980) << 9 | month << 5 | day) << 16 | seconds


def unix_times(*times: int) -> bytes:
    return extra_field(0x5455, b"\x07" + b"".join(struct.pack("<i", time) for time in times))


TIMES: Final = [
    Case("month 0", raw_zip(entry(dos_time=dos_time(2020, 0, 1))), ONE),
    Case("day 0", raw_zip(entry(dos_time=dos_time(2020, 1, 0))), ONE),
    Case("31 February", raw_zip(entry(dos_time=dos_time(2021, 2, 31))), ONE),
    Case("the year 2107", raw_zip(entry(dos_time=dos_time(2107, 15, 31, 0xFFFF))), ONE),
    Case("before 1970", raw_zip(entry(extra=unix_times(-1, -(1 << 31), -5))), ONE),
    Case("in 2038", raw_zip(entry(extra=unix_times((1 << 31) - 1), local_extra=unix_times(-1))), ONE),
    Case(
        "NTFS times of all ones",
        raw_zip(entry(extra=extra_field(10, b"\0\0\0\0\1\0\x18\0" + b"\xff" * 24))),
        ONE,
    ),
    Case("times cut short", raw_zip(entry(extra=extra_field(0x5455, b"\x07"))), ONE),
    Case("read-only, hidden, system", raw_zip(entry(mode=0, dos_attributes=7, system=0)), ONE),
    Case(
        "marked as a folder by MS-DOS's bit alone", raw_zip(entry(mode=0, dos_attributes=16, system=0)), ONE
    ),
]


@cases(*TIMES)
def test_impossible_times_and_attributes_have_no_effect(
    case: Case, tmp_path: Path, record_property: Any
) -> None:
    run(case, tmp_path, record_property)


# --- methods, extra fields and data


def unicode_path(name: bytes, believed: bytes) -> bytes:
    """Info-ZIP's field for a name in UTF-8 (APPNOTE 4.6.9)."""
    return extra_field(0x7075, b"\x01" + struct.pack("<I", zlib.crc32(name)) + believed)


def flushed(content: bytes) -> bytes:
    """A deflate stream that gives everything, but whose last block is missing."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush(zlib.Z_SYNC_FLUSH)


EMPTY_BLOCK: Final = b"\0\0\0\xff\xff"
LONG: Final = bytes(range(256)) * 64
EMPTY_FIELDS: Final = extra_field(0x7777, b"") * 16_383
METHODS: Final = {
    1: "shrunk",
    6: "imploded",
    9: "deflate64",
    10: "DCL",
    19: "LZ77",
    95: "xz",
    98: "PPMd",
    99: "AES",
}
DATA: Final = [
    *(
        Case(name, raw_zip(entry(method=method)), f"uses compression method {method}")
        for method, name in METHODS.items()
    ),
    Case("a method that nobody knows", raw_zip(entry(method=0xFFFF)), "uses compression method 65535"),
    Case("needs version 25.5", raw_zip(entry(needs=255)), "zip file version 25.5"),
    Case(
        "encrypted by the local header alone",
        raw_zip(entry(local_flags=ENCRYPTED)),
        "differs from the directory",
    ),
    Case("strong encryption and a hidden directory", raw_zip(entry(flags=0x2041)), "is encrypted"),
    Case("patch data", raw_zip(entry(flags=0x0020)), "compression method"),
    Case(
        "deflate that ends early",
        raw_zip(entry(method=8, data=deflated(LONG)[:-9], content=LONG)),
        "another size",
    ),
    Case(
        "deflate that ends late",
        raw_zip(entry(method=8, data=deflated(LONG + b"more"), content=LONG)),
        "another size",
    ),
    Case(
        "deflate without a last block",
        raw_zip(entry(method=8, data=flushed(LONG), content=LONG)),
        {"main.py": LONG},
    ),
    Case(
        "bytes behind the last block",
        raw_zip(entry(method=8, data=deflated(LONG) + b"garbage" * 99, content=LONG)),
        {"main.py": LONG},
    ),
    Case(
        "a second stream behind the first",
        raw_zip(entry(method=8, data=deflated(b"one") + deflated(b"two"), content=b"one")),
        {"main.py": b"one"},
    ),
    Case(
        "a million empty blocks",
        raw_zip(entry(method=8, data=EMPTY_BLOCK * 1_000_000 + deflated(b"x"), content=b"x")),
        {"main.py": b"x"},
    ),
    Case("a block of a type that there is not", raw_zip(entry(method=8, data=b"\x07")), "damaged data"),
    Case("a distance before the start", raw_zip(entry(method=8, data=b"\x03\x02\x00")), "damaged data"),
    Case("no data where deflate should be", raw_zip(entry(method=8, data=b"")), "another size"),
    Case(
        "a folder with data behind a size of none",
        raw_zip(entry(), entry(b"d/", b"", data=b"x")),
        "two sizes",
    ),
    Case("a folder with a deflated nothing", raw_zip(entry(), entry(b"d/", b"", method=8)), ONE),
    Case("a folder that says it has contents", raw_zip(entry(b"d/", b"data")), "folder with content"),
    Case(
        "a Unicode path that leads out",
        raw_zip(entry(extra=unicode_path(b"main.py", b"../x"))),
        "the part '..'",
    ),
    Case(
        "a Unicode path that is absolute",
        raw_zip(entry(extra=unicode_path(b"main.py", b"/etc/passwd"))),
        "absolute path",
    ),
    Case(
        "a Unicode path for a name in an old code page",
        raw_zip(
            entry(b"\x8ba.py", extra=unicode_path(b"\x8ba.py", "ła.py".encode())),
            entry("한.py".encode("cp949"), b"2"),
        ),
        {"ła.py": b"print(1)\n", "한.py": b"2"},
    ),
    Case("a Unicode path of another name", raw_zip(entry(extra=unicode_path(b"other", b"x.py"))), ONE),
    Case("an empty Unicode path", raw_zip(entry(extra=unicode_path(b"main.py", b""))), ONE),
    Case(
        "a Unicode path of an unknown version",
        raw_zip(entry(extra=unicode_path(b"main.py", b"x.py").replace(b"\x01", b"\x02", 1))),
        ONE,
    ),
    Case(
        "a Unicode path that is not UTF-8",
        raw_zip(entry(extra=unicode_path(b"main.py", b"\xff\xfe"))),
        "not UTF-8" if sys.version_info < (3, 13) else "is not a zip that can be read",
    ),
    Case(
        "a field cut short", raw_zip(entry(extra=extra_field(0x7777, b"", claimed=1))), "Corrupt extra field"
    ),
    Case("three bytes that are no field", raw_zip(entry(extra=b"abc")), ONE),
    Case(
        "65,535 bytes of extra fields",
        raw_zip(entry(extra=EMPTY_FIELDS + b"abc")),
        "more than 4096 bytes of extra",
    ),
    Case("65,535 bytes of extra fields, local ones", raw_zip(entry(local_extra=EMPTY_FIELDS + b"abc")), ONE),
    Case("4096 bytes of extra fields", raw_zip(entry(extra=extra_field(0x7777, bytes(4092)))), ONE),
    Case("65,535 bytes of comment", raw_zip(entry(comment=b"c" * 65_535)), ONE),
    Case(
        "a link by its mode, a file by its system",
        raw_zip(replace(symlink(b"l", b"/etc/passwd"), system=0)),
        "link",
    ),
]


@cases(*DATA)
def test_data_gives_what_the_directory_says_or_is_refused(
    case: Case, tmp_path: Path, record_property: Any
) -> None:
    run(case, tmp_path, record_property)


# --- work and memory


def test_the_first_entry_that_takes_long_to_read_is_the_last_one_read(
    tmp_path: Path, record_property: Any
) -> None:
    """zipfile takes time by the square of an entry's extra fields: what comes behind one must not be read."""
    good = [entry(b"%d" % number) for number in range(3)]
    bad = [entry(b"bad %d" % number, extra=EMPTY_FIELDS) for number in range(20)]

    run(Case("", raw_zip(*good, *bad), "'bad 0' has more than 4096 bytes"), tmp_path, record_property)


def test_100_000_entries_are_refused_before_they_are_in_memory(tmp_path: Path, record_property: Any) -> None:
    content = raw_zip(*(RawEntry(b"%d" % number, b"") for number in range(100_000)))
    limits = ArchiveLimits(len(content), 10**9, 10**9, 10_000)

    tracemalloc.start()
    try:
        run(Case("", content, "CODE_MAX_ENTRIES", limits), tmp_path, record_property)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # The directory once, and 10,000 entries of well under 2 KiB; all 100,000 would take 60 MB more.
    assert peak < len(content) + 2 * KIB * 10_000


def test_names_that_are_too_long_are_refused_before_they_are_in_memory(
    tmp_path: Path, record_property: Any
) -> None:
    content = raw_zip(*(entry(b"\xb0" * 65_000 + b"%d" % number) for number in range(200)))
    limits = replace(LIMITS, zip_bytes=len(content))

    tracemalloc.start()
    try:
        run(Case("", content, "name of more than 1024 bytes", limits), tmp_path, record_property)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # The directory once; decoded, each byte of it would be two, and all names together as many again.
    assert peak < 1.5 * len(content) / 2


WIDE: Final = "\U0001f600"  # makes a text of 1,000 characters one of 4,000 bytes
FOLDERS: Final = "/".join(["n" * 240 + WIDE] * 3)


def entries_with_names(names: list[str]) -> list[RawEntry]:
    return [entry(name.encode(), b"", flags=UTF8_NAME) for name in names]


MEMORY: Final[dict[str, list[RawEntry]]] = {
    "each below sixty folders of its own": entries_with_names(
        ["/".join(f"{n:04x}{k:02x}{WIDE}abcd" for k in range(63)) + "/a" for n in range(1000)]
    ),
    "each in a folder of its own, deep down": entries_with_names(
        [f"{FOLDERS}/{n:04}{'f' * 200}{WIDE}/a" for n in range(490)]
    ),
    "long names in one folder": entries_with_names(
        [f"{FOLDERS}/{n:04}{'f' * 240}{WIDE}" for n in range(900)]
    ),
    "long names of an old code page": [
        entry(b"/".join([b"\xb0\xff" * 50] * 3) + b"/" + b"\xb0" * 80 + b"%04d" % n, b"") for n in range(900)
    ],
    "Unicode paths": [
        entry(
            b"%04d" % n,
            b"",
            extra=extra_field(
                0x7075,
                struct.pack("<BI", 1, zlib.crc32(b"%04d" % n))
                + f"{FOLDERS}/{n:04}{'f' * 240}{WIDE}".encode(),
            ),
        )
        for n in range(900)
    ],
    "links with long targets": [
        *entries_with_names([f"{FOLDERS}/f"]),
        *(symlink(b"%04d" % n, f"{FOLDERS}/{'../' + 'n' * 240 + WIDE}/f".encode()) for n in range(900)),
    ],
}


@pytest.mark.parametrize("name", MEMORY)
def test_any_names_and_targets_take_little_more_memory_than_the_directory(
    tmp_path: Path, name: str, record_property: Any
) -> None:
    """With the default limits the first of these had the agent hold 1.2 GB."""
    entries = MEMORY[name]
    _, directory = parts(*entries)
    archive = tmp_path / "code.zip"
    archive.write_bytes(raw_zip(*entries))

    tracemalloc.start()
    try:
        unpack_archive(archive, tmp_path / "pack", ArchiveLimits(10**8, 10**8, 10**8, 1010))
    except Rejected as refusal:
        assert "CODE_MAX_ENTRIES" in str(refusal)  # noqa: PT017 - some of these are taken
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    # The directory, of which each name is a part, and a kilobyte for what an entry adds.
    assert peak < 2 * len(directory) + KIB * len(entries)
    record_property("tried", ["archives", 1])


def test_a_central_directory_that_is_too_large_is_not_read(tmp_path: Path, record_property: Any) -> None:
    """zipfile reads it at once: with comments it could be as large as a zip may be."""
    content = raw_zip(*(entry(b"%d" % number, b"", comment=b"c" * 65_535) for number in range(300)))
    limits = replace(LIMITS, zip_bytes=len(content))

    tracemalloc.start()
    try:
        run(Case("", content, "has a directory of more than", limits), tmp_path, record_property)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < MIB


def test_a_deep_folder_costs_its_depth_once_and_not_once_for_each_file(
    tmp_path: Path, record_property: Any
) -> None:
    """A zip of 5 MB took the agent half a minute, and a third of that while nothing else could go on."""
    folder = "/".join(f"d{depth}" for depth in range(60))
    names = [f"{number}" for number in range(300)]
    flat = raw_zip(*(entry(name.encode()) for name in [f"{folder}/0", *names]))
    deep = raw_zip(*(entry(f"{folder}/{name}".encode()) for name in names))

    assert steps_of(deep, tmp_path / "deep") < 4 * steps_of(flat, tmp_path / "flat")
    record_property("tried", ["archives", 2])


def steps_of(content: bytes, place: Path) -> int:
    """How many calls unpacking takes: a measure of time that no other load changes."""
    place.mkdir()
    (place / "code.zip").write_bytes(content)
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        extract(place / "code.zip", place / "tree", LIMITS)
    finally:
        sys.setprofile(before)
    return calls


def test_a_damaged_entry_with_the_longest_name_is_refused_in_a_short_message(
    tmp_path: Path, record_property: Any
) -> None:
    name = b"/".join([b"n" * 255] * 4)

    run(Case("", raw_zip(entry(name, crc=1)), "checksum", LIMITS), tmp_path, record_property)


def test_two_long_names_that_collide_are_refused_in_a_short_message(
    tmp_path: Path, record_property: Any
) -> None:
    name = "/".join(["\U000e0100" * 63] * 4)
    content = raw_zip(*(entry(name.encode(), data, flags=UTF8_NAME) for data in (b"1", b"2")))

    run(Case("", content, "exists twice"), tmp_path, record_property)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_unpacking_holds_no_more_than_chunks_however_large_the_file(
    tmp_path: Path, method: int, record_property: Any
) -> None:
    content = make_zip({"large": bytes(range(256)) * 4 * 16 * KIB}, method=method)
    archive = tmp_path / "code.zip"
    archive.write_bytes(content)

    tracemalloc.start()
    try:
        unpack_archive(archive, tmp_path / "pack", replace(UNLIMITED))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert Pack(tmp_path / "pack").summary.bytes == 16 * MIB
    assert peak < MIB
    record_property("tried", ["archives", 1])
