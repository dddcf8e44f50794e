"""Output that the worker receives while the program runs, in real containers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pytest

from nanoagent.common.units import MIB
from nanoagent.container.execution import RunControl
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType, Isolation
from nanoagent.secrets.masking import Mask
from nanoagent.supervisor import wire
from nanoagent.supervisor.wire import LiveMode
from support.sandboxes.adversarial import yard

if TYPE_CHECKING:
    from collections.abc import Iterable

Piece: TypeAlias = "tuple[Any, ...]"
"""The arguments of `OnOutput`."""

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


def joined(pieces: Iterable[Piece], stream: bytes) -> bytes:
    return b"".join(piece[2] for piece in pieces if piece[0] == stream)


@pytest.mark.parametrize(("runtime", "level"), ENVIRONMENTS)
async def test_output_arrives_while_the_program_runs(runtime: Runtime, level: Isolation) -> None:
    async with yard(level, (runtime,)) as runs:
        function = runs.function(runtime, {ENTRY[runtime]: WAITS[runtime]})
        async with runs.acquire(function) as acquired:
            pieces: list[Piece] = []

            def note(stream: bytes, position: int, output: bytes, _: int | None = None) -> None:
                pieces.append((stream, position, output))
                acquired.container.session.kill()  # the program would run for ten minutes

            ran = await runs.run_in(
                acquired, function, "", live=LiveMode.LOSSLESS, on_output=note, timeout_ms=600_000
            )
        assert pieces == [(wire.STDOUT, 0, b"begun\n")]
        assert (ran.execution.error_type, ran.stdout) == (ErrorType.CANCELLED, "begun\n")


@pytest.mark.parametrize(("runtime", "level"), ENVIRONMENTS)
async def test_all_output_arrives_in_order_also_what_the_result_leaves_out(
    runtime: Runtime, level: Isolation
) -> None:
    async with yard(level, (runtime,)) as runs:
        function = runs.function(runtime, {ENTRY[runtime]: PRINTS_MUCH[runtime]})
        pieces: list[Piece] = []
        async with runs.acquire(function) as acquired:
            for _ in range(2):  # the second run is prepared by the supervisor
                pieces.clear()
                ran = await runs.run_in(
                    acquired,
                    function,
                    "",
                    live=LiveMode.LOSSLESS,
                    on_output=lambda *piece: pieces.append(piece),
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
        pieces: list[Piece] = []
        async with runs.acquire(function) as acquired:
            ran = await runs.run_in(
                acquired,
                function,
                "",
                live=LiveMode.LOSSLESS,
                on_output=lambda *piece: pieces.append(piece),
                mask=Mask([secret]),
            )
    assert joined(pieces, wire.STDOUT) == b"begun\n***\nhunter"
    assert joined(pieces, wire.STDERR) == b"begun\n***\nhunter\ncannot connect: ***\n"
    assert (wire.STDOUT, 0, b"begun\n", 6) in pieces, "output that is no secret waits for nothing"
    assert ran.stdout == "begun\n***\nhunter"
    assert ran.stderr == "begun\n***\nhunter\ncannot connect: ***\n"


@pytest.mark.parametrize(("runtime", "level"), ENVIRONMENTS)
async def test_the_time_limit_holds_while_nobody_receives_the_output(
    runtime: Runtime, level: Isolation
) -> None:
    async with yard(level, (runtime,)) as runs:
        function = runs.function(runtime, {ENTRY[runtime]: PRINTS_MUCH[runtime]})
        async with runs.acquire(function) as acquired:
            pieces: list[Piece] = []
            transport = acquired.container.session._stream._transport
            assert transport is not None
            loop = asyncio.get_running_loop()

            def pause(stream: bytes, position: int, output: bytes, _: int | None = None) -> None:
                pieces.append((stream, position, output))
                if len(pieces) == 1:
                    transport.pause_reading()
                    loop.call_later(3, transport.resume_reading)

            ran = await runs.run_in(
                acquired, function, "", live=LiveMode.LOSSLESS, on_output=pause, timeout_ms=1000
            )
        assert ran.execution.error_type is ErrorType.TIMEOUT
        assert ran.execution.wall_ms < 2500  # the run ended before the worker received again
        printed = joined(pieces, wire.STDOUT)
        assert ran.stdout.startswith(printed[:1000].decode())


# --- the limited mode: the program never waits, and output over the limit is skipped

RATE: Final = 256 * 1024
FLOOD_LINES: Final = 40_000
# Both streams: lines of 1 KiB and of 64 bytes. Then a pause, and a last line.
FLOODS: Final = {
    Runtime.PYTHON: f"""
import sys, time
for n in range({FLOOD_LINES}):
    sys.stdout.write(f"{{n:1023}}\\n")
    if n % 4 == 0:
        sys.stderr.write(f"{{n:63}}\\n")
sys.stdout.flush()
time.sleep(0.7)
print("the end")
""",
    Runtime.NODEJS: f"""
