"""What a container's supervisor could try if it were taken over: in a user namespace of its own it may do
all this, as far as the kernel goes. Prints a JSON object: attempt → name of the error, "" when it worked.

Read from standard input by the Python of an image that has nothing else in it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    1 << 17,
    1 << 25,
    1 << 28,
    1 << 29,
    1 << 30,
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_MOVE, MS_REC, MS_SHARED = 1 << 12, 1 << 13, 1 << 14, 1 << 20
SEALED = MS_NOSUID | MS_NODEV | MS_NOEXEC
PTRACE_ATTACH = 16


def call(function: str, *arguments: Any) -> None:
    encoded = [text.encode() if isinstance(text, str) else text for text in arguments]
    if getattr(libc, function)(*encoded) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(
    source: str | None, target: str, kind: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    call("mount", source, target, kind, ctypes.c_ulong(flags), data)


def write(path: str, text: str) -> None:
    # One call: the kernel takes these files as a whole.
    Path(path).write_text(text)


def trace_a_child() -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        call("ptrace", PTRACE_ATTACH, child, None, None)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def make_overlay() -> None:
    for folder in ("upper", "work"):
        Path("/work", folder).mkdir(exist_ok=True)
    mount("overlay", "/tmp", "overlay", 0, "lowerdir=/usr,upperdir=/work/upper,workdir=/work/work,userxattr")


def with_own_mount(function: Callable[..., None], *arguments: Any) -> Callable[[], None]:
    """A mount that the profile permits, and then something with it."""

    def attempt() -> None:
        mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV)
        Path("/tmp/old").mkdir()
        function(*arguments)

    return attempt


ATTEMPTS: dict[str, Callable[[], None]] = {
    "mount a tmpfs on /etc": lambda: mount("tmpfs", "/etc", "tmpfs"),
    "mount a tmpfs that takes devices and set-user-id programs": lambda: mount("tmpfs", "/tmp", "tmpfs"),
    "mount /proc elsewhere": lambda: mount("proc", "/tmp", "proc"),
    "mount a sysfs": lambda: mount("sysfs", "/tmp", "sysfs", SEALED | MS_RDONLY),
    "mount a cgroup file system": lambda: mount("cgroup2", "/tmp", "cgroup2", SEALED | MS_RDONLY),
    "mount pseudo terminals elsewhere": lambda: mount("devpts", "/tmp", "devpts", 0, "newinstance"),
    "mount an overlay elsewhere": make_overlay,
    "bind a folder": lambda: mount("/usr", "/tmp", None, MS_BIND),
    "bind a file over a program": lambda: mount("/dev/null", "/usr/bin/env", None, MS_BIND),
    "bind all of the file system": lambda: mount("/", "/tmp", None, MS_BIND | MS_REC),
    "share mounts with other namespaces": lambda: mount(None, "/", None, MS_REC | MS_SHARED),
    "change the options of a mount": lambda: mount(None, "/tmp", None, MS_REMOUNT | MS_BIND | SEALED),
    "move a mount": with_own_mount(mount, "/tmp", "/input", None, MS_MOVE),
    "unmount": with_own_mount(call, "umount2", "/tmp", 0),
    "change the root": with_own_mount(call, "pivot_root", "/tmp", "/tmp/old"),
    "trace a process": trace_a_child,
    "write a setting of the kernel": lambda: write("/proc/sys/net/ipv4/ip_forward", "0"),
}


def own_namespaces() -> None:
    user, group = os.getuid(), os.getgid()
    call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWCGROUP)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"0 {user} 1")
    write("/proc/self/gid_map", f"0 {group} 1")
    if child := os.fork():  # the first process of the new process namespace
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def error_of(attempt: Callable[[], None]) -> str:
    """Each in a process of its own, as a later one may trip over what an earlier one has done."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        error = ""
        try:
            call("unshare", CLONE_NEWNS)
            attempt()
        except OSError as exc:
            error = errno.errorcode[exc.errno or 0]
        os.write(theirs, error.encode())
        os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    with os.fdopen(ours) as answer:
        return answer.read()


own_namespaces()
print(json.dumps({name: error_of(attempt) for name, attempt in ATTEMPTS.items()}))
