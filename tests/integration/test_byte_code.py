"""Byte code that the worker makes: runs use it, and it changes nothing else that a program can see."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

import pytest
import pytest_asyncio

from nanoagent.code import byte_code
from nanoagent.jobs.byte_code import Compilation
from nanoagent.model.result import Isolation, Start
from support.checks.matrix import only_in_test_all
from support.sandboxes.functions import Functions, functions
from support.sandboxes.module_programs import IDENTITY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

ADDRESS: Final = re.compile(r"0x[0-9a-f]{6,}")
MODULES: Final = {
    "pack/__init__.py": "from . import one\n",
    "pack/one.py": "def f():\n    return 1\n",
    "two.py": "x = 2\n",
}
# The programs of test_python_identity.py do the same with byte code. `make test` runs those with modules of
# other kinds: packages, errors, encodings, interpreters and paths of their own.
IN_MAKE_TEST: Final = (
    *("a_subprocess", "a_traceback", "a_warning_of_the_compiler", "an_encoding", "an_error_of_the_compiler"),
    *("another_path_to_a_module", "attributes_and_source", "frames_of_an_import", "importlib_reload"),
    *("lib_json", "main_is_a_module_too", "namespace_package", "package", "rename_of_a_folder", "runpy"),
    *("sibling_writes_byte_code", "sub_interpreter_finds_siblings"),
)
# Prints the names of the files that its imports compile, and the byte code that it has written.
COUNT: Final = """
import json, os, sys
compiled = []
sys.addaudithook(lambda event, args: compiled.append(str(args[1])) if event == "compile" else None)
before = {(path, name) for path, _, names in os.walk(".") for name in names}
import pack.one, two
written = sorted(name for path, _, names in os.walk(".") for name in names if (path, name) not in before)
print(json.dumps([sorted(compiled), written]))
"""
SMALL: Final = {"main.py": COUNT, **MODULES}
LARGE: Final[dict[str, str | bytes]] = {**SMALL, **{f"data/{number}": "x" for number in range(20)}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandboxed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Functions]:
    async with functions(tmp_path_factory.mktemp("functions")) as made:
        yield made


async def test_the_worker_knows_the_byte_code_of_the_image(sandboxed: Functions):
    sandboxed.put(
        {
            "main.py": "import importlib.util, sys\n"
            "print(sys.implementation.cache_tag, importlib.util.MAGIC_NUMBER.hex())\n"
        },
        "version.zip",
    )
    assert await sandboxed.output("version.zip") == f"{byte_code.TAG} {byte_code.MAGIC.hex()}\n"


@pytest.mark.parametrize("level", [Isolation.SANDBOX, Isolation.SHARED])
async def test_only_the_first_run_compiles_the_modules_of_a_function(level: Isolation, tmp_path):
    async with functions(tmp_path, level) as box:
        for key, code in (("small.zip", SMALL), ("large.zip", LARGE)):
            box.put(code, key)
            compiled, written = json.loads(await box.output(key))
            assert {"/work/pack/__init__.py", "/work/pack/one.py", "/work/two.py"} <= set(compiled)
            assert written == [f"{name}.cpython-313.pyc" for name in ("__init__", "one", "two")]
            await box.byte_code.settled()
            assert box.outcomes.pop() is Compilation.COMPILED
            for start in (Start.WARM, Start.HOT):  # the idle container is bound again
                run = await box.run(key)
                assert run.start is start, run
                assert json.loads(run.execution.collected.stdout.text) == [[], []]
            assert not box.outcomes


async def test_byte_code_outlives_its_worker_and_serves_others(tmp_path):
    for expected in (Compilation.COMPILED, None):
        async with functions(tmp_path) as box:
            box.put(SMALL)
            assert bool(json.loads(await box.output())[0]) == (expected is not None)
            await box.byte_code.settled()
            assert box.outcomes == ([expected] if expected else [])
    async with functions(tmp_path, image_id="sha256:other") as box:
        assert json.loads(await box.output())[0], "byte code of another image was used"


# --- what a program can see


@pytest.mark.parametrize("name", only_in_test_all(sorted(IDENTITY), IN_MAKE_TEST))
async def test_a_program_with_modules_does_the_same_with_and_without_byte_code(
    name: str, sandboxed: Functions
):
    key = f"identity-{name}.zip"
    sandboxed.put(IDENTITY[name], key)
    without = await sandboxed.run(key)
    await sandboxed.byte_code.settled()
    seen = []
    for run in (without, await sandboxed.run(key), await sandboxed.run(key)):
        ended = run.execution
        texts = [
            ADDRESS.sub("0x", stream.text) for stream in (ended.collected.stdout, ended.collected.stderr)
        ]
        seen.append((ended.error_type, ended.exit_code, *texts))
    assert seen[0] == seen[1] == seen[2]


async def test_these_programs_do_have_byte_code(sandboxed: Functions):
    sandboxed.put(
        IDENTITY["a_warning_of_the_compiler"] | {"main.py": "import os; print(os.listdir('__pycache__'))"},
        "w.zip",
    )
    assert await sandboxed.compiled("w.zip") is Compilation.COMPILED
    assert await sandboxed.output("w.zip") == "['fine.cpython-313.pyc']\n"


REWRITE: Final = """
import os, subprocess, sys
status = os.stat("two.py")
with open("two.py") as file:
    old = file.read()
