from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import pytest
from structlog.testing import capture_logs

from nanoagent.jobs import capsule_document
from nanoagent.jobs.attempt import Attempt
from nanoagent.jobs.capsule_document import RUN_SETTINGS, Facts
from nanoagent.jobs.capsules import _MOST_WAITING, AnsweredJob, CapsuleParts, Capsules
from nanoagent.model import capsule as capsules
from nanoagent.model import message
from nanoagent.model.capsule import CapsuleWorker
from nanoagent.model.errors import StorageError, Superseded
from nanoagent.model.job import Job, Runtime
from nanoagent.model.result import ErrorType, OutputError, Result, Status
from nanoagent.storage.folder import FolderStore
from support.doubles.fakes import DEADLINE_S, make_settings

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.code.code_cache import CodeCache
    from nanoagent.model.capsule import Capsule

SETTINGS: Final = make_settings()
SECRET: Final = "hunter2-hunter2"


def failed(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        "request_id": "r1",
        "function_id": "f",
        "runtime": "python",
        "status": Status.FAILED,
        "exit_code": 1,
        "error_type": ErrorType.USER_ERROR,
        "error_message": "KeyError: 'name'",
        "stdout": "out\n",
        "stderr": "Traceback\n",
    }
    return Result(**(fields | changes))


def body_of(**fields: Any) -> str:
    return json.dumps({"requestId": "r1", "functionId": "f", "s3Key": "f.zip", **fields})


def facts(body: str, result: Result | None = None, **changes: Any) -> Facts:
    job: Job | None
    try:
        job = message.parse_job(body, SETTINGS.job_defaults)
    except message.InvalidJob:
        job = None
    fields: dict[str, Any] = {
        "body": body,
        "job": job,
        "result": result or failed(),
        "settings": SETTINGS,
        "worker": CapsuleWorker("w", "0.1.0", "x86_64"),
        "image_id": "sha256:1",
        "digest": "d" * 64,
        "etag": '"e"',
        "hidden": tuple(value for _, value in job.env) if job else (),
        "ai_record_key": None,
        "made_at": "2026-12-01T00:00:00+00:00",
    }
    return Facts(**(fields | changes))


def made(body: str, result: Result | None = None, **changes: Any) -> Capsule:
    document = capsule_document.document(facts(body, result, **changes))
    assert len(document) <= capsules.MAX_BYTES
    return capsules.decode(document)


def test_a_capsule_has_the_message_the_defaults_the_code_and_the_result() -> None:
    capsule = made(body_of(input={"a": 1}, timeoutMs=5000), ai_record_key="outputs/r1/.nanoagent/ai.jsonl")
    assert capsule.message == {"requestId": "r1", "functionId": "f", "s3Key": "f.zip", "timeoutMs": 5000}
    assert json.loads(capsule.input or "") == {"a": 1}
    assert capsule.job is not None
    assert capsule.code is not None
    assert capsule.image is not None
    assert (capsule.job.memory_mb, capsule.job.timeout_ms, capsule.job.s3_bucket) == (128, 5000, "code")
    assert (capsule.code.digest, capsule.code.etag) == ("d" * 64, '"e"')
    assert (capsule.image.reference, capsule.image.id) == ("nanoagent-python:latest", "sha256:1")
    assert (capsule.model_calls and capsule.model_calls.bucket) == "data"
    assert capsule.settings["MAX_PROCESSES"] == 256
    assert set(capsule.settings) == {name.upper() for name in RUN_SETTINGS}
    assert capsule.result == failed()
    assert capsule.omitted == {}


def test_no_setting_of_a_capsule_is_secret() -> None:
    fields = type(SETTINGS).model_fields
    assert all(fields[name].repr for name in RUN_SETTINGS)


@pytest.mark.parametrize(
    "text",
    [
        '{"big": 123456789012345678901234567890.000100, "z": 1, "a": 2}',
        r'"\ud800 alone"',
        '"한글  \\u0001"',
        f'"{"x" * 1_000_000}"',
    ],
)
def test_the_input_is_unchanged(text: str) -> None:
    body = f'{{"requestId": "r1", "s3Key": "f.zip", "input": {text}}}'
    capsule = made(body, failed(function_id="unknown"))
    assert capsule.input == text


