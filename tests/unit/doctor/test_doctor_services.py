"""The findings for answers of SQS, S3, CloudWatch and Redis, and how they are printed."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from email.utils import formatdate
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError, NoCredentialsError
from redis.exceptions import AuthenticationError

from nanoagent import config
from nanoagent.aws import clients as aws
from nanoagent.aws.clients import AwsClients, CredentialsLifetime
from nanoagent.doctor import check as checks
from nanoagent.doctor import configuration, report
from nanoagent.doctor.facts import REDIS_COMMANDS, Answer
from nanoagent.doctor.finding import Area, Finding, Severity, note, problem, unknown, warning
from nanoagent.doctor.gather import answers as gather_answers
from nanoagent.doctor.judge import aws as judge_aws
from nanoagent.doctor.judge import redis, s3, sqs
from nanoagent.model.errors import ResultStoreError
from nanoagent.results import failures
from nanoagent.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OK, NOTE, WARNING, PROBLEM, UNKNOWN = (
    Severity.OK,
    Severity.NOTE,
    Severity.WARNING,
    Severity.PROBLEM,
    Severity.UNKNOWN,
)
NOON = 1_795_608_000.0
POLICY = {"deadLetterTargetArn": "arn:aws:sqs:r:123456789012:dead", "maxReceiveCount": 20}
ATTRIBUTES = {"RedrivePolicy": json.dumps(POLICY), "MessageRetentionPeriod": "345600"}


def refused_by(kind: failures.FailureKind) -> Answer:
    """What the worker's own look at Redis came to."""
    return Answer(data=failures.RedisCallError("x:1", "try", kind, ValueError("said")))


def settings_with(**changes: Any) -> config.Settings:
    required = {
        "sqs_queue_url": "https://sqs.ap-northeast-2.amazonaws.com/123456789012/jobs",
        "s3_code_bucket": "code",
        "s3_user_data_bucket": "data",
        "worker_memory_mb": 4096,
    }
    return config.Settings(_env_file=None, **(required | changes))  # type: ignore[arg-type,call-arg]


def denied(action: str = "") -> Answer:
    """As AWS says it since 2021, with the action; without one, as S3 says it across accounts."""
    said = (
        f"User: arn:aws:iam::1:user/w is not authorized to perform: {action} on resource: x" if action else ""
    )
    return Answer("AccessDenied", said or "Access Denied")


def attributes(**changes: str | None) -> Answer:
    kept = {name: value for name, value in (ATTRIBUTES | changes).items() if value is not None}
    return Answer(data={"Attributes": kept})


NO_HANDLE = Answer("ReceiptHandleIsInvalid", "The input receipt handle is invalid.")
TOO_MANY = Answer("InvalidParameterValue", "Value 11 for parameter MaxNumberOfMessages is invalid.")
QUEUE = {
    "attributes": attributes(),
    "delete": NO_HANDLE,
    "change": NO_HANDLE,
    "receive": TOO_MANY,
    "dead letters": Answer(data={"QueueUrl": "https://q/123456789012/dead"}),
}
NOT_TRIED = (
    (UNKNOWN, "sqs:ReceiveMessage was not refused"),
    (UNKNOWN, "sqs:SendMessage to the dead-letter queue was not tested"),
)

Expected = tuple[tuple[Severity, str], ...]


def assert_said(findings: list[Finding], expected: Expected) -> None:
    """All that is not well, in its order, each with a remedy where it needs one."""
    said = [found for found in findings if found.severity is not OK]
    assert [found.severity for found in said] == [severity for severity, _ in expected], said
    for found, (_, words) in zip(said, expected, strict=True):
        assert words in f"{found.found} → {found.remedy}"
        assert found.severity not in {WARNING, PROBLEM} or found.remedy


