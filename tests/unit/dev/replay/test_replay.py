"""The parts of `nanoagent replay` and `retry` that need neither Docker nor S3."""

from __future__ import annotations

import io
import json
import os
import warnings
import zipfile
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from nanoagent import cli
from nanoagent.config import load_local
from nanoagent.dev.replay import bundle, difference, preparation, report, retry, source
from nanoagent.dev.replay.bundle import Contents
from nanoagent.dev.replay.command import Exit
from nanoagent.dev.replay.difference import Verdict
from nanoagent.model import capsule as capsules
from nanoagent.model import message
from nanoagent.model.capsule import Capsule, CapsuleCode, CapsuleJob, CapsuleWorker, InvalidCapsule
from nanoagent.model.errors import InvalidCall
from nanoagent.model.job import NetworkPolicy, Reuse, Runtime
from nanoagent.model.result import ErrorType, Result, Status, status_of

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.config import LocalSettings
    from nanoagent.dev.replay.source import Services

MIB: Final = 1 << 20
CALL: Final = {"path": "/api/chat", "model": "m", "request": {"a": 1}, "status": 200, "answer": "{}"}


def a_result(error_type: ErrorType | None = ErrorType.USER_ERROR, **changes: Any) -> Result:
    fields: dict[str, Any] = {
        "request_id": "r1",
        "function_id": "f",
        "runtime": "python",
        "status": status_of(error_type),
        "exit_code": 0 if error_type is None else 1,
        "error_type": error_type,
        "error_message": None if error_type is None else "KeyError: 'name'",
    }
    return Result(**(fields | changes))


def a_capsule(**changes: Any) -> Capsule:
    fields: dict[str, Any] = {
        "schema": 1,
        "request_id": "r1",
        "made_at": "2026-12-01T00:00:00+00:00",
        "worker": CapsuleWorker("w", "0.1.0", "x86_64"),
        "message": {"requestId": "r1", "functionId": "f", "s3Key": "f.zip", "s3Bucket": "other"},
        "input": '{"a": 1.50}',
        "job": CapsuleJob(
            function_id="f",
            runtime=Runtime.PYTHON,
            s3_bucket="code",
            s3_key="f.zip",
            memory_mb=64,
            timeout_ms=5000,
            model_id="m",
            network=NetworkPolicy.AI,
            locale="en",
            reuse=Reuse.NONE,
        ),
        "code": CapsuleCode(None, None),
        "image": None,
        "settings": {},
        "result": a_result(),
    }
    return Capsule(**(fields | changes))


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalSettings:
    monkeypatch.setenv("WORKER_MEMORY_MB", "2048")
    monkeypatch.setenv("DOCKER_WORK_DIR_ROOT", "/tmp/nanoagent-tests")
    monkeypatch.setenv("CODE_CACHE_DIR", str(tmp_path / "cache"))
    return load_local(None)


# --- the comparison


@pytest.mark.parametrize(
    ("recorded", "here", "verdict"),
    [
        (a_result(), a_result(), Verdict.REPEATS),
        (a_result(), a_result(None), Verdict.SUCCEEDS_NOW),
        (a_result(None), a_result(None), Verdict.SUCCEEDS_AGAIN),
        (a_result(None), a_result(), Verdict.FAILS_NOW),
        (a_result(), a_result(exit_code=2), Verdict.FAILS_OTHERWISE),
        (a_result(), a_result(error_message="KeyError: 'other'"), Verdict.FAILS_OTHERWISE),
        (a_result(), a_result(ErrorType.OUT_OF_MEMORY, exit_code=137), Verdict.FAILS_OTHERWISE),
        (
            a_result(error_message="port 4711 at 0xdeadbeef"),
            a_result(error_message="port 8080 at 0x12"),
            Verdict.REPEATS,
        ),
        (
            a_result(error_message="x (remembered: built 3 s ago with the same outcome; next build in 5 s)"),
            a_result(error_message="x"),
            Verdict.REPEATS,
        ),
        (
            a_result(error_message="x (기억된 결과: 3초 전에 같은 내용을 검사했습니다)"),
            a_result(error_message="x"),
            Verdict.REPEATS,
        ),
    ],
)
def test_the_verdict(recorded: Result, here: Result, verdict: Verdict) -> None:
    assert difference.verdict_of(recorded, here) is verdict


