"""The way to AWS: clients that are opened when first used, and what their failures are called.

The only module that knows aiobotocore; the adapters (`broker`, `storage`, `telemetry.cloudwatch`)
get a client and translate its errors with `errors_as` and `error_code`. Importing this takes about a
second (docs/adr/0002), so the command line does it only where a command needs it.

Endpoints and credentials follow the SDK's own variables and files unless they are given.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from nanoagent.model.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import TracebackType

    from nanoagent.model.errors import PlatformError

CALL_ERRORS: Final = (
    *(ClientError, BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError, TimeoutError),
    # botocore asks for a bucket's region without end where a redirect (of a proxy, say) names no region.
    RecursionError,
)
"""Everything that a call of an AWS client, or reading its answer's body, raises when it fails."""

LONG_POLL_MAX_S: Final = 20  # SQS's longest WaitTimeSeconds
_CONNECT_TIMEOUT_S: Final = 5
_READ_TIMEOUT_S: Final = 15  # of silence
_POLL_READ_TIMEOUT_S: Final = LONG_POLL_MAX_S + 10  # a long poll is silent for its whole length
CALL_TIMEOUT_S: Final = 120.0
"""The longest that a call takes in all, new tries included; see `deadline`."""

_MAX_ATTEMPTS: Final = 3  # the first included
_MAX_CONNECTIONS: Final = 32  # a poll, ten deletes, the renewals of a few hundred leases, transfers


def _config(service: str, max_attempts: int, *, at_aws: bool = False) -> AioConfig:
    """How clients of a service behave.

    Args:
        service: Its name in the SDK.
        max_attempts: How often a call is tried.
        at_aws: Use AWS's own address, whatever endpoint is configured.
    """
    return AioConfig(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_POLL_READ_TIMEOUT_S if service == "sqs" else _READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": max_attempts},
        max_pool_connections=_MAX_CONNECTIONS,
        # The checksums that became the default in 2025 are unknown to older S3-alikes.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # The SDK signs links with version 2 in the oldest regions. AWS refuses those for buckets made since
        # June 2020, and for objects that KMS encrypts.
        signature_version="s3v4" if service == "s3" else None,
        # With "auto", links on AWS lead to the global address, which redirects while a bucket is new. At
        # every other endpoint "auto" is path style.
        s3={
            "addressing_style": "virtual" if at_aws else "auto",
            "us_east_1_regional_endpoint": "regional",
        },
        ignore_configured_endpoint_urls=at_aws or None,  # None: as the SDK is configured
    )


@dataclass(frozen=True, slots=True)
class Credentials:
    """The lifetime of the credentials that the SDK signs with.

    Attributes:
        are_temporary: They belong to a session, and end with it.
        ends_at: The session's end, Unix epoch seconds; None if the SDK does not know it.
    """

    are_temporary: bool
    ends_at: float | None = None


RENEWED_BEFORE_S: Final = 600.0
"""The SDK renews credentials at least this long before they end (botocore, "mandatory refresh"). So every
signature is valid for at least this long."""


