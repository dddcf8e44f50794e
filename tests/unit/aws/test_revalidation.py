"""Requests of the SDK that are repeated without it: what is sent, and what each answer leads to."""

from __future__ import annotations

import asyncio
import re
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from unittest import mock
from urllib.parse import unquote, urlsplit

import pytest
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentials, AioRefreshableCredentials
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession, get_session
from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import CredentialRetrievalError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoagent.aws import revalidation, sigv4
from nanoagent.aws.clients import AwsClients
from nanoagent.aws.sigv4 import Scope
from nanoagent.model.errors import StorageError
from nanoagent.storage.base import ObjectMissing
from nanoagent.storage.s3 import S3Store
from support.services.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

REGION: Final = "ap-northeast-2"
ACCESS, SECRET = "AKIDEXAMPLE", "secret/example"
ETAG: Final = '"0123"'
DEADLINE_S: Final = 60
_SESSION: Final = get_session()  # shared, because it caches the models of the services
_XML: Final = "<?xml version='1.0'?><Error><Code>{0}</Code><Message>{0}</Message></Error>"


def answer(status: str, body: str = "", **headers: str) -> bytes:
    """Return an HTTP answer. Underscores in the names of headers become hyphens."""
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    if not status.startswith("304"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", body]).encode()


NOT_MODIFIED: Final = answer("304 Not Modified", ETag=ETAG)
FOUND: Final = answer("200 OK", "content", ETag=ETAG)
REPLIES: Final = {
    "changed": FOUND,
    "denied": answer("403 Forbidden", _XML.format("AccessDenied")),
    "expired": answer("403 Forbidden", _XML.format("ExpiredToken")),
    "clock": answer("403 Forbidden", _XML.format("RequestTimeTooSkewed")),
    "missing": answer("404 Not Found", _XML.format("NoSuchKey")),
    "precondition": answer("412 Precondition Failed", _XML.format("PreconditionFailed")),
    "region": answer("301 Moved Permanently", _XML.format("PermanentRedirect")),
}
FAILURES: Final = {
    "failing": answer("500 Internal Server Error", _XML.format("InternalError")),
    "throttling": answer("503 Slow Down", _XML.format("SlowDown")),
    "too many": answer("429 Too Many Requests", _XML.format("TooManyRequests")),
    "cut": b"",
    "cut in the head": b"HTTP/1.1 304 Not",
    "no HTTP": b"220 smtp.example.com ESMTP\r\n\r\n",
}


@dataclass
class Server:
    """A server of one connection after another that answers each request as the test says.

    Attributes:
        replies: The answers to the next requests; an empty one closes the connection. When they are used up,
            the answer is `NOT_MODIFIED`. None: never answer.
        heads: The requests.
    """

    replies: list[bytes | None] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    url: str = ""

    def headers(self, number: int) -> dict[str, str]:
        """Return the headers of a request: lower-case name → value."""
        lines = self.heads[number].split("\r\n")[1:-2]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
                reply = self.replies.pop(0) if self.replies else NOT_MODIFIED
                if reply is None:
                    await reader.read()
                    return
                writer.write(reply)
                if b"\r\n\r\n" not in reply or reply == FAILURES["no HTTP"]:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    served = Server()
    listening = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    async with listening:
        served.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield served


@asynccontextmanager
async def opened(endpoint_url: str | None, session: AioSession = _SESSION) -> AsyncIterator[AwsClients]:
    async with AwsClients(
        REGION,
        endpoint_url=endpoint_url,
        access_key_id=ACCESS,
        secret_access_key=SECRET,
        max_attempts=1,
        session=session,
    ) as clients:
        yield clients


@pytest.fixture
async def client(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    async with opened(server.url) as clients:
        yield await clients.s3()


async def learn(store: S3Store, folder: Path, key: str = "k.zip") -> None:
    """Read an object with the SDK, so that its request is remembered."""
    assert await store.fetch("bucket", key, folder / "into", etag=ETAG, max_bytes=100) is None


async def asks(store: S3Store, server: Server, key: str = "k.zip") -> bool:
    """Whether a request is made for the object without the SDK."""
    before = len(server.heads)
    await store.is_unchanged("bucket", key, ETAG)
    return len(server.heads) > before


def botocore_signature(url: str, headers: Mapping[str, str], secret: str = SECRET) -> str:
    """Return the header `Authorization` that botocore gives to a request with these headers."""
    given_authorization = headers["authorization"]
    names = given_authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    access, _, region, service, _ = given_authorization.partition("Credential=")[2].split(",")[0].split("/")
    request = AWSRequest("GET", url=url, headers={name: headers[name] for name in names if name != "host"})
    request.context["timestamp"] = headers["x-amz-date"]
    signer = S3SigV4Auth(AioCredentials(access, secret), service, region)
    text = signer.string_to_sign(request, signer.canonical_request(request))
    signer._inject_signature_to_request(request, signer.signature(text, request))
    return str(request.headers["Authorization"])


# --- what is sent


async def test_the_request_is_that_of_the_sdk_with_a_new_date_and_signature(
    client: Any, server: Server, tmp_path: Path
):
    store = S3Store(client)
    await learn(store, tmp_path)

    assert await store.is_unchanged("bucket", "k.zip", ETAG)

    first, second = server.heads
    assert first.split("\r\n", 1)[0] == second.split("\r\n", 1)[0] == "GET /bucket/k.zip HTTP/1.1"
    of_sdk, ours = server.headers(0), server.headers(1)
    numbers = {"amz-sdk-invocation-id", "amz-sdk-request"}
    assert of_sdk.keys() - numbers == ours.keys()
    anew = {"x-amz-date", "authorization"}
    assert all(of_sdk[name] == value for name, value in ours.items() if name not in anew)
    assert ours["authorization"] == botocore_signature(f"{server.url}/bucket/k.zip", ours)
    assert re.search(r"SignedHeaders=[^,]*if-none-match", ours["authorization"])


async def test_an_object_that_was_fetched_whole_is_asked_for_next(
    client: Any, server: Server, tmp_path: Path
):
    server.replies = [FOUND]
    store = S3Store(client)
    assert await store.fetch("bucket", "k.zip", tmp_path / "into", etag=None, max_bytes=100) == ETAG

    assert await store.is_unchanged("bucket", "k.zip", ETAG)

    assert "if-none-match" not in server.headers(0)
    assert server.headers(1)["if-none-match"] == ETAG


async def test_an_object_that_was_never_read_is_not_asked_for(client: Any, server: Server):
    assert not await asks(S3Store(client), server)


async def test_requests_of_different_objects_do_not_mix(client: Any, server: Server, tmp_path: Path):
    store = S3Store(client)
    keys = [f"k{number}" for number in range(8)]
    await asyncio.gather(*(learn(store, tmp_path, key) for key in keys))
    for key in keys:
        assert await store.is_unchanged("bucket", key, ETAG)
        assert server.heads[-1].startswith(f"GET /bucket/{key} HTTP/1.1")


async def test_the_oldest_request_is_forgotten_when_there_are_too_many(
    client: Any, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(revalidation, "_MAX_REQUESTS", 2)
    store = S3Store(client)
    for key in ("k0", "k1", "k2"):
        await learn(store, tmp_path, key)
    assert [await asks(store, server, key) for key in ("k0", "k1", "k2")] == [False, True, True]


async def test_new_credentials_of_the_sdk_are_used(client: Any, server: Server, tmp_path: Path):
    store = S3Store(client)
    await learn(store, tmp_path)
    client._request_signer._credentials = AioCredentials("AKIDOTHER", "another", "token==")

    assert await store.is_unchanged("bucket", "k.zip", ETAG)

    ours = server.headers(1)
    assert ours["x-amz-security-token"] == "token=="
    assert "Credential=AKIDOTHER/" in ours["authorization"]
    assert ours["authorization"] == botocore_signature(f"{server.url}/bucket/k.zip", ours, "another")


async def test_credentials_that_are_about_to_expire_are_renewed_by_the_sdk(
    client: Any, server: Server, tmp_path: Path
):
    def metadata(name: str, left: timedelta) -> dict[str, str]:
        ends = datetime.now(UTC) + left
        return {"access_key": name, "secret_key": SECRET, "token": name, "expiry_time": ends.isoformat()}

    async def renew() -> dict[str, str]:
        return metadata("AKIDNEW", timedelta(hours=6))

    soon = metadata("AKIDOLD", timedelta(minutes=5))
    credentials = AioRefreshableCredentials.create_from_metadata(soon, renew, "test")
    store = S3Store(client)
    await learn(store, tmp_path)
    client._request_signer._credentials = credentials

    assert await store.is_unchanged("bucket", "k.zip", ETAG)

    ours = server.headers(1)
    assert ours["x-amz-security-token"] == "AKIDNEW"
    assert ours["authorization"] == botocore_signature(f"{server.url}/bucket/k.zip", ours)
    assert "Credential=AKIDNEW/" in ours["authorization"]


async def test_a_token_of_a_session_is_gone_with_the_session(client: Any, server: Server, tmp_path: Path):
    client._request_signer._credentials = AioCredentials(ACCESS, SECRET, "token==")
    store = S3Store(client)
    await learn(store, tmp_path)
    client._request_signer._credentials = AioCredentials(ACCESS, SECRET)

    assert await store.is_unchanged("bucket", "k.zip", ETAG)

    ours = server.headers(1)
    assert "x-amz-security-token" not in ours
    assert ours["authorization"] == botocore_signature(f"{server.url}/bucket/k.zip", ours)


async def test_without_credentials_the_sdk_tells_the_failure(client: Any, server: Server, tmp_path: Path):
    expired = AioCredentials(ACCESS, SECRET)
    error = CredentialRetrievalError(provider="role", error_msg="gone")
    expired.get_frozen_credentials = mock.AsyncMock(side_effect=error)
    store = S3Store(client)
    await learn(store, tmp_path)
    client._request_signer._credentials = expired

    assert not await asks(store, server)
    with pytest.raises(StorageError, match="Error when retrieving credentials from role: gone"):
        await learn(store, tmp_path)


@pytest.mark.parametrize("etag", ['"1"\r\nx-amz-meta-evil: 1', '"1"\nevil: 1', "a\0b"])
async def test_an_etag_cannot_add_a_header(client: Any, server: Server, tmp_path: Path, etag: str):
    store = S3Store(client)
    await learn(store, tmp_path)
    assert not await store.is_unchanged("bucket", "k.zip", etag)
    assert len(server.heads) == 1


async def test_the_certificate_authority_of_the_sdks_settings_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    authority = Authority(tmp_path)
    pair = authority.issue("s3", "127.0.0.1")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pair.certificate, pair.key)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.certificate))
    session = AioSession()  # with these settings
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls) as listening:
        url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        async with opened(url, session) as clients:
            store = S3Store(await clients.s3())
            await learn(store, tmp_path)
            assert await store.is_unchanged("bucket", "k.zip", ETAG)
        assert len(server.heads) == 2
        monkeypatch.delenv("AWS_CA_BUNDLE")
        async with opened(url, AioSession()) as clients:
            stranger = S3Store(await clients.s3())
            stranger._revalidation._requests = store._revalidation._requests
            assert not await stranger.is_unchanged("bucket", "k.zip", ETAG)
        assert len(server.heads) == 2


