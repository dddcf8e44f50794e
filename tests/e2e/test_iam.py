"""The policies in deploy/ allow what is asked of AWS, and nothing else.

A proxy in front of the embedded services refuses whatever the policy does not allow, so that a permission
that is missing fails as it would on AWS; what is allowed and was not needed fails at the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from redis import asyncio as redis

from nanoagent.model import capsule as capsules
from nanoagent.model.capsule import Capsule, CapsuleCode, CapsuleJob, CapsuleWorker, StoredObject
from nanoagent.model.job import NetworkPolicy, Reuse, Runtime
from nanoagent.model.result import ErrorType, Result, Status
from nanoagent.telemetry.cloudwatch import NAMESPACE
from support.agents.worker import RESULT_DEADLINE_S, WorkerUnderTest
from support.services.recorder import Grant, Recorder, grants_of, operations_in, worker_adapters

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.dev.local_services import EmbeddedStack

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/nanoagent"
POLICIES = sorted(path.name for path in (ROOT / "deploy").glob("iam-*.json"))
# Names as the policies have them: whoever deploys puts his own in their place.
JOBS, DEAD, CODE, DATA = "nanogrid-jobs", "nanogrid-jobs-dead", "nanogrid-code", "nanogrid-user-data"
LARGE_BYTES = 9 << 20  # more than one part of a multipart upload


def policy(name: str) -> set[Grant]:
    return grants_of(json.loads((ROOT / "deploy" / name).read_text()))


class HeldWorker(WorkerUnderTest):
    """A worker that reaches AWS by a recorder alone.

    Args:
        stack: The services.
        folder: For the agent's log and code cache: what others have fetched is not known here.
        recorder: Started.
        **settings: Beyond those that the stack needs.
    """

    def __init__(self, stack: EmbeddedStack, folder: Path, recorder: Recorder, **settings: str) -> None:
        pool = {f"WARM_POOL_{runtime}_SIZE": "0" for runtime in ("NODEJS", "CPP", "GO")}
        cache = {"CODE_CACHE_DIR": str(folder / "cache")}
        # Each receipt is a message's last: a job that is tried again is a copy.
        super().__init__(stack, folder, pool | cache | recorder.environment() | settings, max_receives=1)
        self._recorder = recorder

    def environment(self) -> dict[str, str]:
        queues = {self.queue_url: JOBS, self.dead_letter_url: DEAD}
        self._recorder.names |= {url.rsplit("/", 1)[-1]: name for url, name in queues.items()}
        self._recorder.names |= {self.stack.code_bucket: CODE, self.stack.data_bucket: DATA}
        return super().environment()


async def a_job_each_way(worker: HeldWorker, recorder: Recorder) -> str:
    """Every way of a job and of the worker itself that comes to AWS; returns a presigned link."""
    await worker.stack.queues.send("no JSON", queue_url=worker.queue_url)
    key = await worker.upload({"main.py": "print(1)"})
    for _ in range(2):  # the second time S3 is asked whether it has changed
        assert (await worker.run(s3Key=key))["stdout"] == "1\n"
    assert (await worker.run(s3Key="code/missing.zip"))["errorType"] == "CODE_NOT_FOUND"

    # Files of one part and of more, and logs that are too large for a result.
    leave = (
        f"open('/output/small', 'w').write('x')\nopen('/output/large', 'wb').write(bytes({LARGE_BYTES}))\n"
    )
    key = await worker.upload({"main.py": f"{leave}print('\\x01' * 200_000)"})
    left = await worker.run(s3Key=key)
    assert (left["status"], len(left["outputFiles"]), left["outputErrors"]) == ("SUCCESS", 2, [])
    assert len(await worker.output(left["stdoutUrl"])) > 100_000

    # The same again after its result was lost: what lies there is looked at, then replaced.
    message = worker.message(s3Key=key)
    for _ in range(2):
        (again,) = await worker.run_all([message])
        assert (again["status"], len(again["outputFiles"])) == ("SUCCESS", 2)
        await worker.redis.delete(f"job:{message['requestId']}")

    # A capsule, and again after its result was lost: the capsule is replaced.
    message = worker.message(s3Key=await worker.upload({"main.py": "1/0"}))
    capsule = f"capsules/{message['requestId']}.json"
    for puts in (1, 2):
        (failed,) = await worker.run_all([message])
        assert failed["capsule"] == capsule
        await answered(recorder, "PutObject", capsule, times=puts)
        await worker.redis.delete(f"job:{message['requestId']}")

    # Longer than a third of the lease, which is renewed then.
    key = await worker.upload({"main.py": "import time; time.sleep(2)"})
    assert (await worker.run(s3Key=key))["status"] == "SUCCESS"

    # S3 takes no part of a file: tried again, given up, buried.
    recorder.fault = lambda call: call.operation == "UploadPart"
    failed = await worker.run(s3Key=await worker.upload({"main.py": leave}))
    assert (failed["status"], failed["errorType"]) == ("FAILED", "PLATFORM")
    recorder.fault = lambda _: False
    await answered(recorder, "SendMessage")
    await answered(recorder, "PutMetricData")
    return str(next(link for link in left["outputFiles"] if "small" in link))


async def answered(recorder: Recorder, operation: str, key: str = "", *, times: int = 1) -> None:
    """Wait until calls of another process's doing have succeeded."""

    def count() -> int:
        return sum(
            call.operation == operation and call.resource.endswith(key) and call.status == 200
            for call in recorder.calls
        )

    async with asyncio.timeout(RESULT_DEADLINE_S):
        while count() < times:  # noqa: ASYNC110 - the worker's process has no event
            await asyncio.sleep(0.05)


