"""The AutoTuner: recommends a memoryMb from the peak memory of a run, in numbers and in a sentence.

All functions are pure. `judge` decides, and the table `_TIPS` has the sentences. Prices follow the scheme of
AWS Lambda: an amount per GB-second, with the duration rounded up to 1 ms, and an amount per request.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB
from nanoagent.model.job import MIN_MEMORY_MB
from nanoagent.model.result import ErrorType, Tuning

if TYPE_CHECKING:
    from nanoagent.model.text import Locale

_STEP_MB: Final = 16
_HEADROOM_MB: Final = 16  # allocators and interpreters vary by some MiB from run to run
_HEADROOM_PERCENT: Final = 20
_CLOSE_PERCENT: Final = 85  # of the limit; a run that uses more has less than the recommended headroom
_OVERSIZED_PERCENT: Final = (
    75  # of the limit; a higher recommendation is too close to it to be worth a change
)
_CONFIDENCE: Final = 0.3  # one run says little about other inputs
_CONFIDENCE_FAILED: Final = 0.1  # a failed run may not have reached its peak

_CUT_SHORT: Final = frozenset(
    {ErrorType.TIMEOUT, ErrorType.CANCELLED, ErrorType.INTERRUPTED, ErrorType.PLATFORM}
)


@dataclass(frozen=True, slots=True)
class RunUsage:
    """The memory limit of one run, and its use of memory and time.

    Attributes:
        memory_mb: The memory limit, MiB.
        peak_bytes: The peak memory of the whole run, bytes.
        duration_ms: The wall time of the program, milliseconds.
        error_type: How the run ended; None for success.
    """

    memory_mb: int
    peak_bytes: int
    duration_ms: int
    error_type: ErrorType | None = None

    @property
    def peak_mb(self) -> int:
        """The peak memory in MiB, rounded up."""
        return -(-self.peak_bytes // MIB)


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices of runs.

    Attributes:
        per_gb_second: The price of 1024 MiB for one second.
        per_request: The price of each run, in addition.
        currency: The currency of both.
        savings_runs: The number of runs for which the savings are calculated.
    """

    per_gb_second: Decimal
    per_request: Decimal
    currency: str
    savings_runs: int

    def of_run(self, memory_mb: int, duration_ms: int) -> Decimal:
        """Return the price of one run. A run of 0 ms costs as much as one of 1 ms."""
        gb_seconds = Decimal(memory_mb) / 1024 * max(duration_ms, 1) / 1000
        return gb_seconds * self.per_gb_second + self.per_request


@dataclass(frozen=True, slots=True)
class Advice:
    """The fields of the result about memoryMb; each is None when there is no advice."""

    tip: str | None
    estimated_savings: str | None
    tuning: Tuning | None


class Verdict(Enum):
    """The judgment of a memory limit, from one run. `…_AT_MAX`: this worker does not allow a higher limit."""

    OUT_OF_MEMORY = auto()
    OUT_OF_MEMORY_AT_MAX = auto()
    CLOSE = auto()
    CLOSE_AT_MAX = auto()
    FITS = auto()
    OVERSIZED = auto()
    FAILED = auto()
    CUT_SHORT = auto()


# A smaller memoryMb also means a smaller share of CPU, so no tip promises the same duration.
_TIPS: Final[dict[str, dict[Verdict, str]]] = {
    "en": {
        Verdict.OUT_OF_MEMORY: (
            "The run was stopped because it used up its {limit} MB of memory; raise memoryMb to"
            " {recommended} MB."
        ),
        Verdict.OUT_OF_MEMORY_AT_MAX: (
            "The run was stopped because it used up {limit} MB of memory, which is the most this worker"
            " allows: make it use less, or ask the operator to raise MAX_MEMORY_MB."
        ),
        Verdict.CLOSE: (
            "The run used {peak} MB at its peak, close to its limit of {limit} MB; raising memoryMb to"
            " {recommended} MB would be safer."
        ),
        Verdict.CLOSE_AT_MAX: (
            "The run used {peak} MB at its peak, close to its limit of {limit} MB, which is the most this"
            " worker allows: make it use less, or ask the operator to raise MAX_MEMORY_MB."
        ),
        Verdict.FITS: "The size fits well: the run used {peak} MB of its {limit} MB at its peak.",
        Verdict.OVERSIZED: (
            "The run used only {peak} MB of its {limit} MB, so {recommended} MB would be enough memory; its"
            " share of CPU may shrink too, so check the duration after the change."
        ),
        Verdict.FAILED: (
            "The run failed, so the {peak} MB that it had used of its {limit} MB do not show which size it"
            " needs."
        ),
        Verdict.CUT_SHORT: (
            "The run was cut short, so the {peak} MB that it had used of its {limit} MB do not show which"
            " size it needs."
        ),
    },
    "ko": {
        Verdict.OUT_OF_MEMORY: (
            "메모리 한도 {limit} MB를 모두 사용해 실행이 중단되었으니 memoryMb를 {recommended} MB로 늘리세요."
        ),
        Verdict.OUT_OF_MEMORY_AT_MAX: (
            "이 워커의 최대 메모리인 {limit} MB를 모두 사용해 실행이 중단되었으니 메모리 사용량을 줄이거나"
            " MAX_MEMORY_MB를 올려 달라고 요청하세요."
        ),
        Verdict.CLOSE: (
            "최대 메모리 사용량이 {peak} MB로 한도 {limit} MB에 가까우니 memoryMb를 {recommended} MB로 늘리는"
            " 것이 안전합니다."
        ),
        Verdict.CLOSE_AT_MAX: (
            "최대 메모리 사용량이 {peak} MB로 이 워커의 최대 한도인 {limit} MB에 가까우니 사용량을 줄이거나"
            " MAX_MEMORY_MB를 올려 달라고 요청하세요."
        ),
        Verdict.FITS: "한도 {limit} MB 중 최대 {peak} MB를 사용했으므로 현재 메모리 크기가 적절합니다.",
        Verdict.OVERSIZED: (
            "한도 {limit} MB 중 최대 {peak} MB만 사용했으므로 메모리는 {recommended} MB면 충분하지만, CPU"
            " 할당량도 함께 줄어들 수 있으니 변경 후 실행 시간을 확인하세요."
        ),
        Verdict.FAILED: (
            "실행이 실패하여, 그때까지의 최대 사용량 {peak} MB(한도 {limit} MB)만으로는 적절한 메모리"
            " 크기를 알 수 없습니다."
        ),
        Verdict.CUT_SHORT: (
            "실행이 도중에 중단되어, 그때까지의 최대 사용량 {peak} MB(한도 {limit} MB)만으로는 적절한 메모리"
            " 크기를 알 수 없습니다."
        ),
    },
}

