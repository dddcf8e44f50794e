"""A program of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nanoagent.model.cause import Cause


@dataclass(frozen=True, slots=True)
class Program:
    """A program and the cause of its failure.

    Attributes:
        name: Its name in the table of misses.
        runtime: Its language.
        files: Path in the zip → content.
        cause: The cause that the hint must name; None if no hint is right.
        memory_mb: The memory limit, MiB.
        timeout_ms: The time limit.
        network: The network of the run.
        payload: The input.
        executable: The paths of files that the zip marks as executable.
    """

    name: str
    runtime: Runtime
    files: Mapping[str, str | bytes]
    cause: Cause | None
    memory_mb: int = 128
    timeout_ms: int = 10_000
    network: str = "ai"
    payload: Any = field(default_factory=lambda: {"name": "Kim"})
    executable: frozenset[str] = frozenset()


def python(
    name: str,
    source: str,
    cause: Cause | None,
    /,
    *,
    files: Mapping[str, str | bytes] | None = None,
    **more: Any,
) -> Program:
    """Return a program in Python whose entry file has that source."""
    return Program(name, Runtime.PYTHON, {"main.py": source, **(files or {})}, cause, **more)


def nodejs(
    name: str,
    source: str,
    cause: Cause | None,
    /,
    *,
    files: Mapping[str, str | bytes] | None = None,
    **more: Any,
) -> Program:
    """Return a program in JavaScript whose entry file has that source."""
    return Program(name, Runtime.NODEJS, {"index.js": source, **(files or {})}, cause, **more)


def cpp(
    name: str,
    source: str,
    cause: Cause | None,
    /,
    *,
    files: Mapping[str, str | bytes] | None = None,
    **more: Any,
) -> Program:
    """Return a program in C++ whose entry file has that source."""
    return Program(name, Runtime.CPP, {"main.cpp": source, **(files or {})}, cause, **more)


def go(
    name: str,
    source: str,
    cause: Cause | None,
    /,
    *,
    files: Mapping[str, str | bytes] | None = None,
    **more: Any,
) -> Program:
    """Return a program in Go whose entry file has that source."""
    return Program(name, Runtime.GO, {"main.go": source, **(files or {})}, cause, **more)
