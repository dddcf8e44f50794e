"""What an enemy found who read the finished change: memory of the host that nobody's limit counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.common.units import MIB
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType, Isolation
from support.sandboxes.adversarial import yard
from support.sandboxes.containers import RUN_STDIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.sandboxes.adversarial import Yard

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEVELS = (Isolation.SANDBOX, Isolation.SHARED)
MEMORY_MB = 64
SOCKETS = 900  # with the buffers that each has by default, three times as much as the run's memory


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=LEVELS, ids=str)
async def containers(request: pytest.FixtureRequest) -> AsyncIterator[Yard]:
    async with yard(request.param, (Runtime.PYTHON,)) as made:
        yield made


# What arrives in a socket that nobody reads from, and all of it after the last.
SENDING = {
    "UDP": """
here = []
for _ in range(SOCKETS):
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    here.append(receiver)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        for _ in range(8):
            try: sender.sendto(bytes(50_000), receiver.getsockname())
            except OSError: break
""",
    "TCP": """
here = []
listener = socket.create_server(("127.0.0.1", 0))
for _ in range(SOCKETS // 2):
    sender = socket.create_connection(listener.getsockname())
    receiver, _ = listener.accept()
    sender.setblocking(False)
    here += [sender, receiver]
    for _ in range(8):
        try: sender.send(bytes(500_000))
        except OSError: break
here = here[1::2]
""",
}
COUNT = """
held = 0
for receiver in here:
    receiver.setblocking(False)
    try:
        while got := len(receiver.recv(1 << 20)):
            held += got
    except OSError:
        pass
print(held)
"""


@pytest.mark.parametrize("protocol", SENDING)
async def test_unread_data_in_sockets_counts_as_memory_of_the_run(
    containers: Yard, protocol: str, record_property: Callable[[str, object], None]
):
    """Control groups v1 count it apart and v2 with all else; without a limit a run has gigabytes of it."""
    function = containers.function(Runtime.PYTHON, RUN_STDIN[Runtime.PYTHON])
    snippet = f"import socket\nSOCKETS = {SOCKETS}\n{SENDING[protocol]}{COUNT}"
    ran = await containers.run(function, snippet, memory_mb=MEMORY_MB, open_files=1024)
    record_property("tried", ["attacks", 1])
    if ran.execution.error_type is ErrorType.OUT_OF_MEMORY:
        return
    assert ran.execution.error_type is None, (ran.execution.message, ran.stderr)
    assert 0 < int(ran.stdout) < MEMORY_MB * MIB
    after = await containers.run(function, "print('fine')", memory_mb=MEMORY_MB)
    assert after.stdout == "fine\n"


# The kernel makes a connection's other end when nobody's control group is asked, and keeps it.
UNACCEPTED = """
import os, socket, struct
kept = []
for number in range(2, 60):
    listener = socket.socket()
    listener.bind((f"127.0.0.{number}", 0))
    listener.listen(65_535)
    kept.append(listener)
    for _ in range(1_000):
        with socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            caller.connect(listener.getsockname())
print(open("/proc/net/sockstat").readline())
"""


async def test_a_run_with_too_many_unaccepted_connections_is_ended(
    containers: Yard, record_property: Callable[[str, object], None]
):
    function = containers.function(Runtime.PYTHON, RUN_STDIN[Runtime.PYTHON])
    ran = await containers.run(function, UNACCEPTED, timeout_ms=60_000)
    record_property("tried", ["attacks", 1])
    assert (ran.execution.error_type, ran.stdout) == (ErrorType.OUT_OF_MEMORY, "")
    assert "sockets" in str(ran.execution.message)
    assert (await containers.run(function, "print('fine')")).stdout == "fine\n"
