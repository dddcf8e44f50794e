"""What the processes of a real container cost for one run, by the counters of the kernel in /proc.

All processes of the container are children of its supervisor, or their children. The kernel adds the
counters of a dead process to those of the process that has waited for it. So the sum over all living
processes includes the dead ones. Its growth over several runs, divided by their number, is the cost of one
run with its sandbox.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiodocker
from benchmarks import tracing
from benchmarks.agent_cost import Load
from benchmarks.tracing import CannotCount

from nanoagent.container.spec import LABEL_RUNTIME, LABEL_WORKER

if TYPE_CHECKING:
    from benchmarks.agent_cost import AgentUnderTest

    from nanoagent.model.job import Runtime

RUNS: Final = 10
_ONE_AT_A_TIME: Final = Load("single", 1)
_SAME_READINGS: Final = 25
_READING_S: Final = 0.02
_DEADLINE_S: Final = 60.0
_WORKING: Final = {"R", "D"}  # states of /proc/PID/stat
_MOUNT_CALLS: Final = {
    "mount",
    "umount2",
    "pivot_root",
    "open_tree",
    "move_mount",
    "fsopen",
    "fsmount",
    "mount_setattr",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters of all processes of a container.

    Attributes:
        faults: Minor page faults.
        file_calls: Calls of read and write on files and pipes.
        written_bytes: Bytes that these calls have written.
        last_pid: The highest process ID in the PID namespace of the container.
        mounts: The mounts that the newest process sees.
        processes: The number of living processes.
        working: The number of processes that run, or wait for a CPU or a disk.
    """

    faults: int
    file_calls: int
    written_bytes: int
    last_pid: int
    mounts: int
    processes: int
    working: int


def io_of(pid: int) -> dict[str, int]:
    """Return /proc/PID/io: bytes and calls of read and write.

    Raises:
        CannotCount: The kernel does not count them, or this process may not read them.
        ProcessLookupError: The process has ended.
    """
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError as exc:
        if not Path(f"/proc/{pid}").exists():
            raise ProcessLookupError(errno.ESRCH, "the process has ended") from exc
        raise CannotCount(f"/proc/PID/io cannot be read: {exc.strerror}") from exc
    return {name: int(value) for name, _, value in (line.partition(":") for line in text.splitlines())}


def family(pid: int) -> list[int]:
    """Return a process, its children, their children, and so on."""
    found = [pid]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, children.read_text().split())
    return found


def supervisor_of(process_1: int) -> int:
    """Return the supervisor of an idle container: the only child of its launcher, or process 1 itself."""
    children = Path(f"/proc/{process_1}/task/{process_1}/children").read_text().split()
    return int(children[0]) if len(children) == 1 else process_1


def read(supervisor: int) -> Reading:
    """Read the counters of the container with this supervisor."""
    levels = len(_ids(supervisor))
    faults = calls = written = working = 0
    pids: dict[int, int] = {}
    members = family(supervisor)
    for pid in members:
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            working += fields[0] in _WORKING
            faults += int(fields[7]) + int(fields[8])  # minflt and cminflt; see proc(5)
            io = io_of(pid)
            calls += io["syscr"] + io["syscw"]
            written += io["wchar"]
            pids[_ids(pid)[levels - 1]] = pid
    newest = pids[max(pids)]
    mounts = len(Path(f"/proc/{newest}/mountinfo").read_text().splitlines())
    return Reading(faults, calls, written, max(pids), mounts, len(members), working)


def _ids(pid: int) -> list[int]:
    """Return the IDs of a process, from this PID namespace to its own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [int(word) for line in lines if line.startswith("NSpid:") for word in line.split()[1:]]


async def settled(supervisor: int) -> Reading:
    """Read the counters when no process of the container works any more: the next sandbox waits."""
    same, last = 0, None
    async with asyncio.timeout(_DEADLINE_S):
        while same < _SAME_READINGS:
            with suppress(OSError):  # a process has ended while it was read
                reading = read(supervisor)
                # On a busy machine, a process may wait longer for a CPU than all these readings take.
                same = same + 1 if reading == last and not reading.working else 0
                last = reading
            await asyncio.sleep(_READING_S)
    assert last is not None
    return last


async def of_container(agent: AgentUnderTest, runtime: Runtime) -> tuple[dict[str, float], dict[str, str]]:
    """Count what the container does for a hot run, and for the next sandbox."""
    supervisor = await _bound_supervisor(agent, runtime)
    before = await settled(supervisor)
    await agent.run(_ONE_AT_A_TIME, RUNS)
    after = await settled(supervisor)
    counts: dict[str, float] = {
        "forks": (after.last_pid - before.last_pid) // RUNS,
        "mounts": after.mounts,
        "minor_faults": (after.faults - before.faults) // RUNS,
        "container_file_calls": (after.file_calls - before.file_calls) // RUNS,
        "written_bytes": (after.written_bytes - before.written_bytes) // RUNS,
    }
    try:
        traced = await _system_calls(agent, supervisor)
    except CannotCount as lack:
        return counts, dict.fromkeys(("supervisor_syscalls", "run_syscalls", "mount_calls"), str(lack))
    return counts | traced, {}


async def _system_calls(agent: AgentUnderTest, supervisor: int) -> dict[str, float]:
    async with tracing.traced(family(supervisor), follow=True) as calls:
        await agent.run(_ONE_AT_A_TIME, RUNS)
        await settled(supervisor)
    own = sum(call.pid == supervisor for call in calls)
    return {
        "supervisor_syscalls": own // RUNS,
        "run_syscalls": (len(calls) - own) // RUNS,
        "mount_calls": sum(call.name in _MOUNT_CALLS for call in calls) // RUNS,
    }


async def _bound_supervisor(agent: AgentUnderTest, runtime: Runtime) -> int:
    """Return the supervisor of the container that runs the function: the one that a job makes work."""
    docker = aiodocker.Docker()
    try:
        labels = [f"{LABEL_WORKER}={agent.worker_id}", f"{LABEL_RUNTIME}={runtime}"]
        found = await docker.containers.list(filters={"label": labels})
        pids = [int((await one.show())["State"]["Pid"]) for one in found]
    finally:
        await docker.close()
    before = {pid: await settled(pid) for pid in pids}
    await agent.run(_ONE_AT_A_TIME, 1)
    working = [pid for pid in pids if (await settled(pid)).last_pid != before[pid].last_pid]
    assert len(working) == 1, f"{len(working)} of {len(pids)} containers worked for one job"
    return supervisor_of(working[0])