@pytest.mark.parametrize(
    ("answers", "changes", "expected"),
    [
        ({}, {}, NOT_TRIED),
        (
            {"delete": denied("sqs:deletemessage")},
            {},
            ((PROBLEM, "sqs:deletemessage on the queue jobs is refused"), *NOT_TRIED),
        ),
        (
            {"change": Answer("AccessDeniedException", "no")},
            {},
            ((PROBLEM, "sqs:ChangeMessageVisibility on the queue jobs is refused"), *NOT_TRIED),
        ),
        (
            {"receive": denied("sqs:receivemessage")},
            {},
            ((PROBLEM, "sqs:receivemessage on the queue jobs"), NOT_TRIED[1]),
        ),
        (
            {"receive": Answer("KMS.AccessDeniedException", "the key")},
            {},
            ((PROBLEM, "sqs:ReceiveMessage on the queue jobs"), NOT_TRIED[1]),
        ),
        (
            {"dead letters": denied("sqs:getqueueurl")},
            {},
            (NOT_TRIED[0], (PROBLEM, "sqs:getqueueurl on the dead-letter queue"), NOT_TRIED[1]),
        ),
        (
            {"dead letters": denied()},
            {"sqs_dlq_url": "https://q/123456789012/away"},
            (
                NOT_TRIED[0],
                (UNKNOWN, "whether the dead-letter queue away exists"),
                (UNKNOWN, "sqs:SendMessage to the dead-letter queue away was not tested"),
            ),
        ),
        (
            {"dead letters": Answer("AWS.SimpleQueueService.NonExistentQueue", "?")},
            {},
            (NOT_TRIED[0], (PROBLEM, "the dead-letter queue does not exist"), NOT_TRIED[1]),
        ),
        (
            {"attributes": attributes(RedrivePolicy=json.dumps(POLICY | {"maxReceiveCount": 3}))},
            {},
            ((WARNING, "after 3 receipts"), *NOT_TRIED),
        ),
        (
            {"attributes": attributes(RedrivePolicy=json.dumps(POLICY | {"maxReceiveCount": 20}))},
            {"sqs_queue_url": "https://q/123456789012/jobs.fifo"},
            ((WARNING, "behind a failing job of the same group"), *NOT_TRIED),
        ),
        (
            {"attributes": attributes(RedrivePolicy=None)},
            {},
            ((WARNING, "no dead-letter queue"), *NOT_TRIED),
        ),
        (
            {"attributes": attributes(RedrivePolicy="{[")},
            {"sqs_dlq_url": "https://q/1/dead"},
            (NOT_TRIED[0], (UNKNOWN, "queue dead was not tested")),
        ),
        (
            {"attributes": attributes(MessageRetentionPeriod="60")},
            {},
            ((WARNING, "deletes messages after 60 s"), *NOT_TRIED),
        ),
        (
            {"attributes": attributes(KmsMasterKeyId="alias/mine")},
            {},
            ((NOTE, "kms:Decrypt"), *NOT_TRIED),
        ),
        (
            {"attributes": denied("sqs:getqueueattributes")},
            {},
            ((PROBLEM, "sqs:getqueueattributes on the queue jobs"), *NOT_TRIED),
        ),
        (
            {"attributes": Answer("AWS.SimpleQueueService.NonExistentQueue", "?")},
            {},
            ((PROBLEM, "the queue jobs does not exist in ap-northeast-2"),),
        ),
    ],
)
def test_what_the_queue_answers(answers: dict[str, Answer], changes: dict[str, str], expected: Expected):
    assert_said(list(sqs.judge(settings_with(**changes), QUEUE | answers)), expected)


FAILURES = [
    (Answer("NoCredentialsError", "Unable to locate credentials"), PROBLEM, "AWS_ACCESS_KEY_ID"),
    (Answer("InvalidClientTokenId", "?"), PROBLEM, "the credentials are refused"),
    (Answer("ExpiredToken", "?"), PROBLEM, "new credentials"),
    (Answer("RequestTimeTooSkewed", "?"), PROBLEM, "timedatectl"),
    (Answer("PermanentRedirect", "?"), PROBLEM, "AWS_REGION"),
    (Answer("EndpointConnectionError", "Could not connect"), PROBLEM, "AWS_ENDPOINT_URL"),
    (Answer("TimeoutError", "no answer within 5 s"), PROBLEM, "no answer within 5 s"),
    (Answer("ClientConnectorDNSError", "no such name"), PROBLEM, "the network's route out"),
    (Answer("SSLError", "certificate verify failed"), PROBLEM, "certificate verify failed"),
    (Answer("SignatureDoesNotMatch", "Signature expired: 1Z is now earlier"), PROBLEM, "machine's clock"),
    (
        Answer("InvalidSignatureException", "Signature not yet current: 1Z is still later"),
        PROBLEM,
        "machine's clock",
    ),
    (Answer("InvalidSignatureException", "The signature we calculated"), PROBLEM, "AWS_SECRET_ACCESS_KEY"),
    (Answer("InvalidSignatureException", ""), PROBLEM, "timedatectl"),
    (Answer("SignatureDoesNotMatch", "The signature we calculated"), PROBLEM, "AWS_SECRET_ACCESS_KEY"),
    (Answer("503", "Slow Down"), UNKNOWN, "try again"),
    (Answer("ServiceUnavailable", "?"), UNKNOWN, "(the service failed) → try again"),
    (Answer("InternalError", "?"), UNKNOWN, "(the service failed) → try again"),
    (Answer("SlowDown", "?"), UNKNOWN, "(the service throttles) → try again"),
    (Answer("SomethingNew", "words"), UNKNOWN, "words (SomethingNew)"),
]


