"""Ollama's calls as OpenAI's, and the answers back; requests and answers as the providers document them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from nanoagent.ai import calls, metering
from nanoagent.ai.refusals import Refused
from nanoagent.ai.routes import ROUTES
from nanoagent.ai.translation import answers as answers_module
from nanoagent.ai.translation import errors, models, requests
from nanoagent.ai.upstreams import UpstreamFailed

if TYPE_CHECKING:
    from types import FrameType

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
JPEG = "/9j/4AAQSkZJRgABAQ=="


def call_of(path: str, body: dict[str, Any]) -> calls.Call:
    return calls.read(ROUTES[path], json.dumps(body).encode(), "m")


def asked(path: str, body: dict[str, Any], *, newer: bool = False) -> tuple[str, dict[str, Any]]:
    made = requests.translate(call_of(path, body), uses_max_completion_tokens=newer)
    # It is a request of OpenAI's API as any other.
    calls.read(made.route, made.request, "m")
    return made.route.path, json.loads(made.request)


CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HELLO = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("path", "body", "to", "request_"),
    [
        ("/api/generate", {"prompt": "hello"}, CHAT, {"messages": [HELLO], "stream": True}),
        (
            "/api/generate",
            {"prompt": "hello", "system": "Be brief.", "stream": False, "keep_alive": 0},
            CHAT,
            {"messages": [{"role": "system", "content": "Be brief."}, HELLO], "stream": False},
        ),
        (
            "/api/generate",
            {"prompt": "a", "raw": True, "stream": False},
            COMPLETIONS,
            {"prompt": "a", "stream": False},
        ),
        (
            "/api/generate",
            {"prompt": "def f(", "suffix": "return x", "stream": False},
            COMPLETIONS,
            {"prompt": "def f(", "suffix": "return x", "stream": False},
        ),
        ("/api/chat", {"messages": [HELLO]}, CHAT, {"messages": [HELLO], "stream": True}),
        (
            "/api/chat",
            {
                "messages": [HELLO],
                "stream": False,
                "options": {
                    "temperature": 0.5,
                    "top_p": 0.9,
                    "seed": 7,
                    "stop": ["\n"],
                    "presence_penalty": 1,
                    "frequency_penalty": 2,
                    "num_predict": 20,
                    "num_ctx": 4096,
                    "top_k": 40,
                    "mirostat": 1,
                },
            },
            CHAT,
            {
                "messages": [HELLO],
                "temperature": 0.5,
                "top_p": 0.9,
                "seed": 7,
                "stop": ["\n"],
                "presence_penalty": 1,
                "frequency_penalty": 2,
                "max_tokens": 20,
                "stream": False,
            },
        ),
        (
            "/api/chat",
            {"messages": [HELLO], "stream": False, "options": {"num_predict": -1}, "think": True},
            CHAT,
            {"messages": [HELLO], "stream": False},
        ),
        (
            "/api/chat",
            {"messages": [HELLO], "stream": False, "think": "low"},
            CHAT,
            {"messages": [HELLO], "stream": False, "reasoning_effort": "low"},
        ),
        (
            "/api/chat",
            {"messages": [HELLO], "stream": False, "format": "json"},
            CHAT,
            {"messages": [HELLO], "response_format": {"type": "json_object"}, "stream": False},
        ),
        (
            "/api/chat",
            {"messages": [HELLO], "stream": False, "format": {"type": "object"}},
            CHAT,
            {
                "messages": [HELLO],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                },
                "stream": False,
            },
        ),
        # What typed clients send for fields that nobody has set.
        (
            "/api/generate",
            {
                "prompt": "hello",
                "suffix": "",
                "system": "",
                "template": "",
                "context": None,
                "raw": None,
                "images": None,
                "format": None,
                "options": None,
                "think": None,
                "stream": False,
            },
            CHAT,
            {"messages": [HELLO], "stream": False},
        ),
        ("/api/embed", {"input": "a"}, EMBEDDINGS, {"input": "a", "encoding_format": "float"}),
        (
            "/api/embed",
            {"input": ["a", "b"], "truncate": True, "dimensions": 8, "options": {"num_ctx": 5}},
            EMBEDDINGS,
            {"input": ["a", "b"], "dimensions": 8, "encoding_format": "float"},
        ),
        ("/api/embeddings", {"prompt": "a"}, EMBEDDINGS, {"input": "a", "encoding_format": "float"}),
    ],
)
def test_a_call_becomes_the_one_of_openais_api_that_means_the_same(path, body, to, request_):
    assert asked(path, body) == (to, {"model": "m", **request_})


def test_the_newer_name_of_the_bound_is_used_where_the_server_wants_it():
    body = {"messages": [HELLO], "options": {"num_predict": 5}}
    assert asked("/api/chat", body, newer=True)[1]["max_completion_tokens"] == 5
    assert asked("/api/generate", {"prompt": "a", "raw": True, "options": {"num_predict": 5}}, newer=True)[
        1
    ] == {"model": "m", "prompt": "a", "max_tokens": 5, "stream": True}


def test_pictures_become_data_and_never_an_address():
    _, request = asked("/api/chat", {"messages": [{**HELLO, "images": [PNG, JPEG]}]})
    text, *pictures = request["messages"][0]["content"]
    assert text == {"type": "text", "text": "hello"}
    urls = [picture["image_url"]["url"] for picture in pictures]
    assert urls == [f"data:image/png;base64,{PNG}", f"data:image/jpeg;base64,{JPEG}"]
    for hostile in ("http://169.254.169.254/", "data:text/html,x", "file:///etc/passwd", '"}', ""):
        with pytest.raises(Refused):
            asked("/api/generate", {"prompt": "a", "images": [hostile]})


def test_tool_calls_get_the_ids_that_openais_api_wants():
    weather = {"function": {"name": "weather", "arguments": {"city": "서울"}}}
    clock = {"function": {"name": "clock", "arguments": {}}}
    messages = [
        HELLO,
        {"role": "assistant", "content": "", "tool_calls": [weather, clock, clock]},
        {"role": "tool", "tool_name": "clock", "content": "noon"},
        {"role": "tool", "tool_name": "weather", "content": "sun"},
        {"role": "tool", "content": "midnight"},
        {"role": "tool", "content": "an answer to nothing"},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    _, request = asked("/api/chat", {"messages": messages, "tools": tools})
    _, assistant, *answers = request["messages"]
    assert request["tools"] == tools
    assert assistant["content"] is None
    assert [call["function"]["name"] for call in assistant["tool_calls"]] == ["weather", "clock", "clock"]
    assert {call["type"] for call in assistant["tool_calls"]} == {"function"}
    assert json.loads(assistant["tool_calls"][0]["function"]["arguments"]) == {"city": "서울"}
    ids = [call["id"] for call in assistant["tool_calls"]]
    assert len(set(ids)) == 3
    assert [answer["tool_call_id"] for answer in answers] == [ids[1], ids[0], ids[2], "call_unknown"]


def translated_in_steps(body: dict[str, Any]) -> int:
    """The instructions of Python that `ai/translation` takes to translate a call."""
    steps = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        if Path(frame.f_code.co_filename).parent != Path(requests.__file__).parent:
            return None
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return trace

    call = call_of("/api/chat", body)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        requests.translate(call, uses_max_completion_tokens=False)
    finally:
        sys.settrace(before)
    return steps


@pytest.mark.parametrize("answer", [{"role": "tool"}, {"role": "tool", "tool_name": "last"}])
def test_the_work_for_each_tool_call_does_not_grow_with_their_number(answer):
    def steps(many: int) -> int:
        named = [{"function": {"name": "first"}}] * many + [{"function": {"name": "last"}}] * many
        messages = [{"role": "assistant", "tool_calls": named}, *[answer] * (2 * many)]
        return translated_in_steps({"messages": messages})

    assert steps(400) < 5 * steps(100)


def test_a_request_with_too_many_tool_calls_is_refused():
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}] * 2048}
    assert asked("/api/chat", {"messages": [message] * 2})
    with pytest.raises(Refused, match="more than 4096 tool calls") as refusal:
        asked("/api/chat", {"messages": [message] * 3})
    assert refusal.value.status == 413


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/api/generate", {"prompt": "a", "template": "{{ .Prompt }}"}, "template"),
        ("/api/generate", {"prompt": "a", "context": [1, 2]}, "context"),
        ("/api/generate", {"prompt": ["a"]}, "prompt"),
        ("/api/generate", {"prompt": "a", "format": 5}, "format"),
        ("/api/chat", {"messages": "a"}, "messages"),
        ("/api/chat", {"messages": [{"content": "a"}]}, "messages"),
        ("/api/chat", {"messages": [HELLO], "tools": {}}, "tools"),
        ("/api/embed", {"input": 5}, "input"),
    ],
)
def test_what_cannot_be_said_in_openais_api_is_refused_by_name(path, body, named):
    with pytest.raises(Refused, match=f"'{named}'") as refusal:
        asked(path, body)
    assert refusal.value.status == 400


@pytest.mark.parametrize("kind", ["web_search", "mcp", "code_interpreter", "file_search"])
def test_a_tool_that_the_upstream_would_run_is_refused_as_it_is_directly(kind):
    made = requests.translate(
        call_of("/api/chat", {"messages": [HELLO], "tools": [{"type": kind}]}),
        uses_max_completion_tokens=False,
    )
    with pytest.raises(Refused, match="AI_REMOTE_TOOLS") as refusal:
        calls.read(made.route, made.request, "m")
    assert refusal.value.status == 403


def test_fields_that_are_not_ollamas_go_no_further():
    request = asked("/api/chat", {"messages": [HELLO], "plugins": None, "reasoning": {}, "user": "u"})[1]
    assert request.keys() == {"model", "messages", "stream"}


# --- answers


def answered(
    path: str,
    body: dict[str, Any],
    *pieces: bytes,
    content_type: str = "text/event-stream",
) -> list[dict[str, Any]]:
    """What a job is told when the upstream sends those pieces, as the gateway reads them."""
    made = requests.translate(call_of(path, body), uses_max_completion_tokens=False)
    upstream = calls.read(made.route, made.request, "m")
    meter = metering.meter_for(upstream, content_type)
    translator = made.translator(meter.tally, content_type, 0.0)
    told = b""
    for piece in pieces:
        meter.feed(piece)
        told += translator.feed(piece)
    meter.finish()
    told += translator.finish()
    assert (translator.content_type == "application/x-ndjson") == (b"\n" in told)
    return [json.loads(line) for line in told.splitlines()]


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return event({"id": "c", "object": "chat.completion.chunk", "choices": [choice], **more})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})
DONE = b"data: [DONE]\n\n"
STREAM = (
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "파란"}),
    chunk({"content": " 하늘"}),
    chunk({}, "stop"),
    USAGE,
    DONE,
)


def said(pieces: list[dict[str, Any]]) -> list[str]:
    return [piece["message"]["content"] if "message" in piece else piece["response"] for piece in pieces]


@pytest.mark.parametrize(
    ("path", "body"), [("/api/chat", {"messages": [HELLO]}), ("/api/generate", {"prompt": "a"})]
)
@pytest.mark.parametrize("cut", [1, 7, 61, 10_000])
def test_a_stream_has_a_line_for_each_piece_and_the_usage_at_its_end(path, body, cut):
    whole = b"".join(STREAM)
    pieces = answered(path, body, *(whole[at : at + cut] for at in range(0, len(whole), cut)))
    assert said(pieces) == ["파란", " 하늘", ""]
    assert [piece["done"] for piece in pieces] == [False, False, True]
    assert all(piece["model"] == "m" and piece["created_at"] for piece in pieces)
    last = pieces[-1]
    assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == ("stop", 3, 2)


def test_a_stream_that_breaks_off_has_no_last_line():
    pieces = answered("/api/chat", {"messages": [HELLO]}, *STREAM[:3])
    assert said(pieces) == ["파란", " 하늘"]
    assert not any(piece["done"] for piece in pieces)


def test_a_stream_ends_with_its_reason_where_a_server_sends_no_done():
    pieces = answered("/api/chat", {"messages": [HELLO]}, *STREAM[:3], chunk({}, "length"))
    assert (pieces[-1]["done"], pieces[-1]["done_reason"]) == (True, "length")
    assert "eval_count" not in pieces[-1]


def test_other_choices_comments_and_garbage_between_the_events_are_left_out():
    other = event({"choices": [{"index": 1, "delta": {"content": "no"}}]})
    pieces = answered(
        "/api/chat", {"messages": [HELLO]}, b": ping\n\n", b"data: {\n\n", b"event: x\n", other, *STREAM
    )
    assert said(pieces) == ["파란", " 하늘", ""]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_are_thinking(name):
    pieces = answered("/api/chat", {"messages": [HELLO]}, chunk({name: "hm"}), *STREAM)
    assert pieces[0]["message"] == {"role": "assistant", "content": "", "thinking": "hm"}
    pieces = answered("/api/generate", {"prompt": "a"}, chunk({name: "hm"}), *STREAM)
    assert (pieces[0]["response"], pieces[0]["thinking"]) == ("", "hm")


def test_a_tool_call_in_pieces_comes_as_a_whole():
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    pieces = answered(
        "/api/chat",
        {"messages": [HELLO]},
        chunk({"tool_calls": [first]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"ci'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": 'ty": "서울"}'}}]}),
        chunk({"tool_calls": [{"index": 1, "function": {"name": "clock", "arguments": "no JSON"}}]}),
        chunk({}, "tool_calls"),
        USAGE,
        DONE,
    )
    assert len(pieces) == 2
    assert pieces[0]["message"]["tool_calls"] == [
        {"function": {"name": "weather", "arguments": {"city": "서울"}}},
        {"function": {"name": "clock", "arguments": {}}},
    ]
    assert (pieces[1]["done"], pieces[1]["done_reason"]) == (True, "stop")


@pytest.mark.parametrize(
    "error", [{"error": {"message": "overloaded", "type": "server_error"}}, {"error": "overloaded"}]
)
def test_an_error_in_a_stream_is_told_in_ollamas_shape(error):
    pieces = answered("/api/chat", {"messages": [HELLO]}, STREAM[1], event(error), *STREAM[2:])
    assert pieces[1:] == [{"error": "overloaded"}]


def whole(message: dict[str, Any], finish: str = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage, **more}).encode()


JSON = "application/json"
WHOLE: dict[str, Any] = {"messages": [HELLO], "stream": False}


def test_an_answer_in_one_piece():
    (answer,) = answered("/api/chat", WHOLE, whole({"content": "파란 하늘"}), content_type=JSON)
    assert answer["message"] == {"role": "assistant", "content": "파란 하늘"}
    assert (answer["done"], answer["done_reason"]) == (True, "stop")
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (3, 2)
    body = {"prompt": "a", "stream": False}
    (answer,) = answered("/api/generate", body, whole({"content": "a"}, "length"), content_type=JSON)
    assert (answer["response"], answer["done_reason"]) == ("a", "length")
    legacy = json.dumps({"choices": [{"index": 0, "text": "b", "finish_reason": "stop"}]}).encode()
    (answer,) = answered("/api/generate", {**body, "raw": True}, legacy, content_type=JSON)
    assert answer["response"] == "b"


def test_an_answer_in_one_piece_to_a_call_for_a_stream_is_one_line():
    (answer,) = answered("/api/chat", {"messages": [HELLO]}, whole({"content": "a"}), content_type=JSON)
    assert (answer["message"]["content"], answer["done"]) == ("a", True)


def test_content_in_parts_and_none_at_all_are_text():
    parts = [
        {"type": "thinking", "thinking": []},
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    (answer,) = answered("/api/chat", WHOLE, whole({"content": parts}), content_type=JSON)
    assert answer["message"]["content"] == "ab"
    calls_ = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}] * 2
    message = {"content": None, "tool_calls": calls_}
    (answer,) = answered("/api/chat", WHOLE, whole(message, "tool_calls"), content_type=JSON)
    assert answer["message"] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}] * 2,
    }


@pytest.mark.parametrize("content", [b"[5]", b"{}", b"5", b"[]", b'[{"type":5}]'])
def test_content_that_is_no_text_is_empty(content):
    choice = b'{"choices":[{"index":0,"%s":{"content":' + content + b'},"finish_reason":"stop"}]}'
    (answer,) = answered("/api/chat", WHOLE, choice.replace(b"%s", b"message"), content_type=JSON)
    assert answer["message"]["content"] == ""
    event_ = b"data: " + choice.replace(b"%s", b"delta") + b"\n\n"
    assert said(answered("/api/chat", {"messages": [HELLO]}, event_)) == [""]


def test_half_a_surrogate_pair_is_garbage():
    half = b'{"choices":[{"index":0,"message":{"content":"\\ud800"},"delta":{"content":"\\ud800"}}]}'
    with pytest.raises(UpstreamFailed):
        answered("/api/chat", WHOLE, half, content_type=JSON)
    assert (
        said(answered("/api/chat", {"messages": [HELLO]}, b"data: " + half + b"\n\n", *STREAM))[0] == "파란"
    )


def test_vectors_are_in_the_order_of_the_texts():
    listed = b'{"index":1,"embedding":[0.10,2]},{"index":0,"embedding":[-1e-3]}'
    data = b'{"data":[' + listed + b'],"usage":{"prompt_tokens":4}}'
    (answer,) = answered("/api/embed", {"input": ["a", "b"]}, data, content_type=JSON)
    assert (answer["embeddings"], answer["prompt_eval_count"]) == ([[-0.001], [0.1, 2]], 4)
    (answer,) = answered("/api/embeddings", {"prompt": "a"}, data, content_type=JSON)
    assert answer == {"embedding": [-0.001]}


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"choices":[]}', b'{"choices":5}', b"\xff"])
def test_an_answer_of_another_shape_is_the_upstreams_failure(body):
    with pytest.raises(UpstreamFailed):
        answered("/api/chat", WHOLE, body, content_type=JSON)


@pytest.mark.parametrize("body", [b"{}", b'{"data":[]}', b'{"data":[{}]}'])
def test_an_answer_without_vectors_is_the_upstreams_failure(body):
    with pytest.raises(UpstreamFailed):
        answered("/api/embed", {"input": "a"}, body, content_type=JSON)


def test_an_endless_line_and_an_endless_document_have_an_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answers_module, "_MAX_LINE", 1000)
    monkeypatch.setattr(answers_module, "_MAX_TEXT", 1000)
    monkeypatch.setattr(answers_module, "_MAX_VECTORS", 1000)
    monkeypatch.setattr(answers_module, "_MOST_OBJECTS", 100)
    for path, body, content_type in (
        ("/api/chat", {"messages": [HELLO]}, "text/event-stream"),
        ("/api/chat", {"messages": [HELLO]}, JSON),
        ("/api/embed", {"input": "a"}, JSON),
    ):
        with pytest.raises(UpstreamFailed, match="too l"):
            answered(path, body, *[b"a" * 11] * 91, content_type=content_type)
    with pytest.raises(UpstreamFailed, match="too many parts"):
        answered("/api/embed", {"input": "a"}, b"{}" * 101, content_type=JSON)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "no such model", "type": "t", "code": 404}}, "no such model"),
        ({"error": "no such model"}, "no such model"),
        ({"object": "error", "message": "no such model", "code": 404}, "no such model"),  # vLLM, older
        ({"detail": "Not Found"}, "Not Found"),  # FastAPI
        ({"detail": [{"loc": ["body"], "msg": "missing"}]}, '[{"loc":["body"],"msg":"missing"}]'),
        ({"other": 1}, '{"other":1}'),
    ],
)
def test_errors_are_told_in_ollamas_shape(body, words):
    assert json.loads(errors.to_ollama(json.dumps(body).encode())) == {"error": words}


@pytest.mark.parametrize(
    ("path", "body", "loads"),
    [
        ("/api/generate", {}, True),
        ("/api/generate", {"prompt": "", "keep_alive": 0}, True),
        ("/api/generate", {"prompt": "a"}, False),
        ("/api/chat", {"messages": []}, True),
        ("/api/chat", {}, True),
        ("/api/chat", {"messages": [HELLO]}, False),
        ("/api/embed", {"input": ""}, False),
    ],
)
def test_a_call_that_only_loads_the_model_is_known(path, body, loads):
    call = call_of(path, body)
    assert requests.only_loads_model(call) is loads
    if loads:
        answer = json.loads(answers_module.model_loaded_answer(call))
        assert (answer["done"], answer["done_reason"]) == (True, "load")


def test_a_model_of_openais_list_is_one_of_ollamas():
    entry = models.tags_entry(msgspec.Raw(b'{"id":"gpt-4o","object":"model","created":1700000000}'))
    told = json.loads(bytes(entry))
    assert (told["name"], told["model"]) == ("gpt-4o", "gpt-4o")
    assert told["modified_at"].startswith("2023-11-14T22:13:20")
    far = json.loads(bytes(models.tags_entry(msgspec.Raw(b'{"id":"a","created":1e300}'))))
    assert far["modified_at"].startswith("1970")
