"""The part of a matrix that `make test` runs still has each attack, language and level in all pairs."""

from __future__ import annotations

from itertools import product

from nanoagent.model.job import Runtime
from support.checks.matrix import level_of
from support.sandboxes.adversarial import LEVELS


def test_each_attack_is_tried_in_each_language_and_at_each_level():
    for attack in range(8):
        assert {level_of(attack, runtime, LEVELS) for runtime in Runtime} == set(LEVELS)


def test_four_attacks_have_each_pair_of_a_language_and_a_level():
    for first in range(8):
        tried = {(runtime, level_of(first + n, runtime, LEVELS)) for n in range(4) for runtime in Runtime}
        assert tried == set(product(Runtime, LEVELS))
