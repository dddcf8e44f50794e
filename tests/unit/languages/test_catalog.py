from __future__ import annotations

import pytest

from nanoagent.languages.recipes import BUILT_PROGRAM, OUTPUT_DIR, PROGRAM_PATH, RECIPES
from nanoagent.model.job import Runtime
from nanoagent.model.result import OUTCOMES, ErrorType


def test_every_runtime_has_its_recipe_and_the_contracts_entry_file():
    assert {str(runtime): recipe.entry for runtime, recipe in RECIPES.items()} == {
        "python": "main.py",
        "nodejs": "index.js",
        "cpp": "main.cpp",
        "go": "main.go",
    }


@pytest.mark.parametrize("runtime", Runtime)
def test_programs_are_named_by_absolute_paths(runtime: Runtime):
    recipe = RECIPES[runtime]
    assert recipe.arguments[0].startswith("/")
    assert recipe.build is None or recipe.build[0].startswith("/")


@pytest.mark.parametrize("runtime", Runtime)
def test_compiled_code_is_built_to_where_it_is_collected_and_run_from_the_slot(runtime: Runtime):
    recipe = RECIPES[runtime]
    if runtime in {Runtime.CPP, Runtime.GO}:
        assert recipe.arguments == (PROGRAM_PATH,)
        assert recipe.build is not None
        assert recipe.build[1:] == (BUILT_PROGRAM,)
        assert BUILT_PROGRAM.startswith(f"{OUTPUT_DIR}/")
    else:
        assert recipe.build is None
        assert recipe.arguments[1:] == (recipe.entry,)


def test_the_hint_for_bad_code_names_every_entry_file():
    hint = OUTCOMES[ErrorType.INVALID_CODE].hint
    assert hint is not None
    assert all(recipe.entry in hint.en and recipe.entry in hint.ko for recipe in RECIPES.values())
