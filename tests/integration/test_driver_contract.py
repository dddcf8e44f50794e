"""What `container.base.Driver` promises, asked of Docker and of the fake that stands in for it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import aiodocker
import pytest

from nanoagent.common.units import MIB
from nanoagent.container.base import NotRecycled, RecyclingFailure
from nanoagent.container.docker import DockerDriver
from nanoagent.container.orphans import remove_orphans
from nanoagent.container.spec import LABEL_WORKER
from nanoagent.container.worker_home import WorkerHome
from nanoagent.model.errors import ContainerError
from nanoagent.model.result import Isolation
from support.checks.packs import packed
from support.doubles.fake_driver import FakeDriver
from support.sandboxes.containers import spec_for, worker_home

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from nanoagent.container.base import RunningContainer
    from nanoagent.container.work_directory import WorkDirectory

WAIT_S = 30.0


@pytest.fixture
def home() -> Iterator[WorkerHome]:
    with worker_home() as home:
        yield home


@pytest.fixture(params=["docker", "fake"])
async def driver(request: pytest.FixtureRequest) -> AsyncIterator[DockerDriver | FakeDriver]:
    driver = DockerDriver() if request.param == "docker" else FakeDriver()
    yield driver
    await driver.close()


@pytest.fixture
async def create(
    driver: DockerDriver | FakeDriver, home: WorkerHome
) -> AsyncIterator[Callable[[str], Awaitable[RunningContainer]]]:
    """Makes a container in a directory of that name; removes it after the test."""
    made: list[tuple[RunningContainer, WorkDirectory]] = []

    async def create(name: str) -> RunningContainer:
        directory = home.new_work_directory(name)
        container = await driver.create(spec_for(home, directory), directory)
        made.append((container, directory))
        return container

    yield create
    for container, directory in made:
        await driver.remove(container.id)
        await directory.remove()


def containers_of(driver: DockerDriver | FakeDriver, home: WorkerHome) -> list[str]:
    """The names of a worker's containers, as the engine itself knows them."""
    if isinstance(driver, FakeDriver):
        return [container.spec.name for container in driver.running.values()]
    label = f"label=nanoagent.worker={home.path.name}"
    listed = subprocess.run(
        ["docker", "ps", "-a", "--filter", label, "--format", "{{.Names}}"],
        check=True,
        capture_output=True,
        text=True,
    )
    return listed.stdout.split()


def kill(driver: DockerDriver | FakeDriver, container_id: str) -> None:
    """End a container from outside."""
    if isinstance(driver, FakeDriver):
        driver.kill(container_id)
    else:
        subprocess.run(["docker", "kill", container_id], check=True, capture_output=True)


async def test_a_created_container_has_connected_and_greeted(create, driver, home):
    container = await create("one")
    assert container.session.is_usable
    assert containers_of(driver, home) == [container.spec.name]


async def test_nobody_can_connect_to_the_socket_a_second_time(create):
    container = await create("one")
    assert {path.name for path in container.work_directory.path.iterdir()} <= {"hosts", "passwd", "group"}


async def test_a_removed_container_is_gone_and_its_session_hears_it(create, driver, home):
    container = await create("one")
    await driver.remove(container.id)
    with pytest.raises(ContainerError):
        await container.session.prepare()
    assert containers_of(driver, home) == []


async def test_removing_twice_is_as_good_as_once(create, driver):
    container = await create("one")
    await driver.remove(container.id)
    await driver.remove(container.id)


async def test_removing_what_never_was_is_fine(driver):
    await driver.remove("no-such-container")


async def test_a_creation_that_fails_leaves_nothing(driver, home):
    directory = home.new_work_directory("one")
    if isinstance(driver, FakeDriver):
        driver.failures.append("no such image: nanoagent-nowhere")
    with pytest.raises(ContainerError, match="nanoagent-nowhere"):
        await driver.create(spec_for(home, directory, image="nanoagent-nowhere"), directory)
    await directory.remove()
    assert containers_of(driver, home) == []
    assert list((home.path / "slots").iterdir()) == []


