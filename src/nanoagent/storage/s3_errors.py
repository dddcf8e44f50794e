"""Classifies the error codes of S3."""

from __future__ import annotations

from typing import Final

from nanoagent.aws import failures as aws_failures
from nanoagent.storage.base import Absence

NOT_MODIFIED: Final = frozenset({"304", "NotModified"})
"""The object still has the ETag of the request."""

NOT_FOUND: Final = frozenset({"NoSuchKey", "NotFound", "404"})
"""The object does not exist."""

CONFLICT: Final = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409"})
"""The condition of a conditional write does not hold."""

NOT_SUPPORTED: Final = frozenset({"NotImplemented", "501"})
"""The store does not support the request."""

_LIST_ACTION: Final = "s3:listbucket"
# The keys are error codes of S3, not HTTP statuses: S3 also answers with status 403 if the worker's
# credentials are wrong or expired. A number such as "403" is the code only if the answer has no body.
_ABSENCES: Final = {
    **dict.fromkeys(("404", "NoSuchKey", "NotFound"), Absence.KEY),
    **dict.fromkeys(("NoSuchBucket", "InvalidBucketName"), Absence.BUCKET),
    **dict.fromkeys(("403", "AccessDenied", "AllAccessDisabled"), Absence.DENIED),
    **dict.fromkeys(
        (
            "KMS.AccessDeniedException",
            "KMS.DisabledException",
            "KMS.InvalidStateException",
            "KMS.KMSInvalidStateException",
            "KMS.NotFoundException",
        ),
        Absence.DENIED,
    ),
    "InvalidObjectState": Absence.ARCHIVED,  # it must be restored before it can be read
    # botocore follows a redirect to the bucket's region once. This fails if the bucket is in another
    # partition or in a region that is not enabled for the account, or if the endpoint serves only one region.
    **dict.fromkeys(
        (
            *("301", "307", "PermanentRedirect", "TemporaryRedirect", "Redirect"),
            *("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
        ),
        Absence.ELSEWHERE,
    ),
    **dict.fromkeys(
        ("KeyTooLongError", "ParamValidationError"), Absence.NAME
    ),  # botocore raises the second one
}


def absence_of(code: str, message: str) -> tuple[Absence | None, str | None]:
    """Return why an object cannot be read, and the missing permission.

    A caller without s3:ListBucket gets AccessDenied for a key that does not exist ("GetObject" in the Amazon
    S3 API Reference). If S3 names s3:ListBucket, the caller may read the bucket, and the key does not exist.

    Args:
        code: S3's error code.
        message: S3's error message.

    Returns:
        Two values. The reason; None if the failure does not concern the object. The missing permission; None
        if S3 does not name it.
    """
    absence = _ABSENCES.get(code)
    action = aws_failures.missing_action(message) if absence is Absence.DENIED else None
    if action is not None and action.lower() == _LIST_ACTION:
        return Absence.KEY, None
    return absence, action
