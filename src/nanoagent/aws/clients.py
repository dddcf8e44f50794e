"""Opens AWS clients when they are first used.

The import of this module takes about a second (docs/adr/0002). So the command line imports it only for the
commands that need it.

The endpoint and the credentials come from the AWS SDK's own variables and files, unless the caller gives
others.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import BotoCoreError, ClientError
from botocore.useragent import UserAgentComponent

from nanoagent.aws.failures import CALL_ERRORS, describe
from nanoagent.model.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

LONG_POLL_MAX_S: Final = 20  # the longest WaitTimeSeconds of SQS
_CONNECT_TIMEOUT_S: Final = 5
_READ_TIMEOUT_S: Final = 15  # the longest time without data
_POLL_READ_TIMEOUT_S: Final = LONG_POLL_MAX_S + 10  # a long poll sends no data until it ends
CALL_TIMEOUT_S: Final = 120.0
"""The longest that a call takes, with the client's retries, seconds; see `failures.deadline`."""

_MAX_ATTEMPTS: Final = 3
_MAX_CONNECTIONS: Final = 32  # one poll, ten deletions, the renewals of a few hundred leases, transfers


def _config(service: str, max_attempts: int, user_agent: str, *, at_aws: bool = False) -> AioConfig:
    """Return the configuration of a client.

    Args:
        service: The service's name in the SDK.
        max_attempts: How often a call is tried, including the first time.
        user_agent: The header `User-Agent`.
        at_aws: Whether to use AWS's own endpoint even if another one is configured.
    """
    return AioConfig(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_POLL_READ_TIMEOUT_S if service == "sqs" else _READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": max_attempts},
        max_pool_connections=_MAX_CONNECTIONS,
        # The SDK would assemble it anew for each request, which takes a fifth of the time of a call.
        user_agent=user_agent,
        # Older S3-compatible services do not support the checksums that became the default in 2025.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # In the oldest regions, the SDK would sign links with signature version 2. AWS refuses such links for
        # buckets created since June 2020, and for objects encrypted by KMS.
        signature_version="s3v4" if service == "s3" else None,
        # With "auto", links on AWS have the global address of S3. This address redirects requests as long as
        # a bucket is new. At endpoints outside AWS, "auto" means path style.
        s3={
            "addressing_style": "virtual" if at_aws else "auto",
            "us_east_1_regional_endpoint": "regional",
        },
        ignore_configured_endpoint_urls=at_aws or None,  # None: use the SDK's setting
    )


def _user_agent(session: AioSession) -> str:
    """Return the header `User-Agent`: the SDK, and the application ID if the SDK's settings have one.

    The SDK adds the version of botocore (`user_agent_extra`).
    """
    sdk = session.user_agent().removesuffix(f" {session.user_agent_extra}")
    application = session.get_config_variable("user_agent_appid")
    return f"{sdk} {UserAgentComponent('app', application).to_string()}" if application else sdk


@dataclass(frozen=True, slots=True)
class CredentialsLifetime:
    """The lifetime of the SDK's credentials.

    Attributes:
        are_temporary: Whether the credentials belong to a session, and end with it.
        ends_at: The end of the session, Unix epoch seconds; None if the SDK does not know it.
    """

    are_temporary: bool
    ends_at: float | None = None


RENEWED_BEFORE_S: Final = 600.0
"""The SDK renews credentials at least this long before they end, seconds (botocore, "mandatory refresh").

So each signature is valid for at least this time.
"""


@dataclass(eq=False)
class AwsClients:
    """The AWS clients of one event loop. Each client is opened when it is first used.

    Attributes:
        region: The region of the queue and the buckets.
        endpoint_url: An endpoint for all services; None to use the SDK's settings.
        access_key_id: The access key ID; None to use the SDK's credentials.
        secret_access_key: The secret access key that belongs to `access_key_id`.
        max_attempts: How often a call is tried, including the first time.
        session: botocore's session. It can be shared, which saves 0.1 s for each service.
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
        """Return the SQS client."""
        return await self._client("sqs")

    async def s3(self) -> Any:
        """Return the S3 client. Its URLs are virtual-hosted and regional on AWS, path style elsewhere."""
        configured = await self._client("s3")
        at_aws = await self._client("s3", at_aws=True)
        return at_aws if at_aws.meta.endpoint_url == configured.meta.endpoint_url else configured

    async def cloudwatch(self) -> Any:
        """Return the CloudWatch client."""
        return await self._client("cloudwatch")

    async def ssm(self) -> Any:
        """Return the client of Systems Manager, whose Parameter Store keeps secrets."""
        return await self._client("ssm")

    async def secrets_manager(self) -> Any:
        """Return the client of Secrets Manager."""
        return await self._client("secretsmanager")

    async def credentials_lifetime(self) -> CredentialsLifetime | None:
        """Return the lifetime of the SDK's credentials; None if the SDK has none.

        The SDK may have to request the credentials first.
        """
        found = await self.session.get_credentials()
        if found is None:
            return None
        frozen = await found.get_frozen_credentials()
        ends = getattr(found, "_expiry_time", None)  # botocore has no public name for it
        return CredentialsLifetime(bool(frozen.token), None if ends is None else ends.timestamp())

    async def close(self) -> None:
        """Close the clients and their connections. Idempotent. Clients can be opened again afterwards."""
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
                    config=_config(service, self.max_attempts, _user_agent(self.session), at_aws=at_aws),
                )
                with _settings_errors(service):
                    self._open[service, at_aws] = await self._exits.enter_async_context(context)
            return self._open[service, at_aws]


async def bucket_region(client: Any, bucket: str) -> str | None:
    """Return the region of a bucket on AWS.

    S3 also tells the region to callers that may not read the bucket.

    Returns:
        None if S3 does not tell the region, or if the endpoint is outside AWS and so has no regions.
    """
    if client.meta.config.s3["addressing_style"] != "virtual":
        return None
    try:
        answer = await client.head_bucket(Bucket=bucket)
    except ClientError as exc:
        answer = exc.response
    except CALL_ERRORS:
        return None
    region = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
    return None if region is None else str(region)


def other_region_warning(setting: str, bucket: str, region: str | None, worker_region: str) -> str | None:
    """Return the warning for a default bucket in another region than the worker's; None if none is needed.

    Args:
        setting: The name of the bucket's setting.
        bucket: The bucket's name.
        region: The bucket's region; None if it is not known.
        worker_region: The value of AWS_REGION.
    """
    if region is None or region == worker_region:
        return None
    effect = "reading it is slower, and its traffic is billed"
    if setting == "S3_USER_DATA_BUCKET":
        effect = "S3 refuses the links to output files"
    return f"the bucket {bucket} ({setting}) is in {region}, but AWS_REGION is {worker_region}: {effect}"


@contextmanager
def _settings_errors(service: str) -> Iterator[None]:
    """Raise errors of the SDK's own variables or files as `ConfigError`.

    A client is created without requests. So every error in the block is an error of the settings.

    Raises:
        ConfigError: The SDK's settings are invalid.
    """
    try:
        yield
    except (ValueError, BotoCoreError) as exc:
        problem = f"AWS_ENDPOINT_URL or another setting of the AWS SDK is invalid for {service}"
        raise ConfigError([f"{problem}: {describe(exc)}"]) from exc