async def test_a_creation_that_is_cancelled_leaves_nothing(driver, home):
    directory = home.new_work_directory("one")
    creation = asyncio.create_task(driver.create(spec_for(home, directory), directory))
    async with asyncio.timeout(WAIT_S):
        while not (directory.path / "agent.sock").exists():  # noqa: ASYNC110 - a file is no event
            await asyncio.sleep(0)  # let the creation go on, up to its first step that can be seen
    creation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creation
    await directory.remove()
    assert containers_of(driver, home) == []
    assert not directory.path.exists()


async def test_deaths_are_reported_and_the_session_ends(create, driver):
    container = await create("one")
    async with heard(driver) as deaths:
        kill(driver, container.id)
        await until_told(deaths, container.id)
    with pytest.raises(ContainerError):
        await container.session.prepare()


async def test_deaths_can_be_listened_to_again(create, driver):
    for name in ("one", "two"):
        container = await create(name)
        async with heard(driver) as deaths:
            kill(driver, container.id)
            await until_told(deaths, container.id)


@asynccontextmanager
async def heard(driver: DockerDriver | FakeDriver) -> AsyncIterator[asyncio.Queue[str]]:
    """What is told of deaths from now on."""
    told: asyncio.Queue[str] = asyncio.Queue()

    async def listen() -> None:
        async for container_id in driver.deaths():
            told.put_nowait(container_id)

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0)  # the subscription is asked for in the task's first step
    yield told
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def until_told(deaths: asyncio.Queue[str], container_id: str) -> None:
    """Wait for that one's death; those of other workers' containers may be told as well."""
    async with asyncio.timeout(WAIT_S):
        while await deaths.get() != container_id:
            pass


async def test_limits_can_be_changed_through_the_engine(create, driver):
    container = await create("one")
    await driver.set_limits(container.id, 200 * MIB, share=2.0, most=0.5)
    if isinstance(driver, FakeDriver):
        assert driver.running[container.id].limits == (200 * MIB, 2.0, 0.5)
    else:
        assert container.group is not None
        limit_file, quota_file, share_file = limit_files(container)
        assert int(limit_file.read_text()) == 200 * MIB
        assert quota_file.read_text().split()[0] == "50000"
        # How shares become a weight differs between versions of runc: more than one CPU's it is.
        one_cpu = 1024 if share_file.name == "cpu.shares" else 39
        assert int(share_file.read_text()) > one_cpu


def limit_files(container):
    group = container.group
    if hasattr(group, "memory"):
        cpu = group.cpu
        return group.memory / "memory.limit_in_bytes", cpu / "cpu.cfs_quota_us", cpu / "cpu.shares"
    return group.folder / "memory.max", group.folder / "cpu.max", group.folder / "cpu.weight"


async def test_changing_the_limits_of_no_container_fails(driver):
    with pytest.raises(ContainerError):
        await driver.set_limits("no-such-container", 200 * MIB, share=0.5, most=0.5)


async def test_a_recycled_container_takes_code_as_a_new_one_does_and_its_old_session_has_ended(
    driver, home, tmp_path
):
    if isinstance(driver, FakeDriver):
        driver.recyclable = True
    (tmp_path / "main.py").write_text("print('hello')\n")
    directory = home.new_work_directory("one")
    spec = replace(spec_for(home, directory), isolation=Isolation.SANDBOX)
    container = await driver.create(spec, directory)
    assert container.can_be_recycled
    for _ in range(2):
        before = container.session
        await directory.put_code(packed(tmp_path))
        await before.prepare()
        await driver.recycle(container)
        assert {path.name for path in directory.path.iterdir()} == {"hosts"}
        assert container.session is not before
        with pytest.raises(ContainerError):
            await before.prepare()
    assert container.session.is_usable
    assert containers_of(driver, home) == [spec.name]
    await driver.remove(container.id)
    await directory.remove()