@dataclass(eq=False)
class AwsClients:
    """The AWS clients of one event loop; each is opened by the first call that wants it.

    Attributes:
        region: The region of the queue and the buckets.
        endpoint_url: An endpoint for all services; None leaves it to the SDK's own settings.
        access_key_id: With `secret_access_key`, fixed credentials; None leaves them to the SDK.
        secret_access_key: See `access_key_id`.
        max_attempts: How often a call is tried, the first time included.
        session: What botocore has read about the services; worth sharing, at 0.1 s a service.
    """

    region: str
    endpoint_url: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    max_attempts: int = _MAX_ATTEMPTS
    session: AioSession = field(default_factory=get_session, repr=False)
    _open: dict[tuple[str, bool], Any] = field(default_factory=dict, init=False, repr=False)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock, init=False, repr=False)
    _exits: AsyncExitStack = field(default_factory=AsyncExitStack, init=False, repr=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def sqs(self) -> Any:
        """The SQS client."""
        return await self._client("sqs")

    async def s3(self) -> Any:
        """The S3 client: virtual-hosted, regional addresses on AWS, path style at every other endpoint."""
        configured = await self._client("s3")
        own = await self._client("s3", at_aws=True)
        return own if own.meta.endpoint_url == configured.meta.endpoint_url else configured

    async def cloudwatch(self) -> Any:
        """The CloudWatch client."""
        return await self._client("cloudwatch")

    async def credentials(self) -> Credentials | None:
        """The credentials that the SDK has found; None if it has none. It may have to request them first."""
        found = await self.session.get_credentials()
        if found is None:
            return None
        frozen = await found.get_frozen_credentials()
        ends = getattr(found, "_expiry_time", None)  # botocore has no public name for it
        return Credentials(bool(frozen.token), None if ends is None else ends.timestamp())

    async def close(self) -> None:
        """Close the clients and their connections. Idempotent; a client asked for later is a new one."""
        async with self._opening:
            self._open.clear()
            await self._exits.aclose()

    async def _client(self, service: str, *, at_aws: bool = False) -> Any:
        async with self._opening:
            if (service, at_aws) not in self._open:
                context = self.session.create_client(
                    service,
                    region_name=self.region,
                    endpoint_url=None if at_aws else self.endpoint_url,
                    aws_access_key_id=self.access_key_id,
                    aws_secret_access_key=self.secret_access_key,
                    config=_config(service, self.max_attempts, at_aws=at_aws),
                )
                with _settings_errors(service):
                    self._open[service, at_aws] = await self._exits.enter_async_context(context)
            return self._open[service, at_aws]


async def bucket_region(client: Any, bucket: str) -> str | None:
    """The region of a bucket on AWS; S3 tells it also to callers that may not read the bucket.

    None if S3 does not tell, and at endpoints outside AWS, which have no regions.
    """
    if client.meta.config.s3["addressing_style"] != "virtual":
        return None
    try:
        answer = await client.head_bucket(Bucket=bucket)
    except ClientError as exc:
        answer = exc.response
    except CALL_ERRORS:
        return None
    told = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
    return None if told is None else str(told)


def other_region_warning(setting: str, bucket: str, region: str | None, of_worker: str) -> str | None:
    """The sentence for a default bucket in another region than the worker's, or None.

    Args:
        setting: The bucket's setting.
        bucket: Its name.
        region: Its region, None where S3 did not tell.
        of_worker: AWS_REGION.
    """
    if region is None or region == of_worker:
        return None
    means = "reading it is slower, and its traffic is billed"
    if setting == "S3_USER_DATA_BUCKET":
        means = "S3 refuses the links to output files"
    return f"the bucket {bucket} ({setting}) is in {region}, but AWS_REGION is {of_worker}: {means}"


@contextmanager
def _settings_errors(service: str) -> Iterator[None]:
    """Say in a sentence that the SDK's own variables or files are wrong; making a client asks nobody.

    Raises:
        ConfigError: They are.
    """
    try:
        yield
    except (ValueError, BotoCoreError) as exc:
        problem = f"AWS_ENDPOINT_URL, or another setting of the AWS SDK, serves no client of {service}"
        raise ConfigError([f"{problem}: {describe(exc)}"]) from exc


def error_code(error: BaseException) -> str:
    """What AWS called the failure (`NoSuchKey`, `304`), or the exception's class where it did not say."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "")) or "Unknown"
    return type(error).__name__


_ACTION: Final = re.compile(r"not authorized to perform: ([a-z0-9]+:[A-Za-z]+)")


def missing_action(message: str) -> str | None:
    """The action that a refusal says is not allowed, as in `s3:GetObject`; None where it names none.

    S3 names it to callers of the bucket's own organization (Amazon S3 User Guide, "Troubleshoot access denied
    (403 Forbidden) errors").
    """
    named = _ACTION.search(message)
    return named[1] if named else None


def describe(error: BaseException) -> str:
    """A failure in a sentence, with what to do where its kind is known.

    An empty message, as `TimeoutError` has, becomes the class's name.
    """
    said = str(error) or type(error).__name__
    failure = failure_kind(error)
    return said if failure is None else f"{said} ({failure.value})"


class FailureKind(Enum):
    """What is wrong with a service, or with the way to it; the value is a sentence that says what to do."""

    THROTTLED = "it throttles: fewer calls, or a higher quota"
    NO_CREDENTIALS = (
        "the AWS SDK has found no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "AWS_PROFILE, or give the instance a role"
    )
    REFUSED = (
        "it refuses these credentials: see where the AWS SDK takes them from, and that they are not over"
    )
    CLOCK = "it takes this machine's clock for wrong: timedatectl set-ntp true"
    DENIED = "the worker's role may not do that: deploy/iam-policy.json has what it takes"
    NO_QUEUE = "there is no such queue: set SQS_QUEUE_URL"
    NO_BUCKET = "there is no such bucket: check its name, and AWS_REGION"
    FAILING = "the service fails"
    REDIRECTED = "it redirects to another address: correct AWS_ENDPOINT_URL"
    UNREACHABLE = "it does not answer: see the network, AWS_REGION and AWS_ENDPOINT_URL"


_CODES: Final = {
    FailureKind.THROTTLED: (
        *("SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled"),
        *("RequestThrottledException", "TooManyRequestsException", "RequestLimitExceeded", "OverLimit"),
        *("BandwidthLimitExceeded", "429"),
    ),
    # botocore's own, before anything is asked
    FailureKind.NO_CREDENTIALS: ("NoCredentialsError", "PartialCredentialsError"),
    FailureKind.REFUSED: (
        *("ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidClientTokenId"),
        *("SignatureDoesNotMatch", "InvalidSignatureException", "InvalidToken", "TokenRefreshRequired"),
        *("UnrecognizedClientException", "MissingAuthenticationToken", "AuthFailure", "IncompleteSignature"),
        *("InvalidSecurity", "NotSignedUp", "AccountProblem"),
        # botocore's own: a source of credentials (a session, a process, a role) has none, or not any more
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
_BY_CODE: Final = {code: failure for failure, codes in _CODES.items() for code in codes}
_NETWORK: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})


def failure_kind(error: BaseException | None) -> FailureKind | None:
    """What kind of failure of a service an exception is.

    None for everything that is about what was asked for (a key that is not there), and for what this
    machine's disk says: an `OSError` is both the network's and a file's.
    """
    if error is None:
        return None
    failure = _BY_CODE.get(error_code(error))
    if failure is not None:
        return failure
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return FailureKind.FAILING if status >= 500 else None
    if isinstance(error, (aiohttp.ClientError, ConnectionError, TimeoutError, socket.gaierror)):
        return FailureKind.UNREACHABLE
    return FailureKind.UNREACHABLE if isinstance(error, OSError) and error.errno in _NETWORK else None


@contextmanager
def errors_as(kind: type[PlatformError], doing: str) -> Iterator[None]:
    """Turn a failed AWS call within the block into one of ours.

    Args:
        kind: The exception to raise instead.
        doing: What was tried, to start the message with: `receive from <url>`.

    Raises:
        PlatformError: `kind`, from the vendor's exception.
    """
    try:
        yield
    except CALL_ERRORS as exc:
        raise kind(f"{doing}: {describe(exc)}") from exc


@asynccontextmanager
async def deadline(seconds: float, kind: type[PlatformError], doing: str) -> AsyncIterator[None]:
    """As `errors_as`, and give the calls within the block up after `seconds`.

    The SDK's own limits are for silence: an answer that comes byte by byte has no end, and while a request's
    body is not taken, no clock runs at all.

    Args:
        seconds: For the whole block.
        kind: The exception to raise instead.
        doing: What was tried.

    Raises:
        PlatformError: `kind`.
    """
    limit = asyncio.timeout(seconds)
    with errors_as(kind, doing):
        try:
            async with limit:
                yield
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise kind(f"{doing}: it was not done within {seconds:g} s") from exc
