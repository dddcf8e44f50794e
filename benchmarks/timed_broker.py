"""The queue of the benchmarks: a `MemoryBroker` that also times each message.

Both benchmarks of the whole agent use it (ours.py and agent_cost.py). It passes the contract tests of the
broker (tests/integration/test_broker_contract.py), so the agent is measured with a queue that does all that
the agent asks for.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nanoagent.broker.memory import MemoryBroker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from nanoagent.broker.base import Broker, Delivery

_JobT = TypeVar("_JobT")

_LONG_POLL_S: Final = 20.0  # as SQS_WAIT_SECONDS: shorter polls would add work to an idle agent


class JobFailed(Exception):  # noqa: N818 - an event of the job
    """A job did not succeed, or its result is not the expected one."""


@dataclass(eq=False, slots=True)
class _Submitted:
    """A message that a benchmark waits for.

    Attributes:
        settled: The time from its receipt until it was acknowledged, ms.
        received_at: When it was received, seconds of `time.perf_counter`.
    """

    settled: asyncio.Future[float]
    received_at: float = 0.0


class TimedBroker(MemoryBroker):
    """A `Broker` whose queue is a list in this process, and which times the messages of `submit`.

    A job that is returned to the queue or dead-lettered fails the benchmark.

    Args:
        **options: As for `MemoryBroker`. The default of `wait_s` is that of the worker.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"wait_s": _LONG_POLL_S} | options))
        self._submitted: dict[str, _Submitted] = {}

    async def submit(self, body: str) -> asyncio.Future[float]:
        """Queue a message.

        Returns:
            The time from the receipt of the message until it was acknowledged, ms. The future raises
            `JobFailed` if the message is returned to the queue or dead-lettered.
        """
        submitted = _Submitted(asyncio.get_running_loop().create_future())
        self._submitted[await self.send(body)] = submitted
        return submitted.settled

    async def receive(self, limit: int) -> list[Delivery]:
        """Wait for up to `limit` messages; see `Broker.receive`."""
        deliveries = await super().receive(limit)
        now = time.perf_counter()
        for delivery in deliveries:
            if (submitted := self._submitted.get(delivery.message_id)) is not None:
                submitted.received_at = now
        return deliveries

    async def ack(self, delivery: Delivery) -> None:
        """Delete the message, and record its time; see `Broker.ack`."""
        now = time.perf_counter()
        await super().ack(delivery)
        submitted = self._submitted.pop(delivery.message_id, None)
        if submitted is not None and not submitted.settled.done():
            submitted.settled.set_result((now - submitted.received_at) * 1000)

    async def nack(self, delivery: Delivery, delay_s: float, *, poison: bool = False) -> bool:
        """Return the message to the queue, and record a failure; see `Broker.nack`."""
        self._fail(delivery, "returned to the queue")
        return await super().nack(delivery, delay_s, poison=poison)

    async def dead_letter(self, delivery: Delivery, reason: str, attempts: int = 0) -> bool:
        """Move the message away, and record a failure; see `Broker.dead_letter`."""
        self._fail(delivery, reason)
        return await super().dead_letter(delivery, reason, attempts)

    async def verify(self) -> None:
        """Succeed: this queue is always available."""

    def _fail(self, delivery: Delivery, reason: str) -> None:
        submitted = self._submitted.pop(delivery.message_id, None)
        if submitted is not None and not submitted.settled.done():
            submitted.settled.set_exception(
                JobFailed(f"a job was not finished: {reason} (the agent's log says why)")
            )


if TYPE_CHECKING:
    # mypy reports methods that the port has, and this class lacks.
    _BROKER: type[Broker] = TimedBroker


async def run_all(
    send: Callable[[_JobT], Awaitable[asyncio.Future[float]]],
    jobs: Iterable[_JobT],
    at_once: int,
    *,
    deadline_s: float | None = None,
) -> list[float]:
    """Send jobs so that `at_once` of them are unsettled, and wait until all are settled.

    Args:
        send: Sends one job; the result is as that of `TimedBroker.submit`.
        jobs: The jobs.
        at_once: The number of jobs that are unsettled at the same time.
        deadline_s: The longest time in which no job is settled, seconds; None for no limit.

    Returns:
        The time of each job from its receipt until it was acknowledged, ms, in the order of `jobs`.

    Raises:
        JobFailed: A job was returned to the queue or dead-lettered.
        TimeoutError: No job was settled for `deadline_s`.
    """
    left = iter(jobs)
    times: list[asyncio.Future[float]] = []
    unsettled: set[asyncio.Future[float]] = set()
    while True:
        for job in left:
            future = await send(job)
            times.append(future)
            unsettled.add(future)
            if len(unsettled) >= at_once:
                break
        if not unsettled:
            return [future.result() for future in times]
        settled, unsettled = await asyncio.wait(
            unsettled, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not settled:
            raise TimeoutError(f"no job was settled for {deadline_s} s")
