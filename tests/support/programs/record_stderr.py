"""Record the standard error of `error_programs` in the runtime images.

::

    PYTHONPATH=src:tests .venv/bin/python -m support.programs.record_stderr

It writes `tests/unit/languages/stderr/{runtime or build}/{name}.txt` and the exit codes. Run it after an
image got a new version of an interpreter or compiler, and review the difference.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Final

from nanoagent.model.job import Runtime
from support.programs.error_programs import PROGRAMS, ErrorProgram

RECORDED: Final = Path(__file__).parents[2] / "unit" / "languages" / "stderr"
ENTRIES: Final = {
    Runtime.PYTHON: "main.py",
    Runtime.NODEJS: "index.js",
    Runtime.CPP: "main.cpp",
    Runtime.GO: "main.go",
}
_BUILD: Final = {Runtime.CPP: "/nanosupervisor/build-cpp", Runtime.GO: "/nanosupervisor/build-go"}
_RUN: Final = {Runtime.PYTHON: "/usr/bin/python3 main.py", Runtime.NODEJS: "/usr/bin/node index.js"}
# The environment of a run: files in /work, an empty input, PATH and LANG of the contract.
_DRIVER: Final = """
for case in /cases/*; do
    rm -rf /work/* /tmp/* /output/*; mkdir -p /work /output; cd /work
    cp -r "$case/files/." /work
    env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/tmp LANG=C.UTF-8 $(cat "$case/environment") \\
        bash "$case/command" </dev/null >/dev/null 2>/tmp/said 3>&2
    echo $? >"/said/$(basename "$case").code"
    cat /tmp/said >"/said/$(basename "$case").txt"
done
"""


def command_of(program: ErrorProgram) -> str:
    """Return the shell command that runs the program, or whose build fails."""
    if program.runtime in _RUN:
        return f"exec {_RUN[program.runtime]}"
    build = f"{_BUILD[program.runtime]} /output/program"
    if program.flags:
        build = f"g++ -std=c++20 {' '.join(program.flags)} main.cpp -o /output/program"
    if not program.builds:
        return f"exec {build}"
    return f"{build} 2>&3 || exit 99\nexec /output/program"


def group_of(program: ErrorProgram) -> str:
    """Return the folder of its recorded standard error."""
    return program.runtime if program.builds else "build"


def record(runtime: Runtime, programs: list[ErrorProgram]) -> None:
    """Run the programs of one runtime in one container."""
    with tempfile.TemporaryDirectory() as scratch:
        cases, said = Path(scratch, "cases"), Path(scratch, "said")
        said.mkdir()
        for program in programs:
            files = cases / program.name / "files"
            for name, text in {ENTRIES[runtime]: program.source, **program.files}.items():
                (files / name).parent.mkdir(parents=True, exist_ok=True)
                (files / name).write_text(text)
            environment = " ".join(f"{name}={value}" for name, value in program.environment.items())
            (cases / program.name / "environment").write_text(environment)
            (cases / program.name / "command").write_text(command_of(program))
        mounts = ["-v", f"{cases}:/cases:ro", "-v", f"{said}:/said"]
        options = ["--rm", "--network=none", "--memory=1g", "--ulimit=core=0", "--entrypoint=bash"]
        subprocess.run(
            ["docker", "run", *options, *mounts, f"nanoagent-{runtime}", "-c", _DRIVER], check=True
        )
        for program in programs:
            keep(program, (said / f"{program.name}.txt").read_bytes(), said / f"{program.name}.code")


def keep(program: ErrorProgram, said: bytes, code: Path) -> None:
    """Write the standard error and the exit code of one program."""
    exit_code = int(code.read_text())
    if exit_code == 99:
        raise SystemExit(f"{program.runtime} {program.name} was not built")
    folder = RECORDED / group_of(program)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{program.name}.txt").write_bytes(said)
    codes = folder / "exit_codes.json"
    known = json.loads(codes.read_text()) if codes.exists() else {}
    codes.write_text(json.dumps(known | {program.name: exit_code}, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Record all programs, or only the named ones."""
    wanted = set(sys.argv[1:])
    by_runtime = defaultdict(list)
    for program in PROGRAMS:
        if not wanted or program.name in wanted:
            by_runtime[program.runtime].append(program)
    for runtime, programs in by_runtime.items():
        record(runtime, programs)


if __name__ == "__main__":
    main()
