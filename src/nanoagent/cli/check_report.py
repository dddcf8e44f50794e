"""Prints what `nanoagent check` has found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanoagent.cli.application import EXIT_FAILED
from nanoagent.cli.settings import without_secrets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from nanoagent.config import Settings
    from nanoagent.doctor.check import ProbeResult


def shown_settings(settings: Settings) -> dict[str, Any]:
    """Return every setting as JSON, with secrets hidden."""
    shown = settings.model_dump(mode="json")
    for name in shown:
        if ("password" in name or name.endswith("_api_key")) and shown[name]:
            shown[name] = "***"
    return shown


def show(
    shown: dict[str, Any],
    defaults: dict[str, Any],
    warnings: dict[str, tuple[str, ...]],
    results: Sequence[ProbeResult],
) -> None:
    """Print the settings, and the problems and warnings of each part.

    Args:
        shown: The settings, from `shown_settings`.
        defaults: The default of each setting that was changed.
        warnings: The warnings about each part.
        results: The result of each probe.
    """
    from rich.console import Console
    from rich.markup import escape

    from nanoagent.doctor import check as checks

    def cell(value: object) -> str:
        return "" if value is None else without_secrets(str(value))

    rows = [
        (
            "*" if name in defaults else "",
            name.upper(),
            cell(value),
            cell(defaults[name]) or "none" if name in defaults else "",
        )
        for name, value in shown.items()
    ]
    console = Console(soft_wrap=True)
    if console.is_terminal:
        console.print(_table(rows), soft_wrap=False)
    else:  # a file or a pipe: no text is cut or wrapped
        names = max(len(row[1]) for row in rows)
        for mark, name, value, default in rows:
            suffix = f"  (default: {default})" if default else ""
            print(f"{mark:1} {name:{names}}  {value}{suffix}".rstrip())
    for result in results:
        answer = f"[red]{escape(cell(result.problem))}[/]" if result.problem else "[green]ok[/]"
        console.print(f"{escape(result.part)}: {answer}")
    for part, texts in warnings.items():
        for warning in texts:
            console.print(f"{escape(part)}: [yellow]warning: {escape(cell(warning))}[/]")
    failed = any(result.problem for result in results)
    console.print(f"{escape(cell(checks.verdict(results)))} (exit code {EXIT_FAILED if failed else 0})")


def _table(rows: Sequence[tuple[str, ...]]) -> Table:
    """Return the settings as a table that wraps long values to the width of the terminal."""
    from rich.table import Column, Table
    from rich.text import Text

    heads = ("", "setting", "value", "default, where it differs")
    table = Table(*(Column(head, overflow="fold") for head in heads), box=None)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
