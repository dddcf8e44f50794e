"""Leaves in /output what is no plain file, what has an odd name, and a daemon that goes on writing there.

The same in four languages, each its own way. The daemon counts into two files without end, the first in the
order of names, then the last; between them lies a large one. Who collects them while it lives sees a
difference.
"""

# ruff: noqa: PTH101, PTH102, PTH103, PTH110, PTH202, PTH211, S103 - the system calls by their names

import os
import signal
import socket
import time
from pathlib import Path

FIRST, LARGE, LAST = "1 count", "5 large", "9 count"


def write(path: str | bytes, content: bytes) -> None:
    Path(os.fsdecode(path)).write_bytes(content)


def count() -> None:
    for ignored in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    first, last = (os.open(name, os.O_RDWR | os.O_CREAT, 0o644) for name in (FIRST, LAST))
    number = 0
    while True:
        number += 1
        data = number.to_bytes(8, "little")
        os.pwrite(first, data, 0)
        os.pwrite(last, data, 0)


def leave_a_writer() -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            count()
        os._exit(0)
    while not (os.path.exists(LAST) and os.path.getsize(LAST)):
        time.sleep(0.001)


def main() -> None:
    os.chdir("/output")
    write("a file", b"honest\n")
    os.link("a file", "hard link")
    os.symlink("/etc/passwd", "link")
    os.symlink("/proc/self/environ", "link to proc")
    os.symlink("/etc", "link to a folder")
    os.mkfifo("pipe")
    socket.socket(socket.AF_UNIX).bind("socket")
    for name in (b"new\nline", b"\xff\xfe", b"...", b"%2e%2e", b"a?b#c"):
        write(name, name)
    os.mkdir("closed")
    write("closed/in", b"in")
    os.chmod("closed", 0)
    write("unreadable", b"unreadable")
    os.chmod("unreadable", 0)
    write("set-user-id", b"suid")
    os.chmod("set-user-id", 0o6755)
    write("sparse", b"")
    os.truncate("sparse", 9 << 20)
    os.makedirs("deep" + "/d" * 40)
    write(LARGE, b"x" * (6 << 20))
    leave_a_writer()
    print("left")


main()
