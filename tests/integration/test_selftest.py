"""The self-test against real containers: it passes, and the removal of a protection fails a check."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.code.program_cache import ProgramCache
from nanoagent.container import docker
from nanoagent.container.docker import DockerDriver
from nanoagent.container.policy import Sharing
from nanoagent.container.pool import Pool
from nanoagent.container.spec import create_body
from nanoagent.jobs import environment
from nanoagent.jobs.admission import Admission
from nanoagent.jobs.parts import RunnerParts
from nanoagent.model.errors import PlatformError
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation
from nanoagent.selftest.checks import MARK, IsolationCheck
from nanoagent.selftest.suite import Suite, run_all
from nanoagent.telemetry.metrics import Metrics
from nanoagent.telemetry.status import Health
from nanoagent.wiring.containers import find_images, pool_policy
from support.doubles.fakes import make_settings
from support.sandboxes.containers import worker_home

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nanoagent.container.spec import ContainerSpec

SETTINGS = make_settings(worker_memory_mb=4096, worker_cpus=2, build_memory_mb=1024)


@asynccontextmanager
async def suite_at(level: Isolation, cache: Path, **changes: Any) -> AsyncIterator[Suite]:
    """The suite with containers of that level; `changes` are settings."""
    settings = SETTINGS.model_copy(update=changes)
    never = level is Isolation.CONTAINER
    policy = replace(
        pool_policy(settings),
        sizes=dict.fromkeys(Runtime, 0),
        isolation=Isolation.SHARED if never else level,
        sharing=Sharing.NEVER if never else Sharing.FUNCTION,
    )
    driver = DockerDriver()
    programs = ProgramCache(cache, 1 << 30)
    await programs.start()
    with worker_home() as home:
        pool = Pool(driver, home, policy, Metrics(), Health())
        await pool.start()
        parts = RunnerParts(
            settings=settings,
            programs=programs,
            admission=Admission(settings.worker_memory_mb, settings.worker_cpus),
            pool=pool,
            image_ids=await find_images(settings, driver.client),
            staging=home.staging,
        )
        try:
            yield Suite(parts, home.path / "selftest")
        finally:
            await pool.close()
            await programs.close()
            await driver.close()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built programs, for all tests."""
    return tmp_path_factory.mktemp("programs")


@pytest.mark.parametrize("level", [Isolation.SANDBOX, Isolation.SHARED, Isolation.CONTAINER])
async def test_every_isolation_check_passes_in_every_language(level: Isolation, programs: Path) -> None:
    async with suite_at(level, programs) as suite:
        results = await run_all(suite)
    for each in results:
        assert each.reason is None
        assert [(result.check, result.problem) for result in each.results] == [
            (check, None) for check in IsolationCheck
        ]
        assert all(result.tried for result in each.results)


async def test_a_setting_for_users_output_does_not_cut_the_answers(programs: Path) -> None:
    async with suite_at(Isolation.SANDBOX, programs, max_output_bytes=1024, output_max_files=0) as suite:
        assert not [result for result in await suite.run(Runtime.PYTHON) if result.problem]


def join_the_host(body: dict[str, Any], _: Path) -> None:
    del body["NetworkDisabled"]
    body["HostConfig"]["NetworkMode"] = "host"


def make_room(body: dict[str, Any], _: Path) -> None:
    body["HostConfig"]["Tmpfs"]["/tmp"] = "size=1000m,mode=1777"


def open_slot(body: dict[str, Any], _: Path) -> None:
    slot = body["HostConfig"]["Mounts"][0]
    slot["ReadOnly"] = False
    Path(slot["Source"]).chmod(0o777)


def allow_processes(body: dict[str, Any], _: Path) -> None:
    body["HostConfig"]["PidsLimit"] = 30_000


def share_a_folder(body: dict[str, Any], folder: Path) -> None:
    del body["HostConfig"]["Tmpfs"]["/tmp"]
    body["HostConfig"]["Mounts"].append({"Type": "bind", "Source": str(folder), "Target": "/tmp"})
    folder.chmod(0o1777)
    (folder / MARK).touch()  # the host's: no wipe can take it away


BREACHES = [
    (join_the_host, Isolation.SHARED, {IsolationCheck.NETWORK}),
    (make_room, Isolation.SHARED, {IsolationCheck.SIZES}),
    (open_slot, Isolation.SHARED, {IsolationCheck.ROOT_FILE_SYSTEM}),
    (allow_processes, Isolation.SANDBOX, {IsolationCheck.PROCESS_LIMIT}),
    (share_a_folder, Isolation.CONTAINER, {IsolationCheck.TRACES, IsolationCheck.SIZES}),
]


@pytest.mark.parametrize(
    ("breach", "level", "checks"), BREACHES, ids=[breach.__name__ for breach, _, _ in BREACHES]
)
async def test_a_protection_that_is_removed_is_missed(
    breach: Callable[[dict[str, Any], Path], None],
    level: Isolation,
    checks: set[IsolationCheck],
    programs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(prefix="na-") as folder:

        def breached(spec: ContainerSpec) -> dict[str, Any]:
            body = create_body(spec)
            breach(body, Path(folder))
            return body

        monkeypatch.setattr(docker, "create_body", breached)
        async with suite_at(level, programs) as suite:
            results = await suite.run(Runtime.PYTHON)
    assert {result.check for result in results if result.problem} == checks


async def test_a_connection_of_another_user_of_the_host_makes_no_check_fail(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who watches /proc/net/tcp could stop all jobs, for as long as he likes."""
    start_server = asyncio.start_server

    async def known_to_a_neighbour(*arguments: Any, **options: Any) -> asyncio.Server:
        server = await start_server(*arguments, **options)
        with socket.create_connection(server.sockets[0].getsockname()) as connection:
            await asyncio.to_thread(connection.recv, 1)  # the other end hangs up once it has noticed
        return server

    monkeypatch.setattr(asyncio, "start_server", known_to_a_neighbour)
    async with suite_at(Isolation.SANDBOX, programs) as attacking:
        results = await attacking.run(Runtime.PYTHON)
    assert IsolationCheck.NETWORK in {result.check for result in results}
    assert not [result for result in results if result.problem]


async def test_a_variable_that_does_not_belong_into_a_run_is_found(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment_of = environment.environment_of
    monkeypatch.setattr(environment, "environment_of", lambda job: environment_of(job) | {"AWS_SECRET": "x"})
    async with suite_at(Isolation.SANDBOX, programs) as suite:
        results = await suite.run(Runtime.PYTHON)
    problems = {result.check: result.problem for result in results if result.problem}
    assert problems == {IsolationCheck.ENVIRONMENT: "environment: has AWS_SECRET"}


async def test_a_runtime_that_cannot_run_at_all_is_no_result(programs: Path) -> None:
    image = SETTINGS.image(Runtime.CPP)
    async with suite_at(Isolation.SANDBOX, programs, docker_python_image=image) as suite:
        with pytest.raises(PlatformError, match="could not be started"):
            await suite.run(Runtime.PYTHON)
