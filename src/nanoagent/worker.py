"""The receive loop, and the drain.

No more messages are taken than there is room to run. Stopping is not cancelling: intake ends first, what runs
is finished, what does not run yet is given back at once, and leases last until the last delivery is settled.
What happens to each delivery is `handling`'s.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent import fairness
from nanoagent.background import TaskName
from nanoagent.broker.order import InOrder
from nanoagent.errors import BrokerError
from nanoagent.gates import Gate, Gates
from nanoagent.handling import Course, Handler, Held
from nanoagent.history import History, will_finish
from nanoagent.job import Runtime
from nanoagent.returns import Streak

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.background import Background
    from nanoagent.broker.base import Delivery
    from nanoagent.handling import WorkerParts
    from nanoagent.job import Job

log = structlog.get_logger(__name__)

_MAX_BATCH: Final = 10  # SQS's for one ReceiveMessage
_RECEIVE_RETRY_S: Final = 1.0
_RECEIVE_RETRY_MAX_S: Final = 30.0
_HEALTH_RETRY_S: Final = 1.0
_MOST_WAITING: Final = 4  # jobs that wait for room while more messages are received
_HELD_PER_SLOT: Final = 2  # one runs, one uploads
_REVIEW_S: Final = 1.0

DRAIN_TAIL_S: Final = 15.0
"""How long giving back may take once jobs have to end: Redis is given 5 s at most, a hanging SQS the rest."""


class Worker:
    """Takes deliveries from the broker and settles every one of them.

    Args:
        parts: Its collaborators.
        jitter: Random numbers from 0 to 1, for retry delays.
    """

    def __init__(self, parts: WorkerParts, *, jitter: Callable[[], float] = random.random) -> None:
        order = InOrder(parts.broker)
        self._parts = parts = replace(parts, broker=order)
        self._settings = parts.settings
        self._smallest_mb = parts.settings.job_defaults.memory_mb
        self._smallest_cpus = parts.settings.cpus_for(self._smallest_mb)
        self._held: set[Held] = set()
        self._gates = Gates((*self._own_gates(), *parts.gates), parts.health)
        self._pace = fairness.Pace()
        self._moved = asyncio.Event()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._signalled = False
        self._drained_by = math.inf  # monotonic seconds
        self._given_back: Counter[str] = Counter()
        self._history = History()
        self._streak = Streak()
        course = Course(
            self._stopping, self._hurry, self._moved.set, self._left_s, self._away_s, self._streak
        )
        self._handler = Handler(parts, course, order, jitter=jitter)
        self._jitter = jitter
        parts.slots.watch(self._moved.set)

    @property
    def background(self) -> Background:
        """What starts the worker's background tasks."""
        return self._parts.background

    # --- intake

    async def run(self) -> None:
        """Work until `stop` is called, then drain; returns when everything is settled."""
        keep = self._parts.background.keep
        intake = keep(TaskName.INTAKE, self._take_in, until=self._stopping)
        watch = keep(TaskName.READINESS_CHECKS, self._gates.watch)
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({intake, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not self._stopping.is_set():  # this task is cancelled
                self.drain("the worker was cancelled")
            await self._drain(intake)
            watch.cancel()
        await intake

    def stop(self) -> None:
        """Drain, because someone wants the worker to end; called again: give back what still runs, now."""
        if self._signalled:
            self._hurry.set()
        self._signalled = True
        self.drain("the worker was told to stop")

    def drain(self, reason: str, grace_s: float | None = None) -> None:
        """Stop taking messages, let what runs finish, give back the rest.

        Called again, it can only bring the end nearer.

        Args:
            reason: Why, for log and readiness.
            grace_s: How much longer jobs may run, seconds; at most, and by default, DRAIN_SECONDS.
        """
        longest_s = float(self._settings.drain_seconds)
        grace_s = longest_s if grace_s is None else max(0.0, min(grace_s, longest_s))
        self._drained_by = min(self._drained_by, time.monotonic() + grace_s)
        self._parts.health.set("drain", ok=False, reason=f"draining: {reason}")
        log.info("draining", reason=reason, jobs=len(self._held), seconds=round(self._left_s(), 1))
        self._stopping.set()
        self._moved.set()

    async def _take_in(self) -> None:
        """Receive until stopped. The last long poll is not cut short: what it brings would be stranded."""
        try:
            await self._receive_repeatedly()
        except asyncio.CancelledError:
            if not self._hurry.is_set():
                raise

    async def _receive_repeatedly(self) -> None:
        pause_s = _RECEIVE_RETRY_S
        while not self._stopping.is_set():
            self._moved.clear()
            room = self._room()
            if not room:
                await self._moved.wait()
                continue
            looking = fairness.is_full(self._beyond_share())
            if looking and (early_s := self._pace.left_s()):
                await self._move(early_s)
                continue
            if await self._gates.reason() is not None:
                await self._pause(_HEALTH_RETRY_S)
                continue
            if self._stopping.is_set():  # meanwhile: a long poll begun now would only delay the drain
                return
            limit = _MAX_BATCH if looking else room
            try:
                deliveries = await self._parts.broker.receive(1 if self._streak.on_trial else limit)
            except Exception as exc:
                if not isinstance(exc, BrokerError):  # intake must not end for one bad answer
                    log.exception("a bug of ours")
                # Workers that lost the queue together do not come back together.
                jittered_s = pause_s * (1 - self._jitter() / 2)
                log.warning("queue not readable", reason=str(exc), pause_s=round(jittered_s, 2))
                self._parts.health.set("queue", ok=False, reason=str(exc))
                await self._pause(jittered_s)
                pause_s = min(pause_s * 2, _RECEIVE_RETRY_MAX_S)
                continue
            pause_s = _RECEIVE_RETRY_S
            self._parts.health.set("queue", ok=True)
            if looking:
                self._pace.looked()
            for delivery in deliveries:
                self._hold(delivery)

    def _room(self) -> int:
        """How many more messages could run at once, counting those already here that do not run yet.

        Jobs whose slot is free again while they upload count too, when they become many: each may have a
        folder of output files on the disk. Jobs that wait for their function's share do not. Nor do
        jobs that wait for room, while they may be overtaken and are few. They have to be few because new
        messages may be as large, and other workers may have room for them.
        """
        slots = self._parts.slots
        waiting = slots.waiting_for_room
        free = slots.admissible(self._smallest_mb, self._smallest_cpus)
        beyond = self._beyond_share().total()
        coming = max(0, sum(held.wants_slot for held in self._held) - beyond - waiting)
        total = slots.total
        at_once = min(total.memory_mb // self._smallest_mb, int(total.cpus / self._smallest_cpus))
        working = sum(not held.twin for held in self._held) - beyond
        most = _MOST_WAITING - waiting - coming if waiting else _MAX_BATCH
        return max(0, min(free - coming, _HELD_PER_SLOT * at_once - working, most, _MAX_BATCH))

    def _beyond_share(self) -> Counter[str]:
        """How many jobs here wait for their function's share, whether there is room or not, by function."""
        waiting = (held.job for held in self._held if held.wants_slot and held.job is not None)
        return fairness.beyond_share(waiting, self._share_left)

    def _share_left(self, job: Job) -> int:
        cpus = self._settings.cpus_for(job.memory_mb)
        return self._parts.slots.share_left_for(job.memory_mb, cpus, job.function_id)

    def _away_s(self, held: Held, delivery: Delivery) -> float | None:
        """For how long a delivery has to go back because too many of its function wait here already."""
        assert held.job is not None  # noqa: S101 - it is asked when the message has been read
        function = held.job.function_id
        beyond = self._beyond_share()
        if not beyond[function]:
            self._pace.found()
            return None
        self._moved.set()  # it wants no room after all
        if not fairness.is_crowded(beyond, function):
            return None
        if delivery.in_order and self._parts.broker.is_last(delivery):
            return None  # it would not come again: only a message without a place in an order can be copied
        own = [each.since for each in self._held if each.job is not None and each.job.function_id == function]
        return fairness.away_s(delivery.receive_count, time.monotonic() - min(own), self._jitter())

    async def _move(self, seconds: float) -> None:
        """Wait until there may be room for another message, so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._moved.wait()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    # --- why no jobs are taken

    async def why_no_jobs(self) -> str | None:
        """Why no jobs can be taken now, or None; every part is asked."""
        return await self._gates.reason()

    def _own_gates(self) -> tuple[Gate, ...]:
        return (
            Gate("containers", self._no_containers, tells_itself=True),
            Gate("guards", self._all_blocked, tells_itself=True),
            Gate("results", self._no_results),
            Gate("spool", self._spool_full),
            Gate("returns", self._returns_in_a_row),
            Gate("background", self._parts.background.trouble, tells_itself=True),
        )

    async def _returns_in_a_row(self) -> str | None:
        return await self._streak.trouble()

    async def _no_containers(self) -> str | None:
        return self._parts.pool.broken

    async def _all_blocked(self) -> str | None:
        """Why no job at all could be run: no runtime's guards stand."""
        reasons = [self._parts.blocked(runtime) for runtime in Runtime]
        return f"no runtime takes jobs: {reasons[0]}" if all(reasons) else None

    async def _no_results(self) -> str | None:
        await self._parts.sink.ping()
        return None

    async def _spool_full(self) -> str | None:
        """Why the result of one more job might find no place, where it had to wait for Redis."""
        settings = self._settings
        if self._parts.spool.has_room_for((len(self._held) + 1) * settings.max_result_bytes):
            return None
        return f"RESULT_SPOOL_MB={settings.result_spool_mb} is used up by results that wait for Redis"

    # --- what is held

    def _hold(self, delivery: Delivery) -> None:
        held = Held()
        held.task = asyncio.create_task(self._handler.handle(delivery, held))
        self._held.add(held)
        if self._stopping.is_set():  # the handler gives it back as it stands
            self._count_given_back("waiting")
        delivery.lost.add_done_callback(lambda _: self._stop_lost(held))

        def settled(task: asyncio.Task[None]) -> None:
            self._held.discard(held)
            self._moved.set()
            if held.job is not None and held.took_s is not None:
                self._history.add(held.job, held.took_s)
            if not task.cancelled() and (exc := task.exception()) is not None:
                log.error("a delivery was not settled", exc_info=exc)  # it could not be given back either

        held.task.add_done_callback(settled)

    def _stop_lost(self, held: Held) -> None:
        self._parts.metrics.lease_lost()
        held.stop()

    # --- drain

    async def _drain(self, intake: asyncio.Task[None]) -> None:
        """Give back what does not run, let the rest finish in time, give back what does not.

        Builds count as not running: they, and then their jobs, can be done elsewhere at once. The last long
        poll is waited for meanwhile: what it brings is given back as well.
        """
        begun_at, jobs = time.monotonic(), len(self._held)
        for held in self._held:
            if not held.running:
                self._give_back(held, "waiting", "the worker is stopping")
        hurried = asyncio.create_task(self._hurry.wait())
        while (open_tasks := self._open_tasks(intake)) and not hurried.done():
            if (left_s := self._left_s()) <= 0:
                self._hurry.set()
            self._give_back_hopeless(left_s)
            pause_s = min(left_s, _REVIEW_S)
            await asyncio.wait({*open_tasks, hurried}, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        self._hurry.set()
        await self._end(intake)
        took_s = round(time.monotonic() - begun_at, 1)
        log.info("drained", jobs=jobs, given_back=dict(self._given_back), seconds=took_s)

    def _left_s(self) -> float:
        """How much longer what runs may take, seconds."""
        return 0.0 if self._hurry.is_set() else max(0.0, self._drained_by - time.monotonic())

    def _give_back_hopeless(self, left_s: float) -> None:
        """Stop what will not be done in time, by how long such jobs have taken: someone else can begin it.

        Asked again as time passes: what has run for longer than most may show to be of the long kind.
        """
        now = time.monotonic()
        for held in self._held:
            if held.job is None or held.running_since is None:
                continue
            if held.has_run or held.stopped_for is not None:
                continue
            elapsed_s, timeout_s = now - held.running_since, held.job.timeout_ms / 1000
            history = self._history.of(held.job)
            if will_finish(elapsed_s, left_s, history, timeout_s) is False:
                reason = f"such jobs take longer than the {left_s:.0f} s that are left to it"
                self._give_back(held, "too_long", reason)

    async def _end(self, intake: asyncio.Task[None]) -> None:
        """Give back what is left; what cannot be settled within a while comes back by itself.

        What has run gets half of that while for its uploads: elsewhere it would have to run again.
        """
        kind = "time_up" if self._drained_by <= time.monotonic() else "hurried"
        ends_at = time.monotonic() + DRAIN_TAIL_S
        uploads_end_at = ends_at - DRAIN_TAIL_S / 2
        while (open_tasks := self._open_tasks(intake)) and (left_s := ends_at - time.monotonic()) > 0:
            intake.cancel()  # nothing is lost: a broker gives back what an abandoned poll brings
            for held in self._held:
                if not held.has_run or time.monotonic() >= uploads_end_at:
                    self._give_back(held, kind, "the worker is stopping")
            await asyncio.wait(open_tasks, timeout=min(left_s, _HEALTH_RETRY_S))
        if self._held:
            log.error("not settled in time: these messages come back by themselves", jobs=len(self._held))

    def _give_back(self, held: Held, kind: str, reason: str) -> None:
        """Stop it, unless nothing interrupts it any more; more than once, should it not have heard."""
        if not held.begun or held.concluding:
            return
        if held.stopped_for is None:
            held.stopped_for = reason
            self._count_given_back(kind)
        held.stop()

    def _count_given_back(self, kind: str) -> None:
        self._given_back[kind] += 1
        self._parts.metrics.drain_gave_back(kind)

    def _open_tasks(self, intake: asyncio.Task[None]) -> set[asyncio.Task[None]]:
        """What a drain still has to wait for."""
        tasks = {held.task for held in self._held}
        return tasks if intake.done() else {*tasks, intake}