async def test_the_proxy_of_the_sdks_settings_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HTTP_PROXY", server.url)
    async with opened("http://s3.example.com", AioSession()) as clients:
        store = S3Store(await clients.s3())
        await learn(store, tmp_path)
        assert await store.is_unchanged("bucket", "k.zip", ETAG)
    assert [head.split("\r\n", 1)[0] for head in server.heads] == [
        "GET http://s3.example.com/bucket/k.zip HTTP/1.1"
    ] * 2


# --- addresses: no network, the HTTP session is replaced


class Verifying:
    """An HTTP session that answers "not modified" to each request with a right signature."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def send(self, request: Any) -> AioAWSResponse:
        headers = {
            name.lower(): value.decode() if isinstance(value, bytes) else value
            for name, value in request.headers.items()
        }
        assert headers["authorization"] == botocore_signature(request.url, headers)
        self.requests.append(request)
        return AioAWSResponse(request.url, 304, {"etag": ETAG}, mock.AsyncMock(**{"read.return_value": b""}))


@asynccontextmanager
async def verified(endpoint_url: str | None) -> AsyncIterator[tuple[S3Store, Verifying]]:
    session = Verifying()
    async with opened(endpoint_url) as clients:
        client = await clients.s3()
        with mock.patch.object(AIOHTTPSession, "send", lambda _, request: session.send(request)):
            yield S3Store(client), session


ACCESS_POINT: Final = f"arn:aws:s3:{REGION}:123456789012:accesspoint/code"


@pytest.mark.parametrize(
    ("endpoint_url", "bucket", "host"),
    [
        (None, "code", f"code.s3.{REGION}.amazonaws.com"),
        (None, "code.example.com", f"s3.{REGION}.amazonaws.com"),
        (None, ACCESS_POINT, f"code-123456789012.s3-accesspoint.{REGION}.amazonaws.com"),
        ("https://minio.example.com", "code", "minio.example.com"),
        ("https://minio.example.com:443/prefix", "code", "minio.example.com:443"),
        ("http://[::1]:9000", "code", "[::1]:9000"),
        ("http://user:pass@MINIO.example.com:80", "code.x", "user:pass@MINIO.example.com:80"),
    ],
)
async def test_each_kind_of_address_is_repeated_with_a_right_signature(
    endpoint_url: str | None, bucket: str, host: str, tmp_path: Path
):
    async with verified(endpoint_url) as (store, session):
        await store.fetch(bucket, "a/b c.zip", tmp_path / "into", etag=ETAG, max_bytes=1)
        assert await store.is_unchanged(bucket, "a/b c.zip", ETAG)
    first, second = session.requests
    assert first.url == second.url
    assert urlsplit(second.url).netloc == host


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(keys=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=1))
def test_a_key_of_any_characters_is_repeated_with_a_right_signature(keys: list[str], tmp_path: Path):
    async def check() -> None:
        async with verified(None) as (store, session):
            for key in keys:
                await store.fetch("code", key, tmp_path / "into", etag=ETAG, max_bytes=1)
                assert await store.is_unchanged("code", key, ETAG)
                assert session.requests[-1].url == session.requests[-2].url
                assert unquote(urlsplit(session.requests[-1].url).path) == f"/{key}"

    asyncio.run(check())


# --- requests that are not repeated


@pytest.mark.parametrize("signature", [UNSIGNED, "s3", "s3-query"], ids=["none", "s3", "s3-query"])
async def test_a_request_with_another_kind_of_signature_is_left_to_the_sdk(
    server: Server, tmp_path: Path, signature: Any
):
    made = _SESSION.create_client(
        "s3",
        region_name=REGION,
        endpoint_url=server.url,
        aws_access_key_id=ACCESS,
        aws_secret_access_key=SECRET,
        config=AioConfig(signature_version=signature),
    )
    async with made as client:
        store = S3Store(client)
        await learn(store, tmp_path)
        assert not await asks(store, server)


def request_of_sdk(service: str = "s3", query: str = "", *, hashed: bool = True) -> Any:
    """Return a request with a right signature for S3 in path style, or for another service."""
    signed_at = sigv4.timestamp(1_700_000_000)
    headers = {"x-amz-date": signed_at} | ({"x-amz-content-sha256": "UNSIGNED-PAYLOAD"} if hashed else {})
    headers["authorization"] = sigv4.authorization(
        "/bucket/k.zip",
        {**headers, "host": "s3.example.com"},
        payload_hash="UNSIGNED-PAYLOAD",
        scope=Scope(REGION, service),
        access_key=ACCESS,
        secret_key=SECRET,
        signed_at=signed_at,
    )
    return AWSRequest("GET", url=f"http://s3.example.com/bucket/k.zip{query}", headers=headers)


@pytest.mark.parametrize(
    ("request_", "is_known"),
    [
        (request_of_sdk(), True),
        (request_of_sdk("s3express"), False),
        (request_of_sdk("s3-object-lambda"), False),
        (request_of_sdk(query="?versionId=1"), False),
        (request_of_sdk(hashed=False), False),
    ],
    ids=["S3", "S3 Express", "Object Lambda", "with a query", "without a hash"],
)
async def test_only_requests_of_a_known_kind_are_repeated(
    client: Any,
    request_: Any,
    *,
    is_known: bool,
):
    asking = revalidation.Revalidation(client)
    await asking.remember("bucket", "k.zip", [request_])
    with mock.patch.object(AIOHTTPSession, "send", mock.AsyncMock(side_effect=ConnectionError)) as send:
        await asking.is_unchanged("bucket", "k.zip", ETAG)
    assert send.called == is_known


async def test_a_request_whose_signature_is_not_reproduced_is_left_to_the_sdk(
    client: Any, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    original = sigv4.authorization
    monkeypatch.setattr(sigv4, "authorization", lambda *given, **named: original(*given, **named)[:-1] + "x")
    store = S3Store(client)
    await learn(store, tmp_path)
    assert not await asks(store, server)


# --- what an answer leads to


@pytest.mark.parametrize("reply", REPLIES)
async def test_after_any_other_answer_the_object_is_left_to_the_sdk(
    client: Any, server: Server, tmp_path: Path, reply: str
):
    store = S3Store(client)
    await learn(store, tmp_path)
    await learn(store, tmp_path, "other")
    server.replies = [REPLIES[reply]]

    assert not await store.is_unchanged("bucket", "k.zip", ETAG)

    assert not await asks(store, server)
    assert await asks(store, server, "other")
    await learn(store, tmp_path)  # until the SDK has read it again
    assert await asks(store, server)


async def test_several_callers_may_ask_for_an_object_at_the_same_time(
    client: Any, server: Server, tmp_path: Path
):
    store = S3Store(client)
    await learn(store, tmp_path)
    server.replies = [REPLIES["missing"]] * 3
    asking = (store.is_unchanged("bucket", "k.zip", ETAG) for _ in range(3))
    assert await asyncio.gather(*asking) == [False] * 3


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("failure", FAILURES)
async def test_after_a_failure_no_object_is_asked_for_during_a_pause(
    client: Any, server: Server, tmp_path: Path, failure: str, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    monkeypatch.setattr(revalidation.Revalidation.__init__, "__kwdefaults__", {"clock": clock})
    store = S3Store(client)
    for key in ("k.zip", "other"):
        await learn(store, tmp_path, key)
    # aiohttp repeats a request if a connection that it has used before was closed.
    server.replies = [FAILURES[failure]] * 2

    assert not await store.is_unchanged("bucket", "k.zip", ETAG)
    server.replies.clear()

    assert not await asks(store, server, "other")
    clock.now += revalidation._PAUSE_S
    assert await asks(store, server, "other")
    assert await asks(store, server)


async def test_a_store_without_an_answer_is_given_up_long_before_the_sdk_gives_up(
    client: Any, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(revalidation, "_TIMEOUT_S", 0.05)
    store = S3Store(client)
    await learn(store, tmp_path)
    server.replies = [None]
    async with asyncio.timeout(DEADLINE_S):
        assert not await store.is_unchanged("bucket", "k.zip", ETAG)
    assert len(server.heads) == 2


async def test_a_server_that_is_gone_is_left_to_the_sdk(
    client: Any, server: Server, tmp_path: Path, unused_tcp_port: int
):
    store = S3Store(client)
    await learn(store, tmp_path)
    gone = f"http://127.0.0.1:{unused_tcp_port}/bucket/k.zip"
    remembered = store._revalidation._requests["bucket", "k.zip"]
    object.__setattr__(remembered, "url", gone)
    assert not await store.is_unchanged("bucket", "k.zip", ETAG)


async def test_a_redirect_with_an_address_is_followed_as_the_sdk_follows_it(
    client: Any, server: Server, tmp_path: Path
):
    store = S3Store(client)
    await learn(store, tmp_path)
    server.replies = [answer("307 Temporary Redirect", Location=f"{server.url}/elsewhere/k.zip")]
    assert await store.is_unchanged("bucket", "k.zip", ETAG)
    assert server.heads[-1].startswith("GET /elsewhere/k.zip ")


async def test_the_failures_of_the_sdks_call_are_as_before(client: Any, server: Server, tmp_path: Path):
    store = S3Store(client)
    await learn(store, tmp_path)
    server.replies = [REPLIES["denied"]] * 2
    assert not await store.is_unchanged("bucket", "k.zip", ETAG)
    with pytest.raises(ObjectMissing, match="AccessDenied"):
        await learn(store, tmp_path)


async def test_a_large_new_object_is_not_read(client: Any, server: Server, tmp_path: Path):
    """The connection is closed at once, and the SDK reads the object."""
    store = S3Store(client)
    await learn(store, tmp_path)
    server.replies = [b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\nx"]
    async with asyncio.timeout(DEADLINE_S):
        assert not await store.is_unchanged("bucket", "k.zip", ETAG)
        await learn(store, tmp_path)
