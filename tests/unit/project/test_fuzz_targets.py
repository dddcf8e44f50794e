"""What `make fuzz` runs for minutes, for a moment: that the targets work, and that what is wrong is found."""

from __future__ import annotations

import random
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import pytest

from fuzz import __main__ as fuzzing
from fuzz.targets import CANARY, TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MUTATED: Final = 400
KINDS: Final = {"archive": "archives", "job": "messages", "protocol": "replies"}


def mutated(seeds: list[bytes], count: int) -> Iterator[bytes]:
    """Seeds with a few bytes changed and a piece replaced by another seed's; the same ones each time."""
    source = random.Random(4)  # noqa: S311 - no secret
    for _ in range(count):
        data = bytearray(source.choice(seeds))
        for _ in range(source.randrange(4)):
            data[source.randrange(len(data))] = source.choice([0, 1, 0x7F, 0xFF, source.randrange(256)])
        other = source.choice(seeds)
        at, begin = source.randrange(len(data)), source.randrange(len(other))
        data[at : at + source.randrange(20)] = other[begin : begin + source.randrange(20)]
        yield bytes(data)


@pytest.mark.parametrize("name", KINDS)
def test_a_fuzz_target_finds_no_fault_in_its_seeds_and_their_mutations(
    name: str, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    target = TARGETS[name]
    seeds = list(target.seeds())
    target.outcomes.clear()
    for data in [*seeds, *mutated(seeds, MUTATED)]:
        target.run(data, tmp_path / "input")
    assert target.outcomes.total() == len(seeds) + MUTATED
    assert len(target.outcomes) >= 2, "all came to the same"
    record_property("tried", [KINDS[name], target.outcomes.total()])


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no wheel for this system or Python")
def test_a_fault_is_found_kept_and_reported(tmp_path: Path) -> None:
    report = fuzzing.fuzz("canary", tmp_path / "state", seconds=60, runs=0)
    (found,) = report.found
    assert found.read_bytes().startswith(b"bu")
    assert not report.is_good
    assert f"again: make fuzz-replay TARGET=canary INPUT={found}" in str(report)
    assert "AssertionError: found it" in str(report)


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no wheel for this system or Python")
def test_fuzzing_is_told_in_numbers(tmp_path: Path) -> None:
    report = fuzzing.fuzz("job", tmp_path / "state", seconds=60, runs=300)
    assert report.is_good
    assert report.inputs >= 300
    assert report.edges > 50
    assert report.outcomes.keys() <= {"Job", "InvalidJob", "UnreadableMessage"}
    assert "what became of them: InvalidJob " in str(report)


def test_every_target_has_modules_that_guide_it_and_is_tried_here() -> None:
    assert TARGETS.keys() == fuzzing.MODULES.keys() == {*KINDS, CANARY}


def test_what_was_found_can_be_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(next(TARGETS["archive"].seeds()))
    assert fuzzing.main(["replay", "archive", str(good)]) == 0
    bad.write_bytes(b"bu\0")
    assert fuzzing.main(["replay", "canary", str(bad), str(good)]) == 1
    assert "AssertionError: found it" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["no-such"], ["replay", "no-such", "x"], ["job", "no-such"]])
def test_a_target_that_there_is_not_is_refused_with_those_that_there_are(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuzzing.main(arguments) == 2
    assert "the targets are archive, job, protocol" in capsys.readouterr().err
