"""What scripts/test-vm has the machine show: levels of isolation and memory, on its kernel and its Docker.

    check.py --scenario NAME level sandbox|shared   the level that is found, runs at it, the agent's words
    check.py --scenario NAME probe sandbox|shared   the level that is found, alone
    check.py --scenario NAME refusals               what the AppArmor profile refuses
    check.py --scenario NAME versions               of everything that takes part

Standard output gets one JSON object a line: `scenario`, `part`, `check`, `expected`, `observed`, `ok`. It
exits with 0 also when a check has failed: the report says so (report.py), and what else there is to know.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.code_cache import CodeCache
from nanoagent.code.program_cache import ProgramCache
from nanoagent.common.units import MIB
from nanoagent.container import charges
from nanoagent.container.docker import DockerDriver
from nanoagent.container.isolation import HostIsolation, probe
from nanoagent.container.pool import Pool
from nanoagent.dev.sender import pack
from nanoagent.jobs.admission import Admission
from nanoagent.jobs.attempt import Attempt
from nanoagent.jobs.executor import Executor, ExecutorParts
from nanoagent.jobs.outputs import OutputUploader
from nanoagent.jobs.parts import RunnerParts
from nanoagent.jobs.runner import Runner
from nanoagent.jobs.tuner import Prices, Tuner
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType, Isolation
from nanoagent.storage.folder import FolderStore
from nanoagent.telemetry import logs
from nanoagent.telemetry.metrics import Metrics
from nanoagent.telemetry.status import Health
from nanoagent.wiring import containers
from support.doubles.fakes import make_job, make_settings
from support.sandboxes.containers import FILL_PAGE_CACHE, exec_in, worker_home

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nanoagent.config import Settings
    from nanoagent.container.worker_home import WorkerHome
    from nanoagent.model.result import Result

HERE: Final = Path(__file__).parent
RUNTIMES: Final = {Runtime.PYTHON: "main.py", Runtime.CPP: "main.cpp"}
LIMIT_MB: Final = 256
BUDGET_MB: Final = 2048
SAMPLE_S: Final = 0.05
WAIT_S: Final = 120.0
HELD_MIB: Final = 100
PROCESSES: Final = 32
REMEDY: Final = "deploy/apparmor"
# Only these two images are there: the others' names stand for what no job asks for.
IMAGES: Final = {
    "docker_nodejs_image": "nanoagent-cpp:latest",
    "docker_go_image": "nanoagent-cpp:latest",
    "warm_pool_nodejs_size": 0,
    "warm_pool_go_size": 0,
}
SERVICES: Final = {  # nothing answers there, and nothing that is looked at here needs it
    "SQS_QUEUE_URL": "http://127.0.0.1:9/queue",
    "S3_CODE_BUCKET": "code",
    "S3_USER_DATA_BUCKET": "data",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_EC2_METADATA_DISABLED": "true",
}
AGENT_DEADLINE_S: Final = 300  # a hang is a failure; nothing is measured by it


class Teller:
    """Prints the report's lines.

    Args:
        scenario: What they belong to.
    """

    def __init__(self, scenario: str) -> None:
        self._scenario = scenario

    def __call__(self, part: str, check: str, expected: str, observed: object, *, ok: bool) -> None:
        """One line."""
        line = {
            "scenario": self._scenario,
            "part": part,
            "check": check,
            "expected": expected,
            "observed": str(observed),
            "ok": ok,
        }
        print(json.dumps(line, ensure_ascii=False), flush=True)


# --- jobs, through everything between a message and its result


@dataclass(frozen=True, slots=True)
class Worker:
    """An executor with a real pool, over a folder for a store.

    Attributes:
        verdict: The level its containers have.
        pool: Its containers.
    """

    executor: Executor
    verdict: HostIsolation
    pool: Pool

    async def run(self, runtime: Runtime, do: str, amount: int = 0, *, function: int = 0) -> Result:
        """One job of the runtime's program, for one of several functions with the same code."""
        job = make_job(
            runtime=runtime,
            function_id=f"vm-{runtime}-{function}",
            s3_key=f"{runtime}.zip",
            memory_mb=LIMIT_MB,
            timeout_ms=120_000,
            payload=json.dumps({"do": do, "amount": amount}).encode(),
        )
        return await self.executor.execute(Attempt(job=job, number=1, queue_ms=0))


