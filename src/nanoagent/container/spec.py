"""The settings of a container: `create_body` has every setting that confines it. All functions are pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from nanoagent.common.units import MIB
from nanoagent.model.result import Isolation

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.model.job import Runtime
    from nanoagent.network.listening_sockets import ListeningAddress

PAGE_BYTES: Final = 4096  # of memory, on both supported architectures
# Files in the folder that is mounted at /slot (`work_directory`):
HOSTS_FILE: Final = "hosts"
USERS_FILE: Final = "passwd"
GROUPS_FILE: Final = "group"
HOST_NAME: Final = "sandbox"  # src/nanosupervisor/sandbox_init.c sets the same name in a sandbox
RUN_USER: Final = "function"  # the name of a run's user
LABEL_WORKER: Final = "nanoagent.worker"
LABEL_HOME: Final = "nanoagent.home"
LABEL_RUNTIME: Final = "nanoagent.runtime"
_INPUT_BYTES: Final = 2 * MIB  # for one payload; a message has at most 1 MiB
# Memory that a container needs besides a run: for the supervisor, an interpreter that waits, structures of
# the kernel, and the copy of the code. `binder` measures this memory later, and sets the exact limit.
_BASE_BYTES: Final = 64 * MIB
# The launcher, the supervisor, a zygote, the init process of the run's sandbox, and the two processes of the
# sandbox that waits. One init process more exists while it is removed.
_OUR_PROCESSES: Final = 7


def _seccomp_profiles() -> dict[Isolation, str]:
    """Read the seccomp profile of each level. The one for L2 also allows the calls that make a sandbox."""
    folder = resources.files(__package__)
    profile = json.loads(folder.joinpath("seccomp.json").read_text())
    shared = json.dumps(profile)
    profile["syscalls"] += json.loads(folder.joinpath("seccomp-sandbox.json").read_text())
    return {Isolation.SHARED: shared, Isolation.SANDBOX: json.dumps(profile)}


SECCOMP_PROFILES: Final = _seccomp_profiles()


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that are the same for every container of a worker.

    Attributes:
        processes: The number of processes and threads of a run.
        tmp_bytes: The size of /tmp.
        work_bytes: The size of the files that a run writes to /work, its current directory.
        output_bytes: The size of /output.
        inodes: The number of files in each writable directory except /input.
        code_bytes: The size of the code, which is copied to /work, in addition to `work_bytes`.
        code_files: The number of files and folders of the code, in addition to `inodes`.
        shm_bytes: The size of /dev/shm. It is at least the memory limit of the largest job. So in effect,
            only the memory limit of a job limits its files there.
        file_size_bytes: The size of one file.
        open_files: The number of open files of one process.
    """

    processes: int
    tmp_bytes: int
    work_bytes: int
    output_bytes: int
    inodes: int
    code_bytes: int = 0
    code_files: int = 0
    shm_bytes: int = 1024 * MIB
    file_size_bytes: int = 512 * MIB
    open_files: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """The specification of one container.

    Attributes:
        runtime: The language of its runs.
        image: The name of the image.
        name: The container's name, unique on the host.
        worker_id: The ID of the worker.
        home: The worker's folder. Its lock shows other workers whether this worker still lives.
        work_directory: The folder on the host that is mounted into the container at /slot. It is not /work,
            the current directory of runs.
        uid: The user ID of its processes. No other container of the worker has the same ID.
        memory_mb: The memory limit of a run, MiB. The container gets more, for what it needs besides a run.
        cpus: The CPU share.
        limits: The other limits.
        isolation: The level that the supervisor tries to reach: `SANDBOX` or `SHARED`.
        apparmor: The AppArmor profile; None for Docker's default.
        docker_runtime: The name of Docker's runtime, such as `runsc`; None for the default.
        modules: Python modules that the interpreter imports in advance for every function.
        listening_addresses: The addresses in the network of its runs at which the worker may listen.
    """

    runtime: Runtime
    image: str
    name: str
    worker_id: str
    home: Path
    work_directory: Path
    uid: int
    memory_mb: int
    cpus: float
    limits: Limits
    isolation: Isolation = Isolation.SHARED
    apparmor: str | None = None
    docker_runtime: str | None = None
    modules: tuple[str, ...] = ()
    listening_addresses: tuple[ListeningAddress, ...] = ()


