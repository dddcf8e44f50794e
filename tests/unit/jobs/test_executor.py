from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from nanoagent.code import pack
from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.code_cache import CodeCache
from nanoagent.code.pack import Pack
from nanoagent.code.program_cache import ProgramCache
from nanoagent.common.units import MIB
from nanoagent.config.secret_rules import parse_rules
from nanoagent.container import execution
from nanoagent.container.cgroup import MemoryUse
from nanoagent.container.execution import Execution
from nanoagent.container.policy import Owner, OwnerSource
from nanoagent.jobs.admission import Admission
from nanoagent.jobs.admission_rules import Budget
from nanoagent.jobs.attempt import Attempt
from nanoagent.jobs.environment import environment_of
from nanoagent.jobs.executor import Executor, ExecutorParts
from nanoagent.jobs.failure_cache import FailureCache
from nanoagent.jobs.outputs import OutputUploader
from nanoagent.jobs.parts import RunnerParts
from nanoagent.jobs.runner import Runner
from nanoagent.jobs.tuner import Prices, Tuner
from nanoagent.model.errors import (
    BrokerError,
    ContainerError,
    ContainerNotMade,
    CrashLoop,
    PlatformError,
    ProtocolError,
    ResultStoreError,
    ReturnToQueue,
    StorageError,
)
from nanoagent.model.job import NetworkPolicy, Reuse, Runtime
from nanoagent.model.result import ErrorType, Isolation, OutputError, Refusal, Result, Start, Status
from nanoagent.model.secret import SecretReference, SecretService
from nanoagent.model.text import Locale, Text
from nanoagent.secrets.cache import SecretCache
from nanoagent.secrets.memory import InMemorySecretStore
from nanoagent.secrets.resolver import SecretResolver
from nanoagent.storage.folder import FolderStore
from nanoagent.supervisor import wire
from nanoagent.supervisor.output import Captured, Collected, OutputFile
from nanoagent.supervisor.wire import ImportsState
from nanoagent.telemetry.metrics import Metrics
from support.checks.zips import make_zip
from support.doubles.fakes import DEADLINE_S, FakeContainer, FakePool, make_job, make_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from nanoagent.container.pool import AcquiredContainer, Pool
    from nanoagent.model.job import Job
    from nanoagent.supervisor.wire import RunRequest

    Run = Callable[[AcquiredContainer, RunRequest, Path], Awaitable[Execution]]

HANGUL = re.compile("[가-힣]")
LIMITS = ArchiveLimits(zip_bytes=MIB, unpacked_bytes=MIB, file_bytes=MIB, entries=100)
CODE = {
    Runtime.PYTHON: {"main.py": "print(1)"},
    Runtime.NODEJS: {"index.js": "console.log(1)"},
    Runtime.CPP: {"main.cpp": "int main() {}"},
    Runtime.GO: {"main.go": "package main"},
}


def ended(
    error_type: ErrorType | None = None, message: str | None = None, *, code: int = 0, **collected: Any
) -> Execution:
    use = MemoryUse(peak_bytes=10 * MIB, oom_kills=0, refused_processes=0)
    said = None if message is None else Text.verbatim(message)
    return Execution(error_type, said, code, 12.5, use, Collected(**collected))


class Rig:
    """An executor with real caches over a folder store; what happens in containers is played."""

    def __init__(self, folder: Path, changes: dict[str, Any]) -> None:
        self.folder = folder
        self.store = FolderStore(folder / "store", "https://s3.ap-northeast-2.amazonaws.com")
        for bucket in ("code", "data"):
            (folder / "store" / bucket).mkdir(parents=True)
        self.settings = make_settings(**changes)
        self.admission = Admission(
            self.settings.worker_memory_mb, self.settings.worker_cpus, self.settings.function_max_share
        )
        self.pool = FakePool()
        self.staging = folder / "staging"
        self.staging.mkdir()
        self.runs: list[RunRequest] = []
        self.plays: list[Run] = []
        self.used_mb: list[int] = []
        self.failures = FailureCache.for_seconds(self.settings.failure_memory_seconds)
        self.remembered: list[str] = []
        self.secrets = SecretResolver()

    def put(self, files: dict[str, str], key: str = "f.zip") -> None:
        self.store.path("code", key).write_bytes(make_zip(files))

    async def execute_in_container(
        self, acquired: AcquiredContainer, request: RunRequest, staging: Path, *_: object, **__: object
    ) -> Execution:
        """Instead of `execution.execute`: the next play, or a build or run that succeeds."""
        self.runs.append(request)
        self.used_mb.append(self.admission.used.memory_mb)
        if self.plays:
            return await self.plays.pop(0)(acquired, request, staging)
        acquired.clean = True
        if is_build(request):
            return built(staging)
        return ended(stdout=Captured("1\n"))

    def play(self, result: Execution | Exception) -> None:
        """What comes of the next container's run."""

        async def play(_acquired: AcquiredContainer, _request: RunRequest, _spool: Path) -> Execution:
            if isinstance(result, Exception):
                raise result
            return result

        self.plays.append(play)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Rig]:
        code = CodeCache(self.folder / "cache/code", self.store, LIMITS, 64 * MIB)
        programs = self.programs = ProgramCache(self.folder / "cache/programs", 64 * MIB)
        settings = self.settings
        prices = Prices(
            settings.price_per_gb_second, settings.price_per_request, "USD", settings.savings_runs
        )
        async with AsyncExitStack() as opened:
            for cache in (code, programs):
                await cache.start()
                opened.push_async_callback(cache.close)
            runner = Runner(
                RunnerParts(
                    settings=settings,
                    programs=programs,
                    admission=self.admission,
                    pool=cast("Pool", self.pool),
                    image_ids={runtime: f"sha256:{runtime}" for runtime in Runtime},
                    staging=self.staging,
                    failures=self.failures,
                )
            )
            self.executor = Executor(
                ExecutorParts(
                    settings=settings,
                    code=code,
                    runner=runner,
                    outputs=OutputUploader(self.store, settings, Metrics()),
                    tuner=Tuner(prices, settings.largest_job_mb),
                    secrets=self.secrets,
                    on_cached_failure=self.remembered.append,
                )
            )
            yield self

    async def run(self, job: Job | None = None, **attempt: Any) -> Result:
        async with asyncio.timeout(DEADLINE_S):
            return await self.executor.execute(attempt_at(job or make_job(), **attempt))


