"""Many runs at once, each in a container of its own, ask the real gateway: none sees or pays for another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from nanoagent.model.job import NetworkPolicy, Runtime
from nanoagent.model.result import Isolation
from support.sandboxes.containers import RUN_STDIN
from support.services import gateways
from support.services.networks import networked_yard

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS = 50
AT_ONCE = 8  # containers, which are what takes the time
# Three calls at the same time, in both APIs, streamed and whole; every other run hangs up on a fourth.
ASK = """
import json, threading, urllib.request
NUMBER = int(open("/input/payload.json").readline()[1:])
def post(path, body):
    request = urllib.request.Request("http://127.0.0.1:11434" + path, json.dumps(body).encode())
    return urllib.request.urlopen(request, timeout=100)
if NUMBER % 2:
    with post("/api/generate", {"prompt": f"count to {NUMBER + 1}"}) as hung: hung.readline()
question = {"messages": [{"role": "user", "content": f"secret-of-{NUMBER} " + "x " * NUMBER}]}
answers = []
def ask(path, body):
    with post(path, body) as answer: answers.append(answer.read())
openais = "/v1/chat/completions"
calls = [("/api/chat", question), (openais, question | {"stream": True}), (openais, question)]
threads = [threading.Thread(target=ask, args=call) for call in calls]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(answers), all(
    answer.count(b"secret-of-") == 1
    and f"secret-of-{NUMBER}".encode() in answer
    and f'"model": "model-{NUMBER}"'.encode() in answer
    for answer in answers
))
"""


@pytest.fixture
async def rig():
    async with gateways.rig() as made:
        yield made


async def test_fifty_concurrent_runs_neither_see_nor_pay_for_each_other(
    rig: gateways.Rig, record_property: Callable[[str, object], None]
):
    async with networked_yard(
        Isolation.SANDBOX, (Runtime.PYTHON,), rig.gateway(), worker=NetworkPolicy.AI
    ) as yard:
        function = yard.containers.function(Runtime.PYTHON, RUN_STDIN[Runtime.PYTHON])

        containers = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            names = {"name": f"r-{number}", "model": f"model-{number}"}
            async with containers:
                ran, run = await yard.run(
                    function, f"#{number}\n{ASK}", NetworkPolicy.AI, timeout_ms=120_000, **names
                )
            assert ran.execution.error_type is None, (ran.execution.message, ran.stderr)
            assert ran.stdout == "3 True\n"
            prompt, completion = 3 * (number + 1), 3 * (number + 2)
            if number % 2 == 0:
                assert (run.usage.prompt_tokens, run.usage.completion_tokens) == (prompt, completion)
            else:  # what it hung up on was read to its end, or to the run's: by how much, the machine decides
                assert 0 < run.usage.prompt_tokens - prompt <= 5
                assert 0 < run.usage.completion_tokens - completion <= number + 1
            assert run.usage.requests == 3 + number % 2

        await asyncio.gather(*map(one, range(RUNS)))
    assert len(rig.stub_model_server.log) == 3 * RUNS + RUNS // 2
    record_property("tried", ["runs in containers through the gateway", RUNS])
