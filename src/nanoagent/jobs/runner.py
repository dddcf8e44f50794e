"""Code in a container: built if need be, given a slot and a container, run once.

What of a job does not depend on queue, store or result_store; jobs and the self-test go the same way here.
"""

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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanoagent.code import entry_file, imports
from nanoagent.common import gateway_address
from nanoagent.common.units import MIB
from nanoagent.container import execution
from nanoagent.container.execution import RunControl
from nanoagent.container.policy import Binding
from nanoagent.container.spec import RUN_USER
from nanoagent.jobs.failures import Failures
from nanoagent.languages import build_hint, error_line
from nanoagent.languages.recipes import OUTPUT_DIR, PAYLOAD_FILE, RECIPES
from nanoagent.model.errors import PlatformError, Rejected, ReturnToQueue
from nanoagent.model.job import Runtime
from nanoagent.model.payload import fits_variable
from nanoagent.model.result import ErrorType, Isolation, Start, Timings
from nanoagent.model.text import Text
from nanoagent.network.base import AiUsage, NetworkRun
from nanoagent.supervisor.wire import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from nanoagent.code.code_cache import CodeTree
    from nanoagent.code.program_cache import ProgramCache
    from nanoagent.config import Settings
    from nanoagent.container.execution import Execution
    from nanoagent.container.pool import AcquiredContainer, Pool
    from nanoagent.jobs.admission import Admission
    from nanoagent.model.job import FunctionVersion, Job
    from nanoagent.network.listeners import Network

_MOST_SOURCE_BYTES: Final = MIB
# Go's collector does not know memoryMb: the heap may double between collections. Measured: with 90 %,
# programs still ran out of memory although their live data took half of it. Stacks, code and files need the
# rest.
_GO_MEMORY_PERCENT: Final = 75
_ADMISSION_TIMEOUT_S: Final = 60.0
_GRACE_MS: Final = 1000  # the contract's design: SIGTERM, one second, SIGKILL
_BUILD_CAPTURE_BYTES: Final = 256 * 1024
_BUILD_OUTPUT_BYTES: Final = 512 * MIB
_AI_RECORD: Final = "ai.jsonl"  # beside output files, whose names there are numbers
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
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"


