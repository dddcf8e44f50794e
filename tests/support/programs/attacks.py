"""The table of attacks for all languages, which tests/adversarial/test_attacks.py reads.

An attack is one step, or several steps with ` ; ` between them. The adversaries in tests/adversarial/programs
run each attack in a separate process and print its outcome: `done` if every step succeeded, the name of the
error of the failed step, or the name of the signal that ended the process. Steps:

    call NAME ARGUMENT...    a system call; Node.js uses Perl for it
    read PATH, write PATH, create PATH, list PATH, link PATH
    connect HOST PORT, unix NAME (abstract with @), resolve NAME

Arguments of a call are integers, `@text`, `#hexadecimal` and `*size` for buffers, and `$n` for the return
value of step n. The steps after `loop` are repeated until one fails (tests/adversarial/test_exhaustion.py).
"""

from __future__ import annotations

import errno
import platform
import signal
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation

if TYPE_CHECKING:
    from collections.abc import Iterable

SANDBOX, SHARED, CONTAINER = Isolation.SANDBOX, Isolation.SHARED, Isolation.CONTAINER
MACHINE: Final = platform.machine()

# The numbers on x86-64 and aarch64 (Linux, arch/x86/entry/syscalls/syscall_64.tbl, asm-generic/unistd.h).
NUMBERS: Final = {
    name: dict(zip(("x86_64", "aarch64"), map(int, numbers.split("/")), strict=False))
    for name, numbers in (
        entry.split("=")
        for entry in """
        acct=163/89 add_key=248/217 adjtimex=159/171 bind=49/200 bpf=321/280 capset=126/91
        chdir=80/49 chroot=161/51 clock_adjtime=305/266 clock_settime=227/112 clone=56/220
        clone3=435/435 close=3/57 connect=42/203 delete_module=176/106 execve=59/221
        fallocate=285/47 fanotify_init=300/262 fchmod=91/52 fchmodat=268/53 fchownat=260/54
        finit_module=313/273 fsconfig=431/431 fsmount=432/432 fsopen=430/430 fspick=433/433
        ftruncate=77/46 getpid=39/172 init_module=175/105 io_setup=206/0 io_uring_enter=426/426
        io_uring_register=427/427 io_uring_setup=425/425 ioctl=16/29 ioperm=173 iopl=172
        ioprio_set=251/30 kcmp=312/272 kexec_file_load=320/294 kexec_load=246/104 keyctl=250/219
        kill=62/129 landlock_create_ruleset=444/444 linkat=265/37 listen=50/201
        lookup_dcookie=212/18 mbind=237/235 memfd_create=319/279 memfd_secret=447/447
        migrate_pages=256/238 mkdirat=258/34 mknodat=259/33 mmap=9/222 modify_ldt=154 mount=165/40
        mount_setattr=442/442 move_mount=429/429 move_pages=279/239 mq_open=240/180 msgget=68/186
        name_to_handle_at=303/264 nanosleep=35/101 nfsservctl=180/42 open_by_handle_at=304/265
        open_tree=428/428 openat=257/56 perf_event_open=298/241 personality=135/92
        pidfd_getfd=438/438 pidfd_open=434/434 pidfd_send_signal=424/424 pipe2=293/59
        pivot_root=155/41 prctl=157/167 prlimit64=302/261 process_madvise=440/440
        process_mrelease=448/448 process_vm_readv=310/270 process_vm_writev=311/271 ptrace=101/117
        quotactl=179/60 quotactl_fd=443/443 read=0/63 reboot=169/142 renameat2=316/276
        request_key=249/218 rt_sigqueueinfo=129/138 sched_setaffinity=203/122 sched_setattr=314/274
        sched_setparam=142/118 sched_setscheduler=144/119 seccomp=317/277 semget=64/190 sendto=44/206
        setdomainname=171/162 setgid=106/144 setgroups=116/159 sethostname=170/161 setns=308/268
        setpriority=141/140 setregid=114/143 setresgid=119/149 setresuid=117/147 setreuid=113/145
        setsockopt=54/208 settimeofday=164/170 setuid=105/146 setxattr=188/5 shmat=30/196
        shmget=29/194 socket=41/198 socketpair=53/199 swapoff=168/225 swapon=167/224 syslog=103/116
        tgkill=234/131 truncate=76/45 umount2=166/39 unlinkat=263/35 unshare=272/97
        userfaultfd=323/282 ustat=136 utimensat=280/88 vhangup=153/58 vmsplice=278/75 write=1/64
        epoll_create1=291/20 eventfd2=290/19 fcntl=72/25 inotify_init1=294/26 mlock=149/228
        msgsnd=69/189 timer_create=222/107 timerfd_create=283/85 x32_getpid=0x40000027
        """.replace("0x40000027", str(0x4000_0027)).split()
    )
}

DONE: Final = "done"
REFUSED: Final = frozenset({"EPERM", "EACCES", "ENOSYS"})
REFUSED_BY_A_FILTER: Final = frozenset({"EPERM", "ENOSYS", "SIGSYS"})
READ_ONLY: Final = frozenset({"EROFS", "EACCES", "EPERM", "ENOENT", "EXDEV"})
NOT_THERE: Final = frozenset({"ENOENT", "EACCES", "ENOTDIR", "ENODATA", "EPERM", "EIO", "ESRCH"})
NO_WAY: Final = frozenset({"ENETUNREACH", "ECONNREFUSED", "EADDRNOTAVAIL"})


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack and its allowed outcomes.

    Attributes:
        steps: The steps, in the format above.
        errors: The errors with which it may fail.
        harmless: The reason why it may also succeed at every level; empty if it may not.
        weaker: Level without a defence → the reason. There the attack must succeed, or the reason is out of
            date.
        stronger: Level at which it may succeed, unlike at the others → the reason.
    """

    steps: str
    errors: frozenset[str] = REFUSED
    harmless: str = ""
    weaker: dict[Isolation, str] = field(default_factory=dict)
    stronger: dict[Isolation, str] = field(default_factory=dict)

    def allows(self, outcome: str, level: Isolation) -> bool:
        """Whether the outcome is allowed at that level."""
        if level in self.weaker:
            return outcome == DONE
        return outcome in self.errors or (outcome == DONE and bool(self.harmless or self.stronger.get(level)))

    @property
    def unwritable(self) -> str:
        """The reason why this machine cannot run it; empty if it can."""
        lacking = [name for name in self._calls() if MACHINE not in NUMBERS[name]]
        return f"{MACHINE} has no {', '.join(lacking)}" if lacking else ""

    def encoded(self) -> str:
        """Return the steps with the system call numbers of this machine, as the programs read them."""
        return " ; ".join(_numbered(step) for step in self.steps.split(" ; "))

    def _calls(self) -> Iterable[str]:
        steps = (step.split(" ") for step in self.steps.split(" ; "))
        return [words[1] for words in steps if words[0] == "call"]


def _numbered(step: str) -> str:
    verb, *words = step.split(" ")
    return " ".join([verb, str(NUMBERS[words[0]][MACHINE]), *words[1:]]) if verb == "call" else step


def outcome_of(said: str) -> str:
    """Return the outcome in a program's report on an attack."""
    number = int(said)
    if number < 0:
        return signal.Signals(-number).name
    return errno.errorcode.get(number, f"error {number}") if number else DONE