def attempt_at(job: Job, **attempt: Any) -> Attempt:
    fields: dict[str, Any] = {"job": job, "number": 1, "queue_ms": 0}
    return Attempt(**(fields | attempt))


def is_build(request: RunRequest) -> bool:
    return request.arguments[0].startswith("/nanosupervisor/build-")


def built(staging: Path) -> Execution:
    staging.mkdir()
    program = staging / "0"
    program.write_bytes(b"\x7fELF")
    return ended(files=[OutputFile("program", program, 4)])


@pytest.fixture
async def make_rig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Awaitable[Rig]]]:
    async with AsyncExitStack() as opened:

        async def make(**changes: Any) -> Rig:
            rig = Rig(tmp_path, changes)
            monkeypatch.setattr(execution, "execute", rig.execute_in_container)
            return await opened.enter_async_context(rig.open())

        yield make


@pytest.fixture
async def rig(make_rig: Callable[..., Awaitable[Rig]]) -> Rig:
    return await make_rig()


# --- a run that ends well


async def test_a_run_is_reported_whole(rig: Rig):
    rig.put(CODE[Runtime.PYTHON])
    rig.play(
        ended(
            stdout=Captured("out", 7, "end"),
            stderr=Captured("err", 9),
            refused=[Refusal("link", Text("is a link", "링크입니다"))],
        )
    )
    result = await rig.run(make_job(function_id="fn", memory_mb=256), number=3, queue_ms=4.5678)
    assert (result.request_id, result.function_id, result.runtime) == ("r1", "fn", "python")
    assert (result.status, result.error_type, result.exit_code) == (Status.SUCCESS, None, 0)
    assert (result.stdout, result.stdout_truncated_bytes) == ("out\n… 7 bytes cut …\nend", 7)
    assert (result.stderr, result.stderr_truncated_bytes) == ("err\n… 9 bytes cut …\n", 9)
    assert (result.duration_ms, result.peak_memory_bytes) == (12, 10 * MIB)
    assert (result.start, result.isolation) == (Start.WARM, Isolation.SHARED)
    assert (result.worker_id, result.attempt) == ("worker-1", 3)
    assert result.output_errors == [OutputError("link", "is a link")]
    assert result.hint is None
    assert result.error_message is None
    assert result.tuning is not None
    assert result.optimization_tip is not None
    assert result.timings.queue == 4.568


async def test_every_phase_that_happened_is_timed_and_no_other(rig: Rig):
    rig.put(CODE[Runtime.PYTHON])
    timings = (await rig.run()).timings
    assert timings.run == 12.5
    assert timings.build == 0
    assert timings.fetch > 0
    assert timings.total >= timings.fetch + timings.acquire + timings.start + timings.upload


async def test_a_build_is_timed(rig: Rig):
    rig.put(CODE[Runtime.CPP])
    timings = (await rig.run(make_job(runtime=Runtime.CPP))).timings
    assert timings.build > 0


async def test_the_run_is_asked_for_as_the_job_and_the_settings_say(
    make_rig: Callable[..., Awaitable[Rig]],
):
    rig = await make_rig(max_output_bytes=2048, max_file_mb=3, max_open_files=77, output_max_files=5)
    rig.put(CODE[Runtime.PYTHON])
    await rig.run(make_job(payload=b'{"a": 1}', timeout_ms=4321))
    (request,) = rig.runs
    assert request.arguments == ("/usr/bin/python3", "main.py")
    assert (request.payload, request.timeout_ms, request.grace_ms) == (b'{"a": 1}', 4321, 1000)
    assert (request.capture_bytes, request.file_size_bytes, request.open_files) == (2048, 3 * MIB, 77)
    assert (request.output_max_files, request.output_max_file_bytes) == (5, 64 * MIB)
    assert request.prepare_next


async def test_the_container_is_bound_to_function_code_and_size(rig: Rig):
    rig.put({"pkg/main.py": "print(1)", "pkg/data": "x"})
    await rig.run(make_job(function_id="fn", memory_mb=256))
    (binding,) = rig.pool.bindings
    assert (binding.runtime, binding.function_id, binding.memory_mb, binding.cpus) == (
        *(Runtime.PYTHON, "fn", 256),
        rig.settings.cpus_for(256),
    )
    assert Pack(binding.tree).base_name == "pkg"  # the single top folder
    assert (binding.purpose, binding.program) == ("run", None)


@pytest.mark.parametrize(
    ("sharing", "owner"),
    [("tenant", Owner(OwnerSource.KEY, "alice", "code")), ("function", None), ("worker", None)],
)
async def test_the_container_is_bound_to_the_owner_if_owners_share_containers(
    make_rig: Callable[..., Awaitable[Rig]], sharing: str, owner: Owner | None
):
    rig = await make_rig(container_sharing=sharing, tenant_pattern="users/([^/]+)/")
    (rig.folder / "store/code/users/alice").mkdir(parents=True)
    rig.put(CODE[Runtime.PYTHON], "users/alice/f.zip")
    await rig.run(make_job(s3_key="users/alice/f.zip"))
    (binding,) = rig.pool.bindings
    assert (binding.owner, binding.key.owner) == (owner, owner)