@pytest.mark.parametrize(("answer", "severity", "words"), FAILURES)
def test_what_has_nothing_to_do_with_permissions(answer: Answer, severity: Severity, words: str):
    settings = settings_with()
    asked = (
        list(sqs.judge(settings, {"attributes": answer})),
        [s3.code_bucket(settings, answer)],
        list(s3.data_bucket(settings, "outputs/", answer, None)),
    )
    for findings in asked:
        assert_said(findings, ((severity, words),))
    # Jobs do without CloudWatch.
    assert_said([judge_aws.cloudwatch(answer)], ((WARNING if severity is PROBLEM else severity, words),))


@pytest.mark.parametrize(
    ("answer", "severity", "words"),
    [
        (Answer("NoSuchKey", "?"), OK, "is allowed"),
        (denied("s3:ListBucket"), OK, "s3:ListBucket is not, and is not needed"),
        (denied("s3:GetObject"), PROBLEM, "s3:GetObject on arn:aws:s3:::code/* is refused"),
        (denied(), UNKNOWN, "if only s3:ListBucket is missing"),
        (Answer("403", "Forbidden"), UNKNOWN, "aws s3api get-object --bucket code"),
        (Answer("NoSuchBucket", "?"), PROBLEM, "the bucket code does not exist"),
    ],
)
def test_what_getting_a_key_that_is_not_there_tells(answer: Answer, severity: Severity, words: str):
    found = s3.code_bucket(settings_with(), answer)
    assert found.severity is severity
    assert words in f"{found.found} → {found.remedy}"


BEGUN = Answer(data={"Key": "outputs/.doctor", "UploadId": "u"})


@pytest.mark.parametrize(
    ("begun", "ended", "expected"),
    [
        (BEGUN, Answer(), ()),
        (denied("s3:PutObject"), None, ((PROBLEM, "s3:PutObject on arn:aws:s3:::data/outputs/*"),)),
        (Answer("NoSuchBucket", "?"), None, ((PROBLEM, "S3_USER_DATA_BUCKET"),)),
        (
            BEGUN,
            denied("s3:AbortMultipartUpload"),
            ((PROBLEM, "s3:AbortMultipartUpload"), (NOTE, "upload of outputs/.doctor remains")),
        ),
        (BEGUN, Answer("TimeoutError", "late"), ((PROBLEM, "late"), (NOTE, "remains in data"))),
    ],
)
def test_what_a_multipart_upload_tells(begun: Answer, ended: Answer | None, expected: Expected):
    assert_said(list(s3.data_bucket(settings_with(), "outputs/", begun, ended)), expected)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, ()),
        ({"code": None, "data": None}, ()),
        ({"code": "ap-northeast-2", "data": "ap-northeast-2"}, ()),
        ({"code": "eu-west-1"}, ((WARNING, "the bucket code (S3_CODE_BUCKET) is in eu-west-1"),)),
        (
            {"code": "ap-northeast-2", "data": "us-east-1"},
            ((PROBLEM, "S3 refuses the links to output files"),),
        ),
    ],
)
def test_a_bucket_of_another_region_is_told(found: dict[str, str | None], expected: Expected):
    assert_said(list(s3.regions(settings_with(), found)), expected)


class HeadedClient:
    """An S3 client as far as the region of a bucket takes one."""

    def __init__(self, answer: dict[str, Any] | Exception, style: str = "virtual") -> None:
        self.meta = SimpleNamespace(config=SimpleNamespace(s3={"addressing_style": style}))
        self._answer = answer

    async def head_bucket(self, *, Bucket: str) -> dict[str, Any]:  # noqa: N803 - as the SDK names it
        assert Bucket == "code"
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


