from __future__ import annotations

import re
from decimal import Decimal
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.common.units import MIB
from nanoagent.jobs.tuner import _TIPS, Prices, RunUsage, Tuner, Verdict, judge, recommend
from nanoagent.model.job import MIN_MEMORY_MB
from nanoagent.model.result import ErrorType, Tuning

MAX_MB = 10_240
PRICES = Prices(Decimal("0.0000166667"), Decimal("0.0000002"), "USD", 1_000_000)
FREE = Prices(Decimal(0), Decimal(0), "USD", 1_000_000)
FAILED_BY_ITSELF = [
    ErrorType.USER_ERROR,
    ErrorType.SIGNAL,
    ErrorType.DISK_LIMIT,
    ErrorType.PROCESS_LIMIT,
]


def usage(
    memory_mb: int, peak_mb: float, error_type: ErrorType | None = None, duration_ms: int = 1000
) -> RunUsage:
    return RunUsage(memory_mb, int(peak_mb * MIB), duration_ms, error_type)


@pytest.fixture(params=["ko", "en"])
def locale(request):
    return request.param


@pytest.fixture
def advise(locale):
    return partial(Tuner(PRICES, MAX_MB).advise, locale=locale)


@pytest.mark.parametrize(
    ("peak_bytes", "recommended_mb"),
    [
        (0, 32),
        (16 * MIB, 32),
        (16 * MIB + 1, 48),
        (32 * MIB, 48),
        (80 * MIB, 96),  # 20 % and 16 MiB are the same here
        (80 * MIB + 1, 112),
        (100 * MIB, 128),
        (1000 * MIB, 1200),
        (10_000 * MIB, MAX_MB),
    ],
)
def test_the_recommended_size_is_the_peak_and_a_headroom_in_steps(peak_bytes, recommended_mb):
    assert recommend(peak_bytes, MAX_MB) == recommended_mb