# --- pieces

_HERE: Final = -100  # AT_FDCWD
_CREATE: Final = 0o101  # O_WRONLY | O_CREAT
_TMP_LAYOUT: Final = 0x40_0000


def _program(code: bytes) -> bytes:
    """Return a statically linked x86-64 program with only this code (elf(5))."""
    size = 64 + 56 + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(2, 62, 1, _TMP_LAYOUT + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, _TMP_LAYOUT, _TMP_LAYOUT, size, size, 0x1000) + code


def _program_32(code: bytes) -> bytes:
    """Return a statically linked i386 program with only this code."""
    size = 52 + 32 + len(code)
    header = struct.pack(
        "<16sHHIIIIIHHHHHH",
        b"\x7fELF\x01\x01\x01",
        *(2, 3, 1, _TMP_LAYOUT + 84, 52, 0, 0, 52, 32, 1, 0, 0, 0),
    )
    return header + struct.pack("<IIIIIIII", 1, 0, _TMP_LAYOUT, _TMP_LAYOUT, size, size, 5, 0x1000) + code


def _execute(path: str, program: bytes, mode: int = 0o755) -> str:
    """Return steps that write a program and execute it."""
    return (
        f"call openat {_HERE} @{path} {_CREATE} 0o755 ; call write $1 #{program.hex()} {len(program)} ; "
        f"call fchmod $1 {mode} ; call close $1 ; call execve @{path} 0 0"
    ).replace("0o755", str(0o755))


_EXIT_0: Final = bytes.fromhex("31ffb83c0000000f05")  # exit(0)
_INT_80_GETPID: Final = bytes.fromhex("b814000000cd80") + _EXIT_0
_EXIT_UNLESS_ROOT: Final = bytes.fromhex("b86b0000000f0531ff85c0400f95c7b83c0000000f05")
_EXIT_0_OF_I386: Final = bytes.fromhex("b80100000031dbcd80")

_NAMESPACES: Final = {
    "time": 0x80,
    "mount": 0x20000,
    "control group": 0x2000000,
    "host name": 0x4000000,
    "IPC": 0x8000000,
    "user": 0x10000000,
    "process": 0x20000000,
    "network": 0x40000000,
}
_SIGCHLD: Final = 17


# --- the supervisor

_TAKES_NO_SIGNAL: Final = "process 1 of a namespace takes no signal that it has no handler for"
_IMMUNE: Final = {SANDBOX: _TAKES_NO_SIGNAL}
_OF_PROCESS_1: Final = (
    "mem",
    "environ",
    "maps",
    "smaps",
    "auxv",
    "stack",
    "syscall",
    "pagemap",
    "io",
    "personality",
)
_TO_PROCESS_1: Final = (
    *("mem", "oom_score_adj", "clear_refs", "comm", "coredump_filter", "timerslack_ns", "loginuid", "sched"),
    *("setgroups", "uid_map", "gid_map", "attr/current", "attr/exec", "autogroup", "projid_map"),
)
_LINKS_OF_PROCESS_1: Final = (
    "cwd",
    "root",
    "exe",
    *(f"ns/{name}" for name in ("mnt", "user", "pid", "net", "ipc")),
)