async def find_level(settings: Settings, driver: DockerDriver, home: WorkerHome) -> HostIsolation:
    """As the agent does at its start."""
    profile = settings.container_apparmor_profile if await driver.client.confines_with_apparmor() else None
    return await probe(driver, home, containers.pool_policy(settings), apparmor=profile)


@asynccontextmanager
async def worker() -> AsyncIterator[Worker]:
    """A worker whose queue and result_store are this program."""
    settings = make_settings(
        worker_memory_mb=BUDGET_MB, max_processes=PROCESSES, build_timeout_seconds=600, **IMAGES
    )
    limits = ArchiveLimits(zip_bytes=MIB, unpacked_bytes=MIB, file_bytes=MIB, entries=100)
    async with AsyncExitStack() as opened:
        home = opened.enter_context(worker_home())
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        store = _store(folder / "store")
        code = CodeCache(folder / "code", store, limits, 64 * MIB)
        programs = ProgramCache(folder / "programs", 64 * MIB)
        for cache in (code, programs):
            await cache.start()
            opened.push_async_callback(cache.close)
        driver = DockerDriver()
        opened.push_async_callback(driver.close)
        verdict = await find_level(settings, driver, home)
        policy = replace(
            containers.pool_policy(settings), isolation=verdict.isolation, apparmor=verdict.apparmor
        )
        pool = Pool(driver, home, policy, Metrics(), Health())
        await pool.start()
        opened.push_async_callback(pool.close)
        await pool.filled()
        prices = Prices(settings.price_per_gb_second, settings.price_per_request, "USD", 1)
        runner = Runner(
            RunnerParts(
                settings=settings,
                programs=programs,
                # More jobs at once than the CPUs allow, so that memory is the limit.
                admission=Admission(settings.worker_memory_mb, 100.0),
                pool=pool,
                image_ids={
                    runtime: await driver.client.image_id(settings.image(runtime)) for runtime in Runtime
                },
                staging=home.staging,
            )
        )
        parts = ExecutorParts(
            settings=settings,
            code=code,
            runner=runner,
            outputs=OutputUploader(store, settings, Metrics()),
            tuner=Tuner(prices, settings.largest_job_mb),
        )
        yield Worker(Executor(parts), verdict, pool)


def _store(root: Path) -> FolderStore:
    """With the two programs in it."""
    for bucket in ("code", "data"):
        (root / bucket).mkdir(parents=True)
    store = FolderStore(root)
    for runtime in RUNTIMES:
        store.path("code", f"{runtime}.zip").write_bytes(pack(HERE / "programs" / runtime))
    return store


async def check_level(tell: Teller, expected: Isolation) -> None:
    """The level that is found, and runs at it."""
    _clear_kernel_log()
    async with worker() as made:
        verdict = made.verdict
        tell_verdict(tell, verdict, expected)
        for runtime in RUNTIMES:
            await _check_runs(tell, made, runtime, expected)
            await _check_memory(tell, made, runtime)
        if _is_sandbox(expected):
            await _check_full_budget(tell, made)
            await _check_idle_memory(tell, made)
            denied = _denials(verdict.apparmor or "")
            tell(
                "profile", "what it refused in all these runs", "nothing", denied or "nothing", ok=not denied
            )


async def check_probe(tell: Teller, expected: Isolation) -> None:
    """The level that is found."""
    driver = DockerDriver()
    try:
        with worker_home() as home:
            tell_verdict(tell, await find_level(make_settings(**IMAGES), driver, home), expected)
    finally:
        await driver.close()


def tell_verdict(tell: Teller, verdict: HostIsolation, expected: Isolation) -> None:
    """What the probe has found, and the reason when that is not the best."""
    found = verdict.isolation + (f", under the profile {verdict.apparmor}" if verdict.apparmor else "")
    wanted = verdict.isolation is expected and (verdict.apparmor is not None) is _is_sandbox(expected)
    tell("agent", "the level that it finds", expected, found, ok=wanted)
    if not _is_sandbox(expected):
        reason = verdict.reason or ""
        tell("agent", "its reason", f"names {REMEDY}", reason, ok=REMEDY in reason)


def _clear_kernel_log() -> None:
    # Else the kernel drops lines when many come, and with them what was refused.
    Path("/proc/sys/kernel/printk_ratelimit").write_text("0")
    subprocess.run(["dmesg", "--clear"], check=True)


