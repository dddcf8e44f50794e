"""What a self-test has shown, for people and for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nanoagent.selftest.guards import Guard

if TYPE_CHECKING:
    from nanoagent.selftest.suite import SelfTest


def document(tested: SelfTest) -> dict[str, Any]:
    """For JSON: `{"ok": ..., "isolation": ..., "runtimes": {name: {"guards": {name: {"ok": ...}}}}}`."""
    runtimes = {
        each.runtime: {
            "ok": each.ok,
            "reason": each.reason,
            "seconds": round(each.seconds, 3),
            "guards": {
                finding.guard: {
                    "ok": finding.problem is None,
                    "tried": finding.tried,
                    "problem": finding.problem,
                }
                for finding in each.findings
            },
        }
        for each in tested.attacked
    }
    return {"ok": tested.ok, "isolation": tested.isolation, "runtimes": runtimes}


def show(tested: SelfTest) -> None:
    """Print a table of guards and runtimes, and below it every problem in words."""
    console = Console()
    found = {(each.runtime, finding.guard): finding for each in tested.attacked for finding in each.findings}
    table = Table("guard", "tried", *(each.runtime for each in tested.attacked), box=None)
    for guard in Guard:
        cells = [found.get((each.runtime, guard)) for each in tested.attacked]
        tried = sum(finding.tried for finding in cells if finding is not None)
        verdicts = [
            "[yellow]not tried[/]"
            if finding is None
            else "[red]OPEN[/]"
            if finding.problem
            else "[green]ok[/]"
            for finding in cells
        ]
        table.add_row(guard, str(tried), *verdicts)
    table.add_row("", "", *(f"[dim]{each.seconds:.1f} s[/]" for each in tested.attacked))
    console.print(table)
    console.print(f"between runs: {tested.isolation}")
    for each in tested.attacked:
        if each.reason is not None:
            console.print(f"[yellow]{each.runtime} could not be tried:[/] {escape(each.reason)}")
        for finding in each.findings:
            if finding.problem is not None:
                console.print(f"[red]{each.runtime}, {finding.guard}:[/] {escape(finding.problem)}")
