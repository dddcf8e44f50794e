"""Every attack of the table, in every language and at every level; after each kind, everything is as it was.

What is attacked is real: the host listens on all its addresses meanwhile, and is asked afterwards whether
anybody got through.
"""

from __future__ import annotations

import asyncio
import json
import platform
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation
from support.programs.attacks import (
    CALLS_NO_FILTER_SEES,
    CALLS_THAT_GET_THROUGH,
    CALLS_THAT_OUTLIVE,
    DONE,
    KINDS,
    REFUSED_BY_A_FILTER,
    attacks_of,
    calls_swept,
    outcome_of,
)
from support.sandboxes.adversarial import LEVELS, as_seen, yard
from support.services.listeners import AnsweringHost, answering_host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from nanoagent.dev.local_services import EmbeddedStack
    from support.sandboxes.adversarial import Function, Yard
    from support.sandboxes.containers import Ran

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRIED_AT = LEVELS
TIMEOUT_MS = 120_000  # a hang is a failure; nothing is measured by it
CAPTURE_BYTES = 4 << 20
LOOK = ("names /proc", "list /tmp", "list /output", "list /work", "list /dev/shm", "names /slot")
# What attacks of the table would change on the host.
OF_THE_HOST = (
    *(
        f"/proc/sys/kernel/{name}"
        for name in ("core_pattern", "hostname", "domainname", "modprobe", "pid_max")
    ),
    *("/proc/sys/kernel/printk", "/proc/sys/kernel/acct", "/proc/sys/kernel/kexec_load_disabled"),
    *("/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom", "/proc/sys/fs/file-max"),
    *("/proc/sys/user/max_user_namespaces", "/proc/sys/net/ipv4/ip_forward", "/proc/swaps", "/proc/modules"),
    *("/etc/passwd", "/etc/ld.so.preload", "/sys/class/net/lo/mtu", "/sys/class/net/lo/flags"),
)
MOST_CLOCK_STEP_S = 60.0  # the attacks would set it to 2001; a time service may correct it meanwhile


@dataclass(frozen=True, slots=True)
class Place:
    """An adversary at a level, and what it sees when nobody has attacked."""

    containers: Yard
    level: Isolation
    adversary: Function
    clean: dict[str, str]

    async def attack(self, steps: list[str]) -> tuple[dict[str, str], Ran]:
        """What became of each, and in which run."""
        said = json.dumps({"try": steps})
        ran = await self.containers.run(
            self.adversary, said, timeout_ms=TIMEOUT_MS, capture_bytes=CAPTURE_BYTES
        )
        assert ran.execution.error_type is None, (ran.execution.message, ran.stderr)
        assert ran.execution.collected.clean  # so the supervisor lives and says
        outcomes = {step: outcome_of(number) for step, number in json.loads(ran.stdout).items()}
        assert outcomes.keys() == set(steps)
        return outcomes, ran

    async def check_the_next_run(self, attacked: Ran) -> None:
        """It succeeds, finds nothing, and is where its level has it be.

        Hundreds of processes can leave the kernel a moment's work with their memory: then the worker takes a
        fresh container rather than wait.
        """
        kept = attacked.acquired.clean and self.level is not Isolation.CONTAINER
        seen, ran = await self.containers.ask(self.adversary, look=LOOK)
        assert as_seen(seen) == self.clean
        assert (ran.container_id == attacked.container_id) is kept


