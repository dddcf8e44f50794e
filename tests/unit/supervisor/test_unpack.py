"""The supervisor makes the same tree from a pack that the zip describes, and damaged packs do no harm.

The C code is compiled with sanitizers: an access outside a buffer ends the process.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import struct
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoagent.code import archive
from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.pack import CHECKED_AT, FILE, FOLDER, FOOTER, LINK, MAGIC, NOWHERE, RECORD, VERSION
from support.checks import packs
from support.checks.zips import RawEntry, extra_field, raw_zip, symlink

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SOURCES: Final = Path(__file__).parents[3] / "src/nanosupervisor"
HARNESS: Final = Path(__file__).parents[2] / "support/programs/unpack_harness.c"
FLAGS: Final = ("-g", "-O1", "-std=gnu17", "-Wall", "-Wextra", "-Werror")
SANITIZERS: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
LIMITS: Final = ArchiveLimits(10**7, 10**7, 10**7, 10_000)
UNHURRIED: Final = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
NO_TIME: Final = 0


class Unpacker:
    """The supervisor's code in a process.

    Args:
        program: The compiled harness.
        folder: The folder for packs and trees.
    """

    def __init__(self, program: Path, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._trees = 0
        (folder / "outside").mkdir(parents=True)
        (folder / "outside/file").write_text("outside")

    def unpack(self, pack: Path, into: Path) -> tuple[int, int, int]:
        """Unpack a pack into an existing folder; return errno, files and bytes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{pack}\t{into}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the supervisor's code has ended with {self._process.wait()}"
        error, files, size = map(int, line.split())
        return error, files, size

    def attack(self, content: bytes) -> int:
        """Unpack a damaged pack, and check that it makes nothing outside of its folder; return errno."""
        self._trees += 1
        pack, into = self._folder / "pack", self._folder / f"tree-{self._trees}"
        pack.write_bytes(content)
        into.mkdir()
        error, _, _ = self.unpack(pack, into)
        assert {path.name for path in self._folder.iterdir()} == {"pack", "outside", into.name}
        assert [path.name for path in (self._folder / "outside").iterdir()] == ["file"]
        assert (self._folder / "outside/file").read_text() == "outside"
        shutil.rmtree(into)
        return error

    def close(self) -> None:
        """End the process, and check that it has not found an error."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait() == 0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    built = tmp_path_factory.mktemp("program") / "unpack"
    sources = [HARNESS, SOURCES / "unpack.c", SOURCES / "directory.c"]
    for sanitizers in (SANITIZERS, ()):  # a compiler need not come with their libraries
        command = [compiler, *FLAGS, *sanitizers, "-I", SOURCES, "-o", built, *sources]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return built
    raise AssertionError(done.stderr)


@pytest.fixture
def unpacker(program: Path, tmp_path: Path) -> Iterator[Unpacker]:
    unpacker = Unpacker(program, tmp_path / "attacked")
    yield unpacker
    unpacker.close()


# --- the tree of a zip

NAMES: Final = st.one_of(
    st.sampled_from(["a", "b", "A", "main.py", "...", "..a", "한", "é", "e\u0301", " ", "n" * 255]),
    st.text(
        st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\:"), min_size=1, max_size=8
    ),
).filter(lambda name: name not in {".", ".."} and len(name.encode()) <= 255)
PATHS: Final = st.lists(NAMES, min_size=1, max_size=4)
SECONDS: Final = st.integers(-(1 << 31), (1 << 31) - 1)
FILES: Final = st.tuples(st.binary(max_size=300), st.booleans(), SECONDS)
CONTENTS: Final = st.one_of(FILES, st.just("folder"), st.just("link"))


def entries_of(tree: Sequence[tuple[list[str], Any]]) -> dict[str, Any]:
    """Leave out paths that are taken, and those below files; add folders."""
    kept: dict[str, Any] = {}
    for parts, content in tree:
        above = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        path = "/".join(parts)
        if path in kept or any(kept.get(folder, "folder") != "folder" for folder in above):
            continue
        kept |= dict.fromkeys(above, "folder") | {path: content}
    return kept


def zip_of(entries: dict[str, Any]) -> bytes:
    """Return a zip with these entries. Links lead to the folder that has them."""

    def entry(path: str, content: Any) -> RawEntry:
        name = path.encode()
        if content == "folder":
            return RawEntry(name + b"/", b"", mode=stat.S_IFDIR | 0o700)
        if content == "link":
            return symlink(name, b".")
        data, is_executable, seconds = content
        time = extra_field(0x5455, b"\x01" + struct.pack("<i", seconds))
        mode = stat.S_IFREG | (0o755 if is_executable else 0o600)
        return RawEntry(name, data, mode=mode, extra=time, method=8 if len(data) % 2 else 0)

    # With a second name in the root, the root is the base.
    return raw_zip(RawEntry(b"-", b""), RawEntry(b"--", b""), *(entry(*item) for item in entries.items()))


def described(folder: Path) -> dict[str, Any]:
    """Return the entries of a folder, as `entries_of` does."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name, status = str(path.relative_to(folder)), path.lstat()
        if path.is_symlink():
            assert os.readlink(path) == "."  # noqa: PTH115 - pathlib would tidy it
            found[name] = "link"
        elif path.is_dir():
            assert stat.S_IMODE(status.st_mode) == 0o755
            found[name] = "folder"
        else:
            assert stat.S_IMODE(status.st_mode) in {0o644, 0o755}
            time_s, rest = divmod(status.st_mtime_ns, 10**9)
            assert rest == 0
            found[name] = (path.read_bytes(), stat.S_IMODE(status.st_mode) == 0o755, time_s)
    return found