@pytest.mark.parametrize(
    ("setting", "runtime", "reuse", "expected"),
    [
        ("imports", Runtime.PYTHON, Reuse.IMPORTS, True),
        ("imports", Runtime.PYTHON, Reuse.NONE, False),
        ("imports", Runtime.NODEJS, Reuse.IMPORTS, False),
        ("none", Runtime.PYTHON, Reuse.IMPORTS, False),
    ],
)
async def test_imports_are_reused_if_job_setting_and_language_allow_it(
    make_rig: Callable[..., Awaitable[Rig]], setting: str, runtime: Runtime, reuse: Reuse, *, expected: bool
):
    rig = await make_rig(function_reuse=setting)
    rig.put(CODE[runtime])
    await rig.run(make_job(runtime=runtime, reuse=reuse))
    (binding,) = rig.pool.bindings
    assert (binding.reuses_imports, binding.key.reuses_imports) == (expected, expected)


@pytest.mark.parametrize(
    ("reuse", "state", "shown", "hint"),
    [
        (Reuse.NONE, ImportsState.OFF, None, None),
        (Reuse.IMPORTS, ImportsState.REUSED, "imports", None),
        (Reuse.IMPORTS, ImportsState.PRINTED, "none", "prints"),
        (Reuse.IMPORTS, ImportsState.OFF, "none", "Python"),
    ],
)
async def test_the_result_says_whether_imports_were_reused_and_why_not(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    reuse: Reuse,
    state: ImportsState,
    shown: str | None,
    hint: str | None,
):
    monkeypatch.setattr(FakeContainer, "imports", state)
    rig.put(CODE[Runtime.PYTHON])
    rig.play(ended(stdout=Captured("x")))
    result = await rig.run(make_job(reuse=reuse, locale="en"))
    assert result.reuse == shown
    assert (hint is None) == (result.hint is None)
    assert (hint or "") in (result.hint or "")


async def test_a_job_is_running_from_its_slot_on_and_holds_only_its_own_share(rig: Rig):
    rig.put(CODE[Runtime.PYTHON])
    used_when_running: list[int] = []
    await rig.run(
        make_job(memory_mb=256), on_running=lambda: used_when_running.append(rig.admission.used.memory_mb)
    )
    assert used_when_running == [256]
    assert rig.used_mb == [256]
    assert (rig.admission.used.memory_mb, rig.pool.out) == (0, 0)


async def test_output_files_are_uploaded_when_slot_and_container_are_free_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    rig.put(CODE[Runtime.PYTHON])
    held: list[tuple[int, int]] = []
    put = rig.store.put

    async def noted_put(bucket: str, key: str, source: Path, **said: Any) -> None:
        held.append((rig.admission.used.memory_mb, rig.pool.out))
        await put(bucket, key, source, **said)

    async def leave_a_file(_acquired: AcquiredContainer, _request: RunRequest, staging: Path) -> Execution:
        staging.mkdir()
        (staging / "0").write_bytes(b"abc")
        return ended(files=[OutputFile("dir/a.txt", staging / "0", 3)])

    monkeypatch.setattr(rig.store, "put", noted_put)
    rig.plays.append(leave_a_file)
    result = await rig.run()
    assert held == [(0, 0)]
    assert result.output_files == [
        "https://s3.ap-northeast-2.amazonaws.com/data/outputs/r1/dir/a.txt",
    ]
    assert rig.store.path("data", "outputs/r1/dir/a.txt").read_bytes() == b"abc"
    assert list(rig.staging.iterdir()) == []


# --- endings of the user's making


@pytest.mark.parametrize(
    "error_type",
    [ErrorType.USER_ERROR, ErrorType.SIGNAL, ErrorType.TIMEOUT, ErrorType.OUT_OF_MEMORY],
)
async def test_how_the_run_ended_is_how_the_result_ends(rig: Rig, error_type: ErrorType):
    rig.put(CODE[Runtime.PYTHON])
    rig.play(ended(error_type, "what happened", code=137))
    result = await rig.run()
    assert result.status is (Status.TIMEOUT if error_type is ErrorType.TIMEOUT else Status.FAILED)
    assert (result.error_type, result.error_message, result.exit_code) == (error_type, "what happened", 137)
    assert result.hint
    assert result.peak_memory_bytes == 10 * MIB


@pytest.mark.parametrize(
    "use", [None, MemoryUse(peak_bytes=None, oom_kills=0, refused_processes=0)], ids=["use", "peak"]
)
async def test_a_run_whose_memory_is_not_known_gets_no_advice(rig: Rig, use: MemoryUse | None):
    rig.put(CODE[Runtime.PYTHON])
    rig.play(Execution(None, None, 0, 1.0, use, Collected()))
    result = await rig.run()
    assert (result.peak_memory_bytes, result.tuning, result.optimization_tip) == (None, None, None)


@pytest.mark.parametrize("tree_mb", [0, 4, 1_000_000])
async def test_the_copy_of_the_code_counts_in_admission(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tree_mb: int
):
    """By whole pages, not by the bytes of its files. Code that can never fit has the worker to itself."""
    size = pack.Summary(files=1, bytes=1, memory_bytes=tree_mb * MIB)
    monkeypatch.setattr(pack, "summary_of", lambda _: size)
    rig.put(CODE[Runtime.PYTHON])

    result = await rig.run(make_job(memory_mb=128))

    assert (result.status, rig.used_mb) == (
        Status.SUCCESS,
        [min(128 + tree_mb, rig.admission.total.memory_mb)],
    )


@pytest.mark.parametrize("runtime", Runtime)
async def test_code_without_its_entry_file_is_invalid_and_the_file_is_named(rig: Rig, runtime: Runtime):
    rig.put({"other.txt": "x"})
    result = await rig.run(make_job(runtime=runtime))
    entry = next(iter(CODE[runtime]))
    assert (result.status, result.error_type) == (Status.FAILED, ErrorType.INVALID_CODE)
    assert result.error_message is not None
    assert entry in result.error_message
    assert "'other.txt'" in result.error_message
    assert result.hint is not None
    assert entry in result.hint
    assert (result.exit_code, result.start, result.peak_memory_bytes) == (-1, None, None)
    assert result.hint
    assert rig.runs == []
    assert rig.pool.bindings == []


