"""What every `ObjectStore` promises, on S3 and on a folder.

The stub of S3 of the benchmarks answers only GetObject, so it has only the tests of `fetch`.
"""

from __future__ import annotations

import asyncio
import os
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from aiohttp import web
from benchmarks import object_stub

from nanoagent.common.units import MIB
from nanoagent.model.errors import StorageError, Superseded
from nanoagent.storage import s3
from nanoagent.storage.base import ObjectMissing, ObjectTooLarge
from nanoagent.storage.folder import FolderStore
from nanoagent.storage.s3 import S3Store
from support.services.slow_server import slow_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.aws.clients import AwsClients
    from nanoagent.dev.local_services import EmbeddedStack
    from nanoagent.storage.base import ObjectStore
    from support.services.slow_server import Slowness

GIVEN_UP_S = 90.0  # after which the test takes it that nobody ever gives up


class Shelf(Protocol):
    """A store with one bucket, and a way to it that is not the store's."""

    store: ObjectStore
    bucket: str

    async def write(self, key: str, content: bytes) -> None: ...
    async def read(self, key: str) -> bytes: ...


@dataclass
class S3Shelf:
    store: ObjectStore
    bucket: str
    client: Any
    stack: EmbeddedStack

    async def write(self, key: str, content: bytes) -> None:
        await self.client.put_object(Bucket=self.bucket, Key=key, Body=content)

    async def read(self, key: str) -> bytes:
        return await self.stack.buckets.read(self.bucket, key)


@dataclass
class FolderShelf:
    store: ObjectStore
    bucket: str
    root: Path

    async def write(self, key: str, content: bytes) -> None:
        path = self.root / self.bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    async def read(self, key: str) -> bytes:
        return (self.root / self.bucket / key).read_bytes()


@pytest.fixture
async def s3_shelf(stack: EmbeddedStack, clients: AwsClients) -> S3Shelf:
    client = await clients.s3()
    return S3Shelf(S3Store(client), stack.new_bucket(), client, stack)


@pytest.fixture(params=["s3", "folder"])
async def shelf(request: pytest.FixtureRequest, stack: EmbeddedStack, clients: AwsClients, tmp_path: Path):
    if request.param == "folder":
        root = tmp_path / "store"
        (root / "bucket").mkdir(parents=True)
        return FolderShelf(FolderStore(root), "bucket", root)
    client = await clients.s3()
    return S3Shelf(S3Store(client), stack.new_bucket(), client, stack)


