"""The worker tests itself before it takes jobs and while it runs; a runtime that fails takes no jobs."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

from nanoagent.model.job import Runtime
from nanoagent.selftest.checks import IsolationCheck
from support.agents.worker import RESULT_DEADLINE_S, WorkerUnderTest

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

HELLO = {"main.py": "print('hello')"}
HELLO_CPP = {"main.cpp": '#include <cstdio>\nint main() { puts("hello"); }'}


async def test_a_worker_tests_itself_before_the_first_job_and_again_beside_others(
    stack: EmbeddedStack, tmp_path: Path
) -> None:
    async with WorkerUnderTest(stack, tmp_path, {"SELFTEST_INTERVAL_SECONDS": "1"}) as worker:
        for runtime in Runtime:
            for check in IsolationCheck:
                assert await worker.metric("worker_guard_ok", guard=check, runtime=runtime) == 1, (
                    runtime,
                    check,
                )
        status, ready = await worker.get("/readyz")
        assert (status, json.loads(ready)["parts"]["guards"]) == (200, {"ok": True, "reason": ""})

        def rounds() -> int:
            return worker.log.read_text().count('"isolation checks passed"')

        before = rounds()
        key = await worker.upload(HELLO)
        async with asyncio.timeout(RESULT_DEADLINE_S):
            while rounds() < before + len(Runtime):
                result = await worker.run(runtime="python", s3Key=key)
                assert (result["status"], result["stdout"]) == ("SUCCESS", "hello\n")


async def test_a_runtime_that_cannot_be_tested_takes_no_jobs_and_the_others_do(
    stack: EmbeddedStack, tmp_path: Path
) -> None:
    # An image without Python: nothing is known of what would hold a Python program.
    settings = {"SELFTEST_INTERVAL_SECONDS": "3600", "DOCKER_PYTHON_IMAGE": "nanoagent-cpp:latest"}
    async with WorkerUnderTest(stack, tmp_path, settings, until_ready=False) as worker:
        waiting = worker.message(runtime="python", s3Key=await worker.upload(HELLO))
        await stack.queues.send(json.dumps(waiting), queue_url=worker.queue_url)
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
            "python takes no jobs: the self-test could not run: /usr/bin/python3"
        )


async def test_a_person_can_run_the_self_test(stack: EmbeddedStack, tmp_path: Path) -> None:
    settings = WorkerUnderTest(stack, tmp_path).environment()
    # It needs neither a queue nor buckets nor Redis.
    environment = {name: value for name, value in settings.items() if name.startswith(("DOCKER_", "CODE_"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nanoagent", "selftest", "--json"),
        env=environment | {"PATH": "/usr/bin:/bin"},
        cwd=tmp_path,  # without a .env
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(RESULT_DEADLINE_S):
        said, _ = await process.communicate()
    found = json.loads(said)
    assert (process.returncode, found["ok"]) == (0, True), found
    assert found["isolation"] in {"sandbox", "shared"}
    assert {runtime: list(each["guards"]) for runtime, each in found["runtimes"].items()} == {
        runtime: list(IsolationCheck) for runtime in Runtime
    }
