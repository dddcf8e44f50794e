"""`CONTAINER_SHARING=worker` and `tenant`: several functions in one container, a sandbox for each run."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.common.units import MIB
from nanoagent.container.policy import Sharing
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType, Isolation, Start
from support.checks.matrix import EXHAUSTIVE
from support.sandboxes.adversarial import ALICE, BOB, LEFT, LOOK, yard
from support.sandboxes.containers import RUN_STDIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.sandboxes.adversarial import Function, Yard

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def containers() -> AsyncIterator[Yard]:
    """None is made ahead: the second function takes the first one's."""
    async with yard(Isolation.SANDBOX, sharing=Sharing.WORKER) as made:
        yield made


def snippets(
    containers: Yard, files: dict[str, str] | None = None, modules: tuple[str, ...] = ()
) -> Function:
    return containers.function(Runtime.PYTHON, RUN_STDIN[Runtime.PYTHON] | (files or {}), modules=modules)


# --- in all languages


@pytest.fixture(params=Runtime, ids=str)
def language(
    request: pytest.FixtureRequest, program_of: Callable[[Runtime], bytes | None]
) -> tuple[Runtime, bytes | None]:
    return request.param, program_of(request.param)


@pytest.mark.parametrize("sharing", [Sharing.WORKER, Sharing.TENANT])
async def test_a_function_sees_nothing_of_the_other_functions(language, sharing):
    """What B sees after A in A's container is what it sees in one that has served nobody."""
    runtime, program = language
    seen = []
    for has_predecessor in (False, True):
        async with yard(Isolation.SANDBOX, (runtime,), sharing=sharing) as alone:
            before = alone.adversary(runtime, program, owner=ALICE)
            after = alone.function(
                runtime,
                {RECIPES[runtime].entry: (before.tree / RECIPES[runtime].entry).read_text()},
                owner=ALICE,
            )
            if has_predecessor:
                (before.tree / "of_a").write_text("A's")
                left, ran = await alone.ask(before, leave=LEFT)
                assert set(left.values()) == {"done"}
                place = ran.container_id
            answer, ran = await alone.ask(replace(after, program=before.program), look=LOOK)
            assert not has_predecessor or (ran.container_id, ran.acquired.start) == (place, Start.WARM)
            seen.append(answer)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("runtime", [Runtime.CPP, Runtime.GO])
async def test_a_function_runs_its_own_program(containers, program_of_both, runtime):
    """A's program is another file than B's, in the same place."""
    adversary = containers.adversary(runtime, program_of_both[runtime])
    other = replace(
        containers.adversary(runtime, program_of_both[runtime]), program=other_program(containers)
    )
    asked, first = await containers.ask(adversary, look=["link /proc/self"])
    second = await containers.run(other, "")
    assert (asked, second.stdout) == ({"link /proc/self": "2"}, "I am B\n")
    assert first.container_id == second.container_id
    again, third = await containers.ask(adversary, look=["link /proc/self"])
    assert (again, third.container_id) == (asked, first.container_id)


@pytest.fixture(scope="module")
def program_of_both(program_of: Callable[[Runtime], bytes | None]) -> dict[Runtime, bytes | None]:
    return {runtime: program_of(runtime) for runtime in (Runtime.CPP, Runtime.GO)}


def other_program(containers: Yard) -> object:
    program = containers.function(Runtime.CPP, {"program": "#!/bin/sh\necho I am B\n"}).tree / "program"
    program.chmod(0o755)
    return program


async def test_owners_never_meet(language):
    """Neither the container of another owner is used, nor that of a function without an owner."""
    runtime, program = language
    async with yard(Isolation.SANDBOX, (runtime,), sharing=Sharing.TENANT) as place:
        of_alice = place.adversary(runtime, program, owner=ALICE)
        functions = [of_alice, replace(of_alice, owner=BOB), replace(of_alice, owner=None)]
        for function in (*functions, *reversed(functions)):
            await place.ask(function, leave=LEFT)
        found = [(await place.ask(function, look=LOOK))[1].container_id for function in functions]
        assert len(set(found)) == len(functions)
        another = place.adversary(runtime, program, owner=BOB)
        assert (await place.ask(another, look=LOOK))[1].container_id == found[1]


# --- modules that wait in A's interpreter, and are not B's

OWN = "print('own', end=' ')\nname = 'own'\n"
PLACES_OF_OWN = {
    "a module": {"{}.py": OWN},
    "a package": {"{}/__init__.py": OWN, "{}/part.py": ""},
}


MODULES = ("numpy", "pandas", "json", "logging", "ai_client", "random")


