"""Links to objects and buckets of other regions: every region that botocore knows, and S3's own refusals."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

import botocore.session
import pytest
from aiobotocore.session import AioSession, get_session
from aiohttp import web

from nanoagent.aws.clients import AwsClients
from nanoagent.model.errors import StorageError
from nanoagent.storage.base import Absence, ObjectMissing
from nanoagent.storage.s3 import S3Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

KEY: Final = "outputs/r1/폴더/a b+c.png"
QUOTED: Final = "outputs/r1/%ED%8F%B4%EB%8D%94/a%20b%2Bc.png"
_SESSION: Final = botocore.session.get_session()
REGIONS: Final = [
    (partition, region)
    for partition in _SESSION.get_available_partitions()
    for region in _SESSION.get_available_regions("s3", partition)
]


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of this machine's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@asynccontextmanager
async def opened(region: str = "ap-northeast-2", session: AioSession | None = None) -> AsyncIterator[S3Store]:
    async with AwsClients(region, max_attempts=1, session=session or get_session()) as clients:
        yield S3Store(await clients.s3())


SUFFIXES: Final = {
    partition["id"]: partition["outputs"]["dnsSuffix"]
    for partition in _SESSION.get_data("partitions")["partitions"]
}


# --- links


def test_botocore_lists_the_partitions_that_the_links_are_tried_for():
    assert {"aws", "aws-cn", "aws-us-gov"} <= {partition for partition, _ in REGIONS}
    assert {"us-east-1", "us-west-2", "eu-west-1", "ap-northeast-1"} <= {region for _, region in REGIONS}


async def test_a_presigned_link_of_every_region_is_of_version_4_and_leads_to_the_buckets_own_region():
    session = get_session()
    for partition, region in REGIONS:
        async with opened(region, session) as store:
            link = urlsplit(await store.presigned_url("a-bucket", KEY, expires_s=60))
        query = parse_qs(link.query)
        assert (link.scheme, link.netloc) == ("https", f"a-bucket.s3.{region}.{SUFFIXES[partition]}")
        assert link.path == f"/{QUOTED}"
        assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
        assert query["X-Amz-Credential"][0].split("/")[2:] == [region, "s3", "aws4_request"]
        assert query["X-Amz-Expires"] == ["60"]
        assert not {"Signature", "AWSAccessKeyId"} & query.keys()


async def test_a_plain_link_of_every_region_has_the_partitions_suffix():
    session = get_session()
    for partition, region in REGIONS:
        async with opened(region, session) as store:
            link = store.plain_url("a-bucket", KEY)
        assert link == f"https://s3.{region}.{SUFFIXES[partition]}/a-bucket/{QUOTED}"


async def test_the_contracts_link_and_chinas():
    async with opened() as store:
        assert store.plain_url("b", "outputs/r/f") == "https://s3.ap-northeast-2.amazonaws.com/b/outputs/r/f"
    async with opened("cn-north-1") as store:
        assert store.plain_url("b", "outputs/r/f") == "https://s3.cn-north-1.amazonaws.com.cn/b/outputs/r/f"


async def test_a_name_with_dots_is_in_the_path_because_no_certificate_fits_it():
    async with opened("us-east-1") as store:
        link = urlsplit(await store.presigned_url("a.dotted.bucket", "k", expires_s=60))
    assert (link.netloc, link.path) == ("s3.us-east-1.amazonaws.com", "/a.dotted.bucket/k")
    assert "X-Amz-Signature" in link.query


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    ("endpoint", "start"),
    [
        ("http://minio.example:9000", "http://minio.example:9000"),
        ("https://store.example/", "https://store.example"),
        ("https://store.example/below/", "https://store.example/below"),
        ("https://user:secret@store.example", "https://store.example"),
    ],
)
async def test_links_follow_the_endpoint_in_path_style(
    monkeypatch: pytest.MonkeyPatch, name: str, endpoint: str, start: str
):
    monkeypatch.setenv(name, endpoint)
    async with opened("us-east-1") as store:
        plain = store.plain_url("b", KEY)
        presigned = await store.presigned_url("b", KEY, expires_s=60)
    assert plain == f"{start}/b/{QUOTED}"
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in presigned
    if "@" not in endpoint:
        assert presigned.startswith(f"{start}/b/{QUOTED}?")


async def test_the_endpoint_of_s3_comes_before_the_one_of_all_services(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all.example")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.example")
    async with opened() as store:
        assert store.plain_url("b", "k") == "http://s3.example/b/k"


async def test_an_endpoint_of_another_service_changes_no_link(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://sqs.example")
    async with opened("eu-west-1") as store:
        assert store.plain_url("b", "k") == "https://s3.eu-west-1.amazonaws.com/b/k"
        link = await store.presigned_url("a-bucket", "k", expires_s=1)
    assert link.startswith("https://a-bucket.s3.eu-west-1.amazonaws.com/k?")


@pytest.mark.parametrize(
    ("environment", "plain", "presigned"),
    [
        (
            {"AWS_USE_FIPS_ENDPOINT": "true"},
            "s3-fips.us-east-1.amazonaws.com/a-bucket/k",
            "a-bucket.s3-fips.us-east-1.amazonaws.com/k",
        ),
        (
            {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
            "s3.dualstack.us-east-1.amazonaws.com/a-bucket/k",
            "a-bucket.s3.dualstack.us-east-1.amazonaws.com/k",
        ),
        (
            {"AWS_ENDPOINT_URL_S3": "https://bucket.vpce-1a-2b.s3.us-east-1.vpce.amazonaws.com"},
            "bucket.vpce-1a-2b.s3.us-east-1.vpce.amazonaws.com/a-bucket/k",
            "bucket.vpce-1a-2b.s3.us-east-1.vpce.amazonaws.com/a-bucket/k",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://other.example", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
            "s3.us-east-1.amazonaws.com/a-bucket/k",
            "a-bucket.s3.us-east-1.amazonaws.com/k",
        ),
    ],
    ids=["FIPS", "dual stack", "a VPC endpoint", "endpoints that are ignored"],
)
async def test_links_follow_the_sdks_other_settings(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], plain: str, presigned: str
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with opened("us-east-1") as store:
        assert store.plain_url("a-bucket", "k") == f"https://{plain}"
        link = await store.presigned_url("a-bucket", "k", expires_s=60)
    assert link.startswith(f"https://{presigned}?X-Amz-Algorithm=AWS4-HMAC-SHA256&")


# --- buckets of other regions, archived objects
# The answers are those of docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html.


def error(status: int, code: str, more: str = "", **headers: str) -> Callable[[], web.Response]:
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>said S3</Message>{more}</Error>'
    return lambda: web.Response(status=status, text=text, content_type="application/xml", headers=headers)


def signed_for(request: web.Request) -> str:
    scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/s3/", request.headers["Authorization"])
    assert scope is not None
    return scope[1]


class FakeS3:
    """A bucket of one region, as S3 answers those that take it for another's."""

    def __init__(self, region: str, wrong: Callable[[], web.Response] | None = None) -> None:
        self.region = region
        self.wrong = wrong
        self.asked: list[tuple[str, str]] = []
        self.stored: dict[str, bytes] = {}

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.asked.append((request.method, signed_for(request)))
        if signed_for(request) != self.region and self.wrong is not None:
            return self.wrong()
        if request.method == "PUT":
            self.stored[request.path] = body
            digest = base64.b16encode(hashlib.md5(body).digest()).decode()  # noqa: S324 - S3's ETag
            return web.Response(headers={"ETag": f'"{digest}"'})
        return web.Response(body=b"code", headers={"ETag": '"e"'})