def test_each_verdict_has_a_different_name_and_one_sentence() -> None:
    outcomes = [verdict.value for verdict in Verdict]
    assert len({outcome.name for outcome in outcomes}) == len(outcomes)
    assert all(outcome.sentence.endswith(".") for outcome in outcomes)
    assert {outcome.exit_code for outcome in outcomes}.isdisjoint({1, *Exit} - {0})


def compared(recorded: Result, here: Result, omitted: dict[str, int] | None = None) -> difference.Difference:
    return difference.compare(recorded, here, omitted or {}, (["a.txt"], ["a.txt"]))


def test_a_stream_that_differs_is_shown_as_a_diff() -> None:
    found = compared(a_result(stderr="one\ntwo\n"), a_result(stderr="one\nthree\n"))
    assert found.diffs == {
        "stderr": ("--- stderr, recorded", "+++ stderr, here", "@@ -1,2 +1,2 @@", " one", "-two", "+three")
    }
    marks = {field.name: field.same for field in found.fields}
    assert (marks["stdout"], marks["stderr"], marks["output files"], marks["duration"]) == (
        True,
        False,
        True,
        None,
    )


def test_only_the_recorded_end_of_a_stream_is_compared() -> None:
    recorded = a_result(stdout="tail\n")
    assert compared(recorded, a_result(stdout="head\ntail\n"), {"stdout": 5}).diffs == {}
    assert "stdout" in compared(recorded, a_result(stdout="head\ntail\n")).diffs


def test_the_output_of_programs_gets_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    recorded = a_result(stderr="\x1b[31mred\n", error_message="\x1b]0;title\x07")
    capsule = a_capsule(result=recorded)
    report.show(capsule, compared(recorded, a_result(stderr="\x9b2J")), ["a \x1b note"])
    shown = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert "\\x1b[31mred" in shown


def test_json_has_both_results_and_the_verdict() -> None:
    capsule = a_capsule()
    document = json.loads(report.document(capsule, compared(a_result(), a_result()), ["n"], a_result()))
    assert (document["verdict"], document["notes"]) == ("repeats", ["n"])
    assert document["recorded"] == document["here"]


# --- settings and message


def test_the_settings_of_the_worker_are_used(local: LocalSettings, tmp_path: Path) -> None:
    settings = {"MAX_PROCESSES": 64, "NETWORK": "none", "CPU_MAX": None, "EGRESS_ALLOW": "a.example"}
    changed = preparation.settings_for(local, a_capsule(settings=settings), "", tmp_path)
    assert (changed.max_processes, changed.network, changed.egress_allow) == (64, "none", "a.example")
    assert (changed.ai_replay, changed.code_cache_dir) == (tmp_path, local.code_cache_dir)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"MAX_PROCESSES": 10**9}, "MAX_PROCESSES=1000000000"),
        ({"MAX_PROCESSES": "many"}, "MAX_PROCESSES"),
        ({"MAX_PROCESSES": -1}, "MAX_PROCESSES"),
        ({"MAX_PROCESSES": {"a": 1}}, "MAX_PROCESSES"),
        ({"NETWORK": "wide"}, "NETWORK"),
        ({"EGRESS_PORTS": "x" * 10_000}, "EGRESS_PORTS"),
        ({"PYTHON_PRELOAD": "a;b"}, "PYTHON_PRELOAD"),
        ({"MAX_OPEN_FILES": True}, "MAX_OPEN_FILES"),
    ],
)
def test_wrong_settings_of_a_capsule_are_refused(
    local: LocalSettings, settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidCapsule, match=sentence):
        preparation.settings_for(local, a_capsule(settings=settings), "", tmp_path)


def test_settings_that_do_not_belong_to_a_run_are_ignored(local: LocalSettings, tmp_path: Path) -> None:
    settings = {"CODE_CACHE_DIR": "/etc", "DOCKER_PYTHON_IMAGE": "evil", "AI_ENDPOINT": "http://evil"}
    changed = preparation.settings_for(local, a_capsule(settings=settings), "", tmp_path)
    assert changed.code_cache_dir == local.code_cache_dir
    assert changed.docker_python_image == local.docker_python_image
    assert changed.ai_endpoint == local.ai_endpoint


def test_a_network_may_only_be_narrower(local: LocalSettings, tmp_path: Path) -> None:
    capsule = a_capsule(settings={"NETWORK": "ai"})
    assert preparation.settings_for(local, capsule, "none", tmp_path).network == "none"
    for wrong in ("egress", "wide"):
        with pytest.raises(InvalidCall, match="--network"):
            preparation.settings_for(local, capsule, wrong, tmp_path)