@pytest.mark.parametrize(
    ("form", "module"),
    [
        # `make test` has each module in one form.
        pytest.param(form, module, id=f"{form}-{module}", marks=() if (number + row) % 2 else EXHAUSTIVE)
        for row, form in enumerate(PLACES_OF_OWN)
        for number, module in enumerate(MODULES)
    ],
)
async def test_a_function_gets_its_own_module_although_another_was_preloaded(containers, module, form):
    before = snippets(containers, modules=("numpy", "pandas"))
    files = {name.format(module): text for name, text in PLACES_OF_OWN[form].items()}
    after = snippets(containers, files, modules=("numpy", "pandas"))
    of_a = await containers.run(before, f"import {module}; print({module}.__file__.startswith('/usr'))")
    of_b = await containers.run(after, f"import {module}; print({module}.name, {module}.__file__)")
    file = f"{module}/__init__.py" if form == "a package" else f"{module}.py"
    assert of_a.stdout == "True\n", of_a.stderr
    assert of_b.stdout == f"own own /work/{file}\n", of_b.stderr
    assert of_a.container_id == of_b.container_id


async def test_modules_of_the_function_before_are_not_loaded(containers):
    loaded = (
        "maps = open('/proc/self/maps').read(); print([name for name in ('numpy', 'pandas') if name in maps])"
    )
    before, after = snippets(containers, modules=("numpy", "pandas")), snippets(containers)
    of_a = await containers.run(before, "import pandas; print(pandas.DataFrame([1]).size)")
    of_b = await containers.run(after, loaded)
    assert (of_a.stdout, of_b.stdout) == ("1\n", "[]\n")
    assert of_a.container_id == of_b.container_id


async def test_a_module_that_the_function_before_brought_along_is_not_there(containers):
    before = snippets(containers, {"brought.py": "print('brought')"}, modules=("brought",))
    of_a = await containers.run(before, "import brought")
    of_b = await containers.run(snippets(containers), "import brought")
    assert of_a.stdout == "brought\n"
    assert "ModuleNotFoundError: No module named 'brought'" in of_b.stderr


@pytest.mark.parametrize("form", PLACES_OF_OWN)
async def test_what_one_process_has_found_in_the_code_is_used_for_this_code_only(containers, form):
    """The first process that sees the code looks for names of the zygote's modules. The others are told."""
    files = {name.format("json"): "" for name in PLACES_OF_OWN[form]}
    plain, own = snippets(containers), snippets(containers, files)
    leave = "import json; print(json.__file__[:5]); open('json.py', 'w').close()"
    seen, places = [], set()
    for function in (plain, own, plain, own):
        for _ in range(3):
            ran = await containers.run(function, leave)
            seen.append(ran.stdout)
            places.add(ran.container_id)
    assert seen == [*["/usr/\n"] * 3, *["/work\n"] * 3] * 2
    assert len(places) == 1


# --- limits


async def test_the_memory_limit_is_the_functions_own(containers):
    use = f"x = bytearray({150 * MIB}); print('held')"
    large, small = snippets(containers), snippets(containers)
    of_large = await containers.run(large, use, memory_mb=256)
    of_small = await containers.run(small, use, memory_mb=128)
    assert (of_large.stdout, of_small.execution.error_type) == ("held\n", ErrorType.OUT_OF_MEMORY)
    assert of_large.container_id == of_small.container_id


async def test_two_functions_at_once_are_in_two_containers(containers):
    async with AsyncExitStack() as held:
        acquired = [
            await held.enter_async_context(containers.acquire(snippets(containers))) for _ in range(2)
        ]
        assert acquired[0].container.id != acquired[1].container.id
        for one in acquired:
            one.clean = False


async def test_what_is_said_of_one_function_reaches_no_other(containers):
    """Its input is in processes that go with it, and in the supervisor, which cannot be looked into."""
    secret = json.dumps({"key": "correct horse"})
    await containers.run(snippets(containers, {"main.py": "import sys; sys.stdin.read()"}), secret)
    found = await containers.run(
        snippets(containers),
        "import os, pathlib\n"
        "for pid in ('1', 'self'):\n"
        "  for name in ('environ', 'cmdline', 'maps'):\n"
        "    try: text = pathlib.Path(f'/proc/{pid}/{name}').read_bytes()\n"
        "    except OSError: continue\n"
        "    if b'correct ' + b'horse' in text: print(pid, name)\n"
        "try: open('/proc/1/mem', 'rb')\n"
        "except OSError: print('closed')",
    )
    assert found.stdout == "closed\n"
