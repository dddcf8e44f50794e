"""Turns what check.py has told (JSON lines on standard input) into docs/vm-results.md (standard output).

Exits with 1 when a check has failed, when a part is missing, or when a line is not a check.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

INTRODUCTION: Final = """\
# Isolation on a common host: the latest results of `make test-vm`

`make test-vm` wrote this page from its observations{when}. The host is an emulated machine
with the defaults of its distribution: systemd, control groups v2, AppArmor, the distribution's
Docker. Jobs use the worker's executor: code cache, build, warm pool, container, supervisor, the
kernel's counters. No time is measured.
"""
SCENARIOS: Final = {
    "versions": "Versions",
    "with the profile": "With the AppArmor profile loaded",
    "without the profile": "Without the profile",
    "profile for AppArmor 3": "With the profile for AppArmor 3",
    "refusals": "Operations that the profile refuses",
}


def read(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The checks, in the order in which they were told.

    Raises:
        ValueError: A line is not a check; the message quotes it.
    """
    checks = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            check = json.loads(line)
        except ValueError as exc:
            raise ValueError(f"line {number} is not JSON: {line.strip()[:200]}") from exc
        if not isinstance(check, dict) or not check.keys() >= {"scenario", "part", "check", "ok"}:
            raise ValueError(f"line {number} is not a check: {line.strip()[:200]}")
        checks.append(check)
    return checks


def problems(checks: list[dict[str, Any]]) -> list[str]:
    """What failed and what is missing altogether."""
    missing = SCENARIOS.keys() - {check["scenario"] for check in checks}
    failed = [
        f"{check['scenario']}: {check['part']}: {check['check']}" for check in checks if not check["ok"]
    ]
    return [f"no result: {scenario}" for scenario in sorted(missing)] + failed


def markdown(checks: list[dict[str, Any]], when: str = "") -> str:
    """The document."""
    found = problems(checks)
    verdict = "; ".join(found) if found else f"all {len(checks)} checks passed"
    parts = [INTRODUCTION.format(when=f" on {when}" if when else ""), f"**Result: {verdict}.**\n"]
    for scenario, group in groupby(checks, key=lambda check: check["scenario"]):
        show = _versions if scenario == "versions" else _table
        parts += [f"## {SCENARIOS[scenario]}\n", show(group)]
    return "\n".join(parts)


def _versions(checks: Iterable[dict[str, Any]]) -> str:
    rows = [f"| {check['check']} | {_cell(check['observed'])} |" for check in checks]
    return "\n".join(["| | |", "| --- | --- |", *rows, ""])


def _table(checks: Iterable[dict[str, Any]]) -> str:
    rows = [
        f"| {check['part']} | {_cell(check['check'])} | {_cell(check['expected'])} "
        f"| {'' if check['ok'] else '**no:** '}{_cell(check['observed'])} |"
        for check in checks
    ]
    return "\n".join(["| | check | expected | observed |", "| --- | --- | --- | --- |", *rows, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    """Read, write, judge."""
    try:
        checks = read(sys.stdin)
    except ValueError as exc:
        print(exc, file=sys.stderr)
        return 1
    print(markdown(checks, *sys.argv[1:]), end="")
    for problem in problems(checks):
        print(problem, file=sys.stderr)
    return 1 if problems(checks) else 0


if __name__ == "__main__":
    raise SystemExit(main())
