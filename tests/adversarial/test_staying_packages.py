"""Packages that leave a process in the importer's sandbox. It sees the processes of its function's runs.

It can falsify these runs (docs/adr/0037). It must reach nothing else, and must not stop the supervisor.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.container.policy import Sharing
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation
from nanoagent.supervisor.session import Session
from nanoagent.supervisor.wire import ImportsState
from support.programs.hostile_packages import READ_REPORT, STAYING
from support.sandboxes.adversarial import yard
from support.sandboxes.containers import LIMITS, bench
from support.sandboxes.packaged import RUN_INPUT, Functions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.sandboxes.adversarial import Function, Yard
    from support.sandboxes.containers import Bench, Ran

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box() -> AsyncIterator[Bench]:
    async with bench(Isolation.SANDBOX) as made:
        yield made


@pytest.fixture
def functions(box: Bench, tmp_path: Path) -> Functions:
    return Functions(box, tmp_path)


# --- other functions, and the supervisor


_CHANGES_CODE = (
    STAYING
    + '''
def open_code(answer):
    socket.send_fds(answer, [b"x"], [os.open("/work", os.O_RDONLY)])

def container_code():
    """Open the container's /work, which a sandbox shows until its own is mounted."""
    for anchor in appearing(ANCHOR):
        os.kill(IMPORTER_PROCESS, signal.SIGSTOP)  # so that the anchor stays
        try:
            _, [code], *_ = socket.recv_fds(inside(anchor, open_code), 1, 1)
            os.mkdir("held", dir_fd=code)
            return code
        except (OSError, ValueError):
            continue
        finally:
            os.kill(IMPORTER_PROCESS, signal.SIGCONT)

def change_code():
    code = container_code()
    own = os.stat("main.py", dir_fd=code).st_ino
    while True:
        try:
            if os.stat("main.py", dir_fd=code).st_ino != own:
                file = os.open("main.py", os.O_WRONLY, dir_fd=code)
                os.pwrite(file, b"print('changed')#", 0)
                os.close(file)
        except OSError:
            continue

stay(change_code)
'''
)


async def run_with_imports(containers: Yard, function: Function) -> Ran:
    async with containers.acquire(function, reuses_imports=True) as acquired:
        return await containers.run_in(acquired, function, "import os; print('held' in os.listdir('/work'))")


async def test_the_code_of_the_next_function_is_not_changed():
    """A second protection: shared containers have no importer (`offers_reuse_of_imports`)."""
    async with yard(Isolation.SANDBOX, (Runtime.PYTHON,), sharing=Sharing.WORKER) as containers:
        files = {"main.py": RUN_INPUT, "package-1.dist-info/RECORD": "package/__init__.py,,\n"}
        hostile = containers.function(Runtime.PYTHON, files | {"package/__init__.py": _CHANGES_CODE})
        for _ in range(10):
            ran = await run_with_imports(containers, hostile)
            if ran.stdout == "True\n":
                break
        assert ran.stdout == "True\n", (
            ran.stderr
        )  # the package holds the container's code, and has changed it
        many = {f"file{number}": "" for number in range(1000)}  # so that the code is not complete at once
        honest = containers.function(Runtime.PYTHON, {"main.py": "print('honest')\n"} | many)
        after = await containers.run(honest, "")
    assert after.container_id == ran.container_id
    assert after.stdout == "honest\n"


async def test_the_memory_of_the_supervisor_is_not_readable(functions):
    """The importer may read the memory of an anchor. This has nothing of the supervisor."""
    package = (
        STAYING
        + '''
def search(anchor):
    """Return how many bytes were read, and whether the secret is among them."""
    size, found = 0, False
    with open(f"/proc/{anchor}/maps") as maps, open(f"/proc/{anchor}/mem", "rb", 0) as memory:
        for line in maps:
            if line.split()[1][0] != "r" or "[v" in line: continue
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            memory.seek(start)
            text = memory.read(end - start)
            size, found = size + len(text), found or b"SECRET" in text
    return size, found

