"""Messages that nobody should send, through the real queue: each is settled, and the next job is done."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import pytest

from nanoagent.model.job import Runtime
from support.agents.worker import WorkerUnderTest
from support.checks.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

SECRETIVE: Final = {"__proto__": {"requestId": "x"}, "constructor": 1, "\u202e": 2, "": 3}

UNREADABLE: Final = [
    "no JSON",
    "null",
    "[]",
    '"requestId"',
    "{",
    "{}",
    "\ufeff\ufeff{}",
    "[" * 100_000,
    '{"a":' * 50_000,
    "9" * 200_000,
    '{"requestId":null}',
    '{"requestId":["r"]}',
    '{"requestId":"."}',
    '{"requestId":".."}',
    '{"requestId":"../../etc/passwd"}',
    '{"requestId":"a/b"}',
    '{"requestId":"r\\u0000"}',
    '{"requestId":"r\\r\\nFLUSHALL\\r\\n"}',
    '{"requestId":"*"}',
    '{"requestId":"job:x"}',
    '{"requestId":"\\ud800"}',
    '{"requestId":"' + "a" * 129 + '"}',
    '{"requestId":"r1","input":' + "[" * 100_000 + "]" * 100_000 + "}",
    "<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
    "$(reboot) `reboot` {{7*7}} ${jndi:ldap://x} %s%n",
]
REFUSED: Final[list[dict[str, Any]]] = [
    {"s3Key": None},
    {"s3Key": ""},
    {"s3Key": "\ud800"},
    {"s3Key": "a\0b"},
    {"memoryMb": 10**4000},
    {"memoryMb": -1},
    {"memoryMb": "128"},
    {"memoryMb": 1e400},
    {"timeoutMs": 0},
    {"timeoutMs": True},
    {"runtime": "python\x1b[2J\n"},
    {"runtime": ["python"]},
    {"functionId": "a\nb"},
    {"functionId": "x" * 257},
    {"functionId": {"$gt": ""}},
    {"s3Bucket": "../other"},
    {"s3Bucket": "a" * 10_000},
    {"s3Bucket": "https://" + "a.s3." * 200_000},
    {"s3Key": "https://" + "a.s3." * 200_000},
    {"modelId": "\u202e"},
    {"modelId": "\u202e" * 140_000},
    {"input": float("nan")},
    {"input": [float("inf"), -float("inf")]},
]
NOT_THERE: Final[list[dict[str, Any]]] = [
    {"s3Key": key}
    for key in (
        "../x",
        "..",
        "/",
        "a//b",
        "a\r\nX-Header: 1",
        "\x1b[2J",
        "?versionId=1",
        "#",
        "%2e%2e/",
        "x" * 1024,
    )
] + [{"s3Bucket": bucket} for bucket in ("1.2.3.4", "a..b", "nanoagent-nobody")]
GOOD: Final[list[dict[str, Any]]] = [
    {"input": "\ud800 \udfff"},
    {"input": json.loads("[" * 200 + "]" * 200)},
    {"input": "x" * 900_000},
    {"input": SECRETIVE, **SECRETIVE},
    {"functionId": "$(reboot) ../../ '\" <b> 한글"},
]


async def _are_told(worker: WorkerUnderTest, request_ids: list[str]) -> bool:
    return await worker.redis.exists(*(f"job:{request_id}" for request_id in request_ids)) == len(request_ids)


async def _are_dead(worker: WorkerUnderTest, bodies: list[str]) -> bool:
    """Whether just these messages are in the dead-letter queue."""
    letters = await worker.stack.queues.dead_letters(queue_url=worker.dead_letter_url)
    return sorted(letter["body"] for letter in letters) == sorted(bodies)


async def _is_empty(worker: WorkerUnderTest) -> bool:
    return await worker.stack.queues.depth(queue_url=worker.queue_url) == (0, 0, 0)


async def test_hostile_messages_are_settled_and_the_next_job_is_done(
    stack: EmbeddedStack, tmp_path: Path, record_property: Callable[[str, Any], None]
):
    colds = {f"WARM_POOL_{runtime.upper()}_SIZE": "0" for runtime in Runtime}
    # On a busy machine, the worker does not wait long enough for an answer with many megabytes of messages.
    # They have been received then, and come back after the visibility timeout.
    settings = colds | {"SQS_VISIBILITY_SECONDS": "10"}
    async with WorkerUnderTest(stack, tmp_path, settings, max_receives=4) as worker:
        key = await worker.upload({"main.py": "import sys; print(len(sys.stdin.read()))"})
        told: dict[str, str | None] = {}
        bodies = list(UNREADABLE)
        for kind, documents in (("INVALID_JOB", REFUSED), ("CODE_NOT_FOUND", NOT_THERE), (None, GOOD)):
            for fields in documents:
                job = worker.message(s3Key=key) | fields
                told[job["requestId"]] = kind
                bodies.append(json.dumps(job))
        for body in bodies:
            await stack.queues.send(body, queue_url=worker.queue_url)

        honest = await worker.run(s3Key=key, input="honest")
        await eventually(lambda: _are_told(worker, list(told)))
        results = [json.loads(await worker.redis.get(f"job:{request_id}") or "") for request_id in told]
        await eventually(lambda: _are_dead(worker, UNREADABLE))

        assert (honest["status"], honest["stdout"]) == ("SUCCESS", "8\n")
        assert {result["requestId"]: result["errorType"] for result in results} == told
        assert all((result["errorMessage"] or "").isprintable() for result in results)
        await eventually(lambda: _is_empty(worker))
        log = worker.log.read_text()
        assert "Traceback" not in log
        assert '"exception"' not in log
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", log)
    record_property("tried", ["messages", len(bodies) + 1])
