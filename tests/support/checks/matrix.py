"""The part of a matrix of attacks, languages and isolation levels that `make test` runs.

`make test-all` runs the whole matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from _pytest.mark.structures import ParameterSet

    from nanoagent.model.job import Runtime
    from nanoagent.model.result import Isolation

EXHAUSTIVE = pytest.mark.exhaustive


def only_in_test_all(names: Iterable[str], kept: Collection[str]) -> list[str | ParameterSet]:
    """Return the values of a parameter. Only `make test-all` runs the values that are not kept.

    Raises:
        ValueError: A kept value does not exist.
    """
    names = list(names)
    if unknown := set(kept) - set(names):
        raise ValueError(f"unknown values: {', '.join(sorted(unknown))}")
    return [name if name in kept else pytest.param(name, marks=EXHAUSTIVE) for name in names]


def level_of(attack: int, runtime: Runtime, levels: Sequence[Isolation]) -> Isolation:
    """Return the isolation level at which `make test` tries an attack in a language.

    Each attack is tried once in each language. The level rotates, so that each attack is tried at each level,
    and four attacks in a row have each pair of a language and a level.

    Args:
        attack: The number of the attack in its table.
        runtime: The language.
        levels: At most as many levels as there are languages.
    """
    languages = list(type(runtime))
    return levels[(attack + languages.index(runtime)) % len(languages) % len(levels)]


def level_in_two_languages(attack: int, runtime: Runtime, levels: Sequence[Isolation]) -> Isolation | None:
    """Return the isolation level at which `make test` tries an attack in a language, None if it does not.

    This is for attacks that a process makes by system calls alone, so that the languages differ only in the
    start of the process. Each attack is tried in an interpreted and in a compiled language, at two levels.
    Six attacks in a row have each pair of a language and a level, if there are three levels.

    Args:
        attack: The number of the attack in its table.
        runtime: The language.
        levels: The levels.
    """
    number = list(type(runtime)).index(runtime)
    pair, member = number % 2, number // 2
    return levels[(attack // 2 + member) % len(levels)] if attack % 2 == pair else None
