"""What a run tries against the way out that it has, and against the run after it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.model.job import NetworkPolicy, Runtime
from nanoagent.model.result import ErrorType, Isolation
from nanoagent.network import egress
from support.programs.attacks import DONE, attacks_of, outcome_of
from support.sandboxes.adversarial import LEVELS
from support.sandboxes.containers import RUN_STDIN
from support.services.listeners import answering_host
from support.services.networks import Echo, networked_yard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from nanoagent.dev.local_services import EmbeddedStack
    from support.services.listeners import AnsweringHost
    from support.services.networks import NetworkedYard

pytestmark = pytest.mark.asyncio(loop_scope="module")

NONE, AI, EGRESS = NetworkPolicy
TIMEOUT_MS = 120_000


class Place:
    """A yard, its gateway, and a function that runs Python snippets."""

    def __init__(self, containers: NetworkedYard, gateway: Echo) -> None:
        self.yard = containers
        self.gateway = gateway
        self.function = containers.containers.function(Runtime.PYTHON, RUN_STDIN[Runtime.PYTHON])

    async def say(self, snippet: str, policy: NetworkPolicy, name: str = "run") -> tuple[list[str], int]:
        """What a snippet printed that ended well, and how many tokens it is charged for."""
        ran, run = await self.yard.run(self.function, snippet, policy, name, timeout_ms=TIMEOUT_MS)
        assert ran.execution.error_type is None, (ran.execution.message, ran.stderr)
        return ran.stdout.splitlines(), run.usage.tokens


@pytest.fixture(scope="session")
def host(stack: EmbeddedStack) -> Iterator[AnsweringHost]:
    with answering_host(stack) as answering:
        answering.check_that_it_answers()
        yield answering


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=LEVELS, ids=str)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    gateway = Echo()
    async with networked_yard(request.param, (Runtime.PYTHON, Runtime.NODEJS), gateway) as containers:
        containers.internet.names["api.example.com"] = [["93.184.215.14"]]
        yield Place(containers, gateway)


# --- to where nobody may


async def attack(
    containers: NetworkedYard, runtime: Runtime, program: bytes | None, steps: list[str]
) -> list[str]:
    """What became of each step, at the widest policy that there is."""
    adversary = containers.containers.adversary(runtime, program)
    said = json.dumps({"try": steps})
    ran, _ = await containers.run(adversary, said, EGRESS, timeout_ms=TIMEOUT_MS)
    assert ran.execution.error_type is None, (ran.execution.message, ran.stderr)
    outcomes = json.loads(ran.stdout)
    return [outcome_of(outcomes[step]) for step in steps]


@pytest.mark.parametrize("runtime", [Runtime.PYTHON, Runtime.NODEJS], ids=str)
async def test_no_private_address_is_reached_by_number_or_by_name(
    place: Place, host: AnsweringHost, runtime: Runtime, record_property: Callable[[str, object], None]
):
    """The table of attacks again, with everything public allowed, and names that lead to what it attacks."""
    if runtime is Runtime.NODEJS and place.yard.level is not Isolation.SANDBOX:
        pytest.skip("of the other levels, one language tells as much")
    internet = place.yard.internet
    inside = [address for address, _ in host.addresses.tcp]
    inside += [
        "127.0.0.1",
        "169.254.169.254",
        "fd00:ec2::254",
        "172.17.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
    ]
    named = {f"inside{number}.example.com": address for number, address in enumerate(dict.fromkeys(inside))}
    internet.names |= {name: [[address]] for name, address in named.items()}
    internet.names |= {
        "example.com": [["169.254.169.254"]],
        "metadata.google.internal": [["169.254.169.254"]],
        "host.docker.internal": [["172.17.0.1"]],
    }
    place.yard.egress.connect = egress.connect  # the real one
    table = {
        name: made
        for name, made in attacks_of(runtime, host.addresses)["network"].items()
        if not made.unwritable
    }
    steps = [made.encoded() for made in table.values()]
    steps += [f"connect {name} {port}" for name in named for port in (80, 443)]
    steps += [f"connect {address} 11434" for address in ("::1", "172.17.0.1", "169.254.169.254")]
    steps += [
        "unix /slot/listening.sock",
        "connect localhost 80",
        "connect 127.64.0.77 443",
        "connect 127.127.255.254 80",
    ]
    await asyncio.to_thread(host.check_that_it_answers)
    host.visitors()
    outcomes = dict(zip(steps, await attack(place.yard, runtime, None, steps), strict=True))
    place.yard.egress.connect = internet.connect
    record_property("tried", ["attacks", len(steps)])
    surprises = {
        name: outcomes[made.encoded()]
        for name, made in table.items()
        if not made.allows(outcomes[made.encoded()], place.yard.level)
    }
    # The agent listens on the ports of EGRESS_PORTS. It closes a connection to an address without a name.
    cut = {"connect localhost 80", "connect 127.64.0.77 443", "connect 127.127.255.254 80"}
    surprises |= {
        step: outcomes[step] for step in steps[len(table) :] if outcomes[step] == DONE and step not in cut
    }
    assert not surprises
    assert host.visitors() == 0
    assert internet.reached == []


@pytest.mark.parametrize("runtime", Runtime)
async def test_every_language_finds_names_by_its_own_means(
    runtime: Runtime, program_of: Callable[[Runtime], bytes | None]
):
    program = await asyncio.to_thread(program_of, runtime)
    async with networked_yard(Isolation.SANDBOX, (runtime,), Echo()) as containers:
        containers.internet.names["api.example.com"] = [["93.184.215.14"]]
        # By number as well: whatever it uses to resolve, an address is for the run, not for one process.
        steps = ["resolve api.example.com", "connect 127.64.0.1 443", "resolve localhost"]
        steps += ["connect 127.0.0.1 11434", "resolve nothing.example.com"]
        assert await attack(containers, runtime, program, steps) == [DONE] * 4 + ["ENOENT"]
        assert containers.internet.reached == [("93.184.215.14", 443)]


QUERIES = """
import socket, struct
def ask(*labels, kind=1):
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\\0"
    near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); near.settimeout(30)
    query = struct.pack(">HHHHHH", 7, 256, 1, 0, 0, 0) + name + struct.pack(">HH", kind, 1)
    near.sendto(query, ("127.0.0.1", 53))
    reply = near.recv(1000)
    return reply[3] & 15, reply[7]
