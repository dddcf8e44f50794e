"""S3 that checks signatures: it accepts those of repeated requests, and refuses wrong ones.

The embedded stack does not check signatures. This is another moto, which does.
"""

from __future__ import annotations

import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.aws import sigv4
from nanoagent.aws.clients import AwsClients
from nanoagent.dev.local_services import servers
from nanoagent.model.errors import StorageError
from nanoagent.storage.s3 import S3Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

REGION = "ap-northeast-2"
BUCKET = "code.example"
KEY = "users/나/a b+c%2F.zip"
_ALLOWED = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}'


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with ExitStack() as started:
        yield servers.start_moto(tmp_path, started)[1]


async def user_of(client: Any) -> tuple[str, str]:
    """Make a user who may do all in S3; returns its access key."""
    await client.create_user(UserName="worker")
    await client.put_user_policy(UserName="worker", PolicyName="s3", PolicyDocument=_ALLOWED)
    made = (await client.create_access_key(UserName="worker"))["AccessKey"]
    return made["AccessKeyId"], made["SecretAccessKey"]


def check_signatures(url: str, after: str) -> None:
    """Make moto check the signatures of all requests after this number of requests."""
    headers = {"Content-Type": "text/plain"}  # of a form, moto would not read the body
    address = f"{url}/moto-api/reset-auth"
    request = urllib.request.Request(address, after.encode(), headers)  # noqa: S310 - moto's own address
    urllib.request.urlopen(request, timeout=30).close()  # noqa: S310


@pytest.fixture
async def strict(url: str) -> AsyncIterator[AwsClients]:
    """Clients with the access key of the only user, of a moto that checks signatures."""
    async with AwsClients(REGION, endpoint_url=url, access_key_id="a", secret_access_key="b") as lax:
        async with lax.session.create_client(
            "iam",
            region_name=REGION,
            endpoint_url=url,
            aws_access_key_id="a",
            aws_secret_access_key="b",
        ) as iam:
            access_key, secret_key = await user_of(iam)
        s3 = await lax.s3()
        await s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        await s3.put_object(Bucket=BUCKET, Key=KEY, Body=b"code")
    check_signatures(url, "0")
    async with AwsClients(
        REGION, endpoint_url=url, access_key_id=access_key, secret_access_key=secret_key, max_attempts=1
    ) as clients:
        yield clients


async def test_a_right_signature_is_accepted_and_a_wrong_one_refused(
    strict: AwsClients, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    client = await strict.s3()
    store = S3Store(client)
    etag = str(await store.fetch(BUCKET, KEY, tmp_path / "into", etag=None, max_bytes=100))
    session = client._endpoint.http_session
    statuses: list[int] = []
    original = session.send

    async def send(request: Any) -> Any:
        answer = await original(request)
        statuses.append(answer.status_code)
        return answer

    monkeypatch.setattr(session, "send", send)
    assert await store.is_unchanged(BUCKET, KEY, etag)
    assert statuses == [304]

    signing_key = sigv4._signing_key

    def wrong_key(*parts: Any) -> bytes:
        first, *others = signing_key(*parts)
        return bytes([first ^ 1, *others])

    monkeypatch.setattr(sigv4, "_signing_key", wrong_key)
    assert not await store.is_unchanged(BUCKET, KEY, etag)
    assert statuses == [304, 403]


async def test_the_sdk_is_refused_with_a_wrong_secret_key(strict: AwsClients, url: str, tmp_path: Path):
    """So this S3 does check signatures."""
    access_key = (await strict.s3())._request_signer._credentials.access_key
    async with AwsClients(
        REGION, endpoint_url=url, access_key_id=access_key, secret_access_key="wrong", max_attempts=1
    ) as clients:
        with pytest.raises(StorageError, match="SignatureDoesNotMatch"):
            await S3Store(await clients.s3()).fetch(BUCKET, KEY, tmp_path / "into", etag=None, max_bytes=100)
