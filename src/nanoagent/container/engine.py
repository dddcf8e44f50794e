"""What Docker says of itself: whether it can keep jobs apart as the settings ask, and who they are outside.

All of it is pure. `docs/outer-walls.md` has what was tried with which runtime, and with remapped user ids.

Sources: Docker Engine API v1.41 (SystemInfo), user_namespaces(7), docs.docker.com "Isolate containers with a
user namespace" and "Rootless mode".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

REMAPPED_IDS: Final = 65_536  # what adduser and Docker write into /etc/subuid for one user
_NOBODY: Final = 65_534  # the kernel's overflow id: whatever has no other
_UID_RANGE: Final = 200_000_000
_LIMITS: Final = {
    "MemoryLimit": "memory",
    "PidsLimit": "processes",
    "CpuCfsQuota": "CPU time",
    "CPUShares": "shares of the CPUs",
}
_RESERVE_BYTES: Final = 2048 * MIB  # what the default of WORKER_MEMORY_MB leaves
_REMAPPING: Final = ("name=userns", "name=rootless")


def container_uids(base: int) -> range:
    """The user ids that containers may have: from CONTAINER_UID_BASE upward.

    A base below 65,536 is one for an engine that remaps user ids; then they end where its own do.
    """
    return range(base, _NOBODY if base < REMAPPED_IDS else base + _UID_RANGE)


def remaps_users(info: Mapping[str, Any]) -> bool:
    """Whether a user id in a container is another one outside (`userns-remap`, rootless)."""
    return any(option.startswith(_REMAPPING) for option in map(str, info.get("SecurityOptions") or []))


def engine_problems(info: Mapping[str, Any], *, docker_runtime: str | None, uid_base: int) -> list[str]:
    """Why containers cannot be made as the settings ask; empty when nothing speaks against it.

    Args:
        info: Docker's answer to `GET /info`. What another engine leaves out of it is taken to be well.
        docker_runtime: DOCKER_RUNTIME.
        uid_base: CONTAINER_UID_BASE.
    """
    problems = []
    runtimes = info.get("Runtimes") or {}
    # A shim's full name (io.containerd.kata.v2) need not be listed: Docker looks for it when it is used.
    if docker_runtime is not None and docker_runtime not in runtimes and docker_runtime.count(".") < 2:
        problems.append(
            f"DOCKER_RUNTIME: Docker has no runtime {docker_runtime}; it has {', '.join(sorted(runtimes))}: "
            'name one of these, or add it to "runtimes" in /etc/docker/daemon.json and restart Docker'
        )
    missing = [words for name, words in _LIMITS.items() if info.get(name) is False]
    if missing:
        problems.append(
            f"DOCKER_HOST: this Docker cannot limit {', '.join(missing)}, so that one job could take the "
            f"whole machine (cgroup driver {info.get('CgroupDriver')}, version {info.get('CgroupVersion')}); "
            "rootless Docker takes control groups v2 and systemd, with cpu, memory and pids delegated to its "
            "user (docs/outer-walls.md)"
        )
    if remaps_users(info) and uid_base >= REMAPPED_IDS:
        problems.append(
            f"CONTAINER_UID_BASE: {uid_base} is no user id that this Docker has in its containers, because "
            f"it remaps {REMAPPED_IDS} of them; it should be 20000, say"
        )
    return problems


@dataclass(frozen=True, slots=True)
class MemoryShare:
    """How WORKER_MEMORY_MB and the machine's memory go together.

    Attributes:
        found: Both, for people.
        fits: Whether the machine has so much memory at all.
        leaves_room: Whether enough is left for the agent, Docker and the system.
        advised_mb: A value with room for them, MiB.
    """

    found: str
    fits: bool
    leaves_room: bool
    advised_mb: int

    @property
    def warning(self) -> str | None:
        """What is wrong and the remedy in one sentence; None when nothing is."""
        if self.leaves_room:
            return None
        return f"{self.found}; set WORKER_MEMORY_MB={self.advised_mb}"


def memory_share(info: Mapping[str, Any], worker_memory_mb: int) -> MemoryShare | None:
    """Compare WORKER_MEMORY_MB with the memory of Docker's machine; None where Docker does not tell it.

    Args:
        info: Docker's answer to `GET /info`.
        worker_memory_mb: WORKER_MEMORY_MB.
    """
    total, wanted = info.get("MemTotal"), worker_memory_mb * MIB
    if not isinstance(total, int) or not total:
        return None
    reserve = min(total // 4, _RESERVE_BYTES)
    fits, leaves_room = wanted <= total, wanted <= total - reserve // 2
    found = f"WORKER_MEMORY_MB={worker_memory_mb} of the machine's {total // MIB} MiB"
    if not fits:
        found += ": jobs together could use more memory than there is"
    elif not leaves_room:
        found += ": too little is left for the agent, Docker and the system"
    return MemoryShare(found, fits, leaves_room, (total - reserve) // MIB)


def outside_uid(uid: int, uid_map: str) -> int | None:
    """Who a user in a container is outside of it; None for one that it does not have.

    Args:
        uid: The id inside.
        uid_map: The text of /proc/PID/uid_map of one of its processes, read from outside.
    """
    for line in uid_map.splitlines():
        inside, outside, count = map(int, line.split())
        if inside <= uid < inside + count:
            return outside + uid - inside
    return None
