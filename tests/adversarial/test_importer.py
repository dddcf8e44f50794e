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
from support.programs.hostile_packages import READ_REPORT, STAYING, SYSTEM_CALLS
from support.sandboxes.containers import bench
from support.sandboxes.packaged import Functions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.sandboxes.containers import Bench

pytestmark = pytest.mark.asyncio(loop_scope="module")

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
    """A process of the package searches for inits. It reports how many it has tried, and what succeeded."""
    package = (
        STAYING
        + """
def search():
    tried, found = set(), []
    while True:
        for number, inner in processes().items():
            try:
                if inner == INIT:
                    for name in ("mem", "root/tmp", "fd/3", "environ"):
                        if not opened(f"/proc/{number}/{name}", os.O_RDONLY): found.append(name)
                    if not enter(number, ALL): found.append("setns")
                    tried.add(number)
                else:
                    tell(number, [len(tried), found])
            except OSError:
                continue  # it has ended

stay(search)
"""
    )
    function = functions.make(package, memory_mb=256)
    for _ in range(8):
        ran, state = await functions.run(function, READ_REPORT)
        assert state is ImportsState.REUSED, ran.stderr
    tried, found = json.loads(ran.stdout)
    assert tried >= 4
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