async def test_code_that_is_no_zip_is_invalid(rig: Rig):
    rig.store.path("code", "f.zip").write_bytes(b"no zip")
    result = await rig.run()
    assert result.error_type is ErrorType.INVALID_CODE
    assert result.error_message


@pytest.mark.parametrize("changes", [{"s3_key": "absent.zip"}, {"s3_bucket": "absent"}])
async def test_code_that_is_not_there_is_not_found_and_named(rig: Rig, changes: dict[str, str]):
    result = await rig.run(make_job(**changes))
    assert result.error_type is ErrorType.CODE_NOT_FOUND
    assert result.error_message is not None
    assert "absent" in result.error_message
    assert result.timings.fetch > 0


def said_by_us(result: Result) -> list[str]:
    """Every text of a result that is not the program's."""
    own = [result.error_message, result.hint, result.optimization_tip, result.estimated_savings]
    gaps = [line for text in (result.stdout, result.stderr) for line in text.split("\n") if line[:1] == "…"]
    return [*(text for text in own if text), *gaps, *(error.reason for error in result.output_errors)]


# The kinds of results, by what the container's run comes to.
ENDINGS: dict[str, Execution | Exception] = {
    "success": ended(),
    "user error": ended(ErrorType.USER_ERROR, code=3),
    "signal": ended(ErrorType.SIGNAL, code=137),
    "timeout": ended(ErrorType.TIMEOUT, code=137),
    "out of memory": ended(ErrorType.OUT_OF_MEMORY, code=137),
    "disk": ended(ErrorType.DISK_LIMIT, code=1),
    "processes": ended(ErrorType.PROCESS_LIMIT, code=1),
    "cancelled": ended(ErrorType.CANCELLED, code=137),
}


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize(("of_worker", "of_job"), [("ko", "en"), ("en", "ko")])
async def test_each_ending_of_a_run_is_told_in_the_language_of_the_job(
    make_rig: Callable[..., Awaitable[Rig]], of_worker: Locale, of_job: Locale, name: str
):
    rig = await make_rig(locale=of_worker)
    rig.put(CODE[Runtime.PYTHON])
    ending = ENDINGS[name]
    assert isinstance(ending, Execution)
    collected = Collected(
        stdout=Captured("out", 7, "end"),
        refused=[Refusal("x", wire.REFUSALS[code]) for code in wire.REFUSALS],
    )
    message = None if ending.error_type is None else Text("in English", "한국어")
    rig.play(dataclasses.replace(ending, message=message, collected=collected))
    texts = said_by_us(await rig.run(make_job(locale=of_job, memory_mb=1024)))
    assert len(texts) >= len(wire.REFUSALS) + 2
    assert [bool(HANGUL.search(text)) for text in texts] == [of_job == "ko"] * len(texts)


@pytest.mark.parametrize(("of_worker", "of_job"), [("ko", "en"), ("en", "ko")])
async def test_each_rejection_and_failure_is_told_in_the_language_of_the_job(
    make_rig: Callable[..., Awaitable[Rig]], of_worker: Locale, of_job: Locale
):
    rig = await make_rig(locale=of_worker)
    rig.put(CODE[Runtime.CPP])
    rig.put({"readme.txt": "no entry"}, "empty.zip")
    rig.play(ended(ErrorType.TIMEOUT, code=137))
    attempt = attempt_at(make_job(locale=of_job))
    told = [
        await rig.run(make_job(locale=of_job, s3_key="no such.zip")),
        await rig.run(make_job(locale=of_job, s3_key="no%20such.zip")),
        await rig.run(make_job(locale=of_job, s3_key="empty.zip")),
        await rig.run(make_job(locale=of_job, runtime=Runtime.CPP)),
        rig.executor.cancelled(attempt),
        *(
            rig.executor.failed(attempt, failure("for the log"))
            for failure in (PlatformError, BrokerError, ResultStoreError, StorageError, ContainerError)
        ),
        rig.executor.failed(attempt, CrashLoop(Text("it crashed", "비정상 종료했습니다"))),
    ]
    for result in told:
        texts = said_by_us(result)
        assert texts
        assert [bool(HANGUL.search(text)) for text in texts] == [of_job == "ko"] * len(texts)


@pytest.mark.parametrize(("locale", "is_korean"), [("ko", True), ("en", False)])
async def test_a_result_is_in_the_language_of_its_job(rig: Rig, locale: Locale, *, is_korean: bool):
    rig.put({"notes.txt": "no entry file"})
    result = await rig.run(make_job(locale=locale))
    for text in (result.hint, result.error_message):
        assert text is not None
        assert any("가" <= character <= "힣" for character in text) == is_korean


# --- building


@pytest.mark.parametrize("runtime", [Runtime.CPP, Runtime.GO])
async def test_compiled_code_is_built_in_a_container_of_its_own_and_then_run(rig: Rig, runtime: Runtime):
    rig.put(CODE[runtime])
    result = await rig.run(make_job(runtime=runtime))
    assert result.status is Status.SUCCESS
    assert [is_build(request) for request in rig.runs] == [True, False]
    build, run = rig.pool.bindings
    assert (build.purpose, build.memory_mb, build.cpus, build.program) == ("build", 512, 1.0, None)
    assert (run.purpose, run.memory_mb) == ("run", 128)
    assert run.program is not None
    assert list(rig.staging.iterdir()) == []


async def test_the_program_that_is_run_is_what_the_build_left(rig: Rig):
    rig.put(CODE[Runtime.CPP])
    contents: list[bytes] = []

    async def build(_acquired: AcquiredContainer, _request: RunRequest, staging: Path) -> Execution:
        return built(staging)

    async def run(_acquired: AcquiredContainer, _request: RunRequest, _spool: Path) -> Execution:
        program = rig.pool.bindings[-1].program
        assert program is not None
        contents.append(program.read_bytes())
        assert os.access(program, os.X_OK)
        return ended()

    rig.plays += [build, run]
    await rig.run(make_job(runtime=Runtime.CPP))
    assert contents == [b"\x7fELF"]