_SAVINGS: Final = {
    "en": "about {amount} {currency} per {runs:,} runs ({percent} %), if the run time stays the same",
    "ko": "실행 시간이 같다면 {runs:,}회 실행당 약 {amount} {currency} 절감({percent}%)",
}


class Tuner:
    """Recommends memory limits for functions.

    Args:
        prices: The prices, for the savings.
        max_memory_mb: The largest memoryMb of this worker, MiB.
    """

    def __init__(self, prices: Prices, max_memory_mb: int) -> None:
        self._prices = prices
        self._max_memory_mb = max_memory_mb

    def advise(self, function_id: str, usage: RunUsage, locale: Locale) -> Advice:  # noqa: ARG002 - not used yet; advice from several runs will need it
        """Return the advice for a function, from one run.

        Args:
            function_id: The function.
            usage: The limit and the usage of a run that has started.
            locale: The language of the sentences.
        """
        verdict, recommended_mb = judge(usage, self._max_memory_mb)
        tip = _TIPS[locale][verdict].format(
            peak=usage.peak_mb, limit=usage.memory_mb, recommended=recommended_mb
        )
        if recommended_mb is None:
            return Advice(tip, None, None)
        percent = self._savings_percent(usage, recommended_mb)
        savings = None
        if verdict is Verdict.OVERSIZED:
            savings = self._savings(usage, recommended_mb, percent, locale)
        confidence = (
            _CONFIDENCE if usage.error_type in {None, ErrorType.OUT_OF_MEMORY} else _CONFIDENCE_FAILED
        )
        return Advice(tip, savings, Tuning(recommended_mb, confidence, 1, percent))

    def _savings_percent(self, usage: RunUsage, recommended_mb: int) -> float:
        """Return the savings in percent of the run's price; negative if it would rise, 0 if runs are free."""
        price = self._prices.of_run(usage.memory_mb, usage.duration_ms)
        if price == 0:
            return 0.0
        saved = price - self._prices.of_run(recommended_mb, usage.duration_ms)
        return float(round(saved / price * 100, 1))

    def _savings(self, usage: RunUsage, recommended_mb: int, percent: float, locale: Locale) -> str | None:
        runs, duration_ms = self._prices.savings_runs, usage.duration_ms
        saved = runs * (
            self._prices.of_run(usage.memory_mb, duration_ms)
            - self._prices.of_run(recommended_mb, duration_ms)
        )
        if saved <= 0:
            return None
        return _SAVINGS[locale].format(
            amount=_amount(saved), currency=self._prices.currency, runs=runs, percent=f"{percent:g}"
        )


def recommend(peak_bytes: int, max_memory_mb: int) -> int:
    """Return the memory limit for a peak, MiB.

    It is the peak and a headroom of 20 %, at least 16 MiB. It is a multiple of 16 MiB (unless it is the
    maximum), at least 32 MiB and at most `max_memory_mb`.
    """
    headroom = max(-(-peak_bytes * _HEADROOM_PERCENT // 100), _HEADROOM_MB * MIB)
    steps = -(-(peak_bytes + headroom) // (_STEP_MB * MIB))
    return min(max(steps * _STEP_MB, MIN_MEMORY_MB), max_memory_mb)


def judge(usage: RunUsage, max_memory_mb: int) -> tuple[Verdict, int | None]:
    """Judge the memory limit of a run.

    Returns:
        The verdict, and the recommended limit in MiB. The limit is None if the run does not show which limit
        the function needs.
    """
    limit = usage.memory_mb
    at_max = limit >= max_memory_mb
    if usage.error_type is ErrorType.OUT_OF_MEMORY:
        return (
            (Verdict.OUT_OF_MEMORY_AT_MAX, limit)
            if at_max
            else (Verdict.OUT_OF_MEMORY, min(2 * limit, max_memory_mb))
        )
    recommended = recommend(usage.peak_bytes, max_memory_mb)
    if usage.peak_bytes * 100 > limit * MIB * _CLOSE_PERCENT:
        return (Verdict.CLOSE_AT_MAX, limit) if at_max else (Verdict.CLOSE, recommended)
    if usage.error_type in _CUT_SHORT:
        return Verdict.CUT_SHORT, None
    if usage.error_type is not None:  # it may have ended before its peak: a missing module ends a run at once
        return Verdict.FAILED, None
    if recommended * 100 <= limit * _OVERSIZED_PERCENT:
        return Verdict.OVERSIZED, recommended
    return Verdict.FITS, limit


def _amount(value: Decimal) -> str:
    """Return an amount of money with two decimals; below 0.1, with two significant digits."""
    decimals = max(2, 1 - value.adjusted())
    return f"{value:,.{decimals}f}"
