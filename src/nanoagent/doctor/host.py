"""The machine itself: kernel, control groups, namespaces, limits, disks, clock. Facts in, findings out.

Sources: kernel documentation, admin-guide/cgroup-v2, admin-guide/sysctl/{kernel,user,vm}; overlayfs.rst;
user_namespaces(7), proc(5), core(5); AppArmor's wiki on unprivileged_userns_restriction.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB
from nanoagent.doctor import facts
from nanoagent.doctor.finding import Area, Finding, note, problem, unknown, warning
from nanoagent.host import resources

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.config import Settings
    from nanoagent.doctor.facts import Engine, Folder, Host

_DAC_OVERRIDE: Final = 1 << 1  # capability.h
_FEW_FILES: Final = 4096  # a worker of some hundred containers: a session, a dozen counters each
_FEW_PIDS: Final = 32_768  # the default where there are few CPUs
_FEW_INOTIFY: Final = 128  # the kernel's default
_LITTLE_BYTES: Final = 1024 * MIB
_ROOMY_DOCKER_BYTES: Final = 5 * 1024 * MIB  # the four images have 2 GiB together
_FEW_INODES: Final = 20_000  # an ordinary node_modules, unpacked and linked
_REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "afs", "virtiofs"})
_RELEASED: Final = datetime(2026, 1, 1, tzinfo=UTC).timestamp()  # no clock that is right shows less
_FAR_AHEAD: Final = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
_NAMESPACES: Final = ("user", "mnt", "pid", "ipc", "uts", "net")


def judge(host: Host, engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Everything that is to be said of the machine."""
    yield from kernel(host)
    yield from control_groups(host)
    yield from namespaces(host)
    yield from security(host, engine, settings)
    yield from limits(host)
    yield from disks(host, engine, settings)
    yield from clock(host)


def kernel(host: Host) -> Iterator[Finding]:
    """Whether it can do what sandboxes are made of."""
    about = f"Linux {host.release} on {host.machine}"
    if host.kernel is None:
        yield unknown(Area.KERNEL, f"{about}: no version can be read from that", "uname -r")
    elif host.is_older_than(5, 9):
        yield problem(
            Area.KERNEL, f"{about} has no close_range(2), which every run takes", "a kernel of 5.11 or newer"
        )
    elif host.is_older_than(5, 11):
        yield warning(
            Area.KERNEL,
            f"{about} has no overlay mounts in user namespaces: no sandbox for each run (L2)",
            "a kernel of 5.11 or newer",
        )
    else:
        yield Finding(Area.KERNEL, about)
    if host.machine not in {"x86_64", "aarch64"}:
        yield warning(
            Area.KERNEL,
            f"the self-test does not know the system calls of {host.machine}",
            "SELFTEST_INTERVAL_SECONDS=0, or a machine with x86_64 or aarch64",
        )
    if host.text("/proc/sys/vm/overcommit_memory") == "2":
        yield warning(
            Area.KERNEL,
            "vm.overcommit_memory is 2: Node.js and Go reserve more address space than they use, and may "
            "not start",
            "sysctl -w vm.overcommit_memory=0",
        )
    if host.text("/proc/sys/vm/panic_on_oom") == "2":
        yield problem(
            Area.KERNEL,
            "vm.panic_on_oom is 2: a job that uses up its memory brings the machine down",
            "sysctl -w vm.panic_on_oom=0",
        )
    pattern = host.text("/proc/sys/kernel/core_pattern")
    if pattern and pattern.startswith("|"):
        program = pattern[1:].split(" ")[0]
        yield note(
            Area.KERNEL,
            f"core dumps are piped to {program}; runs have a limit at which the kernel does not start it",
        )


def control_groups(host: Host) -> Iterator[Finding]:
    """Whether containers can be limited, and what they used be read."""
    version = host.cgroup_version
    if version is None:
        yield problem(
            Area.CGROUPS,
            "no control groups are mounted, or /proc/self/mountinfo is not to be read",
            "boot with systemd, or: mount -t cgroup2 none /sys/fs/cgroup",
        )
        return
    missing = [name for name in ("memory", "pids", "cpu") if name not in host.controllers]
    if missing:
        parameter = "cgroup_enable=memory, " if "memory" in missing else ""
        yield problem(
            Area.CGROUPS,
            f"version {version} without the controllers {', '.join(missing)}: such limits cannot be set",
            f"kernel parameters: {parameter}no cgroup_disable=; where Docker runs in a container, delegate "
            "them to it",
        )
    else:
        yield Finding(Area.CGROUPS, f"version {version} with memory, pids and cpu")
    yield from _peaks(host, version)
    yield from _writing(host)
    yield from _visible(host)


