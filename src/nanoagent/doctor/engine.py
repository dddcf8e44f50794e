"""Docker: its version and settings, the images, and the isolation that can be had. Facts in, findings out.

Sources: Docker Engine API v1.41 (SystemInfo), dockerd(8), docs.docker.com "Rootless mode" and "Isolate
containers with a user namespace".
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from nanoagent.container import engine as engines
from nanoagent.container.isolation import unacceptable
from nanoagent.container.policy import Sharing
from nanoagent.doctor.finding import Area, Finding, note, problem, unknown, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.config import Settings
    from nanoagent.doctor.facts import Engine, Host

_OLDEST_API: Final = (1, 41)  # CgroupnsMode in the create call
_GOOD_STORAGE: Final = frozenset({"overlay2", "overlayfs", "stargz", "fuse-overlayfs"})
_CLOCK_OFF_S: Final = 60.0
_DAEMON: Final = "/etc/docker/daemon.json"
_RESTART: Final = f"in {_DAEMON}, then systemctl restart docker"
_UNFIT_REMEDIES: Final = {
    "DOCKER_RUNTIME": f'"runtimes" {_RESTART}; or DOCKER_RUNTIME= for the default',
    "DOCKER_HOST": "the missing controllers, see above; for rootless Docker, "
    "Delegate=cpu cpuset io memory pids in user@.service.d",
    "CONTAINER_UID_BASE": "CONTAINER_UID_BASE=20000",
}


def judge(engine: Engine, host: Host, settings: Settings) -> Iterator[Finding]:
    """Everything that is to be said of Docker, apart from `sizes`, for which the settings must be right."""
    if engine.problem is not None:
        yield unreachable(engine)
        yield unknown(Area.IMAGES, "not asked: Docker does not answer")
        yield unknown(Area.ISOLATION, "not tried: Docker does not answer")
        return
    yield from version(engine)
    yield from access(engine)
    yield from daemon(engine, host)
    yield from swap(engine, host)
    yield from fitness(engine, settings)
    yield from users(engine)
    yield from images(engine)
    yield level(engine, settings)


def unreachable(engine: Engine) -> Finding:
    """Why Docker does not answer, and what to do."""
    reason = engine.problem or ""
    if "ermission denied" in reason:
        remedy = "usermod -aG docker USER, with the worker's user, and sign in anew (as root by another name)"
    elif "no Docker Engine was found" in reason or "No such file" in reason:
        remedy = "make setup, or start Docker, or set DOCKER_HOST to where it is"
    else:
        remedy = (
            "systemctl start docker; journalctl -u docker says why it ended; DOCKER_HOST, if it is elsewhere"
        )
    return problem(Area.DOCKER, reason, remedy)


def version(engine: Engine) -> Iterator[Finding]:
    """Whether the engine is recent enough, and a kind that is known."""
    name = str(engine.version.get("Version") or engine.info.get("ServerVersion") or "of unknown version")
    spoken = str(engine.version.get("ApiVersion") or "")
    api = _pair(spoken)
    about = f"Docker {name}, API {spoken or 'unknown'}"
    components = [
        str(part.get("Name")) for part in engine.version.get("Components") or [] if isinstance(part, dict)
    ]
    if any("podman" in part.lower() for part in components):
        about = f"Podman {name}, API {spoken}"
    if (engine.info.get("OSType") or "linux") != "linux":
        yield problem(
            Area.DOCKER, f"{about} runs {engine.info['OSType']} containers", "an engine for Linux containers"
        )
    elif api is None:
        yield unknown(Area.DOCKER, f"{about}: whether that is 1.41 or newer", "docker version")
    elif api < _OLDEST_API:
        yield problem(Area.DOCKER, f"{about} is too old", "Docker 20.10 or newer (API 1.41)")
    elif api < (1, 44):
        yield note(
            Area.DOCKER,
            f"{about}: works, and its maker mends it no more",
            "Docker 25 or newer (API 1.44), unless your distribution mends this one",
        )
    else:
        yield Finding(Area.DOCKER, about)
    if engine.version.get("Experimental") or engine.info.get("ExperimentalBuild"):
        yield note(Area.DOCKER, "experimental features are on", f'"experimental": false {_RESTART}')


def access(engine: Engine) -> Iterator[Finding]:
    """Who else may use Docker, which is root by another name."""
    if engine.socket_mode is not None and engine.socket_mode & 0o002:
        yield problem(
            Area.DOCKER,
            f"everyone may use {engine.address}, and so be root of this machine",
            f"chmod o-rwx {engine.address.removeprefix('unix://')}",
        )
    told = " ".join(map(str, engine.info.get("Warnings") or []))
    open_to_all = "without encryption" in told or (
        engine.address.startswith(("tcp://", "http://"))
        and not re.search(r"//(127\.|localhost|\[::1\])", engine.address)
    )
    if open_to_all:
        yield problem(
            Area.DOCKER,
            "Docker's API can be reached over the network without encryption: whoever reaches it is root",
            f'no "tcp://" in "hosts" {_RESTART}; or protect it with TLS (docs.docker.com, protect-access)',
        )


def daemon(engine: Engine, host: Host) -> Iterator[Finding]:
    """Settings of the daemon that matter here."""
    info = engine.info
    if not engine.has_security("seccomp"):
        yield problem(
            Area.DOCKER,
            "docker info lists no seccomp: containers run without filters of system calls",
            "a Docker Engine built with seccomp (docker.io, docker-ce)",
        )
    driver = str(info.get("Driver") or "unknown")
    status = {str(row[0]): str(row[1]) for row in info.get("DriverStatus") or [] if len(row) == 2}
    if status.get("Supports d_type") == "false":
        yield problem(
            Area.DOCKER,
            f"the storage driver {driver} lies on a file system without d_type: images lose files",
            "mkfs.xfs -n ftype=1, or ext4, for Docker's root",
        )
    elif driver == "vfs":
        yield warning(
            Area.DOCKER,
            "the storage driver vfs copies the whole image for each container",
            f'"storage-driver": "overlay2" {_RESTART}',
        )
    elif driver not in _GOOD_STORAGE:
        yield note(
            Area.DOCKER,
            f"the storage driver is {driver}, not tried here",
            f'"storage-driver": "overlay2" {_RESTART}',
        )
    else:
        yield Finding(Area.DOCKER, f"storage driver {driver}")
    if not info.get("LiveRestoreEnabled") and (info.get("Swarm") or {}).get("LocalNodeState") != "active":
        yield note(
            Area.DOCKER,
            "live-restore is off: when Docker is restarted, running jobs are lost and tried again",
            f'"live-restore": true {_RESTART}',
        )
    if info.get("Debug"):
        yield note(Area.DOCKER, "Docker logs for debugging", f'"debug": false {_RESTART}')
    told = _when(info.get("SystemTime"))
    if told is not None and engine.info_at and abs(told - engine.info_at) > _CLOCK_OFF_S:
        yield warning(
            Area.CLOCK,
            f"Docker's clock is {told - engine.info_at:+.0f} s off this machine's",
            "set both by a time service (a sleeping machine's Docker VM: restart it)",
        )
    yield from _group_driver(engine, host)


def _group_driver(engine: Engine, host: Host) -> Iterator[Finding]:
    driver, version_ = engine.info.get("CgroupDriver"), str(engine.info.get("CgroupVersion") or "1")
    if driver == "none":
        yield problem(
            Area.CGROUPS,
            "Docker sets no limits at all (cgroup driver none): jobs could use up the machine",
            "rootless Docker takes control groups v2 and systemd: kernel parameter "
            "systemd.unified_cgroup_hierarchy=1, loginctl enable-linger USER",
        )
    elif driver == "cgroupfs" and version_ == "2" and host.has_systemd:
        yield warning(
            Area.CGROUPS,
            "Docker manages control groups itself (cgroupfs) beside systemd, which thinks it owns them and "
            "may undo limits",
            f'"exec-opts": ["native.cgroupdriver=systemd"] {_RESTART}',
        )
    else:
        yield Finding(Area.CGROUPS, f"Docker's cgroup driver is {driver}, on version {version_}")
    if host.cgroup_version is not None and str(host.cgroup_version) != version_:
        yield note(
            Area.CGROUPS,
            f"this process sees control groups of version {host.cgroup_version}, Docker uses {version_}: is "
            "it on another machine? Then memory is not measured",
        )


def fitness(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """What the worker itself looks at before it makes containers: it does not start with any of this."""
    problems = engines.unfit(
        engine.info, docker_runtime=settings.docker_runtime, uid_base=settings.container_uid_base
    )
    for text in problems:
        variable = text.partition(":")[0]
        area = Area.CGROUPS if variable == "DOCKER_HOST" else Area.DOCKER
        yield problem(area, text, _UNFIT_REMEDIES.get(variable, f"another {variable}"))
    if settings.docker_runtime is not None and not problems:
        yield Finding(Area.DOCKER, f"DOCKER_RUNTIME={settings.docker_runtime}")


def swap(engine: Engine, host: Host) -> Iterator[Finding]:
    """Whether a job's memory is all that it gets."""
    swaps = (host.text("/proc/swaps") or "").splitlines()[1:]
    if engine.info.get("SwapLimit") is False:
        if swaps:
            yield warning(
                Area.CGROUPS,
                "swap is not counted, and this machine has some: jobs get more memory than they pay for",
                "kernel parameter swapaccount=1, or swapoff -a",
            )
        else:
            yield note(
                Area.CGROUPS, "swap is not counted; this machine has none", "kernel parameter swapaccount=1"
            )