HEADED: dict[str, Any] = {"ResponseMetadata": {"HTTPHeaders": {"x-amz-bucket-region": "eu-west-1"}}}


@pytest.mark.parametrize(
    ("client", "region"),
    [
        (HeadedClient(HEADED), "eu-west-1"),
        (HeadedClient(ClientError({**HEADED, "Error": {"Code": "403"}}, "HeadBucket")), "eu-west-1"),
        (HeadedClient(ClientError({"Error": {"Code": "404"}}, "HeadBucket")), None),
        (HeadedClient(OSError("down")), None),
        (HeadedClient({}), None),
        (HeadedClient(HEADED, "auto"), None),  # a store that knows no regions
    ],
)
async def test_the_region_of_a_bucket_is_told_also_where_reading_it_is_refused(
    client: HeadedClient, region: str | None
):
    assert await aws.bucket_region(client, "code") == region


async def test_check_warns_of_default_buckets_in_another_region(monkeypatch: pytest.MonkeyPatch):
    regions = {"code": "eu-west-1", "data": "us-east-1"}

    async def region_of(_client: object, bucket: str) -> str | None:
        return regions.get(bucket)

    monkeypatch.setattr(aws, "bucket_region", region_of)
    async with aws.AwsClients("us-east-1", access_key_id="k", secret_access_key="s") as clients:
        told = await checks._buckets_elsewhere(settings_with(aws_region="us-east-1"), clients)
        assert told == (
            (
                "the bucket code (S3_CODE_BUCKET) is in eu-west-1, but AWS_REGION is us-east-1: "
                "reading it is slower, and its traffic is billed"
            ),
        )
        regions |= {"code": "us-east-1", "data": "eu-west-1"}
        (told_of_data,) = await checks._buckets_elsewhere(settings_with(aws_region="us-east-1"), clients)
        assert "S3 refuses the links to output files" in told_of_data


@pytest.mark.parametrize(
    ("answer", "severity"),
    [
        (Answer(), OK),
        (Answer("MissingParameter", "The parameter MetricData is required."), OK),
        (Answer("MissingRequiredParameterException", "?"), OK),
        (Answer("InvalidParameterValue", "?"), OK),
        (denied("cloudwatch:PutMetricData"), PROBLEM),
    ],
)
def test_what_metric_data_without_a_datum_tell(answer: Answer, severity: Severity):
    assert judge_aws.cloudwatch(answer).severity is severity


@pytest.mark.parametrize(
    ("ahead_s", "severity", "words"),
    [
        (0, OK, "within a few seconds"),
        (-30, OK, "30 s behind"),
        (61, WARNING, "61 s ahead"),
        (-299, WARNING, "299 s behind"),
        (301, PROBLEM, "301 s ahead"),
        (-4000, PROBLEM, "4000 s behind"),
    ],
)
def test_the_clock_is_compared_with_the_quickest_answer(ahead_s: int, severity: Severity, words: str):
    quick = Answer(date=formatdate(NOON, usegmt=True), asked_at=NOON + ahead_s + 0.4, took_s=0.2)
    slow = Answer(date=formatdate(NOON - 5000, usegmt=True), asked_at=NOON, took_s=4.0)
    found = judge_aws.clock([slow, Answer("TimeoutError"), Answer(date="yesterday"), quick])
    assert (found.severity, words in found.found) == (severity, True)


def test_a_clock_that_nobody_compares_is_not_called_right():
    assert judge_aws.clock([Answer("TimeoutError"), Answer(date="Mon, 99 Foo 2026")]).severity is UNKNOWN


# --- Redis

INFO = {
    "redis_version": "7.2.4",
    "maxmemory": "0",
    "maxmemory_policy": "noeviction",
    "used_memory": "1000000",
    "role": "master",
    "rdb_last_bgsave_status": "ok",
    "rdb_last_save_time": "1795608000",
    "aof_enabled": "1",
}
TAKEN = {"ping": Answer(data=b"PONG")} | {command: Answer() for command in REDIS_COMMANDS}
NOPERM = Answer("NoPermissionError", "User w has no permissions to run the 'publish' command")


