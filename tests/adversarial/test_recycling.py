"""Containers that are recycled: what a function, or a supervisor that it has taken over, leaves behind.

Three attackers are tried:

* a program, in all languages, which leaves traces of every kind;
* a supervisor that a program has taken over. `docker exec` plays it: a process of the container's user, in
  the container's own namespaces and under its filter, but outside of every sandbox;
* root of the host, who plants what the checks must find, even if no process of the container could leave it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nanoagent.common.units import MIB
from nanoagent.container import proof, retirement
from nanoagent.container.base import RecyclingFailure
from nanoagent.container.cgroup import ControlGroupV1, ControlGroupV2
from nanoagent.container.policy import Sharing
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation, Start
from nanoagent.network.listening_sockets import ListeningAddress, SocketKind
from support.sandboxes.adversarial import ALICE, BOB, LEFT, LOOK, yard

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.container.base import RunningContainer
    from support.sandboxes.adversarial import Function, Yard

# The worker then has a second connection with the supervisor.
ADDRESSES = (ListeningAddress(SocketKind.TCP, "127.0.0.1", 11434),)


# --- a program


@pytest.fixture(params=Runtime, ids=str)
def language(
    request: pytest.FixtureRequest, program_of: Callable[[Runtime], bytes | None]
) -> tuple[Runtime, bytes | None]:
    return request.param, program_of(request.param)


def functions(place: Yard, runtime: Runtime, program: bytes | None) -> list[Function]:
    """Return functions of two owners. Their code does the same, but is not the same."""
    of_alice = place.adversary(runtime, program, owner=ALICE)
    entry = RECIPES[runtime].entry
    of_bob = place.function(runtime, {entry: (of_alice.tree / entry).read_text() + "\n"}, owner=BOB)
    return [of_alice, replace(of_bob, program=of_alice.program)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["A, B", "B, A"])
async def test_a_function_sees_nothing_of_the_function_before_the_recycling(language, order):
    """What B sees after A in a recycled container is what it sees in a new one."""
    runtime, program = language
    async with yard(Isolation.SANDBOX, (runtime,), sharing=Sharing.TENANT) as place:
        made = functions(place, runtime, program)
        before, after = (made[number] for number in order)
        (before.tree / "of_before").write_text("A's")
        left, ran = await place.ask(before, leave=LEFT)
        assert set(left.values()) == {"done"}
        assert await place.recycle(ran.container_id)
        seen, again = await place.ask(after, look=LOOK)
        assert (again.container_id, again.acquired.start) == (ran.container_id, Start.WARM)
    async with yard(Isolation.SANDBOX, (runtime,), sharing=Sharing.TENANT) as place:
        fresh, _ = await place.ask(functions(place, runtime, program)[order[1]], look=LOOK)
    assert seen == fresh


async def test_a_container_is_recycled_again_and_again_and_has_the_limits_of_each_function(language):
    runtime, program = language
    async with yard(Isolation.SANDBOX, (runtime,)) as place:
        made = functions(place, runtime, program)
        places = set()
        for turn in range(6):
            function = made[turn % 2]
            memory_mb = 128 + 64 * (turn % 3)
            ran = await place.run(function, '{"look": ["link /proc/self"]}', memory_mb=memory_mb)
            group = ran.acquired.container.group
            assert group is not None
            assert memory_mb <= group.memory_limit() / MIB < memory_mb + 64, turn
            assert ran.execution.error_type is None
            places.add(ran.container_id)
            assert await place.recycle(ran.container_id)
    assert len(places) == 1


BUSY = """
import time
held = bytearray(90 << 20)
held[::4096] = b"x" * (90 << 8)
until = time.process_time() + 0.1
while time.process_time() < until: pass
print(open("/sys/fs/cgroup/" + COUNTER).read().split()[PLACE])
"""
SMALL = """
import time
held = bytearray(5 << 20)
held[::4096] = b"x" * (5 << 8)
time.sleep(0.2)
print(open("/sys/fs/cgroup/" + COUNTER).read().split()[PLACE])
"""


@pytest.mark.parametrize("may_reset", [True, False], ids=["reset", "no reset"])
async def test_a_function_is_not_charged_for_what_the_one_before_it_used(may_reset, monkeypatch):
    """The counters of the kernel go on. If the peak cannot be reset, the peak of B is unknown."""
    version_1 = Path("/sys/fs/cgroup/cpuacct").exists()
    counter, place = ("cpuacct/cpuacct.usage", 0) if version_1 else ("cpu.stat", 1)
    names = f"COUNTER, PLACE = {counter!r}, {place}\n"
    if not may_reset:
        monkeypatch.setattr(ControlGroupV1, "reset_peak", lambda _: False)
        monkeypatch.setattr(ControlGroupV2, "reset_peak", lambda _: False)
    async with yard(Isolation.SANDBOX, (Runtime.PYTHON,)) as made:
        busy = made.function(Runtime.PYTHON, {"main.py": names + BUSY}, owner=ALICE)
        small = made.function(Runtime.PYTHON, {"main.py": names + SMALL}, owner=BOB)
        first = await made.run(busy, "", timeout_ms=120_000)
        assert first.execution.error_type is None, first.stderr
        assert await made.recycle(first.container_id)
        second = await made.run(small, "", timeout_ms=120_000)
    assert second.container_id == first.container_id
    assert int(second.stdout) > int(first.stdout) > 0  # B sees the CPU time of A in the sum of both
    used, used_by_b = first.execution.use, second.execution.use
    assert used is not None
    assert used_by_b is not None
    assert used.peak_bytes is not None
    assert used.peak_bytes > 85 * MIB  # the counters of the kernel are a little late
    assert (used_by_b.oom_kills, used_by_b.refused_processes) == (0, 0)
    if may_reset:
        assert used_by_b.peak_bytes is not None
        assert 3 * MIB < used_by_b.peak_bytes < 20 * MIB
    else:
        assert used_by_b.peak_bytes is None


# --- a supervisor that was taken over

SHOW = "import sys; sys.stdout.write(sys.stdin.read())"
PRELUDE = """
import array, ctypes, fcntl, os, resource, signal, socket, sys, time
C = ctypes.CDLL(None, use_errno=True)
TEMPORARY = ('/work', '/tmp', '/output', '/input', '/dev/shm')

