from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import warnings
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nanoagent.code import archive, code_cache, code_index
from nanoagent.code.archive import ArchiveLimits, TreeInfo
from nanoagent.code.code_cache import CodeCache, FetchOutcome
from nanoagent.code.disk_cache import DiskCache
from nanoagent.code.disk_entries import EntryUse, eviction_order
from nanoagent.code.object_cache import ObjectCache
from nanoagent.code.pack import FOOTER, RECORD
from nanoagent.code.program_cache import ProgramCache
from nanoagent.common.units import MIB
from nanoagent.host.threads import in_thread
from nanoagent.model.errors import DamagedCode, PlatformError, Rejected, StorageError
from nanoagent.model.result import ErrorType
from nanoagent.storage.base import Absence, ObjectMissing
from nanoagent.storage.folder import FolderStore
from support.checks.packs import files
from support.checks.waiting import eventually
from support.checks.zips import make_zip, raw_zip, symlink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

KIB = 1024
LIMITS = ArchiveLimits(zip_bytes=MIB, unpacked_bytes=4 * MIB, file_bytes=4 * MIB, entries=100)
ROOM = 64 * MIB
KEY = "f" * 64
HOURS_S = 36_000.0  # no test takes so long


class Store(FolderStore):
    """A folder store that records the ETag each request was made with and can be held up."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.requests: list[str | None] = []
        self.quick_questions: list[str] | None = None  # the ETags asked for; None: the store never knows
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None

    async def is_unchanged(self, bucket: str, key: str, etag: str) -> bool:
        if self.quick_questions is None:
            return False
        self.quick_questions.append(etag)
        await self.gate.wait()
        return hashlib.sha256(self.path(bucket, key).read_bytes()).hexdigest() == etag

    async def fetch(
        self, bucket: str, key: str, into: Path, *, etag: str | None, max_bytes: int
    ) -> str | None:
        self.requests.append(etag)
        self.entered.set()
        into.write_bytes(b"partial")
        await self.gate.wait()
        if self.failure:
            raise self.failure
        into.unlink()
        return await super().fetch(bucket, key, into, etag=etag, max_bytes=max_bytes)

    def write(self, key: str, content: bytes) -> str:
        """Deploy a zip; returns its digest."""
        path = self.path("code", key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return hashlib.sha256(content).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@asynccontextmanager
async def opened(
    root: Path,
    store: Store,
    max_bytes: int = ROOM,
    observe: Callable[[FetchOutcome], None] = lambda _: None,
    limits: ArchiveLimits = LIMITS,
    fresh_s: float = 0,
    *,
    most_fresh: int = code_cache.MOST_FRESH,
) -> AsyncIterator[CodeCache]:
    cache = CodeCache(root, store, limits, max_bytes, observe, fresh_s=fresh_s, most_fresh=most_fresh)
    await cache.start()
    try:
        yield cache
    finally:
        await cache.close()


@pytest.fixture
async def cache(root: Path, store: Store) -> AsyncIterator[CodeCache]:
    async with opened(root, store) as cache:
        yield cache


@asynccontextmanager
async def opened_programs(root: Path, max_bytes: int = ROOM) -> AsyncIterator[ProgramCache]:
    programs = ProgramCache(root, max_bytes)
    await programs.start()
    try:
        yield programs
    finally:
        await programs.close()


@pytest.fixture
async def programs(root: Path) -> AsyncIterator[ProgramCache]:
    async with opened_programs(root) as programs:
        yield programs


async def fetched(cache: CodeCache, key: str = "k") -> dict[str, str]:
    """The files of the tree, by name, while it was held."""
    async with cache.fetch("code", key) as tree:
        return {name: content.decode() for name, content in files(tree.path).items()}


def left_over(root: Path) -> list[Path]:
    """What lies in the workspaces, the locks and the folders themselves aside."""
    return [path for path in (root / "workspaces").rglob("*") if len(path.relative_to(root).parts) > 2]


def entries(root: Path) -> set[str]:
    return {path.name for folder in ("entries", "packs") for path in (root / folder).glob("*")}


def used_bytes(root: Path) -> int:
    return sum(json.loads(path.read_bytes())["disk_bytes"] for path in root.glob("*/*/meta"))


def sized_zip(kib: int, seed: int = 0) -> bytes:
    """A zip of one file. Its pack takes that much room, its entry 8 KiB more."""
    return make_zip({"data": bytes([seed]) * (kib * KIB - KIB)})


# --- one object


async def test_a_fetched_tree_is_the_zips_content_under_its_digest(cache: CodeCache, store: Store) -> None:
    digest = store.write("k", make_zip({"main.py": "one"}))

    async with cache.fetch("code", "k") as tree:
        assert tree.digest == digest
        assert files(tree.path)["main.py"] == b"one"


async def test_an_unchanged_object_costs_one_conditional_request(root: Path, store: Store) -> None:
    seen: list[FetchOutcome] = []
    digest = store.write("k", make_zip({"main.py": "one"}))
    async with opened(root, store, observe=seen.append) as cache:
        for _ in range(3):
            assert await fetched(cache) == {"main.py": "one"}

    assert store.requests == [None, digest, digest]  # the folder store's ETag happens to be the digest
    assert seen == ["miss", "revalidated", "revalidated"]


async def test_a_store_that_knows_it_is_asked_whether_an_object_has_changed(root: Path, store: Store) -> None:
    seen: list[FetchOutcome] = []
    store.quick_questions = []
    old = store.write("k", make_zip({"main.py": "one"}))
    async with opened(root, store, observe=seen.append) as cache:
        for _ in range(3):
            assert await fetched(cache) == {"main.py": "one"}
        assert (store.quick_questions, store.requests) == ([old, old], [None])

        new = store.write("k", make_zip({"main.py": "two"}))
        for _ in range(2):
            assert await fetched(cache) == {"main.py": "two"}

    assert store.quick_questions == [old, old, old, new]
    assert store.requests == [None, old]
    assert seen == ["miss", "revalidated", "revalidated", "miss", "revalidated"]
    assert left_over(root) == []


async def test_a_question_for_an_object_is_shared_as_a_fetch_is(root: Path, store: Store) -> None:
    seen: list[FetchOutcome] = []
    store.write("k", make_zip({"main.py": "one"}))
    async with opened(root, store, observe=seen.append) as cache:
        await fetched(cache)
        store.quick_questions = []
        store.gate.clear()
        asking = [asyncio.create_task(fetched(cache)) for _ in range(5)]
        async with asyncio.timeout(HOURS_S):
            while len(seen) < 5 or not store.quick_questions:  # noqa: ASYNC110 - others take their steps meanwhile
                await asyncio.sleep(0)
        store.gate.set()
        assert await asyncio.gather(*asking) == [{"main.py": "one"}] * 5
    assert len(store.quick_questions) == 1
    assert sorted(seen) == ["hit"] * 4 + ["miss", "revalidated"]


async def test_a_refused_archive_that_has_not_changed_is_still_refused(
    cache: CodeCache, store: Store
) -> None:
    store.quick_questions = []
    store.write("k", b"no zip")
    for _ in range(3):
        with pytest.raises(Rejected):
            await fetched(cache)
    assert len(store.quick_questions) == 2
    assert store.requests == [None]


async def test_a_redeploy_under_the_same_key_is_seen(cache: CodeCache, store: Store) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    assert await fetched(cache) == {"main.py": "one"}

    store.write("k", make_zip({"main.py": "two"}))

    assert await fetched(cache) == {"main.py": "two"}


async def test_a_tree_in_use_is_untouched_by_a_redeploy(cache: CodeCache, store: Store) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    async with cache.fetch("code", "k") as old:
        store.write("k", make_zip({"main.py": "two"}))
        async with cache.fetch("code", "k") as new:
            assert files(old.path)["main.py"] == b"one"
            assert files(new.path)["main.py"] == b"two"


# --- what is fresh


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_while_an_answer_is_fresh_the_store_is_not_asked(root: Path, store: Store) -> None:
    seen: list[FetchOutcome] = []
    store.write("k", make_zip({"main.py": "one"}))
    async with opened(root, store, observe=seen.append, fresh_s=HOURS_S) as cache:
        assert await fetched(cache) == {"main.py": "one"}
        store.write("k", make_zip({"main.py": "two"}))
        assert await fetched(cache) == {"main.py": "one"}

    assert store.requests == [None]
    assert seen == ["miss", "hit"]


async def test_an_answer_that_is_fresh_no_longer_is_asked_for_again(root: Path, store: Store) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    async with opened(root, store, fresh_s=0.01) as cache:
        await fetched(cache)
        store.write("k", make_zip({"main.py": "two"}))
        await asyncio.sleep(0.02)
        assert await fetched(cache) == {"main.py": "two"}

    assert len(store.requests) == 2


async def test_an_answer_is_as_old_as_its_question(root: Path, store: Store) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    store.gate.clear()
    async with opened(root, store, fresh_s=0.01) as cache:
        fetching = asyncio.create_task(fetched(cache))
        await store.entered.wait()
        await asyncio.sleep(0.02)
        store.gate.set()
        await fetching
        await fetched(cache)

    assert len(store.requests) == 2


async def test_a_job_that_ends_leaves_a_fresh_tree_to_the_next(root: Path, store: Store) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    async with opened(root, store, fresh_s=HOURS_S) as cache:
        async with cache.fetch("code", "k"):
            async with cache.fetch("code", "k") as tree:
                pass
            assert files(tree.path)["main.py"] == b"one"
        assert await fetched(cache) == {"main.py": "one"}

    assert store.requests == [None]


async def test_what_is_missing_or_refused_is_asked_for_each_time(root: Path, store: Store) -> None:
    store.write("refused", b"no zip")
    async with opened(root, store, fresh_s=HOURS_S) as cache:
        for key in ("missing", "refused") * 2:
            with pytest.raises(Rejected):
                await fetched(cache, key)

    assert len(store.requests) == 4


async def test_a_fresh_tree_that_is_only_remembered_does_not_hold_up_eviction(
    root: Path, store: Store
) -> None:
    first, second = store.write("a", sized_zip(100)), store.write("b", sized_zip(100, seed=1))
    async with opened(root, store, max_bytes=108 * KIB, fresh_s=HOURS_S) as cache:
        await fetched_bytes(cache, "a")
        assert entries(root) == {first}
        await fetched_bytes(cache, "b")
        assert entries(root) == {second}
        assert await fetched_bytes(cache, "a")  # anew


async def test_a_fresh_tree_that_goes_missing_is_fetched_anew(root: Path, store: Store) -> None:
    digest = store.write("k", make_zip({"main.py": "one"}))
    async with opened(root, store, fresh_s=HOURS_S) as cache:
        await fetched(cache)
        remove_content(root / "packs" / digest)
        assert await fetched(cache) == {"main.py": "one"}

    assert store.requests == [None, None]


async def test_fresh_trees_are_remembered_in_bounded_number(root: Path, store: Store) -> None:
    async with opened(root, store, fresh_s=HOURS_S, most_fresh=2) as cache:
        for key in "abc":
            store.write(key, make_zip({"main.py": key}))
            await fetched(cache, key)
        for key in "cb":
            await fetched(cache, key)
        assert len(store.requests) == 3
        await fetched(cache, "a")  # asked about longest ago

    assert len(store.requests) == 4


async def test_closing_lets_go_of_what_is_fresh(root: Path, store: Store) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    before = open_files()
    async with opened(root, store, fresh_s=HOURS_S) as cache:
        await fetched(cache)
    assert open_files() == before


# --- several of the same


async def test_other_keys_with_the_same_bytes_share_the_tree(root: Path, store: Store) -> None:
    seen: list[FetchOutcome] = []
    for key in ("a", "b"):
        store.write(key, make_zip({"main.py": "one"}))
    async with (
        opened(root, store, observe=seen.append) as cache,
        cache.fetch("code", "a") as a,
        cache.fetch("code", "b") as b,
    ):
        assert a == b

    assert len(entries(root)) == 1
    assert seen == ["miss", "hit"]


async def test_a_new_worker_uses_what_another_left(root: Path, store: Store) -> None:
    digest = store.write("k", make_zip({"main.py": "one"}))
    async with opened(root, store) as first:
        await fetched(first)
    async with opened(root, store) as second:
        assert await fetched(second) == {"main.py": "one"}

    assert store.requests == [None, digest]


async def test_trees_are_readable_for_all_and_the_folder_is_not(
    cache: CodeCache, root: Path, store: Store
) -> None:
    store.write("k", make_zip({"lib/main.py": "one"}))

    async with cache.fetch("code", "k") as tree:
        assert stat.S_IMODE(tree.path.stat().st_mode) == 0o444

    assert stat.S_IMODE(root.stat().st_mode) == 0o700


# --- refusals and failures


async def test_a_missing_object_is_named(cache: CodeCache, store: Store, root: Path) -> None:
    with pytest.raises(Rejected, match="s3://code/no-such-key") as caught:
        await fetched(cache, "no-such-key")

    assert caught.value.error_type is ErrorType.CODE_NOT_FOUND
    assert left_over(root) == []


@pytest.mark.parametrize(
    ("missing", "says", "hint", "level"),
    [
        (ObjectMissing("NoSuchKey", Absence.KEY), "no such key", "Upload the zip", "info"),
        (ObjectMissing("NoSuchBucket", Absence.BUCKET), "no such bucket", "Check s3Bucket", "warning"),
        (
            ObjectMissing("Access Denied", Absence.DENIED),
            "access denied, or no such key",
            "s3:ListBucket",
            "warning",
        ),
        (
            ObjectMissing("arn:aws:iam::1:role/w may not kms:Decrypt", Absence.DENIED, "kms:Decrypt"),
            "may not perform kms:Decrypt",
            "allow kms:Decrypt",
            "warning",
        ),
        (ObjectMissing("InvalidObjectState", Absence.ARCHIVED), "(S3 Glacier)", "Restore", "warning"),
        (ObjectMissing("Redirect", Absence.ELSEWHERE), "in another region", "worker's region", "warning"),
        (ObjectMissing("KeyTooLong", Absence.NAME), "not a valid name", "s3Key", "warning"),
    ],
)
async def test_each_reason_why_code_cannot_be_read_has_its_own_words_and_the_log_has_the_stores(
    cache: CodeCache,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    *,
    missing: ObjectMissing,
    says: str,
    hint: str,
    level: str,
) -> None:
    async def fetch(*_: object, **__: object) -> str:
        raise missing

    monkeypatch.setattr(store, "fetch", fetch)
    with capture_logs() as logs, pytest.raises(Rejected) as caught:
        await fetched(cache, "k")
    rejected = caught.value
    assert rejected.error_type is ErrorType.CODE_NOT_FOUND
    assert rejected.hint is not None
    assert says in rejected.message.en
    assert hint in rejected.hint.en
    for text in (rejected.message, rejected.hint):
        assert text.ko != text.en
        assert "arn:" not in text.en + text.ko
    assert missing.action is None or missing.action in rejected.message.ko
    assert [(line["log_level"], line["reason"]) for line in logs] == [(level, str(missing))]


async def test_an_object_over_the_limit_is_refused_by_the_settings_name(
    cache: CodeCache, store: Store
) -> None:
    store.write("k", bytes(MIB + 1))

    with pytest.raises(Rejected, match=r"the code zip is larger .* 1 MiB \(CODE_MAX_ZIP_MB\)") as caught:
        await fetched(cache)

    assert caught.value.error_type is ErrorType.INVALID_CODE


async def test_a_hostile_archive_is_refused_and_nothing_of_it_kept(
    cache: CodeCache, store: Store, root: Path
) -> None:
    store.write("k", raw_zip(symlink(b"main.py", b"/etc/passwd")))

    with pytest.raises(Rejected, match=r"'main\.py' is a symbolic link") as caught:
        await fetched(cache)

    assert caught.value.error_type is ErrorType.INVALID_CODE
    assert entries(root) == set()
    assert left_over(root) == []


async def test_a_refused_archive_is_neither_fetched_nor_examined_again(
    cache: CodeCache, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    examined = []

    def extract(zip_path: Path, into: Path, limits: ArchiveLimits) -> TreeInfo:
        examined.append(zip_path.read_bytes())
        raise Rejected(ErrorType.INVALID_CODE, "no good")

    monkeypatch.setattr(archive, "extract", extract)
    digest = store.write("k", b"bad")
    store.write("other", b"bad")

    told = []
    for key in ("k", "k", "other"):
        with pytest.raises(Rejected, match="no good") as refusal:
            await fetched(cache, key)
        told.append("remembered: the same bytes" in str(refusal.value.message))

    assert examined == [b"bad"]
    assert told == [False, True, True]
    assert store.requests == [None, digest, None]


async def test_a_refused_archive_may_be_replaced_by_a_good_one(cache: CodeCache, store: Store) -> None:
    store.write("k", b"bad")
    with pytest.raises(Rejected):
        await fetched(cache)

    store.write("k", make_zip({"main.py": "good"}))

    assert await fetched(cache) == {"main.py": "good"}


async def test_refusals_are_remembered_in_bounded_number(
    cache: CodeCache, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache._refusals, "_max_entries", 2)
    for number in range(5):
        store.write("k", b"bad %d" % number)
        with pytest.raises(Rejected):
            await fetched(cache)

    assert len(cache._refusals) == 2


async def test_a_store_that_fails_leaves_nothing_and_the_next_call_succeeds(
    cache: CodeCache, store: Store, root: Path
) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    store.failure = StorageError("cut")
    with pytest.raises(StorageError, match="cut"):
        await fetched(cache)
    assert left_over(root) == []

    store.failure = None

    assert await fetched(cache) == {"main.py": "one"}


async def test_a_full_disk_is_the_platforms_fault(
    cache: CodeCache, store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extract(zip_path: Path, into: Path, limits: ArchiveLimits) -> TreeInfo:
        into.write_bytes(b"begun")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive, "extract", extract)
    store.write("k", make_zip({"main.py": "one"}))

    with pytest.raises(StorageError, match="No space left"):
        await fetched(cache)

    assert left_over(root) == []


async def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path, store: Store) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match="file"):
        await CodeCache(tmp_path / "file" / "cache", store, LIMITS, ROOM).start()


async def test_a_cache_that_is_not_open_says_so(root: Path, store: Store) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    async with opened(root, store) as cache:
        pass

    with pytest.raises(StorageError, match="not open"):
        await fetched(cache)


# --- several callers


@asynccontextmanager
async def held_up_callers(
    root: Path, store: Store, count: int
) -> AsyncIterator[list[asyncio.Task[dict[str, str]]]]:
    """That many callers of one object, all of them waiting for the one request that the store holds up."""
    joined = asyncio.Semaphore(0)
    store.gate.clear()
    async with opened(root, store, observe=lambda _: joined.release()) as cache:
        tasks = [asyncio.create_task(fetched(cache)) for _ in range(count)]
        await store.entered.wait()
        for _ in range(count - 1):
            await joined.acquire()
        yield tasks


async def test_callers_at_the_same_time_share_one_request(root: Path, store: Store) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    async with held_up_callers(root, store, 5) as tasks:
        store.gate.set()
        assert await asyncio.gather(*tasks) == [{"main.py": "one"}] * 5

    assert store.requests == [None]


async def test_callers_at_the_same_time_share_a_failure(root: Path, store: Store) -> None:
    async with held_up_callers(root, store, 3) as tasks:
        store.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(result) for result in results] == [Rejected] * 3
    assert len(store.requests) == 1


@pytest.mark.parametrize("cancelled", [0, 2])
async def test_a_cancelled_caller_does_not_take_the_others_along(
    root: Path, store: Store, cancelled: int
) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    async with held_up_callers(root, store, 3) as tasks:
        tasks[cancelled].cancel()
        await asyncio.wait({tasks[cancelled]})
        store.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(results.pop(cancelled), asyncio.CancelledError)
    assert results == [{"main.py": "one"}] * 2


async def test_when_all_callers_are_cancelled_the_work_is_and_leaves_nothing(
    root: Path, store: Store
) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    async with held_up_callers(root, store, 3) as tasks:
        assert left_over(root)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

        assert all(task.cancelled() for task in tasks)
        assert left_over(root) == []
        assert entries(root) == set()


async def test_a_caller_after_a_cancelled_flight_starts_anew(root: Path, store: Store) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    store.gate.clear()
    async with opened(root, store) as cache:
        first = asyncio.create_task(fetched(cache))
        await store.entered.wait()
        first.cancel()
        second = asyncio.create_task(fetched(cache))
        store.gate.set()

        assert await second == {"main.py": "one"}
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_cancelling_while_a_thread_unpacks_leaves_nothing(
    cache: CodeCache, store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    unpacking, cancelled = asyncio.Event(), asyncio.Event()
    original = archive.extract

    def extract(zip_path: Path, into: Path, limits: ArchiveLimits) -> TreeInfo:
        loop.call_soon_threadsafe(unpacking.set)
        asyncio.run_coroutine_threadsafe(cancelled.wait(), loop).result()
        return original(zip_path, into, limits)

    monkeypatch.setattr(archive, "extract", extract)
    store.write("k", make_zip({"main.py": "one"}))
    task = asyncio.create_task(fetched(cache))
    await unpacking.wait()
    task.cancel()
    loop.call_soon(cancelled.set)

    with pytest.raises(asyncio.CancelledError):
        await task

    assert left_over(root) == []


async def test_closing_ends_what_is_under_way(root: Path, store: Store) -> None:
    store.gate.clear()
    async with opened(root, store) as cache:
        task = asyncio.create_task(fetched(cache))
        await store.entered.wait()

    with pytest.raises(StorageError, match="closed"):
        await task
    assert left_over(root) == []


async def test_archives_that_take_long_do_not_take_all_threads(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    entered = asyncio.Semaphore(0)
    gate = threading.Event()
    unpacking = most = 0
    original = archive.extract

    def extract(zip_path: Path, into: Path, limits: ArchiveLimits) -> TreeInfo:
        nonlocal unpacking, most
        unpacking += 1
        most = max(most, unpacking)
        loop.call_soon_threadsafe(entered.release)
        gate.wait()
        unpacking -= 1
        return original(zip_path, into, limits)

    monkeypatch.setattr(archive, "extract", extract)
    for number in range(5):
        store.write(f"{number}", make_zip({"main.py": f"{number}"}))
    async with opened(root, store) as cache:
        fetches = [asyncio.create_task(fetched(cache, f"{number}")) for number in range(5)]
        try:
            await entered.acquire()
            await entered.acquire()
            for _ in range(100):  # time enough for the others to get there, too
                await in_thread(int)
        finally:
            gate.set()
        await asyncio.gather(*fetches)

    assert most == 2


async def test_what_a_thread_brought_for_a_cancelled_caller_is_undone() -> None:
    loop = asyncio.get_running_loop()
    started, cancelled = asyncio.Event(), asyncio.Event()
    undone: list[str] = []

    def work() -> str:
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(cancelled.wait(), loop).result()
        return "brought"

    task = asyncio.create_task(in_thread(work, undo=undone.append))
    await started.wait()
    task.cancel()
    loop.call_soon(cancelled.set)

    with pytest.raises(asyncio.CancelledError):
        await task
    assert undone == ["brought"]


# --- several workers on one folder


async def test_two_workers_that_unpack_the_same_end_with_one_tree(root: Path, store: Store) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    store.gate.clear()
    async with opened(root, store) as one, opened(root, store) as two, AsyncExitStack() as leases:
        tasks = [
            asyncio.create_task(leases.enter_async_context(cache.fetch("code", "k"))) for cache in (one, two)
        ]
        await store.entered.wait()
        store.gate.set()
        first, second = await asyncio.gather(*tasks)

        assert first == second
        assert files(first.path)["main.py"] == b"one"
        assert left_over(root) == []

    assert len(entries(root)) == 1


async def test_the_later_of_two_publishers_gets_the_earliers_entry(root: Path) -> None:
    one, two = DiskCache(root, ROOM), DiskCache(root, ROOM)
    await one.start()
    await two.start()
    async with one.scratch() as a, two.scratch() as b:
        (a / "file").write_text("same")
        (b / "file").write_text("same")
        first = await one.publish(KEY, a / "file")
        inode = first.content.stat().st_ino
        second = await two.publish(KEY, b / "file")

    assert second.content.stat().st_ino == inode
    assert left_over(root) == []
    first.release()
    second.release()
    await one.close()
    await two.close()


async def test_a_publisher_replaces_a_damaged_entry(root: Path) -> None:
    disk = DiskCache(root, ROOM)
    await disk.start()
    (root / "entries" / KEY).mkdir()
    (root / "entries" / KEY / "content").write_text("half")
    async with disk.scratch() as scratch:
        (scratch / "file").write_text("whole")
        pin = await disk.publish(KEY, scratch / "file")

    assert pin.content.read_text() == "whole"
    pin.release()
    await disk.close()


LEAVE_A_MESS = """
import asyncio, os, sys
from pathlib import Path
from nanoagent.code.disk_cache import DiskCache

