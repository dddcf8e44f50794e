"""Guesses from the text of Python code which modules it imports.

An interpreter that has imported pandas in advance starts a run 200 ms sooner, but it holds 60 MB more. So a
container imports a module in advance only if it is bound to code that seems to import it. A wrong guess costs
memory or time. It never changes the result of a program.
"""

from __future__ import annotations

import math
import re
from heapq import nsmallest
from typing import TYPE_CHECKING, Final

from nanoagent.code.entry_file import is_leftover
from nanoagent.code.pack import FILE, FOLDER, Pack
from nanoagent.common.units import MIB
from nanoagent.model.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

# Common libraries whose import takes longer than the start of an interpreter.
HEAVY: Final = ("numpy", "pandas", "PIL", "requests", "httpx", "boto3", "asyncio")

# Modules of the standard library whose import takes milliseconds, and the AI client, whose import takes
# longer than the start of an interpreter. The zygote has imported smaller ones for every function
# (`PRELOADED` in src/nanosupervisor/zygote.py).
STANDARD: Final = (
    *("ai_client", "base64", "csv", "dataclasses", "decimal", "hashlib", "hmac", "inspect", "logging"),
    *("pathlib", "pickle", "shutil", "statistics", "string", "subprocess", "tempfile", "typing", "uuid"),
)

# Library → the other libraries that it imports, without the standard library.
_DEPENDENCIES: Final = {
    "pandas": ("numpy", "dateutil", "pytz", "six"),
    "PIL": ("defusedxml",),
    "requests": ("urllib3", "certifi", "idna", "charset_normalizer", "chardet"),
    "httpx": ("httpcore", "anyio", "h11", "sniffio", "certifi", "idna", "click", "rich", "pygments"),
    "boto3": ("botocore", "s3transfer", "jmespath", "urllib3", "dateutil", "six"),
}

_MAX_ENTRIES: Final = 20_000
_MAX_FILES: Final = 200
_MAX_BYTES: Final = MIB
# Finds `import a.b as c, d` and `from a.b import c`. A relative import concerns the code itself.
_STATEMENT: Final = re.compile(
    rb"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import\b|import[ \t]+([^#;\r\n]+))", re.MULTILINE
)


def imported(path: Path, candidates: Collection[str] = (*STANDARD, *HEAVY)) -> tuple[str, ...]:
    """Guess which modules a code tree imports. Blocking.

    Args:
        path: A pack. At most 200 Python files and 1 MiB of text are read. If it cannot be read, the result is
            empty.
        candidates: Top-level names of modules to look for.

    Returns:
        The candidates that some file of the tree imports, in the order of `candidates`. A candidate is left
        out if the tree has a file or folder with its name, or with the name of one of its dependencies: the
        tree may contain another version of it. A module of the standard library is left out only if the file
        or folder is in the top folder: packages have modules with such names, and import the standard ones.
        The result is empty for a tree with more than 20,000 entries.
    """
    found: set[str] = set()
    try:
        tree = Pack(path)
        listed = _list(tree)
        if listed is None:
            return ()
        top_names, own_names, sources = listed
        # Files near the root come first: most of them are the author's own.
        nearest = [number for _, _, number in nsmallest(_MAX_FILES, sources)]
        for source in tree.read(nearest, _MAX_BYTES):
            found.update(_names_in(source))
    except (OSError, StorageError):
        return ()
    return tuple(
        name
        for name in candidates
        if name in found
        and (top_names if name in STANDARD else own_names).isdisjoint((name, *_DEPENDENCIES.get(name, ())))
    )


def _list(tree: Pack) -> tuple[set[str], set[str], list[tuple[int, bytes, int]]] | None:
    """Return the names of files and folders up to their first dot, and depth, path and number of sources.

    The first names are those in the top folder, the second are all names.

    Leftovers are left out, and so are links to sources: they have the text of other files. None if there are
    too many files and folders.
    """
    names: set[bytes] = set()
    top_names: set[str] = set()
    sources: list[tuple[int, bytes, int]] = []
    folders = [b""]  # the paths of the folders above; NUL instead of a slash sorts like a list of names
    count = 0
    ignored_below: float = math.inf
    for number, depth, kind, name in tree.below_base():
        if depth > ignored_below:
            continue
        ignored_below = math.inf
        if is_leftover(name.decode()):
            ignored_below = depth
            continue
        count += 1
        names.add(stem := name.partition(b".")[0])
        if depth == 1:
            top_names.add(stem.decode())
        del folders[depth:]
        if kind == FOLDER:
            folders.append(folders[-1] + name + b"\0")
        elif kind == FILE and name.endswith(b".py") and name != b".py":
            sources.append((depth, folders[-1] + name, number))
    if count > _MAX_ENTRIES:
        return None
    return top_names, {name.decode() for name in names}, sources


def _names_in(source: bytes) -> Iterator[str]:
    """Return the top-level names of the modules that a source file imports."""
    for match in _STATEMENT.finditer(source):
        from_module, modules = match.groups()
        for module in [from_module] if from_module else modules.split(b","):
            words = module.split()
            if words:
                yield words[0].partition(b".")[0].decode(errors="replace")