@pytest.fixture(params=["s3", "folder", "benchmark"])
async def readable(
    request: pytest.FixtureRequest, stack: EmbeddedStack, clients: AwsClients, tmp_path: Path
) -> AsyncIterator[Shelf]:
    """A store whose objects can be fetched."""
    if request.param == "s3":
        client = await clients.s3()
        yield S3Shelf(S3Store(client), stack.new_bucket(), client, stack)
        return
    root = tmp_path / "store"
    (root / "bucket").mkdir(parents=True)
    if request.param == "folder":
        yield FolderShelf(FolderStore(root), "bucket", root)
        return
    runner = web.AppRunner(object_stub.application(root), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stub_clients = stack.clients()
    stub_clients.endpoint_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with stub_clients:
        yield FolderShelf(S3Store(await stub_clients.s3()), "bucket", root)
    await runner.cleanup()


async def test_an_object_is_fetched_byte_for_byte(readable: Shelf, tmp_path: Path):
    content = os.urandom(MIB + 1)
    await readable.write("a/code.zip", content)

    etag = await readable.store.fetch(
        readable.bucket, "a/code.zip", tmp_path / "into", etag=None, max_bytes=len(content)
    )

    assert etag
    assert (tmp_path / "into").read_bytes() == content


async def test_an_empty_object_is_fetched(readable: Shelf, tmp_path: Path):
    await readable.write("empty", b"")

    assert await readable.store.fetch(readable.bucket, "empty", tmp_path / "into", etag=None, max_bytes=1)
    assert (tmp_path / "into").read_bytes() == b""


async def test_an_object_whose_etag_is_current_is_not_fetched(readable: Shelf, tmp_path: Path):
    await readable.write("k", b"one")
    etag = await readable.store.fetch(readable.bucket, "k", tmp_path / "first", etag=None, max_bytes=100)

    again = await readable.store.fetch(readable.bucket, "k", tmp_path / "second", etag=etag, max_bytes=100)

    assert again is None
    assert not (tmp_path / "second").exists()


async def test_a_changed_object_is_fetched_and_has_another_etag(readable: Shelf, tmp_path: Path):
    await readable.write("k", b"one")
    old = await readable.store.fetch(readable.bucket, "k", tmp_path / "into", etag=None, max_bytes=100)
    await readable.write("k", b"another")

    new = await readable.store.fetch(readable.bucket, "k", tmp_path / "into", etag=old, max_bytes=100)

    assert new not in {None, old}
    assert (tmp_path / "into").read_bytes() == b"another"


async def test_only_an_object_with_the_same_content_is_unchanged(readable: Shelf, tmp_path: Path):
    """A store need not know it."""
    await readable.write("k", b"one")
    assert not await readable.store.is_unchanged(readable.bucket, "k", '"0"')
    etag = await readable.store.fetch(readable.bucket, "k", tmp_path / "into", etag=None, max_bytes=100)
    assert etag
    known = await readable.store.is_unchanged(readable.bucket, "k", etag)
    assert known == (not isinstance(readable.store, FolderStore))

    await readable.write("k", b"another")

    assert not await readable.store.is_unchanged(readable.bucket, "k", etag)
    new = await readable.store.fetch(readable.bucket, "k", tmp_path / "into", etag=etag, max_bytes=100)
    assert new not in {None, etag}
    assert (tmp_path / "into").read_bytes() == b"another"


async def test_an_object_that_was_removed_is_not_unchanged(s3_shelf: S3Shelf, tmp_path: Path):
    await s3_shelf.write("k", b"one")
    etag = await s3_shelf.store.fetch(s3_shelf.bucket, "k", tmp_path / "into", etag=None, max_bytes=100)
    await s3_shelf.client.delete_object(Bucket=s3_shelf.bucket, Key="k")

    assert not await s3_shelf.store.is_unchanged(s3_shelf.bucket, "k", str(etag))
    with pytest.raises(ObjectMissing):
        await s3_shelf.store.fetch(s3_shelf.bucket, "k", tmp_path / "into", etag=etag, max_bytes=100)


@pytest.mark.parametrize(
    "key", ["a b+c/파일 (1).zip", "%2F%20", "a//b", "~'!*@&=;:,$?#", "é\u00a0\U0001f600"]
)
async def test_an_object_with_any_key_is_unchanged(s3_shelf: S3Shelf, tmp_path: Path, key: str):
    await s3_shelf.write(key, b"one")
    etag = await s3_shelf.store.fetch(s3_shelf.bucket, key, tmp_path / "into", etag=None, max_bytes=100)

    names = requests_of(s3_shelf)
    assert await s3_shelf.store.is_unchanged(s3_shelf.bucket, key, str(etag))
    assert names == []  # the SDK made no call


async def test_a_missing_key_is_missing(readable: Shelf, tmp_path: Path):
    with pytest.raises(ObjectMissing, match="no-such-key"):
        await readable.store.fetch(readable.bucket, "no-such-key", tmp_path / "into", etag=None, max_bytes=1)


async def test_a_missing_bucket_is_missing(readable: Shelf, tmp_path: Path):
    with pytest.raises(ObjectMissing, match="no-such-bucket"):
        await readable.store.fetch("no-such-bucket", "k", tmp_path / "into", etag=None, max_bytes=1)


async def test_an_object_that_is_too_large_is_refused(readable: Shelf, tmp_path: Path):
    await readable.write("k", b"12345678901")

    with pytest.raises(ObjectTooLarge):
        await readable.store.fetch(readable.bucket, "k", tmp_path / "into", etag=None, max_bytes=10)


@pytest.mark.parametrize("size", [0, 100, 20 * MIB + 1])
async def test_a_file_is_stored_byte_for_byte(shelf: Shelf, tmp_path: Path, size: int):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))

    await shelf.store.put(
        shelf.bucket, "outputs/r/파일.bin", source, content_type="application/x-test", fencing_token=1
    )

    assert await shelf.read("outputs/r/파일.bin") == source.read_bytes()


