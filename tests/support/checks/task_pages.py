"""The pages of docs/tasks: their files, and their sessions on the command line with the expected output.

A fenced block with `file=PATH` in its first line is a file. A block of the language `console` is a part of
the session: lines that begin with `$ ` are commands, and all other lines are output. A command that ends with
a backslash continues on the next line. In the output, `…` stands for any text on one line, and a line with
only `…` for any number of lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FENCE: Final = re.compile(
    r"^```(?P<language>\w+)(?: file=(?P<file>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_PROMPT: Final = "$ "


@dataclass(frozen=True, slots=True)
class File:
    """A file that the reader writes.

    Attributes:
        path: The path, relative to the folder of the session.
        text: The contents.
    """

    path: str
    text: str


@dataclass(slots=True)
class Command:
    """A command of the session.

    Attributes:
        text: The command, for the shell.
        shown: The lines of output that the page shows.
    """

    text: str
    shown: list[str] = field(default_factory=list)

    def expects(self, output: str) -> bool:
        """Whether the output is as the page shows it."""
        lines = [line + "\n" for line in output.rstrip("\n").split("\n")]
        return re.fullmatch(_pattern(self.shown), "".join(lines) if output.strip() else "") is not None


def steps(page: Path) -> Iterator[File | Command]:
    """Yield the files and commands of a page, in their order."""
    for block in _FENCE.finditer(page.read_text(encoding="utf-8")):
        if block["file"]:
            yield File(block["file"], block["text"])
        elif block["language"] == "console":
            yield from _commands(block["text"])


def _commands(text: str) -> Iterator[Command]:
    command: Command | None = None
    for line in text.splitlines():
        if line.startswith(_PROMPT):
            if command is not None:
                yield command
            command = Command(line.removeprefix(_PROMPT))
        elif command is not None and command.text.endswith("\\") and not command.shown:
            command.text = f"{command.text}\n{line}"
        else:
            assert command is not None, f"output before the first command: {line}"
            command.shown.append(line)
    if command is not None:
        yield command


def _pattern(shown: list[str]) -> str:
    lines = (r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in shown)
    return "".join(lines)
