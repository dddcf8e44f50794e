from __future__ import annotations

import asyncio
import json
import re
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nanoagent.jobs.admission_rules import MAX_OVERTAKEN
from nanoagent.model.errors import (
    BrokerError,
    PlatformError,
    ResultStoreError,
    ReturnToQueue,
    StorageError,
    Superseded,
)
from nanoagent.model.job import Runtime
from nanoagent.model.result import OUTCOMES, ErrorType, Result, Status, hint_for
from nanoagent.results.base import Claim
from nanoagent.worker import answer, capacity, intake, retry
from nanoagent.worker.inflight import InFlight
from nanoagent.worker.retry import retry_delay_s, taken_delay_s
from support.agents.worker_rig import Rig, name_of
from support.doubles.fakes import (
    DEADLINE_S,
    finished,
    message,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nanoagent.jobs.attempt import Attempt
    from nanoagent.results.memory import MemoryResultStore

UNHURRIED = hypothesis_settings(deadline=None)  # the machine is shared


@pytest.fixture
def make_rig(tmp_path: Path) -> Callable[..., Rig]:
    def make(**changes: Any) -> Rig:
        return Rig(tmp_path, **changes)

    return make


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


def raising(exception: Exception) -> Callable[[Attempt], Any]:
    async def script(attempt: Attempt) -> Result:
        raise exception

    return script


# --- the good way


async def test_a_result_is_published_before_its_message_is_deleted(rig: Rig):
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert rig.journal.of("execute", "publish", "ack?", "ack") == [
        ("execute", "r1"),
        ("publish", "r1"),
        ("ack?", message("r1")),
        ("ack", "r1"),
    ]
    (result,) = rig.documents()
    assert (result.request_id, result.status) == ("r1", Status.SUCCESS)


async def test_a_job_that_succeeded_is_counted_everywhere(rig: Rig):
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert rig.processed("success") == 1
    labels = {"runtime": "python", "model": "llama3:8b"}
    assert rig.metrics.registry.get_sample_value("worker_job_duration_seconds_sum", labels) == 0.05
    assert rig.metrics.registry.get_sample_value("worker_job_duration_seconds_count", labels) == 1
    assert rig.sample("worker_active_jobs") == 0
    assert rig.sample("worker_attempts_failed_total") == 0
    assert rig.cloudwatch.recorded == [("f", "python", 1024 * 1024)]


async def test_a_job_is_active_while_it_runs(rig: Rig):
    gate = rig.hold("r1")
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("running", "r1")
        assert rig.sample("worker_active_jobs") == 1
        gate.set()
        await rig.until_settled()


@pytest.mark.parametrize(
    "error_type", [outcome.error_type for outcome in OUTCOMES.values() if outcome.settle == "deleted"]
)
async def test_every_ending_that_the_table_acknowledges_is_published_acked_and_counted(
    rig: Rig, error_type: ErrorType | None
):
    async def script(attempt: Attempt) -> Result:
        return finished(attempt, error_type, "what happened" if error_type else None)

    rig.executor.scripts["r1"] = script
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert [name_of(delivery) for delivery in rig.broker.acked] == ["r1"]
    assert rig.documents()[0].error_type == error_type
    assert rig.processed(OUTCOMES[error_type].label) == 1


async def test_the_attempt_says_how_many_have_failed_and_not_how_often_the_message_was_handed_out(rig: Rig):
    await rig.broker.send(message("r1"))
    for _ in range(3):
        (earlier,) = await rig.broker.receive(1)
        await rig.broker.nack(earlier, 0)
    rig.executor.scripts["r1"] = raising(PlatformError("once"))
    async with rig.running():
        await rig.journal.until_noted("failed?", "r1")
        del rig.executor.scripts["r1"]
        await rig.until_settled()
    assert rig.documents()[0].attempt == 2


# --- the same request again


async def test_a_request_whose_result_is_stored_is_published_again_and_not_run(rig: Rig):
    await rig.result_store.answer("r1", b'{"the":"first"}')
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert rig.journal.count("execute") == 0
    assert rig.result_store.published == [("r1", b'{"the":"first"}')] * 2
    assert rig.journal.of("publish", "answered", "ack") == [("answered", "r1"), ("ack", "r1")]
    assert rig.processed("success") == 0


async def test_two_deliveries_of_one_request_at_once_run_once(rig: Rig):
    gate = rig.hold("r1")
    for _ in range(2):
        await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("running", "r1")
        await rig.journal.until_noted("delivered", times=2)
        gate.set()
        await rig.until_settled(2)
    assert rig.journal.count("execute") == 1
    first, second = rig.result_store.published
    assert first == second
    assert len(rig.broker.acked) == 2


async def test_a_second_delivery_runs_when_the_first_attempt_failed(rig: Rig):
    attempts = 0
    both_here = asyncio.Event()

    async def script(attempt: Attempt) -> Result:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await both_here.wait()
            raise PlatformError("the first fails")
        return finished(attempt)

    rig.executor.scripts["r1"] = script
    for _ in range(2):
        await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("delivered", times=2)
        both_here.set()
        await rig.until_settled(2)
    assert attempts == 2
    assert [result.status for result in rig.documents()] == [Status.SUCCESS] * 2


# --- leases that are lost


async def lose(rig: Rig) -> None:
    (delivery,) = rig.broker._held
    rig.broker.lose(delivery)


async def test_a_run_whose_lease_is_lost_is_stopped_and_tells_nobody_anything(rig: Rig):
    stopped = asyncio.Event()

    async def script(attempt: Attempt) -> Result:
        async with rig.executor.running(attempt):
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
        raise AssertionError

    rig.executor.scripts["r1"] = script
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("running", "r1")
        rig.executor.scripts.clear()
        await lose(rig)
        await stopped.wait()
        await rig.until_settled()  # whoever gets it then: here it is the same worker
    assert rig.broker.returned == []
    assert [delivery.receive_count for delivery in rig.broker.acked] == [2]
    assert len(rig.result_store.published) == 1
    assert rig.documents()[0].attempt == 1
    assert rig.sample("worker_leases_lost_total") == 1
    assert rig.processed("interrupted") == 1
    assert rig.result_store.failures == {}  # no attempt


async def test_a_lease_lost_in_the_turn_in_which_the_run_ends_publishes_nothing(rig: Rig):
    runs = 0

    async def script(attempt: Attempt) -> Result:
        nonlocal runs
        runs += 1
        if runs == 1:
            await lose(rig)
        return finished(attempt)

    rig.executor.scripts["r1"] = script
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert len(rig.result_store.published) == 1
    assert rig.documents()[0].attempt == 1


async def test_an_attempt_that_fails_after_its_lease_was_lost_is_not_counted_nor_given_up(
    make_rig: Callable[..., Rig],
):
    rig = make_rig(max_attempts=1)
    runs = 0

    async def script(attempt: Attempt) -> Result:
        nonlocal runs
        runs += 1
        if runs == 1:
            await lose(rig)
            raise PlatformError("and S3 is unavailable")
        return finished(attempt)

    rig.executor.scripts["r1"] = script
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert rig.broker.dead_lettered == []
    assert rig.result_store.failures == {}
    assert [result.status for result in rig.documents()] == [Status.SUCCESS]


# --- claims


def another(rig: Rig) -> MemoryResultStore:
    """Another worker's result_store."""
    return rig.result_store.beside()


async def taken_by(result_store: MemoryResultStore, request_id: str = "r1") -> Claim:
    claim = await result_store.claim(request_id)
    assert isinstance(claim, Claim)
    return claim


async def test_a_request_that_another_worker_is_working_on_goes_back_uncounted(rig: Rig):
    claim = await taken_by(other := another(rig))
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("give back", "r1")
    assert rig.journal.count("execute") == 0
    assert [delay_s for _, delay_s in rig.broker.returned] == [60]
    assert rig.result_store.failures == {}
    assert rig.processed("interrupted") == 1
    assert await other.publish(claim, b"the other's")


async def test_a_claim_is_let_go_when_an_attempt_fails_so_that_any_worker_can_try(rig: Rig):
    rig.executor.scripts["r1"] = raising(PlatformError("once"))
    rig.broker.gates["nack"] = asyncio.Event()
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("nack?", message("r1"))
        other = another(rig)
        await other.release(await taken_by(other))
        del rig.executor.scripts["r1"]
        rig.broker.gates["nack"].set()
        await rig.until_settled()
    assert [result.status for result in rig.documents()] == [Status.SUCCESS]


async def test_a_claim_is_let_go_by_a_drain(make_rig: Callable[..., Rig]):
    rig = make_rig(drain_seconds=0)
    rig.hold("r1")
    await rig.broker.send(message("r1"))
    run = rig.start()
    await rig.journal.until_noted("running", "r1")
    rig.worker.stop()
    async with asyncio.timeout(DEADLINE_S):
        await run
    await taken_by(another(rig))


async def test_a_run_whose_claim_is_taken_over_is_stopped_and_tells_nobody_anything(rig: Rig):
    stopped = asyncio.Event()

    async def script(attempt: Attempt) -> Result:
        async with rig.executor.running(attempt):
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
        raise AssertionError

    rig.executor.scripts["r1"] = script
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("running", "r1")
        rig.result_store.lapse("r1")
        claim = await taken_by(other := another(rig))
        async with asyncio.timeout(DEADLINE_S):
            await stopped.wait()
        await rig.journal.until_noted("give back", "r1")
        assert await other.publish(claim, b"the other's")
    assert rig.result_store.published == [("r1", b"the other's")]
    assert [delay_s for _, delay_s in rig.broker.returned] == [60]
    assert rig.sample("worker_claims_lost_total") == 1
    assert rig.processed("interrupted") == 1
    assert rig.result_store.failures == {}


async def test_a_result_that_comes_after_a_take_over_is_refused_and_given_back(rig: Rig):
    async def script(attempt: Attempt) -> Result:
        held = rig.result_store._store.claims["r1"].claim
        rig.result_store.lapse("r1")
        await taken_by(another(rig))
        # As if nobody had told us yet: what refuses it is the store.
        rig.result_store._store.claims["r1"].claim = Claim("r1", held.token + 1)
        object.__setattr__(held, "lost", asyncio.get_running_loop().create_future())
        return finished(attempt)

    rig.executor.scripts["r1"] = script
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("give back", "r1")
    assert rig.journal.count("refuse") == 1
    assert rig.result_store.published == []
    assert rig.broker.acked == []
    assert rig.result_store.failures == {"r1": 1}  # its hanging is what counts, once
    assert rig.processed("success") == 0


async def test_outputs_that_a_later_attempt_has_written_end_an_attempt_that_nobody_counts(rig: Rig):
    rig.executor.scripts["r1"] = raising(Superseded("a later attempt has written it"))
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("give back", "r1")
    assert rig.result_store.published == []
    assert rig.result_store.failures == {}
    assert rig.sample("worker_claims_lost_total") == 1


async def test_an_attempt_writes_under_its_claims_token(rig: Rig):
    fences: list[int] = []

    async def script(attempt: Attempt) -> Result:
        fences.append(attempt.fencing_token)
        if len(fences) == 1:
            raise PlatformError("once")
        return finished(attempt)

    rig.executor.scripts["r1"] = script
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert 0 < fences[0] < fences[1]


async def test_an_invalid_job_does_not_answer_a_running_job_with_the_same_request_id(rig: Rig):
    gate = rig.hold("r1")
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("running", "r1")
        await rig.broker.send(message("r1", memoryMb="much"))
        await rig.journal.until_noted("delivered", message("r1", memoryMb="much"))
        gate.set()
        await rig.until_settled(2)
    assert {result.error_type for result in rig.documents()} == {None}


async def test_an_invalid_job_whose_claim_is_lost_before_it_is_told_is_given_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    async def lose_claim(_: Result, fencing_token: int) -> bytes:
        rig.result_store.lapse("r1")
        await taken_by(another(rig))
        return b"{}"

    monkeypatch.setattr(rig.worker._parts.outputs, "document", lose_claim)
    await rig.broker.send(message("r1", memoryMb="much"))
    async with rig.running():
        await rig.journal.until_noted("give back", "r1")
    assert rig.result_store.published == []
    assert rig.broker.acked == []


async def test_an_invalid_job_under_a_name_that_another_worker_works_on_goes_back(rig: Rig):
    await taken_by(another(rig))
    await rig.broker.send(message("r1", memoryMb="much"))
    async with rig.running():
        await rig.journal.until_noted("give back", "r1")
    assert rig.result_store.published == []
    assert rig.processed("interrupted", model="other") == 1


# --- calling off


async def until_watched(rig: Rig, request_id: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not rig.result_store._store.watched.get(request_id):  # noqa: ASYNC110 - a turn of the loop
            await asyncio.sleep(0)


async def test_a_queued_job_that_is_called_off_never_runs(rig: Rig):
    whole = rig.admission.total
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("receive?")
        async with rig.admission.reserve(whole.memory_mb, whole.cpus):
            await rig.journal.until_noted("execute", "r1")
            assert rig.result_store.cancel("r1") == 1
            await rig.until_settled()
    assert rig.journal.count("running") == 0
    (result,) = rig.documents()
    assert (result.status, result.error_type) == (Status.FAILED, ErrorType.CANCELLED)
    assert len(rig.broker.acked) == 1
    assert rig.processed("cancelled") == 1
    assert rig.admission.waiting == 0


async def test_a_job_that_was_called_off_before_it_was_received_never_runs(rig: Rig):
    rig.result_store.cancel_ahead("r1")
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert rig.journal.count("execute") == 0
    assert [result.error_type for result in rig.documents()] == [ErrorType.CANCELLED]


def killable(rig: Rig, *, obeys: bool) -> asyncio.Event:
    """A run that ends when its program is killed, or not; the event says that it was."""
    killed = asyncio.Event()

    async def script(attempt: Attempt) -> Result:
        async with rig.executor.running(attempt):
            attempt.control.kill = killed.set
            rig.journal.note("killable")
            if not obeys:
                await asyncio.Event().wait()
            await killed.wait()
            attempt.control.kill = None
            attempt.control.has_ended = True
        result = finished(attempt, ErrorType.CANCELLED, "the run was called off")
        return msgspec.structs.replace(result, stdout="said before")

    rig.executor.scripts["r1"] = script
    return killed


async def test_a_running_job_that_is_called_off_is_killed_and_keeps_what_it_has_said(rig: Rig):
    killed = killable(rig, obeys=True)
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("killable")
        rig.result_store.cancel("r1")
        await rig.until_settled()
    assert killed.is_set()
    (result,) = rig.documents()
    assert (result.error_type, result.stdout) == (ErrorType.CANCELLED, "said before")
    assert rig.processed("cancelled") == 1


async def test_a_program_that_is_not_ended_by_being_called_off_is_given_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(answer, "_KILL_TIMEOUT_S", 0.001)
    killed = killable(rig, obeys=False)
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("killable")
        rig.result_store.cancel("r1")
        await rig.until_settled()
    assert killed.is_set()
    assert [result.error_type for result in rig.documents()] == [ErrorType.CANCELLED]
    assert rig.admission.used.memory_mb == 0


async def test_a_platform_fault_while_a_job_is_called_off_is_its_end_and_no_failure(rig: Rig):
    async def script(attempt: Attempt) -> Result:
        async with rig.executor.running(attempt):
            killed = asyncio.Event()
            attempt.control.kill = killed.set
            rig.journal.note("killable")
            await killed.wait()
            raise PlatformError("the container died")

    rig.executor.scripts["r1"] = script
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("killable")
        rig.result_store.cancel("r1")
        await rig.until_settled()
    assert [result.error_type for result in rig.documents()] == [ErrorType.CANCELLED]
    assert rig.result_store.failures == {}


@pytest.mark.parametrize("has_slot", [False, True], ids=["fetched or built", "given its container"])
async def test_a_job_that_is_called_off_while_it_is_prepared_never_runs(rig: Rig, *, has_slot: bool):
    async def prepared_for_ever(attempt: Attempt) -> Result:
        async with AsyncExitStack() as held:
            if has_slot:
                await held.enter_async_context(rig.executor.running(attempt))
            rig.journal.note("prepared")
            await asyncio.Event().wait()
        raise AssertionError

    rig.executor.scripts["r1"] = prepared_for_ever
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("prepared")
        assert rig.result_store.cancel("r1") == 1
        await rig.until_settled()
    assert [result.error_type for result in rig.documents()] == [ErrorType.CANCELLED]
    assert (len(rig.broker.acked), rig.admission.used.memory_mb) == (1, 0)
    assert rig.processed("cancelled") == 1


async def test_calling_off_what_has_ended_changes_nothing(rig: Rig):
    uploaded = asyncio.Event()

    async def script(attempt: Attempt) -> Result:
        async with rig.executor.running(attempt):
            attempt.control.has_ended = True
        rig.journal.note("ended")
        await uploaded.wait()
        return finished(attempt)

    rig.executor.scripts["r1"] = script
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("ended")
        assert rig.result_store.cancel("r1") == 1
        uploaded.set()
        await rig.until_settled()
        assert rig.result_store.cancel("r1") == 0
    assert [result.status for result in rig.documents()] == [Status.SUCCESS]
    assert rig.processed("cancelled") == 0


async def test_a_second_delivery_of_a_request_that_was_called_off_is_told_the_same(rig: Rig):
    killable(rig, obeys=True)
    for _ in range(2):
        await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("killable")
        await rig.journal.until_noted("delivered", times=2)
        rig.result_store.cancel("r1")
        await rig.until_settled(2)
    assert rig.journal.count("execute") == 1
    assert {result.error_type for result in rig.documents()} == {ErrorType.CANCELLED}


async def test_a_job_that_is_called_off_after_its_lease_was_lost_says_nothing(rig: Rig):
    killable(rig, obeys=False)
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("killable")
        del rig.executor.scripts["r1"]
        (delivery,) = rig.broker._held
        rig.result_store.cancel("r1")
        rig.broker.lose(delivery)
        await rig.until_settled()
    assert [(result.error_type, result.attempt) for result in rig.documents()] == [(None, 1)]


# --- our faults


async def test_an_attempt_that_fails_by_our_fault_is_given_back_with_growing_delay(
    make_rig: Callable[..., Rig],
):
    rig = make_rig(max_attempts=5)
    rig.executor.scripts["r1"] = raising(StorageError("S3 is unavailable"))
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert [delay_s for _, delay_s in rig.broker.returned] == [0.001, 0.002, 0.004, 0.004]
    assert [result.attempt for result in rig.documents()] == [5]
    assert rig.sample("worker_attempts_failed_total") == 5
    assert rig.processed("error") == 1


async def test_after_the_last_attempt_the_sender_is_told_and_the_message_buried(make_rig: Callable[..., Rig]):
    rig = make_rig(max_attempts=2)
    rig.executor.scripts["r1"] = raising(StorageError("S3 is unavailable"))
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    (result,) = rig.documents()
    assert (result.status, result.error_type) == (Status.FAILED, ErrorType.PLATFORM)
    assert result.error_message == "S3 is unavailable"
    ((buried, reason, _),) = rig.broker.dead_lettered
    assert (name_of(buried), reason) == ("r1", "S3 is unavailable")
    assert rig.journal.of("publish", "dead_letter", "ack") == [("publish", "r1"), ("dead_letter", "r1")]


async def test_without_a_dead_letter_queue_the_last_attempt_is_acked_and_logged_whole(
    make_rig: Callable[..., Rig],
):
    rig = make_rig(max_attempts=1, broker={"dead_letter_queue": False})
    rig.executor.scripts["r1"] = raising(PlatformError("Docker is unavailable"))
    body = message("r1", input={"some": "thing"})
    await rig.broker.send(body)
    with capture_logs() as logs:
        async with rig.running():
            await rig.until_settled()
    assert rig.journal.of("publish", "ack") == [("publish", "r1"), ("ack", "r1")]
    assert body in [entry.get("body") for entry in logs if entry["log_level"] == "error"]


async def test_a_bug_of_ours_counts_as_a_platform_failure_and_names_no_internals(
    make_rig: Callable[..., Rig],
):
    rig = make_rig(max_attempts=1)
    rig.executor.scripts["r1"] = raising(KeyError("secret detail"))
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    (result,) = rig.documents()
    assert result.error_type is ErrorType.PLATFORM
    assert result.error_message == "an error inside the worker: KeyError"
    assert rig.sample("worker_attempts_failed_total") == 1


async def test_a_job_that_recovers_after_a_failure_succeeds(rig: Rig):
    rig.executor.scripts["r1"] = raising(PlatformError("once"))
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("failed?", "r1")
        del rig.executor.scripts["r1"]
        await rig.until_settled()
    assert [result.status for result in rig.documents()] == [Status.SUCCESS]
    assert rig.broker.dead_lettered == []


def losing_redis(rig: Rig) -> Callable[[Attempt], Any]:
    """A run during which Redis goes away."""

    async def script(attempt: Attempt) -> Result:
        rig.result_store.down = True
        return finished(attempt)

    return script


def kept_in(rig: Rig) -> list[Path]:
    return [path for path in rig.spool_folder.glob("*") if not path.name.startswith(".")]


async def until_kept(rig: Rig) -> None:
    """A result is on disk, and Redis has refused it once more since."""
    await rig.journal.until(lambda: bool(kept_in(rig)) and rig.journal.count("publish?") >= 2)


async def test_a_result_that_redis_does_not_take_is_kept_and_its_message_acked_when_it_does(rig: Rig):
    rig.executor.scripts["r1"] = losing_redis(rig)
    await rig.broker.send(message("r1"))
    async with rig.running():
        await until_kept(rig)
        assert rig.broker.acked == []
        assert rig.broker.depth() == (0, 1, 0)  # the lease is kept
        assert rig.sample("worker_spooled_results") == 1
        rig.result_store.down = False
        await rig.until_settled()
    assert rig.journal.count("execute") == 1
    assert len(rig.result_store.published) == 1
    assert rig.broker.returned == []
    assert kept_in(rig) == []
    assert rig.processed("success") == 1
    assert rig.sample("worker_spooled_results") == 0


async def test_a_worker_that_stops_before_redis_is_back_leaves_the_result_to_the_next(
    make_rig: Callable[..., Rig],
):
    rig = make_rig(drain_seconds=0, retry_max_seconds=300)
    rig.executor.scripts["r1"] = losing_redis(rig)
    await rig.broker.send(message("r1"))
    run = rig.start()
    await until_kept(rig)
    rig.worker.stop()
    async with asyncio.timeout(DEADLINE_S):
        await run
    assert [delay_s for _, delay_s in rig.broker.returned] == [300]
    assert len(kept_in(rig)) == 1

    other = make_rig()
    other.result_store._store = rig.result_store._store
    await other.broker.send(message("r1"))  # as it comes back
    async with other.running():
        await other.until_settled()
    assert other.journal.count("execute") == 0
    assert [result.status for result in other.documents()] == [Status.SUCCESS] * 2
    assert kept_in(other) == []


async def test_a_request_whose_result_waits_on_disk_is_not_run_again(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
):
    rig = make_rig()
    rig.spool_folder.mkdir(mode=0o700)
    (rig.spool_folder / "r1~1").write_bytes(b"{}")
    rig.result_store.gates["publish"] = asyncio.Event()
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("publish?", "r1")
        await rig.journal.until_noted("delivered")
        for _ in range(20):
            await asyncio.sleep(0)
        assert rig.journal.count("claim?") == 0
        rig.result_store.gates.pop("publish").set()
        await rig.until_settled()
    assert rig.journal.count("execute") == 0
    assert rig.result_store.published == [("r1", b"{}")] * 2  # delivered, and once more for the message


async def test_a_result_that_waited_and_is_superseded_is_given_back(rig: Rig):
    rig.executor.scripts["r1"] = losing_redis(rig)
    await rig.broker.send(message("r1"))
    async with rig.running():
        await until_kept(rig)
        rig.result_store.gates["publish"] = asyncio.Event()
        rig.result_store.down = False
        rig.result_store.lapse("r1")
        claim = await taken_by(other := another(rig))
        rig.result_store.gates.pop("publish").set()
        await rig.journal.until_noted("give back", "r1")
        assert await other.publish(claim, b"the other's")
    assert rig.result_store.published == [("r1", b"the other's")]
    assert rig.broker.acked == []
    assert kept_in(rig) == []
    assert rig.processed("success") == 0


async def test_nothing_is_received_while_results_that_wait_take_up_all_room_and_readiness_says_so(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(intake, "_NOT_READY_PAUSE_S", 0.001)
    rig = make_rig(result_spool_mb=1)
    rig.spool_folder.mkdir(mode=0o700)
    (rig.spool_folder / "other~1").write_bytes(bytes(600 * 1024))
    rig.result_store.gates["publish"] = asyncio.Event()
    await rig.broker.send(message("r1"))
    with capture_logs() as logs:
        async with rig.running():
            await rig.journal.until(lambda: rig.journal.count("publish?") > 0)
            async with asyncio.timeout(DEADLINE_S):
                while not any(line["event"] == "not taking jobs" for line in logs):  # noqa: ASYNC110 - a log is no event
                    await asyncio.sleep(0)
            assert rig.journal.count("receive?") == 0
            assert rig.health.document()["parts"]["spool"]["ok"] is False
            rig.result_store.gates.pop("publish").set()
            await rig.until_settled()
            assert rig.health.document()["parts"]["spool"]["ok"] is True
    assert any("RESULT_SPOOL_MB=1 is used up" in str(line.get("reason")) for line in logs)


async def test_a_failure_that_redis_cannot_be_told_of_is_given_back_with_a_growing_delay_and_not_given_up(
    make_rig: Callable[..., Rig],
):
    rig = make_rig(max_attempts=2, retry_max_seconds=100)

    async def script(attempt: Attempt) -> Result:
        rig.result_store.down = True
        raise PlatformError("everything is unavailable")

    rig.executor.scripts["r1"] = script
    await rig.broker.send(message("r1"))
    for _ in range(2):
        (earlier,) = await rig.broker.receive(1)
        await rig.broker.nack(earlier, 0)
    async with rig.running():
        await rig.journal.until_noted("give back", times=3)
    assert [delay_s for _, delay_s in rig.broker.returned] == [0, 0, 0.004]  # the third time: 2 · 2 · base
    assert rig.broker.dead_lettered == []
    assert rig.broker.depth()[1] == 0  # not held: it comes again, here or elsewhere
    assert rig.journal.count("execute") == 1  # not here, while Redis is unavailable


async def test_a_failure_that_redis_was_not_told_of_counts_when_another_worker_finds_the_claim(rig: Rig):
    async def script(attempt: Attempt) -> Result:
        rig.result_store.down = True
        raise PlatformError("everything is unavailable")

    rig.executor.scripts["r1"] = script
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("give back", "r1")
    rig.result_store.lapse("r1")
    assert (await taken_by(another(rig))).failures == 1


async def test_a_request_that_redis_cannot_be_asked_about_was_no_attempt(rig: Rig):
    rig.result_store.gates["claim"] = asyncio.Event()
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("claim?", "r1")
        rig.result_store.down = True
        rig.result_store.gates.pop("claim").set()
        await rig.journal.until_noted("give back", "r1")
        rig.result_store.down = False
        await rig.until_settled()
    assert [delay_s for _, delay_s in rig.broker.returned][:1] == [0.001]
    assert rig.sample("worker_attempts_failed_total") == 0
    assert rig.processed("interrupted") >= 1
    assert [result.attempt for result in rig.documents()] == [1]


async def test_the_last_attempt_is_not_buried_before_the_sender_could_be_told(make_rig: Callable[..., Rig]):
    rig = make_rig(max_attempts=1)
    rig.executor.scripts["r1"] = raising(PlatformError("S3 is unavailable"))
    rig.result_store.gates["publish"] = asyncio.Event()
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("publish?", "r1")
        rig.result_store.down = True
        rig.result_store.gates.pop("publish").set()
        await rig.journal.until_noted("give back", "r1")
        assert rig.broker.dead_lettered == []
        assert rig.broker.acked == []
        assert rig.processed("error") == 0
        rig.result_store.down = False
        await rig.until_settled()
    assert rig.journal.count("execute") == 1  # no attempt is left when it comes again
    assert [(result.error_type, result.attempt) for result in rig.documents()] == [(ErrorType.PLATFORM, 1)]
    assert len(rig.broker.dead_lettered) == 1


async def die_holding(rig: Rig, request_id: str, times: int) -> None:
    """As workers do that take a request and end with it."""
    for _ in range(times):
        await taken_by(another(rig), request_id)
        rig.result_store.lapse(request_id)


async def test_a_job_that_ended_with_its_worker_too_often_is_given_up_and_not_run_again(
    make_rig: Callable[..., Rig],
):
    rig = make_rig(max_attempts=3)
    await die_holding(rig, "r1", 3)
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert rig.journal.count("execute") == 0
    (result,) = rig.documents()
    assert (result.status, result.error_type, result.attempt) == (Status.FAILED, ErrorType.PLATFORM, 3)
    assert result.error_message == "3 attempts failed, or ended with their worker"
    assert [name_of(entry[0]) for entry in rig.broker.dead_lettered] == ["r1"]
    assert rig.journal.of("publish", "dead_letter", "ack") == [("publish", "r1"), ("dead_letter", "r1")]
    assert rig.processed("error") == 1


async def test_a_job_that_ended_with_its_worker_has_the_attempts_that_are_left(make_rig: Callable[..., Rig]):
    rig = make_rig(max_attempts=3)
    await die_holding(rig, "r1", 2)
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert [(result.status, result.attempt) for result in rig.documents()] == [(Status.SUCCESS, 3)]


async def test_a_job_without_attempts_that_was_called_off_is_told_so(make_rig: Callable[..., Rig]):
    rig = make_rig(max_attempts=1)
    await die_holding(rig, "r1", 1)
    rig.result_store.cancel_ahead("r1")
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert [result.error_type for result in rig.documents()] == [ErrorType.CANCELLED]


async def test_a_message_whose_worker_died_between_telling_and_burying_is_still_buried(
    make_rig: Callable[..., Rig],
):
    rig = make_rig(max_attempts=1)
    rig.executor.scripts["r1"] = raising(PlatformError("S3 is unavailable"))
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    await rig.broker.send(message("r1"))  # as it comes again
    again = make_rig(max_attempts=1)
    again.result_store._store = rig.result_store._store
    await again.broker.send(message("r1"))
    async with again.running():
        await again.until_settled()
    first, second = rig.documents()
    assert first == second  # told again, and the same
    assert [name_of(entry[0]) for entry in again.broker.dead_lettered] == ["r1"]
    assert again.broker.acked == []


async def test_attempts_are_counted_anew_after_an_answer(make_rig: Callable[..., Rig]):
    rig = make_rig(max_attempts=2)
    rig.executor.scripts["r1"] = raising(PlatformError("S3 is unavailable"))
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
        assert rig.result_store.failures == {}
        rig.result_store._store.documents.clear()  # its time is over
        del rig.executor.scripts["r1"]
        await rig.broker.send(message("r1"))  # as an operator does who redrives
        await rig.until_settled(2)
    assert [(result.status, result.attempt) for result in rig.documents()] == [
        (Status.FAILED, 2),
        (Status.SUCCESS, 1),
    ]


@pytest.mark.parametrize("method", ["dead_letter", "redrives"])
async def test_a_message_that_cannot_be_buried_now_is_not_kept_from_everyone(
    make_rig: Callable[..., Rig], method: str
):
    rig = make_rig(max_attempts=1)
    rig.executor.scripts["r1"] = raising(PlatformError("Docker is unavailable"))
    rig.broker.failures[method] = [BrokerError("the dead-letter queue is unavailable")]
    await rig.broker.send(message("r1") if method == "dead_letter" else "no JSON")
    with capture_logs():
        async with rig.running():
            await rig.journal.until_noted("give back")
            await rig.until_settled()
    assert rig.broker.depth() == (0, 0, 0)


# --- receipts


def interrupted(times: int) -> Callable[[Attempt], Any]:
    left = times

    async def script(attempt: Attempt) -> Result:
        nonlocal left
        left -= 1
        if left >= 0:
            raise ReturnToQueue("no room", 0)
        return finished(attempt)

    return script


async def test_interruptions_use_up_no_attempts_and_no_receipts(make_rig: Callable[..., Rig]):
    rig = make_rig(max_attempts=2, broker={"max_receives": 5})
    rig.executor.scripts["r1"] = interrupted(20)
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert rig.journal.count("execute") == 21
    assert [(result.status, result.attempt) for result in rig.documents()] == [(Status.SUCCESS, 1)]
    assert (rig.broker.redriven, rig.broker.dead_lettered) == ([], [])
    assert rig.processed("interrupted") == 20


async def test_a_message_is_replaced_before_it_is_worked_on_for_the_last_time(make_rig: Callable[..., Rig]):
    """Should the worker die with it, the queue would move it away, and nobody be told."""
    rig = make_rig(broker={"max_receives": 3})
    await rig.broker.send(message("r1"))
    for _ in range(2):
        (earlier,) = await rig.broker.receive(1)
        await rig.broker.nack(earlier, 0)
    async with rig.running():
        await rig.until_settled()
    assert [delivery.receive_count for delivery in rig.broker.copied] == [3]
    assert [delivery.receive_count for delivery in rig.broker.acked] == [1]
    assert rig.journal.of("delivered", "execute") == [("delivered", message("r1"))] * 4 + [("execute", "r1")]
    assert rig.processed("interrupted") == 0


async def test_a_queue_that_hands_out_once_has_every_attempt_made(make_rig: Callable[..., Rig]):
    rig = make_rig(max_attempts=3, broker={"max_receives": 1})
    rig.executor.scripts["r1"] = raising(StorageError("S3 is unavailable"))
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert rig.journal.count("execute") == 3
    assert [attempts for _, _, attempts in rig.broker.dead_lettered] == [3]
    assert [delay_s for _, delay_s in rig.broker.returned] == [0.001, 0.002]
    assert rig.broker.redriven == []


# --- the sender's faults


async def test_an_invalid_job_is_published_with_every_problem_and_acked(rig: Rig):
    await rig.broker.send(message("r1", runtime="cobol", memoryMb=1, timeoutMs="soon"))
    async with rig.running():
        await rig.until_settled()
    (result,) = rig.documents()
    assert (result.status, result.error_type) == (Status.FAILED, ErrorType.INVALID_JOB)
    assert result.error_message is not None
    for field in ("runtime", "memoryMb", "timeoutMs"):
        assert field in result.error_message
    assert result.hint == hint_for(ErrorType.INVALID_JOB, rig.settings.locale)
    assert (result.runtime, result.exit_code, result.worker_id) == ("cobol", -1, "worker-1")
    assert rig.journal.of("publish", "ack") == [("publish", "r1"), ("ack", "r1")]
    assert rig.journal.count("execute") == 0
    assert rig.processed("invalid", "unknown", "other") == 1


@pytest.mark.parametrize(("of_worker", "of_job"), [("ko", "en"), ("en", "ko")])
async def test_an_invalid_job_is_told_in_its_own_language(
    make_rig: Callable[..., Rig], of_worker: str, of_job: str
):
    rig = make_rig(locale=of_worker)
    wrong: dict[str, Any] = {
        "runtime": "cobol",
        "memoryMb": 1,
        "timeoutMs": "soon",
        "functionId": "",
        "modelId": 7,
        "network": "wide",
        "s3Bucket": "s3://mine",
    }
    await rig.broker.send(message("r1", locale=of_job, **wrong, s3Key=None))
    await rig.broker.send(message("r2", locale=of_job, memoryMb=1))
    async with rig.running():
        await rig.until_settled(2)
    for result in rig.documents():
        for text in (result.error_message, result.hint):
            assert text is not None
            assert bool(re.search("[가-힣]", text)) == (of_job == "ko")
    (first,) = (result for result in rig.documents() if result.request_id == "r1")
    assert first.hint is not None
    assert '"mine"' in first.hint
    assert first.error_message is not None
    assert first.error_message.count("; ") >= len(wrong) - 1


async def test_an_invalid_job_whose_result_cannot_be_published_is_kept_like_any_other(rig: Rig):
    await rig.broker.send(message("r1", runtime="cobol"))
    rig.result_store.gates["publish"] = asyncio.Event()
    async with rig.running():
        await rig.journal.until_noted("publish?", "r1")
        rig.result_store.down = True
        rig.result_store.gates.pop("publish").set()
        await until_kept(rig)
        assert rig.broker.acked == []
        rig.result_store.down = False
        await rig.until_settled()
    assert [result.error_type for result in rig.documents()] == [ErrorType.INVALID_JOB]


async def test_an_unreadable_message_is_left_to_the_queues_redrive_policy(make_rig: Callable[..., Rig]):
    rig = make_rig(broker={"max_receives": 3})
    await rig.broker.send("no JSON")
    async with rig.running():
        await rig.journal.until_noted("redriven")
    assert [delay_s for _, delay_s in rig.broker.returned] == [0.001, 0.002, 0.004]
    assert rig.broker.redriven == ["no JSON"]
    assert rig.broker.dead_lettered == []
    assert rig.processed("invalid", "unknown", "other") == 3


async def test_an_unreadable_message_is_buried_where_nothing_redrives_it(rig: Rig):
    await rig.broker.send('{"s3Key": "k"}')
    async with rig.running():
        await rig.until_settled()
    ((buried, reason, _),) = rig.broker.dead_lettered
    assert buried.body == '{"s3Key": "k"}'
    assert "requestId" in reason
    assert rig.result_store.published == []
    assert rig.processed("invalid", "unknown", "other") == 1


async def test_a_wrapper_around_a_job_is_named_in_the_log_and_on_the_dead_letter_queue(
    make_rig: Callable[..., Rig],
):
    rig = make_rig(broker={"max_receives": 3})
    wrapped = json.dumps({"Type": "Notification", "TopicArn": "arn:aws:sns:::t", "Message": message("r1")})
    await rig.broker.send(wrapped)
    with capture_logs() as logs:
        async with rig.running():
            await rig.journal.until_noted("redriven")
    told = [(entry["log_level"], entry["problem"]) for entry in logs if "problem" in entry]
    assert [level for level, _ in told] == ["warning", "info", "info"]
    assert all("SNS envelope: turn on raw message delivery" in problem for _, problem in told)
    rig = make_rig()
    await rig.broker.send(wrapped)
    async with rig.running():
        await rig.until_settled()
    ((_, reason, _),) = rig.broker.dead_lettered
    assert "raw message delivery" in reason


async def test_an_unreadable_message_without_any_dead_letter_queue_is_acked_and_logged_whole(
    make_rig: Callable[..., Rig],
):
    rig = make_rig(broker={"dead_letter_queue": False})
    await rig.broker.send("no JSON, but worth a look")
    with capture_logs() as logs:
        async with rig.running():
            await rig.until_settled()
    assert [delivery.body for delivery in rig.broker.acked] == ["no JSON, but worth a look"]
    assert "no JSON, but worth a look" in [entry.get("body") for entry in logs]


# --- intake


async def test_no_more_messages_are_taken_than_there_is_room_for(rig: Rig):
    gates = [rig.hold(f"r{number}") for number in range(6)]
    for number in range(6):
        await rig.broker.send(message(f"r{number}"))
    async with rig.running():
        for number, gate in enumerate(gates):
            await rig.journal.until_noted("running", f"r{number}")
            assert rig.broker.depth()[1] <= 2
            gate.set()
            await rig.journal.until_noted("ack", f"r{number}")
    assert {int(limit) for _, limit in rig.journal.of("receive?")} <= {1, 2}


async def test_with_all_slots_taken_nothing_is_received(rig: Rig):
    gates = [rig.hold("r0"), rig.hold("r1")]
    for number in range(3):
        await rig.broker.send(message(f"r{number}"))
    async with rig.running():
        await rig.journal.until_noted("running", times=2)
        receives = rig.journal.count("receive?")
        # Everything that is to happen now happens in a few turns of the loop: nothing else is awaited.
        for _ in range(20):
            await asyncio.sleep(0)
        assert rig.journal.count("receive?") == receives
        assert rig.broker.depth() == (1, 2, 0)
        for gate in gates:
            gate.set()
        await rig.until_settled(3)


async def test_a_slot_given_back_is_used_while_the_upload_of_its_job_goes_on(rig: Rig):
    ran, uploaded = asyncio.Event(), asyncio.Event()

    async def run_then_upload(attempt: Attempt) -> Result:
        async with rig.executor.running(attempt):
            await ran.wait()
        await uploaded.wait()
        return finished(attempt)

    for number in range(2):
        rig.executor.scripts[f"r{number}"] = run_then_upload
    for number in range(4):
        await rig.broker.send(message(f"r{number}"))
    async with rig.running():
        await rig.journal.until_noted("running", times=2)
        for _ in range(20):  # intake sees that there is no room, and waits
            await asyncio.sleep(0)
        ran.set()
        await rig.journal.until_noted("ack", "r2")
        await rig.journal.until_noted("ack", "r3")
        assert rig.broker.depth()[1] == 2
        uploaded.set()
        await rig.until_settled(4)


async def test_messages_that_do_not_run_yet_take_up_room(rig: Rig):
    fetched = asyncio.Event()

    async def fetch_first(attempt: Attempt) -> Result:
        await fetched.wait()
        return await rig.executor.succeed(attempt)

    for number in range(5):
        rig.executor.scripts[f"r{number}"] = fetch_first
        await rig.broker.send(message(f"r{number}"))
    async with rig.running():
        await rig.journal.until_noted("execute", times=2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert rig.broker.depth() == (3, 2, 0)
        fetched.set()
        await rig.until_settled(5)


def needs_room(rig: Rig, request_id: str, memory_mb: int, release: asyncio.Event) -> None:
    """Have the request hold so much memory until the event is set."""

    async def run(attempt: Attempt) -> Result:
        async with rig.admission.reserve(memory_mb, 0.5, attempt.job.function_id):
            attempt.on_running()
            rig.journal.note("running", request_id)
            await release.wait()
        return finished(attempt)

    rig.executor.scripts[request_id] = run


async def test_small_jobs_are_received_and_run_while_a_large_one_waits_for_room(tmp_path: Path):
    rig = Rig(tmp_path, worker_memory_mb=4096, worker_cpus=8.0)
    old, large = asyncio.Event(), asyncio.Event()
    needs_room(rig, "old", 2048, old)
    needs_room(rig, "large", 3000, large)
    async with rig.running():
        for request in ("old", "large"):
            await rig.broker.send(message(request, functionId=request))
            await rig.journal.until_noted("execute", request)
        await rig.journal.until(lambda: rig.admission.waiting_for_room == 1)
        for number in range(3 * MAX_OVERTAKEN):
            await rig.broker.send(message(f"small{number}"))
        await rig.until_settled(3 * MAX_OVERTAKEN)
        assert rig.admission.waiting_for_room == 1
        old.set()
        await rig.journal.until_noted("running", "large")
        large.set()
        await rig.until_settled(3 * MAX_OVERTAKEN + 2)


async def test_few_jobs_wait_for_room_at_a_time(tmp_path: Path):
    rig = Rig(tmp_path, worker_memory_mb=4096, worker_cpus=8.0)
    old, large = asyncio.Event(), asyncio.Event()
    needs_room(rig, "old", 2048, old)
    await rig.broker.send(message("old", functionId="old"))
    for number in range(12):
        needs_room(rig, f"large{number}", 3000, large)
    async with rig.running():
        await rig.journal.until_noted("running", "old")
        for number in range(12):
            await rig.broker.send(message(f"large{number}", functionId=f"large{number}"))
            for _ in range(20):  # all that is to happen happens in a few turns of the loop
                await asyncio.sleep(0)
        waiting = rig.admission.waiting_for_room
        assert 1 <= waiting <= capacity._MAX_WAITING_FOR_ROOM
        assert rig.broker.depth()[1] == 1 + waiting
        old.set()
        large.set()
        await rig.until_settled(13)


async def test_a_slot_that_someone_else_gives_back_is_room_for_a_message(rig: Rig):
    whole = rig.admission.total
    await rig.broker.send(message("r1"))
    async with rig.admission.reserve(whole.memory_mb, whole.cpus):
        rig.start()
        for _ in range(20):
            await asyncio.sleep(0)
        assert rig.journal.count("receive?") == 0
    await rig.until_settled()


async def test_nothing_is_received_while_results_could_not_be_stored_and_readiness_says_so(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(intake, "_NOT_READY_PAUSE_S", 0.001)
    rig.result_store.down = True
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("ping?", times=3)
        assert rig.journal.count("receive?") == 0
        part = rig.health.document()["parts"]["results"]
        assert part == {"ok": False, "reason": "results in memory: marked as down"}
        assert not rig.health.ready
        rig.result_store.down = False
        await rig.until_settled()
        assert rig.health.ready


async def test_nothing_is_received_while_no_container_can_be_made(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        rig.journal.note("pause")
        await asyncio.sleep(0)

    monkeypatch.setattr(rig.worker._intake, "_pause", pause)
    rig.pool.unavailable_reason = "no space left on device"
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("pause", times=3)
        assert rig.journal.count("receive?") == 0
        rig.pool.unavailable_reason = None
        await rig.until_settled()


async def test_nothing_is_received_while_no_runtime_passes_the_self_test(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    async def pause(_: float) -> None:
        rig.journal.note("pause")
        await asyncio.sleep(0)

    monkeypatch.setattr(rig.worker._intake, "_pause", pause)
    rig.blocked.update(dict.fromkeys(Runtime, "network: was not refused"))
    await rig.broker.send(message("r1"))
    with capture_logs() as logs:
        async with rig.running():
            await rig.journal.until_noted("pause", times=3)
            assert rig.journal.count("receive?") == 0
            rig.blocked.clear()
            await rig.until_settled()
    (said,) = [line for line in logs if line["event"] == "not taking jobs"]
    assert said["reason"] == "no runtime takes jobs: network: was not refused"


async def test_a_job_whose_runtime_failed_the_self_test_is_returned_and_others_run(rig: Rig):
    rig.blocked[Runtime.GO] = "network: was not refused"
    await rig.broker.send(message("r1", runtime="go"))
    await rig.broker.send(message("r2", runtime="python"))
    with capture_logs() as logs:
        async with rig.running():
            await rig.until_settled()
            await rig.journal.until(lambda: rig.journal.count("give back") == 1)
    assert json.loads(await rig.result_store.stored("r2") or b"")["status"] == "SUCCESS"
    assert await rig.result_store.stored("r1") is None
    assert rig.result_store.failures == {"r1": 1}  # intake goes on for others: it would go back without end
    assert rig.broker.returned[0][1] == retry.counted_delay_s(1, 0)
    (said,) = [line for line in logs if line["event"] == "return counted as an attempt"]
    assert said["reason"].startswith("no go jobs are taken here: network")


async def test_a_job_of_a_runtime_that_stays_blocked_ends_at_the_last_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retry, "_COUNTED_PAUSE_S", 0.001)
    rig = Rig(tmp_path, max_attempts=3)
    rig.blocked[Runtime.GO] = "network: was not refused"
    await rig.broker.send(message("r1", runtime="go"))
    async with rig.running():
        await rig.until_settled()
    assert rig.journal.count("dead_letter") == 1
    (result,) = rig.documents()
    assert (result.status, result.error_type, result.attempt) == (Status.FAILED, ErrorType.PLATFORM, 3)
    assert "no go jobs are taken here" in str(result.error_message)


async def test_while_no_runtime_takes_jobs_what_is_under_way_goes_back_uncounted(rig: Rig):
    claimed = asyncio.Event()
    rig.result_store.gates["claim"] = claimed
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("claim?", "r1")
        rig.blocked.update(dict.fromkeys(Runtime, "network: was not refused"))
        claimed.set()
        await rig.journal.until_noted("give back", "r1")
    assert rig.result_store.failures == {}


async def test_a_store_that_refuses_claims_stops_the_intake_until_one_is_granted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    claim = rig.result_store.claim
    refused = True

    async def refuse(request_id: str, about: bytes) -> Any:
        if refused:
            rig.journal.note("refused", request_id)
            raise ResultStoreError("Redis at r:1: claim: CROSSSLOT")
        return await claim(request_id, about)

    monkeypatch.setattr(rig.result_store, "claim", refuse)  # and PING is well
    monkeypatch.setattr(intake, "_NOT_READY_PAUSE_S", 0.001)
    for number in range(20):
        await rig.broker.send(message(f"r{number}"))
    async with rig.running():
        await rig.journal.until(lambda: rig.worker._streaks.is_on_trial)
        async with asyncio.timeout(DEADLINE_S):
            while rig.health.document()["parts"].get("returns", {}).get("ok") is not False:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert "CROSSSLOT" in rig.health.document()["parts"]["returns"]["reason"]
        assert rig.journal.count("dead_letter") == 0
        refused = False
        await rig.until_settled(20)
        assert not rig.worker._streaks.is_on_trial
    assert [result.status for result in rig.documents()] == [Status.SUCCESS] * 20


async def test_a_message_that_an_error_of_ours_returns_each_time_is_buried_and_others_run(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    work = InFlight._work_in_turn

    async def fail_for_one(in_flight: InFlight) -> Any:
        if name_of(in_flight.state.delivery) == "bad":
            raise ZeroDivisionError
        return await work(in_flight)

    monkeypatch.setattr(InFlight, "_work_in_turn", fail_for_one)
    await rig.broker.send(message("bad"))
    for number in range(3):
        await rig.broker.send(message(f"r{number}"))
    async with rig.running():
        await rig.until_settled(4)
    assert rig.journal.of("dead_letter") == [("dead_letter", "bad")]
    assert rig.journal.count("give back") == rig.settings.max_attempts - 1


async def test_a_queue_that_fails_is_asked_again_ever_more_seldom(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    reasons: list[str] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        reasons.append(rig.health.document()["parts"]["queue"]["reason"])
        await asyncio.sleep(0)

    monkeypatch.setattr(rig.worker._intake, "_pause", pause)
    rig.broker.failures["receive"] = [BrokerError(f"failure {number}") for number in range(7)]
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
        assert rig.health.document()["parts"]["queue"]["ok"]
        rig.broker.failures["receive"] = [BrokerError("much later")]
        await rig.broker.send(message("r2"))
        await rig.until_settled(2)
        await rig.journal.until(lambda: not rig.broker.failures["receive"])
    assert pauses[:7] == [1, 2, 4, 8, 16, 30, 30]
    assert pauses[7:] == [1]  # recovery starts the series anew
    assert reasons[:7] == [f"failure {number}" for number in range(7)]


async def test_workers_that_lost_the_queue_together_do_not_come_back_together(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(rig.worker._intake, "_pause", pause)
    monkeypatch.setattr(rig.worker._intake, "_jitter", lambda: 1.0)
    rig.broker.failures["receive"] = [BrokerError("down")] * 3
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.until_settled()
    assert pauses[:3] == [0.5, 1, 2]


async def test_an_answer_of_the_queue_that_nobody_expected_does_not_end_intake(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    async def pause(_: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(rig.worker._intake, "_pause", pause)
    rig.broker.failures["receive"] = [KeyError("MessageId")]
    await rig.broker.send(message("r1"))
    with capture_logs() as logs:
        async with rig.running():
            await rig.until_settled()
    assert [line["event"] for line in logs][:2] == ["internal error", "queue not readable"]


# --- drain


async def test_a_drain_finishes_what_runs_and_gives_back_at_once_what_does_not(rig: Rig):
    gate = rig.hold("r1")

    async def never_fetched(attempt: Attempt) -> Result:
        await asyncio.Event().wait()
        raise AssertionError

    rig.executor.scripts["r2"] = never_fetched
    await rig.broker.send(message("r1"))
    await rig.broker.send(message("r2"))
    run = rig.start()
    await rig.journal.until_noted("running", "r1")
    await rig.journal.until_noted("execute", "r2")
    rig.worker.stop()
    await rig.journal.until_noted("give back", "r2")
    (elsewhere,) = await rig.broker.receive(10)
    assert (name_of(elsewhere), elsewhere.receive_count) == ("r2", 2)
    assert not run.done()
    gate.set()
    async with asyncio.timeout(DEADLINE_S):
        await run
    assert [name_of(delivery) for delivery in rig.broker.acked] == ["r1"]
    assert rig.broker.returned == [(rig.broker.returned[0][0], 0)]
    assert rig.processed("interrupted") == 1
    assert rig.processed("success") == 1
    assert rig.result_store.failures == {}  # not counted as an attempt


async def test_a_stop_does_not_cut_the_long_poll_short_and_gives_back_what_it_brings(rig: Rig):
    run = rig.start()
    await rig.journal.until_noted("receive?")
    rig.worker.stop()
    await asyncio.sleep(0)
    assert not run.done()
    await rig.broker.send(message("r1"))
    async with asyncio.timeout(DEADLINE_S):
        await run
    assert rig.journal.count("execute") == 0
    assert [delay_s for _, delay_s in rig.broker.returned] == [0]
    assert rig.broker.depth() == (1, 0, 0)
    assert rig.journal.count("receive?") == 1


async def test_no_long_poll_begins_after_a_stop(rig: Rig):
    rig.result_store.gates["ping"] = asyncio.Event()
    run = rig.start()
    await rig.journal.until_noted("ping?")
    rig.worker.stop()
    rig.result_store.gates["ping"].set()
    async with asyncio.timeout(DEADLINE_S):
        await run
    assert rig.journal.count("receive?") == 0


async def test_what_still_runs_after_drain_seconds_is_given_back(make_rig: Callable[..., Rig]):
    rig = make_rig(drain_seconds=0)
    rig.hold("r1")
    rig.hold("r2")
    await rig.broker.send(message("r1"))
    await rig.broker.send(message("r2"))
    run = rig.start()
    await rig.journal.until_noted("running", times=2)
    rig.worker.stop()
    async with asyncio.timeout(DEADLINE_S):
        await run
    assert [delay_s for _, delay_s in rig.broker.returned] == [0, 0]
    assert rig.broker.depth() == (2, 0, 0)
    assert rig.admission.used.memory_mb == 0
    assert rig.processed("interrupted") == 2


async def test_a_second_stop_gives_back_what_still_runs(make_rig: Callable[..., Rig]):
    rig = make_rig(drain_seconds=3600)
    for number in range(2):
        rig.hold(f"r{number}")
        await rig.broker.send(message(f"r{number}"))
    run = rig.start()
    await rig.journal.until_noted("running", times=2)
    rig.worker.stop()
    await asyncio.sleep(0)
    assert not run.done()
    rig.worker.stop()
    async with asyncio.timeout(DEADLINE_S):
        await run
    assert len(rig.broker.returned) == 2
    assert rig.broker.depth() == (2, 0, 0)


async def test_a_second_stop_ends_the_long_poll(rig: Rig):
    run = rig.start()
    await rig.journal.until_noted("receive?")
    rig.worker.stop()
    rig.worker.stop()
    async with asyncio.timeout(DEADLINE_S):
        await run
    assert rig.broker.depth() == (0, 0, 0)


async def test_publishing_and_acking_are_not_interrupted_by_the_hardest_stop(
    make_rig: Callable[..., Rig],
):
    rig = make_rig(drain_seconds=0)
    rig.result_store.gates["publish"] = asyncio.Event()
    await rig.broker.send(message("r1"))
    run = rig.start()
    await rig.journal.until_noted("publish?", "r1")
    rig.worker.stop()
    rig.worker.stop()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not run.done()
    rig.result_store.gates["publish"].set()
    async with asyncio.timeout(DEADLINE_S):
        await run
    assert rig.journal.of("publish", "ack", "give back") == [("publish", "r1"), ("ack", "r1")]


async def test_cancelling_the_worker_itself_does_not_interrupt_an_ack(rig: Rig):
    rig.broker.gates["ack"] = asyncio.Event()
    await rig.broker.send(message("r1"))
    run = rig.start()
    await rig.journal.until_noted("ack?")
    for held in rig.worker._in_flight:
        held.task.cancel()
    await asyncio.sleep(0)
    rig.broker.gates["ack"].set()
    await rig.until_settled()
    rig.worker.stop()
    rig.worker.stop()
    async with asyncio.timeout(DEADLINE_S):
        await run
    assert len(rig.broker.acked) == 1
    assert rig.broker.returned == []


async def test_an_attempt_that_failed_just_before_the_drain_is_still_given_back_with_its_delay(rig: Rig):
    rig.executor.scripts["r1"] = raising(PlatformError("S3 is unavailable"))
    rig.result_store.gates["failed"] = asyncio.Event()
    await rig.broker.send(message("r1"))
    run = rig.start()
    await rig.journal.until_noted("failed?", "r1")
    rig.worker.stop()
    rig.worker.stop()
    for _ in range(20):
        await asyncio.sleep(0)
    rig.result_store.gates["failed"].set()
    async with asyncio.timeout(DEADLINE_S):
        await run
    assert [delay_s for _, delay_s in rig.broker.returned] == [0.001]


async def test_an_unreadable_message_is_settled_to_the_end_by_a_drain(rig: Rig):
    rig.broker.gates["redrives"] = asyncio.Event()
    await rig.broker.send("no JSON")
    run = rig.start()
    await rig.journal.until_noted("redrives?")
    rig.worker.stop()
    rig.worker.stop()
    for _ in range(20):
        await asyncio.sleep(0)
    rig.broker.gates["redrives"].set()
    async with asyncio.timeout(DEADLINE_S):
        await run
    assert len(rig.broker.dead_lettered) == 1


async def test_a_second_delivery_of_a_running_request_is_given_back_by_a_drain(rig: Rig):
    gate = rig.hold("r1")
    for _ in range(2):
        await rig.broker.send(message("r1"))
    run = rig.start()
    await rig.journal.until_noted("running", "r1")
    await rig.journal.until_noted("delivered", times=2)
    rig.worker.stop()
    await rig.journal.until_noted("give back", "r1")
    gate.set()
    async with asyncio.timeout(DEADLINE_S):
        await run
    assert len(rig.broker.acked) == 1


async def test_a_hand_back_that_the_queue_refuses_is_tried_once_more(rig: Rig):
    rig.hold("r1")
    rig.broker.failures["nack"] = [BrokerError("the queue is unavailable")]
    await rig.broker.send(message("r1"))
    run = rig.start()
    await rig.journal.until_noted("running", "r1")
    with capture_logs():
        rig.worker.stop()
        rig.worker.stop()
        async with asyncio.timeout(DEADLINE_S):
            await run
    assert rig.broker.acked == []
    assert rig.broker.depth()[0] + rig.broker.depth()[2] == 1  # tried once more, by another way


# --- pure


def test_a_second_delivery_stays_away_for_the_claim_and_longer_each_time():
    delays = [taken_delay_s(50, refusals) for refusals in range(1, 10)]
    assert delays == [50, 100, 200, 400, 800, 1600, 1800, 1800, 1800]


def test_a_second_delivery_never_comes_back_before_the_claim_is_over():
    assert taken_delay_s(43_000) == 43_000
    assert taken_delay_s(0) == 1


def test_the_delay_doubles_up_to_the_longest():
    delays = [retry_delay_s(failures, 2, 300, 0) for failures in range(1, 11)]
    assert delays == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_full_jitter_takes_half_of_the_delay_away():
    assert retry_delay_s(3, 2, 300, 1) == 4
    assert retry_delay_s(100, 2, 300, 1) == 150


@UNHURRIED
@given(
    failures=st.integers(1, 10**9),
    base_s=st.floats(0.001, 100),
    longest_s=st.floats(100, 43_200),
    jitter=st.floats(0, 1),
)
def test_a_delay_lies_between_half_the_first_and_the_longest(
    failures: int, base_s: float, longest_s: float, jitter: float
):
    delay_s = retry_delay_s(failures, base_s, longest_s, jitter)
    assert base_s / 2 <= delay_s <= longest_s
    assert delay_s <= retry_delay_s(failures, base_s, longest_s, 0)
    assert retry_delay_s(failures + 1, base_s, longest_s, 0) >= retry_delay_s(failures, base_s, longest_s, 0)
