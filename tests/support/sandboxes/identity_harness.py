# ruff: noqa: S606, PLC0415 - it starts processes as the supervisor does, and imports late
"""Runs in a container of the Python image: starts programs plainly and in children of a zygote.

It uses the supervisor's side of the control protocol (src/nanosupervisor/zygote_module.c). It reads one
request per line of standard input and answers with one line, both JSON:
    {"do": "plain" | "zygote", "files": {name: base64}, "payload": text, "environment": {}, "arguments": []}
        -> {"status": wait status, "stdout": base64, "stderr": base64,
            "first_ms": until the first output, "ended_ms": until the last}
    {"do": "start", "modules": [names]}      a new zygote instead of the previous one -> {}
    {"do": "abandon"}        a child of the zygote that gets no job    -> as for the first request
    {"do": "preload", "modules": [], "entries": []}         -> {"ok": bool}
    {"do": "install", "files": {name: base64}, "copies": [names], "imports": text}    a new importer, which
        has imported installed packages: these files, and copies of modules of the image
        -> {"state": enum imports_state}
    {"do": "importer", ...}        as the first request, in a process of the importer
With `NAMESPACES=1` in the environment each child has its own PID namespace, as in a sandbox. Then a module
`draws_at_import` exists, whose import starts every random number generator.
"""

from __future__ import annotations

import array
import base64
import ctypes
import fcntl
import json
import os
import select
import shutil
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

CONTROL = 3
CLONE_NEWPID = 0x20000000
ZYGOTE = ["/usr/bin/python3", "main.py"]
ZYGOTE_FOLDER = "/nanosupervisor/zygote"
START_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
CONFINEMENT = struct.pack("<QIBB", 512 << 20, 256, 0, 0)  # struct confinement of confine.h
OF_IMPORTER = struct.pack("<QIBB", 512 << 20, 256, 0, 1)
NAMESPACES = CLONE_NEWPID if os.environ.get("NAMESPACES") else 0
DRAWS_AT_IMPORT = """
import random, ssl, tempfile
random.random()
ssl.RAND_bytes(8)
next(tempfile._get_candidate_names())
"""
WORK = Path("/work")
PAYLOAD = Path("/input/payload.json")


class Zygote:
    """A zygote and the supervisor's end of its control socket."""

    def __init__(self, modules: list[str]) -> None:
        self.control, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ended: dict[int, tuple[int, int]] = {}  # wait status, CPU time in µs
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(end.fileno(), CONTROL)
            os.closerange(CONTROL + 1, 1000)
            os.chdir(ZYGOTE_FOLDER)
            os.execve(ZYGOTE[0], ZYGOTE, START_ENVIRONMENT)
        end.close()
        self.answer("R")
        if modules and not self.preload(modules, []):
            raise RuntimeError("the modules could not be imported")

    def close(self) -> None:
        """Close the control socket, which must end the zygote."""
        self.control.close()
        os.waitpid(self.pid, 0)

    def answer(self, kind: str) -> bytes:
        """Wait for a message of a kind; store messages about ended children."""
        while message := self.control.recv(1024):
            if message[:1] == b"X":
                pid, status, user_us, system_us = struct.unpack("<iiQQ", message[1:])
                self.ended[pid] = (status, user_us + system_us)
            if message[:1] == kind.encode():
                return message[1:]
        raise RuntimeError("the zygote is gone")

    def end_of(self, pid: int) -> tuple[int, int]:
        while pid not in self.ended:
            self.answer("X")
        return self.ended.pop(pid)

    def preload(self, modules: list[str], entries: list[str]) -> bool:
        names = [*modules, "", *entries]
        self.control.send(b"P" + b"".join(name.encode() + b"\0" for name in names))
        return self.answer("p") == b"\1"

    def fork(self) -> Child:
        return Child(self)


def make_init(next_number: int) -> tuple[int, int]:
    """Make process 1 of a new PID namespace. Return its process ID here, and a descriptor of it.

    The next process there gets the ID `next_number`. The worst case is the ID of the zygote here, because
    some libraries recognise a fork by a changed process ID.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    ready, ready_end = os.pipe()
    if libc.unshare(CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "unshare")
    pid = os.fork()
    if pid == 0:
        for _ in range(2, next_number):
            end_at_once()
        os.closerange(0, 1000)  # including the ends of a run's pipes
        while True:
            time.sleep(1000)
    os.close(ready_end)
    os.read(ready, 1)
    os.close(ready)
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    if libc.setns(own, CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(own)
    return pid, os.pidfd_open(pid)


def end_at_once() -> None:
    """Use up one process ID."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


