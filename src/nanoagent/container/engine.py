"""Compares Docker's description of itself with the settings. All functions are pure.

`docs/outer-walls.md` lists the runtimes that were tested, also with remapped user IDs.

Sources: Docker Engine API v1.41 (SystemInfo), user_namespaces(7), docs.docker.com "Isolate containers with a
user namespace" and "Rootless mode".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

REMAPPED_IDS: Final = 65_536  # the range that adduser and Docker write into /etc/subuid for one user
_NOBODY: Final = 65_534  # the kernel's overflow ID, for users without a mapping
_UID_RANGE: Final = 200_000_000
_LIMITS: Final = {
    "MemoryLimit": "memory",
    "PidsLimit": "processes",
    "CpuCfsQuota": "CPU time",
    "CPUShares": "shares of the CPUs",
}
_RESERVE_BYTES: Final = 2048 * MIB  # the default of WORKER_MEMORY_MB leaves the same reserve
_REMAPPING: Final = ("name=userns", "name=rootless")


def container_uids(base: int) -> range:
    """Return the user IDs for containers.

    Args:
        base: CONTAINER_UID_BASE, the lowest user ID. A base below 65,536 is for an engine that remaps user
            IDs. The range then ends below 65,534 (`nobody`).
    """
    return range(base, _NOBODY if base < REMAPPED_IDS else base + _UID_RANGE)


def remaps_users(info: Mapping[str, Any]) -> bool:
    """Whether a user ID in a container is another one on the host (`userns-remap`, rootless).

    Args:
        info: Docker's answer to `GET /info`.
    """
    return any(option.startswith(_REMAPPING) for option in map(str, info.get("SecurityOptions") or []))


def engine_problems(info: Mapping[str, Any], *, docker_runtime: str | None, uid_base: int) -> list[str]:
    """Return the reasons why Docker cannot create containers with these settings; empty if it can.

    Args:
        info: Docker's answer to `GET /info`. A field that another engine omits is not a problem.
        docker_runtime: DOCKER_RUNTIME.
        uid_base: CONTAINER_UID_BASE.
    """
    problems = []
    runtimes = info.get("Runtimes") or {}
    # A full name of a shim (io.containerd.kata.v2) is perhaps not in the list, and still works: Docker looks
    # for the shim at its first use.
    if docker_runtime is not None and docker_runtime not in runtimes and docker_runtime.count(".") < 2:
        problems.append(
            f"DOCKER_RUNTIME: Docker has no runtime {docker_runtime}; it has {', '.join(sorted(runtimes))}: "
            'use one of these, or add it to "runtimes" in /etc/docker/daemon.json and restart Docker'
        )
    missing = [words for name, words in _LIMITS.items() if info.get(name) is False]
    if missing:
        problems.append(
            f"DOCKER_HOST: this Docker cannot limit {', '.join(missing)}, so one job could use up the "
            f"whole machine (cgroup driver {info.get('CgroupDriver')}, version {info.get('CgroupVersion')}); "
            "rootless Docker needs control groups v2 and systemd, with cpu, memory and pids delegated to its "
            "user (docs/outer-walls.md)"
        )
    if remaps_users(info) and uid_base >= REMAPPED_IDS:
        problems.append(
            f"CONTAINER_UID_BASE: {uid_base} is not a user ID of this Docker's containers, because Docker "
            f"remaps user IDs and has only the IDs below {REMAPPED_IDS}; it should be 20000, for example"
        )
    return problems


@dataclass(frozen=True, slots=True)
class MemoryShare:
    """WORKER_MEMORY_MB compared with the memory of Docker's machine.

    Attributes:
        found: Both values, and the problem if there is one.
        fits: Whether the machine has at least as much memory as the setting allows.
        leaves_room: Whether enough memory is left for the worker, Docker and the system.
        advised_mb: A value of the setting that leaves enough memory, MiB.
    """

    found: str
    fits: bool
    leaves_room: bool
    advised_mb: int

    @property
    def warning(self) -> str | None:
        """The problem and the remedy in one sentence; None if there is no problem."""
        if self.leaves_room:
            return None
        return f"{self.found}; set WORKER_MEMORY_MB={self.advised_mb}"


def memory_share(info: Mapping[str, Any], worker_memory_mb: int) -> MemoryShare | None:
    """Compare WORKER_MEMORY_MB with the memory of Docker's machine.

    Args:
        info: Docker's answer to `GET /info`.
        worker_memory_mb: WORKER_MEMORY_MB.

    Returns:
        The comparison; None if Docker does not report its memory.
    """
    total, wanted = info.get("MemTotal"), worker_memory_mb * MIB
    if not isinstance(total, int) or not total:
        return None
    reserve = min(total // 4, _RESERVE_BYTES)
    fits, leaves_room = wanted <= total, wanted <= total - reserve // 2
    found = f"WORKER_MEMORY_MB={worker_memory_mb} of the machine's {total // MIB} MiB"
    if not fits:
        found += ": jobs together could use more memory than the machine has"
    elif not leaves_room:
        found += ": too little is left for the worker, Docker and the system"
    return MemoryShare(found, fits, leaves_room, (total - reserve) // MIB)


def outside_uid(uid: int, uid_map: str) -> int | None:
    """Return the user ID that a user of a container has on the host.

    Args:
        uid: The user ID in the container.
        uid_map: The text of /proc/PID/uid_map of a process in the container, read on the host.

    Returns:
        The user ID; None if the container has no such user.
    """
    for line in uid_map.splitlines():
        inside, outside, count = map(int, line.split())
        if inside <= uid < inside + count:
            return outside + uid - inside
    return None