def _peaks(host: Host, version: int) -> Iterator[Finding]:
    if version == 1:
        yield Finding(Area.CGROUPS, "the peak of memory can be read and reset")
    elif host.is_older_than(5, 19):
        yield warning(
            Area.CGROUPS,
            f"Linux {host.release} has no memory.peak in version 2: peakMemoryBytes and advice are null",
            "a kernel of 5.19 or newer (6.12 for every run's peak), or version 1: kernel parameter "
            "systemd.unified_cgroup_hierarchy=0",
        )
    elif host.is_older_than(6, 12):
        yield note(
            Area.CGROUPS,
            f"Linux {host.release} cannot reset memory.peak: peakMemoryBytes is null for some later runs of "
            "a container",
            "a kernel of 6.12 or newer, or CONTAINER_MAX_RUNS=1",
        )
    elif host.kernel is not None:
        yield Finding(Area.CGROUPS, "the peak of memory can be read and reset")


def _writing(host: Host) -> Iterator[Finding]:
    points = set(host.cgroup_mounts.values())
    sealed = sorted(mount.point for mount in host.mounts if mount.point in points and "ro" in mount.options)
    permitted = host.status("CapPrm")
    lost = "limits go through Docker's API (30 ms for a container's first run), some peaks are not known"
    if sealed:
        yield warning(
            Area.CGROUPS,
            f"{', '.join(sealed)} is mounted read-only: {lost}",
            "ProtectControlGroups=no and ReadWritePaths=/sys/fs/cgroup in the unit, or a rw mount",
        )
    elif host.uid == 0 or (permitted and int(permitted, 16) & _DAC_OVERRIDE):
        yield Finding(Area.CGROUPS, "this user may write the containers' control groups")
    else:
        yield note(
            Area.CGROUPS,
            f"this user may not write the containers' control groups: {lost}",
            "AmbientCapabilities=CAP_DAC_OVERRIDE, as in nanogrid-worker.service (the unit has it; this "
            "shell has not)",
        )


def _visible(host: Host) -> Iterator[Finding]:
    proc = facts.mount_of("/proc", host.mounts)
    hiding = [
        option
        for option in (proc.options if proc else ())
        if option.startswith("hidepid=") and option not in {"hidepid=0", "hidepid=off"}
    ]
    if hiding and host.uid != 0:
        yield warning(
            Area.CGROUPS,
            f"/proc is mounted with {hiding[0]}: containers' control groups cannot be found, so that memory "
            "is not measured and the kernel's out-of-memory kills are not seen",
            "mount -o remount,hidepid=0 /proc; under systemd, ProtectProc=default",
        )


def namespaces(host: Host) -> Iterator[Finding]:
    """Whether an ordinary user can make those that a sandbox takes."""
    lost = "no sandbox for each run (L2)"
    if "/proc/self/ns/user" not in host.files:
        yield warning(
            Area.NAMESPACES, f"the kernel has no user namespaces: {lost}", "a kernel with CONFIG_USER_NS=y"
        )
        return
    closed = {
        f"user.max_{kind}_namespaces": "10000"
        for kind in _NAMESPACES
        if host.number(f"/proc/sys/user/max_{kind}_namespaces") == 0
    }
    if host.text("/proc/sys/kernel/unprivileged_userns_clone") == "0":  # Debian's and Arch's own
        closed["kernel.unprivileged_userns_clone"] = "1"
    for name, value in closed.items():
        yield warning(Area.NAMESPACES, f"{name} is 0: {lost}", f"sysctl -w {name}={value}")
    if not closed:
        yield Finding(Area.NAMESPACES, f"an ordinary user may have new ones ({', '.join(_NAMESPACES)})")


def security(host: Host, engine: Engine, settings: Settings) -> Iterator[Finding]:
    """System-call filters and the security modules that the kernel has."""
    if host.status("Seccomp") is None and host.text("/proc/sys/kernel/seccomp/actions_avail") is None:
        if host.status("Uid") is None:
            yield unknown(Area.SECURITY, "whether the kernel filters system calls: /proc is not to be read")
        else:
            yield problem(
                Area.SECURITY,
                "the kernel has no filters of system calls (seccomp): containers cannot be started",
                "a kernel with CONFIG_SECCOMP_FILTER=y",
            )
    else:
        yield Finding(Area.SECURITY, "the kernel filters system calls (seccomp)")
    modules = host.text(facts.LSM_LIST)
    if modules:
        yield Finding(Area.SECURITY, f"security modules: {modules}")
    yield from _apparmor(host, engine, settings.container_apparmor_profile)
    if engine.has_security("selinux"):
        yield note(
            Area.SECURITY,
            "Docker confines containers with SELinux, under which this worker has not been tried",
            "see what isolation says below; if slot folders are refused: label DOCKER_WORK_DIR_ROOT "
            "container_file_t",
        )


