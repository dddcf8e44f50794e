"""`nanoagent send --follow` and `invoke --follow` as their users run them, beside a real worker."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shlex
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import pytest_asyncio

from support.agents.worker import WorkerUnderTest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.dev.local_services import EmbeddedStack

DEADLINE_S: Final = 90
SETTINGS: Final = {
    "WORKER_CPUS": "4",
    "MIN_ISOLATION": "L1",
    "WARM_POOL_NODEJS_SIZE": "0",
    "WARM_POOL_CPP_SIZE": "0",
    "WARM_POOL_GO_SIZE": "0",
}
LINES: Final = 15
COUNTS: Final = f"""
import sys, time
for n in range({LINES}):
    print("out", n, flush=True)
    print("err", n, file=sys.stderr, flush=True)
    time.sleep(0.2)
"""
FAILS: Final = "print('begun')\n1/0\n"
OUT: Final = "".join(f"out {n}\n" for n in range(LINES))
ERR: Final = "".join(f"err {n}\n" for n in range(LINES))
PAGE: Final = Path(__file__).parents[2] / "docs/sending.md"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(
    stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[WorkerUnderTest]:
    async with WorkerUnderTest(stack, tmp_path_factory.mktemp("worker"), SETTINGS) as worker:
        yield worker


@dataclass
class Sender:
    """A process `nanoagent`.

    Attributes:
        process: The process.
        err: Its standard error, as far as it was read.
    """

    process: asyncio.subprocess.Process
    err: str = ""

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            return (await self.process.stdout.readline()).decode()

    async def request_id(self) -> str:
        assert self.process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            while not (found := re.search(r"Request ((?:send|invoke)-\w+): ", self.err)):
                self.err += (await self.process.stderr.readline()).decode()
        return found[1]

    async def end(self) -> tuple[int | None, str]:
        """Return the exit code, and the rest of standard output. Afterwards `err` is complete."""
        async with asyncio.timeout(DEADLINE_S):
            out, err = await self.process.communicate()
        self.err += err.decode()
        return self.process.returncode, out.decode()


@asynccontextmanager
async def nanoagent(
    worker: WorkerUnderTest, *arguments: str | Path, **settings: str
) -> AsyncIterator[Sender]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nanoagent", *map(str, arguments), "--env-file", os.devnull),
        env=os.environ | worker.environment() | settings,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Sender(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def arguments_of(worker: WorkerUnderTest, command: str, folder: Path, program: str) -> list[str]:
    """Return the arguments of a command that follows a new function, and deploy the function if needed."""
    code = folder / f"f-{secrets.token_hex(4)}"
    code.mkdir()
    (code / "main.py").write_text(program)
    if command == "send":
        return ["send", str(code), "--follow", "--locale", "en"]
    async with nanoagent(worker, "deploy", code) as deployment:
        code_, _ = await deployment.end()
        assert code_ == 0, deployment.err
    return ["invoke", code.name, "--follow", "--locale", "en"]


def lines_of_function(err: str) -> str:
    return "".join(line for line in err.splitlines(keepends=True) if line.startswith("err "))


@pytest.mark.parametrize("command", ["send", "invoke"])
async def test_lines_arrive_while_the_function_runs_and_only_once(
    worker: WorkerUnderTest, tmp_path: Path, command: str
):
    async with nanoagent(worker, *await arguments_of(worker, command, tmp_path, COUNTS)) as sender:
        request_id = await sender.request_id()
        first = [await sender.line() for _ in range(3)]
        assert await worker.redis.get(f"job:{request_id}") is None  # it has not ended
        code, rest = await sender.end()
    assert code == 0, sender.err
    assert "".join(first) + rest == OUT
    assert lines_of_function(sender.err) == ERR
    assert f"attempt 1 runs on worker {worker.worker_id}" in sender.err
    assert "no live output" not in sender.err


@pytest.mark.parametrize("command", ["send", "invoke"])
async def test_the_summary_of_a_failure_follows_the_output(
    worker: WorkerUnderTest, tmp_path: Path, command: str
):
    async with nanoagent(worker, *await arguments_of(worker, command, tmp_path, FAILS)) as sender:
        code, out = await sender.end()
    assert (code, out) == (1, "begun\n"), sender.err
    assert sender.err.count("Traceback (most recent call last):") == 1
    after = sender.err.partition("\nFAILED (USER_ERROR)  exit code 1, ran ")[2]
    assert "\nerror  ZeroDivisionError: division by zero\n" in after


@pytest.mark.parametrize("command", ["send", "invoke"])
async def test_ctrl_c_ends_only_the_following_and_the_printed_command_continues(
    worker: WorkerUnderTest, tmp_path: Path, command: str
):
    async with nanoagent(worker, *await arguments_of(worker, command, tmp_path, COUNTS)) as sender:
        request_id = await sender.request_id()
        first = [await sender.line() for _ in range(3)]
        sender.process.send_signal(signal.SIGINT)
        code, rest = await sender.end()
    assert code == 130, sender.err
    assert "The job was sent and continues." in sender.err
    assert f"nanoagent cancel {request_id}" in sender.err
    (proposed,) = re.findall(r"to follow it: +nanoagent (logs .*)", sender.err)
    words = shlex.split(proposed)
    assert words[-2:] == ["--env-file", os.devnull]
    async with nanoagent(worker, *words[:-2]) as follower:
        code, continued = await follower.end()
    assert (code, "".join(first) + rest + continued) == (0, OUT)


async def test_after_the_wait_the_command_that_continues_is_printed(worker: WorkerUnderTest, tmp_path: Path):
    arguments = await arguments_of(worker, "invoke", tmp_path, COUNTS)
    async with nanoagent(worker, *arguments, "--wait", "1.5") as sender:
        code, _ = await sender.end()
    assert code == 4, sender.err
    assert "The job continues." in sender.err
    assert re.search(r"to follow it: +nanoagent logs invoke-\w+ --follow", sender.err)


@pytest.mark.parametrize("command", ["send", "invoke"])
async def test_a_worker_without_live_logs_is_named_and_the_output_comes_at_the_end(
    stack: EmbeddedStack, tmp_path: Path, command: str
):
    async with WorkerUnderTest(stack, tmp_path, SETTINGS | {"LIVE_LOGS": "off"}) as worker:
        arguments = await arguments_of(worker, command, tmp_path, COUNTS)
        async with nanoagent(worker, *arguments) as sender:
            code, out = await sender.end()
    assert (code, out) == (0, OUT), sender.err
    assert lines_of_function(sender.err) == ERR
    assert sender.err.count("no live output arrived") == 1


def sender_rights(*, may_follow: bool) -> list[str]:
    """Return the permissions of the Redis users in docs/sending.md."""
    rules = [line for line in PAGE.read_text().splitlines() if line.startswith("ACL SETUSER sender")]
    words = " ".join(rules if may_follow else rules[:1]).split()
    return [word for word in words if word[0] in "~%&+"]


@pytest.mark.parametrize("may_follow", [False, True])
@pytest.mark.parametrize("command", ["send", "invoke"])
async def test_a_redis_user_needs_the_documented_permissions(
    worker: WorkerUnderTest, tmp_path: Path, command: str, *, may_follow: bool
):
    arguments = await arguments_of(worker, command, tmp_path, COUNTS)
    name, password = f"sender-{secrets.token_hex(4)}", secrets.token_hex(8)
    rights = sender_rights(may_follow=may_follow)
    await worker.redis.execute_command("ACL", "SETUSER", name, "reset", "on", f">{password}", *rights)
    user = {"REDIS_USERNAME": name, "REDIS_PASSWORD": password}
    try:
        async with nanoagent(worker, *arguments, **user) as sender:
            code, out = await sender.end()
    finally:
        await worker.redis.execute_command("ACL", "DELUSER", name)
    assert (code, out) == (0, OUT), sender.err
    assert lines_of_function(sender.err) == ERR
    assert ("this Redis user may not follow jobs" in sender.err) is not may_follow
    assert "no live output" not in sender.err


async def test_the_output_files_are_downloaded_after_the_output(worker: WorkerUnderTest, tmp_path: Path):
    program = "print('begun', flush=True)\nopen('/output/a', 'w').write('x')\n"
    arguments = await arguments_of(worker, "invoke", tmp_path, program)
    async with nanoagent(worker, *arguments, "--output", tmp_path / "results") as sender:
        code, out = await sender.end()
    assert (code, out) == (0, "begun\n"), sender.err
    assert (tmp_path / "results/a").read_text() == "x"


async def test_the_exit_code_of_a_timeout_stays_that_of_the_command(worker: WorkerUnderTest, tmp_path: Path):
    arguments = await arguments_of(worker, "send", tmp_path, "print('begun', flush=True)\nwhile True: pass\n")
    async with nanoagent(worker, *arguments, "--timeout-ms", "700") as sender:
        code, out = await sender.end()
    assert (code, out) == (1, "begun\n"), sender.err
    assert "TIMEOUT" in sender.err
