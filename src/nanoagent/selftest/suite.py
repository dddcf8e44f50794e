"""One self-test of one runtime: canaries that try the guards, run as jobs are run."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING, Final

from nanoagent.code.cache import CodeTree
from nanoagent.jobs.failures import Failures
from nanoagent.jobs.runner import Attempt, Runner, environment_of
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.errors import PlatformError, Rejected, ReturnToQueue
from nanoagent.model.job import Job, Runtime
from nanoagent.selftest import guards
from nanoagent.selftest.guards import Guard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from nanoagent.container.execution import Execution
    from nanoagent.jobs.runner import RunnerParts
    from nanoagent.model.result import Isolation
    from nanoagent.selftest.guards import Step

FUNCTION_ID: Final = "nanoagent-selftest"
_TIMEOUT_MS: Final = 30_000
_ANSWERS_BYTES: Final = 64 * 1024  # a setting for users' output must not cut the canary's
# CPython sets it for itself where the C locale is asked for; it is no channel.
_INTERPRETERS_OWN: Final = frozenset({"LC_CTYPE"})


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a guard stands for a runtime.

    Attributes:
        guard: Which.
        runtime: Whose.
        tried: How many things were tried on it.
        problem: What has got through, None when nothing has.
    """

    guard: Guard
    runtime: Runtime
    tried: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Attacked:
    """What came of attacking one runtime.

    Attributes:
        runtime: Which.
        findings: One for each guard; empty when nothing could be tried.
        reason: Why nothing could be tried.
        seconds: How long it took.
    """

    runtime: Runtime
    findings: list[Finding]
    reason: str | None
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every guard was tried and stands."""
        return self.reason is None and not any(finding.problem for finding in self.findings)


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What came of attacking all runtimes.

    Attributes:
        isolation: What stood between one run and the next.
        attacked: One for each runtime.
    """

    isolation: Isolation
    attacked: list[Attacked]

    @property
    def ok(self) -> bool:
        """Whether every guard of every runtime was tried and stands."""
        return all(each.ok for each in self.attacked)


