"""The libraries and functions that are tried: one TOML file for each language, one table for each row."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from nanoagent.model.job import Runtime


@dataclass(frozen=True, slots=True)
class Library:
    """One row.

    Attributes:
        name: Its name in the table.
        runtime: The language.
        packages: Their names, as pip, npm or apt knows them. Go: `debian-package=module@version`.
        program: The text of the entry file, which prints the line `ok`.
        memory_mb: The job's memoryMb.
        layout: `pnpm` for a `node_modules` of symbolic links; empty for npm's.
        known_problem: Why it cannot work with the language's own tools either; empty for the others.
    """

    name: str
    runtime: Runtime
    packages: tuple[str, ...]
    program: str
    memory_mb: int = 512
    layout: str = ""
    known_problem: str = ""


def libraries() -> list[Library]:
    """Every library, in the order of the files."""
    found = []
    for runtime in Runtime:
        text = (Path(__file__).parent / f"{runtime}.toml").read_text(encoding="utf-8")
        for name, row in tomllib.loads(text).items():
            found.append(Library(name, runtime, **(row | {"packages": tuple(row["packages"])})))
    return found
