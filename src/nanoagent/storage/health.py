"""Decides whether the object store can be used: a circuit breaker, and a probe of the service.

After a failure of the service, the probe asks whether the store answers at all. The probe also runs if calls
are in progress and the store has not answered for three seconds. The circuit breaker opens in these cases:

* if the probe fails;
* if calls for three different jobs or objects fail in a row;
* if three calls in a row are throttled;
* at once, if a write fails because of the worker's credentials, permissions or clock, or because of the
  bucket of outputs. No user's job can cause such a failure.

After a pause, which grows each time, a successful probe begins a trial: calls are made again. The next
failure opens the circuit breaker again; a success closes it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.aws import failures as aws_failures
from nanoagent.aws.failures import FailureKind
from nanoagent.common.circuit_breaker import CircuitBreaker
from nanoagent.model.errors import ReturnToQueue, StorageError
from nanoagent.model.returns import ReturnReason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_THRESHOLD: Final = 3
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_SILENCE_S: Final = 3.0
# Only the operator can correct these failures.
_CONFIGURATION_FAILURES: Final = frozenset(
    {
        FailureKind.NO_CREDENTIALS,
        FailureKind.REFUSED,
        FailureKind.CLOCK,
        FailureKind.DENIED,
        FailureKind.NO_BUCKET,
    }
)

_log = structlog.get_logger(__name__)


def storage_breaker() -> CircuitBreaker:
    """Return a circuit breaker for an object store. Failures of one job or object count once."""
    return CircuitBreaker(_THRESHOLD, first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S)


class StoreHealth:
    """Whether one object store can be used; see the module's docstring.

    Args:
        probe: Asks whether the store answers. If the store fails, or does not answer within a limited time,
            the probe raises `StorageError`.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self, probe: Callable[[], Awaitable[None]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._probe = probe
        self._clock = clock
        self._breaker = storage_breaker()
        self._started: dict[object, float] = {}
        self._answered_at = clock()
        self._changed = asyncio.Event()
        self._probing: asyncio.Task[str | None] | None = None

    @property
    def reason(self) -> str | None:
        """Why the store cannot be used; None if calls may be made."""
        return self._breaker.reason

    @property
    def trial_reason(self) -> str | None:
        """Why the store was unusable before the last trial; None if no trial began since the last success."""
        return self._breaker.trial_reason

    @property
    def is_usable_without_probe(self) -> bool:
        """Whether calls may be made and `check` would not probe the store now."""
        return self._breaker.reason is None and not self._is_silent(self._clock())

    async def check(self) -> None:
        """Probe the store if a probe is due. Open the circuit breaker if it fails; else begin a due trial."""
        breaker, now = self._breaker, self._clock()
        if breaker.reason is not None and now >= breaker.open_until:
            failure = await self._probe_shared()
            if failure is not None:
                breaker.open(failure, self._clock())
            elif breaker.reason is not None:
                breaker.try_again()
                _log.info("object store available again")
        elif self._is_silent(now) and (failure := await self._probe_shared()) is not None:
            self.open(failure)
        self.wake_waiting()

    def begin_call(self) -> object:
        """Record that a call is in progress; returns its handle for `end_call`."""
        call = object()
        self._started[call] = self._clock()
        return call

    def end_call(self, call: object) -> None:
        """Record that a call has ended."""
        del self._started[call]

    def answered(self) -> None:
        """Record that the store has answered, even with a refusal."""
        self._answered_at = self._clock()

    def succeeded(self) -> None:
        """Close the circuit breaker: a call has succeeded."""
        self.answered()
        self._breaker.record_success()
        self.wake_waiting()

    def count_failure(self, reason: str, *, cause: str | None = None) -> None:
        """Count a failure; the third in a row opens the circuit breaker.

        Args:
            reason: The failure, one sentence.
            cause: The job or object of the call. Failures with the same cause count once; None: each counts.
        """
        was_open = self._breaker.is_open
        self._breaker.record_failure(reason, self._clock(), cause=cause)
        self._log_opening(was_open=was_open)

    def open(self, reason: str) -> None:
        """Open the circuit breaker, regardless of the number of failures."""
        was_open = self._breaker.is_open
        self._breaker.open(reason, self._clock())
        self._log_opening(was_open=was_open)

    def _log_opening(self, *, was_open: bool) -> None:
        if self._breaker.is_open and not was_open:
            _log.warning("object store unavailable", reason=self._breaker.reason)

    async def failed(self, error: StorageError, *, cause: str, is_write: bool) -> None:
        """Count a failed call, probe the store if necessary, and decide whether the job must be returned.

        Args:
            error: The failure.
            cause: The job or object of the call.
            is_write: Whether the call was a write.

        Raises:
            ReturnToQueue: The store cannot be used, or throttles; the job is not at fault.
        """
        kind = aws_failures.failure_kind(error.__cause__)
        if kind is None:  # for example a failure of the local disk
            return
        throttled = kind is FailureKind.THROTTLED
        if is_write and kind in _CONFIGURATION_FAILURES:
            self.open(str(error))
        else:
            self.count_failure(str(error), cause=None if throttled else cause)
        if self.reason is None and not throttled:
            failure = await self._probe_shared()
            if failure is not None:
                self.open(failure)
        self.wake_waiting()
        if self.reason is not None or throttled:
            raise unavailable(self.reason or str(error)) from error

    async def wait_until_usable(self, give_up_at: float) -> None:
        """Wait while the store cannot be used.

        Args:
            give_up_at: The end of the wait, seconds of the clock.

        Raises:
            ReturnToQueue: The store could not be used by then.
        """
        while (reason := self.reason) is not None:
            try:
                async with asyncio.timeout(max(0.0, give_up_at - self._clock())):
                    await self._changed.wait()
            except TimeoutError as exc:
                raise unavailable(reason) from exc

    def wake_waiting(self) -> None:
        """Make the calls of `wait_until_usable` check again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Cancel a probe that is in progress. Idempotent."""
        if self._probing is not None:
            self._probing.cancel()

    def _is_silent(self, now: float) -> bool:
        """Whether calls are in progress and the store has not answered for some seconds."""
        oldest = min(self._started.values(), default=now)
        return now - max(oldest, self._answered_at) > _SILENCE_S

    async def _probe_shared(self) -> str | None:
        """Probe the store; returns the failure, None without one. Callers share a probe in progress."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe_once())
        return await asyncio.shield(self._probing)

    async def _probe_once(self) -> str | None:
        try:
            await self._probe()
        except StorageError as exc:
            return str(exc)
        self.answered()
        return None


def unavailable(reason: str) -> ReturnToQueue:
    """Return the exception that returns a job to the queue because the store cannot be used."""
    return ReturnToQueue(f"the object store is unavailable: {reason}", reason=ReturnReason.STORE_UNAVAILABLE)
