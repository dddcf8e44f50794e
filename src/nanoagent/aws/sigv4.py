"""Signs GET requests with AWS Signature Version 4.

The SDK signs its own requests. This module signs the requests that `revalidation` sends without the SDK's
work for a call.

Sources: "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)" in the Amazon S3
API Reference; "Create a signed AWS API request" in the IAM User Guide.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

ALGORITHM: Final = "AWS4-HMAC-SHA256"
"""The start of the header `Authorization`."""

_KEPT_KEYS: Final = 8  # one for each region with buckets, secret key and day


@dataclass(frozen=True, slots=True)
class Scope:
    """The region and the service that a signature is valid for.

    Attributes:
        region: The region, for example `ap-northeast-2`.
        service: The service, for example `s3`.
    """

    region: str
    service: str


def timestamp(at: float) -> str:
    """Return a time as the header `X-Amz-Date` has it.

    Args:
        at: Unix epoch seconds.
    """
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))


def authorization(  # noqa: PLR0913 - the parts of a request, and the three inputs of its signature
    path: str,
    headers: Mapping[str, str],
    *,
    payload_hash: str,
    scope: Scope,
    access_key: str,
    secret_key: str,
    signed_at: str,
) -> str:
    """Return the header `Authorization` of a GET request without a query.

    Args:
        path: The path of the URL, as it is sent. S3's paths are signed without normalization.
        headers: The headers to sign, `host` and `x-amz-date` among them: lower-case name → value.
        payload_hash: The value of the header `x-amz-content-sha256`.
        scope: The region and the service.
        access_key: The access key ID.
        secret_key: The secret access key.
        signed_at: The value of the header `x-amz-date`; see `timestamp`.
    """
    names = sorted(headers)
    signed_names = ";".join(names)
    # Spaces around values and repeated spaces do not count.
    lines = [f"{name}:{' '.join(headers[name].split())}" for name in names]
    request = "\n".join(["GET", path, "", *lines, "", signed_names, payload_hash])
    day = signed_at[:8]
    credential_scope = f"{day}/{scope.region}/{scope.service}/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"{ALGORITHM}\n{signed_at}\n{credential_scope}\n{digest}"
    key = _signing_key(secret_key, day, scope)
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    start = f"{ALGORITHM} Credential={access_key}/{credential_scope}, SignedHeaders={signed_names}"
    return f"{start}, Signature=" + signature


@lru_cache(maxsize=_KEPT_KEYS)
def _signing_key(secret_key: str, day: str, scope: Scope) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (day, scope.region, scope.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
