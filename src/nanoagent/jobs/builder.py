"""Builds the programs of compiled languages. Each build has a container that is used for nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB
from nanoagent.container import execution
from nanoagent.jobs import source
from nanoagent.jobs.acquisition import GRACE_MS
from nanoagent.jobs.environment import PATH
from nanoagent.languages import build_hint, error_line
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.errors import Rejected
from nanoagent.model.result import ErrorType
from nanoagent.model.text import Text
from nanoagent.supervisor.wire import RunRequest

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from nanoagent.code.code_cache import CodeTree
    from nanoagent.container.execution import Execution
    from nanoagent.jobs.acquisition import Acquisition
    from nanoagent.jobs.attempt import Attempt
    from nanoagent.jobs.parts import RunnerParts
    from nanoagent.model.job import Job, Runtime

_CAPTURE_BYTES: Final = 256 * 1024
_OUTPUT_BYTES: Final = 512 * MIB
_COMPILER_REFUSED: Final = Text("the compiler refused the code", "컴파일러가 코드를 거부했습니다")
_NO_PROGRAM_BUILT: Final = Text("the build did not produce a program", "빌드가 프로그램을 만들지 않았습니다")
_BUILD_TOO_LONG: Final = Text(
    "the build took over BUILD_TIMEOUT_SECONDS={seconds}",
    "빌드가 BUILD_TIMEOUT_SECONDS={seconds}보다 오래 걸렸습니다",
)
_BUILD_TOO_LARGE: Final = Text(
    "the build needed over BUILD_MEMORY_MB={memory_mb}",
    "빌드에 BUILD_MEMORY_MB={memory_mb}보다 많은 메모리가 필요했습니다",
)
_BUILD_DISK_FULL: Final = Text(
    "the build filled its disk (TMP_MAX_MB, OUTPUT_DIR_MAX_MB)",
    "빌드가 디스크를 가득 채웠습니다 (TMP_MAX_MB, OUTPUT_DIR_MAX_MB)",
)


class Builder:
    """Builds programs.

    Args:
        parts: The collaborators.
        acquisition: Gets the containers for builds.
    """

    def __init__(self, parts: RunnerParts, acquisition: Acquisition) -> None:
        self._parts = parts
        self._settings = parts.settings
        self._acquisition = acquisition

    async def program_of(self, attempt: Attempt, tree: CodeTree, resources: AsyncExitStack) -> Path | None:
        """Return the built program of a job, from the cache or from a new build.

        Args:
            attempt: The attempt.
            tree: The code.
            resources: Keeps the program on the disk until it is closed.

        Returns:
            The program; None for an interpreted language.

        Raises:
            Rejected: The code cannot be built.
            PlatformError: The platform failed.
        """
        recipe = RECIPES[attempt.job.runtime]
        if recipe.build is None:
            return None
        image = self._parts.image_ids[attempt.job.runtime]
        key = hashlib.sha256("\n".join((tree.digest, image, *recipe.build)).encode()).hexdigest()

        async def build(into: Path) -> None:
            with self._parts.failures.builds.attempt(key):
                await self._build(attempt.job, tree, into)

        with attempt.timed("build"):
            return await resources.enter_async_context(self._parts.programs.get_or_build(key, build))

    async def _build(self, job: Job, tree: CodeTree, into: Path) -> None:
        """Build the program and move it to `into`."""
        settings = self._settings
        binding = self._acquisition.binding(
            job,
            tree,
            memory_mb=settings.build_memory_mb,
            cpus=min(settings.build_cpus, settings.worker_cpus),
            most_cpus=settings.worker_cpus,
            purpose="build",
        )
        async with AsyncExitStack() as resources:
            folder = resources.enter_context(self._acquisition.output_folder())
            acquired = await self._acquisition.acquire(binding, job, tree, resources)
            built = await execution.execute(acquired, self._request(job.runtime), folder)
            if built.error_type is not None or len(built.collected.files) != 1:
                files = await asyncio.to_thread(source.files_below, binding.tree)
                raise self._failure(job.runtime, built, files)
            await asyncio.to_thread(shutil.move, built.collected.files[0].staged, into)

    def _request(self, runtime: Runtime) -> RunRequest:
        command = RECIPES[runtime].build
        assert command is not None  # noqa: S101 - `program_of` has checked it
        return RunRequest(
            arguments=command,
            environment={"PATH": PATH, "HOME": "/tmp", "LANG": "C.UTF-8"},  # noqa: S108 - in the container
            payload=b"",
            timeout_ms=self._settings.build_timeout_seconds * 1000,
            grace_ms=GRACE_MS,
            capture_bytes=_CAPTURE_BYTES,
            file_size_bytes=_OUTPUT_BYTES,
            open_files=self._settings.max_open_files,
            output_max_files=1,
            output_max_file_bytes=_OUTPUT_BYTES,
            output_max_total_bytes=_OUTPUT_BYTES,
            prepare_next=False,
        )

    def _failure(self, runtime: Runtime, built: Execution, files: Collection[str]) -> Rejected:
        """Return the rejection of a job whose build has failed.

        Args:
            runtime: The language.
            built: The build.
            files: The paths of all files of the code, for the hint.
        """
        settings = self._settings
        limits = {
            ErrorType.TIMEOUT: _BUILD_TOO_LONG.format(seconds=settings.build_timeout_seconds),
            ErrorType.OUT_OF_MEMORY: _BUILD_TOO_LARGE.format(memory_mb=settings.build_memory_mb),
            ErrorType.DISK_LIMIT: _BUILD_DISK_FULL,
        }
        stream = built.collected.stderr if built.collected.stderr.text else built.collected.stdout
        output = stream.in_every_language()
        message = _COMPILER_REFUSED
        if built.error_type in limits:
            message = limits[built.error_type]
        elif built.error_type is None:
            message = _NO_PROGRAM_BUILT
        elif error := error_line.build_error(runtime, str(output)):
            message = Text.verbatim(error)
        certain = built.error_type in {None, ErrorType.USER_ERROR}
        hint = build_hint.build_hint(runtime, str(output), files) if certain else None
        return Rejected(ErrorType.BUILD_FAILED, message, hint=hint, stderr=output, certain=certain)
