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

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_HIDDEN: Final = "***"
_SECRET_NAME: Final = re.compile(r"passw|secret|token|credential|access_?key|api_?key", re.IGNORECASE)
_IN_URL: Final = re.compile(r"(\w://)[^\s/\"']*@")
_USER_INFO: Final = re.compile(r"\w://([^\s\"']+)@")  # with slashes, as nobody should write it
_SIGNED: Final = re.compile(r"((?:X-Amz-(?:Signature|Credential|Security-Token)|Signature)=)[^&\s\"']+")
# Control characters, and what makes text look like another (Trojan Source, CVE-2021-42574).
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]+")
_LONGEST: Final = 600
_SHORTEST_SECRET: Final = 4  # anything shorter would blot out half of the words
_STYLES: Final = {
    Verdict.OK: "green",
    Verdict.NOTE: "cyan",
    Verdict.UNKNOWN: "magenta",
    Verdict.WARNING: "yellow",
    Verdict.PROBLEM: "bold red",
}


class Redactor:
    """Takes out what must not be shown.

    Args:
        environment: Whose variables may hold secrets: those that are called so, and what stands in URLs.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        secrets = {value for name, value in environment.items() if _SECRET_NAME.search(name)}
        for value in environment.values():
            for user_info in _USER_INFO.findall(value):
                secrets |= {user_info, user_info.partition(":")[2]}
        # The longest first: one may be a part of another.
        self._secrets = sorted(
            (each for each in secrets if len(each) >= _SHORTEST_SECRET), key=len, reverse=True
        )

    def text(self, text: str) -> str:
        """One printable line, of bounded length, without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        text = _SIGNED.sub(rf"\1{_HIDDEN}", _IN_URL.sub(rf"\1{_HIDDEN}@", text))
        text = _UNPRINTABLE.sub(" ", text).strip()
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"

    def finding(self, finding: Finding) -> Finding:
        """The finding, fit to be shown."""
        remedy = None if finding.remedy is None else self.text(finding.remedy)
        return replace(finding, found=self.text(finding.found), remedy=remedy)


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
