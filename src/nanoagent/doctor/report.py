"""Prints findings as a table, as lines or as a document, without secrets and control characters."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanoagent.doctor.finding import Area, Finding, Severity
from nanoagent.model.errors import one_line
from nanoagent.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_SECRET_NAME: Final = re.compile(r"passw|secret|token|credential|access_?key|api_?key", re.IGNORECASE)
_USER_INFO: Final = re.compile(r"\w://([^\s\"']+)@")  # a password may contain a slash
_MAX_CHARACTERS: Final = 600
_STYLES: Final = {
    Severity.OK: "green",
    Severity.NOTE: "cyan",
    Severity.UNKNOWN: "magenta",
    Severity.WARNING: "yellow",
    Severity.PROBLEM: "bold red",
}


def secrets_in(environment: Mapping[str, str]) -> set[str]:
    """Return the secret values of an environment: values of secret variables, and the user part of URLs."""
    secrets = {value for name, value in environment.items() if _SECRET_NAME.search(name)}
    for value in environment.values():
        for user_info in _USER_INFO.findall(value):
            secrets |= {user_info, user_info.partition(":")[2]}
    return secrets


def printable_line(text: str) -> str:
    """Return the text as one printable line of bounded length, without the secrets given to `logs.hide`."""
    line = one_line(logs.without_secrets(text).strip())
    return line if len(line) <= _MAX_CHARACTERS else f"{line[:_MAX_CHARACTERS]} …"


def printable(finding: Finding) -> Finding:
    """Return the finding with printable texts that have no secrets."""
    remedy = None if finding.remedy is None else printable_line(finding.remedy)
    return replace(finding, found=printable_line(finding.found), remedy=remedy)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by area, and remove duplicates. Within an area, the order is kept."""
    areas = list(Area)
    return sorted(dict.fromkeys(findings), key=lambda finding: areas.index(finding.area))


def has_problem(findings: Iterable[Finding]) -> bool:
    """Whether a finding is a problem."""
    return any(finding.severity is Severity.PROBLEM for finding in findings)


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return `{"ok": ..., "counts": {severity: ...}, "findings": [{"area": ..., "verdict": ..., ...}]}`."""
    counts = Counter(finding.severity for finding in findings)
    return {
        "ok": not has_problem(findings),
        "counts": {severity: counts[severity] for severity in Severity},
        "findings": [
            {
                "area": finding.area,
                "verdict": finding.severity,
                "found": finding.found,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }


def show(findings: Sequence[Finding]) -> None:
    """Print a table on a terminal; elsewhere one line for each finding, and one for its remedy."""
    console = Console(soft_wrap=False)
    if console.is_terminal:
        table = Table("area", "severity", "finding and remedy", box=None, pad_edge=False)
        for finding in findings:
            text = Text(finding.found)
            if finding.remedy:
                text.append(f"\n→ {finding.remedy}", style="dim")
            table.add_row(finding.area, Text(finding.severity, style=_STYLES[finding.severity]), text)
        console.print(table)
    else:
        for finding in findings:
            print(f"{finding.severity}: {finding.area}: {finding.found}")  # noqa: T201 - a command's report
            if finding.remedy:
                print(f"    remedy: {finding.remedy}")  # noqa: T201 - a command's report
    console.print(Text(summary(findings)))


def summary(findings: Sequence[Finding]) -> str:
    """Return the number of findings of each severity, the worst first."""
    counts = Counter(finding.severity for finding in findings)
    plural = {Severity.PROBLEM: "problems", Severity.WARNING: "warnings", Severity.NOTE: "notes"}
    parts = [
        f"{counts[severity]} {severity if counts[severity] == 1 else plural.get(severity, severity)}"
        for severity in reversed(Severity)
        if counts[severity] or severity is Severity.PROBLEM
    ]
    return ", ".join(parts)
