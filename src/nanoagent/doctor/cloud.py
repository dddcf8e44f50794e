"""SQS, S3 and CloudWatch: whether they are there, and whether this worker may do there what it does.

Permissions are tried by calls that AWS refuses, or that leave nothing: a receipt handle that is none, a key
that is not there, a multipart upload that is given up, metric data without a datum. What such a refusal tells
is written beside each. AWS names the action that is missing in most refusals ("is not authorized to perform:
s3:GetObject"); where it does, that decides.

Sources: Amazon SQS API Reference, "DeleteMessage" and "ReceiveMessage"; Amazon S3 API Reference, "GetObject"
(a missing key is 403 for who may not list the bucket), and S3 User Guide, "Troubleshoot access denied
errors"; AWS General Reference, "Signing": five minutes of clock skew.
"""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from nanoagent.aws import clients as aws
from nanoagent.aws.clients import RENEWED_BEFORE_S
from nanoagent.doctor.finding import Area, Finding, Verdict, note, problem, unknown, warning

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nanoagent.aws.clients import Credentials
    from nanoagent.config import Settings
    from nanoagent.doctor.facts import Answer

_DENIED: Final = re.compile(r"^(403|.*AccessDenied.*|.*AuthorizationError|UnauthorizedOperation)$")
_ACTION: Final = re.compile(r"not authorized to perform: ([a-z0-9]+:[A-Za-z]+)")
_NO_CREDENTIALS: Final = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
)
_BAD_CREDENTIALS: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_BAD_CLOCK: Final = frozenset(
    {"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture", "InvalidSignatureException"}
)
_BAD_REGION: Final = frozenset(
    {"301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_UNREACHABLE: Final = re.compile(r".*(Connect|Timeout|Connection|SSL|DNS|Proxy|OSError).*")
_NO_QUEUE: Final = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})
_NO_HANDLE: Final = frozenset({"ReceiptHandleIsInvalid", "InvalidParameterValue"})
_REFUSE_AT_S: Final = 300.0
_WARN_AT_S: Final = 60.0
_POLICY: Final = "deploy/iam-policy.json has all that the worker takes"


def denied_action(answer: Answer) -> str | None:
    """The action that AWS says is missing: "" where it names none, None where it does not refuse."""
    if answer.code is None or not _DENIED.match(answer.code):
        return None
    named = _ACTION.search(answer.message)
    return named[1] if named else ""


