"""What a run can reach beyond itself: files, process 1, other containers, whoever collects its output."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.common.units import MIB
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType, Isolation
from support.sandboxes.adversarial import yard
from support.sandboxes.containers import RUN_STDIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.sandboxes.adversarial import Function, Yard

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEVELS = (Isolation.SANDBOX, Isolation.SHARED)


class Place:
    """Containers of one level and a function that runs Python snippets in them."""

    def __init__(self, level: Isolation, containers: Yard) -> None:
        self.level = level
        self.containers = containers
        self.function = containers.function(Runtime.PYTHON, RUN_STDIN[Runtime.PYTHON])

    async def say(self, snippet: str, **changes: int) -> str:
        """What a snippet printed that ended well."""
        ran = await self.containers.run(self.function, snippet, **changes)
        assert ran.execution.error_type is None, (ran.execution.message, ran.stderr)
        return ran.stdout


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=LEVELS, ids=str)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    async with yard(request.param) as containers:
        yield Place(request.param, containers)


# --- files

OWN_PLACES = ("/work", "/tmp", "/output", "/input", "/dev/shm", "/dev/mqueue")
HARMLESS_DEVICES = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx")}
HARMLESS_DEVICES.add("/dev/pts/ptmx")
PRUNED = [word for path in ("/proc", *OWN_PLACES) for word in ("-path", path, "-prune", "-o")]


@pytest.mark.parametrize("runtime", Runtime)
async def test_a_run_can_write_only_to_its_writable_directories(place, runtime):
    nobody = place.containers.adversary(runtime)
    arguments = ("/usr/bin/find", "/", *PRUNED, "!", "-type", "l", "-writable", "-print")
    ran = await place.containers.run(nobody, "", arguments=arguments)
    assert ran.stdout
    assert set(ran.stdout.splitlines()) <= HARMLESS_DEVICES


# To make these read-only takes a mount; what is asked of them ends with the process that asked.
OPEN_IN_PROC = {
    Isolation.SANDBOX: set(),
    Isolation.SHARED: {f"/proc/pressure/{what}" for what in ("io", "cpu", "memory")},
}


@pytest.mark.parametrize("runtime", Runtime)
async def test_in_proc_a_run_can_write_only_to_files_of_its_own_processes(place, runtime):
    nobody = place.containers.adversary(runtime)
    # What is hidden is covered with /dev/null, which find takes for what it covers.
    own = ("-path", "/proc/[0-9]*", "-prune", "-o")
    tests = ("-type", "f", "-writable", "-exec", "test", "-f", "{}", ";", "-print")
    ran = await place.containers.run(nobody, "", arguments=("/usr/bin/find", "/proc/", *own, *tests))
    assert set(ran.stdout.splitlines()) == OPEN_IN_PROC[place.level]


async def test_no_file_of_process_1_can_be_written_to(place):
    said = await place.say(
        "import os\n"
        "tried = 0\n"
        "for folder, _, names in os.walk('/proc/1'):\n"
        "  for name in names:\n"
        "    tried += 1\n"
        "    try: os.write(os.open(f'{folder}/{name}', os.O_WRONLY), b'0')\n"
        "    except OSError: continue\n"
        "    print(folder, name)\n"
        "print(tried > 20)"
    )
    assert said == "True\n"


async def test_a_folder_that_is_closed_to_everyone_is_still_collected(place):
    ran = await place.containers.run(
        place.function,
        "import os\nopen('/output/f', 'w').write('x')\n"
        "for place in ('/output', '/tmp', '/work', '/dev/shm', '/input'):\n"
        "  try: os.chmod(place, 0)\n  except OSError: pass",
    )
    assert ran.execution.error_type is None
    assert [file.path for file in ran.execution.collected.files] == ["f"]
    assert (
        await place.say("import os; print(os.stat('/output').st_mode & 0o777, os.listdir('/output'))")
        == "511 []\n"
    )


async def test_a_whiteout_in_the_code_hides_nothing_from_the_next(place):
    """A character device 0:0 is what an overlay takes for a deleted file."""
    await place.say(
        "import os\n"
        "try: os.unlink('/work/main.py'); os.mknod('/work/main.py', 0o020666, 0)\n"
        "except OSError: pass\n"
        "for name in ('user.overlay.opaque', 'user.overlay.redirect', 'user.overlay.whiteout'):\n"
        "  try: os.setxattr('/work', name, b'y')\n"
        "  except OSError: pass"
    )
    assert await place.say("import os; print(os.listdir('/work'))") == "['main.py']\n"


# --- the host's disks

WRITE_OUT = """
import ctypes, os
libc = ctypes.CDLL(None)
libc.sync()
for path in ('/', '/slot', '/work', '/usr/bin/python3'):
    assert libc.syncfs(os.open(path, os.O_RDONLY)) == 0