@given(st.integers(0, 2 * MAX_MB * MIB), st.integers(MIN_MEMORY_MB, MAX_MB))
def test_the_recommended_size_is_allowed_and_leaves_headroom_where_it_can(peak_bytes, max_mb):
    recommended = recommend(peak_bytes, max_mb)
    assert MIN_MEMORY_MB <= recommended <= max_mb
    assert recommended == max_mb or recommended * MIB >= peak_bytes + max(peak_bytes // 5, 16 * MIB)


@pytest.mark.parametrize(
    ("run", "verdict", "recommended_mb"),
    [
        (usage(128, 128, ErrorType.OUT_OF_MEMORY), Verdict.OUT_OF_MEMORY, 256),
        (usage(128, 10, ErrorType.OUT_OF_MEMORY), Verdict.OUT_OF_MEMORY, 256),
        (usage(6000, 6000, ErrorType.OUT_OF_MEMORY), Verdict.OUT_OF_MEMORY, MAX_MB),
        (usage(MAX_MB, MAX_MB, ErrorType.OUT_OF_MEMORY), Verdict.OUT_OF_MEMORY_AT_MAX, MAX_MB),
        (usage(100, 85.01), Verdict.CLOSE, 112),
        (usage(100, 85), Verdict.FITS, 100),
        (usage(MAX_MB, MAX_MB * 0.9), Verdict.CLOSE_AT_MAX, MAX_MB),
        (usage(32, 1), Verdict.FITS, 32),
        (usage(128, 80), Verdict.OVERSIZED, 96),  # exactly 75 %
        (usage(128, 80.1), Verdict.FITS, 128),
        (usage(512, 40), Verdict.OVERSIZED, 64),
        (usage(512, 40, ErrorType.USER_ERROR), Verdict.FAILED, None),
        (usage(128, 90, ErrorType.SIGNAL), Verdict.FAILED, None),
        (usage(128, 120, ErrorType.USER_ERROR), Verdict.CLOSE, 144),
        (usage(512, 40, ErrorType.TIMEOUT), Verdict.CUT_SHORT, None),
        (usage(128, 120, ErrorType.TIMEOUT), Verdict.CLOSE, 144),
    ],
)
def test_each_kind_of_run_is_judged_by_its_rule(run, verdict, recommended_mb):
    assert judge(run, MAX_MB) == (verdict, recommended_mb)


@given(
    st.builds(
        RunUsage,
        st.integers(MIN_MEMORY_MB, MAX_MB),
        st.integers(0, 2 * MAX_MB * MIB),
        st.integers(0, 42_000_000),
        st.sampled_from([None, *ErrorType]),
    )
)
def test_advice_is_never_out_of_bounds_nor_points_the_wrong_way(run):
    verdict, recommended = judge(run, MAX_MB)
    advice = Tuner(PRICES, MAX_MB).advise("f", run, "ko")
    assert recommended is None or MIN_MEMORY_MB <= recommended <= MAX_MB
    if verdict in {Verdict.OUT_OF_MEMORY, Verdict.CLOSE}:
        assert recommended is not None
        assert recommended > run.memory_mb
    assert (advice.estimated_savings is not None) == (verdict is Verdict.OVERSIZED)


def test_every_verdict_has_one_sentence_with_numbers_in_each_language(locale):
    assert set(_TIPS[locale]) == set(Verdict)
    for text in _TIPS[locale].values():
        assert text.count(".") == 1
        assert text.endswith(".")
        assert "{limit} MB" in text


def test_korean_tips_are_korean_and_english_ones_are_not():
    for verdict in Verdict:
        assert re.search("[가-힣]", _TIPS["ko"][verdict])
        assert not re.search("[가-힣]", _TIPS["en"][verdict])


@pytest.mark.parametrize(
    ("run", "numbers"),
    [
        (usage(128, 128, ErrorType.OUT_OF_MEMORY), ["128 MB", "256 MB"]),
        (usage(MAX_MB, MAX_MB, ErrorType.OUT_OF_MEMORY), ["10240 MB", "MAX_MEMORY_MB"]),
        (usage(128, 119.5), ["120 MB", "128 MB", "144 MB"]),
        (usage(MAX_MB, 10_000), ["10000 MB", "10240 MB", "MAX_MEMORY_MB"]),
        (usage(128, 90), ["90 MB", "128 MB"]),
        (usage(512, 40), ["40 MB", "512 MB", "64 MB", "CPU"]),
        (usage(512, 40, ErrorType.SIGNAL), ["40 MB", "512 MB"]),
        (usage(512, 40, ErrorType.TIMEOUT), ["40 MB", "512 MB"]),
    ],
)
def test_a_tip_has_the_numbers_it_rests_on(advise, run, numbers):
    tip = advise("f", run).tip
    assert tip is not None
    assert [number for number in numbers if number not in tip] == []


def test_an_oversized_function_is_told_what_a_million_runs_would_save(advise, locale):
    # 448 MiB less during 1 s: 0.4375 GB-s x 0.0000166667 = 0.00000729168 of 0.0000085333500
    advice = advise("f", usage(512, 40, duration_ms=1000))
    assert advice.tuning == Tuning(64, 0.3, 1, 85.4)
    assert (
        advice.estimated_savings
        == {
            "en": "about 7.29 USD per 1,000,000 runs (85.4 %), if the run time stays the same",
            "ko": "실행 시간이 같다면 1,000,000회 실행당 약 7.29 USD 절감(85.4%)",
        }[locale]
    )


def test_small_amounts_keep_two_digits_and_large_ones_are_grouped():
    few = Prices(PRICES.per_gb_second, PRICES.per_request, "KRW", 1000)
    advice = Tuner(few, MAX_MB).advise("f", usage(512, 40, duration_ms=1000), "en")
    assert (
        advice.estimated_savings == "about 0.0073 KRW per 1,000 runs (85.4 %), if the run time stays the same"
    )
    advice = Tuner(PRICES, MAX_MB).advise("f", usage(512, 40, duration_ms=1_000_000), "en")
    assert advice.estimated_savings is not None
    assert advice.estimated_savings.startswith("about 7,291.68 USD")


def test_the_price_of_a_request_is_part_of_what_savings_are_measured_by():
    advice = Tuner(PRICES, MAX_MB).advise("f", usage(512, 40, duration_ms=1), "en")
    assert advice.tuning is not None
    assert advice.tuning.savings_percent == 3.5


def test_a_run_of_no_time_is_charged_as_one_millisecond():
    assert PRICES.of_run(1024, 0) == PRICES.of_run(1024, 1) == Decimal("0.0000002166667")


def test_a_price_is_gigabyte_seconds_and_a_request():
    assert PRICES.of_run(512, 2000) == PRICES.per_gb_second + PRICES.per_request


def test_where_runs_are_free_there_is_advice_and_no_savings(locale):
    advice = Tuner(FREE, MAX_MB).advise("f", usage(512, 40), locale)
    assert advice.tip is not None
    assert advice.estimated_savings is None
    assert advice.tuning == Tuning(64, 0.3, 1, 0.0)


def test_a_size_that_fits_is_kept(advise):
    advice = advise("f", usage(128, 90))
    assert advice.estimated_savings is None
    assert advice.tuning == Tuning(128, 0.3, 1, 0.0)


def test_raising_is_never_sold_as_a_saving(advise):
    for run in (usage(128, 120), usage(128, 128, ErrorType.OUT_OF_MEMORY)):
        advice = advise("f", run)
        assert advice.estimated_savings is None
        assert advice.tuning is not None
        assert advice.tuning.savings_percent < 0


@pytest.mark.parametrize("error_type", FAILED_BY_ITSELF)
def test_a_run_that_failed_says_nothing_about_a_smaller_size(advise, error_type):
    advice = advise("f", usage(512, 5, error_type))
    assert advice.tip is not None
    assert "32 MB" not in advice.tip
    assert advice.estimated_savings is None
    assert advice.tuning is None


@pytest.mark.parametrize("error_type", FAILED_BY_ITSELF)
def test_a_run_that_failed_near_its_limit_is_weak_evidence_for_a_larger_one(advise, error_type):
    advice = advise("f", usage(128, 120, error_type))
    assert advice.tuning is not None
    assert advice.tuning.recommended_memory_mb == 144
    assert advice.tuning.confidence == 0.1


@pytest.mark.parametrize("error_type", [ErrorType.TIMEOUT, ErrorType.CANCELLED])
def test_a_run_that_was_cut_short_says_nothing_about_a_smaller_size(advise, error_type):
    advice = advise("f", usage(512, 40, error_type))
    assert advice.tip is not None
    assert advice.estimated_savings is None
    assert advice.tuning is None
