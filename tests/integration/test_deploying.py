"""`nanoagent deploy`, `invoke` and `functions`, on S3, SQS and Redis. The test answers the jobs."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import TYPE_CHECKING, Any

import pytest

from integration.test_sending import End, end, run
from nanoagent.dev.functions.s3_records import S3Records
from nanoagent.model import function_record
from support.services.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.dev.functions.records import Stored

__all__ = ["end"]

# The texts of results need no validation here: a worker's document has these fields.
SUCCESS = {"functionId": "f", "runtime": "python", "status": "SUCCESS", "exitCode": 0}
FAILURE = {
    "functionId": "f",
    "runtime": "python",
    "status": "FAILED",
    "exitCode": 1,
    "errorType": "USER_ERROR",
}
TIMEOUT = {
    "functionId": "f",
    "runtime": "python",
    "status": "TIMEOUT",
    "exitCode": 143,
    "errorType": "TIMEOUT",
}


@pytest.fixture
def name() -> str:
    return f"f-{secrets.token_hex(4)}"


@pytest.fixture
def code(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "main.py").write_text("print('one')")
    return folder


async def record_of(end: End, name: str) -> dict[str, Any]:
    document = await end.stack.buckets.read(end.stack.code_bucket, function_record.key_of(name))
    found: dict[str, Any] = json.loads(document)
    return found


@pytest.fixture
async def recorder(end: End, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Recorder]:
    """A proxy that records the calls to AWS."""
    async with Recorder(end.stack.endpoint_url) as recorder:
        for variable, value in recorder.environment().items():
            monkeypatch.setenv(variable, value)
        yield recorder


def puts(recorder: Recorder) -> list[str]:
    """The prefixes of the objects that were written."""
    return [call.resource.split("/")[1] for call in recorder.calls if call.operation == "PutObject"]


# --- deploy


async def test_code_and_settings_are_a_version(
    end: End, code: Path, name: str, capsys: pytest.CaptureFixture[str]
):
    options = ["--memory", "64", "--timeout", "1.5", "--env", "STAGE=prod", "--network", "none"]
    assert (
        await run("deploy", code, *options, "--model", "big", "--reuse", "imports", "--author", "Ann Lee")
        == 0
    )
    captured = capsys.readouterr()
    assert captured.out.startswith(f"Deployed {name}, version 1.\n")
    assert "prod" not in captured.out + captured.err
    record = await record_of(end, name)
    (version,) = record["versions"]
    assert (record["functionId"], record["current"], version["author"]) == (name, 1, "Ann Lee")
    assert version["settings"] == {
        "runtime": "python",
        "memoryMb": 64,
        "timeoutMs": 1500,
        "network": "none",
        "modelId": "big",
        "reuse": "imports",
        "env": {"STAGE": "prod"},
    }
    assert await end.code(version["key"]) == b"print('one')"


async def test_an_unchanged_folder_uploads_nothing_and_makes_no_version(
    code: Path, name: str, end: End, recorder: Recorder, capsys: pytest.CaptureFixture[str]
):
    assert await run("deploy", code, "--env", "A=1") == 0
    assert puts(recorder) == ["functions", "function-records"]
    before = await record_of(end, name)
    recorder.calls.clear()

    assert await run("deploy", code) == 0
    assert await run("deploy", code, "--env", "A=1", "--memory", "128") == 0

    assert puts(recorder) == []
    assert f"{name} is unchanged: version 1 has this code and these settings." in capsys.readouterr().out
    assert await record_of(end, name) == before


async def test_other_settings_are_a_version_without_an_upload(
    code: Path, name: str, end: End, recorder: Recorder
):
    assert await run("deploy", code, "--env", "A=1", "--env", "B=2") == 0
    recorder.calls.clear()
    assert await run("deploy", code, "--unset-env", "A", "--memory", "256") == 0
    assert puts(recorder) == ["function-records"]
    record = await record_of(end, name)
    assert [version["settings"]["env"] for version in record["versions"]] == [
        {"A": "1", "B": "2"},
        {"B": "2"},
    ]
    assert record["versions"][0]["key"] == record["versions"][1]["key"]


async def test_code_that_was_deleted_from_the_bucket_is_uploaded_again(
    code: Path, end: End, recorder: Recorder
):
    assert await run("deploy", code) == 0
    async with end.stack.clients() as clients:
        for key in await end.stack.buckets.keys(end.stack.code_bucket, f"functions/{code.name}/"):
            await (await clients.s3()).delete_object(Bucket=end.stack.code_bucket, Key=key)
    recorder.calls.clear()
    assert await run("deploy", code) == 0
    assert puts(recorder) == ["functions"]


async def test_a_dry_run_shows_the_changes_and_makes_none(
    code: Path, name: str, end: End, recorder: Recorder, capsys: pytest.CaptureFixture[str]
):
    (code / "old.py").write_text("1")
    assert await run("deploy", code) == 0
    before = await record_of(end, name)
    (code / "old.py").unlink()
    (code / "new.py").write_text("2")
    (code / "main.py").write_text("print('two')")
    recorder.calls.clear()
    capsys.readouterr()

    assert await run("deploy", code, "--dry-run", "--memory", "512", "--env", "A=1") == 0

    said = capsys.readouterr().out
    assert f"Would deploy {name}, version 2, which replaces version 1." in said
    for line in ("128 MiB → 512 MiB", "env A", "+ new.py", "~ main.py", "- old.py", "Nothing was changed."):
        assert line in said
    assert puts(recorder) == []
    assert await record_of(end, name) == before
    assert await run("deploy", code, "--dry-run", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["files"] == {"added": ["new.py"], "changed": ["main.py"], "removed": ["old.py"]}
    assert (document["version"], document["changed"], document["uploaded"]) == (2, True, False)


async def test_of_two_deployments_at_once_no_version_is_lost(
    code: Path, name: str, end: End, monkeypatch: pytest.MonkeyPatch
):
    """Twice, another deployment comes between the reading and the writing of the record."""
    read, others = S3Records.read, iter([["--env", "FIRST=1"], ["--env", "FIRST=2"]])

    async def read_and_let_another_deploy(self: S3Records, function_id: str) -> Stored | None:
        found = await read(self, function_id)
        if (other := next(others, None)) is not None:
            with monkeypatch.context() as patch:
                patch.setattr(S3Records, "read", read)
                assert await run("deploy", code, *other, "--author", "bob") == 0
        return found

    monkeypatch.setattr(S3Records, "read", read_and_let_another_deploy)
    assert await run("deploy", code, "--env", "SECOND=1", "--author", "ann") == 0
    versions = (await record_of(end, name))["versions"]
    assert [version["author"] for version in versions] == ["bob", "bob", "ann"]
    assert versions[-1]["settings"]["env"] == {"FIRST": "2", "SECOND": "1"}


async def test_deployments_of_several_processes_are_all_kept(code: Path, name: str, end: End):
    names = [f"author-{number}" for number in range(3)]
    deployments = (run("deploy", code, "--author", author, "--env", f"BY={author}") for author in names)
    assert await asyncio.gather(*deployments) == [0, 0, 0]
    assert {version["author"] for version in (await record_of(end, name))["versions"]} == set(names)


async def test_an_id_of_any_printable_characters_can_be_deployed(
    code: Path, end: End, capsys: pytest.CaptureFixture[str]
):
    names = ["../../etc", "a/b", "a-b", "함수 1", "[red]x[/red]"]
    for name in names:
        assert await run("deploy", code, "--function", name) == 0
        assert (await record_of(end, name))["functionId"] == name
    capsys.readouterr()
    assert await run("functions") == 0
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed for name in names)


# --- rollback


async def test_a_rollback_restores_code_and_settings(
    code: Path, name: str, end: End, capsys: pytest.CaptureFixture[str]
):
    assert await run("deploy", code, "--memory", "64", "--env", "A=1") == 0
    (code / "main.py").write_text("print('two')")
    assert await run("deploy", code, "--memory", "256", "--unset-env", "A") == 0
    rollback = ["deploy", "--function", name, "--rollback"]
    capsys.readouterr()

    assert await run(*rollback, "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"Would roll {name} back to version 1, which replaces version 2. Nothing was changed." in said
    assert "256 MiB → 64 MiB" in said
    assert (await record_of(end, name))["current"] == 2

    assert await run(*rollback) == 0
    assert f"Rolled {name} back to version 1, which replaces version 2." in capsys.readouterr().out
    record = await record_of(end, name)
    assert (record["current"], len(record["versions"])) == (1, 2)
    assert await run(*rollback, "2") == 0
    assert (await record_of(end, name))["current"] == 2
    assert await run("deploy", code, "--rollback", "1") == 0  # the folder names the function
    assert (await record_of(end, name))["current"] == 1
    assert await run(*rollback, "1") == 0
    assert f"{name}: version 1 is already the current one." in capsys.readouterr().out


async def test_a_rollback_to_code_that_is_gone_is_refused(
    code: Path, name: str, end: End, capsys: pytest.CaptureFixture[str]
):
    assert await run("deploy", code) == 0
    key = (await record_of(end, name))["versions"][0]["key"]
    (code / "main.py").write_text("print('two')")
    assert await run("deploy", code) == 0
    async with end.stack.clients() as clients:
        await (await clients.s3()).delete_object(Bucket=end.stack.code_bucket, Key=key)
    assert await run("deploy", "--function", name, "--rollback") == 2
    assert f"version 1: its code {key} is missing" in capsys.readouterr().err
    assert (await record_of(end, name))["current"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: No such file or directory"),
        ([], "name the folder, the source file or the zip to deploy"),
        ([".", "x", "--rollback"], "x: is not the number of a version"),
        ([".", "3"], "3: only --rollback takes the number of a version"),
        (["--rollback"], "--rollback: name the function with --function"),
        (["--function", "never", "--rollback", "--memory", "64"], "name no other settings"),
        ([".", "--memory", "5"], "memoryMb is 5; expected an integer from 32"),
        ([".", "--env", "PATH=x"], "env sets PATH"),
        ([".", "--function", "x\x1b[2J"], "is not an ID of 1-256 printable characters"),
        ([".", "--author", "x\n"], "--author: is not a text"),
        ([".", "--runtime", "go"], "runtime go starts main.go"),
    ],
)
async def test_wrong_arguments_are_named_and_nothing_is_deployed(
    arguments: list[str],
    said: str,
    code: Path,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(code)
    assert await run("deploy", *arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert puts(recorder) == []


@pytest.mark.parametrize(
    "arguments",
    [["deploy", "--function", "never", "--rollback"], ["invoke", "never"], ["functions", "never"]],
)
async def test_a_function_that_does_not_exist_ends_with_4(
    arguments: list[str], end: End, recorder: Recorder, capsys: pytest.CaptureFixture[str]
):
    assert await run(*arguments) == 4
    assert "there is no function never in the bucket" in capsys.readouterr().err
    assert puts(recorder) == []
    assert await end.stack.queues.depth(queue_url=end.queue_url) == (0, 0, 0)


async def test_a_record_of_a_newer_version_is_not_changed(
    code: Path, name: str, end: End, recorder: Recorder, capsys: pytest.CaptureFixture[str]
):
    newer = json.dumps({"schema": 2, "functionId": name}).encode()
    await end.stack.buckets.put_code(function_record.key_of(name), newer)
    for arguments in (["deploy", code], ["deploy", "--function", name, "--rollback"], ["functions", name]):
        assert await run(*arguments) == 2
        assert "schema is 2; this nanoagent knows 1; install a newer nanoagent" in capsys.readouterr().err
    assert await run("invoke", name) == 2
    assert await run("functions") == 1
    assert puts(recorder) == []
    async with end.stack.clients() as clients:
        key = function_record.key_of(name)
        await (await clients.s3()).delete_object(Bucket=end.stack.code_bucket, Key=key)


async def test_deploy_and_functions_need_only_the_code_bucket(
    end: End, code: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert end.queue_url
    for variable in ("SQS_QUEUE_URL", "S3_USER_DATA_BUCKET", "REDIS_HOST", "REDIS_PORT"):
        monkeypatch.delenv(variable, raising=False)
    assert await run("deploy", code) == 0
    assert await run("functions") == 0
    monkeypatch.delenv("S3_CODE_BUCKET")
    monkeypatch.setattr("nanoagent.dev.sender.dev._searched", lambda: ())
    assert await run("functions") == 2
    assert "S3_CODE_BUCKET: is not set" in capsys.readouterr().err


async def test_a_bucket_that_fails_is_named_and_the_exit_code_is_3(
    code: Path, recorder: Recorder, capsys: pytest.CaptureFixture[str]
):
    recorder.refusal = lambda call: (503, "SlowDown") if call.operation == "PutObject" else None
    assert await run("deploy", code) == 3
    err = capsys.readouterr().err
    assert "Nothing was deployed." in err
    assert "SlowDown" in err
    recorder.refusal = lambda call: (503, "SlowDown") if "function-records" in call.resource else None
    assert await run("functions") == 3


# --- functions


async def test_functions_are_listed_and_one_is_shown_without_values_of_variables(
    code: Path, name: str, end: End, capsys: pytest.CaptureFixture[str]
):
    assert await run("deploy", code, "--env", "TOKEN=hidden", "--author", "ann") == 0
    assert await run("deploy", code, "--memory", "256", "--author", "bob") == 0
    capsys.readouterr()

    assert await run("functions") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "FUNCTION",
        "RUNTIME",
        "VERSION",
        "MEMORY",
        "TIMEOUT",
        "SIZE",
        "DEPLOYED",
        "BY",
    ]
    (row,) = [line for line in lines if line.startswith(f"{name} ")]
    assert row.split()[1:7] == ["python", "2", "256", "MiB", "300", "s"]
    assert row.endswith("  bob")

    assert await run("functions", name) == 0
    shown = capsys.readouterr().out
    assert "env TOKEN  set" in shown
    versions = [line.split()[:2] for line in shown.splitlines()[-2:]]
    assert (versions[0], versions[1][0]) == (["*", "2"], "1")
    assert "hidden" not in shown

    assert await run("functions", name, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["version"], document["memoryMb"], document["env"]) == (2, 256, ["TOKEN"])
    assert [version["author"] for version in document["versions"]] == ["ann", "bob"]
    assert await run("functions", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert name in [function["functionId"] for function in listed["functions"]]
    assert await run("functions", "never") == 4


# --- invoke


async def test_a_job_is_filled_from_the_record(
    code: Path, name: str, end: End, capsys: pytest.CaptureFixture[str]
):
    options = [
        "--memory",
        "64",
        "--timeout",
        "2",
        "--network",
        "none",
        "--model",
        "big",
        "--reuse",
        "imports",
    ]
    assert await run("deploy", code, *options, "--env", "A=1", "--env", "B=2") == 0
    invoking = asyncio.create_task(
        run("invoke", name, "--input", '{"n": 1.50}', "--env", "B=3", "--locale", "ko")
    )
    (job,) = await end.jobs(1)
    request_id = job.pop("requestId")
    assert job == {
        "functionId": name,
        "s3Key": (await record_of(end, name))["versions"][0]["key"],
        "locale": "ko",
        "runtime": "python",
        "memoryMb": 64,
        "timeoutMs": 2000,
        "network": "none",
        "modelId": "big",
        "reuse": "imports",
        "env": {"A": "1", "B": "3"},
        "input": {"n": 1.5},
    }
    await end.answer(request_id, **SUCCESS, stdout="가\x1b[31m", stderr="err\n")
    assert await invoking == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("가\x1b[31m")  # a pipe gets the output unchanged
    assert captured.err.endswith(f"Request {request_id}: {name}, version 1.\nerr\n")


@pytest.mark.parametrize(("answer", "code_"), [(SUCCESS, 0), (FAILURE, 1), (TIMEOUT, 124)])
async def test_the_result_decides_the_exit_code(
    code: Path, name: str, end: End, answer: dict[str, Any], code_: int, capsys: pytest.CaptureFixture[str]
):
    assert await run("deploy", code) == 0
    capsys.readouterr()
    invoking = asyncio.create_task(run("invoke", name, "--json"))
    (job,) = await end.jobs(1)
    await end.answer(job["requestId"], **answer, stdout="가")
    assert await invoking == code_
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"requestId": job["requestId"], **answer, "stdout": "가"}
    assert captured.err == f"Request {job['requestId']}: {name}, version 1.\n"


async def test_a_result_of_a_newer_worker_is_shown_as_it_is(
    code: Path, name: str, end: End, capsys: pytest.CaptureFixture[str]
):
    assert await run("deploy", code) == 0
    capsys.readouterr()
    invoking = asyncio.create_task(run("invoke", name))
    (job,) = await end.jobs(1)
    await end.answer(job["requestId"], status="FAILED", errorType="LATER")
    assert await invoking == 1
    assert json.loads(capsys.readouterr().out)["errorType"] == "LATER"


async def test_an_earlier_version_can_be_invoked(
    code: Path, name: str, end: End, capsys: pytest.CaptureFixture[str]
):
    assert await run("deploy", code, "--memory", "64") == 0
    assert await run("deploy", code, "--memory", "256") == 0
    assert await run("invoke", name, "--version", "1", "--wait", "0") == 0
    (job,) = await end.jobs(1)
    assert job["memoryMb"] == 64
    assert f"nanoagent result {job['requestId']}" in capsys.readouterr().err
    assert await run("invoke", name, "--version", "3", "--wait", "0") == 2
    assert "version 3" in capsys.readouterr().err


async def test_without_a_result_the_commands_for_the_job_are_proposed(
    code: Path, name: str, end: End, capsys: pytest.CaptureFixture[str]
):
    assert await run("deploy", code) == 0
    assert await run("invoke", name, "--wait", "0.1") == 4
    (job,) = await end.jobs(1)
    err = capsys.readouterr().err
    assert "The job continues." in err
    assert f"nanoagent cancel {job['requestId']}" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{name}", "--input", "{"], "--input {: is not JSON"),
        (["{name}", "--version", "0"], "--version 0: is not the number of a version"),
        (["{name}", "--env", "A"], "--env A: is not set in this environment"),
        (["{name}", "--wait", "nan"], "--wait nan: is not a number of seconds"),
        (["{name}", "--follow", "--json"], "--follow: cannot be used with --json"),
        (["{name}", "--follow", "--wait", "0"], "--follow: cannot be used with --wait 0"),
        (["{name}", "--locale", "fr"], "--locale fr: is not one of ko, en"),
    ],
)
async def test_a_call_that_cannot_work_sends_nothing(
    code: Path, name: str, end: End, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert await run("deploy", code) == 0
    assert await run("invoke", *(name if argument == "{name}" else argument for argument in arguments)) == 2
    err = capsys.readouterr().err
    assert "nothing was sent" in err
    assert said in err
    assert await end.stack.queues.depth(queue_url=end.queue_url) == (0, 0, 0)


async def test_a_service_that_fails_is_named(
    code: Path, name: str, end: End, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert end.queue_url
    assert await run("deploy", code) == 0
    monkeypatch.setenv("SQS_QUEUE_URL", "http://127.0.0.1/1/no-such-queue")
    assert await run("invoke", name) == 3
    err = capsys.readouterr().err
    assert "Nothing was sent." in err
    assert "there is no such queue" in err
