"""Attacks on the compilation of Python code: it adds byte code or nothing, and the next one is fine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest
import pytest_asyncio

from nanoagent.code.byte_code import MAGIC
from nanoagent.jobs import byte_code
from nanoagent.jobs.byte_code import Compilation
from support.sandboxes.functions import functions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.sandboxes.functions import Functions

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

MAIN: Final = """
import json, os
print(json.dumps(sorted(os.path.join(path, name) for path, _, names in os.walk(".") for name in names)))
"""
# Executed anywhere, this would be seen: the compilation would fail.
EXECUTED: Final = "import os\nos._exit(3)\n"
SOURCES: Final[dict[str, dict[str, str | bytes]]] = {
    "modules of the compiler's own names": {
        f"{name}.py": EXECUTED
        for name in (
            *("importlib", "marshal", "os", "stat", "sys", "warnings", "zipfile", "struct", "encodings"),
            *("sitecustomize", "usercustomize", "site", "typing", "zlib", "codecs", "shutil", "threading"),
        )
    },
    "packages of the compiler's own names": {
        "encodings/__init__.py": EXECUTED,
        "encodings/evil.py": EXECUTED,
        "importlib/util.py": EXECUTED,
        "os/__init__.py": EXECUTED,
    },
    "a codec of its own": {
        "evil.py": "# coding: evil\n",
        "other.py": "# coding: ../../work/evil\n",
        "fine.py": "",
    },
    "a path file": {"evil.pth": "import os; os._exit(3)\n", "pyvenv.cfg": "home = /work\n", "fine.py": ""},
    "names that look like options": {"-c.py": EXECUTED, "--help.py": EXECUTED, "-.py": EXECUTED},
    "nested deeply": {"deep.py": "(" * 100_000 + ")" * 100_000, "list.py": "[" * 5_000, "fine.py": ""},
    "operators without end": {
        "deep.py": "x = " + "-" * 200_000 + "1",
        "long.py": "x = 1" + "+1" * 100_000,
        "fine.py": "",
    },
    "attributes without end": {
        "deep.py": "x" + ".y" * 100_000,
        "calls.py": "x" + "()" * 50_000,
        "fine.py": "",
    },
    "large constants": {
        "large.py": "x = " + " * ".join(["10 ** 1000"] * 50),
        "s.py": "x = 'a' * 10 ** 9 * 10 ** 9",
        "fine.py": "",
    },
    "no text": {
        "zero.py": b"\0" * 1000,
        "binary.py": bytes(range(256)) * 100,
        "mark.py": b"\xef\xbb\xbf\xff",
        "fine.py": "",
    },
    "names that climb": {
        "..py": "",
        "...py": "",
        "a..b.py": "",
        "ä안.py": "",
        "x" * 240 + ".py": "",
        "fine.py": "",
    },
    "a folder of byte code that is a file": {"p/__pycache__": "x", "p/one.py": "", "fine.py": ""},
    "a source that is a folder": {"one.py/two.py": "", "one.py/__pycache__/three.py": "", "fine.py": ""},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Functions]:
    async with functions(tmp_path_factory.mktemp("functions")) as made:
        yield made


@pytest.mark.parametrize("name", SOURCES)
async def test_a_hostile_source_adds_nothing_but_byte_code(name: str, box: Functions):
    key = f"hostile-{len(name)}-{name[:3]}.zip"
    padding = {f"data/{number}": "x" for number in range(20)}  # so that all byte code has room
    box.put({"main.py": MAIN, **SOURCES[name], **padding}, key)
    before = set(json.loads(await box.output(key)))
    await box.byte_code.settled()
    assert box.outcomes[-1] in {Compilation.COMPILED, Compilation.NOTHING}
    after = set(json.loads(await box.output(key)))
    assert before <= after
    for path in after - before:
        folder, _, file = path.rpartition("/__pycache__/")
        assert f"{folder}/{file.removesuffix('.cpython-313.pyc')}.py" in before
    if "fine.py" in SOURCES[name]:
        assert "./__pycache__/fine.cpython-313.pyc" in after


HEADER: Final = repr(MAGIC + b"\x03" + bytes(11))
# What a compilation could do if a source had taken it over.
TAKEN_OVER: Final = {
    "a file outside": "put({'../../../evil': pyc})",
    "an absolute path": "put({'/evil': pyc})",
    "a source": "put({'two.py': b'x = 1'})",
    "the entry file": "put({'main.py': b'x = 1'})",
    "another source's name": "put({'__pycache__/new.cpython-313.pyc': pyc})",
    "an extension module": "put({'two.cpython-313-x86_64-linux-gnu.so': pyc})",
    "byte code that is not checked": "put({two: pyc[:4] + bytes([1]) + pyc[5:]})",
    "a link": "put({two: b'/etc/passwd'}, stat.S_IFLNK)",
    "a second file": "put({two: pyc}); open('/output/more', 'w').close()",
    "a file in a folder": "os.mkdir('/output/d'); put({two: pyc}, at='/output/d/x.zip'); put({two: b''})",
    "a link as output": "os.symlink('/slot/code', '/output/byte_code.zip')",
    "gigabytes": "f = open('/output/byte_code.zip', 'wb'); f.truncate(1 << 34)",
    "no zip": "open('/output/byte_code.zip', 'wb').write(b'x' * 1000)",
    "the input of another process": "os.kill(1, 9); put({two: b''})",
}
FORGED: Final = """
import os, stat, zipfile
pyc = {header} + b"code"
two = "__pycache__/two.cpython-313.pyc"
def put(files, kind=stat.S_IFREG, at="/output/byte_code.zip"):
    with zipfile.ZipFile(at, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (kind | 0o777) << 16
            archive.writestr(entry, content)
{attack}
"""


@pytest.mark.parametrize("name", TAKEN_OVER)
async def test_a_compilation_that_was_taken_over_adds_nothing(
    name: str, box: Functions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    key = f"taken-{len(name)}-{name[:3]}.zip"
    box.put({"main.py": MAIN, "two.py": f"x = {name!r}\n"}, key)
    with monkeypatch.context() as patch:
        patch.setattr(byte_code, "_script", lambda: FORGED.format(header=HEADER, attack=TAKEN_OVER[name]))
        before = await box.output(key)
        await box.byte_code.settled()
    assert box.outcomes[-1] in {Compilation.REFUSED, Compilation.FAILED, Compilation.NOTHING}
    assert await box.output(key) == before
    box.put({"main.py": MAIN, "two.py": f"x = {name!r} + '!'\n"}, key)
    assert await box.compiled(key) is Compilation.COMPILED