SAID_BY_S3: Final = {
    "301 with the region in a header": error(
        301, "PermanentRedirect", **{"x-amz-bucket-region": "eu-west-1"}
    ),
    "400 with the region in the body": error(
        400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"
    ),
    "400 of a region that has to be enabled": error(
        400, "IllegalLocationConstraintException", **{"x-amz-bucket-region": "eu-west-1"}
    ),
}


@pytest.mark.parametrize("wrong", SAID_BY_S3.values(), ids=SAID_BY_S3.keys())
async def test_a_bucket_of_another_region_is_followed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: Callable[[], web.Response]
):
    s3 = FakeS3("eu-west-1", wrong)
    (tmp_path / "file").write_bytes(b"output")
    async with s3.served() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        async with opened("us-east-1") as store:
            for _ in range(2):
                into = tmp_path / "into"
                assert await store.fetch("b", "k", into, etag=None, max_bytes=9) == '"e"'
                assert into.read_bytes() == b"code"
            await store.put("b", "o", tmp_path / "file", content_type="text/plain")
    # The region is remembered: later requests go there at once.
    assert s3.asked == [("GET", "us-east-1"), *[("GET", "eu-west-1")] * 2, ("PUT", "eu-west-1")]
    assert s3.stored == {"/b/o": b"output"}


@pytest.mark.parametrize(
    ("answer", "absence"),
    [
        (error(400, "AuthorizationHeaderMalformed"), Absence.ELSEWHERE),
        (error(400, "IllegalLocationConstraintException"), Absence.ELSEWHERE),
        (error(301, "PermanentRedirect", **{"x-amz-bucket-region": "us-west-1"}), Absence.ELSEWHERE),
        (error(403, "InvalidObjectState", "<StorageClass>GLACIER</StorageClass>"), Absence.ARCHIVED),
        (error(404, "NoSuchKey"), Absence.KEY),
        (error(403, "AccessDenied"), Absence.DENIED),
        (error(403, "SignatureDoesNotMatch"), None),
        (error(500, "InternalError"), None),
        # No region is named, so the SDK asks for it again and again. S3 always names it; a proxy does not.
        (error(301, "PermanentRedirect"), None),
    ],
)
async def test_an_object_that_cannot_be_read_is_told_by_its_cause(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answer: Callable[[], web.Response],
    absence: Absence | None,
):
    s3 = FakeS3("nowhere", answer)
    async with s3.served() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        async with opened("us-east-1") as store:
            with pytest.raises((ObjectMissing, StorageError)) as failure:
                await store.fetch("b", "k", tmp_path / "into", etag=None, max_bytes=9)
    assert getattr(failure.value, "absence", None) is absence
    assert "s3://b/k" in str(failure.value)
    assert "said S3" in str(failure.value) or "recursion" in str(failure.value)
