"""Classifies the errors of AWS calls, and limits the time of calls.

The queue, the object store and the sender use `errors_as` and `deadline` to raise these errors as their own
exceptions.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Final

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from nanoagent.model.errors import PlatformError

CALL_ERRORS: Final = (
    *(ClientError, BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError, TimeoutError),
    # If a redirect, for example by a proxy, names no region, botocore asks for the region without end.
    RecursionError,
)
"""All exceptions of a failed AWS call, including the reading of the answer's body."""


class FailureKind(Enum):
    """A kind of failure of a service, or of the network to it. The value names the fault and the remedy."""

    THROTTLED = "it throttles: fewer calls, or a higher quota"
    NO_CREDENTIALS = (
        "the AWS SDK has found no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "AWS_PROFILE, or give the instance a role"
    )
    REFUSED = (
        "it refuses these credentials: check where the AWS SDK takes them from, and whether they have expired"
    )
    CLOCK = "this machine's clock is wrong: run timedatectl set-ntp true"
    DENIED = (
        "these credentials lack a permission: compare their policy with deploy/iam-policy.json (worker), "
        "deploy/iam-policy-sender.json (sender), or deploy/iam-policy-deployer.json (deploy, functions)"
    )
    NO_QUEUE = "there is no such queue: set SQS_QUEUE_URL"
    NO_BUCKET = "there is no such bucket: check its name, and AWS_REGION"
    FAILING = "the service fails"
    REDIRECTED = "it redirects to another address: correct AWS_ENDPOINT_URL"
    UNREACHABLE = "it does not answer: check the network, AWS_REGION and AWS_ENDPOINT_URL"


_CODES: Final = {
    FailureKind.THROTTLED: (
        *("SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled"),
        *("RequestThrottledException", "TooManyRequestsException", "RequestLimitExceeded", "OverLimit"),
        *("BandwidthLimitExceeded", "429"),
    ),
    # botocore raises these before it sends a request.
    FailureKind.NO_CREDENTIALS: ("NoCredentialsError", "PartialCredentialsError"),
    FailureKind.REFUSED: (
        *("ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidClientTokenId"),
        *("SignatureDoesNotMatch", "InvalidSignatureException", "InvalidToken", "TokenRefreshRequired"),
        *("UnrecognizedClientException", "MissingAuthenticationToken", "AuthFailure", "IncompleteSignature"),
        *("InvalidSecurity", "NotSignedUp", "AccountProblem"),
        # botocore raises these if a source of credentials (a session, a process, a role) gives none.
        *("CredentialRetrievalError", "TokenRetrievalError"),
        *("UnauthorizedSSOTokenError", "SSOTokenLoadError", "InvalidConfigError"),
    ),
    FailureKind.CLOCK: ("RequestTimeTooSkewed", "RequestExpired"),
    FailureKind.DENIED: (
        "AccessDenied",
        "AccessDeniedException",
        "AllAccessDisabled",
        "KMS.AccessDeniedException",
    ),
    FailureKind.NO_QUEUE: ("QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue"),
    FailureKind.NO_BUCKET: ("NoSuchBucket",),
    FailureKind.FAILING: (
        *("InternalError", "InternalFailure", "ServiceUnavailable", "ServiceUnavailableException"),
        *("ServiceFailure", "RequestTimeout", "500", "502", "503", "504", "ResponseParserError"),
    ),
    FailureKind.REDIRECTED: ("RecursionError",),
    FailureKind.UNREACHABLE: (
        *("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError"),
        *("HTTPClientError", "IncompleteReadError", "ResponseStreamingError", "ProxyConnectionError"),
        *("SSLError",),
    ),
}
_BY_CODE: Final = {code: kind for kind, codes in _CODES.items() for code in codes}
_NETWORK_ERRNOS: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
# IAM User Guide, "Troubleshoot signed requests for AWS APIs". The error code is that of a wrong secret key.
_WRONG_TIME: Final = re.compile(r"Signature (?:expired|not yet current)")
_ACTION: Final = re.compile(r"not authorized to perform: ([a-z0-9]+:[A-Za-z]+)")


def error_code(error: BaseException) -> str:
    """Return the error code of an answer of AWS (`NoSuchKey`, `304`), or else the exception's class name.

    An answer without an error code gives `Unknown`.
    """
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "")) or "Unknown"
    return type(error).__name__


def kind_of_code(code: str) -> FailureKind | None:
    """Return the kind of failure of an error code (see `error_code`); None if the code alone has none."""
    return _BY_CODE.get(code)


def names_clock(message: str) -> bool:
    """Whether the message of a refused signature names the time of the request as the cause."""
    return _WRONG_TIME.search(message) is not None


def missing_action(message: str) -> str | None:
    """Return the permission that an AWS error message names as missing (`s3:GetObject`); None without one.

    S3 names the permission only to callers of the bucket's own organization (Amazon S3 User Guide,
    "Troubleshoot access denied (403 Forbidden) errors").
    """
    named = _ACTION.search(message)
    return named[1] if named else None


def describe(error: BaseException) -> str:
    """Return the error text, with the remedy if the kind of failure is known.

    An exception without text, such as `TimeoutError`, gets the name of its class.
    """
    text = str(error) or type(error).__name__
    kind = failure_kind(error)
    return text if kind is None else f"{text} ({kind.value})"


def failure_kind(error: BaseException | None) -> FailureKind | None:
    """Return the kind of failure of an AWS call.

    Returns:
        None if the failure concerns only the request (for example a key that does not exist) or the local
        disk. Failures of the disk are possible here, because they are also of type `OSError`.
    """
    if error is None:
        return None
    kind = kind_of_code(error_code(error))
    if kind is FailureKind.REFUSED and names_clock(str(error)):
        return FailureKind.CLOCK
    if kind is not None:
        return kind
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return FailureKind.FAILING if status >= 500 else None
    if isinstance(error, (aiohttp.ClientError, ConnectionError, TimeoutError, socket.gaierror)):
        return FailureKind.UNREACHABLE
    is_network = isinstance(error, OSError) and error.errno in _NETWORK_ERRNOS
    return FailureKind.UNREACHABLE if is_network else None


@contextmanager
def errors_as(exception_class: type[PlatformError], operation: str) -> Iterator[None]:
    """Raise the errors of AWS calls in the block as another exception.

    Args:
        exception_class: The class of the other exception.
        operation: The start of the error message, for example `receive from <url>`.

    Raises:
        PlatformError: An exception of `exception_class`, from the error of the call.
    """
    try:
        yield
    except CALL_ERRORS as exc:
        raise exception_class(f"{operation}: {describe(exc)}") from exc


@asynccontextmanager
async def deadline(
    seconds: float, exception_class: type[PlatformError], operation: str
) -> AsyncIterator[None]:
    """Limit the time of the calls in the block, and raise their errors as `errors_as` does.

    The time limits of the SDK are not enough. They limit the time without data, but not the time of an answer
    that comes byte by byte, and not the time to send a request's body.

    Args:
        seconds: The time limit of the block, seconds.
        exception_class: The class of the exception.
        operation: The start of the error message.

    Raises:
        PlatformError: An exception of `exception_class`: a call failed, or the time is over.
    """
    limit = asyncio.timeout(seconds)
    with errors_as(exception_class, operation):
        try:
            async with limit:
                yield
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise exception_class(f"{operation}: not done within {seconds:g} s") from exc