def search_anchors():
    seen, results = set(), []
    while True:
        for number, inner in processes().items():
            try:
                if inner == ANCHOR and number not in seen:
                    seen.add(number)
                    os.kill(IMPORTER_PROCESS, signal.SIGSTOP)  # so that the anchor stays
                    results.append(search(number))
                elif inner == PROGRAM:
                    tell(number, results)
            except OSError:
                continue
            finally:
                os.kill(IMPORTER_PROCESS, signal.SIGCONT)

stay(search_anchors)
'''
    )
    function = functions.make(package)
    for _ in range(12):  # a search may be too late
        ran, _ = await functions.run(function, READ_REPORT + "# SECRET\n")
        results = json.loads(ran.stdout)
        if len(results) >= 4:  # two anchors existed before the first run
            break
    assert len(results) >= 4
    assert min(size for size, _ in results) > 10_000
    assert not any(found for _, found in results)


async def test_a_socket_of_a_run_gives_the_importer_no_rights_over_its_network(functions):
    package = (
        STAYING
        + """
import fcntl
OPTIONS = {  # level, name: these need CAP_NET_ADMIN
    "mark": (1, 36), "send buffer": (1, 32), "receive buffer": (1, 33), "transparent": (0, 19),
    "transparent 6": (41, 75), "repair": (6, 19), "table": (0, 64), "table 6": (41, 64),
}

def make_socket(answer):
    with socket.socket() as made: socket.send_fds(answer, [b"x"], [made.fileno()])

def set_interface(made, request, value):
    return attempt(lambda: fcntl.ioctl(made, request, struct.pack("16sHH4s16x", b"lo", value, 0, bytes(4))))

def administer():
    for program in programs():
        _, [number], *_ = socket.recv_fds(inside(program, make_socket), 1, 1)
        made = socket.socket(fileno=number)
        flags = struct.unpack_from("H", fcntl.ioctl(made, 0x8913, struct.pack("16s24x", b"lo")), 16)[0]
        found = {name: attempt(lambda: made.setsockopt(*option, 1)) for name, option in OPTIONS.items()}
        found["read table"] = attempt(lambda: made.getsockopt(0, 64, 84))
        found["address"] = set_interface(made, 0x8916, 2)
        found["interface"] = set_interface(made, 0x8914, 0)
        tell(program, [flags & 1, found])

stay(administer)
"""
    )
    ran, _ = await functions.run(functions.make(package), READ_REPORT)
    is_up, found = json.loads(ran.stdout)
    assert is_up  # the socket is one of the run's network: the importer's interface is down
    assert set(found.values()) == {"EPERM"}, found


async def test_a_socket_whose_closing_takes_long_does_not_stop_the_supervisor(functions):
    package = (
        STAYING
        + '''
def make_socket(answer):
    """Send a connection that waits an hour for its receiver when it is closed."""
    listening = socket.create_server(("127.0.0.1", 0))
    made = socket.create_connection(listening.getsockname())
    accepted, _ = listening.accept()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    made.setblocking(False)
    attempt(lambda: [made.send(bytes(65536)) for _ in range(1000)])
    socket.send_fds(answer, [b"x"], [made.fileno()])
    made.close()
    signal.pause()

def send_to_supervisor():
    for program in programs():
        _, descriptors, *_ = socket.recv_fds(inside(program, make_socket), 1, 1)
        with socket.socket(fileno=os.dup(3)) as control:
            socket.send_fds(control, [b"f" + bytes(4)], descriptors)
        os.close(descriptors[0])
        tell(program, "sent")

