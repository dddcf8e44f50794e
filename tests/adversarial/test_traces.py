"""What a run leaves behind, and what the next one finds, in both orders, in all languages, at all levels.

For each language and level there is one observation: a look, a run that leaves traces of every kind and looks
itself, another look; then, in a container that has served nothing, traces first and a look after them. Each
test is about one fact of it.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.languages.recipes import PROGRAM_PATH, RECIPES
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation
from support.sandboxes.adversarial import LEVELS, yard

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.sandboxes.adversarial import Function, Shelf

COMPILED = (Runtime.CPP, Runtime.GO)
BOTH_ORDERS = ("look, leave, look", "leave, look")


# --- what is looked at


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a run can see.

    Attributes:
        item: What its program looks at.
        select: The part of it that matters.
        shown_at: The levels at which one who has left everything sees it changed.
        unshown_in: Languages in which it is not, since nothing there changes it.
        absent_in: Languages that cannot look at it, or in which it is different each time.
    """

    item: str
    select: Callable[[str], str] = str
    shown_at: tuple[Isolation, ...] = LEVELS
    unshown_in: tuple[Runtime, ...] = ()
    absent_in: tuple[Runtime, ...] = ()


def column(number: int, text: str) -> str:
    """A table's column, less its heading, sorted."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return "\n".join(sorted(row[number] for row in rows if len(row) > number))


def connections(text: str) -> str:
    """Addresses and states of /proc/net/tcp."""
    return "\n".join(sorted(" ".join(line.split()[1:4]) for line in text.splitlines()[1:]))


def status(*names: str) -> Callable[[str], str]:
    """Lines of /proc/self/status."""
    return lambda text: "\n".join(line for line in text.splitlines() if line.split(":")[0] in names)


def stat(*fields: int) -> Callable[[str], str]:
    """Fields of /proc/self/stat, numbered as in proc(5)."""
    return lambda text: " ".join(text.rpartition(")")[2].split()[field - 3] for field in fields)


def own_locks(text: str) -> str:
    """Locks but those of open file descriptions, which /proc/locks shows of the whole host."""
    locks = [" ".join(line.split()[1:4]) for line in text.splitlines() if "OFDLCK" not in line]
    return "\n".join(sorted(locks))


def shared_pages(text: str) -> str:
    """Mappings that are shared and can be written to."""
    return "\n".join(line for line in text.splitlines() if re.match(r"\S+ .w.s", line))


def processes(text: str) -> str:
    """How many there are, by the names in /proc."""
    return str(sum(name.isdigit() for name in text.splitlines()))


def descriptors(text: str) -> str:
    """Where they lead, without the numbers of pipes, sockets and processes."""
    return re.sub(r"\[\d+\]|/proc/\d+", "", text)


def mounts(text: str) -> str:
    """All, but not what is each container's own: names of the image's layers, its user, Docker's order."""
    own = r"(lowerdir|upperdir|workdir|uid|gid)=[^, ]+"
    return "\n".join(sorted(re.sub(own, "", line) for line in text.splitlines()))


def anonymous(text: str) -> str:
    """Without what is a container's own: its id, and the descriptors by which the agent named its sockets."""
    own = r"[0-9a-f]{10,}|(?<=^/proc/self/fd/)[0-9]+(?=/(agent|listening)\.sock$)"
    return re.sub(own, "ID", text, flags=re.MULTILINE)


