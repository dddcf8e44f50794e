"""tests/unit mirrors src/nanoagent, and the index of tests/support is complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

import support

ROOT: Final = Path(__file__).parents[3]
PACKAGES: Final = {path.parent.name for path in (ROOT / "src/nanoagent").glob("*/__init__.py")}
HELPERS: Final = sorted(
    path.relative_to(ROOT / "tests/support")
    for path in (ROOT / "tests/support").rglob("*.py")
    if path.name != "__init__.py"
)


def test_each_folder_of_unit_tests_is_named_after_a_package():
    folders = {path.parent.name for path in (ROOT / "tests/unit").glob("*/test_*.py")}
    assert folders - PACKAGES == {"project", "scripts"}
    assert PACKAGES - folders == set()


@pytest.mark.parametrize("helper", HELPERS, ids=str)
def test_each_helper_is_in_the_index(helper: Path):
    index = support.__doc__ or ""
    folders = dict(re.findall(r"^`(\w+)`:(.*?)(?=^`|\Z)", index, re.MULTILINE | re.DOTALL))
    assert re.search(rf"\b{helper.stem}\b", folders[helper.parent.name])
