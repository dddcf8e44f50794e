from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nanoagent.code.imports import HEAVY, STANDARD, imported
from support.checks.packs import packed

if TYPE_CHECKING:
    from pathlib import Path


def found_in(tree: Path, candidates: tuple[str, ...] = HEAVY) -> tuple[str, ...]:
    """Return the modules that are found in the pack of a folder."""
    return imported(packed(tree), candidates)


CANDIDATES = ("numpy", "pandas", "PIL", "requests")


def write(tree: Path, **files: str) -> Path:
    for name, text in files.items():
        path = tree / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tree


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import numpy", ("numpy",)),
        ("import numpy as np\nimport pandas as pd\n", ("numpy", "pandas")),
        ("import os, pandas, sys", ("pandas",)),
        ("import pandas as pd, numpy as np", ("numpy", "pandas")),
        ("from PIL import Image", ("PIL",)),
        ("from numpy.linalg import inv", ("numpy",)),
        ("import numpy.random", ("numpy",)),
        ("def f():\n    import requests  # only here\n", ("requests",)),
        ("try:\n\timport requests\nexcept ImportError: pass", ("requests",)),
        ("import requests\r\nimport numpy\r\n", ("numpy", "requests")),
        ("import  pandas\t", ("pandas",)),
        ("# import numpy", ()),
        ("x = 'import numpy'", ()),
        ("import numpy_financial, mypandas", ()),
        ("from .numpy import x\nfrom . import pandas", ()),
        ("from os import numpy", ()),
        ("import", ()),
        ("", ()),
    ],
)
def test_what_a_statement_imports_is_found(tmp_path, source, found):
    assert found_in(write(tmp_path, main=source), CANDIDATES) == found


def test_the_order_is_the_candidates(tmp_path):
    write(tmp_path, main="import requests", helper="import numpy")
    assert found_in(tmp_path, ("requests", "numpy")) == ("requests", "numpy")
    assert found_in(tmp_path, ("numpy", "requests")) == ("numpy", "requests")


def test_every_file_of_the_tree_counts(tmp_path):
    assert found_in(write(tmp_path, main="import app", app__deep__x="import pandas"), CANDIDATES) == (
        "pandas",
    )


def test_other_files_do_not_count(tmp_path):
    (tmp_path / "notes.txt").write_text("import numpy")
    (tmp_path / "main.py").write_bytes(b"\xff\xfe import\nimport pandas\n")
    assert found_in(tmp_path, CANDIDATES) == ("pandas",)


@pytest.mark.parametrize("own", ["numpy", "numpy__x", "vendor__numpy__x", "vendor__pytz"])
def test_a_tree_with_its_own_version_gets_none_ahead(tmp_path, own):
    write(tmp_path, main="import pandas, requests", **{own: ""})
    assert found_in(tmp_path, CANDIDATES) == ("requests",)


def test_leftovers_of_finder_are_no_version_of_its_own(tmp_path):
    write(tmp_path, main="import numpy")
    (tmp_path / "__MACOSX/numpy").mkdir(parents=True)
    (tmp_path / "._numpy").write_bytes(b"\0\5\x16\7")
    assert found_in(tmp_path, CANDIDATES) == ("numpy",)


def test_folders_and_links_are_not_read(tmp_path):
    write(tmp_path, main="import numpy")
    (tmp_path / "data.txt").write_text("import pandas")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "link.py").symlink_to("data.txt")
    assert found_in(tmp_path, CANDIDATES) == ("numpy",)


def test_a_damaged_pack_imports_nothing(tmp_path):
    pack = packed(write(tmp_path / "tree", main="import numpy"))
    pack.chmod(0o600)
    pack.write_bytes(pack.read_bytes()[:-1])
    assert imported(pack, CANDIDATES) == ()


def test_the_upper_files_are_looked_at_first_and_no_more_than_two_hundred(tmp_path):
    write(tmp_path, main="import numpy", **{f"lib__m{number:03}": "" for number in range(199)})
    write(tmp_path, lib__z="import pandas")
    assert found_in(tmp_path, CANDIDATES) == ("numpy",)


def test_no_more_than_a_mebibyte_is_read(tmp_path):
    write(
        tmp_path,
        main="import numpy\n" + "#" * (1024 * 1024) + "\nimport pandas\n",
        lib__x="import requests\n",
    )
    assert found_in(tmp_path, CANDIDATES) == ("numpy",)


def test_a_huge_tree_is_not_looked_through(tmp_path, monkeypatch):
    monkeypatch.setattr("nanoagent.code.imports._MAX_ENTRIES", 3)
    write(tmp_path, main="import numpy", a="", b="")
    assert found_in(tmp_path, CANDIDATES) == ("numpy",)
    write(tmp_path, c="")
    assert found_in(tmp_path, CANDIDATES) == ()


def test_a_tree_that_is_not_there_imports_nothing(tmp_path):
    assert imported(tmp_path / "nowhere", CANDIDATES) == ()


def test_the_candidates_are_the_standard_and_the_heavy_ones_unless_told(tmp_path):
    write(tmp_path, main="".join(f"import {name}\n" for name in (*HEAVY, *STANDARD)))
    assert imported(packed(tmp_path)) == (*STANDARD, *HEAVY)


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ("vendor__logging", ("logging", "uuid")),
        ("vendor__uuid__x", ("logging", "uuid")),
        ("logging", ("uuid",)),
        ("uuid__x", ("logging",)),
    ],
)
def test_a_standard_module_is_left_out_only_if_the_top_folder_has_its_name(tmp_path, own, found):
    write(tmp_path, main="import logging, uuid", **{own: ""})
    assert found_in(tmp_path, STANDARD) == found