def info_of(**changes: str) -> Answer:
    lines = "".join(f"{name}:{value}\r\n" for name, value in (INFO | changes).items())
    return Answer(data=f"# Server\r\n{lines}".encode())


@pytest.mark.parametrize(
    ("answers", "changes", "expected"),
    [
        ({}, {}, ()),
        ({"info": info_of(valkey_version="8.0.1")}, {}, ()),
        ({"info": Answer("NoPermissionError", "no")}, {}, ((UNKNOWN, "INFO is refused"),)),
        (
            {"publish": NOPERM, "sadd": NOPERM},
            {"redis_username": "w"},
            ((PROBLEM, "PUBLISH, SADD refused: User w has no permissions"),),
        ),
        (
            {"setex": Answer("NoPermissionError", "No permissions to access a key")},
            {"redis_username": "w"},
            ((PROBLEM, "ACL SETUSER w ~job:*"),),
        ),
        (
            {"setex": Answer("ReadOnlyError", "You can't write"), "info": info_of(role="slave")},
            {},
            ((PROBLEM, "read-only replica"), (PROBLEM, "it is a replica")),
        ),
        ({"setex": Answer("OutOfMemoryError", "command not allowed")}, {}, ((PROBLEM, "maxmemory"),)),
        (
            {"setex": Answer("ResponseError", "MISCONF Redis is configured to")},
            {},
            ((PROBLEM, "CONFIG GET dir"),),
        ),
        (
            {"info": info_of(maxmemory="2000000", maxmemory_policy="allkeys-lru")},
            {},
            ((WARNING, "CONFIG SET maxmemory-policy noeviction"),),
        ),
        ({"info": info_of(maxmemory="1000001")}, {}, ((WARNING, "99 % of its memory"),)),
        ({"info": info_of(rdb_last_bgsave_status="err")}, {}, ((WARNING, "last save to disk failed"),)),
        ({"info": info_of(aof_enabled="0")}, {}, ((NOTE, "appendonly yes"),)),
        (
            {},
            {"redis_host": "redis.example"},
            ((WARNING, "results go to redis.example unencrypted"), (WARNING, "no password")),
        ),
        (
            {},
            {"redis_host": "10.0.0.9", "redis_password": "pass"},
            ((WARNING, "results and the password go to 10.0.0.9 unencrypted"),),
        ),
        ({}, {"redis_host": "10.0.0.9", "redis_password": "pass", "redis_tls": True}, ()),
        ({}, {"redis_host": "::1"}, ()),
        (
            {"ping": Answer("AuthenticationError", "Authentication required.")},
            {},
            ((PROBLEM, "requires a password"),),
        ),
        (
            {"ping": Answer("AuthenticationError", "WRONGPASS invalid username-password pair")},
            {"redis_password": "pass"},
            ((PROBLEM, "REDIS_USERNAME and REDIS_PASSWORD"),),
        ),
        ({"ping": Answer("BusyLoadingError", "?")}, {}, ((PROBLEM, "is loading"),)),
        *(
            ({"verify": refused_by(kind), "ping": ping}, {}, ((PROBLEM, kind.message.partition(": ")[0]),))
            for kind in failures.CONFIGURATION_FAILURES
            for ping in (Answer(), Answer("ConnectionError", "Connection closed by server."))
        ),
        ({"ping": Answer("NoPermissionError", "ping")}, {}, ((PROBLEM, "ACL SETUSER default"),)),
        ({"ping": Answer("ResponseError", "DB index is out of range")}, {}, ((PROBLEM, "REDIS_DB"),)),
        (
            {"ping": Answer("ConnectionError", "Connection closed by server.")},
            {},
            ((PROBLEM, "REDIS_TLS=true"),),
        ),
        (
            {"ping": Answer("ConnectionError", "Error 111 connecting")},
            {},
            ((PROBLEM, "REDIS_HOST and REDIS_PORT"),),
        ),
    ],
)
def test_what_redis_answers(answers: dict[str, Answer], changes: dict[str, Any], expected: Expected):
    said = TAKEN | {"info": info_of()} | answers
    assert_said(list(redis.judge(settings_with(**changes), said)), expected)


# --- links

NOW = 1_000_000.0
ENDS_SOON = CredentialsLifetime(are_temporary=True, ends_at=NOW + 1200)


