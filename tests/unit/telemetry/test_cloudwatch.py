from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.telemetry import cloudwatch
from nanoagent.telemetry.cloudwatch import (
    MAX_CALL_BYTES,
    MAX_DATUMS_PER_CALL,
    MAX_SERIES,
    MAX_VALUES,
    MAX_VALUES_PER_DATUM,
    CloudWatchSender,
    Datum,
    PeakMemoryReporter,
    calls,
    dimension_value,
)
from nanoagent.telemetry.metrics import Metrics

NOON = 1_700_000_040.0  # a full minute
HOUR = 3600.0  # an interval that no test lives to see


class Recorder:
    """A sender that keeps what it is given, or fails as told."""

    def __init__(self, *failures: Exception) -> None:
        self.taken: list[Datum] = []
        self.calls = 0
        self.failures = list(failures)
        self.called = asyncio.Event()

    async def send(self, data):
        self.calls += 1
        self.called.set()
        if self.failures:
            raise self.failures.pop(0)
        self.taken += data


class Stuck:
    """A sender whose calls never end."""

    def __init__(self) -> None:
        self.called = asyncio.Event()

    async def send(self, data):
        self.called.set()
        await asyncio.Event().wait()


@pytest.fixture
def metrics():
    return Metrics()


def failures(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("worker_cloudwatch_failures_total")


def dropped(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("worker_cloudwatch_dropped_values_total")


async def test_peaks_are_gathered_per_function_runtime_and_minute(metrics):
    sender = Recorder()
    reporter = PeakMemoryReporter(sender, HOUR, metrics)
    reporter.record("f", "python", 10, NOON)
    reporter.record("f", "python", 10, NOON + 59.9)
    reporter.record("f", "python", 20, NOON + 1)
    reporter.record("f", "python", 10, NOON + 60)
    reporter.record("f", "go", 10, NOON)
    reporter.record("g", "python", 10, NOON)
    await reporter.flush()
    assert sender.calls == 1
    assert sender.taken == [
        Datum("f", "python", int(NOON), (10, 20), (2, 1)),
        Datum("f", "python", int(NOON) + 60, (10,), (1,)),
        Datum("f", "go", int(NOON), (10,), (1,)),
        Datum("g", "python", int(NOON), (10,), (1,)),
    ]


async def test_nothing_gathered_is_no_call(metrics):
    sender = Recorder()
    await PeakMemoryReporter(sender, HOUR, metrics).flush()
    assert sender.calls == 0


async def test_more_values_than_a_datum_may_have_are_split(metrics):
    sender = Recorder()
    reporter = PeakMemoryReporter(sender, HOUR, metrics)
    for peak in range(MAX_VALUES_PER_DATUM + 1):
        reporter.record("f", "python", peak, NOON)
    await reporter.flush()
    assert [len(datum.values) for datum in sender.taken] == [MAX_VALUES_PER_DATUM, 1]


async def test_a_failed_call_is_counted_and_sent_again_at_the_next_flush(metrics):
    sender = Recorder(ConnectionError())
    reporter = PeakMemoryReporter(sender, HOUR, metrics)
    reporter.record("f", "python", 10, NOON)
    await reporter.flush()
    assert sender.taken == []
    assert failures(metrics) == 1
    await reporter.flush()
    assert sender.taken == [Datum("f", "python", int(NOON), (10,), (1,))]
    assert dropped(metrics) == 0


async def test_what_fails_twice_is_dropped_and_counted(metrics):
    sender = Recorder(ConnectionError(), ConnectionError())
    reporter = PeakMemoryReporter(sender, HOUR, metrics)
    for _ in range(3):
        reporter.record("f", "python", 10, NOON)
    for _ in range(3):
        await reporter.flush()
    assert sender.taken == []
    assert sender.calls == 2
    assert failures(metrics) == 2
    assert dropped(metrics) == 3


async def test_one_failed_call_does_not_keep_the_others_back(metrics):
    sender = Recorder(ConnectionError())
    reporter = PeakMemoryReporter(sender, HOUR, metrics)
    for number in range(MAX_DATUMS_PER_CALL + 1):
        reporter.record(f"f{number}", "python", 10, NOON)
    await reporter.flush()
    assert sender.calls == 2
    first_try = len(sender.taken)
    await reporter.flush()
    assert 0 < first_try < MAX_DATUMS_PER_CALL
    assert len(sender.taken) == MAX_DATUMS_PER_CALL + 1


async def test_more_series_than_are_held_are_dropped_and_counted(metrics):
    reporter = PeakMemoryReporter(Recorder(), HOUR, metrics)
    for number in range(MAX_SERIES + 5):
        reporter.record(f"f{number}", "python", 10, NOON)
    reporter.record("f0", "python", 11, NOON)
    assert dropped(metrics) == 5


async def test_more_values_than_are_held_are_dropped_and_counted(metrics):
    sender = Recorder()
    reporter = PeakMemoryReporter(sender, HOUR, metrics)
    for peak in range(MAX_VALUES + 5):
        reporter.record("f", "python", peak, NOON)
    reporter.record("f", "python", 0, NOON)
    assert dropped(metrics) == 5
    await reporter.flush()
    assert sum(sum(datum.counts) for datum in sender.taken) == MAX_VALUES + 1


async def test_there_is_room_again_after_a_flush(metrics):
    reporter = PeakMemoryReporter(Recorder(), HOUR, metrics)
    for peak in range(MAX_VALUES):
        reporter.record("f", "python", peak, NOON)
    await reporter.flush()
    reporter.record("f", "python", MAX_VALUES, NOON)
    assert dropped(metrics) == 0


async def test_the_background_task_flushes_each_interval_and_outlives_failures(metrics):
    sender = Recorder(ConnectionError(), ConnectionError())
    async with PeakMemoryReporter(sender, 0.001, metrics) as reporter:
        for peak in (10, 20, 30):
            sender.called.clear()
            reporter.record("f", "python", peak, NOON)
            await sender.called.wait()
    assert 30 in {value for datum in sender.taken for value in datum.values}


async def test_closing_flushes_what_is_left(metrics):
    sender = Recorder()
    async with PeakMemoryReporter(sender, HOUR, metrics) as reporter:
        reporter.record("f", "python", 10, NOON)
    assert [datum.values for datum in sender.taken] == [(10,)]
    await reporter.close()
    assert sender.calls == 1


async def test_what_cannot_be_sent_at_closing_is_counted(metrics):
    async with PeakMemoryReporter(Recorder(ConnectionError()), HOUR, metrics) as reporter:
        reporter.record("f", "python", 10, NOON)
    assert dropped(metrics) == 1


async def test_closing_gives_up_on_a_call_that_never_ends(metrics, monkeypatch):
    monkeypatch.setattr(cloudwatch, "_CLOSE_SECONDS", 0.01)
    sender = Stuck()
    async with PeakMemoryReporter(sender, 0.001, metrics) as reporter:
        reporter.record("f", "python", 10, NOON)
        await sender.called.wait()
        reporter.record("f", "python", 20, NOON)
    assert dropped(metrics) == 2


async def test_a_call_that_never_ends_counts_as_failed(metrics, monkeypatch):
    monkeypatch.setattr(cloudwatch, "_SEND_SECONDS", 0.01)
    reporter = PeakMemoryReporter(Stuck(), HOUR, metrics)
    reporter.record("f", "python", 10, NOON)
    await reporter.flush()
    assert failures(metrics) == 1


async def test_the_sender_speaks_put_metric_data():
    class Client:
        async def put_metric_data(self, **request: object):
            self.request = request

    client = Client()
    await CloudWatchSender(client).send([Datum("함수", "python", int(NOON), (10, 20), (2, 1))])
    assert client.request == {
        "Namespace": "NanoGrid/FunctionRunner",
        "MetricData": [
            {
                "MetricName": "PeakMemoryBytes",
                "Unit": "Bytes",
                "Timestamp": datetime(2023, 11, 14, 22, 14, tzinfo=UTC),
                "Dimensions": [
                    {"Name": "FunctionId", "Value": "%ED%95%A8%EC%88%98"},
                    {"Name": "Runtime", "Value": "python"},
                ],
                "Values": [10, 20],
                "Counts": [2, 1],
            }
        ],
    }


def test_a_call_has_at_most_a_thousand_datums():
    data = [Datum("f", "python", minute, (1,), (1,)) for minute in range(2500)]
    assert [datum for call in calls(data) for datum in call] == data
    assert all(len(call) <= MAX_DATUMS_PER_CALL for call in calls(data))


def test_a_call_stays_below_a_megabyte_in_the_wordiest_protocol():
    values = tuple(range(10**12, 10**12 + MAX_VALUES_PER_DATUM))
    data = [Datum("%" * 256, "python", 0, values, (99_999,) * len(values)) for _ in range(200)]
    assert [datum for call in calls(data) for datum in call] == data
    for call in calls(data):
        written = sum(
            len(f"MetricData.member.1000.Values.member.{index}={value}.0&")
            + len(f"MetricData.member.1000.Counts.member.{index}={count}.0&")
            for datum in call
            for index, (value, count) in enumerate(zip(datum.values, datum.counts, strict=True))
        )
        assert written < MAX_CALL_BYTES


@pytest.mark.parametrize("name", ["fn", "team/fn:3", "a.b-c_d~!()[]{}'\"#&=+,;?@^`|\\<>$*"])
def test_printable_ascii_is_a_dimension_value_as_it_is(name):
    assert dimension_value(name) == name


@given(st.text(max_size=300))
def test_any_text_becomes_a_value_that_cloudwatch_takes(text):
    assert re.fullmatch(r"[\x21-\x7e]{1,1024}", dimension_value(text))


@given(st.text(min_size=1, alphabet="ab% %2é함\udc80"), st.text(min_size=1, alphabet="ab% %2é함\udc80"))
def test_different_texts_stay_different(one, other):
    assert (dimension_value(one) == dimension_value(other)) == (one == other)


def test_long_texts_that_differ_only_at_their_ends_stay_different():
    one, other = dimension_value("함" * 255 + "a"), dimension_value("함" * 255 + "b")
    assert one != other
    assert len(one) == len(other) == 1024
