"""Acquires a container for a build or a run: first room in the budget, then a container of the pool."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nanoagent.code import entry_file, imports
from nanoagent.code.pack import Pack
from nanoagent.container.policy import Binding
from nanoagent.jobs import source
from nanoagent.jobs.owners import owner_of
from nanoagent.model.errors import PlatformError, ReturnToQueue
from nanoagent.model.job import Reuse, Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager, AsyncExitStack
    from pathlib import Path

    from nanoagent.code.code_cache import CodeTree
    from nanoagent.container.pool import AcquiredContainer
    from nanoagent.jobs.byte_code import ByteCodeFiles
    from nanoagent.jobs.parts import RunnerParts
    from nanoagent.model.job import FunctionVersion, Job

GRACE_MS: Final = 1000
"""The time between SIGTERM and SIGKILL for a program that must end, milliseconds."""

_ADMISSION_TIMEOUT_S: Final = 60.0


class Acquisition:
    """Gets containers for builds and runs.

    Args:
        parts: The collaborators.
    """

    def __init__(self, parts: RunnerParts) -> None:
        self._parts = parts
        self._settings = parts.settings

    def check_crashes(self, job: Job, tree: CodeTree) -> None:
        """Check that the function version may be tried now.

        Raises:
            CrashLoop: It has just crashed several containers.
        """
        self._parts.failures.crashes.check(_crash_key(job, tree))

    def binding(
        self,
        job: Job,
        tree: CodeTree,
        program: Path | None = None,
        byte_code: ByteCodeFiles | None = None,
        **changes: Any,
    ) -> Binding:
        """Return the binding of the container for a job.

        Args:
            job: The job.
            tree: Its code.
            program: Its built program; None for an interpreted language, and for a build.
            byte_code: The byte code of Python code; None if there is none.
            changes: Values that replace attributes of the binding, for a build.

        Raises:
            Rejected: The code has no entry file.
        """
        if not source.has_entry(tree, job.runtime):
            raise entry_file.missing_entry(Pack(tree.path), job.runtime)
        fields: dict[str, Any] = {
            "runtime": job.runtime,
            "function_id": job.function_id,
            "digest": tree.digest,
            "memory_mb": job.memory_mb,
            # The CPUs that the run gets under contention, and those that it may use while they are free.
            "cpus": self._settings.cpus_for(job.memory_mb),
            "most_cpus": self._settings.most_cpus_for(job.memory_mb),
            "tree": tree.path,
            "tree_bytes": tree.memory_bytes,
            "program": program,
        }
        if self._settings.container_sharing == "tenant":
            fields["owner"] = owner_of(job, self._settings.tenant_regex)
        if byte_code is not None:
            fields["byte_code"] = byte_code.path
            fields["tree_bytes"] += byte_code.memory_bytes
        if job.runtime is Runtime.PYTHON and self._settings.python_preload == "auto":
            fields["find_modules"] = partial(imports.imported, tree.path)
        if job.reuse is Reuse.IMPORTS and self._settings.offers_reuse_of_imports:
            fields["reuses_imports"] = job.runtime is Runtime.PYTHON
        return Binding(**(fields | changes))

    async def acquire(
        self,
        binding: Binding,
        job: Job,
        tree: CodeTree,
        resources: AsyncExitStack,
        on_admitted: Callable[[], None] = lambda: None,
    ) -> AcquiredContainer:
        """Wait for room and for a container. Both are released when `resources` is closed.

        Args:
            binding: The binding of the container.
            job: The job.
            tree: Its code.
            resources: Releases room and container.
            on_admitted: Called when there is room.

        Raises:
            ReturnToQueue: There was no room for a minute, or containers cannot be made now.
            CrashLoop: The function version has just crashed several containers.
            ContainerError: The container could not be made.
        """
        await self._wait_for_admission(binding, resources)
        on_admitted()
        pool = self._parts.pool
        crashes = self._parts.failures.crashes
        # This context notes whether the container dies. It is entered first, so that it also sees failures of
        # the acquisition.
        resources.enter_context(
            crashes.attempt(_crash_key(job, tree), is_broken=lambda: pool.unavailable_reason is not None)
        )
        return await resources.enter_async_context(pool.acquire(binding))

    async def _wait_for_admission(self, binding: Binding, resources: AsyncExitStack) -> None:
        """Wait for room, for a limited time, because a large job that waits may block later jobs."""
        admission = self._parts.admission
        # The memory limit and the code together may exceed the budget. Then the job gets the whole budget.
        needed_mb = min(binding.needed_mb, admission.total.memory_mb)
        size = needed_mb, binding.cpus, binding.function_id
        if (release := admission.take_now(*size)) is not None:
            resources.callback(release)
            return
        try:
            async with asyncio.timeout(_ADMISSION_TIMEOUT_S):
                await resources.enter_async_context(admission.reserve(*size))
        except TimeoutError as exc:
            raise ReturnToQueue(f"no room for this job within {_ADMISSION_TIMEOUT_S:.0f} s") from exc

    def output_folder(self) -> AbstractContextManager[Path]:
        """Return the context of a folder for the output files of one run (`output_folder`)."""
        return output_folder(self._parts.staging)


@contextmanager
def output_folder(staging: Path) -> Iterator[Path]:
    """Yield the path of a folder for the output files of one run, and remove the folder at the end.

    The folder is created with the first file. Most runs have none.

    Args:
        staging: The folder that gets it.

    Raises:
        PlatformError: A file could not be written.
    """
    folder = staging / secrets.token_hex(8)
    try:
        yield folder
    except OSError as exc:
        raise PlatformError(f"output files could not be written to the worker's disk: {exc}") from exc
    finally:
        if os.path.lexists(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _crash_key(job: Job, tree: CodeTree) -> tuple[FunctionVersion, str, str]:
    """Return the key for the crash cache: the function version, and the S3 object of its code.

    The S3 object is a part of the key because all jobs without a functionId have the same function ID.
    """
    return job.version(tree.digest), job.s3_bucket, job.s3_key
