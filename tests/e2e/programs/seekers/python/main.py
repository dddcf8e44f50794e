"""Looks for marks wherever a program can look, and prints where it has found which: `place TAB mark`.

A mark is `cnry` and sixteen hexadecimal digits, or an address of the loopback network that is not 127.0.0.1: a
pattern, so that whoever looks for marks has none. One that the input brings shows that looking finds. Memory comes
first: it would hold what was read from files. The programs of the other languages do the same but for /sys, which
the kernel shows to all alike.
"""

from __future__ import annotations

import os
import re
import stat
import sys

MARK = re.compile(rb"cnry[0-9a-f]{16}|127\.(?!0\.0\.1\b)\d+\.\d+\.\d+")
MOST_BYTES = 8 << 20  # of a file
PAGEMAPS = {"pagemap", "mem"}  # numbers of pages; memory is read by its map


class Seeker:
    def __init__(self) -> None:
        self.found: set[str] = set()
        self.files = 0

    def look_at(self, place: str, data: bytes) -> None:
        for mark in MARK.findall(data):
            self.found.add(f"{place}\t{mark.decode()}")

    def memory(self) -> None:
        with open("/proc/self/maps", "rb") as file:
            areas = [line.split() for line in file]
        memory = os.open("/proc/self/mem", os.O_RDONLY)
        for area in areas:
            start, end = (int(number, 16) for number in area[0].split(b"-"))
            if area[1].startswith(b"r") and not area[-1].startswith(b"[v"):
                self.look_at("memory", os.pread(memory, min(end - start, 256 << 20), start))

    def file(self, path: str) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            self.files += 1
            left = MOST_BYTES
            data = b""
            while left and (part := os.read(descriptor, left)):
                data += part
                left -= len(part)
            self.look_at(path, data)
        except OSError:
            pass
        finally:
            os.close(descriptor)

    def folder(self, path: str) -> None:
        try:
            names = os.listdir(path or "/")
        except OSError:
            return
        for name in names:
            inner = f"{path}/{name}"
            self.look_at(path, os.fsencode(name))
            try:
                mode = os.lstat(inner).st_mode
                if stat.S_ISLNK(mode):
                    self.look_at(inner, os.fsencode(os.readlink(inner)))
            except OSError:
                continue
            if stat.S_ISDIR(mode) and inner != "/usr" and name != "task":
                self.folder(inner)
            elif stat.S_ISREG(mode) and name not in PAGEMAPS:
                self.file(inner)


seeker = Seeker()
seeker.memory()
seeker.look_at("environment", repr(os.environ).encode())
seeker.look_at("arguments", repr(sys.argv).encode())
seeker.look_at("uname", repr(os.uname()).encode())
seeker.folder("")
print(*sorted(seeker.found), sep="\n")
print(f"files\t{seeker.files}")
with open("/output/found", "w") as output:
    print(*sorted(seeker.found), sep="\n", file=output)
