"""Which folder of a tree is run, and what an author is told when the entry file is not there."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

import pytest

from nanoagent.code import archive
from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.entry_file import has_entry, is_leftover, missing_entry, missing_entry_in
from nanoagent.code.pack import Pack
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import Runtime
from support.checks.archives import check_refusal
from support.checks.packs import packed
from support.checks.zips import RawEntry, raw_zip, symlink

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def make_tree(root: Path, *paths: str) -> Path:
    for path in paths:
        if path.endswith("/"):
            (root / path).mkdir(parents=True)
            continue
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("")
    return root


def unpacked(folder: Path, files: Mapping[str, str], *links: RawEntry) -> Pack:
    """Unpack a zip with these files and links."""
    (folder / "code.zip").write_bytes(raw_zip(*(RawEntry(name.encode(), b"") for name in files), *links))
    archive.extract(folder / "code.zip", folder / "pack", ArchiveLimits(1 << 20, 1 << 20, 1 << 20, 5000))
    return Pack(folder / "pack")


LEFT_OVER = (
    "__MACOSX/app/._main.py",
    "._app",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "Desktop.ini",
    "thumbs.db",
)


@pytest.mark.parametrize(
    ("paths", "root"),
    [
        (["main.py"], "."),
        (["main.py", "lib/main.py"], "."),
        (["app/main.py", "app/lib/a.py"], "app"),
        (["app/main.py", *LEFT_OVER], "app"),
        (["main.py", *LEFT_OVER], "."),
        (["app/main.py", "app/.DS_Store"], "app"),
        (["__MACOSX/main.py"], None),
        (["__MACOSX/main.py", ".DS_Store"], None),
        (["app/main.py", "README.md"], None),
        (["app/main.py", ".env"], None),
        (["app/main.py", "lib/a.py"], None),
        (["app/src/main.py"], None),
        (["main.py/main.py"], "main.py"),
        (["index.js"], None),
        (["other.py"], None),
    ],
)
def test_the_root_is_the_folder_of_the_entry_file(tmp_path: Path, paths: list[str], root: str | None) -> None:
    tree = unpacked(tmp_path, dict.fromkeys(paths, ""))

    assert has_entry(tree, "main.py") == (root is not None)
    assert root is None or tree.base_name == root.lstrip(".")


def test_a_link_is_not_the_single_top_folder(tmp_path: Path):
    tree = make_tree(tmp_path / "tree", "__MACOSX/main.py")
    (tree / "app").symlink_to("__MACOSX")
    pack = Pack(packed(tree))

    assert not has_entry(pack, "main.py")
    assert "found there: 'app'" in str(missing_entry(pack, Runtime.PYTHON))


def test_a_link_may_be_the_entry_file(tmp_path: Path) -> None:
    tree = unpacked(tmp_path, {"src/app.py": ""}, symlink(b"main.py", b"src/app.py"))

    assert has_entry(tree, "main.py")
    assert not has_entry(tree, "src")


def test_a_link_to_a_folder_may_have_the_entry_file(tmp_path: Path) -> None:
    """As for the kernel. The refusal of a zip names the folder."""
    tree = unpacked(tmp_path, {"src/main.py": "", "a.txt": ""}, symlink(b"by-link", b"src"))

    assert not has_entry(tree, "main.py")
    assert tree.file_in(tree.base, "by-link") is None
    (link,) = [number for number in tree.children(0) if tree.names[number] == b"by-link"]
    assert tree.file_in(link, "main.py") == tree.file_in(tree.target(link), "main.py") is not None


@pytest.mark.parametrize("name", ["main.py", ".env", "MACOSX", "_main.py", "my.desktop.ini", ".git"])
def test_files_that_authors_make_are_no_leftovers(name: str) -> None:
    assert not is_leftover(name)


ADVICE = [
    (Runtime.PYTHON, ["index.js", "package.json"], "'index.js', 'package.json'", "runtime nodejs"),
    (Runtime.PYTHON, ["main.cpp"], "'main.cpp'", "runtime cpp"),
    (Runtime.PYTHON, ["go.mod", "main.go"], "'main.go'", "runtime go"),
    (Runtime.NODEJS, ["main.py"], "'main.py'", "runtime python"),
    (Runtime.CPP, ["main.py"], "'main.py'", "runtime python"),
    (Runtime.GO, ["index.js"], "'index.js'", "runtime nodejs"),
    (Runtime.PYTHON, ["app.py"], "'app.py'", "Rename 'app.py' to main.py"),
    (Runtime.PYTHON, ["Main.py"], "'Main.py'", "Rename 'Main.py' to main.py"),
    (Runtime.PYTHON, ["main.py.txt"], "'main.py.txt'", "hides the ending .txt"),
    (Runtime.NODEJS, ["index.mjs"], "'index.mjs'", '"type": "module"'),
    (Runtime.NODEJS, ["index.cjs"], "'index.cjs'", "Rename 'index.cjs' to index.js"),
    (Runtime.NODEJS, ["index.ts", "tsconfig.json"], "'index.ts'", "JavaScript output of tsc"),
    (Runtime.NODEJS, ["app.js", "index.ts"], "'app.js', 'index.ts'", "JavaScript output of tsc"),
    (Runtime.CPP, ["main.cc"], "'main.cc'", "Rename 'main.cc' to main.cpp"),
    (Runtime.CPP, ["main.cxx", "a.cpp"], "'a.cpp', 'main.cxx'", "Rename 'main.cxx' to main.cpp"),
    (Runtime.CPP, ["main.c"], "'main.c'", "Rename 'main.c' to main.cpp"),
    (Runtime.GO, ["go.mod", "server.go"], "'server.go'", "Rename 'server.go' to main.go"),
    (Runtime.PYTHON, ["index.ts"], "'index.ts'", "for runtime nodejs the entry file is index.js"),
    (Runtime.PYTHON, ["src/main.py", "README.md"], "'README.md', 'src'", "make the zip inside that folder"),
    (Runtime.PYTHON, ["app/src/main.py"], "in 'app'; found there: 'src'", "is in the folder 'src'"),
    (Runtime.PYTHON, ["app/index.js"], "in 'app'; found there: 'index.js'", "runtime nodejs"),
    (Runtime.PYTHON, ["code.zip"], "'code.zip'", "upload 'code.zip' itself"),
    (
        Runtime.PYTHON,
        ["data.csv", ".DS_Store", "._main.py"],
        "found there: 'data.csv'",
        "Put main.py at the root",
    ),
    (Runtime.PYTHON, ["__MACOSX/"], "which is empty", "Put main.py at the root"),
    (Runtime.PYTHON, [f"{n}.txt" for n in range(8)], "'4.txt' and 3 more", "Put main.py at the root"),
    (Runtime.PYTHON, ["a{0}b\n.txt"], r"'a{0}b\n.txt'", "Put main.py at the root"),
]


@pytest.mark.parametrize(("runtime", "paths", "found", "advice"), ADVICE)
def test_a_missing_entry_file_is_told_with_what_is_there_and_what_to_do(
    tmp_path: Path, runtime: Runtime, paths: list[str], found: str, advice: str
) -> None:
    if any("\n" in path for path in paths):  # no zip with such a name is unpacked
        tree = Pack(packed(make_tree(tmp_path / "tree", *paths)))
    else:
        tree = unpacked(tmp_path, dict.fromkeys(paths, ""))

    refusal = missing_entry(tree, runtime)

    check_refusal(refusal)
    assert f"has no {RECIPES[runtime].entry} in" in str(refusal.message)
    assert found in str(refusal.message)
    assert advice in str(refusal.hint)
    assert refusal.hint is not None
    assert refusal.hint.ko != refusal.hint.en


def test_a_crowded_folder_is_not_read_to_its_end(tmp_path: Path) -> None:
    tree = unpacked(tmp_path, {f"{n:05}": "" for n in range(3000)})

    assert "and 1995 more" in str(missing_entry(tree, Runtime.PYTHON).message)


@pytest.mark.parametrize("backslashes", [False, True])
@pytest.mark.parametrize(("runtime", "paths"), [case[:2] for case in ADVICE if "\n" not in case[1][0]])
def test_a_zip_shows_the_same_top_before_and_after_it_is_unpacked(
    tmp_path: Path,
    runtime: Runtime,
    paths: list[str],
    backslashes: bool,  # noqa: FBT001 - pytest's way
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for path in paths:
            target.writestr(path.replace("/", "\\") if backslashes else path, "")
    _, tree = archive.check(buffer, ArchiveLimits(1 << 20, 1 << 20, 1 << 20, 100))

    before, after = (
        missing_entry_in(tree.top_folder(runtime)),
        missing_entry(unpacked(tmp_path, dict.fromkeys(paths, "")), runtime),
    )

    assert (before.message, before.hint) == (after.message, after.hint)
    for recipe in RECIPES.values():
        assert tree.has_entry(recipe.entry) == has_entry(Pack(tmp_path / "pack"), recipe.entry)
