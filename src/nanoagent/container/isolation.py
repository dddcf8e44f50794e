"""Which level of isolation this host allows, found out by trying it once with a real container."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from nanoagent.container.creation import generic_spec
from nanoagent.container.policy import Sharing
from nanoagent.model.errors import ContainerError
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation

if TYPE_CHECKING:
    from nanoagent.container.base import Driver, RunningContainer
    from nanoagent.container.policy import PoolPolicy
    from nanoagent.container.worker_home import WorkerHome

_PROBED: Final = Runtime.CPP  # no interpreter waits in it: the quickest to come up
_NO_PROFILE: Final = (
    "Docker confines containers with AppArmor here, and its own profile forbids the mounts of a sandbox; "
    "load deploy/apparmor/nanoagent (deploy/apparmor/README.md says how)"
)
_WRONG_PROFILE: Final = "is it this version's deploy/apparmor/nanoagent that is loaded?"


@dataclass(frozen=True, slots=True)
class HostIsolation:
    """What can be had.

    Attributes:
        isolation: `SANDBOX` or `SHARED`.
        apparmor: The AppArmor profile that it takes, if any.
        reason: Why it is not `SANDBOX`; None when it is.
    """

    isolation: Isolation
    apparmor: str | None = None
    reason: str | None = None


async def probe(
    driver: Driver,
    home: WorkerHome,
    policy: PoolPolicy,
    *,
    apparmor: str | None,
) -> HostIsolation:
    """Make one container for a sandbox, and remove it again.

    Args:
        driver: Makes it.
        home: Has its work directory.
        policy: What containers are made from.
        apparmor: The profile to ask for, where the engine confines containers with AppArmor.

    Raises:
        ContainerError: No container at all can be made.
    """
    wanted = replace(policy, isolation=Isolation.SANDBOX, apparmor=apparmor)
    try:
        reason = await _attempt(driver, home, wanted)
    except ContainerError as exc:
        if apparmor is None:
            raise
        # What else may be wrong with containers, the image say, is wrong without the profile as well.
        await _attempt(driver, home, replace(wanted, isolation=Isolation.SHARED, apparmor=None))
        return HostIsolation(Isolation.SHARED, None, f"{_NO_PROFILE}: {exc}")
    if reason is None:
        return HostIsolation(Isolation.SANDBOX, apparmor)
    if apparmor is not None:
        reason = f"{reason} (under the AppArmor profile {apparmor}: {_WRONG_PROFILE})"
    return HostIsolation(Isolation.SHARED, None, reason)


def isolation_problems(verdict: HostIsolation, lowest_level: str, sharing: Sharing) -> list[str]:
    """What the settings ask for and this host cannot give; empty when there is nothing.

    A container for each run (L0, `CONTAINER_SHARING=never`) is not below L1: nothing is shared.

    Args:
        verdict: What the host can give.
        lowest_level: MIN_ISOLATION: `L2`, `L1` or `L0`.
        sharing: CONTAINER_SHARING.
    """
    if verdict.isolation is Isolation.SANDBOX:
        return []
    problems = []
    if lowest_level == "L2":
        problems.append(f"MIN_ISOLATION: L2 cannot be had here ({verdict.reason}); it should be L1 or L0")
    if sharing is Sharing.WORKER:
        problems.append(
            "CONTAINER_SHARING: worker takes a sandbox for each run (L2), which cannot be had here "
            f"({verdict.reason}); it should be function or never"
        )
    return problems


async def _attempt(driver: Driver, home: WorkerHome, policy: PoolPolicy) -> str | None:
    """Why no sandbox can be made in such a container, or None."""
    work_directory = home.new_work_directory(secrets.token_hex(5))
    container: RunningContainer | None = None
    try:
        container = await driver.create(generic_spec(policy, home, _PROBED, work_directory), work_directory)
        return container.isolation_reason
    finally:
        if container is not None:
            if container.group is not None:
                container.group.close()
            await driver.remove(container.id)
        await work_directory.remove()
