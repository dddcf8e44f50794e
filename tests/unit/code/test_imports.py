from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nanoagent.code.imports import HEAVY, imported

if TYPE_CHECKING:
    from pathlib import Path

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
    assert imported(write(tmp_path, main=source), CANDIDATES) == found


def test_the_order_is_the_candidates(tmp_path):
    write(tmp_path, main="import requests", helper="import numpy")
    assert imported(tmp_path, ("requests", "numpy")) == ("requests", "numpy")
    assert imported(tmp_path, ("numpy", "requests")) == ("numpy", "requests")


def test_every_file_of_the_tree_counts(tmp_path):
    assert imported(write(tmp_path, main="import app", app__deep__x="import pandas"), CANDIDATES) == (
        "pandas",
    )


def test_other_files_do_not_count(tmp_path):
    (tmp_path / "notes.txt").write_text("import numpy")
    (tmp_path / "main.py").write_bytes(b"\xff\xfe import\nimport pandas\n")
    assert imported(tmp_path, CANDIDATES) == ("pandas",)


@pytest.mark.parametrize("own", ["numpy", "numpy__x", "vendor__numpy__x", "vendor__pytz"])
def test_a_tree_with_its_own_version_gets_none_ahead(tmp_path, own):
    write(tmp_path, main="import pandas, requests", **{own: ""})
    assert imported(tmp_path, CANDIDATES) == ("requests",)


def test_leftovers_of_finder_are_no_version_of_its_own(tmp_path):
    write(tmp_path, main="import numpy")
    (tmp_path / "__MACOSX/numpy").mkdir(parents=True)
    (tmp_path / "._numpy").write_bytes(b"\0\5\x16\7")
    assert imported(tmp_path, CANDIDATES) == ("numpy",)


def test_what_cannot_be_read_is_passed_over(tmp_path):
    write(tmp_path, main="import numpy")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "dangling.py").symlink_to("nowhere")
    outside = tmp_path.with_name(tmp_path.name + "-outside.py")
    outside.write_text("import pandas")
    (tmp_path / "link.py").symlink_to(outside)
    os.mkfifo(tmp_path / "pipe.py")
    assert imported(tmp_path, CANDIDATES) == ("numpy",)


def test_the_upper_files_are_looked_at_first_and_no_more_than_two_hundred(tmp_path):
    write(tmp_path, main="import numpy", **{f"lib__m{number:03}": "" for number in range(199)})
    write(tmp_path, lib__z="import pandas")
    assert imported(tmp_path, CANDIDATES) == ("numpy",)


def test_no_more_than_a_mebibyte_is_read(tmp_path):
    write(
        tmp_path,
        main="import numpy\n" + "#" * (1024 * 1024) + "\nimport pandas\n",
        lib__x="import requests\n",
    )
    assert imported(tmp_path, CANDIDATES) == ("numpy",)


def test_a_huge_tree_is_not_looked_through(tmp_path, monkeypatch):
    monkeypatch.setattr("nanoagent.code.imports._MAX_ENTRIES", 3)
    write(tmp_path, main="import numpy", a="", b="")
    assert imported(tmp_path, CANDIDATES) == ("numpy",)
    write(tmp_path, c="")
    assert imported(tmp_path, CANDIDATES) == ()


def test_a_tree_that_is_not_there_imports_nothing(tmp_path):
    assert imported(tmp_path / "nowhere", CANDIDATES) == ()


def test_the_candidates_are_the_heavy_ones_unless_told(tmp_path):
    write(tmp_path, main="".join(f"import {name}\n" for name in HEAVY))
    assert imported(tmp_path) == HEAVY