"""


async def test_names_that_are_oddly_written_lead_nowhere(place: Place):
    """Labels that are not what they look like, numbers in place of names."""
    odd = [
        [b"api.example.com"],
        [b"api.example", b"com"],
        [b"api", b"example", b"com\0"],
        [b"api\0", b"example", b"com"],
        [b"127", b"0", b"0", b"1"],
        [b"2130706433"],
        [b"0x7f000001"],
        [b"169", b"254", b"169", b"0xfe"],
        [b"0177", b"0", b"0", b"1"],
        [b"localhost", b"localdomain"],
        [b"*", b"example", b"com"],
        [b"api", b"example", b"com", b"com" * 20],
        ["bücher".encode(), b"example", b"com"],
        [b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 61],
        [],
    ]
    place.yard.internet.names["api.example.com"] = [["93.184.215.14"]]
    said, _ = await place.say(
        f"{QUERIES}\nfor labels in {odd!r}: print(*ask(*labels))\nprint(*ask(b'API', b'example', b'COM'))",
        EGRESS,
    )
    assert said == ["3 0"] * len(odd) + ["0 1"]


# --- in the way of the gateway, and of the next run

BIND = """
import errno, socket
def bind(kind, host, port, *options):
    own = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    for option in options: own.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        own.bind((host, port))
        if kind == socket.SOCK_STREAM: own.listen()
    except OSError as error: return errno.errorcode[error.errno]
    return own
def ask():
    with socket.create_connection(("127.0.0.1", 11434), 60) as near:
        near.sendall(b"x"); return near.recv(100).decode()