def test_values_of_variables_are_nowhere_and_their_names_and_references_stay() -> None:
    job = facts(body_of(env={"DB_URL": SECRET, "S": "x"})).job
    result = failed(
        stdout=f"url {SECRET}\n",
        stderr=f"{SECRET}{SECRET}",
        error_message=f"cannot connect to {SECRET}",
        hint=SECRET,
        output_files=[f"https://s3/outputs/{SECRET}?X-Amz-Signature=abc"],
        output_errors=[OutputError(SECRET, f"reason {SECRET}")],
    )
    document = capsule_document.document(facts(body_of(env={"DB_URL": SECRET, "S": "x"}), result, job=job))
    assert SECRET.encode() not in document
    assert b"Signature" not in document
    capsule = capsules.decode(document)
    assert capsule.env == {"DB_URL": None, "S": None}
    assert capsule.result.stdout == "url ***\n"


@pytest.mark.parametrize(
    ("env", "kept"),
    [
        ({"A": {"ssm": "/prod/db"}}, {"A": {"ssm": "/prod/db"}}),
        ({"A": {"secretsManager": "db"}, "B": "value"}, {"A": {"secretsManager": "db"}, "B": None}),
        (
            {"A": {"secretsManager": "db", "key": "password"}},
            {"A": {"secretsManager": "db", "key": "password"}},
        ),
        ({"A": {"value": SECRET}}, {"A": None}),
        ({"A": {"ssm": "/prod/db", "value": SECRET}}, {"A": None}),
        ({"A": [SECRET]}, {"A": None}),
        (SECRET, {}),
        ([SECRET], {}),
    ],
)
def test_references_to_secrets_stay_and_other_values_do_not(env: Any, kept: Any) -> None:
    body = body_of(env=env)
    document = capsule_document.document(facts(body, failed(), job=None))
    assert SECRET.encode() not in document
    assert capsules.decode(document).env == kept


def test_unknown_fields_of_a_message_are_left_out() -> None:
    assert SECRET.encode() not in capsule_document.document(facts(body_of(password=SECRET)))


def test_a_large_output_leaves_its_end() -> None:
    capsule = made(body_of(), failed(stdout="a" * 200_000 + "end", stderr="\x01" * 300_000))
    assert capsule.result.stdout.endswith("end")
    assert len(capsule.result.stdout) + capsule.omitted["stdout"] == 200_003
    assert len(capsule.result.stderr) + capsule.omitted["stderr"] == 300_000


def test_the_largest_message_and_result_fit() -> None:
    text = '{"requestId": "r1", "s3Key": "f.zip", "input": "' + "x" * 1_048_500 + '"}'
    result = failed(
        function_id="unknown",
        stdout="\x01" * 260_000,
        stderr="\x02" * 260_000,
        output_files=["https://s3/" + "k" * 1024] * 100,
        output_errors=[OutputError("\x01" * 1024, "r" * 100)] * 5000,
    )
    capsule = made(text, result)
    assert capsule.input is not None
    assert capsule.omitted["outputErrors"] > 4000


def test_an_input_that_does_not_fit_is_left_out_and_its_size_is_told() -> None:
    document = capsule_document.document(facts(body_of(input="x" * 50_000)), max_bytes=30_000)
    capsule = capsules.decode(document)
    assert (capsule.input, capsule.omitted["input"]) == (None, 50_002)


@pytest.mark.parametrize(
    "fields",
    [
        {"memoryMb": "much"},
        {"s3Key": "k" * 500_000},
        {"env": {"A" * 500_000: "x"}},
        {"runtime": {"a": [[[]]] * 10}},
        {"input": float("nan")},
    ],
)
def test_an_invalid_message_leaves_a_capsule_too(fields: dict[str, Any]) -> None:
    result = failed(error_type=ErrorType.INVALID_JOB, exit_code=-1)
    capsule = made(body_of(**fields), result)
    assert (capsule.job, capsule.code, capsule.image) == (None, None, None)


# --- storing


class Store(FolderStore):
    """A store that fails or waits if the test says so."""

    error: Exception | None = None
    gate: asyncio.Event | None = None

    async def put(self, bucket: str, key: str, source: Path, **options: Any) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        await super().put(bucket, key, source, **options)


