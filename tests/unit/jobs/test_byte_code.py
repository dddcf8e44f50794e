"""When a compilation begins and ends, and that it delays no job. The runs in containers are played."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

import pytest

from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.byte_code import MAGIC
from nanoagent.code.byte_code_cache import ByteCodeCache
from nanoagent.code.code_cache import CodeCache
from nanoagent.common.units import MIB
from nanoagent.container import execution
from nanoagent.container.execution import Execution
from nanoagent.host.background import Background
from nanoagent.jobs.admission import Admission
from nanoagent.jobs.byte_code import ByteCode, ByteCodeParts, Compilation
from nanoagent.model.errors import ContainerError, ReturnToQueue
from nanoagent.model.result import ErrorType
from nanoagent.model.text import Text
from nanoagent.storage.folder import FolderStore
from nanoagent.supervisor.output import Collected, OutputFile
from support.checks.packs import files
from support.checks.zips import make_zip
from support.doubles.fakes import DEADLINE_S, FakePool, make_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.code.code_cache import CodeTree
    from nanoagent.container.policy import Binding
    from nanoagent.container.pool import AcquiredContainer, Pool
    from nanoagent.supervisor.wire import RunRequest

LIMITS = ArchiveLimits(zip_bytes=MIB, unpacked_bytes=MIB, file_bytes=MIB, entries=100)
CODE = {"main.py": "import two", "two.py": "x = 2"}
MADE = {"__pycache__/two.cpython-313.pyc": MAGIC + b"\x03\0\0\0" + bytes(8) + b"code"}


class RoomyPool(FakePool):
    """A pool that can be full.

    Attributes:
        has_room: Whether a container for a compilation fits.
    """

    has_room = True

    def has_room_for(self, _binding: Binding) -> bool:
        return self.has_room


class Rig:
    """Compilations with real caches. A test plays what happens in containers.

    Attributes:
        made: The zip that a compilation writes; None if it writes none.
        error: How the compilation fails.
        may_end: When set, a compilation ends.
        began: Set when a compilation is in its container.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FolderStore(folder / "store")
        (folder / "store/code").mkdir(parents=True)
        (folder / "staging").mkdir()
        self.settings = make_settings(worker_memory_mb=1024)
        self.admission = Admission(self.settings.worker_memory_mb, self.settings.worker_cpus)
        self.pool = RoomyPool()
        self.outcomes: list[Compilation] = []
        self.requests: list[RunRequest] = []
        self.made: bytes | None = make_zip(MADE)
        self.error: ErrorType | None = None
        self.may_end, self.began = asyncio.Event(), asyncio.Event()
        self.may_end.set()
        self.now = 0.0

    async def execute(self, acquired: AcquiredContainer, request: RunRequest, staging: Path) -> Execution:
        self.requests.append(request)
        self.began.set()
        await self.may_end.wait()
        acquired.clean = True
        files = []
        if self.made is not None:
            staging.mkdir()
            (staging / "0").write_bytes(self.made)
            files.append(OutputFile("byte_code.zip", staging / "0", len(self.made)))
        message = None if self.error is None else Text("failed", "실패")
        return Execution(self.error, message, 0, 1.0, None, Collected(files=files))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Rig]:
        code = self.code = CodeCache(self.folder / "cache", self.store, LIMITS, 64 * MIB)
        await code.start()
        cache = ByteCodeCache(code.disk, self.folder, "sha256:image", LIMITS)
        self.byte_code = ByteCode(
            ByteCodeParts(
                settings=self.settings,
                cache=cache,
                admission=self.admission,
                pool=cast("Pool", self.pool),
                staging=self.folder / "staging",
                background=Background(),
                observe=self.outcomes.append,
                delay_s=0,
                clock=lambda: self.now,
            )
        )
        try:
            yield self
        finally:
            await self.byte_code.close()
            await code.close()
        assert list((self.folder / "staging").iterdir()) == []
        assert (self.admission.used.memory_mb, self.pool.out) == (0, 0)

    @asynccontextmanager
    async def tree(self, files: dict[str, str] | None = None, key: str = "f.zip") -> AsyncIterator[CodeTree]:
        self.store.path("code", key).write_bytes(make_zip(files or CODE))
        async with self.code.fetch("code", key) as tree:
            yield tree

    async def has(self, tree: CodeTree) -> bool:
        async with AsyncExitStack() as resources:
            return await self.byte_code.of(tree, resources) is not None

    async def compile(self, tree: CodeTree) -> Compilation | None:
        """Ask for a compilation; return its outcome, or None if none began."""
        before = len(self.outcomes)
        self.byte_code.compile_later(tree)
        async with asyncio.timeout(DEADLINE_S):
            await self.byte_code.settled()
        return self.outcomes[-1] if len(self.outcomes) > before else None


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    monkeypatch.setattr(execution, "execute", rig.execute)
    async with rig.open():
        yield rig


async def test_a_tree_has_byte_code_after_its_compilation(rig: Rig):
    async with rig.tree() as tree, AsyncExitStack() as resources:
        assert not await rig.has(tree)
        assert await rig.compile(tree) is Compilation.COMPILED
        found = await rig.byte_code.of(tree, resources)
        assert found is not None
        assert [PurePath(name).name for name in files(found.path)] == ["two.cpython-313.pyc"]


