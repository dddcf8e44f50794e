# ruff: noqa: PTH104, PTH108, PTH115, PTH116, PTH123, PTH208, S311 - a program as users write them
"""Does what standard input says, and prints what came of it; the programs in other languages do the same.

{"leave": [trace, ...]}   leave traces of every kind; what became of each
{"look": [item, ...]}     look at things; what was seen of each, as text
{"leave": [...], "look": [...]}    one after the other
{"do": [ending]}          end badly
{"try": [attack, ...]}    attack, each in a process of its own; what became of each, as a number: 0 when all
                          steps succeeded, the errno of the one that failed, or minus the signal that
                          ended it

An attack is steps with ` ; ` between them (tests/support/programs/attacks.py). `call` is a system call by its
number; its arguments are integers, `@text`, `#hexadecimal` and `*size` for buffers, `$n` for what step n
returned, `self`. What follows `loop` is repeated until it fails.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import random
import resource
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CODE = "/work/main.py"
PLACES = ("/tmp", "/output", "/work", "/input", "/dev/shm")
libc = ctypes.CDLL(None, use_errno=True)
held: list[Any] = []  # what stays open for as long as this process, or its daemon, lives


def must(result: int) -> None:
    if result == -1:
        raise OSError(ctypes.get_errno(), "")


# --- leave


def write(path: str, text: str = "left", mode: str = "w") -> None:
    with open(path, mode) as file:
        file.write(text)


def leave_files() -> None:
    for place in PLACES:
        write(f"{place}/left")


def leave_code() -> None:
    write(CODE, "\nraise SystemExit('changed')\n", "a")
    write("/work/json.py", "raise SystemExit('changed')")
    os.rename(CODE, CODE + ".old")
    write(CODE, "raise SystemExit('replaced')")


def leave_abstract_socket() -> None:
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].bind("\0left")
    held[-1].listen()


def leave_listener() -> None:
    held.append(socket.create_server(("127.0.0.1", 7777)))


def leave_time_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        near.close()
        far.recv(1)
        far.close()


def leave_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])


def leave_lock() -> None:
    held.append(open(CODE))  # noqa: SIM115 - it is to stay open
    fcntl.flock(held[-1], fcntl.LOCK_EX)


def leave_deleted_file() -> None:
    held.append(open("/tmp/deleted", "wb"))  # noqa: SIM115
    held[-1].write(bytes(1 << 20))
    held[-1].flush()
    os.unlink("/tmp/deleted")


def leave_daemon() -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
    os.wait()


TRACES: dict[str, Callable[[], Any]] = {
    "files": leave_files,
    "code": leave_code,
    "program": lambda: write(sys.executable, "", "a"),
    "shared memory": lambda: must(libc.shmget(1234, 4096, 0o1666)),
    "semaphores": lambda: must(libc.semget(1234, 1, 0o1666)),
    "message queue": lambda: must(libc.msgget(1234, 0o1666)),
    "POSIX queue": lambda: os.open("/dev/mqueue/left", os.O_CREAT | os.O_RDWR),
    "abstract socket": leave_abstract_socket,
    "listener": leave_listener,
    "time wait": leave_time_wait,
    "environment": lambda: os.environ.update(LEFT="left"),
    "working folder": lambda: os.chdir("/tmp"),
    "umask": lambda: os.umask(0),
    "limits": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)),
    "signals": leave_signals,
    "niceness": lambda: os.nice(5),
    "affinity": lambda: os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]),
    "oom score": lambda: write("/proc/self/oom_score_adj", "0"),
    "hostname": lambda: socket.sethostname("left"),
    "sysctl": lambda: write("/proc/sys/net/ipv4/ip_local_port_range", "1 2"),
    "lock": leave_lock,
    "deleted file": leave_deleted_file,
    "attribute": lambda: os.setxattr(CODE, "user.left", b"left"),
    "terminal": lambda: held.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)),
    "timer": lambda: signal.setitimer(signal.ITIMER_REAL, 1000),
    "daemon": leave_daemon,
}


def leave(trace: str) -> str:
    try:
        TRACES[trace]()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return "done"


# --- look


def listing(folder: str) -> str:
    found = []
    for path, _, files in os.walk(folder):
        found.append(f"{path} {os.stat(path).st_mode:o}")
        for name in files:
            info = os.lstat(f"{path}/{name}")
            found.append(f"{path}/{name} {info.st_mode:o} {info.st_size}")
    return "\n".join(sorted(found))


def read(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()


def links(folder: str) -> str:
    found = []
    for name in sorted(os.listdir(folder)):
        try:
            found.append(f"{name} {os.readlink(f'{folder}/{name}')}")
        except OSError:
            continue  # the listing's own
    return "\n".join(found)


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def draw(_: str) -> str:
    import numpy as np  # type: ignore[import-not-found]  # noqa: PLC0415 - other runs should not wait for it

    streams = {
        "random": random.random(),
        "numpy.random": np.random.rand(),  # noqa: NPY002 - the old one has global state
        "numpy default_rng": np.random.default_rng().random(),
        "secrets": secrets.token_hex(8),
        "os.urandom": os.urandom(8).hex(),
        "uuid4": uuid.uuid4(),
        "uuid1 node": uuid.uuid1().node,
        "uuid1 clock": uuid.uuid1().clock_seq,
        "temporary name": next(tempfile._get_candidate_names()),  # type: ignore[attr-defined]
        "hash of text": hash("text"),
        "layout of memory": id(object()),
    }
    return "\n".join(f"{name}: {value}" for name, value in streams.items())


LOOKS: dict[str, Callable[[str], str]] = {
    "read": read,
    "list": listing,
    "names": lambda folder: "\n".join(sorted(os.listdir(folder))),
    "links": links,
    "link": os.readlink,
    "digest": digest,
    "space": lambda path: f"{os.statvfs(path).f_bfree} {os.statvfs(path).f_ffree}",
    "attributes": lambda path: "\n".join(os.listxattr(path)),
    "variables": lambda _: "\n".join(sorted(f"{name}={value}" for name, value in os.environ.items())),
    "random": draw,
}


def look(item: str) -> str:
    verb, _, path = item.partition(" ")
    try:
        return LOOKS[verb](path)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]


# --- try

ENOENT, ENODATA = errno.ENOENT, errno.ENODATA
MOST_SECONDS = 10


def argument(word: str, results: dict[int, int]) -> Any:
    match word[0]:
        case "@":
            return ctypes.create_string_buffer(word[1:].encode())
        case "#":
            return ctypes.create_string_buffer(bytes.fromhex(word[1:]))
        case "*":
            return ctypes.create_string_buffer(int(word[1:]))
        case "$":
            return ctypes.c_long(results[int(word[1:])])
    return ctypes.c_long(os.getpid() if word == "self" else int(word, 0))


def system_call(words: list[str], results: dict[int, int]) -> int:
    libc.syscall.restype = ctypes.c_long
    result: int = libc.syscall(*[argument(word, results) for word in words])
    must(result)
    return result


def read_some(path: str) -> None:
    with open(path, "rb", 0) as file:
        if not file.read(1):
            raise OSError(ENODATA, "")


def resolve(name: str) -> None:
    try:
        socket.getaddrinfo(name, 80)
    except socket.gaierror:
        raise OSError(ENOENT, "") from None


STEPS: dict[str, Callable[..., Any]] = {
    "read": read_some,
    "write": lambda path: os.write(os.open(path, os.O_WRONLY), b"0"),
    "create": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_CREAT)),
    "list": os.listdir,
    "link": os.readlink,
    "connect": lambda host, port: socket.create_connection((host, int(port))),
    "unix": lambda name: socket.socket(socket.AF_UNIX).connect(name.replace("@", "\0")),
    "resolve": resolve,
}


def go_through(steps: list[str]) -> None:
    results: dict[int, int] = {}
    at, again = 0, None
    while at < len(steps):
        verb, *words = steps[at].split()
        at += 1
        if verb == "loop":
            again = at
        elif verb == "call":
            results[at] = system_call(words, results)
        else:
            STEPS[verb](*words)
        if at == len(steps) and again is not None:
            at = again


def attempt(attack: str) -> str:
    child = os.fork()
    if child == 0:
        signal.alarm(MOST_SECONDS)
        try:
            go_through(attack.split(" ; "))
        except OSError as exc:
            os._exit(exc.errno or 255)
        except BaseException:  # noqa: BLE001 - the child must not go on as its parent
            os._exit(255)
        os._exit(0)
    return str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


# --- do


def fork_bomb() -> None:
    while True:
        try:
            os.fork()
        except OSError:
            os._exit(1)


def thread_bomb() -> None:
    while True:
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()


def memory_bomb_in_a_child() -> None:
    subprocess.run([sys.executable, "-c", "x = bytearray(1 << 30)"], check=False)


def close_streams() -> None:
    os.close(1)
    os.close(2)
    time.sleep(0.1)
    os._exit(0)


def fill_the_disk() -> None:
    with open("/tmp/full", "wb", 0) as file:
        while True:
            file.write(bytes(1 << 20))


def stop_everyone() -> None:
    subprocess.Popen(["sleep", "1000"])
    os.kill(-1, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)


def kill_everyone() -> None:
    child = subprocess.Popen(["sleep", "1000"])
    os.kill(-1, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


def write_for_ever() -> None:
    if os.fork() == 0:
        number = 0
        while True:
            write(f"/output/{number % 50}", str(number))
            number += 1
    time.sleep(0.05)


def zombies() -> None:
    while True:
        try:
            if os.fork() == 0:
                os._exit(0)
        except OSError:
            return


def overflow_the_stack() -> None:
    overflow_the_stack()


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1000)


ENDINGS = {
    "kill everyone": kill_everyone,
    "daemon": leave_daemon,
    "fork bomb": fork_bomb,
    "thread bomb": thread_bomb,
    "memory bomb in a child": memory_bomb_in_a_child,
    "close streams": close_streams,
    "fill the disk": fill_the_disk,
    "stop everyone": stop_everyone,
    "write for ever": write_for_ever,
    "ignore SIGTERM": ignore_sigterm,
    "zombies": zombies,
    "overflow the stack": overflow_the_stack,
}


def main() -> None:
    request = json.load(sys.stdin)
    for ending in request.get("do", []):
        ENDINGS[ending]()
        print("alive")
        return
    results = {trace: leave(trace) for trace in request.get("leave", [])}
    results |= {item: look(item) for item in request.get("look", [])}
    results |= {attack: attempt(attack) for attack in request.get("try", [])}
    print(json.dumps(results))


main()
