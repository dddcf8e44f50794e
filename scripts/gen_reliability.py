#!/usr/bin/env python3
"""Write the table of docs/reliability.md from the rows that test scenarios have recorded.

    python scripts/gen_reliability.py ROWS

ROWS is the file of `RELIABILITY_ROWS` during the tests; `make soak` runs both. Rows of the same scenario are
merged: counts are added, and the longest recovery time is kept.
"""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).resolve().parents[1] / "docs/reliability.md"
BEGIN: Final = "<!-- rows:begin -->"
END: Final = "<!-- rows:end -->"
HEAD: Final = (
    "| fault | at | sent | seen | differing | lost | run again | recovery (s) |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
)


@dataclass(slots=True)
class Scenario:
    """The merged rows of one fault at one moment."""

    sent: int = 0
    seen: int = 0
    duplicates: int = 0
    lost: int = 0
    repeated: int | None = None
    recovery_s: float | None = None
    why: str = ""

    def add(self, row: dict[str, Any]) -> None:
        """Merge a row into the scenario."""
        for name in ("sent", "seen", "duplicates", "lost"):
            setattr(self, name, getattr(self, name) + row[name])
        if row["repeated"] is not None:
            self.repeated = (self.repeated or 0) + row["repeated"]
        if row["recovery_s"] is not None:
            self.recovery_s = max(self.recovery_s or 0.0, row["recovery_s"])
        self.why = row["why"] or self.why

    def cells(self) -> list[str]:
        """Return the cells of its row, from `sent` on."""
        repeated = "" if self.repeated is None else str(self.repeated)
        if self.why:
            repeated += " \\*"
        recovery = "" if self.recovery_s is None else f"{self.recovery_s:.1f}"
        numbers = (self.sent, self.seen, self.duplicates, self.lost)
        return [*(f"{number:,}" for number in numbers), repeated, recovery]


def table_of(rows: list[dict[str, Any]]) -> str:
    """Return the table. Scenarios of one fault are adjacent, in the order in which they were recorded."""
    scenarios: dict[str, dict[str, Scenario]] = {}
    for row in rows:
        scenarios.setdefault(row["fault"], {}).setdefault(row["when"], Scenario()).add(row)
    lines = [
        f"| {' | '.join((_cell(fault), _cell(when), *scenario.cells()))} |"
        for fault, moments in scenarios.items()
        for when, scenario in moments.items()
    ]
    return "\n".join([HEAD, *lines])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def regenerated(page: str, rows: list[dict[str, Any]], today: str) -> str:
    """Return the page with the table of these rows.

    Raises:
        ValueError: The page does not have its markers exactly once.
    """
    recorded = f"Recorded on {today} by {len(rows)} scenarios."
    between = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    text, count = between.subn(lambda _: f"{recorded}\n\n{table_of(rows)}\n", page)
    if count != 1:
        raise ValueError(f"{BEGIN} … {END} occurs {count} times; it should occur once")
    return text


def main(arguments: list[str]) -> int:
    """Rewrite the page; return the exit code."""
    if len(arguments) != 1:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    rows = [json.loads(line) for line in Path(arguments[0]).read_text(encoding="utf-8").splitlines()]
    page = regenerated(PAGE.read_text(encoding="utf-8"), rows, time.strftime("%Y-%m-%d"))
    PAGE.write_text(page, encoding="utf-8")
    sys.stdout.write(f"docs/reliability.md: {len(rows)} rows\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