@pytest.mark.parametrize(
    ("style", "expires_s", "lifetime", "words"),
    [
        ("presigned", 3600, ENDS_SOON, "the present ones in 20 min"),
        ("presigned", 601, ENDS_SOON, "OUTPUT_URL_EXPIRES_SECONDS is 601"),
        ("presigned", 600, ENDS_SOON, None),
        ("presigned", 60, CredentialsLifetime(are_temporary=True), "at a time that the SDK does not know"),
        ("presigned", 604800, CredentialsLifetime(are_temporary=False), None),
        ("presigned", 3600, None, None),
        ("plain", 3600, ENDS_SOON, None),
    ],
)
def test_links_that_outlive_the_credentials_that_sign_them_are_warned_of(
    style: str, expires_s: int, lifetime: CredentialsLifetime | None, words: str | None
):
    settings = settings_with(output_url_style=style, output_url_expires_seconds=expires_s)
    found = list(s3.links(settings, lifetime, NOW))
    assert [each.severity for each in found] == ([] if words is None else [WARNING])
    assert words is None or words in found[0].found


async def test_the_sdk_tells_what_links_are_signed_with(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    assert await AwsClients("eu-west-1").credentials_lifetime() == CredentialsLifetime(are_temporary=False)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "x")
    assert await AwsClients("eu-west-1").credentials_lifetime() == CredentialsLifetime(are_temporary=True)
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2999-01-01T00:00:00Z")
    found = await AwsClients("eu-west-1").credentials_lifetime()
    assert found == CredentialsLifetime(
        are_temporary=True, ends_at=datetime(2999, 1, 1, tzinfo=UTC).timestamp()
    )


# --- asking


async def test_whatever_a_call_does_is_its_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gather_answers, "DEADLINE_S", 0.01)
    headers = {"ResponseMetadata": {"HTTPHeaders": {"date": "Wed, 25 Nov 2026 12:00:00 GMT"}}}
    refused = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}, **headers}, "GetObject")

    async def raises(exc: BaseException) -> None:
        if isinstance(exc, ResultStoreError):
            raise exc from AuthenticationError("WRONGPASS")
        raise exc

    for exc, code, message in (
        (refused, "AccessDenied", "no"),
        (NoCredentialsError(), "NoCredentialsError", "Unable to locate credentials"),
        (ResultStoreError("Redis at x: ping: WRONGPASS"), "AuthenticationError", "WRONGPASS"),
        (ValueError(""), "ValueError", "ValueError"),
        (KeyError("odd"), "KeyError", "'odd'"),
    ):
        answer = await gather_answers.ask(lambda exc=exc: raises(exc))  # type: ignore[misc]
        assert (answer.code, answer.message) == (code, message)
        assert answer.date == ("Wed, 25 Nov 2026 12:00:00 GMT" if exc is refused else None)
    answer = await gather_answers.ask(asyncio.Event().wait)
    assert (answer.code, answer.message) == ("TimeoutError", "no answer within 0 s")


# --- showing

CANARIES = {
    "REDIS_PASSWORD": "canary-redis-word",
    "AWS_SECRET_ACCESS_KEY": "canary/aws+key",
    "AWS_SESSION_TOKEN": "canary-session",
    "SOME_API_KEY": "canary-api",
    "DOCKER_HOST": "tcp://root:canary-docker@10.0.0.7:2375",
    "AI_ENDPOINT": "http://me:canary/with@slash@ai.example",
}


@pytest.fixture
def hidden() -> Iterator[None]:
    yield
    logs.hide(())


def test_no_secret_of_the_environment_is_shown(hidden: None):
    logs.hide(report.secrets_in(CANARIES))
    for value in CANARIES.values():
        shown = report.printable_line(
            f"cannot connect to {value} with {value!r}, https://u:canary-new@host/x"
        )
        assert "canary" not in shown, shown
        assert "***" in shown
    signed = report.printable_line(
        "https://b.s3.amazonaws.com/k?X-Amz-Signature=canary&X-Amz-Credential=canary"
    )
    assert "canary" not in signed
    assert report.printable_line("canary-docker alone") == "*** alone"


def test_control_characters_are_removed_and_the_length_is_bounded():
    assert report.printable_line("a\x1b[2J\r\nb\x9b31m\u202ec\0") == r"a\x1b[2J\r\nb\x9b31m\u202ec\x00"
    assert len(report.printable_line("x" * 10_000)) < 700


