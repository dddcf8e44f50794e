"""The part of a matrix that `make test` runs still has each attack, language and level in all pairs."""

from __future__ import annotations

from itertools import product

from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import Runtime
from support.checks.matrix import level_in_two_languages, level_of
from support.sandboxes.adversarial import LEVELS


def test_each_attack_is_tried_in_each_language_and_at_each_level():
    for attack in range(8):
        assert {level_of(attack, runtime, LEVELS) for runtime in Runtime} == set(LEVELS)


def test_four_attacks_have_each_pair_of_a_language_and_a_level():
    for first in range(8):
        tried = {(runtime, level_of(first + n, runtime, LEVELS)) for n in range(4) for runtime in Runtime}
        assert tried == set(product(Runtime, LEVELS))


def test_two_languages_try_an_attack_one_of_them_compiled():
    compiled = {runtime for runtime in Runtime if RECIPES[runtime].build}
    for attack in range(12):
        tried = {runtime for runtime in Runtime if level_in_two_languages(attack, runtime, LEVELS)}
        assert (len(tried), len(tried & compiled)) == (2, 1)


def test_six_attacks_in_two_languages_have_each_pair_of_a_language_and_a_level():
    for first in range(12):
        tried = {
            (runtime, level)
            for n in range(6)
            for runtime in Runtime
            if (level := level_in_two_languages(first + n, runtime, LEVELS))
        }
        assert len(tried) == len(Runtime) * len(LEVELS)
