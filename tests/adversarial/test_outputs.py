"""What a run can leave in /output against whoever collects it: plain files arrive whole, nothing else does.

Real containers, at both levels at which containers serve more than one run. Each oracle is the whole of what
arrived: files with their bytes, in order, and every refusal with its reason; and that the next run is fine.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from nanoagent.common.units import MIB
from nanoagent.jobs.outputs import OutputUploader
from nanoagent.languages.recipes import RECIPES
from nanoagent.model import result as results
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType, Isolation, Result, Start, Status
from nanoagent.storage.folder import FolderStore
from nanoagent.telemetry.metrics import Metrics
from support.checks.outputs import (
    COUNT,
    DEPTH,
    LINK,
    NAMED_REFUSALS,
    NAMES,
    REFUSED_NAMES,
    SIZE,
    SPECIAL,
    TOTAL,
    Left,
    left_by,
    percent_encoded,
)
from support.doubles.fakes import make_settings
from support.sandboxes.adversarial import LIMITS, built, yard
from support.sandboxes.containers import RUN_STDIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.sandboxes.adversarial import Function, Shelf, Yard
    from support.sandboxes.containers import Ran

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAMS = Path(__file__).parent / "outputs"
LEVELS = (Isolation.SANDBOX, Isolation.SHARED)
MANY = 100_000
WAIT_S = 60  # a collector that blocks is a failure; nothing is measured by it


class Place:
    """Containers of one level and a function that runs Python snippets in them."""

    def __init__(self, level: Isolation, containers: Yard) -> None:
        self.level = level
        self.containers = containers
        self.function = containers.function(Runtime.PYTHON, RUN_STDIN[Runtime.PYTHON])

    async def run(self, snippet: str, **changes: Any) -> Ran:
        async with asyncio.timeout(WAIT_S):
            return await self.containers.run(self.function, snippet, **changes)

    async def leave(self, snippet: str, **changes: Any) -> Left:
        """What arrives of a snippet that ends well, in a container that serves again."""
        ran = await self.run(snippet, **changes)
        assert ran.execution.error_type is None, (ran.execution.message, ran.stderr)
        assert ran.execution.collected.clean
        await self.goes_on_after(ran)
        return left_by(ran)

    async def goes_on_after(self, ran: Ran, *, hot: bool = True) -> None:
        """The next run finds nothing, leaves one file, and is in the same container if that is to be."""
        then = await self.run("import os\nprint(os.listdir('/output'))\nopen('/output/f', 'w').write('next')")
        assert (then.stdout, then.execution.error_type) == ("[]\n", None)
        assert left_by(then) == Left({"f": b"next"}, [])
        if hot:
            assert (then.acquired.start, then.container_id) == (Start.HOT, ran.container_id)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=LEVELS, ids=str)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    async with yard(request.param, (Runtime.PYTHON,)) as containers:
        yield Place(request.param, containers)


# --- shapes: what can be in a folder beside plain files


@dataclass(frozen=True, slots=True)
class Shape:
    """Something to be left in a folder of its own.

    Attributes:
        code: Python that leaves it in the working folder.
        files: What is to arrive.
        refused: What is to be refused, with its reason.
        says: What the code prints.
    """

    code: str
    files: dict[str, bytes] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    says: str = ""


LONG = "n" * 200
LEVELS_TO_PATH_MAX = 30
SHAPES = {
    # links
    "a link to a file of the system": Shape("os.symlink('/etc/passwd', 'x')", refused=[("x", LINK)]),
    "a link to a folder of the system": Shape("os.symlink('/etc', 'x')", refused=[("x", LINK)]),
    "links into /proc": Shape(
        "for n, to in enumerate(('/proc/1/environ', '/proc/self/environ', '/proc/self/fd/0', '/proc/1/root',"
        " '/proc/self/mem', '/proc/kmsg')): os.symlink(to, str(n))",
        refused=[(str(number), LINK) for number in range(6)],
    ),
    "a link to itself": Shape("os.symlink('x', 'x')", refused=[("x", LINK)]),
    "a link that dangles": Shape("os.symlink('no such file', 'x')", refused=[("x", LINK)]),
    "a link up": Shape("os.symlink('../..', 'x')", refused=[("x", LINK)]),
    "a link of four kilobytes": Shape("os.symlink('/x' * 2047, 'x')", refused=[("x", LINK)]),
    "a link beside its file": Shape(
        "write('a', b'honest'); os.symlink('a', 'b')", {"a": b"honest"}, [("b", LINK)]
    ),
    "hard links to one file": Shape(
        "write('a', b'one'); os.link('a', 'b'); os.mkdir('c'); os.link('a', 'c/d')",
        dict.fromkeys(("a", "b", "c/d"), b"one"),
    ),
    "hard links to files elsewhere": Shape(
        "for path in ('/etc/passwd', '/input/payload.json', '/work/main.py', '/proc/self/environ',"
        " '/dev/null'):\n  try: os.link(path, 'x'); print('linked', path)\n  except OSError: pass",
    ),
    # neither file nor folder
    "a FIFO": Shape("os.mkfifo('x')", refused=[("x", SPECIAL)]),
    "a FIFO that somebody writes to": Shape(
        "os.mkfifo('x')\n"
        "if daemon():\n  file = os.open('x', os.O_RDWR)\n  while True: os.write(file, b'x')\n",
        refused=[("x", SPECIAL)],
    ),
    "a socket": Shape("socket.socket(socket.AF_UNIX).bind('x')", refused=[("x", SPECIAL)]),
    "a socket that somebody listens on": Shape(
        "s = socket.socket(socket.AF_UNIX); s.bind('x'); s.listen()\nif daemon(): time.sleep(1000)",
        refused=[("x", SPECIAL)],
    ),
    # 0:0 is an overlay's mark for a deleted file: the only device that needs no privilege.
    "a whiteout": Shape("os.mknod('x', stat.S_IFCHR, 0)", refused=[("x", SPECIAL)]),
    "devices": Shape(
        "for kind, number in ((stat.S_IFCHR, (1, 3)), (stat.S_IFCHR, (1, 1)), (stat.S_IFBLK, (7, 0))):\n"
        "  try: os.mknod('x', kind | 0o666, os.makedev(*number)); print('made')\n"
        "  except OSError as e: print(errno.errorcode[e.errno])",
        says="EPERM\n" * 3,
    ),
    # permissions and attributes
    "a file without permissions": Shape("write('x', b'closed'); os.chmod('x', 0)", {"x": b"closed"}),
    "folders without permissions": Shape(
        "os.makedirs('a/b/c'); write('a/b/c/x', b'deep'); write('a/y', b'y')\n"
        "for name in ('a/b/c', 'a/b', 'a'): os.chmod(name, 0)",
        {"a/b/c/x": b"deep", "a/y": b"y"},
    ),
    "a folder that can be searched but not read": Shape(
        "os.mkdir('a'); write('a/x', b'x'); os.chmod('a', 0o111)", {"a/x": b"x"}
    ),
    "set-id and sticky bits": Shape(
        "write('x', b'#!/bin/sh'); os.chmod('x', 0o7777); os.mkdir('a'); os.chmod('a', 0o7777)",
        {"x": b"#!/bin/sh"},
    ),
    "attributes of half a megabyte": Shape(
        "write('x', b'x')\n"
        "for n in range(8):\n"
        "  try: os.setxattr('x', f'user.{n}', bytes(65536))\n"
        "  except OSError: pass",
        {"x": b"x"},
    ),
    "an access list that shuts out its owner": Shape(
        "write('x', b'x')\n"
        "acl = b''.join(struct.pack('<HHI', tag, 0, 2**32 - 1) for tag in (1, 4, 16, 32))\n"
        "try: os.setxattr('x', 'system.posix_acl_access', struct.pack('<I', 2) + acl)\n"
        "except OSError: pass",
        {"x": b"x"},
    ),
    "a file that is to be immutable": Shape(
        "write('x', b'x')\n"
        "for flag in (0x10, 0x20):\n"
        "  try: fcntl.ioctl(os.open('x', os.O_RDONLY), 0x40086602, struct.pack('Q', flag))\n"
        "  except OSError: pass",
        {"x": b"x"},
    ),
    # sizes
    "a sparse file that fits": Shape(
        "write('x', b''); os.truncate('x', 1 << 20); os.pwrite(os.open('x', os.O_WRONLY), b'!', 700_000)",
        {"x": bytes(700_000) + b"!" + bytes((1 << 20) - 700_001)},
    ),
    "terabytes of nothing": Shape(
        "for size in (9 << 20, 1 << 32, 1 << 40, (1 << 63) - 4096):\n"
        "  write(hex(size), b''); os.truncate(hex(size), size)",
        refused=[
            (hex(size), SIZE) for size in sorted((9 << 20, 1 << 32, 1 << 40, (1 << 63) - 4096), key=hex)
        ],
    ),
    "an empty file": Shape("write('x', b'')", {"x": b""}),
    # what is not there any more
    "a file that was deleted while open": Shape(
        "write('x', b'x'); held = open('x'); os.unlink('x')\nif daemon(): time.sleep(1000)"
    ),
    "a file without a name": Shape("held = os.open('.', os.O_TMPFILE | os.O_RDWR); os.write(held, b'x')"),
    "a file that got its name late": Shape(
        "held = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o600); os.write(held, b'late')\n"
        "name = f'/proc/self/fd/{held}'.encode()\n"
        "if ctypes.CDLL(None).linkat(-100, name, -100, b'x', 0x400): raise OSError",
        {"x": b"late"},
    ),
    # what is held
    "a file that is locked, open and mapped": Shape(
        "write('x', b'mapped'); file = open('x', 'r+b'); m = mmap.mmap(file.fileno(), 0)\n"
        "fcntl.flock(file, fcntl.LOCK_EX); fcntl.lockf(file, fcntl.LOCK_EX); os.chmod('x', 0o2666)\n"
        "if daemon(): time.sleep(1000)",
        {"x": b"mapped"},
    ),
    "a file with a lease": Shape(
        "write('x', b'leased'); file = os.open('x', os.O_RDWR)\n"
        "signal.signal(signal.SIGIO, signal.SIG_IGN); fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)",
        {"x": b"leased"},
    ),
    # folders
    "five hundred empty folders": Shape("for n in range(500): os.makedirs(f'{n % 20}/{n}')"),
    "folders to the greatest depth": Shape(
        "os.makedirs('/'.join('d' * 30)); write('/'.join('d' * 30) + '/x', b'deep')",
        {"/".join("d" * 30) + "/x": b"deep"},
    ),
    "a folder too deep": Shape(
        "os.makedirs('/'.join('d' * 33)); write('/'.join('d' * 31) + '/x', b'deep'); write('z', b'z')",
        {"z": b"z"},
        [("/".join("d" * 31), DEPTH)],
    ),
    "a tree beyond PATH_MAX": Shape(
        f"for n in range({LEVELS_TO_PATH_MAX}):\n"
        f"  os.mkdir('{LONG}'); write('a', str(n).encode()); os.chdir('{LONG}')\n"
        "write('end', b'unreachable by any path')",
        {"/".join([LONG] * depth + ["a"]): str(depth).encode() for depth in range(6)},
        [("/".join([LONG] * 6)[: 1024 - len("00/")], DEPTH)],
    ),
}
PREAMBLE = """
import ctypes, errno, fcntl, mmap, os, signal, socket, stat, struct, sys, time

