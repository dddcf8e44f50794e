"""A circuit breaker: a service that keeps failing is left alone, and is tried again after a pause that grows.

It decides, and does nothing. Its states:

* **closed**: calls are made. Failures in a row are counted; the last of `threshold` opens it.
* **open**: `reason` says why. Once `open_until` has passed, the owner may try again, in one of two ways.
  The pool makes one real call (`allows`), and reports how that ended. The object store is asked whether it
  answers; if so, `try_again` lets every call through, on trial.
* **on trial**: calls are made. The next failure opens it again, for longer; a success closes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoagent.common.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Hashable


class CircuitBreaker:
    """The state of one service.

    Args:
        threshold: How many failures in a row open it.
        first_s: The first pause, seconds.
        longest_s: The longest pause, seconds.
        counts_late: Whether a failure during the pause, of a call that began before, lengthens the pause.

    Attributes:
        failures: How many failures in a row there were.
        reason: Why it is open; None while it is not.
        on_trial: Why it was open last, until a success; None if no trial has begun since.
        open_until: When it may be tried again, monotonic seconds.
    """

    def __init__(
        self, threshold: int, *, first_s: float, longest_s: float, counts_late: bool = False
    ) -> None:
        self.failures = 0
        self.reason: str | None = None
        self.on_trial: str | None = None
        self.open_until = 0.0
        self._threshold = threshold
        self._backoff = Backoff(first_s, longest_s)
        self._counts_late = counts_late
        self._causes: set[Hashable] = set()

    # --- questions

    @property
    def is_broken(self) -> bool:
        """Whether it has opened, and there was no success or trial since."""
        return self.reason is not None

    def is_open(self, now: float) -> bool:
        """Whether it is broken and its pause is not over."""
        return self.is_broken and now < self.open_until

    def allows(self, now: float, in_flight: int) -> bool:
        """Whether a call may begin. If it is broken: after the pause, and one call at a time.

        Args:
            now: The time, monotonic seconds.
            in_flight: How many calls have begun and not ended.
        """
        return not self.is_broken or (now >= self.open_until and in_flight == 0)

    # --- changes

    def failed(self, reason: str, now: float, *, cause: Hashable = None) -> None:
        """A call has failed.

        Args:
            reason: One sentence for people.
            now: The time, monotonic seconds.
            cause: What the call was made for. Failures for the same cause count once; None: each counts.
        """
        if cause is None or cause not in self._causes:
            self.failures += 1
        if cause is not None:
            self._causes.add(cause)
        if self.on_trial is not None or self.failures >= self._threshold:
            self.open(reason, now)

    def open(self, reason: str, now: float) -> None:
        """Open it, whatever has been counted. Opened again after its pause, it stays so for longer."""
        if self.is_open(now) and not self._counts_late:
            return
        self.reason = reason
        self.open_until = now + self._backoff.next_s()

    def try_again(self) -> None:
        """Let calls through, on trial."""
        self.on_trial, self.reason = self.reason, None

    def succeeded(self) -> None:
        """A call has succeeded: the cause of the failures is gone."""
        self.reason = self.on_trial = None
        self.failures = 0
        self.open_until = 0.0
        self._causes.clear()
        self._backoff.reset()