SANDBOX = (Isolation.SANDBOX,)
NEVER: tuple[Isolation, ...] = ()
FACTS = {
    "processes": Fact("names /proc", processes),
    "files in /tmp": Fact("list /tmp"),
    "files in /output": Fact("list /output"),
    "files in /work": Fact("list /work"),
    "files in /input": Fact("list /input"),
    "files in /dev/shm": Fact("list /dev/shm"),
    "files in /slot": Fact("names /slot", shown_at=NEVER),
    "code": Fact("digest {entry}"),
    "program": Fact("digest {program}", shown_at=NEVER),
    "attributes of the code": Fact("attributes {entry}", shown_at=NEVER, absent_in=(Runtime.NODEJS,)),
    "room in /tmp": Fact("space /tmp"),
    "room in /output": Fact("space /output"),
    "room in /work": Fact("space /work"),
    "room in /dev/shm": Fact("space /dev/shm"),
    "POSIX queues": Fact("names /dev/mqueue", shown_at=SANDBOX),
    "shared memory": Fact("read /proc/sysvipc/shm", partial(column, 1), SANDBOX),
    "semaphores": Fact("read /proc/sysvipc/sem", partial(column, 1), SANDBOX),
    "message queues": Fact("read /proc/sysvipc/msg", partial(column, 1), SANDBOX),
    "terminals": Fact("names /dev/pts"),
    "Unix sockets": Fact("read /proc/net/unix", lambda text: anonymous(column(7, text))),
    "TCP sockets": Fact("read /proc/net/tcp", connections),
    "UDP sockets": Fact("read /proc/net/udp", connections, NEVER),
    "network counters": Fact("read /proc/net/dev"),
    "port range": Fact("read /proc/sys/net/ipv4/ip_local_port_range", shown_at=NEVER),
    "host name": Fact("read /proc/sys/kernel/hostname", anonymous, NEVER),
    "domain name": Fact("read /proc/sys/kernel/domainname", shown_at=NEVER),
    "keys": Fact("read /proc/keys", shown_at=NEVER),
    "locks": Fact("read /proc/locks", own_locks, (Isolation.SHARED,), unshown_in=(Runtime.NODEJS,)),
    "mounts": Fact("read /proc/self/mounts", mounts, NEVER),
    "environment": Fact("variables"),
    "environment in /proc": Fact("read /proc/self/environ", shown_at=NEVER),
    "descriptors": Fact("links /proc/self/fd", descriptors),
    "working folder": Fact("link /proc/self/cwd"),
    "umask": Fact("read /proc/self/status", status("Umask")),
    "ignored and caught signals": Fact("read /proc/self/status", status("SigIgn", "SigCgt")),
    # Go's runtime blocks all of them whenever it makes a thread.
    "blocked signals": Fact(
        "read /proc/self/status",
        status("SigBlk"),
        unshown_in=(Runtime.NODEJS,),
        absent_in=(Runtime.GO,),
    ),
    "capabilities": Fact(
        "read /proc/self/status",
        status("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters"),
        NEVER,
    ),
    "tracer": Fact("read /proc/self/status", status("TracerPid"), NEVER),
    "CPUs": Fact("read /proc/self/status", status("Cpus_allowed_list")),
    "limits": Fact("read /proc/self/limits"),
    "priority": Fact("read /proc/self/stat", stat(18, 19, 40, 41)),
    "controlling terminal": Fact("read /proc/self/stat", stat(7), NEVER),
    "oom score": Fact("read /proc/self/oom_score_adj"),
    "timers": Fact("read /proc/self/timers", shown_at=NEVER),
    "personality": Fact("read /proc/self/personality", shown_at=NEVER),
    "memory shared for writing": Fact("read /proc/self/maps", shared_pages, NEVER),
}
# What a weaker level does not defend, or cannot: it is found there, and this says why.
BEYOND = {
    (
        Isolation.SHARED,
        "TCP sockets",
    ): "runs share a network namespace: a port stays in TIME_WAIT for a minute",
    (Isolation.SHARED, "network counters"): "runs share a network namespace, and loopback's counters with it",
}


# --- what is left

ALWAYS_REFUSED = ("program", "hostname", "sysctl")
REFUSED_OUTSIDE_A_SANDBOX = ("shared memory", "semaphores", "message queue", "POSIX queue")
# The daemon comes last: it holds what the others have opened. Before it nothing that would hinder the others.
TRACES = (
    *(
        "files",
        "attribute",
        "lock",
        "code",
        "program",
        "shared memory",
        "semaphores",
        "message queue",
        "POSIX queue",
    ),
    *(
        "abstract socket",
        "listener",
        "time wait",
        "environment",
        "working folder",
        "umask",
        "signals",
        "niceness",
    ),
    *("affinity", "oom score", "hostname", "sysctl", "deleted file", "terminal", "timer", "limits", "daemon"),
)
NO_CALL_FOR_IT = {(Runtime.NODEJS, "attribute")}


