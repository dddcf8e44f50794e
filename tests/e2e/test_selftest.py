"""The worker attacks itself before it takes jobs and while it runs; a guard in doubt stops its runtime."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

from nanoagent.model.job import Runtime
from nanoagent.selftest.guards import Guard
from support.worker import RESULT_DEADLINE_S, WorkerUnderTest

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

HELLO = {"main.py": "print('hello')"}
HELLO_CPP = {"main.cpp": '#include <cstdio>\nint main() { puts("hello"); }'}


async def test_a_worker_tries_its_guards_before_the_first_job_and_again_beside_others(
    stack: EmbeddedStack, tmp_path: Path
) -> None:
    async with WorkerUnderTest(stack, tmp_path, {"SELFTEST_INTERVAL_SECONDS": "1"}) as worker:
        for runtime in Runtime:
            for guard in Guard:
                assert await worker.metric("worker_guard_ok", guard=guard, runtime=runtime) == 1, (
                    runtime,
                    guard,
                )
        status, ready = await worker.get("/readyz")
        assert (status, json.loads(ready)["parts"]["guards"]) == (200, {"ok": True, "reason": ""})

        def rounds() -> int:
            return worker.log.read_text().count('"all guards stand"')

        before = rounds()
        key = await worker.upload(HELLO)
        async with asyncio.timeout(RESULT_DEADLINE_S):
            while rounds() < before + len(Runtime):
                result = await worker.run(runtime="python", s3Key=key)
                assert (result["status"], result["stdout"]) == ("SUCCESS", "hello\n")


async def test_a_runtime_that_cannot_be_tried_takes_no_jobs_and_the_others_do(
    stack: EmbeddedStack, tmp_path: Path
) -> None:
    # An image without Python: nothing is known of what would hold a Python program.
    settings = {"SELFTEST_INTERVAL_SECONDS": "3600", "DOCKER_PYTHON_IMAGE": "nanoagent-cpp:latest"}
    async with WorkerUnderTest(stack, tmp_path, settings, until_ready=False) as worker:
        waiting = worker.message(runtime="python", s3Key=await worker.upload(HELLO))
        await stack.send(json.dumps(waiting), queue_url=worker.queue_url)
        done = await worker.run(runtime="cpp", s3Key=await worker.upload(HELLO_CPP))
        assert (done["status"], done["stdout"]) == ("SUCCESS", "hello\n")
        async with asyncio.timeout(RESULT_DEADLINE_S):
            while "no python jobs are taken here" not in worker.log.read_text():  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.1)
        assert await worker.redis.get(f"result:{waiting['requestId']}") is None
        assert "attempt failed" not in worker.log.read_text()
        status, ready = await worker.get("/readyz")
        part = json.loads(ready)["parts"]["guards"]
        assert (status, part["ok"]) == (503, False)
        assert part["reason"].startswith(
            "python takes no jobs: its guards could not be tried: /usr/bin/python3"
        )


async def test_a_person_can_have_the_guards_tried(stack: EmbeddedStack, tmp_path: Path) -> None:
    environment = WorkerUnderTest(stack, tmp_path).environment() | {"SQS_QUEUE_URL": stack.queue_url}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nanoagent", "selftest", "--json"),
        env=environment | {"PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(RESULT_DEADLINE_S):
        said, _ = await process.communicate()
    found = json.loads(said)
    assert (process.returncode, found["ok"]) == (0, True), found
    assert found["isolation"] in {"sandbox", "shared"}
    assert {runtime: list(each["guards"]) for runtime, each in found["runtimes"].items()} == {
        runtime: list(Guard) for runtime in Runtime
    }
