"""`nanoagent exec`: the documents of a worker, live output, exit codes, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiodocker
import pytest

from nanoagent import cli
from nanoagent.config import load_local
from nanoagent.container.execution import RunControl
from nanoagent.dev.exec import local_worker
from nanoagent.dev.sender import package
from nanoagent.model.job import Runtime
from support.agents.worker import PROGRAMS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.agents.worker import WorkerUnderTest

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

DEADLINE_S: Final = 120
CASES: Final = {
    **{case: {} for case in ("report", "exit", "raise", "signal", "oom", "oom_child", "flood", "files")},
    **{case: {} for case in ("files_then_fail", "peak", "peak_child", "large_file", "large_file_child")},
    "hang": {"timeoutMs": 700},
    "stubborn": {"timeoutMs": 2000},
    "quick": {},
}
# The values differ from run to run, or tell who has run the job.
DIFFERENT: Final = {
    "requestId",
    "workerId",
    "timings",
    "durationMs",
    "start",
    "peakMemoryBytes",
    "outputFiles",
    "capsule",
}
# They are calculated from the duration and the peak.
ADVICE: Final = {"optimizationTip", "estimatedSavings", "tuning"}


MEASURING: Final = {"peak", "peak_child"}  # programs that print what they have measured


def comparable(document: dict[str, Any], case: str) -> dict[str, Any]:
    """Return the document without what differs; of links, the path of the output file is left."""
    files = [re.sub(r".*/(outputs/[^/]+|exec-outputs)/", "", link) for link in document["outputFiles"]]
    same = {name: value for name, value in document.items() if name not in DIFFERENT | ADVICE}
    if case in MEASURING:
        del same["stdout"]
    return same | {"files": files, "keys": sorted(document)}


@pytest.fixture
def environment(worker: WorkerUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders and the images of the test's worker, but neither queue nor buckets nor Redis."""
    for name, value in worker.environment().items():
        if name.startswith(("DOCKER_", "CODE_")) or name == "LOCALE":
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_HOST", os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("runtime", Runtime)
async def test_the_document_is_that_of_a_worker(
    worker: WorkerUnderTest, runtime: Runtime, tmp_path: Path
) -> None:
    settings = load_local(None)
    with package.packed(PROGRAMS / runtime, None, package.limits_of(settings)) as code:
        async with local_worker.opened(settings, tmp_path / "exec-outputs") as local:
            for case, fields in CASES.items():
                of_worker = await worker.run_program(
                    runtime, case, input={"say": "x"}, functionId="f", **fields
                )
                job = {"requestId": "r", "functionId": "f", "runtime": runtime, "s3Key": code.key}
                asked = {"timeoutMs": 60_000, "input": {"case": case, "say": "x"}, **fields}
                answered = await local.answer(code, worker.body(job | asked), RunControl())
                here = json.loads(answered.document)
                assert comparable(here, case) == comparable(of_worker, case), case
                if here["peakMemoryBytes"] is None:
                    assert of_worker["peakMemoryBytes"] is None


# --- the command


@asynccontextmanager
async def running(*arguments: str | Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `nanoagent exec`, and kill it at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nanoagent", "exec", *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ran(*arguments: str | Path) -> tuple[int | None, str, str]:
    async with running(*arguments) as process:
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def containers_of_exec() -> list[str]:
    async with aiodocker.Docker() as docker:
        found = await docker.containers.list(all=1, filters=json.dumps({"label": ["nanoagent.worker"]}))
    workers = [container._container["Labels"]["nanoagent.worker"] for container in found]
    return [worker for worker in workers if worker.startswith("exec-")]


def function(folder: Path, source: str, name: str = "main.py") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(source)
    return folder


@pytest.mark.usefixtures("environment")
async def test_output_goes_to_the_same_streams_and_nothing_else_does(tmp_path: Path) -> None:
    source = (
        "import json, os, sys\n"
        "print('입력', json.loads(os.environ['PAYLOAD'])['a'], os.environ['B'], flush=True)\n"
        "sys.stdout.buffer.write(b'\\xff\\n')\n"
        "print('err', file=sys.stderr)\n"
    )
    async with running(function(tmp_path / "f", source), "--input", '{"a": 1}', "--env", "B=c=d") as process:
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, "입력 1 c=d\n".encode() + b"\xff\n", b"err\n")
    assert await containers_of_exec() == []