class Importer:
    """An importer, and the supervisor's end of its control socket.

    Args:
        zygote: The zygote that forks it.
    """

    def __init__(self, zygote: Zygote) -> None:
        self.control, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        streams = [os.open("/dev/null", os.O_RDWR) for _ in range(3)]
        ends = array.array("i", [end.fileno(), *streams])
        request = b"F" + struct.pack("<I", 0) + OF_IMPORTER
        zygote.control.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ends)])
        (pid,) = struct.unpack("<i", zygote.answer("f"))
        if pid < 0:
            raise OSError(-pid, "the zygote could not fork an importer")
        for stream in streams:
            os.close(stream)
        while self.control.recv(16) != b"r":
            pass

    def load(self) -> int:
        """Let it import the packages of the program in /work; return the state."""
        self.control.send(b"I")
        return self.control.recv(16)[1]

    def close(self) -> None:
        """Close the control socket, which must end the importer."""
        self.control.close()


class Child:
    """A process of the zygote, or of an importer, that waits for its job."""

    def __init__(self, zygote: Zygote, importer: Importer | None = None) -> None:
        self.zygote = zygote
        self.importer = importer
        self.job, job = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        if importer:
            self.job.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.stdout, stdout = os.pipe()
        self.stderr, stderr = os.pipe()
        stdin, self.stdin = os.pipe()
        ends = [job.fileno(), stdin, stdout, stderr]
        self.init = 0
        if NAMESPACES:
            self.init, init = make_init(zygote.pid)
            ends.append(init)
        request = b"F" + struct.pack("<I", NAMESPACES) + CONFINEMENT
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", ends))]
        (importer.control if importer else zygote.control).sendmsg([request], rights)
        answer = importer.control.recv(16)[1:] if importer else zygote.answer("f")
        (self.pid,) = struct.unpack("<i", answer)
        if self.pid < 0:
            raise OSError(-self.pid, "the zygote could not fork")
        job.close()
        for end in ends[1:]:
            os.close(end)

    def run(self, arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
        if not self.is_ready():
            raise RuntimeError(f"not ready: {drain(self.stdout, self.stderr)[1]!r}")
        strings = [*arguments, *(f"{name}={value}" for name, value in environment.items())]
        body = b"".join(os.fsencode(string) + b"\0" for string in strings)
        started = time.perf_counter()
        fill(self.stdin)
        self.job.sendall(b"?")
        self.job.recv(1)
        self.job.sendall(struct.pack("<III", len(body), len(arguments), len(environment)) + body)
        self.job.close()
        answer = outcome(self.stdout, self.stderr, started)
        if self.init:
            os.kill(self.init, 9)
            os.waitpid(self.init, 0)
        status, cpu_us = self.end()
        return answer | {"status": status, "cpu_us": cpu_us}

    def end(self) -> tuple[int, int]:
        """Wait for its end. As process 1, this process adopts the children of an importer."""
        if self.importer is None:
            return self.zygote.end_of(self.pid)
        _, status, use = os.wait4(self.pid, 0)
        return status, int((use.ru_utime + use.ru_stime) * 1e6)

    def is_ready(self) -> bool:
        """Wait until it is ready; close the listener of its filter, which arrives first."""
        said, rights, _, _ = self.job.recvmsg(1, socket.CMSG_SPACE(12))
        if self.importer and rights:
            self.pid = struct.unpack("<iii", rights[0][2])[0]
        return (self.job.recv(1) if said == b"n" else said) == b"r"

    def abandon(self) -> dict[str, Any]:
        self.is_ready()
        os.close(self.stdin)
        self.job.close()
        stdout, stderr = drain(self.stdout, self.stderr)
        return {
            "status": self.zygote.end_of(self.pid)[0],
            "stdout": stdout.decode(),
            "stderr": stderr.decode(),
        }


def fill(pipe: int) -> None:
    """Write the payload into a pipe, as the supervisor does, and close it."""
    payload = PAYLOAD.read_bytes()
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, max(len(payload), 1 << 16))
    os.write(pipe, payload)
    os.close(pipe)