FINDINGS = [
    warning(Area.REDIS, "[red]it[/] is full", "CONFIG SET [bold]"),
    Finding(Area.KERNEL, "Linux 6.12"),
    problem(Area.SQS, "no queue", "SQS_QUEUE_URL"),
    unknown(Area.S3, "whether"),
    note(Area.KERNEL, "old"),
    Finding(Area.KERNEL, "Linux 6.12"),
]


def test_findings_come_by_area_and_each_once():
    in_order = report.in_order(FINDINGS)
    assert [found.found for found in in_order] == [
        "Linux 6.12",
        "old",
        "no queue",
        "whether",
        "[red]it[/] is full",
    ]


def test_findings_for_machines_have_all_their_parts():
    document = json.loads(json.dumps(report.document(report.in_order(FINDINGS))))
    assert document["ok"] is False
    assert document["counts"] == {"ok": 1, "note": 1, "unknown": 1, "warning": 1, "problem": 1}
    assert document["findings"][2] == {
        "area": "SQS",
        "verdict": "problem",
        "found": "no queue",
        "remedy": "SQS_QUEUE_URL",
    }
    assert report.document([FINDINGS[0]])["ok"] is True


def test_findings_are_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]):
    report.show(report.in_order(FINDINGS))
    assert capsys.readouterr().out.splitlines() == [
        "ok: kernel: Linux 6.12",
        "note: kernel: old",
        "problem: SQS: no queue",
        "    remedy: SQS_QUEUE_URL",
        "unknown: S3: whether",
        "warning: Redis: [red]it[/] is full",
        "    remedy: CONFIG SET [bold]",
        "1 problem, 1 warning, 1 unknown, 1 note, 1 ok",
    ]


def test_findings_are_a_table_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    report.show(report.in_order(FINDINGS))
    shown = capsys.readouterr().out
    assert "finding and remedy" in shown
    assert "→ SQS_QUEUE_URL" in shown
    assert "[red]it[/] is full" in shown


# --- settings that cannot be used


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No settings in the environment, and a folder without a .env."""
    for name in config.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


GOOD = {
    "SQS_QUEUE_URL": "https://sqs/123456789012/jobs",
    "S3_CODE_BUCKET": "code",
    "S3_USER_DATA_BUCKET": "data",
    "REDIS_HOST": "redis.example",
    "WORKER_MEMORY_MB": "4096",
}


@pytest.mark.parametrize(
    ("changes", "replaced", "problems"),
    [
        ({}, set(), 0),
        ({"S3_CODE_BUCKET": None}, {"S3_CODE_BUCKET"}, 1),
        ({"REDIS_PORT": "none", "LOCALE": "fr"}, {"REDIS_PORT", "LOCALE"}, 2),
        ({"BUILD_MEMORY_MB": "8000", "SQS_DLQ_URL": "x"}, {"BUILD_MEMORY_MB", "SQS_DLQ_URL"}, 1),
        ({"WORKER_MEMORY_MB": "100"}, {"WORKER_MEMORY_MB"}, 1),
        (dict.fromkeys(GOOD), {"SQS_QUEUE_URL", "S3_CODE_BUCKET", "S3_USER_DATA_BUCKET"}, 3),
    ],
)
def test_what_is_wrong_has_a_stand_in_and_the_rest_stays(
    bare: Path, changes: dict[str, str | None], replaced: set[str], problems: int
):
    values = {name: value for name, value in (GOOD | changes).items() if value is not None}
    file = bare / "worker.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    settings, wrong = configuration.usable(file)
    assert len(configuration.problems(file)) == problems
    assert replaced <= wrong
    assert bool(wrong) == bool(problems)
    for name, value in values.items():
        if name not in wrong:
            assert str(getattr(settings, name.lower())) == value


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_cannot_be_read_is_a_problem_and_the_environment_is_used(
    bare: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch
):
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    file = bare / "worker.env"
    if content is None:
        file.symlink_to(file)  # a loop
    else:
        file.write_bytes(content)
    settings, wrong = configuration.usable(file)
    assert (settings.redis_host, wrong) == ("redis.example", frozenset())
    if content is not None:
        assert [text.partition(":")[0] for text in configuration.problems(file)] == [str(file)]