def trouble(area: Area, asked: str, answer: Answer) -> Finding:  # noqa: PLR0911 - a decision list
    """What is wrong when a call failed for a reason that has nothing to do with what it asked."""
    code = answer.code or ""
    said = f"{asked}: {answer.message or code}"
    if code in _NO_CREDENTIALS:
        return problem(
            area,
            f"{asked}: no credentials were found",
            "an instance role (preferred on EC2), or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if code in _BAD_CREDENTIALS:
        return problem(
            area,
            f"{asked}: the credentials are refused ({code})",
            "new credentials; aws sts get-caller-identity",
        )
    if code in _BAD_CLOCK:
        return problem(
            area, f"{asked}: refused because of this machine's clock ({code})", "timedatectl set-ntp true"
        )
    if code in _BAD_REGION:
        return problem(
            area, f"{asked}: it is in another region ({code})", "AWS_REGION; aws s3api get-bucket-location"
        )
    if code.isdecimal() and code.startswith("5"):
        return unknown(area, f"{said} (the service failed)", "try again")
    if _UNREACHABLE.match(code):
        return problem(
            area,
            f"{asked}: not reached: {answer.message or code}",
            "the network's way out (route, security group, VPC endpoint, proxy), AWS_REGION, "
            "AWS_ENDPOINT_URL",
        )
    return unknown(
        area, f"{said} ({code})", "AWS_REGION and AWS_ENDPOINT_URL, if AWS itself does not say this"
    )


def refusal(area: Area, action: str, resource: str, answer: Answer) -> Finding:
    """A permission that is missing."""
    named = denied_action(answer)
    which = named or action
    return problem(
        area,
        f"{which} on {resource} is refused",
        f"allow {which} on {resource} to the worker's role ({_POLICY})",
    )


# --- SQS


def sqs(settings: Settings, answers: Mapping[str, Answer]) -> Iterator[Finding]:
    """What the queue's answers tell; those that were not asked are left out."""
    queue = f"the queue {_name(settings.sqs_queue_url)}"
    attributes = answers["attributes"]
    if attributes.code is None:
        yield Finding(Area.SQS, f"{queue} answers")
        yield from queue_settings(settings, queue, attributes.data)
    elif attributes.code in _NO_QUEUE:
        yield problem(
            Area.SQS,
            f"{queue} does not exist in {settings.aws_region}, or may not be seen",
            "SQS_QUEUE_URL, AWS_REGION",
        )
        return
    elif denied_action(attributes) is not None:
        yield refusal(Area.SQS, "sqs:GetQueueAttributes", queue, attributes)
    else:
        yield trouble(Area.SQS, queue, attributes)
        return
    yield from _handles(queue, answers)
    if "receive" in answers:
        yield _receiving(queue, answers["receive"])
    yield from _dead_letters(settings, answers)


def _handles(queue: str, answers: Mapping[str, Answer]) -> Iterator[Finding]:
    for name, action in (("delete", "sqs:DeleteMessage"), ("change", "sqs:ChangeMessageVisibility")):
        if name not in answers:
            continue
        answer = answers[name]
        if denied_action(answer) is not None:
            yield refusal(Area.SQS, action, queue, answer)
        elif answer.code is None or answer.code in _NO_HANDLE:
            yield Finding(Area.SQS, f"{action} is not refused (tried with a receipt handle that is none)")
        else:
            yield trouble(Area.SQS, f"{action} on {queue}", answer)


def _receiving(queue: str, answer: Answer) -> Finding:
    """A receipt would count, so that eleven messages were asked for: SQS gives ten at most, and refuses."""
    if denied_action(answer) is not None:
        return refusal(Area.SQS, "sqs:ReceiveMessage", queue, answer)
    if answer.code in {"InvalidParameterValue", "ReadCountOutOfRange"}:
        return unknown(
            Area.SQS,
            "sqs:ReceiveMessage was not refused, but taking a message was not tried either: it would count "
            "as a receipt",
            "the worker's log says `queue not readable` if it is refused",
        )
    return trouble(Area.SQS, f"sqs:ReceiveMessage on {queue}", answer)


def queue_settings(settings: Settings, queue: str, data: Mapping[str, object]) -> Iterator[Finding]:
    """What the queue's own attributes mean for a worker."""
    attributes = data.get("Attributes") if isinstance(data, dict) else None
    if not isinstance(attributes, dict):
        return
    receives = _redrive(attributes).get("maxReceiveCount")
    if str(receives).isdecimal():
        if int(str(receives)) < settings.least_receives:
            yield warning(Area.SQS, _few_receipts(settings, queue, str(receives)), _more_receipts(settings))
    elif settings.sqs_dlq_url is None:
        yield warning(
            Area.SQS,
            f"{queue} has no dead-letter queue: a job that is given up is only logged",
            "a redrive policy for the queue, or SQS_DLQ_URL",
        )
    kept_s = str(attributes.get("MessageRetentionPeriod", ""))
    if kept_s.isdecimal() and int(kept_s) < 3600:
        yield warning(
            Area.SQS, f"{queue} drops messages after {kept_s} s", "MessageRetentionPeriod of a day or more"
        )
    if attributes.get("KmsMasterKeyId"):
        yield note(
            Area.SQS,
            f"{queue} is encrypted with a key of KMS",
            "kms:Decrypt and kms:GenerateDataKey on that key and the dead-letter queue's for the worker",
        )


def _few_receipts(settings: Settings, queue: str, receives: str) -> str:
    """What a small maxReceiveCount means: a worker can have a standard queue start counting anew."""
    found = f"{queue} moves a message away after {receives} receipts, and those count that were no attempts"
    if settings.sqs_queue_url.endswith(".fifo"):
        return f"{found}: jobs that are behind others of their group which fail are given up untried"
    return f"{found}: messages have to be replaced by copies often"


def _more_receipts(settings: Settings) -> str:
    return f"maxReceiveCount of {settings.least_receives} or more in its redrive policy"


def redrive_target(data: object) -> tuple[str, str] | None:
    """Account and name of the queue that the redrive policy leads to, from GetQueueAttributes' answer."""
    attributes = data.get("Attributes") if isinstance(data, dict) else None
    arn = str(_redrive(attributes).get("deadLetterTargetArn") or "") if isinstance(attributes, dict) else ""
    parts = arn.split(":")  # arn:aws:sqs:region:account:name
    return (parts[-2], parts[-1]) if len(parts) == 6 else None


def _redrive(attributes: Mapping[str, object]) -> dict[str, object]:
    try:
        policy = json.loads(str(attributes.get("RedrivePolicy") or "{}"))
    except ValueError:
        return {}
    return policy if isinstance(policy, dict) else {}


def _dead_letters(settings: Settings, answers: Mapping[str, Answer]) -> Iterator[Finding]:
    if "dead letters" not in answers:
        return
    answer = answers["dead letters"]
    queue = "the dead-letter queue" + (f" {_name(settings.sqs_dlq_url)}" if settings.sqs_dlq_url else "")
    if answer.code in _NO_QUEUE:
        yield problem(
            Area.SQS,
            f"{queue} does not exist, or may not be seen",
            "SQS_DLQ_URL, or the queue's redrive policy",
        )
    elif denied_action(answer) is not None:
        if settings.sqs_dlq_url is None:  # it is found by its name, then
            yield refusal(Area.SQS, "sqs:GetQueueUrl", queue, answer)
        else:
            yield unknown(Area.SQS, f"whether {queue} is there: looking is not allowed, and need not be")
    elif answer.code is None:
        yield Finding(Area.SQS, f"{queue} is there")
    else:
        yield trouble(Area.SQS, queue, answer)
    yield unknown(
        Area.SQS,
        f"sqs:SendMessage to {queue} was not tried: it takes a message",
        f"allow sqs:SendMessage on it, and on the queue itself unless that is FIFO ({_POLICY})",
    )


def _name(url: str | None) -> str:
    return (url or "").rstrip("/").rpartition("/")[2]


# --- S3


def code_bucket(settings: Settings, answer: Answer) -> Finding:
    """What getting a key that is not there tells."""
    bucket = settings.s3_code_bucket
    resource = f"arn:aws:s3:::{bucket}/*"
    if answer.code == "NoSuchKey" or answer.code is None:
        return Finding(Area.S3, f"s3:GetObject on {bucket} (S3_CODE_BUCKET) is allowed")
    if answer.code == "NoSuchBucket":
        return problem(Area.S3, f"the bucket {bucket} does not exist", "S3_CODE_BUCKET")
    named = denied_action(answer)
    if named is None:
        return trouble(Area.S3, f"the bucket {bucket} (S3_CODE_BUCKET)", answer)
    if named.lower() == "s3:listbucket":
        return Finding(
            Area.S3,
            f"s3:GetObject on {bucket} (S3_CODE_BUCKET) is allowed; listing it is not, and need not be",
        )
    if named:
        return refusal(Area.S3, "s3:GetObject", resource, answer)
    return unknown(
        Area.S3,
        f"s3:GetObject on {bucket} (S3_CODE_BUCKET): a key that is not there is refused, which S3 also does "
        "when only s3:ListBucket is missing, and the worker does not need that",
        f"to be sure: aws s3api get-object --bucket {bucket} --key CODE.zip /dev/null with a key that is "
        f"there; or allow s3:ListBucket on arn:aws:s3:::{bucket} while you look",
    )


def regions(settings: Settings, found: Mapping[str, str | None]) -> Iterator[Finding]:
    """Buckets in another region than the worker's; `found` has the buckets' regions where S3 told them."""
    for setting, bucket in (
        ("S3_CODE_BUCKET", settings.s3_code_bucket),
        ("S3_USER_DATA_BUCKET", settings.s3_user_data_bucket),
    ):
        region = found.get(bucket)
        said = aws.other_region_warning(setting, bucket, region, settings.aws_region)
        if said is not None:
            judged = warning if setting == "S3_CODE_BUCKET" else problem
            yield judged(Area.S3, said, f"AWS_REGION={region}, or a bucket in {settings.aws_region}")


def links(settings: Settings, credentials: Credentials | None, now: float) -> Iterator[Finding]:
    """Presigned links that end before their time: with the session credentials that sign them."""
    if settings.output_url_style != "presigned" or credentials is None or not credentials.are_temporary:
        return
    wanted_s = settings.output_url_expires_seconds
    if credentials.ends_at is None:
        lives = "at a time that the SDK does not know"
    elif wanted_s <= RENEWED_BEFORE_S:
        return
    else:
        left_min = max(0.0, credentials.ends_at - now) / 60
        lives = (
            f"the present ones in {left_min:.0f} min; at least {RENEWED_BEFORE_S / 60:.0f} min after signing"
        )
    yield warning(
        Area.S3,
        f"presigned links end with the session credentials that sign them ({lives}), and "
        f"OUTPUT_URL_EXPIRES_SECONDS is {wanted_s}",
        f"OUTPUT_URL_EXPIRES_SECONDS of {RENEWED_BEFORE_S:.0f} or less, a user's access key for the worker, "
        "or OUTPUT_URL_STYLE=plain",
    )


def data_bucket(settings: Settings, prefix: str, begun: Answer, ended: Answer | None) -> Iterator[Finding]:
    """What beginning a multipart upload and giving it up tells; a small object takes the same permission."""
    bucket = settings.s3_user_data_bucket
    resource = f"arn:aws:s3:::{bucket}/{prefix}*"
    if begun.code is None:
        yield Finding(Area.S3, f"s3:PutObject on {bucket}/{prefix}* (S3_USER_DATA_BUCKET) is allowed")
    elif begun.code == "NoSuchBucket":
        yield problem(Area.S3, f"the bucket {bucket} does not exist", "S3_USER_DATA_BUCKET")
    elif denied_action(begun) is not None:
        yield refusal(Area.S3, "s3:PutObject", resource, begun)
    else:
        yield trouble(Area.S3, f"the bucket {bucket} (S3_USER_DATA_BUCKET)", begun)
    if ended is None or ended.code is None:
        return
    if denied_action(ended) is not None:
        yield refusal(Area.S3, "s3:AbortMultipartUpload", resource, ended)
    else:
        yield trouble(Area.S3, f"giving up an upload to {bucket}", ended)
    key = begun.data.get("Key", "") if isinstance(begun.data, dict) else ""
    yield note(
        Area.S3,
        f"an empty multipart upload of {key} is left in {bucket}",
        f"aws s3api list-multipart-uploads --bucket {bucket}; abort-multipart-upload, or a lifecycle rule "
        "that does",
    )


# --- CloudWatch


def cloudwatch(answer: Answer) -> Finding:
    """What metric data without a datum tells: AWS misses them (`MissingParameter`), and moto takes them."""
    if denied_action(answer) is not None:
        return problem(
            Area.CLOUDWATCH,
            "cloudwatch:PutMetricData is refused",
            f"allow it for the namespace NanoGrid/FunctionRunner ({_POLICY}), or CLOUDWATCH_ENABLED=false",
        )
    if answer.code is None or re.match(r"^(Missing|Invalid)(Required)?Parameter", answer.code):
        return Finding(
            Area.CLOUDWATCH,
            "cloudwatch:PutMetricData is not refused (tried without a datum)",
        )
    found = trouble(Area.CLOUDWATCH, "cloudwatch:PutMetricData", answer)
    if found.verdict is Verdict.PROBLEM:  # jobs do not notice: it is not worth more
        return warning(found.area, found.found, f"{found.remedy}; or CLOUDWATCH_ENABLED=false")
    return found


# --- the clock, by the answers' dates


def clock(answers: Iterable[Answer]) -> Finding:
    """How far this machine's clock is off; AWS refuses requests that are five minutes off."""
    skews = [(answer.took_s, skew) for answer in answers if (skew := _skew_s(answer)) is not None]
    if not skews:
        return unknown(Area.CLOCK, "how far the clock is off: no answer of AWS has a date")
    _, skew = min(skews)
    found = f"this machine's clock is {abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} that of AWS"
    remedy = "timedatectl set-ntp true (or start chrony); AWS refuses requests from 5 minutes on"
    if abs(skew) > _REFUSE_AT_S:
        return problem(Area.CLOCK, found, remedy)
    if abs(skew) > _WARN_AT_S:
        return warning(Area.CLOCK, found, remedy)
    return Finding(Area.CLOCK, "within a few seconds of AWS" if abs(skew) < 5 else found)


def _skew_s(answer: Answer) -> float | None:
    try:
        date = parsedate_to_datetime(answer.date or "")
        return date.timestamp() + 0.5 - (answer.asked_at + answer.took_s / 2)  # a date has whole seconds
    except (ValueError, TypeError, OverflowError):
        return None