def _supervisor() -> dict[str, Attack]:
    attacks = {
        f"send process 1 signal {number}": Attack(f"call kill 1 {number}", harmless=_TAKES_NO_SIGNAL)
        for number in (1, 2, 3, 6, 9, 10, 11, 15, 17, 19, 20, 31, 34)
    }
    attacks |= {
        "kill a thread of it": Attack("call tgkill 1 1 9", harmless=_TAKES_NO_SIGNAL),
        "queue a signal for it": Attack(f"call rt_sigqueueinfo 1 9 *{128}", harmless=_TAKES_NO_SIGNAL),
        "kill it by a descriptor": Attack(
            "call pidfd_open 1 0 ; call pidfd_send_signal $1 9 0 0", harmless=_TAKES_NO_SIGNAL
        ),
        "have it signalled by a descriptor": Attack("call fcntl 1 8 1", stronger=_IMMUNE),
        "have its group signalled": Attack("call fcntl 1 8 -1", stronger=_IMMUNE),
        "have it signalled by a socket": Attack(
            "call socket 1 1 0 ; call ioctl $1 0x8901 #01000000", stronger=_IMMUNE
        ),
        "have its group signalled by a socket": Attack(
            "call socket 1 1 0 ; call ioctl $1 0x8902 #ffffffff", stronger=_IMMUNE
        ),
        "trace it": Attack("call ptrace 16 1 0 0"),
        "seize it": Attack("call ptrace 0x4206 1 0 0"),
        "be traced": Attack("call ptrace 0 0 0 0"),
        "read it by process_vm_readv": Attack("call process_vm_readv 1 *16 1 *16 1 0"),
        "write it by process_vm_writev": Attack("call process_vm_writev 1 *16 1 *16 1 0"),
        "take back its pages": Attack("call pidfd_open 1 0 ; call process_madvise $1 *16 1 21 0"),
        "reap its memory": Attack(
            "call pidfd_open 1 0 ; call process_mrelease $1 0", errors=REFUSED | {"EINVAL"}
        ),
        "compare with it": Attack("call kcmp 1 self 0 0 0"),
        "take its descriptors": Attack("call pidfd_open 1 0 ; call pidfd_getfd $1 3 0"),
        "move its pages": Attack("call move_pages 1 0 0 0 0 0"),
        "migrate its pages": Attack("call migrate_pages 1 64 *8 *8"),
        "limit it": Attack("call prlimit64 1 7 *16 0"),
        "slow it down": Attack("call setpriority 0 1 19"),
        "slow its group down": Attack("call setpriority 1 1 19"),
        "slow its user down": Attack("call setpriority 2 0 19"),
        "pin it": Attack("call sched_setaffinity 1 8 #0100000000000000"),
        "idle it": Attack("call sched_setscheduler 1 5 *4"),
        "change its schedule": Attack("call sched_setparam 1 *4"),
        "change its schedule's attributes": Attack("call sched_setattr 1 *48 0"),
        "put its reading and writing last": Attack("call ioprio_set 1 1 0x6000"),
        "list its descriptors": Attack("list /proc/1/fd"),
        "list what it has mapped": Attack("list /proc/1/map_files"),
        "list its root": Attack("list /proc/1/root/"),
        "enter its root": Attack("call chdir @/proc/1/root"),
        "connect to the agent": Attack("unix /slot/agent.sock", errors=NOT_THERE | {"ECONNREFUSED"}),
    }
    attacks |= {
        f"read /proc/1/{name}": Attack(f"read /proc/1/{name}", errors=NOT_THERE) for name in _OF_PROCESS_1
    }
    attacks |= {
        f"write /proc/1/{name}": Attack(f"write /proc/1/{name}", errors=NOT_THERE | {"EROFS", "EINVAL"})
        for name in _TO_PROCESS_1
    }
    attacks |= {f"follow /proc/1/{name}": Attack(f"link /proc/1/{name}") for name in _LINKS_OF_PROCESS_1}
    attacks |= {
        f"forge a reply on descriptor {number}": Attack(
            f"call write {number} #0600000058 5", errors=frozenset({"EBADF", "EINVAL"})
        )
        for number in range(3, 24)
    }
    return attacks


# --- files outside the run

_ONLY_MASKED: Final = "what Docker masks reads as empty"


def _files() -> dict[str, Attack]:
    control = "/sys/fs/cgroup"
    writes = (
        *("/slot/code", "/slot/byte_code", "/slot/program", "/slot/configuration"),
        "/nanosupervisor/supervisor",
        *(
            "/nanosupervisor/interpreter",
            "/nanosupervisor/zygote/main.py",
            "/nanosupervisor/zygote/_nanozygote.so",
        ),
        *("/nanosupervisor/standby.blob", "/nanosupervisor/standby.node", "/nanosupervisor/build-cpp"),
        *("/nanosupervisor/build-go", "/nanosupervisor/go-env", "/nanosupervisor/cpp-flags"),
        *("/etc/passwd", "/etc/ld.so.preload", "/etc/resolv.conf", "/usr/bin/perl", "/bin/sh"),
        *(
            f"/proc/sys/kernel/{name}"
            for name in ("core_pattern", "hostname", "modprobe", "ns_last_pid", "pid_max")
        ),
        *(f"/proc/sys/vm/{name}" for name in ("drop_caches", "overcommit_memory", "panic_on_oom")),
        *("/proc/sys/fs/file-max", "/proc/sys/fs/binfmt_misc/register", "/proc/sys/user/max_user_namespaces"),
        *("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/ping_group_range"),
        *("/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/mtrr", "/proc/kcore", "/proc/kmsg"),
        *("/sys/power/state", "/sys/kernel/mm/ksm/run", "/sys/kernel/uevent_helper", "/sys/class/net/lo/mtu"),
        *("/sys/module/kernel/parameters/panic", "/sys/kernel/debug/sched/features", "/sys/bus/pci/rescan"),
        *(
            f"{control}/{name}"
            for name in ("cgroup.procs", "memory.max", "pids.max", "cgroup.subtree_control")
        ),
        *(f"{control}/memory/{name}" for name in ("memory.limit_in_bytes", "cgroup.procs", "release_agent")),
        *(f"{control}/pids/{name}" for name in ("pids.max", "tasks")),
        *(f"{control}/devices/devices.allow", f"{control}/cpu/cpu.cfs_quota_us"),
        *(
            "/dev/mem",
            "/dev/kmsg",
            "/dev/sda",
            "/dev/vda",
            "/dev/nvme0n1",
            "/dev/fuse",
            "/dev/kvm",
            "/dev/net/tun",
        ),
        *("/dev/vhost-vsock", "/dev/loop-control", "/dev/mapper/control", "/dev/hwrng", "/dev/cpu/0/msr"),
        *("/var/run/docker.sock", "/run/containerd/containerd.sock"),
    )
    # Folders of prebuilt files in the images. Each image has some of them.
    caches = (
        *("/nanosupervisor/pch", "/opt/go-cache", "/opt/go-cache/00", "/usr/lib/go/src", "/usr/include"),
        *("/usr/lib/python3/dist-packages", "/usr/lib/python3/dist-packages/__pycache__"),
        *("/usr/share/nodejs", "/var/cache", "/var/tmp", "/root/.cache", "/home/.cache"),
    )
    creates = (
        *(f"{folder}/x" for folder in caches),
        *(
            "/x",
            "/slot/x",
            "/slot/code/x",
            "/nanosupervisor/x",
            "/nanosupervisor/empty/x",
            "/usr/lib/x",
            "/var/x",
        ),
        *("/etc/x", "/proc/x", "/sys/x", "/dev/x", f"{control}/x", "/run/x", "/root/x", "/home/x"),
    )
    reads = (
        *(
            "/proc/kcore",
            "/proc/keys",
            "/proc/timer_list",
            "/proc/sched_debug",
            "/proc/kmsg",
            "/proc/latency_stats",
        ),
        *("/dev/mem", "/dev/kmsg", "/dev/port", "/etc/shadow", "/slot/agent.sock", "/sys/kernel/debug/x"),
        *(
            "/sys/firmware/efi/runtime",
            "/proc/kpagecount",
            "/proc/kpageflags",
            "/proc/vmallocinfo",
            "/proc/slabinfo",
        ),
    )
    cannot_write = READ_ONLY | NOT_THERE | {"EINVAL", "ETXTBSY", "ENXIO", "ECONNREFUSED", "EISDIR"}
    attacks = {f"write {path}": Attack(f"write {path}", errors=cannot_write) for path in writes}
    attacks |= {
        f"create {path}": Attack(f"create {path}", errors=READ_ONLY | {"ENOTDIR"}) for path in creates
    }
    attacks |= {f"read {path}": Attack(f"read {path}", errors=NOT_THERE | {"ENXIO"}) for path in reads}
    return attacks | {
        "replace the code": Attack(
            f"call renameat2 {_HERE} @/slot/code {_HERE} @/slot/old 0", errors=READ_ONLY | {"ENOENT"}
        ),
        "remove the program": Attack(f"call unlinkat {_HERE} @/slot/program 0", errors=READ_ONLY),
        "truncate the program": Attack("call truncate @/slot/program 0", errors=READ_ONLY | {"ETXTBSY"}),
        "open up the slot": Attack(f"call fchmodat {_HERE} @/slot 511", errors=READ_ONLY),
        "own the slot": Attack(f"call fchownat {_HERE} @/slot 1000 1000 0", errors=READ_ONLY | {"EINVAL"}),
        "date the slot": Attack(f"call utimensat {_HERE} @/slot 0 0", errors=READ_ONLY),
        "mark the slot": Attack("call setxattr @/slot @user.x @x 1 0", errors=READ_ONLY | {"EOPNOTSUPP"}),
        "link the supervisor's program": Attack(
            f"call linkat {_HERE} @/nanosupervisor/supervisor {_HERE} @/tmp/linked 0", errors=READ_ONLY
        ),
        "make a control group": Attack(f"call mkdirat {_HERE} @{control}/memory/x 511", errors=READ_ONLY),
        "make a disk": Attack(f"call mknodat {_HERE} @/tmp/disk {0o060666} 0xfe00"),
        "make a memory device": Attack(f"call mknodat {_HERE} @/tmp/memory {0o020666} 0x101"),
        "give a file a capability": Attack(
            f"call openat {_HERE} @/tmp/able {_CREATE} 493 ; call setxattr @/tmp/able @security.capability "
            f"#{'0100000200000080' + '00' * 12} 20 0",
            errors=REFUSED | {"EINVAL"},
        ),
        # N_NULL exists in every kernel. Other line disciplines are kernel modules.
        "set another line discipline": Attack(
            f"call openat {_HERE} @/dev/ptmx 0x102 0 ; call ioctl $1 0x5423 #1b000000"
        ),
        "type into a terminal": Attack(
            f"call openat {_HERE} @/dev/ptmx 0x102 0 ; call ioctl $1 0x5412 @x", errors=REFUSED | {"EIO"}
        ),
    }