def traces_of(runtime: Runtime) -> list[str]:
    return [trace for trace in TRACES if (runtime, trace) not in NO_CALL_FOR_IT]


def facts_of(runtime: Runtime) -> list[str]:
    return [name for name, fact in FACTS.items() if runtime not in fact.absent_in]


def item_of(fact: str, runtime: Runtime) -> str:
    program = PROGRAM_PATH if runtime in COMPILED else RECIPES[runtime].arguments[0]
    return FACTS[fact].item.format(entry=f"/work/{RECIPES[runtime].entry}", program=program)


# --- observations


async def observe(runtime: Runtime, level: Isolation, program: bytes | None) -> bytes:
    """Everything that the tests are about, as JSON."""
    look = sorted({item_of(fact, runtime) for fact in facts_of(runtime)} | {"random", "link /proc/self"})
    leave = traces_of(runtime)
    seen, places = {}, {}
    async with yard(level, (runtime,)) as containers:

        async def note(name: str, function: Function, **said: list[str]) -> None:
            seen[name], ran = await containers.ask(function, **said)
            places[name] = ran.container_id

        modules = ("numpy",) if runtime is Runtime.PYTHON else ()
        one = containers.adversary(runtime, program, modules=modules)
        await note("clean", one, look=look)
        await note("leaver", one, leave=leave, look=look)
        await note(BOTH_ORDERS[0], one, look=look)
        if level is not Isolation.CONTAINER:
            other = containers.adversary(runtime, program, modules=modules)
            await note("first leaver", other, leave=leave)
            await note(BOTH_ORDERS[1], other, look=look)
    return json.dumps({"seen": seen, "containers": places}).encode()


@pytest.fixture(scope="session")
def observation(
    shelf: Shelf, program_of: Callable[[Runtime], bytes | None]
) -> Callable[[Runtime, Isolation], dict[str, Any]]:
    known: dict[tuple[Runtime, Isolation], dict[str, Any]] = {}

    def get(runtime: Runtime, level: Isolation) -> dict[str, Any]:
        if (runtime, level) not in known:
            program = program_of(runtime)
            made = shelf.get(
                f"traces-{runtime}-{level}", lambda: asyncio.run(observe(runtime, level, program))
            )
            known[runtime, level] = json.loads(made)
        return known[runtime, level]

    return get


def fact_in(seen: dict[str, str], fact: str, runtime: Runtime) -> str:
    return FACTS[fact].select(seen[item_of(fact, runtime)])


def cases(names_of: Callable[[Runtime], list[str]]) -> list[Any]:
    return [
        pytest.param(runtime, level, name, id=f"{runtime}-{level}-{name}")
        for runtime in Runtime
        for level in LEVELS
        for name in names_of(runtime)
    ]


def ordered_cases() -> list[Any]:
    """Of a container for each run there is one order: every run is its container's first."""
    return [
        pytest.param(*case.values, order, id=f"{case.id}-{order}")
        for case in cases(facts_of)
        for order in BOTH_ORDERS
        if case.values[1] is not Isolation.CONTAINER or order == BOTH_ORDERS[0]
    ]


# --- what is found


@pytest.mark.parametrize(("runtime", "level", "fact", "order"), ordered_cases())
def test_a_run_finds_everything_as_if_it_were_the_first(observation, runtime, level, fact, order):
    seen = observation(runtime, level)["seen"]
    first, later = fact_in(seen["clean"], fact, runtime), fact_in(seen[order], fact, runtime)
    if (level, fact) in BEYOND:
        assert later != first, f"defended after all? {BEYOND[level, fact]}"
    else:
        assert later == first


def shown(runtime: Runtime, level: Isolation) -> list[str]:
    return [
        name
        for name in facts_of(runtime)
        if level in FACTS[name].shown_at and runtime not in FACTS[name].unshown_in
    ]


