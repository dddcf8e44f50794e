"""Which level of isolation is found, and what is made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nanoagent.container.isolation import HostIsolation, isolation_problems, probe
from nanoagent.container.policy import Sharing
from nanoagent.model.errors import ContainerError
from nanoagent.model.result import Isolation
from support.doubles.fake_driver import FakeDriver, fake_policy
from support.doubles.fake_supervisor import Script
from support.sandboxes.containers import worker_home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.container.worker_home import WorkerHome

FORBIDDEN = "mount /proc: Permission denied"


@pytest.fixture
def home() -> Iterator[WorkerHome]:
    with worker_home() as home:
        yield home


async def probed(driver: FakeDriver, home: WorkerHome, apparmor: str | None = None) -> HostIsolation:
    verdict = await probe(driver, home, fake_policy(), apparmor=apparmor)
    assert driver.running == {}
    assert not list((home.path / "slots").iterdir())
    return verdict


async def test_a_host_that_allows_it_gets_a_sandbox(home):
    assert await probed(FakeDriver(), home) == HostIsolation(Isolation.SANDBOX)


async def test_the_level_is_that_of_the_runtime_that_containers_are_made_with(home):
    driver = FakeDriver(Script(why_not_sandboxed=FORBIDDEN))
    verdict = await probe(driver, home, fake_policy(docker_runtime="runsc"), apparmor=None)
    assert verdict.isolation is Isolation.SHARED
    assert [spec.docker_runtime for spec in driver.created] == ["runsc"]


async def test_the_apparmor_profile_is_used_where_there_is_apparmor(home):
    driver = FakeDriver()
    assert await probed(driver, home, "ours") == HostIsolation(Isolation.SANDBOX, "ours")
    (spec,) = driver.created
    assert (spec.isolation, spec.apparmor) == (Isolation.SANDBOX, "ours")


async def test_a_host_that_forbids_it_gets_the_shared_level_with_the_supervisors_reason(home):
    verdict = await probed(FakeDriver(Script(why_not_sandboxed=FORBIDDEN)), home)
    assert verdict.isolation is Isolation.SHARED
    assert FORBIDDEN in str(verdict.reason)


async def test_a_profile_that_is_not_loaded_is_named_with_the_remedy(home):
    verdict = await probed(FakeDriver(failures=["apparmor failed to apply profile"]), home, "ours")
    assert (verdict.isolation, verdict.apparmor) == (Isolation.SHARED, None)
    assert "deploy/apparmor/nanoagent" in str(verdict.reason)
    assert "apparmor failed to apply profile" in str(verdict.reason)


async def test_a_profile_that_forbids_the_sandbox_is_doubted(home):
    verdict = await probed(FakeDriver(Script(why_not_sandboxed=FORBIDDEN)), home, "ours")
    assert verdict.isolation is Isolation.SHARED
    assert FORBIDDEN in str(verdict.reason)
    assert "the AppArmor profile ours" in str(verdict.reason)


async def test_what_is_wrong_without_the_profile_as_well_is_not_blamed_on_it(home):
    driver = FakeDriver(failures=["supervisor speaks protocol 1"] * 2)
    with pytest.raises(ContainerError, match="protocol 1"):
        await probed(driver, home, "ours")


async def test_a_host_on_which_no_container_comes_up_is_no_question_of_levels(home):
    with pytest.raises(ContainerError, match="no such image"):
        await probed(FakeDriver(failures=["no such image"]), home)


SHARED = HostIsolation(Isolation.SHARED, None, FORBIDDEN)


@pytest.mark.parametrize(
    ("verdict", "lowest", "sharing", "settings"),
    [
        (HostIsolation(Isolation.SANDBOX), "L2", Sharing.WORKER, []),
        (SHARED, "L1", Sharing.FUNCTION, []),
        (SHARED, "L0", Sharing.NEVER, []),
        (SHARED, "L1", Sharing.NEVER, []),
        (SHARED, "L2", Sharing.FUNCTION, ["MIN_ISOLATION"]),
        (SHARED, "L2", Sharing.NEVER, ["MIN_ISOLATION"]),
        (SHARED, "L1", Sharing.WORKER, ["CONTAINER_SHARING"]),
        (HostIsolation(Isolation.SANDBOX), "L2", Sharing.TENANT, []),
        (SHARED, "L1", Sharing.TENANT, ["CONTAINER_SHARING"]),
        (SHARED, "L2", Sharing.WORKER, ["MIN_ISOLATION", "CONTAINER_SHARING"]),
    ],
)
def test_what_the_settings_ask_for_and_cannot_have_is_named(verdict, lowest, sharing, settings):
    problems = isolation_problems(verdict, lowest, sharing)
    assert [problem.split(":")[0] for problem in problems] == settings
    assert all(FORBIDDEN in problem and "should be" in problem for problem in problems)


@pytest.mark.parametrize(
    ("changes", "between_runs"),
    [
        ({"isolation": Isolation.SANDBOX}, Isolation.SANDBOX),
        ({"isolation": Isolation.SANDBOX, "sharing": Sharing.NEVER}, Isolation.SANDBOX),
        ({"isolation": Isolation.SHARED}, Isolation.SHARED),
        ({"isolation": Isolation.SHARED, "sharing": Sharing.NEVER}, Isolation.CONTAINER),
        ({"isolation": Isolation.SHARED, "max_runs": 1}, Isolation.CONTAINER),
    ],
)
def test_the_reported_isolation_is_the_real_one(changes, between_runs):
    assert fake_policy(**changes).isolation_between_runs is between_runs