def drain(*pipes: int) -> list[bytes]:
    """Return all data from the pipes, until both are closed."""
    parts: dict[int, list[bytes]] = {pipe: [] for pipe in pipes}
    waiting = list(pipes)
    while waiting:
        for pipe in select.select(waiting, [], [])[0]:
            part = os.read(pipe, 1 << 16)
            parts[pipe].append(part)
            if not part:
                waiting.remove(pipe)
                os.close(pipe)
    return [b"".join(parts[pipe]) for pipe in pipes]


def outcome(stdout: int, stderr: int, started: float) -> dict[str, Any]:
    select.select([stdout, stderr], [], [])
    first_ms = (time.perf_counter() - started) * 1000
    out, err = drain(stdout, stderr)
    return {
        "stdout": base64.b64encode(out).decode(),
        "stderr": base64.b64encode(err).decode(),
        "first_ms": first_ms,
        "ended_ms": (time.perf_counter() - started) * 1000,
    }


def run_plainly(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Start a program as the supervisor does without a zygote."""
    stdin, stdin_end = os.pipe()
    stdout, stdout_end = os.pipe()
    stderr, stderr_end = os.pipe()
    fill(stdin_end)
    started = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.umask(0o022)
        os.chdir(WORK)
        os.dup2(stdin, 0)
        os.dup2(stdout_end, 1)
        os.dup2(stderr_end, 2)
        os.closerange(3, 1000)
        reset_signals()
        os.execve(arguments[0], arguments, environment)
    for end in (stdin, stdout_end, stderr_end):
        os.close(end)
    answer = outcome(stdout, stderr, started)
    return answer | {"status": os.waitpid(pid, 0)[1]}


def reset_signals() -> None:
    import signal

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def lay_out(files: dict[str, str], payload: str) -> None:
    """Make the files of a new sandbox."""
    for folder in (WORK, Path("/tmp"), Path("/output")):
        for entry in folder.iterdir():
            if folder == WORK and entry.name in INSTALLED:
                continue
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for name, content in files.items():
        path = WORK / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(content))
    PAYLOAD.write_text(payload)


INSTALLED: set[str] = set()
IMAGE_PACKAGES = Path("/usr/lib/python3/dist-packages")


def install(files: dict[str, str], copies: list[str], imports: str) -> None:
    """Put packages into /work, for all programs, as `pip install --target` does."""
    INSTALLED.clear()
    lay_out(files, "{}")
    for name in copies:
        source = IMAGE_PACKAGES / name
        if source.is_dir():
            shutil.copytree(source, WORK / name, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, WORK / name)
    INSTALLED.update(entry.name for entry in WORK.iterdir())
    record = "".join(f"{path.relative_to(WORK)},,\n" for path in WORK.rglob("*") if path.is_file())
    info = WORK / "installed-1.dist-info"
    info.mkdir()
    (info / "RECORD").write_text(record)
    INSTALLED.add(info.name)
    (WORK / "main.py").write_text(imports)


def main() -> None:
    if NAMESPACES:
        Path("/usr/local/lib/python3.13/dist-packages/draws_at_import.py").write_text(DRAWS_AT_IMPORT)
    zygote = Zygote([])
    importer: Importer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if request["do"] == "start":
            zygote.close()
            zygote = Zygote(request["modules"])
        elif request["do"] == "preload":
            answer["ok"] = zygote.preload(request["modules"], request["entries"])
        elif request["do"] == "install":
            if importer:
                importer.close()
            install(request["files"], request["copies"], request["imports"])
            importer = Importer(zygote)
            answer["state"] = importer.load()
        elif request["do"] == "abandon":
            answer = zygote.fork().abandon()
        else:
            child = None
            if request["do"] in {"zygote", "importer"}:
                child = Child(zygote, importer if request["do"] == "importer" else None)
            lay_out(request["files"], request["payload"])
            start = child.run if child else run_plainly
            answer = start(request["arguments"], request["environment"])
        print(json.dumps(answer), flush=True)


main()
