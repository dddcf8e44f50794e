"""Each statement of docs/security.md names the code that makes it true, and the test that attacks it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from nanoagent import config

ROOT: Final = Path(__file__).parents[3]
PAGE: Final = (ROOT / "docs/security.md").read_text(encoding="utf-8")
SPAN: Final = re.compile(r"`([^`\n]+)`")
CODE: Final = ("src/nanoagent", "src/nanosupervisor", "docker", "deploy", "scripts")
UNITS: Final = ("nanogrid-worker.service",)


def _rows(heading: str) -> list[list[str]]:
    """The cells of the tables below a heading of the second level, without their heads."""
    section = re.split(r"^## ", PAGE.split(f"\n## {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return [row for row in rows if row[0] not in {"statement", "attacker"} and not row[0].startswith("---")]


STATEMENTS: Final = _rows("Statements")


@cache
def _code() -> str:
    """Everything that a setting can be made in."""
    paths = [path for folder in CODE for path in (ROOT / folder).rglob("*")]
    files = [path for path in paths if path.is_file() and path.suffix != ".pyc"]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    return "\n".join([*map(str, files), *texts, *((ROOT / name).read_text() for name in UNITS)])


def _is_in_the_code(name: str) -> bool:
    """Whether a span names a setting, a file, or something that stands in the code as it is."""
    return (
        name.lower() in config.Settings.model_fields
        or (ROOT / name).exists()
        or name.removesuffix("()").split(" ")[0] in _code()
    )


def _is_a_test(name: str) -> bool:
    path, _, function = name.partition("::")
    if not path.startswith("tests/") or not (ROOT / path).is_file():
        return False
    text = (ROOT / path).read_text(encoding="utf-8")
    return not function or re.search(rf"^(?:async )?def {function}\(", text, re.MULTILINE) is not None


def test_the_page_has_many_statements_with_three_cells():
    assert len(STATEMENTS) > 40
    assert {len(row) for row in STATEMENTS} == {3}


@pytest.mark.parametrize("row", STATEMENTS, ids=lambda row: row[0][:60])
def test_every_statement_names_code_and_an_existing_test(row: list[str]):
    _, setting, tests = row
    named = SPAN.findall(setting) + re.findall(r"\]\((adr/[^)]+)\)", setting)
    assert named, "nothing in the code is named"
    unknown = [name for name in named if not _is_in_the_code(name) and not (ROOT / "docs" / name).exists()]
    assert unknown == []
    attacks = SPAN.findall(tests)
    assert attacks, "no test is named"
    assert [name for name in attacks if not _is_a_test(name)] == []


def test_a_missing_setting_or_test_is_noticed():
    assert not _is_in_the_code("NO_SUCH_SETTING")
    assert not _is_in_the_code("no/such/file.py")
    assert not _is_a_test("tests/unit/container/test_spec.py::test_no_such_test")
    assert not _is_a_test("tests/unit/no_such_file.py")


def test_every_attacker_is_linked_to_statements_or_limits():
    """The last cell of each row of the threat model links to where its answer is."""
    headings = re.findall(r"^#{2,3} (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    rows = _rows("Attackers and targets")
    assert len(rows) > 8
    for row in rows:
        linked = re.findall(r"\]\(#([^)]+)\)", row[-1])
        assert linked, row[0]
        assert set(linked) <= anchors, row[0]
