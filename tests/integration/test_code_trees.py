"""What of a zip arrives at the program: links, times, byte code, many files, much code. At both levels."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from nanoagent.code.archive import ArchiveLimits, extract
from nanoagent.common.units import MIB
from nanoagent.model.errors import DamagedCode
from nanoagent.model.result import Isolation
from support.checks.zips import RawEntry, extra_field, raw_zip, symlink
from support.sandboxes.containers import LIMITS, bench

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.container.policy import Binding
    from support.sandboxes.containers import Bench

ROOMY: Final = ArchiveLimits(10 * MIB, 10 * MIB, 10 * MIB, 1000)
FILES: Final = 20_000  # more than a run may make in a writable directory
CODE_BYTES: Final = 250 * MIB
MODIFIED: Final = 1_704_067_201  # an odd second of 2024-01-01: a DOS time cannot say it
UTC: Final = extra_field(0x5455, b"\x01" + MODIFIED.to_bytes(4, "little"))

# Byte code is made by the interpreter that will read it: its format is its own.
COMPILE: Final = """
import base64, json, py_compile, os, sys
made = {}
os.chdir("/tmp")
for name, mode in (("timed", "TIMESTAMP"), ("hashed", "UNCHECKED_HASH"), ("stale", "TIMESTAMP")):
    with open(f"{name}.py", "w") as file:
        file.write("FROM = 'shipped'")
    os.utime(f"{name}.py", (1704067201, 1704067201))
    path = py_compile.compile(f"{name}.py", invalidation_mode=py_compile.PycInvalidationMode[mode])
    made[path] = base64.b64encode(open(path, "rb").read()).decode()
print(json.dumps(made))
"""

LOOK: Final = b"""
import json, os, stat
import timed, hashed, stale
facts = {
    "modules": [timed.FROM, hashed.FROM, stale.FROM],
    "times": {
        name: os.lstat(name).st_mtime for name in "main.py timed.py lib/a.txt lib/by-link stale.py".split()
    },
    "links": {name: os.readlink(name) for name in ("lib/by-link", "folder", "deep/er/up")},
    "read": [open(name).read() for name in ("lib/by-link", "folder/a.txt", "deep/er/up/lib/a.txt")],
    "tool": os.access("folder/tool", os.X_OK),
}
with open("lib/by-link", "a") as file:  # through the link, and only in this run
    file.write("more")
