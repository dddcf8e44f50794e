"""Token budgets: the tokens that a run and its function may still use, and the run's requests and bytes.

The tokens of a call are known only when its answer has ended. So each call first reserves the tokens that it
may need: those of its estimated prompt, and those of the answer. A request without a bound on its answer
reserves a share of the tokens that are left. When the call settles, the unused part of the reservation is
free again.

A run can exceed its limit in three cases: the prompts in flight were estimated too low; a model server
ignores the bound on its answer; or the gateway sent no bound, because some servers refuse large ones
(`calls._SAFE_BOUND`). In all cases the gateway ends a stream that exceeds the limit.
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

    from nanoagent.ai.limits import RunLimits

_MAX_FUNCTIONS: Final = 4096
_MIN_ANSWER_TOKENS: Final = 256  # a shorter answer is useless; concurrent calls may get less because of this


class RunBudget:
    """The budget of one run.

    Args:
        limits: The limits of the run.
        function: The budget of its function; None if functions have no limit.

    Attributes:
        used: Tokens of the calls that have ended.
        reserved: Tokens that calls in flight have reserved.
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
        """Count one request, and count it as in flight until the end of the block.

        Raises:
            Refused: The run has made all its requests, or has too many in flight.
        """
        limits = self._limits
        if limits.requests and self._requests >= limits.requests:
            raise Refused(
                429,
                f"this run has made its {limits.requests} requests to models "
                f"(AI_MAX_REQUESTS={limits.requests}); make fewer, or have AI_MAX_REQUESTS raised",
                "request_limit",
            )
        if limits.concurrent and self._in_flight >= limits.concurrent:
            raise Refused(
                429,
                f"this run has {self._in_flight} requests in flight (AI_MAX_CONCURRENT={limits.concurrent}); "
                "wait for one to end, or have AI_MAX_CONCURRENT raised",
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
        """Count more bytes of a request or an answer.

        Raises:
            Refused: The run exceeds its limit.
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
        """Reserve tokens for a call.

        Args:
            prompt_tokens: The estimated tokens of the prompt.
            wanted_tokens: The request's own bound on the tokens of all its answers together; None if it sets
                none.
            answers: The number of answers that consist of tokens. Each has at least one token.

        Raises:
            Refused: Not enough tokens are left.
        """
        left = self._left(prompt_tokens, answers=answers)
        if left is None:
            return Reservation(self, self._function, 0, None)
        if not answers:
            cap = 0
        elif wanted_tokens is not None:
            cap = min(wanted_tokens, left - prompt_tokens)
        else:
            cap = max(answers, self._default_cap(left - prompt_tokens))
        return Reservation(self, self._function, prompt_tokens + cap, cap)

    def _left(self, prompt_tokens: int, *, answers: int) -> int | None:
        """Return how many tokens are left for a call; None without a limit."""
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
        can_retry = limit - self.used >= needed
        held = f", and {self.reserved} are reserved by calls in flight" if self.reserved else ""
        return Refused(
            429,
            f"this run has used {self.used} of its {limit} tokens (AI_MAX_TOKENS={limit}){held}; this call "
            f"needs about {needed}: ask for less, or have AI_MAX_TOKENS raised",
            "token_limit",
            retry_after_s=1 if can_retry else None,
        )

    def _default_cap(self, left: int) -> int:
        """Return the cap for a request that sets no bound. The cap leaves tokens for concurrent calls."""
        others = max(1, self._limits.concurrent - self._in_flight + 1)
        return min(left, max(_MIN_ANSWER_TOKENS, left // others))

    def is_exceeded_with(self, more: int) -> bool:
        """Whether the used tokens and `more` tokens together exceed the limit of the run."""
        return bool(self._limits.tokens) and self.used + more > self._limits.tokens


@dataclass(slots=True)
class Reservation:
    """The tokens that one call has reserved. Settle it once.

    Attributes:
        run: The budget of the run.
        function: The budget of its function; None if functions have no limit.
        tokens: The reserved tokens of prompt and answers.
        cap: The largest number of tokens of all answers together; None means unlimited.
    """

    run: RunBudget
    function: FunctionBudget | None
    tokens: int
    cap: int | None

    def __post_init__(self) -> None:
        self.run.reserved += self.tokens
        if self.function is not None:
            self.function.reserved += self.tokens

    def is_exceeded_with(self, tokens: int) -> bool:
        """Whether the run exceeds its limit with the `tokens` that this call has used so far.

        The reservations of other calls do not count, because these calls may use fewer tokens.
        """
        return self.run.is_exceeded_with(tokens)

    def settle(self, tokens: int) -> None:
        """Replace the reservation by the tokens that the call has used."""
        self.run.reserved -= self.tokens
        self.run.used += tokens
        if self.function is not None:
            self.function.reserved -= self.tokens
            self.function.spend(tokens)


class FunctionBudget:
    """The tokens per minute of one function: a token bucket that may be overdrawn.

    Args:
        per_minute: The tokens that are added in a minute, and the size of the bucket.
        now: The clock, in seconds.

    Attributes:
        reserved: Tokens that calls in flight have reserved.
    """

    def __init__(self, per_minute: int, now: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._now = now
        self._bucket = TokenBucket.full(per_minute, per_minute, now(), period_s=60)
        self.reserved = 0

    @property
    def is_full(self) -> bool:
        """Whether all tokens are free, as in a new budget."""
        return not self.reserved and self._bucket.level(self._now()) >= self._per_minute

    def left(self, needed: int) -> int:
        """Return how many tokens are left now.

        Raises:
            Refused: Fewer than `needed` are left.
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
        """Take used tokens from the bucket."""
        self._bucket.spend(tokens, self._now())


class FunctionBudgets:
    """The budgets of all functions of this worker.

    Args:
        per_minute: The tokens per minute of each function; 0 means unlimited.
        now: The clock, in seconds.
    """

    def __init__(self, per_minute: int, now: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._now = now
        self._budgets: OrderedDict[str, FunctionBudget] = OrderedDict()

    def get(self, function_id: str) -> FunctionBudget | None:
        """Return a function's budget; None without a limit."""
        if not self._per_minute:
            return None
        budget = self._budgets.get(function_id)
        if budget is None:
            self._make_room()
            budget = self._budgets[function_id] = FunctionBudget(self._per_minute, self._now)
        self._budgets.move_to_end(function_id)
        return budget

    def _make_room(self) -> None:
        """Drop budgets if there are too many.

        Drops all full budgets, because a new budget equals a full one. If none is full, it drops the least
        recently used budget.
        """
        if len(self._budgets) < _MAX_FUNCTIONS:
            return
        full = [name for name, budget in self._budgets.items() if budget.is_full]
        for name in full or [next(iter(self._budgets))]:
            del self._budgets[name]