def _denials(profile: str) -> list[str]:
    """What AppArmor has refused under a profile since the kernel's log was cleared."""
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    return [
        line for line in log.splitlines() if 'apparmor="DENIED"' in line and f'profile="{profile}"' in line
    ]


def _is_sandbox(level: Isolation) -> bool:
    return level is Isolation.SANDBOX


async def _check_runs(tell: Teller, made: Worker, runtime: Runtime, expected: Isolation) -> None:
    ran = await made.run(runtime, "confinement")
    label = f"{made.verdict.apparmor or 'docker-default'} (enforce)"
    tell(runtime, "a run's `isolation`", expected, ran.isolation, ok=ran.isolation is expected)
    tell(runtime, "AppArmor confines it by", label, ran.stdout.strip(), ok=ran.stdout.strip() == label)
    left = await made.run(runtime, "leave")
    nothing = {"files": [RUNTIMES[runtime]], "processes": []}
    after = await made.run(runtime, "look")
    seen = json.loads(after.stdout or "null")
    tell(
        runtime,
        "what a run sees of one before it that left files and a daemon",
        f"nothing, in the same container: {json.dumps(nothing)}",
        f"{left.status}, then {after.start}: {after.stdout.strip() or after.error_message}",
        ok=left.error_type is None and after.start == "hot" and seen == nothing,
    )


async def _check_memory(tell: Teller, made: Worker, runtime: Runtime) -> None:
    afterwards = ", in the same container afterwards"
    for mib, least, most, why in ((HELD_MIB, HELD_MIB, HELD_MIB * 1.1, ""), (5, 4, 20, afterwards)):
        ran = await made.run(runtime, "hold", mib)
        peak = (ran.peak_memory_bytes or 0) / MIB
        tell(
            runtime,
            f"peak of a run that holds {mib} MiB{why}",
            f"{least} to {most:.0f} MiB",  # the base use, which is subtracted, varies by some 100 KiB
            f"{peak:.1f} MiB, {ran.error_type or ran.status}",
            ok=ran.error_type is None and least <= peak <= most,
        )
    for do, who in (("hold", "the program"), ("hold_in_a_child", "a child, whose parent exits with 0,")):
        ran = await made.run(runtime, do, LIMIT_MB + 200)
        tell(
            runtime,
            f"{who} holds 200 MiB more than the limit of {LIMIT_MB} MiB",
            ErrorType.OUT_OF_MEMORY,
            f"{ran.error_type}, exit code {ran.exit_code}",
            ok=ran.error_type is ErrorType.OUT_OF_MEMORY,
        )
    ran = await made.run(runtime, "fork", 2 * PROCESSES)
    tell(
        runtime,
        f"a run forks {2 * PROCESSES} times; {PROCESSES} are allowed",
        ErrorType.PROCESS_LIMIT,
        ran.error_type,
        ok=ran.error_type is ErrorType.PROCESS_LIMIT,
    )


# --- the budget of memory (docs/adr/0031)


async def _check_full_budget(tell: Teller, made: Worker) -> None:
    """More runs at once than the budget holds, each of which uses most of its memory."""
    highest = 0

    async def sample() -> None:
        nonlocal highest
        while True:
            groups = [pooled.container.group for pooled in made.pool._inventory.all()]
            held = sum(group.held_bytes() + charges.OVERHEAD_BYTES for group in groups if group is not None)
            highest = max(highest, held)
            await asyncio.sleep(SAMPLE_S)

    jobs = BUDGET_MB // LIMIT_MB + 1
    for number in range(jobs):
        await made.run(Runtime.PYTHON, "look", function=number)  # creates the container
    sampling = asyncio.create_task(sample())
    try:
        runs = await asyncio.gather(
            *(made.run(Runtime.PYTHON, "hold_for_seconds", 200, function=number) for number in range(jobs))
        )
        assert not sampling.done(), sampling.exception()
    finally:
        sampling.cancel()
    failed = [str(ran.error_type) for ran in runs if ran.error_type is not None]
    tell(
        "budget",
        f"{jobs} jobs at once that hold 200 MiB each, in a budget of {BUDGET_MB} MiB",
        f"all succeed; the containers never hold more than {BUDGET_MB} MiB",
        f"{jobs - len(failed)} succeed {failed or ''}; {highest // MIB} MiB",
        ok=not failed and BUDGET_MB // 2 < highest // MIB <= BUDGET_MB,
    )


