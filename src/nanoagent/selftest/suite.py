"""The self-test of one runtime: runs its programs in the same way as jobs, and judges their answers."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING, Final

from nanoagent.code import pack
from nanoagent.code.code_cache import CodeTree
from nanoagent.jobs.attempt import Attempt
from nanoagent.jobs.environment import environment_of
from nanoagent.jobs.failure_cache import FailureCache
from nanoagent.jobs.runner import Runner
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.errors import PlatformError, Rejected, ReturnToQueue
from nanoagent.model.job import Job, Runtime
from nanoagent.selftest import checks
from nanoagent.selftest.checks import IsolationCheck

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from nanoagent.container.execution import Execution
    from nanoagent.jobs.parts import RunnerParts
    from nanoagent.model.result import Isolation
    from nanoagent.selftest.checks import LimitTest, Operation

FUNCTION_ID: Final = "nanoagent-selftest"
_TIMEOUT_MS: Final = 30_000
_ANSWERS_BYTES: Final = 64 * 1024  # a low MAX_OUTPUT_BYTES must not cut the answers
# CPython sets this variable itself in the C locale (PEP 538). It carries nothing from the worker.
_SET_BY_INTERPRETERS: Final = frozenset({"LC_CTYPE"})


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one isolation check on one runtime.

    Attributes:
        check: The isolation check.
        runtime: The runtime.
        tried: How many operations were attempted.
        problem: The first failure; None if the check passed.
    """

    check: IsolationCheck
    runtime: Runtime
    tried: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class RuntimeResult:
    """The result of a self-test of one runtime.

    Attributes:
        runtime: The runtime.
        results: One result for each isolation check; empty if the self-test could not run.
        reason: Why the self-test could not run; None if it ran.
        seconds: How long the self-test took.
    """

    runtime: Runtime
    results: list[CheckResult]
    reason: str | None
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the self-test ran, and every isolation check passed."""
        return self.reason is None and not any(result.problem for result in self.results)


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """The result of a self-test of all runtimes.

    Attributes:
        isolation: The isolation level of the runs.
        runtimes: One result for each runtime.
    """

    isolation: Isolation
    runtimes: list[RuntimeResult]

    @property
    def ok(self) -> bool:
        """Whether every runtime passed."""
        return all(each.ok for each in self.runtimes)


class Suite:
    """Runs all isolation checks on a runtime.

    Args:
        parts: The parts of the runner that jobs use.
        folder: The folder for the programs' code. The suite creates a folder in it for each runtime.

    Raises:
        ConfigError: The suite does not know the system calls of this machine.
    """

    def __init__(self, parts: RunnerParts, folder: Path) -> None:
        checks.check_machine()
        output_bytes = max(parts.settings.max_output_bytes, _ANSWERS_BYTES)
        self._settings = parts.settings.model_copy(update={"max_output_bytes": output_bytes})
        # A separate failure cache: the self-test and the jobs must not see each other's failures. Its code is
        # not compiled.
        self._runner = Runner(
            replace(parts, settings=self._settings, failures=FailureCache(), byte_code=None)
        )
        self._folder = folder

    async def run(self, runtime: Runtime) -> list[CheckResult]:
        """Run all isolation checks on a runtime.

        Returns:
            One result for each isolation check, in the order of `IsolationCheck`.

        Raises:
            PlatformError: The programs could not run. The isolation was not tested.
            ReturnToQueue: There was no room, or no container. The isolation was not tested.
        """
        tree = await asyncio.to_thread(self._tree, runtime)
        results = await self._run_operations(runtime, tree)
        results += [
            await self._run_limit_test(runtime, tree, test) for test in checks.limit_tests(self._settings)
        ]
        return sorted(results, key=lambda result: list(IsolationCheck).index(result.check))

    def _tree(self, runtime: Runtime) -> CodeTree:
        """Write the program's code to the disk, as the code cache would unpack it from a zip."""
        entry = RECIPES[runtime].entry
        code = resources.files(__package__).joinpath("programs", runtime, entry).read_bytes()
        path = self._folder / runtime
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            size = pack.write_file(path, entry, code)
        except OSError as exc:
            raise PlatformError(f"the self-test program could not be written to {path}: {exc}") from exc
        digest = hashlib.sha256(code).hexdigest()
        return CodeTree(digest, path, bytes=size.bytes, memory_bytes=size.memory_bytes)

    async def _run_operations(self, runtime: Runtime, tree: CodeTree) -> list[CheckResult]:
        """Run the program twice: first to leave traces, then to look for them and attempt all operations."""
        first = await self._run(runtime, tree, checks.LEAVE_TRACES)
        _expect_answers(first, len(checks.LEAVE_TRACES))
        async with _listener() as port:
            job = self._job(runtime, b"", _TIMEOUT_MS)
            allowed = environment_of(job).keys() | _SET_BY_INTERPRETERS
            operations = checks.operations(self._settings, port, allowed)
            second = await self._run(runtime, tree, [operation.line for operation in operations])
        problems = _problems(operations, second)
        tried = [operation.check for operation in operations]
        return [
            CheckResult(check, runtime, tried.count(check), problems.get(check))
            for check in IsolationCheck
            if check in tried
        ]

    async def _run_limit_test(self, runtime: Runtime, tree: CodeTree, test: LimitTest) -> CheckResult:
        ran = await self._run(runtime, tree, (f"end {test.limit}",), test.timeout_ms or _TIMEOUT_MS)
        problem = None
        if ran.error_type not in test.expected:
            expected = " or ".join(sorted(test.expected))
            problem = f"the run ended as {ran.error_type or 'SUCCESS'}, expected {expected}"
        return CheckResult(test.check, runtime, 1, problem)

    def _job(self, runtime: Runtime, payload: bytes, timeout_ms: int) -> Job:
        defaults = self._settings.job_defaults
        return Job(
            request_id=f"selftest-{secrets.token_hex(8)}",
            function_id=FUNCTION_ID,
            runtime=runtime,
            s3_bucket=defaults.s3_bucket,
            s3_key="",
            memory_mb=checks.memory_mb(self._settings),
            timeout_ms=timeout_ms,
            payload=payload,
            model_id=defaults.model_id,
        )

    async def _run(
        self, runtime: Runtime, tree: CodeTree, lines: Sequence[str], timeout_ms: int = _TIMEOUT_MS
    ) -> Execution:
        job = self._job(runtime, "\n".join(lines).encode(), timeout_ms)
        async with AsyncExitStack() as run_resources:
            try:
                done = await self._runner.run(Attempt(job, 1), tree, run_resources)
            except Rejected as exc:
                messages = str(exc.stderr).strip().splitlines()
                raise PlatformError(
                    f"the self-test program could not be built: {exc} {messages[:1]}"
                ) from exc
            return done.execution