with open("two.py", "w") as file:
    file.write("x = 9\\n")
os.utime("two.py", ns=(status.st_atime_ns, status.st_mtime_ns))
assert os.stat("two.py").st_mtime_ns == status.st_mtime_ns and os.path.getsize("two.py") == status.st_size
import two
again = [sys.executable, "-c", "import two; print(two.x)"]
print(old.strip(), two.x, subprocess.run(again, capture_output=True, text=True).stdout)
"""


async def test_a_program_that_rewrites_a_module_runs_the_new_text(sandboxed: Functions):
    sandboxed.put({**MODULES, "main.py": REWRITE}, "rewrite.zip")
    assert await sandboxed.compiled("rewrite.zip") is Compilation.COMPILED
    for _ in range(2):
        assert await sandboxed.output("rewrite.zip") == "x = 2 9 9\n\n"


POISON: Final = """
import importlib.util, marshal, os, sys
import two
print(two.x)
path = "/work/__pycache__/two.cpython-313.pyc"
with open("/work/two.py", "rb") as file:
    source = file.read()
code = compile("x = 'poison'", "/work/two.py", "exec")
header = importlib.util.MAGIC_NUMBER + (3).to_bytes(4, "little") + importlib.util.source_hash(source)
poison = header + marshal.dumps(code)
if os.path.exists(path):
    os.remove(path)
with open(path, "wb") as file:
    file.write(poison)
os.makedirs("/work/pack/__pycache__", exist_ok=True)
with open("/work/pack/__pycache__/more.cpython-313.pyc", "wb") as file:
    file.write(poison)
"""


@pytest.mark.parametrize("level", [Isolation.SANDBOX, Isolation.SHARED])
async def test_byte_code_that_a_run_writes_does_not_reach_the_next_run(level: Isolation, tmp_path):
    async with functions(tmp_path, level) as box:
        box.put({**LARGE, "main.py": POISON})
        assert await box.compiled() is Compilation.COMPILED
        for _ in range(3):
            assert await box.output() == "2\n"


async def test_byte_code_of_the_author_stays_as_it_is(sandboxed: Functions):
    main = "import os, two\nprint(two.x, open('__pycache__/two.cpython-313.pyc', 'rb').read())\n"
    files: dict[str, str | bytes] = {
        **MODULES,
        "main.py": main,
        "__pycache__/two.cpython-313.pyc": b"not byte code",
    }
    sandboxed.put({**files, "data": "x" * 300_000}, "shipped.zip")
    first = await sandboxed.output("shipped.zip")
    await sandboxed.byte_code.settled()
    assert sandboxed.outcomes[-1] is Compilation.COMPILED
    assert await sandboxed.output("shipped.zip") == first


async def test_code_without_modules_is_not_compiled(sandboxed: Functions):
    sandboxed.put({"main.py": "print(1)", "data.txt": "x"}, "single.zip")
    assert await sandboxed.compiled("single.zip") is Compilation.NOTHING
    before = len(sandboxed.outcomes)
    await sandboxed.run("single.zip")
    await sandboxed.byte_code.settled()
    assert len(sandboxed.outcomes) == before
