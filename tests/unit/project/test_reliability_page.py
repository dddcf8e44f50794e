from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def generator() -> Any:
    spec = importlib.util.spec_from_file_location("gen_reliability", ROOT / "scripts/gen_reliability.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up by name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "gen_reliability", module)
        spec.loader.exec_module(module)
    return module


def row(fault: str, when: str, **changes: Any) -> dict[str, Any]:
    seen: dict[str, Any] = {
        "sent": 1,
        "seen": 1,
        "duplicates": 0,
        "lost": 0,
        "repeated": 0,
        "recovery_s": 1.0,
    }
    return {"fault": fault, "when": when, "why": "", **seen, **changes}


def test_rows_of_one_scenario_are_one_and_scenarios_of_one_fault_stand_together(generator):
    rows = [
        row("killed", "early"),
        row("cut", "late", repeated=None, recovery_s=None),
        row("killed", "late", repeated=1, why="it was killed"),
        row("killed", "early", sent=1500, seen=1499, lost=1, recovery_s=7.5),
    ]
    assert generator.table_of(rows).splitlines()[2:] == [
        "| killed | early | 1,501 | 1,500 | 0 | 1 | 0 | 7.5 |",
        "| killed | late | 1 | 1 | 0 | 0 | 1 \\* | 1.0 |",
        "| cut | late | 1 | 1 | 0 | 0 |  |  |",
    ]


def test_the_page_has_the_markers_once_and_what_stood_between_them_goes(generator):
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    once = generator.regenerated(page, [row("killed", "early")], "2026-01-01")
    assert "| killed | early |" in once
    assert generator.regenerated(once, [row("cut", "late")], "2026-01-01").count("| late |") == 1
    assert "| early |" not in generator.regenerated(once, [row("cut", "late")], "2026-01-01")


def test_a_page_without_its_markers_is_refused(generator):
    with pytest.raises(ValueError, match="0 times"):
        generator.regenerated("nothing", [], "2026-01-01")