def _problems(operations: Sequence[Operation], ran: Execution) -> dict[IsolationCheck, str]:
    """Judge the answers of a run. Return the first problem of each isolation check that failed."""
    answers = ran.collected.stdout.text.rstrip("\n").split("\n")
    problems: dict[IsolationCheck, str] = {}
    for operation, answer in zip(operations, answers, strict=False):
        if (problem := operation.problem(answer)) is not None:
            problems.setdefault(operation.check, f"{operation.line}: {problem}")
    if len(answers) < len(operations):  # the first operation without an answer ended the run
        fatal = operations[len(answers)]
        ending = ran.message or "without an error message"
        problems.setdefault(fatal.check, f"{fatal.line}: the run ended ({ending})")
    elif ran.error_type is not None:
        problems.setdefault(IsolationCheck.SUPERVISOR, f"the run ended as {ran.error_type}: {ran.message}")
    link = checks.OUTPUT_LINK.rpartition("/")[2]
    if any(file.path == link for file in ran.collected.files):
        problems[IsolationCheck.OUTPUT_LINKS] = "a link was collected as an output file"
    return problems


def _expect_answers(ran: Execution, count: int) -> None:
    answers = ran.collected.stdout.text.rstrip("\n").split("\n")
    if ran.error_type is not None or len(answers) != count:
        raise PlatformError(f"the self-test program did not complete: {ran.message or answers}")


@asynccontextmanager
async def _listener() -> AsyncIterator[int]:
    """Listen on a port of the host's loopback, to which no run may connect. Yield the port.

    Whether the program has connected is judged only by the program's answer. The listener itself ignores
    connections: otherwise any user of the host could connect here, and so block all runtimes.
    """
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def run_all(suite: Suite) -> list[RuntimeResult]:
    """Test all runtimes at the same time. A failure to run becomes the runtime's `reason`."""

    async def run(runtime: Runtime) -> RuntimeResult:
        started_at = time.perf_counter()
        results: list[CheckResult] = []
        reason = None
        try:
            results = await suite.run(runtime)
        except (PlatformError, ReturnToQueue) as exc:
            reason = str(exc)
        return RuntimeResult(runtime, results, reason, time.perf_counter() - started_at)

    return await asyncio.gather(*map(run, Runtime))