# --- namespaces, mounts, roots


def _walls() -> dict[str, Attack]:
    attacks = {}
    for name, flag in _NAMESPACES.items():
        attacks[f"unshare the {name} namespace"] = Attack(f"call unshare {flag:#x}")
        if flag != _NAMESPACES["time"]:  # for clone, this bit is part of the signal number
            attacks[f"clone with a {name} namespace"] = Attack(f"call clone {flag | _SIGCHLD:#x} 0 0 0 0")
        attacks[f"clone3 with a {name} namespace"] = Attack(
            f"call clone3 #{struct.pack('<8Q', flag, 0, 0, 0, _SIGCHLD, 0, 0, 0).hex()} 64"
        )
    for name in ("mnt", "user", "pid", "net", "ipc", "uts", "cgroup"):
        attacks[f"enter one's own {name} namespace"] = Attack(
            f"call openat {_HERE} @/proc/self/ns/{name} 0 0 ; call setns $1 0"
        )
    return attacks | {
        "enter the namespaces of process 1": Attack("call pidfd_open 1 0 ; call setns $1 0x10020000"),
        "give a child to one's own parent": Attack(f"call clone {0x8000 | _SIGCHLD:#x} 0 0 0 0"),
        "mount a tmpfs": Attack("call mount @tmpfs @/tmp @tmpfs 0 0"),
        "mount /proc": Attack("call mount @proc @/tmp @proc 0 0"),
        "mount the control groups": Attack("call mount @cgroup2 @/tmp @cgroup2 0 0"),
        "bind a folder": Attack("call mount @/ @/tmp 0 4096 0"),
        "make the slot writable": Attack("call mount 0 @/slot 0 4128 0"),
        "make the root writable": Attack("call mount 0 @/ 0 4128 0"),
        "uncover a folder": Attack("call umount2 @/tmp 2"),
        "uncover the slot": Attack("call umount2 @/slot 2"),
        "uncover what is hidden": Attack("call umount2 @/proc/keys 2"),
        "change the root": Attack("call chroot @/tmp"),
        "pivot the root": Attack("call pivot_root @/tmp @/tmp"),
        "copy a mount": Attack(f"call open_tree {_HERE} @/ 1"),
        "move a mount": Attack(f"call move_mount {_HERE} @/tmp {_HERE} @/output 0"),
        "open a file system": Attack("call fsopen @tmpfs 0"),
        "configure a file system": Attack("call fsconfig 0 6 0 0 0"),
        "mount what was opened": Attack("call fsmount 0 0 0"),
        "pick a mount": Attack(f"call fspick {_HERE} @/ 0"),
        "change a mount": Attack(f"call mount_setattr {_HERE} @/ 0 *32 32"),
    }


# --- user and group IDs

_OWN_ALONE: Final = "of the process itself, and only less than before"


