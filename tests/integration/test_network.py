"""What a run reaches of models and of the internet, from inside, in real containers of every level."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.model.job import NetworkPolicy, Runtime
from nanoagent.model.result import ErrorType
from nanoagent.network import egress
from support.sandboxes.adversarial import LEVELS
from support.sandboxes.containers import RUN_STDIN
from support.services.networks import Echo, networked_yard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.services.networks import NetworkedYard

pytestmark = pytest.mark.asyncio(loop_scope="module")

NONE, AI, EGRESS = NetworkPolicy
# Says what came of each `HOST PORT`, one in a line: what was answered, or the error.
ASK_ALL = {
    Runtime.PYTHON: """
import json, socket
def ask(host, port):
    with socket.create_connection((host, port), 30) as near:
        near.sendall(b"hello")
        return near.recv(100).decode()
for host, port in json.loads(TARGETS):
    try: print(ask(host, port))
    except ConnectionResetError: print("cut")
    except OSError as error: print(type(error).__name__)
""",
    Runtime.NODEJS: """
const net = require('net');
const NAMES = { ECONNREFUSED: 'ConnectionRefusedError', ECONNRESET: 'cut', ENOTFOUND: 'gaierror' };
const ask = ([host, port]) => new Promise((resolve) => {
  let said = '';
  const near = net.connect({ host, port, family: 4 }, () => near.write('hello'));
  near.on('data', (data) => { said = String(data); near.destroy(); });
  near.on('error', (error) => { said = NAMES[error.code] || error.code; });
  near.on('close', () => resolve(said || 'cut'));
});
(async () => { for (const target of JSON.parse(TARGETS)) console.log(await ask(target)); })();
""",
}


class Place:
    """A yard and a function of each language that runs snippets."""

    def __init__(self, containers: NetworkedYard, gateway: Echo) -> None:
        self.yard = containers
        self.gateway = gateway
        self.internet = containers.internet
        self._functions = {
            runtime: containers.containers.function(runtime, files) for runtime, files in RUN_STDIN.items()
        }

    async def say(self, snippet: str, policy: NetworkPolicy, runtime: Runtime = Runtime.PYTHON) -> str:
        """What a snippet printed that ended well."""
        ran, _ = await self.yard.run(self._functions[runtime], snippet, policy)
        assert ran.execution.error_type is None, (ran.execution.message, ran.stderr)
        return ran.stdout

    async def ask_all(
        self, targets: list[tuple[str, int]], policy: NetworkPolicy, runtime: Runtime = Runtime.PYTHON
    ) -> list[str]:
        """What came of each host and port."""
        literal = json.dumps(json.dumps(targets))
        said = await self.say(ASK_ALL[runtime].replace("TARGETS", literal), policy, runtime)
        return said.splitlines()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=LEVELS, ids=str)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    gateway = Echo()
    runtimes = (Runtime.PYTHON, Runtime.NODEJS)
    async with networked_yard(
        request.param, runtimes, gateway, allow=("*.example.com", "a.org")
    ) as containers:
        yield Place(containers, gateway)


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def calm(place: Place) -> AsyncIterator[None]:
    """Each test begins with an internet of its own."""
    internet = place.internet
    internet.names = {
        "api.example.com": [["93.184.215.14"]],
        "a.org": [["2606:4700::1111", "93.184.215.15"]],
        "inside.example.com": [["10.1.2.3"]],
        "metadata.example.com": [["169.254.169.254", "fd00:ec2::254"]],
        "elsewhere.org": [["93.184.215.16"]],
    }
    internet.asked.clear()
    internet.reached.clear()
    place.yard.outcomes.clear()
    yield


TARGETS = [
    ("127.0.0.1", 11434),
    ("localhost", 11434),
    ("api.example.com", 80),
    ("api.example.com", 443),
    ("api.example.com", 8080),
    ("127.0.0.1", 443),
    ("127.0.0.1", 80),
    ("127.0.0.2", 11434),
]
REFUSED, CUT, NO_NAME = "ConnectionRefusedError", "cut", "gaierror"
REACHED_BY = {
    NONE: [REFUSED, REFUSED, NO_NAME, NO_NAME, NO_NAME, REFUSED, REFUSED, REFUSED],
    AI: ["run:hello", "run:hello", NO_NAME, NO_NAME, NO_NAME, REFUSED, REFUSED, REFUSED],
    EGRESS: ["run:hello", "run:hello", "hello", "hello", REFUSED, CUT, CUT, REFUSED],
}


@pytest.mark.parametrize("runtime", RUN_STDIN, ids=str)
@pytest.mark.parametrize("policy", NetworkPolicy, ids=str)
async def test_a_run_reaches_what_its_policy_allows_and_nothing_else(place, policy, runtime):
    assert await place.ask_all(TARGETS, policy, runtime) == REACHED_BY[policy]
    reached = [("93.184.215.14", 80), ("93.184.215.14", 443)] if policy is EGRESS else []
    assert place.internet.reached == reached


async def test_a_narrow_run_after_a_wide_one_is_narrow(place):
    for policy in (EGRESS, NONE, AI, NONE, EGRESS, AI):
        assert await place.ask_all(TARGETS, policy) == REACHED_BY[policy]


async def test_what_a_run_uses_is_counted_for_it(place):
    function = place.yard.containers.function(Runtime.PYTHON, RUN_STDIN[Runtime.PYTHON])
    ask = "import socket\nwith socket.create_connection(('127.0.0.1', 11434)) as s:\n"
    for count in (2, 0, 3):
        snippet = ask + f"  for _ in range({count}): s.sendall(b'x'); s.recv(100)"
        _, run = await place.yard.run(function, snippet, AI)
        assert run.usage.tokens == count


# --- names


async def test_names_that_are_not_allowed_are_not_even_asked_for(place):
    targets = [
        (name, 443) for name in ("elsewhere.org", "example.com", "api.example.com.evil.org", "x.a.org")
    ]
    assert await place.ask_all(targets, EGRESS) == [NO_NAME] * 4
    assert place.internet.asked == []


@pytest.mark.parametrize("runtime", RUN_STDIN, ids=str)
async def test_names_that_lead_inside_are_like_names_that_there_are_not(place, runtime):
    names = ("inside.example.com", "metadata.example.com", "nothing.example.com")
    assert await place.ask_all([(name, 80) for name in names], EGRESS, runtime) == [NO_NAME] * 3
    assert place.internet.reached == []


async def test_of_several_addresses_those_that_are_public_are_tried(place):
    place.internet.names["api.example.com"] = [["127.0.0.1", "10.0.0.1", "::1", "93.184.215.14", "fe80::1"]]
    assert await place.ask_all([("api.example.com", 443)], EGRESS) == ["hello"]
    assert place.internet.reached == [("93.184.215.14", 443)]


async def test_a_name_that_later_resolves_to_a_private_address_reaches_nothing(place, monkeypatch):
    """DNS rebinding: the answer that is judged is the one that is connected to."""
    monkeypatch.setattr(egress, "_FRESH_S", -1.0)  # every use asks again
    place.internet.names["api.example.com"] = [["93.184.215.14"], ["127.0.0.1"], ["169.254.169.254"]]
    snippet = """
