"""Failed jobs of a real worker leave capsules, from which `replay` and `retry` run them again."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pytest
import pytest_asyncio

from nanoagent.dev.stub_model_server import StubModelServer
from nanoagent.model import capsule as capsules
from support.agents.worker import RESULT_DEADLINE_S, WorkerUnderTest
from support.checks.matrix import EXHAUSTIVE
from support.services.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack
    from nanoagent.model.capsule import Capsule

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

SECRET: Final = "value-of-the-variable"
NODE_WAITS: Final = "console.log('waits'); setInterval(() => {}, 1000);"


@dataclass(frozen=True)
class Case:
    """A function that fails, and its correction."""

    runtime: str
    entry: str
    source: str
    correction: str
    error_type: str
    fields: dict[str, Any] = field(default_factory=dict)


CASES: Final = {
    "python KeyError": Case(
        "python",
        "main.py",
        "import json, os\nprint(json.loads(os.environ['PAYLOAD'])['name'])\n",
        "print('ok')\n",
        "USER_ERROR",
        {"input": {"nam": "x"}},
    ),
    "out of memory": Case(
        "python",
        "main.py",
        "print('begun', flush=True)\nx = bytearray(10 ** 9)\n",
        "print('ok')\n",
        "OUT_OF_MEMORY",
        {"memoryMb": 64},
    ),
    "C++ compile error": Case(
        "cpp",
        "main.cpp",
        "int main() { return undeclared; }\n",
        "int main() { return 0; }\n",
        "BUILD_FAILED",
    ),
    "Go panic": Case(
        "go",
        "main.go",
        'package main\n\nfunc main() { var m map[string]int; m["a"] = 1 }\n',
        "package main\n\nfunc main() {}\n",
        "USER_ERROR",
    ),
    "Node.js timeout": Case(
        "nodejs", "index.js", NODE_WAITS, "console.log('ok');", "TIMEOUT", {"timeoutMs": 1500}
    ),
    "model call": Case(
        "python",
        "main.py",
        "import ai_client as a\nprint(a.generate('one two'))\na.generate('three', model='fault/500')\n",
        "import ai_client as a\nprint(a.generate('one two'))\n",
        "USER_ERROR",
    ),
}

TYPICAL: Final = ("python KeyError", "C++ compile error", "model call")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def recording(
    stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[WorkerUnderTest]:
    """A worker that records model calls, and a model server."""
    folder = tmp_path_factory.mktemp("recording")
    async with StubModelServer() as models:
        settings = {"AI_RECORD": "store", "AI_ENDPOINT": models.url, "MAX_PROCESSES": "128"}
        async with WorkerUnderTest(stack, folder, settings) as worker:
            yield worker


async def command(
    worker: WorkerUnderTest, *arguments: str, services: bool = True, **changes: str
) -> tuple[int | None, str, str]:
    """Run a command with the settings of the worker; without services, nothing but Docker can be reached."""
    environment = worker.environment()
    if not services:
        kept = ("DOCKER_", "CODE_", "LOCALE")
        environment = {name: value for name, value in environment.items() if name.startswith(kept)}
        environment["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"
    environment.pop("AI_ENDPOINT", None)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nanoagent", *arguments, "--env-file", os.devnull),
        env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        | environment
        | changes,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(RESULT_DEADLINE_S):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def capsule_of(worker: WorkerUnderTest, result: dict[str, Any]) -> Capsule:
    """Return the capsule of a result. It is stored in the background, soon after the publication."""
    async with asyncio.timeout(RESULT_DEADLINE_S):
        while True:
            try:
                stored = await worker.stack.buckets.read(worker.stack.data_bucket, result["capsule"])
            except Exception as exc:
                if "NoSuchKey" not in str(exc):
                    raise
                await asyncio.sleep(0.05)
            else:
                return capsules.decode(stored)


async def fail(worker: WorkerUnderTest, case: Case, **more: Any) -> dict[str, Any]:
    """Run the function of a case on the worker, and return its result after its capsule is stored."""
    key = await worker.upload({case.entry: case.source})
    fields = {"runtime": case.runtime, "s3Key": key, "timeoutMs": 60_000, **case.fields, **more}
    result = await worker.run(**fields)
    assert result["errorType"] == case.error_type, result
    await capsule_of(worker, result)
    return result


@pytest.mark.parametrize(
    "name", [name if name in TYPICAL else pytest.param(name, marks=EXHAUSTIVE) for name in CASES]
)
async def test_the_failure_repeats_and_a_correction_succeeds(
    recording: WorkerUnderTest, name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    result = await fail(recording, case)
    saved = tmp_path / "failure.zip"
    code, _, err = await command(recording, "replay", result["requestId"], "--save", str(saved))
    assert (code, saved.exists()) == (0, True), err

    # Offline: no queue, no S3, no Redis, no model server.
    code, out, err = await command(recording, "replay", str(saved), "--json", services=False)
    assert code == 0, err
    document = json.loads(out)
    assert (document["verdict"], document["notes"]) == ("repeats", [])
    assert document["here"]["errorType"] == case.error_type
    same = {field["name"]: field["same"] for field in document["fields"]}
    assert all(same[name] for name in ("status", "error type", "exit code", "error", "stdout"))
    assert document["here"]["llmTokenCount"] == result["llmTokenCount"]
    if name != "out of memory":  # a killed interpreter may or may not have said something
        assert document["diffs"] == {}

    (tmp_path / "correction").mkdir()
    (tmp_path / "correction" / case.entry).write_text(case.correction)
    correction = str(tmp_path / "correction")
    code, out, err = await command(recording, "replay", str(saved), "--code", correction, services=False)
    assert code == 5, err
    assert out.splitlines()[-1] == "The job succeeds now."


async def test_a_capsule_is_found_by_its_id_and_by_its_url(recording: WorkerUnderTest) -> None:
    result = await fail(recording, CASES["python KeyError"])
    capsule = await capsule_of(recording, result)
    assert capsule.settings["MAX_PROCESSES"] == 128
    assert capsule.code is not None
    assert capsule.code.digest is not None
    assert capsule.code.etag is not None
    url = f"s3://{recording.stack.data_bucket}/{result['capsule']}"
    for name in (result["requestId"], url):
        code, out, err = await command(recording, "replay", name)
        assert (code, out.splitlines()[-1]) == (0, "The failure repeats."), err


async def test_values_of_variables_are_not_in_the_bucket_and_missing_ones_are_told(
    recording: WorkerUnderTest,
) -> None:
    source = "import os, sys\nprint(os.environ['TOKEN'])\nsys.exit('bad ' + os.environ['TOKEN'])\n"
    case = Case("python", "main.py", source, "", "USER_ERROR", {"env": {"TOKEN": SECRET}})
    result = await fail(recording, case)
    stored = await recording.stack.buckets.read(recording.stack.data_bucket, result["capsule"])
    assert SECRET.encode() not in stored
    assert b'"TOKEN":null' in stored

    request_id = result["requestId"]
    code, out, err = await command(recording, "replay", request_id, "--json", "--env", f"TOKEN={SECRET}")
    assert (code, json.loads(out)["verdict"], json.loads(out)["notes"]) == (0, "repeats", []), err
    assert SECRET not in out
    code, out, _ = await command(recording, "replay", request_id)
    assert "note   Variables without a value: TOKEN." in out
    assert (code, out.splitlines()[-1]) == (6, "The job fails in another way.")

    code, _, err = await command(recording, "retry", request_id)
    assert code == 2
    assert "the values of TOKEN are unknown" in err
    code, out, _ = await command(
        recording, "retry", request_id, "--wait", "60", "--json", "--env", f"TOKEN={SECRET}"
    )
    again = json.loads(out)
    assert (code, again["retryOf"], again["stage"]) == (1, request_id, "sent")
    assert again["result"]["requestId"] == again["requestId"] != request_id
    assert again["result"]["errorMessage"] == result["errorMessage"]


async def test_a_retry_says_both_ids_and_runs_the_same_message(recording: WorkerUnderTest) -> None:
    result = await fail(recording, CASES["python KeyError"])
    code, out, err = await command(recording, "retry", result["requestId"], "--wait", "60")
    assert code == 1, err
    again = json.loads(out)
    assert f"Sent {result['requestId']} again as {again['requestId']}." in err
    assert again["errorMessage"] == "KeyError: 'name'"


async def test_a_request_without_a_capsule_is_told_with_the_setting(recording: WorkerUnderTest) -> None:
    key = await recording.upload({"main.py": "print(1)"})
    result = await recording.run(s3Key=key)
    assert result["capsule"] is None
    for name in ("replay", "retry"):
        code, _, err = await command(recording, name, result["requestId"])
        assert (code, "CAPSULES" in err, err.count("\n")) == (4, True, 1)


async def test_code_that_has_changed_since_then_is_told(recording: WorkerUnderTest) -> None:
    case = CASES["python KeyError"]
    key = await recording.upload({"main.py": case.source})
    result = await recording.run(s3Key=key, **case.fields)
    await capsule_of(recording, result)
    await recording.upload({"main.py": "print('other')"}, key)
    code, out, _ = await command(recording, "replay", result["requestId"])
    assert "note   The code in S3 has changed since then; the replay uses the new code." in out
    assert code == 5


@pytest.mark.parametrize(
    ("fields", "error_type"),
    [({"s3Key": "code/missing.zip"}, "CODE_NOT_FOUND"), ({"memoryMb": 1}, "INVALID_JOB")],
)
async def test_a_job_that_never_started_repeats_too(
    recording: WorkerUnderTest, fields: dict[str, Any], error_type: str
) -> None:
    result = await recording.run(**({"s3Key": "code/none.zip"} | fields))
    assert result["errorType"] == error_type
    await capsule_of(recording, result)
    code, out, err = await command(recording, "replay", result["requestId"])
    assert (code, out.splitlines()[-1]) == (0, "The failure repeats."), err + out


async def test_a_hostile_zip_is_answered_in_the_same_way(recording: WorkerUnderTest, tmp_path: Path) -> None:
    key = await recording.upload(b"PK\x03\x04 no zip")
    result = await recording.run(s3Key=key)
    assert result["errorType"] == "INVALID_CODE"
    await capsule_of(recording, result)
    code, out, err = await command(recording, "replay", result["requestId"])
    assert (code, out.splitlines()[-1]) == (0, "The failure repeats."), err + out


async def test_while_capsules_cannot_be_stored_jobs_are_answered(
    stack: EmbeddedStack, tmp_path: Path
) -> None:
    async with Recorder(stack.endpoint_url) as recorder:
        recorder.fault = lambda call: "/capsules/" in call.resource
        settings = recorder.environment() | {"WARM_POOL_NODEJS_SIZE": "0", "WARM_POOL_CPP_SIZE": "0"}
        async with WorkerUnderTest(stack, tmp_path, settings | {"WARM_POOL_GO_SIZE": "0"}) as worker:
            key = await worker.upload({"main.py": "1/0"})
            results = await worker.run_all([worker.message(s3Key=key) for _ in range(5)])
            assert {result["errorType"] for result in results} == {"USER_ERROR"}
            assert (await worker.get("/readyz"))[0] == 200
            async with asyncio.timeout(RESULT_DEADLINE_S):
                while await worker.metric("worker_capsules_total", outcome="failed") < 5:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert "capsule not stored" in worker.log.read_text()
            code, _, err = await command(worker, "replay", results[0]["requestId"])
            assert (code, err.count("\n")) == (3, 1), err