def write(path, data):
    with open(path, 'wb') as file:
        file.write(data)

def daemon():
    '''True in a process that nobody waits for and that ignores what it can; then False in the caller.'''
    there, ready = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        os.write(ready, b'x')
        return True
    os.read(there, 1)
    return False
"""


def folder_of(shape: str) -> str:
    return f"{list(SHAPES).index(shape):02}"


def leaves_all() -> str:
    """A program that leaves every shape in a folder of its own, and says what each has said."""
    steps = [PREAMBLE, "said = {}", "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"]
    for name, shape in SHAPES.items():
        steps += [
            f"os.mkdir('/output/{folder_of(name)}'); os.chdir('/output/{folder_of(name)}')",
            "lines = []\nprint = lambda *words: lines.append(' '.join(map(str, words)) + '\\n')",
            shape.code,
            f"said[{name!r}] = ''.join(lines)",
        ]
    return "\n".join([*steps, "import json", "sys.stdout.write(json.dumps(said))"])


@dataclass(frozen=True, slots=True)
class Observation:
    """The one run that has left every shape."""

    ran: Ran
    left: Left
    said: dict[str, str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shapes(place: Place) -> Observation:
    # The limit on a file's size is the run's own: without one, tmpfs takes the largest that there can be.
    ran = await place.run(leaves_all(), file_size_bytes=(1 << 63) - 1, output_max_total_bytes=32 * MIB)
    assert ran.execution.error_type is None, (ran.execution.message, ran.stderr)
    await place.goes_on_after(ran)
    return Observation(ran, left_by(ran), json.loads(ran.stdout))


@pytest.mark.parametrize("name", SHAPES)
async def test_regular_files_arrive_and_all_other_kinds_are_refused_by_name(
    shapes: Observation, name: str, record_property: Callable[..., None]
):
    shape = SHAPES[name]
    assert shapes.said[name] == shape.says
    assert shapes.left.below(folder_of(name)) == Left(shape.files, shape.refused)
    record_property("tried", ["outputs", 1])


async def test_only_the_created_output_files_arrive(shapes: Observation):
    folders = {folder_of(name) for name in SHAPES}
    said = [*shapes.left.files, *(path for path, _ in shapes.left.refused)]
    assert {path.split("/")[0] for path in said} <= folders
    assert len(said) == sum(len(shape.files) + len(shape.refused) for shape in SHAPES.values())


async def test_no_bit_of_a_programs_file_modes_reaches_the_host(shapes: Observation):
    modes = {file.staged.stat().st_mode & 0o7111 for file in shapes.ran.execution.collected.files}
    assert modes == {0}


MOVES = (
    "os.rename('/output', '/tmp/elsewhere')",
    "os.rename('/tmp', '/output/tmp')",
    "os.rmdir('/output')",
    "os.unlink('/output')",
    "os.symlink('/etc', '/output')",
    "os.mkdir('/new'); os.rename('/new', '/output')",
    "libc.mount(b'/etc', b'/output', b'', 4096, None) and fail()",
    "libc.mount(b'tmpfs', b'/output', b'tmpfs', 0, None) and fail()",
    "libc.umount2(b'/output', 2) and fail()",
    "libc.chroot(b'/output') and fail()",
    "os.chown('/output', 0, 0)",
)


async def test_output_itself_stays_where_it_is(place: Place, record_property: Callable[..., None]):
    tries = "".join(f"try: {move}; done.append({move!r})\nexcept OSError: pass\n" for move in MOVES)
    left = await place.leave(
        f"import ctypes, os\nlibc = ctypes.CDLL(None)\ndone = []\ndef fail(): raise OSError\n"
        f"open('/output/a', 'w').write('honest')\n{tries}open('/output/done', 'w').write(repr(done))"
    )
    assert left == Left({"a": b"honest", "done": b"[]"}, [])
    record_property("tried", ["outputs", len(MOVES)])


# --- names, up to the store and the links

LEAVE_NAMES = """
import json, os
os.chdir(b'/output')
for name in map(bytes.fromhex, json.loads(%r)):
    os.makedirs(os.path.dirname(name) or b'.', exist_ok=True)
    open(name, 'wb').write(name)