import socket
address = socket.gethostbyname("api.example.com")
for _ in range(2):
    try:
        with socket.create_connection((address, 80), 30) as near:
            near.sendall(b"x"); print(near.recv(10))
    except OSError as error: print(type(error).__name__)
"""
    assert await place.say(snippet, EGRESS) == "ConnectionResetError\n" * 2
    assert place.internet.reached == []
    assert place.yard.outcomes == ["unreachable"] * 2


async def test_a_resolver_that_fails_is_no_missing_name(place):
    async def fails(_: str) -> list[str]:
        raise OSError("no name server answers")

    place.yard.egress.resolve, resolve = fails, place.yard.egress.resolve
    snippet = """
import socket
try: socket.gethostbyname("api.example.com")
except OSError as error: print(error.errno == socket.EAI_AGAIN)
"""
    said = await place.say(snippet, EGRESS)
    place.yard.egress.resolve = resolve
    assert said == "True\n"


async def test_names_have_no_ipv6_and_no_other_records(place):
    snippet = """
const dns = require('dns').promises;
(async () => {
  for (const kind of ['A', 'AAAA', 'TXT', 'MX', 'NS', 'ANY', 'PTR'])
    console.log(kind, await dns.resolve('api.example.com', kind).catch((error) => error.code));
})();
"""
    said = (await place.say(snippet, EGRESS, Runtime.NODEJS)).splitlines()
    assert said[0].startswith("A [ '127.64.0.")
    assert [line.split()[1] for line in said[1:]] == ["ENODATA"] * 6


# --- what goes through


async def test_what_is_sent_arrives_and_an_end_is_told_to_the_other_side(place):
    snippet = """
