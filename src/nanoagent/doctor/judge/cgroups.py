"""Findings about control groups: whether containers can be limited, and their memory be measured.

Source: kernel documentation, admin-guide/cgroup-v2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nanoagent.doctor import facts
from nanoagent.doctor.finding import Area, Finding, note, problem, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.doctor.facts import Host

_DAC_OVERRIDE: Final = 1 << 1  # capability.h


def judge(host: Host) -> Iterator[Finding]:
    """Return all findings about the machine's control groups."""
    version = host.cgroup_version
    if version is None:
        yield problem(
            Area.CGROUPS,
            "no control groups are mounted, or /proc/self/mountinfo cannot be read",
            "boot with systemd, or: mount -t cgroup2 none /sys/fs/cgroup",
        )
        return
    missing = [name for name in ("memory", "pids", "cpu") if name not in host.controllers]
    if missing:
        parameter = "cgroup_enable=memory, " if "memory" in missing else ""
        yield problem(
            Area.CGROUPS,
            f"version {version} without the controllers {', '.join(missing)}: containers cannot have these "
            "limits",
            f"kernel parameters: {parameter}no cgroup_disable=; if Docker runs in a container, delegate the "
            "controllers to it",
        )
    else:
        yield Finding(Area.CGROUPS, f"version {version} with memory, pids and cpu")
    yield from _memory_peaks(host, version)
    yield _write_access(host)
    yield from _hidden_processes(host)


def _memory_peaks(host: Host, version: int) -> Iterator[Finding]:
    if version == 2 and host.kernel is None:
        return
    if version == 1 or not host.is_older_than(6, 12):
        yield Finding(Area.CGROUPS, "the peak of memory can be read and reset")
    elif host.is_older_than(5, 19):
        yield warning(
            Area.CGROUPS,
            f"Linux {host.release} has no memory.peak in version 2: peakMemoryBytes and advice are null",
            "use a kernel of 5.19 or newer (6.12 for the peak of every run); or version 1, with the kernel "
            "parameter systemd.unified_cgroup_hierarchy=0",
        )
    else:
        yield note(
            Area.CGROUPS,
            f"Linux {host.release} cannot reset memory.peak: peakMemoryBytes is null for some later runs of "
            "a container",
            "use a kernel of 6.12 or newer, or CONTAINER_MAX_RUNS=1",
        )


def _write_access(host: Host) -> Finding:
    points = set(host.cgroup_mounts.values())
    read_only = sorted(
        mount.point for mount in host.mounts if mount.point in points and "ro" in mount.options
    )
    permitted = host.status("CapPrm")
    effect = (
        "limits are set through Docker's API (30 ms for a container's first run), and some peaks of memory "
        "are not known"
    )
    if read_only:
        return warning(
            Area.CGROUPS,
            f"{', '.join(read_only)} is mounted read-only: {effect}",
            "ProtectControlGroups=no and ReadWritePaths=/sys/fs/cgroup in the unit, or mount it rw",
        )
    if host.uid == 0 or (permitted and int(permitted, 16) & _DAC_OVERRIDE):
        return Finding(Area.CGROUPS, "this user may write the containers' control groups")
    return note(
        Area.CGROUPS,
        f"this user may not write the containers' control groups: {effect}",
        "AmbientCapabilities=CAP_DAC_OVERRIDE, as in nanogrid-worker.service (this shell does not have the "
        "capability, but the unit does)",
    )


def _hidden_processes(host: Host) -> Iterator[Finding]:
    proc = facts.mount_of("/proc", host.mounts)
    hiding = [
        option
        for option in (proc.options if proc else ())
        if option.startswith("hidepid=") and option not in {"hidepid=0", "hidepid=off"}
    ]
    if hiding and host.uid != 0:
        yield warning(
            Area.CGROUPS,
            f"/proc is mounted with {hiding[0]}: the worker cannot find the containers' control groups. It "
            "neither measures memory nor notices the kernel's out-of-memory kills",
            "mount -o remount,hidepid=0 /proc; under systemd, ProtectProc=default",
        )
