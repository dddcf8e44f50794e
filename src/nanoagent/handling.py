"""What happens to one delivery, from receipt until it is settled.

A delivery is settled exactly once, last, and by the outcome table. One whose lease is lost is stopped where
it stands: nothing of it is uploaded, published or settled any more, because someone else may have it. So is
one whose claim is lost: the lease says who has the message, the claim who may answer the request, which may
come in two messages.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from nanoagent import envelopes, returns
from nanoagent import job as jobs
from nanoagent import result as results
from nanoagent.background import Background
from nanoagent.errors import GivenUp, Interrupted, PlatformError, SinkError, Superseded, UnreadableMessage
from nanoagent.job import Runtime
from nanoagent.result import ErrorType, Settle
from nanoagent.returns import Streak, Why
from nanoagent.runner import Attempt
from nanoagent.sink.base import Answered, Taken
from nanoagent.text import Text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nanoagent.broker.base import Broker, Delivery
    from nanoagent.broker.order import InOrder
    from nanoagent.config import Settings
    from nanoagent.container.execution import Control
    from nanoagent.container.pool import Pool
    from nanoagent.executor import Executor
    from nanoagent.gates import Gate
    from nanoagent.job import Job
    from nanoagent.outputs import OutputUploader
    from nanoagent.result import Result
    from nanoagent.sink.base import Cancellations, Claim, ResultSink
    from nanoagent.sink.spool import Spool
    from nanoagent.slots import Slots
    from nanoagent.telemetry.cloudwatch import PeakMemoryReporter
    from nanoagent.telemetry.metrics import Metrics
    from nanoagent.telemetry.status import Health

_T = TypeVar("_T")

log = structlog.get_logger(__name__)

_MAX_TWINS: Final = 4  # deliveries of one request that wait for the first; SQS rarely has more than two
_CROWDED_DELAY_S: Final = 15.0  # a job that found no room comes back then, here or elsewhere
_TAKEN_DELAY_MAX_S: Final = 1800.0
_TAKEN_DOUBLINGS: Final = 8
_ATTEMPTS_FAILED: Final = Text(
    "{failures} attempts failed, or ended with their worker",
    "{failures}번의 시도가 실패했거나 워커와 함께 중단되었습니다",
)
_RECEIPTS_USED_UP: Final = Text(
    "the worker had to return it after its last receipt (maxReceiveCount of the queue's redrive policy)",
    "마지막 수신 뒤에 워커가 되돌려 놓아야 했습니다 (큐 redrive policy의 maxReceiveCount)",
)
_MOST_UNSETTLED: Final = 1024  # messages; their ids are short
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


def taken_delay_s(left_s: float, refusals: int = 1) -> float:
    """How long a second delivery of a request that another worker is working on stays away.

    First until that worker's claim is over, should it have died. It doubles each time that the same claim is
    found in the way: whoever runs for hours would otherwise drive the other message over the queue's
    maxReceiveCount. How often the message was received says nothing: it may have been for want of room.

    Args:
        left_s: How much longer the other's claim lasts, seconds.
        refusals: How often that claim has been in the way, this time included.
    """
    delay = max(left_s, 1.0) * 2.0 ** min(refusals - 1, _TAKEN_DOUBLINGS)
    return max(min(delay, _TAKEN_DELAY_MAX_S), left_s)


def is_failed_attempt(exc: BaseException) -> bool:
    """Whether the exception that ended a run makes it an attempt that failed by the platform's fault."""
    if isinstance(exc, Interrupted):
        return returns.counts(exc.why)
    return isinstance(exc, Exception) and not isinstance(exc, Superseded | GivenUp)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    """What the worker works with.

    Attributes:
        blocked: Why no jobs of a runtime are taken, None when they are.
        gates: What else has to be well before jobs are taken.
        background: Keeps the worker's own tasks.
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
    gates: tuple[Gate, ...] = ()
    background: Background = field(default_factory=Background)


@dataclass(frozen=True, slots=True)
class Course:
    """How far the worker has come.

    Attributes:
        stopping: It takes no more messages.
        hurry: It waits for nothing any more.
        moved: Called when there may be room for another message.
        left_s: How much longer what runs may take, seconds, while it is stopping.
        streak: Notes returns that cannot be counted for their jobs.
        away_s: For how long a delivery, whose job is known by now, has to go back because too many of its
            function are here already, seconds; None when it may stay.
    """

    stopping: asyncio.Event
    hurry: asyncio.Event
    moved: Callable[[], None]
    left_s: Callable[[], float]
    away_s: Callable[[Held, Delivery], float | None]
    streak: Streak = field(default_factory=Streak)


@dataclass(slots=True, eq=False)
class Held:
    """A delivery that is being worked on.

    Attributes:
        begun: Its task has taken its first step; before that, a cancelled task would give nothing back.
        twin: It waits for another delivery, of the same request or earlier in its message group, and wants
            no slot.
        running: It has, or had, a slot: a drain finishes it.
        concluding: Its run is over: nothing interrupts it any more.
        claim: The right to answer, once it has had it.
        failures: How many attempts at its request have failed, this one included, if the store has said so.
        called_off: Whoever sent it wants no more of it.
        job: What it asks for, once that is known and is worked on.
        control: Of its run; says whether that is over.
        since: When it came, monotonic seconds.
        running_since: When it got its run's slot, monotonic seconds.
        took_s: How long it was from there until it had a result; none when it was cut short.
        stopped_for: Why a drain has stopped it.
    """

    task: asyncio.Task[None] = field(init=False)
    begun: bool = False
    twin: bool = False
    running: bool = False
    concluding: bool = False
    claim: Claim | None = None
    failures: int | None = None
    called_off: bool = False
    job: Job | None = None
    control: Control | None = None
    running_since: float | None = None
    took_s: float | None = None
    stopped_for: str | None = None
    since: float = field(default_factory=time.monotonic)

    @property
    def wants_slot(self) -> bool:
        """Whether it would run now if there were room for it."""
        return not (self.running or self.concluding or self.twin)

    @property
    def has_run(self) -> bool:
        """Whether its program is over, so that only its outputs and its result are still on their way."""
        return self.control is not None and self.control.has_ended

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


class Handler:
    """Handles deliveries, each in a task of its own.

    Args:
        parts: Its collaborators.
        course: How far the worker has come.
        order: The broker, as the keeper of the order of message groups.
        jitter: Random numbers from 0 to 1, for retry delays.
    """

    def __init__(
        self,
        parts: WorkerParts,
        course: Course,
        order: InOrder,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._parts = parts
        self._settings = parts.settings
        self._job_defaults = parts.settings.job_defaults
        self._course = course
        self._order = order
        self._jitter = jitter
        self._requests: dict[str, _Request] = {}
        self._unsettled: dict[str, int] = {}  # message id → how often an internal error returned it

    async def handle(self, delivery: Delivery, held: Held) -> None:
        """From receipt until settled."""
        held.begun = True
        try:
            await self._dispatch(delivery, held)
        except Exception as exc:
            # Unsettled, it would be kept from everyone: the broker renews its lease for as long as it lives.
            log.exception("not settled; given back")
            await _uninterrupted(self._return_unsettled(delivery, exc))
        else:
            self._course.streak.worked(Why.NOT_SETTLED)
            self._unsettled.pop(delivery.message_id, None)

    async def _return_unsettled(self, delivery: Delivery, exc: Exception) -> None:
        """Return a message whose handling has failed; dead-letter it if that happens each time.

        If a service failed, the message is not the cause. It may be the cause of an internal error: then it
        is not copied after its last receipt, and is dead-lettered after MAX_ATTEMPTS here.
        """
        reason = f"it could not be settled: {type(exc).__name__}"
        self._course.streak.returned(Why.NOT_SETTLED, reason)
        delay_s = self._delay_s(delivery.receive_count)
        if isinstance(exc, PlatformError):
            await self._give_back_or_bury(delivery, delay_s, reason)
            return
        times = self._unsettled[delivery.message_id] = self._unsettled.pop(delivery.message_id, 0) + 1
        if len(self._unsettled) > _MOST_UNSETTLED:
            del self._unsettled[next(iter(self._unsettled))]
        if times < self._settings.max_attempts:
            await self._parts.broker.give_back(delivery, delay_s, poison=True)
        elif not await self._parts.broker.bury(delivery, reason, times):
            log.error("given up, and there is no dead-letter queue", body=delivery.body)
            await self._parts.broker.ack(delivery)

    async def _dispatch(self, delivery: Delivery, held: Held) -> None:
        if not await self._in_turn(delivery, held):
            return
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

    async def _in_turn(self, delivery: Delivery, held: Held) -> bool:
        """Wait for the earlier ones of its message group; False when they go back, and it has gone too."""
        reason = "an earlier message of its group goes back"
        if not self._order.must_wait(delivery):
            if await self._order.turn(delivery):
                return True
        else:
            held.twin = True
            self._course.moved()
            try:
                if await self._order.turn(delivery):
                    return True
            except asyncio.CancelledError:
                reason = "the worker is stopping"
            finally:
                held.twin = False
        held.concluding = True
        try:
            job = self._parse(delivery)
        except (UnreadableMessage, jobs.InvalidJob):
            await _uninterrupted(self._give_back_or_bury(delivery, 0, reason))
        else:
            await self._interrupted(delivery, held, job, reason)
        return False

    def _parse(self, delivery: Delivery) -> Job:
        return jobs.parse_job(delivery.body, self._job_defaults)

    async def _work(self, delivery: Delivery, held: Held, job: Job) -> None:
        if await self._turned_away(delivery, held, job):
            return
        queue_ms = max(0.0, delivery.received_at - delivery.sent_at) * 1000
        attempt = Attempt(job, 1, queue_ms, lambda: self._begun(held))
        held.control = attempt.control
        with self._parts.metrics.job_active():
            try:
                async with (
                    self._alone(job.request_id, held),
                    self._claimed(delivery, held, job.request_id) as claim,
                ):
                    if claim is None:
                        return
                    attempt.number, attempt.fence = claim.failures + 1, claim.token
                    result = await self._run_unless_called_off(delivery, held, attempt, claim)
                    await self._conclude(delivery, held, claim, result, job)
            except asyncio.CancelledError:
                if held.concluding:
                    raise
                await self._stopped(delivery, held, job)
            except Interrupted as exc:
                await self._returned(delivery, held, attempt, exc)
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

    async def _returned(self, delivery: Delivery, held: Held, attempt: Attempt, exc: Interrupted) -> None:
        """Return the job to the queue; the kind of the reason says whether that is an attempt."""
        if is_failed_attempt(exc):
            await self._failed(delivery, held, attempt, exc)
            return
        held.concluding = True
        delay_s = _CROWDED_DELAY_S if exc.delay_s is None else exc.delay_s
        await self._interrupted(delivery, held, attempt.job, str(exc), delay_s)

    async def _turned_away(self, delivery: Delivery, held: Held, job: Job) -> bool:
        """Whether it has gone back at once, because this is not the time for it."""
        if self._course.stopping.is_set() or delivery.lost.done():  # the last long poll brought it
            await self._interrupted(delivery, held, job)
            return True
        held.job = job
        away_s = self._course.away_s(held, delivery)
        if away_s is None:
            return await self._replaced(delivery, held)
        held.concluding = True
        reason = "enough jobs of the function wait here for its share (FUNCTION_MAX_SHARE)"
        await self._interrupted(delivery, held, job, reason, away_s)
        return True

    async def _replaced(self, delivery: Delivery, held: Held) -> bool:
        """Whether a fresh copy has taken its place, as it has to be after the last receipt.

        Should this worker die with it, the queue would move it away, and nobody would be told. A queue that
        hands everything out but once would have it copied for ever.
        """
        if delivery.receive_count == 1 or not self._parts.broker.is_last(delivery):
            return False
        held.concluding = True
        held.concluding = await _uninterrupted(self._parts.broker.give_back(delivery, 0))
        return held.concluding

    @asynccontextmanager
    async def _alone(self, request_id: str, held: Held) -> AsyncIterator[None]:
        """Enter when no other delivery of the same request is being worked on here.

        Raises:
            Interrupted: Another waits for that already.
        """
        while (current := self._requests.get(request_id)) is not None:
            if current.twins >= _MAX_TWINS:
                raise Interrupted("the same request is being worked on", why=Why.DUPLICATE)
            held.twin = True
            current.twins += 1
            self._course.moved()
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
        """Return a job that would run without a guard.

        Raises:
            Interrupted: One of the runtime's guards does not stand.
        """
        if (reason := self._parts.blocked(runtime)) is not None:
            others = any(self._parts.blocked(other) is None for other in Runtime)
            why = Why.RUNTIME_BLOCKED if others else Why.NO_RUNTIME
            raise Interrupted(f"no {runtime} jobs are taken here: {reason}", why=why)

    def _begun(self, held: Held) -> None:
        held.running = True
        held.running_since = time.monotonic()
        self._course.moved()

    @asynccontextmanager
    async def _claimed(self, delivery: Delivery, held: Held, request_id: str) -> AsyncIterator[Claim | None]:
        """Enter with the right to answer the request; it is let go unless the block has answered.

        None, with the delivery settled, when there is an answer already: it is announced again, and nothing
        runs twice.

        Raises:
            Interrupted: Another worker is about to give one.
        """
        await self._parts.spool.delivered(request_id)  # of an earlier life of this worker, say
        claim = await self._parts.sink.claim(request_id)
        self._course.streak.worked(Why.NOT_CLAIMED)
        if isinstance(claim, Answered):
            held.concluding = True
            await _uninterrupted(self._settle_answered(delivery, claim.document))
            yield None
            return
        if isinstance(claim, Taken):
            delay_s = taken_delay_s(claim.left_s, claim.refusals)
            raise Interrupted("another worker is working on the request", delay_s, why=Why.CLAIMED_ELSEWHERE)
        held.claim = claim
        claim.lost.add_done_callback(lambda _: self._stop_superseded(held))
        try:
            yield claim
        except BaseException as exc:
            failed = is_failed_attempt(exc) and not held.is_lost(delivery)
            held.concluding = held.concluding or failed
            await _uninterrupted(self._release(held, claim, failed=failed))
            raise

    async def _release(self, held: Held, claim: Claim, *, failed: bool) -> None:
        if claim.lost.done():
            return
        try:
            held.failures = await self._parts.sink.release(claim, failed=failed)
        except SinkError as exc:
            log.warning("claim not released; it runs out", reason=str(exc))

    async def _settle_answered(self, delivery: Delivery, document: bytes) -> None:
        """Its result has just been published again; a message that was given up is still to be buried."""
        log.info("already done; its result is published again")
        if results.is_given_up(document):
            await self._bury(delivery, results.decode(document))
        else:
            await self._parts.broker.ack(delivery)

    def _stop_superseded(self, held: Held) -> None:
        self._parts.metrics.claim_lost()
        held.stop()

    # --- calling off

    async def _run_unless_called_off(
        self, delivery: Delivery, held: Held, attempt: Attempt, claim: Claim
    ) -> Result:
        if claim.cancelled:
            return self._parts.executor.cancelled(attempt)
        if claim.failures >= self._settings.max_attempts:
            # The last one ended with its worker, or could not be told of.
            raise GivenUp(_ATTEMPTS_FAILED.format(failures=claim.failures))
        job = attempt.job
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

    def _call_off(self, held: Held, attempt: Attempt) -> None:
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
        self, delivery: Delivery, held: Held, claim: Claim, result: Result, job: Job | jobs.InvalidJob
    ) -> None:
        """Store and publish the result, then delete the message.

        Raises:
            Superseded: Someone else has claimed the request since.
        """
        document = await self._parts.outputs.document(result, job.locale, claim.token)
        if held.running_since is not None and result.error_type is not ErrorType.CANCELLED:
            held.took_s = time.monotonic() - held.running_since
        await self._finish(delivery, held, claim, document)
        self._count(result, "" if isinstance(job, jobs.InvalidJob) else job.model_id)

    async def _finish(self, delivery: Delivery, held: Held, claim: Claim, document: bytes) -> None:
        """The last two effects, in order; once begun they are not interrupted."""
        if held.is_lost(delivery):  # in this very turn of the loop: the cancellation has not come yet
            raise Superseded("its lease or its claim was lost just now")
        held.running = held.concluding = True

        async def finish() -> None:
            published = await self._publish(claim, document)
            if published is None:
                # Whoever starts next with this folder delivers it; nobody needs to run the job before.
                delay_s = self._settings.retry_max_seconds
                await self._give_back_or_bury(delivery, delay_s, "its result waits on its worker's disk")
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
            published = await self._parts.sink.publish(claim, document)
        except SinkError as exc:
            log.warning("result kept until Redis takes it", reason=str(exc))
        else:
            self._course.streak.worked(Why.NOT_TOLD)
            return published
        delivered = await self._parts.spool.keep(claim, document)
        hurried = asyncio.create_task(self._course.hurry.wait())
        either: set[asyncio.Future[Any]] = {delivered, hurried}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        return delivered.result() if delivered.done() else None

    async def _failed(self, delivery: Delivery, held: Held, attempt: Attempt, failure: PlatformError) -> None:
        """Our fault: try again later, or, after the last attempt, tell the sender and bury the message.

        Without Redis nothing is counted, and nothing given up, since nobody could be told: the job comes back
        with the delay that its receipts give it, which grows, and intake has ended until Redis is back. Its
        attempt is counted then all the same if another worker finds the claim, which could not be let go.
        """
        job = attempt.job
        if held.is_lost(delivery):
            await self._stopped(delivery, held, job)  # whoever has it now is told nothing of this
            return
        held.concluding = True
        if held.claim is None:  # it was not to be learnt who may answer: nothing was tried
            self._course.streak.returned(Why.NOT_CLAIMED, str(failure))
            await self._interrupted(delivery, held, job, str(failure), self._delay_s(delivery.receive_count))
            return
        if isinstance(failure, GivenUp):
            attempt.number -= 1  # it was not made
            await self._give_up(delivery, held.claim, attempt, failure)
            return
        self._parts.metrics.attempt_failed()
        untried = isinstance(failure, Interrupted)
        event = "return counted as an attempt" if untried else "attempt failed"
        log.warning(event, reason=str(failure), failures=held.failures)
        if held.failures is None or held.failures < self._settings.max_attempts:
            failures = held.failures or delivery.receive_count
            delay_s = self._delay_s(failures)
            if untried:
                delay_s = returns.counted_delay_s(failures, self._settings.retry_max_seconds)
            if await _uninterrupted(self._parts.broker.give_back(delivery, delay_s)):
                return
        await self._give_up(delivery, held.claim, attempt, failure)

    def _delay_s(self, failures: int) -> float:
        settings = self._settings
        return retry_delay_s(
            failures, settings.retry_base_seconds, settings.retry_max_seconds, self._jitter()
        )

    async def _give_up(
        self, delivery: Delivery, claim: Claim, attempt: Attempt, failure: PlatformError
    ) -> None:
        """Tell the sender, then bury the message.

        The claim has been let go when the attempt failed; its token is good until someone has a newer one.
        """
        result = self._parts.executor.failed(attempt, failure)
        await _uninterrupted(self._tell_and_bury(delivery, claim, result, attempt.job.model_id))

    async def _tell_and_bury(self, delivery: Delivery, claim: Claim, result: Result, model: str) -> None:
        try:
            published = await self._parts.sink.publish(claim, results.encode(result))
        except SinkError as exc:
            log.warning("result not published", reason=str(exc))
            self._course.streak.returned(Why.NOT_TOLD, str(exc))
            published = False
        else:
            self._course.streak.worked(Why.NOT_TOLD)
        if published:
            await self._bury(delivery, result)
            self._count(result, model)
        else:  # whoever waits must be told before the message may go; its attempts stay counted
            delay_s = self._settings.retry_max_seconds
            await self._give_back_or_bury(delivery, delay_s, "it was given up, and its sender not told")

    async def _bury(self, delivery: Delivery, result: Result) -> None:
        """Move the message of a job that was given up, and whose sender has been told, out of the way."""
        reason = result.error_message or ErrorType.PLATFORM
        if not await self._parts.broker.bury(delivery, reason, result.attempt):
            log.error("given up, and there is no dead-letter queue", body=delivery.body)
            await self._parts.broker.ack(delivery)

    async def _give_back_or_bury(self, delivery: Delivery, delay_s: float, reason: str) -> None:
        """Where it would not come again, and nobody can be told, have the dead-letter queue say why."""
        if not await self._parts.broker.give_back(delivery, delay_s):
            log.error("buried, and nobody was told", reason=reason, message_id=delivery.message_id)
            await self._parts.broker.bury(delivery, reason)

    async def _stopped(self, delivery: Delivery, held: Held, job: Job) -> None:
        """It was cancelled: by a drain, or because someone else has it already."""
        held.concluding = True
        if delivery.lost.done():  # giving it back does nothing then
            await self._interrupted(delivery, held, job, f"its lease is lost: {delivery.lost.result()}")
        elif held.claim is not None and held.claim.lost.done():
            # Should the other worker have another message of the request, the answer is there then.
            delay_s = taken_delay_s(self._settings.sqs_visibility_seconds)
            reason = f"its claim is lost: {held.claim.lost.result()}"
            await self._interrupted(delivery, held, job, reason, delay_s)
        else:
            # A twin comes back when the run that it waits for, which the drain lets finish, is over.
            delay_s = self._course.left_s() if held.twin else 0
            reason = held.stopped_for or "the worker is stopping"
            await self._interrupted(delivery, held, job, reason, delay_s)

    async def _interrupted(
        self,
        delivery: Delivery,
        held: Held,
        job: Job,
        reason: str = "the worker is stopping",
        delay_s: float = 0,
    ) -> None:
        """Someone else can have the job; this was no attempt."""
        self._count_interrupted(job.runtime, job.model_id)
        if await _uninterrupted(self._parts.broker.give_back(delivery, delay_s)):
            log.info("given back", reason=reason)
        else:
            await _uninterrupted(self._withdraw(delivery, held, job, reason))

    def _count_interrupted(self, runtime: str, model: str) -> None:
        outcome = results.OUTCOMES[ErrorType.INTERRUPTED]
        self._parts.metrics.job_finished(outcome.label, runtime, model, None)

    async def _withdraw(self, delivery: Delivery, held: Held, job: Job, reason: str) -> None:
        """Answer a job that has to be given back, and whose message would not come again, and bury that.

        Somebody else may have the right to answer, and is waited for; not for ever, when the worker stops.
        """
        log.warning("it would not come again, and is given up", reason=reason)
        try:
            async with self._alone(job.request_id, held):
                claim = await self._claim_when_free(job.request_id)
                if isinstance(claim, Answered):
                    await self._settle_answered(delivery, claim.document)
                    return
                if claim is not None:
                    attempt = Attempt(job, claim.failures, 0)
                    failure = GivenUp(_RECEIPTS_USED_UP)
                    await self._tell_and_bury(
                        delivery, claim, self._parts.executor.failed(attempt, failure), job.model_id
                    )
                    return
        except (Interrupted, SinkError) as exc:
            reason = f"{reason}; {exc}"
        await self._give_back_or_bury(delivery, 0, reason)

    async def _claim_when_free(self, request_id: str) -> Claim | Answered | None:
        while isinstance(claim := await self._parts.sink.claim(request_id), Taken):
            if self._course.stopping.is_set():
                return None
            with suppress(TimeoutError):
                async with asyncio.timeout(claim.left_s):
                    await self._course.stopping.wait()
        return claim

    async def _settle_poison(self, delivery: Delivery, problem: str) -> None:
        """A message that names no request: nobody can be told but those who read logs and the queue."""
        if envelope := envelopes.recognised(delivery.body):
            problem = f"{problem} ({envelope})"
        outcome = results.OUTCOMES[ErrorType.UNREADABLE]
        assert outcome.settle is Settle.POISON  # noqa: S101 - the table and this method are one decision
        self._parts.metrics.job_finished(outcome.label, "", "", None)
        if await self._parts.broker.redrives():
            say = log.warning if delivery.receive_count == 1 else log.info  # it comes again, unchanged
            say("unreadable message left to the redrive policy", problem=problem)
            # While it is hidden it keeps its message group, if it has one, from everyone.
            delay_s = self._delay_s(1 if delivery.in_order else delivery.receive_count)
            await self._parts.broker.give_back(delivery, delay_s, poison=True)
        elif await self._parts.broker.bury(delivery, problem):
            log.warning("unreadable message moved to the dead-letter queue", problem=problem)
        else:
            log.error("unreadable message dropped: no dead-letter queue", problem=problem, body=delivery.body)
            await self._parts.broker.ack(delivery)

    async def _refuse(self, delivery: Delivery, held: Held, invalid: jobs.InvalidJob) -> None:
        """Tell the sender of a job that it is none, unless its request has another answer, or gets one."""
        try:
            async with (
                self._alone(invalid.request_id, held),
                self._claimed(delivery, held, invalid.request_id) as claim,
            ):
                if claim is not None:
                    await self._conclude(delivery, held, claim, self._invalid(claim, invalid), invalid)
        except SinkError as exc:
            self._course.streak.returned(Why.NOT_CLAIMED, str(exc))
            self._count_interrupted(invalid.runtime, "")
            delay_s = self._delay_s(delivery.receive_count)
            await _uninterrupted(self._give_back_or_bury(delivery, delay_s, str(exc)))
        except (Interrupted, Superseded) as exc:
            delay_s = taken_delay_s(self._settings.sqs_visibility_seconds)
            if isinstance(exc, Interrupted) and exc.delay_s is not None:
                delay_s = exc.delay_s
            self._count_interrupted(invalid.runtime, "")
            await _uninterrupted(self._give_back_or_bury(delivery, delay_s, str(exc)))

    def _invalid(self, claim: Claim, invalid: jobs.InvalidJob) -> Result:
        return results.Result(
            request_id=invalid.request_id,
            function_id=invalid.function_id,
            runtime=invalid.runtime,
            status=results.Status.FAILED,
            error_type=invalid.rejection.error_type,
            error_message=invalid.rejection.message.in_(invalid.locale),
            hint=invalid.rejection.hint.in_(invalid.locale)
            if invalid.rejection.hint is not None
            else results.hint_for(invalid.rejection.error_type, invalid.locale),
            worker_id=self._settings.worker_id,
            attempt=claim.failures + 1,
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


async def _uninterrupted(work: Awaitable[_T]) -> _T:
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
    result = task.result()
    if cancelled:
        raise asyncio.CancelledError
    return result
