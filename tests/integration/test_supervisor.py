"""Runs of hostile and clumsy programs in real containers: what is reported, and that nothing is left.

All tests share a pool and, as far as their runs end well, one container: whatever a test leaves behind would
be met by the next.
"""

from __future__ import annotations

import asyncio
import errno
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.common.units import MIB
from nanoagent.container import execution
from nanoagent.host import resources
from nanoagent.model import payload
from nanoagent.model.result import ErrorType, Isolation, Start
from support.sandboxes.containers import INTERPRETER, LIMITS, Bench, bench, request_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.sandboxes.containers import Ran

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[Isolation.SANDBOX, Isolation.SHARED], ids=str
)
async def box(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """A bench at either level: what a run does and how it ends is the same at both."""
    async with bench(request.param) as made:
        yield made


def ended_well(ran: Ran) -> bool:
    return ran.execution.error_type is None and ran.acquired.clean


async def test_a_container_costs_the_worker_no_more_descriptors_than_are_planned_for_it(box):
    await box.filled()
    before = resources.open_descriptors()
    assert ended_well(await box.run("print()", memory_mb=130))  # another container, which a new one replaces
    await box.filled()
    assert 0 < resources.open_descriptors() - before <= resources.DESCRIPTORS_PER_CONTAINER


# --- what a run is told to have done


async def test_stdout_and_stderr_are_kept_apart(box):
    ran = await box.run("import sys; print('out'); print('err', file=sys.stderr)")
    assert (ran.stdout, ran.stderr) == ("out\n", "err\n")
    assert ended_well(ran)


async def test_head_and_tail_of_five_megabytes_are_kept(box):
    ran = await box.run(
        "import sys\nfor i in range(500_000): sys.stdout.write(f'{i:09}\\n')", capture_bytes=1000
    )
    kept = ran.execution.collected.stdout
    head, gap, tail = kept.text.partition("\n… 4999000 bytes cut …\n")
    assert gap
    assert head == "".join(f"{i:09}\n" for i in range(50))
    assert tail == "".join(f"{i:09}\n" for i in range(499_950, 500_000))
    assert kept.truncated_bytes == 4_999_000


async def test_the_last_words_before_a_crash_are_kept(box):
    ran = await box.run("import os; os.write(1, b'x' * 60_000 + b'last'); os.abort()")
    assert ran.stdout.endswith("xlast")
    assert (ran.execution.error_type, ran.execution.exit_code) == (ErrorType.SIGNAL, 134)


@pytest.mark.parametrize("code", [1, 2, 42, 255])
async def test_an_exit_code_is_the_programs_own(box, code):
    ran = await box.run(f"import sys; sys.exit({code})")
    assert (ran.execution.error_type, ran.execution.exit_code) == (ErrorType.USER_ERROR, code)
    assert ran.acquired.clean


@pytest.mark.parametrize(("name", "code"), [("SIGKILL", 137), ("SIGSEGV", 139), ("SIGTERM", 143)])
async def test_a_program_killed_by_its_own_signal_says_which(box, name, code):
    ran = await box.run(f"import os, signal; os.kill(os.getpid(), signal.{name})")
    assert (ran.execution.error_type, ran.execution.exit_code) == (ErrorType.SIGNAL, code)
    assert name in str(ran.execution.message)


async def test_the_payload_is_on_standard_input_and_in_the_file(box):
    snippet = "print(len(open('/input/payload.json').read()))"
    assert (await box.run(snippet)).stdout == f"{len(snippet)}\n"


async def test_standard_input_is_a_pipe_that_ends(box):
    ran = await box.run(
        "import os, select, stat, sys\n"
        "poll = select.epoll(); poll.register(0)\n"
        "print(stat.S_ISFIFO(os.fstat(0).st_mode), len(poll.poll(0)), os.read(0, 1))"
    )
    assert ran.stdout == "True 1 b''\n"


# More than a pipe holds. The first two never read it.
@pytest.mark.parametrize(
    ("arguments", "error_type", "printed"),
    [
        (("/bin/true",), None, 0),
        (("/bin/sleep", "1000"), ErrorType.TIMEOUT, 0),
        (("/bin/sh", "-c", "head -c 70000; exec <&-; sleep 0.3"), None, 70_000),
        (("/bin/sh", "-c", "sleep 0.3; cat"), None, 1_000_000),
    ],
    ids=["ends", "sleeps", "closes it", "reads all of it"],
)
async def test_an_input_larger_than_a_pipe_keeps_no_program(box, arguments, error_type, printed):
    ran = await box.run(
        "x" * 1_000_000, arguments=arguments, timeout_ms=3000, capture_bytes=1_000_000, grace_ms=50
    )
    assert (ran.execution.error_type, len(ran.stdout)) == (error_type, printed)


async def test_what_a_program_printed_without_waiting_for_room_arrives(box):
    """Node.js writes to a pipe so, and what does not fit is lost when it exits."""
    ran = await box.run(
        "import os\nfor stream in (1, 2):\n"
        "    os.set_blocking(stream, False)\n    os.write(stream, b'x' * 900_000 + b'end')\nos._exit(0)",
        capture_bytes=1 << 20,
    )
    assert [len(ran.stdout), len(ran.stderr)] == [900_003, 900_003]


async def test_the_program_sees_its_environment_and_nothing_else(box):
    ran = await box.run(
        "import os; print(sorted(os.environ.items()))", environment={"A": "1", "PATH": "/usr/bin:/bin"}
    )
    seen = dict(eval(ran.stdout))  # noqa: S307 - our own snippet printed it
    seen.pop("LC_CTYPE", None)  # Python's own doing (PEP 538)
    assert seen == {"A": "1", "PATH": "/usr/bin:/bin"}


# --- time


DAEMON = "import os, time\nif os.fork(): time.sleep(1000)\n"


@pytest.mark.parametrize(
    "snippet",
    [
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass",
        DAEMON + "os.setsid()\nif os.fork(): os._exit(0)\ntime.sleep(1000)",
    ],
    ids=["ignores SIGTERM", "has a daemon that keeps the pipes open"],
)
async def test_a_program_that_does_not_end_is_ended(box, snippet):
    ran = await box.run("print('begun', flush=True)\n" + snippet, timeout_ms=300)
    assert ran.execution.error_type is ErrorType.TIMEOUT
    assert ran.stdout.startswith("begun\n")
    assert ended_well(await box.run(""))


async def test_a_program_may_say_goodbye_before_its_time_is_up(box):
    ran = await box.run(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('goodbye'), sys.exit(0)))\n"
        "time.sleep(1000)",
        timeout_ms=500,
        grace_ms=5000,
    )
    assert (ran.execution.error_type, ran.stdout) == (ErrorType.TIMEOUT, "goodbye\n")


