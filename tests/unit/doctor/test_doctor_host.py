"""Hosts as recorded trees: what the doctor says of machines that nobody has at hand."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.config import Settings
from nanoagent.container.isolation import HostIsolation
from nanoagent.doctor.facts import Engine, Folder, Host, Image, Mount, mount_of, mounts_of
from nanoagent.doctor.finding import Area, Finding, Severity
from nanoagent.doctor.gather import docker as docker_facts
from nanoagent.doctor.gather import host as host_facts
from nanoagent.doctor.judge import docker, host
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[3]
GIB = 1024**3
NOON = 1_795_608_000.0  # 2026-11-25, at noon
DIGEST = "0123456789ab"

# --- recorded hosts: Debian 13 on a cloud's machine, and this project's build machine

V2_MOUNTS = """\
24 30 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
25 30 0:23 / /sys rw,nosuid,nodev,noexec,relatime shared:2 - sysfs sysfs rw
30 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard,errors=remount-ro
35 25 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
"""
V1_MOUNTS = """\
17 21 0:16 / /proc rw,relatime - proc proc rw
18 21 0:17 / /sys rw,relatime - sysfs sysfs rw
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
25 18 0:21 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
26 25 0:22 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
27 25 0:23 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
28 25 0:24 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
29 25 0:25 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
STATUS = "Name:\tpython\nUid:\t0\t0\t0\t0\nCapPrm:\t000001ffffffffff\nCapEff:\t0\nSeccomp:\t0\n"
SHARED_FILES = {
    "/proc/self/status": STATUS,
    "/proc/self/ns/user": "user:[4026531837]",
    "/proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n",
    "/proc/sys/fs/file-max": "9223372036854775807\n",
    "/proc/sys/fs/inotify/max_user_instances": "128\n",
    "/proc/sys/kernel/core_pattern": "core\n",
    "/proc/sys/kernel/pid_max": "4194304\n",
    "/proc/sys/kernel/seccomp/actions_avail": "kill_process errno allow\n",
    "/proc/sys/kernel/threads-max": "94500\n",
    **{
        f"/proc/sys/user/max_{kind}_namespaces": "47250\n"
        for kind in ("ipc", "mnt", "net", "pid", "user", "uts")
    },
    "/proc/sys/vm/overcommit_memory": "0\n",
    "/proc/sys/vm/panic_on_oom": "0\n",
}
FILES = {
    "v2": SHARED_FILES
    | {
        "/proc/self/mountinfo": V2_MOUNTS,
        "/proc/1/comm": "systemd\n",
        "/proc/sys/kernel/unprivileged_userns_clone": "1\n",
        "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma misc\n",
        "/sys/kernel/security/lsm": "lockdown,capability,landlock,yama,apparmor",
        "/sys/kernel/security/apparmor/profiles": "docker-default (enforce)\nnanoagent (enforce)\n",
    },
    "v1": SHARED_FILES | {"/proc/self/mountinfo": V1_MOUNTS, "/proc/1/comm": "init\n"},
}
RELEASE = {"v2": "6.12.41+deb13-cloud-amd64", "v1": "6.18.44-fc-v595"}
INFO: dict[str, dict[str, Any]] = {
    "v2": {
        "CgroupDriver": "systemd",
        "CgroupVersion": "2",
        "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"],
    },
    "v1": {
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": "1",
        "SecurityOptions": ["name=seccomp,profile=default"],
    },
}
SHARED_INFO = {
    "CPUShares": True,
    "CpuCfsQuota": True,
    "Debug": False,
    "DockerRootDir": "/var/lib/docker",
    "Driver": "overlay2",
    "DriverStatus": [["Backing Filesystem", "extfs"], ["Supports d_type", "true"]],
    "ExperimentalBuild": False,
    "LiveRestoreEnabled": True,
    "MemTotal": 8 * GIB,
    "MemoryLimit": True,
    "NCPU": 2,
    "OSType": "linux",
    "PidsLimit": True,
    "SwapLimit": True,
    "Swarm": {"LocalNodeState": "inactive"},
    "SystemTime": "2026-11-25T12:00:00.123456789Z",
    "Warnings": None,
}
VERSION = {"Version": "27.5.1", "ApiVersion": "1.47", "Components": [{"Name": "Engine"}]}
DISK = Mount("/", "ext4", frozenset({"rw", "relatime"}))
CODE = Folder("CODE_CACHE_DIR", "/var/cache/nanoagent", "/var/cache", DISK, 65025, 50 * GIB, 3_000_000)
WORK = Folder("DOCKER_WORK_DIR_ROOT", "/tmp/tasks", "/tmp", DISK, 65025, 50 * GIB, 3_000_000)
STORE = Folder("Docker's root", "/var/lib/docker", "/var/lib/docker", DISK, 65025, 50 * GIB, 3_000_000)
SANDBOX = {"v2": HostIsolation(Isolation.SANDBOX, "nanoagent"), "v1": HostIsolation(Isolation.SANDBOX)}


