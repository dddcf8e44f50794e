"""Message groups of a FIFO queue are worked on in order: a worker on a queue in memory; the keeper alone."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.broker.fifo import FifoOrder
from nanoagent.broker.memory import MemoryBroker
from nanoagent.model.errors import PlatformError, ReturnToQueue
from nanoagent.model.result import ErrorType, Status
from support.agents.worker_rig import Rig, name_of
from support.doubles.fakes import DEADLINE_S, finished, message

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nanoagent.broker.base import Delivery
    from nanoagent.jobs.attempt import Attempt
    from nanoagent.model.result import Result


@pytest.fixture
def make_rig(tmp_path: Path) -> Callable[..., Rig]:
    def make(*, max_receives: int | None = None, **changes: Any) -> Rig:
        room: dict[str, Any] = {"worker_memory_mb": 4096, "worker_cpus": 5.0}  # for a whole batch
        return Rig(tmp_path, broker={"fifo": True, "max_receives": max_receives}, **(room | changes))

    return make


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


async def send(rig: Rig, *names: str) -> None:
    """Jobs named after their group and their place in it: a1, a2, b1."""
    for name in names:
        await rig.broker.send(message(name), group_id=name[0])


def begun(rig: Rig) -> list[str]:
    return [name for _, name in rig.journal.of("execute")]


def of(group: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(group)]


async def settle_down() -> None:
    """Let everything happen that can happen without waiting for anything."""
    for _ in range(30):
        await asyncio.sleep(0)


def failing(times: int) -> Callable[[Attempt], Any]:
    left = times

    async def script(attempt: Attempt) -> Result:
        nonlocal left
        left -= 1
        if left >= 0:
            raise PlatformError("S3 is unavailable")
        return finished(attempt)

    return script


# --- turns


async def test_a_later_one_of_a_group_begins_when_the_earlier_one_is_settled_and_other_groups_do_not_wait(
    rig: Rig,
):
    gate = rig.hold("a1")
    await send(rig, "a1", "a2", "b1", "a3")
    async with rig.running():
        await rig.journal.until_noted("ack", "b1")
        assert begun(rig) == ["a1", "b1"]
        gate.set()
        await rig.until_settled(4)
    assert of("a", begun(rig)) == ["a1", "a2", "a3"]
    steps = [
        entry for entry in rig.journal.entries if entry[0] in {"execute", "publish"} and entry[1][0] == "a"
    ]
    assert [what for what, _ in steps] == ["execute", "publish"] * 3
    assert rig.broker.returned == []


async def test_what_waits_for_its_turn_takes_no_room(make_rig: Callable[..., Rig]):
    rig = make_rig(worker_memory_mb=1024, worker_cpus=1.0)  # room for two
    gates = [rig.hold(name) for name in ("a1", "b1")]
    await send(rig, "a1", "a2")
    async with rig.running():
        await rig.journal.until_noted("running", "a1")
        await rig.journal.until_noted("delivered", message("a2"))
        await send(rig, "b1")
        await rig.journal.until_noted("running", "b1")
        for gate in gates:
            gate.set()
        await rig.until_settled(3)


async def test_the_same_group_on_a_queue_without_order_runs_in_parallel(tmp_path: Path):
    rig = Rig(tmp_path)
    gates = [rig.hold(name) for name in ("a1", "a2")]
    await send(rig, "a1", "a2")
    async with rig.running():
        await rig.journal.until_noted("running", times=2)
        for gate in gates:
            gate.set()
        await rig.until_settled(2)


async def test_two_messages_of_one_request_in_a_group_run_once(rig: Rig):
    await send(rig, "a1", "a1", "a2")
    async with rig.running():
        await rig.until_settled(3)
    assert begun(rig) == ["a1", "a2"]


# --- going back


async def test_when_one_fails_those_behind_it_go_back_first_and_order_is_kept(rig: Rig):
    rig.executor.scripts["a2"] = failing(2)
    await send(rig, "a1", "a2", "a3", "b1")
    async with rig.running():
        await rig.until_settled(4)
    assert of("a", begun(rig)) == ["a1", "a2", "a2", "a2", "a3"]
    first_back = [name_of(delivery) for delivery, _ in rig.broker.returned][:2]
    assert first_back == ["a3", "a2"]
    results = {result.request_id: result.attempt for result in rig.documents()}
    assert results == {"a1": 1, "a2": 3, "a3": 1, "b1": 1}
    assert rig.sample("worker_attempts_failed_total") == 2  # going back behind another is none


async def test_when_one_finds_no_room_those_behind_it_go_back_too(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nanoagent.worker.retry.CROWDED_DELAY_S", 0.001)
    times = 0

    async def script(attempt: Attempt) -> Result:
        nonlocal times
        times += 1
        if times == 1:
            raise ReturnToQueue("no room")
        return finished(attempt)

    rig.executor.scripts["a1"] = script
    await send(rig, "a1", "a2", "a3")
    async with rig.running():
        await rig.until_settled(3)
    assert begun(rig) == ["a1", "a1", "a2", "a3"]
    assert [result.attempt for result in rig.documents()] == [1, 1, 1]


async def test_one_that_is_given_up_lets_those_behind_it_go_on(make_rig: Callable[..., Rig]):
    rig = make_rig(max_attempts=1)
    rig.executor.scripts["a1"] = failing(1)
    await send(rig, "a1", "a2")
    async with rig.running():
        await rig.until_settled(2)
    assert begun(rig) == ["a1", "a2"]
    assert [(result.request_id, result.error_type) for result in rig.documents()] == [
        ("a1", ErrorType.PLATFORM),
        ("a2", None),
    ]
    assert rig.broker.returned == []


async def test_an_unreadable_message_is_left_to_the_redrive_policy_and_those_behind_it_go_on(
    make_rig: Callable[..., Rig],
):
    rig = make_rig(max_receives=3)
    await rig.broker.send("no JSON", group_id="a")
    await send(rig, "a1", "a2")
    async with rig.running():
        await rig.until_settled(2)
        await rig.journal.until_noted("redriven")
    assert begun(rig) == ["a1", "a2"]
    assert rig.broker.redriven == ["no JSON"]
    assert rig.broker.dead_lettered == []
    assert [(delivery.body, delay_s) for delivery, delay_s in rig.broker.returned] == [
        ("no JSON", 0.001)  # hidden, it keeps its group: the delay does not grow
    ] * 3


async def test_an_invalid_job_is_answered_in_its_turn(rig: Rig):
    gate = rig.hold("a1")
    await send(rig, "a1")
    await rig.broker.send(message("a2", runtime="cobol"), group_id="a")
    async with rig.running():
        await rig.journal.until_noted("running", "a1")
        await settle_down()
        assert rig.result_store.published == []
        gate.set()
        await rig.until_settled(2)
    assert [result.request_id for result in rig.documents()] == ["a1", "a2"]


async def test_a_drain_gives_back_what_waits_and_finishes_what_runs(rig: Rig):
    gate = rig.hold("a1")
    await send(rig, "a1", "a2", "a3")
    run = rig.start()
    await rig.journal.until_noted("running", "a1")
    await rig.journal.until_noted("delivered", message("a3"))
    rig.worker.stop()
    await rig.journal.until(lambda: len(rig.broker.returned) == 2)
    assert await_nothing(rig) == []
    gate.set()
    async with asyncio.timeout(DEADLINE_S):
        await run
    assert [name_of(delivery) for delivery in rig.broker.acked] == ["a1"]
    assert [delay_s for _, delay_s in rig.broker.returned] == [0, 0]
    assert [name_of(delivery) for delivery in rig.broker._take(10)] == ["a2", "a3"]
    assert rig.processed("interrupted") == 2


def await_nothing(rig: Rig) -> list[str]:
    """What another worker would be handed out now."""
    return [name_of(delivery) for delivery in rig.broker._take(10)]


async def test_the_hardest_stop_gives_a_whole_group_back_in_its_order(make_rig: Callable[..., Rig]):
    rig = make_rig(drain_seconds=0)
    rig.hold("a1")
    await send(rig, "a1", "a2", "a3")
    run = rig.start()
    await rig.journal.until_noted("running", "a1")
    await rig.journal.until_noted("delivered", message("a3"))
    rig.worker.stop()
    rig.worker.stop()
    async with asyncio.timeout(DEADLINE_S):
        await run
    assert name_of(rig.broker.returned[-1][0]) == "a1"
    assert await_nothing(rig) == ["a1", "a2", "a3"]


async def test_those_behind_one_whose_lease_is_lost_are_not_run_before_it(rig: Rig):
    gate = rig.hold("a1")
    await send(rig, "a1", "a2")
    async with rig.running():
        await rig.journal.until_noted("running", "a1")
        await rig.journal.until_noted("delivered", message("a2"))
        del rig.executor.scripts["a1"]
        (lost,) = [delivery for delivery in rig.broker._held if name_of(delivery) == "a1"]
        rig.broker.lose(lost)
        await rig.until_settled(2)
    gate.set()
    assert begun(rig) == ["a1", "a1", "a2"]


# --- the last receipt


async def test_what_a_queue_in_order_would_not_hand_out_again_is_told_and_buried(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("nanoagent.worker.retry.CROWDED_DELAY_S", 0.001)
    rig = make_rig(max_receives=3)

    async def script(attempt: Attempt) -> Result:
        raise ReturnToQueue("no room")

    rig.executor.scripts["a1"] = script
    await send(rig, "a1")
    async with rig.running():
        await rig.until_settled()
    (result,) = rig.documents()
    assert (result.status, result.error_type, result.attempt) == (Status.FAILED, ErrorType.PLATFORM, 0)
    assert "maxReceiveCount" in (result.error_message or "")
    ((delivery, reason, attempts),) = rig.broker.dead_lettered
    assert (name_of(delivery), attempts) == ("a1", 0)
    assert "maxReceiveCount" in reason
    assert rig.journal.of("publish", "dead_letter") == [("publish", "a1"), ("dead_letter", "a1")]
    assert rig.broker.redriven == []
    assert rig.journal.count("execute") == 3


async def test_a_failure_at_the_last_receipt_of_a_queue_in_order_is_the_last(make_rig: Callable[..., Rig]):
    rig = make_rig(max_receives=2, max_attempts=5)
    rig.executor.scripts["a1"] = failing(10)
    await send(rig, "a1")
    async with rig.running():
        await rig.until_settled()
    assert [(result.error_type, result.attempt) for result in rig.documents()] == [(ErrorType.PLATFORM, 2)]
    assert [(name_of(delivery), attempts) for delivery, _, attempts in rig.broker.dead_lettered] == [
        ("a1", 2)
    ]
    assert rig.broker.redriven == []


async def test_at_the_last_receipt_whoever_works_on_the_request_is_waited_for(make_rig: Callable[..., Rig]):
    rig = make_rig(max_receives=1)
    other = rig.result_store.beside()
    claim = await other.claim("a1")
    await send(rig, "a1")
    async with rig.running():
        await rig.journal.until_noted("keep", "a1")
        await settle_down()
        assert (rig.broker.dead_lettered, rig.broker.acked) == ([], [])
        await other.publish(claim, b'{"the":"other\'s"}')  # type: ignore[arg-type]
        rig.result_store._claim_s = 0.001
        rig.worker.stop()
    assert [reason for _, reason, _ in rig.broker.dead_lettered] != [] or rig.broker.acked != []
    assert rig.broker.depth() == (0, 0, 0)
    assert rig.result_store.published[0] == ("a1", b'{"the":"other\'s"}')
    assert begun(rig) == []


async def test_at_the_last_receipt_without_redis_the_dead_letter_says_why(make_rig: Callable[..., Rig]):
    rig = make_rig(max_receives=1)
    rig.result_store.gates["claim"] = asyncio.Event()
    await send(rig, "a1")
    async with rig.running():
        await rig.journal.until_noted("claim?", "a1")
        rig.result_store.down = True
        rig.result_store.gates.pop("claim").set()
        await rig.until_settled()
    ((delivery, reason, _),) = rig.broker.dead_lettered
    assert name_of(delivery) == "a1"
    assert "marked as down" in reason
    assert rig.result_store.published == []


# --- any order of events


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_each_group_is_worked_on_in_order(
    tmp_path: Path, seed: int, record_property: Callable[[str, Any], None]
):
    """Jobs fail, find no room and lose their leases at random; nothing ends before what is before it."""
    source = random.Random(seed)  # noqa: S311 - no secret
    room: dict[str, Any] = {"worker_memory_mb": 4096, "worker_cpus": 5.0}
    rig = Rig(tmp_path, broker={"fifo": True}, max_attempts=3, retry_base_seconds=0.0001, **room)
    names = [f"{group}{number}" for number in range(6) for group in "abc"]

    async def script(attempt: Attempt) -> Result:
        async with rig.executor.running(attempt):
            for _ in range(source.randrange(4)):
                await asyncio.sleep(0)
            event = source.random()
            if event < 0.15:
                raise PlatformError("S3 is unavailable")
            if event < 0.25:
                raise ReturnToQueue("no room", 0)
            if event < 0.3:
                for delivery in rig.broker._held:
                    if name_of(delivery) == attempt.job.request_id:
                        rig.broker.lose(delivery)
                        break
                await asyncio.Event().wait()
        return finished(attempt)

    rig.executor.scripts = dict.fromkeys(names, script)
    for name in names:
        await rig.broker.send(message(name), group_id=name[0])
    async with rig.running():
        await rig.until_settled(len(names))
    for group in "abc":
        steps = [
            (what, name) for what, name in rig.journal.of("execute", "publish") if name.startswith(group)
        ]
        order = sorted({name for _, name in steps})
        assert [name for what, name in steps if what == "publish"] == order
        assert [name for _, name in steps] == sorted(name for _, name in steps)
    assert rig.broker.depth() == (0, 0, 0)
    record_property("tried", ["group orders", 3])


# --- the keeper alone


async def test_nothing_is_kept_of_groups_whose_deliveries_are_settled():
    broker = MemoryBroker(wait_s=0, fifo=True)
    order = FifoOrder(broker)
    for number in range(4):
        await broker.send(json.dumps(number), group_id="ab"[number % 2])
    deliveries = await order.receive(10)
    first, second, third, fourth = deliveries
    assert [order.must_wait(delivery) for delivery in deliveries] == [False, False, True, True]
    await order.ack(first)
    assert await order.turn(third)
    assert await order.dead_letter(second, "reason")
    assert await order.turn(fourth)
    await order.nack(third, 0)
    await order.ack(fourth)
    assert (order._places, order._latest) == ({}, {})


async def test_one_that_comes_while_its_group_is_not_done_waits_for_it():
    broker = MemoryBroker(wait_s=0, fifo=True)
    order = FifoOrder(broker)
    await broker.send("mine", group_id="a")
    (first,) = await order.receive(10)
    broker.lose(first)
    (again,) = await order.receive(10)

    waiting = asyncio.create_task(order.turn(again))
    await settle_down()
    assert not waiting.done()
    await order.nack(first, 0)  # whoever had it has noticed

    async with asyncio.timeout(DEADLINE_S):
        assert await waiting


async def test_a_hand_back_that_fails_lets_the_next_one_in():
    broker = MemoryBroker(wait_s=0, fifo=True)
    order = FifoOrder(broker)
    await broker.send("mine", group_id="a")
    (delivery,) = await order.receive(10)

    async def fail(delivery: Delivery, delay_s: float, *, poison: bool = False) -> bool:
        raise PlatformError("the queue is unavailable")

    broker.nack = fail  # type: ignore[method-assign]
    with pytest.raises(PlatformError):
        await order.nack(delivery, 0)
    assert order._latest == {}
