from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import Runtime
from support.checks.matrix import EXHAUSTIVE, level_in_two_languages, level_of
from support.sandboxes.adversarial import Shelf, built

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.model.result import Isolation


HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest deselects tests by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that only `make test-all` runs, and put the many quick tests first.

    pytest-xdist distributes large shares at the start, and small ones at the end.
    """
    ours = [item for item in items if item.path.parent == HERE]
    for item in ours:
        if isinstance(item, pytest.Function) and is_exhaustive(item):
            item.add_marker(EXHAUSTIVE)
    in_turn = iter(sorted(ours, key=lambda item: item.path.name != "test_traces.py"))
    items[:] = [next(in_turn) if item.path.parent == HERE else item for item in items]


def is_exhaustive(item: pytest.Function) -> bool:
    """Whether a test tries an attack in a language at another level than that of `make test`."""
    rotating = item.get_closest_marker("rotating_levels")
    if rotating is None:
        return False
    place: Any = item.callspec.params["where"]
    runtime, level = place
    number = item.callspec.indices[rotating.args[0]] if rotating.args else 0
    choose = level_in_two_languages if rotating.kwargs.get("two_languages") else level_of
    return level is not choose(number, runtime, item.module.TRIED_AT)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Shelf:
    """One for all processes that run tests."""
    own = tmp_path_factory.getbasetemp()
    return Shelf(own if worker_id == "master" else own.parent)


@pytest.fixture(scope="session")
def program_of(shelf: Shelf) -> Callable[[Runtime], bytes | None]:
    """The built adversary of a language, None where nothing is built. Must be called outside of a loop."""

    def get(runtime: Runtime) -> bytes | None:
        if RECIPES[runtime].build is None:
            return None
        return shelf.get(f"adversary-{runtime}", lambda: asyncio.run(built(runtime)))

    return get


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that ask for `where` are done in every language, at the levels that their module tries."""
    if "where" in metafunc.fixturenames:
        places = [(runtime, level) for runtime in Runtime for level in metafunc.module.TRIED_AT]
        metafunc.parametrize("where", places, ids="-".join, indirect=True, scope="module")


@pytest.fixture(scope="module")
def where(
    request: pytest.FixtureRequest, program_of: Callable[[Runtime], bytes | None]
) -> tuple[Runtime, Isolation, bytes | None]:
    """A language, a level, and the language's built adversary."""
    runtime, level = request.param
    return runtime, level, program_of(runtime)
