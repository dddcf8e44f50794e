"""What is known of a host and its services, as plain values: made by `gather`, judged elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanoagent.container import cgroup, engine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nanoagent.container.isolation import Verdict as Level
    from nanoagent.model.job import Runtime

MOUNTINFO: Final = "/proc/self/mountinfo"
STATUS: Final = "/proc/self/status"
LSM_LIST: Final = "/sys/kernel/security/lsm"
APPARMOR_PROFILES: Final = "/sys/kernel/security/apparmor/profiles"

FILES: Final = (
    MOUNTINFO,
    STATUS,
    LSM_LIST,
    APPARMOR_PROFILES,
    "/proc/1/comm",
    "/proc/swaps",
    "/proc/meminfo",
    "/proc/self/ns/user",  # a link: what it leads to says nothing, that it is there does
    "/proc/sys/fs/file-max",
    "/proc/sys/fs/inotify/max_user_instances",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/pid_max",
    "/proc/sys/kernel/seccomp/actions_avail",
    "/proc/sys/kernel/threads-max",
    "/proc/sys/kernel/unprivileged_userns_clone",
    *(f"/proc/sys/user/max_{kind}_namespaces" for kind in ("ipc", "mnt", "net", "pid", "user", "uts")),
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
)
"""What is read of a host, beside its control groups' own files."""

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")  # proc(5): blanks and backslashes in mount points


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo.

    Attributes:
        point: Where it is.
        kind: The file system's type.
        options: Those of the mount and of the file system together.
    """

    point: str
    kind: str
    options: frozenset[str]


def mounts_of(mountinfo: str) -> list[Mount]:
    """All mounts, in their order; lines that are none are left out."""
    mounts = []
    for line in mountinfo.splitlines():
        left, found, right = line.partition(" - ")
        before, behind = left.split(" "), right.split(" ")
        if found and len(before) > 5 and len(behind) > 2:
            point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), before[4])
            mounts.append(Mount(point, behind[0], frozenset((before[5] + "," + behind[2]).split(","))))
    return mounts


def mount_of(path: str, mounts: list[Mount]) -> Mount | None:
    """The mount that a path without links lies on: the last of the deepest."""
    best = None
    for mount in mounts:
        if Path(path).is_relative_to(mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


@dataclass(frozen=True, slots=True)
class Folder:
    """A place that the worker or Docker fills.

    Attributes:
        name: The setting that it comes from, or what else it is.
        path: Where it is, or will be.
        nearest: The path itself, or the nearest folder above that is there, without links.
        mount: What that lies on.
        device: The device number of that.
        free_bytes: What an ordinary user may still fill.
        free_inodes: Likewise; None where the file system does not count them.
        writable: Whether this user may write there.
        problem: Why it cannot be looked at.
        refused: Why the worker would not use it.
    """

    name: str
    path: str
    nearest: str = ""
    mount: Mount | None = None
    device: int = 0
    free_bytes: int = 0
    free_inodes: int | None = None
    writable: bool = True
    problem: str | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Host:
    """What was seen of the machine itself.

    Attributes:
        files: The text of each of `FILES`, and of control groups' files, that could be read.
        release: The kernel's, as uname has it.
        machine: The architecture, likewise.
        uid: This user's effective id.
        open_files: How many files this process may open, once it has raised its soft limit.
        now: Seconds since the epoch.
        kept: Whether the kernel's clock is kept by a time service; None when it does not say.
        folders: Those that are used.
    """

    files: Mapping[str, str]
    release: str
    machine: str = "x86_64"
    uid: int = 0
    open_files: int = 65_536
    now: float = 0.0
    kept: bool | None = None
    folders: tuple[Folder, ...] = ()

    def text(self, path: str) -> str | None:
        """A file's text without the white space around it; None when it could not be read."""
        text = self.files.get(path)
        return None if text is None else text.strip()

    def number(self, path: str) -> int | None:
        """A file's number; None when there is none."""
        text = self.text(path)
        return int(text) if text is not None and text.isdecimal() else None

    @cached_property
    def kernel(self) -> tuple[int, int] | None:
        """The kernel's version; None when its release does not begin with one."""
        match = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(match[1]), int(match[2])) if match else None

    def is_older_than(self, major: int, minor: int) -> bool:
        """Whether the kernel is known to be older than that."""
        return self.kernel is not None and self.kernel < (major, minor)

    @cached_property
    def mounts(self) -> list[Mount]:
        """All mounts that this process sees."""
        return mounts_of(self.files.get(MOUNTINFO, ""))

    @cached_property
    def cgroup_mounts(self) -> dict[str, str]:
        """Controller → mount point; "" is the unified hierarchy's."""
        try:
            mounts = cgroup.mounts_of(self.files.get(MOUNTINFO, ""))
        except (ValueError, IndexError):
            return {}
        return {controller: str(point) for controller, point in mounts.items()}

    @cached_property
    def cgroup_version(self) -> int | None:
        """1 when memory has a hierarchy of its own, 2 when all is in one; None where there is none."""
        if "memory" in self.cgroup_mounts:
            return 1
        return 2 if "" in self.cgroup_mounts else (1 if self.cgroup_mounts else None)

    @cached_property
    def controllers(self) -> frozenset[str]:
        """Those that containers can be limited with."""
        if self.cgroup_version == 2:
            text = self.text(f"{self.cgroup_mounts['']}/cgroup.controllers") or ""
            return frozenset(text.split())
        return frozenset(self.cgroup_mounts)

    def status(self, field_name: str) -> str | None:
        """A field of this process's status."""
        match = re.search(rf"^{field_name}:\s*(.*)$", self.files.get(STATUS, ""), re.MULTILINE)
        return match[1].strip() if match else None

    @property
    def has_systemd(self) -> bool:
        """Whether systemd is the first process."""
        return self.text("/proc/1/comm") == "systemd"


@dataclass(frozen=True, slots=True)
class Image:
    """A runtime's image.

    Attributes:
        name: As the settings have it.
        label: The hash of what it was built from, as scripts/images noted it.
        expected: The hash of what there is to build it from; None when that is not known.
        problem: Why nothing is known of it.
    """

    name: str
    label: str | None = None
    expected: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """What Docker says of itself.

    Attributes:
        address: Where it was asked.
        socket_mode: The permissions of its socket, where it is a file.
        problem: Why it does not answer.
        version: Its answer to /version.
        info: Its answer to /info.
        info_at: When it was asked that, seconds since the epoch.
        images: One of each runtime.
        level: What isolation can be had.
        level_problem: Why that is not known.
    """

    address: str = ""
    socket_mode: int | None = None
    problem: str | None = None
    version: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    info_at: float = 0.0
    images: Mapping[Runtime, Image] = field(default_factory=dict)
    level: Level | None = None
    level_problem: str | None = None

    def has_security(self, name: str) -> bool:
        """Whether that is among the engine's security options."""
        options = self.info.get("SecurityOptions") or []
        return any(f"name={name}" in str(option).split(",") for option in options)

    @property
    def remaps_users(self) -> bool:
        """Whether a container's user ids are not the host's."""
        return engine.remaps_users(self.info)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one call of a service.

    Attributes:
        code: What the failure is called; None when there was none.
        message: What was said about it.
        date: The answer's Date header.
        asked_at: When the call was made, seconds since the epoch.
        took_s: How long it took, seconds.
        data: The answer itself.
    """

    code: str | None = None
    message: str = ""
    date: str | None = None
    asked_at: float = 0.0
    took_s: float = 0.0
    data: Any = None
