"""When leases are renewed and lost, in a loop whose time passes only while everything sleeps."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.broker import sqs_leases
from nanoagent.broker.base import Delivery
from nanoagent.broker.sqs_leases import Lease, Leases, longest_poll_s
from nanoagent.broker.sqs_queue import SqsQueue
from nanoagent.host.background import Background

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

VISIBILITY_S = 60
LONGEST_POLL_S = longest_poll_s(VISIBILITY_S)


class LoopWithoutWaiting(asyncio.SelectorEventLoop):
    """Moves its time to the next timer instead of waiting for it."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Client:
    """SQS, as far as renewals go; the calls with these numbers do not return."""

    def __init__(self, *hanging: int) -> None:
        self.hanging = hanging
        self.calls = 0

    async def change_message_visibility_batch(self, **_: Any) -> dict[str, Any]:
        self.calls += 1
        if self.calls - 1 in self.hanging:
            await asyncio.Event().wait()
        return {"Successful": [{"Id": "0"}]}


def new_delivery() -> Delivery:
    return Delivery("m", "receipt", "{}", receive_count=1, sent_at=0.0, received_at=0.0)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=LoopWithoutWaiting) as runner:
            clock = SimpleNamespace(monotonic=runner.get_loop().time)
            monkeypatch.setattr(sqs_leases, "time", clock)
            runner.run(test())

    return run


async def lost_after(
    client: Client, *, until_first_s: float, polled_s: float, watched_s: float = 10 * VISIBILITY_S
) -> float | None:
    """When a lease is lost, seconds after its delivery; None if it is kept.

    Args:
        client: SQS.
        until_first_s: How long before the delivery the last round of renewals began.
        polled_s: How long the poll took that received the message.
        watched_s: How long to watch.
    """
    loop = asyncio.get_running_loop()
    leases = Leases(SqsQueue(client, "queue", 30.0), VISIBILITY_S, Background())
    tasks = leases.start()
    await asyncio.sleep(until_first_s)
    delivery, polled_at = new_delivery(), loop.time() - polled_s
    leases.add(Lease(delivery, {}, polled_at, polled_at + VISIBILITY_S))
    added_at = loop.time()
    await asyncio.wait({delivery.lost}, timeout=watched_s)
    lost_s = loop.time() - added_at if delivery.lost.done() else None
    for task in tasks:
        task.cancel()
    return lost_s


@pytest.mark.parametrize("until_first_s", [0.001, 5.0, 10.0, 14.9])
@pytest.mark.parametrize("failing", [0, 1, 7])
def test_each_lease_survives_one_failed_renewal_also_after_a_whole_poll(run, until_first_s, failing):
    async def test() -> None:
        client = Client(failing)
        lost_s = await lost_after(client, until_first_s=until_first_s, polled_s=LONGEST_POLL_S)
        assert lost_s is None
        assert client.calls > 8

    run(test)


def test_a_lease_that_was_renewed_survives_two_failures_in_a_row(run):
    async def test() -> None:
        client = Client(1, 2)
        assert await lost_after(client, until_first_s=1, polled_s=LONGEST_POLL_S) is None

    run(test)


@pytest.mark.parametrize("until_first_s", [0.001, 5.0, 30.0, 59.0, 61.0])
def test_a_lease_that_is_not_renewed_is_lost_when_it_ends_whenever_its_poll_began(run, until_first_s):
    async def test() -> None:
        client = Client(*range(100))
        lost_s = await lost_after(client, until_first_s=until_first_s, polled_s=LONGEST_POLL_S)
        assert lost_s == pytest.approx(VISIBILITY_S - LONGEST_POLL_S)

    run(test)


@pytest.mark.parametrize("visibility_s", [5, 6, 20, 30, 59, 60, 43_200])
def test_a_lease_is_renewed_before_it_ends_also_after_the_longest_poll(visibility_s: int):
    period_s = visibility_s / sqs_leases.RENEWALS_PER_LEASE
    assert longest_poll_s(visibility_s) + 2 * period_s < visibility_s
