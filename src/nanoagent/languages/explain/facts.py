"""The facts about a run, from which its hint is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Final

from nanoagent.model.job import NetworkPolicy, Runtime
from nanoagent.model.result import OUTCOMES, ErrorType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nanoagent.network.policy import AllowedHosts

READ_CHARACTERS: Final = 16 * 1024
"""The part of a text that rules search."""


_TRACEBACK: Final = "Traceback (most recent call last):"
_CHAINED: Final = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
_COMPARED_CHARACTERS: Final = 60  # of the error line, whose end may be cut


class Platform(StrEnum):
    """The operating system for which a file was built."""

    LINUX = "Linux"
    MACOS = "macOS"
    WINDOWS = "Windows"


@dataclass(frozen=True, slots=True)
class NativeFile:
    """A file of the code with machine code, as its header describes it.

    Attributes:
        platform: The operating system.
        machine: The architecture, such as `x86_64`; empty if it is unknown.
        glibc: The newest version of glibc that it needs, such as (2, 34); None if it needs none.
        musl: Whether it needs musl instead of glibc.
    """

    platform: Platform
    machine: str = ""
    glibc: tuple[int, int] | None = None
    musl: bool = False


@dataclass(frozen=True, slots=True)
class TreeFacts:
    """The facts about the files of the code.

    Attributes:
        files: The paths of the files, relative to the working directory of a run. Very large trees are cut.
        source: The beginning of the entry file.
        requirements: The packages that requirements.txt or package.json lists, in lower case.
        is_module: Whether package.json has `"type": "module"`.
        native: Path → header, for libraries and programs.
        executable: The paths of files that are marked as executable.
    """

    files: frozenset[str] = frozenset()
    source: str = ""
    requirements: frozenset[str] = frozenset()
    is_module: bool = False
    native: Mapping[str, NativeFile] | None = None
    executable: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts about a run.

    Attributes:
        runtime: The program's language.
        error_type: The kind of failure; None if the run succeeded.
        exit_code: The exit code.
        message: The error's first line, in English.
        stdout_is_empty: Whether the program has printed nothing to standard output.
        stderr: The standard error.
        network: The network policy of the run.
        open_files: The largest number of files that a process could have open (MAX_OPEN_FILES).
        memory_mb: The memory limit, MiB.
        timeout_ms: The time limit.
        files_bytes: The size of the files in memory when the memory was used up; None if it is unknown.
        is_listening: Whether a TCP socket of the run was listening when its time was over.
        was_computing: Whether a thread was running, or waiting for a CPU, when the time of the run was over.
        was_waiting: Whether no thread was.
        payload_bytes: The size of the input.
        payload_fits: Whether the variable PAYLOAD has the input.
        machine: The architecture of the machine, such as `x86_64`.
        hosts: The names that the worker allows; None if runs have no internet.
        tree: The files of the code.
    """

    runtime: Runtime
    error_type: ErrorType | None
    exit_code: int = 1
    message: str = ""
    stdout_is_empty: bool = False
    stderr: str = ""
    network: NetworkPolicy = NetworkPolicy.AI
    open_files: int = 1024
    memory_mb: int = 128
    timeout_ms: int = 300_000
    files_bytes: int | None = None
    is_listening: bool = False
    was_computing: bool = False
    was_waiting: bool = False
    payload_bytes: int = 0
    payload_fits: bool = True
    machine: str = "x86_64"
    hosts: AllowedHosts | None = None
    tree: TreeFacts = TreeFacts()

    @cached_property
    def line(self) -> str:
        """The beginning of the message."""
        return self.message[:READ_CHARACTERS]

    @cached_property
    def tail(self) -> str:
        """The end of the standard error. It may have errors that the program has handled."""
        return self.stderr[-READ_CHARACTERS:]

    @cached_property
    def block(self) -> str:
        """The part of the standard error that belongs to the error that ended the program.

        In Python these are the last traceback and those of its causes. In other languages, and without a
        traceback, it begins with the error line.
        """
        if self.runtime is Runtime.PYTHON and (start := self.tail.rfind(_TRACEBACK)) >= 0:
            return self.tail[self._first_of_chain(start) :]
        start = self.tail.rfind(self.line[:_COMPARED_CHARACTERS]) if self.line else -1
        return self.tail[max(start, 0) :]

    def _first_of_chain(self, start: int) -> int:
        """Return the position of the first traceback of a chain, from the position of its last traceback."""
        while self.tail[:start].rstrip().endswith(_CHAINED):
            above = self.tail.rfind(_TRACEBACK, 0, start)
            if above < 0:
                break
            start = above
        return start

    @property
    def ended_by_itself(self) -> bool:
        """Whether the program ended by itself."""
        return OUTCOMES[self.error_type].ended_by_itself