async def test_a_daemon_does_not_outlive_its_program(box):
    ran = await box.run(
        "import os, time\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "if os.fork(): os._exit(0)\n"
        "print('daemon', flush=True)\n"
        "time.sleep(1000)"
    )
    assert ran.execution.error_type is None
    assert (await box.run(PROCESSES)).stdout == "[1, 'self']\n"


async def test_a_run_can_be_called_off(box):
    async with box.acquire() as acquired:
        request = request_for(b"import time; print('begun', flush=True); time.sleep(1000)")
        await acquired.container.session.ready()
        running = asyncio.create_task(execution.execute(acquired, request, box.staging()))
        await asyncio.sleep(0.2)  # for it to begin; called off earlier, it ends the same way
        acquired.container.session.kill()
        executed = await running
    assert executed.error_type is ErrorType.CANCELLED
    assert ended_well(await box.run(""))


# --- nothing survives

PROCESSES = """
import os
mine = os.getpid()
print([int(pid) if int(pid) != mine else 'self' for pid in sorted(os.listdir('/proc')) if pid.isdigit()])
"""
WRITABLE = ("/tmp", "/output", "/dev/shm", "/input")


async def test_the_next_run_sees_only_process_1_and_itself(box):
    await box.run("import subprocess\nfor _ in range(5): subprocess.Popen(['sleep', '1000'])")
    assert (await box.run(PROCESSES)).stdout == "[1, 'self']\n"


async def test_the_next_run_finds_empty_folders_and_pristine_code(box):
    dirty = await box.run(
        f"import os\nfor place in {WRITABLE}:\n    open(place + '/left', 'w').write('x')\n"
        "open('main.py', 'a').write('garbage(')\nopen('new.py', 'w')\nos.mkdir('folder')"
    )
    assert ended_well(dirty)
    clean = await box.run(f"import os; print([os.listdir(place) for place in {WRITABLE}], os.listdir('.'))")
    assert clean.stdout == "[[], [], [], ['payload.json']] ['main.py']\n"
    assert clean.container_id == dirty.container_id


async def test_a_tree_a_thousand_levels_deep_is_wiped(box):
    ran = await box.run(
        "import os\nos.chdir('/tmp')\nfor _ in range(1000): os.mkdir('d'); os.chdir('d')\nopen('f', 'w')"
    )
    assert ended_well(ran)
    assert (await box.run("import os; print(os.listdir('/tmp'))")).stdout == "[]\n"