async def put(shelf: Shelf, folder: Path, content: bytes, fencing_token: int) -> None:
    source = folder / f"source-{fencing_token}"
    source.write_bytes(content)
    await shelf.store.put(
        shelf.bucket, "outputs/r/k", source, content_type="text/plain", fencing_token=fencing_token
    )


async def test_a_later_attempt_replaces_what_an_earlier_one_has_left(shelf: Shelf, tmp_path: Path):
    await put(shelf, tmp_path, b"of the dead", 5)
    await put(shelf, tmp_path, b"of the living", 6)

    assert await shelf.read("outputs/r/k") == b"of the living"


async def test_a_late_attempt_overwrites_nothing(shelf: Shelf, tmp_path: Path):
    await put(shelf, tmp_path, b"of the living", 6)

    with pytest.raises(Superseded, match="later attempt"):
        await put(shelf, tmp_path, b"late", 5)

    assert await shelf.read("outputs/r/k") == b"of the living"


async def test_an_object_that_an_attempt_has_stored_already_is_left_as_it_is(shelf: Shelf, tmp_path: Path):
    await put(shelf, tmp_path, b"once", 5)
    await put(shelf, tmp_path, b"twice", 5)

    assert await shelf.read("outputs/r/k") == b"once"


async def test_an_object_of_somebody_elses_is_replaced(shelf: Shelf, tmp_path: Path):
    await shelf.write("outputs/r/k", b"without a fencing token")
    await put(shelf, tmp_path, b"with one", 1)

    assert await shelf.read("outputs/r/k") == b"with one"


async def test_storing_a_file_that_is_not_there_is_a_storage_error(shelf: Shelf, tmp_path: Path):
    with pytest.raises(StorageError):
        await shelf.store.put(
            shelf.bucket, "k", tmp_path / "nothing", content_type="text/plain", fencing_token=1
        )


async def test_an_object_can_be_linked_to(shelf: Shelf):
    await shelf.write("a/k", b"x")

    url = await shelf.store.presigned_url(shelf.bucket, "a/k", expires_s=60)

    assert "a/k" in url


async def test_closing_twice_is_harmless(shelf: Shelf):
    await shelf.store.close()
    await shelf.store.close()


# --- S3 alone


