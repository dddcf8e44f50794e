# ruff: noqa: PTH108, PTH112, PTH118, PTH119, PTH123 - the import of pathlib would take 10 ms
"""Compiles the Python code of a function. It runs in a container, as the text of `python3 -I -S -B -c`.

It uses only the standard library of the image. `-I` keeps the working directory off `sys.path`, so that no
file of the code is imported or executed: sources are only read and compiled.

The byte code must not change what a program does. So a source is skipped in these cases:

* Its byte code exists already: the author has shipped it.
* Its compilation fails or issues a warning. Each run must show the same error or warning.
* It is the entry file. `python3 main.py` does not use byte code for it.
* It is over `MAX_SOURCE_BYTES`, because the compiler needs up to 250 times as much memory.

The byte code contains the hash of the source (PEP 552). An import compares it with the present source. So a
program that has changed its source, even with the same size and time, runs the new text.

Arguments: the room for the byte code in bytes, in whole pages, and its largest number of files and new
folders. The largest sources come first. The byte code is written to one stored zip. Without byte code there
is no zip.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import stat
import sys
import warnings
import zipfile

TYPE_CHECKING = False  # the module typing would take 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final

CODE: Final = "/work"
OUTPUT: Final = "/output/byte_code.zip"
ENTRY_FILE: Final = "main.py"
CACHE: Final = "__pycache__"
CHECKED_HASH: Final = 0b11  # PEP 552: based on a hash, which an import checks
MAX_SOURCE_BYTES: Final = 1 << 20
MAX_NAME_BYTES: Final = 255  # NAME_MAX, limits.h
MAX_PATH_BYTES: Final = 1024  # the worker's limit for paths in zips
PAGE_BYTES: Final = 4096
MODE: Final = stat.S_IFREG | 0o444


def main() -> None:
    """Compile all sources for which there is room."""
    found = sorted(sources(), reverse=True)
    with zipfile.ZipFile(OUTPUT, "w", zipfile.ZIP_STORED) as archive:
        for name, byte_code in fitting((path for _, path in found), int(sys.argv[1]), int(sys.argv[2])):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = MODE << 16
            archive.writestr(entry, byte_code)
        is_empty = not archive.filelist
    if is_empty:
        os.unlink(OUTPUT)


def fitting(paths: Iterable[str], room_bytes: int, room_entries: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file of byte code for which there is room."""
    folders: set[str] = set()
    for path in paths:
        folder, target = target_of(path)
        entries = 1 if folder in folders or os.path.isdir(folder) else 2
        if entries > room_entries:
            continue
        byte_code = compiled(path)
        size = -(-len(byte_code) // PAGE_BYTES) * PAGE_BYTES
        if 0 < size <= room_bytes:
            yield os.path.relpath(target, CODE), byte_code
            folders.add(folder)
            room_bytes, room_entries = room_bytes - size, room_entries - entries


def sources() -> Iterator[tuple[int, str]]:
    """Yield the size and the path of each source to compile. Links are not followed."""
    for folder, folders, names in os.walk(CODE):
        folders[:] = [name for name in folders if name != CACHE]
        cache = os.path.join(folder, CACHE)
        if os.path.lexists(cache) and not stat.S_ISDIR(os.lstat(cache).st_mode):
            continue
        for name in names:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if is_source(path, status) and not os.path.lexists(target_of(path)[1]):
                yield status.st_size, path


def is_source(path: str, status: os.stat_result) -> bool:
    """Whether a file is a source whose byte code can have a name that the worker accepts."""
    name = os.path.basename(target_of(path)[1])
    return (
        path.endswith(".py")
        and path != f"{CODE}/{ENTRY_FILE}"
        and stat.S_ISREG(status.st_mode)
        and status.st_size <= MAX_SOURCE_BYTES
        and len(os.fsencode(name)) <= MAX_NAME_BYTES
        and len(os.fsencode(target_of(path)[1])) <= MAX_PATH_BYTES
    )


def target_of(source: str) -> tuple[str, str]:
    """Return the folder and the path of the byte code of a source, as the import system expects them."""
    folder, name = os.path.split(source)
    stem = name.removesuffix(".py")
    cache = f"{folder}/{CACHE}"
    return cache, f"{cache}/{stem}.{sys.implementation.cache_tag}.pyc"


def compiled(path: str) -> bytes:
    """Return the byte code of a source as a file of the format `.pyc`; empty if the source is skipped.

    The code object is the one that `importlib` would make: `SourceLoader.source_to_code` calls the same
    function with the same arguments.
    """
    with open(path, "rb") as file:
        source = file.read()
    try:
        code = compile(source, path, "exec", dont_inherit=True)
        content = marshal.dumps(code)
    except Exception:  # noqa: BLE001 - any failure: each run reports it to its author
        return b""
    flags = CHECKED_HASH.to_bytes(4, "little")
    return importlib.util.MAGIC_NUMBER + flags + importlib.util.source_hash(source) + content


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