def settings_with(**changes: Any) -> Settings:
    required = {
        "sqs_queue_url": "https://sqs.ap-northeast-2.amazonaws.com/123456789012/nanogrid-jobs",
        "s3_code_bucket": "nanogrid-code",
        "s3_user_data_bucket": "nanogrid-user-data",
        "worker_memory_mb": 6144,
        "worker_cpus": 2,
    }
    return Settings(_env_file=None, **(required | changes))  # type: ignore[arg-type,call-arg]


def record(root: Path, files: Mapping[str, str | None]) -> None:
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text)


@dataclass(frozen=True)
class Case:
    """A recorded host with one thing changed, and all that is to be said of it beyond "ok"."""

    name: str
    base: str = "v2"
    files: dict[str, str | None] = field(default_factory=dict)
    host: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    version: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    expected: tuple[tuple[Severity, Area, str, str], ...] = ()

    def findings(self, root: Path) -> list[Finding]:
        record(root, {**FILES[self.base], **self.files})
        settings = settings_with(**self.settings)
        about: dict[str, Any] = {
            "release": RELEASE[self.base],
            "machine": "x86_64",
            "uid": 0,
            "open_files": 65_536,
            "now": NOON,
            "clock_is_synchronised": True,
            "folders": (CODE, WORK, STORE),
        }
        seen = replace(host_facts.collect(settings, root), **(about | self.host))
        images = {runtime: Image(f"nanoagent-{runtime}:latest", DIGEST, DIGEST) for runtime in Runtime}
        asked: dict[str, Any] = {
            "address": "unix:///var/run/docker.sock",
            "socket_mode": 0o660,
            "version": VERSION | self.version,
            "info": SHARED_INFO | INFO[self.base] | self.info,
            "info_at": NOON,
            "images": images,
            "isolation": SANDBOX[self.base],
        }
        engine = Engine(**(asked | self.engine))
        return [
            *host.judge(seen, engine, settings),
            *docker.judge(engine, seen, settings),
            *docker.sizes(engine, settings),
        ]


NOTE, WARNING, PROBLEM, UNKNOWN = Severity.NOTE, Severity.WARNING, Severity.PROBLEM, Severity.UNKNOWN
L1 = HostIsolation(Isolation.SHARED, None, "no sandbox can be made here: unshare: EPERM")
ORDINARY = {"uid": 998}
NO_CAPABILITY = STATUS.replace("000001ffffffffff", "0000000000000000")
ONE_CAPABILITY = STATUS.replace("000001ffffffffff", "0000000000000002")
ROOTLESS = {"SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"]}
REMAPPED = {"SecurityOptions": ["name=seccomp,profile=builtin", "name=userns"]}