const fs = require('fs')
for (let n = 0; n < {FLOOD_LINES}; n++) {{
    fs.writeSync(1, `${{n}}\\n`.padStart(1024))
    if (n % 4 == 0) fs.writeSync(2, `${{n}}\\n`.padStart(64))
}}
setTimeout(() => fs.writeSync(1, "the end\\n"), 700)
""",
}


def limited(bytes_per_s: int) -> dict[str, Any]:
    return {"live": LiveMode.LIMITED, "live_bytes_per_s": bytes_per_s, "timeout_ms": 60_000}


def flood(stream: bytes) -> bytes:
    """Return the output of `FLOODS`."""
    if stream == wire.STDERR:
        return b"".join(b"%63d\n" % n for n in range(0, FLOOD_LINES, 4))
    return b"".join(b"%1023d\n" % n for n in range(FLOOD_LINES)) + b"the end\n"


def check_positions(pieces: Iterable[Piece], stream: bytes, printed: bytes) -> int:
    """Check that the pieces of a stream are in order and true, up to its end; return how much is skipped."""
    end = skipped = 0
    for name, position, output, *_ in pieces:
        if name == stream:
            assert position >= end
            assert output == printed[position : position + len(output)]
            skipped += position - end
            end = position + len(output)
    assert end == len(printed)
    return skipped


@pytest.mark.parametrize(("runtime", "level"), ENVIRONMENTS)
async def test_of_a_flood_a_part_is_shown_and_the_rest_is_counted(runtime: Runtime, level: Isolation) -> None:
    async with yard(level, (runtime,)) as runs:
        function = runs.function(runtime, {ENTRY[runtime]: FLOODS[runtime]})
        pieces: list[Piece] = []
        async with runs.acquire(function) as acquired:
            control = RunControl(LiveMode.LIMITED, lambda *piece: pieces.append(piece))
            ran = await runs.run_in(acquired, function, "", control=control, **limited(RATE))
        assert ran.execution.error_type is None, ran.stderr
        skipped = 0
        for stream, captured in (
            (wire.STDOUT, ran.execution.collected.stdout),
            (wire.STDERR, ran.execution.collected.stderr),
        ):
            printed = flood(stream)
            skipped_here = check_positions(pieces, stream, printed)
            shown = len(joined(pieces, stream))
            assert shown + skipped_here == len(printed)
            assert len(captured.head) + captured.truncated_bytes + len(captured.tail) == len(printed)
            skipped += skipped_here
        assert skipped > 20 * MIB
        seconds = ran.execution.wall_ms / 1000
        assert len(joined(pieces, wire.STDOUT) + joined(pieces, wire.STDERR)) <= RATE * (seconds + 2)
        assert len(pieces) <= 100 * (seconds + 1)  # at most two frames in 20 ms
        assert pieces[-1][2].endswith(b"the end\n")


COUNTS: Final = {
    Runtime.PYTHON: """
import sys, time
for n in range(60):
    print(n, flush=True)
    print(n, file=sys.stderr, flush=True)
    time.sleep(0.05)
""",
    Runtime.NODEJS: """
let n = 0
const timer = setInterval(() => {
    console.log(n)
    console.error(n)
    if (++n == 60) clearInterval(timer)
}, 50)
""",
}
COUNTED: Final = "".join(f"{n}\n" for n in range(60)).encode()


@pytest.mark.parametrize(("runtime", "level"), ENVIRONMENTS)
async def test_output_can_be_followed_from_the_middle_of_a_run(runtime: Runtime, level: Isolation) -> None:
    async with yard(level, (runtime,)) as runs:
        function = runs.function(runtime, {ENTRY[runtime]: COUNTS[runtime]})
        loop = asyncio.get_running_loop()
        pieces: list[Piece] = []
        arrivals: list[float] = []
        control = RunControl()

        def note(stream: bytes, position: int, output: bytes, _: int | None = None) -> None:
            pieces.append((stream, position, output))
            arrivals.append(loop.time())

        async with runs.acquire(function) as acquired:
            began_at = loop.time()
            loop.call_later(1.5, control.follow, note)
            loop.call_later(1.8, control.unfollow)
            loop.call_later(2.1, control.follow, note)
            ran = await runs.run_in(acquired, function, "", control=control, live_bytes_per_s=RATE)
        assert ran.execution.error_type is None, ran.stderr
        assert arrivals[0] - began_at >= 1.5
        # No frame leaves while the output is not followed. One may have been on its way.
        assert not [at for at in arrivals if 1.85 < at - began_at < 2.1]
        for stream in (wire.STDOUT, wire.STDERR):
            assert check_positions(pieces, stream, COUNTED) == 0
        assert pieces[0][2].count(b"\n") > 1  # what was printed before


@pytest.mark.parametrize(("runtime", "level"), ENVIRONMENTS)
async def test_a_worker_that_does_not_receive_does_not_slow_the_program_down(
    runtime: Runtime, level: Isolation
) -> None:
    async with yard(level, (runtime,)) as runs:
        function = runs.function(runtime, {ENTRY[runtime]: FLOODS[runtime]})
        async with runs.acquire(function) as acquired:
            transport = acquired.container.session._stream._transport
            assert transport is not None
            loop = asyncio.get_running_loop()
            pieces: list[Piece] = []

            def pause(stream: bytes, position: int, output: bytes, _: int | None = None) -> None:
                pieces.append((stream, position, output))
                if len(pieces) == 1:
                    transport.pause_reading()
                    loop.call_later(8, transport.resume_reading)

            # The rate is no limit here, so that all buffers become full.
            control = RunControl(LiveMode.LIMITED, pause)
            ran = await runs.run_in(acquired, function, "", control=control, **limited(100 * MIB))
        assert ran.execution.error_type is None, ran.stderr
        assert ran.execution.wall_ms < 7000
        for stream in (wire.STDOUT, wire.STDERR):
            check_positions(pieces, stream, flood(stream))


async def test_a_request_to_follow_that_arrives_after_the_run_has_no_effect_on_the_next_one() -> None:
    async with yard(Isolation.SANDBOX, (Runtime.PYTHON,)) as runs:
        function = runs.function(Runtime.PYTHON, {"main.py": "print('hello')\n"})
        async with runs.acquire(function) as acquired:
            for _ in range(3):
                ran = await runs.run_in(acquired, function, "", live_bytes_per_s=RATE)
                assert ran.stdout == "hello\n"
                acquired.container.session.follow(True)
