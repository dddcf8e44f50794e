"""Facts about a host and its services, as plain values. `gather` collects them, `judge` judges them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanoagent.container import cgroup, engine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nanoagent.container.isolation import HostIsolation
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
    "/proc/self/ns/user",  # a link; it exists if the kernel has user namespaces
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
"""The files that are read on a host, apart from files of its control groups."""

REDIS_COMMANDS: Final = ("setex", "get", "publish", "sadd", "scard", "expire", "eval")
"""The commands that the doctor tests on Redis, apart from PING and INFO. EVAL runs the worker's scripts."""

DOCKER_ROOT: Final = "Docker's root"
"""The name of the folder where Docker keeps images and containers."""

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")  # proc(5): spaces and backslashes in mount points


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo.

    Attributes:
        point: The mount point.
        kind: The file system's type.
        options: The options of the mount and of the file system.
    """

    point: str
    kind: str
    options: frozenset[str]


def mounts_of(mountinfo: str) -> list[Mount]:
    """Return all mounts, in the order of the file. Malformed lines are ignored."""
    mounts = []
    for line in mountinfo.splitlines():
        left, found, right = line.partition(" - ")
        before, behind = left.split(" "), right.split(" ")
        if found and len(before) > 5 and len(behind) > 2:
            point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), before[4])
            mounts.append(Mount(point, behind[0], frozenset((before[5] + "," + behind[2]).split(","))))
    return mounts


def mount_of(path: str, mounts: list[Mount]) -> Mount | None:
    """Return the mount that a path belongs to: the deepest one. If several have the same point, the last one.

    Args:
        path: An absolute path without symbolic links.
        mounts: All mounts, in the order of /proc/self/mountinfo.
    """
    best = None
    for mount in mounts:
        if Path(path).is_relative_to(mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that the worker or Docker writes to.

    Attributes:
        name: The setting that names it, or `DOCKER_ROOT`.
        path: The path of the folder. The folder may not exist yet.
        nearest: The path itself if it exists, else the nearest existing folder above it; without symbolic
            links. Empty if the folder cannot be examined or is refused.
        mount: The mount that `nearest` belongs to.
        device: The device number of `nearest`.
        free_bytes: The free space for an ordinary user, bytes.
        free_inodes: The free inodes for an ordinary user; None if the file system does not count inodes.
        writable: Whether this user may write to `nearest`.
        problem: Why the folder cannot be examined; None if it can.
        refused: Why the worker would refuse the folder; None if it would not.
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
    """Facts about the machine.

    Attributes:
        files: Path → text, for each of `FILES` and of the control groups' files that could be read.
        release: The release of the kernel, from uname(2).
        machine: The architecture, from uname(2).
        uid: The effective user id of this process.
        open_files: The hard limit on open files of this process.
        now: The time, seconds since the epoch.
        clock_is_synchronised: Whether a time service sets the kernel's clock; None if that is not known.
        folders: The folders that the worker and Docker write to.
    """

    files: Mapping[str, str]
    release: str
    machine: str = "x86_64"
    uid: int = 0
    open_files: int = 65_536
    now: float = 0.0
    clock_is_synchronised: bool | None = None
    folders: tuple[Folder, ...] = ()

    def text(self, path: str) -> str | None:
        """Return a file's text, stripped; None if it could not be read."""
        text = self.files.get(path)
        return None if text is None else text.strip()

    def number(self, path: str) -> int | None:
        """Return the number in a file; None if it has no number or could not be read."""
        text = self.text(path)
        return int(text) if text is not None and text.isdecimal() else None

    @cached_property
    def kernel(self) -> tuple[int, int] | None:
        """The kernel's version; None if the release does not begin with a version."""
        match = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(match[1]), int(match[2])) if match else None

    def is_older_than(self, major: int, minor: int) -> bool:
        """Whether the kernel is older than the given version; False if the kernel's version is not known."""
        return self.kernel is not None and self.kernel < (major, minor)

    @cached_property
    def mounts(self) -> list[Mount]:
        """All mounts that this process sees."""
        return mounts_of(self.files.get(MOUNTINFO, ""))

    @cached_property
    def cgroup_mounts(self) -> dict[str, str]:
        """Controller → mount point. The controller of the unified hierarchy (version 2) is ""."""
        try:
            mounts = cgroup.mounts_of(self.files.get(MOUNTINFO, ""))
        except (ValueError, IndexError):
            return {}
        return {controller: str(point) for controller, point in mounts.items()}

    @cached_property
    def cgroup_version(self) -> int | None:
        """1 or 2, by the hierarchy that has the memory controller; None if no control groups are mounted."""
        if "memory" in self.cgroup_mounts:
            return 1
        return 2 if "" in self.cgroup_mounts else (1 if self.cgroup_mounts else None)

    @cached_property
    def controllers(self) -> frozenset[str]:
        """The controllers that can limit containers."""
        if self.cgroup_version == 2:
            text = self.text(f"{self.cgroup_mounts['']}/cgroup.controllers") or ""
            return frozenset(text.split())
        return frozenset(self.cgroup_mounts)

    def status(self, field_name: str) -> str | None:
        """Return a field of /proc/self/status; None if the field does not exist."""
        match = re.search(rf"^{field_name}:\s*(.*)$", self.files.get(STATUS, ""), re.MULTILINE)
        return match[1].strip() if match else None

    @property
    def has_systemd(self) -> bool:
        """Whether process 1 is systemd."""
        return self.text("/proc/1/comm") == "systemd"