CASES = (
    Case("Debian 13 with the profile loaded"),
    Case("a build machine with control groups v1", "v1"),
    # --- kernels
    Case(
        "RHEL 8's kernel",
        host={"release": "4.18.0-553.el8_10.x86_64"},
        base="v1",
        expected=((PROBLEM, Area.KERNEL, "close_range", "5.11"),),
    ),
    Case(
        "a kernel without overlay in user namespaces",
        "v1",
        host={"release": "5.10.0-33-amd64"},
        expected=((WARNING, Area.KERNEL, "overlay", "5.11"),),
    ),
    Case(
        "Ubuntu 22.04's kernel has no memory.peak",
        host={"release": "5.15.0-113-generic"},
        expected=((WARNING, Area.CGROUPS, "no memory.peak", "5.19"),),
    ),
    Case(
        "Debian 12's kernel cannot reset the peak",
        host={"release": "6.1.0-27-amd64"},
        expected=((NOTE, Area.CGROUPS, "cannot reset memory.peak", "6.12"),),
    ),
    Case("v1 resets it on any kernel", "v1", host={"release": "5.15.0-113-generic"}),
    Case(
        "a release that is no version",
        host={"release": "next"},
        expected=((UNKNOWN, Area.KERNEL, "no version number", "uname -r"),),
    ),
    Case(
        "a machine whose system calls the self-test does not know",
        host={"machine": "riscv64"},
        expected=((WARNING, Area.KERNEL, "riscv64", "SELFTEST_INTERVAL_SECONDS=0"),),
    ),
    Case(
        "strict overcommit",
        files={"/proc/sys/vm/overcommit_memory": "2\n"},
        expected=((WARNING, Area.KERNEL, "vm.overcommit_memory is 2", "sysctl -w vm.overcommit_memory=0"),),
    ),
    Case(
        "a panic for every job that runs out of memory",
        files={"/proc/sys/vm/panic_on_oom": "2\n"},
        expected=((PROBLEM, Area.KERNEL, "vm.panic_on_oom is 2", "sysctl -w vm.panic_on_oom=0"),),
    ),
    Case(
        "core dumps to a program",
        files={"/proc/sys/kernel/core_pattern": "|/usr/share/apport/apport -p%p -s%s\n"},
        expected=((NOTE, Area.KERNEL, "piped to /usr/share/apport/apport", ""),),
    ),
    # --- control groups
    Case(
        "Raspberry Pi OS without the memory controller",
        files={"/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n"},
        info={"MemoryLimit": False, "SwapLimit": False},
        expected=(
            (PROBLEM, Area.CGROUPS, "without the controllers memory", "cgroup_enable=memory"),
            (PROBLEM, Area.CGROUPS, "cannot limit memory", "the missing controllers"),
            (NOTE, Area.CGROUPS, "swap is not counted; this machine has no swap", "swapaccount=1"),
        ),
    ),
    Case(
        "v1 without pids and cpu",
        "v1",
        files={
            "/proc/self/mountinfo": "\n".join(
                line for line in V1_MOUNTS.splitlines() if "/cpu " not in line and "/pids " not in line
            )
        },
        expected=((PROBLEM, Area.CGROUPS, "without the controllers pids, cpu", "cgroup_disable"),),
    ),
    Case(
        "no control groups",
        files={"/proc/self/mountinfo": V2_MOUNTS.rpartition("35 ")[0]},
        expected=((PROBLEM, Area.CGROUPS, "no control groups are mounted", "mount -t cgroup2"),),
    ),
    Case(
        "swap that is not counted",
        "v1",
        files={"/proc/swaps": "Filename\tType\tSize\n/swapfile file 2097148\n"},
        info={"SwapLimit": False},
        expected=(
            (WARNING, Area.CGROUPS, "swap is not counted, and this machine has swap", "swapaccount=1"),
        ),
    ),
    Case(
        "cgroupfs beside systemd",
        info={"CgroupDriver": "cgroupfs"},
        expected=((WARNING, Area.CGROUPS, "systemd may remove the limits", "native.cgroupdriver=systemd"),),
    ),
    Case(
        "cgroupfs where there is no systemd",
        files={"/proc/1/comm": "init\n"},
        info={"CgroupDriver": "cgroupfs"},
    ),
    Case(
        "Docker on a machine of another kind",
        info={"CgroupVersion": "1", "CgroupDriver": "cgroupfs"},
        expected=((NOTE, Area.CGROUPS, "version 2, Docker uses 1", ""),),
    ),
    Case(
        "an ordinary user without the capability",
        host=ORDINARY,
        files={"/proc/self/status": NO_CAPABILITY},
        expected=((NOTE, Area.CGROUPS, "may not write", "CAP_DAC_OVERRIDE"),),
    ),
    Case("an ordinary user with the capability", host=ORDINARY, files={"/proc/self/status": ONE_CAPABILITY}),
    Case(
        "control groups that are sealed by the unit",
        files={"/proc/self/mountinfo": V2_MOUNTS.replace("cgroup rw,nosuid", "cgroup ro,nosuid")},
        expected=((WARNING, Area.CGROUPS, "/sys/fs/cgroup is mounted read-only", "ProtectControlGroups=no"),),
    ),
    Case(
        "hidden processes",
        host=ORDINARY,
        files={
            "/proc/self/mountinfo": V2_MOUNTS.replace("proc proc rw", "proc proc rw,hidepid=invisible"),
            "/proc/self/status": ONE_CAPABILITY,
        },
        expected=((WARNING, Area.CGROUPS, "hidepid=invisible", "ProtectProc=default"),),
    ),
    Case(
        "processes hidden from others than root",
        files={"/proc/self/mountinfo": V2_MOUNTS.replace("proc proc rw", "proc proc rw,hidepid=2")},
    ),
    # --- namespaces and security modules
    Case(
        "a kernel without user namespaces",
        files={"/proc/self/ns/user": None},
        expected=((WARNING, Area.NAMESPACES, "no user namespaces", "CONFIG_USER_NS"),),
    ),
    Case(
        "user namespaces switched off",
        files={"/proc/sys/user/max_user_namespaces": "0\n"},
        engine={"isolation": L1},
        expected=(
            (WARNING, Area.NAMESPACES, "user.max_user_namespaces is 0", "sysctl -w user.max_user_namespaces"),
            (WARNING, Area.ISOLATION, "share a container (L1)", "namespaces and AppArmor"),
        ),
    ),
    Case(
        "a hardened Debian",
        files={"/proc/sys/kernel/unprivileged_userns_clone": "0\n"},
        expected=(
            (
                WARNING,
                Area.NAMESPACES,
                "unprivileged_userns_clone is 0",
                "sysctl -w kernel.unprivileged_userns_clone=1",
            ),
        ),
    ),
    Case(
        "Ubuntu 24.04 without the profile",
        files={
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n",
            "/sys/kernel/security/apparmor/profiles": "docker-default (enforce)\n",
        },
        engine={"isolation": L1},
        expected=(
            (
                WARNING,
                Area.SECURITY,
                "restricts user namespaces, and the profile nanoagent is not loaded",
                "apparmor_parser -r",
            ),
            (WARNING, Area.ISOLATION, "share a container (L1)", "deploy/apparmor"),
        ),
    ),
    Case(
        "Ubuntu 24.04 with the profile",
        files={"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"},
    ),
    Case(
        "Ubuntu 24.04 with a Docker that knows no AppArmor",
        files={"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"},
        info={"SecurityOptions": ["name=seccomp,profile=builtin"]},
        expected=((WARNING, Area.SECURITY, "Docker sets none", "apparmor_restrict_unprivileged_userns=0"),),
    ),
    Case(
        "a profile that only complains",
        files={"/sys/kernel/security/apparmor/profiles": "nanoagent (complain)\n"},
        expected=((PROBLEM, Area.SECURITY, "in the mode complain", "aa-enforce nanoagent"),),
    ),
    Case(
        "a profile of another name",
        settings={"container_apparmor_profile": "ours"},
        files={"/sys/kernel/security/apparmor/profiles": "ours-too (enforce)\n"},
        expected=((WARNING, Area.SECURITY, "the profile ours is not loaded", "apparmor_parser -r"),),
    ),
    Case(
        "profiles that only root may list",
        files={"/sys/kernel/security/apparmor/profiles": None},
        expected=((UNKNOWN, Area.SECURITY, "only root may read the list", "grep '^nanoagent '"),),
    ),
    Case(
        "SELinux",
        info={"SecurityOptions": ["name=seccomp,profile=builtin", "name=selinux"]},
        expected=((NOTE, Area.SECURITY, "SELinux", "container_file_t"),),
    ),
    Case(
        "a kernel without seccomp",
        files={
            "/proc/self/status": STATUS.replace("Seccomp:\t0\n", ""),
            "/proc/sys/kernel/seccomp/actions_avail": None,
        },
        expected=((PROBLEM, Area.SECURITY, "no filters of system calls", "CONFIG_SECCOMP_FILTER"),),
    ),
    # --- limits
    Case(
        "few open files",
        host={"open_files": 1024},
        expected=((NOTE, Area.LIMITS, "1,024 files", "LimitNOFILE"),),
    ),
    Case(
        "too few open files",
        host={"open_files": 191},
        expected=((PROBLEM, Area.LIMITS, "191 files", "LimitNOFILE"),),
    ),
    Case(
        "few process ids",
        files={"/proc/sys/kernel/pid_max": "4096\n"},
        expected=((WARNING, Area.LIMITS, "kernel.pid_max is 4,096", "sysctl -w kernel.pid_max"),),
    ),
    Case(
        "few threads",
        files={"/proc/sys/kernel/threads-max": "7800\n"},
        expected=((WARNING, Area.LIMITS, "kernel.threads-max is 7,800", "sysctl -w kernel.threads-max"),),
    ),
    Case(
        "few files for the machine",
        files={"/proc/sys/fs/file-max": "50000\n"},
        expected=((WARNING, Area.LIMITS, "fs.file-max is 50,000", "sysctl -w fs.file-max"),),
    ),
    Case(
        "few watches",
        files={"/proc/sys/fs/inotify/max_user_instances": "16\n"},
        expected=((NOTE, Area.LIMITS, "max_user_instances is 16", "sysctl -w fs.inotify"),),
    ),
    Case(
        "more memory than the machine has",
        settings={"worker_memory_mb": 9000},
        expected=((PROBLEM, Area.LIMITS, "9000 of the machine's 8192", "WORKER_MEMORY_MB=6144"),),
    ),
    Case(
        "all memory",
        settings={"worker_memory_mb": 8000},
        expected=((WARNING, Area.LIMITS, "too little is left", "WORKER_MEMORY_MB=6144"),),
    ),
    Case(
        "more CPUs than there are",
        settings={"worker_cpus": 16},
        expected=((NOTE, Area.LIMITS, "WORKER_CPUS=16 of the machine's 2", "WORKER_CPUS=2"),),
    ),
    # --- disks
    Case(
        "two mounts",
        host={
            "folders": (replace(CODE, device=9, mount=Mount("/var", "xfs", frozenset({"rw"}))), WORK, STORE)
        },
        expected=((NOTE, Area.DISK, "two mounts", "DOCKER_WORK_DIR_ROOT=/var/cache/tasks"),),
    ),
    Case(
        "a bind mount of one file system, which links do not cross",
        host={"folders": (replace(CODE, mount=Mount("/var/cache", "ext4", frozenset({"rw"}))), WORK, STORE)},
        expected=((NOTE, Area.DISK, "two mounts", "the mount /var/cache"),),
    ),
    Case(
        "little room for code",
        host={"folders": (replace(CODE, free_bytes=GIB // 2), WORK, STORE)},
        expected=((WARNING, Area.DISK, "only 0.5 GiB free", "another CODE_CACHE_DIR"),),
    ),
    Case(
        "no room for code",
        host={"folders": (replace(CODE, free_bytes=0), WORK, STORE)},
        expected=(
            (PROBLEM, Area.DISK, "no jobs are taken below MIN_FREE_DISK_MB", "another CODE_CACHE_DIR"),
        ),
    ),
    Case(
        "less room than the caches may take",
        host={"folders": (replace(CODE, free_bytes=3 * GIB), WORK, STORE)},
        expected=((NOTE, Area.DISK, "3.0 GiB free; the caches may grow to 8.0 GiB", "CODE_CACHE_MB=1024"),),
    ),
    Case(
        "little room for images",
        host={"folders": (CODE, WORK, replace(STORE, free_bytes=2 * GIB))},
        expected=(
            (WARNING, Area.DISK, "Docker's root (/var/lib/docker): only 2.0 GiB", "docker system prune"),
        ),
    ),
    Case(
        "few inodes",
        host={"folders": (CODE, replace(WORK, free_inodes=100), STORE)},
        expected=((WARNING, Area.DISK, "only 100 more files", "df -i"),),
    ),
    Case(
        "a file system that does not count inodes",
        host={"folders": (replace(CODE, free_inodes=None), WORK, STORE)},
    ),
    Case(
        "a read-only mount",
        host={
            "folders": (
                replace(CODE, mount=Mount("/", "ext4", frozenset({"ro"}))),
                replace(WORK, mount=Mount("/", "ext4", frozenset({"ro"}))),
                STORE,
            )
        },
        expected=(
            (
                PROBLEM,
                Area.DISK,
                "CODE_CACHE_DIR (/var/cache/nanoagent) is mounted read-only",
                "CODE_CACHE_DIR",
            ),
            (
                PROBLEM,
                Area.DISK,
                "DOCKER_WORK_DIR_ROOT (/tmp/tasks) is mounted read-only",
                "DOCKER_WORK_DIR_ROOT",
            ),
        ),
    ),
    Case(
        "a folder of somebody else's",
        host={"folders": (replace(CODE, writable=False), WORK, STORE)},
        expected=((PROBLEM, Area.DISK, "may not write to /var/cache", "install -d -m 700"),),
    ),
    Case(
        "a folder that others may swap",
        host={"folders": (Folder("CODE_CACHE_DIR", "/c", refused="others may write to it"), WORK, STORE)},
        expected=((PROBLEM, Area.DISK, "others may write", "chmod go-w /c"),),
    ),
    Case(
        "a folder that cannot be looked at",
        host={"folders": (Folder("CODE_CACHE_DIR", "/c", problem="no permission"), WORK, STORE)},
        expected=((UNKNOWN, Area.DISK, "no permission", ""),),
    ),
    Case(
        "a network's disk",
        host={
            "folders": (
                replace(CODE, mount=Mount("/", "nfs4", frozenset({"rw"}))),
                replace(WORK, mount=Mount("/", "nfs4", frozenset({"rw"}))),
                STORE,
            )
        },
        expected=(
            (WARNING, Area.DISK, "CODE_CACHE_DIR (/var/cache/nanoagent) is on nfs4", "a local disk"),
            (WARNING, Area.DISK, "DOCKER_WORK_DIR_ROOT (/tmp/tasks) is on nfs4", "a local disk"),
        ),
    ),
    Case(
        "noexec, which containers do not inherit",
        host={
            "folders": (
                CODE,
                replace(WORK, mount=Mount("/", "ext4", frozenset({"rw", "relatime", "noexec"}))),
                STORE,
            )
        },
        expected=(
            (NOTE, Area.DISK, "mounted noexec: containers do not inherit that", ""),
            (NOTE, Area.DISK, "two mounts", ""),
        ),
    ),
    Case(
        "noexec, which containers of another user namespace inherit",
        "v1",
        info=REMAPPED,
        settings={"container_uid_base": 10_000},
        host={
            "folders": (
                replace(CODE, mount=Mount("/", "ext4", frozenset({"rw", "noexec"}))),
                replace(WORK, mount=Mount("/", "ext4", frozenset({"rw", "noexec"}))),
                STORE,
            )
        },
        expected=(
            (WARNING, Area.DISK, "CODE_CACHE_DIR (/var/cache/nanoagent) is mounted noexec", "remount,exec"),
            (WARNING, Area.DISK, "DOCKER_WORK_DIR_ROOT (/tmp/tasks) is mounted noexec", "remount,exec"),
            (NOTE, Area.DOCKER, "remaps user ids", ""),
        ),
    ),
    # --- the clock
    Case(
        "a machine that has lost its battery",
        host={"now": 0.0},
        engine={"info_at": 0.0},
        expected=((PROBLEM, Area.CLOCK, "1970-01-01", "timedatectl set-ntp true"),),
    ),
    Case(
        "a clock that nobody keeps",
        host={"clock_is_synchronised": False},
        expected=((NOTE, Area.CLOCK, "no time service", "timedatectl set-ntp true"),),
    ),
    Case("a clock of which nothing is known", host={"clock_is_synchronised": None}),
    Case(
        "Docker's own clock",
        engine={"info_at": NOON + 400},
        expected=((WARNING, Area.CLOCK, "-400 s off", "time service"),),
    ),
    # --- Docker
    Case(
        "no Docker",
        engine={"problem": "no Docker Engine was found: install one (make setup) or set DOCKER_HOST"},
        # Whether AppArmor confines containers is not known then either.
        expected=(
            (PROBLEM, Area.DOCKER, "no Docker Engine was found", "make setup"),
            (UNKNOWN, Area.IMAGES, "not examined", ""),
            (UNKNOWN, Area.ISOLATION, "not tested", ""),
        ),
    ),
    Case(
        "a socket for others",
        engine={"problem": f"Docker cannot be reached: [Errno 13] {os.strerror(errno.EACCES)}"},
        expected=(
            (PROBLEM, Area.DOCKER, "Permission denied", "usermod -aG docker"),
            (UNKNOWN, Area.IMAGES, "not examined", ""),
            (UNKNOWN, Area.ISOLATION, "not tested", ""),
        ),
    ),
    Case(
        "Docker is stopped",
        engine={"problem": f"Docker cannot be reached: [Errno 111] {os.strerror(errno.ECONNREFUSED)}"},
        expected=(
            (PROBLEM, Area.DOCKER, "Connection refused", "systemctl start docker"),
            (UNKNOWN, Area.IMAGES, "not examined", ""),
            (UNKNOWN, Area.ISOLATION, "not tested", ""),
        ),
    ),
    Case(
        "Docker 19.03",
        version={"Version": "19.03.15", "ApiVersion": "1.40"},
        expected=((PROBLEM, Area.DOCKER, "API 1.40 is too old", "20.10"),),
    ),
    Case(
        "Docker 20.10",
        version={"Version": "20.10.24", "ApiVersion": "1.41"},
        expected=((NOTE, Area.DOCKER, "API 1.41: works", "Docker 25"),),
    ),
    Case("Docker 25", version={"Version": "25.0.5", "ApiVersion": "1.44"}),
    Case("Docker 29", version={"Version": "29.1.0", "ApiVersion": "1.52", "MinAPIVersion": "1.44"}),
    Case(
        "an engine that tells no version",
        version={"ApiVersion": ""},
        expected=((UNKNOWN, Area.DOCKER, "whether the API is 1.41", "docker version"),),
    ),
    Case(
        "Podman",
        version={"Version": "5.4.2", "ApiVersion": "1.41", "Components": [{"Name": "Podman Engine"}]},
        expected=((NOTE, Area.DOCKER, "Podman 5.4.2, API 1.41", ""),),
    ),
    Case(
        "Windows containers",
        info={"OSType": "windows"},
        expected=((PROBLEM, Area.DOCKER, "runs windows containers", "Linux containers"),),
    ),
    Case(
        "experimental features",
        info={"ExperimentalBuild": True},
        expected=((NOTE, Area.DOCKER, "experimental", '"experimental": false'),),
    ),
    Case(
        "debug logs",
        info={"Debug": True},
        expected=((NOTE, Area.DOCKER, "writes debug logs", '"debug": false'),),
    ),
    Case(
        "a runtime that is there",
        settings={"docker_runtime": "runsc"},
        info={"Runtimes": {"runc": {}, "runsc": {}}},
    ),
    Case(
        "a runtime that is not there",
        settings={"docker_runtime": "runsc"},
        info={"Runtimes": {"runc": {"path": "runc"}}},
        expected=((PROBLEM, Area.DOCKER, "no runtime runsc; it has runc", '"runtimes"'),),
    ),
    Case(
        "no live-restore",
        info={"LiveRestoreEnabled": False},
        expected=((NOTE, Area.DOCKER, "live-restore is off", '"live-restore": true'),),
    ),
    Case(
        "a swarm, which cannot have it",
        info={"LiveRestoreEnabled": False, "Swarm": {"LocalNodeState": "active"}},
    ),
    Case(
        "an engine without seccomp",
        "v1",
        info={"SecurityOptions": None},
        expected=((PROBLEM, Area.DOCKER, "lists no seccomp", "built with seccomp"),),
    ),
    Case(
        "vfs",
        info={"Driver": "vfs", "DriverStatus": None},
        expected=((WARNING, Area.DOCKER, "vfs copies the whole image", "overlay2"),),
    ),
    Case("containerd's snapshots", info={"Driver": "overlayfs", "DriverStatus": [["driver-type", "x"]]}),
    Case(
        "devicemapper",
        info={"Driver": "devicemapper"},
        expected=((NOTE, Area.DOCKER, "devicemapper, not tested", "overlay2"),),
    ),
    Case(
        "xfs without d_type",
        info={"DriverStatus": [["Backing Filesystem", "xfs"], ["Supports d_type", "false"]]},
        expected=((PROBLEM, Area.DOCKER, "without d_type", "ftype=1"),),
    ),
    Case(
        "a socket for everyone",
        engine={"socket_mode": 0o666},
        expected=((PROBLEM, Area.DOCKER, "everyone may use", "chmod o-rwx /var/run/docker.sock"),),
    ),
    Case(
        "a port for everyone, by the daemon's own warning",
        info={"Warnings": ["WARNING: API is accessible on http://0.0.0.0:2375 without encryption."]},
        expected=((PROBLEM, Area.DOCKER, "without encryption", '"hosts"'),),
    ),
    Case(
        "a port for everyone, by its address",
        engine={"address": "tcp://10.0.0.7:2375", "socket_mode": None},
        expected=((PROBLEM, Area.DOCKER, "without encryption", "TLS"),),
    ),
    Case("a port on this machine alone", engine={"address": "tcp://127.0.0.1:2375", "socket_mode": None}),
    Case(
        "rootless without control groups",
        "v1",
        info=ROOTLESS
        | {
            "CgroupDriver": "none",
            "MemoryLimit": False,
            "PidsLimit": False,
            "CpuCfsQuota": False,
            "CPUShares": False,
        },
        expected=(
            (NOTE, Area.DOCKER, "without root", ""),
            (PROBLEM, Area.DOCKER, "CONTAINER_UID_BASE: 1900000000", "CONTAINER_UID_BASE=20000"),
            (PROBLEM, Area.CGROUPS, "sets no limits at all", "systemd.unified_cgroup_hierarchy=1"),
            (PROBLEM, Area.CGROUPS, "cannot limit memory, processes, CPU time, shares", "Delegate="),
        ),
    ),
    Case(
        "rootless as it should be",
        files={"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "0\n"},
        info=ROOTLESS,
        settings={"container_uid_base": 10_000},
        expected=((NOTE, Area.DOCKER, "without root", ""),),
    ),
    Case(
        "remapped user ids, out of range",
        "v1",
        info=REMAPPED,
        expected=(
            (NOTE, Area.DOCKER, "remaps user ids", ""),
            (PROBLEM, Area.DOCKER, "CONTAINER_UID_BASE: 1900000000", "CONTAINER_UID_BASE=20000"),
        ),
    ),
    # --- images and isolation
    Case(
        "images that are missing, strangers, old, and of unknown age",
        engine={
            "images": {
                Runtime.PYTHON: Image("a:1", problem="the image a:1 does not exist"),
                Runtime.NODEJS: Image("b:1"),
                Runtime.CPP: Image("c:1", "000000000000", DIGEST),
                Runtime.GO: Image("d:1", DIGEST),
            }
        },
        expected=(
            (PROBLEM, Area.IMAGES, "DOCKER_PYTHON_IMAGE: the image a:1 does not exist", "nanoagent images"),
            (UNKNOWN, Area.IMAGES, "DOCKER_NODEJS_IMAGE: b:1 does not show its sources", "nanoagent images"),
            (WARNING, Area.IMAGES, "c:1 was built from 000000000000", "nanoagent images"),
            (NOTE, Area.IMAGES, "d:1 was built from 0123456789ab", ""),
        ),
    ),
    Case(
        "a level that is not enough",
        settings={"min_isolation": "L2"},
        engine={"isolation": L1},
        expected=(
            (
                PROBLEM,
                Area.ISOLATION,
                "MIN_ISOLATION: L2 is not possible on this host",
                "see the findings about",
            ),
        ),
    ),
    Case(
        "sharing that takes a sandbox",
        settings={"container_sharing": "worker"},
        engine={"isolation": L1},
        expected=(
            (PROBLEM, Area.ISOLATION, "CONTAINER_SHARING: worker needs a sandbox", "see the findings about"),
        ),
    ),
    Case(
        "no container starts",
        engine={"isolation": None, "isolation_problem": "no container started within 20 s"},
        expected=((PROBLEM, Area.ISOLATION, "no container started", "nanoagent doctor again"),),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_that_is_said_of_a_recorded_host_and_a_remedy_for_what_needs_one(case: Case, tmp_path: Path):
    findings = [found for found in case.findings(tmp_path) if found.severity is not Severity.OK]
    assert [found for found in findings if found.severity in {WARNING, PROBLEM} and not found.remedy] == []
    left = list(findings)
    for severity, area, words, remedy in case.expected:
        match = next(
            (
                found
                for found in left
                if (found.severity, found.area) == (severity, area)
                and words in found.found
                and remedy in (found.remedy or "")
            ),
            None,
        )
        assert match is not None, f"nobody says {words!r} with {remedy!r}: {findings}"
        left.remove(match)
    assert left == []


@pytest.mark.parametrize("text", ["", "\0", "1 2 3", "24 30 0:22 / /proc rw - ", "- - -\n" * 3, "é - ü"])
def test_files_that_make_no_sense_are_no_crash(tmp_path: Path, text: str):
    case = Case("nonsense", files=dict.fromkeys(FILES["v2"], text), info=dict.fromkeys(SHARED_INFO))
    assert any(found.severity is not Severity.OK for found in case.findings(tmp_path))


# --- facts


def test_a_path_lies_on_the_deepest_mount_and_the_last_of_those():
    mounts = mounts_of(
        "1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /var rw,noexec - xfs b rw\n3 1 8:3 / /var ro - ext4 c ro\n4 "
        "1 8:4 / /srv/with\\040blank rw - ext4 d rw\n"
    )
    for path, point, kind in (
        ("/var/cache", "/var", "ext4"),
        ("/variety", "/", "ext4"),
        ("/srv/with blank/x", "/srv/with blank", "ext4"),
    ):
        mount = mount_of(path, mounts)
        assert mount is not None
        assert (mount.point, mount.kind) == (point, kind)
    assert mount_of("/var", []) is None


def test_a_folder_that_is_not_there_is_judged_by_the_one_above(tmp_path: Path):
    seen = host_facts.folder("CODE_CACHE_DIR", tmp_path / "not/yet", mounts_of("1 0 8:1 / / rw - ext4 a rw"))
    assert (seen.problem, seen.nearest, seen.writable) == (None, str(tmp_path), True)
    assert seen.device == tmp_path.stat().st_dev
    assert not (tmp_path / "not").exists()


def test_a_folder_in_which_others_could_swap_ours_is_said_so(tmp_path: Path):
    tmp_path.chmod(0o777)
    seen = host_facts.folder("CODE_CACHE_DIR", tmp_path, [])
    assert seen.refused is not None
    assert seen.refused.startswith(f"CODE_CACHE_DIR: {tmp_path} belongs to another user, or others may write")


def test_the_first_host_of_all_is_this_one():
    seen = host_facts.collect(settings_with())
    assert seen.release == os.uname().release
    assert seen.kernel is not None
    assert seen.cgroup_version in {1, 2}
    assert seen.status("Uid") is not None
    assert [folder.name for folder in seen.folders] == ["CODE_CACHE_DIR", "DOCKER_WORK_DIR_ROOT"]
    assert Host({}, "").cgroup_version is None


def test_an_images_hash_is_the_one_that_its_build_gives_it():
    script = (ROOT / "scripts/images").read_text()
    function = re.search(r"^content_hash\(\) \{.*?^\}", script, re.MULTILINE | re.DOTALL)
    assert function is not None
    for runtime in Runtime:
        shared = "docker/system docker/supervisor src/nanosupervisor"
        call = f"content_hash sha256:salt docker/{runtime} {shared}"
        assert call.replace("sha256:salt", '"$base_id"').replace(str(runtime), "$runtime") in script.replace(
            '"docker/$runtime"', "docker/$runtime"
        )
        done = subprocess.run(
            ["bash", "-euc", f"{function[0]}\n{call}"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        assert docker_facts.content_of(runtime, "sha256:salt") == done.stdout.strip()
