"""From limits to Docker's settings, purely: everything that makes the outer wall is in `create_body`."""

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

PAGE_BYTES: Final = 4096  # of memory, on both supported machines
# In the work directory:
HOSTS_FILE: Final = "hosts"
USERS_FILE: Final = "passwd"
GROUPS_FILE: Final = "group"
HOST_NAME: Final = "sandbox"  # src/nanosupervisor/sandbox.c gives a run's own host the same
RUN_USER: Final = "function"  # the name of a run's user
LABEL_WORKER: Final = "nanoagent.worker"
LABEL_HOME: Final = "nanoagent.home"
LABEL_RUNTIME: Final = "nanoagent.runtime"
_INPUT_BYTES: Final = 2 * MIB  # one payload: a message has at most 1 MiB
# What a container holds besides the run: the supervisor, an interpreter that waits, the kernel's own
# structures, the code's copy until it is measured. The limit is set anew, exactly, when it is bound.
_BASE_BYTES: Final = 64 * MIB
_OUR_PROCESSES: Final = 4  # the supervisor, a zygote, a sandbox's init, and one that is being replaced


def _seccomp_profiles() -> dict[Isolation, str]:
    """The profile of each level: in a sandbox the supervisor may also do what it takes to make one."""
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
        processes: Processes and threads of a run.
        tmp_bytes: Size of /tmp.
        work_bytes: How much a run may write to its working directory.
        output_bytes: Size of /output.
        inodes: Files in each writable directory.
        code_bytes: Room for code in the container's working directory, on top of `work_bytes`.
        code_files: Likewise for files and folders.
        shm_bytes: Size of /dev/shm. At least the largest job's memory: then memory alone bounds it.
        file_size_bytes: Of one file.
        open_files: Of one process.
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
    """One container to be made.

    Attributes:
        runtime: Which language's image it has.
        image: The image.
        name: The container's name, unique on the host.
        worker_id: Whose it is.
        home: The worker's own folder, by which others can tell whether the worker lives.
        work_directory: The folder that is bound into it.
        uid: The user id it runs under; no other container has it.
        memory_mb: The size it is made for, MiB.
        cpus: Its CPU share.
        limits: The worker's.
        isolation: The highest level that is tried: `SANDBOX` or `SHARED`.
        apparmor: The AppArmor profile, where Docker's own would forbid the sandbox.
        docker_runtime: The engine's name of what makes it (`runsc`, say), where that is not the default.
        modules: Python modules that its interpreter has ready for every function.
        listening_addresses: Where the agent wants to be able to listen in the network of its runs.
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
    # Owned by root and sticky: a run can write into it, but cannot change the mount point itself.
    # exec, because functions unpack and run things in /tmp; Docker's default is noexec.
    return f"rw,exec,nosuid,nodev,size={size_bytes},nr_inodes={inodes},mode=1777"


def _bind(source: Path, target: str) -> dict[str, Any]:
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": True}


def _mounts(spec: ContainerSpec) -> list[dict[str, Any]]:
    mounts = [
        _bind(spec.work_directory, "/slot"),
        # Docker leaves it empty where there is no network: `localhost` would be nowhere.
        _bind(spec.work_directory / HOSTS_FILE, "/etc/hosts"),
    ]
    if spec.isolation is not Isolation.SANDBOX:
        # The container's user id has no name in the image; a sandbox's has.
        mounts += [
            _bind(spec.work_directory / USERS_FILE, "/etc/passwd"),
            _bind(spec.work_directory / GROUPS_FILE, "/etc/group"),
        ]
    return mounts


def create_body(spec: ContainerSpec) -> dict[str, Any]:
    """The body of Docker's `POST /containers/create` (Engine API ≥ 1.41).

    docs/security.md says of each setting which attack it stops and which test tries it.
    """
    limits = spec.limits
    security = ["no-new-privileges", f"seccomp={SECCOMP_PROFILES[spec.isolation]}"]
    if spec.apparmor is not None:
        security.append(f"apparmor={spec.apparmor}")
    memory = spec.memory_mb * MIB + _BASE_BYTES
    body: dict[str, Any] = {
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
        # An own, empty network namespace with loopback; less than half the start time of network "none".
        "NetworkDisabled": True,
        "HostConfig": {
            "CapDrop": ["ALL"],
            "SecurityOpt": security,
            "ReadonlyRootfs": True,
            "Privileged": False,
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "Mounts": _mounts(spec),
            "Tmpfs": {
                "/work": _tmpfs(limits.work_bytes + limits.code_bytes, limits.inodes + limits.code_files),
                "/tmp": _tmpfs(limits.tmp_bytes, limits.inodes),  # noqa: S108 - the container's own
                "/output": _tmpfs(limits.output_bytes, limits.inodes),
                "/input": _tmpfs(_INPUT_BYTES, 16),
                # Docker's own has no limit on files, and a wipe of hundreds of thousands takes minutes.
                "/dev/shm": _tmpfs(limits.shm_bytes, limits.inodes),  # noqa: S108
            },
            "Memory": memory,
            "MemorySwap": memory,  # memory and swap together: no swap
            "CpuPeriod": 100_000,
            "CpuQuota": int(spec.cpus * 100_000),
            "CpuShares": max(2, int(spec.cpus * 1024)),
            "PidsLimit": limits.processes + _OUR_PROCESSES,
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
        },
    }
    if spec.docker_runtime is not None:
        body["HostConfig"]["Runtime"] = spec.docker_runtime
    if spec.isolation is Isolation.SANDBOX:
        # The kernel mounts a fresh /proc only for those to whom all of the old one is visible. A sandbox
        # hides in its own what Docker would have hidden (src/nanosupervisor/sandbox.c).
        body["HostConfig"] |= {"MaskedPaths": [], "ReadonlyPaths": []}
    return body
