"""The table of the runtimes: the entry file, the build command and the start command of each runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nanoagent.model.job import Runtime

PROGRAM_PATH: Final = "/slot/program"
OUTPUT_DIR: Final = "/output"
PAYLOAD_FILE: Final = "/input/payload.json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """The commands that turn code of one language into a running program.

    Attributes:
        entry: The name of the entry file, which must be at the root of the code.
        arguments: The command that starts a run. Its working directory is the folder of the code.
        build: The command that builds the program, with the program's path as its argument. None for
            interpreted languages. Two more arguments make it keep objects: their path, and their largest size
            in bytes. The objects of an earlier build are at `PROGRAM_PATH`.
    """

    entry: str
    arguments: tuple[str, ...]
    build: tuple[str, ...] | None = None


BUILT_PROGRAM: Final = f"{OUTPUT_DIR}/program"
BUILT_OBJECTS: Final = f"{OUTPUT_DIR}/objects"

RECIPES: Final[dict[Runtime, Recipe]] = {
    Runtime.PYTHON: Recipe(entry="main.py", arguments=("/usr/bin/python3", "main.py")),
    Runtime.NODEJS: Recipe(entry="index.js", arguments=("/usr/bin/node", "index.js")),
    Runtime.CPP: Recipe(
        entry="main.cpp",
        arguments=(PROGRAM_PATH,),
        build=("/nanosupervisor/build-cpp", BUILT_PROGRAM),
    ),
    Runtime.GO: Recipe(
        entry="main.go",
        arguments=(PROGRAM_PATH,),
        build=("/nanosupervisor/build-go", BUILT_PROGRAM),
    ),
}