async def test_a_dead_container_is_not_recycled(driver, home):
    if isinstance(driver, FakeDriver):
        driver.recyclable = True
    directory = home.new_work_directory("one")
    spec = replace(spec_for(home, directory), isolation=Isolation.SANDBOX)
    container = await driver.create(spec, directory)
    async with heard(driver) as deaths:
        kill(driver, container.id)
        await until_told(deaths, container.id)
    with pytest.raises(NotRecycled) as raised:
        await driver.recycle(container)
    assert raised.value.failure is RecyclingFailure.ERROR
    await driver.remove(container.id)
    await directory.remove()


class TestDockerOnly:
    @pytest.fixture
    async def docker(self) -> AsyncIterator[DockerDriver]:
        driver = DockerDriver()
        yield driver
        await driver.close()

    @pytest.mark.parametrize("moment", ["create", "start"])
    async def test_a_creation_cancelled_while_the_engine_works_on_it_leaves_nothing(
        self, docker, home, moment, monkeypatch
    ):
        # No supervisor is let in, so that the creation cannot have ended before it is cancelled.
        monkeypatch.setattr("nanoagent.container.supervisor_socket._uid_of", lambda _: -1)
        directory = home.new_work_directory("one")
        engine = aiodocker.Docker()
        events = engine.events.subscribe(
            since=f"{time.time():.6f}",
            filters=json.dumps({"event": [moment], "label": [f"{LABEL_WORKER}={home.path.name}"]}),
        )
        creation = asyncio.create_task(docker.create(spec_for(home, directory), directory))
        async with asyncio.timeout(WAIT_S):
            await events.get()
        creation.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creation
        await engine.close()
        await directory.remove()
        assert containers_of(docker, home) == []

    async def test_an_image_that_is_missing_is_named_with_the_remedy(self, docker):
        with pytest.raises(ContainerError, match="nanoagent-nowhere does not exist: build it"):
            await docker.client.image_id("nanoagent-nowhere")

    async def test_an_engine_that_cannot_be_reached_is_told_as_our_own_error(self, monkeypatch, tmp_path):
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
        driver = DockerDriver()
        with pytest.raises(ContainerError, match=r"nobody\.sock"):
            await driver.ping()
        await driver.close()

    async def test_an_engine_that_cannot_be_heard_is_told_as_our_own_error(self, monkeypatch, tmp_path):
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
        driver = DockerDriver()
        with pytest.raises(ContainerError, match="events ended"):
            await anext(driver.deaths())
        await driver.close()

    async def test_containers_of_a_dead_worker_are_removed_with_its_folder(self, docker, home):
        dead = WorkerHome(home.path.parent, "dead")
        dead.claim()
        directory = dead.new_work_directory("one")
        await docker.create(spec_for(dead, directory), directory)
        release_as_the_kernel_does(dead)
        assert await remove_orphans(docker.client, home.path) >= 1
        assert containers_of(docker, dead) == []
        assert not dead.path.exists()
        await directory.remove()

    async def test_containers_of_a_live_worker_are_left_alone(self, docker, home):
        with worker_home() as other:
            directory = other.new_work_directory("one")
            container = await docker.create(spec_for(other, directory), directory)
            await remove_orphans(docker.client, home.path)
            assert containers_of(docker, other) == [container.spec.name]
            await docker.remove(container.id)
            await directory.remove()

    async def test_containers_of_a_predecessor_of_the_same_name_are_removed(self, docker, home):
        directory = home.new_work_directory("one")
        await docker.create(spec_for(home, directory), directory)
        await remove_orphans(docker.client, home.path)
        assert containers_of(docker, home) == []
        assert home.path.exists()
        await directory.remove()


def release_as_the_kernel_does(home: WorkerHome) -> None:
    """Give up the lock, and leave the folder as a worker does that is killed."""
    os.close(home._lock)
    home._lock = -1