async def test_a_compilation_has_its_own_container_and_neither_input_nor_imports_of_the_code(rig: Rig):
    async with rig.tree() as tree:
        await rig.compile(tree)
    (binding,), (request,) = rig.pool.bindings, rig.requests
    assert (binding.purpose, binding.function_id, binding.byte_code) == ("compile", "", None)
    assert binding.find_modules() == ()
    assert request.payload == b""
    assert request.arguments[:5] == ("/usr/bin/python3", "-I", "-S", "-B", "-c")
    assert request.environment == {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
    assert (request.output_max_files, request.prepare_next) == (1, False)


async def test_code_without_modules_is_compiled_and_looked_up_no_more(rig: Rig):
    async with rig.tree({"main.py": "print(1)"}) as tree:
        assert await rig.compile(tree) is Compilation.NOTHING
        assert await rig.compile(tree) is None
        assert not await rig.has(tree)
    assert rig.requests == []


async def test_code_of_which_nothing_can_be_compiled_is_not_tried_again(rig: Rig):
    rig.made = None
    async with rig.tree() as tree:
        assert await rig.compile(tree) is Compilation.NOTHING
        rig.now = 1e9
        assert await rig.compile(tree) is None


async def test_code_that_was_evicted_meanwhile_is_not_compiled(rig: Rig):
    async with rig.tree() as tree:
        pass
    await rig.code.make_room(64 * MIB)
    assert await rig.compile(tree) is Compilation.NO_ROOM
    assert rig.requests == []


async def test_one_tree_at_a_time_is_compiled(rig: Rig):
    rig.may_end.clear()
    async with rig.tree() as first, rig.tree({**CODE, "three.py": ""}, "g.zip") as second:
        rig.byte_code.compile_later(first)
        for tree in (first, second, first):
            rig.byte_code.compile_later(tree)
        await rig.began.wait()
        rig.may_end.set()
        await rig.byte_code.settled()
        assert (await rig.has(first), await rig.has(second)) == (True, False)
        assert rig.outcomes == [Compilation.COMPILED]
        assert await rig.compile(second) is Compilation.COMPILED


@pytest.mark.parametrize("made", [b"no zip", make_zip({"main.py": "evil"}), make_zip({**MADE, "x": "y"})])
async def test_byte_code_that_is_refused_is_not_used_and_not_made_again_for_a_while(rig: Rig, made: bytes):
    rig.made = made
    async with rig.tree() as tree:
        assert await rig.compile(tree) is Compilation.REFUSED
        assert not await rig.has(tree)
        assert await rig.compile(tree) is None
        rig.now, rig.made = 600.0, make_zip(MADE)
        assert await rig.compile(tree) is Compilation.COMPILED


@pytest.mark.parametrize("error", [ErrorType.TIMEOUT, ErrorType.OUT_OF_MEMORY, ErrorType.SIGNAL])
async def test_a_compilation_that_fails_is_not_repeated_for_a_while(rig: Rig, error: ErrorType):
    rig.error = error
    async with rig.tree() as tree:
        assert await rig.compile(tree) is Compilation.FAILED
        assert not await rig.has(tree)
        assert await rig.compile(tree) is None


async def test_a_container_that_fails_is_a_failure_and_an_absent_engine_is_not(rig: Rig):
    async with rig.tree() as tree:
        rig.pool.failure = cast("Any", ReturnToQueue("Docker is unavailable"))
        assert await rig.compile(tree) is Compilation.NO_ROOM
        rig.pool.failure = ContainerError("died")
        assert await rig.compile(tree) is Compilation.FAILED
        assert await rig.compile(tree) is None


# --- jobs come first


async def test_no_compilation_begins_while_jobs_need_the_room(rig: Rig):
    async with rig.tree() as tree:
        async with rig.admission.reserve(1024, 0.5):
            assert await rig.compile(tree) is Compilation.NO_ROOM
        rig.pool.has_room = False
        assert await rig.compile(tree) is Compilation.NO_ROOM
        rig.pool.has_room = True
        assert await rig.compile(tree) is Compilation.COMPILED
    assert len(rig.requests) == 1


async def test_a_job_that_waits_for_room_ends_the_compilation(rig: Rig):
    rig.may_end.clear()
    async with rig.tree() as tree:
        rig.byte_code.compile_later(tree)
        await rig.began.wait()
        async with asyncio.timeout(DEADLINE_S), rig.admission.reserve(1024, 1.0):
            assert rig.pool.out == 0
        await rig.byte_code.settled()
        assert rig.outcomes == [Compilation.CANCELLED]
        rig.may_end.set()
        assert await rig.compile(tree) is Compilation.COMPILED


async def test_a_job_that_finds_room_lets_the_compilation_continue(rig: Rig):
    rig.may_end.clear()
    async with rig.tree() as tree:
        rig.byte_code.compile_later(tree)
        await rig.began.wait()
        async with rig.admission.reserve(128, 0.5):
            rig.may_end.set()
            await rig.byte_code.settled()
    assert rig.outcomes == [Compilation.COMPILED]


async def test_a_compilation_ends_when_the_worker_drains_and_none_begins(rig: Rig):
    rig.may_end.clear()
    async with rig.tree() as tree:
        rig.byte_code.compile_later(tree)
        await rig.began.wait()
        rig.byte_code.stop()
        await rig.byte_code.settled()
        assert rig.outcomes == [Compilation.CANCELLED]
        assert await rig.compile(tree) is None