async def test_folders_without_permissions_are_wiped(box):
    ran = await box.run(
        "import os\n"
        "for place in ('/tmp', '/output', '.'):\n"
        "    os.makedirs(place + '/a/b/c')\n"
        "    open(place + '/a/b/c/f', 'w')\n"
        "    for path in ('a/b/c/f', 'a/b/c', 'a/b', 'a'): os.chmod(f'{place}/{path}', 0)"
    )
    assert ended_well(ran)
    after = await box.run("import os; print(os.listdir('/tmp'), os.listdir('/output'), os.listdir('.'))")
    assert after.stdout == "[] [] ['main.py']\n"


async def test_files_that_lost_their_names_leave_no_trace(box):
    """Unlinked and mapped, or in flight between sockets that only hold each other: no name to wipe by."""
    room = "import os; print([os.statvfs(place).f_bfree for place in ('/tmp', '/dev/shm')])"
    before = await box.run(room)
    ran = await box.run(
        "import os, socket\n"
        "for place in ('/tmp', '/dev/shm'):\n"
        "    one, other = socket.socketpair()\n"
        "    file = os.open(place + '/f', os.O_RDWR | os.O_CREAT)\n"
        "    os.write(file, bytes(4 << 20))\n"
        "    os.unlink(place + '/f')\n"
        "    socket.send_fds(one, [b'x'], [file, one.fileno(), other.fileno()])\n"
    )
    assert ran.execution.error_type is None
    if (
        ran.acquired.isolation is Isolation.SHARED
    ):  # a sandbox's folders are its own, whatever becomes of them
        assert ran.acquired.clean
    assert (await box.run(room)).stdout == before.stdout


# --- files


async def test_files_in_nested_folders_are_taken_with_their_paths(box):
    ran = await box.run(
        "import os\nos.makedirs('/output/a/b')\n"
        "open('/output/top', 'w').write('1')\nopen('/output/a/b/deep', 'w').write('22')\n"
        "open('/output/empty', 'w')\nopen('/output/\\u00e9\\ud55c', 'w').write('333')"
    )
    taken = {file.path: file.staged.read_bytes() for file in ran.execution.collected.files}
    assert taken == {"top": b"1", "a/b/deep": b"22", "empty": b"", "é한": b"333"}


async def test_a_large_file_arrives_whole(box):
    ran = await box.run("open('/output/f', 'wb').write(bytes(range(256)) * 4096 * 4)")
    (file,) = ran.execution.collected.files
    assert file.staged.read_bytes() == bytes(range(256)) * 4096 * 4


@pytest.mark.parametrize(
    ("left", "path", "reason"),
    [
        ("os.symlink('/etc/passwd', '/output/x')", "x", "is a link"),
        ("os.symlink('/etc', '/output/x')", "x", "is a link"),
        ("os.mkfifo('/output/x')", "x", "is a device, pipe or socket"),
        (
            "import socket; socket.socket(socket.AF_UNIX).bind('/output/x')",
            "x",
            "is a device, pipe or socket",
        ),
        ("os.makedirs('/output' + '/d' * 40)", "/".join("d" * 32), "is in a folder that is too deep"),
        ("open('/output/x', 'wb').truncate(9 << 20)", "x", "is too large"),
    ],
    ids=["link", "link to a folder", "FIFO", "socket", "depth", "size"],
)
async def test_a_file_is_refused_by_name(box, left, path, reason):
    ran = await box.run(f"import os\n{left}\nopen('/output/z', 'w')")
    ((error,), (file,)) = ran.execution.collected.refused, ran.execution.collected.files
    assert error.path == path
    assert str(error.reason).startswith(reason)
    assert file.path == "z"
    assert ended_well(ran)


async def test_files_over_their_number_are_refused_in_the_order_of_their_names(box):
    ran = await box.run("for i in range(5): open(f'/output/{i}', 'w')", output_max_files=3)
    assert [file.path for file in ran.execution.collected.files] == ["0", "1", "2"]
    assert [error.path for error in ran.execution.collected.refused] == ["3", "4"]


async def test_a_file_that_does_not_fit_the_total_is_refused(box):
    ran = await box.run(
        "for i in range(3): open(f'/output/{i}', 'wb').write(b'x' * 600)", output_max_total_bytes=1300
    )
    assert [file.path for file in ran.execution.collected.files] == ["0", "1"]
    assert [error.path for error in ran.execution.collected.refused] == ["2"]


# --- limits


@pytest.mark.parametrize("place", ["/tmp", "/output", ".", "/input"])
async def test_a_full_folder_is_a_disk_limit(box, place):
    ran = await box.run(
        f"import os\nf = open('{place}/f', 'wb')\nwhile True: f.write(bytes(1 << 20))", memory_mb=256
    )
    assert ran.execution.error_type is ErrorType.DISK_LIMIT
    assert ended_well(await box.run("", memory_mb=256))


