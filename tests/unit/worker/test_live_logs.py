"""The worker's side of live logs, on a store in memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from nanoagent.common.units import MIB
from nanoagent.jobs.attempt import Attempt
from nanoagent.model.errors import ProtocolError
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType, Result, Status
from nanoagent.results.base import Claim
from nanoagent.results.live_log import BEGINNING, FOLLOWER_LEASE_S, Kind, Record
from nanoagent.results.memory import MemoryLiveLog, MemoryResultStore
from nanoagent.supervisor import wire
from nanoagent.worker import live_logs
from nanoagent.worker.live_logs import FollowedAttempt, LiveLogs, Policy
from support.doubles.fakes import DEADLINE_S, make_job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from nanoagent.results.live_log import Appended

STARTED = Record(Kind.STARTED, 1, 1, b"w")  # 1 is the first token of a store in memory
SUCCESS = Record(Kind.ENDED, 1, data=b"SUCCESS")


class CountingLog:
    """A live log that notes each batch, and can be slow or down."""

    def __init__(self, log: MemoryLiveLog) -> None:
        self._log = log
        self.batches: list[list[Record]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def append(self, claim: Claim, records: Sequence[Record]) -> Appended:
        await self.open.wait()
        answer = await self._log.append(claim, records)
        self.batches.append(list(records))
        return answer


@dataclass
class Setup:
    """A worker's live logs, and a job whose program runs."""

    now: list[float] = field(default_factory=lambda: [0.0])
    switched: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = MemoryResultStore(clock=lambda: self.now[0])
        self.reader = self.store.live_log(max_bytes=10 * MIB)
        self.log = CountingLog(self.reader)

    def logs(self, **changes: Any) -> LiveLogs:
        policy = Policy(is_on=True, is_always=False, bytes_per_s=MIB, max_jobs=2, worker_id="w")
        return LiveLogs(self.log, replace(policy, **changes))

    async def attempt(self, logs: LiveLogs, request_id: str = "r") -> tuple[FollowedAttempt, Attempt]:
        claim = await self.store.claim(request_id)
        assert isinstance(claim, Claim)
        attempt = Attempt(make_job(request_id=request_id), 1)
        attempt.control.switch = self.switched.append
        return logs.open(claim, attempt), attempt

    async def records(self, request_id: str = "r") -> list[Record]:
        return [record for _, record in await self.reader.read(request_id, BEGINNING, 0)]

    async def until(self, condition: Callable[[list[Record]], object], request_id: str = "r") -> list[Record]:
        async with asyncio.timeout(DEADLINE_S):
            while not condition(records := await self.records(request_id)):  # noqa: ASYNC110 - as below
                await asyncio.sleep(0.01)
        return records

    async def until_switched(self, *switched: bool) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while self.switched != list(switched):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)


@asynccontextmanager
async def followed(setup: Setup, **changes: Any) -> AsyncIterator[tuple[FollowedAttempt, Attempt]]:
    logs = setup.logs(**changes)
    await setup.reader.follow("r")
    of_job, attempt = await setup.attempt(logs)
    of_job.follow()
    yield of_job, attempt
    of_job.end(None)
    await logs.close()


def result(error_type: ErrorType | None = None) -> Result:
    status = Status.SUCCESS if error_type is None else Status.FAILED
    return Result(
        request_id="r",
        function_id="f",
        runtime=Runtime.PYTHON,
        status=status,
        exit_code=int(error_type is not None),
        error_type=error_type,
        error_message=None if error_type is None else "failed",
    )


async def test_a_follower_sees_the_start_the_output_and_the_end():
    setup = Setup()
    async with followed(setup) as (of_job, attempt):
        assert setup.switched == [True]
        attempt.control.take_output(wire.STDOUT, 0, b"one\n")
        attempt.control.take_output(wire.STDERR, 0, b"oops\n")
        attempt.control.take_output(wire.STDOUT, 4, b"two\n")
        of_job.end(result())
        records = await setup.until(lambda records: SUCCESS in records)
    assert records == [
        STARTED,
        Record(Kind.STDOUT, 1, 0, b"one\n"),
        Record(Kind.STDERR, 1, 0, b"oops\n"),
        Record(Kind.STDOUT, 1, 4, b"two\n"),
        SUCCESS,
    ]


async def test_small_pieces_are_stored_together():
    setup = Setup()
    setup.log.open.clear()
    async with followed(setup) as (of_job, attempt):
        for n in range(1000):
            attempt.control.take_output(wire.STDOUT, n, b"x")
        setup.log.open.set()
        of_job.end(result())
        records = await setup.until(lambda records: SUCCESS in records)
    assert records == [STARTED, Record(Kind.STDOUT, 1, 0, b"x" * 1000), SUCCESS]


async def test_batches_are_at_least_50_ms_apart(monkeypatch: pytest.MonkeyPatch):
    setup = Setup()
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", noted)
    async with followed(setup) as (_, attempt):
        for n in range(5):
            attempt.control.take_output(wire.STDOUT, n, b"x")
            async with asyncio.timeout(DEADLINE_S):
                while not setup.log.batches or setup.log.batches[-1][-1] != Record(Kind.STDOUT, 1, n, b"x"):
                    await sleep(0.005)
    assert [pause for pause in pauses if pause > 0.04]
    assert len(setup.log.batches) >= 5