async def main():
    disk = DiskCache(Path(sys.argv[1]), 1)
    await disk.start()
    async with disk.scratch() as scratch:
        (scratch / "file").write_text("published")
        (scratch / "half").write_text("half")
        pin = await disk.publish(sys.argv[2], scratch / "file")
        print("ready", flush=True)
        sys.stdin.read()

asyncio.run(main())
"""


@pytest.fixture
def other_worker(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds an entry and a scratch folder."""
    command = [sys.executable, "-c", LEAVE_A_MESS, str(root), KEY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


async def test_what_another_process_uses_is_kept_until_it_dies(
    root: Path, other_worker: subprocess.Popen[str]
) -> None:
    disk = DiskCache(root, 0)
    await disk.start()

    await disk.evict()
    assert entries(root) == {KEY}
    assert [path.read_text() for path in left_over(root) if path.name == "half"] == ["half"]

    other_worker.kill()
    other_worker.wait()
    await disk.evict()
    assert entries(root) == set()
    await disk.close()


async def test_a_dead_workers_workspace_is_removed_at_the_next_start(
    root: Path, other_worker: subprocess.Popen[str]
) -> None:
    other_worker.kill()
    other_worker.wait()
    assert left_over(root)

    disk = DiskCache(root, ROOM)
    await disk.start()

    assert left_over(root) == []
    assert entries(root) == {KEY}
    await disk.close()
    assert list((root / "workspaces").iterdir()) == []


# --- entries of an older version


def old_entry(root: Path, digest: str) -> Path:
    """Make an entry as workers made it before packs: its content is a folder."""
    entry = root / "entries" / digest
    (entry / "content").mkdir(parents=True)
    (entry / "content/main.py").write_text("old")
    (entry / "meta").write_text(json.dumps({"files": 1, "bytes": 3, "disk_bytes": 8 * KIB}))
    return entry


async def test_old_entries_are_removed_at_the_start_and_never_used(root: Path, store: Store) -> None:
    digest = store.write("k", make_zip({"main.py": "new"}))
    old_entry(root, digest)
    async with opened(root, store) as cache:
        assert list((root / "entries").iterdir()) == []
        old_entry(root, digest)  # by an older worker that still runs
        assert await fetched(cache) == {"main.py": "new"}
    assert store.requests == [None]
    assert left_over(root) == []


async def test_an_old_entry_that_an_older_worker_uses_stays(root: Path, store: Store) -> None:
    used, unused = (old_entry(root, letter * 64) for letter in "ab")
    with (used / "meta").open() as meta:
        fcntl.flock(meta, fcntl.LOCK_SH)
        async with opened(root, store):
            assert list((root / "entries").iterdir()) == [used]
    assert not unused.exists()
    async with opened(root, store):
        assert list((root / "entries").iterdir()) == []


async def test_programs_are_no_old_entries(root: Path) -> None:
    async with opened_programs(root) as programs:
        await built(programs, Builder("a"), "a" * 64)
    async with opened_programs(root):
        assert entries(root) == {"a" * 64}


# --- eviction


async def test_the_least_recently_used_tree_goes_first(root: Path, store: Store) -> None:
    digests = {key: store.write(key, sized_zip(100, seed)) for seed, key in enumerate("abc")}
    async with opened(root, store, max_bytes=2 * 108 * KIB) as cache:
        for key in "abac":
            await fetched_bytes(cache, key)

        assert entries(root) == {digests["a"], digests["c"]}


async def fetched_bytes(cache: CodeCache, key: str) -> int:
    async with cache.fetch("code", key) as tree:
        return len(files(tree.path)["data"])


async def test_the_size_of_an_entry_includes_its_files_beside_the_tree(root: Path, store: Store) -> None:
    """Tiny trees, of which there can be very many, would take twice the room that there is for them."""
    for number in range(20):
        store.write(f"{number}", make_zip({"main.py": f"{number}"}))
    room = 40 * 4 * KIB
    async with opened(root, store, max_bytes=room) as cache:
        for number in range(20):
            await fetched(cache, f"{number}")

    assert 4 * KIB * len(list((root / "packs").rglob("*"))) <= room
    assert entries(root)


async def test_the_number_of_entries_is_bounded_too(root: Path) -> None:
    """Each insertion looks at all of them."""
    disk = DiskCache(root, ROOM, most_entries=3)
    await disk.start()
    for number in range(5):
        async with disk.scratch() as scratch:
            (scratch / "thing").write_text("")
            (await disk.publish(f"{number:064}", scratch / "thing")).release()
        await disk.evict()
    await disk.close()

    assert entries(root) == {f"{number:064}" for number in (2, 3, 4)}


async def test_a_tree_in_use_outlives_any_pressure_and_goes_when_released(root: Path, store: Store) -> None:
    kept = store.write("kept", sized_zip(100))
    other = store.write("other", sized_zip(100, seed=1))
    async with opened(root, store, max_bytes=0) as cache, opened(root, store, max_bytes=0) as neighbour:
        async with cache.fetch("code", "kept") as tree:
            await fetched_bytes(cache, "other")
            await fetched_bytes(neighbour, "other")
            assert files(tree.path)["data"]
            assert kept in entries(root)
            assert other not in entries(root)

        assert entries(root) == set()
        assert left_over(root) == []


async def test_an_evicted_tree_is_fetched_anew(root: Path, store: Store) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    async with opened(root, store, max_bytes=0) as cache:
        assert await fetched(cache) == {"main.py": "one"}
        assert await fetched(cache) == {"main.py": "one"}

    assert store.requests == [None, None]


async def test_an_entry_with_an_unreadable_meta_does_not_stop_eviction(root: Path, store: Store) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    async with opened(root, store, max_bytes=0) as cache:
        broken = root / "packs" / KEY
        broken.mkdir()
        (broken / "meta").write_text("no json")
        (root / "packs" / ("e" * 64)).mkdir()
        assert await fetched(cache) == {"main.py": "one"}

    assert entries(root) <= {"e" * 64}


@settings(max_examples=25, deadline=None)
@given(
    calls=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=14),
    max_kib=st.integers(0, 200),
)
def test_room_is_never_exceeded_but_by_what_is_held(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[int, bool]], max_kib: int
) -> None:
    folder = tmp_path_factory.mktemp("room")

    async def scenario() -> None:
        store = Store(folder / "store")
        for number in range(6):
            store.write(str(number), sized_zip(10 * (number + 1), seed=number))
        async with (
            opened(folder / "cache", store, max_bytes=max_kib * KIB) as cache,
            AsyncExitStack() as leases,
        ):
            held: dict[str, Path] = {}
            for number, keep in calls:
                if keep:
                    tree = await leases.enter_async_context(cache.fetch("code", str(number)))
                    held[tree.digest] = tree.path
                else:
                    await fetched_bytes(cache, str(number))
                assert all(path.exists() for path in held.values())
                assert entries(folder / "cache") >= set(held)
                if used_bytes(folder / "cache") > max_kib * KIB:
                    assert entries(folder / "cache") == set(held)
        assert used_bytes(folder / "cache") <= max_kib * KIB

    asyncio.run(scenario())


