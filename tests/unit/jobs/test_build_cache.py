"""Which builds get the objects of which earlier builds, and which jobs get their programs."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, cast

import pytest

from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.code_cache import CodeCache
from nanoagent.code.object_cache import ObjectCache
from nanoagent.code.program_cache import ProgramCache
from nanoagent.common.units import MIB
from nanoagent.container import execution
from nanoagent.container.execution import Execution
from nanoagent.jobs.admission import Admission
from nanoagent.jobs.attempt import Attempt
from nanoagent.jobs.parts import RunnerParts
from nanoagent.jobs.runner import Runner
from nanoagent.model.errors import ContainerError, Rejected
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType
from nanoagent.model.text import Text
from nanoagent.storage.folder import FolderStore
from nanoagent.supervisor.output import Collected, OutputFile
from support.checks.zips import make_zip
from support.doubles.fakes import FakePool, make_job, make_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.container.pool import AcquiredContainer, Pool
    from nanoagent.supervisor.wire import RunRequest

LIMITS = ArchiveLimits(zip_bytes=MIB, unpacked_bytes=MIB, file_bytes=MIB, entries=100)


class Rig:
    """A runner with real caches. Builds are played: each leaves a program and objects with its number.

    Attributes:
        given: The objects that each build got; None: it got none.
        ran: The content of the program of each run.
        files: The files that the next builds leave; None: a program and objects.
        ends: How the next builds with objects end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image = "sha256:image"
        self.given: list[bytes | None] = []
        self.ran: list[bytes] = []
        self.files: dict[str, bytes] | None = None
        self.ends: ErrorType | Exception | None = None
        self.requests: list[RunRequest] = []
        self.pool = FakePool()

    async def open(self, opened: AsyncExitStack, *, keeps_objects: bool = True) -> None:
        store = FolderStore(self.folder / "store")
        self.store = store
        (self.folder / "store/code").mkdir(parents=True, exist_ok=True)
        (self.folder / "staging").mkdir(exist_ok=True)
        self.code = CodeCache(self.folder / "cache/code", store, LIMITS, 64 * MIB)
        self.programs = ProgramCache(self.folder / "cache/programs", 64 * MIB)
        for cache in (self.code, self.programs):
            await cache.start()
            opened.push_async_callback(cache.close)
        self.objects = ObjectCache(self.programs.disk, self.folder) if keeps_objects else None

    async def execute(
        self, _acquired: AcquiredContainer, request: RunRequest, staging: Path, *_: object, **__: object
    ) -> Execution:
        binding = self.pool.bindings[-1]
        if binding.purpose == "run":
            assert binding.program is not None
            self.ran.append(binding.program.read_bytes())
            return ended(None, [])
        self.requests.append(request)
        self.given.append(binding.program.read_bytes() if binding.program else None)
        if binding.program is not None and self.ends is not None:
            if isinstance(self.ends, ErrorType):
                return ended(self.ends, [])
            raise self.ends
        number = len(self.given)
        files = self.files or {"objects": b"objects %d" % number, "program": b"program %d" % number}
        staging.mkdir()
        made = []
        for index, (name, content) in enumerate(files.items()):
            (staging / str(index)).write_bytes(content)
            made.append(OutputFile(name, staging / str(index), len(content)))
        return ended(None, made)

    async def run(self, code: str, **job: Any) -> bytes:
        """Deploy code, run it, and return the content of the program."""
        attempt = Attempt(job=make_job(**{"runtime": Runtime.CPP, **job}), number=1, queue_ms=0)
        key = attempt.job.s3_key
        self.store.path("code", key).write_bytes(make_zip({"main.cpp": code, "main.go": code}))
        parts = RunnerParts(
            settings=make_settings(code_fresh_seconds=0),
            programs=self.programs,
            admission=Admission(8192, 4.0),
            pool=cast("Pool", self.pool),
            image_ids=dict.fromkeys(Runtime, self.image),
            staging=self.folder / "staging",
            objects=self.objects,
        )
        async with AsyncExitStack() as resources:
            tree = await resources.enter_async_context(self.code.fetch("code", key))
            await Runner(parts).run(attempt, tree, resources)
        return self.ran[-1]


def ended(error_type: ErrorType | None, files: list[OutputFile]) -> Execution:
    message = None if error_type is None else Text.verbatim("failed")
    return Execution(error_type, message, 0 if error_type is None else 1, 1.0, None, Collected(files=files))


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    monkeypatch.setattr(execution, "execute", made.execute)
    async with AsyncExitStack() as opened:
        await made.open(opened)
        yield made


async def test_a_build_gets_the_objects_of_the_last_build_of_the_function(rig: Rig):
    assert [await rig.run(text) for text in ("a", "b", "c")] == [b"program 1", b"program 2", b"program 3"]
    assert rig.given == [None, b"objects 1", b"objects 2"]
    assert rig.requests[0].output_max_files == 2


