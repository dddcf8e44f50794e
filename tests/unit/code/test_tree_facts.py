"""What the explanation of a failure reads from a code tree."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from nanoagent.code import archive
from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.native_files import native_file
from nanoagent.code.tree_facts import tree_facts
from nanoagent.languages.explain.facts import NativeFile, Platform, TreeFacts
from nanoagent.model.job import Runtime
from support.catalogue import libraries
from support.checks.zips import make_zip

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nanoagent.code.native_files import ReadAt


def unpacked(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Return the pack of a zip with these files."""
    (folder / "code.zip").write_bytes(make_zip(files))
    archive.extract(folder / "code.zip", folder / "pack", ArchiveLimits(1 << 20, 1 << 20, 1 << 20, 5000))
    return folder / "pack"


def reader(content: bytes) -> ReadAt:
    return lambda size, at: content[at : at + size]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (libraries.elf(), NativeFile(Platform.LINUX, "x86_64")),
        (libraries.elf(libraries.ARM64), NativeFile(Platform.LINUX, "aarch64")),
        (libraries.elf(needed="libc.musl-x86_64.so.1"), NativeFile(Platform.LINUX, "x86_64", musl=True)),
        (
            libraries.elf(needed="libc.so.6", version="GLIBC_2.38"),
            NativeFile(Platform.LINUX, "x86_64", glibc=(2, 38)),
        ),
        (libraries.MACH_O, NativeFile(Platform.MACOS)),
        (libraries.PE, NativeFile(Platform.WINDOWS)),
        (b"MZ" + bytes(100), None),
        (b"#!/bin/sh\n", None),
        (b"\x7fELF", None),
        (b"", None),
    ],
)
def test_the_header_of_a_file_tells_its_platform(content: bytes, expected: NativeFile | None):
    assert native_file(reader(content)) == expected


def test_libraries_of_this_machine_are_read():
    with open(os.path.realpath("/lib/x86_64-linux-gnu/libm.so.6"), "rb") as file:  # noqa: PTH123 - a descriptor
        found = native_file(lambda size, at: os.pread(file.fileno(), size, at))
    assert found is not None
    assert (found.platform, found.machine, found.musl) == (Platform.LINUX, "x86_64", False)
    assert found.glibc is not None


def test_damaged_headers_raise_nothing_and_read_little():
    content = libraries.elf(needed="libc.so.6", version="GLIBC_2.38")
    randomness = random.Random(1)  # noqa: S311 - not for security
    read_bytes = 0

    def read(size: int, at: int) -> bytes:
        nonlocal read_bytes
        assert size >= 0
        assert at >= 0
        read_bytes += size
        return bytes(damaged[at : at + size])

    for _ in range(3000):
        damaged = bytearray(content)
        for _ in range(randomness.randint(1, 8)):
            damaged[randomness.randrange(4, len(damaged))] = randomness.choice([0, 1, 255, 128])
        read_bytes = 0
        native_file(read)
        assert read_bytes < 2 * 1024 * 1024


def test_the_facts_of_a_python_tree(tmp_path: Path):
    pack = unpacked(
        tmp_path,
        {
            "main.py": "import x",
            "requirements.txt": "Flask==3.0 # web\n# no\n-r other.txt\n"
            "ruamel.yaml[jinja2]>=0.18; python_version>'3'\n",
            "lib/a.so": libraries.elf(libraries.ARM64),
        },
    )
    facts = tree_facts(pack, Runtime.PYTHON)
    assert facts.files == {"main.py", "requirements.txt", "lib/a.so"}
    assert facts.source == "import x"
    assert facts.requirements == {"flask", "ruamel-yaml"}
    assert facts.native == {"lib/a.so": NativeFile(Platform.LINUX, "aarch64")}


def test_the_facts_of_a_nodejs_tree_in_a_single_folder(tmp_path: Path):
    package = '{"type": "module", "dependencies": {"express": "^4"}, "devDependencies": {"@types/x": "1"}}'
    pack = unpacked(tmp_path, {"app/index.js": "x", "app/package.json": package})
    facts = tree_facts(pack, Runtime.NODEJS)
    assert facts.files == {"index.js", "package.json"}
    assert facts.is_module
    assert facts.requirements == {"express", "@types/x"}


@pytest.mark.parametrize("package", ["", "[1]", "{", "[" * 100_000, '{"dependencies": [1]}'])
def test_a_damaged_package_json_gives_no_facts(tmp_path: Path, package: str):
    pack = unpacked(tmp_path, {"index.js": "x", "package.json": package})
    facts = tree_facts(pack, Runtime.NODEJS)
    assert (facts.requirements, facts.is_module) == (frozenset(), False)


def test_a_tree_that_cannot_be_read_gives_no_facts(tmp_path: Path):
    assert tree_facts(tmp_path / "none", Runtime.GO) == TreeFacts()
