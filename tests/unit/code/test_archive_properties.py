"""Any tree comes out of any writer's archive as it was; any bytes at all give one tree or one refusal."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tracemalloc
import zipfile
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoagent.code import archive
from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.pack import DamagedPack, Pack
from nanoagent.model.errors import Rejected
from support.checks.archives import KIB, SMALL, tree_of, tried
from support.checks.raw_archives import archive_of
from support.checks.zips import RawEntry, raw_zip

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from hypothesis.strategies import SearchStrategy

ROOMY: Final = ArchiveLimits(10**7, 10**7, 10**7, 1000)
# No deadline, because the machine is shared.
UNHURRIED: Final = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

COUNTS: Counter[str] = Counter()
"""Examples tried, by test; hypothesis has no word for it."""


# --- trees


COMPONENTS: Final = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co"), exclude_characters="/\\:"),
    min_size=1,
    max_size=12,
).filter(lambda part: part not in {".", ".."} and len(part.encode()) <= 255)
PATHS: Final = st.lists(COMPONENTS, min_size=1, max_size=4).map(tuple)


def without_collisions(files: Mapping[tuple[str, ...], tuple[bytes, bool]]) -> dict[str, tuple[bytes, bool]]:
    """Those files that are not where another has a folder."""
    folders = {path[:depth] for path in files for depth in range(1, len(path))}
    return {"/".join(path): file for path, file in files.items() if path not in folders}


TREES: Final[SearchStrategy[dict[str, tuple[bytes, bool]]]] = st.dictionaries(
    PATHS, st.tuples(st.binary(max_size=3000), st.booleans()), min_size=1, max_size=8
).map(without_collisions)
"""Files by their paths: the contents, and whether they are executable."""


class Unseekable(io.BytesIO):
    """As a pipe: what was written cannot be corrected any more, so sizes come behind the data."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


def zipped(
    tree: Mapping[str, tuple[bytes, bool]],
    method: int,
    *,
    force_zip64: bool = False,
    buffer: io.BytesIO | None = None,
) -> bytes:
    buffer = buffer if buffer is not None else io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, (content, is_executable) in tree.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.external_attr = (0o100755 if is_executable else 0o100644) << 16
            with archive.open(info, "w", force_zip64=force_zip64) as file:
                file.write(content)
    return buffer.getvalue()


WRITERS: Final[dict[str, Callable[[Mapping[str, tuple[bytes, bool]]], bytes]]] = {
    "stored": lambda tree: zipped(tree, zipfile.ZIP_STORED),
    "deflated": lambda tree: zipped(tree, zipfile.ZIP_DEFLATED),
    "zip64": lambda tree: zipped(tree, zipfile.ZIP_DEFLATED, force_zip64=True),
    "streamed": lambda tree: zipped(tree, zipfile.ZIP_DEFLATED, buffer=Unseekable()),
    "streamed, stored": lambda tree: zipped(tree, zipfile.ZIP_STORED, buffer=Unseekable()),
    "streamed, zip64": lambda tree: zipped(tree, zipfile.ZIP_DEFLATED, force_zip64=True, buffer=Unseekable()),
}


def check_tree(folder: Path, content: bytes, tree: Mapping[str, tuple[bytes, bool]]) -> None:
    """Taken, and just that: names, contents and the executable bit."""
    assert tried(folder, content, ROOMY) is not None
    files, _ = tree_of(folder / "tree")
    assert files == {name: file for name, (file, _) in tree.items()}
    for name, (_, is_executable) in tree.items():
        assert os.access(folder / "tree" / name, os.X_OK) == is_executable


def test_any_tree_comes_out_of_any_writers_archive_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, record_property: Callable[[str, Any], None]
) -> None:
    @settings(UNHURRIED, max_examples=60)
    @given(tree=TREES)
    def attempt(tree: dict[str, tuple[bytes, bool]]) -> None:
        for writer in WRITERS.values():
            check_tree(tmp_path_factory.mktemp("round"), writer(tree), tree)
            COUNTS["trees"] += 1

    attempt()
    record_property("tried", ["archives", COUNTS["trees"]])


