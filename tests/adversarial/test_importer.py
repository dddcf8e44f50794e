"""Packages that attack from the importer: at their import, and from every process that is forked later.

The importer has run their code, so it may lie about everything. It may harm only runs of its own function.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from nanoagent.model.result import Isolation
from nanoagent.supervisor.wire import ImportsState
from support.sandboxes.containers import bench
from support.sandboxes.packaged import Functions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.sandboxes.containers import Bench

pytestmark = pytest.mark.asyncio(loop_scope="module")

SYSTEM_CALLS = '''
import ctypes, errno, json, os, signal, socket, struct, sys
LIBC = ctypes.CDLL(None, use_errno=True)
IMPORTER = "PAYLOAD_FILE" not in os.environ
ALL = 0x7c020000  # the namespaces of a sandbox
NAMESPACES = {"user": 0x10000000, "mnt": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000}

def call(name, *arguments):
    """The name of the error; "" if the call has succeeded."""
    ctypes.set_errno(0)
    return errno.errorcode[ctypes.get_errno()] if getattr(LIBC, name)(*arguments) < 0 else ""

def attempt(act):
    try:
        act()
    except OSError as exc:
        return errno.errorcode[exc.errno]
    return ""

def opened(path, flags=os.O_RDWR):
    return attempt(lambda: os.close(os.open(path, flags)))

def capabilities(process="self"):
    lines = open(f"/proc/{process}/status").read().splitlines()
    return {line[:6]: int(line[7:], 16) for line in lines if line.startswith("Cap")}

def enter(process, flags):
    pidfd = os.pidfd_open(process)
    try:
        return call("setns", pidfd, flags)
    finally:
        os.close(pidfd)

def enter_file(path, flags):
    namespace = os.open(path, os.O_RDONLY)
    try:
        return call("setns", namespace, flags)
    finally:
        os.close(namespace)

def loopback(up):
    """Try to change the loopback interface, for which CAP_NET_ADMIN over the network is needed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        request = struct.pack("16sh14x", b"lo", 0x49 if up else 0x8)
        import fcntl
        return attempt(lambda: fcntl.ioctl(made, 0x8914, request))  # SIOCSIFFLAGS

def attacks():
    """What must fail in the importer, in every process that it forks, and in a run."""
    found = {name: enter_file(f"/proc/self/ns/{name}", flags) for name, flags in NAMESPACES.items()}
    return found | {
        "enter a sandbox": enter(1, ALL), "enter the network of init": enter(1, 0x40000000),
        "unshare": call("unshare", 0x10000000), "mount": call("mount", b"x", b"/tmp", b"tmpfs", 0, 0),
        "host name": call("sethostname", b"x", 1), "ptrace": call("ptrace", 16, 1, 0, 0),
        "memory of init": opened("/proc/1/mem"),
        "files of init": opened("/proc/1/root/etc/passwd", os.O_RDONLY),
        "filter": call("prctl", 22, 2, 0), "loopback": loopback(False),
        "ports": opened("/proc/sys/net/ipv4/ip_unprivileged_port_start", os.O_WRONLY),
        "clone": call("syscall", 56, 0x10000000 | 17, 0, 0, 0, 0),
    }