facts["written"] = open("lib/a.txt").read()
os.remove("folder")
os.symlink("/etc", "folder")
print(json.dumps(facts))
"""
EXPECTED: Final = {
    # Sources of the same size and other text: the byte code is used where it is valid.
    "modules": ["shipped", "shipped", "sources"],
    "times": {
        "main.py": MODIFIED,
        "timed.py": MODIFIED,
        "lib/a.txt": MODIFIED,
        "lib/by-link": MODIFIED,
        "stale.py": MODIFIED + 1,
    },
    "links": {"lib/by-link": "a.txt", "folder": "lib", "deep/er/up": "../.."},
    "read": ["text", "text", "text"],
    "tool": True,
    "written": "textmore",
}


def zipped(byte_code: dict[str, bytes]) -> bytes:
    def entry(name: str, content: bytes, *, mode: int = 0o100644, extra: bytes = UTC) -> RawEntry:
        return RawEntry(name.encode(), content, mode=mode, extra=extra)

    later = extra_field(0x5455, b"\x01" + (MODIFIED + 1).to_bytes(4, "little"))
    return raw_zip(
        entry("main.py", LOOK),
        entry("timed.py", b"FROM = 'sources'"),
        entry("hashed.py", b"FROM = 'sources'"),
        entry("stale.py", b"FROM = 'sources'", extra=later),
        *(entry(path, content) for path, content in byte_code.items()),
        entry("lib/a.txt", b"text"),
        entry("lib/tool", b"#!/bin/sh\n", mode=0o100755),
        *(
            replace(symlink(name, target), extra=UTC)
            for name, target in ((b"lib/by-link", b"a.txt"), (b"folder", b"lib"), (b"deep/er/up", b"../.."))
        ),
    )


def bound_to(box: Bench, tree: Path, tree_bytes: int = 0, memory_mb: int = 64) -> Binding:
    return replace(box.binding(memory_mb, tree), tree_bytes=tree_bytes)


@pytest.mark.parametrize("level", [Isolation.SANDBOX, Isolation.SHARED])
async def test_a_program_finds_its_code_as_it_was_packed(level: Isolation, tmp_path: Path) -> None:
    limits = replace(LIMITS, code_bytes=CODE_BYTES + 64 * MIB, code_files=FILES)
    async with bench(level, limits) as box:
        await links_times_and_byte_code(box, tmp_path)
        await many_files(box, tmp_path / "many")
        await much_code(box, tmp_path / "large")


async def links_times_and_byte_code(box: Bench, folder: Path) -> None:
    compiled = json.loads((await box.run(COMPILE)).stdout)
    byte_code = {path: base64.b64decode(content) for path, content in compiled.items()}
    (folder / "code.zip").write_bytes(zipped(byte_code))
    extract(folder / "code.zip", folder / "pack", ROOMY)
    binding = bound_to(box, folder / "pack")
    for _ in range(2):  # the second run finds nothing that the first has changed
        ran = await box.run_bound(binding)
        assert not ran.stderr
        assert json.loads(ran.stdout) == EXPECTED


async def many_files(box: Bench, tree: Path) -> None:
    tree.mkdir()
    for number in range(FILES - 2):
        os.close(os.open(f"{tree}/{number}", os.O_CREAT | os.O_WRONLY, 0o444))
    (tree / "main.py").write_text("import os; print(len(os.listdir())); open('new', 'w')")
    ran = await box.run_bound(bound_to(box, tree, FILES * 4096))
    assert (ran.stdout, ran.stderr) == (f"{FILES - 1}\n", "")


async def much_code(box: Bench, tree: Path) -> None:
    """The code's copy is no part of the run's own memory, and counts in the worker's budget."""
    tree.mkdir()
    with (tree / "weights").open("wb") as file:
        file.truncate(CODE_BYTES)
    (tree / "main.py").write_text("import os; print(os.path.getsize('weights')); x = bytearray(20 << 20)")
    ran = await box.run_bound(bound_to(box, tree, CODE_BYTES))
    assert (ran.stdout, ran.stderr) == (f"{CODE_BYTES}\n", "")
    assert ran.acquired.container.base_bytes > CODE_BYTES
    (counted,) = [
        pooled.memory_mb for pooled in box.pool._inventory.all() if pooled.container is ran.acquired.container
    ]
    assert counted >= CODE_BYTES // MIB  # an idle container counts with the memory that it holds


@pytest.mark.parametrize("level", [Isolation.SANDBOX, Isolation.SHARED])
async def test_damaged_code_is_a_clear_error_and_costs_one_container(
    level: Isolation, tmp_path: Path
) -> None:
    async with bench(level) as box:
        binding = box.binding()
        damaged = bytearray(binding.tree.read_bytes())
        damaged[-1] ^= 1
        for content in (bytes(damaged), bytes(damaged)[:-1], b""):
            (tmp_path / "pack").unlink(missing_ok=True)
            (tmp_path / "pack").write_bytes(content)
            with pytest.raises(DamagedCode, match="damaged"):
                await box.run_bound(replace(binding, tree=tmp_path / "pack"), "print(1)")
        assert (await box.run_bound(binding, "print(2)")).stdout == "2\n"


async def test_a_sandboxed_run_cannot_write_to_the_room_for_code() -> None:
    async with bench(Isolation.SANDBOX, replace(LIMITS, code_bytes=CODE_BYTES, code_files=FILES)) as box:
        full = await box.run("f = open('a', 'wb')\nfor _ in range(40): f.write(bytes(1 << 20)); f.flush()")
        assert full.execution.error_type == "DISK_LIMIT"
        crowded = await box.run("for n in range(6000): open(str(n), 'w').close()")
        assert crowded.execution.error_type == "DISK_LIMIT"
