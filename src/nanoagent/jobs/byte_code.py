"""Compiles the Python code of functions in the background, so that runs find their modules compiled.

A compilation begins after a run of code that has no byte code yet. It is a run with the purpose `compile`, in
a separate container, with the code and without input (docs/adr/0024-byte-code-once.md). Later jobs with the
same code find the byte code in the cache.

A compilation must not delay a job:

* It begins only if the budget and the pool have room for it at once. If not, a later run starts another one.
* It takes no container that is kept ready for jobs.
* It is cancelled when a job waits for room, and when the worker drains.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent.code import byte_code
from nanoagent.common.bounded_map import BoundedMap
from nanoagent.container import execution
from nanoagent.container.policy import Binding
from nanoagent.host.background import TaskName
from nanoagent.jobs import source
from nanoagent.jobs.acquisition import GRACE_MS, output_folder
from nanoagent.jobs.environment import PATH
from nanoagent.model.errors import PlatformError, Rejected, ReturnToQueue
from nanoagent.model.job import Runtime
from nanoagent.supervisor.wire import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nanoagent.code.byte_code import Room
    from nanoagent.code.byte_code_cache import ByteCodeCache
    from nanoagent.code.code_cache import CodeTree
    from nanoagent.config import Settings
    from nanoagent.container.pool import Pool
    from nanoagent.host.background import Background
    from nanoagent.jobs.admission import Admission

log = structlog.get_logger(__name__)

# The compilation of 1 MiB of code, the largest source, needs up to 250 MiB. The zip is in memory, too.
_MEMORY_MB: Final = 512
_TIMEOUT_MS: Final = 600_000  # no job waits for it; SymPy takes 10 s of CPU time, and jobs may leave little
_CAPTURE_BYTES: Final = 16 * 1024
_DELAY_S: Final = 0.5  # the result of the run is published first, and a burst of jobs gets all containers
_RETRY_S: Final = 600.0  # the pause after a failure
_MAX_REMEMBERED: Final = 4096
_MIN_ENTRIES: Final = 2  # a folder `__pycache__` and a file


class Compilation(StrEnum):
    """How a compilation has ended; the label `outcome` of its metric."""

    COMPILED = "compiled"
    NOTHING = "nothing"  # no source could be compiled, or the code has no room for byte code
    NO_ROOM = "no_room"  # jobs need the memory and the CPUs
    CANCELLED = "cancelled"  # a job waited for room, or the worker drains
    REFUSED = "refused"  # the byte code was not accepted
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ByteCodeFiles:
    """The byte code of a tree. It stays on disk until the exit stack of `ByteCode.of` is closed.

    Attributes:
        path: The pack with the files that are added to the code.
        memory_bytes: The memory that a copy takes at most, in whole pages.
    """

    path: Path
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteCodeParts:
    """The collaborators of `ByteCode`.

    Attributes:
        cache: Keeps byte code.
        staging: The folder for output files.
        background: Starts the compilations.
        observe: Called once for each compilation that begins, with its outcome.
        delay_s: The time from the end of a run to a compilation, seconds.
        clock: Returns monotonic seconds.
    """

    settings: Settings
    cache: ByteCodeCache
    admission: Admission
    pool: Pool
    staging: Path
    background: Background
    observe: Callable[[Compilation], None] = lambda _: None
    delay_s: float = _DELAY_S
    clock: Callable[[], float] | None = None


class ByteCode:
    """Finds byte code for jobs, and makes it in the background: one compilation at a time.

    Args:
        parts: The collaborators.
    """

    def __init__(self, parts: ByteCodeParts) -> None:
        self._parts = parts
        self._cache = parts.cache
        self._admission = parts.admission
        self._tasks: set[asyncio.Task[Any]] = set()
        self._yields_to_jobs = False
        self._is_stopped = False
        # Digest → when the next compilation may begin, in the loop's clock; infinite: nothing to compile.
        self._not_before: BoundedMap[str, float] = BoundedMap(_MAX_REMEMBERED)
        parts.admission.watch(self._give_way)

    # --- for jobs

    async def of(self, tree: CodeTree, resources: AsyncExitStack) -> ByteCodeFiles | None:
        """Return the byte code of a tree; None if there is none.

        Args:
            tree: The code.
            resources: Keeps the byte code on the disk until it is closed.

        Raises:
            StorageError: The disk failed.
        """
        if self._not_before.get(tree.digest) == math.inf:
            return None
        pin = await self._cache.pin(tree.digest)
        if pin is None:
            return None
        await resources.enter_async_context(self._cache.releasing(pin))
        return ByteCodeFiles(pin.content, pin.meta().memory_bytes)

    def compile_later(self, tree: CodeTree) -> None:
        """Compile a tree in the background, unless a compilation is under way or has just failed.

        Args:
            tree: Python code without byte code.
        """
        if self._is_stopped or self._tasks or self._now() < self._not_before.get(tree.digest, -math.inf):
            return
        self._parts.background.once(TaskName.BYTE_CODE_COMPILATION, self._compile(tree), self._tasks)

    # --- the end

    def stop(self) -> None:
        """Cancel the compilation under way, and begin no other one. Idempotent."""
        self._is_stopped = True
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Stop, and wait for the end of the compilation. Idempotent."""
        self.stop()
        await self.settled()

    async def settled(self) -> None:
        """Wait until no compilation is under way."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    # --- one compilation

    async def _compile(self, tree: CodeTree) -> None:
        outcome = Compilation.FAILED
        try:
            await asyncio.sleep(self._parts.delay_s)
            outcome = await self._compile_pinned(tree)
        except asyncio.CancelledError:
            outcome = Compilation.CANCELLED
            raise
        except ReturnToQueue:  # no containers can be made now
            outcome = Compilation.NO_ROOM
        except Rejected as exc:
            outcome = Compilation.REFUSED
            log.warning("byte code refused", digest=tree.digest, reason=str(exc))
        except PlatformError as exc:
            log.warning("byte code not compiled", digest=tree.digest, reason=str(exc))
        finally:
            self._note(tree, outcome)

    def _note(self, tree: CodeTree, outcome: Compilation) -> None:
        self._parts.observe(outcome)
        if outcome is Compilation.NOTHING:
            self._not_before[tree.digest] = math.inf
        elif outcome in {Compilation.FAILED, Compilation.REFUSED}:
            self._not_before[tree.digest] = self._now() + _RETRY_S
        log.debug("compilation ended", digest=tree.digest, outcome=str(outcome))

    async def _compile_pinned(self, tree: CodeTree) -> Compilation:
        """Compile a tree that stays on the disk meanwhile."""
        pin = await self._cache.pin_code(tree.digest)
        if pin is None:  # evicted, or the tree of a self-test
            return Compilation.NO_ROOM
        async with self._cache.releasing(pin):
            if not source.has_entry(tree, Runtime.PYTHON):
                return Compilation.NOTHING
            code, room = await self._cache.survey(tree.path)
            if not code.sources or room.entries < _MIN_ENTRIES or room.bytes <= 0:
                return Compilation.NOTHING
            async with AsyncExitStack() as resources:
                folder = resources.enter_context(output_folder(self._parts.staging))
                ended = await self._run(self._binding(tree), room, folder)
                if ended is None:
                    return Compilation.NO_ROOM
                return await self._adopt(tree, room, ended)

    async def _run(self, binding: Binding, room: Room, folder: Path) -> execution.Execution | None:
        """Run the compiler in a new container. Return None if jobs need the room."""
        admission, pool = self._admission, self._parts.pool
        memory_mb = min(binding.needed_mb, admission.total.memory_mb)
        if not admission.free_for(memory_mb, binding.cpus) or not pool.has_room_for(binding):
            return None
        async with admission.reserve(memory_mb, binding.cpus):
            self._yields_to_jobs = True
            try:
                async with pool.acquire(binding) as acquired:
                    return await execution.execute(acquired, self._request(room), folder)
            finally:
                self._yields_to_jobs = False

    async def _adopt(self, tree: CodeTree, room: Room, ended: execution.Execution) -> Compilation:
        """Check the byte code that a compilation has written, and keep it."""
        files = ended.collected.files
        if ended.error_type is not None or ended.collected.refused or len(files) > 1:
            log.warning(
                "byte code not compiled",
                digest=tree.digest,
                reason=str(ended.message or "unexpected output files"),
                stderr=str(ended.collected.stderr.in_every_language()),
            )
            return Compilation.FAILED
        if not files:
            return Compilation.NOTHING
        await self._cache.add(tree.digest, tree.path, room, files[0].staged)
        log.info("byte code compiled", digest=tree.digest, ms=round(ended.wall_ms))
        return Compilation.COMPILED

    def _binding(self, tree: CodeTree) -> Binding:
        settings = self._parts.settings
        return Binding(
            runtime=Runtime.PYTHON,
            function_id="",  # the byte code serves all functions with this code
            digest=tree.digest,
            memory_mb=min(_MEMORY_MB, settings.build_memory_mb),
            # Under contention the smallest share of a job; the compiler has one thread.
            cpus=min(settings.cpu_min, settings.worker_cpus),
            most_cpus=min(1.0, settings.worker_cpus),
            tree=tree.path,
            tree_bytes=tree.memory_bytes,
            purpose="compile",
        )

    def _request(self, room: Room) -> RunRequest:
        settings = self._parts.settings
        most_bytes = byte_code.most_zip_bytes(room)
        return RunRequest(
            arguments=(*_COMMAND, _script(), str(room.bytes), str(room.entries)),
            environment={"PATH": PATH, "HOME": "/tmp", "LANG": "C.UTF-8"},  # noqa: S108 - in the container
            payload=b"",
            timeout_ms=_TIMEOUT_MS,
            grace_ms=GRACE_MS,
            capture_bytes=_CAPTURE_BYTES,
            file_size_bytes=most_bytes,
            open_files=settings.max_open_files,
            output_max_files=1,
            output_max_file_bytes=most_bytes,
            output_max_total_bytes=most_bytes,
            prepare_next=False,
        )

    # --- other

    def _give_way(self) -> None:
        """Cancel the compilation if it holds room that a job waits for."""
        if self._yields_to_jobs and self._admission.waiting_for_room:
            self._yields_to_jobs = False
            for task in self._tasks:
                task.cancel()

    def _now(self) -> float:
        return (self._parts.clock or asyncio.get_running_loop().time)()


# Isolated: no variables, no working directory on sys.path, no packages besides the standard library.
_COMMAND: Final = ("/usr/bin/python3", "-I", "-S", "-B", "-c")


def _script() -> str:
    """Return the program that compiles the code, in the container."""
    return resources.files("nanoagent.languages").joinpath("compile_python.py").read_text("utf-8")
