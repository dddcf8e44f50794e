"""Results that wait on disk: safe, delivered once, never in the place of a newer one."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from typing import TYPE_CHECKING

import pytest

from nanoagent.model.errors import ConfigError
from nanoagent.results import spool as spool_module
from nanoagent.results.base import Claim
from nanoagent.results.memory import MemoryResultStore
from nanoagent.results.spool import Spool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DEADLINE_S = 60
DOCUMENT = b'{"requestId":"r"}'


class Rig:
    """A spool, and the store that it delivers to."""

    def __init__(self, folder: Path, max_bytes: int = 1000) -> None:
        self.folder = folder
        self.result_store = MemoryResultStore()
        self.watched: list[tuple[int, int]] = []
        self.max_bytes = max_bytes
        self.spool = self.restarted()

    def restarted(self) -> Spool:
        """As a worker of the same folder that starts later has it."""
        self.spool = Spool(
            self.folder, self.result_store, self.max_bytes, lambda *counts: self.watched.append(counts)
        )
        return self.spool

    async def claim(self, request_id: str = "r") -> Claim:
        claim = await self.result_store.beside().claim(request_id)
        assert isinstance(claim, Claim)
        return claim

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(spool_module, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(spool_module, "_LONGEST_PAUSE_S", 0.01)
    rig = Rig(tmp_path / "results")
    await rig.spool.open()
    yield rig
    await rig.spool.close()


async def soon(delivered: asyncio.Future[bool]) -> bool:
    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.shield(delivered)


async def test_a_kept_result_is_on_disk_until_it_is_delivered(rig: Rig):
    claim = await rig.claim()
    rig.result_store.down = True
    delivered = await rig.spool.keep(claim, DOCUMENT)

    assert (rig.folder / f"r~{claim.token}").read_bytes() == DOCUMENT
    assert rig.watched[-1] == (1, len(DOCUMENT))
    assert not delivered.done()
    rig.result_store.down = False

    assert await soon(delivered) is True
    assert rig.result_store.published == [("r", DOCUMENT)]
    assert rig.names() == []
    assert rig.watched[-1] == (0, 0)


async def test_what_an_earlier_worker_has_left_is_delivered_by_the_next(rig: Rig):
    claims = [await rig.claim(request_id) for request_id in ("a", "b")]
    rig.result_store.down = True
    for claim in claims:
        await rig.spool.keep(claim, DOCUMENT)
    await rig.spool.close()  # on disk it is as after a kill
    rig.result_store.down = False

    spool = rig.restarted()
    await spool.open()
    async with asyncio.timeout(DEADLINE_S):
        await spool.delivered("a")
        await spool.delivered("b")

    assert rig.result_store.published == [("a", DOCUMENT), ("b", DOCUMENT)]
    assert rig.names() == []


async def test_a_result_that_is_older_than_the_answer_is_refused_and_removed(rig: Rig):
    claim = await rig.claim()
    rig.result_store.down = True
    delivered = await rig.spool.keep(claim, b"older")
    rig.result_store.down = False
    rig.result_store.lapse("r")
    newer = await rig.claim()
    assert await rig.result_store.publish(newer, b"newer")

    assert await soon(delivered) is False
    assert rig.result_store.published == [("r", b"newer")]
    assert rig.names() == []


async def test_a_result_that_is_not_the_newest_claims_is_refused_also_before_there_is_an_answer(rig: Rig):
    claim = await rig.claim()
    rig.result_store.lapse("r")
    await rig.claim()

    assert await soon(await rig.spool.keep(claim, b"older")) is False
    assert rig.result_store.published == []


async def test_one_result_that_the_store_does_not_take_does_not_hold_up_the_others(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    publish = rig.result_store.publish

    async def refuse_one(claim: Claim, document: bytes, entry: bytes) -> bool:
        if claim.request_id == "large":
            rig.result_store.down = True
        try:
            return await publish(claim, document, entry)
        finally:
            rig.result_store.down = False

    monkeypatch.setattr(rig.result_store, "publish", refuse_one)
    large, small = await rig.claim("large"), await rig.claim("small")
    await rig.spool.keep(large, DOCUMENT)

    assert await soon(await rig.spool.keep(small, DOCUMENT)) is True


async def test_two_workers_of_one_folder_deliver_a_result_once(rig: Rig):
    claim = await rig.claim()
    rig.result_store.down = True
    mine = await rig.spool.keep(claim, DOCUMENT)
    other = Spool(rig.folder, rig.result_store, 1000, lambda *_: None)
    await other.open()
    rig.result_store.down = False
    await soon(mine)
    async with asyncio.timeout(DEADLINE_S):
        await other.delivered("r")

    assert rig.result_store.published == [("r", DOCUMENT)]
    assert rig.names() == []
    await other.close()


async def test_a_disk_that_takes_nothing_costs_no_result(rig: Rig):
    claim = await rig.claim()
    rig.result_store.down = True
    rig.folder.rmdir()
    delivered = await rig.spool.keep(claim, DOCUMENT)
    rig.result_store.down = False

    assert await soon(delivered) is True
    assert rig.result_store.published == [("r", DOCUMENT)]


async def test_the_spool_says_when_it_is_full_and_when_it_is_no_more(rig: Rig):
    claim = await rig.claim()
    assert rig.spool.has_room_for(1000)
    assert not rig.spool.has_room_for(1001)
    rig.result_store.down = True
    delivered = await rig.spool.keep(claim, bytes(600))
    assert rig.spool.has_room_for(400)
    assert not rig.spool.has_room_for(401)
    rig.result_store.down = False
    await soon(delivered)
    assert rig.spool.has_room_for(1000)


async def test_what_is_no_result_is_left_alone_and_what_was_half_written_goes(rig: Rig):
    await rig.spool.close()
    for name in ("notes.txt", "r~", "r~x", "~1", ".draft-abandoned", ".draft-written-now"):
        (rig.folder / name).write_bytes(b"half")

    spool = rig.restarted()
    with (rig.folder / ".draft-written-now").open("rb") as draft:
        fcntl.flock(draft, fcntl.LOCK_EX)
        await spool.open()

    assert rig.watched[-1] == (0, 0)
    assert rig.names() == [".draft-written-now", "notes.txt", "r~", "r~x", "~1"]


async def test_a_draft_that_another_worker_took_for_abandoned_is_written_once_more(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    claim = await rig.claim()
    rig.result_store.down = True

    def first_taken_away(*_: object) -> None:
        monkeypatch.undo()
        (draft,) = rig.folder.glob(".draft-*")
        draft.unlink()

    monkeypatch.setattr(fcntl, "flock", first_taken_away)
    await rig.spool.keep(claim, DOCUMENT)
    (kept,) = rig.names()
    assert (rig.folder / kept).read_bytes() == DOCUMENT


async def test_a_folder_that_cannot_be_is_a_wrong_setting(tmp_path: Path):
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file" / "results", MemoryResultStore(), 1000, lambda *_: None)

    with pytest.raises(ConfigError, match="CODE_CACHE_DIR"):
        await spool.open()


WRITER = """
import asyncio, sys
from pathlib import Path
from nanoagent.results.base import Claim
from nanoagent.results.memory import MemoryResultStore
from nanoagent.results.spool import Spool

async def main():
    result_store = MemoryResultStore()
    result_store.down = True
    spool = Spool(Path(sys.argv[1]), result_store, 10**9, lambda *_: None)
    await spool.open()
    token = 0
    while True:
        token += 1
        await spool.keep(Claim("r", token), b"whole" * 20_000)
        print(token, flush=True)

asyncio.run(main())
"""


async def test_a_writer_that_is_killed_leaves_whole_results_only(tmp_path: Path, record_property):
    folder = tmp_path / "results"
    for kept in range(1, 11):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, folder, stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
        )
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            while await process.stdout.readline() != b"%d\n" % kept:  # between them: the log
                pass
        process.kill()
        await process.wait()
        names = [path for path in folder.iterdir() if not path.name.startswith(".draft-")]
        assert len(names) >= kept
        assert {path.read_bytes() for path in names} == {b"whole" * 20_000}
    record_property("tried", ["kills", 10])