async def _check_idle_memory(tell: Teller, made: Worker) -> None:
    """What an idle container takes from the budget when its page cache grows, and when a process grows."""
    await made.run(Runtime.PYTHON, "look")
    pooled = next(one for one in made.pool._inventory.idle(Runtime.PYTHON) if not one.is_generic)
    container_id, group = pooled.container.id, pooled.container.group
    assert group is not None
    charged, cached = pooled.memory_mb, group.page_cache_bytes()
    exec_in(container_id, "/bin/sh", "-c", FILL_PAGE_CACHE)
    grew = await _until(lambda: group.page_cache_bytes() > cached + charges.LEFTOVER_BYTES)
    made.pool._retirement.sweep_once()
    tell(
        "budget",
        "page cache that a process of an idle container fills",
        "the container takes as much of the budget as before, and stays",
        f"{(group.page_cache_bytes() - cached) // MIB} MiB more page cache; {charged} MiB, then "
        f"{pooled.memory_mb} MiB; {pooled.state}",
        ok=grew and abs(pooled.memory_mb - charged) <= 2 and made.pool._inventory.get(container_id) is pooled,
    )
    exec_in(container_id, "python3", "-c", f"import time; leak = bytearray({40 * MIB}); time.sleep(600)")
    removed = await _until(lambda: made.pool._inventory.get(container_id) is None)
    last = made.pool.overview()["runtimes"]["python"]["lastRetired"]
    reason = last[0]["reason"] if removed and last else "not removed"
    tell(
        "budget",
        "a process of an idle container that takes 40 MiB",
        "the container is removed: grown",
        reason,
        ok=reason == "grown",
    )


async def _until(is_true: Callable[[], bool]) -> bool:
    """Whether a condition becomes true in time."""
    for _ in range(round(WAIT_S / SAMPLE_S)):
        if is_true():
            return True
        await asyncio.sleep(SAMPLE_S)
    return False


# --- the agent as a user starts it


@dataclass(frozen=True, slots=True)
class Seen:
    """What an operator sees of an agent that has just started.

    Attributes:
        event: Its log line about isolation.
        readiness: `/readyz`.
        metrics: `/metrics`.
    """

    event: dict[str, Any]
    readiness: dict[str, Any]
    metrics: str


def check_words(tell: Teller, expected: Isolation) -> None:
    """What the agent's log, its readiness, its metrics and its refusal to start say."""
    seen = _started_agent()
    said, reason = str(seen.event["event"]), seen.event.get("reason")
    level = f"worker_isolation_level {2 if _is_sandbox(expected) else 1}.0"
    tell(
        "agent",
        "/metrics",
        level,
        _line_of(seen.metrics, "worker_isolation_level "),
        ok=level in seen.metrics,
    )
    if _is_sandbox(expected):
        tell("agent", "its log", "no warning", said, ok=seen.event["level"] == "info")
        return
    told = f"{seen.event['level']}: {said}: {reason}"
    warned = seen.event["level"] == "warning" and REMEDY in str(reason)
    tell("agent", "its log", "a warning with the reason", told, ok=warned)
    shown = seen.readiness["parts"]["isolation"]["reason"]
    tell("agent", "/readyz", "the same reason", shown, ok=shown == reason)
    refusal = subprocess.run(
        _agent_command(),
        env=_agent_environment() | {"MIN_ISOLATION": "L2"},
        capture_output=True,
        text=True,
        timeout=AGENT_DEADLINE_S,
        check=False,
    )
    words = _line_of(refusal.stderr, "MIN_ISOLATION")
    tell(
        "agent",
        "its start with MIN_ISOLATION=L2",
        "exit code 2, with the reason",
        f"exit code {refusal.returncode}: {words}",
        ok=refusal.returncode == 2 and REMEDY in words,
    )


def _line_of(text: str, word: str) -> str:
    """The first line with that word, "" when there is none; comments of metrics do not count."""
    return next((line.strip() for line in text.splitlines() if word in line and line[0] != "#"), "")


def _agent_command() -> list[str]:
    return [sys.executable, "-m", "nanoagent", "run", "--env-file", os.devnull]