def test_eviction_starts_with_the_longest_unused() -> None:
    uses = [EntryUse("b", 1, 5), EntryUse("a", 1, 5), EntryUse("c", 1, 4)]

    assert [use.digest for use in eviction_order(uses)] == ["c", "a", "b"]


def test_objects_are_evicted_before_all_else() -> None:
    uses = [EntryUse("a", 1, 4), EntryUse("objects-b", 1, 6), EntryUse("objects-c", 1, 5)]

    assert [use.digest for use in eviction_order(uses)] == ["objects-c", "objects-b", "a"]


async def test_workers_in_a_crowded_folder_always_hold_whole_trees(root: Path, store: Store) -> None:
    for number in range(4):
        store.write(str(number), make_zip({f"{file}": f"{number}" for file in range(10)}))

    async def use(cache: CodeCache, seed: int) -> None:
        for step in range(15):
            number = (seed + step * (seed + 1)) % 4  # each its own way through the four
            async with cache.fetch("code", str(number)) as tree:
                await asyncio.sleep(0)
                texts = list(files(tree.path).values())
                assert texts == [f"{number}".encode()] * 10

    room = 24 * KIB  # two packs of four
    async with opened(root, store, max_bytes=room) as one, opened(root, store, max_bytes=room) as two:
        await asyncio.gather(*(use(cache, seed) for seed in range(4) for cache in (one, two)))

        assert left_over(root) == []
    assert used_bytes(root) <= room


