"""Updates of records: no version is lost, whoever writes first."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from nanoagent.dev.functions import records
from nanoagent.model.errors import StorageError
from nanoagent.model.function_record import FunctionRecord, FunctionSettings, NewVersion, with_version
from nanoagent.model.job import Runtime
from support.doubles.fake_records import FakeRecords

if TYPE_CHECKING:
    from collections.abc import Callable


def deployment(
    author: str, memory_mb: int | None = None
) -> Callable[[FunctionRecord | None], FunctionRecord]:
    """A change that deploys one version; without a memory size, the version keeps that of the current one."""

    def change(record: FunctionRecord | None) -> FunctionRecord:
        before = 128 if record is None else record.current_version.settings.memory_mb
        new = NewVersion(
            digest="a" * 64,
            key="functions/f/a.zip",
            zip_bytes=1,
            files=1,
            bytes=1,
            deployed_at=datetime(2026, 1, 1, tzinfo=UTC),
            author=author,
            settings=FunctionSettings(
                runtime=Runtime.PYTHON, memory_mb=memory_mb or before, env={author: "deployed"}
            ),
        )
        return with_version(record, "f", new)

    return change


async def authors(store: FakeRecords) -> list[str]:
    stored = await store.read("f")
    return [] if stored is None else [version.author for version in stored.record.versions]


async def test_of_two_deployments_at_once_both_are_kept():
    store = FakeRecords()
    read = await store.read("f")

    async def other_first() -> None:
        store.before_write = None
        await records.update(store, "f", deployment("bob", 512), None)

    store.before_write = other_first
    update = await records.update(store, "f", deployment("ann"), read)

    assert await authors(store) == ["bob", "ann"]
    assert (update.before and update.before.current, update.after.current) == (1, 2)
    # The setting that ann did not name is that of the version that ann's version replaced.
    assert update.after.current_version.settings.memory_mb == 512


async def test_of_many_deployments_at_once_all_are_kept():
    store = FakeRecords()

    async def yielding() -> None:
        await asyncio.sleep(0)

    store.before_write = yielding
    names = {f"author-{number}" for number in range(8)}
    await asyncio.gather(*(records.update(store, "f", deployment(name), None) for name in names))
    assert set(await authors(store)) == names
    assert store.writes > len(names)  # some were refused


async def test_an_update_without_a_change_writes_nothing():
    store = FakeRecords()
    await records.update(store, "f", deployment("ann"), None)
    stored = await store.read("f")
    update = await records.update(store, "f", deployment("ann"), stored)
    assert update.after is update.before
    assert store.writes == 1


async def test_a_change_that_another_writer_has_made_meanwhile_is_not_made_again():
    store = FakeRecords()
    await records.update(store, "f", deployment("ann"), None)
    # This writer read the record before it existed.
    update = await records.update(store, "f", deployment("ann"), None)
    assert update.after is update.before
    assert await authors(store) == ["ann"]


async def test_a_record_that_exists_but_may_not_be_read_is_not_replaced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "_PAUSE_S", 0)
    store = FakeRecords()
    await records.update(store, "f", deployment("ann"), None)
    store.may_read = False
    with pytest.raises(StorageError, match="the record of f exists, but may not be read: allow s3:GetObject"):
        await records.update(store, "f", deployment("bob"), None)
    store.may_read = True
    assert await authors(store) == ["ann"]


async def test_an_update_that_always_comes_second_gives_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "_PAUSE_S", 0)
    store = FakeRecords()
    versions = iter(range(1000))

    async def other_first() -> None:
        hook, store.before_write = store.before_write, None
        await records.update(store, "f", deployment(f"other-{next(versions)}"), await store.read("f"))
        store.before_write = hook

    store.before_write = other_first
    with pytest.raises(StorageError, match="was changed 20 times meanwhile; try again"):
        await records.update(store, "f", deployment("ann"), None)
