"""Finds the isolation level that is possible on this host, with one real container."""

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

_PROBED: Final = Runtime.CPP  # its containers start fastest, because they have no interpreter
_NO_PROFILE: Final = (
    "Docker confines containers with AppArmor, and its own profile forbids the mounts of a sandbox; load "
    "deploy/apparmor/nanoagent (see deploy/apparmor/README.md)"
)
_WRONG_PROFILE: Final = "load deploy/apparmor/nanoagent of this version"


@dataclass(frozen=True, slots=True)
class HostIsolation:
    """The isolation that is possible on this host.

    Attributes:
        isolation: `SANDBOX` or `SHARED`.
        apparmor: The AppArmor profile that containers need; None if they need none.
        reason: Why the isolation is not `SANDBOX`; None if it is `SANDBOX`.
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
    """Create one container with a sandbox, remove it, and return the isolation that was possible.

    Args:
        driver: Creates the container.
        home: The folder of the worker.
        policy: The settings of containers.
        apparmor: The AppArmor profile to use; None if the engine does not confine containers with AppArmor.

    Raises:
        ContainerError: No container can be created, even without a sandbox.
    """
    wanted = replace(policy, isolation=Isolation.SANDBOX, apparmor=apparmor)
    try:
        reason = await _attempt(driver, home, wanted)
    except ContainerError as exc:
        if apparmor is None:
            raise
        # Try without the profile. If the cause is another one (such as a missing image), this also fails.
        await _attempt(driver, home, replace(wanted, isolation=Isolation.SHARED, apparmor=None))
        return HostIsolation(Isolation.SHARED, None, f"{_NO_PROFILE}: {exc}")
    if reason is None:
        return HostIsolation(Isolation.SANDBOX, apparmor)
    if apparmor is not None:
        reason = f"{reason} (under the AppArmor profile {apparmor}: {_WRONG_PROFILE})"
    return HostIsolation(Isolation.SHARED, None, reason)


def isolation_problems(found: HostIsolation, lowest_level: str, sharing: Sharing) -> list[str]:
    """Return the settings that ask for more isolation than is possible; empty if there are none.

    L0, a new container for each run (`CONTAINER_SHARING=never`), also meets MIN_ISOLATION=L1, because its
    runs share nothing.

    Args:
        found: The isolation that is possible on this host.
        lowest_level: MIN_ISOLATION: `L2`, `L1` or `L0`.
        sharing: CONTAINER_SHARING.
    """
    if found.isolation is Isolation.SANDBOX:
        return []
    problems = []
    if lowest_level == "L2":
        problems.append(
            f"MIN_ISOLATION: L2 is not possible on this host ({found.reason}); it should be L1 or L0"
        )
    if sharing in {Sharing.WORKER, Sharing.TENANT}:
        problems.append(
            f"CONTAINER_SHARING: {sharing} needs a sandbox for each run (L2), which is not possible on this "
            f"host ({found.reason}); it should be function or never"
        )
    return problems


async def _attempt(driver: Driver, home: WorkerHome, policy: PoolPolicy) -> str | None:
    """Create one container; return why it has no sandbox, or None."""
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