"""
PAGE_BYTES = mmap.PAGESIZE
DIRTY = 1 << 4  # KPF_DIRTY of admin-guide/mm/pagemap.rst
TRIES = 5  # the kernel, and others who sync, may be quicker now and then; never each time


def has_to_be_written(file: Path) -> bool:
    """Whether the host still has the file's first page to write."""
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), PAGE_BYTES) as pages:
        first = ctypes.c_char.from_buffer(pages)
        first.value  # noqa: B018 - so that it is mapped
        address = ctypes.addressof(first)
        del first
        number = _entry(Path("/proc/self/pagemap"), address // PAGE_BYTES) & ((1 << 55) - 1)
        return bool(_entry(Path("/proc/kpageflags"), number) & DIRTY)


def _entry(table: Path, index: int) -> int:
    with table.open("rb") as opened:
        opened.seek(index * 8)
        return int.from_bytes(opened.read(8), sys.byteorder)


def written_anew(folder: Path) -> Path:
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(bytes(PAGE_BYTES))
    return Path(file.name)


async def test_a_run_cannot_make_the_host_write_to_its_disks(place, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can see which pages are still to be written")
    control = written_anew(tmp_path)
    os.sync()
    if has_to_be_written(control):
        pytest.skip(f"{tmp_path} is on no disk")
    for _ in range(TRIES):
        file = written_anew(tmp_path)
        if not has_to_be_written(file):
            continue
        await place.say(WRITE_OUT)
        if has_to_be_written(file):
            break
    else:
        pytest.fail("whenever a run called sync, the host's disks had written")


# --- memory


async def test_as_much_memory_is_left_as_there_was(place):
    hold = f"x = bytearray({70 * MIB}); print('held')"
    for _ in range(3):
        assert await place.say(hold) == "held\n"
        await place.say(f"open('/dev/shm/x', 'wb').write(bytes({30 * MIB}))")


async def test_a_run_that_makes_itself_no_victim_is_still_out_of_memory(place):
    ran = await place.containers.run(
        place.function,
        "open('/proc/self/oom_score_adj', 'w').write('0')\nx = [bytearray(1 << 20) for _ in range(1000)]",
    )
    assert ran.execution.error_type is ErrorType.OUT_OF_MEMORY
    assert await place.say("print('fine')") == "fine\n"


# --- two containers at the same time


async def both_at_once(place: Place, function: Function, hold: str, probe: str) -> str:
    """What `probe` says in one container while `hold` runs in another of the same function."""
    async with AsyncExitStack() as held:
        one, other = [await held.enter_async_context(place.containers.acquire(function)) for _ in range(2)]
        await one.container.session.ready()
        holding = asyncio.create_task(place.containers.run_in(one, function, hold, timeout_ms=20_000))
        try:
            probed = await place.containers.run_in(other, function, probe)
            assert not holding.done()
        finally:
            one.container.session.kill()
            await holding
        assert probed.execution.error_type is None, probed.stderr
        return probed.stdout


LOCK = "import fcntl, time\nfile = open('/slot/program')\nfcntl.flock(file, fcntl.LOCK_EX)\ntime.sleep(30)"
TRY_LOCK = """
import fcntl, time
file = open('/slot/program')
for _ in range(20):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print('held')
        break
    fcntl.flock(file, fcntl.LOCK_UN)
    time.sleep(0.05)
else:
    print('free')
"""
WATCH = """
import ctypes, os, time
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(os.O_NONBLOCK)
assert libc.inotify_add_watch(watch, b'/slot/program', 0x20) >= 0  # IN_OPEN
for _ in range(20):
    try:
        os.read(watch, 4096)
    except BlockingIOError:
        time.sleep(0.05)
    else:
        print('seen')
        break
else:
    print('unseen')
"""
OPEN = "import time\nfor _ in range(600):\n  open('/slot/program').close(); time.sleep(0.05)"
OPEN_FILE_LOCK = """
import fcntl, struct, time
file = open('/tmp/x', 'w')
fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 7_654_321, 1, 0))
time.sleep(30)
"""
SEE_LOCKS = """
import time
for _ in range(20):
    if ' 7654321 7654321' in open('/proc/locks').read():
        print('held')
        break
    time.sleep(0.05)
else:
    print('free')
"""
# At the shared level the slot folder's files are links to the worker's one copy of the program.
THROUGH_THE_PROGRAM = {
    "a lock": (LOCK, TRY_LOCK, {Isolation.SANDBOX: "free\n", Isolation.SHARED: "held\n"}),
    "a watch": (OPEN, WATCH, {Isolation.SANDBOX: "unseen\n", Isolation.SHARED: "seen\n"}),
}


@pytest.mark.parametrize("what", THROUGH_THE_PROGRAM)
async def test_containers_with_the_same_program_can_signal_each_other_only_at_the_shared_level(place, what):
    hold, probe, expected = THROUGH_THE_PROGRAM[what]
    any_file = place.containers.function(Runtime.PYTHON, {"program": "not run here"}).tree / "program"
    function = replace(place.containers.function(Runtime.PYTHON, RUN_STDIN[Runtime.PYTHON]), program=any_file)
    assert await both_at_once(place, function, hold, probe) == expected[place.level]


async def test_a_lock_of_an_open_file_is_seen_in_no_other_container(place):
    """The kernel lists such locks of the whole host, whoever asks: at the shared level, to every run."""
    seen = await both_at_once(place, place.function, OPEN_FILE_LOCK, SEE_LOCKS)
    assert seen == ("free\n" if place.level is Isolation.SANDBOX else "held\n")