'''
_REFUSED = {"EPERM", "EACCES", "EINVAL", "EROFS", "ENOSYS"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box() -> AsyncIterator[Bench]:
    async with bench(Isolation.SANDBOX) as made:
        yield made


@pytest.fixture
def functions(box: Bench, tmp_path: Path) -> Functions:
    return Functions(box, tmp_path)


def assert_all_refused(found: dict[str, Any]) -> None:
    assert {name: error for name, error in found.items() if error not in _REFUSED} == {}


# --- without lies


async def test_the_importer_has_no_capability_and_reaches_nothing(functions):
    package = SYSTEM_CALLS + (
        "if IMPORTER:\n"
        "    os.kill(1, signal.SIGKILL)\n"
        "    found = attacks(), capabilities(), sorted(filter(str.isdecimal, os.listdir('/proc')))\n"
        "    def connect():\n"
        "        with socket.socket() as made: made.connect(('127.0.0.1', 80))\n"
        "    network = attempt(connect)\n"
    )
    snippet = "import json; print(json.dumps([*package.found, package.network]))"
    ran, state = await functions.run(functions.make(package), snippet)
    assert state is ImportsState.REUSED, ran.stderr
    attacks, capabilities, processes, network = json.loads(ran.stdout)
    assert_all_refused(attacks)
    assert set(capabilities.values()) == {0}
    assert processes == ["1", "2"]  # init and the importer
    assert network == "ENETUNREACH"


async def test_the_capabilities_of_a_fork_are_of_no_use(functions):
    """A handler of the C library runs in the fork after it has entered its sandbox, before it is confined."""
    package = SYSTEM_CALLS + (
        "found = []\n"
        "def look():\n"
        "    if os.getpid() == 3:\n"
        "        found.append((capabilities(), attacks()))\n"
        "if IMPORTER:\n"
        "    look = ctypes.CFUNCTYPE(None)(look)\n"
        "    LIBC.__register_atfork(None, None, look, None)\n"
    )
    ran, state = await functions.run(
        functions.make(package),
        "import json; print(json.dumps([package.found, package.capabilities(), package.attacks()]))",
    )
    assert state is ImportsState.REUSED, ran.stderr
    [[capabilities, attacks]], of_the_run, attacks_of_the_run = json.loads(ran.stdout)
    assert capabilities["CapEff"] > 0  # otherwise the handler has run too late, and the test shows nothing
    assert_all_refused(attacks)
    assert set(of_the_run.values()) == {0}
    assert_all_refused(attacks_of_the_run)


async def test_a_run_sees_neither_the_importer_nor_the_next_run(functions):
    package = SYSTEM_CALLS
    look = (
        "import os, signal\n"
        "print(sorted(filter(str.isdecimal, os.listdir('/proc'))), os.getppid())\n"
        "print(os.listdir('/proc/self/fd'))\n"
        "for number in range(1, 200):\n"
        "    try: os.kill(number, signal.SIGKILL) if number != os.getpid() else None\n"
        "    except ProcessLookupError: pass\n"
        "os.kill(-1, signal.SIGKILL)\n"
    )
    function = functions.make(package + "identity = os.urandom(8).hex()\n")
    first, _ = await functions.run(function, "print(package.identity)")
    ran, state = await functions.run(function, look)
    assert state is ImportsState.REUSED
    assert ran.stdout == "['1', '3'] 0\n['0', '1', '2', '3']\n"
    after, state = await functions.run(function, "print(package.identity)")
    assert (state, after.stdout) == (ImportsState.REUSED, first.stdout)


async def test_an_init_cannot_be_taken_over_while_it_makes_the_sandbox_of_a_run(functions):
    """A process of the package searches for inits of runs, and reports through the run's own files."""
    package = (
        SYSTEM_CALLS
        + '''
def search():
    """Try to open each init that appears. Tell each run how often that was tried, and what succeeded."""
    tried, found = set(), []
    while True:
        for number in filter(str.isdecimal, os.listdir("/proc")):
            try:
                inner = open(f"/proc/{number}/status").read().split("NSpid:")[1].splitlines()[0].split()
            except OSError:
                continue
            if len(inner) == 2 and inner[1] == "1":
                for name in ("mem", "root/tmp", "fd/3", "environ"):
                    if not opened(f"/proc/{number}/{name}", os.O_RDONLY): found.append(name)
                if not enter(int(number), ALL): found.append("setns")
                tried.add(number)
            elif len(inner) == 2:
                try:
                    place = f"/proc/{number}/root/tmp"
                    with open(f"{place}/new", "w") as file: json.dump([len(tried), found], file)
                    os.rename(f"{place}/new", f"{place}/report")
                except OSError:
                    continue

if IMPORTER and os.fork() == 0:
    if os.fork() == 0:
        search()
    os._exit(0)
elif IMPORTER:
    os.wait()