async def test_a_worker_needs_all_that_its_policy_allows_and_nothing_else(
    stack: EmbeddedStack, tmp_path: Path, record_property: Callable[[str, object], None]
):
    allowed = policy("iam-policy.json")
    async with Recorder(stack.endpoint_url, grants=allowed) as recorder:
        settings = {
            "MAX_ATTEMPTS": "2",
            "SQS_VISIBILITY_SECONDS": "5",
            "CLOUDWATCH_INTERVAL_SECONDS": "1",
            "OUTPUT_URL_STYLE": "presigned",
        }
        async with HeldWorker(stack, tmp_path, recorder, **settings) as worker:
            link = await a_job_each_way(worker, recorder)
            assert await worker.agent.stop() == 0
        assert recorder.unknown == []
        assert recorder.operations() == operations_in(*worker_adapters(SOURCE))
        assert recorder.refused() == set()
        assert allowed - recorder.used() == set()
        record_property("tried", ["AWS calls", len(recorder.calls)])

        # As deploy/README.md says: a link can do what its signer can.
        assert await fetched(link) == 200
        recorder.grants = allowed - {Grant("s3:GetObject", f"arn:aws:s3:::{DATA}/outputs/*")}
        assert await fetched(link) == 403


async def test_secrets_need_all_that_their_policy_allows_and_nothing_else(
    stack: EmbeddedStack, tmp_path: Path
):
    allowed = policy("iam-policy-secrets.json")
    async with stack.clients() as clients:
        await (await clients.ssm()).put_parameter(Name="/functions/f/db", Value="v", Type="SecureString")
        await (await clients.secrets_manager()).create_secret(Name="functions/f", SecretString="v")
    async with Recorder(stack.endpoint_url, grants=allowed | policy("iam-policy.json")) as recorder:
        rules = "*=ssm:/functions/{functionId}/*,*=secretsManager:functions/{functionId},*=ssm:/other"
        async with HeldWorker(stack, tmp_path, recorder, SECRETS_ALLOW=rules) as worker:
            job: dict[str, Any] = {
                "s3Key": await worker.upload({"main.py": "import os\nprint(os.environ['B'] == 'v')"})
            }
            job["env"] = {"A": {"ssm": "/functions/f/db"}, "B": {"secretsManager": "functions/f"}}
            assert (await worker.run(**job))["stdout"] == "True\n"
            refused = await worker.run(**job | {"env": {"B": {"ssm": "/other"}}})
            assert "it lacks ssm:GetParameter" in refused["errorMessage"]
            assert await worker.agent.stop() == 0
    assert recorder.unknown == []
    assert {call.action for call in recorder.refused()} == {"ssm:GetParameter"}
    # Both services call KMS themselves, so the recorder does not see these calls.
    assert {grant.action for grant in allowed - recorder.used()} == {"kms:Decrypt"}


async def fetched(link: str) -> int:
    async with aiohttp.ClientSession() as client, client.get(link) as response:
        return response.status