def test_a_job_that_needs_more_memory_than_this_machine_is_refused(
    local: LocalSettings, tmp_path: Path
) -> None:
    capsule = a_capsule()
    assert capsule.job is not None
    capsule = a_capsule(job=msgspec.structs.replace(capsule.job, memory_mb=4096))
    with pytest.raises(InvalidCall, match="MAX_MEMORY_MB"):
        preparation.settings_for(local, capsule, "", tmp_path)


def test_the_message_has_the_same_request_and_input(local: LocalSettings) -> None:
    body = preparation.body(a_capsule(), "functions/x.zip", {"A": "1"}, "none")
    job = message.parse_job(body, local.job_defaults)
    assert (job.request_id, job.s3_key, job.s3_bucket) == ("r1", "functions/x.zip", "code")
    assert (job.payload, job.memory_mb, job.timeout_ms) == (b'{"a": 1.50}', 64, 5000)
    assert (job.env, job.network) == ((("A", "1"),), "none")


def test_a_capsule_without_its_input_is_refused() -> None:
    with pytest.raises(InvalidCall, match="no input"):
        preparation.body(a_capsule(input=None, omitted={"input": 5}), None, {}, "")


def test_names_without_values_are_told() -> None:
    capsule = a_capsule(message={"requestId": "r1", "env": {"A": None, "B": {"ssm": "/b"}, "C": None}})
    assert preparation.environment(capsule, {"A": "1"}) == ({"A": "1"}, ["B", "C"])


# --- retry


def test_a_retry_sends_the_same_message_with_another_id() -> None:
    sent = json.loads(retry.message_of(a_capsule(), "retry-1", {}))
    assert sent == {
        "requestId": "retry-1",
        "functionId": "f",
        "s3Key": "f.zip",
        "s3Bucket": "other",
        "input": {"a": 1.5},
    }


def test_a_retry_without_values_names_the_variables() -> None:
    env = {"A": None, "B": {"ssm": "/b"}, "C": None}
    capsule = a_capsule(message={"requestId": "r1", "s3Key": "f.zip", "env": env})
    with pytest.raises(InvalidCall, match="the values of A, C are unknown"):
        retry.message_of(capsule, "retry-1", {})
    sent = json.loads(retry.message_of(capsule, "retry-1", {"A": "1", "C": "3"}))
    assert sent["env"] == {"A": "1", "B": {"ssm": "/b"}, "C": "3"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"job": None}, "not a valid job"),
        ({"omitted": {"input": 7}}, "lacks the input"),
        ({"input": '"' + "x" * MIB + '"'}, "allowed"),
    ],
)
def test_a_retry_that_cannot_be_sent_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidCall, match=sentence):
        retry.message_of(a_capsule(**changes), "retry-1", {})


# --- the zip


