"""Reads docs/functions.md, for tests that compare it with the images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).parents[3] / "docs/functions.md"
_COLUMNS: Final = ("python", "nodejs", "cpp", "go")


def documented_version(runtime: str) -> str:
    """Return the version in the page's table, such as 3.13."""
    (row,) = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| version |")
    ]
    cell = row.strip("|").split("|")[1 + _COLUMNS.index(runtime)]
    (version,) = re.findall(r"\d+(?:\.\d+)?$", cell.strip())
    return str(version)