def _agent_environment() -> dict[str, str]:
    images = {name.upper(): str(value) for name, value in IMAGES.items()}
    caches = {"DOCKER_WORK_DIR_ROOT": "/tmp/nanoagent-vm", "CODE_CACHE_DIR": "/tmp/nanoagent-vm-cache"}
    return (
        os.environ
        | SERVICES
        | images
        | caches
        | {"METRICS_PORT": "0", "LOG_FORMAT": "json", "SELFTEST_INTERVAL_SECONDS": "0"}
    )


def _started_agent() -> Seen:
    process = subprocess.Popen(
        _agent_command(),
        env=_agent_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    signal.alarm(AGENT_DEADLINE_S)
    try:
        assert process.stdout is not None
        port = 0
        for line in process.stdout:
            event = json.loads(line)
            port = event.get("port", port)
            if event["event"].startswith("isolation"):
                return Seen(event, json.loads(_get(port, "/readyz")), _get(port, "/metrics"))
    finally:
        process.terminate()
        process.communicate()
        signal.alarm(0)
    raise AssertionError("the agent ended without a word on isolation")


def _get(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as response:
            return str(response.read(), "utf-8")
    except urllib.error.HTTPError as not_ready:  # 503, with the same document
        return str(not_ready.read(), "utf-8")


# --- the profile


def check_refusals(tell: Teller) -> None:
    """What is refused under the profile, and is not refused without: else the attempt proves nothing."""
    under, without = _attempts("nanoagent"), _attempts("unconfined")
    for attempt, error in under.items():
        tell(
            "profile",
            attempt,
            "refused; without the profile not",
            f"{error or 'permitted'}; without: {without[attempt] or 'permitted'}",
            ok=error in {"EACCES", "EPERM"} and not without[attempt],
        )


def _attempts(profile: str) -> dict[str, str]:
    """Attempt → error, "" when it worked."""
    options = ("seccomp=unconfined", "systempaths=unconfined", f"apparmor={profile}")
    mounts = ("/work", "/tmp", "/output", "/input", "/dev/shm")
    ran = subprocess.run(
        [
            *("docker", "run", "--rm", "--interactive", "--network", "none", "--user", "1900000000"),
            *("--cap-drop", "ALL", "--read-only", "--entrypoint", "/usr/bin/python3"),
            *(word for option in options for word in ("--security-opt", option)),
            *(word for mount in mounts for word in ("--tmpfs", mount)),
            *("nanoagent-python:latest", "-"),
        ],
        input=(HERE / "attempts.py").read_text(),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(ran.stdout))


# --- versions


def _said(*command: str) -> str:
    """The first line that a command prints, "-" when there is none."""
    if shutil.which(command[0]) is None:
        return "-"
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return lines[0] if lines else "-"


def check_versions(tell: Teller) -> None:
    """Of everything that takes part."""
    release = platform.freedesktop_os_release()
    versions = {
        "distribution": release["PRETTY_NAME"] + f" ({_said('cat', '/etc/debian_version')})",
        "kernel": f"{platform.release()} {platform.machine()}",
        "Docker Engine": _said("docker", "version", "--format", "{{.Server.Version}}"),
        "runc": _said("runc", "--version").removeprefix("runc version "),
        "AppArmor": _said("apparmor_parser", "--version").rpartition(" ")[2],
        "control groups": _said("docker", "info", "--format", "v{{.CgroupVersion}}, {{.CgroupDriver}}"),
        "storage driver": _said("docker", "info", "--format", "{{.Driver}}"),
        "security options": _said("docker", "info", "--format", '{{join .SecurityOptions ", "}}'),
        "Python of the agent": platform.python_version(),
    }
    for what, version in versions.items():
        tell("versions", what, "", version, ok=version != "-")


def main() -> None:
    """One part of the checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", required=True)
    parser.add_argument("what", choices=["level", "probe", "refusals", "versions"])
    parser.add_argument("expected", nargs="?", type=Isolation, default=Isolation.SANDBOX)
    wanted = parser.parse_args()
    logs.configure("text", "WARNING")  # to standard error: standard output has nothing but the checks
    tell = Teller(wanted.scenario)
    match wanted.what:
        case "level":
            asyncio.run(check_level(tell, wanted.expected))
            check_words(tell, wanted.expected)
        case "probe":
            asyncio.run(check_probe(tell, wanted.expected))
        case "refusals":
            check_refusals(tell)
        case "versions":
            check_versions(tell)


if __name__ == "__main__":
    main()
