"""The libraries and programs: one TOML file for each language, one table for each library."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from nanoagent.model.job import Runtime


@dataclass(frozen=True, slots=True)
class Library:
    """A library, with a program that uses it.

    Attributes:
        name: The name in the report.
        runtime: The language.
        packages: The names of its packages for pip, npm or apt. For Go: `debian-package=module@version`.
        program: The text of the entry file. It prints the line `ok`.
        memory_mb: The job's memoryMb.
        layout: `pnpm` for a `node_modules` folder of symbolic links; empty for that of npm.
        known_problem: Why it also fails with the language's own tools; empty if it works with them.
    """

    name: str
    runtime: Runtime
    packages: tuple[str, ...]
    program: str
    memory_mb: int = 512
    layout: str = ""
    known_problem: str = ""


def libraries() -> list[Library]:
    """Return all libraries, in the order of the files."""
    found = []
    for runtime in Runtime:
        text = (Path(__file__).parent / f"{runtime}.toml").read_text(encoding="utf-8")
        for name, row in tomllib.loads(text).items():
            found.append(Library(name, runtime, **(row | {"packages": tuple(row["packages"])})))
    return found
