"""`nanoagent jobs`, `result`, `cancel` and `outputs`, with Redis users of the documented permissions."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis import asyncio as redis
from redis.exceptions import NoPermissionError

from nanoagent import cli
from nanoagent.dev.jobs import result
from nanoagent.model import result as results
from nanoagent.model.result import ErrorType, Result, Start
from nanoagent.results import job_index
from nanoagent.results.base import Claim
from nanoagent.results.redis import RedisResultStore
from nanoagent.results.server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nanoagent.dev.local_services import EmbeddedStack

DATABASE = 6
DEADLINE_S = 60
RULES = {
    line.split()[2]: line.split()[5:]
    for line in (Path(__file__).parents[2] / "docs/jobs.md").read_text().splitlines()
    if line.startswith("ACL SETUSER")
}


@dataclass
class Worker:
    """A worker's end of Redis.

    Attributes:
        store: Its result store.
        redis: A client that may do everything.
        as_user: Lets the commands connect as a user with these rights.
    """

    store: RedisResultStore
    redis: redis.Redis
    as_user: Callable[[list[str]], Any]

    async def claims(self, request_id: str) -> Claim:
        claim = await self.store.claim(request_id, job_index.about("resize", 128))
        assert isinstance(claim, Claim)
        return claim

    async def ends(self, request_id: str, error_type: ErrorType | None = None, **fields: Any) -> None:
        ended = Result(
            request_id=request_id,
            function_id="resize",
            runtime="python",
            status=results.status_of(error_type),
            exit_code=0 if error_type is None else 1,
            error_type=error_type,
            start=Start.WARM,
            memory_mb=128,
            **fields,
        )
        claim = await self.claims(request_id)
        assert await self.store.publish(claim, results.encode(ended), job_index.of_result(ended))


@pytest.fixture
async def worker(
    stack: EmbeddedStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[Worker]:
    for name in ("SQS_QUEUE_URL", "S3_CODE_BUCKET", "S3_USER_DATA_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    environment = stack.environment()
    for name, value in environment.items():
        if name.startswith(("AWS_", "REDIS_")):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("REDIS_DB", str(DATABASE))
    monkeypatch.chdir(tmp_path)
    password = secrets.token_hex(8)

    async def as_user(rights: list[str]) -> None:
        await client.execute_command("ACL", "SETUSER", "commands", "reset", "on", f">{password}", *rights)
        monkeypatch.setenv("REDIS_USERNAME", "commands")
        monkeypatch.setenv("REDIS_PASSWORD", password)

    store = RedisResultStore(RedisServer(stack.redis_host, stack.redis_port, db=DATABASE))
    async with redis.Redis(host=stack.redis_host, port=stack.redis_port, db=DATABASE) as client:
        await client.flushdb()
        yield Worker(store, client, as_user)
        await client.execute_command("ACL", "DELUSER", "commands")
    await store.close()


async def run(*argv: str | Path) -> int:
    return await asyncio.to_thread(cli.main, [str(word) for word in argv])


async def test_the_documented_users_can_do_what_their_command_needs_and_no_more(
    worker: Worker, capsys: pytest.CaptureFixture[str]
):
    """Each right is necessary, and no user with read-only rights can write."""
    await worker.claims("running")
    await worker.ends("bad", ErrorType.USER_ERROR, error_message="ValueError: no")

    async def works(command: str) -> bool:
        capsys.readouterr()
        if command == "jobs":
            code = await run("jobs", "--json")
            jobs = json.loads(capsys.readouterr().out)["jobs"]
            return code == 0 and [job["requestId"] for job in jobs] == ["running", "bad"]
        if command == "results":
            codes = [await run("result", request, "--wait", "0.2", "--json") for request in ("bad", "soon")]
            return codes == [1, 4]
        outcomes = []
        for request_id in ("bad", "nosuch"):
            await run("cancel", request_id, "--json")
            outcomes.append(json.loads(capsys.readouterr().out))
        await run("cancel", "running", "--wait", "0.2", "--json")
        outcomes.append(json.loads(capsys.readouterr().out))
        return [outcome.get("outcome") for outcome in outcomes] == ["finished", "unknown", "sent"]

    for user, command in (("jobs", "jobs"), ("results", "results"), ("canceller", "cancel")):
        rights = RULES[user]
        await worker.as_user(rights)
        assert await works(command), user
    for user, command in (("jobs", "jobs"), ("results", "results")):
        for right in RULES[user]:
            await worker.as_user([other for other in RULES[user] if other != right])
            assert not await works(command), (user, right)
        await worker.as_user(RULES[user])
        assert await can_write(worker) == []


async def can_write(worker: Worker) -> list[str]:
    """The writes that the user of the commands is allowed."""
    settings = worker.redis.connection_pool.connection_kwargs
    allowed = []
    async with redis.Redis(
        host=settings["host"],
        port=settings["port"],
        db=DATABASE,
        username="commands",
        password=os.environ["REDIS_PASSWORD"],
    ) as client:
        for command in (
            *("SET job:x 1", "SETEX job:x 1 1", "DEL job:bad", "DEL nanoagent:jobs", "SET cancel:x 1"),
            *("PUBLISH cancel:x 1", "PUBLISH result:x 1", "XADD nanoagent:jobs * job x", "FLUSHDB"),
            *("ZADD nanoagent:running 1 x", "HSET nanoagent:claim:x until 0", "EVAL return(1) 0"),
            "CONFIG GET *",
        ):
            with suppress(NoPermissionError):
                await client.execute_command(*command.split())
                allowed.append(command)
    return allowed


async def test_a_user_of_earlier_rules_can_still_cancel(worker: Worker, capsys: pytest.CaptureFixture[str]):
    earlier = "~job:* ~cancel:* &result:* &cancel:* +ping +select +get +set +publish +subscribe +unsubscribe"
    await worker.as_user(earlier.split())
    await worker.ends("bad", ErrorType.USER_ERROR)

    assert await run("cancel", "bad") == 1
    assert "bad had already ended with status FAILED (USER_ERROR)." in capsys.readouterr().err
    assert await run("cancel", "queued") == 4
    assert "is not known: check the ID" in capsys.readouterr().err
    assert await worker.redis.exists("cancel:queued")


async def test_each_state_of_a_job_that_is_cancelled_is_told(
    worker: Worker, capsys: pytest.CaptureFixture[str]
):
    async def cancelled(request_id: str, *options: str) -> tuple[int, str, str]:
        code = await run("cancel", request_id, *options)
        told = capsys.readouterr().err.splitlines()[0]
        await run("cancel", request_id, "--json", *(options or ("--wait", "0")))
        return code, told, json.loads(capsys.readouterr().out)["outcome"]

    unknown = "is not known: check the ID. No worker has received it, or its result has expired."
    will_not_run = "a worker that receives it within an hour will not run it."
    assert await cancelled("nosuch") == (
        4,
        f"nosuch {unknown} If it is in the queue, {will_not_run}",
        "unknown",
    )
    await worker.redis.set("nanoagent:sent:sent", "1")
    assert await cancelled("sent") == (
        0,
        f"sent was not yet received by a worker: {will_not_run}",
        "not received",
    )
    claim = await worker.claims("waits")
    entry = job_index.Entry("waits", "resize", job_index.WAITING, "PLATFORM", "Docker failed", attempt=2)
    await worker.store.release(claim, failed=True, entry=job_index._encoder.encode(entry))
    assert await cancelled("waits") == (
        0,
        f"waits waits for another attempt (attempt 2 failed): {will_not_run}",
        "waiting",
    )
    await worker.claims("hangs")
    received = "the worker that runs it received the cancellation"
    assert await cancelled("hangs", "--wait", "0.1") == (
        4,
        f"hangs is being stopped: {received}; there is no result after 0.1 s.",
        "sent",
    )
    await worker.ends("bad", ErrorType.USER_ERROR)
    code, told, outcome = await cancelled("bad")
    assert (code, outcome) == (1, "finished")
    assert re.fullmatch(r"bad had already ended with status FAILED \(USER_ERROR\), [0-9]+s ago\.", told)

    # Its result has expired, and only the index knows it.
    await worker.redis.delete("job:bad")
    code, told, outcome = await cancelled("bad")
    assert (code, outcome) == (1, "finished")
    assert "FAILED (USER_ERROR)" in told


async def test_a_pipe_gets_the_document_of_a_result_as_before(
    worker: Worker, capsys: pytest.CaptureFixture[str]
):
    await worker.ends("good", stdout="\x1b[31m한\n")

    assert await run("result", "good") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["requestId"], document["stdout"], document["memoryMb"]) == ("good", "\x1b[31m한\n", 128)


async def test_a_terminal_gets_the_output_and_the_summary(worker: Worker, capsys: pytest.CaptureFixture[str]):
    await worker.ends(
        "bad",
        ErrorType.USER_ERROR,
        stdout="\x1b[31mout",
        stderr="Traceback\nValueError: no\n",
        error_message="ValueError: no",
        hint="Read it.",
        duration_ms=17,
        peak_memory_bytes=9 << 20,
        output_files=["https://s3/data/outputs/bad/a%20b"],
    )
    document = json.loads(await worker.redis.get("job:bad") or b"")
    result.show(document)

    captured = capsys.readouterr()
    assert captured.out == "\\x1b[31mout\n"
    assert captured.err.splitlines() == [
        "Traceback",
        "ValueError: no",
        "FAILED (USER_ERROR)  exit code 1, ran 17 ms, peak 9.0 of 128 MiB, warm start 0 ms",
        "error  ValueError: no",
        "hint   Read it.",
        "output https://s3/data/outputs/bad/a%20b",
    ]


# --- outputs


async def with_outputs(stack: EmbeddedStack, worker: Worker, files: dict[str, bytes]) -> None:
    """A job with output files, whose links have expired long ago."""
    links = []
    async with stack.clients() as clients:
        s3 = await clients.s3()
        for name, content in files.items():
            key = f"outputs/r1/{name}"
            await s3.put_object(Bucket=stack.data_bucket, Key=key, Body=content)
            links.append(f"https://s3.eu-west-1.amazonaws.com/{stack.data_bucket}/{key}?X-Amz-Expires=1")
    await worker.ends("r1", output_files=links)


async def test_output_files_are_listed_and_downloaded_with_credentials(
    stack: EmbeddedStack, worker: Worker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    await worker.as_user(RULES["results"])
    await with_outputs(stack, worker, {"a.txt": b"a" * 3000, "sub/b": b""})

    assert await run("outputs", "r1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [["2.9", "KiB", "a.txt"], ["0", "bytes", "sub/b"]]

    assert await run("outputs", "r1", "--download", tmp_path / "out") == 0
    assert (tmp_path / "out/a.txt").read_bytes() == b"a" * 3000
    assert (tmp_path / "out/sub/b").read_bytes() == b""

    capsys.readouterr()
    assert await run("outputs", "r1", "--download", tmp_path / "out", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert [file["error"] for file in document["files"]] == [
        "a file of this name exists; --force replaces it"
    ] * 2
    assert await run("outputs", "r1", "--download", tmp_path / "out", "--force") == 0


async def test_names_of_hostile_programs_lead_nowhere(
    stack: EmbeddedStack, worker: Worker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "victim").mkdir()
    (out / "link").symlink_to(tmp_path / "victim")
    bucket = stack.data_bucket
    links = [
        *(f"https://s3/{bucket}/outputs/r1/{name}" for name in ("..%2F..%2Fevil", "%2Fetc%2Fevil", "a%1Bb")),
        f"https://s3/{bucket}/outputs/r1/link%2Fevil",
        f"https://s3/{bucket}/outputs/other/evil",
        f"https://s3/{bucket}/outputs/r1/missing",
        f"https://s3/{bucket}/outputs/r1/good",
    ]
    async with stack.clients() as clients:
        s3 = await clients.s3()
        for key in ("outputs/r1/link/evil", "outputs/r1/good", "outputs/other/evil", "outputs/r1/a\x1bb"):
            await s3.put_object(Bucket=bucket, Key=key, Body=b"evil")
    await worker.ends("r1", output_files=links)

    assert await run("outputs", "r1", "--download", out, "--force", "--json") == 1

    files = json.loads(capsys.readouterr().out)["files"]
    assert [file["path"] for file in files] == [*[None] * 6, str(out / "good")]
    assert all(file["error"] for file in files[:6])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["good", "link", "out", "victim"]


async def test_a_job_without_a_result_or_without_files_is_told(
    worker: Worker, capsys: pytest.CaptureFixture[str]
):
    assert await run("outputs", "nosuch") == 4
    assert "no result of nosuch" in capsys.readouterr().err
    await worker.ends("r1")
    assert await run("outputs", "r1", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "requestId": "r1",
        "files": [],
        "notUploaded": [],
        "error": None,
    }


@pytest.mark.parametrize("command", [["jobs"], ["outputs", "r1"], ["cancel", "r1"], ["result", "r1"]])
async def test_a_redis_that_is_not_there_ends_with_3(
    worker: Worker,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unused_tcp_port: int,
):
    monkeypatch.setenv("REDIS_PORT", str(unused_tcp_port))
    assert await run(*command) == 3
    assert "it refuses connections" in capsys.readouterr().err
    assert await run(*command, "--json") == 3
    assert "it refuses connections" in json.loads(capsys.readouterr().out)["error"]
