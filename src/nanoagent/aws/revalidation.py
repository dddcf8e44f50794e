"""Asks S3 whether objects have changed, at a small part of the cost of an SDK call.

A call of the SDK resolves the endpoint, builds, signs and sends a request, and parses the answer. For a
conditional GetObject that is answered "not modified", this is 3,500 function calls. They produce the same
request each time, except for the date and the signature. So this module remembers the request that the SDK
sent for an object, and later repeats it with a new date and signature, through the SDK's HTTP session. Thus
the address, the headers, the TLS settings, the proxy, the region after a redirect and the credentials are
those of the SDK.

* Only the answer 304 counts. After any other answer or error, the caller makes the SDK's call, which handles
  errors, retries, redirects and new content.
* A request is remembered only if `sigv4` reproduces the signature of the SDK. Requests with other kinds of
  signatures (anonymous, Signature Version 4A, S3 Express) are always sent by the SDK.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from botocore.awsrequest import AWSPreparedRequest

from nanoagent.aws import sigv4
from nanoagent.aws.failures import CALL_ERRORS
from nanoagent.aws.sigv4 import Scope
from nanoagent.common.bounded_map import BoundedMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_MAX_REQUESTS: Final = 4096  # remembered requests; each takes about 2 KB
# S3 answers within 0.2 s. After this time, the call of the SDK begins, which waits longer.
_TIMEOUT_S: Final = 5.0
_PAUSE_S: Final = 10.0  # without requests of this module, after a failure of the service
_NOT_MODIFIED: Final = 304
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERROR: Final = 500
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_DATE: Final = "x-amz-date"
_TOKEN: Final = "x-amz-security-token"  # noqa: S105 - the name of a header
_CONDITION: Final = "if-none-match"
_PAYLOAD_HASH: Final = "x-amz-content-sha256"
# The headers that each request sets anew. The last two number the SDK's calls and their tries.
_SET_ANEW: Final = frozenset(
    {"authorization", _DATE, _TOKEN, _CONDITION, "amz-sdk-invocation-id", "amz-sdk-request"}
)

_sent: ContextVar[list[Any] | None] = ContextVar("sent", default=None)


@dataclass(frozen=True, slots=True)
class _RememberedRequest:
    """A request of the SDK that can be repeated.

    Attributes:
        url: The URL.
        path: The path of the URL.
        headers: The headers that are the same each time: lower-case name → value. `host` is not among them,
            because the HTTP client sets it.
        to_sign: Those of the headers that are signed, and `host`.
        scope: The region and the service of the signature.
    """

    url: str
    path: str
    headers: Mapping[str, str]
    to_sign: Mapping[str, str]
    scope: Scope

    def repeated(self, etag: str, credentials: Any, at: float) -> AWSPreparedRequest:
        """Return the request under the condition that the object has another ETag.

        Args:
            etag: The ETag.
            credentials: botocore's `ReadOnlyCredentials`.
            at: The time of the signature, Unix epoch seconds.
        """
        signed_at = sigv4.timestamp(at)
        changed = {_DATE: signed_at, _CONDITION: etag}
        if credentials.token:
            changed[_TOKEN] = credentials.token
        changed["authorization"] = self._authorization({**self.to_sign, **changed}, credentials, signed_at)
        return AWSPreparedRequest("GET", self.url, {**self.headers, **changed}, None, stream_output=True)

    def _authorization(self, to_sign: Mapping[str, str], credentials: Any, signed_at: str) -> str:
        return sigv4.authorization(
            self.path,
            to_sign,
            payload_hash=to_sign[_PAYLOAD_HASH],
            scope=self.scope,
            access_key=credentials.access_key,
            secret_key=credentials.secret_key,
            signed_at=signed_at,
        )

    def is_signed_alike(self, original: Mapping[str, str], signed_names: list[str], credentials: Any) -> bool:
        """Return whether `sigv4` gives the SDK's request the signature that the SDK has given it.

        Args:
            original: The headers of the SDK's request: lower-case name → value.
            signed_names: The names of the headers that the SDK has signed.
            credentials: botocore's `ReadOnlyCredentials`.
        """
        to_sign = {name: original[name] for name in signed_names if name != "host"}
        to_sign["host"] = self.to_sign["host"]
        return self._authorization(to_sign, credentials, original[_DATE]) == original["authorization"]


class Revalidation:
    """Repeats the SDK's requests for objects, to ask whether the objects have changed.

    Args:
        client: An aiobotocore S3 client. Its owner closes it.
        clock: Returns monotonic seconds.
    """

    def __init__(self, client: Any, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._requests: BoundedMap[tuple[str, str], _RememberedRequest] = BoundedMap(_MAX_REQUESTS)
        self._paused_until = 0.0
        client.meta.events.register(
            "before-send.s3.GetObject", _note_request, unique_id="nanoagent-revalidation"
        )

    async def is_unchanged(self, bucket: str, key: str, etag: str) -> bool:
        """Ask whether an object still has an ETag.

        Returns:
            False if it has another one, or if this is not known: no request for the object is remembered, or
            the request failed, or S3 has just failed.
        """
        remembered = self._requests.get((bucket, key))
        if remembered is None or self._clock() < self._paused_until:
            return False
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                credentials = await self._credentials(remembered.scope)
                request = remembered.repeated(etag, credentials, time.time())
                answer = await self._client._endpoint.http_session.send(request)  # noqa: SLF001 - no public name
        except CALL_ERRORS:
            self._paused_until = self._clock() + _PAUSE_S
            return False
        if answer.status_code == _NOT_MODIFIED:
            return True
        answer.raw.close()  # without reading the body
        if answer.status_code >= _SERVER_ERROR or answer.status_code == _TOO_MANY_REQUESTS:
            self._paused_until = self._clock() + _PAUSE_S
        else:
            self._requests.pop((bucket, key), None)  # another caller may have removed it meanwhile
        return False

    async def remember(self, bucket: str, key: str, requests: list[Any]) -> None:
        """Remember the last request of a successful call for an object, if it can be repeated.

        Args:
            bucket: The bucket's name, as given to the SDK.
            key: The object's key.
            requests: The requests of the call; see `noting_requests`.
        """
        if not requests or (bucket, key) in self._requests:
            return
        original = {name.lower(): _text(value) for name, value in requests[-1].headers.items()}
        signed_names = _signed_names(original.get("authorization", ""))
        remembered = _remembered(requests[-1].url, original, signed_names)
        if remembered is None:
            return
        try:
            credentials = await self._credentials(remembered.scope)
        except CALL_ERRORS:  # the call itself has succeeded
            return
        if remembered.is_signed_alike(original, signed_names, credentials):
            self._requests[bucket, key] = remembered

    async def _credentials(self, scope: Scope) -> Any:
        """Return the SDK's credentials. The SDK requests new ones before the old ones expire."""
        signer = self._client._request_signer  # noqa: SLF001 - no public name
        return (await signer.get_auth_instance(scope.service, scope.region, "s3v4")).credentials


