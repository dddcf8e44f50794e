"""Texts of packages that attack from the importer (docs/adr/0037), for the zip of a function.

The importer has run their code, so it may lie about everything, and leave processes in its sandbox. Such a
process sees the processes of runs.
"""

from __future__ import annotations

from typing import Final

# Calls of the kernel, and what must fail for the importer, its forks and runs.
SYSTEM_CALLS: Final = '''
import ctypes, errno, json, os, signal, socket, struct, sys
LIBC = ctypes.CDLL(None, use_errno=True)
IMPORTER = "PAYLOAD_FILE" not in os.environ
ALL = 0x7c020000  # the namespaces of a sandbox
NAMESPACES = {"user": 0x10000000, "mnt": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000}

def call(name, *arguments):
    """The name of the error; "" if the call has succeeded."""
    ctypes.set_errno(0)
    return errno.errorcode[ctypes.get_errno()] if getattr(LIBC, name)(*arguments) < 0 else ""

def attempt(act):
    try:
        act()
    except OSError as exc:
        return errno.errorcode[exc.errno]
    return ""

def opened(path, flags=os.O_RDWR):
    return attempt(lambda: os.close(os.open(path, flags)))

def capabilities(process="self"):
    lines = open(f"/proc/{process}/status").read().splitlines()
    return {line[:6]: int(line[7:], 16) for line in lines if line.startswith("Cap")}

def enter(process, flags):
    pidfd = os.pidfd_open(process)
    try:
        return call("setns", pidfd, flags)
    finally:
        os.close(pidfd)

def enter_file(path, flags):
    namespace = os.open(path, os.O_RDONLY)
    try:
        return call("setns", namespace, flags)
    finally:
        os.close(namespace)

def loopback(up):
    """Try to change the loopback interface, for which CAP_NET_ADMIN over the network is needed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        request = struct.pack("16sh14x", b"lo", 0x49 if up else 0x8)
        import fcntl
        return attempt(lambda: fcntl.ioctl(made, 0x8914, request))  # SIOCSIFFLAGS

def attacks():
    """What must fail in the importer, in every process that it forks, and in a run."""
    found = {name: enter_file(f"/proc/self/ns/{name}", flags) for name, flags in NAMESPACES.items()}
    return found | {
        "enter a sandbox": enter(1, ALL), "enter the network of init": enter(1, 0x40000000),
        "unshare": call("unshare", 0x10000000), "mount": call("mount", b"x", b"/tmp", b"tmpfs", 0, 0),
        "host name": call("sethostname", b"x", 1), "ptrace": call("ptrace", 16, 1, 0, 0),
        "memory of init": opened("/proc/1/mem"),
        "files of init": opened("/proc/1/root/etc/passwd", os.O_RDONLY),
        "filter": call("prctl", 22, 2, 0), "loopback": loopback(False),
        "ports": opened("/proc/sys/net/ipv4/ip_unprivileged_port_start", os.O_WRONLY),
        "clone": call("syscall", 56, 0x10000000 | 17, 0, 0, 0, 0),
    }
'''

# Processes that outlive the import, and how they attack the processes of a run. A process reports through the
# files of the run.
STAYING: Final = (
    SYSTEM_CALLS
    + '''
INIT, ANCHOR, PROGRAM = 1, 2, 3  # their numbers in the sandbox of a run
IMPORTER_PROCESS = 2

def stay(act):
    """Call act() in a process that outlives the import, and is not a child of the importer."""
    if not IMPORTER:
        return
    if os.fork() == 0:
        if os.fork() == 0:
            try: act()
            except OSError as exc: print(exc, file=sys.stderr, flush=True)
        os._exit(0)
    os.wait()

def processes():
    """The processes in sandboxes of runs: the number here, and the number there."""
    found = {}
    for number in filter(str.isdecimal, os.listdir("/proc")):
        try: numbers = open(f"/proc/{number}/status").read().split("NSpid:")[1].splitlines()[0].split()
        except OSError: continue
        if len(numbers) == 2: found[int(number)] = int(numbers[1])
    return found

def appearing(wanted, condition=lambda process: True):
    """Yield each process with this number in the sandbox of a run, as soon as it appears."""
    seen = set()
    while True:
        for number, inner in processes().items():
            if inner == wanted and number not in seen and condition(number):
                seen.add(number)
                yield number

def programs():
    """Yield the program of each run that reads a report."""
    return appearing(PROGRAM, lambda program: os.path.exists(f"/proc/{program}/root/tmp/waits"))

def tell(process, value):
    """Write a report into the sandbox of this process."""
    place = f"/proc/{process}/root/tmp"
    with open(f"{place}/new", "w") as file: json.dump(value, file)
    os.rename(f"{place}/new", f"{place}/report")

def inside(process, act):
    """Call act(socket) in the sandbox of this process. Return the other end of the socket."""
    ours, theirs = socket.socketpair()
    if (child := os.fork()) == 0:
        if not enter(process, ALL) and os.fork() == 0: act(theirs)
        os._exit(0)
    theirs.close()
    os.waitpid(child, 0)
    return ours
'''
)
# A run waits for the report, and prints it.
READ_REPORT: Final = """
import os, time
open('/tmp/waits', 'w').close()
while not os.path.exists('/tmp/report'): time.sleep(0.01)
print(open('/tmp/report').read())
"""