"""


async def test_a_file_is_stored_only_under_its_own_name(
    place: Place, tmp_path: Path, record_property: Callable[..., None]
):
    names = [name.encode() for name in NAMES] + REFUSED_NAMES
    snippet = LEAVE_NAMES % json.dumps([name.hex() for name in names])
    ran = await place.run(snippet, output_max_files=len(names))
    assert ran.execution.error_type is None, ran.stderr
    assert ran.execution.collected.refused == []
    assert {os.fsencode(path): data for path, data in left_by(ran).files.items()} == {n: n for n in names}

    (tmp_path / "data").mkdir()
    uploader = OutputUploader(
        FolderStore(tmp_path, "https://s3.ap-northeast-2.amazonaws.com"), make_settings(), Metrics()
    )
    links, refused = await uploader.upload("r1", ran.execution.collected.files)

    base = "https://s3.ap-northeast-2.amazonaws.com/data/outputs/r1/"
    good = sorted(name.encode() for name in NAMES)
    assert sorted(links) == sorted(base + percent_encoded(name) for name in good)
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    objects = {
        os.fsencode(path.relative_to(tmp_path / "data/outputs/r1")): path.read_bytes() for path in stored
    }
    assert objects == {name: name for name in good}
    assert sorted(error.path for error in refused) == sorted(
        n.decode(errors="replace") for n in REFUSED_NAMES
    )
    assert {str(error.reason) for error in refused} == {
        "its name has control characters or is not valid UTF-8"
    }
    result = Result(
        request_id="r1",
        function_id="f",
        runtime="python",
        status=Status.SUCCESS,
        exit_code=0,
        output_files=links,
        output_errors=[refusal.in_("en") for refusal in refused],
    )
    assert results.decode(results.encode(result)) == result
    await place.goes_on_after(ran)
    record_property("tried", ["outputs", len(names)])


# --- who goes on writing while its files are collected


@pytest.fixture(
    scope="module",
    params=[(runtime, level) for runtime in Runtime for level in LEVELS],
    ids="-".join,
)
def leaver(
    request: pytest.FixtureRequest, shelf: Shelf
) -> tuple[Runtime, Isolation, dict[str, str], bytes | None]:
    """A language's program of tests/adversarial/outputs, built where it must be."""
    runtime, level = request.param
    entry = RECIPES[runtime].entry
    files = {entry: (PROGRAMS / runtime / entry).read_text()}
    if RECIPES[runtime].build is None:
        return runtime, level, files, None
    return runtime, level, files, shelf.get(f"outputs-{runtime}", lambda: asyncio.run(built(runtime, files)))


