"""Findings about Docker: the engine's version and settings, the images, and the isolation.

Sources: Docker Engine API v1.41 (SystemInfo), dockerd(8), docs.docker.com "Rootless mode" and "Isolate
containers with a user namespace".
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from nanoagent.container import engine as engines
from nanoagent.container.isolation import isolation_problems
from nanoagent.container.policy import Sharing
from nanoagent.doctor.finding import Area, Finding, note, problem, unknown, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.config import Settings
    from nanoagent.doctor.facts import Engine, Host, Image
    from nanoagent.model.job import Runtime

_OLDEST_API: Final = (1, 41)  # the first version with CgroupnsMode for new containers
_MAINTAINED_API: Final = (1, 44)  # the oldest that Docker maintains
_GOOD_STORAGE: Final = frozenset({"overlay2", "overlayfs", "stargz", "fuse-overlayfs"})
_MAX_CLOCK_DIFFERENCE_S: Final = 60.0
_DAEMON_FILE: Final = "/etc/docker/daemon.json"
_RESTART: Final = f"in {_DAEMON_FILE}, then systemctl restart docker"
_UNFIT_REMEDIES: Final = {
    "DOCKER_RUNTIME": f'add it to "runtimes" {_RESTART}; or unset DOCKER_RUNTIME for the default',
    "DOCKER_HOST": "enable the missing controllers, see above; for rootless Docker, "
    "Delegate=cpu cpuset io memory pids in user@.service.d",
    "CONTAINER_UID_BASE": "CONTAINER_UID_BASE=20000",
}


def judge(engine: Engine, host: Host, settings: Settings) -> Iterator[Finding]:
    """Return all findings about Docker, except those of `sizes`, which needs valid settings."""
    if engine.problem is not None:
        yield _unreachable(engine)
        yield unknown(Area.IMAGES, "not examined: Docker does not answer")
        yield unknown(Area.ISOLATION, "not tested: Docker does not answer")
        return
    yield from _version(engine)
    yield from _access(engine)
    yield from _daemon(engine)
    yield from _group_driver(engine, host)
    yield from _swap(engine, host)
    yield from _fitness(engine, settings)
    yield from _users(engine)
    for runtime, image in engine.images.items():
        yield _image(runtime, image)
    yield _isolation(engine, settings)


def sizes(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Compare WORKER_MEMORY_MB and WORKER_CPUS with the machine."""
    share = engines.memory_share(engine.info, settings.worker_memory_mb)
    if share is not None and share.leaves_room:
        yield Finding(Area.LIMITS, share.found)
    elif share is not None:
        finding = warning if share.fits else problem
        yield finding(Area.LIMITS, share.found, f"WORKER_MEMORY_MB={share.advised_mb}")
    cpus = engine.info.get("NCPU")
    if isinstance(cpus, int) and cpus and settings.worker_cpus > cpus * 1.5:
        yield note(
            Area.LIMITS,
            f"WORKER_CPUS={settings.worker_cpus:g} of the machine's {cpus}: jobs slow each other down",
            f"WORKER_CPUS={cpus}",
        )


# --- the engine


def _unreachable(engine: Engine) -> Finding:
    """Return the finding for an engine that does not answer."""
    reason = engine.problem or ""
    if "ermission denied" in reason:
        remedy = (
            "usermod -aG docker USER, with the worker's user, and log in again (members of the group docker "
            "are equivalent to root)"
        )
    elif "no Docker Engine was found" in reason or "No such file" in reason:
        remedy = "make setup, or start Docker, or set DOCKER_HOST to its address"
    else:
        remedy = (
            "systemctl start docker; journalctl -u docker has the reason if it ended; set DOCKER_HOST if it "
            "has another address"
        )
    return problem(Area.DOCKER, reason, remedy)


def _version(engine: Engine) -> Iterator[Finding]:
    """Judge the engine's version and operating system."""
    version = str(engine.version.get("Version") or engine.info.get("ServerVersion") or "of unknown version")
    api_text = str(engine.version.get("ApiVersion") or "")
    api = _pair(api_text)
    name = f"{'Podman' if _is_podman(engine) else 'Docker'} {version}, API {api_text or 'unknown'}"
    if (engine.info.get("OSType") or "linux") != "linux":
        yield problem(
            Area.DOCKER,
            f"{name} runs {engine.info['OSType']} containers",
            "use an engine for Linux containers",
        )
    elif api is None:
        yield unknown(Area.DOCKER, f"{name}: whether the API is 1.41 or newer", "docker version")
    elif api < _OLDEST_API:
        yield problem(Area.DOCKER, f"{name} is too old", "use Docker 20.10 or newer (API 1.41)")
    elif api < _MAINTAINED_API:
        yield note(
            Area.DOCKER,
            f"{name}: works, but Docker no longer maintains it",
            "use Docker 25 or newer (API 1.44), unless your distribution maintains this one",
        )
    else:
        yield Finding(Area.DOCKER, name)
    if engine.version.get("Experimental") or engine.info.get("ExperimentalBuild"):
        yield note(Area.DOCKER, "experimental features are on", f'"experimental": false {_RESTART}')