@contextmanager
def noting_requests() -> Iterator[list[Any]]:
    """Yield a list to which the GetObject requests of this task are added, until the block ends.

    The client must be that of a `Revalidation`.
    """
    requests: list[Any] = []
    token = _sent.set(requests)
    try:
        yield requests
    finally:
        _sent.reset(token)


def _note_request(request: Any, **_: Any) -> None:
    if (requests := _sent.get()) is not None:
        requests.append(request)


def _signed_names(authorization: str) -> list[str]:
    """Return the names of the signed headers; an empty list for another kind of signature."""
    if not authorization.startswith(f"{sigv4.ALGORITHM} "):
        return []
    return authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")


def _remembered(url: str, original: Mapping[str, str], signed_names: list[str]) -> _RememberedRequest | None:
    """Return a request of the SDK without its date, condition and signature.

    Returns:
        None if this module does not know this kind of request.
    """
    parts = urlsplit(url)
    scope = original.get("authorization", "").partition("Credential=")[2].partition(",")[0].split("/")[-4:]
    is_known = {_DATE, _PAYLOAD_HASH}.issubset(signed_names) and scope[2:] == ["s3", "aws4_request"]
    if parts.query or not is_known:
        return None
    host = parts.netloc.rpartition("@")[2].lower().removesuffix(_DEFAULT_PORTS.get(parts.scheme, ""))
    headers = {name: value for name, value in original.items() if name not in _SET_ANEW}
    to_sign = {name: value for name, value in headers.items() if name in signed_names}
    return _RememberedRequest(url, parts.path, headers, {**to_sign, "host": host}, Scope(scope[1], scope[2]))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