def _tmpfs(size_bytes: int, inodes: int) -> str:
    # Mode 1777, owned by root: a run can write into the folder, but cannot change the mount point itself.
    # Docker's default is noexec. It is exec here, because functions unpack programs in /tmp and run them.
    return f"rw,exec,nosuid,nodev,size={size_bytes},nr_inodes={inodes},mode=1777"


def _bind(source: Path, target: str) -> dict[str, Any]:
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": True}


def _mounts(spec: ContainerSpec) -> list[dict[str, Any]]:
    mounts = [
        _bind(spec.work_directory, "/slot"),
        # Without a network, Docker leaves /etc/hosts empty, and the name `localhost` would be unknown.
        _bind(spec.work_directory / HOSTS_FILE, "/etc/hosts"),
    ]
    if spec.isolation is not Isolation.SANDBOX:
        # /etc/passwd of the image has an entry for the user of a sandbox, but none for this container's user.
        mounts += [
            _bind(spec.work_directory / USERS_FILE, "/etc/passwd"),
            _bind(spec.work_directory / GROUPS_FILE, "/etc/group"),
        ]
    return mounts


def memory_limit(spec: ContainerSpec) -> int:
    """Return the limit of memory of a container that is bound to no function, bytes."""
    return spec.memory_mb * MIB + _BASE_BYTES


def cpu_limits(share: float, most: float) -> dict[str, int]:
    """Return the CPU limits of a container, as Docker's API has them.

    Args:
        share: The CPUs that the container gets under contention.
        most: The CPUs that it may use while they are free.
    """
    return {
        "CpuPeriod": 100_000,
        "CpuQuota": int(most * 100_000),
        "CpuShares": max(2, int(share * 1024)),
    }


def create_body(spec: ContainerSpec) -> dict[str, Any]:
    """Return the body of Docker's `POST /containers/create` (Engine API 1.41 or newer).

    docs/security.md lists, for each setting, the attack that it stops and the test that tries it.
    """
    return {
        "Image": spec.image,
        "User": f"{spec.uid}:{spec.uid}",
        "Hostname": HOST_NAME,
        "WorkingDir": "/work",
        "Env": [],
        "Labels": {
            LABEL_WORKER: spec.worker_id,
            LABEL_HOME: str(spec.home),
            LABEL_RUNTIME: spec.runtime,
        },
        # The container gets its own network namespace, with loopback only. The network "none" has the same
        # effect, but takes more than twice the time.
        "NetworkDisabled": True,
        "HostConfig": _host_config(spec),
    }


def _host_config(spec: ContainerSpec) -> dict[str, Any]:
    security = ["no-new-privileges", f"seccomp={SECCOMP_PROFILES[spec.isolation]}"]
    if spec.apparmor is not None:
        security.append(f"apparmor={spec.apparmor}")
    memory = memory_limit(spec)
    config: dict[str, Any] = {
        "CapDrop": ["ALL"],
        "SecurityOpt": security,
        "ReadonlyRootfs": True,
        "Privileged": False,
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Mounts": _mounts(spec),
        "Tmpfs": _writable_directories(spec.limits),
        "Memory": memory,
        "MemorySwap": memory,  # the limit of memory and swap together, so there is no swap
        "PidsLimit": spec.limits.processes + _OUR_PROCESSES,
        "LogConfig": {"Type": "none"},
        "RestartPolicy": {"Name": "no"},
    } | cpu_limits(spec.cpus, spec.cpus)
    if spec.docker_runtime is not None:
        config["Runtime"] = spec.docker_runtime
    if spec.isolation is Isolation.SANDBOX:
        # The kernel allows a new mount of /proc only if no part of the old /proc is hidden. In its new /proc,
        # the sandbox hides the files that Docker would have hidden (src/nanosupervisor/sandbox_mounts.c).
        config |= {"MaskedPaths": [], "ReadonlyPaths": []}
    return config


def _writable_directories(limits: Limits) -> dict[str, str]:
    return {
        "/work": _tmpfs(limits.work_bytes + limits.code_bytes, limits.inodes + limits.code_files),
        "/tmp": _tmpfs(limits.tmp_bytes, limits.inodes),  # noqa: S108 - in the container
        "/output": _tmpfs(limits.output_bytes, limits.inodes),
        "/input": _tmpfs(_INPUT_BYTES, 16),
        # Docker's own /dev/shm does not limit the number of files. To remove 100,000 files takes minutes.
        "/dev/shm": _tmpfs(limits.shm_bytes, limits.inodes),  # noqa: S108
    }