# --- damage


def cut(entry: Path) -> None:
    """Remove the last byte of the pack."""
    os.truncate(entry / "content", (entry / "content").stat().st_size - 1)


def cut_in_half(entry: Path) -> None:
    os.truncate(entry / "content", (entry / "content").stat().st_size // 2)


def empty(entry: Path) -> None:
    os.truncate(entry / "content", 0)


def add_data(entry: Path) -> None:
    with (entry / "content").open("ab") as file:
        file.write(b"more")


def flip(entry: Path, at: int) -> None:
    content = bytearray((entry / "content").read_bytes())
    content[at] ^= 1
    (entry / "content").write_bytes(content)


def flip_footer(entry: Path) -> None:
    flip(entry, -1)


def flip_record(entry: Path) -> None:
    flip(entry, len(b"one") + len(b"two") + RECORD.size)


def flip_name(entry: Path) -> None:
    flip(entry, -FOOTER.size - 2)


def replace_by_older_entry(entry: Path) -> None:
    """Put a folder there, as the content of entries was before packs."""
    (entry / "content").unlink()
    (entry / "content").mkdir()
    (entry / "content/main.py").write_text("old")


def remove_meta(entry: Path) -> None:
    (entry / "meta").unlink()


def garble_meta(entry: Path) -> None:
    (entry / "meta").write_text("{")


def remove_content(entry: Path) -> None:
    (entry / "content").unlink()


def replace_by_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("")


DAMAGES = [
    cut,
    cut_in_half,
    empty,
    add_data,
    flip_footer,
    flip_record,
    flip_name,
    replace_by_older_entry,
    remove_meta,
    garble_meta,
    remove_content,
    replace_by_file,
]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_tree_damaged_while_no_worker_ran_is_fetched_anew(
    root: Path, store: Store, damage: Callable[[Path], None]
) -> None:
    digest = store.write("k", make_zip({"main.py": "one", "lib/a.py": "two"}))
    async with opened(root, store) as first, first.fetch("code", "k"):
        pass
    damage(root / "packs" / digest)

    async with opened(root, store) as second, second.fetch("code", "k") as tree:
        assert files(tree.path) == {"main.py": b"one", "lib/a.py": b"two"}

    assert store.requests == [None, None]
    assert left_over(root) == []


@pytest.mark.parametrize("damage", [remove_meta, remove_content, replace_by_file])
async def test_a_tree_that_goes_missing_under_a_running_worker_is_fetched_anew(
    root: Path, store: Store, cache: CodeCache, damage: Callable[[Path], None]
) -> None:
    digest = store.write("k", make_zip({"main.py": "one"}))
    await fetched(cache)
    damage(root / "packs" / digest)

    assert await fetched(cache) == {"main.py": "one"}
    assert store.requests == [None, None]


async def use_damaged(cache: CodeCache) -> None:
    async with cache.fetch("code", "k"):
        raise DamagedCode("as the supervisor says")


@pytest.mark.parametrize("fresh_s", [0, HOURS_S])
async def test_a_tree_that_a_supervisor_finds_damaged_is_fetched_anew(
    root: Path, store: Store, fresh_s: float
) -> None:
    digest = store.write("k", make_zip({"main.py": "one"}))
    async with opened(root, store, fresh_s=fresh_s) as cache:
        await fetched(cache)
        flip_footer(root / "packs" / digest)
        with pytest.raises(DamagedCode):
            await use_damaged(cache)
        assert await fetched(cache) == {"main.py": "one"}
    assert store.requests[0] is store.requests[-1] is None


async def test_a_garbled_index_only_costs_a_fetch(root: Path, store: Store, cache: CodeCache) -> None:
    store.write("k", make_zip({"main.py": "one"}))
    await fetched(cache)
    for path in (root / "index").iterdir():
        path.write_text("{")

    assert await fetched(cache) == {"main.py": "one"}
    assert store.requests == [None, None]


async def test_an_index_that_names_no_tree_is_pruned_at_start(root: Path, store: Store) -> None:
    store.write("kept", make_zip({"main.py": "one"}))
    gone = store.write("gone", make_zip({"main.py": "two"}))
    async with opened(root, store) as cache:
        await fetched(cache, "kept")
        await fetched(cache, "gone")
    shutil.rmtree(root / "packs" / gone)

    async with opened(root, store):
        keys = [json.loads(path.read_bytes())["key"] for path in (root / "index").iterdir()]

    assert keys == ["kept"]


async def test_the_index_is_pruned_in_running_too(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_index, "_PRUNE_EVERY", 3)
    async with opened(root, store, max_bytes=0) as cache:
        for number in range(9):
            store.write(f"{number}", make_zip({"main.py": f"{number}"}))
            await fetched(cache, f"{number}")

    assert len(list((root / "index").iterdir())) <= 3


async def test_of_many_keys_for_the_same_bytes_the_latest_are_remembered(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_index, "_PRUNE_EVERY", 1)
    monkeypatch.setattr(code_index, "_MOST_INDEXED", 3)
    async with opened(root, store) as cache:
        for number in range(6):
            store.write(f"{number}", make_zip({"main.py": "one"}))
            await fetched(cache, f"{number}")
            for path in (root / "index").iterdir():  # the file system's clock is too coarse for an order
                if json.loads(path.read_bytes())["key"] == f"{number}":
                    os.utime(path, ns=(number, number))
        keys = {json.loads(path.read_bytes())["key"] for path in (root / "index").iterdir()}

    assert len(entries(root)) == 1
    assert keys == {"3", "4", "5"}


# --- pins


async def test_a_pin_that_is_lost_is_warned_of(root: Path) -> None:
    disk = DiskCache(root, ROOM)
    await disk.start()
    async with disk.scratch() as scratch:
        (scratch / "file").write_text("")
        pins = [await disk.publish(KEY, scratch / "file")]

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        pins.clear()

        async def is_heard() -> bool:  # the thread that made the pin lets go of it after its result came
            return bool(heard)

        await eventually(is_heard)
    assert "never released" in str(heard[0].message)

    await disk.close()


async def test_a_released_pin_cannot_be_shared(root: Path) -> None:
    disk = DiskCache(root, ROOM)
    await disk.start()
    async with disk.scratch() as scratch:
        (scratch / "file").write_text("")
        pin = await disk.publish(KEY, scratch / "file")
    pin.release()
    pin.release()

    with pytest.raises(ValueError, match="released"):
        pin.share()
    await disk.close()


# --- programs


class Builder:
    """Writes a program, when let."""

    def __init__(self, text: str = "program", failure: Exception | None = None) -> None:
        self.runs = 0
        self.text = text
        self.failure = failure
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled = asyncio.Event()

    async def __call__(self, path: Path) -> None:
        self.runs += 1
        self.started.set()
        path.write_text(self.text)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.failure:
            raise self.failure


async def built(programs: ProgramCache, build: Builder, key: str = KEY) -> str:
    async with programs.get_or_build(key, build) as path:
        return path.read_text()


async def test_a_program_is_built_once_and_executable(programs: ProgramCache) -> None:
    build = Builder()

    async with programs.get_or_build(KEY, build) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o555
    assert await built(programs, Builder("another")) == "program"


async def test_a_program_is_built_once_for_callers_at_the_same_time(programs: ProgramCache) -> None:
    build = Builder()
    build.gate.clear()
    tasks = [asyncio.create_task(built(programs, build)) for _ in range(4)]
    await build.started.wait()
    build.gate.set()

    assert await asyncio.gather(*tasks) == ["program"] * 4
    assert build.runs == 1


async def test_a_program_outlives_its_worker(root: Path) -> None:
    async with opened_programs(root) as first:
        await built(first, Builder())
    async with opened_programs(root) as second:
        assert await built(second, Builder("another")) == "program"


async def test_what_a_builder_raises_reaches_all_who_wait_and_nothing_is_kept(
    programs: ProgramCache, root: Path
) -> None:
    failing = Builder(failure=Rejected(ErrorType.BUILD_FAILED, "no", stderr="main.cpp:1"))
    failing.gate.clear()
    tasks = [asyncio.create_task(built(programs, failing)) for _ in range(3)]
    await failing.started.wait()
    failing.gate.set()

    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert results == [failing.failure] * 3
    assert left_over(root) == []
    assert await built(programs, Builder("good")) == "good"


async def test_a_builders_own_disk_error_is_not_taken_for_the_caches(programs: ProgramCache) -> None:
    with pytest.raises(ConnectionResetError):
        await built(programs, Builder(failure=ConnectionResetError()))


async def test_a_builder_is_cancelled_when_nobody_waits_any_more(programs: ProgramCache, root: Path) -> None:
    build = Builder()
    build.gate.clear()
    tasks = [asyncio.create_task(built(programs, build)) for _ in range(2)]
    await build.started.wait()

    tasks[0].cancel()
    await asyncio.wait({tasks[0]})
    assert not build.cancelled.is_set()
    tasks[1].cancel()
    await asyncio.wait({tasks[1]})

    assert build.cancelled.is_set()
    assert left_over(root) == []
    assert entries(root) == set()


async def nothing(_: Path) -> None:
    pass


async def link(path: Path) -> None:
    path.symlink_to("/bin/sh")


async def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("build", [nothing, link, folder])
async def test_a_builder_that_writes_no_file_is_the_platforms_fault(
    programs: ProgramCache, root: Path, build: Callable[[Path], Awaitable[None]]
) -> None:
    with pytest.raises(PlatformError, match="wrote no file"):
        async with programs.get_or_build(KEY, build):
            pass

    assert entries(root) == set()
    assert left_over(root) == []


@pytest.mark.parametrize("key", ["", "../../etc", "g" * 64, "ABCDEF0123456789", "0" * 64 + "\n"])
async def test_a_key_that_is_no_digest_is_a_mistake(programs: ProgramCache, key: str) -> None:
    with pytest.raises(ValueError, match="not a hex digest"):
        await built(programs, Builder(), key)


async def test_programs_are_bounded_and_never_taken_from_who_uses_them(root: Path) -> None:
    async with opened_programs(root, max_bytes=0) as programs:
        async with programs.get_or_build("a" * 64, Builder("a")) as held:
            await built(programs, Builder("b"), "b" * 64)
            assert held.read_text() == "a"
            assert entries(root) == {"a" * 64}
        assert entries(root) == set()


async def test_objects_are_replaced_unless_a_build_uses_them(root: Path, tmp_path: Path) -> None:
    async def keep(text: str) -> str:
        staged = tmp_path / "staged"
        staged.write_text(text)
        await objects.keep(KEY, staged)
        pin = await objects.pin(KEY)
        assert pin is not None
        async with objects.releasing(pin):
            assert stat.S_IMODE(pin.content.stat().st_mode) == 0o444
            return pin.content.read_text()

    async with opened_programs(root) as programs:
        objects = ObjectCache(programs.disk, root)
        assert not objects.has(KEY)
        assert await keep("old") == "old"
        assert await keep("new") == "new"
        used = await objects.pin(KEY)
        assert used is not None
        async with objects.releasing(used):
            assert await keep("newer") == "new"
        assert await keep("newest") == "newest"
        assert left_over(root) == []


async def test_objects_make_room_for_programs(root: Path, tmp_path: Path) -> None:
    async with opened_programs(root, max_bytes=96 * KIB) as programs:
        objects = ObjectCache(programs.disk, root)
        await built(programs, Builder("a"), "a" * 64)
        (tmp_path / "staged").write_bytes(b"x" * 72 * KIB)
        await objects.keep(KEY, tmp_path / "staged")
        assert len(entries(root)) == 2
        await built(programs, Builder("b"), "b" * 64)
        assert entries(root) == {"a" * 64, "b" * 64}


async def test_two_workers_that_build_the_same_end_with_one_program(root: Path) -> None:
    one, two = Builder("same"), Builder("same")
    one.gate.clear()
    two.gate.clear()
    async with opened_programs(root) as first, opened_programs(root) as second:
        tasks = [asyncio.create_task(built(first, one)), asyncio.create_task(built(second, two))]
        await one.started.wait()
        await two.started.wait()
        one.gate.set()
        two.gate.set()

        assert await asyncio.gather(*tasks) == ["same", "same"]
        assert left_over(root) == []
    assert entries(root) == {KEY}
