"""The texts, tables and documents of the commands for deployed functions."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanoagent.dev.sender.stages import Exit
from nanoagent.model.errors import InvalidCall, NanoAgentError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


_FUNCTION_ID_CHARACTERS: Final = 256


@dataclass(slots=True)
class Output:
    """The output of a command: lines of text during the command, or one JSON document at its end.

    Attributes:
        as_json: Whether the output is JSON.
        fields: The fields of the JSON document.
    """

    as_json: bool
    fields: dict[str, Any] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Print a line about the progress on standard error."""
        if not self.as_json:
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - a command's output

    def end(self, lines: Iterable[str] = (), **fields: Any) -> Exit:
        """Print the outcome of a command that succeeded: its lines, or the document."""
        if self.as_json:
            print(json.dumps(self.fields | fields | {"error": None}))  # noqa: T201
        else:
            for line in lines:
                print(line)  # noqa: T201
        return Exit.SUCCESS

    def fail(self, code: Exit, error: str) -> Exit:
        """Print an error, and return the exit code."""
        if self.as_json:
            print(json.dumps(self.fields | {"error": error}))  # noqa: T201
        else:
            print(f"nanoagent: {error}", file=sys.stderr)  # noqa: T201
        return code


def check_function_id(function_id: str) -> None:
    """Refuse a function ID that a job cannot have.

    Raises:
        InvalidCall: The ID is invalid.
    """
    if not 1 <= len(function_id) <= _FUNCTION_ID_CHARACTERS or not function_id.isprintable():
        shown = one_line(function_id[:80])
        raise InvalidCall(
            [f"function {shown!r}: is not an ID of 1-{_FUNCTION_ID_CHARACTERS} printable characters"]
        )


class NoFunction(InvalidCall):
    """The function has no record, or its record may not be read."""


def exit_of(error: NanoAgentError) -> Exit:
    """Return the exit code for a call that cannot be carried out."""
    return Exit.NO_RESULT if isinstance(error, NoFunction) else Exit.INVALID_CALL


def no_function(function_id: str, bucket: str) -> NoFunction:
    """Return the error for a function without a record."""
    problem = f"there is no function {function_id} in the bucket {bucket}, or you may not read its record"
    remedy = "`nanoagent functions` lists the functions, and `nanoagent deploy` makes one"
    return NoFunction([f"{problem}; {remedy}"])


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print a table on a terminal, and plain columns elsewhere.

    Args:
        headings: The headings of the columns.
        rows: The cells of each row.
        right: The headings of columns that are aligned to the right.
    """
    console = Console()
    if console.is_terminal:
        shown = Table(box=None, pad_edge=False)
        for heading in headings:
            shown.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
        for row in rows:
            shown.add_row(*(Text(one_line(cell)) for cell in row))
        console.print(shown)
        return
    lines = [headings, *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        cells = [
            " " * (width - cell_len(cell)) + cell if heading in right else set_cell_size(cell, width)
            for heading, cell, width in zip(headings, line, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())  # noqa: T201
