from __future__ import annotations

import io
import os
import stat
import tracemalloc
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from nanoagent.code import archive
from nanoagent.code.archive import ArchiveLimits, TreeInfo
from nanoagent.common.units import MIB
from nanoagent.model.errors import Rejected
from nanoagent.model.result import ErrorType
from support.checks.packs import extract
from support.checks.zips import ENCRYPTED, UTF8_NAME, RawEntry, make_zip, overlapping_bomb, raw_zip, symlink

LIMITS = ArchiveLimits(zip_bytes=8 * MIB, unpacked_bytes=16 * MIB, file_bytes=8 * MIB, entries=1000)


def unpack(folder: Path, content: bytes, limits: ArchiveLimits = LIMITS) -> TreeInfo:
    path = folder / "code.zip"
    path.write_bytes(content)
    return extract(path, folder / "tree", limits)


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path; nothing but files and folders may be there."""
    found = {}
    for path in folder.rglob("*"):
        assert not path.is_symlink()
        if not path.is_dir():
            assert path.is_file()
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def refusal(folder: Path, content: bytes, limits: ArchiveLimits = LIMITS) -> str:
    """The message with which an archive is refused, nothing having been written outside of the tree."""
    with pytest.raises(Rejected) as caught:
        unpack(folder, content, limits)
    assert caught.value.error_type is ErrorType.INVALID_CODE
    assert {path.name for path in folder.iterdir()} <= {"code.zip", "tree"}
    return str(caught.value.message)


# --- what is taken


def test_files_and_folders_come_out_as_they_went_in(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "main.py": "print(1)",
        "lib/a.py": b"\0\xff" * 100_000,
        "lib/deep/er/b": b"",
        "empty/": b"",
    }

    info = unpack(tmp_path, make_zip(files))

    assert info == TreeInfo(files=3, bytes=200_008)
    assert tree_of(tmp_path / "tree") == {
        "main.py": b"print(1)",
        "lib/a.py": b"\0\xff" * 100_000,
        "lib/deep/er/b": b"",
    }
    assert (tmp_path / "tree/empty").is_dir()


def test_a_pack_that_exists_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "code.zip").write_bytes(make_zip({"main.py": "1"}))
    (tmp_path / "pack").write_text("other")

    with pytest.raises(FileExistsError):
        archive.extract(tmp_path / "code.zip", tmp_path / "pack", LIMITS)

    assert (tmp_path / "pack").read_text() == "other"


def test_files_keep_their_executable_bit_and_a_pack_can_be_read_by_all(tmp_path: Path) -> None:
    old_umask = os.umask(0o077)
    try:
        unpack(
            tmp_path,
            raw_zip(
                RawEntry(b"plain", mode=stat.S_IFREG | 0o600),
                RawEntry(b"bin/tool", mode=stat.S_IFREG | 0o4710),
                RawEntry(b"no mode", mode=0),
            ),
        )
    finally:
        os.umask(old_umask)

    modes = {name: stat.S_IMODE((tmp_path / "tree" / name).stat().st_mode) for name in (".", "bin")}
    assert modes == {".": 0o755, "bin": 0o755}
    assert stat.S_IMODE((tmp_path / "tree/plain").stat().st_mode) == 0o444
    assert stat.S_IMODE((tmp_path / "tree/bin/tool").stat().st_mode) == 0o555
    assert stat.S_IMODE((tmp_path / "tree/no mode").stat().st_mode) == 0o444


@pytest.mark.parametrize("dos_time", [0, 0xFFFF_FFFF], ids=["no date", "month 15"])
def test_impossible_times_do_not_matter(tmp_path: Path, dos_time: int) -> None:
    unpack(tmp_path, raw_zip(RawEntry(b"main.py", b"1", dos_time=dos_time)))

    assert tree_of(tmp_path / "tree") == {"main.py": b"1"}


@pytest.mark.parametrize(
    ("raw", "flags", "name"),
    [
        ("한글/메인.py".encode(), UTF8_NAME, "한글/메인.py"),
        ("한글/메인.py".encode(), 0, "한글/메인.py"),
        ("한글/메인.py".encode("cp949"), 0, "한글/메인.py"),
        ("café.py".encode("cp437"), 0, "café.py"),
    ],
    ids=["flagged", "unflagged utf-8", "cp949", "cp437"],
)
def test_names_are_read_in_the_encoding_they_were_written_in(
    tmp_path: Path, raw: bytes, flags: int, name: str
) -> None:
    unpack(tmp_path, raw_zip(RawEntry(b"main.py", b"1"), RawEntry(raw, b"2", flags=flags)))

    assert tree_of(tmp_path / "tree") == {"main.py": b"1", name: b"2"}


def test_an_archive_behind_other_bytes_is_read(tmp_path: Path) -> None:
    unpack(tmp_path, b"#!/bin/sh\n" + make_zip({"main.py": "1"}))

    assert tree_of(tmp_path / "tree") == {"main.py": b"1"}


def test_a_folder_may_be_listed_after_what_is_in_it(tmp_path: Path) -> None:
    unpack(tmp_path, make_zip({"a/b": "1", "a/": b""}))

    assert tree_of(tmp_path / "tree") == {"a/b": b"1"}


def test_a_small_file_may_be_compressed_as_well_as_it_likes(tmp_path: Path) -> None:
    assert unpack(tmp_path, make_zip({"zeros": bytes(MIB)})).bytes == MIB


# --- what is refused


HOSTILE_NAMES = [
    (b"", "empty name"),
    (b"/etc/passwd", "absolute path"),
    (b"C:/windows", "absolute path"),
    (b"c:x", "absolute path"),
    (b"../main.py", "the part '..'"),
    (b"a/../../main.py", "the part '..'"),
    (b"a/..", "the part '..'"),
    (b"a/./../../b", "the part '..'"),
    (b".//..", "the part '..'"),
    (b".", "folder with content"),
    (b"a/.", "folder with content"),
    (b"a//", "folder with content"),
    (b"//host/share", "absolute path"),
    (b"main.py\0.txt", "NUL or control"),
    (b"main\n.py", "NUL or control"),
    (b"\x7f", "NUL or control"),
    ("a\u0085b".encode(), "NUL or control"),
    (b"n" * 256, "part of more than 255 bytes"),
    ("가".encode() * 86, "part of more than 255 bytes"),
    (b"/".join([b"n" * 200] * 6), "more than 1024 bytes"),
    (b"d/" * 64 + b"f", "64 folders deep"),
]


@pytest.mark.parametrize(("name", "rule"), HOSTILE_NAMES, ids=[repr(name[:20]) for name, _ in HOSTILE_NAMES])
def test_a_name_that_is_no_path_inside_the_tree_is_refused(tmp_path: Path, name: bytes, rule: str) -> None:
    message = refusal(tmp_path, raw_zip(RawEntry(b"main.py"), RawEntry(name, flags=UTF8_NAME)))

    assert rule in message
    assert repr(name.decode())[1:-1][:100] in message
    assert not (tmp_path / "tree").exists()


KINDS = [
    (symlink(b"link", b"/etc/passwd"), "symbolic link"),
    (symlink(b"link/", b""), "symbolic link"),
    (RawEntry(b"pipe", b"", mode=stat.S_IFIFO | 0o644), "device, pipe or socket"),
    (RawEntry(b"disk", b"", mode=stat.S_IFBLK | 0o644), "device, pipe or socket"),
    (RawEntry(b"tty", b"", mode=stat.S_IFCHR | 0o644), "device, pipe or socket"),
    (RawEntry(b"sock", b"", mode=stat.S_IFSOCK | 0o644), "device, pipe or socket"),
    (RawEntry(b"folder", b"", mode=stat.S_IFDIR | 0o755), "does not end with /"),
    (RawEntry(b"folder/", b"data", mode=stat.S_IFDIR | 0o755), "folder with content"),
    (RawEntry(b"secret", flags=ENCRYPTED), "is encrypted"),
    (RawEntry(b"secret", flags=0x0040), "is encrypted"),
    (RawEntry(b"patch", flags=0x0020), "compression method"),
    (RawEntry(b"bz", method=zipfile.ZIP_BZIP2), "compression method 12"),
    (RawEntry(b"lz", method=zipfile.ZIP_LZMA), "compression method 14"),
    (RawEntry(b"zstd", method=93), "compression method 93"),
]


@pytest.mark.parametrize(("entry", "rule"), KINDS, ids=[f"{entry.name!r} {rule}" for entry, rule in KINDS])
def test_an_entry_that_is_no_plain_file_or_folder_is_refused(
    tmp_path: Path, entry: RawEntry, rule: str
) -> None:
    message = refusal(tmp_path, raw_zip(RawEntry(b"main.py"), entry))

    assert rule in message
    assert repr(entry.name.decode()) in message
    assert not (tmp_path / "tree").exists()


COLLISIONS = [
    ("main.py", "./main.py", "exists twice"),
    ("a/b", "a//b", "exists twice"),
    ("a", "a/b", "both a file and a folder"),
    ("a/b", "a", "both a file and a folder"),
    ("a", "a/", "both a file and a folder"),
]


@pytest.mark.parametrize(("first", "second", "rule"), COLLISIONS)
def test_two_entries_for_one_place_are_refused(tmp_path: Path, first: str, second: str, rule: str) -> None:
    entries = [
        RawEntry(name.encode(), b"" if name.endswith("/") else content, mode=0, flags=UTF8_NAME)
        for name, content in ((first, b"x"), (second, b"y"))
    ]

    message = refusal(tmp_path, raw_zip(*entries))

    assert rule in message
    assert repr(second) in message
    assert not (tmp_path / "tree").exists()


LIES = [
    (RawEntry(b"f", b"abc", crc=1), "checksum"),
    (RawEntry(b"f", b"abc" * 1000, method=8, crc=1), "checksum"),
    (RawEntry(b"f", b"abc" * 1000, method=8, file_size=2999), "another size"),
    (RawEntry(b"f", b"abc" * 1000, method=8, file_size=3001), "another size"),
    (RawEntry(b"f", b"abcd", method=8, file_size=3, crc=zlib.crc32(b"abc")), "another size"),
    (RawEntry(b"f", bytes(MIB), method=8, file_size=10), "another size"),
    (RawEntry(b"f", b"abc", file_size=2), "two sizes differ"),
    (RawEntry(b"f", b"abc", packed_size=2), "two sizes differ"),
    (RawEntry(b"f", b"abc", method=8, data=b"\xff\xff\xff"), "damaged data"),
    (RawEntry(b"f", b"abc", local_name=b"g"), "differs from the directory"),
    (RawEntry(b"f", b"abc", offset=5), "no header"),
    (RawEntry(b"f", b"abc", offset=10_000), "no header"),
    (RawEntry(b"f", b"abc", packed_size=10_000, file_size=10_000), "truncated"),
]


@pytest.mark.parametrize(("entry", "rule"), LIES)
def test_an_entry_whose_headers_lie_is_refused(tmp_path: Path, entry: RawEntry, rule: str) -> None:
    message = refusal(tmp_path, raw_zip(entry))

    assert rule in message
    assert "'f'" in message


def test_a_false_size_does_not_fill_the_disk(tmp_path: Path) -> None:
    bomb = raw_zip(RawEntry(b"f", bytes(64 * MIB), method=8, file_size=10, crc=0))

    (tmp_path / "code.zip").write_bytes(bomb)
    with pytest.raises(Rejected, match="size"):
        archive.extract(tmp_path / "code.zip", tmp_path / "pack", LIMITS)

    assert (tmp_path / "pack").stat().st_size <= 10


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "is not a zip" in refusal(tmp_path, content)


def test_a_zip_without_entries_is_refused(tmp_path: Path) -> None:
    assert "has no entries" in refusal(tmp_path, make_zip({}))


def test_every_truncation_of_a_zip_is_refused(tmp_path: Path) -> None:
    whole = make_zip({"main.py": "print(1)", "a": "b" * 100})

    for length in range(len(whole)):
        refusal(tmp_path, whole[:length])


def test_a_name_that_claims_to_be_utf8_and_is_not_is_refused(tmp_path: Path) -> None:
    assert "is not a zip that can be read" in refusal(
        tmp_path, raw_zip(RawEntry("한글".encode("cp949"), flags=UTF8_NAME))
    )


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    shared = bytes(1000)
    inner = raw_zip(RawEntry(b"b", shared))[: 31 + len(shared)]  # b's header and data, inside of a's data
    archive = raw_zip(RawEntry(b"a", inner), RawEntry(b"b", shared, offset=31, is_hidden=True))

    assert "overlaps with 'a'" in refusal(tmp_path, archive)


def test_a_bomb_of_entries_that_share_their_data_is_refused(tmp_path: Path) -> None:
    bomb = overlapping_bomb(500, bytes(MIB))

    assert "'f'" in refusal(tmp_path, bomb, ArchiveLimits(10**9, 10**9, 10**9, 1000))


LIMITED = [
    (ArchiveLimits(100, 10**9, 10**9, 100), "CODE_MAX_ZIP_MB"),
    (ArchiveLimits(10**9, 2 * MIB + 9, 10**9, 100), "CODE_MAX_UNPACKED_MB"),
    (ArchiveLimits(10**9, 10**9, 2 * MIB - 1, 100), "CODE_MAX_FILE_MB"),
    (ArchiveLimits(10**9, 10**9, 10**9, 3), "CODE_MAX_ENTRIES"),
]
LIMITED_FILES: dict[str, str | bytes] = {"zeros": bytes(2 * MIB), "a/b/c": "0123456789"}


@pytest.mark.parametrize(("limits", "setting"), LIMITED, ids=[setting for _, setting in LIMITED])
def test_each_limit_is_kept_and_named(tmp_path: Path, limits: ArchiveLimits, setting: str) -> None:
    assert setting in refusal(tmp_path, make_zip(LIMITED_FILES), limits)
    assert not (tmp_path / "tree").exists()


def test_what_just_keeps_the_limits_is_taken(tmp_path: Path) -> None:
    content = make_zip(LIMITED_FILES)
    limits = ArchiveLimits(len(content), 2 * MIB + 10, 2 * MIB, 4)

    assert unpack(tmp_path, content, limits).files == 2


def test_a_directory_of_too_many_entries_is_not_read_to_its_end(tmp_path: Path) -> None:
    first = RawEntry(b"f")
    archive = raw_zip(first, *[RawEntry(b"f", offset=0, is_hidden=True)] * 60_000)

    tracemalloc.start()
    try:
        message = refusal(tmp_path, archive)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert "more than 1000 files and folders" in message
    assert peak < 4 * len(archive)  # 60,000 ZipInfo objects would take ten times that


def test_a_message_shows_a_hostile_name_escaped_and_cut(tmp_path: Path) -> None:
    message = refusal(tmp_path, raw_zip(RawEntry(b"\x1b[31m" + b"n" * 60_000)))

    assert "\x1b" not in message
    assert len(message) < 300


# --- properties

COMPONENTS = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\:"), min_size=1, max_size=20
).filter(lambda part: part not in {".", ".."} and len(part.encode()) <= 255)
PATHS = st.lists(COMPONENTS, min_size=1, max_size=4).map("/".join)


def are_distinct(paths: list[str]) -> bool:
    """Whether no path is a folder of another."""
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    return not folders & set(paths)


@settings(max_examples=60, deadline=None)
@given(
    files=st.dictionaries(PATHS, st.binary(max_size=3000), min_size=1, max_size=8),
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
def test_any_tree_of_benign_names_comes_out_exactly(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], method: int
) -> None:
    assume(are_distinct(list(files)))
    folder = tmp_path_factory.mktemp("round")

    info = unpack(folder, make_zip(files, method=method))

    assert tree_of(folder / "tree") == files
    assert info == TreeInfo(len(files), sum(map(len, files.values())))


def as_zipfile_reads(content: bytes) -> dict[str, bytes]:
    """The files of an archive as plain `zipfile` has them, names in UTF-8 where they are that."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {}
        for info in archive.infolist():
            raw = info.orig_filename.encode("utf-8" if info.flag_bits & UTF8_NAME else "cp437")
            if not raw.endswith(b"/"):
                files[raw.decode()] = archive.read(info)
        return files


BASE = make_zip({"main.py": "print('hello')\n" * 20, "lib/a.py": b"\0\1\2" * 50, "lib/": "", "b": ""})


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.one_of(st.none(), st.integers(0, len(BASE))),
    tail=st.binary(max_size=30),
)
@example(changes=[(0, BASE[0])], cut=None, tail=b"")
def test_a_mutated_zip_is_taken_exactly_or_refused_whole(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int | None, tail: bytes
) -> None:
    content = bytearray(BASE)
    for position, value in changes:
        content[position] = value
    mutated = bytes(content[:cut]) + tail
    folder = tmp_path_factory.mktemp("mutated")

    with suppress(Rejected):
        unpack(folder, mutated)
        found = tree_of(folder / "tree")
        try:
            expected = as_zipfile_reads(mutated)
        except UnicodeDecodeError:  # then it was taken for cp949 or cp437
            assert sorted(found.values()) == sorted(as_any_name_reads(mutated))
        else:
            assert found == expected
    assert {path.name for path in folder.iterdir()} <= {"code.zip", "tree"}


def as_any_name_reads(content: bytes) -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [archive.read(info) for info in archive.infolist() if not info.is_dir()]
