"""Settings, jobs and collaborators for tests of the worker and the executor."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nanoagent.config import Settings
from nanoagent.container.pool import AcquiredContainer
from nanoagent.model import result as results
from nanoagent.model.job import Job, Runtime
from nanoagent.model.result import ErrorType, Result, Start
from nanoagent.supervisor.wire import ImportsState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nanoagent.container.base import RunningContainer
    from nanoagent.container.policy import Binding
    from nanoagent.jobs.admission import Admission
    from nanoagent.jobs.attempt import Attempt
    from nanoagent.model.errors import PlatformError

DEADLINE_S = 30  # only a hang takes this long


def make_settings(**changes: Any) -> Settings:
    """Return the settings of a small worker with room for two jobs of the default size."""
    fields: dict[str, Any] = {
        "sqs_queue_url": "http://127.0.0.1:9/queue",
        "s3_code_bucket": "code",
        "s3_user_data_bucket": "data",
        "worker_id": "worker-1",
        "worker_memory_mb": 1024,
        "worker_cpus": 1.0,
        "build_memory_mb": 512,
        "retry_base_seconds": 0.001,
        "retry_max_seconds": 0.004,
        "function_max_share": 1.0,  # most tests have one function
        "locale": "en",
        "docker_work_dir_root": Path("/tmp/tasks"),
    }
    return Settings(_env_file=None, **(fields | changes))  # type: ignore[call-arg]


def message(request_id: str = "r1", **fields: Any) -> str:
    """Return a job as a message body."""
    return json.dumps({"requestId": request_id, "functionId": "f", "s3Key": "f.zip", **fields})


def make_job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "request_id": "r1",
        "function_id": "f",
        "runtime": Runtime.PYTHON,
        "s3_bucket": "code",
        "s3_key": "f.zip",
        "memory_mb": 128,
        "timeout_ms": 1000,
        "payload": b"{}",
        "model_id": "llama3:8b",
    }
    return Job(**(fields | changes))


class Journal:
    """Records events in order, and waits for them."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    def note(self, what: str, which: str = "") -> None:
        self.entries.append((what, which))
        self._changed.set()

    def of(self, *kinds: str) -> list[tuple[str, str]]:
        return [entry for entry in self.entries if entry[0] in kinds]

    def count(self, *kinds: str) -> int:
        return len(self.of(*kinds))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition is true. It is checked after each recorded event."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_noted(self, what: str, which: str | None = None, *, times: int = 1) -> None:
        def noted() -> bool:
            return sum(entry[1] == which or which is None for entry in self.of(what)) >= times

        await self.until(noted)


class ScriptedExecutor:
    """An executor that runs functions of the test instead of jobs.

    Args:
        admission: The budget of the default script.
        journal: Records `execute` with the request ID.

    Attributes:
        scripts: Request ID → the function that runs for it. Other requests reserve a part of the budget and
            succeed.
    """

    def __init__(self, admission: Admission, journal: Journal) -> None:
        self.scripts: dict[str, Callable[[Attempt], Awaitable[Result]]] = {}
        self._admission = admission
        self._journal = journal

    async def execute(self, attempt: Attempt) -> Result:
        self._journal.note("execute", attempt.job.request_id)
        return await self.scripts.get(attempt.job.request_id, self.succeed)(attempt)

    async def succeed(self, attempt: Attempt) -> Result:
        async with self.running(attempt):
            return finished(attempt)

    @asynccontextmanager
    async def running(self, attempt: Attempt) -> AsyncIterator[None]:
        """Reserve the smallest part of the budget, as a run does."""
        async with self._admission.reserve(128, 0.5, attempt.job.function_id):
            attempt.on_running()
            self._journal.note("running", attempt.job.request_id)
            yield
        self._journal.note("slot free", attempt.job.request_id)

    def cancelled(self, attempt: Attempt) -> Result:
        return finished(attempt, ErrorType.CANCELLED, "the job was called off")

    def failed(self, attempt: Attempt, failure: PlatformError) -> Result:
        return finished(attempt, ErrorType.PLATFORM, str(failure))


def finished(attempt: Attempt, error_type: ErrorType | None = None, error: str | None = None) -> Result:
    """Return the executor's result of a run of 50 ms that used 1 MiB."""
    job = attempt.job
    started = error_type is None
    return Result(
        request_id=job.request_id,
        function_id=job.function_id,
        runtime=job.runtime,
        status=results.status_of(error_type),
        exit_code=results.OUTCOMES[error_type].exit_codes.value[0],
        error_type=error_type,
        error_message=error,
        start=Start.WARM if started else None,
        duration_ms=50 if started else 0,
        peak_memory_bytes=1024 * 1024 if started else None,
        attempt=attempt.number,
    )


class FakeSession:
    """A supervisor that is always ready."""

    connected = True

    async def ready(self) -> None:
        pass


class FakeContainer:
    session = FakeSession()
    group = None
    imports = ImportsState.OFF


class FakePool:
    """Returns a container that does nothing. The test patches the runs in it.

    Attributes:
        bindings: The requested bindings, in order.
        unavailable_reason: The value of `Pool.unavailable_reason`.
        failure: Raised by `acquire`.
        out: The number of containers that are acquired now.
    """

    def __init__(self) -> None:
        self.bindings: list[Binding] = []
        self.unavailable_reason: str | None = None
        self.failure: PlatformError | None = None
        self.out = 0

    @asynccontextmanager
    async def acquire(self, binding: Binding) -> AsyncIterator[AcquiredContainer]:
        if self.failure is not None:
            raise self.failure
        self.bindings.append(binding)
        self.out += 1
        try:
            yield AcquiredContainer(
                cast("RunningContainer", FakeContainer()), Start.WARM, reuse=binding.purpose == "run"
            )
        finally:
            self.out -= 1
