"""Symbolic links of a zip: those that stay inside the code are kept, all others refuse the zip."""

from __future__ import annotations

import os
import shutil
import stat
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nanoagent.code import refusals
from nanoagent.code.archive import ArchiveLimits, TreeInfo
from nanoagent.common.units import MIB
from nanoagent.model.errors import Rejected
from support.checks.archives import check_links, check_refusal, tree_of
from support.checks.packs import extract
from support.checks.zips import RawEntry, raw_zip, symlink

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nanoagent.code.refusals import Rule

LIMITS: Final = ArchiveLimits(MIB, MIB, MIB, 1000)


def link(name: str, target: str, **fields: Any) -> RawEntry:
    return replace(symlink(name.encode(), target.encode()), **fields)


def file(name: str, content: bytes = b"x") -> RawEntry:
    return RawEntry(name.encode(), content)


def unpack(folder: Path, *entries: RawEntry, limits: ArchiveLimits = LIMITS) -> TreeInfo:
    (folder / "code.zip").write_bytes(raw_zip(*entries))
    return extract(folder / "code.zip", folder / "tree", limits)


# --- those that are kept

KEPT: Final[dict[str, tuple[list[RawEntry], str]]] = {
    "a file beside it": ([file("libx.so.1"), link("libx.so", "libx.so.1")], "libx.so"),
    "a chain": ([file("l.so.1.2"), link("l.so.1", "l.so.1.2"), link("l.so", "l.so.1")], "l.so"),
    "before its target": ([link("libx.so", "libx.so.1"), file("libx.so.1")], "libx.so"),
    "node_modules/.bin": (
        [file("index.js"), file("node_modules/tsc/bin/tsc"), link("node_modules/.bin/tsc", "../tsc/bin/tsc")],
        "node_modules/.bin/tsc",
    ),
    "pnpm": (
        [
            file("index.js"),
            file("node_modules/.pnpm/a@1/node_modules/a/index.js"),
            file("node_modules/.pnpm/b@1/node_modules/b/index.js"),
            link("node_modules/a", ".pnpm/a@1/node_modules/a"),
            link("node_modules/.pnpm/a@1/node_modules/b", "../../b@1/node_modules/b"),
        ],
        "node_modules/.pnpm/a@1/node_modules/b/index.js",
    ),
    "a workspace that links to itself": (
        [file("index.js"), link("node_modules/me", "..")],
        "node_modules/me/index.js",
    ),
    "a folder by another link": (
        [file("a/real/f"), link("a/one", "real"), file("main.py"), link("two", "a/one")],
        "two/f",
    ),
    "up from where a link led": (
        [
            file("deep/er/f"),
            file("deep/g"),
            link("short", "deep/er"),
            link("up", "short/../g"),
            file("main.py"),
        ],
        "up",
    ),
    "dots and slashes": ([file("main.py"), link("l", ".//./main.py")], "l"),
    "a folder with a slash": ([file("d/f"), file("main.py"), link("l", "d/")], "l/f"),
    "inside a single top folder": ([file("app/main.py"), link("app/lib/l", "../main.py")], "app/lib/l"),
    "a file that a leftover lies beside": (
        [file("app/main.py"), file("__MACOSX/app/._main.py"), link("app/l", "main.py")],
        "app/l",
    ),
    "twice and equal": ([file("f"), link("l", "f"), link("l", "f")], "l"),
    "40 links": ([file("l0"), *(link(f"l{n}", f"l{n - 1}") for n in range(1, 41))], "l40"),
    "deflated": ([file("f"), link("l", "f", method=8)], "l"),
}


@pytest.mark.parametrize(("entries", "path"), KEPT.values(), ids=KEPT)
def test_a_link_that_stays_inside_the_code_is_kept(
    tmp_path: Path, entries: list[RawEntry], path: str
) -> None:
    unpack(tmp_path, *entries)

    assert (tmp_path / "tree" / path).read_bytes() == b"x"
    check_links(tmp_path / "tree")


def test_a_link_counts_as_no_file_and_keeps_its_text_and_its_time(tmp_path: Path) -> None:
    info = unpack(tmp_path, file("f", b"abc"), link("l", ".//f", dos_time=0x5A21_0000))

    assert info == TreeInfo(files=1, bytes=3)
    assert os.readlink(tmp_path / "tree/l") == ".//f"  # noqa: PTH115 - pathlib would tidy it
    assert os.lstat(tmp_path / "tree/l").st_mtime == 1_735_689_600  # 2025-01-01 UTC


# --- those that are not