async def test_a_sender_needs_all_that_its_policy_allows_and_nothing_else(
    stack: EmbeddedStack, tmp_path: Path
):
    allowed = policy("iam-policy-sender.json")
    (tmp_path / "main.py").write_text("print('hello')")
    async with Recorder(stack.endpoint_url, grants=allowed) as recorder:
        environment = WorkerUnderTest(stack, tmp_path).environment() | recorder.environment()
        queue = await asyncio.to_thread(stack.new_queue)
        recorder.names |= {queue.rsplit("/", 1)[-1]: JOBS, stack.code_bucket: CODE}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nanoagent", "send", str(tmp_path / "main.py"), "--wait", "0"),
            env=os.environ | environment | {"SQS_QUEUE_URL": queue},
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
        assert process.returncode == 0
        # No worker takes the job, so all calls have been made by then.
        assert b"Sent." in said
        assert recorder.unknown == []
        assert recorder.operations() == operations_in(SOURCE / "dev/sender/delivery.py")
        assert allowed - recorder.used() == set()
        assert recorder.refused() == set()


async def test_a_reader_needs_all_that_its_policy_allows_and_nothing_else(
    stack: EmbeddedStack, tmp_path: Path
):
    allowed = policy("iam-policy-reader.json")
    request_id = f"r-{secrets.token_hex(4)}"
    key = f"outputs/{request_id}/a.txt"
    link = f"https://s3.eu-west-1.amazonaws.com/{stack.data_bucket}/{key}"
    async with stack.clients() as clients:
        await (await clients.s3()).put_object(Bucket=stack.data_bucket, Key=key, Body=b"content")
    document = {"requestId": request_id, "status": "SUCCESS", "outputFiles": [link]}
    async with redis.Redis(host=stack.redis_host, port=stack.redis_port) as client:
        await client.set(f"job:{request_id}", json.dumps(document), ex=600)
    async with Recorder(stack.endpoint_url, grants=allowed) as recorder:
        recorder.names |= {stack.data_bucket: DATA}
        environment = stack.environment() | recorder.environment()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nanoagent", "outputs", request_id, "--download", str(tmp_path / "out")),
            env=os.environ | environment,
            cwd=tmp_path,
        )
        assert await process.wait() == 0
        assert (tmp_path / "out/a.txt").read_bytes() == b"content"
        assert recorder.unknown == []
        assert recorder.operations() == operations_in(SOURCE / "dev/jobs/outputs.py")
        assert allowed - recorder.used() == set()
        assert recorder.refused() == set()


