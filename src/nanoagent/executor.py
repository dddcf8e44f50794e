"""One job, end to end: fetch, build, run, upload, report. What may fail by our fault raises PlatformError."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import time
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

from nanoagent.code import archive, imports
from nanoagent.container import execution
from nanoagent.container.policy import Binding
from nanoagent.container.spec import MIB
from nanoagent.errors import Interrupted, PlatformError, Rejected
from nanoagent.job import Runtime
from nanoagent.result import ErrorType, Result, Status, Timings, hint_for
from nanoagent.runtime.catalog import OUTPUT_DIR, PAYLOAD_FILE, RECIPES
from nanoagent.runtime.wire import RunRequest
from nanoagent.tuner import RunUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nanoagent.code.cache import CodeCache, CodeTree, ProgramCache
    from nanoagent.config import Settings
    from nanoagent.container.execution import Execution
    from nanoagent.container.pool import Lease, Pool
    from nanoagent.job import Job
    from nanoagent.outputs import OutputUploader
    from nanoagent.slots import Slots
    from nanoagent.tuner import Tuner

_MAX_PAYLOAD_ENV_BYTES: Final = 96 * 1024  # the contract's; Linux allows 128 KiB for one string
_SLOT_WAIT_S: Final = 60.0
_GRACE_MS: Final = 1000  # the contract's design: SIGTERM, one second, SIGKILL
_BUILD_CAPTURE_BYTES: Final = 256 * 1024
_BUILD_OUTPUT_BYTES: Final = 512 * MIB
# Where the AI client's gateway will listen inside a run; the run's network has nothing else in it.
_GATEWAY: Final = "http://127.0.0.1:11434"
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"


@dataclass(slots=True)
class Attempt:
    """One delivery of a job on its way through the executor.

    Attributes:
        job: What to do.
        number: Which attempt it is, from 1.
        queue_ms: How long the message had waited when it was received.
        on_running: Called when the job gets a slot: from then on it is finished rather than given back.
    """

    job: Job
    number: int
    queue_ms: float
    on_running: Callable[[], None] = lambda: None
    timings: Timings = field(default_factory=Timings)
    started_at: float = field(default_factory=time.perf_counter)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's time to a phase of `timings`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            elapsed_ms = (time.perf_counter() - begun) * 1000
            setattr(self.timings, phase, round(getattr(self.timings, phase) + elapsed_ms, 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorParts:
    """What the executor works with.

    Attributes:
        image_ids: Runtime → id of its image, a part of what a built program depends on.
        spool: Folder for output files on their way.
    """

    settings: Settings
    code: CodeCache
    programs: ProgramCache
    slots: Slots
    pool: Pool
    outputs: OutputUploader
    tuner: Tuner
    image_ids: dict[Runtime, str]
    spool: Path


class Executor:
    """Turns jobs into results.

    Args:
        parts: Its collaborators.
    """

    def __init__(self, parts: ExecutorParts) -> None:
        self._parts = parts
        self._settings = parts.settings

    async def execute(self, attempt: Attempt) -> Result:
        """Do the job; its result says how it ended, whatever the user's code did.

        Raises:
            PlatformError: Our side failed; nothing is known about the user's code.
        """
        try:
            async with AsyncExitStack() as held:
                tree = await self._fetch(attempt, held)
                program = await self._built(attempt, tree, held)
                spool = held.enter_context(self._spool())
                ran, lease = await self._run(attempt, self._binding(attempt.job, tree, program), spool)
                return await self._report(attempt, ran, lease)
        except Rejected as rejection:
            return self.rejected(attempt, rejection)

    async def _fetch(self, attempt: Attempt, held: AsyncExitStack) -> CodeTree:
        """The job's code, for as long as `held` lasts."""
        with attempt.timed("fetch"):
            cached = self._parts.code.fetch(attempt.job.s3_bucket, attempt.job.s3_key)
            return await held.enter_async_context(cached)

    async def _built(self, attempt: Attempt, tree: CodeTree, held: AsyncExitStack) -> Path | None:
        """The built program of compiled code, for as long as `held` lasts; None for the rest."""
        recipe = RECIPES[attempt.job.runtime]
        if recipe.build is None:
            return None
        image = self._parts.image_ids[attempt.job.runtime]
        key = hashlib.sha256("\n".join((tree.digest, image, *recipe.build)).encode()).hexdigest()

        async def build(into: Path) -> None:
            await self._build(attempt.job, tree, into)

        with attempt.timed("build"):
            return await held.enter_async_context(self._parts.programs.get_or_build(key, build))

    def _binding(self, job: Job, tree: CodeTree, program: Path | None, **changes: Any) -> Binding:
        entry = RECIPES[job.runtime].entry
        root = _find_root(tree.path, entry)
        if root is None:
            raise Rejected(ErrorType.INVALID_CODE, f"the zip has no {entry} at its root")
        fields: dict[str, Any] = {
            "runtime": job.runtime,
            "function_id": job.function_id,
            "digest": tree.digest,
            "memory_mb": job.memory_mb,
            "cpus": self._settings.cpus_for(job.memory_mb),
            "most_cpus": self._settings.most_cpus_for(job.memory_mb),
            "tree": root,
            "tree_bytes": tree.bytes,
            "program": program,
        }
        if job.runtime is Runtime.PYTHON and self._settings.python_preload == "auto":
            fields["find_modules"] = partial(imports.imported, root)
        return Binding(**(fields | changes))

    # --- building

    async def _build(self, job: Job, tree: CodeTree, into: Path) -> None:
        """Build the job's program in a container that serves nothing else, and put it at `into`."""
        settings = self._settings
        cpus = min(settings.build_cpus, settings.worker_cpus)
        binding = self._binding(
            job,
            tree,
            None,
            memory_mb=settings.build_memory_mb,
            cpus=cpus,
            most_cpus=settings.worker_cpus,
            purpose="build",
        )
        request = self._build_request(job.runtime)
        async with AsyncExitStack() as held:
            spool = held.enter_context(self._spool())
            await self._enter_slot(binding, held)
            lease = await held.enter_async_context(self._parts.pool.lease(binding))
            built = await execution.execute(lease, request, spool)
            if built.error_type is not None or len(built.collected.files) != 1:
                raise self._build_failure(built)
            await asyncio.to_thread(shutil.move, built.collected.files[0].spooled, into)

    def _build_request(self, runtime: Runtime) -> RunRequest:
        command = RECIPES[runtime].build
        assert command is not None  # noqa: S101 - only called for recipes that have one
        return RunRequest(
            arguments=command,
            environment={"PATH": _PATH, "HOME": "/tmp", "LANG": "C.UTF-8"},  # noqa: S108 - the container's own
            payload=b"",
            timeout_ms=self._settings.build_timeout_seconds * 1000,
            grace_ms=_GRACE_MS,
            capture_bytes=_BUILD_CAPTURE_BYTES,
            file_size_bytes=_BUILD_OUTPUT_BYTES,
            open_files=self._settings.max_open_files,
            output_max_files=1,
            output_max_file_bytes=_BUILD_OUTPUT_BYTES,
            output_max_total_bytes=_BUILD_OUTPUT_BYTES,
            prepare_next=False,
        )

    def _build_failure(self, built: Execution) -> Rejected:
        settings = self._settings
        reasons = {
            ErrorType.TIMEOUT: f"the build took over BUILD_TIMEOUT_SECONDS={settings.build_timeout_seconds}",
            ErrorType.OUT_OF_MEMORY: f"the build needed over BUILD_MEMORY_MB={settings.build_memory_mb}",
            ErrorType.DISK_LIMIT: "the build filled its disk (TMP_MAX_MB, OUTPUT_DIR_MAX_MB)",
        }
        said = built.collected.stderr.text or built.collected.stdout.text
        message = "the compiler refused the code"
        if built.error_type in reasons:
            message = reasons[built.error_type]
        elif built.error_type is None:
            message = "the build left no program"
        return Rejected(ErrorType.BUILD_FAILED, message, stderr=said)

    # --- running

    async def _run(self, attempt: Attempt, binding: Binding, spool: Path) -> tuple[Execution, Lease]:
        """One run in a slot and a container; both are free again when this returns."""
        async with AsyncExitStack() as held:
            with attempt.timed("acquire"):
                await self._enter_slot(binding, held)
                attempt.on_running()
                lease = await held.enter_async_context(self._parts.pool.lease(binding))
            with attempt.timed("start"):
                await lease.container.session.ready()
            request = self._run_request(attempt.job, prepare_next=lease.reuse)
            ran = await execution.execute(lease, request, spool)
            attempt.timings.run = round(ran.wall_ms, 3)
            return ran, lease

    async def _enter_slot(self, binding: Binding, held: AsyncExitStack) -> None:
        """Wait for room, but not for ever: a large job at the head of the line keeps the others waiting."""
        slots = self._parts.slots
        slot = slots.reserve(binding.memory_mb, binding.cpus)
        if slots.free_for(binding.memory_mb, binding.cpus):
            await held.enter_async_context(slot)
            return
        try:
            async with asyncio.timeout(_SLOT_WAIT_S):
                await held.enter_async_context(slot)
        except TimeoutError as exc:
            raise Interrupted(f"no room for this job within {_SLOT_WAIT_S:.0f} s") from exc

    def _run_request(self, job: Job, *, prepare_next: bool) -> RunRequest:
        settings = self._settings
        return RunRequest(
            arguments=RECIPES[job.runtime].arguments,
            environment=environment_of(job),
            payload=job.payload,
            timeout_ms=job.timeout_ms,
            grace_ms=_GRACE_MS,
            capture_bytes=settings.max_output_bytes,
            file_size_bytes=settings.max_file_mb * MIB,
            open_files=settings.max_open_files,
            output_max_files=settings.output_max_files,
            output_max_file_bytes=settings.output_max_file_mb * MIB,
            output_max_total_bytes=settings.output_max_total_mb * MIB,
            prepare_next=prepare_next,
        )

    @contextmanager
    def _spool(self) -> Iterator[Path]:
        """The name of a folder for a run's files, which most runs leave none of: it is made for the first."""
        folder = self._parts.spool / secrets.token_hex(8)
        try:
            yield folder
        except OSError as exc:
            raise PlatformError(f"output files could not be kept on their way: {exc}") from exc
        finally:
            if os.path.lexists(folder):
                shutil.rmtree(folder, ignore_errors=True)

    # --- reporting

    async def _report(self, attempt: Attempt, ran: Execution, lease: Lease) -> Result:
        """Upload what the run left, and say everything about it."""
        with attempt.timed("upload"):
            links, refused = await self._parts.outputs.upload(attempt.job.request_id, ran.collected.files)
        result = self._blank(attempt, ran.error_type, ran.message)
        result.exit_code = ran.exit_code
        result.stdout = ran.collected.stdout.text
        result.stderr = ran.collected.stderr.text
        result.stdout_truncated_bytes = ran.collected.stdout.truncated_bytes
        result.stderr_truncated_bytes = ran.collected.stderr.truncated_bytes
        result.duration_ms = round(ran.wall_ms)
        result.output_files = links
        result.output_errors = ran.collected.refused + refused
        result.start = lease.start
        result.isolation = lease.isolation
        if ran.use is not None:
            result.peak_memory_bytes = ran.use.peak_bytes
            self._advise(attempt.job, result, ran.use.peak_bytes)
        return result

    def _advise(self, job: Job, result: Result, peak_bytes: int) -> None:
        usage = RunUsage(job.memory_mb, peak_bytes, result.duration_ms, result.error_type)
        advice = self._parts.tuner.advise(job.function_id, usage)
        result.optimization_tip = advice.tip
        result.estimated_savings = advice.estimated_savings
        result.tuning = advice.tuning

    def rejected(self, attempt: Attempt, rejection: Rejected) -> Result:
        """The result of a job that could not be started, by its sender's fault."""
        result = self._blank(attempt, rejection.error_type, rejection.message)
        result.stderr = rejection.stderr
        result.hint = rejection.hint or result.hint
        return result

    def failed(self, attempt: Attempt, failure: PlatformError) -> Result:
        """The result of a job that was given up, by our fault."""
        return self._blank(attempt, ErrorType.PLATFORM, str(failure))

    def _blank(self, attempt: Attempt, error_type: ErrorType | None, message: str | None) -> Result:
        """A result with what is known of every job."""
        job = attempt.job
        status = Status.SUCCESS if error_type is None else Status.FAILED
        attempt.timings.queue = round(attempt.queue_ms, 3)
        attempt.timings.total = round((time.perf_counter() - attempt.started_at) * 1000, 3)
        return Result(
            request_id=job.request_id,
            function_id=job.function_id,
            runtime=job.runtime,
            status=Status.TIMEOUT if error_type is ErrorType.TIMEOUT else status,
            error_type=error_type,
            error_message=message,
            hint=None if error_type is None else hint_for(error_type, self._settings.locale),
            timings=attempt.timings,
            worker_id=self._settings.worker_id,
            attempt=attempt.number,
        )