'''
    )
    function = functions.make(package, memory_mb=256)
    reports = []
    for _ in range(8):
        ran, state = await functions.run(
            function,
            "import os, time\nfor _ in range(500):\n    if os.path.exists('/tmp/report'): break\n"
            "    time.sleep(0.01)\nprint(open('/tmp/report').read())",
        )
        if (
            state is not ImportsState.REUSED
        ):  # on a busy machine the search may exceed the importer's time limits
            break
        reports.append(json.loads(ran.stdout))
    tried, found = reports[-1]
    assert tried >= 2
    assert found == []


# --- lies: the package serves the supervisor itself


_LIAR = (
    SYSTEM_CALLS
    + '''
def serve(fork):
    """Say that all is well; then call fork() for each request."""
    control = socket.socket(fileno=3)
    control.send(b"i\\x01")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 4096, 8)
        if not message: os._exit(0)
        job, *streams, anchor = descriptors
        fork(control, job, streams, anchor)
        for number in descriptors: os.close(number)

def answer(control, code=0):
    control.send(b"f" + struct.pack("<i", code))

def ready(job):
    with socket.socket(fileno=os.dup(job)) as made: made.send(b"r")

def never(*_): signal.pause()

def refuses(control, *_): answer(control, -errno.EBUSY)

def answers_at_once(control, job, *_):
    ready(job)
    answer(control)

def forks_outside(control, job, streams, anchor):
    if os.fork() == 0:
        ready(job)
        signal.pause()
    answer(control)

def stays_parent(control, job, streams, anchor):
    """Enter the sandbox, but do not end: init does not become the parent."""
    if os.fork() == 0:
        LIBC.setns(anchor, ALL)
        if os.fork() == 0: ready(job)
        signal.pause()
    answer(control)

def keeps_capabilities(control, job, streams, anchor):
    if os.fork() == 0:
        LIBC.setns(anchor, ALL)
        if os.fork() == 0:
            import time; time.sleep(0.3)
            ready(job)
            signal.pause()
        os._exit(0)
    os.wait()
    answer(control)

def talks(control, *_):
    for _ in range(200): control.send(b"x" * 3000)

def floods(control, *_):
    while True: control.send(b"f" + bytes(4))

def sends_descriptors(control, job, *_):
    with socket.socket(fileno=os.dup(job)) as made:
        socket.send_fds(made, [b"r"], [0] * 20)
    answer(control)
'''
)
_LIES = {
    "never": ImportsState.SLOW,
    "refuses": ImportsState.THREADS,
    "answers_at_once": ImportsState.ENDED,
    "forks_outside": ImportsState.ENDED,
    "stays_parent": ImportsState.ENDED,
    "keeps_capabilities": ImportsState.ENDED,
    "talks": ImportsState.ENDED,
    "floods": ImportsState.ENDED,
    "sends_descriptors": ImportsState.ENDED,
}


@pytest.mark.parametrize("lie", _LIES)
async def test_after_a_lie_runs_import_by_themselves(functions, lie):
    package = _LIAR + f"if IMPORTER: serve({lie})\n"
    function = functions.make(package)
    for _ in range(2):
        ran, state = await functions.run(function, "print(package.IMPORTER, package.capabilities())")
        assert ran.stdout.startswith("False"), ran.stderr
        assert state is _LIES[lie]


@pytest.mark.parametrize(
    "message", ["b''", "b'i'", "b'i\\xff'", "b'i\\x00'", "b'x' * 4000", "b'f' + bytes(4)"]
)
async def test_a_wrong_answer_after_the_imports_ends_the_importer(functions, message):
    package = SYSTEM_CALLS + f"if IMPORTER:\n    os.write(3, {message})\n    signal.pause()\n"
    ran, state = await functions.run(functions.make(package), "print(package.IMPORTER)")
    assert ran.stdout == "False\n"
    assert state in {ImportsState.ENDED, ImportsState.SLOW}


async def test_another_function_is_not_reached(functions):
    """Also in the same container, after it was bound to the other function."""
    package = _LIAR + "if IMPORTER: serve(stays_parent)\n"
    await functions.run(functions.make(package))
    ran, state = await functions.run(functions.make("value = 1\n"), "print(package.value)")
    assert (state, ran.stdout) == (ImportsState.REUSED, "1\n")