def _is_podman(engine: Engine) -> bool:
    components = [part for part in engine.version.get("Components") or [] if isinstance(part, dict)]
    return any("podman" in str(part.get("Name")).lower() for part in components)


def _access(engine: Engine) -> Iterator[Finding]:
    """Judge whether other users may use Docker. Every user of Docker is equivalent to root."""
    if engine.socket_mode is not None and engine.socket_mode & 0o002:
        yield problem(
            Area.DOCKER,
            f"everyone may use {engine.address}, and every user of Docker can become root on this machine",
            f"chmod o-rwx {engine.address.removeprefix('unix://')}",
        )
    warnings = " ".join(map(str, engine.info.get("Warnings") or []))
    is_open_to_all = "without encryption" in warnings or (
        engine.address.startswith(("tcp://", "http://"))
        and not re.search(r"//(127\.|localhost|\[::1\])", engine.address)
    )
    if is_open_to_all:
        yield problem(
            Area.DOCKER,
            "Docker's API is open to the network without encryption: every client that reaches it can become "
            "root",
            f'remove "tcp://" from "hosts" {_RESTART}; or protect it with TLS (docs.docker.com, '
            "protect-access)",
        )


def _daemon(engine: Engine) -> Iterator[Finding]:
    """Judge the settings of the daemon."""
    info = engine.info
    if not engine.has_security("seccomp"):
        yield problem(
            Area.DOCKER,
            "docker info lists no seccomp: containers run without filters of system calls",
            "use a Docker Engine that is built with seccomp (docker.io, docker-ce)",
        )
    yield _storage(engine)
    if not info.get("LiveRestoreEnabled") and (info.get("Swarm") or {}).get("LocalNodeState") != "active":
        yield note(
            Area.DOCKER,
            "live-restore is off: a restart of Docker ends all running jobs, and they are repeated",
            f'"live-restore": true {_RESTART}',
        )
    if info.get("Debug"):
        yield note(Area.DOCKER, "Docker writes debug logs", f'"debug": false {_RESTART}')
    time = _parse_time(info.get("SystemTime"))
    if time is not None and engine.info_at and abs(time - engine.info_at) > _MAX_CLOCK_DIFFERENCE_S:
        yield warning(
            Area.CLOCK,
            f"Docker's clock is {time - engine.info_at:+.0f} s off this machine's clock",
            "set both by a time service (if Docker runs in a virtual machine that slept, restart it)",
        )


def _storage(engine: Engine) -> Finding:
    driver = str(engine.info.get("Driver") or "unknown")
    rows = engine.info.get("DriverStatus") or []
    status = {str(row[0]): str(row[1]) for row in rows if len(row) == 2}
    if status.get("Supports d_type") == "false":
        return problem(
            Area.DOCKER,
            f"the storage driver {driver} is on a file system without d_type: images lose files",
            "use ext4, or mkfs.xfs -n ftype=1, for Docker's root",
        )
    if driver == "vfs":
        return warning(
            Area.DOCKER,
            "the storage driver vfs copies the whole image for each container",
            f'"storage-driver": "overlay2" {_RESTART}',
        )
    if driver not in _GOOD_STORAGE:
        return note(
            Area.DOCKER,
            f"the storage driver is {driver}, not tested with this worker",
            f'"storage-driver": "overlay2" {_RESTART}',
        )
    return Finding(Area.DOCKER, f"storage driver {driver}")