async def test_shared_memory_is_bounded_by_the_runs_memory_alone(box):
    fill = "import multiprocessing.shared_memory as memory\n"
    fill += "made = memory.SharedMemory(create=True, size={0} << 20)\nmade.buf[:] = bytes({0} << 20)\n"
    fill += "print(made.size >> 20)\nmade.unlink()"
    assert (await box.run(fill.format(150), memory_mb=512)).stdout == "150\n"
    ran = await box.run("open('/dev/shm/x', 'wb').write(bytes(300 << 20))", memory_mb=256)
    assert ran.execution.error_type is ErrorType.OUT_OF_MEMORY


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
async def test_too_many_files_are_a_disk_limit(box, place):
    ran = await box.run(f"for i in range(20_000): open(f'{place}/{{i}}', 'w').close()")
    assert ran.execution.error_type is ErrorType.DISK_LIMIT
    assert ended_well(await box.run(""))


@pytest.mark.parametrize("ignored", [True, False], ids=["as an error", "by SIGXFSZ"])
async def test_a_file_over_the_size_limit_is_a_disk_limit(box, ignored):
    handler = "SIG_IGN" if ignored else "SIG_DFL"
    ran = await box.run(
        f"import signal; signal.signal(signal.SIGXFSZ, signal.{handler})\n"
        "open('/tmp/f', 'wb', 0).write(bytes(2 << 20))\nopen('/tmp/f', 'ab', 0).write(b'x')",
        file_size_bytes=MIB,
    )
    assert ran.execution.error_type is ErrorType.DISK_LIMIT
    assert "1048576" in str(ran.execution.message)


@pytest.mark.parametrize(
    "snippet",
    [
        "open('/tmp/f', 'wb').truncate(2 << 20)",
        "import tempfile\nwith tempfile.TemporaryFile() as file: file.write(bytes(2 << 20))",
    ],
    ids=["without growth", "unlinked"],
)
async def test_a_file_that_is_not_there_any_more_was_over_the_limit_all_the_same(box, snippet):
    ran = await box.run(snippet, file_size_bytes=MIB)
    assert ran.execution.error_type is ErrorType.DISK_LIMIT


async def test_a_large_file_of_the_code_is_none_that_the_run_has_made(box):
    ran = await box.run("raise ValueError('its own')", file_size_bytes=10)
    assert (ran.execution.error_type, str(ran.execution.message)) == (
        ErrorType.USER_ERROR,
        "ValueError: its own",
    )


async def test_a_variable_of_the_largest_size_reaches_a_run_and_its_children(box):
    environment = {**request_for(b"").environment, "PAYLOAD": "x" * payload.MAX_BYTES}
    ran = await box.run(
        "import os, subprocess\n"
        "print(len(os.environ['PAYLOAD']), subprocess.check_output(['sh', '-c', 'echo ${#PAYLOAD}']))",
        environment=environment,
    )
    assert ran.stdout == f"{payload.MAX_BYTES} b'{payload.MAX_BYTES}\\n'\n"
    assert ended_well(ran)


async def test_a_process_opens_only_so_many_files(box):
    ran = await box.run(
        "held = []\n"
        "try:\n"
        "    while True: held.append(open('/dev/null'))\n"
        "except OSError as error: print(error.errno, len(held) + 3)",
        open_files=64,
    )
    # One more is open while it runs: its own source, or what the interpreter has at hand.
    number, opened = ran.stdout.split()
    assert (int(number), 60 <= int(opened) <= 64) == (errno.EMFILE, True)


async def test_a_fork_bomb_is_a_process_limit_and_the_next_run_is_fine(box):
    ran = await box.run("import os\nwhile True:\n    try: os.fork()\n    except OSError: os._exit(1)")
    assert ran.execution.error_type is ErrorType.PROCESS_LIMIT
    assert ran.execution.use is not None
    assert ran.execution.use.refused_processes > 0
    assert (await box.run(PROCESSES)).stdout == "[1, 'self']\n"


async def test_as_many_processes_as_allowed_are_no_limit(box):
    # Less this one, and the room that the supervisor's own two take.
    ran = await box.run(
        "import subprocess\n"
        f"children = [subprocess.Popen(['sleep', '1000']) for _ in range({LIMITS.processes - 1})]\n"
        "print(len(children))"
    )
    assert ran.stdout == f"{LIMITS.processes - 1}\n"
    assert ended_well(ran)


async def test_using_up_memory_is_out_of_memory(box):
    ran = await box.run("x = bytearray(300 << 20)")
    assert (ran.execution.error_type, ran.execution.exit_code) == (ErrorType.OUT_OF_MEMORY, 137)
    assert not ran.acquired.clean
    assert ended_well(await box.run(""))


