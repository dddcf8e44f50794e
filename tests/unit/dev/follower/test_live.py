"""The live output of a job that a command sends, on a store in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from nanoagent.common.units import MIB
from nanoagent.dev.follower import live
from nanoagent.dev.follower.live import LiveOutput
from nanoagent.results import failures
from nanoagent.results.base import Claim
from nanoagent.results.failures import RedisCallError
from nanoagent.results.live_log import Kind, Record
from nanoagent.results.memory import MemoryResultStore

if TYPE_CHECKING:
    from nanoagent.dev.sender.delivery import Results
    from nanoagent.results.live_log import Holder

RESULT = b'{"status": "SUCCESS", "attempt": 1, "stdout": "out", "stderr": "", "exitCode": 0}'
DOCUMENT = {"status": "SUCCESS", "attempt": 1, "stdout": "out", "stderr": ""}


class NoResults:
    """A `Results` that must not be asked."""

    async def wait(self, request_id: str, wait_s: float) -> dict[str, Any] | None:
        raise AssertionError(request_id)


class StoredResult(NoResults):
    """A `Results` that has the result."""

    async def wait(self, request_id: str, wait_s: float) -> dict[str, Any] | None:
        return dict(DOCUMENT)


def failing(kind: str) -> RedisCallError:
    return RedisCallError("redis:6379", "x", failures._KINDS[kind], ValueError(kind))


class Failing:
    """A `LiveLogReader` whose calls fail.

    Attributes:
        error: The error of all calls.
        may_follow: Whether following succeeds, and only reading fails.
    """

    def __init__(self, error: RedisCallError, *, may_follow: bool = False) -> None:
        self.error = error
        self.may_follow = may_follow

    async def read(self, request_id: str, after: str, wait_s: float) -> list[tuple[str, Record]]:
        raise self.error

    async def follow(self, request_id: str) -> Holder | None:
        if not self.may_follow:
            raise self.error
        return None

    async def result(self, request_id: str) -> bytes | None:
        return None


def results(fake: NoResults) -> Results:
    return cast("Results", fake)


async def claimed(store: MemoryResultStore) -> Claim:
    claim = await store.claim("r")
    assert isinstance(claim, Claim)
    return claim


@pytest.mark.parametrize(
    ("as_json", "wait_s", "named"),
    [(False, 60, []), (True, 60, ["--json"]), (False, 0, ["--wait 0"]), (True, 0, ["--json", "--wait 0"])],
)
def test_options_that_exclude_each_other_are_named(named: list[str], wait_s: float, *, as_json: bool):
    found = live.problems(as_json=as_json, wait_s=wait_s)
    assert len(found) == len(named)
    assert all(f"cannot be used with {name}" in problem for problem, name in zip(found, named, strict=True))


async def test_a_worker_that_takes_the_job_later_knows_the_follower(capfd: pytest.CaptureFixture[str]):
    store = MemoryResultStore()
    log = store.live_log(max_bytes=MIB)
    output = LiveOutput(log, "r")
    await output.announce()
    claim = await claimed(store)
    assert claim.followed
    await log.append(
        claim,
        [
            Record(Kind.STARTED, 1, claim.token, b"w"),
            Record(Kind.STDOUT, 1, 0, b"out"),
            Record(Kind.ENDED, 1, data=b"SUCCESS"),
        ],
    )
    await store.publish(claim, RESULT)
    found = await output.result(results(NoResults()), 20)
    assert found is not None
    output.show_end(found, 128)
    captured = capfd.readouterr()
    assert captured.out.startswith("out{")  # the fields of this document are not those of this version
    assert captured.out.count("out") == 1
    assert "no live output" not in captured.err
    assert "SUCCESS" not in captured.err


async def test_output_that_did_not_arrive_live_is_explained_once(capfd: pytest.CaptureFixture[str]):
    store = MemoryResultStore()
    claim = await claimed(store)
    await store.publish(claim, RESULT)
    output = LiveOutput(store.live_log(max_bytes=MIB), "r")
    assert await output.result(results(NoResults()), 20) is not None
    captured = capfd.readouterr()
    assert captured.out == "out"
    assert captured.err.count("no live output arrived") == 1


@pytest.mark.parametrize("may_follow", [False, True])
async def test_without_the_permission_the_output_of_the_result_is_printed(
    capfd: pytest.CaptureFixture[str], *, may_follow: bool
):
    output = LiveOutput(cast("Any", Failing(failing("NOPERM"), may_follow=may_follow)), "r")
    await output.announce()
    assert await output.result(results(StoredResult()), 20) == DOCUMENT
    assert output.since is None
    captured = capfd.readouterr()
    assert captured.out == "out"
    assert captured.err.count("this Redis user may not follow jobs") == 1


async def test_another_failure_of_redis_is_raised():
    output = LiveOutput(cast("Any", Failing(failing("refused"))), "r")
    with pytest.raises(RedisCallError, match="refuses connections"):
        await output.announce()
    with pytest.raises(RedisCallError, match="refuses connections"):
        await output.result(results(NoResults()), 20)


async def test_after_the_wait_there_is_a_position_to_continue_at(capfd: pytest.CaptureFixture[str]):
    store = MemoryResultStore()
    log = store.live_log(max_bytes=MIB)
    output = LiveOutput(log, "r")
    await output.announce()
    assert output.since == ""
    assert await output.result(results(NoResults()), 0.2) is None
    assert capfd.readouterr().err == "nanoagent: no worker has received r yet\n"
    claim = await claimed(store)
    await log.append(claim, [Record(Kind.STARTED, 1, claim.token, b"w"), Record(Kind.STDOUT, 1, 0, b"ou")])
    assert await output.result(results(NoResults()), 0.2) is None
    assert output.since is not None
    assert output.since.endswith(f".{claim.token}.2.0")
    assert capfd.readouterr().out == "ou"


async def test_the_result_is_awaited_although_nobody_reads_the_output(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def write(descriptor: int, data: bytes) -> int:
        raise BrokenPipeError

    store = MemoryResultStore()
    claim = await claimed(store)
    await store.publish(claim, RESULT)
    output = LiveOutput(store.live_log(max_bytes=MIB), "r")
    monkeypatch.setattr("os.write", write)
    async with asyncio.timeout(20):
        assert await output.result(results(NoResults()), 20) is not None
