from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from redis import asyncio as redis

from nanoagent import cli
from nanoagent.config import Settings
from nanoagent.dev.sender import delivery
from nanoagent.model.job import JobDefaults
from nanoagent.model.message import parse_job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

DEADLINE_S = 60  # a hang is a failure; nothing is measured by it
DEFAULTS = JobDefaults(s3_bucket="b", model_id="m", max_memory_mb=1024)


@dataclass
class End:
    """The other end of a queue: takes jobs as a worker does, and answers them.

    Attributes:
        stack: Where queue, bucket and Redis are.
        queue_url: A queue for this test alone.
        redis: A client of the stack's Redis.
    """

    stack: EmbeddedStack
    queue_url: str
    redis: redis.Redis

    async def jobs(self, count: int) -> list[dict[str, Any]]:
        """The next messages, taken off the queue."""
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(DEADLINE_S), self.stack.clients() as clients:
            sqs = await clients.sqs()
            while len(found) < count:
                answer = await sqs.receive_message(
                    QueueUrl=self.queue_url, WaitTimeSeconds=5, MaxNumberOfMessages=10
                )
                for message in answer.get("Messages", []):
                    found.append(json.loads(message["Body"]))
                    await sqs.delete_message(QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"])
        return found

    async def code(self, key: str) -> bytes:
        """The file main.py of an uploaded zip."""
        with zipfile.ZipFile(
            io.BytesIO(await self.stack.buckets.read(self.stack.code_bucket, key))
        ) as archive:
            return archive.read("main.py")

    async def answer(self, request_id: str, **fields: Any) -> None:
        """Store and publish a result."""
        document = json.dumps({"requestId": request_id, **fields})
        await self.redis.set(f"job:{request_id}", document, ex=600)
        await self.redis.publish(f"result:{request_id}", document)

    async def until_awaited(self, request_id: str) -> None:
        """Wait until somebody has subscribed to the result."""
        channel = f"result:{request_id}"
        async with asyncio.timeout(DEADLINE_S):
            while not (await self.redis.pubsub_numsub(channel))[0][1]:  # noqa: ASYNC110 - Redis has no event
                await asyncio.sleep(0.02)


@pytest.fixture
async def end(stack: EmbeddedStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[End]:
    queue_url = await asyncio.to_thread(stack.new_queue)
    for name, value in (stack.environment() | {"SQS_QUEUE_URL": queue_url}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    client = redis.Redis(host=stack.redis_host, port=stack.redis_port)
    try:
        yield End(stack, queue_url, client)
    finally:
        await client.aclose()


def function(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(content)
    return folder


async def run(*argv: str | Path) -> int:
    """A command, beside whatever this test does meanwhile."""
    return await asyncio.to_thread(cli.main, [str(word) for word in argv])


async def test_two_senders_with_folders_of_the_same_name_run_their_own_code(end: End, tmp_path: Path):
    codes = {owner: function(tmp_path / owner / "hello", f"print({owner!r})") for owner in ("ann", "bob")}
    sending = [asyncio.create_task(run("send", code)) for code in codes.values()]
    jobs = await end.jobs(2)

    assert {job["functionId"] for job in jobs} == {"hello"}
    assert {await end.code(job["s3Key"]) for job in jobs} == {b"print('ann')", b"print('bob')"}
    assert len({job["requestId"] for job in jobs}) == 2

    for job in jobs:
        await end.answer(job["requestId"], status="SUCCESS")
    assert await asyncio.gather(*sending) == [0, 0]


async def test_what_was_uploaded_before_is_not_written_again(
    end: End, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code = function(tmp_path / "once", "print('once')")
    assert await run("send", code, "--wait", "0") == 0
    assert "Uploaded functions/once/" in capsys.readouterr().err
    (job,) = await end.jobs(1)
    before = await end.stack.buckets.read(end.stack.code_bucket, job["s3Key"])

    os.utime(code / "main.py", (1_000_000_000, 1_000_000_000))  # as a new checkout does
    assert await run("send", code, "--wait", "0") == 0

    assert "Already uploaded: functions/once/" in capsys.readouterr().err
    (again,) = await end.jobs(1)
    assert again["s3Key"] == job["s3Key"]
    assert await end.stack.buckets.read(end.stack.code_bucket, job["s3Key"]) == before


@pytest.mark.parametrize(("status", "code"), [("SUCCESS", 0), ("FAILED", 1), ("TIMEOUT", 1)])
async def test_a_sent_job_is_the_options_and_its_result_decides_the_exit_code(
    end: End,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    code: int,
):
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    function(tmp_path / "hello", "print(1)")
    monkeypatch.chdir(tmp_path / "hello")
    options = ["--input", '{"a": 1.50}', "--memory-mb", "64", "--timeout-ms", "5"]
    sending = asyncio.create_task(run("send", ".", *options))
    (job,) = await end.jobs(1)
    parsed = parse_job(json.dumps(job), DEFAULTS)
    assert (parsed.function_id, parsed.runtime, parsed.memory_mb, parsed.timeout_ms) == (
        "hello",
        "python",
        64,
        5,
    )
    assert (job["input"], job["locale"]) == ({"a": 1.5}, "ko")

    await end.answer(parsed.request_id, status=status, stdout="가")

    assert await sending == code
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"requestId": parsed.request_id, "status": status, "stdout": "가"}
    assert captured.err.startswith(f"Request {parsed.request_id}: function hello, python.")
    assert "Hints and errors are in Korean (LC_ALL=ko_KR.UTF-8); --locale en changes that." in captured.err


async def test_a_result_is_found_although_its_message_was_missed(end: End, tmp_path: Path):
    sending = asyncio.create_task(run("send", function(tmp_path / "f", "1")))
    (job,) = await end.jobs(1)
    await end.until_awaited(job["requestId"])
    # Stored and not published: what a subscriber sees whose connection broke at that moment.
    await end.redis.set(f"job:{job['requestId']}", json.dumps({"status": "SUCCESS"}), ex=600)
    await end.redis.client_kill_filter(_type="pubsub")
    assert await sending == 0


async def test_after_the_wait_the_job_is_read_and_cancelled_by_its_request_id(
    end: End, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert await run("send", function(tmp_path / "f", "1"), "--wait", "0.1") == 4
    (job,) = await end.jobs(1)
    request_id = job["requestId"]
    said = capsys.readouterr().err
    assert "The job continues." in said
    assert f"nanoagent result {request_id}\n" in said
    assert f"nanoagent cancel {request_id}\n" in said

    assert await run("result", request_id) == 4
    assert "no result of" in capsys.readouterr().err

    async with end.redis.pubsub() as worker:
        await worker.subscribe(f"cancel:{request_id}")
        assert await run("cancel", request_id, "--wait", "0") == 0
        assert "the worker that runs it received the cancellation" in capsys.readouterr().err
        assert [await worker.get_message(timeout=DEADLINE_S) for _ in range(2)][1]["type"] == "message"
    assert await end.redis.ttl(f"cancel:{request_id}") > 0
    assert await run("cancel", request_id, "--json") == 0
    cancelled = json.loads(capsys.readouterr().out)
    assert (cancelled["workers"], cancelled["outcome"]) == (0, "not received")

    waiting = asyncio.create_task(run("result", request_id, "--wait", "60"))
    await end.until_awaited(request_id)
    await end.answer(request_id, status="FAILED", errorType="CANCELLED")
    assert await waiting == 1
    assert json.loads(capsys.readouterr().out)["errorType"] == "CANCELLED"
    assert await run("cancel", request_id) == 1
    assert "had already ended with status FAILED" in capsys.readouterr().err


async def test_ctrl_c_says_that_the_job_goes_on(end: End, tmp_path: Path):
    function(tmp_path / "f", "1")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nanoagent", "send", "f"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    (job,) = await end.jobs(1)
    await end.until_awaited(job["requestId"])
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    said = err.decode()
    assert "The job was sent and continues." in said
    assert f"nanoagent cancel {job['requestId']}" in said
    assert "Traceback" not in said


async def test_no_moment_of_a_wait_loses_a_cancellation(end: End, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C cancels the wait. The moment is counted in turns of the event loop."""
    monkeypatch.setattr(delivery, "_POLL_S", 0.001)  # so that each turn of the wait has many moments
    async with delivery.results(Settings(_env_file=None)) as results:  # type: ignore[call-arg]
        for turns in range(200):
            waiting = asyncio.create_task(results.wait("send-1", 10 * DEADLINE_S))
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            ended, _ = await asyncio.wait((waiting,), timeout=DEADLINE_S)
            assert ended, f"the cancellation after {turns} turns was lost"
            assert waiting.cancelled()


async def test_for_machines_there_is_one_document_and_nothing_else(
    end: End, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code = function(tmp_path / "f", "1")
    (code / ".env").write_text("KEY=1")
    sending = asyncio.create_task(run("send", code, "--json", "--locale", "ko"))
    (job,) = await end.jobs(1)
    await end.answer(job["requestId"], status="SUCCESS")
    assert await sending == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.err == ""
    assert document["result"]["status"] == "SUCCESS"
    assert (document["stage"], document["error"]) == ("sent", None)
    assert {name: document[name] for name in ("requestId", "functionId", "runtime", "locale", "s3Key")} == {
        name: job[name] for name in ("requestId", "functionId", "runtime", "locale", "s3Key")
    }
    assert document["code"]["leftOut"] == [{"path": ".env", "reason": "looks like a secret"}]


async def test_an_input_of_nearly_a_mebibyte_arrives_and_a_larger_one_is_refused_before_anything_is_sent(
    end: End, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code = function(tmp_path / "f", "1")
    (tmp_path / "fits.json").write_text(json.dumps("x" * (1024 * 1024 - 1000)))
    (tmp_path / "large.json").write_text(json.dumps("x" * 1024 * 1024))
    assert await run("send", code, "--wait", "0", "--input", "@fits.json") == 0
    (job,) = await end.jobs(1)
    assert len(job["input"]) == 1024 * 1024 - 1000

    capsys.readouterr()
    assert await run("send", code, "--wait", "0", "--input", "@large.json") == 2
    assert "nothing was sent" in capsys.readouterr().err
    assert await end.stack.queues.depth(queue_url=end.queue_url) == (0, 0, 0)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"S3_CODE_BUCKET": "no-such-bucket"}, "NoSuchBucket"),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, "uploading functions/f/"),
        ({"AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:9"}, "The job may have been sent"),
        ({"SQS_QUEUE_URL": "http://127.0.0.1/1/no-such-queue"}, "there is no such queue"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_a_service_that_fails_is_named_and_the_exit_code_is_3(
    end: End,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    setting: dict[str, str],
    said: str,
):
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    assert await run("send", function(tmp_path / "f", "1")) == 3
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert ("may have been sent" in err) == ("AWS_ENDPOINT_URL_SQS" in setting)


async def test_a_queue_for_smaller_messages_says_so(
    end: End, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    small = await asyncio.to_thread(lambda: end.stack.new_queue(MaximumMessageSize="1024"))
    monkeypatch.setenv("SQS_QUEUE_URL", small)
    (tmp_path / "input.json").write_text(json.dumps("x" * 2000))
    assert await run("send", function(tmp_path / "f", "1"), "--input", "@input.json", "--wait", "0") == 3
    assert "MaximumMessageSize" in capsys.readouterr().err
