"""What every store of function records promises, in S3 and in memory."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from nanoagent.dev.functions.s3_records import S3Records
from nanoagent.model import function_record
from nanoagent.model.errors import StorageError
from nanoagent.model.function_record import (
    FunctionRecord,
    FunctionSettings,
    InvalidRecord,
    NewVersion,
    with_version,
)
from nanoagent.model.job import Runtime
from support.doubles.fake_records import FakeRecords

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.aws.clients import AwsClients
    from nanoagent.dev.functions.records import RecordStore
    from nanoagent.dev.local_services import EmbeddedStack


class Shelf(Protocol):
    """A store of records, and a way to it that is not the store's."""

    store: RecordStore

    async def put(self, key: str, document: bytes) -> None: ...


@dataclass
class MemoryShelf:
    store: RecordStore
    memory: FakeRecords

    async def put(self, key: str, document: bytes) -> None:
        self.memory.put(key, document)


@dataclass
class S3Shelf:
    store: RecordStore
    client: Any
    bucket: str

    async def put(self, key: str, document: bytes) -> None:
        await self.client.put_object(Bucket=self.bucket, Key=key, Body=document)


@pytest.fixture(params=["memory", "s3"])
async def shelf(
    request: pytest.FixtureRequest, stack: EmbeddedStack, clients: AwsClients
) -> AsyncIterator[Shelf]:
    if request.param == "memory":
        memory = FakeRecords()
        yield MemoryShelf(memory, memory)
        return
    client, bucket = await clients.s3(), await stack.buckets.new()
    yield S3Shelf(S3Records(client, bucket), client, bucket)


@pytest.fixture
def name() -> str:
    """A function ID of characters that a key must not have as they are."""
    return f"../f {secrets.token_hex(4)} 한글/\\"


def record(name: str, author: str = "ann", earlier: FunctionRecord | None = None) -> FunctionRecord:
    new = NewVersion(
        digest="a" * 64,
        key="functions/f/a.zip",
        zip_bytes=1,
        files=1,
        bytes=1,
        deployed_at=datetime(2026, 1, 1, tzinfo=UTC),
        author=author,
        settings=FunctionSettings(runtime=Runtime.PYTHON, env={author: "x"}),
    )
    return with_version(earlier, name, new)


async def test_a_record_is_read_as_it_was_written(shelf: Shelf, name: str):
    assert await shelf.store.read(name) is None
    first = record(name)
    assert await shelf.store.write(first, None)
    stored = await shelf.store.read(name)
    assert stored is not None
    assert stored.record == first
    second = record(name, "bob", first)
    assert await shelf.store.write(second, stored.etag)
    again = await shelf.store.read(name)
    assert again is not None
    assert (again.record, again.etag == stored.etag) == (second, False)


async def test_a_first_record_does_not_replace_another(shelf: Shelf, name: str):
    assert await shelf.store.write(record(name, "ann"), None)
    assert not await shelf.store.write(record(name, "bob"), None)
    stored = await shelf.store.read(name)
    assert stored is not None
    assert stored.record.current_version.author == "ann"


async def test_a_record_that_has_changed_is_not_replaced(shelf: Shelf, name: str):
    first = record(name)
    await shelf.store.write(first, None)
    stored = await shelf.store.read(name)
    assert stored is not None
    assert await shelf.store.write(record(name, "bob", first), stored.etag)
    assert not await shelf.store.write(record(name, "eve", first), stored.etag)
    found = await shelf.store.read(name)
    assert found is not None
    assert found.record.current_version.author == "bob"


async def test_a_record_that_was_deleted_is_not_made_again_by_a_later_version(shelf: Shelf, name: str):
    assert not await shelf.store.write(record(name), '"0123456789abcdef0123456789abcdef"')
    assert await shelf.store.read(name) is None


async def test_all_records_are_listed_and_those_that_cannot_be_used_are_errors(shelf: Shelf, name: str):
    await shelf.store.write(record(name), None)
    other = record(f"{name}-other")
    damaged = function_record.key_of(f"{name}-damaged")
    await shelf.put(damaged, function_record.encode(other))  # the record of another function
    found = await shelf.store.all()
    assert record(name) in found
    assert [str(one) for one in found if isinstance(one, InvalidRecord) and damaged in str(one)]
    with pytest.raises(InvalidRecord, match="functionId is"):
        await shelf.store.read(f"{name}-damaged")


async def test_more_records_than_a_page_of_a_listing_are_all_found(stack: EmbeddedStack, clients: AwsClients):
    client, bucket = await clients.s3(), await stack.buckets.new()
    names = {f"f{number}" for number in range(5)}
    store = S3Records(client, bucket)
    for name in names:
        await store.write(record(name), None)

    class SmallPages:
        """The client, with pages of two keys."""

        get_object = client.get_object

        async def list_objects_v2(self, **fields: str) -> dict[str, object]:
            page: dict[str, object] = await client.list_objects_v2(**fields, MaxKeys=2)
            return page

    found = await S3Records(SmallPages(), bucket).all()
    assert {one.function_id for one in found if isinstance(one, FunctionRecord)} == names


async def test_a_bucket_that_does_not_exist_is_named(clients: AwsClients):
    store = S3Records(await clients.s3(), "no-such-bucket")
    for work in (store.read("f"), store.all(), store.write(record("f"), None)):
        with pytest.raises(StorageError, match=r"no-such-bucket.*there is no such bucket"):
            await work
