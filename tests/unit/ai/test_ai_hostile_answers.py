"""Answers of a hostile model server take work and memory in proportion to their bytes, and have an end."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.ai import calls, metering, model_lists
from nanoagent.ai.refusals import Api
from nanoagent.ai.routes import ROUTES
from nanoagent.ai.translation import requests
from nanoagent.ai.upstreams import UpstreamFailed

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 1024 * 1024
STREAM, WHOLE = "text/event-stream", "application/json"


def reader(
    content_type: str = STREAM,
) -> tuple[metering.StreamMeter | metering.DocumentMeter, Any]:
    """What meters and translates the answer to a call of Ollama's API."""
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": content_type == STREAM}
    call = calls.read(ROUTES["/api/chat"], json.dumps(body).encode(), "m")
    made = requests.translate(call, uses_max_completion_tokens=False)
    meter = metering.meter_for(calls.read(made.route, made.request, "m"), content_type)
    return meter, made.translator(meter.tally, content_type, 0.0)


def peak(work: Callable[[], object]) -> int:
    """The most bytes that Python has allocated at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def many(item: bytes) -> bytes:
    return b",".join([item] * (SIZE // (len(item) + 1)))


def members() -> bytes:
    return b",".join(b'"%06x":""' % at for at in range(SIZE // 12))


HOSTILE = {
    "choices": b'{"choices":[' + many(b"{}") + b"]}",
    "choices that are lists": b'{"choices":[' + many(b"[]") + b"]}",
    "choices that are numbers": b'{"choices":[' + many(b"0") + b"]}",
    "members of a delta": b'{"choices":[{"delta":{' + members() + b"}}]}",
    "members of a function": b'{"choices":[{"delta":{"tool_calls":[{"function":{' + members() + b"}}]}}]}",
    "tool calls": b'{"choices":[{"delta":{"tool_calls":[' + many(b'{"index":1}') + b"]}}]}",
    "parts of a text": b'{"choices":[{"delta":{"content":[' + many(b"{}") + b"]}}]}",
    "lists in an error": b'{"error":[' + many(b"[]") + b"]}",
    "members of an error": b'{"error":{' + members() + b"}}",
    "arguments": b'{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{'
    + members().replace(b'"', b'\\"')[: SIZE // 2].rpartition(b",")[0]
    + b'}"}}]}}]}',
}


@pytest.mark.parametrize("document", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("content_type", [STREAM, WHOLE])
def test_an_answer_with_too_many_parts_is_not_parsed(document, content_type):
    """Objects take the time of the loop as well as memory: some tens of bytes and of nanoseconds each."""
    if content_type == WHOLE:
        document = document.replace(b'"delta"', b'"message"')
    sent = document if content_type == WHOLE else b"data: " + document + b"\n\ndata: [DONE]\n\n"
    meter, translator = reader(content_type)
    assert peak(lambda: (meter.feed(sent), meter.finish())) < 6 * SIZE

    def translate() -> None:
        try:
            translator.feed(sent)
            translator.finish()
        except UpstreamFailed:
            pass

    assert peak(translate) < 8 * SIZE


@pytest.mark.parametrize(
    "document",
    [b"[" + many(b"0") + b"]", b'{"data":[' + many(b"{}") + b"]}", b"{" + members() + b"}"],
    ids=["a list", "data", "members"],
)
def test_a_list_of_models_with_too_many_parts_is_not_parsed(document):
    assert peak(lambda: model_lists.parse_list(document, Api.OPENAI)) < 3 * SIZE


def test_a_line_of_too_many_parts_ends_a_translated_stream():
    def line(parts: int) -> bytes:
        return b'data: {"choices":[' + b",".join([b"{}"] * (parts - 1)) + b"]}\n"

    _, translator = reader()
    assert translator.feed(line(4096)) == b""
    with pytest.raises(UpstreamFailed, match="too many parts"):
        translator.feed(line(4097))


def test_a_chunk_of_very_many_choices_counts_as_one_piece_and_its_usage_counts():
    meter, _ = reader()
    choices = b'{"choices":[' + many(b'{"text":"a"}') + b"]"
    meter.feed(b"data: " + choices + b',"usage":{"prompt_tokens":3,"completion_tokens":2}}\n')
    assert (meter.tally.prompt, meter.tally.completion, meter.tally.pieces) == (3, 2, 1)


def test_a_whole_answer_without_a_usage_counts_by_its_size():
    meter = metering.meter_for(calls.read(ROUTES["/v1/completions"], b'{"prompt":"a"}', "m"), WHOLE)
    document = b'{"choices":[{"text":"' + b"a" * 4000 + b'"}]}'
    meter.feed(document)
    meter.finish()
    assert meter.tally.total(1, complete=True) == (1, -(-len(document) // 4))


def tool_call(index: int, arguments: str) -> bytes:
    call = {"index": index, "function": {"name": "f", "arguments": arguments}}
    return b"data: " + json.dumps({"choices": [{"delta": {"tool_calls": [call]}}]}).encode() + b"\n\n"


def test_endless_tool_calls_are_cut():
    _, translator = reader()
    for index in range(1024):
        translator.feed(tool_call(index, "{}"))
    with pytest.raises(UpstreamFailed, match="more than 1024 tool calls"):
        translator.feed(tool_call(1024, "{}"))


def test_endless_arguments_are_cut():
    _, translator = reader()
    for _ in range(15):
        assert translator.feed(tool_call(0, "a" * 65536)) == b""
    assert 15 * 65536 <= translator.held_bytes <= 16 * 65536
    with pytest.raises(UpstreamFailed, match="larger than 1048576 bytes"):
        translator.feed(tool_call(0, "a" * 65536))


def test_arguments_in_pieces_of_one_byte_take_little_more_memory_than_in_one():
    _, translator = reader()
    piece = tool_call(0, "a")
    translator.feed(piece)
    tracemalloc.start()
    try:
        for _ in range(20_000):
            translator.feed(piece)
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_a_whole_answer_has_no_more_tool_calls_than_a_stream():
    _, translator = reader(WHOLE)
    calls_ = [{"function": {"name": "f", "arguments": "{}"}}] * 1025
    translator.feed(json.dumps({"choices": [{"message": {"tool_calls": calls_}}]}).encode())
    with pytest.raises(UpstreamFailed, match="more than 1024 tool calls"):
        translator.finish()


@pytest.mark.parametrize(
    ("arguments", "told"), [('{\n  "a": 1\n}', {"a": 1}), ('{"a": "b\nc"}', {}), ("[\n]", {}), ("{} {}", {})]
)
def test_arguments_of_several_lines_are_passed_on_in_one(arguments, told):
    _, translator = reader()
    translator.feed(tool_call(0, arguments))
    first, _ = translator.feed(b"data: [DONE]\n\n").splitlines()
    assert json.loads(first)["message"]["tool_calls"] == [{"function": {"name": "f", "arguments": told}}]
