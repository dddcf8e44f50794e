"""The sandbox of the next run waits while another run executes: neither can reach or harm the other."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.common.units import MIB
from nanoagent.container import cgroup
from nanoagent.container.execution import RunControl, execute
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.errors import ContainerError
from nanoagent.model.job import NetworkPolicy, Runtime
from nanoagent.model.result import ErrorType, Isolation
from support.checks.waiting import eventually
from support.sandboxes.adversarial import LIMITS, yard
from support.sandboxes.containers import RUN_STDIN, request_for
from support.services.networks import Echo, networked_yard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.container.base import RunningContainer
    from support.sandboxes.adversarial import Function, Yard
    from support.sandboxes.containers import Ran
    from support.services.networks import NetworkedYard

pytestmark = pytest.mark.asyncio(loop_scope="module")

NONE, AI, EGRESS = NetworkPolicy
INTERPRETED = tuple(RUN_STDIN)
BACK_TO_BACK = 6
PAUSE_S = 10.2  # longer than CLOSE_US in level_sandbox.c
NOISE_BYTES = 3 * MIB  # the kernel counts in batches, and frees its own structures late


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def containers() -> AsyncIterator[Yard]:
    async with yard(Isolation.SANDBOX) as made:
        yield made


@pytest.fixture
def function(containers: Yard, runtime: Runtime) -> Function:
    return containers.function(runtime, RUN_STDIN[runtime])


async def run(containers: Yard, function: Function, said: str, **changes: int) -> Ran:
    """Run a function in a sandbox that was pre-created: with the limits of such a sandbox."""
    return await containers.run(function, said, open_files=LIMITS.open_files, **changes)


async def container_of(containers: Yard, function: Function) -> RunningContainer:
    """The container in which runs of the function take place."""
    async with containers.acquire(function) as acquired:
        await acquired.container.session.ready()
        acquired.clean = True
        return acquired.container


def processes_in(container: RunningContainer) -> list[int]:
    """The numbers on the host of the container's processes."""
    group = container.group
    folder = group.memory if isinstance(group, cgroup.ControlGroupV1) else group.folder  # type: ignore[union-attr]
    return [int(line) for line in (folder / "cgroup.procs").read_text().split()]


def confined_in(container: RunningContainer) -> list[int]:
    """The processes that wait for a run, and those of the run, in the order of their sandboxes."""
    inits, found = {}, []
    for pid in processes_in(container):
        with suppress(OSError):
            sandbox = str(Path(f"/proc/{pid}/ns/pid").readlink())
            started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
            if "\nNSpid:" in (status := Path(f"/proc/{pid}/status").read_text()):
                numbers = status.partition("\nNSpid:")[2].partition("\n")[0].split()
                if numbers[-1] == "1":
                    inits[sandbox] = int(started), pid
            if int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == 1000:
                found.append((sandbox, pid))
    return [pid for _, pid in sorted((inits[sandbox], pid) for sandbox, pid in found if sandbox in inits)]


