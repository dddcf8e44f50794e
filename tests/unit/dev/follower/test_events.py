from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.dev.follower.events import (
    AttemptEnded,
    Ended,
    Event,
    Missing,
    Output,
    Position,
    Refused,
    Started,
    Tracker,
    parts_of,
)
from nanoagent.results.live_log import Kind, Record
from nanoagent.supervisor import gap

START = Record(Kind.STARTED, 1, 7, b"w1")
SUCCESS = Record(Kind.ENDED, 1, data=b"SUCCESS")


def told(*records: Record, tracker: Tracker | None = None) -> list[Event]:
    tracker = tracker or Tracker()
    return [event for n, record in enumerate(records, 1) for event in tracker.take(f"{n}-0", record)]


def test_output_becomes_events_in_order():
    assert told(
        START,
        Record(Kind.STDOUT, 1, 0, b"a"),
        Record(Kind.STDERR, 1, 0, b"b"),
        Record(Kind.STDOUT, 1, 1, b"c"),
    ) == [
        Started("w1", 1, is_again=False),
        Output("stdout", 1, 0, b"a"),
        Output("stderr", 1, 0, b"b"),
        Output("stdout", 1, 1, b"c"),
    ]


def test_a_gap_is_reported_where_it_is():
    assert told(
        START, Record(Kind.STDOUT, 1, 0, b"ab"), Record(Kind.STDOUT, 1, 10, b"c"), Record(Kind.STDOUT, 1, 20)
    )[1:] == [
        Output("stdout", 1, 0, b"ab"),
        Missing("stdout", 1, 2, 8),
        Output("stdout", 1, 10, b"c"),
        Missing("stdout", 1, 11, 9),
    ]


def test_hidden_output_is_no_gap():
    masked = Record(Kind.STDOUT, 1, 0, b"***", printed=20)
    assert told(START, masked, Record(Kind.STDOUT, 1, 20, b"b"))[1:] == [
        Output("stdout", 1, 0, b"***"),
        Output("stdout", 1, 20, b"b"),
    ]


def test_records_that_were_stored_twice_are_shown_once():
    output = Record(Kind.STDOUT, 1, 0, b"a")
    assert told(START, output, START, output) == [
        Started("w1", 1, is_again=False),
        Output("stdout", 1, 0, b"a"),
    ]


def test_another_attempt_begins_with_empty_streams():
    assert told(
        START,
        Record(Kind.STDOUT, 1, 0, b"abc"),
        Record(Kind.ENDED, 1),
        Record(Kind.STARTED, 2, 8, b"w2"),
        Record(Kind.STDOUT, 2, 0, b"abc"),
    )[2:] == [AttemptEnded(1), Started("w2", 2, is_again=True), Output("stdout", 2, 0, b"abc")]


def test_a_refusal_names_the_worker():
    assert told(Record(Kind.REFUSED, 1, data=b"w")) == [Refused("w")]


def test_a_follower_that_continues_sees_each_record_once():
    records = [START, *(Record(Kind.STDOUT, 1, n * 5, b"abc") for n in range(6)), SUCCESS]
    everything = told(*records)
    for cut in range(len(records) + 1):
        first = Tracker()
        before = told(*records[:cut], tracker=first)
        second = Tracker(Position.parse(str(first.position)))
        numbered = list(enumerate(records, 1))[cut:]
        after = [event for n, record in numbered for event in second.take(f"{n}-0", record)]
        assert before + after == everything


@pytest.mark.parametrize("text", ["", "1-0", "1-0.1.2", "1.2.3.4", "1-0.1.2.x", "0-0.1.2.3\n"])
def test_a_text_that_is_no_position_is_refused(text: str):
    with pytest.raises(ValueError, match="not a position"):
        Position.parse(text)


# --- the result


def finished(tracker: Tracker, **fields: object) -> list[Event]:
    return list(tracker.finish({"status": "SUCCESS", "attempt": 1, **fields}))


def test_without_a_live_log_the_output_of_the_result_is_shown():
    events = finished(Tracker(), stdout="out", stderr="err")
    assert events[:2] == [Output("stdout", 1, 0, b"out"), Output("stderr", 1, 0, b"err")]
    assert isinstance(events[2], Ended)


def test_a_live_log_that_is_complete_needs_nothing_of_the_result():
    tracker = Tracker()
    told(START, Record(Kind.STDOUT, 1, 0, b"ou"), SUCCESS, tracker=tracker)
    (event,) = finished(tracker, stdout="out")
    assert isinstance(event, Ended)


def test_a_live_log_without_its_end_is_completed_by_the_result():
    tracker = Tracker()
    told(START, Record(Kind.STDOUT, 1, 0, b"ou"), tracker=tracker)
    assert finished(tracker, stdout="out", stderr="err")[:-1] == [
        Output("stdout", 1, 2, b"t"),
        Output("stderr", 1, 0, b"err"),
    ]


def test_after_a_live_log_of_an_earlier_attempt_the_whole_result_is_shown():
    tracker = Tracker()
    told(START, Record(Kind.STDOUT, 1, 0, b"ou"), Record(Kind.ENDED, 1), tracker=tracker)
    assert finished(tracker, stdout="out", attempt=2)[0] == Output("stdout", 2, 0, b"out")


def test_the_gap_of_a_result_is_a_gap():
    text = str(gap.joined("head", 100, "tail"))
    assert finished(Tracker(), stdout=text, stdoutTruncatedBytes=100)[:-1] == [
        Output("stdout", 1, 0, b"head"),
        Missing("stdout", 1, 4, 100),
        Output("stdout", 1, 104, b"tail"),
    ]


def test_a_follower_in_the_gap_of_a_result_continues_behind_it():
    tracker = Tracker(Position("9-0", 7, stdout=50))
    text = str(gap.joined("head", 100, "tail"))
    assert finished(tracker, stdout=text, stdoutTruncatedBytes=100)[:-1] == [
        Missing("stdout", 1, 50, 54),
        Output("stdout", 1, 104, b"tail"),
    ]


@given(head=st.text(min_size=1), tail=st.text(min_size=1), cut=st.integers(1, 10**9))
def test_the_parts_of_a_result_have_their_offsets(head: str, tail: str, cut: int):
    first, second = parts_of(str(gap.joined(head, cut, tail)), cut)
    assert first == (0, head.encode(errors="replace"))
    assert second == (len(first[1]) + cut, tail.encode(errors="replace"))