async def test_a_grandchild_that_uses_up_memory_is_out_of_memory(box):
    ran = await box.run(
        "import subprocess, sys\n"
        "inner = \"import subprocess, sys; subprocess.run([sys.executable, '-c', 'bytearray(300 << 20)'])\"\n"
        "subprocess.run([sys.executable, '-c', inner])\n"
        "print('I live')"
    )
    assert ran.execution.error_type is ErrorType.OUT_OF_MEMORY
    assert ran.stdout == "I live\n"


async def test_killing_oneself_is_not_out_of_memory(box):
    ran = await box.run("import os; os.kill(os.getpid(), 9)")
    assert ran.execution.error_type is ErrorType.SIGNAL


# --- memory is measured

# Private pages: what a process shares with the zygote it was forked from is not its own.
PRIVATE = (
    "print(int(re.search(r'Private_Dirty:\\s+(\\d+) kB', open('/proc/self/smaps_rollup').read())[1]) << 10)"
)
HOLD = "import re\nheld = bytearray({size})\n" + PRIVATE


def near(measured: int, truth: int) -> bool:
    return abs(measured - truth) <= max(3 * MIB, truth // 20)


async def test_peak_memory_is_what_the_program_held(box):
    ran = await box.run(HOLD.format(size=100 << 20), memory_mb=256)
    assert near(ran.execution.use.peak_bytes, int(ran.stdout)), (ran.execution.use, ran.stdout)


async def test_peak_memory_of_a_child_counts(box):
    ran = await box.run(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {HOLD.format(size=100 << 20)!r}])\n"
        f"import re\n{PRIVATE}",
        memory_mb=256,
    )
    assert near(ran.execution.use.peak_bytes, sum(map(int, ran.stdout.split()))), ran.stdout


async def test_peak_memory_is_not_inflated_by_the_run_before(box):
    await box.run(HOLD.format(size=150 << 20), memory_mb=256)
    ran = await box.run(HOLD.format(size=1 << 20), memory_mb=256)
    assert ran.acquired.start is Start.HOT
    assert near(ran.execution.use.peak_bytes, int(ran.stdout)), (ran.execution.use, ran.stdout)


async def test_files_in_memory_count(box):
    ran = await box.run("open('/tmp/f', 'wb').write(bytes(20 << 20))", memory_mb=256)
    assert ran.execution.use.peak_bytes > 19 * MIB  # the kernel counts in batches


# --- what ordinary programs expect

EXPECTED = {
    "the host's own name": ("socket.gethostbyname(socket.gethostname())", "127.0.0.1"),
    "localhost": (
        "sorted({address[4][0] for address in socket.getaddrinfo('localhost', 80)})",
        ["127.0.0.1", "::1"],
    ),
    "localhost, of the configured families": (
        "socket.getaddrinfo('localhost', 80, socket.AF_INET, 0, 0, socket.AI_ADDRCONFIG)[0][4]",
        ("127.0.0.1", 80),
    ),
    "a port below 1024": ("served('127.0.0.1', socket.AF_INET)", True),
    "the same of IPv6": ("served('::1', socket.AF_INET6)", True),
    "the user's name": ("(getpass.getuser(), pwd.getpwuid(os.getuid()).pw_name)", ("function", "function")),
    "the group's name": ("grp.getgrgid(os.getgid()).gr_name", "function"),
    "another user": ("refused(os.setuid, 65534)", "EPERM"),
    "root": ("refused(os.setresuid, -1, 0, -1)", "EPERM"),
    "another group": ("refused(os.setregid, 5, -1)", "EPERM"),
    "giving a file away": ("refused(os.chown, '/tmp', 0, 0)", "EPERM"),
    "giving a file to oneself": ("os.chown('main.py', os.getuid(), -1)", None),
    "locales": (
        "[locale.setlocale(locale.LC_ALL, name) for name in ('en_US.UTF-8', 'ko_KR.UTF-8')]",
        ["en_US.UTF-8", "ko_KR.UTF-8"],
    ),
    "a weekday in Korean": ("time.strftime('%A', (2026, 11, 30, 0, 0, 0, 0, 334, 0))", "월요일"),
    "time zones": (
        "str(datetime.datetime.fromtimestamp(0, zoneinfo.ZoneInfo('Asia/Seoul')))[11:]",
        "09:00:00+09:00",
    ),
    "certificates of authorities": ("len(ssl.create_default_context().get_ca_certs()) > 50", True),
    "the device of a file that came along": ("os.path.ismount('main.py')", False),
    "its number": ("[entry.inode() - entry.stat().st_ino for entry in os.scandir('.')]", [0]),
    "a second name of it": (
        "[os.link('main.py', 'other'), os.path.samefile('main.py', 'other')]",
        [None, True],
    ),
}
EXPECT = """
import datetime, errno, getpass, grp, locale, os, pwd, socket, ssl, time, zoneinfo
def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError as exc:
        return errno.errorcode[exc.errno]
def served(address, family):
    with socket.create_server((address, 80), family=family), socket.create_connection((address, 80)):
        return True
"""