REFUSED: Final[dict[str, tuple[list[RawEntry], Rule]]] = {
    "absolute": ([link("l", "/etc/passwd")], refusals.LINK_ABSOLUTE),
    "absolute, into the tree of runs": (
        [file("main.py"), link("l", "/work/main.py")],
        refusals.LINK_ABSOLUTE,
    ),
    "above the tree": ([file("main.py"), link("l", "../main.py")], refusals.LINK_OUTSIDE),
    "out and in again": (
        [file("d/f"), file("main.py"), link("d/l", "../../tree/main.py")],
        refusals.LINK_OUTSIDE,
    ),
    "dangling": ([file("main.py"), link("l", "nothing")], refusals.LINK_DANGLING),
    "dangling in another case": ([file("Main.py"), link("l", "main.py")], refusals.LINK_DANGLING),
    "below a file": ([file("main.py"), link("l", "main.py/x")], refusals.LINK_DANGLING),
    "a file with a slash": ([file("main.py"), link("l", "main.py/")], refusals.LINK_DANGLING),
    "back from a file": ([file("main.py"), link("l", "main.py/../main.py")], refusals.LINK_DANGLING),
    "to itself": ([link("l", "l")], refusals.LINK_LOOP),
    "to another that leads back": ([link("a", "b"), link("b", "a")], refusals.LINK_LOOP),
    "through itself": ([file("d/f"), link("d/l", "l/f")], refusals.LINK_LOOP),
    "41 links": ([file("l0"), *(link(f"l{n}", f"l{n - 1}") for n in range(1, 42))], refusals.LINK_LOOP),
    "a long chain, from its end": (
        [*(link(f"l{n}", f"l{n - 1}") for n in range(900, 0, -1)), file("l0")],
        refusals.LINK_LOOP,
    ),
    "many links by way of few": (
        [
            file("d/f"),
            link("d/a", "."),
            link("d/b", "a/a/a/a/a/a/a"),
            link("d/c", "b/b/b/b/b/b"),
            file("main.py"),
        ],
        refusals.LINK_LOOP,
    ),
    "out by way of another": (
        [
            file("a/b/f"),
            link("a/here", "b"),
            file("main.py"),
            link("a/b/up", ".."),
            link("l", "a/here/../../../etc"),
        ],
        refusals.LINK_OUTSIDE,
    ),
    "out because a link is shorter than it looks": (
        # By its text d/e/f/../../.. is d; but f leads to the top, and what is above that is outside.
        [file("main.py"), file("d/e/x"), link("d/e/f", "../.."), link("l", "d/e/f/../..")],
        refusals.LINK_OUTSIDE,
    ),
    "out of the single top folder": (
        [file("app/main.py"), file("__MACOSX/secret"), link("app/l", "../__MACOSX/secret")],
        refusals.LINK_OUTSIDE,
    ),
    "back into the single top folder": (
        [file("app/main.py"), link("app/l", "../app/main.py")],
        refusals.LINK_OUTSIDE,
    ),
    "in a leftover folder": (
        [file("app/main.py"), link("__MACOSX/l", "../app/main.py")],
        refusals.LINK_OUTSIDE,
    ),
    "an entry below it": ([file("d/f"), link("l", "d"), file("l/g")], refusals.FILE_AND_FOLDER),
    "an entry below it, before": ([file("l/g"), file("d/f"), link("l", "d")], refusals.FILE_AND_FOLDER),
    "a folder in its place later": (
        [file("d/f"), link("l", "d"), RawEntry(b"l/", b"")],
        refusals.FILE_AND_FOLDER,
    ),
    "a folder in its place before": (
        [RawEntry(b"l/", b""), file("d/f"), link("l", "d")],
        refusals.FILE_AND_FOLDER,
    ),
    "a file in its place": ([file("f"), link("l", "f"), file("l", b"f")], refusals.TWICE),
    "another link in its place": ([file("f"), file("g"), link("l", "f"), link("l", "g")], refusals.TWICE),
    "by another spelling of its place": ([file("f"), link("d/l", "../f"), file("d//l")], refusals.TWICE),
    "no target": ([link("l", "")], refusals.LINK_TEXT),
    "NUL in it": ([file("f"), link("l", "f\0/../../etc")], refusals.LINK_TEXT),
    "a target of 2 kB": ([file("f"), link("l", "./" * 1000 + "f")], refusals.LINK_TEXT),
    "a target of 300 parts": ([file("f"), link("l", "./" * 300 + "f")], refusals.LINK_TEXT),
    "no UTF-8": ([replace(link("l", ""), content=b"\xff\xfe")], refusals.LINK_TEXT),
    "a name with a slash": ([link("l/", "f"), file("f")], refusals.LINK_TEXT),
    "another size than it says": ([file("f"), link("l", "f", method=8, file_size=9)], refusals.WRONG_SIZE),
    "another checksum": ([file("f"), link("l", "f", crc=1)], refusals.WRONG_CHECKSUM),
    "backslashes in the target are no folders": ([file("d/f"), link("l", "d\\f")], refusals.LINK_DANGLING),
}


