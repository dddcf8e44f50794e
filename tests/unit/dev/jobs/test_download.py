"""Names of files that are downloaded come from programs of others."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from nanoagent.dev.jobs.download import Folder, NotWritten

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, name: str, content: bytes = b"new", *, replace: bool = False) -> None:
    with closing(Folder(folder, replace=replace)) as opened, opened.new_file(name) as file:
        file.write(content)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_files_get_their_names_and_folders(tmp_path: Path):
    write(tmp_path / "out", "a.txt", b"a")
    write(tmp_path / "out", "sub/deep/한글.txt", b"b")

    assert everything(tmp_path / "out") == ["a.txt", "sub", "sub/deep", "sub/deep/한글.txt"]
    assert (tmp_path / "out/sub/deep/한글.txt").read_bytes() == b"b"


@pytest.mark.parametrize(
    "name",
    [
        *("../out-of-it", "/etc/passwd", "a/../../b", "a//b", "", ".", "..", "a/", "a/./b"),
        *("a\0b", "a\nb", "\x1b[31m", "a\u202eb", "\udcff", "x" * 256, "한" * 100),
    ],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str):
    with pytest.raises(NotWritten):
        write(tmp_path / "out", name, replace=True)

    assert everything(tmp_path) == ["out"]


@pytest.mark.parametrize("replace", [False, True])
def test_no_symbolic_link_is_followed(tmp_path: Path, *, replace: bool):
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.mkdir()
    (victim / "file").write_bytes(b"old")
    out.mkdir()
    (out / "folder").symlink_to(victim)
    (out / "file").symlink_to(victim / "file")
    (out / "dangling").symlink_to(victim / "new")

    with pytest.raises(NotWritten, match="symbolic link"):
        write(out, "folder/file", replace=replace)
    for name in ("file", "dangling"):
        if replace:
            write(out, name, replace=True)
            assert not (out / name).is_symlink()
        else:
            with pytest.raises(NotWritten, match="exists"):
                write(out, name)

    assert everything(victim) == ["file"]
    assert (victim / "file").read_bytes() == b"old"


def test_an_existing_file_is_kept(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"old")

    with pytest.raises(NotWritten, match="--force"):
        write(tmp_path, "a")
    assert (tmp_path / "a").read_bytes() == b"old"

    write(tmp_path, "a", replace=True)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert everything(tmp_path) == ["a"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path):
    def write_slowly() -> None:
        with closing(Folder(tmp_path, replace=False)) as opened, opened.new_file("a") as file:
            file.write(b"new")
            (tmp_path / "a").write_bytes(b"of another program")

    with pytest.raises(NotWritten, match="--force"):
        write_slowly()

    assert (tmp_path / "a").read_bytes() == b"of another program"
    assert everything(tmp_path) == ["a"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path):
    (tmp_path / "a").mkdir()
    for replace in (False, True):
        with pytest.raises(NotWritten):
            write(tmp_path, "a", replace=replace)
    (tmp_path / "b").write_bytes(b"")
    with pytest.raises(NotWritten, match="file"):
        write(tmp_path, "b/c")
    assert everything(tmp_path) == ["a", "b"]


def test_nothing_is_left_of_a_download_that_failed(tmp_path: Path):
    def fail() -> None:
        with closing(Folder(tmp_path, replace=False)) as opened, opened.new_file("sub/a") as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert everything(tmp_path) == ["sub"]


def test_a_file_is_not_executable_and_not_visible_before_its_end(tmp_path: Path):
    with closing(Folder(tmp_path, replace=False)) as opened, opened.new_file("run.sh") as file:
        file.write(b"#!/bin/sh\n")
        assert not (tmp_path / "run.sh").exists()
    assert not os.access(tmp_path / "run.sh", os.X_OK)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotWritten, match="file"):
        Folder(tmp_path / "file", replace=False)
