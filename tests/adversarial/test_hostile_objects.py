"""Attacks with the objects that a build keeps for the next one: they reach no other function."""

from __future__ import annotations

import struct
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import pytest
import pytest_asyncio

from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.code_cache import CodeCache
from nanoagent.code.object_cache import ObjectCache
from nanoagent.code.program_cache import ProgramCache
from nanoagent.common.units import MIB
from nanoagent.jobs.admission import Admission
from nanoagent.jobs.attempt import Attempt
from nanoagent.jobs.builder import Builder
from nanoagent.jobs.parts import RunnerParts
from nanoagent.jobs.runner import Runner
from nanoagent.languages.recipes import BUILT_OBJECTS, BUILT_PROGRAM, RECIPES
from nanoagent.model.errors import Rejected
from nanoagent.model.job import Runtime
from nanoagent.storage.folder import FolderStore
from support.checks.matrix import only_in_test_all
from support.checks.zips import make_zip
from support.doubles.fakes import make_job, make_settings
from support.sandboxes.workshop import workshop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path
    from typing import Any

    from nanoagent.supervisor.wire import RunRequest
    from support.sandboxes.workshop import Workshop

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

LIMITS: Final = ArchiveLimits(zip_bytes=64 * MIB, unpacked_bytes=64 * MIB, file_bytes=64 * MIB, entries=1000)
GOOD: Final = {
    "main.cpp": "#include <cstdio>\nconst char *word();\nint main() { std::puts(word()); }\n",
    "word.cpp": 'const char *word() { return "good"; }\n',
}
EVIL: Final = GOOD | {"word.cpp": 'const char *word() { return "evil"; }\n'}


@dataclass(frozen=True, slots=True)
class Worker:
    """The parts of a worker that build and run C++ code.

    Attributes:
        shop: Builds without caches.
        root: The folder of the caches.
    """

    shop: Workshop
    root: Path
    code: CodeCache
    programs: ProgramCache
    store: FolderStore

    async def output(self, files: Mapping[str, str | bytes], function_id: str, key: str = "f.zip") -> str:
        """Deploy code, run it as a job, and return its output."""
        self.store.path("code", key).write_bytes(make_zip(files))
        job = make_job(runtime=Runtime.CPP, function_id=function_id, s3_key=key, timeout_ms=60_000)
        parts = RunnerParts(
            settings=make_settings(code_fresh_seconds=0),
            programs=self.programs,
            admission=Admission(4096, 2.0),
            pool=self.shop.pool,
            image_ids={Runtime.CPP: "sha256:image"},
            staging=self.shop.folder,
            objects=ObjectCache(self.programs.disk, self.root),
        )
        async with AsyncExitStack() as resources:
            tree = await resources.enter_async_context(self.code.fetch("code", key))
            ran = await Runner(parts).run(Attempt(job=job, number=1, queue_ms=0), tree, resources)
        assert ran.execution.error_type is None, ran.execution.collected.stderr.text
        return ran.execution.collected.stdout.text.strip()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop() -> AsyncIterator[Workshop]:
    async with workshop() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def worker(shop: Workshop, tmp_path: Path) -> AsyncIterator[Worker]:
    async with opened(shop, tmp_path) as made:
        yield made


@asynccontextmanager
async def opened(shop: Workshop, root: Path) -> AsyncIterator[Worker]:
    store = FolderStore(root / "store")
    (root / "store/code").mkdir(parents=True)
    code = CodeCache(root / "code", store, LIMITS, 256 * MIB)
    programs = ProgramCache(root / "programs", 256 * MIB)
    async with AsyncExitStack() as closing:
        for cache in (code, programs):
            await cache.start()
            closing.push_async_callback(cache.close)
        yield Worker(shop, root, code, programs, store)


async def objects_of(shop: Workshop, files: Mapping[str, str]) -> bytes:
    command = (*(RECIPES[Runtime.CPP].build or ()), BUILT_OBJECTS, str(MIB))
    built = await shop.build(Runtime.CPP, files, command)
    (found,) = (file.staged for file in built.collected.files if file.path == "objects")
    return found.read_bytes()


def records(text: bytes) -> dict[bytes, tuple[bytes, bytes]]:
    """Return the header and the object of each unit by its command (docker/cpp/object-cache.cpp)."""
    found = {}
    at = len(b"objects 1\n")
    while at < len(text):
        header_bytes, object_bytes = struct.unpack_from("<QQ", text, at)
        at += 16
        header, at = text[at : at + header_bytes], at + header_bytes
        found[header.split(b"\0")[0]] = header, text[at : at + object_bytes]
        at += object_bytes
    return found