def _identity() -> dict[str, Attack]:
    nobody = REFUSED | {"EINVAL"}
    capabilities = "#" + "2205082000000000"
    return {
        "become root": Attack("call setuid 0", errors=nobody),
        "become root's group": Attack("call setgid 0", errors=nobody),
        "become root in all ways": Attack("call setresuid 0 0 0", errors=nobody),
        "become root by setreuid": Attack("call setreuid 0 0", errors=nobody),
        "become root's group in all ways": Attack("call setresgid 0 0 0", errors=nobody),
        "become root's group by setregid": Attack("call setregid 0 0", errors=nobody),
        "become another container's user": Attack("call setuid 1900000001", errors=nobody),
        "join groups": Attack("call setgroups 1 *4", errors=nobody),
        "leave groups": Attack("call setgroups 0 0", errors=nobody),
        "take all capabilities": Attack(f"call capset {capabilities} #{'ff' * 24}", errors=nobody),
        "take one capability": Attack(
            f"call capset {capabilities} #{'000020000000200000000000' + '00' * 12}"
        ),
        "raise an ambient capability": Attack("call prctl 47 2 21 0 0"),
        "make capabilities stay": Attack("call prctl 8 1 0 0 0", harmless="there are none to stay"),
        "change the secure bits": Attack("call prctl 28 0 0 0 0"),
        "gain privileges again": Attack("call prctl 38 0 0 0 0", errors=nobody),
        "leave the filter": Attack("call prctl 22 0 0 0 0", errors=nobody),
        "filter one's own calls": Attack("call prctl 22 2 *16 0 0"),
        "filter one's own calls by seccomp": Attack("call seccomp 1 0 *16"),
        "have a core to oneself": Attack("call prctl 62 1 0 0 0"),
        "take huge pages": Attack(f"call mmap 0 {1 << 21} 3 {0x40022} -1 0"),
        "take huge pages by memfd": Attack("call memfd_create @x 4"),
        "give a file to root": Attack(
            f"call openat {_HERE} @/tmp/given {_CREATE} 493 ; call fchownat {_HERE} @/tmp/given 0 0 0",
            errors=nobody,
        ),
        "run a set-user-id program of one's own as root": Attack(
            _execute("/tmp/set-user-id", _program(_EXIT_UNLESS_ROOT), 0o6755), errors=REFUSED | {"ENOEXEC"}
        ),
        "make mappings executable": Attack("call personality 0x400000"),
        "make addresses predictable": Attack("call personality 0x40000"),
        "add a key": Attack("call add_key @user @k @v 1 -4"),
        "ask for a key": Attack("call request_key @user @k 0 -4"),
        "join a session of keys": Attack("call keyctl 1 0 0 0 0"),
        "read the user's keys": Attack("call keyctl 11 -4 0 0 0"),
        "fence oneself in": Attack(
            "call landlock_create_ruleset 0 0 1", harmless=_OWN_ALONE, errors=REFUSED | {"EOPNOTSUPP"}
        ),
    }


# --- sockets

_OPEN_FAMILIES: Final = {1: "UNIX", 2: "INET", 10: "INET6"}
_FAMILIES: Final = 46
_TYPE_OF_FAMILY: Final = {38: 5, 40: 1, 43: 1}  # ALG SEQPACKET, VSOCK STREAM, SMC STREAM; others DGRAM or RAW
_PROTOCOLS: Final = {
    "raw": (3, 1),
    "raw of any kind": (3, 255),
    "ping": (2, 1),
    "UDP-Lite": (2, 136),
    "MPTCP": (1, 262),
    "SMC": (1, 256),
    "SCTP": (1, 132),
    "SCTP by packets": (5, 132),
    "DCCP": (6, 33),
    "DCCP by its type": (6, 0),
    "L2TP": (2, 115),
    "an unknown protocol": (2, 200),
}
# Family and kind of the socket, level and name of the option: asm-generic/socket.h, linux/tcp.h, linux/in6.h.
_KEPT_BY_THE_KERNEL: Final = {
    "filter what a socket gets": (1, 2, 1, 26),
    "filter by an eBPF program": (1, 2, 1, 50),
    "choose sockets by a filter": (2, 2, 1, 51),
    "choose sockets by an eBPF program": (2, 2, 1, 52),
    "sign TCP": (2, 1, 6, 14),
    "sign TCP for a network": (2, 1, 6, 32),
    "sign TCP by TCP-AO": (2, 1, 6, 38),
    "sign TCP over IPv6": (10, 1, 6, 14),
    "keep options for packets": (10, 2, 41, 6),
}
_IN_ITS_OWN_NETWORK: Final = "in a network namespace that nobody else is in"
_LISTS_INTERFACES: Final = {SANDBOX: "route netlink in the run's own network, few sockets, without rights"}
_NETLINK: Final = 16
_LOOPBACK: Final = 1
_NOWHERE: Final = bytes((192, 0, 2, 7))


def _route_request(kind: int, flags: int, body: bytes) -> str:
    """Return a message of rtnetlink(7), as a buffer and its length."""
    message = struct.pack("=IHHII", 16 + len(body), kind, 1 | flags, 1, 0) + body
    return f"#{message.hex()} {len(message)}"


def _route() -> dict[str, Attack]:
    """Return attacks that try to change the network through a route netlink socket.

    The kernel refuses in its answer, not in the call. So each attack then tries to use the change.
    """
    attribute = struct.pack("=HH4s", 8, 2, _NOWHERE)
    at_nowhere = struct.pack(">HH4s8x", 0x0200, 9, _NOWHERE).hex()
    link_down = struct.pack("=BxHiII", 0, 0, _LOOPBACK, 0, 1)
    local = struct.pack(">HH4s8x", 0x0200, 9, bytes((127, 0, 0, 1))).hex()
    address = struct.pack("=BBBBi", 2, 32, 0, 0, _LOOPBACK) + attribute
    route = struct.pack("=8BI", 2, 32, 0, 0, 254, 3, 253, 1, 0)
    route += struct.pack("=HH4s", 8, 1, _NOWHERE) + struct.pack("=HHi", 8, 4, _LOOPBACK)
    opened = f"call socket {_NETLINK} 3 0 ; call sendto $1"
    return {
        "give an interface an address": Attack(
            f"{opened} {_route_request(20, 0x600, address)} 0 0 0 ; "
            f"call socket 2 2 0 ; call bind $3 #{at_nowhere} 16",
            errors=REFUSED | {"EADDRNOTAVAIL"},
        ),
        "add a route": Attack(
            f"{opened} {_route_request(24, 0x600, route)} 0 0 0 ; "
            f"call socket 2 2 0 ; call connect $3 #{at_nowhere} 16",
            errors=REFUSED | NO_WAY,
        ),
        "take loopback down": Attack(
            f"{opened} {_route_request(16, 0, link_down)} 0 0 0 ; "
            f"call socket 2 2 0 ; call connect $3 #{local} 16",
            harmless="it stays up: the address is still reached",
        ),
    }


