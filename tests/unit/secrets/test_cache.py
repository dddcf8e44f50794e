"""Secrets are read once for all who need them, and kept for a short time."""

from __future__ import annotations

import asyncio

import pytest

from nanoagent.model.errors import SecretsError
from nanoagent.model.secret import SecretReference, SecretService
from nanoagent.secrets.base import Absence, SecretMissing
from nanoagent.secrets.cache import SecretCache
from nanoagent.secrets.memory import InMemorySecretStore

A, B, C = (SecretReference(SecretService.SSM, f"/{name}") for name in "abc")
DEADLINE_S = 30


class SlowStore(InMemorySecretStore):
    """A store that answers when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()

    async def read(self, reference: SecretReference) -> str:
        self.reads.append(reference)
        await self.may_answer.wait()
        self.reads.pop()
        return await super().read(reference)


async def test_a_value_is_read_once_until_its_time_is_over():
    store = InMemorySecretStore()
    outcomes: list[str] = []
    store.values[A] = "one"
    cache = SecretCache(store, 0.2, on_read=outcomes.append)
    assert [await cache.read(A), await cache.read(A)] == ["one", "one"]
    store.values[A] = "two"
    assert await cache.read(A) == "one"
    async with asyncio.timeout(DEADLINE_S):
        while await cache.read(A) == "one":  # noqa: ASYNC110 - time has no event
            await asyncio.sleep(0.01)
    assert store.reads == [A, A]
    assert (outcomes.count("read"), outcomes[0], outcomes[1]) == (2, "read", "cached")


async def test_the_members_of_a_secret_are_one_read():
    store = InMemorySecretStore()
    store.values[A] = "{}"
    cache = SecretCache(store, 60)
    for key in (None, "user", "password"):
        await cache.read(SecretReference(A.service, A.name, key))
    assert store.reads == [A]
    other = SecretReference(A.service, A.name, version="2")
    store.values[other] = "old"
    assert await cache.read(other) == "old"


async def test_without_time_nothing_is_kept():
    store = InMemorySecretStore()
    store.values[A] = "one"
    cache = SecretCache(store, 0)
    await cache.read(A)
    await cache.read(A)
    assert store.reads == [A, A]
    assert not cache._answers


async def test_values_are_removed_from_memory_when_their_time_is_over():
    store = InMemorySecretStore()
    store.values[A] = "one"
    cache = SecretCache(store, 0.05)
    await cache.read(A)
    async with asyncio.timeout(DEADLINE_S):
        while cache._answers:  # noqa: ASYNC110 - the same
            await asyncio.sleep(0.01)


async def test_the_number_of_kept_values_is_limited():
    store = InMemorySecretStore()
    store.values |= {A: "a", B: "b", C: "c"}
    cache = SecretCache(store, 60, max_entries=2)
    for reference in (A, B, C, C, B, A):
        await cache.read(reference)
    assert store.reads == [A, B, C, A]


async def test_concurrent_callers_share_a_read_and_a_cancelled_one_does_not_stop_it():
    store = SlowStore()
    store.values[A] = "one"
    cache = SecretCache(store, 60)
    callers = [asyncio.create_task(cache.read(A)) for _ in range(5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert store.reads == [A]
    callers[0].cancel()
    await asyncio.sleep(0)
    store.may_answer.set()
    assert await asyncio.gather(*callers[1:]) == ["one"] * 4
    assert store.reads == [A]


@pytest.mark.parametrize("error", [SecretMissing("gone", Absence.NAME), SecretsError("throttled")])
async def test_a_failure_is_kept_for_seconds_only(error: Exception, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nanoagent.secrets.cache._FAILURE_S", 0.1)
    store = InMemorySecretStore()
    store.values[A] = error
    cache = SecretCache(store, 3600)
    for _ in range(3):
        with pytest.raises(type(error), match=str(error)):
            await cache.read(A)
    assert store.reads == [A]
    store.values[A] = "now"
    async with asyncio.timeout(DEADLINE_S):
        while cache._answers:  # noqa: ASYNC110 - the same
            await asyncio.sleep(0.01)
    assert await cache.read(A) == "now"


async def test_closing_forgets_all_and_ends_reads():
    store = SlowStore()
    store.values |= {A: "a"}
    cache = SecretCache(store, 60)
    caller = asyncio.create_task(cache.read(A))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await cache.close()
    with pytest.raises(SecretsError, match="the worker stops"):
        await caller
    store.may_answer.set()
    assert await cache.read(A) == "a"
    await cache.close()
    assert not cache._answers


async def test_no_value_is_in_what_is_printed():
    store = InMemorySecretStore()
    store.values[A] = "hunter22"
    cache = SecretCache(store, 60)
    await cache.read(A)
    assert "hunter22" not in repr(cache._answers)