@pytest.mark.parametrize(
    "other",
    [
        {"function_id": "other"},
        {"s3_key": "other.zip"},
        {"runtime": Runtime.GO},
        {"function_id": "f\nf.zip", "s3_key": "f"},
    ],
    ids=str,
)
async def test_no_other_function_gets_the_objects_of_a_build(rig: Rig, other: dict[str, Any]):
    await rig.run("a", function_id="f", s3_key="f.zip")
    await rig.run("b", **{"function_id": "f", "s3_key": "f.zip", **other})
    assert rig.given == [None, None]


async def test_a_new_image_begins_without_objects(rig: Rig):
    await rig.run("a")
    rig.image = "sha256:new"
    await rig.run("b")
    assert rig.given == [None, None]


async def test_a_program_that_was_built_with_objects_is_only_for_its_function(rig: Rig):
    """Else hostile code could forge objects, then deploy code of others, and give them its program."""
    await rig.run("hostile", function_id="hostile")
    assert await rig.run("code of others", function_id="hostile") == b"program 2"
    assert await rig.run("code of others", function_id="victim") == b"program 3"
    assert rig.given == [None, b"objects 1", None]
    # The other way round: a program that was built from its code alone serves all.
    assert await rig.run("code of others", function_id="third") == b"program 3"
    assert await rig.run("code of others", function_id="hostile") == b"program 3"
    assert len(rig.given) == 3


async def test_a_container_with_one_program_serves_no_job_with_the_other(rig: Rig):
    """Jobs without a function ID have the same function version, although their code has other owners."""
    await rig.run("hostile", s3_key="hostile.zip")
    await rig.run("code of others", s3_key="hostile.zip")
    hostile = rig.pool.bindings[-1].key
    await rig.run("code of others", s3_key="victim.zip")
    victim = rig.pool.bindings[-1].key
    assert hostile.version == victim.version
    assert not hostile.serves(victim)
    assert not hostile.is_like(victim)
    await rig.run("code of others", s3_key="third.zip")
    assert victim.serves(rig.pool.bindings[-1].key)


async def test_a_program_that_was_built_with_objects_is_built_once(rig: Rig):
    await rig.run("a")
    assert [await rig.run(text) for text in ("b", "b")] == [b"program 2", b"program 2"]
    await rig.programs.make_room(1)  # evicts the objects first
    assert await rig.run("b") == b"program 2"
    assert await rig.run("c") == b"program 3"
    assert rig.given == [None, b"objects 1", None]


@pytest.mark.parametrize(
    "ends",
    [
        ErrorType.TIMEOUT,
        ErrorType.OUT_OF_MEMORY,
        ErrorType.DISK_LIMIT,
        ErrorType.PROCESS_LIMIT,
        ErrorType.SIGNAL,
        ContainerError("died"),
    ],
    ids=str,
)
async def test_a_build_that_fails_with_objects_is_repeated_without(rig: Rig, ends: ErrorType | Exception):
    await rig.run("a")
    rig.ends = ends
    assert await rig.run("b") == b"program 3"
    assert rig.given == [None, b"objects 1", None]


async def test_what_the_compiler_refuses_is_not_built_again(rig: Rig):
    await rig.run("a")
    rig.ends = ErrorType.USER_ERROR
    with pytest.raises(Rejected):
        await rig.run("b")
    assert rig.given == [None, b"objects 1"]
    rig.ends = None
    await rig.run("c")
    assert rig.given[-1] == b"objects 1"


@pytest.mark.parametrize(
    "names", [["objects"], ["program", "other"], ["a/program"], ["program", "a/objects"]]
)
async def test_a_build_that_leaves_other_files_has_failed(rig: Rig, names: list[str]):
    rig.files = dict.fromkeys(names, b"x")
    with pytest.raises(Rejected, match="did not produce a program"):
        await rig.run("a")
    rig.files = None
    await rig.run("b")
    assert rig.given == [None, None]


async def test_a_build_may_leave_no_objects(rig: Rig):
    await rig.run("a")
    rig.files = {"program": b"alone"}
    assert await rig.run("b") == b"alone"
    await rig.run("c")
    assert rig.given == [None, b"objects 1", b"objects 1"]


async def test_objects_that_cannot_be_kept_fail_no_job(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    async def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanoagent.code.object_cache.in_thread", fail)
    assert await rig.run("a") == b"program 1"
    await rig.run("b")
    assert rig.given == [None, None]


async def test_without_the_cache_nothing_is_kept_or_given(rig: Rig):
    async with AsyncExitStack() as opened:
        await rig.open(opened, keeps_objects=False)
        await rig.run("a")
        await rig.run("b")
    assert rig.given == [None, None]
    assert {request.output_max_files for request in rig.requests} == {1}
    assert all(len(request.arguments) == 2 for request in rig.requests)
