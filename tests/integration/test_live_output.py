"""Output that the worker receives while the program runs, in real containers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import pytest

from nanoagent.common.units import MIB
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType, Isolation
from nanoagent.secrets.masking import Mask
from nanoagent.supervisor import wire
from support.sandboxes.adversarial import yard

if TYPE_CHECKING:
    from collections.abc import Iterable

# A run in a zygote, in a waiting process, and without a sandbox.
ENVIRONMENTS: Final = [
    (Runtime.PYTHON, Isolation.SANDBOX),
    (Runtime.NODEJS, Isolation.SANDBOX),
    (Runtime.PYTHON, Isolation.SHARED),
]
WAITS: Final = {
    Runtime.PYTHON: "import time\nprint('begun', flush=True)\ntime.sleep(600)\n",
    Runtime.NODEJS: "console.log('begun')\nsetTimeout(() => {}, 600000)\n",
}
BYTES: Final = 3 * MIB  # more than all buffers together
PRINTS_MUCH: Final = {
    Runtime.PYTHON: f"""
import sys
for n in range({BYTES // 1024}):
    sys.stdout.write(f"{{n:1023}}\\n")
    sys.stderr.write(f"{{n:7}}\\n")
""",
    Runtime.NODEJS: f"""
for (let n = 0; n < {BYTES // 1024}; n++) {{
    process.stdout.write(`${{n}}\\n`.padStart(1024))
    process.stderr.write(`${{n}}\\n`.padStart(8))
}}
""",
}
ENTRY: Final = {Runtime.PYTHON: "main.py", Runtime.NODEJS: "index.js"}


def joined(pieces: Iterable[tuple[bytes, bytes]], stream: bytes) -> bytes:
    return b"".join(output for name, output in pieces if name == stream)


@pytest.mark.parametrize(("runtime", "level"), ENVIRONMENTS)
async def test_output_arrives_while_the_program_runs(runtime: Runtime, level: Isolation) -> None:
    async with yard(level, (runtime,)) as runs:
        function = runs.function(runtime, {ENTRY[runtime]: WAITS[runtime]})
        async with runs.acquire(function) as acquired:
            pieces: list[tuple[bytes, bytes]] = []

            def note(stream: bytes, output: bytes) -> None:
                pieces.append((stream, output))
                acquired.container.session.kill()  # the program would run for ten minutes

            ran = await runs.run_in(acquired, function, "", live=True, on_output=note, timeout_ms=600_000)
        assert pieces == [(wire.STDOUT, b"begun\n")]
        assert (ran.execution.error_type, ran.stdout) == (ErrorType.CANCELLED, "begun\n")


@pytest.mark.parametrize(("runtime", "level"), ENVIRONMENTS)
async def test_all_output_arrives_in_order_also_what_the_result_leaves_out(
    runtime: Runtime, level: Isolation
) -> None:
    async with yard(level, (runtime,)) as runs:
        function = runs.function(runtime, {ENTRY[runtime]: PRINTS_MUCH[runtime]})
        pieces: list[tuple[bytes, bytes]] = []
        async with runs.acquire(function) as acquired:
            for _ in range(2):  # the second run is prepared by the supervisor
                pieces.clear()
                ran = await runs.run_in(
                    acquired, function, "", live=True, on_output=lambda *piece: pieces.append(piece)
                )
                assert ran.execution.error_type is None, ran.stderr
                numbers = range(BYTES // 1024)
                assert joined(pieces, wire.STDOUT).decode().split() == [str(n) for n in numbers]
                assert joined(pieces, wire.STDERR).decode().split() == [str(n) for n in numbers]
                assert ran.execution.collected.stdout.truncated_bytes
        silent = await runs.run(function, "")
        assert silent.execution.collected.stdout == ran.execution.collected.stdout


async def test_secrets_are_hidden_in_live_output_the_result_and_the_error() -> None:
    """The pieces of one value are flushed one by one, on both streams, also at the end of the output."""
    secret = "hunter22-é"
    program = f"""
import os, sys, time
secret = {secret!r}.encode()
for stream in (1, 2):
    os.write(stream, b"begun\\n")
    for byte in secret + b"\\n" + secret[:6]:
        os.write(stream, bytes([byte]))
        time.sleep(0.005)
sys.exit(f"\\ncannot connect: {{secret.decode()}}")
"""
    async with yard(Isolation.SANDBOX, (Runtime.PYTHON,)) as runs:
        function = runs.function(Runtime.PYTHON, {"main.py": program})
        pieces: list[tuple[bytes, bytes]] = []
        async with runs.acquire(function) as acquired:
            ran = await runs.run_in(
                acquired,
                function,
                "",
                live=True,
                on_output=lambda *piece: pieces.append(piece),
                mask=Mask([secret]),
            )
    assert joined(pieces, wire.STDOUT) == b"begun\n***\nhunter"
    assert joined(pieces, wire.STDERR) == b"begun\n***\nhunter\ncannot connect: ***\n"
    assert (wire.STDOUT, b"begun\n") in pieces, "output that is no secret waits for nothing"
    assert ran.stdout == "begun\n***\nhunter"
    assert ran.stderr == "begun\n***\nhunter\ncannot connect: ***\n"


@pytest.mark.parametrize(("runtime", "level"), ENVIRONMENTS)
async def test_the_time_limit_holds_while_nobody_receives_the_output(
    runtime: Runtime, level: Isolation
) -> None:
    async with yard(level, (runtime,)) as runs:
        function = runs.function(runtime, {ENTRY[runtime]: PRINTS_MUCH[runtime]})
        async with runs.acquire(function) as acquired:
            pieces: list[tuple[bytes, bytes]] = []
            transport = acquired.container.session._stream._transport
            assert transport is not None
            loop = asyncio.get_running_loop()

            def pause(stream: bytes, output: bytes) -> None:
                pieces.append((stream, output))
                if len(pieces) == 1:
                    transport.pause_reading()
                    loop.call_later(3, transport.resume_reading)

            ran = await runs.run_in(acquired, function, "", live=True, on_output=pause, timeout_ms=1000)
        assert ran.execution.error_type is ErrorType.TIMEOUT
        assert ran.execution.wall_ms < 2500  # the run ended before the worker received again
        printed = joined(pieces, wire.STDOUT)
        assert ran.stdout.startswith(printed[:1000].decode())