def state_of(pid: int) -> str:
    """The state of a process; `S` if it waits."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def gone(pid: int) -> None:
    """Wait until a process that was killed has ended."""

    async def is_gone() -> bool:
        return not Path(f"/proc/{pid}").exists()

    await eventually(is_gone)


async def two_wait(container: RunningContainer) -> list[int]:
    """Wait until two processes wait in the container; return them in the order in which runs use them."""
    return await some_wait(container, {2})


async def some_wait(container: RunningContainer, numbers: set[int]) -> list[int]:
    """Wait until so many processes wait in the container; return them in the order in which runs use them."""
    seen: list[list[int]] = []

    async def are_quiet() -> bool:
        with suppress(OSError):
            waiting = confined_in(container)
            seen.append([*waiting, *(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in waiting)])
            states = {state_of(pid) for pid in waiting}
            return len(waiting) in numbers and states == {"S"} and seen[-2:-1] == seen[-1:]
        return False

    await eventually(are_quiet)
    return confined_in(container)


# --- attacks on the sandbox that waits

ATTACKS = {
    Runtime.PYTHON: {
        "signals to every process": (
            "import os, signal\n"
            "for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):\n"
            "    for pid in (*range(-300, -1), *range(2, 300)):\n"
            "        if abs(pid) != os.getpid():\n"
            "            try: os.kill(pid, number)\n"
            "            except OSError: pass\n"
        ),
        "full directories": (
            "for place in ('/tmp', '/output', '/dev/shm', '.'):\n"
            "    with open(place + '/fill', 'wb') as file:\n"
            "        try:\n"
            "            while file.tell() < 40 << 20: file.write(bytes(1 << 20))\n"
            "        except OSError: pass\n"
        ),
        "as many processes as it may have": (
            "import subprocess\n"
            f"held = [subprocess.Popen(['sleep', '1000']) for _ in range({LIMITS.processes - 1})]\n"
        ),
        "every socket name": (
            "import socket\nheld = []\n"
            "for number in range(500):\n"
            "    held.append(socket.socket(socket.AF_UNIX)); held[-1].bind(f'\\0{number}')\n"
            "for port in range(1, 3000):\n"
            "    one = socket.socket()\n"
            "    try: one.bind(('0.0.0.0', port)); one.listen(); held.append(one)\n"
            "    except OSError: pass\n"
        ),
    },
    Runtime.NODEJS: {
        "signals to every process": (
            "const own = new Set(require('fs').readdirSync('/proc/self/task').map(Number));\n"
            "for (const name of ['SIGKILL', 'SIGSTOP', 'SIGTERM'])\n"
            "  for (let pid = -299; pid < 300; pid++) if (pid && !own.has(Math.abs(pid)))\n"
            "    try { process.kill(pid, name) } catch {}\n"
        ),
        "full directories": (
            "const fs = require('fs');\n"
            "for (const place of ['/tmp', '/output', '/dev/shm', '.']) {\n"
            "  const file = fs.openSync(place + '/fill', 'w'), block = Buffer.alloc(1 << 20);\n"
            "  try { for (let i = 0; i < 40; i++) fs.writeSync(file, block) } catch {}\n"
            "}\n"
        ),
    },
}
LOOK = {
    Runtime.PYTHON: (
        "import os\n"
        "print([len(os.listdir(place)) for place in ('/tmp', '/output', '/dev/shm')], os.listdir('.'),"
        " [pid for pid in os.listdir('/proc') if pid.isdigit()])"
    ),
    Runtime.NODEJS: (
        "const fs = require('fs');\n"
        "console.log(['/tmp', '/output', '/dev/shm'].map((place) => fs.readdirSync(place).length),"
        " fs.readdirSync('.'), fs.readdirSync('/proc').filter((name) => /^[0-9]+$/.test(name)))"
    ),
}
UNTOUCHED = {
    Runtime.PYTHON: "[0, 0, 0] ['main.py'] ['1', '2']\n",
    Runtime.NODEJS: "[ 0, 0, 0 ] [ 'index.js' ] [ '1', '2' ]\n",
}


@pytest.mark.parametrize(
    ("runtime", "attack"), [(runtime, attack) for runtime, attacks in ATTACKS.items() for attack in attacks]
)
async def test_an_attack_does_not_reach_the_sandbox_that_waits(
    containers: Yard, function: Function, runtime: Runtime, attack: str
):
    container = await container_of(containers, function)
    waiting = await two_wait(container)
    async with containers.acquire(function) as acquired:  # the next run follows without a pause
        await containers.run_in(acquired, function, ATTACKS[runtime][attack], open_files=LIMITS.open_files)
        if acquired.clean:
            assert waiting[1] in processes_in(container)
            assert state_of(waiting[1]) == "S"
            await acquired.container.session.ready()
            looked = await containers.run_in(acquired, function, LOOK[runtime], open_files=LIMITS.open_files)
            assert (looked.stdout, looked.stderr) == (UNTOUCHED[runtime], "")
    looked = await run(containers, function, LOOK[runtime])
    assert (looked.stdout, looked.stderr) == (UNTOUCHED[runtime], "")


# --- a process that is killed while it waits


@pytest.mark.parametrize("runtime", INTERPRETED)
async def test_the_second_process_that_waits_is_replaced_when_it_is_killed(
    containers: Yard, function: Function
):
    container = await container_of(containers, function)
    first, second = await two_wait(container)
    os.kill(second, signal.SIGKILL)
    assert (await two_wait(container))[0] == first
    for _ in range(3):
        ran = await run(containers, function, "")
        assert (ran.execution.error_type, ran.container_id) == (None, container.id)


@pytest.mark.parametrize("runtime", INTERPRETED)
async def test_the_process_for_the_next_run_fails_no_run_when_it_is_killed(
    containers: Yard, function: Function
):
    """The worker already has the listening sockets of its sandbox, so the container ends."""
    container = await container_of(containers, function)
    first = (await two_wait(container))[0]
    os.kill(first, signal.SIGKILL)
    await gone(first)
    with suppress(ContainerError):  # the attempt is repeated
        ran = await run(containers, function, "")
        assert ran.container_id != container.id
    assert (await run(containers, function, "")).execution.error_type is None


SLEEP = {
    Runtime.PYTHON: "import time\ntime.sleep(1000)",
    Runtime.NODEJS: "setTimeout(() => {}, 1000000)",
}


@pytest.mark.parametrize("runtime", INTERPRETED)
async def test_a_process_that_is_killed_during_a_run_is_replaced_after_it(
    containers: Yard, function: Function, runtime: Runtime
):
    container = await container_of(containers, function)
    of_the_run, waiting = await two_wait(container)
    async with containers.acquire(function) as acquired:
        running = asyncio.create_task(
            containers.run_in(
                acquired, function, SLEEP[runtime], timeout_ms=100_000, open_files=LIMITS.open_files
            )
        )

        async def runs() -> bool:
            return Path(f"/proc/{of_the_run}/cwd").readlink().name == "work"  # as soon as it has its job

        await eventually(runs)
        os.kill(waiting, signal.SIGKILL)
        await gone(waiting)
        os.kill(of_the_run, signal.SIGTERM)
        ran = await running
    assert (ran.execution.error_type, ran.acquired.clean) == (ErrorType.SIGNAL, True)
    for _ in range(3):
        ran = await run(containers, function, "")
        assert (ran.execution.error_type, ran.container_id) == (None, container.id)


# --- memory

HOLD = {
    Runtime.PYTHON: "held = bytearray({mb} << 20)",
    Runtime.NODEJS: "const held = Buffer.alloc({mb} << 20, 1)",
}


async def hold(containers: Yard, function: Function, mb: int) -> Ran:
    return await run(containers, function, HOLD[function.runtime].format(mb=mb))


def peak_of(ran: Ran) -> int:
    assert ran.execution.error_type is None
    assert ran.execution.use is not None
    assert ran.execution.use.peak_bytes is not None
    return ran.execution.use.peak_bytes


@pytest.mark.parametrize("runtime", INTERPRETED)
async def test_a_run_has_the_same_peak_and_limit_with_and_without_a_pause_before_it(
    containers: Yard, function: Function
):
    container = await container_of(containers, function)
    paused = []
    for _ in range(3):
        await some_wait(container, {1, 2})
        paused.append(peak_of(await hold(containers, function, 90)))
    hasty = [peak_of(await hold(containers, function, 90)) for _ in range(BACK_TO_BACK)]
    truth = statistics.median(paused)
    assert all(abs(peak - truth) < NOISE_BYTES for peak in paused), paused
    # What another sandbox took between the peak of a run and its end cannot be told from the run's own. And
    # the kernel may free memory of the previous run during this one.
    assert 0 < container.sandbox_bytes < 20 * MIB
    error = container.sandbox_bytes + NOISE_BYTES
    assert all(abs(peak - truth) < error for peak in hasty), (paused, hasty)
    for _ in range(2):
        assert (await hold(containers, function, 300)).execution.error_type is ErrorType.OUT_OF_MEMORY
        assert (await hold(containers, function, 90)).execution.error_type is None


@pytest.mark.parametrize("runtime", [Runtime.NODEJS])
async def test_a_second_standby_process_waits_only_while_runs_follow_each_other_closely(
    containers: Yard, function: Function
):
    container = await container_of(containers, function)
    assert container.group is not None
    await two_wait(container)
    held_by_two = container.group.held_bytes()
    await run(containers, function, "")  # the first run follows none
    await some_wait(container, {1})
    assert container.group.held_bytes() < held_by_two - 4 * MIB
    peaks = [peak_of(await hold(containers, function, 90)) for _ in range(3)]
    assert all(90 * MIB <= peak < 130 * MIB for peak in peaks), peaks
    await two_wait(container)
    await asyncio.sleep(PAUSE_S)
    await run(containers, function, "")
    await some_wait(container, {1})


@pytest.mark.parametrize("runtime", [Runtime.PYTHON])
async def test_a_run_for_which_the_kernel_kills_the_process_that_waits_is_out_of_memory(
    containers: Yard, function: Function
):
    """The run makes itself an unlikely victim, and holds little more than its limit."""
    ran = await containers.run(
        function,
        "open('/proc/self/oom_score_adj', 'w').write('0')\n"
        "with open('/dev/shm/x', 'wb') as file:\n"
        "    for _ in range(129): file.write(bytes(1 << 20))\n",
    )
    assert ran.execution.error_type is ErrorType.OUT_OF_MEMORY
    assert (await run(containers, function, "")).execution.error_type is None


# --- the network


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def networked() -> AsyncIterator[tuple[NetworkedYard, Echo]]:
    gateway = Echo()
    async with networked_yard(Isolation.SANDBOX, (Runtime.PYTHON,), gateway) as made:
        yield made, gateway


ASK = """
import os, socket
def ask():
    try:
        near = socket.create_connection(("127.0.0.1", 11434), 60)
    except ConnectionRefusedError:
        return "refused"
    near.sendall(b"x")
    return near.recv(100).decode()