class NoIndex:
    def etag_of(self, bucket: str, key: str, digest: str) -> str | None:
        return '"e"'


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "data").mkdir()
    return Store(tmp_path)


def keeper(store: Store, outcomes: list[str], **changes: Any) -> Capsules:
    parts = CapsuleParts(
        settings=make_settings(**changes),
        store=store,
        code=cast("CodeCache", NoIndex()),
        image_ids={Runtime.PYTHON: "sha256:1"},
        observe=outcomes.append,
    )
    return Capsules(parts)


def answered(request_id: str = "r1") -> AnsweredJob:
    body = json.dumps({"requestId": request_id, "s3Key": "f.zip"})
    job = message.parse_job(body, SETTINGS.job_defaults)
    attempt = Attempt(job, 1, code_digest="d" * 64)
    result = failed(request_id=request_id)
    return AnsweredJob(body=body, job=job, attempt=attempt, result=result, fencing_token=3)


async def test_a_capsule_is_stored_at_the_key_of_its_request(store: Store, tmp_path: Path) -> None:
    outcomes: list[str] = []
    kept = keeper(store, outcomes)
    kept.keep(answered())
    await kept.close()
    capsule = capsules.decode((tmp_path / "data/capsules/r1.json").read_bytes())
    assert outcomes == ["stored"]
    assert capsule.code is not None
    assert (capsule.request_id, capsule.code.digest, capsule.code.etag) == ("r1", "d" * 64, '"e"')


async def test_values_of_secrets_are_nowhere(store: Store, tmp_path: Path) -> None:
    kept = keeper(store, [])
    job = answered()
    assert job.attempt is not None
    job.attempt.secrets = {"DB_URL": SECRET}
    kept.keep(replace(job, result=failed(error_message=f"no {SECRET}", stdout=SECRET)))
    await kept.close()
    stored = (tmp_path / "data/capsules/r1.json").read_bytes()
    assert SECRET.encode() not in stored
    assert capsules.decode(stored).result.stdout == "***"


@pytest.mark.parametrize("error", [StorageError("S3 is down"), OSError("disk full"), RuntimeError("a bug")])
async def test_a_failure_is_logged_and_counted_and_nothing_else(store: Store, error: Exception) -> None:
    outcomes: list[str] = []
    store.error = error
    kept = keeper(store, outcomes)
    with capture_logs() as logs:
        kept.keep(answered())
        await kept.close()
    assert outcomes == ["failed"]
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("capsule not stored", str(error))]


async def test_the_capsule_of_a_later_attempt_stays(store: Store) -> None:
    outcomes: list[str] = []
    store.error = Superseded("a later attempt has written it")
    kept = keeper(store, outcomes)
    with capture_logs() as logs:
        kept.keep(answered())
        await kept.close()
    assert (outcomes, logs) == ([], [])


async def test_capsules_that_wait_too_long_are_dropped(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanoagent.jobs.capsules._CLOSE_S", 0.05)
    outcomes: list[str] = []
    store.gate = asyncio.Event()
    kept = keeper(store, outcomes)
    for number in range(_MOST_WAITING + 2):
        kept.keep(answered(f"r{number}"))
    assert outcomes == ["dropped"] * 2
    async with asyncio.timeout(DEADLINE_S):
        await kept.close()
    assert not kept._tasks


async def test_a_store_that_does_not_answer_is_given_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanoagent.jobs.capsules._TIMEOUT_S", 0.01)
    outcomes: list[str] = []
    store.gate = asyncio.Event()
    kept = keeper(store, outcomes)
    kept.keep(answered())
    await asyncio.gather(*kept._tasks)
    assert outcomes == ["failed"]


@pytest.mark.parametrize(("setting", "of_all"), [("failed", False), ("all", True)])
def test_the_setting_says_which_jobs_leave_one(store: Store, setting: str, *, of_all: bool) -> None:
    assert keeper(store, [], capsules=setting).of_all is of_all


def test_the_document_is_readable_json() -> None:
    document = json.loads(capsule_document.document(facts(body_of(env={"A": "b"}))))
    assert document["schema"] == 1
    assert document["message"]["env"] == {"A": None}
    assert msgspec.json.encode(document)