stay(send_to_supervisor)
'''
    )
    function = functions.make(package)
    ran, state = await functions.run(function, READ_REPORT, timeout_ms=10_000)
    assert (state, ran.stdout) == (ImportsState.REUSED, '"sent"\n')
    ran, state = await functions.run(function, "print('next')", timeout_ms=10_000)
    assert (state, ran.stdout) == (ImportsState.ENDED, "next\n")  # the message was a lie


# --- the ends of runs


async def test_a_run_whose_init_is_stopped_ends(functions):
    package = (
        STAYING
        + """
def stop_inits():
    for program in programs():
        for number, inner in processes().items():
            if inner == INIT: os.kill(number, signal.SIGSTOP)
        tell(program, "stopped")

stay(stop_inits)
"""
    )
    ran, state = await functions.run(functions.make(package), READ_REPORT, timeout_ms=10_000)
    assert (state, ran.stdout) == (ImportsState.REUSED, '"stopped"\n')
    assert ran.execution.error_type is None


async def test_no_process_in_the_sandbox_of_a_run_outlives_it(functions, monkeypatch):
    """The package's process has no parent in the sandbox. It writes until it is killed."""
    package = (
        STAYING
        + """
import time
def write_on(answer):
    file = os.open("/output/times", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    answer.send(b"x")
    while True:
        os.write(file, b"%.6f\\n" % time.time())
        time.sleep(0.0005)

def move_in():
    for program in programs():
        inside(program, write_on).recv(1)
        tell(program, "inside")

stay(move_in)
"""
    )
    reported = []

    async def note_time(session, request, on_output=None, wait_exit=Session.wait_exit):
        report = await wait_exit(session, request, on_output)
        reported.append(time.time())
        return report

    monkeypatch.setattr(Session, "wait_exit", note_time)
    write = (  # so that the collection takes long
        "for number in range(40): open(f'/output/{number}', 'wb').write(bytes(300_000))\n"
    )
    ran, _ = await functions.run(functions.make(package), READ_REPORT + write)
    assert ran.stdout == '"inside"\n', ran.stderr
    [times] = [file for file in ran.execution.collected.files if file.path == "times"]
    written = times.staged.read_text().splitlines()
    assert len(written) > 1
    assert float(written[-2]) < reported[0]


# --- the creation of sandboxes


_STOPS = (
    STAYING
    + '''
def kind(number):
    try: lines = dict(line.split(":", 1) for line in open(f"/proc/{number}/status"))
    except OSError: return ""  # it has ended
    numbers = lines["NSpid"].split()
    if number <= IMPORTER_PROCESS: return ""
    if len(numbers) == 2: return {INIT: "init", ANCHOR: "anchor"}.get(int(numbers[1]))
    return "helper" if int(lines["PPid"]) == 0 else ""  # its parent is the supervisor

def stopped(wanted):
    """Yield each process of a kind, stopped as soon as it appears. Process numbers are given in order."""
    start = max(map(int, filter(str.isdecimal, os.listdir("/proc")))) + 1
    while True:
        for number in range(start, start + 8):
            if attempt(lambda: os.kill(number, signal.SIGSTOP)): continue
            start = number + 1
            if kind(number) == wanted: yield number
            else: attempt(lambda: os.kill(number, signal.SIGCONT))
            break

def stop_each(wanted):
    for _ in stopped(wanted): pass
'''
)


@pytest.mark.parametrize("kind", ["helper", "init", "anchor"])
async def test_a_job_runs_although_its_package_stops_the_processes_that_make_a_sandbox(functions, kind):
    function = functions.make(_STOPS + f"stay(lambda: stop_each({kind!r}))\n")
    for _ in range(12):  # the package may be too late
        ran, state = await functions.run(function, "print(package.IMPORTER)", open_files=LIMITS.open_files)
        assert ran.execution.error_type is None
        if state is not ImportsState.REUSED:
            break
        assert ran.stdout == "True\n"
    assert state is ImportsState.SLOW


async def test_a_run_does_not_wait_for_a_stopped_process_of_a_later_sandbox(functions):
    package = (
        _STOPS
        + """
def stop_during_runs():
    runs = programs()
    tell(next(runs), 0)
    if os.fork() == 0:
        next(stopped("helper"))
        signal.pause()
    for program in runs:
        numbers = map(int, filter(str.isdecimal, os.listdir("/proc")))
        tell(program, [kind(number) for number in numbers].count("helper"))

stay(stop_during_runs)
"""
    )
    function = functions.make(package)
    for _ in range(12):  # the package may be too late
        ran, state = await functions.run(function, READ_REPORT, open_files=LIMITS.open_files)
        assert state is ImportsState.REUSED, ran.stderr
        if ran.stdout == "1\n":
            break
    assert ran.stdout == "1\n"  # while this run was served, the helper was still stopped
    for _ in range(2):  # for the first one a process of the importer may wait already
        ran, state = await functions.run(function, "print(package.IMPORTER)", open_files=LIMITS.open_files)
        assert state is ImportsState.SLOW
    assert ran.stdout == "False\n"
