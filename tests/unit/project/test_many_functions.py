"""The arrivals and the texts of `make bench-many`; not what it measures."""

from __future__ import annotations

from collections import Counter

import pytest
from benchmarks.many import summary as summaries
from benchmarks.many.arrivals import Mix, arrivals
from benchmarks.many.summary import Findings, Load

from nanoagent.model.job import Runtime

MIX = Mix(functions=50, seconds=600)


def test_the_same_seed_gives_the_same_arrivals():
    assert arrivals(MIX, 1) == arrivals(MIX, 1) != arrivals(MIX, 2)


def test_the_arrivals_have_the_mean_rate_and_are_in_order():
    found = arrivals(MIX, 1)
    assert len(found) == pytest.approx(MIX.rate * MIX.seconds, rel=0.05)
    assert found == sorted(found, key=lambda arrival: arrival.at_s)
    assert 0 < found[0].at_s < found[-1].at_s < MIX.seconds


def test_bursts_have_their_rate():
    in_bursts = [arrival for arrival in arrivals(MIX, 1) if arrival.at_s % MIX.period_s < MIX.burst_s]
    bursts = MIX.seconds / MIX.period_s
    assert len(in_bursts) / bursts == pytest.approx(MIX.burst_rate * MIX.burst_s, rel=0.1)


def test_function_numbers_follow_zipfs_law():
    counts = Counter(arrival.function for arrival in arrivals(MIX, 1))
    assert set(counts) == set(range(MIX.functions))
    assert counts[0] / counts[1] == pytest.approx(2**MIX.exponent, rel=0.15)


def load(*starts: str, times_ms: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0), elapsed_s: float = 2.0) -> Load:
    return Load(times_ms, starts or ("hot", "hot", "warm", "cold"), elapsed_s)


def test_the_figures_of_a_load():
    figures = load().figures()
    assert figures["jobs_per_s"] == 2.0
    assert (figures["p50_ms"], figures["p99_ms"]) == (2.5, 4.0)
    assert (figures["cold_share"], figures["warm_share"]) == (0.25, 0.25)


def test_the_document_has_the_first_runtime_on_top_and_the_others_below():
    found = {
        Runtime.PYTHON: Findings({150: (load(), load())}, budget=80, mix=load(), idle_mb=[15.0, 17.0]),
        Runtime.GO: Findings({1: (load(), load())}, idle_mb=[1.5]),
    }
    document = summaries.as_document(found, {"cpus": 2})
    assert document["functions"]["150"]["jobs_per_s"] == 2.0
    assert document["budget_2gib_hot_functions"] == 80
    assert document["idle_mb"] == {"python": 16.0, "go": 1.5}
    assert set(document["runtimes"]["go"]["functions"]) == {"1"}
    assert document["machine"] == {"cpus": 2}
    assert "functions.150.jobs_per_s" in document["missed"]
    assert "budget_2gib_hot_functions" not in document["missed"]
    assert "functions.400.jobs_per_s" not in document["missed"]  # it has no figure


def test_the_page_has_a_row_for_each_load_and_the_verdicts():
    found = {Runtime.PYTHON: Findings({150: (load(), load())}, budget=70, mix=load())}
    page = summaries.as_markdown(found, summaries.as_document(found, {}), {"cpus": 2})
    assert "| python, 150 functions | 2.0 | 2.5 |" in page
    assert "| python, mixed load |" in page
    assert "budget_2gib_hot_functions: 70, goal ≥ 80: missed" in page
