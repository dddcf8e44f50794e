"""Findings about the buckets: permissions, regions, and the lifetime of presigned links.

Sources: Amazon S3 API Reference, "GetObject": without the permission s3:ListBucket, the answer for a
missing key is 403. Amazon S3 User Guide, "Troubleshoot access denied errors".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoagent.aws import clients as aws
from nanoagent.aws.clients import RENEWED_BEFORE_S
from nanoagent.doctor.finding import Area, Finding, note, problem, unknown, warning
from nanoagent.doctor.judge.aws import denied_action, failure, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nanoagent.aws.clients import CredentialsLifetime
    from nanoagent.config import Settings
    from nanoagent.doctor.facts import Answer


def code_bucket(settings: Settings, answer: Answer) -> Finding:
    """Judge the answer to GetObject for a key that does not exist."""
    bucket = settings.s3_code_bucket
    if answer.code == "NoSuchKey" or answer.code is None:
        return Finding(Area.S3, f"s3:GetObject on {bucket} (S3_CODE_BUCKET) is allowed")
    if answer.code == "NoSuchBucket":
        return problem(Area.S3, f"the bucket {bucket} does not exist", "correct S3_CODE_BUCKET")
    denied = denied_action(answer)
    if denied is None:
        return failure(Area.S3, f"the bucket {bucket} (S3_CODE_BUCKET)", answer)
    if denied.lower() == "s3:listbucket":
        return Finding(
            Area.S3,
            f"s3:GetObject on {bucket} (S3_CODE_BUCKET) is allowed; s3:ListBucket is not, and is not needed",
        )
    if denied:
        return refusal(Area.S3, "s3:GetObject", f"arn:aws:s3:::{bucket}/*", answer)
    return unknown(
        Area.S3,
        f"whether s3:GetObject on {bucket} (S3_CODE_BUCKET) is allowed: S3 refused a request for a key "
        "that does not exist. It also does so if only s3:ListBucket is missing, and the worker does not need "
        "s3:ListBucket",
        f"test it with a key that exists: aws s3api get-object --bucket {bucket} --key CODE.zip /dev/null; "
        f"or allow s3:ListBucket on arn:aws:s3:::{bucket} during the test",
    )


def regions(settings: Settings, found: Mapping[str, str | None]) -> Iterator[Finding]:
    """Judge the regions of the default buckets.

    Args:
        settings: The worker's settings.
        found: Bucket → region; None if S3 did not name the region.
    """
    for setting, bucket in (
        ("S3_CODE_BUCKET", settings.s3_code_bucket),
        ("S3_USER_DATA_BUCKET", settings.s3_user_data_bucket),
    ):
        region = found.get(bucket)
        message = aws.other_region_warning(setting, bucket, region, settings.aws_region)
        if message is not None:
            finding = warning if setting == "S3_CODE_BUCKET" else problem
            yield finding(Area.S3, message, f"AWS_REGION={region}, or use a bucket in {settings.aws_region}")


def links(settings: Settings, lifetime: CredentialsLifetime | None, now: float) -> Iterator[Finding]:
    """Warn that presigned links expire early, together with the session credentials that sign them.

    Args:
        settings: The worker's settings.
        lifetime: The lifetime of the credentials that sign links; None if there are no credentials.
        now: Seconds since the epoch.
    """
    if settings.output_url_style != "presigned" or lifetime is None or not lifetime.are_temporary:
        return
    wanted_s = settings.output_url_expires_seconds
    if lifetime.ends_at is None:
        expiry = "at a time that the SDK does not know"
    elif wanted_s <= RENEWED_BEFORE_S:
        return
    else:
        left_min = max(0.0, lifetime.ends_at - now) / 60
        expiry = (
            f"the present ones in {left_min:.0f} min; at least {RENEWED_BEFORE_S / 60:.0f} min after signing"
        )
    yield warning(
        Area.S3,
        f"presigned links expire with the session credentials that sign them ({expiry}), and "
        f"OUTPUT_URL_EXPIRES_SECONDS is {wanted_s}",
        f"set OUTPUT_URL_EXPIRES_SECONDS to {RENEWED_BEFORE_S:.0f} or less, give the worker a user's access "
        "key, or OUTPUT_URL_STYLE=plain",
    )


def data_bucket(settings: Settings, prefix: str, begun: Answer, aborted: Answer | None) -> Iterator[Finding]:
    """Judge the answers to CreateMultipartUpload and AbortMultipartUpload.

    Args:
        settings: The worker's settings.
        prefix: The prefix of the key: `outputs/` or `logs/`.
        begun: The answer to CreateMultipartUpload, which needs the same permission as PutObject.
        aborted: The answer to AbortMultipartUpload; None if the first request failed.
    """
    bucket = settings.s3_user_data_bucket
    resource = f"arn:aws:s3:::{bucket}/{prefix}*"
    if begun.code is None:
        yield Finding(Area.S3, f"s3:PutObject on {bucket}/{prefix}* (S3_USER_DATA_BUCKET) is allowed")
    elif begun.code == "NoSuchBucket":
        yield problem(Area.S3, f"the bucket {bucket} does not exist", "correct S3_USER_DATA_BUCKET")
    elif denied_action(begun) is not None:
        yield refusal(Area.S3, "s3:PutObject", resource, begun)
    else:
        yield failure(Area.S3, f"the bucket {bucket} (S3_USER_DATA_BUCKET)", begun)
    if aborted is None or aborted.code is None:
        return
    if denied_action(aborted) is not None:
        yield refusal(Area.S3, "s3:AbortMultipartUpload", resource, aborted)
    else:
        yield failure(Area.S3, f"aborting an upload to {bucket}", aborted)
    key = begun.data.get("Key", "") if isinstance(begun.data, dict) else ""
    yield note(
        Area.S3,
        f"an empty multipart upload of {key} remains in {bucket}",
        f"find it with: aws s3api list-multipart-uploads --bucket {bucket}; remove it with "
        "abort-multipart-upload, or with a lifecycle rule",
    )
