"""Which libraries a function's code imports, told from its text: a hint for what to have ready, no more.

An interpreter that has imported pandas ahead of time starts a run of it 200 ms sooner, but holds 60 MB that a
function without pandas would pay for. So a container gets them when it is bound to code that asks for them.
A wrong guess costs memory or time; it never changes what a program does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nanoagent.code.entry_file import is_leftover
from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

# Those that take longer to import than an interpreter takes to start, of what functions use often.
HEAVY: Final = ("numpy", "pandas", "PIL", "requests", "httpx", "boto3", "asyncio")

# What else, from outside the standard library, is imported with them.
_COMPANY: Final = {
    "pandas": ("numpy", "dateutil", "pytz", "six"),
    "PIL": ("defusedxml",),
    "requests": ("urllib3", "certifi", "idna", "charset_normalizer", "chardet"),
    "httpx": ("httpcore", "anyio", "h11", "sniffio", "certifi", "idna", "click", "rich", "pygments"),
    "boto3": ("botocore", "s3transfer", "jmespath", "urllib3", "dateutil", "six"),
}

_MAX_ENTRIES: Final = 20_000
_MAX_FILES: Final = 200
_MAX_BYTES: Final = MIB
# `import a.b as c, d` and `from a.b import c`, perhaps indented; relative ones are the code's own.
_STATEMENT: Final = re.compile(
    rb"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import\b|import[ \t]+([^#;\r\n]+))", re.MULTILINE
)


def imported(tree: Path, candidates: Collection[str] = HEAVY) -> tuple[str, ...]:
    """What a code tree imports, as far as a quick look tells.

    Args:
        tree: A folder of unpacked code. At most 200 Python files and 1 MiB of text are looked at; what cannot
            be read is passed over, as is what is not a plain file.
        candidates: Top-level names of modules to look for.

    Returns:
        Those of the candidates that are imported somewhere, in their order. Not those that the tree has a
        file or folder of, at whatever depth, or of something that comes along with them: such a tree brings
        its own version, and only the program knows whether it puts it on its path. None at all of a tree with
        more than 20,000 entries, which is not looked through.
    """
    entries = _entries(tree)
    if entries is None:
        return ()
    own = {entry.name.partition(".")[0] for entry in entries}
    found: set[str] = set()
    for source in _texts(_sources(entries)):
        found.update(_names_in(source))
    return tuple(
        name for name in candidates if name in found and own.isdisjoint((name, *_COMPANY.get(name, ())))
    )


def _entries(tree: Path) -> list[Path] | None:
    """Everything below the tree; None if that is too much to look through."""
    entries: list[Path] = []
    for folder, folders, files in os.walk(tree):
        folders[:] = [name for name in folders if not is_leftover(name)]
        entries += [Path(folder, name) for name in folders + files if not is_leftover(name)]
        if len(entries) > _MAX_ENTRIES:
            return None
    return entries


def _sources(entries: list[Path]) -> list[Path]:
    """The Python files to look at: the upper ones first, which are the author's own."""
    sources = [entry for entry in entries if entry.suffix == ".py"]
    return sorted(sources, key=lambda path: (len(path.parts), path))[:_MAX_FILES]


def _texts(paths: list[Path]) -> Iterator[bytes]:
    left = _MAX_BYTES
    for path in paths:
        if left <= 0:
            return
        try:
            if not path.is_file() or path.is_symlink():
                continue
            with path.open("rb") as file:
                text = file.read(left)
        except OSError:
            continue
        left -= len(text)
        yield text


def _names_in(source: bytes) -> Iterator[str]:
    """The top-level names that a source file imports."""
    for match in _STATEMENT.finditer(source):
        from_module, modules = match.groups()
        for module in [from_module] if from_module else modules.split(b","):
            words = module.split()
            if words:
                yield words[0].partition(b".")[0].decode(errors="replace")
