"""The four runtimes as one table: what the entry file is called, how it is built, how it is started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nanoagent.model.job import Runtime

PROGRAM_PATH: Final = "/slot/program"
OUTPUT_DIR: Final = "/output"
PAYLOAD_FILE: Final = "/input/payload.json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How code of one language becomes a running program.

    Attributes:
        entry: The file that must be at the root of the code.
        arguments: What is executed for a run, in the code's own folder.
        build: For compiled languages: what is executed to make one, given the path to write it to.
    """

    entry: str
    arguments: tuple[str, ...]
    build: tuple[str, ...] | None = None


BUILT_PROGRAM: Final = f"{OUTPUT_DIR}/program"

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
