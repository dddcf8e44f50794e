"""Findings about the machine: kernel, namespaces, security modules, limits and clock.

Sources: kernel documentation, admin-guide/sysctl/{kernel,user,vm}; overlayfs.rst; user_namespaces(7),
proc(5), core(5); the AppArmor wiki, unprivileged_userns_restriction.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from nanoagent.doctor import facts
from nanoagent.doctor.finding import Area, Finding, note, problem, unknown, warning
from nanoagent.doctor.judge import cgroups, disks
from nanoagent.host import resources

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.config import Settings
    from nanoagent.doctor.facts import Engine, Host

_ENOUGH_OPEN_FILES: Final = 4096  # enough for a few hundred containers, with a dozen each
_ENOUGH_PIDS: Final = 32_768  # the kernel's default on machines with few CPUs
_ENOUGH_OPEN_FILES_OF_MACHINE: Final = 100_000
_ENOUGH_INOTIFY_INSTANCES: Final = 128  # the kernel's default
_EARLIEST_TIME: Final = datetime(2026, 1, 1, tzinfo=UTC).timestamp()  # before this version of the worker
_LATEST_TIME: Final = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
_NAMESPACES: Final = ("user", "mnt", "pid", "ipc", "uts", "net")
_NO_SANDBOX: Final = "runs cannot have a sandbox each (L2)"


def judge(host: Host, engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Return all findings about the machine."""
    yield from kernel(host)
    yield from cgroups.judge(host)
    yield from namespaces(host)
    yield from security(host, engine, settings)
    yield from limits(host)
    yield from disks.judge(host, engine, settings)
    yield from clock(host)


# --- kernel and namespaces


def kernel(host: Host) -> Iterator[Finding]:
    """Judge the kernel's version and its settings for memory and core dumps."""
    yield _kernel_version(host)
    if host.machine not in {"x86_64", "aarch64"}:
        yield warning(
            Area.KERNEL,
            f"the self-test does not know the system calls of {host.machine}",
            "SELFTEST_INTERVAL_SECONDS=0, or use a machine with x86_64 or aarch64",
        )
    if host.text("/proc/sys/vm/overcommit_memory") == "2":
        yield warning(
            Area.KERNEL,
            "vm.overcommit_memory is 2: Node.js and Go reserve more address space than they use, and may "
            "fail to start",
            "sysctl -w vm.overcommit_memory=0",
        )
    if host.text("/proc/sys/vm/panic_on_oom") == "2":
        yield problem(
            Area.KERNEL,
            "vm.panic_on_oom is 2: a job that uses up its memory crashes the machine",
            "sysctl -w vm.panic_on_oom=0",
        )
    pattern = host.text("/proc/sys/kernel/core_pattern")
    if pattern and pattern.startswith("|"):
        program = pattern[1:].split(" ")[0]
        yield note(
            Area.KERNEL,
            f"core dumps are piped to {program}; the limit on core dumps of runs keeps the kernel from "
            "starting it",
        )


def _kernel_version(host: Host) -> Finding:
    name = f"Linux {host.release} on {host.machine}"
    if host.kernel is None:
        return unknown(Area.KERNEL, f"{name}: the release has no version number", "uname -r")
    if host.is_older_than(5, 9):
        return problem(
            Area.KERNEL,
            f"{name} has no close_range(2), which every run needs",
            "use a kernel of 5.11 or newer",
        )
    if host.is_older_than(5, 11):
        return warning(
            Area.KERNEL,
            f"{name} has no overlay mounts in user namespaces: {_NO_SANDBOX}",
            "use a kernel of 5.11 or newer",
        )
    return Finding(Area.KERNEL, name)


