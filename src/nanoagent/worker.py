"""The receive loop, and what happens to one delivery from receipt until it is settled.

No more messages are taken than there is room to run; a delivery is settled exactly once, last, and by the
outcome table. Stopping is not cancelling: intake ends first, what runs is finished, what does not run yet is
given back at once, and leases last until the last delivery is settled. A delivery whose lease is lost is
stopped where it stands: nothing of it is uploaded, published or settled any more, because someone else may
have it. So is one whose claim is lost: the lease says who has the message, the claim who may answer the
request, which may come in two messages.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent import job as jobs
from nanoagent import result as results
from nanoagent.errors import (
    BrokerError,
    Interrupted,
    PlatformError,
    SinkError,
    Superseded,
    UnreadableMessage,
)
from nanoagent.job import Runtime
from nanoagent.result import ErrorType, Settle
from nanoagent.runner import Attempt
from nanoagent.sink.base import Answered, Taken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nanoagent.broker.base import Broker, Delivery
    from nanoagent.config import Settings
    from nanoagent.container.pool import Pool
    from nanoagent.executor import Executor
    from nanoagent.job import Job
    from nanoagent.outputs import OutputUploader
    from nanoagent.result import Result
    from nanoagent.sink.base import Cancellations, Claim, ResultSink
    from nanoagent.sink.spool import Spool
    from nanoagent.slots import Slots
    from nanoagent.telemetry.cloudwatch import PeakMemoryReporter
    from nanoagent.telemetry.metrics import Metrics
    from nanoagent.telemetry.status import Health

log = structlog.get_logger(__name__)

_MAX_BATCH: Final = 10  # SQS's for one ReceiveMessage
_RECEIVE_RETRY_S: Final = 1.0
_RECEIVE_RETRY_MAX_S: Final = 30.0
_HEALTH_RETRY_S: Final = 1.0
_HELD_PER_SLOT: Final = 2  # one runs, one uploads
_MAX_TWINS: Final = 4  # deliveries of one request that wait for the first; SQS rarely has more than two
_CROWDED_DELAY_S: Final = 15.0  # a job that found no room comes back then, here or elsewhere
_TAKEN_DELAY_MAX_S: Final = 1800.0
_TAKEN_DOUBLINGS: Final = 8
_KILL_PATIENCE_S: Final = 0.5  # a run that does not end by then is given up with its container


def retry_delay_s(failures: int, base_s: float, longest_s: float, jitter: float) -> float:
    """How long a job that failed by our fault stays away before it is tried again.

    Doubles with each failure; a jitter of 0 … 1 takes away up to half, so that jobs that failed together do
    not come back together ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

    Args:
        failures: How many attempts have failed, at least 1.
        base_s: Delay after the first, seconds.
        longest_s: Never longer than this, seconds.
        jitter: A random number from 0 to 1.
    """
    delay = min(base_s * 2.0 ** min(failures - 1, 32), longest_s)
    return delay * (1 - jitter / 2)


def taken_delay_s(left_s: float, receive_count: int) -> float:
    """How long a second delivery of a request that another worker is working on stays away.

    First until that worker's claim is over, should it have died. It doubles each time: whoever runs for hours
    would otherwise drive the other message over the queue's maxReceiveCount.

    Args:
        left_s: How much longer the other's claim lasts, seconds.
        receive_count: How often the message has been handed out.
    """
    delay = max(left_s, 1.0) * 2.0 ** min(receive_count - 1, _TAKEN_DOUBLINGS)
    return max(min(delay, _TAKEN_DELAY_MAX_S), left_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    """What the worker works with.

    Attributes:
        blocked: Why no jobs of a runtime are taken, None when they are.
    """

    settings: Settings
    broker: Broker
    sink: ResultSink
    cancellations: Cancellations
    spool: Spool
    executor: Executor
    outputs: OutputUploader
    slots: Slots
    pool: Pool
    metrics: Metrics
    health: Health
    cloudwatch: PeakMemoryReporter | None
    blocked: Callable[[Runtime], str | None] = lambda _: None


@dataclass(slots=True, eq=False)
class _Held:
    """A delivery that is being worked on.

    Attributes:
        begun: Its task has taken its first step; before that, a cancelled task would give nothing back.
        twin: It waits for another delivery of the same request, and wants no slot.
        running: It has, or had, a slot: a drain finishes it.
        concluding: Its run is over: nothing interrupts it any more.
        claim: The right to answer, once it has had it.
        called_off: Whoever sent it wants no more of it.
    """

    task: asyncio.Task[None] = field(init=False)
    begun: bool = False
    twin: bool = False
    running: bool = False
    concluding: bool = False
    claim: Claim | None = None
    called_off: bool = False

    def is_lost(self, delivery: Delivery) -> bool:
        """Whether someone else may be working on it."""
        return delivery.lost.done() or (self.claim is not None and self.claim.lost.done())

    def stop(self) -> None:
        """Cancel it, unless nothing interrupts it any more."""
        if self.begun and not self.concluding:
            self.task.cancel()


@dataclass(slots=True, eq=False)
class _Request:
    """A request that is being worked on here.

    Attributes:
        done: Set when it no longer is.
        twins: Other deliveries of it that wait for that.
    """

    done: asyncio.Event = field(default_factory=asyncio.Event)
    twins: int = 0


class Worker:
    """Takes deliveries from the broker and settles every one of them.

    Args:
        parts: Its collaborators.
        jitter: Random numbers from 0 to 1, for retry delays.
    """

    def __init__(self, parts: WorkerParts, *, jitter: Callable[[], float] = random.random) -> None:
        self._parts = parts
        self._settings = parts.settings
        self._job_defaults = parts.settings.job_defaults
        self._smallest_mb = self._job_defaults.memory_mb
        self._smallest_cpus = parts.settings.cpus_for(self._smallest_mb)
        self._jitter = jitter
        self._held: set[_Held] = set()
        self._requests: dict[str, _Request] = {}
        self._unable: str | None = None
        self._moved = asyncio.Event()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        parts.slots.watch(self._moved.set)

    # --- intake

    async def run(self) -> None:
        """Work until `stop` is called, then drain; returns when everything is settled."""
        intake = asyncio.create_task(self._take_in())
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({intake, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            self._stopping.set()  # also when the intake has failed, or this task is cancelled
            self._moved.set()
            await self._drain(intake)
        await intake

    def stop(self) -> None:
        """Stop taking messages and drain; called again: give back what still runs, now."""
        if self._stopping.is_set():
            self._hurry.set()
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
            if not await self._able():
                await self._pause(_HEALTH_RETRY_S)
                continue
            if self._stopping.is_set():  # meanwhile: a long poll begun now would only delay the drain
                return
            try:
                deliveries = await self._parts.broker.receive(room)
            except BrokerError as exc:
                log.warning("queue not readable", reason=str(exc), pause_s=pause_s)
                self._parts.health.set("queue", ok=False, reason=str(exc))
                await self._pause(pause_s)
                pause_s = min(pause_s * 2, _RECEIVE_RETRY_MAX_S)
                continue
            pause_s = _RECEIVE_RETRY_S
            self._parts.health.set("queue", ok=True)
            for delivery in deliveries:
                self._hold(delivery)

    def _room(self) -> int:
        """How many more messages could run at once, counting those already here that do not run yet.

        Jobs whose slot is free again while they upload count too, when they become many: each may have a
        folder of output files on the disk.
        """
        free = self._parts.slots.free_for(self._smallest_mb, self._smallest_cpus)
        coming = sum(not (held.running or held.twin) for held in self._held)
        total = self._parts.slots.total
        at_once = min(total.memory_mb // self._smallest_mb, int(total.cpus / self._smallest_cpus))
        working = sum(not held.twin for held in self._held)
        return max(0, min(free - coming, _HELD_PER_SLOT * at_once - working, _MAX_BATCH))

    async def _able(self) -> bool:
        """Whether a job that is taken now could be finished; readiness says why not, the log once."""
        reason = self._parts.pool.broken or self._all_blocked() or self._spool_full()
        if reason is None:
            try:
                await self._parts.sink.ping()
                self._parts.health.set("results", ok=True)
            except SinkError as exc:
                reason = str(exc)
                self._parts.health.set("results", ok=False, reason=reason)
        if reason != self._unable:
            if reason is None:
                log.info("taking jobs again")
            else:
                log.warning("not taking jobs", reason=reason)
            self._unable = reason
        return reason is None

    def _all_blocked(self) -> str | None:
        """Why no job at all could be run: no runtime's guards stand."""
        reasons = [self._parts.blocked(runtime) for runtime in Runtime]
        return f"no runtime takes jobs: {reasons[0]}" if all(reasons) else None

    def _spool_full(self) -> str | None:
        """Why the result of one more job might find no place, where it had to wait for Redis."""
        settings = self._settings
        fits = self._parts.spool.has_room_for((len(self._held) + 1) * settings.max_result_bytes)
        reason = None
        if not fits:
            reason = f"RESULT_SPOOL_MB={settings.result_spool_mb} is used up by results that wait for Redis"
        self._parts.health.set("spool", ok=fits, reason=reason or "")
        return reason

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _hold(self, delivery: Delivery) -> None:
        held = _Held()
        held.task = asyncio.create_task(self._handle(delivery, held))
        self._held.add(held)
        delivery.lost.add_done_callback(lambda _: self._stop_lost(held))

        def settled(task: asyncio.Task[None]) -> None:
            self._held.discard(held)
            self._moved.set()
            if not task.cancelled() and (exc := task.exception()) is not None:
                log.error("a delivery was not settled", exc_info=exc)  # it could not be given back either

        held.task.add_done_callback(settled)

    def _stop_lost(self, held: _Held) -> None:
        self._parts.metrics.lease_lost()
        held.stop()

    def _stop_superseded(self, held: _Held) -> None:
        self._parts.metrics.claim_lost()
        held.stop()

    # --- drain

    async def _drain(self, intake: asyncio.Task[None]) -> None:
        """Give back what does not run, let the rest finish within DRAIN_SECONDS, give back what does not.

        The last long poll is waited for meanwhile: what it brings is given back as well.
        """
        deadline = time.monotonic() + self._settings.drain_seconds
        for held in self._held:
            if held.begun and not (held.running or held.concluding):
                held.task.cancel()
        if self._held:
            log.info("draining", jobs=len(self._held), seconds=self._settings.drain_seconds)
        hurried = asyncio.create_task(self._hurry.wait())
        while (open_tasks := self._open_tasks(intake)) and not hurried.done():
            if (left := deadline - time.monotonic()) <= 0:
                self._hurry.set()
            await asyncio.wait({*open_tasks, hurried}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        self._hurry.set()
        while open_tasks := self._open_tasks(intake):
            intake.cancel()  # nothing is lost: a broker gives back what an abandoned poll brings
            for held in self._held:
                held.stop()
            await asyncio.wait(open_tasks, timeout=_HEALTH_RETRY_S)

    def _open_tasks(self, intake: asyncio.Task[None]) -> set[asyncio.Task[None]]:
        """What a drain still has to wait for."""
        tasks = {held.task for held in self._held}
        return tasks if intake.done() else {*tasks, intake}

    # --- one delivery

    async def _handle(self, delivery: Delivery, held: _Held) -> None:
        """From receipt until settled."""
        held.begun = True
        try:
            await self._dispatch(delivery, held)
        except Exception:
            # Unsettled, it would be kept from everyone: the broker renews its lease for as long as it lives.
            log.exception("not settled; given back")
            await _uninterrupted(
                self._parts.broker.give_back(delivery, self._delay_s(delivery.receive_count))
            )

    async def _dispatch(self, delivery: Delivery, held: _Held) -> None:
        try:
            job = self._parse(delivery)
        except UnreadableMessage as exc:
            held.concluding = True
            await self._settle_poison(delivery, str(exc))
            return
        except jobs.InvalidJob as exc:
            held.concluding = True
            await self._refuse(delivery, held, exc)
            return
        # Not taken back: the delivery has its task, and with it its context, to itself.
        structlog.contextvars.bind_contextvars(
            request_id=job.request_id, function_id=job.function_id, runtime=job.runtime
        )
        await self._work(delivery, held, job)

    def _parse(self, delivery: Delivery) -> Job:
        return jobs.parse_job(delivery.body, self._job_defaults)

    async def _work(self, delivery: Delivery, held: _Held, job: Job) -> None:
        if self._stopping.is_set() or delivery.lost.done():  # the last long poll brought it
            await self._interrupted(delivery, job.runtime, job.model_id)
            return
        queue_ms = max(0.0, delivery.received_at - delivery.sent_at) * 1000
        attempt = Attempt(job, delivery.receive_count, queue_ms, lambda: self._begun(held))
        with self._parts.metrics.job_active():
            try:
                async with (
                    self._alone(job.request_id, held),
                    self._claimed(delivery, held, job.request_id, (job.runtime, job.model_id)) as claim,
                ):
                    if claim is None:
                        return
                    result = await self._run_unless_called_off(delivery, held, attempt, claim)
                    await self._conclude(delivery, held, claim, result, job.model_id)
            except asyncio.CancelledError:
                if held.concluding:
                    raise
                await self._stopped(delivery, held, job)
            except Interrupted as exc:
                held.concluding = True
                await self._interrupted(delivery, job.runtime, job.model_id, str(exc), _CROWDED_DELAY_S)
            except Superseded as exc:
                held.concluding = True
                if held.claim is not None and not held.is_lost(delivery):
                    held.claim.lost.set_result(str(exc))
                await self._stopped(delivery, held, job)
            except PlatformError as exc:
                await self._failed(delivery, held, attempt, exc)
            except Exception as exc:
                log.exception("a bug of ours")
                failure = PlatformError(f"an error inside the worker: {type(exc).__name__}")
                await self._failed(delivery, held, attempt, failure)

    @asynccontextmanager
    async def _alone(self, request_id: str, held: _Held) -> AsyncIterator[None]:
        """Enter when no other delivery of the same request is being worked on here.

        Raises:
            Interrupted: Another waits for that already.
        """
        while (current := self._requests.get(request_id)) is not None:
            if current.twins >= _MAX_TWINS:
                raise Interrupted("the same request is being worked on")
            held.twin = True
            current.twins += 1
            self._moved.set()
            try:
                await current.done.wait()
            finally:
                current.twins -= 1
        held.twin = False
        mine = self._requests[request_id] = _Request()
        try:
            yield
        finally:
            del self._requests[request_id]
            mine.done.set()

    def _check_guards(self, runtime: Runtime) -> None:
        """Give back what would run without a guard.

        Raises:
            Interrupted: One of the runtime's guards does not stand.
        """
        if (reason := self._parts.blocked(runtime)) is not None:
            raise Interrupted(f"no {runtime} jobs are taken here: {reason}")

    def _begun(self, held: _Held) -> None:
        held.running = True
        self._moved.set()

    @asynccontextmanager
    async def _claimed(
        self, delivery: Delivery, held: _Held, request_id: str, labels: tuple[str, str]
    ) -> AsyncIterator[Claim | None]:
        """Enter with the right to answer the request; it is let go unless the block has answered.

        None, with the delivery settled, when there is an answer already (it is announced again: nothing runs
        twice), or when another worker is about to give one.
        """
        await self._parts.spool.delivered(request_id)  # of an earlier life of this worker, say
        claim = await self._parts.sink.claim(request_id)
        if isinstance(claim, Answered):
            held.concluding = True
            log.info("already done; its result is published again")
            await _uninterrupted(self._parts.broker.ack(delivery))
            yield None
            return
        if isinstance(claim, Taken):
            held.concluding = True
            delay_s = taken_delay_s(claim.left_s, delivery.receive_count)
            await self._interrupted(delivery, *labels, "another worker is working on the request", delay_s)
            yield None
            return
        held.claim = claim
        claim.lost.add_done_callback(lambda _: self._stop_superseded(held))
        try:
            yield claim
        except BaseException:
            await _uninterrupted(self._release(claim))
            raise

    async def _release(self, claim: Claim) -> None:
        if claim.lost.done():
            return
        try:
            await self._parts.sink.release(claim)
        except SinkError as exc:
            log.warning("claim not released; it runs out", reason=str(exc))

    # --- calling off

    async def _run_unless_called_off(
        self, delivery: Delivery, held: _Held, attempt: Attempt, claim: Claim
    ) -> Result:
        if claim.cancelled:
            return self._parts.executor.cancelled(attempt)
        job = attempt.job
        attempt.fence = claim.token
        end_watch = self._parts.cancellations.watch(job.request_id, lambda: self._call_off(held, attempt))
        try:
            self._check_guards(job.runtime)
            return await self._parts.executor.execute(attempt)
        except (asyncio.CancelledError, PlatformError):
            if not held.called_off or held.is_lost(delivery):
                raise
            return self._parts.executor.cancelled(attempt)
        finally:
            end_watch()

    def _call_off(self, held: _Held, attempt: Attempt) -> None:
        """Stop a job for its sender: by ending its program, so that what it has printed is not lost."""
        if held.concluding or attempt.control.has_ended:
            log.info("called off too late", request_id=attempt.job.request_id)
            return
        log.info("called off", request_id=attempt.job.request_id)
        held.called_off = True
        if attempt.control.kill is None:
            held.stop()
            return
        attempt.control.kill()

        def insist() -> None:
            if not attempt.control.has_ended:
                held.stop()

        asyncio.get_running_loop().call_later(_KILL_PATIENCE_S, insist)

    # --- endings

    async def _conclude(
        self, delivery: Delivery, held: _Held, claim: Claim, result: Result, model: str
    ) -> None:
        """Store and publish the result, then delete the message.

        Raises:
            Superseded: Someone else has claimed the request since.
        """
        document = await self._parts.outputs.document(result, claim.token)
        await self._finish(delivery, held, claim, document)
        self._count(result, model)

    async def _finish(self, delivery: Delivery, held: _Held, claim: Claim, document: bytes) -> None:
        """The last two effects, in order; once begun they are not interrupted."""
        if held.is_lost(delivery):  # in this very turn of the loop: the cancellation has not come yet
            raise Superseded("its lease or its claim was lost just now")
        held.running = held.concluding = True

        async def finish() -> None:
            published = await self._publish(claim, document)
            if published is None:
                # Whoever starts next with this folder delivers it; nobody needs to run the job before.
                await self._parts.broker.give_back(delivery, self._settings.retry_max_seconds)
            elif published:
                await self._parts.broker.ack(delivery)
            else:
                raise Superseded("another worker has claimed the request since, or answered it")

        await _uninterrupted(finish())

    async def _publish(self, claim: Claim, document: bytes) -> bool | None:
        """Publish at once, or as soon as Redis is back: what has been run is not lost with it.

        Returns:
            As `ResultSink.publish`; None when the worker could not wait any longer.
        """
        try:
            return await self._parts.sink.publish(claim, document)
        except SinkError as exc:
            log.warning("result kept until Redis takes it", reason=str(exc))
        delivered = await self._parts.spool.keep(claim, document)
        hurried = asyncio.create_task(self._hurry.wait())
        either: set[asyncio.Future[Any]] = {delivered, hurried}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        return delivered.result() if delivered.done() else None

    async def _failed(
        self, delivery: Delivery, held: _Held, attempt: Attempt, failure: PlatformError
    ) -> None:
        """Our fault: try again later, or, after the last attempt, tell the sender and bury the message."""
        if held.is_lost(delivery):
            await self._stopped(delivery, held, attempt.job)  # whoever has it now is told nothing of this
            return
        held.concluding = True
        self._parts.metrics.attempt_failed()
        failures = await self._failures_of(delivery, attempt.job)
        log.warning("attempt failed", reason=str(failure), failures=failures)
        if failures < self._settings.max_attempts:
            await _uninterrupted(self._parts.broker.give_back(delivery, self._delay_s(failures)))
            return
        result = self._parts.executor.failed(attempt, failure)
        await _uninterrupted(self._give_up(delivery, held.claim, result, attempt.job.model_id))

    def _delay_s(self, failures: int) -> float:
        settings = self._settings
        return retry_delay_s(
            failures, settings.retry_base_seconds, settings.retry_max_seconds, self._jitter()
        )

    async def _failures_of(self, delivery: Delivery, job: Job) -> int:
        """Attempts that failed, this one included; the queue's own count where Redis cannot be asked."""
        try:
            return await self._parts.sink.count_failure(job.request_id)
        except SinkError:
            return delivery.receive_count

    async def _give_up(self, delivery: Delivery, claim: Claim | None, result: Result, model: str) -> None:
        """Tell the sender, then bury the message.

        The claim has been let go when the attempt failed; its token is good until someone has a newer one.
        """
        try:
            published = claim is not None and await self._parts.sink.publish(claim, results.encode(result))
        except SinkError as exc:
            log.warning("result not published", reason=str(exc))
            published = False
        if not published:
            # Whoever waits must be told before the message may go; it is tried again like any attempt.
            await self._parts.broker.give_back(delivery, self._settings.retry_max_seconds)
            return
        reason = result.error_message or ErrorType.PLATFORM
        if not await self._parts.broker.bury(delivery, reason):
            log.error("given up, and there is no dead-letter queue", body=delivery.body)
            await self._parts.broker.ack(delivery)
        self._count(result, model)

    async def _stopped(self, delivery: Delivery, held: _Held, job: Job) -> None:
        """It was cancelled: by a drain, or because someone else has it already."""
        labels = job.runtime, job.model_id
        if delivery.lost.done():  # giving it back does nothing then
            await self._interrupted(delivery, *labels, f"its lease is lost: {delivery.lost.result()}")
        elif held.claim is not None and held.claim.lost.done():
            # Should the other worker have another message of the request, the answer is there then.
            delay_s = taken_delay_s(self._settings.sqs_visibility_seconds, delivery.receive_count)
            await self._interrupted(
                delivery, *labels, f"its claim is lost: {held.claim.lost.result()}", delay_s
            )
        else:
            # A twin comes back when the run that it waits for, which the drain lets finish, is over.
            delay_s = self._settings.drain_seconds if held.twin else 0
            await self._interrupted(delivery, *labels, delay_s=delay_s)

    async def _interrupted(
        self,
        delivery: Delivery,
        runtime: str,
        model: str,
        reason: str = "the worker is stopping",
        delay_s: float = 0,
    ) -> None:
        """Someone else can have the job; this was no attempt."""
        outcome = results.OUTCOMES[ErrorType.INTERRUPTED]
        self._parts.metrics.job_finished(outcome.label, runtime, model, None)
        log.info("given back", reason=reason)
        await _uninterrupted(self._parts.broker.give_back(delivery, delay_s))

    async def _settle_poison(self, delivery: Delivery, problem: str) -> None:
        """A message that names no request: nobody can be told but those who read logs and the queue."""
        outcome = results.OUTCOMES[ErrorType.UNREADABLE]
        assert outcome.settle is Settle.POISON  # noqa: S101 - the table and this method are one decision
        self._parts.metrics.job_finished(outcome.label, "", "", None)
        if await self._parts.broker.redrives():
            log.warning("unreadable message left to the redrive policy", problem=problem)
            await self._parts.broker.give_back(delivery, self._delay_s(delivery.receive_count))
        elif await self._parts.broker.bury(delivery, problem):
            log.warning("unreadable message moved to the dead-letter queue", problem=problem)
        else:
            log.error("unreadable message dropped: no dead-letter queue", problem=problem, body=delivery.body)
            await self._parts.broker.ack(delivery)

    async def _refuse(self, delivery: Delivery, held: _Held, invalid: jobs.InvalidJob) -> None:
        """Tell the sender of a job that it is none, unless its request has another answer, or gets one."""
        try:
            async with (
                self._alone(invalid.request_id, held),
                self._claimed(delivery, held, invalid.request_id, (invalid.runtime, "")) as claim,
            ):
                if claim is not None:
                    await self._conclude(delivery, held, claim, self._invalid(delivery, invalid), model="")
        except Superseded as exc:
            delay_s = taken_delay_s(self._settings.sqs_visibility_seconds, delivery.receive_count)
            await self._interrupted(delivery, invalid.runtime, "", str(exc), delay_s)

    def _invalid(self, delivery: Delivery, invalid: jobs.InvalidJob) -> Result:
        locale = self._settings.locale
        return results.Result(
            request_id=invalid.request_id,
            function_id=invalid.function_id,
            runtime=invalid.runtime,
            status=results.Status.FAILED,
            error_type=invalid.rejection.error_type,
            error_message=invalid.rejection.message,
            hint=results.hint_for(invalid.rejection.error_type, locale),
            worker_id=self._settings.worker_id,
            attempt=delivery.receive_count,
        )

    def _count(self, result: Result, model: str) -> None:
        """Tell metrics, CloudWatch and the log how the job ended."""
        metrics = self._parts.metrics
        started = result.start is not None
        duration_s = result.duration_ms / 1000 if started else None
        metrics.job_finished(result.outcome.label, result.runtime, model, duration_s)
        metrics.phases(result.runtime, result.timings)
        if result.peak_memory_bytes is not None:
            metrics.peak_memory(result.runtime, result.peak_memory_bytes)
            if self._parts.cloudwatch is not None:
                self._parts.cloudwatch.record(
                    result.function_id, result.runtime, result.peak_memory_bytes, time.time()
                )
        log.info(
            "job done",
            status=result.status,
            error_type=result.error_type,
            start=result.start,
            run_ms=result.timings.run,
            total_ms=result.timings.total,
            peak_memory_bytes=result.peak_memory_bytes,
        )


async def _uninterrupted(work: Awaitable[None]) -> None:
    """Do the work to its end even when the caller is cancelled meanwhile; the cancellation comes after."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                break
            cancelled = True
        except Exception:  # noqa: BLE001 - task.result() below raises it
            break
    task.result()
    if cancelled:
        raise asyncio.CancelledError