def users(engine: Engine) -> Iterator[Finding]:
    """Rootless Docker and remapped user ids."""
    if engine.has_security("rootless"):
        yield note(
            Area.DOCKER, "Docker runs without root: whoever gets out of a container is an ordinary user"
        )
    if engine.has_security("userns"):
        yield note(Area.DOCKER, "Docker remaps user ids: root in a container is nobody outside")


def sizes(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Whether the machine has what the worker gives out."""
    share = engines.memory_share(engine.info, settings.worker_memory_mb)
    if share is not None and share.leaves_room:
        yield Finding(Area.LIMITS, share.found)
    elif share is not None:
        judged = warning if share.fits else problem
        yield judged(Area.LIMITS, share.found, f"WORKER_MEMORY_MB={share.advised_mb}")
    cpus = engine.info.get("NCPU")
    if isinstance(cpus, int) and cpus and settings.worker_cpus > cpus * 1.5:
        yield note(
            Area.LIMITS,
            f"WORKER_CPUS={settings.worker_cpus:g} of the machine's {cpus}: jobs wait for each other",
            f"WORKER_CPUS={cpus}",
        )


def images(engine: Engine) -> Iterator[Finding]:
    """Whether each runtime's image is there, and made of what this version is made of."""
    for runtime, image in engine.images.items():
        variable = f"DOCKER_{runtime.upper()}_IMAGE"
        if image.problem is not None:
            yield problem(Area.IMAGES, f"{variable}: {image.problem}", "make images, or pull it")
        elif image.label is None:
            yield unknown(
                Area.IMAGES,
                f"{variable}: {image.name} does not say what it was built from (no label nanoagent.content)",
                "make images, unless you build your own",
            )
        elif image.expected is None:
            yield note(
                Area.IMAGES,
                f"{image.name} was built from {image.label}; whether that is this version's is only known "
                "where its sources are",
            )
        elif image.expected != image.label:
            yield warning(
                Area.IMAGES,
                f"{image.name} was built from {image.label}, and the sources here are {image.expected}",
                "make images",
            )
        else:
            yield Finding(Area.IMAGES, f"{image.name} is made of this version's sources ({image.label})")


def level(engine: Engine, settings: Settings) -> Finding:
    """What stands between two runs, as it was tried with a container."""
    if engine.level is None:
        return (problem if engine.level_problem else unknown)(
            Area.ISOLATION,
            engine.level_problem or "not tried",
            "mend what is said above; then nanoagent doctor again",
        )
    verdict = engine.level
    if verdict.reason is None:
        profile = f", under the AppArmor profile {verdict.apparmor}" if verdict.apparmor else ""
        return Finding(Area.ISOLATION, f"a sandbox for each run (L2){profile}: tried with a container")
    refused = unacceptable(verdict, settings.min_isolation, Sharing(settings.container_sharing))
    if refused:
        return problem(
            Area.ISOLATION, "; ".join(refused), "see what is said of namespaces and AppArmor above"
        )
    return warning(
        Area.ISOLATION,
        f"runs of one function share a container (L1): {verdict.reason}",
        "see what is said of namespaces and AppArmor above; deploy/apparmor/README.md; or "
        "CONTAINER_SHARING=never",
    )


def _pair(spoken: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+)\.(\d+)", spoken)
    return (int(match[1]), int(match[2])) if match else None


def _when(text: Any) -> float | None:
    """An RFC 3339 time as seconds since the epoch; Go writes nine digits, of which Python reads six."""
    try:
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", str(text))).timestamp()
    except ValueError:
        return None
