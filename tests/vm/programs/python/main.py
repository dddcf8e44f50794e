"""What the checks have a job do; `PAYLOAD` says which and how much. main.cpp does the same."""

import json
import os
import time
from pathlib import Path

PLACES = ("/tmp", "/dev/shm", "/output", ".")


def confinement(_amount: int) -> None:
    print(Path("/proc/self/attr/current").read_text())


def leave(_amount: int) -> None:
    for place in PLACES:
        Path(place, "left-behind").write_text("secret")
    # The code is a run's own to change: copied up, hidden, and as it was for the next run.
    Path("main.py").chmod(0o700)
    with Path("main.py").open("a") as code:
        code.write("raise SystemExit('changed by the run before')")
    Path("folder").mkdir()
    Path("main.py").rename("folder/main.py")
    if os.fork() == 0:
        os.setsid()
        os.close(1)
        os.close(2)
        time.sleep(1000)


def look(_amount: int) -> None:
    found = [file.name for place in PLACES for file in Path(place).iterdir()]
    running = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    print(json.dumps({"files": found, "processes": sorted(running - {1, os.getpid()})}))


def hold(mib: int) -> None:
    held = b"x" * (mib << 20)
    print(len(held))


def hold_for_seconds(mib: int) -> None:
    held = b"x" * (mib << 20)
    time.sleep(5)
    print(len(held))


def hold_in_a_child(mib: int) -> None:
    child = os.fork()
    if child == 0:
        hold(mib)
        os._exit(0)
    os.waitpid(child, 0)


def fork(count: int) -> None:
    for _ in range(count):
        if os.fork() == 0:
            time.sleep(1000)


payload = json.loads(os.environ["PAYLOAD"])
globals()[payload["do"]](payload["amount"])
