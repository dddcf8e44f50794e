"""docs/contract.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nanoagent import config
from nanoagent.jobs.environment import environment_of
from nanoagent.model import message
from nanoagent.model.job import Runtime
from nanoagent.model.result import Result, Timings, Tuning
from nanoagent.telemetry.metrics import Metrics
from support.doubles.fakes import make_job, make_settings

TEXT = (Path(__file__).parents[3] / "docs/contract.md").read_text()
SPAN = re.compile(r"`([^`]+)`")


def section(number: int) -> str:
    return TEXT.split(f"## {number}. ")[1].split("\n## ")[0]


def rows(number: int, columns: int) -> list[list[str]]:
    """The cells of the section's tables, without their headings."""
    lines = [line for line in section(number).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0].startswith("`") and len(row) >= columns]


def names(number: int, columns: int) -> list[str]:
    return [name for row in rows(number, columns) for name in SPAN.findall(row[0])]


def test_the_fields_of_a_job_are_those_that_the_code_reads():
    assert sorted(names(1, 4)) == sorted(message._NAMES)


@pytest.mark.parametrize(("field", "attribute"), [("memoryMb", "memory_mb"), ("timeoutMs", "timeout_ms")])
def test_the_default_of_a_number_is_the_codes(field: str, attribute: str):
    (row,) = (row for row in rows(1, 4) if row[0] == f"`{field}`")
    settings = make_settings()
    assert row[2] == str(getattr(settings.job_defaults, attribute))


@pytest.mark.parametrize("runtime", Runtime)
def test_the_environment_is_the_one_that_a_program_gets(runtime: Runtime):
    listed = set(names(2, 2))
    has = set(environment_of(make_job(runtime=runtime)))
    assert has <= listed
    assert listed - has <= ({"GOMEMLIMIT"} if runtime is not Runtime.GO else set())


def _wire_names(struct: Any) -> list[str]:
    return list(struct.__struct_encode_fields__)


def test_the_fields_of_a_result_are_those_that_the_code_writes():
    assert sorted(names(3, 3)) == sorted(_wire_names(Result))


@pytest.mark.parametrize(("field", "struct"), [("tuning", Tuning), ("timings", Timings)])
def test_the_parts_of_a_result_are_listed(field: str, struct: Any):
    (row,) = (row for row in rows(3, 3) if row[0] == f"`{field}`")
    assert SPAN.findall(row[2]) == _wire_names(struct)


def test_the_fixed_metrics_have_these_names_types_and_labels():
    metrics = Metrics()
    metrics.jobs.finished("success", "python", "m", 1.0)
    families = {family.name: family for family in metrics.registry.collect()}
    for row in rows(5, 2):
        (name,) = SPAN.findall(row[0])
        family = families[name.removesuffix("_total")]
        assert family.type == row[1]
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(SPAN.findall(row[2]) if len(row) > 2 else ())


def test_the_fixed_settings_have_these_names_and_defaults():
    fields = config.Settings.model_fields
    for row in rows(6, 2):
        for name in SPAN.findall(row[0]):
            field = fields[name.lower()]
            if row[1] == "required":
                assert field.is_required()
            elif expected := SPAN.findall(row[1]):
                assert str(field.default) == expected[0]
