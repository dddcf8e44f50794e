"""The number of threads that unpack an archive changes neither its tree nor its refusal."""

from __future__ import annotations

import os
import shutil
import threading
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoagent.code import unpacking
from nanoagent.code.archive import ArchiveLimits, TreeInfo
from nanoagent.model.errors import Rejected
from support.checks.packs import extract

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = ArchiveLimits(10**7, 10**7, 10**7, 1000)
FEW_EXAMPLES = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def zipped(path: Path, contents: list[bytes], damaged: set[int] = frozenset()) -> Path:  # type: ignore[assignment]
    """Write a zip of stored files in folders; flip a bit in the data of the damaged ones."""
    with zipfile.ZipFile(path, "w") as file:
        for number, content in enumerate(contents):
            file.writestr(f"folder-{number % 3}/file-{number}", content)
        places = {number: info.header_offset for number, info in enumerate(file.infolist())}
        names = [len(info.filename) for info in file.infolist()]
    data = bytearray(path.read_bytes())
    for number in damaged:
        data[places[number] + 30 + names[number]] ^= 1  # 30: the length of a local header without the name
    path.write_bytes(data)
    return path


def unpacked(path: Path, into: Path, threads: int) -> Any:
    """Return the tree of an archive, or its refusal."""
    shutil.rmtree(into, ignore_errors=True)
    try:
        info = extract(path, into, LIMITS, threads=threads)
    except Rejected as exc:
        return str(exc.message)
    files = {
        file.relative_to(into): (file.read_bytes(), file.stat().st_mode, file.stat().st_mtime_ns)
        for file in into.rglob("*")
        if file.is_file()
    }
    return info, files


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Make pieces so small that every thread gets some."""
    monkeypatch.setattr(unpacking, "_PIECE_FILES", 2)


@FEW_EXAMPLES
@given(
    contents=st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=40),
    data=st.data(),
    threads=st.integers(2, 8),
)
def test_the_result_and_the_refusal_do_not_depend_on_the_number_of_threads(tmp_path, contents, data, threads):
    damaged = data.draw(st.sets(st.integers(0, len(contents) - 1), max_size=5))
    path = zipped(tmp_path / "code.zip", contents, damaged)
    alone = unpacked(path, tmp_path / "tree", 1)
    assert unpacked(path, tmp_path / "tree", threads) == alone
    if damaged:
        assert f"file-{min(damaged)}" in alone
    else:
        info, files = alone
        assert info == TreeInfo(len(contents), sum(map(len, contents)))
        assert sorted(content for content, _, _ in files.values()) == sorted(contents)


def test_the_first_refusal_is_reported_even_if_a_later_one_is_found_earlier(tmp_path, monkeypatch):
    """The thread with the first damaged file waits until another thread has refused the second one."""
    path = zipped(tmp_path / "code.zip", [b"x"] * 8, {0, 7})
    later_is_refused = threading.Event()
    small_data = unpacking._small_data

    def slow_data(entry: Any, *others: Any) -> Any:
        if entry.name.endswith("file-0"):
            assert later_is_refused.wait(60)
        try:
            return small_data(entry, *others)
        except Rejected:
            later_is_refused.set()
            raise

    monkeypatch.setattr(unpacking, "_small_data", slow_data)
    assert "file-0" in unpacked(path, tmp_path / "tree", 4)


def test_an_error_of_the_disk_is_reported_and_no_thread_is_left(tmp_path, monkeypatch):
    path = zipped(tmp_path / "code.zip", [b"x"] * 40)
    before = threading.active_count()

    def failing(*_: object) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr(unpacking, "_write_at", failing)
    with pytest.raises(OSError, match="full"):
        extract(path, tmp_path / "tree", LIMITS, threads=4)
    assert threading.active_count() == before


@pytest.mark.parametrize(("content", "is_parallel"), [(b"small", False), (os.urandom(100_000), True)])
def test_only_large_files_are_written_by_several_threads(tmp_path, monkeypatch, content, is_parallel):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    path = zipped(tmp_path / "code.zip", [content] * 12)
    writers: set[int] = set()
    write_piece = unpacking._write_piece
    all_at_work = threading.Barrier(3 if is_parallel else 1)

    def noted(*arguments: Any) -> None:
        if threading.get_ident() not in writers:
            writers.add(threading.get_ident())
            all_at_work.wait(60)
        write_piece(*arguments)

    monkeypatch.setattr(unpacking, "_write_piece", noted)
    extract(path, tmp_path / "tree", LIMITS)
    assert len(writers) == (3 if is_parallel else 1)