import socket
with socket.create_connection(("api.example.com", 443), 60) as near:
    data = bytes(range(256)) * 4096
    import threading
    sender = threading.Thread(target=lambda: (near.sendall(data), near.shutdown(socket.SHUT_WR)))
    sender.start()
    got = b""
    while piece := near.recv(65536): got += piece
    print(got == data + b"<end>")
"""
    assert await place.say(snippet, EGRESS) == "True\n"


async def test_a_run_moves_no_more_bytes_than_it_may(place):
    snippet = """
import socket
near = socket.create_connection(("api.example.com", 443), 60)
got = 0
try:
    while True:
        near.sendall(bytes(100_000))
        got += len(near.recv(100_000))
except OSError as error: print(type(error).__name__, 1_000_000 < got <= 5_100_000)
try: near = socket.create_connection(("a.org", 80), 60); near.sendall(b"x"); print(near.recv(10))
except OSError as error: print(type(error).__name__)
"""
    said = (await place.say(snippet, EGRESS)).splitlines()
    assert said[0] in {"ConnectionResetError True", "BrokenPipeError True"}
    assert said[1] == "ConnectionResetError"
    assert place.yard.outcomes.count("cut") == 2
    assert await place.ask_all([("api.example.com", 443)], EGRESS) == ["hello"]  # the next has its own


async def test_a_runs_end_cuts_its_way_out(place):
    snippet = """
import os, socket, time
near = socket.create_connection(("api.example.com", 443), 60)
near.sendall(b"x"); near.recv(10)
if os.fork() == 0: os.setsid(); time.sleep(1000)
"""
    await place.say(snippet, EGRESS)
    assert await place.ask_all(TARGETS, AI) == REACHED_BY[AI]


async def test_a_run_whose_time_is_up_has_its_connections_cut(place):
    function = place.yard.containers.function(Runtime.PYTHON, RUN_STDIN[Runtime.PYTHON])
    snippet = """
import socket, time
near = socket.create_connection(("127.0.0.1", 11434))
near.sendall(b"x"); near.recv(9); time.sleep(1000)
"""
    ran, run = await place.yard.run(function, snippet, AI, "late", timeout_ms=1500)
    assert ran.execution.error_type is ErrorType.TIMEOUT
    assert run.usage.tokens == 1


async def test_localhost_is_found_without_a_network(place):
    snippet = """
import socket, threading
server = socket.create_server(("localhost", 0))
threading.Thread(target=lambda: server.accept()[0].sendall(b"own")).start()
print(socket.create_connection(("localhost", server.getsockname()[1])).recv(3))
"""
    assert await place.say(snippet, NONE) == "b'own'\n"


async def test_a_worker_without_egress_has_nothing_of_it_in_its_containers(place):
    async with networked_yard(place.yard.level, (Runtime.PYTHON,), place.gateway, worker=AI) as containers:
        assert len(containers.network.listening_addresses) == 1
        snippet = """
import socket
for kind, port in ((socket.SOCK_STREAM, 80), (socket.SOCK_STREAM, 443), (socket.SOCK_DGRAM, 53)):
    near = socket.socket(socket.AF_INET, kind); near.settimeout(30)
    try: near.connect(("127.0.0.1", port)); near.send(b"x"); near.recv(1)
    except OSError as error: print(type(error).__name__)
"""
        assert await Place(containers, place.gateway).say(snippet, AI) == f"{REFUSED}\n" * 3
