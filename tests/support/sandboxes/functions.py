"""Runs Python functions from zips with the runner, the code cache and real containers."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.byte_code_cache import ByteCodeCache
from nanoagent.code.code_cache import CodeCache
from nanoagent.code.program_cache import ProgramCache
from nanoagent.common.units import MIB
from nanoagent.host.background import Background
from nanoagent.jobs.admission import Admission
from nanoagent.jobs.attempt import Attempt
from nanoagent.jobs.byte_code import ByteCode, ByteCodeParts, Compilation
from nanoagent.jobs.parts import RunnerParts
from nanoagent.jobs.runner import Runner
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation
from nanoagent.storage.folder import FolderStore
from support.checks.zips import make_zip
from support.doubles.fakes import make_job, make_settings
from support.sandboxes.containers import LIMITS, bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from nanoagent.code.code_cache import CodeTree
    from nanoagent.container.pool import Pool
    from nanoagent.jobs.attempt import FinishedRun

CODE_LIMITS = ArchiveLimits(zip_bytes=64 * MIB, unpacked_bytes=64 * MIB, file_bytes=64 * MIB, entries=10_000)


@dataclass(slots=True, kw_only=True)
class Functions:
    """Runs functions, and compiles their code when a test asks for it.

    Attributes:
        outcomes: How the compilations have ended.
    """

    pool: Pool
    store: FolderStore
    code: CodeCache
    cache: ByteCodeCache
    byte_code: ByteCode
    runner: Runner
    admission: Admission
    outcomes: list[Compilation] = field(default_factory=list)

    def put(self, files: Mapping[str, str | bytes], key: str = "f.zip") -> None:
        """Upload a function."""
        self.store.path("code", key).write_bytes(make_zip(files))

    async def run(self, key: str = "f.zip", **job: Any) -> FinishedRun:
        """Run a function. A compilation may begin at its end."""
        attempt = Attempt(job=make_job(s3_key=key, timeout_ms=60_000, **job), number=1, queue_ms=0)
        async with AsyncExitStack() as resources:
            tree = await resources.enter_async_context(self.code.fetch("code", key))
            return await self.runner.run(attempt, tree, resources)

    async def output(self, key: str = "f.zip", **job: Any) -> str:
        """Run a function that must succeed, and return its output."""
        ended = (await self.run(key, **job)).execution
        assert ended.error_type is None, ended.collected.stderr.text
        return ended.collected.stdout.text

    async def compiled(self, key: str = "f.zip", **job: Any) -> Compilation:
        """Run a function for the first time, and wait for the end of the compilation that follows."""
        await self.run(key, **job)
        await self.byte_code.settled()
        return self.outcomes[-1]

    @asynccontextmanager
    async def tree(self, key: str = "f.zip") -> AsyncIterator[CodeTree]:
        """Fetch the tree of a function."""
        async with self.code.fetch("code", key) as tree:
            yield tree


@asynccontextmanager
async def functions(
    folder: Path, isolation: Isolation = Isolation.SANDBOX, *, image_id: str = "sha256:image"
) -> AsyncIterator[Functions]:
    """Make the parts that run functions. `folder` gets the uploaded zips and the caches."""
    store = FolderStore(folder / "store")
    (folder / "store/code").mkdir(parents=True, exist_ok=True)
    settings = make_settings(worker_memory_mb=2048, worker_cpus=2.0)
    limits = replace(LIMITS, code_bytes=CODE_LIMITS.unpacked_bytes, code_files=CODE_LIMITS.entries)
    admission = Admission(settings.worker_memory_mb, settings.worker_cpus)
    outcomes: list[Compilation] = []
    async with AsyncExitStack() as opened:
        box = await opened.enter_async_context(bench(isolation, limits))
        code = CodeCache(folder / "cache/code", store, CODE_LIMITS, 256 * MIB)
        programs = ProgramCache(folder / "cache/programs", 64 * MIB)
        for cache in (code, programs):
            await cache.start()
            opened.push_async_callback(cache.close)
        byte_code_cache = ByteCodeCache(code.disk, folder, image_id, CODE_LIMITS)
        byte_code = ByteCode(
            ByteCodeParts(
                settings=settings,
                cache=byte_code_cache,
                admission=admission,
                pool=box.pool,
                staging=box.staging(),
                background=Background(),
                observe=outcomes.append,
                delay_s=0,
            )
        )
        opened.push_async_callback(byte_code.close)
        parts = RunnerParts(
            settings=settings,
            programs=programs,
            admission=admission,
            pool=box.pool,
            image_ids={Runtime.PYTHON: image_id},
            staging=box.staging(),
            byte_code=byte_code,
        )
        yield Functions(
            pool=box.pool,
            store=store,
            code=code,
            cache=byte_code_cache,
            byte_code=byte_code,
            runner=Runner(parts),
            admission=admission,
            outcomes=outcomes,
        )