@pytest.mark.parametrize(("entries", "rule"), REFUSED.values(), ids=REFUSED)
def test_a_bad_link_is_refused_before_anything_is_written(
    tmp_path: Path, entries: list[RawEntry], rule: Rule
) -> None:
    with pytest.raises(Rejected) as caught:
        unpack(tmp_path, *entries)

    check_refusal(caught.value)
    assert caught.value.hint == rule.hint
    assert rule.message.en.rpartition("}")[2].partition(":")[0] in str(caught.value.message)
    assert not (tmp_path / "tree").exists()


def test_links_that_cost_much_to_follow_are_followed_once(tmp_path: Path) -> None:
    """Each of a thousand goes up and down as often as may be, by way of all those before it."""
    steps = "d/../" * 60
    entries = [file("f"), file("d/f"), *(link(f"l{n}", f"{steps}f") for n in range(900))]

    unpack(tmp_path, *entries)

    check_links(tmp_path / "tree")


# --- as the kernel has it

NAMES: Final = ("a", "b", "c")
PARTS: Final = st.sampled_from((*NAMES, "..", ".", ""))
TARGETS: Final = (
    st.lists(PARTS, min_size=1, max_size=5).map("/".join).filter(lambda text: text[:1] not in {"/", ""})
)
PLACES: Final = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
TREES: Final = st.dictionaries(PLACES, st.none() | TARGETS, min_size=1, max_size=7)
"""By its place: None for a file, or where a link leads."""


def made_on_disk(folder: Path, tree: Mapping[str, str | None]) -> bool:
    """Make the tree as the kernel has it; whether it can be had, and every link stays inside."""
    for path, target in tree.items():
        place = folder / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            assert place.parent.resolve().is_relative_to(folder)
            if any(parent.is_symlink() for parent in place.parents):
                return False
            place.symlink_to(target) if target is not None else place.write_bytes(b"x")
        except (OSError, AssertionError):
            return False
    top = list(folder.iterdir())
    base = top[0] if len(top) == 1 and top[0].is_dir() and not top[0].is_symlink() else folder
    return all(stays_inside(folder / path, base) for path, target in tree.items() if target is not None)


def stays_inside(link: Path, base: Path) -> bool:
    """Whether the kernel gets from the link to something without leaving the base, step by step."""
    at, target = link.parent, os.readlink(link)  # noqa: PTH115 - likewise
    try:
        link.stat()  # ELOOP, ENOENT, ENOTDIR
        for part in target.split("/"):
            at = (at / part).resolve(strict=True) if part != ".." else at.resolve().parent
            if not at.is_relative_to(base):
                return False
    except (OSError, RuntimeError):
        return False
    return True


def test_links_are_followed_as_the_kernel_follows_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    seen: Counter[bool] = Counter()

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(tree=TREES)
    @example(tree={"a": "b/../c", "b": "c", "c": None})
    @example(tree={"a/b": "../a/c", "a/c": None})
    def attempt(tree: dict[str, str | None]) -> None:
        seen[compare(tmp_path_factory.mktemp("links"), tree)] += 1

    attempt()
    assert min(seen[True], seen[False]) > 20, "hardly anything was taken, or refused"


def compare(folder: Path, tree: Mapping[str, str | None]) -> bool:
    """Unpack a tree, and see that just what the kernel follows is taken; whether it was."""
    try:
        real = folder / "a-name-that-no-target-has"
        real.mkdir()
        expected = made_on_disk(real.resolve(), tree)
        entries = [file(path) if target is None else link(path, target) for path, target in tree.items()]
        try:
            unpack(folder, *entries)
        except Rejected as refusal:
            check_refusal(refusal)
            assert not expected, f"{refusal}: the kernel follows it"  # noqa: PT017 - whether it raises is compared
        else:
            assert expected, "the kernel does not follow it, or it leads out"
            assert tree_of(folder / "tree") == tree_of_real(real)
        return expected
    finally:
        shutil.rmtree(folder)


def tree_of_real(real: Path) -> tuple[dict[str, bytes | str], int]:
    for path in real.rglob("*"):
        if stat.S_ISREG(path.lstat().st_mode):
            path.chmod(0o444)
    return tree_of(real)