async def test_output_that_does_not_fit_into_the_buffer_is_a_gap(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live_logs, "_MAX_BUFFER_BYTES", 10)
    setup = Setup()
    setup.log.open.clear()  # Redis does not answer
    async with followed(setup) as (of_job, attempt):
        await asyncio.sleep(0)  # the task has taken its first batch
        attempt.control.take_output(wire.STDOUT, 0, b"12345")
        attempt.control.take_output(wire.STDOUT, 5, b"is too much")
        attempt.control.take_output(wire.STDERR, 0, b"too")
        attempt.control.take_output(wire.STDOUT, 16, b"is too much")
        setup.log.open.set()
        of_job.end(result())
        records = await setup.until(lambda records: SUCCESS in records)
    assert records == [
        STARTED,
        Record(Kind.STDOUT, 1, 0, b"12345"),
        Record(Kind.STDERR, 1, 0, b"too"),
        Record(Kind.STDOUT, 1, 27),  # where the stream has ended
        SUCCESS,
    ]


async def test_a_job_ends_while_redis_is_down_and_the_log_says_so_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live_logs, "_RETRY_S", 0.01)
    setup = Setup()
    setup.store.down = True
    with capture_logs() as entries:
        logs = setup.logs()
        setup.store.down = False
        of_job, attempt = await setup.attempt(logs)
        setup.store.down = True
        of_job.follow()
        for n in range(3):
            attempt.control.take_output(wire.STDOUT, n, b"x")
            await asyncio.sleep(0.03)
        of_job.end(result())
        await logs.close()
    assert [entry["event"] for entry in entries] == ["live output not stored"]


async def test_after_an_outage_the_start_and_the_later_output_are_stored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live_logs, "_RETRY_S", 0.01)
    setup = Setup()
    async with followed(setup) as (of_job, attempt):
        setup.store.down = True
        attempt.control.take_output(wire.STDOUT, 0, b"lost")
        await asyncio.sleep(0.05)
        setup.store.down = False
        attempt.control.take_output(wire.STDOUT, 4, b"kept")
        of_job.end(result())
        records = await setup.until(lambda records: SUCCESS in records)
    assert records == [STARTED, Record(Kind.STDOUT, 1, 4, b"kept"), SUCCESS]


async def test_storing_stops_when_nobody_follows_and_begins_again_with_the_next_follower():
    setup = Setup()
    async with followed(setup) as (of_job, attempt):
        await setup.until(lambda records: records == [STARTED])
        setup.now[0] += FOLLOWER_LEASE_S + 1
        attempt.control.take_output(wire.STDOUT, 0, b"last")
        await setup.until_switched(True, False)
        await setup.reader.follow("r")
        of_job.follow()
        assert setup.switched == [True, False, True]
        attempt.control.take_output(wire.STDOUT, 100, b"more")
        of_job.end(result(ErrorType.USER_ERROR))
        records = await setup.until(lambda records: records[-1].kind is Kind.ENDED)
    outputs = [record for record in records if record.kind is Kind.STDOUT]
    assert outputs == [Record(Kind.STDOUT, 1, 0, b"last"), Record(Kind.STDOUT, 1, 100, b"more")]
    assert [record.kind for record in records].count(Kind.STARTED) == 1
    assert records[-1].data == b"FAILED"


async def test_with_always_nobody_needs_to_follow():
    setup = Setup()
    logs = setup.logs(is_always=True)
    assert logs.is_always
    of_job, attempt = await setup.attempt(logs)
    of_job.follow()
    await setup.until(lambda records: records == [STARTED])
    attempt.control.take_output(wire.STDOUT, 0, b"x")
    await setup.until(lambda records: len(records) == 2)
    assert setup.switched == [True]
    of_job.end(result())
    await setup.until(lambda records: SUCCESS in records)


async def test_an_attempt_without_a_result_ends_without_a_status():
    setup = Setup()
    async with followed(setup) as (of_job, _):
        of_job.end(None)
        records = await setup.until(lambda records: len(records) == 2)
    assert records == [STARTED, Record(Kind.ENDED, 1)]


async def test_a_worker_whose_claim_is_lost_stores_nothing_more():
    setup = Setup()
    async with followed(setup) as (of_job, attempt):
        await setup.until(lambda records: records == [STARTED])
        setup.store.lapse("r")
        assert isinstance(await setup.store.beside().claim("r"), Claim)
        attempt.control.take_output(wire.STDOUT, 0, b"late")
        await setup.until_switched(True, False)
        of_job.follow()
        of_job.end(result())
        assert setup.switched == [True, False]
    assert await setup.records() == [STARTED]


async def test_more_jobs_than_the_limit_are_refused_until_one_ends():
    setup = Setup()
    logs = setup.logs(max_jobs=1)
    for request_id in ("r", "s"):
        await setup.reader.follow(request_id)
    first, _ = await setup.attempt(logs)
    second, attempt = await setup.attempt(logs, "s")
    first.follow()
    second.follow()
    second.follow()  # the follower has renewed its lease
    await setup.until(lambda records: records == [Record(Kind.REFUSED, 1, data=b"w")], "s")
    first.end(result())
    second.follow()
    attempt.control.take_output(wire.STDOUT, 0, b"x")
    second.end(result())
    records = await setup.until(lambda records: SUCCESS in records, "s")
    assert [record.kind for record in records] == [Kind.REFUSED, Kind.STARTED, Kind.STDOUT, Kind.ENDED]
    await logs.close()


async def test_a_supervisor_that_sends_too_much_or_repeats_output_is_refused():
    setup = Setup()
    async with followed(setup) as (_, attempt):
        attempt.control.take_output(wire.STDOUT, 0, b"1234")
        with pytest.raises(ProtocolError, match="twice"):
            attempt.control.take_output(wire.STDOUT, 3, b"4")

        def flood() -> None:
            for n in range(200):
                attempt.control.take_output(wire.STDERR, n * 64 * 1024, b"x" * 64 * 1024)

        with pytest.raises(ProtocolError, match="more output than it was allowed"):
            flood()
