"""Does what the input's `case` says; the other languages' programs beside this one do the same."""

import json
import os
import signal
import subprocess
import sys
import time

MB = 1024 * 1024
# The last byte that a file may have at MAX_FILE_MB=512, and another; the file has holes and takes no memory.
GROW = ["dd", "if=/dev/zero", "of=/tmp/f", "bs=1", "count=2", f"seek={512 * MB - 1}"]


def report(value):
    stdin = sys.stdin.read()
    with open(os.environ["PAYLOAD_FILE"]) as file:
        from_file = file.read()
    print("stdout: 안녕, мир 🌍")
    print("stderr: 오류 아님", file=sys.stderr)
    print(json.dumps({"env": os.environ["PAYLOAD"], "file": from_file, "stdin": stdin}))


def files(value):
    os.makedirs("/output/folder/하위", exist_ok=True)
    for path, text in (("a.txt", "one"), ("folder/b.json", "{}"), ("folder/하위/결과 1.csv", "x,y\n")):
        with open(f"/output/{path}", "w") as file:
            file.write(text)
    os.symlink("/etc/passwd", "/output/link")
    os.mkfifo("/output/pipe")


def stubborn(value):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 1000"], start_new_session=True)
    print("still here", flush=True)
    time.sleep(1000)


def allocate(megabytes):
    held = bytearray(megabytes * MB)
    held[::4096] = b"x" * len(held[::4096])
    return held


def peak(value):
    held = allocate(value["megabytes"])
    # Pages that are shared with the interpreter that this one was forked from are not the run's.
    private = next(line for line in open("/proc/self/smaps_rollup") if line.startswith("Private_Dirty"))
    print(int(private.split()[1]) * 1024)
    del held


def in_child(work):
    child = os.fork()
    if child == 0:
        work()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)


CASES = {
    "report": report,
    "exit": lambda value: sys.exit(3),
    "raise": lambda value: {}["없는 키"],
    "signal": lambda value: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda value: time.sleep(1000),
    "stubborn": stubborn,
    "oom": lambda value: allocate(400),
    "oom_child": lambda value: in_child(lambda: allocate(400)),
    "flood": lambda value: [sys.stdout.write("x" * 999 + "\n") for _ in range(20_000)] + [print("the end")],
    "files": files,
    "files_then_fail": lambda value: (files(value), sys.exit(1)),
    "peak": peak,
    "peak_child": lambda value: in_child(lambda: peak(value)),
    "large_file": lambda value: open("/tmp/f", "wb").truncate(600 * MB),
    "large_file_child": lambda value: sys.exit(subprocess.run(GROW, check=False).returncode != 0),
    "quick": lambda value: print(value["say"]),
}

payload = json.loads(os.environ["PAYLOAD"])
CASES[payload["case"]](payload)