def _sockets() -> dict[str, Attack]:
    attacks = {}
    for family in range(_FAMILIES):
        kinds = (_TYPE_OF_FAMILY[family],) if family in _TYPE_OF_FAMILY else (2, 3)
        for kind in kinds if family not in _OPEN_FAMILIES else ():
            attacks[f"open a socket of family {family}, type {kind}"] = Attack(
                f"call socket {family} {kind} 0", stronger=_LISTS_INTERFACES if family == _NETLINK else {}
            )
        if family != 1:
            attacks[f"open a pair of family {family}"] = Attack(f"call socketpair {family} 2 0 *8")
    for family in (2, 10):
        for name, (kind, protocol) in _PROTOCOLS.items():
            attacks[f"open {_OPEN_FAMILIES[family]} for {name}"] = Attack(
                f"call socket {family} {kind} {protocol}"
            )
        for kind in (1, 2):
            attacks[f"open {_OPEN_FAMILIES[family]}, type {kind}"] = Attack(
                f"call socket {family} {kind | 0x80000} 0", harmless=_IN_ITS_OWN_NETWORK
            )
    for protocol in range(1, 23):
        attacks[f"open netlink {protocol}"] = Attack(f"call socket 16 3 {protocol}")
    # The kernel keeps memory that no limit counts.
    for name, (family, kind, level, option) in _KEPT_BY_THE_KERNEL.items():
        attacks[name] = Attack(
            f"call socket {family} {kind} 0 ; call setsockopt $1 {level} {option} *256 256"
        )
    high_half = 1 << 32
    attacks |= _route()
    return attacks | {
        "open a family by what the kernel cuts off": Attack(f"call socket {high_half | 17} 3 0"),
        "open a family that looks open in its low half": Attack(f"call socket {high_half | 2} 2 0"),
        "bring loopback down": Attack("call socket 2 2 0 ; call ioctl $1 0x8914 #" + "6c6f" + "00" * 38),
        "give loopback an address": Attack(
            "call socket 2 2 0 ; call ioctl $1 0x8916 #" + "6c6f" + "00" * 14 + "020000000a000001" + "00" * 16
        ),
        "change the firewall": Attack("call socket 2 2 0 ; call setsockopt $1 0 64 *92 92"),
        "mark packets": Attack("call socket 2 2 0 ; call setsockopt $1 1 36 *4 4"),
        "choose a congestion control that is a module": Attack(
            "call socket 2 1 0 ; call setsockopt $1 6 13 @nosuch 6", errors=REFUSED | {"ENOENT"}
        ),
        "load a protocol over TCP": Attack(
            "call socket 2 1 0 ; call setsockopt $1 6 31 @nosuch 6", errors=REFUSED | {"ENOENT", "ENOTCONN"}
        ),
    }


# --- the network

_METADATA: Final = ("169.254.169.254", "169.254.170.2", "fd00:ec2::254")
_SOCKETS_OF_THE_HOST: Final = (
    *(
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/run/dbus/system_bus_socket",
    ),
    "/run/systemd/private",
)


@dataclass(frozen=True, slots=True)
class HostAddresses:
    """Addresses of the host at which a listener answers during the attacks.

    Attributes:
        tcp: Hosts and ports.
        abstract: Names of abstract sockets.
        unix: Sockets with a path.
    """

    tcp: tuple[tuple[str, int], ...]
    abstract: tuple[str, ...]
    unix: tuple[str, ...]


def _network(host: HostAddresses) -> dict[str, Attack]:
    away = NO_WAY | {"ENOENT"}
    attacks = {
        f"connect to {address}": Attack(f"connect {address} 80", errors=NO_WAY) for address in _METADATA
    }
    attacks |= {
        f"connect to the host's {address}, port {port}": Attack(f"connect {address} {port}", errors=NO_WAY)
        for address, port in host.tcp
    }
    attacks |= {
        f"connect to the host's abstract {name}": Attack(f"unix @{name}", errors=frozenset({"ECONNREFUSED"}))
        for name in host.abstract
    }
    attacks |= {
        f"connect to {path}": Attack(f"unix {path}", errors=NOT_THERE)
        for path in (*_SOCKETS_OF_THE_HOST, *host.unix)
    }
    nameserver = struct.pack(">HH4s8x", 0x0200, 53, bytes((8, 8, 8, 8))).hex()
    gateway = struct.pack(">HH4s8x", 0x0200, 53, bytes((172, 17, 0, 1))).hex()
    everyone = struct.pack(">HH4s8x", 0x0200, 9, bytes((255,) * 4)).hex()
    return attacks | {
        "resolve a name": Attack("resolve example.com", errors=away),
        "resolve the metadata service": Attack("resolve metadata.google.internal", errors=away),
        "resolve the host": Attack("resolve host.docker.internal", errors=away),
        "connect to a neighbour": Attack("connect 172.17.0.2 80", errors=NO_WAY),
        "connect to the world": Attack("connect 1.1.1.1 443", errors=NO_WAY),
        "send to a name server": Attack(
            f"call socket 2 2 0 ; call sendto $1 @x 1 0 #{nameserver} 16", errors=NO_WAY
        ),
        "send to the gateway": Attack(
            f"call socket 2 2 0 ; call sendto $1 @x 1 0 #{gateway} 16", errors=NO_WAY
        ),
        "broadcast": Attack(
            f"call socket 2 2 0 ; call setsockopt $1 1 6 #01000000 4 ; call sendto $1 @x 1 0 #{everyone} 16",
            errors=NO_WAY,
        ),
    }


# --- IPC and time

_OWN_IPC: Final = {SANDBOX: "in an IPC namespace that ends with the run"}


