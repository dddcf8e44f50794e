"""Reads from a code tree what the explanation of a failure needs. Nothing is read for a run that succeeds."""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from nanoagent.code.native_files import native_file
from nanoagent.code.pack import FILE, FOLDER, Pack
from nanoagent.languages.explain.facts import NativeFile, TreeFacts
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.errors import StorageError
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MOST_FILES: Final = 20_000
_MOST_NATIVE: Final = 200
_SOURCE_BYTES: Final = 64 * 1024
_LIST_BYTES: Final = 64 * 1024  # of requirements.txt or package.json
_LISTS: Final = {Runtime.PYTHON: "requirements.txt", Runtime.NODEJS: "package.json"}
# PEP 508: a name, then extras, versions and markers.
_REQUIREMENT: Final = re.compile(r"^[ \t]*([A-Za-z0-9][A-Za-z0-9._-]{0,100})", re.MULTILINE)
_SEPARATORS: Final = re.compile(r"[-_.]+")
_LIBRARY: Final = re.compile(rb"\.(?:so(?:\.[0-9.]+)?|node|pyd|dll|dylib)$")
_EXECUTABLE: Final = 6  # the field of a record


@lru_cache(maxsize=32)
def tree_facts(path: Path, runtime: Runtime) -> TreeFacts:
    """Return the facts about a code tree; those of an empty tree if it cannot be read. Reads the disk.

    Args:
        path: A pack. Its path has the digest of its content, so a kept value stays correct.
        runtime: The language of the job.
    """
    try:
        pack = Pack(path)
        paths = dict(islice(_paths(pack), _MOST_FILES))
        with path.open("rb", buffering=0) as file:
            return _facts(pack, paths, runtime, file.fileno())
    except (OSError, StorageError):
        return TreeFacts()


def _paths(pack: Pack) -> Iterator[tuple[str, int]]:
    """Yield the path of each file below the base, and the number of its record. Links to files count."""
    folders = [""]
    for number, depth, kind, name in pack.below_base():
        del folders[depth:]
        path = folders[-1] + name.decode()
        target = pack.target(number)
        if kind == FOLDER:
            folders.append(f"{path}/")
        elif pack.kind(target) == FILE:
            yield path, target


def _facts(pack: Pack, paths: dict[str, int], runtime: Runtime, handle: int) -> TreeFacts:
    def text(path: str, most: int) -> str:
        number = paths.get(path)
        return "" if number is None else _read(pack, number, handle, most, 0).decode(errors="replace")

    listed = text(_LISTS.get(runtime, ""), _LIST_BYTES)
    package = _json(listed) if runtime is Runtime.NODEJS else {}
    return TreeFacts(
        files=frozenset(paths),
        source=text(RECIPES[runtime].entry, _SOURCE_BYTES),
        requirements=_dependencies(package) if package else _requirements(listed),
        is_module=package.get("type") == "module",
        native=dict(_native(pack, paths, handle)),
        executable=frozenset(path for path, number in paths.items() if pack.records[number][_EXECUTABLE]),
    )


def _read(pack: Pack, number: int, handle: int, size: int, at: int) -> bytes:
    """Read a part of a file in the pack; fewer bytes at its end."""
    start, length = pack.records[number][:2]
    return os.pread(handle, max(0, min(size, length - at)), start + at) if at < length else b""


def _native(pack: Pack, paths: dict[str, int], handle: int) -> Iterator[tuple[str, NativeFile]]:
    """Yield the libraries of the code, and the programs that are marked as executable."""
    candidates = (
        (path, number)
        for path, number in paths.items()
        if _LIBRARY.search(path.encode()) or pack.records[number][_EXECUTABLE]
    )
    for path, number in islice(candidates, _MOST_NATIVE):
        found = native_file(partial(_read, pack, number, handle))
        if found is not None:
            yield path, found


def _requirements(text: str) -> frozenset[str]:
    return frozenset(_SEPARATORS.sub("-", name.lower()) for name in _REQUIREMENT.findall(text))


def _json(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _dependencies(package: dict[str, object]) -> frozenset[str]:
    """Return the packages that a package.json lists."""
    groups = (package.get(name) for name in ("dependencies", "optionalDependencies", "devDependencies"))
    return frozenset(str(name).lower() for group in groups if isinstance(group, dict) for name in group)