print(ask())
"""
# Its children go on to ask until the sandbox ends.
ASK_ON = ASK + "for _ in range(4):\n    if not os.fork():\n        while True: ask()\n"


async def test_each_of_two_runs_without_a_pause_has_its_own_network(networked: tuple[NetworkedYard, Echo]):
    place, gateway = networked
    function = place.containers.function(Runtime.PYTHON, RUN_STDIN[Runtime.PYTHON])
    for number in range(8):
        greedy, ran = f"greedy-{number}", f"next-{number}"
        said = {}
        for name, snippet, policy in (
            (greedy, ASK_ON, AI),
            (ran, ASK, AI),
            (f"none-{number}", ASK, NONE),
            (f"wide-{number}", ASK, EGRESS),
        ):
            ended, run = await place.run(function, snippet, policy, name)
            said[name] = ended.stdout, run.usage.tokens
        tokens = said.pop(greedy)[1]
        assert tokens >= 1
        assert said == {
            ran: (f"{ran}:x\n", 1),
            f"none-{number}": ("refused\n", 0),
            f"wide-{number}": (f"wide-{number}:x\n", 1),
        }
        assert len(gateway.told[ran]) == 1


# --- the end of a run by the worker


@pytest.mark.parametrize("runtime", INTERPRETED)
async def test_a_cancelled_run_and_one_without_time_leave_the_next_run_alone(
    containers: Yard, function: Function, runtime: Runtime
):
    ran = await run(containers, function, SLEEP[runtime], timeout_ms=200)
    assert ran.execution.error_type is ErrorType.TIMEOUT
    async with containers.acquire(function) as acquired:
        await acquired.container.session.ready()
        control = RunControl()
        request = request_for(
            SLEEP[runtime].encode(),
            arguments=RECIPES[runtime].arguments,
            timeout_ms=100_000,
            open_files=LIMITS.open_files,
        )
        running = asyncio.create_task(execute(acquired, request, Path("/nonexistent"), control))

        async def can_be_killed() -> bool:
            return control.kill is not None

        await eventually(can_be_killed)
        assert control.kill is not None
        control.kill()
        assert (await running).error_type is ErrorType.CANCELLED
    assert (await run(containers, function, LOOK[runtime])).stdout == UNTOUCHED[runtime]
