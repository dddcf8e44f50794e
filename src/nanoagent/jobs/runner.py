"""Runs the program of a job once, in a container of the pool. Jobs and the self-test use the same runner."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB
from nanoagent.container import execution
from nanoagent.jobs import environment
from nanoagent.jobs.acquisition import GRACE_MS, Acquisition
from nanoagent.jobs.attempt import FinishedRun
from nanoagent.jobs.builder import Builder
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import Reuse, Runtime
from nanoagent.network.base import NetworkRun
from nanoagent.supervisor.wire import ImportsState, RunRequest

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from nanoagent.code.code_cache import CodeTree
    from nanoagent.container.pool import AcquiredContainer
    from nanoagent.jobs.attempt import Attempt
    from nanoagent.jobs.parts import RunnerParts

_AI_RECORD: Final = (
    "ai.jsonl"  # in the folder of the output files, where each output file has a number as name
)


class Runner:
    """Runs programs in containers.

    Args:
        parts: The collaborators.
    """

    def __init__(self, parts: RunnerParts) -> None:
        self._settings = parts.settings
        self._network = parts.network
        self._byte_code = parts.byte_code
        self._acquisition = Acquisition(parts)
        self._builder = Builder(parts, self._acquisition)

    async def run(self, attempt: Attempt, tree: CodeTree, resources: AsyncExitStack) -> FinishedRun:
        """Build the program if its language is compiled, and run it once.

        The room in the budget and the container are released when this returns.

        Args:
            attempt: The attempt.
            tree: The code.
            resources: Keeps the built program and the output files on the disk until it is closed.

        Raises:
            Rejected: The code cannot be built, or has no entry file.
            ReturnToQueue: There was no room for a minute, or containers cannot be made now.
            PlatformError: The platform failed.
        """
        job = attempt.job
        self._acquisition.check_crashes(job, tree)
        program = await self._builder.program_of(attempt, tree, resources)
        folder = resources.enter_context(self._acquisition.output_folder())
        compiler = self._byte_code if job.runtime is Runtime.PYTHON else None
        async with AsyncExitStack() as container:
            byte_code = await compiler.of(tree, container) if compiler else None
            binding = self._acquisition.binding(job, tree, program, byte_code)
            with attempt.timed("acquire"):
                acquired = await self._acquisition.acquire(binding, job, tree, container, attempt.on_running)
            run = await self._run_in(acquired, attempt, folder)
        if compiler and byte_code is None:
            compiler.compile_later(tree)
        return run

    async def _run_in(self, acquired: AcquiredContainer, attempt: Attempt, folder: Path) -> FinishedRun:
        """Run the program in a container that has its code."""
        with attempt.timed("start"):
            await acquired.container.session.ready()
        wants_imports = attempt.job.reuse is Reuse.IMPORTS
        imports = (
            (acquired.container.imports or ImportsState.UNAVAILABLE) if wants_imports else ImportsState.OFF
        )
        request = self._request(attempt, prepare_next=acquired.reuse)
        network = self._open_network(attempt, acquired, request, folder)
        ended = await execution.execute(
            acquired, request, folder, attempt.control, network, language=attempt.job.runtime
        )
        attempt.timings.run = round(ended.wall_ms, 3)
        return FinishedRun(ended, acquired.start, acquired.isolation, imports)

    def _open_network(
        self, attempt: Attempt, acquired: AcquiredContainer, request: RunRequest, folder: Path
    ) -> AbstractAsyncContextManager[None] | None:
        """Return the context that opens the run's network while the program runs; None: no network."""
        job = attempt.job
        if self._network is None:
            return None
        if self._settings.ai_record == "store":
            attempt.ai_record = folder / _AI_RECORD
        run = NetworkRun(
            request_id=job.request_id,
            function_id=job.function_id,
            runtime=job.runtime,
            model=job.model_id,
            policy=job.network,
            deadline=asyncio.get_running_loop().time() + (request.timeout_ms + request.grace_ms) / 1000,
            record=attempt.ai_record,
            usage=attempt.ai_usage,
        )
        return self._network.opened(acquired.container.listening_sockets, run)

    def _request(self, attempt: Attempt, *, prepare_next: bool) -> RunRequest:
        job, settings = attempt.job, self._settings
        variables = environment.environment_of(job)
        if attempt.secrets is not None:
            variables |= attempt.secrets
        return RunRequest(
            arguments=RECIPES[job.runtime].arguments,
            environment=variables,
            payload=job.payload,
            timeout_ms=job.timeout_ms,
            grace_ms=GRACE_MS,
            capture_bytes=settings.max_output_bytes,
            file_size_bytes=settings.max_file_mb * MIB,
            open_files=settings.max_open_files,
            output_max_files=settings.output_max_files,
            output_max_file_bytes=settings.output_max_file_mb * MIB,
            output_max_total_bytes=settings.output_max_total_mb * MIB,
            prepare_next=prepare_next,
            live=attempt.control.live,
            live_bytes_per_s=settings.live_logs_bytes_per_second,
        )