@pytest.mark.parametrize(
    ("runtime", "level", "fact"),
    [
        pytest.param(runtime, level, fact, id=f"{runtime}-{level}-{fact}")
        for runtime in Runtime
        for level in LEVELS
        for fact in shown(runtime, level)
    ],
)
def test_a_run_that_leaves_the_trace_sees_it(observation, runtime, level, fact):
    """The control: a fact that could not change would prove nothing."""
    seen = observation(runtime, level)["seen"]
    assert fact_in(seen["leaver"], fact, runtime) != fact_in(seen["clean"], fact, runtime)


@pytest.mark.parametrize(("runtime", "level", "trace"), cases(traces_of))
def test_a_trace_is_left_or_refused(observation, runtime, level, trace):
    seen = observation(runtime, level)["seen"]
    refused = trace in ALWAYS_REFUSED
    if level is not Isolation.SANDBOX:
        refused |= trace in REFUSED_OUTSIDE_A_SANDBOX
    for leaver in seen.keys() & {"leaver", "first leaver"}:
        said = seen[leaver][trace]
        assert said in {"EPERM", "EACCES", "EROFS", "EMFILE"} if refused else said == "done", said


@pytest.mark.parametrize("runtime", Runtime)
@pytest.mark.parametrize("level", LEVELS)
def test_the_next_run_is_in_the_same_container_where_they_are_shared(observation, runtime, level):
    places = observation(runtime, level)["containers"]
    one = {places["clean"], places["leaver"], places[BOTH_ORDERS[0]]}
    if level is Isolation.CONTAINER:
        assert len(one) == len(places)
    else:
        other = {places["first leaver"], places[BOTH_ORDERS[1]]}
        assert (len(one), len(other), len(one | other)) == (1, 1, 2)


@pytest.mark.parametrize("runtime", Runtime)
def test_a_sandbox_has_one_process_beside_the_programs_own(observation, runtime):
    seen = observation(runtime, Isolation.SANDBOX)["seen"]
    names = [name for name in seen["clean"]["names /proc"].splitlines() if name.isdigit()]
    assert sorted(names) == ["1", "2"]


@pytest.mark.parametrize("runtime", Runtime)
@pytest.mark.parametrize("order", ["clean", *BOTH_ORDERS])
def test_a_program_has_the_same_number_in_each_sandbox(observation, runtime, order):
    assert observation(runtime, Isolation.SANDBOX)["seen"][order]["link /proc/self"] == "2"


# --- randomness

STREAMS = {
    Runtime.PYTHON: (
        *("random", "numpy.random", "numpy default_rng", "secrets", "os.urandom", "uuid4", "uuid1 node"),
        *("uuid1 clock", "temporary name", "hash of text", "layout of memory"),
    ),
    Runtime.NODEJS: (
        *("Math.random", "crypto.randomBytes", "crypto.randomUUID", "crypto.getRandomValues"),
        "crypto.randomInt",
    ),
    Runtime.CPP: ("std::random_device", "getrandom", "arc4random", "layout of memory"),
    Runtime.GO: ("math/rand", "math/rand/v2", "crypto/rand"),
}
# Found at the highest level: the price of a zygote, accepted in docs/adr/0013 and named in docs/security.md.
FINDINGS = {
    (
        Isolation.SANDBOX,
        "hash of text",
    ): "runs of one container are forked from one zygote and share its hash seed",
    (Isolation.SANDBOX, "layout of memory"): "runs of one container share the zygote's layout of memory",
}


def stream_cases() -> list[Any]:
    found = []
    for runtime, streams in STREAMS.items():
        for level in LEVELS:
            for stream in streams:
                known = FINDINGS.get((level, stream)) if runtime is Runtime.PYTHON else None
                marks = [pytest.mark.xfail(strict=True, reason=known)] if known else []
                name = f"{runtime}-{level}-{stream}"
                found.append(pytest.param(runtime, level, stream, id=name, marks=marks))
    return found


@pytest.mark.parametrize(("runtime", "level", "stream"), stream_cases())
def test_no_two_runs_get_the_same_random_numbers(observation, runtime, level, stream):
    looks = [look["random"] for look in observation(runtime, level)["seen"].values() if "random" in look]
    drawn = {dict(line.split(": ", 1) for line in look.splitlines())[stream] for look in looks}
    assert len(drawn) == len(looks)