async def test_a_build_takes_a_slot_of_its_size_and_the_run_another(rig: Rig):
    rig.put(CODE[Runtime.CPP])
    await rig.run(make_job(runtime=Runtime.CPP))
    assert rig.used_mb == [512, 128]
    assert rig.admission.used.memory_mb == 0


async def test_a_build_gets_nothing_of_the_job_and_little_of_anything(rig: Rig):
    rig.put(CODE[Runtime.GO])
    await rig.run(make_job(runtime=Runtime.GO, payload=b'{"secret": 1}'))
    request = rig.runs[0]
    assert set(request.environment) == {"PATH", "HOME", "LANG"}
    assert (request.payload, request.timeout_ms, request.output_max_files) == (b"", 120_000, 1)
    assert not request.prepare_next


async def test_a_second_job_of_the_same_code_is_not_built_again(rig: Rig):
    rig.put(CODE[Runtime.CPP])
    for request_id in ("r1", "r2"):
        await rig.run(make_job(runtime=Runtime.CPP, request_id=request_id))
    assert [is_build(request) for request in rig.runs] == [True, False, False]


async def test_other_code_is_built_anew(rig: Rig):
    rig.put(CODE[Runtime.CPP])
    await rig.run(make_job(runtime=Runtime.CPP))
    rig.put({"main.cpp": "int main() { return 1; }"})
    await rig.run(make_job(runtime=Runtime.CPP))
    assert [is_build(request) for request in rig.runs] == [True, False, True, False]


async def test_jobs_of_the_same_code_at_once_are_built_once_and_hold_no_slot_meanwhile(rig: Rig):
    rig.put(CODE[Runtime.CPP])
    begun, gate = asyncio.Event(), asyncio.Event()

    async def build(_acquired: AcquiredContainer, _request: RunRequest, staging: Path) -> Execution:
        begun.set()
        await gate.wait()
        return built(staging)

    rig.plays.append(build)
    jobs = [make_job(runtime=Runtime.CPP, request_id=f"r{number}") for number in range(4)]
    running = [asyncio.create_task(rig.run(job)) for job in jobs]
    async with asyncio.timeout(DEADLINE_S):
        await begun.wait()
        assert rig.admission.used.memory_mb == 512  # the build's alone
        assert rig.admission.waiting == 0
        gate.set()
        results = await asyncio.gather(*running)
    assert [result.status for result in results] == [Status.SUCCESS] * 4
    assert sum(map(is_build, rig.runs)) == 1