def a_zip(entries: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        warnings.simplefilter("ignore")  # an entry twice
        for name, data in entries:
            file.writestr(name, data)
    return buffer.getvalue()


def test_a_saved_zip_has_everything(tmp_path: Path) -> None:
    code, calls = tmp_path / "c", tmp_path / "m"
    code.write_bytes(b"code")
    calls.write_text(json.dumps(CALL) + "\n")
    capsule = a_capsule(code=CapsuleCode(bundle.digest_of(code), None))
    bundle.write(tmp_path / "saved.zip", Contents(capsule, code, calls))
    (tmp_path / "into").mkdir()
    assert bundle.is_bundle(tmp_path / "saved.zip")
    read = bundle.read(tmp_path / "saved.zip", tmp_path / "into", 100)
    assert read.capsule == capsule
    assert (read.code and read.code.read_bytes(), read.model_calls and read.model_calls.read_bytes()) == (
        b"code",
        calls.read_bytes(),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "into", "m", "saved.zip"]


CAPSULE: Final = capsules.encode(a_capsule())


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            a_zip([("capsule.json", CAPSULE), ("../../etc/cron.d/x", b"x")]),
            "has the entry ../../etc/cron.d/x",
        ),
        (a_zip([("capsule.json", CAPSULE), ("/capsule.json", b"x")]), "has the entry /capsule.json"),
        (a_zip([("capsule.json", CAPSULE), ("a\x1b[31m", b"x")]), "has the entry"),
        (a_zip([("code.zip", b"x")]), "no capsule.json"),
        (a_zip([("capsule.json", CAPSULE), ("capsule.json", CAPSULE)]), "twice"),
        (a_zip([("capsule.json", b" " * (5 * MIB) + CAPSULE)]), "capsule.json in the zip is larger"),
        (
            a_zip([("capsule.json", CAPSULE), ("code.zip", b"\0" * (3 * MIB))]),
            "code.zip in the zip is larger",
        ),
        (a_zip([("capsule.json", b"{}")]), "not a capsule"),
        (a_zip([("capsule.json", CAPSULE), ("ai.jsonl", b"{}\n")]), "line 1: not a model call"),
        (
            a_zip([("capsule.json", CAPSULE), ("ai.jsonl", b'{"path": "/", "model": "m", "request": 1')]),
            "line 1",
        ),
        (a_zip([("capsule.json", CAPSULE)])[:-30], "cannot be read"),
        (b"PK\x03\x04" + b"\0" * 100, "cannot be read"),
        (
            a_zip(
                [
                    ("capsule.json", capsules.encode(a_capsule(code=CapsuleCode("0" * 64, None)))),
                    ("code.zip", b"x"),
                ]
            ),
            "not the code of the capsule",
        ),
    ],
)
def test_a_hostile_zip_is_refused_in_one_sentence(data: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(data)
    (tmp_path / "into").mkdir()
    with pytest.raises(InvalidCapsule) as refused:
        bundle.read(tmp_path / "x.zip", tmp_path / "into", 2 * MIB)
    assert sentence in str(refused.value)
    assert str(refused.value).isprintable()
    assert {path.name for path in tmp_path.rglob("*")} <= {"x.zip", "into", "code.zip", "ai.jsonl"}


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_data_of_each_method_is_refused(method: int, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr("capsule.json", CAPSULE * 3)
    data = bytearray(buffer.getvalue())
    data[60:90] = os.urandom(30)
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(InvalidCapsule):
        bundle.read(tmp_path / "x.zip", tmp_path, MIB)


def test_a_zip_that_cannot_be_written_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidCall, match="--save"):
        bundle.write(tmp_path / "none/x.zip", Contents(a_capsule()))


# --- where capsules come from


def services() -> Services:
    raise AssertionError("S3 is not needed")


async def test_a_file_with_its_code_asks_no_service(tmp_path: Path) -> None:
    code = tmp_path / "c"
    code.write_bytes(b"code")
    bundle.write(tmp_path / "saved.zip", Contents(a_capsule(), code))
    (tmp_path / "into").mkdir()
    found = await source.find(str(tmp_path / "saved.zip"), tmp_path / "into", services, MIB, with_code=True)
    assert found.contents.code is not None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no/such/file.json", "not an existing file"),
        ("s3://x", "not an existing file"),
        ("..", "not an existing file"),
        ("a\x1b[31mb", "not an existing file"),
        ("x" * 5000, "not an existing file"),
        ("nul\0", "not an existing file"),
    ],
)
async def test_other_names_are_refused(name: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidCall) as refused:
        await source.find(name, tmp_path, services, MIB, with_code=True)
    assert sentence in str(refused.value)
    assert str(refused.value).isprintable()


async def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidCapsule, match="larger than"):
        await source.find(str(tmp_path / "huge.json"), tmp_path, services, MIB, with_code=False)


def test_the_command_refuses_a_hostile_file_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_text('{"schema": 1, "message": ' + "[" * 100_000)
    assert cli.main(["replay", "x.json"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("nanoagent: x.json: not a capsule")


def test_a_variable_without_an_equals_sign_shows_no_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_bytes(CAPSULE)
    assert cli.main(["replay", str(tmp_path / "x.json"), "--env", "hunter2"]) == 2
    assert "hunter2" not in capsys.readouterr().err


def test_statuses_of_results_are_as_their_error_types() -> None:
    assert a_result(None).status is Status.SUCCESS


def test_a_request_id_needs_the_bucket_of_the_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nanoagent.dev.sender.dev._searched", tuple)
    monkeypatch.delenv("S3_USER_DATA_BUCKET", raising=False)
    assert cli.main(["replay", "send-1234567890ab"]) == 2
    assert "S3_USER_DATA_BUCKET: is not set" in capsys.readouterr().err