def _left_behind() -> dict[str, Attack]:
    return {
        "leave shared memory": Attack(f"call shmget 77 4096 {0o1666}", stronger=_OWN_IPC),
        "leave semaphores": Attack(f"call semget 77 1 {0o1666}", stronger=_OWN_IPC),
        "leave a queue": Attack(f"call msgget 77 {0o1666}", stronger=_OWN_IPC),
        "leave a POSIX queue": Attack(f"call mq_open @attack {0o102} {0o666} 0", stronger=_OWN_IPC),
    }


def _clock() -> dict[str, Attack]:
    at_2001 = struct.pack("<qq", 1_000_000_000, 0).hex()
    offset = struct.pack("<I4xq", 1, 1_000_000).hex() + "00" * 192  # ADJ_OFFSET
    return {
        "set the time of day": Attack(f"call settimeofday #{at_2001} 0"),
        "set the time zone": Attack("call settimeofday 0 *8"),
        "set the clock": Attack(f"call clock_settime 0 #{at_2001}"),
        "slew the clock": Attack(f"call adjtimex #{offset}"),
        "slew the clock by its number": Attack(f"call clock_adjtime 0 #{offset}"),
    }


# --- the kernel


def _kernel() -> dict[str, Attack]:
    magic = f"{0xFEE1DEAD} {0x28121969}"
    return {
        "load a BPF map": Attack("call bpf 0 *72 72"),
        "load a BPF program": Attack("call bpf 5 *72 72"),
        "count performance events": Attack("call perf_event_open *112 0 -1 -1 0"),
        "handle page faults": Attack("call userfaultfd 0"),
        "handle page faults of one's own": Attack("call userfaultfd 1"),
        "set up io_uring": Attack("call io_uring_setup 1 *120"),
        "enter io_uring": Attack("call io_uring_enter 0 0 0 0 0 0"),
        "register with io_uring": Attack("call io_uring_register 0 0 0 0"),
        "set up aio": Attack("call io_setup 1 *8"),
        "open a file by its handle": Attack("call open_by_handle_at 0 *16 0"),
        "get the handle of a file": Attack(f"call name_to_handle_at {_HERE} @/slot *136 *4 0"),
        "load a kernel": Attack("call kexec_load 0 0 0 0"),
        "load a kernel from a file": Attack("call kexec_file_load -1 -1 0 0 0"),
        "load a module": Attack("call init_module *16 16 @"),
        "load a module from a file": Attack("call finit_module 0 @ 0"),
        "remove a module": Attack("call delete_module @loop 0"),
        "reboot": Attack(f"call reboot {magic} 0 0"),
        "swap": Attack("call swapon @/tmp/swap 0"),
        "stop swapping": Attack("call swapoff @/tmp/swap"),
        "reach the ports": Attack("call iopl 3"),
        "reach a port": Attack("call ioperm 128 1 1"),
        "read the kernel's log": Attack("call syslog 3 *16 16"),
        "size the kernel's log": Attack("call syslog 10 0 0"),
        "set quotas": Attack("call quotactl 0x80000100 0 0 0"),
        "set quotas by a descriptor": Attack("call quotactl_fd 0 0 0 0"),
        "account for processes": Attack("call acct 0"),
        "serve NFS": Attack("call nfsservctl 0 0 0"),
        "look up a cookie": Attack("call lookup_dcookie 0 0 0"),
        "watch the whole file system": Attack("call fanotify_init 0x200 0"),
        "hide memory from the kernel": Attack("call memfd_secret 0"),
        "hang up the terminal": Attack("call vhangup"),
        "rename the host": Attack("call sethostname @x 1"),
        "rename the domain": Attack("call setdomainname @x 1"),
        "give pages to a pipe": Attack("call vmsplice 1 *16 1 0"),
        "ask for a file system's numbers": Attack("call ustat 0 *32"),
        "make a call of the x32 kind": Attack("call x32_getpid", errors=frozenset({"SIGSYS"})),
        "make a 32-bit call": Attack(
            _execute("/tmp/int80", _program(_INT_80_GETPID)),
            errors=frozenset({"SIGSYS", "SIGSEGV", "ENOEXEC"}),
        ),
        "run a 32-bit program": Attack(
            _execute("/tmp/i386", _program_32(_EXIT_0_OF_I386)),
            errors=frozenset({"SIGSYS", "SIGSEGV", "ENOEXEC"}),
        ),
    }


def attacks_of(runtime: Runtime, host: HostAddresses) -> dict[str, dict[str, Attack]]:
    """Return all attacks for a language, by kind and name."""
    return {
        "supervisor": _supervisor(),
        "files": _files(),
        "walls": _walls(),
        "identity": _identity(),
        "sockets": _sockets(),
        "network": _network(host),
        "IPC": _left_behind(),
        "clock": _clock(),
        "kernel": _kernel(),
    }


KINDS: Final = ("supervisor", "files", "walls", "identity", "sockets", "network", "IPC", "clock", "kernel")


# --- every system call