async def forged_objects(shop: Workshop) -> bytes:
    """Return objects of the evil code that claim to come from the good code."""
    good, evil = records(await objects_of(shop, GOOD)), records(await objects_of(shop, EVIL))
    text = b"objects 1\n"
    for command, (header, _) in good.items():
        made = evil[command][1]
        text += struct.pack("<QQ", len(header), len(made)) + header + made
    return text


def take_over(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let builds run a script instead, as if the code had taken over the compiler."""
    request_of = Builder._request

    def taken_over(self: Builder, *arguments: Any) -> RunRequest:
        return replace(request_of(self, *arguments), arguments=("/bin/bash", "-c", script))

    monkeypatch.setattr(Builder, "_request", taken_over)


async def test_forged_objects_reach_only_the_function_that_has_forged_them(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
):
    forged = await forged_objects(worker.shop)
    with monkeypatch.context() as patch:
        take_over(patch, f"/nanosupervisor/build-cpp {BUILT_PROGRAM} && cp forged {BUILT_OBJECTS}")
        await worker.output({**EVIL, "forged": forged}, "attacker")
    # The attacker deploys the code of its victims. Only its own program has the forged object.
    assert await worker.output(GOOD, "attacker") == "evil"
    assert await worker.output(GOOD, "victim") == "good"
    # A job without a function ID has the ID of others, and the containers of the attacker are still there.
    assert await worker.output(GOOD, "attacker", "other.zip") == "good"
    assert await worker.output({**GOOD, "more.txt": ""}, "victim") == "good"


LEFT: Final = {
    "a link": f"ln -s /slot/program {BUILT_OBJECTS}",
    "a link to a device": f"ln -s /dev/zero {BUILT_OBJECTS}",
    "a pipe": f"mkfifo {BUILT_OBJECTS}",
    "a folder": f"mkdir {BUILT_OBJECTS}",
    "nothing": "true",
    "no objects": f"echo hello >{BUILT_OBJECTS}",
    "an empty file": f": >{BUILT_OBJECTS}",
    "sizes that lie": f"printf 'objects 1\\n\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff' >{BUILT_OBJECTS}",
    "megabytes of records": "(printf 'objects 1\\n'; head -c 30000000 /dev/zero) >" + BUILT_OBJECTS,
    "a hundred megabytes": f"truncate -s 100M {BUILT_OBJECTS}",
    "over the limit": f"head -c 40000000 /dev/zero >{BUILT_OBJECTS}",
    "a program as objects": f"cp {BUILT_PROGRAM} {BUILT_OBJECTS}",
}


@pytest.mark.parametrize("name", only_in_test_all(LEFT, {"a link", "over the limit", "sizes that lie"}))
async def test_a_function_is_built_whatever_its_last_build_has_left(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, name: str
):
    with monkeypatch.context() as patch:
        take_over(patch, f"/nanosupervisor/build-cpp {BUILT_PROGRAM} && {LEFT[name]}")
        assert await worker.output(EVIL, "f") == "evil"
    assert await worker.output(GOOD, "f") == "good"
    assert await worker.output({**GOOD, "more.txt": ""}, "f") == "good"


REFUSED: Final = {
    "a second file": f"cp {BUILT_PROGRAM} /output/more",
    "files in folders": f"mkdir /output/a; mv {BUILT_PROGRAM} /output/a/program; touch /output/a/objects",
    "a name that climbs": f"cp {BUILT_PROGRAM} '/output/..objects'",
}


@pytest.mark.parametrize("name", only_in_test_all(REFUSED, {"a second file"}))
async def test_a_build_that_leaves_other_files_keeps_nothing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, name: str
):
    with monkeypatch.context() as patch:
        take_over(patch, f"/nanosupervisor/build-cpp {BUILT_PROGRAM} && {REFUSED[name]}")
        with pytest.raises(Rejected):
            await worker.output(EVIL, "f")
    assert not list((worker.root / "programs/entries").iterdir())
    assert await worker.output(GOOD, "f") == "good"


async def test_objects_that_make_the_next_build_hang_are_left_out(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
):
    assert await worker.output(EVIL, "f") == "evil"
    request_of = Builder._request

    def hangs_with_objects(self: Builder, *arguments: Any) -> RunRequest:
        request = request_of(self, *arguments)
        script = "[ ! -e /slot/program ] || exec sleep 60; exec " + " ".join(request.arguments)
        return replace(request, arguments=("/bin/bash", "-c", script), timeout_ms=20_000)

    monkeypatch.setattr(Builder, "_request", hangs_with_objects)
    assert await worker.output(GOOD, "f") == "good"
