"""Runs that get the packages of their code imported (`reuse: "imports"`), in real containers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.container.judgment import allows_reuse
from nanoagent.model.result import ErrorType, Isolation
from nanoagent.supervisor.wire import ImportsState
from support.sandboxes.containers import bench
from support.sandboxes.packaged import Functions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.sandboxes.containers import Bench

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box() -> AsyncIterator[Bench]:
    async with bench(Isolation.SANDBOX) as made:
        yield made


@pytest.fixture
def functions(box: Bench, tmp_path: Path) -> Functions:
    return Functions(box, tmp_path)


# --- imports of packages


async def test_packages_are_imported_once_and_main_runs_anew_each_time(functions):
    function = functions.make("import os\nnumber = os.getpid()\ncount = []\n")
    snippet = "package.count.append(1)\nprint(package.number, package.count, __name__, sys.argv)\n"
    outputs = set()
    for _ in range(4):
        ran, state = await functions.run(function, snippet)
        assert (state, ran.execution.error_type, ran.stderr) == (ImportsState.REUSED, None, "")
        assert ran.acquired.clean
        outputs.add(ran.stdout)
    assert outputs == {"2 [1] __main__ ['main.py']\n"}  # the importer has the number 2 in its sandbox


async def test_imports_of_the_functions_own_modules_count(functions):
    main = "import own.deep\nprint(own.deep.package.number, own.deep.value)\n"
    files = {"own/__init__.py": "", "own/deep.py": "import os, package\nvalue = os.environ['PAYLOAD_FILE']\n"}
    ran, state = await functions.run(
        functions.make("import os\nnumber = os.getpid()\n", main=main, files=files)
    )
    assert (state, ran.stdout) == (ImportsState.REUSED, "2 /input/payload.json\n")


async def test_without_the_field_each_run_imports_by_itself(functions):
    function = replace(functions.make("import os\nnumber = os.getpid()\n"), reuses_imports=False)
    ran, state = await functions.run(function, "import os; print(package.number == os.getpid())")
    assert (state, ran.stdout) == (ImportsState.OFF, "True\n")


async def test_functions_with_and_without_the_field_have_separate_containers(functions):
    function = functions.make()
    with_field, _ = await functions.run(function)
    without_field, _ = await functions.run(replace(function, reuses_imports=False))
    assert with_field.container_id != without_field.container_id


# --- the normal way, if an import leaves something behind


_LEFT = {
    "an exception": ("raise ValueError", ImportsState.FAILED),
    "an exit": ("raise SystemExit(0)", ImportsState.FAILED),
    "os._exit": ("import os\nif 'PAYLOAD_FILE' not in os.environ: os._exit(0)", ImportsState.ENDED),
    "a crash": ("import os\nif 'PAYLOAD_FILE' not in os.environ: os.abort()", ImportsState.ENDED),
    "standard output": ("print('hello')", ImportsState.PRINTED),
    "standard error": ("import os\nos.write(2, b'x')", ImportsState.PRINTED),
    "a file in /tmp": ("open('/tmp/x', 'w').close()", ImportsState.FILES),
    "a file in /work": ("open('x', 'w').close()", ImportsState.FILES),
    "a thread": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
        ImportsState.THREADS,
    ),
    "a process": ("import subprocess\nchild = subprocess.Popen(['sleep', '600'])", ImportsState.CHILDREN),
    "an open file": ("file = open('/dev/zero')", ImportsState.DESCRIPTORS),
    "a socket": ("import socket\nmade = socket.socket()", ImportsState.DESCRIPTORS),
    "a signal handler": ("import signal\nsignal.signal(signal.SIGUSR1, print)", ImportsState.SIGNALS),
    "a blocked signal": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})",
        ImportsState.SIGNALS,
    ),
    "a timer": ("import signal\nsignal.setitimer(signal.ITIMER_VIRTUAL, 600)", ImportsState.SIGNALS),
    "another directory": ("import os\nos.chdir('/tmp')", ImportsState.PROCESS),
    "another umask": ("import os\nos.umask(0o77)", ImportsState.PROCESS),
    "a lower limit": (
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
        ImportsState.PROCESS,
    ),
    "a variable": ("import os\nos.environ['NEW'] = '1'", ImportsState.ENVIRONMENT),
    "a variable of the C library": (
        "import ctypes\nctypes.CDLL(None).setenv(b'NEW', b'1', 1)",
        ImportsState.ENVIRONMENT,
    ),
    "sys.path": ("import sys\nsys.path.append('/tmp')", ImportsState.INTERPRETER),
    "a hook": ("import sys\nsys.excepthook = print", ImportsState.INTERPRETER),
    "a stream": ("import sys\nsys.stdout = sys.stderr", ImportsState.INTERPRETER),
    "a builtin": ("import builtins\nbuiltins.shout = print", ImportsState.INTERPRETER),
    "the recursion limit": ("import sys\nsys.setrecursionlimit(5000)", ImportsState.INTERPRETER),
    "shared memory": ("import mmap\nshared = mmap.mmap(-1, 4096)", ImportsState.MEMORY),
    "an own module": ("import helper", ImportsState.OWN_CODE),
}


@pytest.mark.parametrize("left", _LEFT)
async def test_a_job_runs_normally_if_an_import_leaves_something(functions, left):
    package, expected = _LEFT[left]
    main = (
        "import sys\ntry:\n    import package\nexcept BaseException as exc: print(type(exc))\n"
        "print('end', file=sys.__stdout__)\n"
    )
    ran, state = await functions.run(functions.make(package, main=main, files={"helper.py": ""}))
    assert state is expected
    assert ran.stdout.endswith("end\n")
    assert allows_reuse(ran.execution.error_type)


async def test_code_without_packages_and_with_names_of_standard_modules_runs_normally(functions):
    ran, state = await functions.run(functions.make(main="print(1)"))
    assert (state, ran.stdout) == (ImportsState.NONE, "1\n")
    ran, state = await functions.run(
        functions.make(main="import json, package; print(json.name)", files={"json.py": "name = 'own'"})
    )
    assert (state, ran.stdout) == (ImportsState.SHADOWED, "own\n")


async def test_a_refusal_is_remembered(functions):
    function = functions.make("print('hello')")
    first, state = await functions.run(function)
    assert state is ImportsState.PRINTED
    await asyncio.gather(functions.run(function), functions.run(function))
    again, state = await functions.run(function)
    assert state is ImportsState.PRINTED
    assert again.stdout == first.stdout == "hello\n"


# --- runs do not see each other


async def test_a_run_leaves_nothing_for_the_next(functions):
    function = functions.make("state = {}\n")
    dirty = (
        "import os, random, signal, subprocess, threading, time\n"
        "package.state['x'] = 1\nos.environ['LEFT'] = '1'\nos.umask(0)\n"
        "open('/tmp/left', 'w').close(); open('left', 'w').close(); open('/output/left', 'w').close()\n"
        "open(package.__file__, 'a').write('raise 1')\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        "subprocess.Popen(['sleep', '600'])\n"
        "print(random.random())\n"
    )
    look = (
        "import os, signal, threading\n"
        "print(package.state, os.environ.get('LEFT'), os.listdir('/tmp'), 'left' in os.listdir('.'),\n"
        "      os.listdir('/output'), 'raise' in open(package.__file__).read(),\n"
        "      signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, threading.active_count(),\n"
        "      [pid for pid in os.listdir('/proc') if pid.isdecimal()], os.umask(0o22))\n"
    )
    numbers = set()
    for _ in range(2):
        ran, _ = await functions.run(function, dirty)
        assert ran.execution.error_type is None, ran.stderr
        numbers.add(ran.stdout)
        ran, state = await functions.run(function, look)
        assert state is ImportsState.REUSED
        assert ran.stdout == "{} None [] False [] False True 1 ['1', '3'] 18\n"
    assert len(numbers) == 2


_DRAWS = {
    "random": "import random; print(random.random())",
    "uuid": "import uuid; print(uuid.uuid4(), uuid.uuid1().clock_seq)",
    "openssl": "import ssl; print(ssl.RAND_bytes(16))",
    "temporary names": "import tempfile; print(tempfile.mktemp())",
    "authkey": "import multiprocessing as m; print(bytes(m.current_process().authkey))",
}


@pytest.mark.parametrize("name", _DRAWS)
async def test_two_runs_never_draw_the_same(functions, name):
    package = (
        "import random, ssl, tempfile, multiprocessing, uuid\n"
        "random.random(); ssl.RAND_bytes(8); next(tempfile._get_candidate_names()); uuid.uuid4()\n"
    )
    function = functions.make(package)
    drawn = set()
    for _ in range(3):
        ran, state = await functions.run(function, _DRAWS[name])
        assert (state, ran.stderr) == (ImportsState.REUSED, "")
        drawn.add(ran.stdout)
    assert len(drawn) == 3


async def test_a_run_may_list_its_network_interfaces(functions):
    function = functions.make("import socket\nsocket.if_nameindex()\n")
    for _ in range(2):
        ran, state = await functions.run(function, "import socket; print(socket.if_nameindex())")
        assert (state, ran.stdout) == (ImportsState.REUSED, "[(1, 'lo')]\n")


# --- memory and ends


async def test_the_memory_of_packages_is_not_charged_to_a_run(functions):
    function = functions.make("data = bytearray(b'x') * (64 << 20)\n", memory_mb=64)
    for _ in range(2):
        ran, state = await functions.run(function, "print(len(bytearray(b'y') * (32 << 20)))")
        assert (state, ran.execution.error_type) == (ImportsState.REUSED, None)
        assert ran.execution.use is not None
        assert 28 << 20 <= ran.execution.use.peak_bytes < 48 << 20


async def test_a_run_out_of_memory_leaves_the_importer_alive_or_is_replaced(functions):
    function = functions.make("data = bytearray(b'x') * (16 << 20)\n", memory_mb=64)
    for _ in range(2):
        ran, _ = await functions.run(function, "x = bytearray(b'y') * (200 << 20)")
        assert ran.execution.error_type is ErrorType.OUT_OF_MEMORY
    ran, state = await functions.run(function, "print(len(package.data))")
    assert (state, ran.stdout) == (ImportsState.REUSED, f"{16 << 20}\n")


async def test_imports_that_need_too_much_memory_are_left_to_the_run(functions):
    function = functions.make("data = [bytearray(b'x') * (64 << 20) for _ in range(16)]\n", memory_mb=64)
    ran, state = await functions.run(function, "print(1)")
    assert state is ImportsState.ENDED
    assert ran.execution.error_type is ErrorType.OUT_OF_MEMORY


async def test_exit_codes_signals_and_deadlines_are_those_of_the_run(functions):
    function = functions.make()
    ran, _ = await functions.run(function, "sys.exit(7)")
    assert (ran.execution.error_type, ran.execution.exit_code) == (ErrorType.USER_ERROR, 7)
    ran, _ = await functions.run(function, "import os; os.kill(os.getpid(), 11)")
    assert (ran.execution.error_type, ran.execution.exit_code) == (ErrorType.SIGNAL, 139)
    ran, _ = await functions.run(function, "import os; print(os.times().user < 0.5); raise ValueError('x')")
    assert ran.stdout == "True\n"
    assert "ValueError: x" in ran.stderr


async def test_runs_without_a_pause_are_forked_from_the_same_importer(functions):
    function = functions.make("import os\nnumber = os.urandom(8).hex()\n")
    seen = [await functions.run(function, "print(package.number)") for _ in range(12)]
    assert {state for _, state in seen} == {ImportsState.REUSED}
    assert len({ran.stdout for ran, _ in seen}) == 1
