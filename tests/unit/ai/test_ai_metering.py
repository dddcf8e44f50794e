from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nanoagent.ai import calls, metering
from nanoagent.ai.routes import ROUTES

UNHURRIED = hypothesis_settings(deadline=None)  # the machine is shared


def call(path: str, **body: Any) -> calls.Call:
    return calls.read(ROUTES[path], json.dumps(body).encode(), "m")


def event(**document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


OLLAMA = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in (
        {"response": "a", "done": False},
        {"response": "b", "done": False},
        {"response": "", "done": True, "prompt_eval_count": 7, "eval_count": 2, "context": [1] * 50},
    )
)
CHUNK = {"choices": [{"index": 0, "delta": {"content": "a"}}]}
USAGE = {"prompt_tokens": 7, "completion_tokens": 2}
OPENAI = (
    event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
    + event(**CHUNK)
    + b": a comment\r\n\r\n"
    + event(**CHUNK)
    + event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
)
EXTRA = event(choices=[], usage=USAGE)
DONE = b"data: [DONE]\n\n"


@UNHURRIED
@given(st.lists(st.integers(1, 40)))
def test_a_stream_is_the_same_and_counted_the_same_however_it_is_cut_into_reads(sizes):
    for path, sent, kept in (
        ("/api/generate", OLLAMA, OLLAMA),
        ("/v1/chat/completions", OPENAI + EXTRA + DONE, OPENAI + DONE),
    ):
        meter = metering.meter_for(call(path, stream=True), "text/event-stream")
        passed, at = b"", 0
        for size in [*sizes, len(sent)]:
            passed += meter.feed(sent[at : at + size])
            at += size
        assert passed + meter.finish() == kept
        assert (meter.tally.prompt, meter.tally.completion, meter.tally.pieces) == (7, 2, 2)


def test_usage_that_the_job_asked_for_itself_stays():
    meter = metering.meter_for(
        call("/v1/chat/completions", stream=True, stream_options={"include_usage": True}), "text/event-stream"
    )
    assert meter.feed(OPENAI + EXTRA + DONE) + meter.finish() == OPENAI + EXTRA + DONE
    assert meter.tally.completion == 2


def test_a_stream_that_is_stripped_passes_each_event_on_as_soon_as_it_is_whole():
    meter = metering.meter_for(call("/v1/chat/completions", stream=True), "text/event-stream")
    assert meter.feed(event(**CHUNK)) == event(**CHUNK)


def test_text_of_a_model_about_tokens_is_not_counted():
    said = {"usage": USAGE, "prompt_eval_count": 1, "done": True}
    lied = json.dumps(json.dumps(said))  # in a string, as a model's words are
    for path, sent in (
        ("/api/generate", f'{{"response": {lied}, "done": false}}\n'.encode()),
        ("/v1/chat/completions", f'data: {{"choices":[{{"delta":{{"content":{lied}}}}}]}}\n\n'.encode()),
    ):
        meter = metering.meter_for(call(path, stream=True), "text/event-stream")
        meter.feed(sent)
        assert (meter.tally.prompt, meter.tally.completion, meter.tally.pieces) == (None, None, 1)