"""


@pytest.mark.parametrize(("kind", "port"), [("STREAM", 11434), ("STREAM", 443), ("DGRAM", 53)])
async def test_a_run_cannot_bind_a_port_at_which_the_worker_listens(place: Place, kind: str, port: int):
    tries = f"""
address, port = socket.SO_REUSEADDR, socket.SO_REUSEPORT
for host in ("127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"):
    for options in ((), (address,), (port,), (address, port)):
        print(bind(socket.SOCK_{kind}, host, {port}, *options))
print(ask())
"""
    said, _ = await place.say(BIND + tries, EGRESS, "own")
    assert set(said[:-1]) <= {"EADDRINUSE", "EACCES"}
    assert said[-1] == "own:x"


async def test_a_program_that_binds_a_port_of_the_agent_first_has_it_for_its_own_run_alone(place: Place):
    stay = """
import os, time
own = bind(socket.SOCK_STREAM, "127.0.0.1", 11434, socket.SO_REUSEADDR)
print("bound" if isinstance(own, socket.socket) else own)
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    time.sleep(1000)
"""
    said, _ = await place.say(BIND + stay, NONE)
    assert said == ["bound"]
    assert await place.say(BIND + "print(ask())", AI, "next") == (["next:x"], 1)


LEAVE_CONNECTED = """
import array, os, socket, time
near = socket.create_connection(("127.0.0.1", 11434), 60)
near.sendall(b"1"); near.recv(100)
a, b = socket.socketpair()
c, d = socket.socketpair()  # each in flight over the other: nobody holds them, the kernel finds them later
for end, held in ((a, (c, d, near)), (c, (a, b, near))):
    numbers = array.array("i", [each.fileno() for each in held])
    end.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    while True:
        try: near.sendall(b"more")
        except OSError: pass
        time.sleep(0.001)
"""


async def test_a_leftover_connection_is_cut_and_charged_to_no_other_run(place: Place):
    place.gateway.told.clear()
    await place.say(LEAVE_CONNECTED, AI, "first")
    ran = await place.say(BIND + "print(ask())\nimport time; time.sleep(0.05)\nprint(ask())", AI, "second")
    assert ran == (["second:x"] * 2, 2)
    assert place.gateway.told["second"] == [b"x"] * 2
    assert await place.say("", NONE, "third") == ([], 0)


# --- floods

FLOOD_CONNECT = """
import socket, sys, time
until = time.monotonic() + 2
held = []
while time.monotonic() < until:
    near = socket.socket(); near.setblocking(False)
    near.connect_ex(("127.0.0.1", 11434))
    held.append(near)
    if len(held) > 200: held.pop(0).close()
print("done")
"""
FLOOD_ASK = """
import socket, struct, time
query = struct.pack(">HHHHHH", 7, 256, 1, 0, 0, 0) + b"\\x01a\\x07example\\0\\0\\x01\\0\\x01"
near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
until = time.monotonic() + 2
while time.monotonic() < until: near.sendto(query, ("127.0.0.1", 53))
print("done")
"""


@pytest.mark.parametrize("flood", [FLOOD_CONNECT, FLOOD_ASK], ids=["connections", "queries"])
async def test_a_flood_costs_the_worker_little_and_other_runs_nothing(place: Place, flood: str):
    """While one floods, another run is served; the agent lets in so many a second and no more."""
    asked = len(place.yard.internet.asked)
    place.gateway.told.clear()

    async def others() -> None:
        for number in range(3):
            assert await place.say(BIND + "print(ask())", AI, f"other{number}") == ([f"other{number}:x"], 1)

    ran, _ = await asyncio.gather(
        place.yard.run(place.function, flood, EGRESS, "flood", timeout_ms=TIMEOUT_MS), others()
    )
    assert ran[0].execution.error_type in {None, ErrorType.OUT_OF_MEMORY}  # too many sockets
    # Two seconds by the program's clock; the machine may have been slow with them.
    assert len(place.yard.internet.asked) - asked <= 100 + 100 * 60
