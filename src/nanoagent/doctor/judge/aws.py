"""Findings that all AWS services share: failures, missing permissions, CloudWatch, and the clock.

The doctor tests permissions with requests that leave no changes, and with requests that have wrong
arguments. AWS refuses wrong arguments even if the permission exists, but for another reason. If a permission
is missing, AWS usually names the action ("is not authorized to perform: s3:GetObject"). Then the finding
names this action.

Sources: AWS General Reference, "Signing": AWS refuses requests if the clock is more than five minutes off.
IAM User Guide, "Troubleshoot signed requests for AWS APIs": a wrong secret key and a wrong clock have the
same error code, and the message tells them apart.
"""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from nanoagent.aws import failures as aws_failures
from nanoagent.aws.failures import FailureKind
from nanoagent.doctor.finding import Area, Finding, Severity, problem, unknown, warning

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        "UnrecognizedClientException",
    }
)
# Depending on the service, AWS sends one of these for a wrong secret key, and also for a wrong clock.
_BAD_SIGNATURE: Final = frozenset({"InvalidSignatureException", "SignatureDoesNotMatch"})
_BAD_CLOCK: Final = frozenset({"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"})
_BAD_REGION: Final = frozenset(
    {"301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_UNREACHABLE: Final = re.compile(r".*(Connect|Timeout|Connection|SSL|DNS|Proxy|OSError).*")
_REFUSED_SKEW_S: Final = 300.0
_WARNING_SKEW_S: Final = 60.0
POLICY: Final = "deploy/iam-policy.json has all permissions of the worker"


def denied_action(answer: Answer) -> str | None:
    """Return the action that AWS denied: "" if AWS does not name it, None if permission was not denied."""
    if answer.code is None or not _DENIED.match(answer.code):
        return None
    named = _ACTION.search(answer.message)
    return named[1] if named else ""


def refusal(area: Area, action: str, resource: str, answer: Answer) -> Finding:
    """Return the finding for a missing permission. The action that AWS names replaces `action`."""
    denied = denied_action(answer) or action
    return problem(
        area,
        f"{denied} on {resource} is refused",
        f"allow {denied} on {resource} for the worker's role ({POLICY})",
    )


def failure(area: Area, asked: str, answer: Answer) -> Finding:
    """Return the finding for a request that failed for a reason other than a missing permission."""
    code = answer.code or ""
    message = f"{asked}: {answer.message or code}"
    known = _known_failure(area, asked, answer)
    if known is not None:
        return known
    kind = aws_failures.kind_of_code(code)
    if kind is FailureKind.THROTTLED:
        return unknown(area, f"{message} (the service throttles)", "try again")
    if kind is FailureKind.FAILING or (code.isdecimal() and code.startswith("5")):
        return unknown(area, f"{message} (the service failed)", "try again")
    if _UNREACHABLE.match(code):
        return problem(
            area,
            f"{asked}: not reached: {answer.message or code}",
            "check the network's route out (route table, security group, VPC endpoint, proxy), AWS_REGION "
            "and AWS_ENDPOINT_URL",
        )
    return unknown(area, f"{message} ({code})", "check AWS_REGION and AWS_ENDPOINT_URL")


def _known_failure(area: Area, asked: str, answer: Answer) -> Finding | None:
    code = answer.code or ""
    if code in _NO_CREDENTIALS:
        return problem(
            area,
            f"{asked}: no credentials were found",
            "use an instance role (preferred on EC2), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if code in _BAD_CREDENTIALS:
        return problem(
            area,
            f"{asked}: the credentials are refused ({code})",
            "use new credentials; check them with: aws sts get-caller-identity",
        )
    if code in _BAD_CLOCK or (code in _BAD_SIGNATURE and aws_failures.names_clock(answer.message)):
        return problem(
            area, f"{asked}: refused because of this machine's clock ({code})", "timedatectl set-ntp true"
        )
    if code in _BAD_SIGNATURE:
        return problem(
            area,
            f"{asked}: the signature is refused ({code})",
            "correct AWS_SECRET_ACCESS_KEY (check it with: aws sts get-caller-identity), or this machine's "
            "clock (timedatectl set-ntp true)",
        )
    if code in _BAD_REGION:
        return problem(
            area,
            f"{asked}: it is in another region ({code})",
            "set AWS_REGION; find the region with: aws s3api get-bucket-location",
        )
    return None


def cloudwatch(answer: Answer) -> Finding:
    """Judge the answer to PutMetricData without metric data.

    If the permission exists, AWS refuses the request with `MissingParameter`, and moto accepts it.
    """
    if denied_action(answer) is not None:
        return problem(
            Area.CLOUDWATCH,
            "cloudwatch:PutMetricData is refused",
            f"allow it for the namespace NanoGrid/FunctionRunner ({POLICY}), or CLOUDWATCH_ENABLED=false",
        )
    if answer.code is None or re.match(r"^(Missing|Invalid)(Required)?Parameter", answer.code):
        return Finding(
            Area.CLOUDWATCH,
            "cloudwatch:PutMetricData is not refused (tested without metric data)",
        )
    found = failure(Area.CLOUDWATCH, "cloudwatch:PutMetricData", answer)
    if found.severity is Severity.PROBLEM:  # jobs work without CloudWatch
        return warning(found.area, found.found, f"{found.remedy}; or CLOUDWATCH_ENABLED=false")
    return found


def clock(answers: Iterable[Answer]) -> Finding:
    """Compare this machine's clock with the dates in the answers. The quickest answer is the most exact."""
    skews = [(answer.took_s, skew) for answer in answers if (skew := _skew_s(answer)) is not None]
    if not skews:
        return unknown(Area.CLOCK, "the difference to AWS: no answer of AWS has a date")
    _, skew = min(skews)
    found = (
        f"this machine's clock is {abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the clock of AWS"
    )
    remedy = (
        "timedatectl set-ntp true (or start chrony); AWS refuses requests if the difference is over 5 minutes"
    )
    if abs(skew) > _REFUSED_SKEW_S:
        return problem(Area.CLOCK, found, remedy)
    if abs(skew) > _WARNING_SKEW_S:
        return warning(Area.CLOCK, found, remedy)
    return Finding(Area.CLOCK, "within a few seconds of AWS" if abs(skew) < 5 else found)


def _skew_s(answer: Answer) -> float | None:
    """Return how many seconds the clock of AWS is ahead of this machine's; None if the answer has no date."""
    try:
        date = parsedate_to_datetime(answer.date or "")
        # The date has whole seconds. AWS is assumed to have answered in the middle of the request.
        return date.timestamp() + 0.5 - (answer.asked_at + answer.took_s / 2)
    except (ValueError, TypeError, OverflowError):
        return None
