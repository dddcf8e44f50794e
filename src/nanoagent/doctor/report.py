"""Findings for people and for machines; no secret, and nothing that a terminal would obey."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanoagent.doctor.finding import Area, Finding, Verdict
from nanoagent.model.errors import one_line
from nanoagent.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_SECRET_NAME: Final = re.compile(r"passw|secret|token|credential|access_?key|api_?key", re.IGNORECASE)
_USER_INFO: Final = re.compile(r"\w://([^\s\"']+)@")  # with slashes, too, as nobody should write it
_LONGEST: Final = 600
_STYLES: Final = {
    Verdict.OK: "green",
    Verdict.NOTE: "cyan",
    Verdict.UNKNOWN: "magenta",
    Verdict.WARNING: "yellow",
    Verdict.PROBLEM: "bold red",
}


def secrets_in(environment: Mapping[str, str]) -> set[str]:
    """What must not be shown of an environment: what is called so, and what stands in URLs before a host."""
    secrets = {value for name, value in environment.items() if _SECRET_NAME.search(name)}
    for value in environment.values():
        for user_info in _USER_INFO.findall(value):
            secrets |= {user_info, user_info.partition(":")[2]}
    return secrets


def fit_to_be_shown(text: str) -> str:
    """One printable line, of bounded length, without what `logs.hide` was told of."""
    line = one_line(logs.without_secrets(text).strip())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


def shown(finding: Finding) -> Finding:
    """The finding as it may be shown."""
    remedy = None if finding.remedy is None else fit_to_be_shown(finding.remedy)
    return replace(finding, found=fit_to_be_shown(finding.found), remedy=remedy)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """By area, within one as they came; each once."""
    areas = list(Area)
    return sorted(dict.fromkeys(findings), key=lambda finding: areas.index(finding.area))


def is_well(findings: Iterable[Finding]) -> bool:
    """Whether there is no problem."""
    return not any(finding.verdict is Verdict.PROBLEM for finding in findings)


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """For JSON: `{"ok": ..., "counts": {verdict: ...}, "findings": [{"area": ..., "verdict": ..., ...}]}`."""
    counts = Counter(finding.verdict for finding in findings)
    return {
        "ok": is_well(findings),
        "counts": {verdict: counts[verdict] for verdict in Verdict},
        "findings": [
            {
                "area": finding.area,
                "verdict": finding.verdict,
                "found": finding.found,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }


def show(findings: Sequence[Finding]) -> None:
    """Print a table on a terminal, else a line for each finding and one for its remedy."""
    console = Console(soft_wrap=False)
    if console.is_terminal:
        table = Table("area", "verdict", "found, and what to do", box=None, pad_edge=False)
        for finding in findings:
            words = Text(finding.found)
            if finding.remedy:
                words.append(f"\n→ {finding.remedy}", style="dim")
            table.add_row(finding.area, Text(finding.verdict, style=_STYLES[finding.verdict]), words)
        console.print(table)
    else:
        for finding in findings:
            print(f"{finding.verdict}: {finding.area}: {finding.found}")  # noqa: T201 - a command's report
            if finding.remedy:
                print(f"    remedy: {finding.remedy}")  # noqa: T201 - likewise
    console.print(Text(summary(findings)))


def summary(findings: Sequence[Finding]) -> str:
    """How many there are of each verdict, the worst first."""
    counts = Counter(finding.verdict for finding in findings)
    plural = {Verdict.PROBLEM: "problems", Verdict.WARNING: "warnings", Verdict.NOTE: "notes"}
    parts = [
        f"{counts[verdict]} {plural.get(verdict, verdict) if counts[verdict] != 1 else verdict}"
        for verdict in reversed(Verdict)
        if counts[verdict] or verdict is Verdict.PROBLEM
    ]
    return ", ".join(parts)