@settings(UNHURRIED, max_examples=150)
@given(tree=st.lists(st.tuples(PATHS, CONTENTS), max_size=12))
def test_the_supervisor_makes_the_tree_that_the_zip_describes(
    unpacker: Unpacker, tmp_path: Path, tree: list[tuple[list[str], Any]]
) -> None:
    entries = entries_of(tree)
    (tmp_path / "code.zip").write_bytes(zip_of(entries))
    pack, into = tmp_path / "pack", tmp_path / "tree"
    pack.unlink(missing_ok=True)
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    info = archive.extract(tmp_path / "code.zip", pack, LIMITS)
    error, files, size = unpacker.unpack(pack, into)
    made = described(into)
    links = sum(content == "link" for content in made.values())
    assert (error, files, size) == (0, info.files + links, info.bytes)
    assert made.pop("-")[0] == made.pop("--")[0] == b""
    assert made == entries


def test_only_the_base_becomes_the_code(unpacker: Unpacker, tmp_path: Path) -> None:
    """The single top folder, without the leftovers beside it, before or after it."""
    (tmp_path / "code.zip").write_bytes(
        raw_zip(
            RawEntry(b"__MACOSX/._a", b"x"),
            RawEntry(b"app/main.py", b"1"),
            RawEntry(b"app/lib/a.py", b"22"),
            RawEntry(b".DS_Store", b"x"),
        )
    )
    archive.extract(tmp_path / "code.zip", tmp_path / "pack", LIMITS)
    for folder in ("tree", "reference"):
        (tmp_path / folder).mkdir()
    assert unpacker.unpack(tmp_path / "pack", tmp_path / "tree") == (0, 2, 3)
    packs.unpack(tmp_path / "pack", tmp_path / "reference", is_base=True)
    names = [sorted(path.name for path in (tmp_path / name).rglob("*")) for name in ("tree", "reference")]
    assert names == [["a.py", "lib", "main.py"]] * 2


def test_files_of_any_size_and_order_arrive(unpacker: Unpacker, tmp_path: Path) -> None:
    """Around the size of the window, and in another order than their data."""
    sizes = [0, 1, 65_535, 65_536, 65_537, 200_000, 3, 131_072, 0, 7]
    contents = {f"{number % 3}/{number}": os.urandom(size) for number, size in enumerate(sizes)}
    (tmp_path / "code.zip").write_bytes(raw_zip(*(RawEntry(n.encode(), d) for n, d in contents.items())))
    archive.extract(tmp_path / "code.zip", tmp_path / "pack", LIMITS)
    (tmp_path / "tree").mkdir()
    assert unpacker.unpack(tmp_path / "pack", tmp_path / "tree") == (0, len(sizes), sum(sizes))
    assert {name: (tmp_path / "tree" / name).read_bytes() for name in contents} == contents


# --- byte code beside code


def made_pack(*records: tuple[bytes, int, int], data: bytes = b"data", base: int = 0) -> bytes:
    """Return a pack with a valid checksum; a record has name, depth and kind, and all of the data."""
    rows = [(b"", 0, FOLDER), *records]
    index = b"".join(RECORD.pack(0, len(data), NO_TIME, NOWHERE, depth, kind, 0) for _, depth, kind in rows)
    names = b"".join(name + b"\0" for name, _, _ in rows)
    return sealed(data + index + names, len(rows), len(names), base)