@dataclass(slots=True)
class Attempt:
    """One delivery of a job on its way through executor and runner.

    Attributes:
        job: What to do.
        number: Which attempt it is, from 1; 0 where none was made.
        queue_ms: How long the message had waited when it was received.
        control: Cancels the run.
        ai_usage: What the run has used of models.
        ai_record: Where the run's exchanges with models lie, if there were any and AI_RECORD asks for them.
        fencing_token: The token of the attempt's claim; outputs of a later claim are not overwritten.
        on_running: Called when the job has room. From then on a drain lets it finish.
    """

    job: Job
    number: int
    queue_ms: float = 0
    on_running: Callable[[], None] = lambda: None
    fencing_token: int = 0
    control: RunControl = field(default_factory=RunControl)
    ai_usage: AiUsage = field(default_factory=AiUsage)
    ai_record: Path | None = None
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


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that is over.

    Attributes:
        execution: How it ended.
        start: Where its container came from.
        isolation: What stood between it and other runs.
    """

    execution: Execution
    start: Start
    isolation: Isolation


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerParts:
    """What the runner works with.

    Attributes:
        image_ids: Runtime → id of its image, a part of what a built program depends on.
        spool: Folder for output files on their way.
        failures: What is not worth trying again yet.
        network: What runs may reach; None: nothing.
    """

    settings: Settings
    programs: ProgramCache
    admission: Admission
    pool: Pool
    image_ids: dict[Runtime, str]
    spool: Path
    failures: Failures = field(default_factory=Failures)
    network: Network | None = None


class Runner:
    """Runs code in containers.

    Args:
        parts: Its collaborators.
    """

    def __init__(self, parts: RunnerParts) -> None:
        self._parts = parts
        self._settings = parts.settings

    async def run(self, attempt: Attempt, tree: CodeTree, held: AsyncExitStack) -> Ran:
        """Build the code if its language wants that, and run it once; slot and container are free again then.

        Args:
            attempt: What to run it with.
            tree: The code.
            held: Keeps the built program and the output files for as long as it lasts.

        Raises:
            Rejected: The code cannot be built, or has no entry file.
            PlatformError: Our side failed.
        """
        self._parts.failures.crashes.refuse_known(self._version(attempt.job, tree))
        program = await self._built(attempt, tree, held)
        spool = held.enter_context(self._spool())
        trying = self._trying(attempt.job, tree)
        return await self._run(attempt, self._binding(attempt.job, tree, program), spool, trying)

    async def _built(self, attempt: Attempt, tree: CodeTree, held: AsyncExitStack) -> Path | None:
        """The built program of compiled code, for as long as `held` lasts; None for the rest."""
        recipe = RECIPES[attempt.job.runtime]
        if recipe.build is None:
            return None
        image = self._parts.image_ids[attempt.job.runtime]
        key = hashlib.sha256("\n".join((tree.digest, image, *recipe.build)).encode()).hexdigest()

        async def build(into: Path) -> None:
            with self._parts.failures.builds.attempt(key):
                await self._build(attempt.job, tree, into)

        with attempt.timed("build"):
            return await held.enter_async_context(self._parts.programs.get_or_build(key, build))

    def _version(self, job: Job, tree: CodeTree) -> tuple[FunctionVersion, str, str]:
        """The key of crashes: the version and its object. Jobs without a function ID share one version."""
        return job.version(tree.digest), job.s3_bucket, job.s3_key

    def _trying(self, job: Job, tree: CodeTree) -> AbstractContextManager[None]:
        """One use of a container, the end of which says something of the code."""
        pool = self._parts.pool
        return self._parts.failures.crashes.attempt(
            self._version(job, tree), is_broken=lambda: pool.unavailable_reason is not None
        )

    def _binding(self, job: Job, tree: CodeTree, program: Path | None, **changes: Any) -> Binding:
        root = _find_root(tree.path, RECIPES[job.runtime].entry)
        if root is None:
            raise entry_file.missing_entry(tree.path, job.runtime)
        fields: dict[str, Any] = {
            "runtime": job.runtime,
            "function_id": job.function_id,
            "digest": tree.digest,
            "memory_mb": job.memory_mb,
            "cpus": self._settings.cpus_for(job.memory_mb),
            "most_cpus": self._settings.most_cpus_for(job.memory_mb),
            "tree": root,
            "tree_bytes": tree.disk_bytes,
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
            await self._wait_for_admission(binding, held)
            held.enter_context(self._trying(job, tree))
            acquired = await held.enter_async_context(self._parts.pool.acquire(binding))
            built = await execution.execute(acquired, request, spool)
            if built.error_type is not None or len(built.collected.files) != 1:
                files = await asyncio.to_thread(_files_below, binding.tree)
                raise self._build_failure(job.runtime, built, files)
            await asyncio.to_thread(shutil.move, built.collected.files[0].staged, into)

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

    def _build_failure(self, runtime: Runtime, built: Execution, files: Collection[str]) -> Rejected:
        settings = self._settings
        reasons = {
            ErrorType.TIMEOUT: _BUILD_TOO_LONG.format(seconds=settings.build_timeout_seconds),
            ErrorType.OUT_OF_MEMORY: _BUILD_TOO_LARGE.format(memory_mb=settings.build_memory_mb),
            ErrorType.DISK_LIMIT: _BUILD_DISK_FULL,
        }
        stream = built.collected.stderr if built.collected.stderr.text else built.collected.stdout
        said = stream.in_every_language()
        message = _COMPILER_REFUSED
        if built.error_type in reasons:
            message = reasons[built.error_type]
        elif built.error_type is None:
            message = _NO_PROGRAM_BUILT
        elif error := error_line.build_error(runtime, str(said)):
            message = Text.verbatim(error)
        certain = built.error_type in {None, ErrorType.USER_ERROR}
        hint = build_hint.build_hint(runtime, str(said), files) if certain else None
        return Rejected(ErrorType.BUILD_FAILED, message, hint=hint, stderr=said, certain=certain)

    # --- running

    async def _run(
        self, attempt: Attempt, binding: Binding, spool: Path, trying: AbstractContextManager[None]
    ) -> Ran:
        """One run in a slot and a container; both are free again when this returns."""
        async with AsyncExitStack() as held:
            with attempt.timed("acquire"):
                await self._wait_for_admission(binding, held)
                attempt.on_running()
                held.enter_context(trying)
                acquired = await held.enter_async_context(self._parts.pool.acquire(binding))
            with attempt.timed("start"):
                await acquired.container.session.ready()
            request = self._run_request(attempt.job, prepare_next=acquired.reuse)
            reached = self._reached(attempt, acquired, request, spool)
            ran = await execution.execute(
                acquired, request, spool, attempt.control, reached, language=attempt.job.runtime
            )
            attempt.timings.run = round(ran.wall_ms, 3)
            return Ran(ran, acquired.start, acquired.isolation)

    async def _wait_for_admission(self, binding: Binding, held: AsyncExitStack) -> None:
        """Wait for room, but not for ever: a large job at the head of the line keeps the others waiting."""
        admission = self._parts.admission
        # A job whose code does not fit beside the largest job gets the whole worker.
        needed_mb = min(binding.needed_mb, admission.total.memory_mb)
        reserved = admission.reserve(needed_mb, binding.cpus, binding.function_id)
        if admission.free_for(needed_mb, binding.cpus, binding.function_id):
            await held.enter_async_context(reserved)
            return
        try:
            async with asyncio.timeout(_ADMISSION_TIMEOUT_S):
                await held.enter_async_context(reserved)
        except TimeoutError as exc:
            raise ReturnToQueue(f"no room for this job within {_ADMISSION_TIMEOUT_S:.0f} s") from exc

    def _reached(
        self, attempt: Attempt, acquired: AcquiredContainer, request: RunRequest, spool: Path
    ) -> AbstractAsyncContextManager[None] | None:
        """What the run may reach, while it runs."""
        network, job = self._parts.network, attempt.job
        if network is None:
            return None
        if self._settings.ai_record == "store":
            attempt.ai_record = spool / _AI_RECORD
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
        return network.opened(acquired.container.listening_sockets, run)

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


@lru_cache(maxsize=1024)
def _find_root(tree: Path, entry: str) -> Path | None:
    """Call `entry_file.find_root` once per tree. A tree never changes, because its path has its digest."""
    return entry_file.find_root(tree, entry)


def entry_source(tree: CodeTree, runtime: Runtime) -> str:
    """The beginning of the entry file; empty where there is none. Reads the disk."""
    entry = RECIPES[runtime].entry
    root = _find_root(tree.path, entry)
    if root is None:
        return ""
    try:
        with (root / entry).open("rb") as file:
            return file.read(_MOST_SOURCE_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _files_below(tree: Path) -> list[str]:
    """Paths of the files, relative to the tree."""
    found = (Path(folder, name) for folder, _, names in os.walk(tree) for name in names)
    return [str(path.relative_to(tree)) for path in found]


def environment_of(job: Job) -> dict[str, str]:
    """Everything that the program finds in its environment. docs/contract.md, section 2."""
    environment = {
        "PATH": _PATH,
        "HOME": "/tmp",  # noqa: S108 - the container's own
        "USER": RUN_USER,
        "LOGNAME": RUN_USER,
        "LANG": "C.UTF-8",
        "JOB_ID": job.request_id,
        "FUNCTION_ID": job.function_id,
        "OUTPUT_DIR": OUTPUT_DIR,
        "PAYLOAD_FILE": PAYLOAD_FILE,
        "MEMORY_LIMIT_MB": str(job.memory_mb),
        "DEADLINE_MS": str(int(time.time() * 1000) + job.timeout_ms),
        "LLM_MODEL": job.model_id,
        "AI_ENDPOINT": gateway_address.URL,
        "OLLAMA_HOST": gateway_address.URL,
        # Other names of the same two settings, which frameworks read.
        "OLLAMA_BASE_URL": gateway_address.URL,
        "OLLAMA_API_BASE": gateway_address.URL,
        "OPENAI_BASE_URL": f"{gateway_address.URL}/v1",
        "OPENAI_API_BASE": f"{gateway_address.URL}/v1",
        "OPENAI_API_KEY": "unused",  # clients insist on one; real keys stay outside
    }
    if job.runtime is Runtime.GO:
        environment["GOMEMLIMIT"] = f"{job.memory_mb * MIB * _GO_MEMORY_PERCENT // 100}"
    if fits_variable(job.payload):
        environment["PAYLOAD"] = job.payload.decode(errors="surrogateescape")
    return environment
