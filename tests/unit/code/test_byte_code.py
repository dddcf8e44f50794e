"""Which byte code of a compilation is accepted. The zip comes from a run that has read hostile sources."""

from __future__ import annotations

import os
import re
import stat
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from nanoagent.code import byte_code
from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.byte_code import MAGIC, SMALL_BYTES, SMALL_ENTRIES, Room
from nanoagent.code.byte_code_cache import ByteCodeCache
from nanoagent.code.disk_cache import DiskCache
from nanoagent.code.pack import MODE
from nanoagent.common.units import MIB
from nanoagent.model.errors import Rejected
from support.checks.packs import files, packed, unpack
from support.checks.zips import RawEntry, make_zip, raw_zip, symlink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMITS: Final = ArchiveLimits(zip_bytes=MIB, unpacked_bytes=MIB, file_bytes=MIB, entries=100)
ROOM: Final = Room(entries=20, bytes=MIB)
VALID: Final = MAGIC + b"\x03\0\0\0" + bytes(8) + b"code"
MODIFIED_NS: Final = 1_704_067_201_000_000_000
ONE: Final = "pack/__pycache__/one.cpython-313.pyc"
ROOT: Final = Path(__file__).parents[3]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A code tree with files, folders and links."""
    root = tmp_path / "code"
    for name in (
        "main.py",
        "two.py",
        "pack/__init__.py",
        "pack/one.py",
        "data/a.txt",
        "bare/x.txt",
        "shipped/s.py",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
        os.utime(path, ns=(MODIFIED_NS, MODIFIED_NS))
    (root / "shipped/__pycache__").mkdir()
    (root / "shipped/__pycache__/s.cpython-313.pyc").write_bytes(b"of the author")
    (root / "file").mkdir()
    (root / "file/f.py").write_text("")
    (root / "file/__pycache__").write_text("no folder")
    (root / "linked").symlink_to("pack")
    (root / "pack/link.py").symlink_to("one.py")
    (root / "away").mkdir()
    (root / "away/a.py").write_text("")
    (root / "away/__pycache__").symlink_to("../data")
    return root


def unpacked(
    tmp_path: Path, code: Path, content: bytes, room: Room = ROOM, limits: ArchiveLimits = LIMITS
) -> Path:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    (folder / "made.zip").write_bytes(content)
    byte_code.unpack(folder / "made.zip", folder / "pack", packed(code), room, limits)
    assert stat.S_IMODE((folder / "pack").stat().st_mode) == MODE
    unpack(folder / "pack", folder / "made")
    return folder / "made"


def facts_of(tree: Path) -> dict[Path, tuple[int, ...]]:
    found = ((path, path.lstat()) for path in tree.rglob("*"))
    return {path: (info.st_mode, info.st_size, info.st_mtime_ns, info.st_nlink) for path, info in found}


def stored(files: dict[str, bytes]) -> bytes:
    return make_zip(files, method=zipfile.ZIP_STORED)


def test_byte_code_of_the_codes_sources_is_accepted_with_their_times(tmp_path: Path, code: Path):
    made = unpacked(
        tmp_path,
        code,
        raw_zip(
            RawEntry(ONE.encode(), VALID, mode=0o100777),
            RawEntry(b"__pycache__/two.cpython-313.pyc", VALID),
        ),
    )
    files = {str(path.relative_to(made)): path.stat() for path in made.rglob("*") if path.is_file()}
    assert files.keys() == {ONE, "__pycache__/two.cpython-313.pyc"}
    assert {stat.S_IMODE(status.st_mode) for status in files.values()} == {0o444}
    assert {status.st_mtime_ns for status in files.values()} == {MODIFIED_NS}
    assert {status.st_nlink for status in files.values()} == {1}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("pack/one.py", "not in a folder __pycache__"),
        ("pack/new.txt", "not in a folder __pycache__"),
        ("new", "not in a folder __pycache__"),
        ("pack/one.pyc", "not in a folder __pycache__"),
        ("pack/__pycache__/one.pyc", "not a file"),
        ("pack/__pycache__/one.cpython-312.pyc", "not a file"),
        ("pack/__pycache__/one.cpython-313.opt-1.pyc", "not a file"),
        ("pack/__pycache__/one.py", "not a file"),
        ("pack/__pycache__/__pycache__/one.cpython-313.pyc", "not a file"),
        ("pack/__pycache__/deep/one.cpython-313.pyc", "not a file"),
        ("pack/__pycache__/.cpython-313.pyc", "no source"),
        ("pack/__pycache__/three.cpython-313.pyc", "no source"),
        ("pack/__pycache__/link.cpython-313.pyc", "no source"),
        ("data/__pycache__/a.cpython-313.pyc", "no source"),
        ("data/__pycache__/a.txt.cpython-313.pyc", "no source"),
        ("linked/__pycache__/one.cpython-313.pyc", "no such folder"),
        ("new/__pycache__/one.cpython-313.pyc", "no such folder"),
        ("main.py/__pycache__/one.cpython-313.pyc", "no such folder"),
        ("shipped/__pycache__/s.cpython-313.pyc", "already has"),
        ("file/__pycache__/f.cpython-313.pyc", "a file of this name"),
        ("away/__pycache__/a.cpython-313.pyc", "a file of this name"),
        ("empty/", "no such folder"),
        ("pack/", "empty folder"),
        ("pack/__pycache__/", "empty folder"),
        ("../code/pack/__pycache__/one.cpython-313.pyc", ""),
        ("/work/pack/__pycache__/one.cpython-313.pyc", ""),
        ("__pycache__/t\x01wo.cpython-313.pyc", ""),
    ],
)
def test_a_file_that_is_no_byte_code_of_a_source_is_refused(name: str, rule: str, tmp_path: Path, code: Path):
    content = b"" if name.endswith("/") else VALID
    before = facts_of(code)
    with pytest.raises(Rejected, match=rule or "."):
        unpacked(tmp_path, code, stored({name: content}))
    assert facts_of(code) == before


def test_one_bad_file_makes_all_others_refused(tmp_path: Path, code: Path):
    with pytest.raises(Rejected):
        unpacked(tmp_path, code, stored({ONE: VALID, "pack/__pycache__/three.cpython-313.pyc": VALID}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        VALID[:16],
        b"\0" + VALID[1:],
        (3531).to_bytes(2, "little") + VALID[2:],  # CPython 3.12
        MAGIC + bytes(4) + VALID[8:],  # valid by time
        MAGIC + b"\x01\0\0\0" + VALID[8:],  # never checked
        MAGIC + b"\x07\0\0\0" + VALID[8:],
        b"print('hello')  # a source",
    ],
)
def test_a_file_without_the_header_of_checked_byte_code_is_refused(
    content: bytes, tmp_path: Path, code: Path
):
    with pytest.raises(Rejected, match="byte code refused"):
        unpacked(tmp_path, code, stored({ONE: content}))


@pytest.mark.parametrize("target", [b"one.py", b"../one.py", b"/etc/passwd", b"../../../../x"])
def test_a_link_is_refused(target: bytes, tmp_path: Path, code: Path):
    for name in (ONE.encode(), b"pack/__pycache__", b"pack"):
        with pytest.raises(Rejected):
            unpacked(tmp_path, code, raw_zip(symlink(name, target)))
        with pytest.raises(Rejected):
            unpacked(
                tmp_path,
                code,
                raw_zip(RawEntry(b"__pycache__/two.cpython-313.pyc", VALID), symlink(name, target)),
            )


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_a_special_file_is_refused(kind: int, tmp_path: Path, code: Path):
    with pytest.raises(Rejected):
        unpacked(tmp_path, code, raw_zip(RawEntry(ONE.encode(), VALID, mode=kind | 0o644)))


def test_two_files_of_one_name_are_refused(tmp_path: Path, code: Path):
    other = VALID + b"other"
    with pytest.raises(Rejected):
        unpacked(tmp_path, code, raw_zip(RawEntry(ONE.encode(), VALID), RawEntry(ONE.encode(), other)))


def test_zips_with_false_headers_are_refused(tmp_path: Path, code: Path):
    entry = RawEntry(ONE.encode(), VALID)
    inner = stored({ONE: VALID})
    for content in (
        b"",
        b"no zip",
        stored({}),
        stored({"inner.zip": inner}),
        raw_zip(replace(entry, local_name=b"pack/__pycache__/two.cpython-313.pyc")),
        raw_zip(replace(entry, file_size=1)),
        raw_zip(replace(entry, crc=1)),
        raw_zip(replace(entry, flags=1)),
        raw_zip(entry, RawEntry(b"__pycache__/two.cpython-313.pyc", VALID, offset=0, is_hidden=True)),
    ):
        with pytest.raises(Rejected):
            unpacked(tmp_path, code, content)


def test_byte_code_without_room_is_refused(tmp_path: Path, code: Path):
    two = {ONE: VALID, "pack/__pycache__/__init__.cpython-313.pyc": VALID}
    for room in (Room(2, MIB), Room(0, MIB), Room(20, 2 * 4096 - 1), Room(20, len(VALID)), Room(20, 0)):
        with pytest.raises(Rejected):
            unpacked(tmp_path, code, stored(two), room)
    assert unpacked(tmp_path, code, stored(two), Room(3, 2 * 4096)).is_dir()


def test_a_bomb_is_refused(tmp_path: Path, code: Path):
    bomb = make_zip({ONE: VALID + bytes(64 * MIB)})
    with pytest.raises(Rejected):
        unpacked(tmp_path, code, bomb)
    many = stored({f"pack/__pycache__/{number}.cpython-313.pyc": VALID for number in range(LIMITS.entries)})
    with pytest.raises(Rejected):
        unpacked(tmp_path, code, many)


# --- room


def test_sources_without_byte_code_are_counted(code: Path):
    survey = byte_code.survey(packed(code))
    assert survey.entries == sum(1 for _ in code.rglob("*"))
    assert survey.sources == 5  # two, pack/__init__, pack/one, file/f, away/a; not main.py and shipped/s.py
    assert survey.least_bytes <= survey.most_bytes


def test_small_code_stays_small_and_other_code_within_the_limits():
    small = byte_code.Survey(entries=SMALL_ENTRIES - 3, least_bytes=4096, most_bytes=8192, sources=1)
    assert byte_code.room_beside(small, LIMITS) == Room(3, SMALL_BYTES - 8192)
    for large in (replace(small, entries=SMALL_ENTRIES + 1), replace(small, least_bytes=SMALL_BYTES + 1)):
        assert byte_code.room_beside(large, LIMITS) == Room(100 - large.entries, MIB - 8192)


def test_small_code_is_what_the_supervisor_calls_small():
    source = (ROOT / "src/nanosupervisor/sandbox_mounts.c").read_text()
    assert re.findall(r"#define SMALL_FILES (\d+)u", source) == [str(SMALL_ENTRIES + 1)]  # with the root
    assert re.findall(r"#define SMALL_BYTES \((\d+)u << 10\)", source) == [str(SMALL_BYTES >> 10)]


# --- the cache


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[DiskCache]:
    cache = DiskCache(tmp_path / "cache", MIB, has_packs=True)
    await cache.start()
    yield cache
    await cache.close()


def cache_of(disk: DiskCache, tmp_path: Path, image_id: str = "sha256:1") -> ByteCodeCache:
    return ByteCodeCache(disk, tmp_path, image_id, LIMITS)


async def test_byte_code_is_kept_by_code_and_image(disk: DiskCache, tmp_path: Path, code: Path):
    cache = cache_of(disk, tmp_path)
    (tmp_path / "made.zip").write_bytes(stored({ONE: VALID}))
    assert await cache.pin("digest") is None
    await cache.add("digest", packed(code), ROOM, tmp_path / "made.zip")
    pin = await cache.pin("digest")
    assert pin is not None
    async with cache.releasing(pin):
        assert files(pin.content)[ONE] == VALID
    assert await cache.pin("other") is None
    assert await cache_of(disk, tmp_path, "sha256:2").pin("digest") is None


async def test_refused_byte_code_is_not_kept(disk: DiskCache, tmp_path: Path, code: Path):
    cache = cache_of(disk, tmp_path)
    (tmp_path / "made.zip").write_bytes(stored({"main.py": VALID}))
    with pytest.raises(Rejected):
        await cache.add("digest", packed(code), ROOM, tmp_path / "made.zip")
    assert await cache.pin("digest") is None
    assert disk.digests() == set()


async def test_of_two_workers_the_first_keeps_its_byte_code(disk: DiskCache, tmp_path: Path, code: Path):
    second = DiskCache(tmp_path / "cache", MIB, has_packs=True)
    await second.start()
    for cache, content in ((disk, VALID), (second, VALID + b"later")):
        (tmp_path / "made.zip").write_bytes(stored({ONE: content}))
        await cache_of(cache, tmp_path).add("digest", packed(code), ROOM, tmp_path / "made.zip")
        pin = await cache_of(cache, tmp_path).pin("digest")
        assert pin is not None
        assert files(pin.content)[ONE] == VALID
        pin.release()
    await second.close()


async def test_byte_code_in_use_is_not_evicted_and_counts_only_itself(
    disk: DiskCache, tmp_path: Path, code: Path
):
    cache = cache_of(disk, tmp_path)
    (tmp_path / "made.zip").write_bytes(stored({ONE: VALID}))
    await cache.add("digest", packed(code), ROOM, tmp_path / "made.zip")
    pin = await cache.pin("digest")
    assert pin is not None
    assert pin.meta().disk_bytes == 4096
    assert pin.meta().memory_bytes == 4 * 4096  # two folders, their root, and one file
    await disk.evict(missing_bytes=MIB)
    assert files(pin.content)[ONE] == VALID
    pin.release()
    await disk.evict(missing_bytes=MIB)
    assert await cache.pin("digest") is None
