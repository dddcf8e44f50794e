"""Packs and folders with the same tree, so that tests can look at one and make the other."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from nanoagent.code import archive
from nanoagent.code.pack import FILE, FOLDER, LINK, MODE, NOWHERE, Index, Pack

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.code.archive import ArchiveLimits, TreeInfo


def extract(zip_path: Path, into: Path, limits: ArchiveLimits, *, threads: int | None = None) -> TreeInfo:
    """Unpack an archive as `archive.extract` does, and make a folder with the tree of the pack."""
    made = into.with_name(f"{into.name}.pack")
    made.unlink(missing_ok=True)
    try:
        info = archive.extract(zip_path, made, limits, threads=threads)
        assert stat.S_IMODE(made.stat().st_mode) == MODE
        unpack(made, into)
    finally:
        made.unlink(missing_ok=True)
    return info


def unpack(path: Path, into: Path, *, is_base: bool = False) -> None:
    """Make a folder with the tree of a pack, or with its base: the reference for unpack.c."""
    tree = Pack(path)
    into.mkdir(exist_ok=True)
    into.chmod(0o755)
    folders = [into]
    top = tree.records[tree.base][4] if is_base else 0
    wanted = [number for number, *_ in tree.below_base()] if is_base else range(1, len(tree.records))
    for number in wanted:
        _, _, modified_ns, _, depth, kind, is_executable = tree.records[number]
        del folders[depth - top :]
        target = folders[-1] / os.fsdecode(tree.names[number])
        content = b"".join(tree.read([number], 1 << 40))
        if kind == FOLDER:
            folders.append(target)
            target.mkdir()
            target.chmod(0o755)
            continue
        if kind == LINK:
            target.symlink_to(os.fsdecode(content))
        else:
            assert kind == FILE
            with target.open("xb") as file:
                file.write(content)
            target.chmod(0o555 if is_executable else 0o444)
        os.utime(target, ns=(modified_ns, modified_ns), follow_symlinks=False)


def files(path: Path) -> dict[str, bytes]:
    """Return path → content of all files of a pack, without links."""
    tree = Pack(path)
    found: dict[str, bytes] = {}
    folders = [""]
    for number in range(1, len(tree.records)):
        depth, kind = tree.records[number][4:6]
        del folders[depth:]
        name = folders[-1] + os.fsdecode(tree.names[number])
        if kind == FOLDER:
            folders.append(f"{name}/")
        elif kind == FILE:
            found[name] = b"".join(tree.read([number], 1 << 40))
    return found


def packed(tree: Path) -> Path:
    """Make a pack with the tree of a folder, beside the folder; a pack stays as it is."""
    if not tree.is_dir():
        return tree
    into = tree.with_name(f"{tree.name}.pack")
    into.unlink(missing_ok=True)
    return pack_of(tree, into)


def pack_of(tree: Path, into: Path) -> Path:
    """Make a pack with the tree of a folder. Holes of files stay holes."""
    index = Index()
    numbers: dict[Path, int] = {tree.resolve(): 0}
    links: list[tuple[int, Path]] = []
    with into.open("wb") as file:

        def add(folder: Path, depth: int) -> None:
            for path in sorted(folder.iterdir()):
                status, name = path.lstat(), os.fsencode(path.name)
                place = file.tell(), status.st_size, status.st_mtime_ns
                if path.is_symlink():
                    number = index.add(name, depth, LINK, *place)
                    links.append((number, path))
                    file.write(os.fsencode(os.readlink(path)))  # noqa: PTH115 - pathlib would tidy it
                elif path.is_dir():
                    number = index.add(name, depth, FOLDER)
                    add(path, depth + 1)
                else:
                    number = index.add(name, depth, FILE, *place, is_executable=bool(status.st_mode & 0o111))
                    _copy(path, file.fileno(), place[0])
                    file.seek(place[0] + status.st_size)
                numbers[path.parent.resolve() / path.name] = number

        add(tree, 1)
        for number, path in links:
            index.set_target(number, numbers.get(path.resolve(), NOWHERE))
        file.writelines(index.parts())
    into.chmod(MODE)
    return into


def _copy(path: Path, into: int, at: int) -> None:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            if chunk.count(0) < len(chunk):
                os.pwrite(into, chunk, at)
            at += len(chunk)
