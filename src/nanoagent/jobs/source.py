"""Reads the unpacked code of a function."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nanoagent.code import entry_file
from nanoagent.common.units import MIB
from nanoagent.languages.recipes import RECIPES

if TYPE_CHECKING:
    from nanoagent.code.code_cache import CodeTree
    from nanoagent.model.job import Runtime

_MAX_SOURCE_BYTES: Final = MIB


@lru_cache(maxsize=1024)
def _find_root(tree: Path, entry: str) -> Path | None:
    # The path of a tree contains the digest of its content, so the cached value stays correct.
    return entry_file.find_root(tree, entry)


def root_of(tree: CodeTree, runtime: Runtime) -> Path | None:
    """Return the folder of the tree that has the entry file, or None. Reads the disk once for each tree."""
    return _find_root(tree.path, RECIPES[runtime].entry)


def entry_source(tree: CodeTree, runtime: Runtime) -> str:
    """Return the first MiB of the entry file; empty if it cannot be read. Reads the disk."""
    root = root_of(tree, runtime)
    if root is None:
        return ""
    try:
        with (root / RECIPES[runtime].entry).open("rb") as file:
            return file.read(_MAX_SOURCE_BYTES).decode(errors="replace")
    except OSError:
        return ""


def files_below(folder: Path) -> list[str]:
    """Return the paths of all files below the folder, relative to it. Reads the disk."""
    found = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return [str(path.relative_to(folder)) for path in found]