EXPECTED_FILES = {
    **{os.fsdecode(name): name for name in (b"new\nline", b"\xff\xfe", b"...", b"%2e%2e", b"a?b#c")},
    "a file": b"honest\n",
    "hard link": b"honest\n",
    "closed/in": b"in",
    "unreadable": b"unreadable",
    "set-user-id": b"suid",
    "5 large": b"x" * (6 * MIB),
}
EXPECTED_REFUSALS = [
    ("deep" + "/d" * 31, DEPTH),
    ("link", LINK),
    ("link to a folder", LINK),
    ("link to proc", LINK),
    ("pipe", SPECIAL),
    ("socket", SPECIAL),
    ("sparse", SIZE),
]


async def test_in_every_language_plain_files_arrive_as_they_were_when_their_writers_had_been_killed(
    leaver: tuple[Runtime, Isolation, dict[str, str], bytes | None], record_property: Callable[..., None]
):
    runtime, level, files, program = leaver
    async with yard(level, (runtime,)) as containers:
        function = containers.function(runtime, files)
        if program is not None:
            function = with_program(function, program)
        async with asyncio.timeout(WAIT_S):
            ran, again = [await containers.run(function, "") for _ in range(2)]
        arrived = [left_by(ran), left_by(again)]
    for one, left in zip((ran, again), arrived, strict=True):
        counts = [int.from_bytes(left.files.pop(name), "little") for name in ("1 count", "9 count")]
        # One counter is written after the other: between them a living writer would do thousands of rounds.
        assert counts[0] >= counts[1] >= counts[0] - 1
        assert counts[1] > 0
        assert left == Left(EXPECTED_FILES, EXPECTED_REFUSALS)
        assert one.stdout == "left\n"
        assert one.execution.collected.clean
    assert (again.acquired.start, again.container_id) == (Start.HOT, ran.container_id)
    record_property("tried", ["outputs", len(EXPECTED_FILES) + len(EXPECTED_REFUSALS) + 1])


