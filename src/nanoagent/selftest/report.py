"""The result of a self-test, as a table for a terminal and as a document for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nanoagent.selftest.checks import IsolationCheck

if TYPE_CHECKING:
    from nanoagent.selftest.suite import CheckResult, SelfTestResult


def document(tested: SelfTestResult) -> dict[str, Any]:
    """Return `{"ok": ..., "isolation": ..., "runtimes": {name: {"guards": {name: {"ok": ...}}}}}`."""
    runtimes = {
        each.runtime: {
            "ok": each.ok,
            "reason": each.reason,
            "seconds": round(each.seconds, 3),
            "guards": {
                result.check: {
                    "ok": result.problem is None,
                    "tried": result.tried,
                    "problem": result.problem,
                }
                for result in each.results
            },
        }
        for each in tested.runtimes
    }
    return {"ok": tested.ok, "isolation": tested.isolation, "runtimes": runtimes}


def show(tested: SelfTestResult) -> None:
    """Print a table of isolation checks and runtimes, and below it all problems."""
    console = Console()
    by_place = {(each.runtime, result.check): result for each in tested.runtimes for result in each.results}
    table = Table("check", "tried", *(each.runtime for each in tested.runtimes), box=None)
    for check in IsolationCheck:
        results = [by_place.get((each.runtime, check)) for each in tested.runtimes]
        tried = sum(result.tried for result in results if result is not None)
        table.add_row(check, str(tried), *map(_cell, results))
    table.add_row("", "", *(f"[dim]{each.seconds:.1f} s[/]" for each in tested.runtimes))
    console.print(table)
    console.print(f"isolation between runs: {tested.isolation}")
    for each in tested.runtimes:
        if each.reason is not None:
            console.print(f"[yellow]{each.runtime} was not tested:[/] {escape(each.reason)}")
        for result in each.results:
            if result.problem is not None:
                console.print(f"[red]{each.runtime}, {result.check}:[/] {escape(result.problem)}")


def _cell(result: CheckResult | None) -> str:
    if result is None:
        return "[yellow]not tested[/]"
    return "[red]FAILED[/]" if result.problem else "[green]ok[/]"
