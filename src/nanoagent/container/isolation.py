"""Which level of isolation this host allows, found out by trying it once with a real container."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from nanoagent.container.pool import generic_spec
from nanoagent.errors import ContainerError
from nanoagent.job import Runtime
from nanoagent.result import Isolation

if TYPE_CHECKING:
    from nanoagent.container.base import Driver, RunningContainer
    from nanoagent.container.policy import PoolPolicy
    from nanoagent.container.slot import WorkerHome

_PROBED: Final = Runtime.CPP  # no interpreter waits in it: the quickest to come up
_NO_PROFILE: Final = (
    "Docker confines containers with AppArmor here, and its own profile forbids the mounts of a sandbox; "
    "load deploy/apparmor/nanoagent (deploy/apparmor/README.md says how)"
)


@dataclass(frozen=True, slots=True)
class Verdict:
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
) -> Verdict:
    """Make one container for a sandbox, and remove it again.

    Args:
        driver: Makes it.
        home: Has its slot folder.
        policy: What containers are made from.
        apparmor: The profile to ask for, where the engine confines containers with AppArmor.

    Raises:
        ContainerError: No container at all can be made.
    """
    try:
        reason = await _attempt(driver, home, replace(policy, isolation=Isolation.SANDBOX, apparmor=apparmor))
    except ContainerError as exc:
        if apparmor is None:
            raise
        return Verdict(Isolation.SHARED, None, f"{_NO_PROFILE}: {exc}")
    if reason is None:
        return Verdict(Isolation.SANDBOX, apparmor)
    return Verdict(Isolation.SHARED, None, reason)


async def _attempt(driver: Driver, home: WorkerHome, policy: PoolPolicy) -> str | None:
    """Why no sandbox can be made in such a container, or None."""
    slot = home.new_slot("probe")
    container: RunningContainer | None = None
    try:
        container = await driver.create(generic_spec(policy, home, _PROBED, slot), slot)
        return container.isolation_reason
    finally:
        if container is not None:
            await driver.remove(container.id)
        await slot.remove()
