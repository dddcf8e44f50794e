"""Runs that end badly, in all languages: each ends as the contract says, and the next finds nothing of it."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType, Isolation
from support.sandboxes.adversarial import LEVELS, yard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.sandboxes.adversarial import Function, Yard

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRIED_AT = LEVELS

LOOK = (
    "names /proc",
    "link /proc/self",
    "list /tmp",
    "list /output",
    "list /dev/shm",
    "space /tmp",
    "space /output",
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run is to end.

    Attributes:
        error_type: Which kind; None when well.
        keeps_container: Whether the next run is in the same container: nothing was doubtful.
        timeout_ms: What it gets.
        said: Whether the program comes to its end and says so.
    """

    error_type: ErrorType | None
    keeps_container: bool
    timeout_ms: int = 30_000
    said: bool = False


ENDINGS = {
    "kill everyone": Ending(None, keeps_container=True, said=True),
    "daemon": Ending(None, keeps_container=True, said=True),
    "fork bomb": Ending(ErrorType.PROCESS_LIMIT, keeps_container=False),
    "thread bomb": Ending(ErrorType.PROCESS_LIMIT, keeps_container=False),
    "memory bomb in a child": Ending(ErrorType.OUT_OF_MEMORY, keeps_container=False, said=True),
    "close streams": Ending(None, keeps_container=True),
    "fill the disk": Ending(ErrorType.DISK_LIMIT, keeps_container=False),
    "stop everyone": Ending(ErrorType.TIMEOUT, keeps_container=False, timeout_ms=400),
    "write for ever": Ending(None, keeps_container=True, said=True),
    "zombies": Ending(ErrorType.PROCESS_LIMIT, keeps_container=False, said=True),
    "overflow the stack": Ending(ErrorType.USER_ERROR, keeps_container=True),
    "ignore SIGTERM": Ending(ErrorType.TIMEOUT, keeps_container=False, timeout_ms=400),
}
# Where a language has it end otherwise.
IN_A_LANGUAGE = {
    (Runtime.CPP, "overflow the stack"): Ending(ErrorType.SIGNAL, keeps_container=True),
    # Its stacks grow to a gigabyte.
    (Runtime.GO, "overflow the stack"): Ending(ErrorType.OUT_OF_MEMORY, keeps_container=False),
}
# A thread of Node.js is an interpreter of several megabytes: which limit comes first is a matter of sizes.
ALSO_ALLOWED = {(Runtime.NODEJS, "thread bomb"): ErrorType.OUT_OF_MEMORY}


@dataclass(frozen=True, slots=True)
class Place:
    """An adversary and what it sees in a container that has served nothing else."""

    containers: Yard
    level: Isolation
    adversary: Function
    clean: dict[str, str]

    async def look(self) -> tuple[dict[str, str], str]:
        """What there is to be seen, and in which container."""
        seen, ran = await self.containers.ask(self.adversary, look=LOOK)
        return without_own_number(seen), ran.container_id


def without_own_number(seen: dict[str, str]) -> dict[str, str]:
    own = seen.pop("link /proc/self")
    names = [name for name in seen["names /proc"].split() if name.isdigit() and name != own]
    return seen | {"names /proc": " ".join(names)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(where: tuple[Runtime, Isolation, bytes | None]) -> AsyncIterator[Place]:
    runtime, level, program = where
    async with AsyncExitStack() as held:
        containers = await held.enter_async_context(yard(level, (runtime,)))
        adversary = containers.adversary(runtime, program)
        seen, _ = await containers.ask(adversary, look=LOOK)
        yield Place(containers, level, adversary, without_own_number(seen))


@pytest.mark.rotating_levels("name")
@pytest.mark.parametrize("name", ENDINGS)
async def test_all_processes_of_a_run_end_with_it(
    place: Place, name: str, record_property: Callable[[str, object], None]
):
    record_property("tried", ["attacks", 1])
    expected = IN_A_LANGUAGE.get((place.adversary.runtime, name), ENDINGS[name])
    said = json.dumps({"do": [name]})
    ran = await place.containers.run(place.adversary, said, timeout_ms=expected.timeout_ms)
    allowed = ALSO_ALLOWED.get((place.adversary.runtime, name), expected.error_type)
    assert ran.execution.error_type in {expected.error_type, allowed}, (ran.execution.message, ran.stderr)
    assert ran.stdout == ("alive\n" if expected.said else "")
    seen, after = await place.look()
    assert seen == place.clean
    kept = expected.keeps_container and place.level is not Isolation.CONTAINER
    assert (after == ran.container_id) is kept