@pytest.mark.skipif(not shutil.which("zip"), reason="the command zip is not installed here")
@pytest.mark.parametrize("arguments", [[], ["-0"], ["-fz"], ["-"], ["-fd"]], ids=str)
def test_any_tree_comes_out_of_what_info_zip_makes_of_it(
    tmp_path_factory: pytest.TempPathFactory,
    arguments: list[str],
    record_property: Callable[[str, Any], None],
) -> None:
    """`-fz` forces zip64, `-fd` data descriptors, and `-` writes to a pipe."""
    counter = f"zip {arguments}"

    @settings(UNHURRIED, max_examples=12)
    # zip(1) takes a file or folder of that name for its standard input.
    @given(tree=TREES.filter(lambda tree: not any(name.split("/")[0] == "-" for name in tree)))
    def attempt(tree: dict[str, tuple[bytes, bool]]) -> None:
        folder = tmp_path_factory.mktemp("info-zip")
        written = folder / "written"
        for name, (content, is_executable) in tree.items():
            path = written / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o755 if is_executable else 0o644)
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        options = [argument for argument in arguments if argument != "-"]
        command = ["zip", "-q", "-r", *options, "-", "."] if "-" in arguments else []
        command = command or ["zip", "-q", "-r", *options, "../made.zip", "."]
        ended = subprocess.run(command, cwd=written, env=environment, check=True, capture_output=True)
        made = folder / "made.zip"
        content = ended.stdout if "-" in arguments else made.read_bytes()
        check_tree(tmp_path_factory.mktemp("unpacked"), content, tree)
        COUNTS[counter] += 1

    attempt()
    record_property("tried", ["archives", COUNTS[counter]])


# --- any archive


def mutations(base: bytes) -> SearchStrategy[bytes]:
    """The archive with some bytes overwritten, a piece copied over another, cut and appended to."""
    places = st.integers(0, len(base) - 1)

    def changed(parts: tuple[list[tuple[int, int]], tuple[int, int, int], int | None, bytes]) -> bytes:
        overwritten, (source, target, length), cut, tail = parts
        content = bytearray(base)
        content[target : target + length] = content[source : source + length]
        for place, value in overwritten:
            content[place % len(content)] = value
        return bytes(content[:cut]) + tail

    return st.tuples(
        st.lists(
            st.tuples(places, st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]) | st.integers(0, 255)),
            max_size=6,
        ),
        st.tuples(places, places, st.integers(0, 60)),
        st.none() | places,
        st.binary(max_size=30),
    ).map(changed)


RICH: Final = zipped(
    {"main.py": (b"print('hello')\n" * 20, True), "한글/a": (b"\0\1\2" * 50, False), "b": (b"", False)}, 8
)


@pytest.mark.parametrize(
    ("kind", "archives", "most"),
    [
        ("built", st.binary(max_size=400).map(archive_of), 700),
        ("mutated", mutations(RICH), 500),
        ("streamed and mutated", mutations(WRITERS["streamed, zip64"]({"a/b": (b"x" * 500, False)})), 300),
        ("anything", st.binary(max_size=300), 100),
    ],
    ids=["built", "mutated", "streamed", "anything"],
)
def test_any_archive_gives_its_tree_or_one_refusal_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    archives: SearchStrategy[bytes],
    most: int,
    record_property: Callable[[str, Any], None],
) -> None:
    taken: Counter[bool] = Counter()

    @settings(UNHURRIED, max_examples=most)
    @given(content=archives)
    def attempt(content: bytes) -> None:
        folder = tmp_path_factory.mktemp("any")
        try:
            taken[tried(folder, content) is not None] += 1
        finally:
            shutil.rmtree(folder)

    attempt()
    record_property("tried", ["archives", sum(taken.values())])
    assert taken[False], "nothing was refused"
    assert taken[True] or kind == "anything", "nothing was taken"


def test_the_pack_of_a_refused_archive_is_private_and_incomplete(
    tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    """The data of an entry is wrong, and the data before it has been written."""
    content = raw_zip(RawEntry(b"a", b"1"), RawEntry(b"b", b"2", crc=1), RawEntry(b"c", b"3"))
    (tmp_path / "code.zip").write_bytes(content)

    with pytest.raises(Rejected):
        archive.extract(tmp_path / "code.zip", tmp_path / "pack", SMALL)

    assert (tmp_path / "pack").stat().st_mode & 0o777 == 0o600
    with pytest.raises(DamagedPack):
        Pack(tmp_path / "pack")
    record_property("tried", ["archives", 1])


def test_memory_is_bounded_by_the_archive_and_its_entries_whatever_is_in_it(
    tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    path = tmp_path / "code.zip"

    @settings(UNHURRIED, max_examples=150)
    @given(data=st.binary(max_size=400))
    def attempt(data: bytes) -> None:
        content = archive_of(data)
        path.write_bytes(content)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with suppress(Rejected):
            archive.extract(path, tmp_path / "pack", SMALL)
        peak = tracemalloc.get_traced_memory()[1] - before
        (tmp_path / "pack").unlink(missing_ok=True)
        # A chunk is 64 KiB, packed and unpacked and once more on the way; the search for the end takes two.
        assert peak <= 2 * len(content) + 8 * 64 * KIB + SMALL.entries * 8 * KIB
        COUNTS["memory"] += 1

    tracemalloc.start()
    try:
        attempt()
    finally:
        tracemalloc.stop()
    record_property("tried", ["archives", COUNTS["memory"]])
