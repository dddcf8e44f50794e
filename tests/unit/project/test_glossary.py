"""docs/glossary.md: its terms are used, and the words that they replace are not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/glossary.md").read_text()
FILES = [*(ROOT / "src/nanoagent").rglob("*.py"), *(ROOT / "src/nanosupervisor").iterdir()]
SOURCES = "\n".join(path.read_text() for path in sorted(FILES) if path.is_file())
WORDS = re.sub(r"[_\W]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", SOURCES)).lower()

TERMS = [
    line.split(" | ")[0].removeprefix("| ")
    for line in PAGE.split("## Retired words")[0].splitlines()
    if line.startswith("| ") and not line.startswith(("| term", "| ---"))
]
RETIRED = re.findall(r"`([^`]+)`", PAGE.split("## Retired words")[1])


def test_the_page_has_terms_and_retired_words():
    assert len(TERMS) > 30
    assert len(RETIRED) > 10


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_used_in_the_code(term: str):
    assert re.search(rf"\b{term.replace('-', ' ').lower()}", WORDS)


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_is_not_used(word: str):
    retired = re.compile(rf"\b{word}\b")
    if retired.search(SOURCES):  # quick, unlike the search in each line
        assert [line.strip() for line in SOURCES.splitlines() if retired.search(line)] == []