@lru_cache(maxsize=1024)
def _find_root(tree: Path, entry: str) -> Path | None:
    """`archive.find_root`, once for each tree: its path is the digest of its content."""
    return archive.find_root(tree, entry)


def environment_of(job: Job) -> dict[str, str]:
    """Everything that the program finds in its environment. Contract: section 2."""
    environment = {
        "PATH": _PATH,
        "HOME": "/tmp",  # noqa: S108 - the container's own
        "LANG": "C.UTF-8",
        "JOB_ID": job.request_id,
        "FUNCTION_ID": job.function_id,
        "OUTPUT_DIR": OUTPUT_DIR,
        "PAYLOAD_FILE": PAYLOAD_FILE,
        "MEMORY_LIMIT_MB": str(job.memory_mb),
        "DEADLINE_MS": str(int(time.time() * 1000) + job.timeout_ms),
        "LLM_MODEL": job.model_id,
        "AI_ENDPOINT": _GATEWAY,
        "OLLAMA_HOST": _GATEWAY,
        "OPENAI_BASE_URL": f"{_GATEWAY}/v1",
        "OPENAI_API_KEY": "unused",  # clients insist on one; real keys stay outside
    }
    # A NUL cannot be part of the environment, nor of valid JSON text.
    if len(job.payload) <= _MAX_PAYLOAD_ENV_BYTES and b"\0" not in job.payload:
        environment["PAYLOAD"] = job.payload.decode(errors="surrogateescape")
    return environment