def sealed(content: bytes, count: int, names_bytes: int, base: int = 0) -> bytes:
    """Add a footer with a valid checksum."""
    footer = FOOTER.pack(MAGIC, VERSION, 0, count, names_bytes, base, 0, 0, 0)[CHECKED_AT:]
    index = content[max(0, len(content) - count * RECORD.size - names_bytes) :]
    return content + struct.pack("<8sII", MAGIC, VERSION, zlib.crc32(footer, zlib.crc32(index))) + footer


CACHE: Final = ((b"__pycache__", 1, FOLDER), (b"m.pyc", 2, FILE))


@pytest.mark.parametrize("existing", ["nothing", "folder", "file", "link", "link to a folder", "dangling"])
def test_a_second_pack_adds_files_and_replaces_none(
    unpacker: Unpacker, tmp_path: Path, existing: str
) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    outside.mkdir()
    tree.mkdir()
    target = tree / "__pycache__/m.pyc"
    if existing == "folder":
        target.parent.mkdir()
    elif existing == "link to a folder":
        target.parent.symlink_to(outside)
    elif existing != "nothing":
        target.parent.mkdir()
        (outside / "file").write_text("own")
        if existing == "file":
            target.write_text("own")
        else:
            target.symlink_to(outside / ("file" if existing == "link" else "missing"))
    before = {path.name for path in outside.iterdir()}
    (tmp_path / "pack").write_bytes(made_pack(*CACHE))
    error, _, _ = unpacker.unpack(tmp_path / "pack", tree)
    if existing in {"nothing", "folder"}:
        assert (error, target.read_text()) == (0, "data")
    else:
        assert error in {errno.EEXIST, errno.ENOTDIR, errno.ELOOP}
        assert existing in {"link to a folder", "dangling"} or target.read_text() == "own"
    assert {path.name for path in outside.iterdir()} == before


# --- damaged packs

SMALL: Final = made_pack((b"d", 1, FOLDER), (b"f", 2, FILE), (b"l", 1, LINK), (b"g", 1, FILE))


def test_the_pack_that_is_damaged_below_is_valid(unpacker: Unpacker) -> None:
    assert unpacker.attack(SMALL) == 0


def test_a_pack_that_was_cut_off_anywhere_is_an_error(unpacker: Unpacker) -> None:
    for length in range(len(SMALL)):
        assert unpacker.attack(SMALL[:length]) == errno.EBADMSG