# The system calls of x86-64 that are allowed. Some depend on an argument (clone, socket, socketpair,
# ioprio_set, ...), and the sweep's arguments are allowed ones. An allowed call that is not in this list fails
# the test. Examine its effects before you add it.
_GET_THROUGH: Final = """
        read=0 write=1 open=2 close=3 stat=4 fstat=5 lstat=6 poll=7 lseek=8 mmap=9 mprotect=10 munmap=11
        brk=12 rt_sigaction=13 rt_sigprocmask=14 ioctl=16 pread64=17 pwrite64=18 readv=19 writev=20
        access=21 pipe=22 select=23 sched_yield=24 mremap=25 msync=26 mincore=27 madvise=28 shmget=29
        shmat=30 shmctl=31 dup=32 dup2=33 nanosleep=35 getitimer=36 alarm=37 setitimer=38 getpid=39
        sendfile=40 connect=42 accept=43 sendto=44 recvfrom=45 sendmsg=46 recvmsg=47 shutdown=48 bind=49
        listen=50 getsockname=51 getpeername=52 setsockopt=54 getsockopt=55 execve=59 wait4=61 kill=62
        uname=63 semget=64 semop=65 semctl=66 shmdt=67 msgget=68 msgsnd=69 msgrcv=70 msgctl=71 fcntl=72
        flock=73 fsync=74 fdatasync=75 truncate=76 ftruncate=77 getdents=78 getcwd=79 chdir=80 fchdir=81
        rename=82 mkdir=83 rmdir=84 creat=85 link=86 unlink=87 symlink=88 readlink=89 chmod=90 fchmod=91
        chown=92 fchown=93 lchown=94 umask=95 gettimeofday=96 getrlimit=97 getrusage=98 sysinfo=99
        times=100 getuid=102 getgid=104 setuid=105 setgid=106 geteuid=107 getegid=108 setpgid=109
        getppid=110 getpgrp=111 setsid=112 setreuid=113 setregid=114 getgroups=115 setresuid=117
        getresuid=118 setresgid=119 getresgid=120 getpgid=121 setfsuid=122 setfsgid=123 getsid=124
        capget=125 capset=126 rt_sigpending=127 rt_sigtimedwait=128 rt_sigqueueinfo=129
        rt_sigsuspend=130 sigaltstack=131 utime=132 mknod=133 statfs=137 fstatfs=138 getpriority=140
        sched_setparam=142 sched_getparam=143 sched_setscheduler=144 sched_getscheduler=145
        sched_get_priority_max=146 sched_get_priority_min=147 sched_rr_get_interval=148 mlock=149
        munlock=150 mlockall=151 munlockall=152 modify_ldt=154 prctl=157 arch_prctl=158 adjtimex=159
        setrlimit=160 sync=162 gettid=186 readahead=187 setxattr=188 lsetxattr=189 fsetxattr=190
        getxattr=191 lgetxattr=192 fgetxattr=193 listxattr=194 llistxattr=195 flistxattr=196
        removexattr=197 lremovexattr=198 fremovexattr=199 tkill=200 time=201 sched_setaffinity=203
        sched_getaffinity=204 epoll_create=213 remap_file_pages=216 getdents64=217 set_tid_address=218
        restart_syscall=219 semtimedop=220 fadvise64=221 timer_create=222 timer_settime=223
        timer_gettime=224 timer_getoverrun=225 timer_delete=226 clock_gettime=228 clock_getres=229
        clock_nanosleep=230 epoll_wait=232 epoll_ctl=233 tgkill=234 utimes=235 mbind=237
        set_mempolicy=238 get_mempolicy=239 mq_open=240 mq_unlink=241 mq_timedsend=242
        mq_timedreceive=243 mq_notify=244 mq_getsetattr=245 waitid=247 ioprio_get=252 inotify_init=253
        inotify_add_watch=254 inotify_rm_watch=255 openat=257 mkdirat=258 mknodat=259 fchownat=260
        futimesat=261 newfstatat=262 unlinkat=263 renameat=264 linkat=265 symlinkat=266 readlinkat=267
        fchmodat=268 faccessat=269 pselect6=270 ppoll=271 set_robust_list=273 get_robust_list=274
        splice=275 tee=276 sync_file_range=277 utimensat=280 epoll_pwait=281 signalfd=282
        timerfd_create=283 eventfd=284 fallocate=285 timerfd_settime=286 timerfd_gettime=287 accept4=288
        signalfd4=289 eventfd2=290 epoll_create1=291 dup3=292 pipe2=293 inotify_init1=294 preadv=295
        pwritev=296 rt_tgsigqueueinfo=297 recvmmsg=299 fanotify_mark=301 prlimit64=302 clock_adjtime=305
        syncfs=306 sendmmsg=307 getcpu=309 sched_setattr=314 sched_getattr=315 renameat2=316 seccomp=317
        getrandom=318 memfd_create=319 execveat=322 membarrier=324 mlock2=325 copy_file_range=326
        preadv2=327 pwritev2=328 pkey_mprotect=329 pkey_alloc=330 pkey_free=331 statx=332 rseq=334
        pidfd_send_signal=424 pidfd_open=434 close_range=436 openat2=437 faccessat2=439 epoll_pwait2=441
        landlock_create_ruleset=444 landlock_add_rule=445 landlock_restrict_self=446 futex_waitv=449
        cachestat=451 fchmodat2=452 futex_wake=454 futex_wait=455 futex_requeue=456
"""
CALLS_THAT_GET_THROUGH: Final = {
    name: int(number) for name, number in (entry.split("=") for entry in _GET_THROUGH.split())
}
# Refused outside a sandbox, where the effect would outlive the run.
CALLS_THAT_OUTLIVE: Final = frozenset(
    {
        "mq_open",
        "mq_unlink",
        "msgctl",
        "msgget",
        "msgrcv",
        "msgsnd",
        "semctl",
        "semget",
        "semop",
        "semtimedop",
    }
    | {"shmat", "shmctl", "shmget"}
)
# Since Linux 6.14 no filter sees these two (kernel/seccomp.c): breakpoints of a tracing host use them. A call
# from anywhere else fails or ends the caller.
CALLS_NO_FILTER_SEES: Final = {335: "uretprobe", 336: "uprobe"}
CALLS_LEFT_OUT: Final = {
    15: "rt_sigreturn: takes the caller's state from its stack, where nothing of it lies",
    34: "pause: waits",
    57: "fork: is not undone by what the caller is told",
    58: "vfork: its child would return into its parent's frame",
    60: "exit: ends one thread, and there may be others",
    231: "exit_group: cannot be told from the end",
}
_LAST_CALL: Final = 511  # Linux 6.18 has 469
_X32: Final = 0x4000_0000
_LAST_CALL_OF_X32: Final = 547


def calls_swept(runtime: Runtime) -> list[int]:
    """Return all system call numbers, and numbers that the kernel or a filter might misread."""
    # The filter has one comparison for x32, so a few numbers suffice where each call needs a new process.
    every = 1 if runtime is Runtime.CPP else 32
    of_x32 = [_X32 + number for number in range(0, _LAST_CALL_OF_X32 + 1, every)]
    # Numbers that mean mount and unshare to a kernel that reads only the low half; the largest number; -1,
    # which is special with a tracer.
    odd = [(1 << 32) + NUMBERS[name]["x86_64"] for name in ("mount", "unshare")] + [0x7FFF_FFFF, -1]
    return [number for number in (*range(_LAST_CALL + 1), *of_x32, *odd) if number not in CALLS_LEFT_OUT]
