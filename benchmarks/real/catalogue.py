"""The functions: one folder beside this file for each."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.lab import MEMORY_MB

from nanoagent.model.job import Runtime

FOLDER: Final = Path(__file__).parent
_SHARED_CODE: Final = FOLDER.parent / "shared_code"
_DESCRIPTION: Final = "function.toml"


@dataclass(frozen=True, slots=True)
class RealFunction:
    """A function of the benchmark.

    Attributes:
        name: The name of its folder.
        runtime: Its language.
        about: One sentence about it.
        packages: Its packages for pip or npm, with versions; dependencies are listed, too.
        memory_mb: The job's memoryMb.
        calls_model: Whether it calls a model server.
    """

    name: str
    runtime: Runtime
    about: str
    packages: tuple[str, ...] = ()
    memory_mb: int = MEMORY_MB
    calls_model: bool = False

    @property
    def code(self) -> Path:
        """The folder with the code of this function only."""
        return FOLDER / self.name / "code"

    @property
    def shared_code(self) -> Path | None:
        """The folder with code that all functions in its language have; None if it does not exist."""
        folder = _SHARED_CODE / self.runtime
        return folder if folder.is_dir() else None

    @property
    def payload(self) -> bytes:
        """Its input: a JSON document."""
        return (FOLDER / self.name / "input.json").read_bytes()

    @property
    def expected(self) -> str:
        """Its standard output."""
        return (FOLDER / self.name / "expected.txt").read_text(encoding="utf-8")


def functions() -> list[RealFunction]:
    """Return all functions, sorted by name."""
    found = []
    for file in sorted(FOLDER.glob(f"*/{_DESCRIPTION}")):
        row = tomllib.loads(file.read_text(encoding="utf-8"))
        fields = row | {"runtime": Runtime(row["runtime"]), "packages": tuple(row.get("packages", ()))}
        found.append(RealFunction(file.parent.name, **fields))
    return found