async def test_programs_find_what_they_expect_of_a_machine(box):
    found = "".join(f"print({name!r}, repr({source}), sep='\\t')\n" for name, (source, _) in EXPECTED.items())
    ran = await box.run(EXPECT + found)
    assert ended_well(ran), ran.stderr
    printed = dict(line.split("\t") for line in ran.stdout.splitlines())
    assert printed == {name: repr(value) for name, (_, value) in EXPECTED.items()}


CODE_FOLDER = """
import errno, os
print(os.stat("folder/file").st_mtime, open("folder/file").read())
open("folder/file", "a").write("changed")
try:
    os.rename("folder", "renamed")
    print(open("renamed/file").read())
except OSError as exc:
    print(errno.errorcode[exc.errno])
"""


@pytest.mark.parametrize("more", [0, 50], ids=["small", "large"])
async def test_code_is_writable_and_keeps_its_times_and_folders_of_small_code_can_be_renamed(
    box, tmp_path, more
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "main.py").write_text(INTERPRETER)
    (tmp_path / "folder/file").write_text("file ")
    for number in range(more):
        (tmp_path / f"{number}.txt").write_text("x")
    os.utime(tmp_path / "folder/file", (1e9, 1e9))
    for _ in range(2):  # the second finds nothing of the first
        ran = await box.run_bound(box.binding(tree=tmp_path), CODE_FOLDER)
        is_layer = more and ran.acquired.isolation is Isolation.SANDBOX
        renamed = "EXDEV" if is_layer else "file changed"
        assert ran.stdout.splitlines() == ["1000000000.0 file ", renamed]


NETLINK = """
import errno, socket
held = []
try:
    print([name for _, name in socket.if_nameindex()])
    while True:
        held.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
except OSError as exc:
    print(len(held), errno.errorcode[exc.errno])
held.clear()
for _ in range(100):
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
"""


async def test_a_run_lists_its_network_interfaces_with_few_netlink_sockets(box):
    ran = await box.run(NETLINK)
    if ran.acquired.isolation is Isolation.SANDBOX:
        assert ran.stdout.splitlines() == ["['lo']", "8 EMFILE"]
        assert ended_well(ran)
    else:
        assert ran.stdout == "0 EPERM\n"


KEEPS_ANSWERS = """
import socket, struct, time
request = struct.pack('=IHHII', 32000, 9999, 5, 1, 0) + bytes(31984)  # unknown; the error quotes it
kept = [socket.socket(16, 3, 0) for _ in range(8)]
for each in kept:
    each.setsockopt(1, 8, 1 << 30)
    each.setsockopt(1, 7, 1 << 30)
    each.setblocking(False)
    try:
        while True:
            each.send(request)
    except OSError:
        pass
time.sleep(30)
"""


async def test_a_run_that_lets_the_kernel_keep_netlink_answers_is_ended(box):
    ran = await box.run(KEEPS_ANSWERS)
    if ran.acquired.isolation is not Isolation.SANDBOX:
        return
    if int(Path("/proc/sys/net/core/rmem_max").read_text()) * 2 * 8 <= 4 * 2**20:
        assert ran.execution.error_type is ErrorType.TIMEOUT  # this kernel keeps less
        return
    assert ran.execution.error_type is ErrorType.OUT_OF_MEMORY
    assert "netlink" in str(ran.execution.message)
    assert ended_well(await box.run("print(1)"))


# --- attacks on the supervisor and the walls

LIBC = "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True)\n"


def refused_call(call: str) -> str:
    """A snippet that makes a call of the C library's and prints the name of the error, or `done`."""
    return (
        f"{LIBC}import errno\n"
        f"result = libc.{call}\n"
        "print(errno.errorcode[ctypes.get_errno()] if result == -1 else 'done')"
    )


def refused_statement(statement: str) -> str:
    """A snippet that runs a statement and prints the name of the error, or `done`."""
    return (
        "import errno, os, resource, signal, socket\n"
        f"try:\n    {statement}\n"
        "except OSError as exc:\n    print(errno.errorcode[exc.errno])\n"
        "else:\n    print('done')"
    )


PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
AF_PACKET, AF_VSOCK, AF_ALG = 17, 40, 38
NETLINK_AUDIT, NETLINK_NETFILTER = 9, 12
ATTACKS = {
    "trace it": refused_call(f"ptrace({PTRACE_ATTACH}, 1, 0, 0)"),
    "seize it": refused_call(f"ptrace({PTRACE_SEIZE}, 1, 0, 0)"),
    "read its memory": refused_statement("open('/proc/1/mem', 'rb').read(1)"),
    "read its environment": refused_statement("open('/proc/1/environ', 'rb').read()"),
    "list its descriptors": refused_statement("os.listdir('/proc/1/fd')"),
    "see its working folder": refused_statement("os.readlink('/proc/1/cwd')"),
    "see its root": refused_statement("os.listdir('/proc/1/root/')"),
    "see its maps": refused_statement("open('/proc/1/maps').read()"),
    "write its memory": refused_statement("open('/proc/1/mem', 'wb')"),
    "make it the kernel's victim": refused_statement("open('/proc/1/oom_score_adj', 'w').write('1000')"),
    "limit it": refused_statement("resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))"),
    "slow it down": refused_statement("os.setpriority(os.PRIO_PROCESS, 1, 19)"),
    "slow its user down": refused_statement("os.setpriority(os.PRIO_USER, 0, 19)"),
    "slow its group down": refused_statement("os.setpriority(os.PRIO_PGRP, 1, 19)"),
    "pin it": refused_statement("os.sched_setaffinity(1, {0})"),
    "idle it": refused_statement("os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))"),
    "read it by process_vm_readv": refused_call("process_vm_readv(1, None, 0, None, 0, 0)"),
    "talk to the agent": refused_statement("socket.socket(socket.AF_UNIX).connect('/slot/agent.sock')"),
    "write into the slot": refused_statement("open('/slot/x', 'w')"),
    "write into the code": refused_statement("open('/slot/code', 'a')"),
    "write into the root": refused_statement("open('/x', 'w')"),
    "write into the supervisor": refused_statement("open('/nanosupervisor/supervisor', 'r+b')"),
    "make a user namespace": refused_call("unshare(0x10000000)"),
    "enter a namespace": refused_call("setns(0, 0)"),
    "mount": refused_call("mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None)"),
    "unmount": refused_call("umount2(b'/tmp', 2)"),
    "change the root": refused_call("chroot(b'/tmp')"),
    "open a VSOCK": refused_statement(f"socket.socket({AF_VSOCK}, socket.SOCK_STREAM)"),
    "open a packet socket": refused_statement(f"socket.socket({AF_PACKET}, socket.SOCK_RAW)"),
    "open a crypto socket": refused_statement(f"socket.socket({AF_ALG}, socket.SOCK_SEQPACKET)"),
    "open an audit socket": refused_statement(
        f"socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, {NETLINK_AUDIT})"
    ),
    "open a netfilter socket": refused_statement(
        f"socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, {NETLINK_NETFILTER})"
    ),
    "open a pair of sockets of another family": refused_statement(
        "socket.socketpair(socket.AF_NETLINK, socket.SOCK_RAW)"
    ),
    "open a raw socket": refused_statement("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"),
    "reach the network": refused_statement("socket.create_connection(('192.0.2.1', 80), timeout=5)"),
    "become root": refused_statement("os.setuid(0)"),
    "make a device": refused_statement("os.mknod('/tmp/d', 0o020666, os.makedev(1, 1))"),
}
# By their numbers, which are x86-64's.
RAW_ATTACKS = {
    "give its child to its own parent": refused_call("syscall(56, 0x8011, 0, 0, 0, 0)"),  # CLONE_PARENT
    "take its descriptors": refused_call("syscall(438, libc.syscall(434, 1, 0), 0, 0)"),  # pidfd_getfd
    "move its pages": refused_call("syscall(279, 1, 0, None, None, None, 0)"),  # move_pages
    "make a namespace by clone": refused_call("syscall(56, 0x10000011, 0, 0, 0, 0)"),
    "make a namespace by clone3": refused_call("syscall(435, ctypes.create_string_buffer(88), 88)"),
    "leave a key": refused_call("syscall(248, b'user', b'k', b'v', 1, -4)"),  # add_key
    "load a BPF program": refused_call("syscall(321, 0, 0, 0)"),
    "use io_uring": refused_call("syscall(425, 1, 0)"),
    "use userfaultfd": refused_call("syscall(323, 0)"),
    "count performance events": refused_call("syscall(298, 0, 0, -1, -1, 0)"),
}
if platform.machine() == "x86_64":
    ATTACKS |= RAW_ATTACKS
ERRORS = {"EPERM", "EACCES", "ENOENT", "EROFS", "ENOSYS", "ENETUNREACH", "EAFNOSUPPORT", "EINVAL"}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_program_cannot(box, attack):
    ran = await box.run(ATTACKS[attack])
    assert ran.stdout.strip() in ERRORS, (ran.stdout, ran.stderr)
    assert ended_well(ran)


