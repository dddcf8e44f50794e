"""What a drain decides: what it waits for, what it gives back and when, and what it says of that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from nanoagent.model.result import ErrorType
from nanoagent.worker import drain as drain_module
from support.agents.worker_rig import Rig, name_of
from support.doubles.fakes import DEADLINE_S, finished, make_job, message

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nanoagent.jobs.attempt import Attempt
    from nanoagent.model.result import Result

HOUR_S = 3600


@pytest.fixture
def make_rig(tmp_path: Path) -> Callable[..., Rig]:
    def make(**changes: Any) -> Rig:
        return Rig(tmp_path, **({"drain_seconds": 60} | changes))

    return make


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


def given_back(rig: Rig, reason: str) -> float:
    labels = {"reason": reason}
    return rig.metrics.registry.get_sample_value("worker_drain_given_back_total", labels) or 0.0


def remember(rig: Rig, *durations_s: float, **job: Any) -> None:
    for duration_s in durations_s:
        rig.worker._durations.add(make_job(**job), duration_s)


async def ended(run: asyncio.Task[None]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await run


async def until_running(rig: Rig, *names: str, **fields: Any) -> asyncio.Task[None]:
    """Start the worker with jobs that run until their gates are opened; each is its own function."""
    for name in names:
        await rig.broker.send(message(name, functionId=name, **fields))
    run = rig.start()
    await rig.journal.until_noted("running", times=len(names))
    return run


# --- readiness


async def test_readiness_says_at_once_that_it_drains_and_why(rig: Rig):
    rig.health.set("queue", ok=True)
    rig.hold("r1")
    run = await until_running(rig, "r1")
    assert "drain" not in rig.health.document()["parts"]
    rig.worker.stop()
    part = rig.health.document()["parts"]["drain"]
    assert (rig.health.ready, part["ok"]) == (False, False)
    assert part["reason"] == "draining: a stop was requested"
    rig.worker.stop()
    await ended(run)


async def test_work_in_the_background_ends_at_the_beginning_of_a_drain(rig: Rig):
    rig.hold("r1")
    run = await until_running(rig, "r1")
    assert rig.journal.count("drain") == 0
    rig.worker.stop()
    assert rig.journal.count("drain") == 1
    rig.worker.stop()
    await ended(run)


# --- by history


async def test_a_job_that_cannot_finish_as_its_kind_goes_is_given_back_at_once_and_others_are_waited_for(
    rig: Rig,
):
    gates = {name: rig.hold(name) for name in ("long", "short")}
    remember(rig, *[HOUR_S] * 3, function_id="long")
    remember(rig, *[1.0] * 3, function_id="short")
    run = await until_running(rig, *gates)
    rig.worker.stop()
    await rig.journal.until_noted("give back", "long")
    (elsewhere,) = await rig.broker.receive(10)
    assert name_of(elsewhere) == "long"
    assert not run.done()
    gates["short"].set()
    await ended(run)
    assert [name_of(delivery) for delivery in rig.broker.acked] == ["short"]
    assert given_back(rig, "too_long") == 1
    assert rig.processed("interrupted") == 1
    assert rig.sample("worker_attempts_failed_total") == 0


async def test_a_job_of_a_kind_that_is_not_known_is_waited_for(rig: Rig):
    gate = rig.hold("r1")
    remember(rig, *[HOUR_S] * 3, function_id="r1", memory_mb=256)
    run = await until_running(rig, "r1")
    rig.worker.stop()
    await _some_turns()
    assert not run.done()
    gate.set()
    await ended(run)
    assert len(rig.broker.acked) == 1


async def test_a_job_whose_own_time_is_over_before_is_waited_for(rig: Rig):
    gate = rig.hold("r1")
    remember(rig, *[HOUR_S] * 3, function_id="r1")
    run = await until_running(rig, "r1", timeoutMs=1000)
    rig.worker.stop()
    await _some_turns()
    assert not run.done()
    gate.set()
    await ended(run)
    assert len(rig.broker.acked) == 1


async def test_a_job_that_shows_to_be_of_the_long_kind_is_given_back_then(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(drain_module, "_REVIEW_S", 0.01)
    rig.hold("r1")
    remember(rig, *[DEADLINE_S + 1.0] * 5, *[HOUR_S] * 5, function_id="r1")
    run = await until_running(rig, "r1")
    rig.worker.stop()
    await _some_turns()
    assert rig.broker.returned == []
    (held,) = rig.worker._in_flight
    assert held.state.running_since is not None
    held.state.running_since -= DEADLINE_S + 2.0
    await ended(run)
    assert given_back(rig, "too_long") == 1


async def test_what_a_worker_knows_of_a_kind_are_its_own_jobs(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    async def played(attempt: Attempt) -> Result:
        async with rig.executor.running(attempt):
            # As if it had got its slot an hour ago.
            (held,) = rig.worker._in_flight
            assert held.state.running_since is not None
            held.state.running_since -= HOUR_S
        return finished(attempt)

    for number in range(3):
        rig.executor.scripts[f"r{number}"] = played
        await rig.broker.send(message(f"r{number}"))
        if number == 0:
            run = rig.start()
        await rig.until_settled(number + 1)
        await rig.journal.until(lambda: not rig.worker._in_flight)
    known = rig.worker._durations.of(make_job())
    assert len(known) == 3
    assert all(HOUR_S <= duration < HOUR_S + DEADLINE_S for duration in known)
    rig.hold("r3")
    await rig.broker.send(message("r3"))
    await rig.journal.until_noted("running", "r3")
    rig.worker.stop()
    await ended(run)
    assert given_back(rig, "too_long") == 1


async def test_what_never_ran_or_was_called_off_teaches_nothing(rig: Rig):
    async def refused(attempt: Attempt) -> Result:
        return finished(attempt, ErrorType.INVALID_CODE, "no zip")

    async def cancelled(attempt: Attempt) -> Result:
        async with rig.executor.running(attempt):
            return finished(attempt, ErrorType.CANCELLED, "the run was called off")

    rig.executor.scripts |= {"r1": refused, "r2": cancelled}
    await rig.broker.send(message("r1"))
    await rig.broker.send(message("r2"))
    async with rig.running():
        await rig.until_settled(2)
    assert rig.worker._durations.of(make_job()) == ()


# --- how long


async def test_a_notice_leaves_less_than_drain_seconds(rig: Rig):
    rig.hold("r1")
    run = await until_running(rig, "r1")
    rig.worker.drain("the machine goes", 0)
    await ended(run)
    assert given_back(rig, "time_up") == 1
    assert rig.health.document()["parts"]["drain"]["reason"] == "draining: the machine goes"


async def test_a_notice_during_a_drain_brings_its_end_nearer_and_none_puts_it_off(rig: Rig):
    rig.hold("r1")
    run = await until_running(rig, "r1")
    rig.worker.drain("an end that is far", None)
    rig.worker.drain("an end that is near", 5)
    near = rig.worker._lifecycle.drained_by
    rig.worker.drain("an end that is far again", 50)
    assert rig.worker._lifecycle.drained_by == near
    rig.worker.drain("now", 0)
    await ended(run)
    assert given_back(rig, "time_up") == 1


async def test_a_notice_leaves_no_more_than_drain_seconds(make_rig: Callable[..., Rig]):
    rig = make_rig(drain_seconds=0)
    rig.hold("r1")
    run = await until_running(rig, "r1")
    rig.worker.drain("tomorrow", 86_400)
    await ended(run)
    assert given_back(rig, "time_up") == 1


async def test_the_first_signal_after_a_notice_does_not_hurry_and_the_second_does(rig: Rig):
    rig.hold("r1")
    run = await until_running(rig, "r1")
    rig.worker.drain("the machine goes", None)
    rig.worker.stop()
    await _some_turns()
    assert not run.done()
    rig.worker.stop()
    await ended(run)
    assert given_back(rig, "hurried") == 1


async def test_what_cannot_be_given_back_does_not_keep_the_worker_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(drain_module, "DRAIN_TAIL_S", 0.05)
    rig.hold("r1")
    rig.broker.gates["nack"] = asyncio.Event()
    run = await until_running(rig, "r1")
    with capture_logs() as logs:
        rig.worker.stop()
        rig.worker.stop()
        await ended(run)
    assert [entry["jobs"] for entry in logs if entry["log_level"] == "error"] == [1]
    rig.broker.gates["nack"].set()
    await rig.journal.until_noted("give back", "r1")


# --- what has run


def uploading(rig: Rig) -> asyncio.Event:
    """A job whose program is over, and whose outputs are on their way until the event is set."""
    uploaded = asyncio.Event()

    async def script(attempt: Attempt) -> Result:
        async with rig.executor.running(attempt):
            attempt.control.has_ended = True
        rig.journal.note("uploading")
        await uploaded.wait()
        return finished(attempt)

    rig.executor.scripts["r1"] = script
    return uploaded


async def test_a_job_that_has_run_is_not_given_up_for_what_others_of_its_kind_take(rig: Rig):
    uploaded = uploading(rig)
    remember(rig, *[HOUR_S] * 3, function_id="f")
    await rig.broker.send(message("r1"))
    run = rig.start()
    await rig.journal.until_noted("uploading")
    rig.worker.stop()
    await _some_turns()
    uploaded.set()
    await ended(run)
    assert len(rig.broker.acked) == 1


@pytest.mark.parametrize("hurried", [False, True])
async def test_a_job_that_has_run_when_time_is_up_is_still_uploaded(
    make_rig: Callable[..., Rig], *, hurried: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(drain_module, "DRAIN_TAIL_S", 2.0 * DEADLINE_S)
    rig = make_rig(drain_seconds=60 if hurried else 0)
    uploaded = uploading(rig)
    await rig.broker.send(message("r1"))
    run = rig.start()
    await rig.journal.until_noted("uploading")
    rig.worker.stop()
    if hurried:
        rig.worker.stop()
    await _some_turns()
    uploaded.set()
    await ended(run)
    assert len(rig.broker.acked) == 1


async def test_an_upload_does_not_keep_a_worker_for_ever(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(drain_module, "DRAIN_TAIL_S", 0.1)
    monkeypatch.setattr(drain_module, "_REVIEW_S", 0.01)
    rig = make_rig(drain_seconds=0)
    uploading(rig)
    await rig.broker.send(message("r1"))
    run = rig.start()
    await rig.journal.until_noted("uploading")
    rig.worker.stop()
    await ended(run)
    assert given_back(rig, "time_up") == 1
    await rig.journal.until_noted("give back", "r1")


# --- what does not run


async def test_what_waits_is_counted_as_such_and_so_is_what_the_last_poll_brings(rig: Rig):
    gate = rig.hold("r1")

    async def building(attempt: Attempt) -> Result:
        await asyncio.Event().wait()
        raise AssertionError

    rig.executor.scripts["r2"] = building
    await rig.broker.send(message("r1"))
    await rig.broker.send(message("r2"))
    run = rig.start()
    await rig.journal.until_noted("running", "r1")
    await rig.journal.until_noted("execute", "r2")
    with capture_logs() as logs:
        rig.worker.stop()
        await rig.journal.until_noted("give back", "r2")
        gate.set()
        await ended(run)
    assert [delay_s for _, delay_s in rig.broker.returned] == [0]
    assert given_back(rig, "waiting") == 1
    (told,) = [entry for entry in logs if entry["event"] == "drained"]
    assert (told["jobs"], told["returned"]) == (2, {"waiting": 1})


async def test_what_the_last_poll_brings_is_counted_as_waiting(rig: Rig):
    run = rig.start()
    await rig.journal.until_noted("receive?")
    rig.worker.stop()
    await rig.broker.send(message("r1"))
    await ended(run)
    assert given_back(rig, "waiting") == 1
    assert rig.journal.count("execute") == 0


async def test_a_twin_comes_back_when_what_it_waits_for_has_to_be_over(rig: Rig):
    gate = rig.hold("r1")
    for _ in range(2):
        await rig.broker.send(message("r1"))
    run = rig.start()
    await rig.journal.until_noted("running", "r1")
    await rig.journal.until_noted("delivered", times=2)
    await _some_turns()
    rig.worker.drain("the machine goes", 7)
    await rig.journal.until_noted("give back", "r1")
    gate.set()
    await rig.until_settled()
    rig.worker.drain("now", 0)  # for the long poll
    await ended(run)
    ((_, delay_s),) = rig.broker.returned
    assert 0 < delay_s <= 7


async def _some_turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
