"""Measures the time that the AI gateway adds to a call: direct calls, and the same calls through the gateway.

    python -m benchmarks.gateway                 a table, then a JSON object
    python -m benchmarks.gateway --calls 400     calls of each kind on each way (default 200)

The stub model server, the gateway and the caller are separate processes, like a model server, an agent and a
container. The stub answers at once, faster than every model. So the ratios are the worst case, and the
differences are the useful figures. Both ways take turns, call by call, so that other work on the machine
affects both. The gateway's CPU time per call depends least on other work.

For streams, the time to the first piece and the time to the end are measured. `held_pieces` shows that the
gateway holds no piece back: the stub stops after three pieces, and the caller must have received all three.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import socket
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from benchmarks import stats

from nanoagent.ai.gateway import Gateway
from nanoagent.ai.limits import GatewayLimits
from nanoagent.ai.upstreams import HttpUpstream, Upstreams, new_session
from nanoagent.model.job import NetworkPolicy, Runtime
from nanoagent.network.base import NetworkRun
from nanoagent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_HOST: Final = "127.0.0.1"
_TIMEOUT_S: Final = 60
_WARM_UP: Final = 20
_LONG: Final = "word " * 13_000  # 64 KiB
_PIECES: Final = 300
_STREAM: Final = {"messages": [{"role": "user", "content": f"count to {_PIECES}"}], "model": "m"}

CALLS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "chat": ("/api/chat", {"model": "m", "stream": False, "messages": [{"role": "user", "content": "hi"}]}),
    "chat, OpenAI's": (
        "/v1/chat/completions",
        {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    ),
    "64 KiB of prompt": ("/v1/completions", {"model": "m", "prompt": _LONG, "max_tokens": 4}),
    "stream": ("/api/chat", _STREAM),
    "stream, OpenAI's": ("/v1/chat/completions", _STREAM | {"stream": True}),
    "embeddings": ("/v1/embeddings", {"model": "m", "input": ["a b c"] * 64}),
}


@dataclass(slots=True)
class Times:
    """The times of one kind of call on one way, ms.

    Attributes:
        first: The time to the first piece.
        whole: The time to the end.
        cpu: The CPU time of the gateway.
    """

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


async def serve(upstream: str) -> None:
    """Serve as the gateway of one run. The first line of standard output is the URL."""
    run = NetworkRun(
        request_id="benchmark",
        function_id="f",
        runtime=Runtime.PYTHON,
        model="m",
        policy=NetworkPolicy.AI,
        deadline=float("inf"),
    )
    session = new_session()
    gateway = Gateway(Upstreams((HttpUpstream(session, upstream),)), GatewayLimits(), Metrics())
    listener = socket.create_server((_HOST, 0), backlog=128)
    listener.setblocking(False)
    print(f"http://{_HOST}:{listener.getsockname()[1]}", flush=True)
    loop = asyncio.get_running_loop()
    serving = set()
    while True:
        connection, _ = await loop.sock_accept(listener)
        task = asyncio.create_task(gateway.serve(connection, run))
        serving.add(task)
        task.add_done_callback(serving.discard)


@dataclass(frozen=True, slots=True)
class Process:
    """A Python process.

    Attributes:
        address: Its URL.
        pid: Its process ID.
    """

    address: str
    pid: int

    def cpu_ms(self) -> float:
        """Return the CPU time of its only thread, ms: proc(5), schedstat."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e6


@contextmanager
def process(*arguments: str) -> Iterator[Process]:
    """Run a Python process whose first line of output is its URL; it is ended at the end of the block."""
    command = [sys.executable, "-m", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own modules
    try:
        assert child.stdout is not None
        yield Process(child.stdout.readline().strip(), child.pid)
    finally:
        child.terminate()
        child.wait()


def call(address: str, path: str, body: bytes, times: Times) -> None:
    """Make one call on a new connection, as most functions do, and add its times."""
    begun = time.perf_counter()
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        response.read1(65536)
        times.first.append((time.perf_counter() - begun) * 1000)
        response.read()
        times.whole.append((time.perf_counter() - begun) * 1000)
    finally:
        connection.close()


def measure(direct: str, gateway: Process, calls: int) -> dict[str, tuple[Times, Times]]:
    """Measure each kind of call, with both ways in turns."""
    measured, through = {}, gateway.address
    for name, (path, request) in CALLS.items():
        body = json.dumps(request).encode()
        for _ in range(_WARM_UP):
            call(direct, path, body, Times())
            call(through, path, body, Times())
        ways = Times(), Times()
        for at in range(calls):
            used = gateway.cpu_ms()
            order = ((direct, ways[0]), (through, ways[1]))
            for address, times in order if at % 2 else order[::-1]:
                call(address, path, body, times)
            ways[1].cpu.append(gateway.cpu_ms() - used)
        measured[name] = ways
    return measured


def received_pieces(through: str) -> int:
    """Return how many pieces of a stream arrive while the model server waits after the third."""
    connection = http.client.HTTPConnection(urlsplit(through).netloc, timeout=_TIMEOUT_S)
    try:
        body = json.dumps({"model": "fault/hold", "prompt": "count to 9"})
        connection.request("POST", "/api/generate", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        for pieces in range(1, 4):
            assert json.loads(response.readline())["response"].strip() == str(pieces)
        return pieces
    finally:
        connection.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the results. The last line is a JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=200, help="calls of each kind on each way (default 200)")
    parser.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        asyncio.run(serve(options.serve))
        return
    with (
        process("nanoagent.dev.stub_model_server", "--port", "0") as direct,
        process("benchmarks.gateway", "--serve", direct.address) as gateway,
    ):
        pieces = received_pieces(gateway.address)
        measured = measure(direct.address, gateway, options.calls)
    shown: dict[str, Any] = {"calls": options.calls, "held_pieces": pieces}
    for name, (straight, through) in measured.items():
        for part in ("first", "whole"):
            below, above = getattr(straight, part), getattr(through, part)
            ratio = stats.ratio_of_medians(above, below)
            added = statistics.median(above) - statistics.median(below)
            shown[f"{name}, {part}"] = {
                "direct_ms": round(statistics.median(below), 3),
                "added_ms": round(added, 3),
                "ratio": [round(ratio.value, 2), round(ratio.low, 2), round(ratio.high, 2)],
            }
            print(
                f"{name:18} {part:6} {statistics.median(below):7.2f} ms direct, {added:+6.2f} ms, "
                f"{ratio.value:5.2f} x ({ratio.low:.2f} to {ratio.high:.2f})"
            )
        shown[f"{name}, cpu_ms"] = round(statistics.median(through.cpu), 3)
        print(f"{name:18} {'CPU':6} {statistics.median(through.cpu):7.2f} ms in the gateway")
    print(json.dumps(shown))


if __name__ == "__main__":
    main()