def with_program(function: Function, program: bytes) -> Function:
    path = function.tree.with_suffix(".program")
    path.write_bytes(program)
    path.chmod(0o755)
    return replace(function, program=path)


FLIP = """
os.chdir('/output')
write('a', b'honest')
write('m', b'x' * (6 << 20))
for number in range(4):
    name = f'z{number}'
    write(name, b'honest')
    if daemon():
        while True:
            # Whatever comes next replaces the name at once, so that it is always there.
            os.symlink('/etc/passwd', f'.{name}'); os.rename(f'.{name}', name)
            os.mkfifo(f'.{name}'); os.rename(f'.{name}', name)
            write(f'.{name}', b'honest'); os.rename(f'.{name}', name)
            os.truncate(name, 1 << 20); os.truncate(name, 0); write(name, b'honest')
            os.mkdir(f'.d{name}'); os.symlink('/etc', f'.d{name}/x')
            os.unlink(f'.d{name}/x'); os.rmdir(f'.d{name}')
"""


async def test_a_name_whose_kind_changes_all_the_time_is_collected_as_one_kind(
    place: Place, record_property: Callable[..., None]
):
    for _ in range(4):
        left = await place.leave(PREAMBLE + FLIP)
        assert left.files.pop("a") == b"honest"
        assert left.files.pop("m") == b"x" * (6 << 20)
        for number in range(4):
            name = f"z{number}"
            refused = [why for path, why in left.refused if path == name]
            if refused:
                assert refused in ([LINK], [SPECIAL])
                assert name not in left.files
            else:
                assert left.files[name] in (b"honest", b"", bytes(1 << 20), b"honest" + bytes((1 << 20) - 6))
        # What a writer was about to rename, and a folder that it had just made, can be there as well.
        unfinished = {f"{dot}z{number}" for dot in (".", ".d") for number in range(4)}
        others = {path.split("/")[0] for path in (*left.files, *(path for path, _ in left.refused))}
        assert others <= unfinished | {f"z{number}" for number in range(4)}
    record_property("tried", ["outputs", 16])


