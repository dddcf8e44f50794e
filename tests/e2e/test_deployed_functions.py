"""`nanoagent deploy` and `invoke` with a real worker: versions, rollbacks, languages, failures."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from support.agents.worker import WorkerUnderTest

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
DEADLINE_S: Final = 180
PROGRAM: Final = "import json, os, sys\nprint({says!r}, os.environ.get('STAGE'), sys.stdin.read())\n"


async def nanoagent(worker: WorkerUnderTest, *arguments: str | Path) -> tuple[int | None, str, str]:
    """Run a command with the settings of the worker; returns its exit code and its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nanoagent", *map(str, arguments)),
        env=os.environ | worker.environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def succeeded(worker: WorkerUnderTest, *arguments: str | Path) -> str:
    code, out, err = await nanoagent(worker, *arguments)
    assert code == 0, err
    return out


@pytest.fixture
def function(tmp_path: Path) -> Path:
    folder = tmp_path / f"f-{secrets.token_hex(4)}"
    folder.mkdir()
    (folder / "main.py").write_text(PROGRAM.format(says="one"))
    return folder


async def test_a_rollback_gives_the_old_output(worker: WorkerUnderTest, function: Path) -> None:
    name = function.name
    await succeeded(worker, "deploy", function, "--env", "STAGE=first")
    assert await succeeded(worker, "invoke", name, "--input", '{"n":1}') == 'one first {"n":1}\n'

    (function / "main.py").write_text(PROGRAM.format(says="two"))
    await succeeded(worker, "deploy", function, "--env", "STAGE=second")
    assert await succeeded(worker, "invoke", name, "--input", "2") == "two second 2\n"
    assert await succeeded(worker, "invoke", name, "--version", "1", "--env", "STAGE=x") == "one x {}\n"

    await succeeded(worker, "deploy", "--function", name, "--rollback")
    assert await succeeded(worker, "invoke", name, "--input", "3") == "one first 3\n"


@pytest.mark.parametrize("runtime", Runtime)
async def test_functions_in_every_language_are_deployed_and_invoked(
    worker: WorkerUnderTest, runtime: Runtime
) -> None:
    name = f"example-{runtime}-{secrets.token_hex(4)}"
    deployed = await succeeded(worker, "deploy", EXAMPLES / runtime, "--function", name, "--memory", "256")
    assert re.search(rf"runtime +{runtime}", deployed)
    invoke = ["invoke", name, "--input", f"@{EXAMPLES / runtime / 'input.json'}", "--wait", "120"]
    code, out, err = await nanoagent(worker, *invoke)
    assert code == 0, err
    assert out.strip()
    assert re.fullmatch(rf"Request invoke-\w+: {name}, version 1\.\n", err)


async def test_a_function_that_fails_says_why(worker: WorkerUnderTest, function: Path) -> None:
    (function / "main.py").write_text("print('begun')\n1/0\n")
    await succeeded(worker, "deploy", function)
    code, out, err = await nanoagent(worker, "invoke", function.name, "--locale", "en")
    assert (code, out) == (1, "begun\n")
    lines = err.splitlines()
    assert lines[1] == "Traceback (most recent call last):"
    assert re.fullmatch(r"FAILED \(USER_ERROR\)  exit code 1, ran .+, peak .+ of 128 MiB, .+", lines[-2])
    assert lines[-1] == "error  ZeroDivisionError: division by zero"  # it explains itself: no hint


async def test_output_files_are_downloaded(worker: WorkerUnderTest, function: Path, tmp_path: Path) -> None:
    source = "import os\nos.mkdir('/output/deep')\nopen('/output/deep/a', 'w').write('x')\n1/0\n"
    (function / "main.py").write_text(source)
    await succeeded(worker, "deploy", function)
    folder = tmp_path / "results"
    for _ in range(2):  # an existing file is replaced
        code, _, err = await nanoagent(worker, "invoke", function.name, "--output", folder)
        assert code == 1
        assert err.splitlines()[-1] == f"output {folder}/deep/a"
        assert (folder / "deep/a").read_text() == "x"
    (tmp_path / "file").touch()
    code, _, err = await nanoagent(worker, "invoke", function.name, "--output", tmp_path / "file")
    assert code == 2
    assert "nothing was sent" in err


async def test_the_settings_of_the_version_are_limits_of_the_run(
    worker: WorkerUnderTest, function: Path
) -> None:
    (function / "main.py").write_text("import time\ntime.sleep(60)\n")
    await succeeded(worker, "deploy", function, "--timeout", "0.5")
    code, _, err = await nanoagent(worker, "invoke", function.name)
    assert code == 124
    assert "TIMEOUT" in err
    (function / "main.py").write_text("x = bytearray(10 ** 9)\n")
    await succeeded(worker, "deploy", function, "--memory", "64", "--timeout", "60")
    code, _, err = await nanoagent(worker, "invoke", function.name)
    assert code == 1
    assert "OUT_OF_MEMORY" in err