LEFT = {
    "shared memory": "shmget(1234, 4096, 0o{mode:o})",
    "semaphores": "semget(1234, 1, 0o{mode:o})",
    "a message queue": "msgget(1234, 0o{mode:o})",
    "a POSIX message queue": "mq_open(b'/q', 0o{mode:o}, 0o666, None)",
}
IPC_CREATE = {"a POSIX message queue": 0o102}


@pytest.mark.parametrize("what", LEFT)
async def test_a_run_leaves_none_of_its_system_v_and_posix_ipc(box, what):
    """In a sandbox they are its own namespace's; in a shared container they are refused."""
    made = await box.run(refused_call(LEFT[what].format(mode=IPC_CREATE.get(what, 0o1666))))
    found = await box.run(refused_call(LEFT[what].format(mode=0)))
    if made.acquired.isolation is Isolation.SANDBOX:
        assert (made.stdout, found.stdout) == ("done\n", "ENOENT\n")
    else:
        assert {made.stdout, found.stdout} <= {"EPERM\n", "ENOSYS\n"}
    assert ended_well(made)


async def test_a_program_cannot_have_the_hosts_core_helper_run(box):
    """With a core_pattern that is a pipe, a limit of 0 would still run it, as root, on the host."""
    ran = await box.run(
        "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    assert ran.stdout == "(1, 1)\n"


async def test_terminals_are_few_and_the_runs_own(box):
    ran = await box.run(
        "import errno, os\n"
        "pairs = []\n"
        "try:\n"
        "    while True: pairs.append(os.openpty())\n"
        "except OSError as exc: print(errno.errorcode[exc.errno], len(pairs), '0' in os.listdir('/dev/pts'))",
        open_files=1024,
    )
    if ran.acquired.isolation is Isolation.SANDBOX:
        assert ran.stdout == "ENOSPC 64 True\n"
    assert ended_well(await box.run(""))


async def test_running_out_of_memory_is_told_though_the_kernel_killed_the_zygote(box):
    """A program may make itself the kernel's last choice; then all else in its container goes first."""
    ran = await box.run(
        "import os\n"
        "open('/proc/self/oom_score_adj', 'w').write('0')\n"
        "for place in ('/tmp', '/output', '/dev/shm', '.'):\n"
        "    with open(place + '/f', 'wb') as file:\n"
        "        try:\n"
        "            while True: file.write(bytes(1 << 20))\n"
        "        except OSError: pass\n"
        "os.execv('/bin/sleep', ['sleep', '1000'])",
        memory_mb=64,
        timeout_ms=5000,
    )
    assert ran.execution.error_type in {ErrorType.OUT_OF_MEMORY, ErrorType.TIMEOUT}
    if ran.execution.use is not None and ran.execution.use.oom_kills:
        assert ran.execution.error_type is ErrorType.OUT_OF_MEMORY
    assert ended_well(await box.run("", memory_mb=64))


@pytest.mark.parametrize("number", [1, 2, 9, 10, 15, 17, 19, 30, 34])
async def test_the_supervisor_takes_no_signal(box, number):
    # At the shared level our filter refuses it before the kernel ignores it.
    ran = await box.run(
        f"import os\ntry:\n    os.kill(1, {number})\nexcept PermissionError:\n    pass\nprint('tried')"
    )
    assert ran.stdout == "tried\n"
    after = await box.run("")
    assert ended_well(after)
    assert after.container_id == ran.container_id


async def test_a_signal_to_all_processes_harms_only_the_run_itself(box):
    ran = await box.run(
        "import os, signal, subprocess\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "os.kill(-1, signal.SIGKILL)\n"
        "print(child.wait())"
    )
    assert ran.stdout == "-9\n"
    after = await box.run("")
    assert (ended_well(after), after.container_id) == (True, ran.container_id)


async def test_there_is_no_network_but_loopback(box):
    ran = await box.run("print([line.split()[0] for line in open('/proc/net/dev').readlines()[2:]])")
    assert ran.stdout == "['lo:']\n"


async def test_a_program_has_no_capability_and_can_get_none(box):
    ran = await box.run(
        "print(*(line.split()[1] for line in open('/proc/self/status')"
        " if line.startswith(('Cap', 'NoNewPrivs', 'Seccomp:'))))"
    )
    assert ran.stdout.split() == ["0" * 16] * 5 + ["1", "2"]


async def test_a_program_holds_no_descriptor_but_the_standard_three(box):
    ran = await box.run("import os; print(sorted(int(fd) for fd in os.listdir('/proc/self/fd')))")
    assert ran.stdout == "[0, 1, 2, 3]\n"  # 3 is the listing's own


async def test_the_next_run_after_all_of_it_is_like_the_first(box):
    ran = await box.run(PROCESSES)
    assert (ran.stdout, ran.stderr) == ("[1, 'self']\n", "")
    assert ended_well(ran)