@pytest.mark.parametrize(
    ("path", "document", "told"),
    [
        ("/api/chat", {"done": True, "prompt_eval_count": 3, "eval_count": 4}, (3, 4)),
        ("/api/chat", {"done": True, "eval_count": 4}, (0, 4)),  # a prompt that was cached
        ("/api/generate", {"done": True, "done_reason": "load"}, (0, 0)),
        ("/api/embed", {"embeddings": [[1.0]], "prompt_eval_count": 3}, (3, 0)),
        ("/v1/completions", {"choices": [], "usage": USAGE}, (7, 2)),
        ("/v1/responses", {"usage": {"input_tokens": 5, "output_tokens": 6}}, (5, 6)),
        ("/v1/embeddings", {"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}}, (3, None)),
        ("/v1/completions", {"usage": {"prompt_tokens": -5, "completion_tokens": 10**12}}, (None, None)),
        ("/v1/completions", {"usage": {"prompt_tokens": "many"}}, (None, None)),
        ("/v1/completions", {"usage": None}, (None, None)),
        ("/v1/completions", {"error": "x"}, (None, None)),
    ],
)
def test_a_document_is_counted_by_its_usage(path, document, told):
    meter = metering.DocumentMeter(call(path, stream=False))
    text = json.dumps(document).encode()
    assert meter.feed(text[:9]) + meter.feed(text[9:]) == text
    meter.finish()
    assert (meter.tally.prompt, meter.tally.completion) == told


def test_vectors_by_the_megabyte_are_counted_by_their_end_and_not_held(monkeypatch):
    monkeypatch.setattr(metering, "_MAX_DOCUMENT", 10_000)
    for path, end in (
        ("/v1/embeddings", b'],"usage":{"prompt_tokens": 12,"total_tokens":12}}'),
        ("/api/embed", b'],"prompt_eval_count":12}'),
    ):
        meter = metering.DocumentMeter(call(path, input="a"))
        meter.feed(b'{"data":[')
        for _ in range(1000):
            meter.feed(b"[0.123456789],")
            assert len(meter._held) <= 10_000
        meter.feed(end)
        meter.finish()
        assert meter.tally.total(99, complete=True, vectors=True) == (12, 0)


def test_a_line_without_end_is_passed_on_and_not_held(monkeypatch):
    monkeypatch.setattr(metering, "_MAX_LINE", 1000)
    sent = b"data: " + b"a" * 5000
    for strips in ({}, {"stream_options": {"include_usage": True}}):
        meter = metering.StreamMeter(call("/v1/chat/completions", stream=True, **strips))
        passed = b""
        for _ in range(20):
            passed += meter.feed(sent)
            assert len(meter._line) <= 1000
        passed += meter.feed(b"\n\n" + event(**CHUNK) + EXTRA)
        assert passed + meter.finish() == sent * 20 + b"\n\n" + event(**CHUNK) + (
            b"" if not strips else EXTRA
        )
        assert meter.tally.completion == 2


@pytest.mark.parametrize(
    ("tally", "complete", "total"),
    [
        (metering.Tally(prompt=7, completion=2, pieces=3), True, (7, 2)),
        (metering.Tally(prompt=7, completion=2, pieces=3), False, (7, 3)),
        (metering.Tally(prompt=7, completion=5, pieces=3), False, (7, 5)),
        (metering.Tally(pieces=3), False, (99, 3)),
        (metering.Tally(pieces=3, size=100), True, (99, 3)),
        (metering.Tally(size=100), True, (99, 25)),
        (metering.Tally(), False, (99, 0)),
    ],
)
def test_what_nobody_has_told_is_estimated_and_what_was_told_is_never_undercut(tally, complete, total):
    assert tally.total(99, complete=complete) == total


@UNHURRIED
@given(st.binary(max_size=300))
def test_garbage_passes_as_it_is(garbage):
    for path in ("/api/chat", "/v1/chat/completions"):
        meter = metering.StreamMeter(call(path, stream=True))
        assert meter.feed(garbage) + meter.finish() == garbage


# As the providers' documents show them: usage → prompt, completion, cached, reasoning.
USAGES: dict[str, tuple[dict[str, Any], tuple[int, int, int, int]]] = {
    "OpenAI": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 30, "accepted_prediction_tokens": 0},
        },
        (100, 50, 64, 30),
    ),
    "OpenAI's responses": (
        {
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 64},
            "output_tokens": 50,
            "output_tokens_details": {"reasoning_tokens": 30},
            "total_tokens": 150,
        },
        (100, 50, 64, 30),
    ),
    # Thoughts are in the total alone.
    "Gemini": ({"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 130}, (10, 120, 0, 100)),
    "Gemini, nothing but thoughts": ({"prompt_tokens": 10, "total_tokens": 60}, (10, 50, 0, 50)),
    "xAI": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 20,
            "total_tokens": 130,
            "completion_tokens_details": {"reasoning_tokens": 100},
        },
        (10, 120, 0, 100),
    ),
    "DeepSeek": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 20,
            "total_tokens": 30,
            "prompt_cache_hit_tokens": 8,
            "prompt_cache_miss_tokens": 2,
        },
        (10, 20, 8, 0),
    ),
    "without a total": ({"prompt_tokens": 10, "completion_tokens": 20}, (10, 20, 0, 0)),
    "a total that is too small": (
        {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 5},
        (10, 20, 0, 0),
    ),
    "details that are null": (
        {"prompt_tokens": 10, "completion_tokens": 20, "prompt_tokens_details": None},
        (10, 20, 0, 0),
    ),
    "details of another shape": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 20,
            "prompt_tokens_details": [1],
            "completion_tokens_details": {"reasoning_tokens": "many"},
            "prompt_cache_hit_tokens": "none",
        },
        (10, 20, 0, 0),
    ),
    "parts that are more than the whole": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 20,
            "prompt_tokens_details": {"cached_tokens": 11},
            "completion_tokens_details": {"reasoning_tokens": -1},
        },
        (10, 20, 0, 0),
    ),
}


@pytest.mark.parametrize(("usage", "due"), USAGES.values(), ids=USAGES.keys())
@pytest.mark.parametrize("stream", [True, False])
def test_cached_and_reasoning_tokens_are_parts_and_thoughts_in_the_total_alone_count(usage, due, stream):
    path = "/v1/responses" if "input_tokens" in usage else "/v1/chat/completions"
    meter = metering.meter_for(
        call(path, stream=stream), "text/event-stream" if stream else "application/json"
    )
    if not stream:
        meter.feed(json.dumps({"choices": [], "usage": usage}).encode())
    elif path == "/v1/responses":
        meter.feed(event(type="response.completed", response={"usage": usage}))
    else:
        meter.feed(OPENAI + event(choices=[], usage=usage) + DONE)
    meter.finish()
    tally = meter.tally
    assert tally.total(1, complete=True) == due[:2]
    assert (tally.cached, tally.reasoning) == due[2:]


def test_usage_that_counts_on_from_piece_to_piece_is_told_by_the_last():
    """Gemini sends it with each piece."""
    meter = metering.meter_for(call("/v1/chat/completions", stream=True), "text/event-stream")
    for completion, total in ((5, 45), (10, 60), (20, 130)):
        usage = {"prompt_tokens": 10, "completion_tokens": completion, "total_tokens": total}
        meter.feed(event(**CHUNK, usage=usage))
    meter.finish()
    assert meter.tally.total(1, complete=True) == (10, 120)
    assert meter.tally.reasoning == 100


def test_the_tokens_of_vectors_are_the_prompts_alone():
    meter = metering.meter_for(call("/v1/embeddings", input="a"), "application/json")
    meter.feed(json.dumps({"data": [], "usage": {"prompt_tokens": 7, "total_tokens": 7}}).encode())
    meter.finish()
    assert meter.tally.total(1, complete=True, vectors=True) == (7, 0)
