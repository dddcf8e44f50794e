"""The self-test program: performs the operation in each line of its input, and answers each with a line.

call NUMBER ARGUMENT...   make a system call with integer arguments
write PATH                open a file for writing, and create it if it is missing
read PATH                 return a file's text
names FOLDER              list the names in a folder
space FOLDER              return the size of the folder's file system, in bytes and in files
connect ADDRESS PORT      open a TCP connection
signal PROCESS NUMBER     send a signal
link TARGET PATH          make a symbolic link
environment               list the names of the environment variables
daemon                    start a process that outlives this one
end LIMIT                 use up a limit (fork, memory, file or time); the program ends without an answer

An answer is "done", or "error" and the error number. After "done" there may be a text, whose lines are
separated by U+001E. The programs in the other languages do the same.
"""

import ctypes
import os
import resource
import signal
import socket
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    values = [ctypes.c_long(int(value)) for value in arguments]
    if libc.syscall(ctypes.c_long(int(number)), *values) == -1:
        raise OSError(ctypes.get_errno(), "")


def write(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))


def read(path):
    with open(path, errors="replace") as file:
        return file.read()


def names(folder):
    return "\n".join(os.listdir(folder))


def space(folder):
    found = os.statvfs(folder)
    return f"{found.f_blocks * found.f_frsize} {found.f_files}"


def connect(address, port):
    socket.create_connection((address, int(port)), timeout=1).close()


def environment():
    return "\n".join(os.environ)


def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
    os.wait()


def end(limit):
    if limit == "fork":
        while True:
            try:
                if os.fork() == 0:
                    time.sleep(1000)
            except OSError:
                os._exit(1)
    if limit == "memory":
        held = []
        while True:
            held.append(bytearray(b"x") * (1 << 20))
    if limit == "file":
        max_bytes = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        with open("/tmp/large", "wb", 0) as file:
            file.seek(max_bytes - 1)
            file.write(b"x")
            file.write(b"x")
    if limit == "time":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1000)


OPERATIONS = {
    "call": call,
    "write": write,
    "read": read,
    "names": names,
    "space": space,
    "connect": connect,
    "signal": lambda process, number: os.kill(int(process), int(number)),
    "link": os.symlink,
    "environment": environment,
    "daemon": daemon,
    "end": end,
}


def answer(line):
    operation, *arguments = line.split()
    try:
        text = OPERATIONS[operation](*arguments)
    except OSError as error:
        if operation == "end":
            raise
        return f"error {error.errno or 110}"  # a socket's timeout has no error number: ETIMEDOUT
    return "done" if text is None else "done " + text.strip().replace("\n", "\x1e")


for line in sys.stdin.read().splitlines():
    print(answer(line))
