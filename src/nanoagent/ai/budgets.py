"""Whether there is room for another call: what a run, and a function, may spend.

Tokens are known only when an answer has ended, so a call reserves what it may need beforehand: its prompt as
estimated, and as many tokens of answer as it asks for or as are left for it. What it did not use is free
again when it settles. So the limit is passed by no more than what the prompts that are in flight were
estimated too low by, and by answers of upstreams that do not keep to the bound they were given; streams that
pass it are cut.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nanoagent.ai.refusals import Refused
from nanoagent.common.token_bucket import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_FUNCTIONS: Final = 4096  # beyond that, those that have been idle longest start afresh
_LEAST_SHARE: Final = 256  # tokens: less is no answer, so the calls beside get less instead


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """What one run may spend; 0 is without limit. The settings AI_MAX_… say what each means."""

    tokens: int = 0
    requests: int = 0
    concurrent: int = 0
    bytes: int = 0


class RunBudget:
    """What is left for one run.

    Args:
        limits: What it may spend.
        function: The tokens that its function has left.
    """

    def __init__(self, limits: RunLimits, function: FunctionBudget | None = None) -> None:
        self._limits = limits
        self._function = function
        self._requests = 0
        self._in_flight = 0
        self._bytes = 0
        self.used = 0
        self.reserved = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """One request from its headers on to its end.

        Raises:
            Refused: There are enough, at a time or altogether.
        """
        limits = self._limits
        if limits.requests and self._requests >= limits.requests:
            raise Refused(
                429,
                f"this run has made its {limits.requests} requests of models "
                f"(AI_MAX_REQUESTS={limits.requests}); make fewer, or have AI_MAX_REQUESTS raised",
                "request_limit",
            )
        if limits.concurrent and self._in_flight >= limits.concurrent:
            raise Refused(
                429,
                f"{self._in_flight} requests of this run are in flight, as many as may be at a time "
                f"(AI_MAX_CONCURRENT={limits.concurrent}); wait for one, or have AI_MAX_CONCURRENT raised",
                "concurrency_limit",
                retry_after_s=1,
            )
        self._requests += 1
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def spend_bytes(self, count: int) -> None:
        """So many more bytes of a request or an answer.

        Raises:
            Refused: They are too many.
        """
        self._bytes += count
        if self._limits.bytes and self._bytes > self._limits.bytes:
            raise Refused(
                413,
                f"the requests and answers of this run are over AI_MAX_BYTES={self._limits.bytes}; "
                "ask for less, or have AI_MAX_BYTES raised",
                "byte_limit",
            )

    def reserve(self, prompt_tokens: int, wanted_tokens: int | None, *, answers: int) -> Reservation:
        """Room for a call.

        Args:
            prompt_tokens: Of its prompt, estimated.
            wanted_tokens: Of its answer at most, all choices together; None: it does not say.
            answers: How many answers of tokens it asks for; each has one token at the least.

        Raises:
            Refused: There is none.
        """
        left = self._left(prompt_tokens, answers=answers)
        if left is None:
            return Reservation(self, self._function, 0, None)
        if not answers:
            cap = 0
        elif wanted_tokens is not None:
            cap = min(wanted_tokens, left - prompt_tokens)
        else:
            cap = max(answers, self._share(left - prompt_tokens))
        return Reservation(self, self._function, prompt_tokens + cap, cap)

    def _left(self, prompt_tokens: int, *, answers: int) -> int | None:
        """How many tokens there are for this call, None without limit."""
        needed = prompt_tokens + answers
        left: list[int] = []
        if self._limits.tokens:
            left.append(self._limits.tokens - self.used - self.reserved)
            if left[-1] < needed:
                raise self._refusal(needed)
        if self._function is not None:
            left.append(self._function.left(needed))
        return min(left) if left else None

    def _refusal(self, needed: int) -> Refused:
        limit = self._limits.tokens
        waits = limit - self.used >= needed
        held = f", and {self.reserved} are reserved by calls in flight" if self.reserved else ""
        return Refused(
            429,
            f"this run has used {self.used} of its {limit} tokens (AI_MAX_TOKENS={limit}){held}; this call "
            f"needs about {needed}: ask for less, or have AI_MAX_TOKENS raised",
            "token_limit",
            retry_after_s=1 if waits else None,
        )

    def _share(self, left: int) -> int:
        """The answer's part of what is left, for one that names none: other calls may come beside it."""
        others = max(1, self._limits.concurrent - self._in_flight + 1)
        return min(left, max(_LEAST_SHARE, left // others))

    def is_passed(self, beside: int) -> bool:
        """Whether so many tokens beside those that are used are too many."""
        return bool(self._limits.tokens) and self.used + beside > self._limits.tokens


class Reservation:
    """Room that one call has; settle it once."""

    def __init__(self, run: RunBudget, function: FunctionBudget | None, tokens: int, cap: int | None) -> None:
        self._run = run
        self._function = function
        self._tokens = tokens
        self.cap = cap
        """Tokens that its answer may have, all choices together; None: any number."""
        run.reserved += tokens
        if function is not None:
            function.reserved += tokens

    def is_passed(self, tokens: int) -> bool:
        """Whether a call that has used so many by now has to be cut.

        Only what has been used counts, by this call and those that have ended: what others have reserved they
        may leave.
        """
        return self._run.is_passed(tokens)

    def settle(self, tokens: int) -> None:
        """The call is over and has used so many."""
        self._run.reserved -= self._tokens
        self._run.used += tokens
        if self._function is not None:
            self._function.reserved -= self._tokens
            self._function.spend(tokens)


class FunctionBudget:
    """Tokens per minute of one function: a bucket that fills steadily and may be overdrawn.

    Args:
        per_minute: How many come in a minute, and fit.
        now: The clock, seconds.
    """

    def __init__(self, per_minute: int, now: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._now = now
        self._bucket = TokenBucket.full(per_minute, per_minute, now(), period_s=60)
        self.reserved = 0

    @property
    def is_idle(self) -> bool:
        """Whether one that starts afresh would be the same."""
        return not self.reserved and self._bucket.level(self._now()) >= self._per_minute

    def left(self, needed: int) -> int:
        """How many tokens there are now.

        Raises:
            Refused: Fewer than are needed.
        """
        left = int(self._bucket.level(self._now())) - self.reserved
        if left >= needed:
            return left
        limit = self._per_minute
        wait_s = math.ceil((needed - left) * 60 / limit)
        raise Refused(
            429,
            f"this function may use {limit} tokens a minute on this worker "
            f"(AI_FUNCTION_TOKENS_PER_MINUTE={limit}) and has {max(0, left)} left; this call needs about "
            f"{needed}: wait, ask for less, or have AI_FUNCTION_TOKENS_PER_MINUTE raised",
            "function_token_limit",
            retry_after_s=wait_s if needed <= limit else None,
        )

    def spend(self, tokens: int) -> None:
        """So many were used."""
        self._bucket.spend(tokens, self._now())


class FunctionBudgets:
    """The budgets of all functions of this worker.

    Args:
        per_minute: Of each; 0: without limit.
        now: The clock, seconds.
    """

    def __init__(self, per_minute: int, now: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._now = now
        self._budgets: OrderedDict[str, FunctionBudget] = OrderedDict()

    def of(self, function_id: str) -> FunctionBudget | None:
        """A function's budget, None where there is no limit."""
        if not self._per_minute:
            return None
        budget = self._budgets.get(function_id)
        if budget is None:
            self._make_room()
            budget = self._budgets[function_id] = FunctionBudget(self._per_minute, self._now)
        self._budgets.move_to_end(function_id)
        return budget

    def _make_room(self) -> None:
        """Forget what was asked for longest ago: those that are full are no loss, and go first."""
        if len(self._budgets) < _MAX_FUNCTIONS:
            return
        idle = [name for name, budget in self._budgets.items() if budget.is_idle]
        for name in idle or [next(iter(self._budgets))]:
            del self._budgets[name]