# --- limits


async def test_each_limit_is_exact(place: Place, record_property: Callable[..., None]):
    leave = "for name, size in {}.items(): open('/output/' + name, 'wb').write(b'x' * size)"
    four = await place.leave(leave.format({"a": 1, "b": 1, "c": 1, "d": 1}), output_max_files=3)
    assert four == Left(dict.fromkeys("abc", b"x"), [("d", COUNT)])
    none = await place.leave(leave.format({"a": 0}), output_max_files=0)
    assert none == Left({}, [("a", COUNT)])
    large = await place.leave(leave.format({"a": 99, "b": 100, "c": 101}), output_max_file_bytes=100)
    assert large == Left({"a": b"x" * 99, "b": b"x" * 100}, [("c", SIZE)])
    total = await place.leave(
        leave.format({"a": 60, "b": 41, "c": 40, "d": 0, "e": 1}), output_max_total_bytes=100
    )
    assert total == Left({"a": b"x" * 60, "c": b"x" * 40, "d": b""}, [("b", TOTAL), ("e", TOTAL)])
    record_property("tried", ["outputs", 4])


# --- very many


CROWD = replace(LIMITS, inodes=MANY + 10_000)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=LEVELS, ids=str)
async def crowd(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    async with yard(request.param, (Runtime.PYTHON,), limits=CROWD) as containers:
        yield Place(request.param, containers)


def bounded(ran: Ran) -> Left:
    """What arrived, in a result that is small whatever there was."""
    left = left_by(ran)
    assert len(left.refused) <= NAMED_REFUSALS + 1
    result = Result(
        request_id="r1",
        function_id="f",
        runtime="python",
        status=Status.SUCCESS,
        exit_code=0,
        output_errors=[refusal.in_("ko") for refusal in ran.execution.collected.refused],
    )
    assert len(results.encode(result)) < 256 * 1024
    return left


async def test_the_first_of_a_hundred_thousand_files_arrive_and_the_rest_is_counted(
    crowd: Place, record_property: Callable[..., None]
):
    ran = await crowd.run(f"for n in range({MANY}): open(f'/output/{{n:06}}', 'w').close()", memory_mb=256)
    assert ran.execution.error_type is None, ran.stderr
    left = bounded(ran)
    assert list(left.files) == [f"{number:06}" for number in range(100)]
    named = [(f"{number:06}", COUNT) for number in range(100, 200)]
    assert left.refused == [*named, ("", f"{MANY - 200} more files were not uploaded")]
    # A container whose kernel has not let go of them all in time is replaced.
    await crowd.goes_on_after(ran, hot=False)
    record_property("tried", ["outputs", MANY])


async def test_ten_thousand_folders_hide_no_file_and_leave_nothing(
    crowd: Place, record_property: Callable[..., None]
):
    ran = await crowd.run(
        "import os\nfor n in range(10_000): os.makedirs(f'/output/{n}/x')\n"
        "open('/output/9999/x/f', 'w').write('x')",
        memory_mb=256,
    )
    assert ran.execution.error_type is None, ran.stderr
    assert ran.execution.collected.clean
    assert bounded(ran) == Left({"9999/x/f": b"x"}, [])
    await crowd.goes_on_after(ran, hot=False)
    record_property("tried", ["outputs", 10_000])


FILL = """
import os
print('said', flush=True)
open('/output/a', 'w').write('honest')
made = 0
for number in range(60_000):
    os.symlink('/etc/passwd', f'/output/{number:0255}')
with open('/dev/shm/x', 'wb', 0) as file:
    while True:
        file.write(bytes(65536))
"""


async def test_names_that_fill_the_container_cost_neither_the_report_nor_the_output(
    crowd: Place, record_property: Callable[..., None]
):
    ran = await crowd.run(FILL, memory_mb=128)
    assert ran.execution.error_type is ErrorType.OUT_OF_MEMORY
    assert (ran.stdout, ran.execution.exit_code) == ("said\n", 137), ran.execution
    left = bounded(ran)
    assert left.files == {"a": b"honest"}
    named = [(f"{number:0255}", LINK) for number in range(100)]
    assert left.refused == [*named, ("", "59900 more files were not uploaded")]
    await crowd.goes_on_after(ran, hot=False)
    record_property("tried", ["outputs", 60_000])
