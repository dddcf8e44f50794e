"""The catalogue of other people's libraries; `make libraries` runs them."""

from __future__ import annotations

from collections import Counter

from benchmarks.libraries.__main__ import Row, as_markdown, from_markdown, replaced
from benchmarks.libraries.catalogue import libraries

from nanoagent.model.job import Runtime


def test_every_library_has_a_program_that_says_that_it_worked():
    for library in libraries():
        assert "ok" in library.program, library.name


def test_a_library_is_listed_once_for_its_language():
    counts = Counter((library.runtime, library.name) for library in libraries())
    assert max(counts.values()) == 1


def test_every_language_is_tried():
    assert {library.runtime for library in libraries()} == set(Runtime)


def test_the_report_counts_what_works_and_says_what_does_not():
    rows = [Row("a", "python", 1.5, 20.0, 3.0), Row("b", "go", 0.1, problem="BUILD_FAILED: a|b\nc")]
    report = as_markdown(rows)
    assert "1 of 2 work" in report
    assert "Libraries that also fail with the language's own tools: 0." in report
    assert "| python | a | 1.5 | 20.0 | 3.0 |  |" in report
    assert "| go | b | 0.1 | - | - | BUILD_FAILED: a\\|b c |" in report


def test_some_rows_of_a_report_can_be_replaced():
    known, lib = (
        next(each for each in libraries() if bool(each.known_problem) is is_known)
        for is_known in (True, False)
    )
    rows = [Row(lib.name, lib.runtime, 1.5, 20.0, 3.0), Row(known.name, known.runtime, problem="a|b")]
    before = from_markdown(as_markdown(rows))
    assert before == rows
    after = replaced(before, [Row(lib.name, lib.runtime, 2.0, 10.0, 1.0)])
    assert after == [
        Row(lib.name, lib.runtime, 2.0, 10.0, 1.0),
        Row(known.name, known.runtime, problem="a|b", is_known=True),
    ]