class Suite:
    """Attacks a runtime.

    Args:
        parts: Those of the runner that jobs go through.
        folder: For the canaries' code, as the cache holds that of functions.

    Raises:
        ConfigError: The suite does not know this machine.
    """

    def __init__(self, parts: RunnerParts, folder: Path) -> None:
        guards.check_machine()
        room = max(parts.settings.max_output_bytes, _ANSWERS_BYTES)
        self._settings = parts.settings.model_copy(update={"max_output_bytes": room})
        # What it finds is for it to judge: nothing is kept from it, and nothing of it from others.
        self._runner = Runner(replace(parts, settings=self._settings, failures=Failures()))
        self._folder = folder

    async def attack(self, runtime: Runtime) -> list[Finding]:
        """Try every guard of a runtime.

        Returns:
            One finding for each guard, in the order of `Guard`.

        Raises:
            PlatformError: It could not be tried: nothing is known.
        """
        tree = await asyncio.to_thread(self._tree, runtime)
        findings = await self._try_walls(runtime, tree)
        for ending in guards.endings(self._settings):
            timeout_ms = ending.timeout_ms or _TIMEOUT_MS
            ran = await self._run(runtime, tree, (f"end {ending.how}",), timeout_ms)
            problem = None
            if ran.error_type not in ending.expected:
                wanted = " or ".join(sorted(ending.expected))
                problem = f"the run ended as {ran.error_type or 'SUCCESS'}, not {wanted}"
            findings.append(Finding(ending.guard, runtime, 1, problem))
        return sorted(findings, key=lambda finding: list(Guard).index(finding.guard))

    def _tree(self, runtime: Runtime) -> CodeTree:
        """The canary's code, as an unpacked zip's."""
        entry = RECIPES[runtime].entry
        code = resources.files(__package__).joinpath("programs", runtime, entry).read_bytes()
        path = self._folder / runtime
        try:
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o755)
            file = path / entry
            file.unlink(missing_ok=True)
            file.write_bytes(code)
            file.chmod(0o444)
        except OSError as exc:
            raise PlatformError(f"the canary could not be put on the disk: {exc}") from exc
        return CodeTree(hashlib.sha256(code).hexdigest(), path, bytes=len(code), disk_bytes=len(code))

    async def _try_walls(self, runtime: Runtime, tree: CodeTree) -> list[Finding]:
        """A run that leaves something, and one that looks for it and tries all that does not end it."""
        left = await self._run(runtime, tree, guards.LEFT)
        _expect_answers(left, len(guards.LEFT))
        async with _listener() as port:
            job = self._job(runtime, b"", _TIMEOUT_MS)
            allowed = environment_of(job).keys() | _INTERPRETERS_OWN
            steps = guards.steps(self._settings, port, allowed)
            ran = await self._run(runtime, tree, [step.line for step in steps])
        problems = _judge(steps, ran)
        tried = [step.guard for step in steps]
        return [
            Finding(guard, runtime, tried.count(guard), problems.get(guard))
            for guard in Guard
            if guard in tried
        ]

    def _job(self, runtime: Runtime, payload: bytes, timeout_ms: int) -> Job:
        defaults = self._settings.job_defaults
        return Job(
            request_id=f"selftest-{secrets.token_hex(8)}",
            function_id=FUNCTION_ID,
            runtime=runtime,
            s3_bucket=defaults.s3_bucket,
            s3_key="",
            memory_mb=guards.memory_mb(self._settings),
            timeout_ms=timeout_ms,
            payload=payload,
            model_id=defaults.model_id,
        )

    async def _run(
        self, runtime: Runtime, tree: CodeTree, lines: Sequence[str], timeout_ms: int = _TIMEOUT_MS
    ) -> Execution:
        job = self._job(runtime, "\n".join(lines).encode(), timeout_ms)
        async with AsyncExitStack() as held:
            try:
                done = await self._runner.run(Attempt(job, 1), tree, held)
            except Rejected as exc:
                said = str(exc.stderr).strip().splitlines()
                raise PlatformError(f"the canary could not be built: {exc} {said[:1]}") from exc
            return done.execution


def _judge(steps: Sequence[Step], ran: Execution) -> dict[Guard, str]:
    """What got through, the first of each guard."""
    answers = ran.collected.stdout.text.rstrip("\n").split("\n")
    problems: dict[Guard, str] = {}
    for step, answer in zip(steps, answers, strict=False):
        if (problem := step.problem(answer)) is not None:
            problems.setdefault(step.guard, f"{step.line}: {problem}")
    if len(answers) < len(steps):
        # The last thing that was asked has ended the run, or worse.
        silent = steps[len(answers)]
        problems.setdefault(silent.guard, f"{silent.line}: the run ended ({ran.message or 'in silence'})")
    elif ran.error_type is not None:
        problems.setdefault(Guard.SUPERVISOR, f"the run ended as {ran.error_type}: {ran.message}")
    link = guards.OUTPUT_LINK.rpartition("/")[2]
    if any(file.path == link for file in ran.collected.files):
        problems[Guard.OUTPUT_LINKS] = "a link was collected as an output file"
    return problems


def _expect_answers(ran: Execution, count: int) -> None:
    answers = ran.collected.stdout.text.rstrip("\n").split("\n")
    if ran.error_type is not None or len(answers) != count:
        raise PlatformError(f"the canary did not come to its work: {ran.message or answers}")


@asynccontextmanager
async def _listener() -> AsyncIterator[int]:
    """The port of somebody who listens on the host's loopback, and whom no run may reach.

    Whether one has is the canary's to say: any user of the host can call here, and would stop all jobs.
    """
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def attack_all(suite: Suite) -> list[Attacked]:
    """Attack every runtime, all at once."""

    async def attack(runtime: Runtime) -> Attacked:
        begun = time.perf_counter()
        findings: list[Finding] = []
        reason = None
        try:
            findings = await suite.attack(runtime)
        except (PlatformError, ReturnToQueue) as exc:
            reason = str(exc)
        return Attacked(runtime, findings, reason, time.perf_counter() - begun)

    return await asyncio.gather(*map(attack, Runtime))