def test_a_flipped_bit_of_the_index_is_an_error(unpacker: Unpacker) -> None:
    for bit in range(len(b"data") * 8, len(SMALL) * 8):
        damaged = bytearray(SMALL)
        damaged[bit // 8] ^= 1 << bit % 8
        unused = FOOTER.size - 16 - 4  # no part of a pack is unchecked
        assert unused > 0
        assert unpacker.attack(bytes(damaged)) == errno.EBADMSG


def test_no_flipped_bit_does_harm_even_with_a_valid_checksum(unpacker: Unpacker) -> None:
    """As a hostile pack would have it. Some of them are valid packs of other trees."""
    names_bytes = 1 + 4 * 2
    index_at, names_at = 4, 4 + 5 * RECORD.size
    errors = set()
    for bit in range((names_at + names_bytes) * 8):
        damaged = bytearray(SMALL[: names_at + names_bytes])
        damaged[bit // 8] ^= 1 << bit % 8
        errors.add(unpacker.attack(sealed(bytes(damaged), 5, names_bytes)))
    assert index_at < names_at
    assert {0, errno.EBADMSG} <= errors <= {0, errno.EBADMSG, errno.EEXIST}


@pytest.mark.parametrize(
    "records",
    [
        [(b"..", 1, FILE)],
        [(b".", 1, FILE)],
        [(b"", 1, FILE)],
        [(b"a/b", 1, FILE)],
        [(b"/a", 1, FILE)],
        [(b"../outside/file", 1, FILE)],
        [(b"..", 1, FOLDER), (b"outside", 2, FOLDER), (b"file", 3, FILE)],
        [(b"n" * 256, 1, FILE)],
        [(b"n" * 10_000, 1, FOLDER)],
        [(b"a", 2, FILE)],
        [(b"a", 0xFFFF, FILE)],
        [(b"a", 1, FILE), (b"b", 2, FILE)],
        [(b"a", 1, LINK), (b"b", 2, FILE)],
        [(b"a", 1, FOLDER), (b"b", 3, FILE)],
        [(b"a", 1, 0)],
        [(b"a", 1, 255)],
        [(b"d", depth, FOLDER) for depth in range(1, 66)],
    ],
    ids=lambda records: str(records)[:40],
)
def test_a_record_that_is_no_entry_is_an_error(
    unpacker: Unpacker, records: list[tuple[bytes, int, int]]
) -> None:
    assert unpacker.attack(made_pack(*records)) == errno.EBADMSG


@pytest.mark.parametrize("target", [b"/etc/passwd", b"", b"a\0b", b"x" * 4096])
def test_a_link_with_such_a_target_is_an_error(unpacker: Unpacker, target: bytes) -> None:
    assert unpacker.attack(made_pack((b"l", 1, LINK), data=target)) == errno.EBADMSG


@pytest.mark.parametrize("name", [b"l", b"d"])
def test_no_file_is_written_through_a_link(unpacker: Unpacker, name: bytes) -> None:
    """The link leads to a folder outside, and a folder or file of the same name follows."""
    records = [(name, 1, LINK), (name, 1, FOLDER), (b"file", 2, FILE)]
    assert unpacker.attack(made_pack(*records, data=b"../outside")) in {errno.ENOTDIR, errno.ELOOP}
    assert (
        unpacker.attack(made_pack((b"l", 1, LINK), (b"l", 1, FILE), data=b"../outside/file")) == errno.EEXIST
    )


@pytest.mark.parametrize(
    ("at", "size"), [(0, 5), (4, 1), (5, 0), (1 << 63, 1), (1, (1 << 64) - 1), ((1 << 64) - 1, 2)]
)
@pytest.mark.parametrize("kind", [FILE, LINK])
def test_data_outside_of_the_pack_is_an_error(unpacker: Unpacker, at: int, size: int, kind: int) -> None:
    records = RECORD.pack(0, 0, 0, NOWHERE, 0, FOLDER, 0) + RECORD.pack(at, size, 0, NOWHERE, 1, kind, 0)
    assert unpacker.attack(sealed(b"data" + records + b"\0a\0", 2, 3)) == errno.EBADMSG


@pytest.mark.parametrize("time", [-(1 << 63), -1, (1 << 63) - 1])
def test_any_time_is_taken(unpacker: Unpacker, time: int) -> None:
    records = RECORD.pack(0, 0, 0, NOWHERE, 0, FOLDER, 0) + RECORD.pack(0, 4, time, NOWHERE, 1, FILE, 0)
    assert unpacker.attack(sealed(b"data" + records + b"\0a\0", 2, 3)) == 0


def test_random_packs_do_no_harm(unpacker: Unpacker) -> None:
    """Random values in all fields, with a valid checksum."""
    values = random.Random(14)  # noqa: S311 - not a secret
    names = [b"", b"a", b"b", b"..", b".", b"a/b", b"n" * 255, b"n" * 256, b"\xff"]
    numbers = [0, 1, 2, 3, 4, 5, 1 << 31, 1 << 63, (1 << 64) - 1]
    errors = set()
    for _ in range(2000):
        count = values.randrange(1, 8)
        rows = b"".join(
            RECORD.pack(
                *(values.choice(numbers) for _ in range(2)),
                values.choice([0, -1, 1 << 62]),
                values.randrange(1 << 32),
                values.choice([0, 1, 1, 2, 2, 3, 0xFFFF]),
                values.choice([0, FILE, FOLDER, LINK, 4]),
                values.choice([0, 1, 255]),
            )
            for _ in range(count)
        )
        text = b"".join(values.choice(names) + b"\0" for _ in range(count + values.choice([-1, 0, 0, 0, 1])))
        lengths = count + values.choice([0, 0, 0, 0, 1, 1 << 27]), len(text) + values.choice([0, 0, 0, -1, 1])
        base = values.choice([0, 0, 0, 1, count - 1, count])
        errors.add(unpacker.attack(sealed(b"data" + rows + text, lengths[0], max(0, lengths[1]), base)))
    assert {0, errno.EBADMSG} <= errors


def test_a_pack_that_is_no_file_is_an_error(unpacker: Unpacker, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    assert unpacker.unpack(tmp_path / "pipe", tmp_path / "tree")[0] == errno.EBADMSG  # and does not block
    assert unpacker.unpack(tmp_path / "tree", tmp_path / "tree")[0] == errno.EBADMSG
    assert unpacker.unpack(tmp_path / "link", tmp_path / "tree")[0] == errno.ELOOP
    assert unpacker.unpack(tmp_path / "missing", tmp_path / "tree")[0] == errno.ENOENT
