"""Messages and hints for CODE_NOT_FOUND, one per reason.

The error text of S3 names roles and accounts of the operator. So the text is only in the log, not in the
result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nanoagent.model.errors import Rejected
from nanoagent.model.object_names import key_hint
from nanoagent.model.result import ErrorType
from nanoagent.model.text import Text
from nanoagent.storage.base import Absence, ObjectMissing, shown


@dataclass(frozen=True, slots=True)
class _Explanation:
    """The message and the hint for the author of a job.

    Attributes:
        message: A template with the field `object`, and perhaps `action`.
        hint: A template, perhaps with the field `action`.
    """

    message: Text
    hint: Text


_EXPLANATIONS: Final = {
    Absence.KEY: _Explanation(
        Text("{object}: no such key", "{object}: 그런 키가 없습니다"),
        Text(
            "Upload the zip, then send the job with exactly its key as s3Key; keys are case-sensitive.",
            "zip을 먼저 올린 뒤 그 키를 그대로 s3Key에 넣어 작업을 보내세요. 키는 대소문자를 구분합니다.",
        ),
    ),
    Absence.BUCKET: _Explanation(
        Text("{object}: no such bucket", "{object}: 그런 버킷이 없습니다"),
        Text(
            "Check s3Bucket, or leave it out to use the worker's own bucket.",
            "s3Bucket을 확인하거나, 빼서 워커의 기본 버킷을 쓰세요.",
        ),
    ),
    Absence.ARCHIVED: _Explanation(
        Text(
            "{object}: the object is archived (S3 Glacier) and cannot be read",
            "{object}: 객체가 보관 계층(S3 Glacier)에 있어 읽을 수 없습니다",
        ),
        Text(
            "Restore the object (aws s3api restore-object), or upload the code again with the storage class "
            "STANDARD.",
            "객체를 복원하거나(aws s3api restore-object) 스토리지 클래스 STANDARD로 코드를 다시 올리세요.",
        ),
    ),
    Absence.ELSEWHERE: _Explanation(
        Text(
            "{object}: the bucket is in another region, and this worker cannot read it from there",
            "{object}: 버킷이 다른 리전에 있고, 이 워커는 그 리전에서 읽을 수 없습니다",
        ),
        Text(
            "Put the code into a bucket in the worker's region.",
            "워커와 같은 리전의 버킷에 코드를 올리세요.",
        ),
    ),
    Absence.NAME: _Explanation(
        Text(
            "{object}: not a valid name of a bucket or key", "{object}: 버킷이나 키로 쓸 수 없는 이름입니다"
        ),
        Text("Check s3Bucket and s3Key.", "s3Bucket과 s3Key를 확인하세요."),
    ),
}
_DENIED_UNNAMED: Final = _Explanation(  # S3 does not name the action that it denies
    Text(
        "{object}: access denied, or no such key",
        "{object}: 접근이 거부되었거나 그런 키가 없습니다",
    ),
    Text(
        "Without s3:ListBucket, S3 also answers 'access denied' for a missing key. Check s3Key and "
        "s3Bucket. The worker's role needs s3:GetObject on the object, and kms:Decrypt if the object is "
        "encrypted with a KMS key.",
        "S3는 둘 중 어느 쪽인지 알려 주지 않습니다. s3:ListBucket 권한이 없으면 없는 키에도 같은 응답을 "
        "합니다. s3Key와 s3Bucket을 확인하세요. 워커의 역할에는 이 객체에 대한 s3:GetObject 권한이 필요하고, "
        "객체가 KMS 키로 암호화되어 있으면 kms:Decrypt 권한도 필요합니다.",
    ),
)
_DENIED_ACTION: Final = _Explanation(  # S3 names the action
    Text(
        "{object}: access denied: the worker may not perform {action}",
        "{object}: 접근이 거부되었습니다. 워커에 {action} 권한이 없습니다",
    ),
    Text(
        "Ask the operator to allow {action} for the worker's role, or use a bucket that the worker may read.",
        "운영자에게 워커의 역할에 {action} 권한을 달라고 요청하거나, 워커가 읽을 수 있는 버킷을 쓰세요.",
    ),
)


def rejection(bucket: str, key: str, missing: ObjectMissing) -> Rejected:
    """Return the rejection of a job whose code cannot be read.

    Args:
        bucket: The bucket's name.
        key: The object's key.
        missing: The answer of the object store.
    """
    if missing.absence is not Absence.DENIED:
        explanation = _EXPLANATIONS[missing.absence]
    else:
        explanation = _DENIED_UNNAMED if missing.action is None else _DENIED_ACTION
    key_may_be_missing = explanation is _DENIED_UNNAMED or missing.absence is Absence.KEY
    hint = key_hint(bucket, key) if key_may_be_missing else None
    return Rejected(
        ErrorType.CODE_NOT_FOUND,
        explanation.message.format(object=shown(bucket, key), action=missing.action),
        hint=hint or explanation.hint.format(action=missing.action),
    )