def _apparmor(host: Host, engine: Engine, profile: str) -> Iterator[Finding]:
    restricts = host.text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1"
    load = "deploy/apparmor/README.md: apparmor_parser -r -W /etc/apparmor.d/nanoagent"
    if not engine.has_security("apparmor"):
        if restricts:
            yield warning(
                Area.SECURITY,
                "AppArmor keeps user namespaces from programs without a profile, and Docker sets none: no "
                "sandbox for each run (L2)",
                f"install the package apparmor and restart Docker, then load the profile ({load}); or "
                "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            )
        return
    profiles = host.text(facts.APPARMOR_PROFILES)
    if profiles is None:
        yield unknown(
            Area.SECURITY,
            f"whether the AppArmor profile {profile} is loaded: only root may read the list; see isolation "
            "below",
            f"as root: grep '^{profile} ' {facts.APPARMOR_PROFILES}",
        )
        return
    modes = [line.rpartition(" ")[2] for line in profiles.splitlines() if line.startswith(f"{profile} (")]
    if not modes:
        why = " and its kernel restricts user namespaces" if restricts else ""
        yield warning(
            Area.SECURITY,
            f"Docker confines containers with AppArmor{why}, and the profile {profile} is not loaded: no "
            "sandbox for each run (L2)",
            load,
        )
    elif "enforce" not in modes[0]:
        yield problem(
            Area.SECURITY,
            f"the AppArmor profile {profile} is loaded, but as {modes[0].strip('()')}: it forbids nothing",
            f"aa-enforce {profile}",
        )
    else:
        yield Finding(Area.SECURITY, f"the AppArmor profile {profile} is loaded and enforced")


def limits(host: Host) -> Iterator[Finding]:
    """How many files, processes and watches there may be."""
    problems = list(_tight_limits(host))
    yield from problems
    if not problems:
        yield Finding(Area.LIMITS, f"{host.open_files:,} open files; enough processes and inotify instances")


def _tight_limits(host: Host) -> Iterator[Finding]:
    if host.open_files < resources.LEAST_DESCRIPTORS:
        yield problem(
            Area.LIMITS,
            f"this shell may open {host.open_files:,} files, and a worker does not start with fewer than "
            f"{resources.LEAST_DESCRIPTORS}",
            "raise the hard limit (ulimit -Hn 65536, or LimitNOFILE=65536 as in the unit)",
        )
    elif host.open_files < _FEW_FILES:
        yield note(
            Area.LIMITS,
            f"this shell may open {host.open_files:,} files; a worker with many containers takes more",
            f"ulimit -n 65536; the unit has LimitNOFILE=65536 (fewer than {_FEW_FILES:,} may be too few)",
        )
    for path, name in (
        ("/proc/sys/kernel/pid_max", "kernel.pid_max"),
        ("/proc/sys/kernel/threads-max", "kernel.threads-max"),
    ):
        value = host.number(path)
        if value is not None and value < _FEW_PIDS:
            yield warning(
                Area.LIMITS,
                f"{name} is {value:,}: with MAX_PROCESSES for each run, few runs can use it up for the "
                "machine",
                f"sysctl -w {name}=4194304" if "pid" in name else f"sysctl -w {name}=131072",
            )
    files = host.number("/proc/sys/fs/file-max")
    if files is not None and files < 100_000:
        yield warning(
            Area.LIMITS, f"fs.file-max is {files:,} for the whole machine", "sysctl -w fs.file-max=1000000"
        )
    watches = host.number("/proc/sys/fs/inotify/max_user_instances")
    if watches is not None and watches < _FEW_INOTIFY:
        yield note(
            Area.LIMITS,
            f"fs.inotify.max_user_instances is {watches}: programs that watch files may fail",
            "sysctl -w fs.inotify.max_user_instances=1024",
        )


def disks(host: Host, engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Room, and what file systems allow, where the worker and Docker write."""
    for folder in host.folders:
        yield from _disk(folder, engine, settings)
    by_name = {folder.name: folder for folder in host.folders if folder.nearest}
    code, work = by_name.get("CODE_CACHE_DIR"), by_name.get("DOCKER_WORK_DIR_ROOT")
    if code is None or work is None:
        return
    # Links do not cross mounts, be they of one file system: link(2), EXDEV.
    if (code.device, code.mount) == (work.device, work.mount):
        yield Finding(Area.DISK, "code is linked, not copied, from CODE_CACHE_DIR to DOCKER_WORK_DIR_ROOT")
    else:
        yield note(
            Area.DISK,
            "CODE_CACHE_DIR and DOCKER_WORK_DIR_ROOT lie on two mounts: code is copied for each container",
            f"DOCKER_WORK_DIR_ROOT={Path(code.path).parent / 'tasks'}, or another folder on the mount "
            f"{code.mount.point if code.mount else code.nearest}",
        )


def _disk(folder: Folder, engine: Engine, settings: Settings) -> Iterator[Finding]:
    place = f"{folder.name} ({folder.path})"
    if folder.problem is not None:
        yield unknown(Area.DISK, f"{place}: {folder.problem}")
        return
    if folder.refused is not None:
        yield problem(
            Area.DISK,
            folder.refused,
            f"another {folder.name}, or give {folder.path} to the worker's user and chmod go-w {folder.path}",
        )
        return
    ours = folder.name != DOCKER_ROOT
    if ours and folder.free_bytes < settings.min_free_disk_mb * MIB:
        yield problem(
            Area.DISK,
            f"{place}: only {_size(folder.free_bytes)} free: no jobs are taken below MIN_FREE_DISK_MB",
            f"make room, or another {folder.name}",
        )
        return
    found = list(_trouble_on_disk(folder, place, engine, ours=ours))
    yield from found
    if not found:
        wanted = 2 * settings.code_cache_mb * MIB if folder.name == "CODE_CACHE_DIR" else 0
        if folder.free_bytes < wanted:
            yield note(
                Area.DISK,
                f"{place}: {_size(folder.free_bytes)} free; the caches may grow to {_size(wanted)} "
                "together, less what they hold already",
                f"CODE_CACHE_MB={max(1, folder.free_bytes // (3 * MIB))}, or more room",
            )
        else:
            yield Finding(Area.DISK, f"{place}: {_size(folder.free_bytes)} free")


DOCKER_ROOT: Final = "Docker's root"


def _trouble_on_disk(folder: Folder, place: str, engine: Engine, *, ours: bool) -> Iterator[Finding]:
    options = folder.mount.options if folder.mount else frozenset()
    kind = folder.mount.kind if folder.mount else ""
    least = _LITTLE_BYTES if ours else _ROOMY_DOCKER_BYTES
    if "ro" in options:
        yield problem(
            Area.DISK, f"{place} is mounted read-only", f"{_setting(folder, ours=ours)} on another mount"
        )
    elif ours and not folder.writable:
        yield problem(
            Area.DISK,
            f"{place}: this user may not write to {folder.nearest}",
            f"install -d -m 700 -o USER {folder.path}, with the worker's user; or another {folder.name}",
        )
    if folder.free_bytes < least:
        make = problem if folder.free_bytes < least // 8 else warning
        yield make(
            Area.DISK,
            f"{place}: only {_size(folder.free_bytes)} free",
            "docker system prune" if not ours else f"make room, or another {folder.name}",
        )
    if folder.free_inodes is not None and folder.free_inodes < _FEW_INODES:
        yield warning(
            Area.DISK,
            f"{place}: only {folder.free_inodes:,} more files can be made (inodes)",
            f"{_setting(folder, ours=ours)} on a file system with more inodes; df -i",
        )
    if kind in _REMOTE or kind.startswith("fuse"):
        yield warning(
            Area.DISK,
            f"{place} lies on {kind}: locks, sockets and hard links work differently there, or not at all",
            f"{_setting(folder, ours=ours)} on a local disk",
        )
    if ours and "noexec" in options:
        # runc makes the bind mount's options anew, unless the mount is another user namespace's to keep.
        if engine.remaps_users:
            yield warning(
                Area.DISK,
                f"{place} is mounted noexec, which stays in containers of a Docker with other user ids: C++ "
                "and Go programs do not start",
                f"mount -o remount,exec {folder.mount.point if folder.mount else '/'}",
            )
        else:
            yield note(Area.DISK, f"{place} is mounted noexec: containers do not inherit that")


def _setting(folder: Folder, *, ours: bool) -> str:
    return folder.name if ours else "data-root in /etc/docker/daemon.json"


def clock(host: Host) -> Iterator[Finding]:
    """Whether the time of day can be right; what services say of it comes with their answers."""
    shown = datetime.fromtimestamp(host.now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    remedy = "timedatectl set-ntp true (or start chrony)"
    if not _RELEASED <= host.now < _FAR_AHEAD:
        yield problem(Area.CLOCK, f"it is {shown} by this machine's clock", remedy)
    elif host.kept is False:
        yield note(Area.CLOCK, f"{shown}; no time service keeps the kernel's clock", remedy)
    else:
        yield Finding(Area.CLOCK, shown if host.kept is None else f"{shown}, kept by a time service")


def _size(count: int) -> str:
    return f"{count / (1024 * MIB):.1f} GiB"