async def commanded(environment: dict[str, str], *arguments: str | Path) -> tuple[int | None, str]:
    """Run a command of `nanoagent`; returns its exit code and its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nanoagent", *map(str, arguments)),
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def test_those_who_deploy_and_invoke_need_all_that_their_policies_allow_and_nothing_else(
    stack: EmbeddedStack, tmp_path: Path
):
    code = tmp_path / "own-function"
    code.mkdir()
    (code / "main.py").write_text("print('hello')")
    queue = await asyncio.to_thread(stack.new_queue)
    deployer, invoker = policy("iam-policy-deployer.json"), policy("iam-policy-invoker.json")
    async with Recorder(stack.endpoint_url, grants=deployer) as recorder:
        environment = stack.environment() | recorder.environment() | {"SQS_QUEUE_URL": queue}
        recorder.names |= {queue.rsplit("/", 1)[-1]: JOBS, stack.code_bucket: CODE}
        for arguments, expected in (
            (["deploy", code], "Deployed own-function, version 1"),
            (["deploy", code, "--memory", "64"], "Deployed own-function, version 2"),
            (["deploy", "--function", "own-function", "--rollback"], "Rolled own-function back to version 1"),
            (["functions"], "own-function"),
        ):
            returned, said = await commanded(environment, *arguments)
            assert (returned, expected in said) == (0, True), said
        (code / "main.py").write_text("print('bye')")
        assert "~ main.py" in (await commanded(environment, "deploy", code, "--dry-run"))[1]
        assert recorder.unknown == []
        assert recorder.operations() == operations_in(*(SOURCE / "dev/functions").glob("*.py"))
        assert deployer - recorder.used() == set()
        assert recorder.refused() == set()

        recorder.calls, recorder.grants = [], invoker
        returned, said = await commanded(environment, "invoke", "own-function", "--wait", "0")
        assert (returned, "version 1" in said) == (0, True), said
        assert recorder.operations() == {"GetObject", "SendMessage"}
        assert invoker - recorder.used() == set()
        assert recorder.refused() == set()
        assert (await commanded(environment, "deploy", code))[0] == 3
        assert (await commanded(environment, "invoke", "no-function"))[0] == 4


async def test_a_replay_and_a_retry_need_all_that_their_policies_allow_and_nothing_else(
    stack: EmbeddedStack, tmp_path: Path
):
    request_id = "replayed-by-policy"
    capsule = capsule_of(request_id, stack)
    await stack.buckets.put_code("functions/f.zip", b"code")
    await put_data(stack, capsules.key_of(request_id), capsules.encode(capsule))
    call = {"path": "/api/chat", "model": "m", "request": {}, "status": 200, "answer": "{}"}
    await put_data(stack, f"outputs/{request_id}/.nanoagent/ai.jsonl", json.dumps(call).encode())
    queue = await asyncio.to_thread(stack.new_queue)
    for arguments in (("replay", request_id, "--save", str(tmp_path / "saved.zip")), ("retry", request_id)):
        allowed = policy(f"iam-policy-{arguments[0]}.json")
        async with Recorder(stack.endpoint_url, grants=allowed) as recorder:
            environment = WorkerUnderTest(stack, tmp_path).environment() | recorder.environment()
            names = {queue.rsplit("/", 1)[-1]: JOBS, stack.code_bucket: CODE, stack.data_bucket: DATA}
            recorder.names |= names
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "nanoagent", *arguments, "--env-file", os.devnull),
                env=os.environ | environment | {"SQS_QUEUE_URL": queue},
                stderr=asyncio.subprocess.PIPE,
            )
            _, said = await process.communicate()
            assert process.returncode == 0, said
            assert recorder.unknown == []
            assert allowed - recorder.used() == set()
            assert recorder.refused() == set()
    with zipfile.ZipFile(tmp_path / "saved.zip") as saved:
        assert set(saved.namelist()) == {"capsule.json", "code.zip", "ai.jsonl"}


def capsule_of(request_id: str, stack: EmbeddedStack) -> Capsule:
    result = Result(
        request_id=request_id,
        function_id="f",
        runtime="python",
        status=Status.FAILED,
        exit_code=1,
        error_type=ErrorType.USER_ERROR,
    )
    job = CapsuleJob(
        function_id="f",
        runtime=Runtime.PYTHON,
        s3_bucket=stack.code_bucket,
        s3_key="functions/f.zip",
        memory_mb=128,
        timeout_ms=1000,
        model_id="m",
        network=NetworkPolicy.AI,
        locale="en",
        reuse=Reuse.NONE,
    )
    return Capsule(
        schema=capsules.SCHEMA,
        request_id=request_id,
        made_at="2026-12-01T00:00:00+00:00",
        worker=CapsuleWorker("w", "0.1.0", "x86_64"),
        message={"requestId": request_id, "s3Key": "functions/f.zip"},
        input=None,
        job=job,
        code=CapsuleCode(None, None),
        image=None,
        settings={},
        model_calls=StoredObject(stack.data_bucket, f"outputs/{request_id}/.nanoagent/ai.jsonl"),
        result=result,
    )


async def put_data(stack: EmbeddedStack, key: str, data: bytes) -> None:
    async with stack.clients() as clients:
        await (await clients.s3()).put_object(Bucket=stack.data_bucket, Key=key, Body=data)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_allows_only_one_queue_one_namespace_or_one_prefix_of_a_bucket(name: str):
    # By Service Authorization Reference, PutMetricData knows no resources; the namespace is what narrows it.
    for grant in policy(name):
        service, _, action = grant.action.partition(":")
        assert action.isalpha()
        if service == "sqs":
            assert re.fullmatch(r"arn:aws:sqs:[\w-]+:\d{12}:[\w-]+", grant.resource)
        elif service in {"ssm", "secretsmanager"}:
            kinds = {"ssm": "parameter/", "secretsmanager": "secret:"}
            arn = rf"arn:aws:{service}:[\w-]+:\d{{12}}:{kinds[service]}[\w-]+/\*"
            assert re.fullmatch(arn, grant.resource)
        elif service == "kms":
            assert re.fullmatch(r"arn:aws:kms:[\w-]+:\d{12}:key/[\w-]+", grant.resource)
        elif action == "ListBucket":
            assert re.fullmatch(r"arn:aws:s3:::[\w-]+", grant.resource)
            assert re.fullmatch(r"[\w-]+/\*", grant.prefix or "")
        elif service == "s3":
            assert re.fullmatch(r"arn:aws:s3:::[\w-]+/([\w-]+/)?\*", grant.resource)
        else:
            assert grant == Grant("cloudwatch:PutMetricData", "*", NAMESPACE)
