"""The document that `make test-vm` writes."""

from __future__ import annotations

from typing import Any

import pytest

from vm.report import SCENARIOS, markdown, problems, read


def told(scenario: str, **changes: Any) -> dict[str, Any]:
    line = {"part": "python", "check": "peak", "expected": "100", "observed": "101", "ok": True}
    return {"scenario": scenario, **line, **changes}


ALL = [told(scenario) for scenario in SCENARIOS]


def test_a_report_of_everything_says_so():
    assert problems(ALL) == []
    assert "all 5 checks passed" in markdown(ALL, "2026-11-23")


def test_a_check_that_failed_is_named_on_top_and_in_its_row():
    checks = [*ALL, told("refusals", check="unmount", observed="permitted", ok=False)]
    assert problems(checks) == ["refusals: python: unmount"]
    text = markdown(checks)
    assert "**Result: refusals: python: unmount.**" in text
    assert "| python | unmount | 100 | **no:** permitted |" in text


def test_a_part_that_told_nothing_is_missed():
    assert problems(ALL[1:]) == ["no result: versions"]


@pytest.mark.parametrize("line", ["2026-11-30 [debug] run begins", '{"event": "run begins"}', "[]"])
def test_a_line_that_is_not_a_check_is_quoted(line: str):
    with pytest.raises(ValueError, match="line 2 is not") as refused:
        read(['{"scenario": "versions", "part": "p", "check": "c", "ok": true}', line])
    assert line in str(refused.value)


def test_what_was_observed_cannot_break_the_table():
    assert "| a\\|b c |" in markdown([told("refusals", observed="a|b\nc")])