@dataclass(frozen=True, slots=True)
class Image:
    """A runtime's image.

    Attributes:
        name: Its name in the settings.
        label: The hash of the sources that the image was built from, as in its label; None without the label.
        expected: The hash of the sources on this machine; None if the sources or the base image are not here.
        problem: Why it could not be examined; None if it could.
    """

    name: str
    label: str | None = None
    expected: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """Facts about the Docker engine.

    Attributes:
        address: Its address, as in DOCKER_HOST.
        socket_mode: The permissions of its Unix socket; None for another kind of address.
        problem: Why it did not answer; None if it answered.
        version: Its answer to `GET /version`.
        info: Its answer to `GET /info`.
        info_at: When it answered, seconds since the epoch.
        images: One image for each runtime.
        isolation: The isolation that a container could provide; None if it was not tested.
        isolation_problem: Why the isolation could not be tested; None if it was tested.
    """

    address: str = ""
    socket_mode: int | None = None
    problem: str | None = None
    version: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    info_at: float = 0.0
    images: Mapping[Runtime, Image] = field(default_factory=dict)
    isolation: HostIsolation | None = None
    isolation_problem: str | None = None

    def has_security(self, name: str) -> bool:
        """Whether the engine has a security option with that name."""
        options = self.info.get("SecurityOptions") or []
        return any(f"name={name}" in str(option).split(",") for option in options)

    @property
    def remaps_users(self) -> bool:
        """Whether the user ids in containers differ from those on the host."""
        return engine.remaps_users(self.info)


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one request to a service.

    Attributes:
        code: The error code, or the name of the exception; None if the request succeeded.
        message: The error message.
        date: The Date header of the response; None without one.
        asked_at: When the request was sent, seconds since the epoch.
        took_s: How long it took, seconds.
        data: The response; None if the request failed.
    """

    code: str | None = None
    message: str = ""
    date: str | None = None
    asked_at: float = 0.0
    took_s: float = 0.0
    data: Any = None


def redrive_policy(attributes: Mapping[str, object]) -> dict[str, object]:
    """Return the redrive policy in a queue's attributes; empty without a valid one."""
    try:
        policy = json.loads(str(attributes.get("RedrivePolicy") or "{}"))
    except ValueError:
        return {}
    return policy if isinstance(policy, dict) else {}


def redrive_target(data: object) -> tuple[str, str] | None:
    """Return the account and the name of the dead-letter queue in a redrive policy; None without one.

    Args:
        data: The response to GetQueueAttributes.
    """
    attributes = data.get("Attributes") if isinstance(data, dict) else None
    if not isinstance(attributes, dict):
        return None
    parts = str(redrive_policy(attributes).get("deadLetterTargetArn") or "").split(":")
    return (parts[-2], parts[-1]) if len(parts) == 6 else None  # arn:aws:sqs:region:account:name