def checked(result):
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def stay():
    '''Go on as an orphan that takes no signal which it may refuse, with all that this process has open.'''
    if os.fork(): os._exit(0)
    os.setsid()
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    null = os.open('/dev/null', os.O_RDWR)
    for standard in range(3): os.dup2(null, standard)
    while True: time.sleep(1000)

def refused(attempt):
    try: attempt()
    except OSError: return
    raise SystemExit('it was allowed')
"""


@dataclass(frozen=True, slots=True)
class Takeover:
    """What a process in the place of the supervisor does.

    Attributes:
        code: Python code.
        found: The failure of the recycling; None if the container must be clean afterwards.
    """

    code: str
    found: RecyclingFailure | None = None


RESIDUE = RecyclingFailure.RESIDUE
TAKEOVERS = {
    # --- processes
    "an orphan that takes no signal": Takeover("stay()"),
    "a stopped process": Takeover("if os.fork(): os._exit(0)\nos.kill(os.getpid(), signal.SIGSTOP)"),
    "processes that fork without end": Takeover(
        "for _ in range(4):\n"
        "  if os.fork() == 0:\n"
        "    null = os.open('/dev/null', os.O_RDWR)\n"
        "    for standard in range(3): os.dup2(null, standard)\n"
        "    signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "    while True:\n"
        "      try:\n"
        "        if os.fork(): os._exit(0)\n"
        "      except OSError: pass"
    ),
    "a process in its own user, mount and process namespaces": Takeover(
        "number = {'x86_64': 56, 'aarch64': 220}[os.uname().machine]\n"
        "if checked(C.syscall(number, 0x10000000 | 0x00020000 | 0x20000000 | 17, 0, 0, 0, 0)) == 0: stay()"
    ),
    "threads": Takeover(
        "import threading\nif os.fork(): os._exit(0)\n"
        "for _ in range(8): threading.Thread(target=time.sleep, args=(1000,)).start()"
    ),
    # --- files and memory
    "files in every directory": Takeover(
        "for root in TEMPORARY:\n"
        "  open(f'{root}/file', 'w').write('A' * 10000)\n"
        "  os.mkfifo(f'{root}/fifo')\n"
        "  os.symlink('/etc/passwd', f'{root}/link')\n"
        "  os.link(f'{root}/file', f'{root}/hard')\n"
        "  os.mkdir(f'{root}/closed')\n"
        "  open(f'{root}/closed/file', 'w')\n"
        "  os.chmod(f'{root}/closed', 0)\n"
        "  socket.socket(socket.AF_UNIX).bind(f'{root}/socket')"
    ),
    "directories nested deeply": Takeover(
        "os.chdir('/tmp')\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')"
    ),
    "a file that is open and removed": Takeover(
        "file = open('/dev/shm/file', 'w'); file.write('A' * 9000000); file.flush()\n"
        "os.unlink('/dev/shm/file'); stay()"
    ),
    "anonymous memory files": Takeover(
        "file = os.memfd_create('of A'); os.write(file, b'A' * 9000000); stay()"
    ),
    "descriptors in flight in a cycle": Takeover(
        "file = os.memfd_create('of A'); os.write(file, b'A' * 9000000)\n"
        "a, b = socket.socketpair()\n"
        "socket.send_fds(a, [b'x'], [a.fileno(), b.fileno(), file])\n"
        "socket.send_fds(b, [b'x'], [a.fileno(), b.fileno(), file])"
    ),
    "locks, watches and timers": Takeover(
        "file = open('/tmp/lock', 'w'); fcntl.flock(file, fcntl.LOCK_EX); fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "watch = checked(C.inotify_init()); checked(C.inotify_add_watch(watch, b'/tmp', 0xfff))\n"
        "signal.signal(signal.SIGALRM, signal.SIG_IGN); signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\n"
        "stay()"
    ),
    # --- the network and IPC of the container
    "sockets that a process holds": Takeover(
        "sockets = [socket.socket() for _ in range(3)]\n"
        "for number, one in enumerate(sockets): one.bind(('127.0.0.1', 9000 + number)); one.listen()\n"
        "abstract = socket.socket(socket.AF_UNIX); abstract.bind('\\0of A')\n"
        "udp = socket.socket(type=socket.SOCK_DGRAM); udp.bind(('127.0.0.1', 9000))\n"
        "stay()"
    ),
    "a connection in TIME_WAIT": Takeover(
        "server = socket.socket(); server.bind(('127.0.0.1', 9000)); server.listen()\n"
        "client = socket.create_connection(('127.0.0.1', 9000)); accepted, _ = server.accept()\n"
        "client.close(); accepted.close(); server.close(); time.sleep(0.05)",
        RESIDUE,
    ),
    "shared memory": Takeover("checked(C.shmget(4711, 4096, 0o1600))", RESIDUE),
    "a semaphore": Takeover("checked(C.semget(4711, 1, 0o1600))", RESIDUE),
    "a message queue": Takeover("checked(C.msgget(4711, 0o1600))", RESIDUE),
    "a POSIX queue": Takeover(
        "queue = C.mq_open(b'/of-A', os.O_CREAT | os.O_RDWR, 0o600, None); checked(queue)", RESIDUE
    ),
    # --- the launcher
    "signals to the launcher": Takeover(
        "for number in range(1, 65):\n  os.kill(1, number)\nos.kill(1, 9)\nos.kill(1, 19)"
    ),
    "the memory, descriptors and environment of the launcher": Takeover(
        "for name in ('mem', 'environ', 'maps', 'auxv', 'stack'):\n"
        "  refused(lambda: open(f'/proc/1/{name}', 'rb').read(1))\n"
        "for name in ('fd', 'fdinfo', 'root/', 'cwd/', 'map_files'):\n"
        "  refused(lambda: os.listdir(f'/proc/1/{name}'))\n"
        "for name in ('exe', 'ns/mnt', 'ns/ipc', 'cwd', 'root'):\n"
        "  refused(lambda: os.readlink(f'/proc/1/{name}'))\n"
        "for name in ('oom_score_adj', 'mem', 'comm', 'timerslack_ns', 'coredump_filter', 'clear_refs'):\n"
        "  refused(lambda: os.write(os.open(f'/proc/1/{name}', os.O_WRONLY), b'1'))"
    ),
    "tracing the launcher": Takeover(
        "refused(lambda: checked(C.ptrace(16, 1, 0, 0)))\n"
        "pidfd = os.pidfd_open(1)\n"
        "for number in range(16): refused(lambda: checked(C.syscall(438, pidfd, number, 0)))\n"
        "for kind in (0x20000, 0x08000000, 0x20000000, 0x40000000, 0x10000000):\n"
        "  refused(lambda: checked(C.setns(pidfd, kind)))"
    ),
    "a connection in the place of the launcher": Takeover(
        "for name in ('launcher', 'agent', 'listening'):\n"
        "  refused(lambda: socket.socket(socket.AF_UNIX).connect(f'/slot/{name}.sock'))\n"
        "refused(lambda: open('/slot/launcher.sock', 'w'))"
    ),
    "limits of the launcher": Takeover("resource.prlimit(1, resource.RLIMIT_NPROC, (100, 100))", RESIDUE),
    "the stack limit of the launcher": Takeover(
        "resource.prlimit(1, resource.RLIMIT_STACK, (65536, -1))", RESIDUE
    ),
    "the priority of the launcher": Takeover("os.setpriority(os.PRIO_PROCESS, 1, 7)", RESIDUE),
    "the scheduling of the launcher": Takeover(
        "os.sched_setscheduler(1, os.SCHED_BATCH, os.sched_param(0))", RESIDUE
    ),
    "the CPUs of the launcher": Takeover("os.sched_setaffinity(1, {0})", RESIDUE),
    "the I/O priority of the launcher": Takeover(
        "number = {'x86_64': 251, 'aarch64': 30}[os.uname().machine]\n"
        "checked(C.syscall(number, 1, 1, (3 << 13) | 7))",
        RESIDUE,
    ),
}


def as_user(container: RunningContainer, code: str) -> None:
    """Run Python code as the container's user, outside of every sandbox."""
    ran = subprocess.run(
        ["docker", "exec", container.id, "/usr/bin/python3", "-c", PRELUDE + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode in {0, 137}, ran.stderr


def as_root(container: RunningContainer, *command: str) -> None:
    subprocess.run(["docker", "exec", "-u", "0", container.id, *command], check=True, timeout=60)


async def attacked(
    place: Yard, attack: Callable[[RunningContainer], None], found: RecyclingFailure | None
) -> None:
    """Run A, attack its container, and recycle it. B must then run in a container that A has not touched."""
    first, second = (
        place.function(Runtime.PYTHON, {"main.py": SHOW + "\n" * number}, owner=owner)
        for number, owner in enumerate((ALICE, BOB))
    )
    ran = await place.run(first, "of A")
    container = ran.acquired.container
    assert container.group is not None
    before = set(container.group.processes())
    await asyncio.to_thread(attack, container)
    failures = dict(place.pool._context.totals.recycling_failures[Runtime.PYTHON])
    is_generic = await place.recycle(container.id)
    failures_now = dict(place.pool._context.totals.recycling_failures[Runtime.PYTHON])
    new = {kind: number - failures.get(kind, 0) for kind, number in failures_now.items()}
    assert {kind for kind, number in new.items() if number} == ({found} if found else set())
    assert is_generic == (found is None)
    if is_generic:
        assert before & set(container.group.processes()) == {container.process_1}
    again = await place.run(second, "of B")
    assert again.stdout == "of B"
    assert (again.container_id == container.id) == is_generic


@pytest.mark.parametrize("name", TAKEOVERS)
async def test_a_supervisor_that_was_taken_over_does_not_outlive_the_recycling(name, monkeypatch):
    # On a busy machine, the sweep would retire a container that has grown before the test recycles it.
    monkeypatch.setattr(retirement, "_SWEEP_S", 3600.0)
    takeover = TAKEOVERS[name]
    async with yard(Isolation.SANDBOX, (Runtime.PYTHON,), listening_addresses=ADDRESSES) as place:
        await attacked(place, lambda container: as_user(container, takeover.code), takeover.found)


# --- root of the host

PLANTED = {
    "a file of another user": ("touch", "/tmp/file"),
    "shared memory of another user": (
        "python3",
        "-c",
        "import ctypes; ctypes.CDLL(None).shmget(1, 4096, 0o1600)",
    ),
    "the mode of a directory": ("chmod", "0777", "/output"),
    "an attribute of a directory": ("python3", "-c", "import os; os.setxattr('/tmp', 'user.of', b'A')"),
    "a queue of another user": (
        *("python3", "-c"),
        "import ctypes, os; ctypes.CDLL(None).mq_open(b'/of-A', os.O_CREAT | os.O_RDWR, 0o600, None)",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
async def test_the_launcher_finds_what_it_cannot_remove(name):
    async with yard(Isolation.SANDBOX, (Runtime.PYTHON,)) as place:
        await attacked(place, lambda container: as_root(container, *PLANTED[name]), RESIDUE)


async def test_a_process_of_another_user_is_found():
    def leave(container: RunningContainer) -> None:
        subprocess.run(["docker", "exec", "-d", "-u", "0", container.id, "sleep", "1000"], check=True)

    async with yard(Isolation.SANDBOX, (Runtime.PYTHON,)) as place:
        await attacked(place, leave, RESIDUE)


async def test_an_orphan_of_another_user_makes_the_launcher_wait_too_long():
    """It is a child of the launcher, which may not kill it, and waits for its end."""
    orphan = ("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &")
    async with yard(Isolation.SANDBOX, (Runtime.PYTHON,)) as place:
        await attacked(place, lambda container: as_root(container, *orphan), RecyclingFailure.TIMEOUT)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can enter other namespaces and groups")


@needs_root
async def test_the_launcher_finds_a_mount():
    def mount(container: RunningContainer) -> None:
        enter = ["nsenter", "-t", str(container.process_1), "-m"]
        subprocess.run([*enter, "mount", "-t", "tmpfs", "of-A", "/work"], check=True)

    async with yard(Isolation.SANDBOX, (Runtime.PYTHON,)) as place:
        await attacked(place, mount, RESIDUE)


def groups_of(container: RunningContainer) -> list[Path]:
    """The folders of the control group in which processes and memory are counted."""
    group = container.group
    if isinstance(group, ControlGroupV1):
        return [group.pids, group.memory]
    assert isinstance(group, ControlGroupV2)
    return [group.folder]


@needs_root
async def test_the_worker_finds_a_process_that_the_launcher_cannot_see():
    """It is in the control group of the container, and not in its process namespace."""
    with subprocess.Popen(["sleep", "1000"]) as process:

        def join(container: RunningContainer) -> None:
            (groups_of(container)[0] / "cgroup.procs").write_text(str(process.pid))

        async with yard(Isolation.SANDBOX, (Runtime.PYTHON,)) as place:
            await attacked(place, join, RecyclingFailure.PROCESSES)
        process.kill()


@needs_root
async def test_the_worker_finds_memory_that_the_launcher_cannot_see(tmp_path):
    """A file outside of the container is charged to its control group."""
    file = Path("/dev/shm") / f"of-{tmp_path.name}-{os.getpid()}"
    write = "import sys; sys.stdin.readline(); open(sys.argv[1], 'wb').write(bytes(int(sys.argv[2])))"
    size = str(2 * proof.MOST_BYTES)

    def charge(container: RunningContainer) -> None:
        command = ["python3", "-c", write, str(file), size]
        with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
            for folder in groups_of(container):
                (folder / "cgroup.procs").write_text(str(process.pid))
            process.communicate("go\n")
        assert process.returncode == 0

    try:
        async with yard(Isolation.SANDBOX, (Runtime.PYTHON,)) as place:
            await attacked(place, charge, RecyclingFailure.MEMORY)
    finally:
        file.unlink(missing_ok=True)
