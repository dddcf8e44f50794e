"""Prints the comparison of a replay, for a person or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanoagent.model import result as results
from nanoagent.model.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoagent.dev.replay.difference import Difference, Field
    from nanoagent.model.capsule import Capsule
    from nanoagent.model.result import Result

_MOST_DIFF_LINES: Final = 60
_MOST_CHARACTERS: Final = 60  # of a value in the table


def show(capsule: Capsule, compared: Difference, notes: Sequence[str]) -> None:
    """Print the comparison as text. The output of programs gets no control characters."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for note in notes:
        console.print(Text.assemble(("note   ", "yellow"), one_line(note)))
    console.print(Text(_heading(capsule)))
    if capsule.input is not None:
        console.print(Text(f"input  {_cut(capsule.input)}"))
    _show_fields(console, compared.fields)
    for lines in compared.diffs.values():
        _show_diff(console, lines)
    console.print()
    console.print(Text(compared.verdict.value.sentence, style="bold"))


def _heading(capsule: Capsule) -> str:
    name = capsule.job.function_id if capsule.job else capsule.result.function_id
    return one_line(
        f"{capsule.request_id}: function {name}, {capsule.result.runtime}, attempt {capsule.result.attempt}, "
        f"recorded {capsule.made_at} by {capsule.worker.id} ({capsule.worker.version})"
    )


def _show_fields(console: Console, fields: Sequence[Field]) -> None:
    rows = [(field.name, _cut(field.recorded), _cut(field.here), _mark(field)) for field in fields]
    heads = ("", "recorded", "here", "")
    if console.is_terminal:
        table = Table(*heads, box=None, pad_edge=False)
        for name, recorded, here, mark in rows:
            style = "red" if mark == "differs" else ""
            table.add_row(name, Text(recorded), Text(here, style=style), Text(mark, style=style))
        console.print(table, soft_wrap=False)
        return
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(3)]
    for row in (heads, *rows):
        cells = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False))
        console.print(Text(f"{cells}  {row[3]}".rstrip()))


def _mark(field: Field) -> str:
    return "" if field.same is None else "same" if field.same else "differs"


def _cut(text: str) -> str:
    shown = one_line(text)
    return shown if len(shown) <= _MOST_CHARACTERS else f"{shown[: _MOST_CHARACTERS - 1]}…"


def _show_diff(console: Console, lines: Sequence[str]) -> None:
    console.print()
    for line in lines[:_MOST_DIFF_LINES]:
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        console.print(Text(one_line(line.replace("\t", "    ")), style=style))
    if len(lines) > _MOST_DIFF_LINES:
        console.print(Text(f"… {len(lines) - _MOST_DIFF_LINES} more lines; --json has all of them"))


def document(capsule: Capsule, compared: Difference, notes: Sequence[str], here: Result) -> str:
    """Return the comparison as one JSON object."""
    outcome = compared.verdict.value
    fields: dict[str, Any] = {
        "requestId": capsule.request_id,
        "verdict": outcome.name,
        "sentence": outcome.sentence,
        "notes": list(notes),
        "fields": [
            {"name": field.name, "recorded": field.recorded, "here": field.here, "same": field.same}
            for field in compared.fields
        ],
        "diffs": {stream: list(lines) for stream, lines in compared.diffs.items()},
        "recorded": json.loads(results.encode(capsule.result)),
        "here": json.loads(results.encode(here)),
    }
    return json.dumps(fields)