def fetch_url(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - moto's own address
        return bytes(answer.read())


async def test_a_presigned_link_is_answered_without_credentials(s3_shelf: S3Shelf):
    await s3_shelf.write("a/파일", b"for anyone")

    url = await s3_shelf.store.presigned_url(s3_shelf.bucket, "a/파일", expires_s=60)

    assert await asyncio.to_thread(fetch_url, url) == b"for anyone"
    assert "X-Amz-Expires=60" in url


def requests_of(shelf: S3Shelf) -> list[str]:
    """The names of the requests that are made from now on."""
    names: list[str] = []
    shelf.client.meta.events.register("before-call.s3", lambda model, **_: names.append(model.name))
    return names


async def test_a_fence_costs_no_request_unless_something_is_there(s3_shelf: S3Shelf, tmp_path: Path):
    names = requests_of(s3_shelf)
    await put(s3_shelf, tmp_path, b"first", 5)
    assert names == ["PutObject"]

    await put(s3_shelf, tmp_path, b"second", 6)
    assert names == ["PutObject", "PutObject", "HeadObject", "PutObject"]


async def test_a_late_attempt_loses_the_race_between_looking_and_writing(s3_shelf: S3Shelf, tmp_path: Path):
    await put(s3_shelf, tmp_path, b"of the dead", 4)
    late = S3Store(s3_shelf.client)
    raced: list[None] = []

    async def be_overtaken(**_: Any) -> None:
        if not raced:  # the late one has looked, and is about to write
            raced.append(None)
            await put(s3_shelf, tmp_path, b"of the living", 6)

    s3_shelf.client.meta.events.register("after-call.s3.HeadObject", be_overtaken)

    with pytest.raises(Superseded):
        await put(S3Shelf(late, s3_shelf.bucket, s3_shelf.client, s3_shelf.stack), tmp_path, b"late", 5)

    assert raced
    assert await s3_shelf.read("outputs/r/k") == b"of the living"


async def test_large_files_are_fenced_as_well(s3_shelf: S3Shelf, tmp_path: Path):
    await put(s3_shelf, tmp_path, b"6" * 9 * MIB, 6)
    with pytest.raises(Superseded):
        await put(s3_shelf, tmp_path, b"5" * 9 * MIB, 5)
    await put(s3_shelf, tmp_path, b"7" * 9 * MIB, 7)

    assert await s3_shelf.read("outputs/r/k") == b"7" * 9 * MIB
    left = await s3_shelf.client.list_multipart_uploads(Bucket=s3_shelf.bucket)
    assert not left.get("Uploads")


async def test_an_object_that_goes_while_it_is_looked_at_is_stored_anew(s3_shelf: S3Shelf, tmp_path: Path):
    await put(s3_shelf, tmp_path, b"of the dead", 4)

    async def remove(**_: Any) -> None:
        await s3_shelf.client.delete_object(Bucket=s3_shelf.bucket, Key="outputs/r/k")

    s3_shelf.client.meta.events.register("before-call.s3.HeadObject", remove)
    await put(s3_shelf, tmp_path, b"of the living", 5)

    assert await s3_shelf.read("outputs/r/k") == b"of the living"


async def test_a_store_that_cannot_write_conditionally_is_looked_at_before(s3_shelf: S3Shelf, tmp_path: Path):
    refused: list[None] = []

    def refuse(http_response: Any, parsed: dict[str, Any], **_: Any) -> None:
        refused.append(None)
        http_response.status_code = 501
        parsed["Error"] = {"Code": "NotImplemented", "Message": "If-None-Match"}

    events = s3_shelf.client.meta.events
    events.register("after-call.s3.PutObject", refuse, unique_id="refuse")
    events.register(
        "after-call.s3.PutObject",
        lambda **_: events.unregister("after-call.s3.PutObject", unique_id="refuse"),
    )
    await put(s3_shelf, tmp_path, b"six", 6)
    await put(s3_shelf, tmp_path, b"seven", 7)
    with pytest.raises(Superseded):
        await put(s3_shelf, tmp_path, b"late", 5)

    assert refused
    assert await s3_shelf.read("outputs/r/k") == b"seven"


@pytest.mark.parametrize("size", [100, 9 * MIB])
async def test_a_stored_file_has_its_content_type(s3_shelf: S3Shelf, tmp_path: Path, size: int):
    source = tmp_path / "source"
    source.write_bytes(bytes(size))

    await s3_shelf.store.put(s3_shelf.bucket, "k", source, content_type="image/png", fencing_token=1)

    head = await s3_shelf.client.head_object(Bucket=s3_shelf.bucket, Key="k")
    assert head["ContentType"] == "image/png"
    assert "ContentDisposition" not in head


@pytest.mark.parametrize("size", [5, 9 * MIB], ids=["in one", "in parts"])
async def test_a_file_that_is_to_be_saved_says_so(s3_shelf: S3Shelf, tmp_path: Path, size: int):
    source = tmp_path / "source"
    source.write_bytes(bytes(size))
    await s3_shelf.store.put(s3_shelf.bucket, "k", source, content_type="text/html", to_be_saved=True)
    head = await s3_shelf.client.head_object(Bucket=s3_shelf.bucket, Key="k")
    assert (head["ContentType"], head["ContentDisposition"]) == ("text/html", "attachment")


async def test_a_failed_upload_leaves_no_parts_behind(s3_shelf: S3Shelf, tmp_path: Path):
    source = tmp_path / "source"
    source.write_bytes(bytes(9 * MIB))
    parts = []

    def refuse_second_part(params: dict[str, Any], **_: Any) -> None:
        parts.append(params["PartNumber"])
        if params["PartNumber"] == 2:
            raise ConnectionResetError("cut")

    s3_shelf.client.meta.events.register("before-parameter-build.s3.UploadPart", refuse_second_part)

    with pytest.raises(StorageError, match="cut"):
        await s3_shelf.store.put(s3_shelf.bucket, "k", source, content_type="image/png", fencing_token=1)

    assert parts == [1, 2]
    left = await s3_shelf.client.list_multipart_uploads(Bucket=s3_shelf.bucket)
    assert not left.get("Uploads")


async def test_an_object_that_is_larger_than_it_says_is_cut_off(s3_shelf: S3Shelf, tmp_path: Path):
    await s3_shelf.write("k", b"x" * 1000)

    def understate(parsed: dict[str, Any], **_: Any) -> None:
        parsed["ContentLength"] = 1

    s3_shelf.client.meta.events.register("after-call.s3.GetObject", understate)

    with pytest.raises(ObjectTooLarge):
        await s3_shelf.store.fetch(s3_shelf.bucket, "k", tmp_path / "into", etag=None, max_bytes=10)


@pytest.mark.parametrize("bucket", ["Not A Bucket", "a..b"])
async def test_a_name_that_can_be_no_bucket_is_missing(clients: AwsClients, tmp_path: Path, bucket: str):
    store = S3Store(await clients.s3())

    with pytest.raises(ObjectMissing):
        await store.fetch(bucket, "k", tmp_path / "into", etag=None, max_bytes=10)


async def test_a_server_that_is_not_there_is_a_storage_error(
    stack: EmbeddedStack, unused_tcp_port: int, tmp_path: Path
):
    clients = stack.clients()
    clients.endpoint_url = f"http://127.0.0.1:{unused_tcp_port}"
    async with clients:
        store = S3Store(await clients.s3())
        with pytest.raises(StorageError):
            await store.fetch("bucket", "k", tmp_path / "into", etag=None, max_bytes=10)


@pytest.mark.parametrize(
    "slowness", ["body not taken", "answer's head without end", "answer's body without end"]
)
async def test_a_store_that_never_completes_an_answer_is_given_up(
    stack: EmbeddedStack, tmp_path: Path, slowness: Slowness, monkeypatch: pytest.MonkeyPatch
):
    """A job would wait for it for half a day, and for four such uploads every job with output files."""
    monkeypatch.setattr(s3, "_LEAST_BYTES_PER_S", 1 << 40)  # not a minute for 8 MiB
    source = tmp_path / "source"
    source.write_bytes(bytes(8 * MIB))  # one call, and more than sockets hold
    async with slow_server(slowness) as url, asyncio.timeout(GIVEN_UP_S):
        clients = stack.clients()
        clients.endpoint_url = url
        async with clients:
            store = S3Store(await clients.s3(), call_timeout_s=0.5)
            call = (
                store.put("bucket", "k", source, content_type="text/plain")
                if slowness == "body not taken"
                else store.fetch("bucket", "k", tmp_path / "into", etag=None, max_bytes=MIB)
            )
            with pytest.raises(StorageError, match="not done within"):
                await call
