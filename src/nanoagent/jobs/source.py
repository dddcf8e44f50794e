"""Reads the unpacked code of a function."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from nanoagent.code import entry_file
from nanoagent.code.pack import FILE, FOLDER, Pack
from nanoagent.languages.recipes import RECIPES

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.code.code_cache import CodeTree
    from nanoagent.model.job import Runtime


@lru_cache(maxsize=1024)
def _has_entry(tree: Path, entry: str) -> bool:
    # The path of a tree contains the digest of its content, so the cached value stays correct.
    return entry_file.has_entry(Pack(tree), entry)


def has_entry(tree: CodeTree, runtime: Runtime) -> bool:
    """Whether a tree has an entry file. Reads the disk once for each tree.

    Raises:
        StorageError: The disk failed.
    """
    return _has_entry(tree.path, RECIPES[runtime].entry)


def files_of(tree: CodeTree) -> list[str]:
    """Return the paths of all files of the code, and of links to files. Reads the disk.

    Raises:
        StorageError: The disk failed.
    """
    pack = Pack(tree.path)
    paths: list[str] = []
    folders = [""]
    for number, depth, kind, name in pack.below_base():
        del folders[depth:]
        path = folders[-1] + name.decode()
        if kind == FOLDER:
            folders.append(f"{path}/")
        elif pack.kind(pack.target(number)) == FILE:
            paths.append(path)
    return paths
