"""The system calls of processes, by strace."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

_DEADLINE_S: Final = 60.0
_PROBE_S: Final = 0.02
_CALL: Final = re.compile(r"^(\d+) +(\w+)\(")


class CannotCount(Exception):  # noqa: N818 - a fact about the machine, not a failure
    """This machine does not allow a counter. The message has the reason."""


class SystemCall(NamedTuple):
    """A system call that has begun.

    Attributes:
        pid: The ID of the thread, in the PID namespace of this process.
        name: The name of the call.
    """

    pid: int
    name: str


@asynccontextmanager
async def traced(pids: Sequence[int], *, follow: bool) -> AsyncIterator[list[SystemCall]]:
    """Trace processes until the block ends. The list has their calls after the block.

    Args:
        pids: The processes.
        follow: Whether their children and other threads are traced, too.

    Raises:
        CannotCount: strace is missing, or may not trace them.
    """
    program = shutil.which("strace")
    if program is None:
        raise CannotCount("strace is not installed")
    calls: list[SystemCall] = []
    with tempfile.TemporaryDirectory(prefix="na-trace-") as folder:
        output = Path(folder, "calls")
        options = ["-qqq", "-s", "0", "-o", str(output), *(["-f"] if follow else [])]
        targets = [word for pid in pids for word in ("-p", str(pid))]
        process = await asyncio.create_subprocess_exec(
            program, *options, *targets, stderr=asyncio.subprocess.PIPE, start_new_session=True
        )
        try:
            await _attached(pids, process)
            yield calls
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)  # it detaches from the processes
            await process.communicate()
        calls += _calls(output, pids[0])


def _calls(output: Path, only: int) -> Iterator[SystemCall]:
    """Yield the calls in an output of strace. It has no process IDs if `only` one process was traced."""
    for line in output.read_text(errors="replace").splitlines():
        if match := _CALL.match(line if line[:1].isdigit() else f"{only} {line}"):
            yield SystemCall(int(match[1]), match[2])


async def _attached(pids: Sequence[int], process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(_DEADLINE_S):
        while not all(_is_traced(pid) for pid in pids):
            if process.returncode is not None:
                assert process.stderr is not None
                message = (await process.stderr.read()).decode(errors="replace").strip()
                raise CannotCount(f"strace may not trace processes here: {message}")
            await asyncio.sleep(_PROBE_S)


def _is_traced(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return re.search(r"^TracerPid:\s+0$", status, re.MULTILINE) is None