def _group_driver(engine: Engine, host: Host) -> Iterator[Finding]:
    driver, version = engine.info.get("CgroupDriver"), str(engine.info.get("CgroupVersion") or "1")
    if driver == "none":
        yield problem(
            Area.CGROUPS,
            "Docker sets no limits at all (cgroup driver none): jobs could use up the machine",
            "rootless Docker needs control groups v2 and systemd: kernel parameter "
            "systemd.unified_cgroup_hierarchy=1, loginctl enable-linger USER",
        )
    elif driver == "cgroupfs" and version == "2" and host.has_systemd:
        yield warning(
            Area.CGROUPS,
            "both Docker (cgroup driver cgroupfs) and systemd manage control groups: systemd may remove the "
            "limits of containers",
            f'"exec-opts": ["native.cgroupdriver=systemd"] {_RESTART}',
        )
    else:
        yield Finding(Area.CGROUPS, f"Docker's cgroup driver is {driver}, on version {version}")
    if host.cgroup_version is not None and str(host.cgroup_version) != version:
        yield note(
            Area.CGROUPS,
            f"this process sees control groups of version {host.cgroup_version}, Docker uses {version}: if "
            "Docker runs on another machine, memory is not measured",
        )


def _fitness(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Return the problems that prevent the start of the worker."""
    problems = engines.engine_problems(
        engine.info, docker_runtime=settings.docker_runtime, uid_base=settings.container_uid_base
    )
    for text in problems:
        setting = text.partition(":")[0]
        area = Area.CGROUPS if setting == "DOCKER_HOST" else Area.DOCKER
        yield problem(area, text, _UNFIT_REMEDIES.get(setting, f"correct {setting}"))
    if settings.docker_runtime is not None and not problems:
        yield Finding(Area.DOCKER, f"DOCKER_RUNTIME={settings.docker_runtime}")


def _swap(engine: Engine, host: Host) -> Iterator[Finding]:
    """Judge whether the memory limit of a job includes swap."""
    swaps = (host.text("/proc/swaps") or "").splitlines()[1:]
    if engine.info.get("SwapLimit") is False:
        if swaps:
            yield warning(
                Area.CGROUPS,
                "swap is not counted, and this machine has swap: jobs can use more memory than their limit",
                "kernel parameter swapaccount=1, or swapoff -a",
            )
        else:
            yield note(
                Area.CGROUPS,
                "swap is not counted; this machine has no swap",
                "kernel parameter swapaccount=1",
            )


def _users(engine: Engine) -> Iterator[Finding]:
    """Note rootless Docker and remapped user ids."""
    if engine.has_security("rootless"):
        yield note(
            Area.DOCKER, "Docker runs without root: a program that escapes a container is an ordinary user"
        )
    if engine.has_security("userns"):
        yield note(Area.DOCKER, "Docker remaps user ids: root in a container is an ordinary user outside")


# --- images and isolation


def _image(runtime: Runtime, image: Image) -> Finding:
    """Judge whether an image exists and was built from this version's sources."""
    setting = f"DOCKER_{runtime.upper()}_IMAGE"
    if image.problem is not None:
        return problem(Area.IMAGES, f"{setting}: {image.problem}", "nanoagent images, or pull it")
    if image.label is None:
        return unknown(
            Area.IMAGES,
            f"{setting}: {image.name} does not show its sources (it has no label nanoagent.content)",
            "nanoagent images, unless you build your own",
        )
    if image.expected is None:
        return note(
            Area.IMAGES,
            f"{image.name} was built from {image.label}; without the sources and the base image here, the "
            "doctor cannot compare it with this version",
        )
    if image.expected != image.label:
        return warning(
            Area.IMAGES,
            f"{image.name} was built from {image.label}, and the sources here are {image.expected}",
            "nanoagent images",
        )
    return Finding(Area.IMAGES, f"{image.name} was built from this version's sources ({image.label})")


def _isolation(engine: Engine, settings: Settings) -> Finding:
    """Judge the isolation that a test container could provide."""
    found = engine.isolation
    if found is None:
        finding = problem if engine.isolation_problem else unknown
        return finding(
            Area.ISOLATION,
            engine.isolation_problem or "not tested",
            "correct the other findings, then run nanoagent doctor again",
        )
    if found.reason is None:
        profile = f", under the AppArmor profile {found.apparmor}" if found.apparmor else ""
        return Finding(Area.ISOLATION, f"a sandbox for each run (L2){profile}: tested with a container")
    advice = "see the findings about namespaces and AppArmor above"
    refused = isolation_problems(found, settings.min_isolation, Sharing(settings.container_sharing))
    if refused:
        return problem(Area.ISOLATION, "; ".join(refused), advice)
    return warning(
        Area.ISOLATION,
        f"runs of one function share a container (L1): {found.reason}",
        f"{advice}, and deploy/apparmor/README.md; or CONTAINER_SHARING=never",
    )


# --- parsing


def _pair(version: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None


def _parse_time(text: Any) -> float | None:
    """Parse an RFC 3339 time to seconds since the epoch. Go writes nine digits, Python reads six."""
    try:
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", str(text))).timestamp()
    except ValueError:
        return None