def contents(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError:
        return None


def state_of_the_host() -> dict[str, bytes | None]:
    return {path: contents(path) for path in OF_THE_HOST}


def wall_clock_offset() -> float:
    return time.time() - time.monotonic()


@pytest.fixture(scope="session")
def host(stack: EmbeddedStack) -> Iterator[AnsweringHost]:
    with answering_host(stack) as answering:
        answering.check_that_it_answers()
        yield answering


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(where: tuple[Runtime, Isolation, bytes | None]) -> AsyncIterator[Place]:
    runtime, level, program = where
    async with AsyncExitStack() as held:
        containers = await held.enter_async_context(yard(level, (runtime,)))
        adversary = containers.adversary(runtime, program)
        seen, _ = await containers.ask(adversary, look=LOOK)
        yield Place(containers, level, adversary, as_seen(seen))


# --- the table


@pytest.mark.rotating_levels("kind")
@pytest.mark.parametrize("kind", KINDS)
async def test_each_attack_succeeds_only_where_its_level_allows_it(
    place: Place, host: AnsweringHost, kind: str, record_property: Callable[[str, object], None]
):
    table = attacks_of(place.adversary.runtime, host.addresses)[kind]
    tried = {name: attack for name, attack in table.items() if not attack.unwritable}
    await asyncio.to_thread(host.check_that_it_answers)
    host.visitors()
    before, offset = state_of_the_host(), wall_clock_offset()
    outcomes, attacked = await place.attack([attack.encoded() for attack in tried.values()])
    record_property("tried", ["attacks", len(tried)])
    surprises = {
        name: outcomes[attack.encoded()]
        for name, attack in tried.items()
        if not attack.allows(outcomes[attack.encoded()], place.level)
    }
    assert not surprises
    assert host.visitors() == 0
    assert state_of_the_host() == before
    assert abs(wall_clock_offset() - offset) < MOST_CLOCK_STEP_S
    await place.check_the_next_run(attacked)


@pytest.mark.parametrize("runtime", Runtime)
async def test_every_attack_of_the_table_can_be_written_here(runtime: Runtime, host: AnsweringHost):
    table = attacks_of(runtime, host.addresses)
    assert table.keys() == set(KINDS)
    steps = [attack.steps for attacks in table.values() for attack in attacks.values()]
    assert len(set(steps)) == len(steps)
    unwritable = [attack.unwritable for attacks in table.values() for attack in attacks.values()]
    if any(unwritable):
        reasons = sorted({reason for reason in unwritable if reason})
        pytest.skip(f"{sum(map(bool, unwritable))} attacks were not tried: {'; '.join(reasons)}")


async def test_a_container_with_a_network_was_there_to_be_reached(host: AnsweringHost):
    if host.no_neighbour:
        pytest.skip(host.no_neighbour)
    assert len(host.addresses.tcp) > 1


# --- every system call there is


@pytest.mark.rotating_levels
async def test_only_the_system_calls_that_programs_need_are_allowed(
    place: Place, record_property: Callable[[str, object], None]
):
    """Each with arguments that none can use: what is not refused for itself is refused for them, or done."""
    if platform.machine() != "x86_64":
        pytest.skip(f"the numbers of {platform.machine()} are not in the table")
    steps = {number: f"call {number}{' -1' * 6}" for number in calls_swept(place.adversary.runtime)}
    outcomes, attacked = await place.attack(list(steps.values()))
    record_property("tried", ["attacks", len(steps)])
    through = {
        number: outcomes[step] for number, step in steps.items() if outcomes[step] not in REFUSED_BY_A_FILTER
    }
    named = {number: name for name, number in CALLS_THAT_GET_THROUGH.items()}
    unseen = {number: through.pop(number) for number in CALLS_NO_FILTER_SEES if number in through}
    assert DONE not in unseen.values()
    assert not {number: outcome for number, outcome in through.items() if number not in named}
    if place.level is not Isolation.SANDBOX:
        assert not {named[number] for number in through} & CALLS_THAT_OUTLIVE
    # The control: a filter that refuses everything, or a program that tries nothing, would show nothing.
    assert outcomes[steps[CALLS_THAT_GET_THROUGH["getpid"]]] == DONE
    assert outcomes[steps[CALLS_THAT_GET_THROUGH["openat"]]] == "EFAULT"
    await place.check_the_next_run(attacked)


async def test_the_calls_that_get_through_are_of_the_profile():
    profile = json.loads(resources.files("nanoagent.container").joinpath("seccomp.json").read_text())
    allowed = {
        name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]
    }
    assert set(CALLS_THAT_GET_THROUGH) <= allowed
