"""Interpreters that wait for their run: what a run does to its own, the next one's does not have.

At the shared level each run starts an interpreter of its own; the same must hold there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType, Isolation
from support.sandboxes.adversarial import yard
from support.sandboxes.containers import RUN_STDIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.sandboxes.adversarial import Function, Yard
    from support.sandboxes.containers import Ran

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Snippets:
    """Runs snippets of both languages, each in one function of its own.

    Args:
        containers: For both.
    """

    def __init__(self, containers: Yard) -> None:
        self.containers = containers
        self.functions: dict[Runtime, Function] = {
            Runtime.PYTHON: containers.function(
                Runtime.PYTHON, RUN_STDIN[Runtime.PYTHON], modules=("numpy",)
            ),
            Runtime.NODEJS: containers.function(Runtime.NODEJS, RUN_STDIN[Runtime.NODEJS]),
        }

    async def __call__(self, runtime: Runtime, snippet: str, **changes: int) -> Ran:
        return await self.containers.run(self.functions[runtime], snippet, **changes)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[Isolation.SANDBOX, Isolation.SHARED], ids=str
)
async def run(request: pytest.FixtureRequest) -> AsyncIterator[Snippets]:
    async with yard(request.param, tuple(RUN_STDIN)) as containers:
        yield Snippets(containers)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandboxed() -> AsyncIterator[Snippets]:
    async with yard(Isolation.SANDBOX, tuple(RUN_STDIN)) as containers:
        yield Snippets(containers)


# --- that they are the ones that wait


async def test_a_python_program_in_a_sandbox_comes_from_the_zygote(sandboxed):
    """It has no parent in its own process namespace."""
    ran = await sandboxed(Runtime.PYTHON, "import os; print(os.getppid())")
    assert ran.stdout == "0\n"


@pytest.mark.parametrize(
    ("modules", "shown"), [(("numpy",), "True False 0\n"), (("asyncio.windows_events",), "False False 1\n")]
)
async def test_modules_for_every_run_are_imported_ahead_or_programs_are_started_plainly(modules, shown):
    """A zygote that cannot import them is of no use."""
    look = "'_multiarray_umath' in open('/proc/self/maps').read(), 'numpy' in sys.modules, os.getppid()"
    async with yard(Isolation.SANDBOX, (Runtime.PYTHON,), modules=modules) as containers:
        function = containers.function(Runtime.PYTHON, RUN_STDIN[Runtime.PYTHON])
        ran = await containers.run(function, f"import os, sys; print({look})")
    assert ran.stdout == shown


async def test_a_node_program_in_a_sandbox_was_the_spare(sandboxed):
    ran = await sandboxed(
        Runtime.NODEJS,
        "console.log(require('fs').readFileSync('/proc/self/environ', 'utf8').includes('standby'))",
    )
    assert ran.stdout == "true\n"


# --- what a run changes of its own interpreter

CHANGES = {
    (Runtime.PYTHON, "a built-in function"): ("import builtins; builtins.len = None", "print(len('abc'))"),
    (Runtime.PYTHON, "a function of a module"): (
        "import json; json.dumps = None",
        "import json; print(json.dumps(1))",
    ),
    (Runtime.PYTHON, "a method of a class"): (
        "import json, json.encoder; json.encoder.JSONEncoder.encode = None",
        "import json; print(json.dumps({'a': 1}))",
    ),
    (Runtime.PYTHON, "a module of numpy's"): (
        "import numpy; numpy.zeros = None",
        "import numpy; print(numpy.zeros(2).sum())",
    ),
    (Runtime.PYTHON, "the table of modules"): (
        "import sys; sys.modules['json'] = None; sys.modules['left'] = sys",
        "import json, sys; print('left' in sys.modules)",
    ),
    (Runtime.PYTHON, "the path of modules"): (
        "import sys; sys.path.insert(0, '/tmp'); sys.meta_path.clear(); sys.path_hooks.clear()",
        "import sys; print(sys.path, len(sys.meta_path), len(sys.path_hooks)); import colorsys",
    ),
    (Runtime.PYTHON, "the environment"): (
        "import os; os.environ['LEFT'] = '1'",
        "import os; print(sorted(os.environ))",
    ),
    (Runtime.PYTHON, "signal handlers"): (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, print)",
        "import signal; print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))",
    ),
    (Runtime.PYTHON, "the collector"): (
        "import gc; gc.disable(); gc.set_threshold(1); gc.callbacks.append(print); gc.unfreeze()",
        "import gc; print(gc.isenabled(), gc.get_threshold(), gc.callbacks)",
    ),
    (Runtime.PYTHON, "hooks"): (
        (
            "import atexit, os, sys, threading\n"
            "sys.excepthook = sys.displayhook = threading.excepthook = print\n"
            "os.register_at_fork(before=lambda: os._exit(9)); atexit.register(print)"
        ),
        "import os, sys\nif os.fork() == 0: os._exit(0)\nos.wait(); print(sys.excepthook, sys.displayhook)",
    ),
    (Runtime.PYTHON, "limits of the interpreter"): (
        "import sys; sys.setrecursionlimit(60); sys.setswitchinterval(9); sys.set_int_max_str_digits(700)",
        "import sys; print(sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits())",
    ),
    (Runtime.PYTHON, "the locale"): (
        "import locale; locale.setlocale(locale.LC_ALL, 'C')",
        "import locale; print(locale.setlocale(locale.LC_ALL))",
    ),
    (Runtime.PYTHON, "an object's memory"): (
        (
            "import ctypes, os, sys\n"
            "ctypes.memset(id('json') + sys.getsizeof('') - 1, ord('x'), 4)\n"
            "ctypes.memset(id(7) + int.__basicsize__, 9, 1)\n"  # 7 is 9 from here on
            "os._exit(0)"
        ),
        "import json; print(3 + 4, json.__name__)",
    ),
    (Runtime.PYTHON, "its own code in memory"): (
        (
            "code = next(line for line in open('/proc/self/maps') if ' r-xp ' in line)\n"
            "memory = open('/proc/self/mem', 'r+b', 0)\n"
            "memory.seek(int(code.split('-')[0], 16) + 64); memory.write(bytes(64))\n"
            "import os; os._exit(0)"
        ),
        "print('fine')",
    ),
    (Runtime.NODEJS, "a prototype"): (
        "Object.prototype.left = 1; Array.prototype.map = () => 'changed'",
        "console.log({}.left, [1].map(String))",
    ),
    (Runtime.NODEJS, "a function of the language"): (
        "Math.random = () => 4; JSON.stringify = () => 'changed'; globalThis.left = 1",
        "console.log(Math.random() < 1, JSON.stringify(1), globalThis.left)",
    ),
    (Runtime.NODEJS, "a module of Node.js"): (
        "require('fs').existsSync = () => 'changed'; require('os').cpus = 1",
        "console.log(require('fs').existsSync('/nowhere'), typeof require('os').cpus)",
    ),
    (Runtime.NODEJS, "the cache of modules"): (
        "require.cache.left = {}; require('module')._cache.other = {}; require('module')._load = () => 1",
        "console.log(Object.keys(require.cache), typeof require('path').join)",
    ),
    (Runtime.NODEJS, "the environment"): (
        "process.env.LEFT = '1'",
        "console.log(Object.keys(process.env).sort())",
    ),
    (Runtime.NODEJS, "handlers"): (
        (
            "process.on('exit', () => {}); process.on('uncaughtException', () => {});"
            "process.on('SIGTERM', () => {})"
        ),
        (
            "console.log(process.listenerCount('exit'), process.listenerCount('uncaughtException'),"
            " process.listenerCount('SIGTERM'))"
        ),
    ),
    (Runtime.NODEJS, "flags"): (
        "require('v8').setFlagsFromString('--stack-size=100'); process.title = 'left'",
        "console.log(process.title, process.execArgv, (function f(n) { return n ? f(n - 1) : 0; })(5000))",
    ),
    (Runtime.NODEJS, "its own snapshot"): (
        "try { require('fs').writeFileSync('/nanosupervisor/standby.blob', 'left') } catch (e) {}",
        "console.log('fine')",
    ),
}


@pytest.mark.parametrize(("runtime", "what"), CHANGES, ids=str)
async def test_a_run_cannot_change_the_interpreter_of_the_next_run(run, runtime, what):
    change, show = CHANGES[runtime, what]
    before = await run(runtime, show)
    changed = await run(runtime, change)
    after = await run(runtime, show)
    assert before.execution.error_type is None, before.stderr
    assert changed.execution.error_type is None, changed.stderr
    assert (after.stdout, after.stderr) == (before.stdout, before.stderr)
    assert after.container_id == changed.container_id


@pytest.mark.parametrize(
    ("runtime", "what"), [case for case in CHANGES if "memory" not in case[1] and "snapshot" not in case[1]]
)
async def test_one_who_has_changed_it_sees_it(sandboxed, runtime, what):
    """The control: a change that shows nowhere would prove nothing."""
    change, show = CHANGES[runtime, what]
    plain = await sandboxed(runtime, show)
    changed = await sandboxed(runtime, f"{change}\n{show}")
    assert changed.execution.error_type is not None or changed.stdout != plain.stdout


# --- the zygote and the other end of the job's socket

PYTHON_PROCESS = "import os; print(os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0))"


async def test_the_zygote_is_not_in_the_process_group_or_session_of_the_program(sandboxed):
    """No parent, no group, no session in common: nothing to send a signal to."""
    assert (await sandboxed(Runtime.PYTHON, PYTHON_PROCESS)).stdout == "2 0 2 2\n"


@pytest.mark.parametrize("runtime", RUN_STDIN)
async def test_signals_to_every_process_id_harm_only_the_run_itself(sandboxed, runtime):
    every = {
        Runtime.PYTHON: "import os\nfor pid in (*range(-1, -200, -1), *range(1, 200)):\n"
        "  if abs(pid) != os.getpid():\n    try: os.kill(pid, 9)\n    except OSError: pass\nprint('alive')",
        Runtime.NODEJS: "const own = new Set(require('fs').readdirSync('/proc/self/task').map(Number));\n"
        "for (let pid = -199; pid < 200; pid++) if (pid && !own.has(Math.abs(pid)))\n"
        "  try { process.kill(pid, 'SIGKILL') } catch {}\nconsole.log('alive')",
    }
    ran = await sandboxed(runtime, every[runtime])
    assert ran.stdout == "alive\n"
    assert (await sandboxed(runtime, "")).container_id == ran.container_id


async def test_the_zygotes_memory_is_not_shared_for_writing(sandboxed):
    shared = "print([line for line in open('/proc/self/maps') if line.split()[1][1::2] == 'ws'])"
    ran = await sandboxed(Runtime.PYTHON, shared)
    assert ran.stdout == "[]\n"


async def test_no_descriptor_leads_out_of_the_sandbox(sandboxed):
    ran = await sandboxed(
        Runtime.PYTHON,
        "import os\nfor fd in range(1024):\n"
        "  try: print(fd, os.readlink(f'/proc/self/fd/{fd}').split(':')[0])\n  except OSError: pass",
    )
    assert ran.stdout == "0 pipe\n1 pipe\n2 pipe\n"


async def test_a_standby_process_keeps_no_socket(sandboxed):
    ran = await sandboxed(
        Runtime.NODEJS,
        "const fs = require('fs'); const own = '/proc/self/fd';\n"
        "for (const fd of fs.readdirSync(own)) try { console.log(fs.readlinkSync(`${own}/${fd}`)) } catch {}",
    )
    assert ran.stdout.count("pipe:") >= 3  # its own three; the others are the event loop's
    assert "socket" not in ran.stdout


# How often two texts stand side by side in what a process can write to, other than here.
SEARCH = """
first, second = b'correct horse', b' battery staple'
found = 0
memory = open('/proc/self/mem', 'rb', 0)
for line in list(open('/proc/self/maps')):
    start, end = (int(word, 16) for word in line.split()[0].split('-'))
    if line.split()[1].startswith('rw'):
        memory.seek(start)
        block = memory.read(end - start)
        at = -1
        while (at := block.find(first, at + 1)) >= 0:
            found += block.startswith(second, at + len(first))