async def test_a_build_that_waits_for_its_slot_holds_no_container_and_no_other_slot(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    rig.put(CODE[Runtime.CPP])
    asked, reserve = asyncio.Event(), rig.admission.reserve

    def noted_reserve(memory_mb: int, cpus: float, owner: str | None) -> AbstractAsyncContextManager[None]:
        asked.set()
        return reserve(memory_mb, cpus, owner)

    async with rig.admission.reserve(1024, 1.0):
        monkeypatch.setattr(rig.admission, "reserve", noted_reserve)
        job = asyncio.create_task(rig.run(make_job(runtime=Runtime.CPP)))
        async with asyncio.timeout(DEADLINE_S):
            await asked.wait()
        assert rig.admission.waiting == 1
        assert rig.pool.bindings == []
        assert rig.admission.used.memory_mb == 1024
    assert (await job).status is Status.SUCCESS


async def test_what_the_compiler_refused_is_answered_with_its_words_and_not_built_again(rig: Rig):
    rig.put(CODE[Runtime.CPP])
    rig.play(ended(ErrorType.USER_ERROR, "last line", code=1, stderr=Captured("main.cpp:1: error: no")))
    first = await rig.run(make_job(runtime=Runtime.CPP))
    again = await rig.run(make_job(runtime=Runtime.CPP, function_id="another"))
    assert len(rig.runs) == 1
    assert again.error_message is not None
    assert again.error_message.startswith("main.cpp:1: error: no (remembered: built ")
    assert (again.error_type, again.stderr) == (ErrorType.BUILD_FAILED, first.stderr)
    (known,) = rig.failures.builds._failed.values()
    assert again.timings.build == round(known.took_s * 1000, 3)
    assert rig.remembered == ["build"]


async def test_code_that_is_deployed_anew_is_built_at_once(rig: Rig):
    rig.put(CODE[Runtime.CPP])
    rig.play(ended(ErrorType.USER_ERROR, "last line", code=1))
    await rig.run(make_job(runtime=Runtime.CPP))
    rig.put({"main.cpp": "int main() { return 0; }"})
    result = await rig.run(make_job(runtime=Runtime.CPP))
    assert result.status is Status.SUCCESS
    assert rig.remembered == []


@pytest.mark.parametrize("error_type", [ErrorType.TIMEOUT, ErrorType.OUT_OF_MEMORY, ErrorType.DISK_LIMIT])
async def test_a_build_that_ran_out_of_something_is_tried_twice(rig: Rig, error_type: ErrorType):
    rig.put(CODE[Runtime.CPP])
    for _ in range(2):
        rig.play(ended(error_type, "ended by us", code=137))
    for _ in range(4):
        result = await rig.run(make_job(runtime=Runtime.CPP))
        assert result.error_type is ErrorType.BUILD_FAILED
    assert len(rig.runs) == 2
    assert rig.remembered == ["build"] * 2


async def test_code_that_took_three_containers_down_gets_no_other_and_other_code_does(rig: Rig):
    rig.put(CODE[Runtime.PYTHON])
    rig.put({"main.py": "print(2)"}, "other.zip")
    for _ in range(3):
        rig.play(ContainerError("died"))
        with pytest.raises(ContainerError, match="died"):
            await rig.run()
    with pytest.raises(CrashLoop) as refusal:
        await rig.run()
    assert len(rig.runs) == 3
    told = rig.executor.failed(attempt_at(make_job()), refusal.value).error_message
    assert told is not None
    assert "remembered: failed 3 times" in told
    assert rig.remembered == ["crash"]
    assert (rig.admission.used.memory_mb, rig.pool.out) == (0, 0)
    for other in (make_job(s3_key="other.zip"), make_job(function_id="g"), make_job(memory_mb=256)):
        assert (await rig.run(other)).status is Status.SUCCESS
    rig.put({"main.py": "print('mended')"})
    assert (await rig.run()).status is Status.SUCCESS


async def test_a_job_that_waited_for_its_slot_meanwhile_is_not_let_through_either(rig: Rig):
    rig.put(CODE[Runtime.PYTHON])
    gate = asyncio.Event()

    async def die(_acquired: AcquiredContainer, _request: RunRequest, _spool: Path) -> Execution:
        await gate.wait()
        raise ContainerError("died")

    for _ in range(2):
        rig.play(ContainerError("died"))
        with pytest.raises(ContainerError, match="died"):
            await rig.run()
    rig.plays.append(die)
    async with rig.admission.reserve(512, 0.5):  # room for one
        jobs = [asyncio.create_task(rig.run()) for _ in range(2)]
        async with asyncio.timeout(DEADLINE_S):
            while not (rig.admission.waiting and len(rig.runs) == 3):  # noqa: ASYNC110 - a turn of the loop
                await asyncio.sleep(0)
        gate.set()
        first, second = await asyncio.gather(*jobs, return_exceptions=True)
    assert {type(first), type(second)} == {ContainerError, CrashLoop}
    assert len(rig.runs) == 3


@pytest.mark.parametrize("failure", [ContainerNotMade("no space"), ReturnToQueue("the breaker is open")])
async def test_a_pool_that_makes_no_containers_condemns_no_code(rig: Rig, failure: PlatformError):
    rig.put(CODE[Runtime.PYTHON])
    rig.pool.failure = failure
    for _ in range(4):
        with pytest.raises(type(failure)):
            await rig.run()
    rig.pool.failure = None
    assert (await rig.run()).status is Status.SUCCESS


async def test_a_functions_builds_and_runs_count_for_its_share(make_rig: Callable[..., Awaitable[Rig]]):
    rig = await make_rig(worker_memory_mb=2048, worker_cpus=2.0)
    rig.put(CODE[Runtime.CPP])
    owners: list[dict[str, Any]] = []

    async def note(acquired: AcquiredContainer, _request: RunRequest, staging: Path) -> Execution:
        owners.append(dict(rig.admission._held))
        acquired.clean = True
        return built(staging) if len(owners) == 1 else ended()

    rig.plays += [note, note]
    await rig.run(make_job(runtime=Runtime.CPP, function_id="mine"))
    assert owners == [{"mine": Budget(512, 1000)}, {"mine": Budget(128, 500)}]


async def test_what_the_compiler_said_is_in_stderr(rig: Rig):
    rig.put(CODE[Runtime.CPP])
    rig.play(ended(ErrorType.USER_ERROR, "last line", code=1, stderr=Captured("main.cpp:1: error: no")))
    result = await rig.run(make_job(runtime=Runtime.CPP))
    assert (result.status, result.error_type) == (Status.FAILED, ErrorType.BUILD_FAILED)
    assert result.stderr == "main.cpp:1: error: no"
    assert result.error_message == "main.cpp:1: error: no"
    assert (result.exit_code, result.start) == (-1, None)
    assert (rig.admission.used.memory_mb, rig.pool.out) == (0, 0)
    assert list(rig.staging.iterdir()) == []


@pytest.mark.parametrize(
    ("error_type", "setting"),
    [
        (ErrorType.TIMEOUT, "BUILD_TIMEOUT_SECONDS=120"),
        (ErrorType.OUT_OF_MEMORY, "BUILD_MEMORY_MB=512"),
        (ErrorType.DISK_LIMIT, "TMP_MAX_MB"),
    ],
)
async def test_a_build_that_hits_a_limit_names_the_setting(rig: Rig, error_type: ErrorType, setting: str):
    rig.put(CODE[Runtime.GO])
    rig.play(ended(error_type, "limit", code=137, stdout=Captured("said on stdout")))
    result = await rig.run(make_job(runtime=Runtime.GO))
    assert result.error_type is ErrorType.BUILD_FAILED
    assert result.error_message is not None
    assert setting in result.error_message
    assert result.stderr == "said on stdout"


async def test_a_build_that_leaves_no_program_has_failed(rig: Rig):
    rig.put(CODE[Runtime.CPP])
    rig.play(ended())
    result = await rig.run(make_job(runtime=Runtime.CPP))
    assert (result.error_type, result.error_message) == (
        ErrorType.BUILD_FAILED,
        "the build did not produce a program",
    )


async def test_a_build_that_failed_is_tried_again_by_the_next_job(rig: Rig):
    rig.put(CODE[Runtime.CPP])
    rig.play(ended(ErrorType.OUT_OF_MEMORY, "limit", code=137))
    assert (await rig.run(make_job(runtime=Runtime.CPP))).status is Status.FAILED
    assert (await rig.run(make_job(runtime=Runtime.CPP))).status is Status.SUCCESS


async def test_a_container_that_fails_in_a_build_is_our_fault(rig: Rig):
    rig.put(CODE[Runtime.CPP])
    rig.play(ContainerError("died"))
    with pytest.raises(PlatformError, match="died"):
        await rig.run(make_job(runtime=Runtime.CPP))
    assert rig.admission.used.memory_mb == 0


# --- our faults


@pytest.mark.parametrize("failure", [ContainerError("it died"), OSError("no space left")])
async def test_a_run_that_our_side_spoiled_raises_and_leaves_nothing_behind(rig: Rig, failure: Exception):
    rig.put(CODE[Runtime.PYTHON])
    rig.play(failure)
    with pytest.raises(PlatformError, match=str(failure)):
        await rig.run()
    assert (rig.admission.used.memory_mb, rig.pool.out) == (0, 0)
    assert list(rig.staging.iterdir()) == []


async def test_no_container_is_our_fault(rig: Rig):
    rig.put(CODE[Runtime.PYTHON])
    rig.pool.failure = ContainerError("containers cannot be made")
    with pytest.raises(ContainerError):
        await rig.run()
    assert rig.admission.used.memory_mb == 0


async def test_an_upload_that_fails_is_our_fault_and_leaves_no_spooled_file(
    make_rig: Callable[..., Awaitable[Rig]],
):
    rig = await make_rig(s3_user_data_bucket="absent")
    rig.put(CODE[Runtime.PYTHON])

    async def leave_a_file(_acquired: AcquiredContainer, _request: RunRequest, staging: Path) -> Execution:
        staging.mkdir()
        (staging / "0").write_bytes(b"abc")
        return ended(files=[OutputFile("a.txt", staging / "0", 3)])

    rig.plays.append(leave_a_file)
    with pytest.raises(StorageError):
        await rig.run()
    assert list(rig.staging.iterdir()) == []


async def test_a_spool_folder_that_cannot_be_made_is_our_fault(rig: Rig):
    rig.put(CODE[Runtime.PYTHON])
    rig.staging.rmdir()

    async def leave_a_file(_acquired: AcquiredContainer, _request: RunRequest, staging: Path) -> Execution:
        staging.mkdir()
        return ended()

    rig.plays.append(leave_a_file)
    with pytest.raises(PlatformError, match="output files could not be written"):
        await rig.run()


async def test_a_run_that_leaves_no_file_makes_no_folder(rig: Rig):
    rig.put(CODE[Runtime.PYTHON])
    rig.staging.rmdir()  # in which nothing could be made
    assert (await rig.run()).status is Status.SUCCESS


async def test_a_cancelled_run_leaves_nothing_behind(rig: Rig):
    rig.put(CODE[Runtime.PYTHON])
    begun = asyncio.Event()

    async def hang(_acquired: AcquiredContainer, _request: RunRequest, _spool: Path) -> Execution:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    rig.plays.append(hang)
    job = asyncio.create_task(rig.run())
    async with asyncio.timeout(DEADLINE_S):
        await begun.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert (rig.admission.used.memory_mb, rig.pool.out) == (0, 0)
    assert list(rig.staging.iterdir()) == []


@pytest.mark.parametrize("shared", [False, True])
async def test_a_job_that_is_cancelled_while_it_builds_ends_the_build_unless_another_waits_for_it(
    rig: Rig, *, shared: bool
):
    rig.put(CODE[Runtime.CPP])
    begun, goes_on, ended_early = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def build(_acquired: AcquiredContainer, _request: RunRequest, staging: Path) -> Execution:
        begun.set()
        try:
            await goes_on.wait()
        except asyncio.CancelledError:
            ended_early.set()
            raise
        return built(staging)

    rig.plays.append(build)
    job = asyncio.create_task(rig.run(make_job(runtime=Runtime.CPP)))
    async with asyncio.timeout(DEADLINE_S):
        await begun.wait()
        if shared:
            other = asyncio.create_task(rig.run(make_job(request_id="r2", runtime=Runtime.CPP)))
            builds = rig.programs._builds._operations
            while sum(build.waiters for build in builds.values()) < 2:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
        job.cancel()
        await asyncio.wait({job})
        assert job.cancelled()
        assert ended_early.is_set() is not shared
        if shared:
            goes_on.set()
            assert (await other).status is Status.SUCCESS
            assert sum(map(is_build, rig.runs)) == 1
    assert (rig.admission.used.memory_mb, rig.pool.out) == (0, 0)
    assert list(rig.staging.iterdir()) == []


async def test_a_job_that_was_given_up_is_reported_as_a_platform_failure(rig: Rig):
    result = rig.executor.failed(Attempt(make_job(), 5, 0), PlatformError("Redis is unavailable"))
    assert (result.status, result.error_type) == (Status.FAILED, ErrorType.PLATFORM)
    assert (result.attempt, result.exit_code) == (5, -1)
    assert result.hint


@pytest.mark.parametrize(
    "kind", [PlatformError, BrokerError, ResultStoreError, StorageError, ContainerError, ProtocolError]
)
def test_of_a_failure_of_ours_the_sender_learns_the_part_and_nothing_that_it_said(
    rig: Rig, kind: type[PlatformError]
):
    failure = kind("http://key:secret@10.0.0.7: /var/cache/nanoagent is full")
    message = rig.executor.failed(Attempt(make_job(), 5, 0), failure).error_message
    assert message == f"{kind.sender_message}; see the worker's log for this requestId"


# --- what the program finds in its environment


def test_the_environment_is_the_contracts_and_nothing_of_the_workers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    before_ms = int(time.time() * 1000)
    environment = environment_of(make_job(payload=b'{"a": "\xea\xb0\x80"}', memory_mb=256, timeout_ms=5000))
    assert "GOMEMLIMIT" not in environment
    deadline_ms = int(environment.pop("DEADLINE_MS"))
    assert before_ms + 5000 <= deadline_ms <= int(time.time() * 1000) + 5000
    assert environment == {
        "PAYLOAD": '{"a": "가"}',
        "PAYLOAD_FILE": "/input/payload.json",
        "JOB_ID": "r1",
        "FUNCTION_ID": "f",
        "OUTPUT_DIR": "/output",
        "MEMORY_LIMIT_MB": "256",
        "LLM_MODEL": "llama3:8b",
        "AI_ENDPOINT": "http://127.0.0.1:11434",
        "OLLAMA_HOST": "http://127.0.0.1:11434",
        "OLLAMA_BASE_URL": "http://127.0.0.1:11434",
        "OLLAMA_API_BASE": "http://127.0.0.1:11434",
        "OPENAI_BASE_URL": "http://127.0.0.1:11434/v1",
        "OPENAI_API_BASE": "http://127.0.0.1:11434/v1",
        "OPENAI_API_KEY": "unused",
        "HOME": "/tmp",
        "USER": "function",
        "LOGNAME": "function",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
    }


def test_gos_collector_is_told_of_the_memory_limit():
    assert environment_of(make_job(runtime=Runtime.GO, memory_mb=256))["GOMEMLIMIT"] == str(192 * 1024 * 1024)


def test_a_payload_that_fits_a_variable_of_linux_is_in_the_environment_and_a_larger_one_is_not():
    largest = json.dumps("x" * (131_071 - len('PAYLOAD=""'))).encode()
    assert len(b"PAYLOAD=" + largest) == 131_071
    assert environment_of(make_job(payload=largest))["PAYLOAD"] == largest.decode()
    assert "PAYLOAD" not in environment_of(make_job(payload=largest + b" "))


@pytest.mark.parametrize("locale", ["en", "ko"])
async def test_an_author_who_reads_a_payload_that_is_left_out_is_told_where_it_is(rig: Rig, locale: str):
    rig.put({"main.py": "import os\nprint(os.environ['PAYLOAD'])\n"})
    said = "Traceback (most recent call last):\n  ...\nKeyError: 'PAYLOAD'\n"
    rig.play(ended(ErrorType.USER_ERROR, "KeyError: 'PAYLOAD'", code=1, stderr=Captured(said)))
    result = await rig.run(make_job(payload=b'"' + b"x" * 200_000 + b'"', locale=locale))
    assert result.hint is not None
    assert "200002" in result.hint
    assert "PAYLOAD_FILE" in result.hint
    assert bool(re.search("[가-힣]", result.hint)) == (locale == "ko")


@pytest.mark.parametrize("stdout", ["", "1"])
async def test_a_handler_of_another_platform_is_told_of_where_nothing_came_of_the_run(rig: Rig, stdout: str):
    rig.put({"main.py": "def lambda_handler(event, context):\n    return 1\n"})
    rig.play(ended(stdout=Captured(stdout)))
    result = await rig.run()
    assert result.status is Status.SUCCESS
    assert bool(result.hint) == (not stdout)


async def test_a_failure_is_explained_by_the_jobs_network(rig: Rig):
    rig.put(CODE[Runtime.PYTHON])
    said = "OSError: [Errno 101] Network is unreachable"
    rig.play(ended(ErrorType.USER_ERROR, said, code=1, stderr=Captured(said)))
    result = await rig.run(make_job(network=NetworkPolicy.NONE, locale="en"))
    assert result.hint is not None
    assert "its network is none" in result.hint


async def test_the_entry_file_shows_that_the_payload_is_read(rig: Rig):
    rig.put({"app/main.cpp": 'int main() { return getenv("PAYLOAD")[0]; }'})

    async def build(_acquired: AcquiredContainer, _request: RunRequest, staging: Path) -> Execution:
        return built(staging)

    rig.plays.append(build)
    rig.play(ended(ErrorType.SIGNAL, "killed", code=139))
    result = await rig.run(make_job(runtime=Runtime.CPP, payload=b'"' + b"x" * 200_000 + b'"'))
    assert result.hint is not None
    assert "PAYLOAD_FILE" in result.hint


def test_a_payload_with_a_nul_is_left_out_of_the_environment():
    assert "PAYLOAD" not in environment_of(make_job(payload=b'"\0"'))


@pytest.mark.parametrize("payload", [b'"\xff"', '"가\U0001f600"'.encode()])
async def test_any_payload_reaches_the_supervisor_byte_for_byte(rig: Rig, payload: bytes):
    rig.put(CODE[Runtime.PYTHON])
    await rig.run(make_job(payload=payload))
    assert b"PAYLOAD=" + payload + b"\0" in rig.runs[0].encode()
    assert rig.runs[0].encode().endswith(payload)


# --- secrets


DB = SecretReference(SecretService.SSM, "/prod/db")


async def test_the_program_gets_the_values_of_its_secrets_and_its_output_is_masked(rig: Rig):
    store = InMemorySecretStore()
    store.values[DB] = "hunter22"
    rig.put(CODE[Runtime.PYTHON])
    rig.secrets._rules = parse_rules("f=ssm:/prod/*")
    rig.secrets._cache = SecretCache(store, 60)
    job = make_job(env=(("STAGE", "prod"),), secrets=(("DB", DB),))
    attempt = attempt_at(job)
    await rig.executor.execute(attempt)
    (request,) = rig.runs
    assert (request.environment["DB"], request.environment["STAGE"]) == ("hunter22", "prod")
    assert request.environment.keys() == environment_of(job).keys() | {"DB"}
    assert attempt.control.mask is not None
    assert attempt.control.mask.hide("a hunter22") == "a ***"
    assert "hunter22" not in f"{attempt} {job}"


async def test_a_job_whose_secret_is_refused_is_not_fetched_and_not_run(rig: Rig):
    result = await rig.run(make_job(s3_key="none.zip", secrets=(("DB", DB),)))
    assert result.error_type is ErrorType.INVALID_JOB
    assert result.error_message is not None
    assert "DB refers to the secret ssm:/prod/db" in result.error_message
    assert result.hint is not None
    assert "SECRETS_ALLOW" in result.hint
    assert rig.runs == []


async def test_a_job_without_secrets_has_no_mask(rig: Rig):
    rig.put(CODE[Runtime.PYTHON])
    attempt = attempt_at(make_job(env=(("STAGE", "prod"),)))
    await rig.executor.execute(attempt)
    assert attempt.control.mask is None
