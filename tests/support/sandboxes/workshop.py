"""Builds of C++ and Go code in containers as the worker's are, and runs of the built programs."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nanoagent.common.units import MIB
from nanoagent.container import execution
from nanoagent.container.policy import Binding, PoolPolicy
from nanoagent.container.spec import Limits
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation
from support.checks.packs import packed
from support.sandboxes.containers import image_of, request_for, running_pool, worker_home

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from nanoagent.container.execution import Execution
    from nanoagent.container.pool import Pool

# As large as the defaults: compilers take room.
LIMITS = Limits(processes=256, tmp_bytes=256 * MIB, work_bytes=64 * MIB, output_bytes=64 * MIB, inodes=16_384)
BUILD_MEMORY_MB = 1024


class Workshop:
    """Builds code and runs what came of it, each in containers as the worker's are.

    Attributes:
        pool: The pool of the containers.
        folder: The folder for code and output files.
    """

    def __init__(self, pool: Pool, folder: Path) -> None:
        self.pool = pool
        self.folder = folder

    async def build(
        self,
        runtime: Runtime,
        files: Mapping[str, str],
        command: tuple[str, ...] | None = None,
        objects: Path | None = None,
    ) -> Execution:
        """Build as the worker does, or run another command in a build's place.

        Args:
            runtime: The language.
            files: The code.
            command: The command; None for the build command without objects.
            objects: The objects of an earlier build; None if there are none.
        """
        arguments = command or RECIPES[runtime].build
        assert arguments is not None
        return await self._execute(runtime, self._tree(files), arguments, objects, "build")

    async def run(self, runtime: Runtime, program: Path) -> Execution:
        """Run a program that was built."""
        return await self._execute(runtime, self._tree({}), RECIPES[runtime].arguments, program, "run")

    async def output(self, runtime: Runtime, files: Mapping[str, str]) -> str:
        """Build, run, and return what was printed; both must go well."""
        built = await self.build(runtime, files)
        assert built.error_type is None, built.collected.stderr.text
        ran = await self.run(runtime, program_of(built))
        assert ran.error_type is None, ran.collected.stderr.text
        return ran.collected.stdout.text

    async def _execute(
        self, runtime: Runtime, tree: Path, arguments: tuple[str, ...], program: Path | None, purpose: str
    ) -> Execution:
        binding = Binding(
            runtime=runtime,
            function_id="test",
            digest=hashlib.sha256(str((tree, program)).encode()).hexdigest(),
            memory_mb=128 if purpose == "run" else BUILD_MEMORY_MB,
            cpus=1.0,
            most_cpus=2.0,
            tree=packed(tree),
            tree_bytes=sum(path.stat().st_size for path in tree.rglob("*")),
            program=program,
            purpose=purpose,
        )
        limits = {
            "timeout_ms": 120_000,
            "output_max_file_bytes": 64 * MIB,
            "output_max_total_bytes": 64 * MIB,
        }
        async with self.pool.acquire(binding) as acquired:
            request = request_for(b"", arguments=arguments, prepare_next=False, **limits)
            return await execution.execute(acquired, request, self._new_folder())

    def _tree(self, files: Mapping[str, str]) -> Path:
        tree = self._new_folder()
        for name, text in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
        return tree

    def _new_folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        folder.chmod(0o755)
        return folder


def program_of(built: Execution) -> Path:
    """Return the program of a build, as an executable file."""
    (file,) = (file for file in built.collected.files if file.path == "program")
    kept = file.staged.with_name("program")
    shutil.move(file.staged, kept)
    kept.chmod(0o555)
    return kept


@asynccontextmanager
async def workshop() -> AsyncIterator[Workshop]:
    """Make a workshop with containers for C++ and Go."""
    with worker_home() as home:
        policy = PoolPolicy(
            images={runtime: image_of(runtime) for runtime in Runtime},
            sizes={Runtime.PYTHON: 0, Runtime.NODEJS: 0, Runtime.CPP: 1, Runtime.GO: 1},
            memory_mb=4096,
            generic_cpus=1.0,
            idle_s=600,
            max_runs=10_000,
            max_age_s=3600,
            uid_base=1_910_000_000,
            limits=LIMITS,
            isolation=Isolation.SANDBOX,
        )
        async with running_pool(home, policy) as pool:
            yield Workshop(pool, home.staging)