print(found)
"""


async def test_what_a_zygote_remembers_has_nothing_of_the_run_before(sandboxed):
    """A secret of one run, looked for in all memory of the next, which was forked from the same zygote."""
    keep = "import os; secret = 'correct horse battery staple' * 100; os.environ['SECRET'] = secret\n"
    of_itself = await sandboxed(Runtime.PYTHON, keep + SEARCH)
    of_another = await sandboxed(Runtime.PYTHON, SEARCH)
    assert int(of_itself.stdout) > 100
    assert (of_another.stdout, of_another.stderr) == ("0\n", "")
    assert of_another.container_id == of_itself.container_id


async def test_a_zygote_that_the_kernel_kills_for_memory_is_out_of_memory(sandboxed):
    """A run may make itself as unlikely a victim as the zygote is, hold little, and fill its folders."""
    fill = (
        "echo 0 >/proc/self/oom_score_adj; head -c 40M /dev/zero >/tmp/x;"
        " exec head -c 60M /dev/zero >/dev/shm/x"
    )
    ran = await sandboxed(
        Runtime.PYTHON, f"import os; os.execv('/bin/sh', ['sh', '-c', {fill!r}])", memory_mb=64
    )
    assert ran.execution.error_type is ErrorType.OUT_OF_MEMORY, ran.execution.message
    assert (await sandboxed(Runtime.PYTHON, "print('fine')")).stdout == "fine\n"