@pytest.mark.usefixtures("environment")
async def test_output_appears_while_the_function_runs_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    source = "import time\nprint('begun', flush=True)\ntime.sleep(600)\n"
    async with running(function(tmp_path / "f", source)) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert await containers_of_exec() == []


@pytest.mark.usefixtures("environment")
async def test_output_files_are_copied_and_a_failure_says_why(tmp_path: Path) -> None:
    source = "import os\nos.mkdir('/output/deep')\nopen('/output/deep/a', 'w').write('x')\n1/0\n"
    code, out, err = await ran(function(tmp_path / "f", source), "--output", tmp_path / "o", "--memory", "64")
    assert (code, out) == (1, "")
    assert (tmp_path / "o/deep/a").read_text() == "x"
    lines = err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert re.fullmatch(
        r"FAILED \(USER_ERROR\)  exit code 1, ran .+, peak .+ of 64 MiB, cold start .+", lines[-3]
    )
    assert lines[-2] == "error  ZeroDivisionError: division by zero"
    assert lines[-1] == f"output {tmp_path}/o/deep/a"


@pytest.mark.usefixtures("environment")
async def test_json_is_the_document_and_nothing_else(tmp_path: Path) -> None:
    code, out, err = await ran(function(tmp_path / "f", "print('x')"), "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert (document["status"], document["stdout"], document["start"]) == ("SUCCESS", "x\n", "cold")


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("name", "source", "options", "code", "shown"),
    [
        ("main.cpp", "int main() { return x; }", [], 126, "was not declared in this scope"),
        ("main.py", "import time; time.sleep(60)", ["--timeout", "0.5"], 124, "TIMEOUT"),
        ("main.py", "x = bytearray(10 ** 9)", ["--memory", "64"], 137, "OUT_OF_MEMORY"),
        ("main.py", "", ["--env", "PATH=x"], 2, "env sets PATH"),
        ("main.py", "", ["--network", "wide"], 2, "network is"),
        ("other.py", "", [], 2, "main.py"),
    ],
)
async def test_exit_codes_of_functions_that_do_not_end_by_themselves(
    name: str, source: str, options: list[str], code: int, shown: str, tmp_path: Path
) -> None:
    ended, _, err = await ran(function(tmp_path / "f", source, name), *options, "--locale", "en")
    assert ended == code, err
    assert shown in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("environment")
async def test_watch_runs_again_after_each_change_and_stops_a_run_that_is_old(tmp_path: Path) -> None:
    code = function(tmp_path / "f", "print('one')")
    async with running(code, "--watch") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.readline() == b"one\n"
        assert (await process.stderr.readline()).startswith(b"SUCCESS")
        function(code, "import time\nprint('two', flush=True)\ntime.sleep(600)\n")
        assert await process.stdout.readline() == b"two\n"
        function(code, "print(")
        assert await process.stderr.readline() == b"The files have changed; the run was stopped.\n"
        while not (await process.stderr.readline()).startswith(b"FAILED"):
            pass
        (code / "main.py").rename(code / "main.txt")
        while b"main.py" not in await process.stderr.readline():
            pass
        (code / "main.txt").unlink()
        function(code, "print('three')")
        assert await process.stdout.readline() == b"three\n"
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode == 130
    assert await containers_of_exec() == []


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("runtime", Runtime)
async def test_a_new_function_passes_its_own_test(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert cli.main(["init", str(tmp_path / "new"), "--runtime", runtime]) == 0
    process = await asyncio.create_subprocess_exec(tmp_path / "new/test.sh", stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(DEADLINE_S):
        out, _ = await process.communicate()
    assert (process.returncode, out) == (0, b"The output is as expected.\n")
    (tmp_path / "new/expected.txt").write_text("other\n")
    process = await asyncio.create_subprocess_exec(
        tmp_path / "new/test.sh", stdout=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() != 0