def namespaces(host: Host) -> Iterator[Finding]:
    """Judge whether an ordinary user can create the namespaces of a sandbox."""
    if "/proc/self/ns/user" not in host.files:
        yield warning(
            Area.NAMESPACES,
            f"the kernel has no user namespaces: {_NO_SANDBOX}",
            "use a kernel with CONFIG_USER_NS=y",
        )
        return
    disabled = {
        f"user.max_{kind}_namespaces": "10000"
        for kind in _NAMESPACES
        if host.number(f"/proc/sys/user/max_{kind}_namespaces") == 0
    }
    # Only the kernels of Debian and Arch have this setting.
    if host.text("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        disabled["kernel.unprivileged_userns_clone"] = "1"
    for name, value in disabled.items():
        yield warning(Area.NAMESPACES, f"{name} is 0: {_NO_SANDBOX}", f"sysctl -w {name}={value}")
    if not disabled:
        yield Finding(Area.NAMESPACES, f"an ordinary user may create namespaces ({', '.join(_NAMESPACES)})")


# --- seccomp and security modules


def security(host: Host, engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Judge the filters of system calls and the security modules."""
    yield _seccomp(host)
    modules = host.text(facts.LSM_LIST)
    if modules:
        yield Finding(Area.SECURITY, f"security modules: {modules}")
    yield from _apparmor(host, engine, settings.container_apparmor_profile)
    if engine.has_security("selinux"):
        yield note(
            Area.SECURITY,
            "Docker confines containers with SELinux; the worker was not tested with it",
            "see the finding about isolation below; if work directories are refused, label "
            "DOCKER_WORK_DIR_ROOT container_file_t",
        )


def _seccomp(host: Host) -> Finding:
    has_filters = (
        host.status("Seccomp") is not None or host.text("/proc/sys/kernel/seccomp/actions_avail") is not None
    )
    if has_filters:
        return Finding(Area.SECURITY, "the kernel filters system calls (seccomp)")
    if host.status("Uid") is None:
        return unknown(Area.SECURITY, "whether the kernel filters system calls: /proc cannot be read")
    return problem(
        Area.SECURITY,
        "the kernel has no filters of system calls (seccomp): containers cannot start",
        "use a kernel with CONFIG_SECCOMP_FILTER=y",
    )


def _apparmor(host: Host, engine: Engine, profile: str) -> Iterator[Finding]:
    restricts = host.text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1"
    load = "deploy/apparmor/README.md: apparmor_parser -r -W /etc/apparmor.d/nanoagent"
    if not engine.has_security("apparmor"):
        if restricts:
            yield warning(
                Area.SECURITY,
                "AppArmor denies user namespaces to programs without a profile, and Docker sets none: "
                f"{_NO_SANDBOX}",
                f"install the package apparmor and restart Docker, then load the profile ({load}); or "
                "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            )
        return
    profiles = host.text(facts.APPARMOR_PROFILES)
    if profiles is None:
        yield unknown(
            Area.SECURITY,
            f"whether the AppArmor profile {profile} is loaded: only root may read the list; see the finding "
            "about isolation below",
            f"as root: grep '^{profile} ' {facts.APPARMOR_PROFILES}",
        )
        return
    modes = [line.rpartition(" ")[2] for line in profiles.splitlines() if line.startswith(f"{profile} (")]
    if not modes:
        restriction = ", the kernel restricts user namespaces" if restricts else ""
        yield warning(
            Area.SECURITY,
            f"Docker confines containers with AppArmor{restriction}, and the profile {profile} is not "
            f"loaded: {_NO_SANDBOX}",
            load,
        )
    elif "enforce" not in modes[0]:
        yield problem(
            Area.SECURITY,
            f"the AppArmor profile {profile} is loaded in the mode {modes[0].strip('()')}: it forbids "
            "nothing",
            f"aa-enforce {profile}",
        )
    else:
        yield Finding(Area.SECURITY, f"the AppArmor profile {profile} is loaded and enforced")


# --- limits and the clock


def limits(host: Host) -> Iterator[Finding]:
    """Judge the limits on open files, processes and inotify instances."""
    findings = [*_open_files(host), *_limits_of_machine(host)]
    yield from findings
    if not findings:
        yield Finding(Area.LIMITS, f"{host.open_files:,} open files; enough processes and inotify instances")


def _open_files(host: Host) -> Iterator[Finding]:
    if host.open_files < resources.MIN_DESCRIPTORS:
        yield problem(
            Area.LIMITS,
            f"this shell may open {host.open_files:,} files, and a worker does not start with fewer than "
            f"{resources.MIN_DESCRIPTORS}",
            "raise the hard limit (ulimit -Hn 65536, or LimitNOFILE=65536 as in the unit)",
        )
    elif host.open_files < _ENOUGH_OPEN_FILES:
        yield note(
            Area.LIMITS,
            f"this shell may open {host.open_files:,} files; a worker with many containers needs more",
            "ulimit -n 65536; the unit has LimitNOFILE=65536",
        )


def _limits_of_machine(host: Host) -> Iterator[Finding]:
    for name, enough in (("pid_max", "4194304"), ("threads-max", "131072")):
        value = host.number(f"/proc/sys/kernel/{name}")
        if value is not None and value < _ENOUGH_PIDS:
            yield warning(
                Area.LIMITS,
                f"kernel.{name} is {value:,}: a few runs with MAX_PROCESSES processes each can use up all "
                "processes of the machine",
                f"sysctl -w kernel.{name}={enough}",
            )
    files = host.number("/proc/sys/fs/file-max")
    if files is not None and files < _ENOUGH_OPEN_FILES_OF_MACHINE:
        yield warning(
            Area.LIMITS, f"fs.file-max is {files:,} for the whole machine", "sysctl -w fs.file-max=1000000"
        )
    instances = host.number("/proc/sys/fs/inotify/max_user_instances")
    if instances is not None and instances < _ENOUGH_INOTIFY_INSTANCES:
        yield note(
            Area.LIMITS,
            f"fs.inotify.max_user_instances is {instances}: programs that watch files may fail",
            "sysctl -w fs.inotify.max_user_instances=1024",
        )


def clock(host: Host) -> Iterator[Finding]:
    """Judge this machine's clock without a service. `aws.clock` compares it with the clock of AWS."""
    time = datetime.fromtimestamp(host.now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    remedy = "timedatectl set-ntp true (or start chrony)"
    if not _EARLIEST_TIME <= host.now < _LATEST_TIME:
        yield problem(Area.CLOCK, f"this machine's clock shows {time}", remedy)
    elif host.clock_is_synchronised is False:
        yield note(Area.CLOCK, f"{time}; no time service sets the kernel's clock", remedy)
    elif host.clock_is_synchronised is None:
        yield Finding(Area.CLOCK, time)
    else:
        yield Finding(Area.CLOCK, f"{time}, set by a time service")
