"""A circuit breaker: stops calls to a service that keeps failing, and tries the service again after a pause.

The circuit breaker only keeps the state; its owner makes the calls. The states:

* **closed**: calls are made. After `threshold` failures in a row, the circuit breaker opens.
* **open**: no calls are made until `open_until`. Then the owner may try again, in one of three ways. The
  container pool makes one real call (`allows`), and reports its result. The intake receives one message
  (`model.returns`). The object store is probed; if it answers, `try_again` allows every call, on trial.
* **on trial**: calls are made. A failure opens the circuit breaker again, for longer. A success closes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoagent.common.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Hashable


class CircuitBreaker:
    """The state of the circuit breaker for one service.

    Args:
        threshold: The number of failures in a row that opens the circuit breaker.
        first_s: The first pause, seconds.
        longest_s: The longest pause, seconds.
        counts_late: Whether a failure during the pause lengthens the pause. Such a failure is that of a call
            that began before the pause.

    Attributes:
        failures: The number of failures in a row. Failures with the same cause count once.
        reason: Why the circuit breaker is open; None in the other states.
        trial_reason: Why it was open before the last trial; None if no trial has begun since the last
            success.
        open_until: The end of the pause, monotonic seconds.
    """

    def __init__(
        self, threshold: int, *, first_s: float, longest_s: float, counts_late: bool = False
    ) -> None:
        self.failures = 0
        self.reason: str | None = None
        self.trial_reason: str | None = None
        self.open_until = 0.0
        self._threshold = threshold
        self._backoff = Backoff(first_s, longest_s)
        self._counts_late = counts_late
        self._causes: set[Hashable] = set()

    # --- questions

    @property
    def is_open(self) -> bool:
        """Whether the state is open. The pause may be over."""
        return self.reason is not None

    def is_pausing(self, now: float) -> bool:
        """Whether the state is open and the pause is not over."""
        return self.is_open and now < self.open_until

    def allows(self, now: float, in_flight: int) -> bool:
        """Whether a call may begin. In the open state, one call at a time may begin after the pause.

        Args:
            now: The time, monotonic seconds.
            in_flight: The number of calls in progress.
        """
        return not self.is_open or (now >= self.open_until and in_flight == 0)

    # --- changes

    def record_failure(self, reason: str, now: float, *, cause: Hashable = None) -> None:
        """Count a failed call. This may open the circuit breaker.

        Args:
            reason: The failure, one sentence.
            now: The time, monotonic seconds.
            cause: The job or object of the call. Failures with the same cause count once. None: each counts.
        """
        if cause is None or cause not in self._causes:
            self.failures += 1
        if cause is not None:
            self._causes.add(cause)
        if self.trial_reason is not None or self.failures >= self._threshold:
            self.open(reason, now)

    def open(self, reason: str, now: float) -> None:
        """Open the circuit breaker, regardless of the number of failures. The pause grows each time."""
        if self.is_pausing(now) and not self._counts_late:
            return
        self.reason = reason
        self.open_until = now + self._backoff.next_s()

    def try_again(self) -> None:
        """Allow calls, on trial."""
        self.trial_reason, self.reason = self.reason, None

    def record_success(self) -> None:
        """Close the circuit breaker: a call has succeeded."""
        self.reason = self.trial_reason = None
        self.failures = 0
        self.open_until = 0.0
        self._causes.clear()
        self._backoff.reset()
