"""What S3's refusals mean: for a job's code, for the worker's readiness, and for the doctor, who agrees."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from nanoagent.doctor.facts import Answer
from nanoagent.doctor.finding import Severity
from nanoagent.doctor.judge import s3
from nanoagent.model.errors import StorageError
from nanoagent.storage.base import Absence
from nanoagent.storage.default_buckets import DefaultBuckets
from nanoagent.storage.s3_errors import absence_of
from support.doubles.fakes import make_settings


def denied(action: str) -> str:
    return (
        f"User: arn:aws:sts::123456789012:assumed-role/worker/i-0 is not authorized to perform: {action} on "
        f'resource: "arn:aws:s3:::code/x" because no identity-based policy allows the {action} action'
    )


@pytest.mark.parametrize(
    ("code", "message", "absence", "action"),
    [
        ("NoSuchKey", "The specified key does not exist.", Absence.KEY, None),
        ("404", "Not Found", Absence.KEY, None),
        ("AccessDenied", denied("s3:ListBucket"), Absence.KEY, None),
        ("NoSuchBucket", "The specified bucket does not exist", Absence.BUCKET, None),
        ("InvalidBucketName", "The specified bucket is not valid.", Absence.BUCKET, None),
        ("AccessDenied", "Access Denied", Absence.DENIED, None),
        ("AccessDenied", denied("s3:GetObject"), Absence.DENIED, "s3:GetObject"),
        ("AccessDenied", denied("kms:Decrypt"), Absence.DENIED, "kms:Decrypt"),
        ("403", "Forbidden", Absence.DENIED, None),
        ("AllAccessDisabled", "All access to this object has been disabled", Absence.DENIED, None),
        ("KMS.DisabledException", "arn:aws:kms:x is disabled.", Absence.DENIED, None),
        (
            "InvalidObjectState",
            "The operation is not valid for the object's storage class",
            Absence.ARCHIVED,
            None,
        ),
        ("KeyTooLongError", "Your key is too long", Absence.NAME, None),
        ("ExpiredToken", "The provided token has expired.", None, None),
        ("InternalError", "We encountered an internal error.", None, None),
        ("PermanentRedirect", "Use another endpoint", Absence.ELSEWHERE, None),
    ],
)
def test_why_an_object_cannot_be_read_is_told_by_s3s_refusal(
    code: str, message: str, absence: Absence | None, action: str | None
):
    assert absence_of(code, message) == (absence, action)


class Scripted:
    """An S3 client that answers each operation as the test says; unnamed ones succeed."""

    def __init__(self, **refusals: tuple[str, str]) -> None:
        self.refusals = refusals
        self.asked: list[str] = []

    async def _answer(self, operation: str, answer: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(operation)
        if operation in self.refusals:
            code, message = self.refusals[operation]
            raise ClientError({"Error": {"Code": code, "Message": message}}, operation)
        return answer

    async def get_object(self, **_: Any) -> dict[str, Any]:
        return await self._answer("get_object", {"Body": self})

    async def create_multipart_upload(self, **_: Any) -> dict[str, Any]:
        return await self._answer("create_multipart_upload", {"UploadId": "u"})

    async def abort_multipart_upload(self, **_: Any) -> dict[str, Any]:
        return await self._answer("abort_multipart_upload", {})

    def close(self) -> None:
        """As a body is closed."""


NO_KEY = ("NoSuchKey", "The specified key does not exist.")
READS = [
    ("", "", True),
    (*NO_KEY, True),
    ("AccessDenied", denied("s3:ListBucket"), True),
    ("NoSuchBucket", "The specified bucket does not exist", False),
    ("AccessDenied", denied("s3:GetObject"), False),
    ("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.", False),
    ("ExpiredToken", "The provided token has expired.", False),
    (
        "RequestTimeTooSkewed",
        "The difference between the request time and the current time is too large.",
        False,
    ),
    ("PermanentRedirect", "Use another endpoint", False),
]


@pytest.mark.parametrize(("code", "message", "usable"), READS)
async def test_readiness_and_the_doctor_say_the_same_of_the_bucket_of_code(
    code: str, message: str, *, usable: bool
):
    refusals = {"get_object": (code, message)} if code else {}
    buckets = DefaultBuckets(Scripted(**refusals), "code", "data")
    reason = await buckets.not_ready_reason()
    found = s3.code_bucket(make_settings(), Answer(code or None, message, None, 0, 0, None))
    assert (reason is None) is usable
    assert (found.severity is Severity.OK) is usable
    assert usable or "code (S3_CODE_BUCKET)" in str(reason)


async def test_a_refusal_without_an_action_leaves_it_open_whether_code_can_be_read():
    bare = ("AccessDenied", "Access Denied")
    buckets = DefaultBuckets(Scripted(get_object=bare), "code", "data")
    assert await buckets.not_ready_reason() is None
    found = s3.code_bucket(make_settings(), Answer(*bare, None, 0, 0, None))
    assert found.severity is Severity.UNKNOWN


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("NoSuchBucket", "The specified bucket does not exist"),
        ("AccessDenied", "Access Denied"),
        ("AccessDenied", denied("s3:PutObject")),
    ],
)
async def test_readiness_and_the_doctor_say_the_same_of_the_bucket_of_outputs(code: str, message: str):
    client = Scripted(get_object=NO_KEY, create_multipart_upload=(code, message))
    reason = await DefaultBuckets(client, "code", "data").not_ready_reason()
    assert reason is not None
    assert "data (S3_USER_DATA_BUCKET)" in reason
    answer = Answer(code, message, None, 0, 0, None)
    severities = {each.severity for each in s3.data_bucket(make_settings(), "outputs/", answer, None)}
    assert severities == {Severity.PROBLEM}


async def test_nothing_is_left_by_a_look_at_the_bucket_of_outputs():
    client = Scripted(get_object=NO_KEY)
    assert await DefaultBuckets(client, "code", "data").not_ready_reason() is None
    assert sorted(client.asked) == ["abort_multipart_upload", "create_multipart_upload", "get_object"]


async def test_a_store_without_multipart_uploads_is_asked_for_the_bucket_alone():
    cannot = ("NotImplemented", "A header you provided implies functionality that is not implemented")
    client = Scripted(get_object=NO_KEY, create_multipart_upload=cannot)
    await DefaultBuckets(client, "code", "data").probe_writing()
    assert client.asked == ["create_multipart_upload", "get_object"]
    client = Scripted(get_object=("NoSuchBucket", "no"), create_multipart_upload=cannot)
    with pytest.raises(StorageError, match="there is no such bucket"):
        await DefaultBuckets(client, "code", "data").probe_writing()


async def test_both_buckets_are_named_where_both_are_wrong():
    client = Scripted(get_object=("NoSuchBucket", "no"), create_multipart_upload=("NoSuchBucket", "no"))
    reason = await DefaultBuckets(client, "code", "data").not_ready_reason()
    assert "S3_CODE_BUCKET" in str(reason)
    assert "S3_USER_DATA_BUCKET" in str(reason)
