"""Builds the programs of compiled languages. Each build has a container that is used for nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.code import object_cache
from nanoagent.common.units import MIB
from nanoagent.container import execution
from nanoagent.jobs import source
from nanoagent.jobs.acquisition import GRACE_MS
from nanoagent.jobs.environment import PATH
from nanoagent.languages import error_line
from nanoagent.languages.explain import explain_build
from nanoagent.languages.recipes import BUILT_OBJECTS, BUILT_PROGRAM, RECIPES
from nanoagent.model.errors import ContainerError, Rejected, StorageError
from nanoagent.model.result import ErrorType
from nanoagent.model.text import Text
from nanoagent.supervisor.wire import RunRequest

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from nanoagent.code.code_cache import CodeTree
    from nanoagent.container.execution import Execution
    from nanoagent.container.policy import Binding
    from nanoagent.jobs.acquisition import Acquisition
    from nanoagent.jobs.attempt import Attempt
    from nanoagent.jobs.parts import RunnerParts
    from nanoagent.model.job import Job, Runtime

log = structlog.get_logger(__name__)

_CAPTURE_BYTES: Final = 256 * 1024
_OUTPUT_BYTES: Final = 512 * MIB
_OBJECTS_BYTES: Final = 32 * MIB  # the largest file of objects; a unit with <regex> takes 0.3 MB
_PROGRAM: Final = PurePosixPath(BUILT_PROGRAM).name
_OBJECTS: Final = PurePosixPath(BUILT_OBJECTS).name
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


@dataclass(frozen=True, slots=True)
class _Task:
    """How a program is built.

    Attributes:
        key: The key of the program in the program cache.
        objects_key: The key of the function's objects; None: the build keeps no objects.
        uses_objects: Whether the build gets the objects of an earlier build.
    """

    key: str
    objects_key: str | None
    uses_objects: bool = False


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
        job = attempt.job
        if RECIPES[job.runtime].build is None:
            return None
        task = self._task_of(job, tree)

        async def build(into: Path) -> None:
            with self._parts.failures.builds.attempt(task.key):
                await self._build(job, tree, task, into)

        with attempt.timed("build"):
            return await resources.enter_async_context(self._parts.programs.get_or_build(task.key, build))

    def _task_of(self, job: Job, tree: CodeTree) -> _Task:
        """Choose how the program of a job is built, or under which key it is cached."""
        image, command = self._parts.image_ids[job.runtime], RECIPES[job.runtime].build
        assert command is not None  # noqa: S101 - `program_of` has checked it
        shared = hashlib.sha256("\n".join((tree.digest, image, *command)).encode()).hexdigest()
        objects, programs = self._parts.objects, self._parts.programs
        if objects is None or programs.has(shared):  # if it is evicted before its use, no objects are kept
            return _Task(shared, None)
        own = object_cache.key_of(job, image, command)
        # Functions with the same code share a program. But objects come from other code of one function, and
        # it may be hostile. A program that was linked from them is only for this function.
        private = hashlib.sha256(f"{shared}\n{own}".encode()).hexdigest()
        if programs.has(private) or objects.has(own):
            return _Task(private, own, uses_objects=True)
        return _Task(shared, own)

    async def _build(self, job: Job, tree: CodeTree, task: _Task, into: Path) -> None:
        """Build the program and move it to `into`. If the build with objects fails, build without them."""
        new_folder = self._acquisition.output_folder
        with new_folder() as folder, new_folder() as second_folder:
            built = await self._build_with_objects(job, tree, task, folder) if task.uses_objects else None
            if built is None:
                built = await self._execute(job, tree, task, second_folder, None)
            files = {file.path: file for file in built.collected.files}
            if not _has_built(built):
                names = await asyncio.to_thread(source.files_of, tree)
                raise self._failure(job.runtime, built, names)
            await asyncio.to_thread(shutil.move, files[_PROGRAM].staged, into)
            made = files.get(_OBJECTS)
            if task.objects_key is not None and made is not None and made.size <= _OBJECTS_BYTES:
                await self._keep(task.objects_key, made.staged)

    async def _build_with_objects(
        self, job: Job, tree: CodeTree, task: _Task, folder: Path
    ) -> Execution | None:
        """Build with the objects of an earlier build; None if the build must be repeated without them.

        Earlier code of the function may have forged the objects. So a build with objects counts only if it
        gives a program, or if the compiler has refused the code, because then it has read all of the code.
        """
        objects, key = self._parts.objects, task.objects_key
        assert objects is not None  # noqa: S101 - as `task.uses_objects` says
        assert key is not None  # noqa: S101
        reason = "no program"
        try:
            if (pin := await objects.pin(key)) is None:
                return None
            async with objects.releasing(pin):
                built = await self._execute(job, tree, task, folder, pin.content)
            if _has_built(built) or built.error_type is ErrorType.USER_ERROR:
                return built
            reason = str(built.message or reason)
        except (StorageError, ContainerError) as exc:
            reason = str(exc)
        log.warning("build repeated without objects", function_id=job.function_id, reason=reason)
        return None

    async def _execute(
        self, job: Job, tree: CodeTree, task: _Task, folder: Path, objects: Path | None
    ) -> Execution:
        """Run the build in a container."""
        binding = self._binding(job, tree, objects)
        async with AsyncExitStack() as resources:
            acquired = await self._acquisition.acquire(binding, job, tree, resources)
            return await execution.execute(acquired, self._request(job.runtime, task), folder)

    def _binding(self, job: Job, tree: CodeTree, objects: Path | None) -> Binding:
        settings = self._settings
        return self._acquisition.binding(
            job,
            tree,
            objects,
            memory_mb=settings.build_memory_mb,
            cpus=min(settings.build_cpus, settings.worker_cpus),
            most_cpus=settings.worker_cpus,
            purpose="build",
        )

    async def _keep(self, key: str, staged: Path) -> None:
        """Keep objects for the next build. The program is built, so a failure is only logged."""
        assert self._parts.objects is not None  # noqa: S101 - there is a key
        try:
            await self._parts.objects.keep(key, staged)
        except StorageError as exc:
            log.warning("objects not kept", reason=str(exc))

    def _request(self, runtime: Runtime, task: _Task) -> RunRequest:
        command = RECIPES[runtime].build
        assert command is not None  # noqa: S101 - `program_of` has checked it
        keeps = task.objects_key is not None
        return RunRequest(
            arguments=(*command, BUILT_OBJECTS, str(_OBJECTS_BYTES)) if keeps else command,
            environment={"PATH": PATH, "HOME": "/tmp", "LANG": "C.UTF-8"},  # noqa: S108 - in the container
            payload=b"",
            timeout_ms=self._settings.build_timeout_seconds * 1000,
            grace_ms=GRACE_MS,
            capture_bytes=_CAPTURE_BYTES,
            file_size_bytes=_OUTPUT_BYTES,
            open_files=self._settings.max_open_files,
            output_max_files=2 if keeps else 1,
            output_max_file_bytes=_OUTPUT_BYTES,
            output_max_total_bytes=_OUTPUT_BYTES + (_OBJECTS_BYTES if keeps else 0),
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
        hint = explain_build(runtime, str(output), files) if certain else None
        return Rejected(
            ErrorType.BUILD_FAILED,
            message,
            hint=None if hint is None else hint.text,
            cause=None if hint is None else hint.cause,
            stderr=output,
            certain=certain,
        )


def _has_built(built: Execution) -> bool:
    """Whether a build has given a program, and no other file besides objects."""
    names = {file.path for file in built.collected.files}
    return built.error_type is None and _PROGRAM in names and names <= {_PROGRAM, _OBJECTS}
